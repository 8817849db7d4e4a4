/**
 * What one connection has still to send.
 *
 * Owns: the queue of arena ranges, room for small frames, frame numbers, calls
 * of send. Must not know: readiness, what is received, who the peer is.
 *
 * Two ways in. Small frames are copied into a page of the outbox. Batches are
 * ranges that the caller owns: `sendNow` (hot path) copies only what the socket
 * does not take, `queue` borrows them until the outbox is empty again. Nothing
 * here blocks; `failure` says that the socket is of no more use.
 */

import { assert } from '../base/assert.js';
import { Errno, PeerError, errnoText } from '../base/errors.js';
import type { Reactor } from '../io/reactor.js';
import type { SessionKeys } from './hello.js';
import type { FrameType } from './message.js';
import { takeLarge } from './windows.js';
import { ACK_BYTES, carriesMac, FRAME_HEADER_BYTES, FrameType as Type, MAC_BYTES, putAck, putFrameHeader, sealFrame } from './message.js';

/** Counts of one link over all its connections. */
export class LinkCounters {
  wireBytesSent = 0;
  wireBytesReceived = 0;
  framesSent = 0;
  framesReceived = 0;

  add(other: LinkCounters): void {
    this.wireBytesSent += other.wireBytesSent;
    this.wireBytesReceived += other.wireBytesReceived;
    this.framesSent += other.framesSent;
    this.framesReceived += other.framesReceived;
  }
}

/** Pairs (offset, length) in the queue; a window of catch-up frames takes three per frame. */
const MAX_SEGMENTS = 3072;
const IOV_MAX = 1024;
/** Also what an outbox holds of the arena. */
export const SMALL_BYTES = 4096;

export class Outbox {
  counters: LinkCounters;
  failure: PeerError | undefined;
  lastSentUs: number;
  private nextNumber = 0;
  private readonly segments = new Uint32Array(2 * MAX_SEGMENTS);
  private first = 0;
  private last = 0;
  /** Ranges that were allocated for queued frames; released when the queue is empty. */
  private readonly chunks: number[] = [];
  private small = -1;
  private smallUsed = 0;

  constructor(private readonly reactor: Reactor, private readonly fd: number, counters: LinkCounters) {
    this.counters = counters;
    this.lastSentUs = reactor.nowUs;
  }

  /** False when the arena has no room. */
  start(): boolean {
    this.small = this.reactor.arena.alloc(SMALL_BYTES);
    return this.small >= 0;
  }

  get empty(): boolean {
    return this.first === this.last;
  }

  /** Holds a copy of what the socket did not take. */
  get holdsRest(): boolean {
    return this.chunks.length > 0;
  }

  /** Number of the frame that goes out next; who takes it must send that frame. */
  takeNumber(): number {
    const number = this.nextNumber;
    this.nextNumber = (number + 1) >>> 0;
    this.counters.framesSent++;
    return number;
  }

  /** Queues a frame with a copy of `body`, signed if its type demands it, and sends what goes. */
  put(type: FrameType, body: Uint8Array, durableLsn: number, keys: SessionKeys | undefined): void {
    const bytes = body.length + (carriesMac(type) ? MAC_BYTES : 0);
    const at = this.room(FRAME_HEADER_BYTES + bytes);
    if (at < 0) return;
    const { u8, view } = this.reactor.arena;
    putFrameHeader(view, at, type, bytes, durableLsn, this.takeNumber());
    u8.set(body, at + FRAME_HEADER_BYTES);
    if (carriesMac(type)) {
      assert(keys !== undefined, 'a signed message before the keys');
      u8.set(keys.sign(u8.subarray(at + 8, at + 28), body), at + FRAME_HEADER_BYTES + body.length);
    }
    this.finish(at, FRAME_HEADER_BYTES + bytes);
  }

  putAck(received: number, durable: number, applied: number, flags: number): void {
    const at = this.room(FRAME_HEADER_BYTES + ACK_BYTES);
    if (at < 0) return;
    const { view } = this.reactor.arena;
    putFrameHeader(view, at, Type.ack, ACK_BYTES, durable, this.takeNumber());
    putAck(view, at + FRAME_HEADER_BYTES, received, durable, applied, flags);
    this.finish(at, FRAME_HEADER_BYTES + ACK_BYTES);
  }

  private finish(at: number, bytes: number): void {
    sealFrame(this.reactor, at, at + FRAME_HEADER_BYTES);
    const alone = this.empty;
    this.queue(at, bytes);
    if (alone) this.flush();
  }

  /** Room for a small frame; −1 after a failure. */
  private room(bytes: number): number {
    if (this.failure !== undefined) return -1;
    if (this.queueRoom === 0) {
      this.failure = new PeerError('link/stuck', 'the peer receives nothing, and too many messages wait for it');
      return -1;
    }
    if (this.empty) this.smallUsed = 0;
    if (this.smallUsed + bytes <= SMALL_BYTES) {
      const at = this.small + this.smallUsed;
      this.smallUsed += bytes;
      return at;
    }
    const chunk = this.reactor.arena.alloc(bytes);
    if (chunk < 0) this.failure = new PeerError('link/no-memory', 'the arena has no room for a message');
    else this.chunks.push(chunk);
    return chunk;
  }

  /** How many ranges `queue` takes now. */
  get queueRoom(): number {
    return MAX_SEGMENTS - this.last;
  }

  /** Appends a range, borrowed until the outbox is empty; `flush` sends. */
  queue(at: number, bytes: number): void {
    assert(this.last < MAX_SEGMENTS, 'the send queue is full');
    this.segments[2 * this.last] = at;
    this.segments[2 * this.last + 1] = bytes;
    this.last++;
  }

  /** Sends what is queued as far as the socket takes it. True when nothing is left. */
  flush(): boolean {
    const { io } = this.reactor;
    while (this.failure === undefined && !this.empty) {
      const count = Math.min(this.last - this.first, IOV_MAX);
      io.iov.set(this.segments.subarray(2 * this.first, 2 * (this.first + count)));
      const sent = this.note(io.sendv(this.fd, count));
      if (sent === 0) return false;
      this.skip(sent);
    }
    if (this.failure !== undefined) return false;
    this.emptied();
    return true;
  }

  /** Counts a result of send: bytes, or 0 when the socket takes nothing now or has failed. */
  private note(sent: number): number {
    if (sent === -Errno.EAGAIN || sent === -Errno.EINTR || sent === 0) return 0;
    if (sent < 0) {
      this.failure = new PeerError('link/lost', `the connection was lost: ${errnoText(-sent)}`);
      return 0;
    }
    this.counters.wireBytesSent += sent;
    this.lastSentUs = this.reactor.nowUs;
    return sent;
  }

  private skip(sent: number): void {
    const { segments } = this;
    let left = sent;
    while (this.first < this.last && left >= segments[2 * this.first + 1]) left -= segments[2 * this.first++ + 1];
    if (left > 0) {
      segments[2 * this.first] += left;
      segments[2 * this.first + 1] -= left;
    }
  }

  private emptied(): void {
    this.first = this.last = 0;
    this.smallUsed = 0;
    if (this.chunks.length === 0) return;
    for (const chunk of this.chunks) this.reactor.arena.release(chunk);
    this.chunks.length = 0;
  }

  /**
   * Sends io.iov[0..count), `bytes` in all, while empty. What the socket does not take is copied, so the ranges are
   * free when this returns. False: nothing was sent or queued, and the frame's number is given back.
   */
  sendNow(count: number, bytes: number): boolean {
    assert(this.empty, 'sendNow while frames are queued');
    const { io } = this.reactor;
    const sent = this.note(io.sendv(this.fd, count));
    if (sent === 0) {
      this.nextNumber = (this.nextNumber - 1) >>> 0;
      this.counters.framesSent--;
      return false;
    }
    if (sent < bytes) this.keepRest(count, bytes, sent);
    return true;
  }

  private keepRest(count: number, bytes: number, sent: number): void {
    const { io, arena } = this.reactor;
    const rest = takeLarge(arena, bytes - sent);
    if (rest < 0) {
      this.failure = new PeerError('link/no-memory', 'the arena has no room for what the socket did not take');
      return;
    }
    let to = rest;
    let skip = sent;
    for (let i = 0; i < count; i++) {
      const from = io.iov[2 * i];
      const length = io.iov[2 * i + 1];
      if (skip < length) {
        arena.u8.copyWithin(to, from + skip, from + length);
        to += length - skip;
        skip = 0;
      } else {
        skip -= length;
      }
    }
    assert(to === rest + bytes - sent, 'the vectors are not as long as was said');
    this.chunks.push(rest);
    this.queue(rest, bytes - sent);
  }

  /** Forgets what is queued and gives everything back. Idempotent. */
  close(): void {
    this.failure ??= new PeerError('link/closed', 'the connection was closed');
    this.emptied();
    if (this.small >= 0) this.reactor.arena.release(this.small);
    this.small = -1;
  }
}
