/**
 * LeafChanges: changing map leaves (DESIGN §5).
 *
 * Owns: the choice between changing a body in place, putting a delta over it,
 * and merging a delta with its base; the stamp rule inside a leaf.
 * Must not know: inner nodes, devices, the disk.
 *
 * No change ever needs a body that is paged out: it becomes a delta over it.
 *
 * The stamp rule, a function of the record alone: writing blocks gives each
 * touched region the record's stamp; clearing gives 0 to a region that this one
 * record clears whole, else the record's stamp, whatever the region held.
 */
import { DeltaEntries, Leaves, LeafContent, lowerBound } from './leaf.js';
import { DELTA_CAPACITY, Kind, LEAF_BLOCKS, LEAF_REGIONS, REGION_BLOCKS, SEE_BASE, STAMP_SEE_BASE, kindOfWord } from './nodes.js';
import { assert } from '../../base/assert.js';

/** A delta with more changes is merged when its base is at hand: from here on a flat leaf is no larger on disk, nor much in memory. */
const MERGE_ABOVE = 16;
/** A clean flat leaf is rewritten rather than covered by a delta when it has at most so many runs of blocks and of stamps. */
const CHEAP_RUNS = 6;

export class LeafChanges extends Leaves {
  private readonly over = new LeafContent();
  private readonly flat = new LeafContent();
  private readonly widened = new DeltaEntries();

  /**
   * Sets blocks [from, to) of leaf `h` to `layer`; 0 clears them. Consumes the
   * caller's reference to `h` and returns a handle with one reference (0 = the
   * leaf is ZERO now). Changes in place only if nobody else refers to `h`.
   */
  change(h: number, from: number, to: number, layer: number, stamp: number): number {
    if (h !== 0 && this.nodes.refsOf(h) === 1 && this.changeInPlace(h, from, to, layer, stamp)) return h;
    if (to - from === LEAF_BLOCKS) {
      this.nodes.release(h);
      return layer === 0 ? 0 : this.newUniform(layer, stamp);
    }
    if (to - from <= DELTA_CAPACITY[Kind.delta4] && !this.isDelta(h)) return this.newSmallDelta(h, from, to, layer, stamp);
    const base = this.openOver(h);
    for (let block = from; block < to; block++) this.over.layers[block] = layer;
    for (let region = from >>> 4; region << 4 < to; region++) {
      this.over.stamps[region] = layer === 0 && clearsRegion(region, from, to) ? 0 : stamp;
    }
    return this.closeOver(h, base, stamp);
  }

  /**
   * Copies blocks [from, to) of `content` over leaf `h`, with the stamps of the
   * regions that they touch as `content` has them; otherwise as `change`.
   */
  changeTo(h: number, from: number, to: number, content: LeafContent, top: number): number {
    const base = this.openOver(h);
    for (let block = from; block < to; block++) this.over.layers[block] = content.layers[block];
    for (let region = from >>> 4; region << 4 < to; region++) this.over.stamps[region] = content.stamps[region];
    return this.closeOver(h, base, top);
  }

  /** A new leaf with this content; 0 when it is all zero. Chooses the most compact flat body. */
  newFlat(content: LeafContent, top: number): number {
    const layer = onlyLayer(content);
    if (layer === 0 && content.stamps.every((stamp) => stamp === 0)) return 0;
    const h = this.nodes.add(0, top);
    this.fillFlat(h, content, layer);
    return h;
  }

  /**
   * Makes the base of delta `h`, which is a delta in memory itself, part of it:
   * what others see through `h` stays the same. A delta on disk has a flat base.
   */
  flatten(h: number): void {
    const base = this.openOver(h);
    this.nodes.retain(base);
    this.nodes.dropBody(h);
    this.fillDelta(h, base, this.over);
  }

  /** Gives `h`, which has none, a flat body. `layer`: the only layer (mono), or SEE_BASE for any mix. */
  fillFlat(h: number, content: LeafContent, layer: number): void {
    const kind = layer === SEE_BASE ? Kind.full : Kind.mono;
    const word = this.nodes.addBody(h, kind);
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    for (let region = 0; region < LEAF_REGIONS; region++) f64[(unit << 1) + region] = content.stamps[region];
    const body = unit << 2;
    if (kind === Kind.full) {
      for (let block = 0; block < LEAF_BLOCKS; block++) u32[body + 64 + block] = content.layers[block];
      return;
    }
    u32[body + 64] = layer;
    for (let i = 0; i < LEAF_BLOCKS / 32; i++) {
      let bits = 0;
      for (let bit = 0; bit < 32; bit++) if (content.layers[i * 32 + bit] !== 0) bits |= 1 << bit;
      u32[body + 65 + i] = bits;
    }
  }

  /** Gives `h`, which has none, a delta body of the smallest class that holds `content`'s entries. Consumes a reference to `base`. */
  fillDelta(h: number, base: number, content: LeafContent): void {
    const count = countEntries(content);
    const kind = count <= 4 ? Kind.delta4 : count <= 16 ? Kind.delta16 : count <= 64 ? Kind.delta64 : Kind.dense;
    const word = this.nodes.addBody(h, kind);
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    const body = unit << 2;
    u32[body] = base;
    u32[body + 1] = count;
    if (kind === Kind.dense) {
      for (let region = 0; region < LEAF_REGIONS; region++) f64[(unit << 1) + 1 + region] = content.stamps[region];
      for (let block = 0; block < LEAF_BLOCKS; block++) u32[body + 66 + block] = content.layers[block];
      return;
    }
    const capacity = DELTA_CAPACITY[kind];
    let i = 0;
    for (let block = 0; block < LEAF_BLOCKS; block++) {
      const layer = content.layers[block];
      if (layer === SEE_BASE) continue;
      f64[(unit << 1) + 1 + i] = content.stamps[block >>> 4];
      u32[body + 2 + 2 * capacity + i] = layer;
      u16[(unit << 3) + 4 + 6 * capacity + i] = block;
      i++;
    }
  }

  /** Loads `this.over` with what `h` changes relative to the base that is returned (borrowed): its own, or `h` itself. */
  private openOver(h: number): number {
    this.over.seeBase();
    if (!this.isDelta(h)) return h;
    const base = this.baseOf(h);
    if (!this.isDelta(base)) {
      this.overlayDelta(h, this.over);
      return base;
    }
    // The base was paged out when `h` was put over it, and has come back as a delta.
    const flatBase = this.baseOf(base);
    assert(!this.isDelta(flatBase), 'no delta chain is longer than two');
    this.overlayDelta(base, this.over);
    this.overlayDelta(h, this.over);
    return flatBase;
  }

  /** Turns `this.over` on `base` (borrowed) into a new node in place of `h`, whose reference is consumed. */
  private closeOver(h: number, base: number, stamp: number): number {
    const top = Math.max(this.nodes.topOf(h), stamp);
    if (base === 0) forgetZeros(this.over);
    const count = countEntries(this.over);
    let result: number;
    if (count === LEAF_BLOCKS || (count > MERGE_ABOVE && this.isFlat(base))) {
      if (count < LEAF_BLOCKS) {
        this.expand(base, this.flat);
        this.flat.overlay(this.over);
      }
      result = this.newFlat(count < LEAF_BLOCKS ? this.flat : this.over, top);
    } else if (base === 0 && count === 0) {
      result = 0;
    } else {
      result = this.nodes.add(0, top);
      this.nodes.retain(base);
      this.fillDelta(result, base, this.over);
    }
    this.nodes.release(h);
    return result;
  }

  private newUniform(layer: number, stamp: number): number {
    const h = this.nodes.add(0, stamp);
    const word = this.nodes.addBody(h, Kind.mono);
    const at = (word & 0xffff) << 1;
    this.nodes.slabs.f64[(word >>> 16) & 0xfff].fill(stamp, at, at + LEAF_REGIONS);
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const body = (word & 0xffff) << 2;
    u32[body + 64] = layer;
    u32.fill(0xffffffff, body + 65, body + 65 + LEAF_BLOCKS / 32);
    return h;
  }

  /** The hot path after a snapshot or a checkpoint: a delta of at most four blocks over a leaf that is none. The caller's reference becomes the delta's. */
  private newSmallDelta(base: number, from: number, to: number, layer: number, stamp: number): number {
    const h = this.nodes.add(0, Math.max(this.nodes.topOf(base), stamp));
    const word = this.nodes.addBody(h, Kind.delta4);
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    u32[unit << 2] = base;
    u32[(unit << 2) + 1] = to - from;
    for (let i = 0; i < to - from; i++) {
      f64[(unit << 1) + 1 + i] = stamp;
      u32[(unit << 2) + 10 + i] = layer;
      u16[(unit << 3) + 28 + i] = from + i;
    }
    return h;
  }

  /** False when the change needs another body, or is cheaper as a delta. The only reference to `h` is the caller's. */
  private changeInPlace(h: number, from: number, to: number, layer: number, stamp: number): boolean {
    const word = this.nodes.wordOf(h);
    switch (kindOfWord(word)) {
      case Kind.none:
        return false;
      case Kind.mono:
        if (to - from < LEAF_BLOCKS && this.nodes.diskRefOf(h) !== 0 && !this.isCheapMono(word)) return false;
        if (!this.changeMono(h, word, from, to, layer)) return false;
        this.stampFlat(this.nodes.wordOf(h), from, to, layer, stamp, 0);
        break;
      case Kind.full: {
        if (to - from === LEAF_BLOCKS || this.nodes.diskRefOf(h) !== 0) return false;
        const body = ((word & 0xffff) << 2) + 64;
        this.nodes.slabs.u32[(word >>> 16) & 0xfff].fill(layer, body + from, body + to);
        this.stampFlat(word, from, to, layer, stamp, 0);
        break;
      }
      case Kind.dense: {
        // Merged as soon as the base is at hand.
        if (to - from === LEAF_BLOCKS || this.isFlat(this.baseOf(h)) || this.isDelta(this.baseOf(h))) return false;
        const body = ((word & 0xffff) << 2) + 66;
        this.nodes.slabs.u32[(word >>> 16) & 0xfff].fill(layer, body + from, body + to);
        this.stampFlat(word, from, to, layer, stamp, 1);
        break;
      }
      default:
        if (!this.changeDelta(word, from, to, layer, stamp)) {
          if (kindOfWord(word) !== Kind.delta4) return false;
          this.widen(h);
          // Whether it fits or not, the content is what it was.
          if (!this.changeDelta(this.nodes.wordOf(h), from, to, layer, stamp)) return false;
        }
    }
    this.nodes.markDirty(h);
    this.nodes.raiseTop(h, stamp);
    return true;
  }

  /** Entries of a mono leaf; converts it to full when a second layer appears. False: cleared whole, the leaf is not needed. */
  private changeMono(h: number, word: number, from: number, to: number, layer: number): boolean {
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const body = (word & 0xffff) << 2;
    if (layer !== 0 && layer !== u32[body + 64]) {
      if (to - from === LEAF_BLOCKS || isEmptyMono(u32, body)) {
        u32[body + 64] = layer;
      } else {
        this.expand(h, this.flat);
        this.flat.layers.fill(layer, from, to);
        this.nodes.freeBody(h);
        this.fillFlat(h, this.flat, SEE_BASE);
        return true;
      }
    }
    if (layer === 0 && to - from === LEAF_BLOCKS) return false;
    for (let block = from; block < to; ) {
      const bit = block & 31;
      const bits = Math.min(32 - bit, to - block);
      const mask = (bits === 32 ? -1 : (1 << bits) - 1) << bit;
      const at = body + 65 + (block >>> 5);
      u32[at] = layer === 0 ? u32[at] & ~mask : u32[at] | mask;
      block += bits;
    }
    return true;
  }

  /** Stamps of a flat (`skip` 0) or dense (`skip` 1) body. */
  private stampFlat(word: number, from: number, to: number, layer: number, stamp: number, skip: number): void {
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const body = ((word & 0xffff) << 1) + skip;
    for (let region = from >>> 4; region << 4 < to; region++) {
      f64[body + region] = layer === 0 && clearsRegion(region, from, to) ? 0 : stamp;
    }
  }

  /** Entries and stamps of a delta4, delta16 or delta64; false when they do not fit. */
  private changeDelta(word: number, from: number, to: number, layer: number, stamp: number): boolean {
    const capacity = DELTA_CAPACITY[kindOfWord(word)];
    const span = to - from;
    if (span > capacity) return false;
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    const stamps = (unit << 1) + 1;
    const layers = (unit << 2) + 2 + 2 * capacity;
    const blocks = (unit << 3) + 4 + 6 * capacity;
    const count = u32[(unit << 2) + 1];
    const first = lowerBound(u16, blocks, count, from);
    const end = lowerBound(u16, blocks, count, to);
    const grown = count + span - (end - first);
    if (grown > capacity) return false;
    // Entries [first, end) give way to exactly `span` new ones; those behind move up.
    if (grown > count) {
      const shift = grown - count;
      for (let i = count - 1; i >= end; i--) {
        f64[stamps + i + shift] = f64[stamps + i];
        u32[layers + i + shift] = u32[layers + i];
        u16[blocks + i + shift] = u16[blocks + i];
      }
      u32[(unit << 2) + 1] = grown;
    }
    for (let i = 0; i < span; i++) {
      const block = from + i;
      f64[stamps + first + i] = layer === 0 && clearsRegion(block >>> 4, from, to) ? 0 : stamp;
      u32[layers + first + i] = layer;
      u16[blocks + first + i] = block;
    }
    // The other entries of the regions at both ends take the new stamp along.
    for (let i = first - 1; i >= 0 && u16[blocks + i] >>> 4 === from >>> 4; i--) f64[stamps + i] = stamp;
    for (let i = first + span; i < grown && u16[blocks + i] >>> 4 === (to - 1) >>> 4; i++) f64[stamps + i] = stamp;
    return true;
  }

  /** Moves a delta4 into a delta16: the step that every leaf takes in a random workload. */
  private widen(h: number): void {
    this.entries(h, this.widened);
    const base = this.baseOf(h);
    const { count, blocks, layers, stamps } = this.widened;
    this.nodes.freeBody(h);
    const word = this.nodes.addBody(h, Kind.delta16);
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const u16 = this.nodes.slabs.u16[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    const capacity = DELTA_CAPACITY[Kind.delta16];
    u32[unit << 2] = base;
    u32[(unit << 2) + 1] = count;
    for (let i = 0, touched = 0; i < count; i++) {
      if (i > 0 && blocks[i] >>> 4 !== blocks[i - 1] >>> 4) touched++;
      f64[(unit << 1) + 1 + i] = stamps[touched];
      u32[(unit << 2) + 2 + 2 * capacity + i] = layers[i];
      u16[(unit << 3) + 4 + 6 * capacity + i] = blocks[i];
    }
  }

  private isCheapMono(word: number): boolean {
    const f64 = this.nodes.slabs.f64[(word >>> 16) & 0xfff];
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const unit = word & 0xffff;
    let runs = 0;
    let previous = 0;
    for (let region = 0; region < LEAF_REGIONS && runs <= CHEAP_RUNS; region++) {
      const stamp = f64[(unit << 1) + region];
      if (stamp !== previous) runs++;
      previous = stamp;
    }
    if (runs > CHEAP_RUNS) return false;
    runs = 0;
    for (let i = 0; i < LEAF_BLOCKS / 32 && runs <= CHEAP_RUNS; i++) {
      const bits = u32[(unit << 2) + 65 + i];
      if (bits !== 0 && bits !== 0xffffffff) runs += 2;
    }
    return runs <= CHEAP_RUNS;
  }
}

/** The one layer that a leaf's blocks are in (0 if in none), or SEE_BASE when there are several. */
export function onlyLayer(content: LeafContent): number {
  let layer = 0;
  for (let block = 0; block < LEAF_BLOCKS; block++) {
    const other = content.layers[block];
    if (other === 0 || other === layer) continue;
    if (layer !== 0) return SEE_BASE;
    layer = other;
  }
  return layer;
}

/** Whether clearing blocks [from, to) of a leaf clears this region whole. */
function clearsRegion(region: number, from: number, to: number): boolean {
  return from <= region << 4 && to >= (region + 1) << 4;
}

function isEmptyMono(u32: Uint32Array, body: number): boolean {
  for (let i = 0; i < LEAF_BLOCKS / 32; i++) if (u32[body + 65 + i] !== 0) return false;
  return true;
}

function countEntries(content: LeafContent): number {
  let count = 0;
  for (let block = 0; block < LEAF_BLOCKS; block++) if (content.layers[block] !== SEE_BASE) count++;
  return count;
}

/** Over ZERO, a region that was cleared whole need not be remembered. */
function forgetZeros(over: LeafContent): void {
  for (let region = 0; region < LEAF_REGIONS; region++) {
    if (over.stamps[region] !== 0) continue;
    over.stamps[region] = STAMP_SEE_BASE;
    over.layers.fill(SEE_BASE, region * REGION_BLOCKS, (region + 1) * REGION_BLOCKS);
  }
}
