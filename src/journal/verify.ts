/**
 * Checks of batches that come from a disk or a peer. A batch that passes
 * `verifyHeader` and `verifyPayloads` is byte for byte what its builder wrote
 * at this place of this history.
 */

import type { Arena } from '../io/arena.js';
import type { Io } from '../io/io.js';
import { alignUp, BLOCK_BYTES } from '../base/units.js';
import { batch, checkBatchShape, checkEntries, entry, RecordKind, usedHeaderBytes } from './format.js';
import type { Position } from './position.js';

export interface Memory {
  readonly io: Io;
  readonly arena: Arena;
}

/**
 * Checks the header and entries at `at` (arena), of which `available` bytes are
 * there, as the batch that continues `expected`. Returns undefined, or a
 * sentence fragment that says what is wrong. The epoch is the caller's concern.
 */
export function verifyHeader(memory: Memory, at: number, available: number, expected: Position): string | undefined {
  const { view } = memory.arena;
  if (available < BLOCK_BYTES && available < usedHeaderBytes(1)) return `only ${available} bytes left`;
  const shape = checkBatchShape(view, at);
  if (shape !== undefined) return shape;
  const used = usedHeaderBytes(batch.count(view, at));
  if (used > available) return `a header of ${used} bytes where ${available} are left`;
  if (memory.io.crc32c(at + 8, used - 8, 0) !== batch.crc(view, at)) return 'batch header checksum differs';
  if (batch.lsn(view, at) !== expected.lsn) return `a batch with LSN ${batch.lsn(view, at)} where ${expected.lsn} belongs`;
  if (batch.chainHi(view, at) !== expected.chainHi || batch.chainLo(view, at) !== expected.chainLo) return 'the batch continues another history (chain differs)';
  return checkEntries(view, at);
}

/**
 * Checks the payloads of a verified header. `padded`: every payload starts at
 * its place in the on-disk layout; otherwise they follow each other as on the wire.
 */
export function verifyPayloads(memory: Memory, at: number, payloadAt: number, padded: boolean): string | undefined {
  const { view } = memory.arena;
  const count = batch.count(view, at);
  let from = payloadAt;
  for (let i = 0; i < count; i++) {
    const e = entry.at(at, i);
    if (entry.kind(view, e) === RecordKind.zero) continue;
    const length = entry.length(view, e);
    if (memory.io.crc32c(from, length, 0) !== entry.payloadCrc(view, e)) return `payload checksum of record ${i} differs`;
    from += padded ? alignUp(length, BLOCK_BYTES) : length;
  }
  return undefined;
}

/** Bytes of payload that a verified batch has on the wire. */
export function wirePayloadBytes(memory: Memory, at: number): number {
  const { view } = memory.arena;
  const count = batch.count(view, at);
  let bytes = 0;
  for (let i = 0; i < count; i++) {
    const e = entry.at(at, i);
    if (entry.kind(view, e) !== RecordKind.zero) bytes += entry.length(view, e);
  }
  return bytes;
}

/** The position behind a verified batch that starts at `before`. `out` is two words of scratch. */
export function positionAfter(memory: Memory, at: number, before: Position, out: Uint32Array): Position {
  const { view } = memory.arena;
  memory.io.hash64(at, usedHeaderBytes(batch.count(view, at)), before.chainHi, before.chainLo, out);
  return { lsn: before.lsn + batch.totalBytes(view, at), chainHi: out[0], chainLo: out[1] };
}
