/**
 * A sweep over the leaves of several trees at once, in ascending order, each
 * distinct node once, that can stop after any node and go on later (DESIGN §5,
 * the background walker: no step may be long, however many snapshots there are).
 *
 * Owns: the position, a reference to every node between it and the roots (nodes
 * may be paged out and their parents dropped between two steps), and how many
 * blocks of each tree are in use.
 * Must not know: what is done with what is found, how nodes are loaded.
 */
import { LeafContent } from './leaf.js';
import type { BlockMap, MapRoot } from './map.js';
import { FAN_OUT, LEAF_BLOCKS } from './nodes.js';

export interface LeafVisitor {
  /**
   * A distinct leaf, whose runs follow: `trees` of the roots hold it, the first
   * of them is roots[root]. Leaves of the same place follow each other.
   */
  leaf(firstBlock: number, trees: number, root: number): void;
  /** Blocks [firstBlock, firstBlock + count) of the leaf are in `layer` (never 0). */
  run(layer: number, firstBlock: number, count: number): void;
}

/** Why a step ended. */
export const Sweep = {
  /** Its budget is used up. */
  more: 0,
  /** `needed` has to be loaded first. */
  needed: 1,
  /** All leaves of one place were visited: the blocks [placeBlock, placeBlock + LEAF_BLOCKS). */
  place: 2,
  /** Nothing is left. */
  end: 3,
} as const;
export type SweepResult = (typeof Sweep)[keyof typeof Sweep];

/** What visiting one leaf costs, in the units of a budget: nodes looked at. */
const LEAF_COST = 16;

/** The distinct nodes that cover one span of the address space. */
class SpanList {
  handles = new Uint32Array(16);
  trees = new Uint32Array(16);
  root = new Uint32Array(16);
  /** Blocks in use below each node, as far as it was visited. */
  used = new Float64Array(16);
  /** Per node: 1 + index of its child in the list of the part under construction or visited; 0 = zero. */
  child = new Uint32Array(16);
  count = 0;
  /** First leaf of the span, and which of its 64 parts comes next. */
  start = 0;
  slot = 0;
  private keys = new Float64Array(32);
  private at = new Uint32Array(32);
  private generations = new Uint32Array(32);
  private generation = 1;

  constructor(private readonly map: BlockMap) {}

  /** Adds a node and holds it; one with the same content only counts. Returns its index. */
  add(h: number, trees: number, root: number): number {
    if ((this.count + 1) * 2 > this.keys.length) this.grow();
    const key = this.map.identityOf(h);
    const slot = this.slotOf(key);
    if (this.generations[slot] === this.generation) {
      const found = this.at[slot];
      this.trees[found] += trees;
      if (root < this.root[found]) this.root[found] = root;
      return found;
    }
    this.put(slot, key, this.count);
    this.map.nodes.retain(h);
    this.handles[this.count] = h;
    this.trees[this.count] = trees;
    this.root[this.count] = root;
    this.used[this.count] = 0;
    return this.count++;
  }

  clear(): void {
    for (let i = 0; i < this.count; i++) this.map.nodes.release(this.handles[i]);
    this.count = 0;
    this.generation++;
  }

  private slotOf(key: number): number {
    const mask = this.keys.length - 1;
    const folded = key < 0 ? -key : key / 8;
    let slot = Math.imul((folded % 4294967291) | 0, 0x9e3779b1);
    slot = (slot ^ (slot >>> 15)) & mask;
    while (this.generations[slot] === this.generation && this.keys[slot] !== key) slot = (slot + 1) & mask;
    return slot;
  }

  private put(slot: number, key: number, index: number): void {
    this.generations[slot] = this.generation;
    this.keys[slot] = key;
    this.at[slot] = index;
  }

  private grow(): void {
    const old = { keys: this.keys, at: this.at, generations: this.generations };
    const size = old.keys.length * 2;
    this.keys = new Float64Array(size);
    this.at = new Uint32Array(size);
    this.generations = new Uint32Array(size);
    for (let i = 0; i < old.keys.length; i++) {
      if (old.generations[i] === this.generation) this.put(this.slotOf(old.keys[i]), old.keys[i], old.at[i]);
    }
    for (const name of ['handles', 'trees', 'root', 'child'] as const) {
      const grown = new Uint32Array(size);
      grown.set(this[name]);
      this[name] = grown;
    }
    const used = new Float64Array(size);
    used.set(this.used);
    this.used = used;
  }
}

export class MapSweep {
  /** After `needed`: the node without body (BlockMap.diskRefOf, load). */
  neededNode = 0;
  /** Nodes looked at. */
  visited = 0;
  /** After `place`. */
  placeBlock = 0;
  /** Blocks in use, per root; complete at the end of a sweep that skipped nothing. */
  readonly used: Float64Array;
  /** Per root: 1 + its index in the list of its height; 0 = zero. */
  private readonly rootAt: Uint32Array;

  private readonly lists: SpanList[] = [];
  private readonly height: number;
  private readonly content = new LeafContent();
  /** Level of the list that is expanded; its next part is under construction while `filling`. */
  private level: number;
  /** What of roots and nodes has been looked at for the list under construction, or of leaves for the place. */
  private index = 0;
  private filling = true;
  private skipLeaf = 0;

  /** Starts at the place of `firstBlock`. `roots` are borrowed and stay unchanged: hold shares of your own. */
  constructor(private readonly map: BlockMap, private readonly roots: readonly MapRoot[], firstBlock: number) {
    this.height = roots.reduce((height, root) => Math.max(height, root.height), 0);
    this.used = new Float64Array(roots.length);
    this.rootAt = new Uint32Array(roots.length);
    for (let level = 0; level <= this.height; level++) this.lists.push(new SpanList(map));
    this.level = this.height + 1;
    this.skipTo(firstBlock);
  }

  /** Places that end at or before `block` are not visited any more. */
  skipTo(block: number): void {
    this.skipLeaf = Math.max(this.skipLeaf, Math.floor(block / LEAF_BLOCKS));
  }

  /** Gives the held nodes back; the sweep is used no more. */
  release(): void {
    for (const list of this.lists) list.clear();
  }

  /** Units left of the budget of the last step. */
  budget = 0;

  /** Looks at about `budget` nodes. */
  step(budget: number, visitor: LeafVisitor): SweepResult {
    this.budget = budget;
    while (this.budget > 0) {
      if (this.filling) {
        const result = this.fill();
        if (result !== undefined) return result;
      } else if (this.level === 0) {
        const result = this.visit(visitor);
        if (result !== undefined) return result;
      } else if (this.level > this.height) {
        return Sweep.end;
      } else {
        this.next();
      }
    }
    return Sweep.more;
  }

  /** Chooses the next part of the span at this level, or goes up. */
  private next(): void {
    const list = this.lists[this.level];
    const below = FAN_OUT ** (this.level - 1);
    const skipped = Math.floor((this.skipLeaf - list.start) / below);
    if (list.slot < skipped) list.slot = Math.min(FAN_OUT, skipped);
    this.budget--;
    if (list.slot === FAN_OUT || (list.count === 0 && list.slot > 0)) {
      this.passUp(list, this.level);
      this.level++;
      return;
    }
    const part = this.lists[this.level - 1];
    part.start = list.start + list.slot * below;
    part.slot = 0;
    list.slot++;
    this.filling = true;
    this.index = 0;
  }

  /** Builds the list below `level`: roots of that height, if it starts at 0, then children of the nodes at `level`. */
  private fill(): SweepResult | undefined {
    const { map, roots } = this;
    const part = this.lists[this.level - 1];
    const above = this.level <= this.height ? this.lists[this.level] : undefined;
    const rootCount = part.start === 0 ? roots.length : 0;
    const end = rootCount + (above?.count ?? 0);
    while (this.index < end) {
      if (this.budget-- <= 0) return Sweep.more;
      if (this.index < rootCount) {
        const root = roots[this.index];
        if (root.height === this.level - 1 && root.handle !== 0) this.rootAt[this.index] = part.add(root.handle, 1, this.index) + 1;
      } else {
        const at = this.index - rootCount;
        const h = above!.handles[at];
        if (map.nodes.wordOf(h) === 0) {
          this.neededNode = h;
          return Sweep.needed;
        }
        const child = map.inners.child(h, above!.slot - 1);
        above!.child[at] = child === 0 ? 0 : part.add(child, above!.trees[at], above!.root[at]) + 1;
      }
      this.index++;
      this.visited++;
    }
    this.filling = false;
    this.index = 0;
    // An empty part holds nothing, but roots of lower height may lie below one that starts at 0.
    if (part.count > 0 || (part.start === 0 && this.level > 1)) this.level--;
    else if (this.level > this.height) return Sweep.end;
    return undefined;
  }

  private visit(visitor: LeafVisitor): SweepResult | undefined {
    const list = this.lists[0];
    const { leaves } = this.map;
    const firstBlock = list.start * LEAF_BLOCKS;
    while (this.index < list.count) {
      const missing = leaves.missing(list.handles[this.index]);
      if (missing !== 0) {
        this.neededNode = missing;
        return Sweep.needed;
      }
      if (this.budget <= 0) return Sweep.more;
      this.budget -= LEAF_COST;
      this.visitLeaf(this.index++, firstBlock, visitor);
    }
    this.index = 0;
    this.passUp(list, 0);
    this.level = 1;
    this.placeBlock = firstBlock;
    return Sweep.place;
  }

  /** All below `list`, which is of `level`, was visited: its sums go to the nodes above and to its roots, and it is done. */
  private passUp(list: SpanList, level: number): void {
    if (level < this.height) {
      const above = this.lists[level + 1];
      for (let at = 0; at < above.count; at++) if (above.child[at] !== 0) above.used[at] += list.used[above.child[at] - 1];
      this.budget -= above.count >> 4;
    }
    if (list.start === 0) {
      for (let i = 0; i < this.roots.length; i++) if (this.roots[i].height === level && this.rootAt[i] !== 0) this.used[i] += list.used[this.rootAt[i] - 1];
    }
    list.clear();
  }

  private visitLeaf(index: number, firstBlock: number, visitor: LeafVisitor): void {
    const list = this.lists[0];
    this.visited++;
    this.map.leaves.expand(list.handles[index], this.content);
    visitor.leaf(firstBlock, list.trees[index], list.root[index]);
    const { layers } = this.content;
    let runs = 0;
    let used = 0;
    for (let block = 0; block < LEAF_BLOCKS; runs++) {
      const from = block;
      const layer = layers[block];
      while (block < LEAF_BLOCKS && layers[block] === layer) block++;
      if (layer === 0) continue;
      visitor.run(layer, firstBlock + from, block - from);
      used += block - from;
    }
    list.used[index] = used;
    this.budget -= runs >> 1;
  }
}
