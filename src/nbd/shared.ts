/**
 * What the connections of one server share: memory, limits, the service.
 *
 * Owns: the chunks that requests are received into and replies are built in,
 * the reserve for large requests, and each connection's share of the arena.
 * Must not know: connections, sockets, requests.
 *
 * Why nobody waits for memory for ever: a request of any size can be received
 * and served in the chunks and the reserve, which are taken at the start
 * whatever others hold later, once their earlier users are answered.
 * Those are either with the service, which always answers, or held by a client
 * that makes no progress, and such a client is closed (`NbdLimits.stallMs`).
 */

import { assert } from '../base/assert.js';
import { MIB } from '../base/units.js';
import type { BlockService } from '../group/requests/service.js';
import type { Arena } from '../io/arena.js';
import type { Io } from '../io/io.js';
import { OFFSET_DATA_HEADER_BYTES } from '../vendor/nbd-protocol-ts/index.js';
import { NO_BLOCK, SharedChunk } from './chunk.js';
import type { NbdLimits } from './limits.js';
import { LEAST_CHUNK_BYTES } from './receive.js';
import type { HeldChunks } from './receive.js';
import { StatusCalls } from './status.js';

/** Part of the arena that all unsent replies, and likewise all payloads, may take up before connections get less each. */
const QUOTA_SHARE = 0.25;
/** What every connection may have, however many there are. */
const LEAST_QUOTA_BYTES = MIB;

export class Shared {
  readonly receiveChunk: SharedChunk;
  readonly sendChunk: SharedChunk;
  readonly statusCalls: StatusCalls;
  readonly held: HeldChunks;
  /** READ bytes and WRITE bytes that one connection may have in memory at present. */
  replyQuota: number;
  payloadQuota: number;
  /** Whether `allocate` may give out the reserve: only when nobody stands in line, or to the first in line. */
  reserveOpen = true;
  private readonly reserve: number;

  /** `owner`: what RequestTable.addOwner gave. Takes `limits.reserveBytes` and two chunks of the arena at once. */
  constructor(
    readonly io: Io,
    readonly arena: Arena,
    readonly service: BlockService,
    readonly limits: NbdLimits,
    readonly owner: number,
  ) {
    assert(limits.chunkBytes >= LEAST_CHUNK_BYTES, `a chunk has at least ${LEAST_CHUNK_BYTES} bytes`);
    assert(limits.largeReadBytes + OFFSET_DATA_HEADER_BYTES <= limits.chunkBytes, 'a READ that is not large fits into a chunk');
    this.receiveChunk = new SharedChunk(this, arena, limits.chunkBytes);
    this.sendChunk = new SharedChunk(this, arena, limits.chunkBytes);
    this.statusCalls = new StatusCalls(this, limits.maxExtentCalls, limits.maxExtents);
    this.held = { count: 0, max: Math.max(1, Math.floor((arena.capacityBytes * QUOTA_SHARE) / limits.chunkBytes)) };
    this.replyQuota = limits.maxReplyBytes;
    this.payloadQuota = limits.maxPayloadBytes;
    this.reserve = limits.reserveBytes === 0 ? NO_BLOCK : arena.alloc(limits.reserveBytes);
    assert(this.reserve >= 0, `the arena has no ${limits.reserveBytes} bytes for the reserve of the NBD server`);
    // Now, when there is room for certain: a chunk that was never had can not be fallen back to.
    for (const chunk of [this.receiveChunk, this.sendChunk]) chunk.open();
  }

  /** Divides the memory among `connections`. */
  divide(connections: number): void {
    const share = Math.max(LEAST_QUOTA_BYTES, (this.arena.capacityBytes * QUOTA_SHARE) / Math.max(1, connections));
    this.replyQuota = Math.min(this.limits.maxReplyBytes, share);
    this.payloadQuota = Math.min(this.limits.maxPayloadBytes, share);
  }

  /** A range with one reference, or −1; leaves `limits.headroomBytes` of the arena to others. */
  alloc(bytes: number): number {
    if (this.arena.usedBytes + bytes > this.arena.capacityBytes - this.limits.headroomBytes) return -1;
    return this.arena.alloc(bytes);
  }

  /** A buffer for one request, with one reference, from the reserve if need be; −1: wait in line. */
  allocate(bytes: number): number {
    const block = this.alloc(bytes);
    if (block >= 0 || !this.reserveOpen || this.reserve === NO_BLOCK || bytes > this.limits.reserveBytes) return block;
    if (this.arena.referencesOf(this.reserve) !== 1) return -1;
    this.arena.retain(this.reserve);
    return this.reserve;
  }

  dispose(): void {
    this.receiveChunk.dispose();
    this.sendChunk.dispose();
    if (this.reserve !== NO_BLOCK) this.arena.release(this.reserve);
  }
}
