/**
 * What one connection still has to send.
 *
 * Owns: the order of replies (that of completion), the ranges of the arena that
 * hold them, one reference per range, and how many replies are under way. Must
 * not know: devices, the service, what a request asked for.
 *
 * Two places hold reply bytes. Data of READs lies, header in front, where the
 * service read it to (a shared chunk, or a buffer of the request's own). All
 * other replies, and the headers of large READs, lie in the connection's own
 * *header ring*, which is large enough for one header per request under way:
 * answering a request therefore never fails for want of memory. Adjacent ranges
 * become one, so a burst of writes, or of small reads that were answered in
 * order, is a single range and goes out with one plain send.
 */

import { assert } from '../base/assert.js';
import { Errno } from '../base/errors.js';
import type { Arena } from '../io/arena.js';
import type { Io } from '../io/io.js';
import { NO_BLOCK } from './chunk.js';

/** Longest header: OFFSET_DATA is 28 bytes, an error chunk without message 26. The ring counts in this unit. */
const HEADER_UNIT_BYTES = 32;
const FIRST_RING_BYTES = 4096;
const IOV_PAIRS = 1024;
/** Of a connection that does not read, remainders up to this size are moved out of shared chunks. */
const COMPACT_BYTES = 64 * 1024;

/** Results of `flush`; a negative one is −errno. */
export const FLUSHED = 0;
/** The socket is full: go on when it is writable. */
export const BLOCKED = 1;

export class ReplyQueue {
  /** Requests taken in whose reply has not been sent in full. */
  pending = 0;
  /** Bytes of READ replies in memory, from `reserve` until sent or dropped. */
  readBytes = 0;
  /** Bytes that wait to be sent. */
  queuedBytes = 0;

  // Ranges in order, a circular table: (offset, length, block that holds them, replies that end with them).
  private offsets = new Uint32Array(64);
  private lengths = new Uint32Array(64);
  /** NO_BLOCK: the header ring. */
  private blocks = new Uint32Array(64);
  private replies = new Uint32Array(64);
  private mask = 63;
  private head = 0;
  private count = 0;

  private ring = NO_BLOCK;
  private ringBytes = 0;
  private ringAt = 0;
  private ringRanges = 0;

  constructor(
    private readonly io: Io,
    private readonly arena: Arena,
    private readonly maxPending: number,
  ) {}

  /** Makes sure that one more request can be answered; false when the connection has as many as it may, or memory is short. */
  admit(): boolean {
    if ((this.pending + 1) * HEADER_UNIT_BYTES <= this.ringBytes) return this.pending < this.maxPending;
    return this.growRing();
  }

  /** True when `admit` failed only for want of arena memory. */
  get starving(): boolean {
    return this.ringRanges === 0 && this.pending < this.maxPending;
  }

  private growRing(): boolean {
    // Ranges name the ring by absolute offsets: it can be exchanged only while none of it waits to be sent.
    if (this.pending >= this.maxPending || this.ringRanges > 0) return false;
    const bytes = this.ringBytes === 0 ? FIRST_RING_BYTES : this.ringBytes * 2;
    const fresh = this.arena.alloc(bytes);
    if (fresh < 0) return false;
    if (this.ring !== NO_BLOCK) this.arena.release(this.ring);
    this.ring = fresh;
    this.ringBytes = bytes;
    this.ringAt = 0;
    return true;
  }

  /** Arena offset where the next header (at most HEADER_UNIT_BYTES) is to be written, then given to `pushHeader`. */
  headerAt(): number {
    if (this.ringRanges === 0) this.ringAt = 0;
    else if (this.ringAt + HEADER_UNIT_BYTES > this.ringBytes) this.ringAt = 0;
    return this.ring + this.ringAt;
  }

  /** Queues the `length` bytes written at `headerAt()`; `replies` of 0 when data follow. */
  pushHeader(length: number, replies: number): void {
    const at = this.ring + this.ringAt;
    this.ringAt += length;
    this.push(at, length, NO_BLOCK, replies);
  }

  /** Queues a range and takes over one reference to `block`. */
  pushData(offset: number, length: number, block: number, replies: number): void {
    this.push(offset, length, block, replies);
  }

  private push(offset: number, length: number, block: number, replies: number): void {
    this.queuedBytes += length;
    if (this.count > 0) {
      const last = (this.head + this.count - 1) & this.mask;
      if (this.blocks[last] === block && this.offsets[last] + this.lengths[last] === offset) {
        this.lengths[last] += length;
        this.replies[last] += replies;
        if (block !== NO_BLOCK) this.arena.release(block);
        return;
      }
      if (this.count > this.mask) this.growTable();
    }
    const at = (this.head + this.count) & this.mask;
    this.offsets[at] = offset;
    this.lengths[at] = length;
    this.blocks[at] = block;
    this.replies[at] = replies;
    this.count++;
    if (block === NO_BLOCK) this.ringRanges++;
  }

  private growTable(): void {
    const size = (this.mask + 1) * 2;
    // Every range holds part of a reply that is under way, at most two per reply.
    assert(size <= 8 * Math.max(64, this.maxPending), 'more reply ranges than requests under way');
    const offsets = new Uint32Array(size);
    const lengths = new Uint32Array(size);
    const blocks = new Uint32Array(size);
    const replies = new Uint32Array(size);
    for (let i = 0; i < this.count; i++) {
      const from = (this.head + i) & this.mask;
      offsets[i] = this.offsets[from];
      lengths[i] = this.lengths[from];
      blocks[i] = this.blocks[from];
      replies[i] = this.replies[from];
    }
    this.offsets = offsets;
    this.lengths = lengths;
    this.blocks = blocks;
    this.replies = replies;
    this.head = 0;
    this.mask = size - 1;
  }

  /** Sends what is queued, as much as the socket takes: FLUSHED, BLOCKED or −errno. */
  flush(fd: number): number {
    while (this.count > 0) {
      let asked = 0;
      let result: number;
      if (this.count === 1) {
        asked = this.lengths[this.head];
        result = this.io.send(fd, this.offsets[this.head], asked);
      } else {
        const iov = this.io.iov;
        const pairs = this.count < IOV_PAIRS ? this.count : IOV_PAIRS;
        for (let i = 0; i < pairs; i++) {
          const at = (this.head + i) & this.mask;
          iov[2 * i] = this.offsets[at];
          iov[2 * i + 1] = this.lengths[at];
          asked += this.lengths[at];
        }
        result = this.io.sendv(fd, pairs);
      }
      if (result < 0) return result === -Errno.EAGAIN ? BLOCKED : result;
      this.sent(result);
      // A stream socket that takes less than all of it is full; asking again would only say so.
      if (result < asked) return BLOCKED;
    }
    return FLUSHED;
  }

  private sent(bytes: number): void {
    this.queuedBytes -= bytes;
    let left = bytes;
    while (left > 0) {
      const at = this.head;
      const length = this.lengths[at];
      const block = this.blocks[at];
      if (left < length) {
        this.offsets[at] += left;
        this.lengths[at] = length - left;
        if (block !== NO_BLOCK) this.readBytes -= left;
        return;
      }
      left -= length;
      this.pending -= this.replies[at];
      if (block === NO_BLOCK) {
        this.ringRanges--;
      } else {
        this.readBytes -= length;
        this.arena.release(block);
      }
      this.head = (at + 1) & this.mask;
      this.count--;
    }
  }

  /**
   * For a connection that does not read: a small remainder moves into a block of its own size, so that a slow
   * reader cannot pin a whole shared chunk with every few bytes. Does nothing when memory is short.
   */
  compact(): void {
    if (this.queuedBytes === 0 || this.queuedBytes > COMPACT_BYTES || this.ringRanges === this.count) return;
    const block = this.arena.alloc(this.queuedBytes);
    if (block < 0) return;
    let to = block;
    let replies = 0;
    for (let i = 0; i < this.count; i++) {
      const at = (this.head + i) & this.mask;
      const { offset, length, held } = { offset: this.offsets[at], length: this.lengths[at], held: this.blocks[at] };
      this.arena.u8.copyWithin(to, offset, offset + length);
      to += length;
      replies += this.replies[at];
      if (held === NO_BLOCK) this.readBytes += length;
      else this.arena.release(held);
    }
    this.head = 0;
    this.count = 1;
    this.ringRanges = 0;
    this.offsets[0] = block;
    this.lengths[0] = this.queuedBytes;
    this.blocks[0] = block;
    this.replies[0] = replies;
  }

  /** Gives all memory back; nothing more can be queued. */
  dispose(): void {
    for (let i = 0; i < this.count; i++) {
      const block = this.blocks[(this.head + i) & this.mask];
      if (block !== NO_BLOCK) this.arena.release(block);
    }
    this.count = 0;
    this.ringRanges = 0;
    this.queuedBytes = 0;
    if (this.ring !== NO_BLOCK) this.arena.release(this.ring);
    this.ring = NO_BLOCK;
    this.ringBytes = 0;
  }
}
