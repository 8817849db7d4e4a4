/**
 * Byte layout of the journal (DESIGN §3): segments, batches and record entries.
 *
 * Owns: where each field lies, and the checks that one batch can pass on its
 * own. Must not know: files, devices' content, what a marker means.
 *
 * Everything in a segment is made of whole 4 KiB blocks:
 *
 *     block 0           segment header
 *     then, per batch   header blocks: batch header, then one entry per record, zero-padded
 *                       payload blocks: the records' payloads, each zero-padded to 4 KiB
 *
 * so that an append never makes the kernel read a page that it covers only in
 * part. Integers are little-endian.
 *
 * LSNs count these bytes, padding included, segment headers excluded: a batch at
 * LSN b with h header and p payload bytes is followed by the batch at b + h + p.
 * A record's LSN is the LSN of its entry. The wire carries neither padding nor
 * segment headers; the receiver puts the padding back, so that LSNs are equal on
 * all nodes whatever their segment size.
 */

import { alignUp, BLOCK_BYTES, MAX_DEVICE_BYTES } from '../base/units.js';
import { crc32c } from '../base/crc32c.js';
import { getU64, putHex, putU64, toHex } from '../base/words.js';
import type { Position } from './position.js';

export const FORMAT_VERSION = 1;

/*
 * Segment header, one 4 KiB block. Sector 0 is written when a segment is taken
 * into use; sector 1 (the durable mark) at most once a second after an
 * fdatasync; sector 2 when the next segment has been begun. Sectors are atomic
 * (crash assumption 1), so no write can harm another.
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 96)
 *   8  u32 version          12 u32 reserved
 *   16 16B group id         32 u64 serial, counts each use of any segment file
 *   40 u64 base LSN         48 u32 chain hi, 52 u32 chain lo: chain at the base LSN
 *   56 16B epoch id         72 u32 epoch number   76 u32 zero
 *   80 u64 size of the file, bytes (0: not said)  88..95 zero
 *   512 u32 magic           516 u32 CRC32C of [520, 536)
 *   520 u64 serial          528 u64 durable LSN, of this node
 *   1024 u32 magic          1028 u32 CRC32C of [1032, 1056)
 *   1032 u64 serial         1040 u64 serial of the segment that follows
 *   1048 u64 number in the name of its file
 */
export const SEGMENT_HEADER_BYTES = BLOCK_BYTES;
const SEGMENT_MAGIC = 0x53534b4c; // "LKSS"
const MARK_MAGIC = 0x4d534b4c; // "LKSM"
const NEXT_MAGIC = 0x4e534b4c; // "LKSN"
const SEGMENT_CRC_END = 96;
export const MARK_OFFSET = 512;
export const NEXT_OFFSET = 1024;
export const SECTOR_BYTES = 512;

export interface SegmentHeader {
  readonly groupId: string;
  readonly serial: number;
  readonly baseLsn: number;
  readonly chainHi: number;
  readonly chainLo: number;
  readonly epochId: string;
  readonly epochNumber: number;
  /** Of the file when it was taken into use, bytes; 0: not said. */
  readonly bytes: number;
}

/** The segment that follows, as the one before it names it. */
export interface NextSegment {
  readonly serial: number;
  /** Of its file: segment-000007 has 7. */
  readonly number: number;
}

/** Writes sector 0 into bytes[at, at + 512). */
export function encodeSegmentHeader(bytes: Uint8Array, at: number, header: SegmentHeader): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  bytes.fill(0, at, at + SECTOR_BYTES);
  view.setUint32(at, SEGMENT_MAGIC, true);
  view.setUint32(at + 8, FORMAT_VERSION, true);
  putHex(bytes, at + 16, header.groupId);
  putU64(view, at + 32, header.serial);
  putU64(view, at + 40, header.baseLsn);
  view.setUint32(at + 48, header.chainHi, true);
  view.setUint32(at + 52, header.chainLo, true);
  putHex(bytes, at + 56, header.epochId);
  view.setUint32(at + 72, header.epochNumber, true);
  putU64(view, at + 80, header.bytes);
  view.setUint32(at + 4, crc32c(bytes, at + 8, at + SEGMENT_CRC_END), true);
}

/** The header in bytes[at, at + 512), or why there is none. */
export function decodeSegmentHeader(bytes: Uint8Array, at: number): SegmentHeader | string {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (view.getUint32(at, true) !== SEGMENT_MAGIC) return 'no segment header (wrong magic)';
  if (view.getUint32(at + 4, true) !== crc32c(bytes, at + 8, at + SEGMENT_CRC_END)) return 'segment header checksum differs';
  const version = view.getUint32(at + 8, true);
  if (version !== FORMAT_VERSION) return `segment format ${version}; this version reads format ${FORMAT_VERSION}`;
  return {
    groupId: toHex(bytes, at + 16, at + 32),
    serial: getU64(view, at + 32),
    baseLsn: getU64(view, at + 40),
    chainHi: view.getUint32(at + 48, true),
    chainLo: view.getUint32(at + 52, true),
    epochId: toHex(bytes, at + 56, at + 72),
    epochNumber: view.getUint32(at + 72, true),
    bytes: getU64(view, at + 80),
  };
}

/** Writes sector 1 into bytes[at, at + 512). */
export function encodeDurableMark(bytes: Uint8Array, at: number, serial: number, durableLsn: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  bytes.fill(0, at, at + SECTOR_BYTES);
  view.setUint32(at, MARK_MAGIC, true);
  putU64(view, at + 8, serial);
  putU64(view, at + 16, durableLsn);
  view.setUint32(at + 4, crc32c(bytes, at + 8, at + 24), true);
}

/** The durable LSN that sector 1 claims for the segment's present use, or undefined. */
export function decodeDurableMark(bytes: Uint8Array, at: number, serial: number): number | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (view.getUint32(at, true) !== MARK_MAGIC) return undefined;
  if (view.getUint32(at + 4, true) !== crc32c(bytes, at + 8, at + 24)) return undefined;
  return getU64(view, at + 8) === serial ? getU64(view, at + 16) : undefined;
}

/** Writes sector 2 into bytes[at, at + 512). */
export function encodeNext(bytes: Uint8Array, at: number, serial: number, next: NextSegment): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  bytes.fill(0, at, at + SECTOR_BYTES);
  view.setUint32(at, NEXT_MAGIC, true);
  putU64(view, at + 8, serial);
  putU64(view, at + 16, next.serial);
  putU64(view, at + 24, next.number);
  view.setUint32(at + 4, crc32c(bytes, at + 8, at + 32), true);
}

/** The segment that sector 2 names as the one behind the segment's present use, or undefined. */
export function decodeNext(bytes: Uint8Array, at: number, serial: number): NextSegment | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (view.getUint32(at, true) !== NEXT_MAGIC) return undefined;
  if (view.getUint32(at + 4, true) !== crc32c(bytes, at + 8, at + 32)) return undefined;
  return getU64(view, at + 8) === serial ? { serial: getU64(view, at + 16), number: getU64(view, at + 24) } : undefined;
}

/*
 * Batch header, 96 bytes:
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 96 + 32 * count)
 *   8  u64 LSN              16 u32 chain hi, 20 u32 chain lo: chain before this batch
 *   24 u64 durable LSN of the node that built the batch, when it built it
 *   32 u32 count            36 u32 header bytes on disk (multiple of 4096)
 *   40 u32 payload bytes on disk (multiple of 4096)
 *   44 u32 epoch number     48 16B epoch id
 *   64 u64 wall clock when built, ms since 1970
 *   72..95 zero
 *
 * Record entry, 32 bytes:
 *
 *   0  u8 kind   1 u8 flags   2 u16 zero   4 u32 device id (0 for markers)
 *   8  u64 offset in the device, bytes (0 for markers)
 *   16 u64 length, bytes: data and zero: multiples of 4096; marker: length of its body
 *   24 u32 payload offset from the start of the batch's payload (multiple of 4096)
 *   28 u32 CRC32C of the payload (0 when there is none)
 *
 * The chain after a batch is hash64(header and entries, seeded with the chain
 * before). Entries hold the payloads' CRCs, so the chain covers everything.
 */
export const BATCH_MAGIC = 0x42534b4c; // "LKSB"
export const BATCH_HEADER_BYTES = 96;
export const ENTRY_BYTES = 32;
/** Records in one batch; bounds the header at 8 blocks. */
export const MAX_BATCH_RECORDS = 1000;
/** Payload bytes in one batch; larger writes are cut. Bounds the wire's frames and the receivers' buffers. */
export const MAX_BATCH_PAYLOAD = 4 * 1024 * 1024;
export const MAX_HEADER_BYTES = alignUp(BATCH_HEADER_BYTES + MAX_BATCH_RECORDS * ENTRY_BYTES, BLOCK_BYTES);
export const MAX_BATCH_BYTES = MAX_HEADER_BYTES + MAX_BATCH_PAYLOAD;
/** Longest body of a marker, bytes. */
export const MAX_MARKER_BYTES = 64 * 1024;

/** Kinds of records. */
export const RecordKind = {
  /** Whole blocks of new content. */
  data: 1,
  /** Whole blocks that read as zeros from here on. */
  zero: 2,
  /** An operation; the body is msgpack (group/tree/record.ts). */
  marker: 3,
} as const;

const KIND_NAMES: Record<number, string> = { 1: 'data', 2: 'zero', 3: 'marker' };

/** For people; also of a kind that this version does not know. */
export function recordKindName(kind: number): string {
  return KIND_NAMES[kind] ?? `kind ${kind}`;
}

/** Bytes of header and entries that carry information. */
export function usedHeaderBytes(count: number): number {
  return BATCH_HEADER_BYTES + count * ENTRY_BYTES;
}

/** Field access on a batch header at `at` of a long-lived view; no allocation. */
export const batch = {
  magic: (v: DataView, at: number): number => v.getUint32(at, true),
  crc: (v: DataView, at: number): number => v.getUint32(at + 4, true),
  lsn: (v: DataView, at: number): number => getU64(v, at + 8),
  chainHi: (v: DataView, at: number): number => v.getUint32(at + 16, true),
  chainLo: (v: DataView, at: number): number => v.getUint32(at + 20, true),
  durable: (v: DataView, at: number): number => getU64(v, at + 24),
  count: (v: DataView, at: number): number => v.getUint32(at + 32, true),
  headerBytes: (v: DataView, at: number): number => v.getUint32(at + 36, true),
  payloadBytes: (v: DataView, at: number): number => v.getUint32(at + 40, true),
  epochNumber: (v: DataView, at: number): number => v.getUint32(at + 44, true),
  epochId: (bytes: Uint8Array, at: number): string => toHex(bytes, at + 48, at + 64),
  wallMs: (v: DataView, at: number): number => getU64(v, at + 64),
  totalBytes: (v: DataView, at: number): number => v.getUint32(at + 36, true) + v.getUint32(at + 40, true),
};

/** Where the batch with header at `at` stands: behind all before it. */
export function batchStart(v: DataView, at: number): Position {
  return { lsn: batch.lsn(v, at), chainHi: batch.chainHi(v, at), chainLo: batch.chainLo(v, at) };
}

/** Field access on entry `i` of the batch at `at`. */
export const entry = {
  at: (batchAt: number, i: number): number => batchAt + BATCH_HEADER_BYTES + i * ENTRY_BYTES,
  kind: (v: DataView, e: number): number => v.getUint8(e),
  device: (v: DataView, e: number): number => v.getUint32(e + 4, true),
  offset: (v: DataView, e: number): number => getU64(v, e + 8),
  length: (v: DataView, e: number): number => getU64(v, e + 16),
  payloadOffset: (v: DataView, e: number): number => v.getUint32(e + 24, true),
  payloadCrc: (v: DataView, e: number): number => v.getUint32(e + 28, true),
  /** LSN of record i of a batch that starts at `batchLsn`. */
  lsn: (batchLsn: number, i: number): number => batchLsn + BATCH_HEADER_BYTES + i * ENTRY_BYTES,
};

/** Bytes of payload that a record has on the wire; on disk it is padded to whole blocks. */
export function payloadLength(v: DataView, e: number): number {
  return v.getUint8(e) === RecordKind.zero ? 0 : getU64(v, e + 16);
}

/**
 * Checks that need no CRC and no context: sizes that a reader must trust before
 * it may read on. Returns undefined, or what is wrong. `available` = bytes at
 * `at` that the caller holds (at least one block).
 */
export function checkBatchShape(v: DataView, at: number): string | undefined {
  if (batch.magic(v, at) !== BATCH_MAGIC) return 'no batch (wrong magic)';
  const count = batch.count(v, at);
  if (count < 1 || count > MAX_BATCH_RECORDS) return `a batch of ${count} records`;
  const headerBytes = batch.headerBytes(v, at);
  if (headerBytes !== alignUp(usedHeaderBytes(count), BLOCK_BYTES)) return `${count} records in ${headerBytes} header bytes`;
  const payloadBytes = batch.payloadBytes(v, at);
  if (payloadBytes % BLOCK_BYTES !== 0 || payloadBytes > MAX_BATCH_PAYLOAD) return `${payloadBytes} payload bytes`;
  return undefined;
}

/**
 * Checks every entry of a batch whose header CRC is right: a batch that passes
 * can be handed to apply without further looks. Returns undefined or what is wrong.
 */
export function checkEntries(v: DataView, at: number): string | undefined {
  const count = batch.count(v, at);
  let expected = 0;
  for (let i = 0; i < count; i++) {
    const e = entry.at(at, i);
    const kind = entry.kind(v, e);
    const length = entry.length(v, e);
    const offset = entry.offset(v, e);
    if (kind !== RecordKind.data && kind !== RecordKind.zero && kind !== RecordKind.marker) return `record ${i}: unknown kind ${kind}`;
    if (kind === RecordKind.marker) {
      if (count !== 1) return `record ${i}: a marker is alone in its batch`;
      if (length < 1 || length > MAX_MARKER_BYTES) return `record ${i}: a marker of ${length} bytes`;
    } else {
      if (length < BLOCK_BYTES || length % BLOCK_BYTES !== 0 || offset % BLOCK_BYTES !== 0) return `record ${i}: bytes ${offset}+${length} are not whole blocks`;
      if (offset + length > MAX_DEVICE_BYTES) return `record ${i}: bytes ${offset}+${length} lie beyond any device`;
    }
    if (kind !== RecordKind.zero) {
      if (entry.payloadOffset(v, e) !== expected) return `record ${i}: its payload is misplaced`;
      expected += alignUp(length, BLOCK_BYTES);
    }
    if (expected > batch.payloadBytes(v, at)) return `record ${i}: payload beyond the batch`;
  }
  if (expected !== batch.payloadBytes(v, at)) return `${batch.payloadBytes(v, at)} payload bytes, the records have ${expected}`;
  return undefined;
}
