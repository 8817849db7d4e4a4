/**
 * Leaves: reading the bodies of map leaves (DESIGN §5).
 *
 * Owns: how the kinds of leaf bodies answer "which layer has this block" and
 * "which stamp has this region", following deltas to their base.
 * Must not know: changes (leafchange.ts), inner nodes, devices.
 *
 * A base may be paged out: functions then return its handle, a *miss*, and the
 * caller loads it and asks again. 0 = answered.
 */
import { DELTA_CAPACITY, Kind, LEAF_BLOCKS, LEAF_REGIONS, REGION_BLOCKS, SEE_BASE, STAMP_SEE_BASE, kindOfWord } from './nodes.js';
import type { Nodes } from './nodes.js';

/** Content of a leaf, or of a change to one, in the open: for everything that is not the hot path. */
export class LeafContent {
  readonly layers = new Uint32Array(LEAF_BLOCKS);
  readonly stamps = new Float64Array(LEAF_REGIONS);

  clear(): void {
    this.layers.fill(0);
    this.stamps.fill(0);
  }

  /** Nothing changed: all entries refer to the base. */
  seeBase(): void {
    this.layers.fill(SEE_BASE);
    this.stamps.fill(STAMP_SEE_BASE);
  }

  /** Takes the entries that `over` changes. */
  overlay(over: LeafContent): void {
    for (let region = 0; region < LEAF_REGIONS; region++) {
      if (over.stamps[region] === STAMP_SEE_BASE) continue;
      this.stamps[region] = over.stamps[region];
      const end = (region + 1) * REGION_BLOCKS;
      for (let block = region * REGION_BLOCKS; block < end; block++) {
        const layer = over.layers[block];
        if (layer !== SEE_BASE) this.layers[block] = layer;
      }
    }
  }
}

/** What a delta changes, entry by entry: the compact form that is written to the disk. */
export class DeltaEntries {
  count = 0;
  /** Ascending. */
  readonly blocks = new Uint16Array(LEAF_BLOCKS);
  readonly layers = new Uint32Array(LEAF_BLOCKS);
  /** Stamps of the touched regions, ascending by region. */
  touched = 0;
  readonly stamps = new Float64Array(LEAF_REGIONS);

  clear(): void {
    this.count = 0;
    this.touched = 0;
  }

  /** Appends an entry; `stamp` is its region's. */
  push(block: number, layer: number, stamp: number): void {
    if (this.count === 0 || this.blocks[this.count - 1] >>> 4 !== block >>> 4) this.stamps[this.touched++] = stamp;
    this.blocks[this.count] = block;
    this.layers[this.count++] = layer;
  }

  pushAll(content: LeafContent): void {
    for (let region = 0; region < LEAF_REGIONS; region++) {
      if (content.stamps[region] === STAMP_SEE_BASE) continue;
      const end = (region + 1) * REGION_BLOCKS;
      for (let block = region * REGION_BLOCKS; block < end; block++) {
        if (content.layers[block] !== SEE_BASE) this.push(block, content.layers[block], content.stamps[region]);
      }
    }
  }
}

export class Leaves {
  private readonly scratch = new LeafContent();

  constructor(protected readonly nodes: Nodes) {}

  /** Layer numbers of blocks [from, to) of leaf `h` into `out` at `at`. Returns 0 or a miss (then `out` is undefined). */
  resolve(h: number, from: number, to: number, out: Uint32Array, at: number): number {
    if (h === 0) {
      out.fill(0, at, at + to - from);
      return 0;
    }
    const nodes = this.nodes;
    const word = nodes.wordOf(h);
    nodes.touch(h, word);
    const u32 = nodes.slabs.u32[(word >>> 16) & 0xfff];
    const body = (word & 0xffff) << 2;
    const kind = kindOfWord(word);
    switch (kind) {
      case Kind.none:
        return h;
      case Kind.mono: {
        const layer = u32[body + 64];
        for (let block = from; block < to; block++) {
          out[at++] = ((u32[body + 65 + (block >>> 5)] >>> (block & 31)) & 1) !== 0 ? layer : 0;
        }
        return 0;
      }
      case Kind.full:
        for (let block = from; block < to; block++) out[at++] = u32[body + 64 + block];
        return 0;
      case Kind.dense: {
        let covered = true;
        for (let block = from; block < to && covered; block++) covered = u32[body + 66 + block] !== SEE_BASE;
        if (!covered) {
          const miss = this.resolve(u32[body], from, to, out, at);
          if (miss !== 0) return miss;
        }
        for (let block = from; block < to; block++, at++) {
          const layer = u32[body + 66 + block];
          if (layer !== SEE_BASE) out[at] = layer;
        }
        return 0;
      }
      default: {
        const capacity = DELTA_CAPACITY[kind];
        const u16 = nodes.slabs.u16[(word >>> 16) & 0xfff];
        const layers = body + 2 + 2 * capacity;
        const blocks = (body << 1) + 4 + 6 * capacity;
        const count = u32[body + 1];
        const first = lowerBound(u16, blocks, count, from);
        const end = to - from === 1 ? first + (first < count && u16[blocks + first] === from ? 1 : 0) : lowerBound(u16, blocks, count, to);
        if (end - first < to - from) {
          const miss = this.resolve(u32[body], from, to, out, at);
          if (miss !== 0) return miss;
        }
        for (let i = first; i < end; i++) out[at + u16[blocks + i] - from] = u32[layers + i];
        return 0;
      }
    }
  }

  /** All entries and stamps of leaf `h`. Returns 0 or a miss. */
  expand(h: number, into: LeafContent): number {
    if (h === 0) {
      into.clear();
      return 0;
    }
    const kind = this.nodes.kindOf(h);
    if (kind === Kind.none) return h;
    if (kind === Kind.mono || kind === Kind.full) {
      this.expandFlat(h, into);
      return 0;
    }
    const miss = this.expand(this.baseOf(h), into);
    if (miss === 0) this.overlayDelta(h, into);
    return miss;
  }

  /** The node that must be loaded before `expand` can answer; 0 = none. */
  missing(h: number): number {
    let at = h;
    while (at !== 0) {
      const kind = this.nodes.kindOf(at);
      if (kind === Kind.none) return at;
      if (kind < Kind.delta4) return 0;
      at = this.baseOf(at);
    }
    return 0;
  }

  /** Region stamps [from, to) of leaf `h` into `out` at `at`. Returns 0 or a miss. */
  stamps(h: number, from: number, to: number, out: Float64Array, at: number): number {
    if (h === 0) {
      out.fill(0, at, at + to - from);
      return 0;
    }
    const word = this.nodes.wordOf(h);
    const kind = kindOfWord(word);
    if (kind === Kind.none) return h;
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const body = (word & 0xffff) << 1;
    if (kind === Kind.mono || kind === Kind.full) {
      for (let region = from; region < to; region++) out[at++] = f64[body + region];
      return 0;
    }
    const miss = this.stamps(this.baseOf(h), from, to, out, at);
    if (miss !== 0) return miss;
    if (kind === Kind.dense) {
      for (let region = from; region < to; region++, at++) {
        const stamp = f64[body + 1 + region];
        if (stamp !== STAMP_SEE_BASE) out[at] = stamp;
      }
      return 0;
    }
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const blocks = ((word & 0xffff) << 3) + 4 + 6 * DELTA_CAPACITY[kind];
    const count = this.countOf(h);
    for (let i = 0; i < count; i++) {
      const region = u16[blocks + i] >>> 4;
      if (region >= from && region < to) out[at + region - from] = f64[body + 1 + i];
    }
    return 0;
  }

  /** Base of a delta in memory. */
  baseOf(h: number): number {
    const word = this.nodes.wordOf(h);
    return this.nodes.slabs.u32[(word >>> 16) & 0xfff][(word & 0xffff) << 2];
  }

  /** Number of entries of a delta in memory that is not dense. */
  countOf(h: number): number {
    const word = this.nodes.wordOf(h);
    return this.nodes.slabs.u32[(word >>> 16) & 0xfff][((word & 0xffff) << 2) + 1];
  }

  /** Whether its body is a delta over a base. */
  isDelta(h: number): boolean {
    return h !== 0 && this.nodes.kindOf(h) >= Kind.delta4;
  }

  /** True when the content is at hand without asking a base: ZERO, mono or full in memory. */
  isFlat(h: number): boolean {
    if (h === 0) return true;
    const kind = this.nodes.kindOf(h);
    return kind === Kind.mono || kind === Kind.full;
  }

  /** Puts the entries of delta `h` over `into`; what they do not change is left alone. */
  overlayDelta(h: number, into: LeafContent): void {
    const word = this.nodes.wordOf(h);
    const kind = kindOfWord(word);
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    if (kind === Kind.dense) {
      for (let region = 0; region < LEAF_REGIONS; region++) {
        const stamp = f64[(unit << 1) + 1 + region];
        if (stamp === STAMP_SEE_BASE) continue;
        into.stamps[region] = stamp;
        for (let block = region * REGION_BLOCKS; block < (region + 1) * REGION_BLOCKS; block++) {
          const layer = u32[(unit << 2) + 66 + block];
          if (layer !== SEE_BASE) into.layers[block] = layer;
        }
      }
      return;
    }
    const capacity = DELTA_CAPACITY[kind];
    const layers = (unit << 2) + 2 + 2 * capacity;
    const blocks = (unit << 3) + 4 + 6 * capacity;
    const stamps = (unit << 1) + 1;
    const count = u32[(unit << 2) + 1];
    for (let i = 0; i < count; i++) {
      const block = u16[blocks + i];
      into.layers[block] = u32[layers + i];
      into.stamps[block >>> 4] = f64[stamps + i];
    }
  }

  /** The entries of delta `h`. */
  entries(h: number, into: DeltaEntries): void {
    into.clear();
    const word = this.nodes.wordOf(h);
    const kind = kindOfWord(word);
    if (kind === Kind.dense) {
      this.scratch.seeBase();
      this.overlayDelta(h, this.scratch);
      into.pushAll(this.scratch);
      return;
    }
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    const capacity = DELTA_CAPACITY[kind];
    const count = u32[(unit << 2) + 1];
    for (let i = 0; i < count; i++) {
      into.push(u16[(unit << 3) + 4 + 6 * capacity + i], u32[(unit << 2) + 2 + 2 * capacity + i], f64[(unit << 1) + 1 + i]);
    }
  }

  private expandFlat(h: number, into: LeafContent): void {
    const word = this.nodes.wordOf(h);
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    for (let region = 0; region < LEAF_REGIONS; region++) into.stamps[region] = f64[(unit << 1) + region];
    const body = unit << 2;
    if (kindOfWord(word) === Kind.full) {
      for (let block = 0; block < LEAF_BLOCKS; block++) into.layers[block] = u32[body + 64 + block];
      return;
    }
    const layer = u32[body + 64];
    for (let i = 0; i < LEAF_BLOCKS / 32; i++) {
      const bits = u32[body + 65 + i];
      for (let bit = 0; bit < 32; bit++) into.layers[i * 32 + bit] = ((bits >>> bit) & 1) !== 0 ? layer : 0;
    }
  }
}

/** Index of the first of `count` ascending values from `at` that is not below `value`. */
export function lowerBound(values: Uint16Array, at: number, count: number, value: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[at + middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
