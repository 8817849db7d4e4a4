/**
 * Memory of links: what is theirs from the start, and how much of the rest they
 * may take.
 *
 * Owns: one window per peer, for receiving or for reading the journal, so that a
 * link that comes up late finds its memory and takes none of the clients'; the
 * rule for larger ranges. Must not know: who uses a window, configuration.
 */

import { assert } from '../base/assert.js';
import { KIB } from '../base/units.js';
import type { Arena } from '../io/arena.js';
import { MAX_BATCH_BYTES } from '../journal/format.js';

/** What a link takes beyond its window leaves so much of the arena: the headers of clients' replies need a page now and then. */
const LEFT_BYTES = 256 * KIB;

/** A range for one large message, or −1: never the last of the arena. */
export function takeLarge(arena: Arena, bytes: number): number {
  return arena.usedBytes + bytes > arena.capacityBytes - LEFT_BYTES ? -1 : arena.alloc(bytes);
}

/** A link that has to receive or read a batch of the largest size would find no room now: who holds more than a window gives it back soon. */
export function isShort(arena: Arena): boolean {
  // An arena that never has room for one (simulations) is not helped by that.
  return arena.capacityBytes > 2 * MAX_BATCH_BYTES && arena.largestFree < MAX_BATCH_BYTES;
}

export class LinkWindows {
  private readonly ranges: readonly number[];

  /** Takes `count` windows of `bytes` (a power of two) for good; there must be room. */
  constructor(private readonly arena: Arena, readonly bytes: number, count: number) {
    this.ranges = Array.from({ length: count }, () => arena.alloc(bytes));
    assert(this.ranges.every((at) => at >= 0), `no arena room for ${count} windows of links`);
  }

  /** A range of at least `bytes` with a reference of the caller's, who releases it to the arena; −1: no room now. */
  take(bytes: number): number {
    if (bytes <= this.bytes) {
      // All are taken only while connections that have ended wait for their peers.
      const free = this.ranges.find((at) => this.arena.referencesOf(at) === 1);
      if (free !== undefined) {
        this.arena.retain(free);
        return free;
      }
    }
    return takeLarge(this.arena, bytes);
  }
}
