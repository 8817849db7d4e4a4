/**
 * Inners: the bodies of inner map nodes (DESIGN §5).
 *
 * Owns: creating, copying (path copying) and changing inner nodes, and bringing
 * back the ones that were paged out: they alone are needed synchronously by a
 * write, and are few.
 * Must not know: leaves, devices, layers.
 */
import { assert } from '../../base/assert.js';
import { FAN_OUT, Kind, fileOfRef } from './nodes.js';
import type { Nodes } from './nodes.js';

/** Words of an inner body. */
const WORDS = 68;
const CHILDREN = 4;

export class Inners {
  /** `loadSync(h)` gives the paged-out inner node `h` its body, from the disk, or throws. */
  constructor(private readonly nodes: Nodes, private readonly loadSync: (h: number) => void) {}

  /** A new inner node without children. */
  create(): number {
    const h = this.nodes.add(0, 0);
    const word = this.nodes.addBody(h, Kind.inner);
    const at = (word & 0xffff) << 2;
    this.nodes.slabs.u32[(word >>> 16) & 0xfff].fill(0, at, at + WORDS);
    return h;
  }

  /**
   * Consumes the caller's reference to `h` (0 allowed) and returns an inner node
   * that may be changed in place: in memory, referenced once, dirty. When the
   * load throws, nothing was consumed.
   */
  own(h: number): number {
    const nodes = this.nodes;
    if (h === 0) return this.create();
    if (nodes.wordOf(h) === 0) this.loadSync(h);
    if (nodes.refsOf(h) === 1) {
      nodes.markDirty(h);
      return h;
    }
    const copy = nodes.add(0, nodes.topOf(h));
    const to = nodes.addBody(copy, Kind.inner);
    const from = nodes.wordOf(h);
    assert(nodes.kindOf(h) === Kind.inner, 'an inner level holds inner nodes');
    const source = nodes.slabs.u32[(from >>> 16) & 0xfff];
    const target = nodes.slabs.u32[(to >>> 16) & 0xfff];
    const sourceAt = (from & 0xffff) << 2;
    const targetAt = (to & 0xffff) << 2;
    for (let i = 0; i < CHILDREN; i++) target[targetAt + i] = source[sourceAt + i];
    // A copy must not carry a reference to the file before a compaction past the point where that one is forgotten.
    const base = this.recordBase(copy);
    if (base !== 0 && fileOfRef(base) !== nodes.currentFile) this.setRecordBase(copy, 0, 0, 0);
    for (let i = CHILDREN; i < WORDS; i++) {
      const child = source[sourceAt + i];
      target[targetAt + i] = child;
      if (child !== 0) nodes.retain(child);
    }
    nodes.release(h);
    return copy;
  }

  /** Brings the body of `h` into memory if it is not there. */
  ensure(h: number): void {
    if (this.nodes.wordOf(h) === 0) this.loadSync(h);
    assert(this.nodes.kindOf(h) === Kind.inner, 'an inner level holds inner nodes');
  }

  /** Child of an inner node in memory. */
  child(h: number, slot: number): number {
    const word = this.nodes.wordOf(h);
    return this.nodes.slabs.u32[(word >>> 16) & 0xfff][((word & 0xffff) << 2) + CHILDREN + slot];
  }

  /** Puts `child` (its reference passes over) into a node that the caller owns. The old child is the caller's to release. */
  setChild(h: number, slot: number, child: number): void {
    const word = this.nodes.wordOf(h);
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    const at = (word & 0xffff) << 2;
    u32[at + CHILDREN + slot] = child;
    u32[at + 2 + (slot >>> 5)] |= 1 << (slot & 31);
  }

  /** Whether no child is left: then the node stands for zeros. */
  isEmpty(h: number): boolean {
    for (let slot = 0; slot < FAN_OUT; slot++) if (this.child(h, slot) !== 0) return false;
    return true;
  }

  /** Reference of the full record that a delta record of this node may build on; 0 = none. */
  recordBase(h: number): number {
    const word = this.nodes.wordOf(h);
    return this.nodes.slabs.f64[(word >>> 16) & 0xfff][(word & 0xffff) << 1];
  }

  /** The node equals the full record at `ref` but for the children in the bitmap. */
  setRecordBase(h: number, ref: number, changedLow: number, changedHigh: number): void {
    const word = this.nodes.wordOf(h);
    this.nodes.slabs.f64[(word >>> 16) & 0xfff][(word & 0xffff) << 1] = ref;
    const u32 = this.nodes.slabs.u32[(word >>> 16) & 0xfff];
    u32[((word & 0xffff) << 2) + 2] = changedLow;
    u32[((word & 0xffff) << 2) + 3] = changedHigh;
  }

  /** 32 bits of the bitmap of changed children, half 0 or 1. */
  changedBits(h: number, half: number): number {
    const word = this.nodes.wordOf(h);
    return this.nodes.slabs.u32[(word >>> 16) & 0xfff][((word & 0xffff) << 2) + 2 + half];
  }
}
