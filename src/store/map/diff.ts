/**
 * What differs between two trees, and the hash of a tree's stamps (DESIGN §5, §8).
 *
 * Owns: comparing top down without looking into what both share; summing the
 * stamps of a range.
 * Must not know: what is done with the answer, how nodes are loaded.
 */
import type { BlockMap, MapRoot } from './map.js';
import { LeafContent } from './leaf.js';
import { FAN_OUT, LEAF_BLOCKS, LEAF_REGIONS } from './nodes.js';

/** Blocks [firstBlock, firstBlock + count) have another entry; within one `run` ascending and never touching. */
export type DiffVisitor = (firstBlock: number, count: number) => void;

/** What comparing two leaves costs, in the units of a budget: nodes looked at. */
const LEAF_COST = 16;

export class MapDiff {
  /** After a `run` that stopped early: a node to load before it is called again; 0 = the budget was used up. */
  needed = 0;

  private readonly contentA = new LeafContent();
  private readonly contentB = new LeafContent();
  private first = 0;
  private end = 0;
  private stoppedAt = 0;
  private budget = Infinity;
  private runStart = 0;
  private runEnd = 0;

  /** Both roots stay unchanged while this is in use. The shorter device counts as zero beyond its end. */
  constructor(private readonly map: BlockMap, private readonly a: MapRoot, private readonly b: MapRoot) {}

  /**
   * Reports the blocks of [first, end) whose entries differ. Returns `end`, or
   * less: everything below was reported; `needed` must be loaded first, or about
   * `budget` nodes (16 at least) were looked at.
   */
  run(first: number, end: number, visitor: DiffVisitor, budget = Infinity): number {
    this.budget = budget;
    this.first = first;
    this.end = end;
    this.needed = 0;
    this.runStart = this.runEnd = first;
    const height = Math.max(this.a.height, this.b.height);
    const done = first === end || this.compare(this.a.handle, this.a.height, this.b.handle, this.b.height, height, 0, visitor);
    this.flush(visitor);
    return done ? end : this.stoppedAt;
  }

  /** Nodes at `level` from leaf `leaf` on; a node of a lower level stands for its first ancestor there. */
  private compare(a: number, levelA: number, b: number, levelB: number, level: number, leaf: number, visitor: DiffVisitor): boolean {
    if (a === b && (a === 0 || levelA === levelB)) return true;
    if (a !== 0 && b !== 0 && levelA === levelB && this.map.identityOf(a) === this.map.identityOf(b)) return true;
    if (this.budget <= 0) return this.stop(0, leaf * LEAF_BLOCKS);
    this.budget -= level === 0 ? LEAF_COST : 1;
    if (level === 0) return this.compareLeaves(a, b, leaf * LEAF_BLOCKS, visitor);
    const { nodes, inners } = this.map;
    if (a !== 0 && levelA === level && nodes.wordOf(a) === 0) return this.stop(a, leaf * LEAF_BLOCKS);
    if (b !== 0 && levelB === level && nodes.wordOf(b) === 0) return this.stop(b, leaf * LEAF_BLOCKS);
    const leaves = FAN_OUT ** (level - 1);
    for (let slot = 0; slot < FAN_OUT; slot++) {
      const start = leaf + slot * leaves;
      if (start * LEAF_BLOCKS >= this.end) break;
      if ((start + leaves) * LEAF_BLOCKS <= this.first) continue;
      const childA = a === 0 ? 0 : levelA === level ? inners.child(a, slot) : slot === 0 ? a : 0;
      const childB = b === 0 ? 0 : levelB === level ? inners.child(b, slot) : slot === 0 ? b : 0;
      if (!this.compare(childA, Math.min(levelA, level - 1), childB, Math.min(levelB, level - 1), level - 1, start, visitor)) return false;
    }
    return true;
  }

  private compareLeaves(a: number, b: number, firstBlock: number, visitor: DiffVisitor): boolean {
    const miss = this.map.leaves.expand(a, this.contentA) || this.map.leaves.expand(b, this.contentB);
    if (miss !== 0) return this.stop(miss, firstBlock);
    const from = Math.max(0, this.first - firstBlock);
    const to = Math.min(LEAF_BLOCKS, this.end - firstBlock);
    for (let block = from; block < to; block++) {
      if (this.contentA.layers[block] === this.contentB.layers[block]) continue;
      if (firstBlock + block !== this.runEnd) {
        this.flush(visitor);
        this.runStart = firstBlock + block;
      }
      this.runEnd = firstBlock + block + 1;
    }
    return true;
  }

  private flush(visitor: DiffVisitor): void {
    if (this.runEnd > this.runStart) visitor(this.runStart, this.runEnd - this.runStart);
    this.runStart = this.runEnd;
  }

  private stop(needed: number, block: number): false {
    this.needed = needed;
    this.stoppedAt = Math.max(this.first, block);
    return false;
  }
}

const stamps = new Float64Array(LEAF_REGIONS);

/**
 * Adds to `sum` (low, high: two u32, each modulo 2^32) the hash of the stamps of
 * whole leaves [firstLeaf, endLeaf): the sum over all regions whose stamp is not
 * 0 of a 64-bit mix of (region's index in the device, stamp). Hence equal on all
 * nodes, whatever the trees look like, and the sum of two ranges is that of both.
 * Returns 0 or a miss (then `sum` is undefined).
 */
export function hashStamps(map: BlockMap, root: MapRoot, firstLeaf: number, endLeaf: number, sum: Uint32Array): number {
  for (let leaf = firstLeaf; leaf < endLeaf; ) {
    const h = map.descend(root, leaf);
    if (map.level > 0) {
      if (h !== 0) return h;
      const leaves = FAN_OUT ** map.level;
      leaf += leaves - (leaf % leaves);
      continue;
    }
    if (h !== 0) {
      const miss = map.leaves.stamps(h, 0, LEAF_REGIONS, stamps, 0);
      if (miss !== 0) return miss;
      for (let region = 0; region < LEAF_REGIONS; region++) if (stamps[region] !== 0) addStamp(sum, leaf * LEAF_REGIONS + region, stamps[region]);
    }
    leaf++;
  }
  return 0;
}

/** Adds one region to the sum of `hashStamps`. */
function addStamp(sum: Uint32Array, region: number, stamp: number): void {
  sum[0] += mix(region, stamp, 0x243f6a88, 0xcc9e2d51);
  sum[1] += mix(region, stamp, 0x85a308d3, 0x9e3779b1);
}

/** 32 bits of a mix of two integers below 2^53. */
function mix(region: number, stamp: number, seed: number, factor: number): number {
  let h = seed;
  h = stir(h ^ Math.imul(region | 0, factor));
  h = stir(h ^ Math.imul(Math.floor(region / 2 ** 32) | 0, factor));
  h = stir(h ^ Math.imul(stamp | 0, factor));
  h = stir(h ^ Math.imul(Math.floor(stamp / 2 ** 32) | 0, factor));
  return h;
}

/** Bijective scrambling of 32 bits. */
function stir(value: number): number {
  let h = value ^ (value >>> 16);
  h = Math.imul(h, 0x7feb352d);
  h ^= h >>> 15;
  h = Math.imul(h, 0x846ca68b);
  return (h ^ (h >>> 16)) + 0x6d2b79f5 | 0;
}
