/**
 * What one connection has received and not yet served.
 *
 * Owns: where the next bytes go, unparsed requests, the payload under way, and
 * the references to the memory that holds them. Must not know: what a request
 * means; transmission.ts parses in place between `pos` and `end`.
 *
 * Most bytes are received into a chunk that all connections share, and are
 * parsed and served before anyone else receives. What is left then decides:
 * - less than a header: kept aside in 28 bytes;
 * - a WRITE with part of its payload: the payload gets a buffer of its own, into
 *   which the rest is received directly;
 * - whole requests that may not be served yet (back-pressure): the connection
 *   holds on to them until `resume`.
 * So an idle connection holds no memory, and a slow one only what it announced.
 */

import { assert } from '../base/assert.js';
import type { Arena } from '../io/arena.js';
import type { Io } from '../io/io.js';
import { REQUEST_BYTES } from '../vendor/nbd-protocol-ts/index.js';
import { NO_BLOCK } from './chunk.js';
import type { SharedChunk } from './chunk.js';

/** No chunk may be smaller. */
export const LEAST_CHUNK_BYTES = 64 * 1024;
/** A `receive` into less room than this takes a fresh chunk instead. */
const LEAST_ROOM_BYTES = LEAST_CHUNK_BYTES;
/** Requests that have to wait are moved out of the shared chunk up to this size. */
const MOVE_BYTES = 64 * 1024;

/** Chunks that stalled connections hold on to, in all: their number is limited, so that receiving can go on. */
export interface HeldChunks {
  count: number;
  readonly max: number;
}

/** `receive` found no memory. Outside of the range of −errno. */
export const NO_MEMORY = -100_000;

export class Receiver {
  /** Unparsed bytes, arena offsets. */
  pos = 0;
  end = 0;
  /** The range that holds them; retain it for what outlives the parsing. */
  block = NO_BLOCK;
  /** False after a large WRITE: the next header is then received alone, so that its payload needs no copy. */
  ahead = true;
  /** How much the last `receive` asked for: less came means that the socket is empty. */
  asked = 0;

  /** The request whose payload is being received, or −1. */
  payloadSlot = -1;
  payloadLeft = 0;
  private payloadBlock = NO_BLOCK;
  private payloadAt = 0;
  /** A refused WRITE is being thrown away, of which so many bytes are still to come. */
  refusing = false;
  refusedLeft = 0;

  private readonly stash = new Uint8Array(REQUEST_BYTES);
  private stashed = 0;
  /** `block` carries a reference of our own. */
  private holds: 'nothing' | 'block' | 'chunk' = 'nothing';

  constructor(
    private readonly io: Io,
    private readonly arena: Arena,
    private readonly chunk: SharedChunk,
    private readonly held: HeldChunks,
  ) {}

  /** In the middle of a request: the end of the stream here is not a regular one. */
  get midRequest(): boolean {
    return this.stashed > 0 || this.payloadSlot >= 0 || this.refusing;
  }

  /** Memory of its own that only the peer's next bytes can free. */
  get awaitsPayload(): boolean {
    return this.payloadSlot >= 0;
  }

  get unparsed(): number {
    return this.end - this.pos;
  }

  /** Whether `receive` would find memory now. */
  get hasRoom(): boolean {
    return this.payloadSlot >= 0 || (this.held.count < this.held.max && this.chunk.reserve(LEAST_ROOM_BYTES) >= 0);
  }

  /** One recv of at most `budget` bytes into the right place: bytes, 0 at the end of the stream, −errno or NO_MEMORY. */
  receive(fd: number, budget: number): number {
    if (this.payloadSlot >= 0) {
      this.asked = Math.min(this.payloadLeft, budget);
      const n = this.io.recv(fd, this.payloadAt, this.asked);
      if (n > 0) {
        this.payloadAt += n;
        this.payloadLeft -= n;
      }
      return n;
    }
    assert(this.pos === this.end, 'received over requests that wait');
    if (this.held.count >= this.held.max) return NO_MEMORY;
    const at = this.chunk.reserve(LEAST_ROOM_BYTES);
    if (at < 0) return NO_MEMORY;
    if (this.refusing) {
      // Thrown away: the room is used, but not taken.
      this.asked = Math.min(this.refusedLeft, budget, this.chunk.room);
      const n = this.io.recv(fd, at, this.asked);
      if (n > 0) this.refusedLeft -= n;
      return n;
    }
    const stashed = this.stashed;
    const room = this.ahead ? this.chunk.room : REQUEST_BYTES;
    this.asked = Math.min(room - stashed, budget);
    const n = this.io.recv(fd, at + stashed, this.asked);
    if (n <= 0) return n;
    const { u8 } = this.arena;
    for (let i = 0; i < stashed; i++) u8[at + i] = this.stash[i];
    this.stashed = 0;
    this.chunk.take(stashed + n);
    this.block = this.chunk.block;
    this.pos = at;
    this.end = at + stashed + n;
    return n;
  }

  /** Bytes that were received by other means (behind the handshake) become unparsed requests; false without memory. */
  adopt(bytes: Uint8Array): boolean {
    const at = this.chunk.reserve(Math.max(bytes.length, LEAST_ROOM_BYTES));
    if (at < 0) return false;
    this.arena.u8.set(bytes, at);
    this.chunk.take(bytes.length);
    this.block = this.chunk.block;
    this.pos = at;
    this.end = at + bytes.length;
    return true;
  }

  /**
   * The rest of the unparsed bytes is the beginning of the payload of `slot`, `length` bytes in all: copies it to
   * `buffer`, in `block`, whose reference the request keeps.
   */
  beginPayload(slot: number, block: number, length: number): void {
    const have = this.end - this.pos;
    if (have > 0) this.arena.u8.copyWithin(block, this.pos, this.end);
    this.pos = this.end;
    this.payloadSlot = slot;
    this.payloadBlock = block;
    this.payloadAt = block + have;
    this.payloadLeft = length - have;
  }

  /** The payload is complete: its request, which now owns the buffer. */
  takePayload(): number {
    const slot = this.payloadSlot;
    this.payloadSlot = -1;
    this.payloadBlock = NO_BLOCK;
    return slot;
  }

  /** Skips the payload of a refused WRITE; true when all of it was here already. */
  refuse(length: number): boolean {
    const have = Math.min(length, this.end - this.pos);
    this.pos += have;
    this.refusedLeft = length - have;
    this.refusing = this.refusedLeft > 0;
    return !this.refusing;
  }

  /** After parsing: puts what is left where it can stay while others receive. */
  settle(): void {
    const left = this.end - this.pos;
    if (left === 0) {
      this.letGo();
    } else if (left < REQUEST_BYTES) {
      const { u8 } = this.arena;
      for (let i = 0; i < left; i++) this.stash[i] = u8[this.pos + i];
      this.stashed = left;
      this.letGo();
    } else if (this.holds === 'nothing') {
      this.hold(left);
    }
  }

  private hold(left: number): void {
    const own = left <= MOVE_BYTES ? this.arena.alloc(left) : -1;
    if (own >= 0) {
      this.arena.u8.copyWithin(own, this.pos, this.end);
      this.block = own;
      this.pos = own;
      this.end = own + left;
      this.holds = 'block';
      return;
    }
    this.arena.retain(this.block);
    this.holds = 'chunk';
    this.held.count++;
  }

  private letGo(): void {
    if (this.holds !== 'nothing') this.arena.release(this.block);
    if (this.holds === 'chunk') this.held.count--;
    this.holds = 'nothing';
    this.block = NO_BLOCK;
    this.pos = 0;
    this.end = 0;
  }

  /** Gives all memory back. Returns the slot whose payload was under way, which the caller frees, or −1. */
  dispose(): number {
    this.letGo();
    this.stashed = 0;
    this.refusing = false;
    if (this.payloadBlock !== NO_BLOCK) this.arena.release(this.payloadBlock);
    return this.takePayload();
  }
}
