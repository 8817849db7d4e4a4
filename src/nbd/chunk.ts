/**
 * A range of the arena that is filled from the front by many small pieces:
 * received requests, or replies under construction.
 *
 * Owns: the fill level and one reference to the current chunk. Each piece that
 * outlives the call holds a reference of its own (`Arena.retain(chunk.block)`).
 * As soon as nobody else holds one, filling starts at the front again, so that
 * a busy server works in the same, cache-warm bytes. Must not know: what the
 * pieces are.
 */

import { assert } from '../base/assert.js';
import type { Arena } from '../io/arena.js';

/** "No range": the arena never hands out offset 0. */
export const NO_BLOCK = 0;

/** Where chunks come from. */
export interface BlockSource {
  /** A range with one reference, or −1. */
  alloc(bytes: number): number;
}

export class SharedChunk {
  /** The current chunk, NO_BLOCK before `open` or the first `reserve`. Valid after one of them that succeeded. */
  block = NO_BLOCK;
  private fill = 0;

  constructor(
    private readonly source: BlockSource,
    private readonly arena: Arena,
    readonly bytes: number,
  ) {}

  /** Takes the first chunk, whatever `source` would leave to others; there must be room. */
  open(): void {
    this.block = this.arena.alloc(this.bytes);
    assert(this.block > 0, `the arena has no ${this.bytes} bytes for a chunk`);
  }

  /** Arena offset of `need` free bytes (at most `bytes`), or −1 when the arena is full. Take them with `take`. */
  reserve(need: number): number {
    if (this.block !== NO_BLOCK) {
      if (this.fill !== 0 && this.arena.referencesOf(this.block) === 1) this.fill = 0;
      if (this.fill + need <= this.bytes) return this.block + this.fill;
    }
    const fresh = this.source.alloc(this.bytes);
    // The old chunk is kept when there is no other: it becomes free again when its last piece is released.
    if (fresh < 0) return -1;
    if (this.block !== NO_BLOCK) this.arena.release(this.block);
    this.block = fresh;
    this.fill = 0;
    return fresh;
  }

  /** Free bytes behind what `reserve` returned. */
  get room(): number {
    return this.bytes - this.fill;
  }

  take(bytes: number): void {
    this.fill += bytes;
  }

  dispose(): void {
    if (this.block !== NO_BLOCK) this.arena.release(this.block);
    this.block = NO_BLOCK;
    this.fill = 0;
  }
}
