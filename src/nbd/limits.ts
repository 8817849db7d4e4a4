/**
 * Limits of the NBD server, every one of them finite, with their defaults.
 * Owns: the numbers and what each is for. Must not know: who enforces them.
 */

import { KIB, MIB } from '../base/units.js';

export interface NbdLimits {
  /** Connections of all listeners together; one more is closed at once. */
  readonly maxConnections: number;
  /** Connections that have not finished their handshake; one more pushes the oldest of them out. */
  readonly maxHandshakes: number;
  /** A handshake that takes longer is ended, in milliseconds. */
  readonly handshakeTimeoutMs: number;
  /** Bytes that a client may send before transmission begins. */
  readonly maxHandshakeBytes: number;
  /** Requests of one connection that were taken in and whose reply is not sent yet. */
  readonly maxInFlight: number;
  /** Bytes of READ replies of one connection, from parsing until sent; one request is always let through. */
  readonly maxReplyBytes: number;
  /** Payload bytes of WRITEs of one connection that the service has not answered yet; one request is always let through. */
  readonly maxPayloadBytes: number;
  /** BLOCK_STATUS requests of all connections that wait for the service. */
  readonly maxExtentCalls: number;
  /** Extents in one BLOCK_STATUS reply. */
  readonly maxExtents: number;
  /** Bytes received from one connection in one tick. */
  readonly tickBytes: number;
  /** Size of the chunks that requests are received into and replies are built in; a power of two. */
  readonly chunkBytes: number;
  /** A READ of at least this many bytes is read into a buffer of its own. */
  readonly largeReadBytes: number;
  /** After a WRITE of at least this many bytes only the next header is received ahead, so that the payload needs no copy. */
  readonly largeWriteBytes: number;
  /** So many reply bytes are sent at once, without waiting for the end of the tick, while they are warm. */
  readonly flushBytes: number;
  /**
   * Kept aside so that a request of the maximum size (32 MiB) always finds a buffer, however fragmented the arena is.
   * With less, a larger request may wait for as long as the arena has no such range.
   */
  readonly reserveBytes: number;
  /** Bytes of the arena that the NBD server leaves to others. */
  readonly headroomBytes: number;
  /** While others wait for memory, a connection that holds some and makes no progress for so long is closed. */
  readonly stallMs: number;
  /** On `close`, how long requests under way may take before their connections are cut, in milliseconds. */
  readonly closeTimeoutMs: number;
}

export const DEFAULT_LIMITS: NbdLimits = {
  maxConnections: 1024,
  maxHandshakes: 128,
  handshakeTimeoutMs: 10_000,
  maxHandshakeBytes: 4 * MIB,
  maxInFlight: 1024,
  maxReplyBytes: 16 * MIB,
  maxPayloadBytes: 32 * MIB,
  maxExtentCalls: 64,
  maxExtents: 2048,
  tickBytes: MIB,
  chunkBytes: MIB,
  largeReadBytes: 256 * KIB,
  largeWriteBytes: 64 * KIB,
  flushBytes: 256 * KIB,
  reserveBytes: 32 * MIB,
  headroomBytes: 16 * MIB,
  stallMs: 30_000,
  closeTimeoutMs: 5_000,
};
