/**
 * Walking the leaves of several trees at once: for punching, sizes, own and
 * shared space (DESIGN §5, "one background walker").
 *
 * Owns: visiting each distinct leaf once, whoever shares it, in ascending order,
 * in steps that the caller bounds.
 * Must not know: what is done with what is found, how nodes are loaded.
 */
import { assert } from '../base/assert.js';
import type { BlockMap, MapRoot } from './map.js';
import { LeafContent } from './leaf.js';
import { FAN_OUT, LEAF_BLOCKS } from './nodes.js';

export interface WalkVisitor {
  /**
   * A distinct leaf, whose runs follow: `trees` of the roots hold it, the first
   * of them is roots[root]. Leaves of the same place follow each other.
   */
  leaf(firstBlock: number, trees: number, root: number): void;
  /** Blocks [firstBlock, firstBlock + count) of the leaf are in `layer` (never 0). */
  run(layer: number, firstBlock: number, count: number): void;
}

/** Handles to load before a walk can go on. */
const NEEDED_MAX = 64;

/** Distinct nodes at one place of the trees. */
class NodeList {
  readonly handles: Uint32Array;
  readonly trees: Uint32Array;
  readonly root: Uint32Array;
  count = 0;
  /** Hash of node identities → index + 1; cleared by generation. */
  private readonly slots: Uint32Array;
  private readonly generations: Uint32Array;
  private generation = 0;

  constructor(capacity: number, private readonly map: BlockMap) {
    let size = 4;
    while (size < capacity * 2) size *= 2;
    this.handles = new Uint32Array(capacity);
    this.trees = new Uint32Array(capacity);
    this.root = new Uint32Array(capacity);
    this.slots = new Uint32Array(size);
    this.generations = new Uint32Array(size);
  }

  clear(): void {
    this.count = 0;
    this.generation++;
  }

  /** Adds a node, or counts its trees to the same node's: same handle, or same record on disk. */
  add(h: number, trees: number, root: number): void {
    if (h === 0) return;
    const identity = identityOf(this.map, h);
    const mask = this.slots.length - 1;
    let i = Math.imul(identity % 0xfffffffb | 0, 0x9e3779b1) & mask;
    for (; this.generations[i] === this.generation; i = (i + 1) & mask) {
      const at = this.slots[i];
      if (identityOf(this.map, this.handles[at]) !== identity) continue;
      this.trees[at] += trees;
      if (root < this.root[at]) this.root[at] = root;
      return;
    }
    this.generations[i] = this.generation;
    this.slots[i] = this.count;
    this.handles[this.count] = h;
    this.trees[this.count] = trees;
    this.root[this.count++] = root;
  }
}

/** Two handles with the same identity have the same content: negative for nodes that exist in memory only. */
export function identityOf(map: BlockMap, h: number): number {
  const ref = map.nodes.diskRefOf(h) === 0 ? 0 : map.diskRefOf(h);
  return ref === 0 ? -h : ref;
}

export class MapWalk {
  /** After a `run` that stopped early: nodes to load (BlockMap.diskRefOf, load) before it is called again. */
  readonly needed = new Uint32Array(NEEDED_MAX);
  neededCount = 0;

  private readonly lists: NodeList[] = [];
  private readonly height: number;
  private readonly content = new LeafContent();
  private first = 0;
  private end = 0;
  private stoppedAt = 0;

  /** `roots` stay unchanged while the walk is in use: hold shares of your own. */
  constructor(private readonly map: BlockMap, private readonly roots: readonly MapRoot[]) {
    this.height = roots.reduce((height, root) => Math.max(height, root.height), 0);
    for (let level = 0; level <= this.height; level++) this.lists.push(new NodeList(Math.max(1, roots.length), map));
  }

  /**
   * Visits the blocks [first, end). Returns `end`, or less: everything below the
   * returned block was visited, and `needed` must be loaded before going on from there.
   */
  run(first: number, end: number, visitor: WalkVisitor): number {
    assert(first >= 0 && first <= end, 'a window has a start and an end');
    this.first = first;
    this.end = end;
    this.neededCount = 0;
    if (first === end) return end;
    const list = this.lists[this.height];
    list.clear();
    this.addRoots(list, this.height);
    return this.visit(this.height, 0, visitor) ? end : this.stoppedAt;
  }

  private addRoots(list: NodeList, level: number): void {
    for (let i = 0; i < this.roots.length; i++) if (this.roots[i].height === level) list.add(this.roots[i].handle, 1, i);
  }

  /** The nodes of lists[level], which start at leaf `leaf`; false when something must be loaded. */
  private visit(level: number, leaf: number, visitor: WalkVisitor): boolean {
    const list = this.lists[level];
    const { nodes, inners } = this.map;
    if (level === 0) return this.visitLeaves(list, leaf * LEAF_BLOCKS, visitor);
    for (let i = 0; i < list.count; i++) if (nodes.wordOf(list.handles[i]) === 0) this.need(list.handles[i]);
    if (this.neededCount > 0) return this.stop(leaf * LEAF_BLOCKS);
    const leaves = FAN_OUT ** (level - 1);
    const below = this.lists[level - 1];
    for (let slot = 0; slot < FAN_OUT; slot++) {
      const start = leaf + slot * leaves;
      if (start * LEAF_BLOCKS >= this.end) break;
      if ((start + leaves) * LEAF_BLOCKS <= this.first) continue;
      below.clear();
      if (start === 0) this.addRoots(below, level - 1);
      for (let i = 0; i < list.count; i++) below.add(inners.child(list.handles[i], slot), list.trees[i], list.root[i]);
      if ((below.count > 0 || start === 0) && !this.visit(level - 1, start, visitor)) return false;
    }
    return true;
  }

  private visitLeaves(list: NodeList, firstBlock: number, visitor: WalkVisitor): boolean {
    const { leaves } = this.map;
    for (let i = 0; i < list.count; i++) this.need(leaves.missing(list.handles[i]));
    if (this.neededCount > 0) return this.stop(firstBlock);
    const { layers } = this.content;
    const from = Math.max(0, this.first - firstBlock);
    const to = Math.min(LEAF_BLOCKS, this.end - firstBlock);
    for (let i = 0; i < list.count; i++) {
      leaves.expand(list.handles[i], this.content);
      visitor.leaf(firstBlock, list.trees[i], list.root[i]);
      for (let block = from; block < to; ) {
        const start = block;
        const layer = layers[block];
        while (block < to && layers[block] === layer) block++;
        if (layer !== 0) visitor.run(layer, firstBlock + start, block - start);
      }
    }
    return true;
  }

  private need(h: number): void {
    if (h !== 0 && this.neededCount < NEEDED_MAX) this.needed[this.neededCount++] = h;
  }

  private stop(block: number): false {
    this.stoppedAt = Math.max(this.first, block);
    return false;
  }
}
