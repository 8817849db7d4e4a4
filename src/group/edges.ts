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

import { BLOCK_BYTES } from '../base/units.js';
import type { Arena } from '../io/arena.js';
import type { BlockReader } from '../store/read.js';
import { WOULD_WAIT } from '../store/read.js';
import type { StoredDevice } from '../store/store.js';

const ENOMEM = 12;

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
  constructor(private readonly arena: Arena, private readonly reader: BlockReader) {}

  /**
   * Fills `edges` with the blocks at both ends, completed with the request's
   * bytes (`buffer`, or zeros when it is −1). A request within one block has a
   * head only. Returns 0, −errno, or WOULD_WAIT (then nothing is allocated).
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
      if (result < 0 || result === WOULD_WAIT) return result;
      edges.head = result;
    }
    if (end !== tailBlock && !oneBlock) {
      const result = this.merge(device, tailBlock, tailBlock, end, buffer, offset);
      if (result < 0 || result === WOULD_WAIT) {
        this.release(edges);
        return result;
      }
      edges.tail = result;
    }
    return 0;
  }

  /** Fetches both edge blocks into the page cache on a helper. */
  fetch(device: StoredDevice, offset: number, length: number, done: (result: number) => void): void {
    const at = this.arena.alloc(2 * BLOCK_BYTES);
    if (at < 0) {
      done(-ENOMEM);
      return;
    }
    const end = offset + length;
    const headBlock = offset - (offset % BLOCK_BYTES);
    const tailBlock = end - 1 - ((end - 1) % BLOCK_BYTES);
    this.reader.read(device, headBlock, BLOCK_BYTES, at, (result) => {
      if (result < 0 || tailBlock === headBlock) {
        this.arena.release(at);
        done(result);
        return;
      }
      this.reader.read(device, tailBlock, BLOCK_BYTES, at + BLOCK_BYTES, (second) => {
        this.arena.release(at);
        done(second);
      });
    });
  }

  release(edges: Edges): void {
    if (edges.head >= 0) this.arena.release(edges.head);
    if (edges.tail >= 0) this.arena.release(edges.tail);
    edges.head = -1;
    edges.tail = -1;
  }

  /** A new arena block holding device block `block` with [from, to) replaced. Returns its offset, −errno or WOULD_WAIT. */
  private merge(device: StoredDevice, block: number, from: number, to: number, buffer: number, bufferOffset: number): number {
    const at = this.arena.alloc(BLOCK_BYTES);
    if (at < 0) return -ENOMEM;
    const result = this.reader.tryRead(device, block, BLOCK_BYTES, at);
    if (result !== 0) {
      this.arena.release(at);
      return result;
    }
    const target = at + from - block;
    if (buffer < 0) this.arena.u8.fill(0, target, target + to - from);
    else this.arena.u8.copyWithin(target, buffer + from - bufferOffset, buffer + to - bufferOffset);
    return at;
  }
}
