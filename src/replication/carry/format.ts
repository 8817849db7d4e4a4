/**
 * Byte layout of an exported journal (`lockstep journal export`): what software
 * outside of Lockstep carries to another node.
 *
 * Owns: frames, the preface, cutting a byte stream into frames. Must not know:
 * where the bytes come from, what may be appended.
 *
 * A stream is a preface, then batches, with heartbeats between, and, if it was
 * not cut off, an end. Behind the end another stream may follow. Each is a frame
 * of a header of 32 bytes and a body. Integers are little-endian.
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 32)
 *   8  u8 type   9 u8 zero  10 u16 version
 *   12 u32 body bytes
 *   16 u64 durable LSN of the exporting node: nothing above it is in the stream
 *   24 u32 number of the frame in its stream, from 0
 *   28 u32 CRC32C of the body; 0 in batch frames, which carry checksums of their own
 *
 *   preface     msgpack: group, group id, exporting node, epochs that began below the start, start
 *   batch       as on a link: used header and entries, then the payloads without padding (journal/format.ts)
 *   heartbeat   nothing
 *   end         nothing
 *
 * Nothing here is secret or proves who sent it: the carrier has to see to that.
 */

import { Packr } from 'msgpackr';
import { z } from 'zod';
import { assert } from '../../base/assert.js';
import { crc32c } from '../../base/crc32c.js';
import { PeerError } from '../../base/errors.js';
import { getU64, putU64 } from '../../base/words.js';
import type { EpochPosition } from '../../base/position.js';
import type { EpochEntry } from '../../group/tree/epochs.js';
import { MAX_BATCH_PAYLOAD, MAX_BATCH_RECORDS, usedHeaderBytes } from '../../journal/format.js';
import { Epoch, Id, LsnField, MAX_EPOCHS_SENT, Name, ordered, Word } from '../message.js';

const STREAM_VERSION = 1;
export const STREAM_HEADER_BYTES = 32;
const MAGIC = 0x58534b4c; // "LKSX"

export const StreamType = { preface: 1, batch: 2, heartbeat: 3, end: 4 } as const;
export type StreamType = (typeof StreamType)[keyof typeof StreamType];

/** Longest body of each type, bytes. */
const MAX_BODY_BYTES: readonly number[] = [0, 512 * 1024, usedHeaderBytes(MAX_BATCH_RECORDS) + MAX_BATCH_PAYLOAD, 0, 0];
/** A body is at least as long. */
const MIN_BODY_BYTES: readonly number[] = [0, 1, usedHeaderBytes(1), 0, 0];

/** What a stream says first. */
export interface Preface {
  /** Name and id of the group. */
  readonly group: string;
  readonly groupId: string;
  /** The exporting node. */
  readonly node: string;
  /** Epochs that began below `start`, oldest first, the newest MAX_EPOCHS_SENT of them. */
  readonly epochs: readonly EpochEntry[];
  /** Where the first batch continues. */
  readonly start: EpochPosition;
}

const prefaceShape = z.strictObject({
  group: Name, groupId: Id, node: Name,
  epochs: z.array(Epoch).max(MAX_EPOCHS_SENT).refine(ordered),
  start: z.strictObject({ epochId: Id, lsn: LsnField, chainHi: Word, chainLo: Word }),
}).refine(({ epochs, start }) => epochs.every((epoch) => epoch.start.lsn < start.lsn));

const packr = new Packr({ useRecords: false, mapsAsObjects: true, int64AsType: 'number', variableMapSize: true });

/** Writes the header of a frame at bytes[at, at + 32). `bodyCrc`: 0 for batches and empty bodies. */
export function putStreamHeader(bytes: Uint8Array, at: number, type: StreamType, bodyBytes: number, durableLsn: number, number: number, bodyCrc = 0): void {
  assert(bodyBytes <= MAX_BODY_BYTES[type], `a frame of type ${type} with ${bodyBytes} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  view.setUint32(at, MAGIC, true);
  view.setUint32(at + 8, type, true);
  view.setUint16(at + 10, STREAM_VERSION, true);
  view.setUint32(at + 12, bodyBytes, true);
  putU64(view, at + 16, durableLsn);
  view.setUint32(at + 24, number, true);
  view.setUint32(at + 28, bodyCrc, true);
  view.setUint32(at + 4, crc32c(bytes, at + 8, at + STREAM_HEADER_BYTES), true);
}

/** A heartbeat or an end. */
export function emptyFrame(type: typeof StreamType.heartbeat | typeof StreamType.end, durableLsn: number, number: number): Uint8Array {
  const bytes = new Uint8Array(STREAM_HEADER_BYTES);
  putStreamHeader(bytes, 0, type, 0, durableLsn, number);
  return bytes;
}

/** Frame 0. */
export function encodePreface(preface: Preface, durableLsn: number): Uint8Array {
  const { group, groupId, node, start } = preface;
  const epochs = preface.epochs.slice(-MAX_EPOCHS_SENT).map(({ number, id, node, lossless, wallMs, start: { lsn, chainHi, chainLo } }) => (
    { number, id, start: { lsn, chainHi, chainLo }, node, lossless, wallMs }
  ));
  const body = packr.pack({ group, groupId, node, epochs, start: { epochId: start.epochId, lsn: start.lsn, chainHi: start.chainHi, chainLo: start.chainLo } });
  const bytes = new Uint8Array(STREAM_HEADER_BYTES + body.length);
  bytes.set(body, STREAM_HEADER_BYTES);
  putStreamHeader(bytes, 0, StreamType.preface, body.length, durableLsn, 0, crc32c(body, 0, body.length));
  return bytes;
}

/** Throws PeerError. */
export function decodePreface(body: Uint8Array): Preface {
  let value: unknown;
  try {
    value = packr.unpack(Uint8Array.from(body));
  } catch {
    throw new PeerError('stream/garbage', 'the preface of the stream is no msgpack');
  }
  const parsed = prefaceShape.safeParse(value);
  if (!parsed.success) throw new PeerError('stream/garbage', `the preface of the stream is not as expected at ${parsed.error.issues[0]?.path.join('.') || 'its top'}`);
  return parsed.data;
}

/** A whole frame; `body` is valid until the next `push`. */
export interface StreamFrame {
  readonly type: StreamType;
  readonly durableLsn: number;
  readonly body: Uint8Array;
}

const FIRST_BYTES = 64 * 1024;

/** Cuts what arrives into frames, each checked as far as it can be without knowing the group. */
export class StreamReader {
  private bytes = new Uint8Array(FIRST_BYTES);
  private begin = 0;
  private end = 0;
  private number = 0;

  /** Adds what has arrived; copied. */
  push(part: Uint8Array): void {
    if (this.end + part.length > this.bytes.length) {
      const held = this.end - this.begin;
      const target = held + part.length > this.bytes.length ? new Uint8Array(Math.max(2 * this.bytes.length, held + part.length)) : this.bytes;
      target.set(this.bytes.subarray(this.begin, this.end));
      this.bytes = target;
      this.begin = 0;
      this.end = held;
    }
    this.bytes.set(part, this.end);
    this.end += part.length;
  }

  /** Bytes of a frame that is not whole yet. */
  get heldBytes(): number {
    return this.end - this.begin;
  }

  /** The next whole frame, undefined when more has to arrive; `take` goes on behind it. Throws PeerError. */
  peek(): StreamFrame | undefined {
    if (this.heldBytes < STREAM_HEADER_BYTES) return undefined;
    const { bytes, begin } = this;
    const view = new DataView(bytes.buffer, begin, STREAM_HEADER_BYTES);
    const where = `frame ${this.number} of the stream`;
    if (view.getUint32(0, true) !== MAGIC) {
      throw new PeerError('stream/garbage', this.number === 0 ? 'this is no exported journal' : `what stands in place of ${where} is no frame`);
    }
    if (crc32c(bytes, begin + 8, begin + STREAM_HEADER_BYTES) !== view.getUint32(4, true)) throw new PeerError('stream/corrupt', `the checksum of the header of ${where} differs`);
    const version = view.getUint16(10, true);
    if (version !== STREAM_VERSION) throw new PeerError('stream/version', `the stream has version ${version}; this node reads version ${STREAM_VERSION}: use the same version on both nodes`);
    const type = view.getUint8(8);
    if (type < 1 || type > StreamType.end || view.getUint8(9) !== 0) throw new PeerError('stream/garbage', `${where} has the unknown type ${type}`);
    const length = view.getUint32(12, true);
    if (length > MAX_BODY_BYTES[type] || length < MIN_BODY_BYTES[type]) throw new PeerError('stream/garbage', `${where} has ${length} bytes, from ${MIN_BODY_BYTES[type]} to ${MAX_BODY_BYTES[type]} are allowed`);
    if (view.getUint32(24, true) !== this.number) throw new PeerError('stream/skipped-frame', `frame ${view.getUint32(24, true)} of the stream stands where ${this.number} belongs: a part of the stream is missing`);
    const durableLsn = getU64(view, 16);
    if (durableLsn > Number.MAX_SAFE_INTEGER) throw new PeerError('stream/garbage', `${where} has an LSN beyond 2^53`);
    if (this.heldBytes < STREAM_HEADER_BYTES + length) return undefined;
    const body = bytes.subarray(begin + STREAM_HEADER_BYTES, begin + STREAM_HEADER_BYTES + length);
    const expected = type === StreamType.batch || length === 0 ? 0 : crc32c(body, 0, length);
    if (view.getUint32(28, true) !== expected) throw new PeerError('stream/corrupt', `the checksum of ${where} differs`);
    return { type: type as StreamType, durableLsn, body };
  }

  /** Goes on behind the frame that `peek` returned. */
  take(frame: StreamFrame): void {
    this.begin += STREAM_HEADER_BYTES + frame.body.length;
    this.number = frame.type === StreamType.end ? 0 : this.number + 1;
    if (this.begin === this.end) this.begin = this.end = 0;
  }
}
