/**
 * Completes the edge blocks of requests that do not begin or end at a block
 * boundary, for the journal holds whole 4 KiB blocks only (DESIGN §3).
 *
 * Owns: reading what an edge block holds and merging the request into it. Must
 * not know: batches, acknowledgements.
 *
 * The block is read and merged in one go on the data thread, so it is merged
 * with what it holds at that moment. If the read would wait for a disk, a helper
 * fetches the block into the page cache and the merge is tried again; meanwhile
 * other requests may change the block, and the next try sees that. NBD orders
 * only what was acknowledged, so waiting is legal.
 */

import { BLOCK_BYTES } from '../../base/units.js';
import type { Arena } from '../../io/arena.js';
import { WOULD_WAIT } from '../../store/read.js';
import type { StoredDevice } from '../../store/store.js';
import type { Content } from '../content/content.js';

/** `complete` found no memory: what holds it is the batch under construction, so append that and try again. */
export const NO_ROOM = 2;

/** A request's two edges. Buffers are arena blocks of the completed content, or −1 where that side is aligned. */
export interface Edges {
  head: number;
  tail: number;
}

/** Whether [offset, offset + length) has an edge block. */
export function hasEdges(offset: number, length: number): boolean {
  return offset % BLOCK_BYTES !== 0 || (offset + length) % BLOCK_BYTES !== 0;
}

export class EdgeCompleter {
  constructor(private readonly arena: Arena, private readonly content: Pick<Content, 'reader' | 'store' | 'sink' | 'spareBlocks'>) {}

  /**
   * Fills `edges` with the blocks at both ends, completed with the request's
   * bytes (`buffer`, or zeros when it is −1). A request within one block has a
   * head only. Returns 0, −errno, WOULD_WAIT
   * or NO_ROOM (in these cases nothing is allocated).
   */
  complete(device: StoredDevice, offset: number, length: number, buffer: number, edges: Edges): number {
    edges.head = -1;
    edges.tail = -1;
    const end = offset + length;
    const headBlock = offset - (offset % BLOCK_BYTES);
    const tailBlock = end - (end % BLOCK_BYTES);
    const oneBlock = headBlock === tailBlock || (tailBlock === end && headBlock === end - BLOCK_BYTES);
    if (offset !== headBlock || oneBlock) {
      const result = this.merge(device, headBlock, offset, Math.min(end, headBlock + BLOCK_BYTES), buffer, offset);
      if (failed(result)) return result;
      edges.head = result;
    }
    if (end !== tailBlock && !oneBlock) {
      let result: number;
      try {
        result = this.merge(device, tailBlock, tailBlock, end, buffer, offset);
      } catch (error) {
        this.release(edges);
        throw error;
      }
      if (failed(result)) {
        this.release(edges);
        return result;
      }
      edges.tail = result;
    }
    return 0;
  }

  /** Fetches both edge blocks into the page cache on a helper: `done` gets 0 or −errno. */
  fetch(device: StoredDevice, offset: number, length: number, done: (result: number) => void): void {
    const { reader, store, sink } = this.content;
    const end = offset + length;
    const headBlock = offset - (offset % BLOCK_BYTES);
    const tailBlock = end - 1 - ((end - 1) % BLOCK_BYTES);
    reader.read(device, headBlock, BLOCK_BYTES, sink, (result) => {
      // The device may be gone or shorter by now: whoever tries the request again finds out.
      const now = store.find(device.id);
      if (result < 0 || tailBlock === headBlock || now === undefined || end > now.sizeBytes) done(result);
      else reader.read(now, tailBlock, BLOCK_BYTES, sink, done);
    });
  }

  release(edges: Edges): void {
    if (edges.head >= 0) this.arena.release(edges.head);
    if (edges.tail >= 0) this.arena.release(edges.tail);
    edges.head = -1;
    edges.tail = -1;
  }

  /** A new arena block holding device block `block` with [from, to) replaced. Returns its offset, −errno, WOULD_WAIT or NO_ROOM. */
  private merge(device: StoredDevice, block: number, from: number, to: number, buffer: number, bufferOffset: number): number {
    const at = this.block();
    if (at < 0) return NO_ROOM;
    let result: number;
    try {
      result = this.content.reader.tryRead(device, block, BLOCK_BYTES, at);
    } catch (error) {
      this.arena.release(at);
      throw error;
    }
    if (result !== 0) {
      this.arena.release(at);
      return result;
    }
    const target = at + from - block;
    if (buffer < 0) this.arena.u8.fill(0, target, target + to - from);
    else this.arena.u8.copyWithin(target, buffer + from - bufferOffset, buffer + to - bufferOffset);
    return at;
  }

  /** A block with one reference that `release` frees, or −1. The spare ones are free whenever no batch is under construction. */
  private block(): number {
    const { arena } = this;
    const at = arena.alloc(BLOCK_BYTES);
    if (at >= 0) return at;
    for (const spare of this.content.spareBlocks) {
      if (arena.referencesOf(spare) > 1) continue;
      arena.retain(spare);
      return spare;
    }
    return -1;
  }
}

/** Offsets of the arena are above both codes. */
function failed(result: number): boolean {
  return result < 0 || result === WOULD_WAIT || result === NO_ROOM;
}
