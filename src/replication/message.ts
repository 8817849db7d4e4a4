/**
 * Byte layout of the link protocol: frames, and the messages in them.
 *
 * Owns: where each field lies, length limits, which messages exist and what
 * they must look like. Must not know: sockets, keys, who may say what when.
 *
 * A connection is a sequence of frames in each direction, each a header of 32
 * bytes and a body. Integers are little-endian.
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 32)
 *   8  u8 type   9 u8 zero  10 u16 protocol version
 *   12 u32 body bytes
 *   16 u64 durable LSN of the sender (DESIGN §5, write-ahead rule); 0 until both sides have authenticated
 *   24 u32 number of the frame in this direction, from 0 (modulo 2^32)
 *   28 u32 CRC32C of the body; 0 in batch frames, which carry checksums of their own
 *
 * Bodies:
 *
 *   hello challenge proof reject     msgpack map
 *   position plan goodbye state ask answer   msgpack map, then 32 bytes HMAC-SHA256 (hello.ts)
 *   fetched                          the HMAC only
 *   heartbeat                        nothing
 *   batch                            used batch header and entries, then the payloads without padding (journal/format.ts)
 *   ack                              0 u64 received   8 u64 durable   16 u64 applied   24 u32 flags   28 u32 zero
 *
 * Everything that a decision hangs on carries the HMAC, which covers the header
 * too, so its place in the stream. Batches, acks and heartbeats are the data path: CRCs,
 * frame numbers, LSN and chain guard them against accidents only. Against
 * somebody who can alter the traffic, TLS is the protection (DESIGN §9).
 */

import { Packr } from 'msgpackr';
import { z } from 'zod';
import { assert } from '../base/assert.js';
import { PeerError } from '../base/errors.js';
import { isLocalName, NAME_PATTERN } from '../base/names.js';
import { getU64, putU64 } from '../base/words.js';
import type { EpochEntry } from '../group/tree/epochs.js';
import { MAX_BATCH_PAYLOAD, MAX_BATCH_RECORDS, usedHeaderBytes } from '../journal/format.js';
import type { Memory } from '../journal/verify.js';

export const PROTOCOL_VERSION = 1;
export const FRAME_HEADER_BYTES = 32;
export const MAC_BYTES = 32;
export const NONCE_BYTES = 32;
export const ACK_BYTES = 32;
const FRAME_MAGIC = 0x46534b4c; // "LKSF"

export const FrameType = {
  hello: 1, challenge: 2, proof: 3, reject: 4,
  position: 5, plan: 6, goodbye: 7, state: 8, fetched: 9,
  heartbeat: 10, batch: 11, ack: 12,
  ask: 13, answer: 14,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];
const LAST_TYPE = FrameType.answer;

/** Longest body of each type, in bytes; what is longer closes the connection before it is received. */
const MAX_BODY_BYTES: readonly number[] = (() => {
  const limits = new Array<number>(LAST_TYPE + 1).fill(0);
  limits[FrameType.hello] = 1024;
  limits[FrameType.challenge] = 256;
  limits[FrameType.proof] = 256;
  limits[FrameType.reject] = 2048;
  limits[FrameType.position] = 512 * 1024;
  limits[FrameType.plan] = 1024;
  limits[FrameType.goodbye] = 4096;
  limits[FrameType.state] = 4096;
  limits[FrameType.fetched] = MAC_BYTES;
  limits[FrameType.batch] = usedHeaderBytes(MAX_BATCH_RECORDS) + MAX_BATCH_PAYLOAD;
  limits[FrameType.ack] = ACK_BYTES;
  limits[FrameType.ask] = 1024;
  limits[FrameType.answer] = 4096;
  return limits;
})();

/** Types whose body ends in a MAC. */
export function carriesMac(type: number): boolean {
  return (type >= FrameType.position && type <= FrameType.fetched) || type >= FrameType.ask;
}

const TYPE_NAMES = new Map<number, string>(Object.entries(FrameType).map(([name, type]) => [type, name]));
export function frameTypeName(type: number): string {
  return TYPE_NAMES.get(type) ?? `type ${type}`;
}

/** Field access on a frame header at `at`. */
export const frame = {
  type: (v: DataView, at: number): number => v.getUint8(at + 8),
  version: (v: DataView, at: number): number => v.getUint16(at + 10, true),
  bodyBytes: (v: DataView, at: number): number => v.getUint32(at + 12, true),
  durable: (v: DataView, at: number): number => getU64(v, at + 16),
  number: (v: DataView, at: number): number => v.getUint32(at + 24, true),
  bodyCrc: (v: DataView, at: number): number => v.getUint32(at + 28, true),
};

/** Writes everything but the two CRCs. */
export function putFrameHeader(view: DataView, at: number, type: FrameType, bodyBytes: number, durableLsn: number, number: number): void {
  assert(bodyBytes <= MAX_BODY_BYTES[type], `a ${frameTypeName(type)} frame of ${bodyBytes} bytes`);
  view.setUint32(at, FRAME_MAGIC, true);
  view.setUint32(at + 8, type, true);
  view.setUint16(at + 10, PROTOCOL_VERSION, true);
  view.setUint32(at + 12, bodyBytes, true);
  putU64(view, at + 16, durableLsn);
  view.setUint32(at + 24, number, true);
  view.setUint32(at + 28, 0, true);
}

/** Completes a header: `bodyAt` < 0 leaves the body's CRC zero (batch frames). */
export function sealFrame(memory: Memory, at: number, bodyAt: number): void {
  const { view } = memory.arena;
  const bytes = frame.bodyBytes(view, at);
  if (bodyAt >= 0 && bytes > 0) view.setUint32(at + 28, memory.io.crc32c(bodyAt, bytes, 0), true);
  view.setUint32(at + 4, memory.io.crc32c(at + 8, FRAME_HEADER_BYTES - 8, 0), true);
}

/**
 * Checks the 32 bytes at `at` as the header of frame `number`. Throws PeerError.
 * A header that passes has a known type, and a length within the limit of that type.
 */
export function checkFrameHeader(memory: Memory, at: number, number: number): void {
  const { view } = memory.arena;
  if (view.getUint32(at, true) !== FRAME_MAGIC) throw new PeerError('link/garbage', 'what arrived is no frame of the link protocol');
  if (memory.io.crc32c(at + 8, FRAME_HEADER_BYTES - 8, 0) !== view.getUint32(at + 4, true)) {
    throw new PeerError('link/corrupt', `the checksum of the header of frame ${number} differs`);
  }
  const version = frame.version(view, at);
  if (version !== PROTOCOL_VERSION) {
    throw new PeerError('link/version', `the peer speaks version ${version} of the link protocol, this node version ${PROTOCOL_VERSION}`);
  }
  const type = frame.type(view, at);
  if (type < 1 || type > LAST_TYPE || view.getUint8(at + 9) !== 0) throw new PeerError('link/garbage', `a frame of unknown type ${type}`);
  const bytes = frame.bodyBytes(view, at);
  if (bytes > MAX_BODY_BYTES[type]) {
    throw new PeerError('link/oversize', `a ${frameTypeName(type)} frame of ${bytes} bytes; at most ${MAX_BODY_BYTES[type]} are allowed`);
  }
  if (frame.number(view, at) !== number) throw new PeerError('link/skipped-frame', `frame ${frame.number(view, at)} arrived where ${number} belongs`);
  if (frame.durable(view, at) > Number.MAX_SAFE_INTEGER) throw new PeerError('link/garbage', 'an LSN beyond 2^53');
}

/** Checks the body's CRC of a non-batch frame. Throws PeerError. */
export function checkFrameBody(memory: Memory, at: number, bodyAt: number): void {
  const { view } = memory.arena;
  const bytes = frame.bodyBytes(view, at);
  const crc = bytes === 0 ? 0 : memory.io.crc32c(bodyAt, bytes, 0);
  if (crc !== frame.bodyCrc(view, at)) throw new PeerError('link/corrupt', `the checksum of a ${frameTypeName(frame.type(view, at))} frame differs`);
}

// ---- acks ---------------------------------------------------------------------------------------------

/** Flags of an ack. */
export const AckFlag = {
  /** The applier has stopped: what arrives is kept and not applied. The last `state` message says why. */
  kept: 1,
  /** No room in the journal: nothing is received now. */
  full: 2,
} as const;

export function putAck(view: DataView, at: number, received: number, durable: number, applied: number, flags: number): void {
  putU64(view, at, received);
  putU64(view, at + 8, durable);
  putU64(view, at + 16, applied);
  view.setUint32(at + 24, flags, true);
  view.setUint32(at + 28, 0, true);
}

export const ack = {
  received: (v: DataView, at: number): number => getU64(v, at),
  durable: (v: DataView, at: number): number => getU64(v, at + 8),
  applied: (v: DataView, at: number): number => getU64(v, at + 16),
  flags: (v: DataView, at: number): number => v.getUint32(at + 24, true),
};

// ---- control messages -----------------------------------------------------------------------------------

/** Epochs that a position message carries: the newest ones. */
export const MAX_EPOCHS_SENT = 2000;
const MAX_SENTENCE = 600;
/** Longest reason why a node does not apply: it names fields and devices (group/tree/differs.ts). Its UTF-8 fits a `state` frame. */
export const MAX_KEPT = 1300;

export const LsnField = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
export const Word = z.number().int().nonnegative().max(0xffffffff);
export const Id = z.string().regex(/^[0-9a-f]{32}$/);
export const Name = z.string().regex(NAME_PATTERN);
const LocalName = z.string().refine(isLocalName);
function exactly(count: number): z.ZodType<Uint8Array> {
  return z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.length === count);
}
const Nonce = exactly(NONCE_BYTES);
const Mac = exactly(MAC_BYTES);
const Sentence = z.string().max(MAX_SENTENCE);
const Code = z.string().regex(/^[a-z]+\/[a-z-]{1,40}$/);
const Place = z.strictObject({ lsn: LsnField, chainHi: Word, chainLo: Word });

/** An entry of an epoch history, as a peer says it. */
export const Epoch = z.strictObject({
  number: Word, id: Id, start: Place, node: Name, lossless: z.boolean(), wallMs: z.number().nonnegative().max(Number.MAX_SAFE_INTEGER),
});

export function ordered(epochs: readonly EpochEntry[]): boolean {
  for (let i = 1; i < epochs.length; i++) {
    if (epochs[i].number <= epochs[i - 1].number || epochs[i].start.lsn <= epochs[i - 1].start.lsn) return false;
  }
  return true;
}

export const messages = {
  /** The dialer names the group, itself and whom it wants. */
  hello: z.strictObject({ group: Name, from: Name, to: Name, nonce: Nonce }),
  challenge: z.strictObject({ nonce: Nonce }),
  proof: z.strictObject({ mac: Mac }),
  /** Before authentication: says as little as possible. */
  reject: z.strictObject({ code: Code, message: Sentence }),
  position: z
    .strictObject({
      groupId: Id.nullable(),
      role: z.enum(['primary', 'recovering', 'secondary', 'fenced', 'stopped']),
      reason: Sentence,
      epochs: z.array(Epoch).max(MAX_EPOCHS_SENT).refine(ordered),
      position: Place,
      firstLsn: LsnField,
      durableLsn: LsnField,
      appliedLsn: LsnField,
      stableLsn: LsnField,
    })
    .refine((m) => m.epochs.length === 0 || m.epochs[m.epochs.length - 1].start.lsn <= m.position.lsn),
  plan: z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('stream'), from: Place }),
    z.strictObject({ kind: z.literal('rewind'), to: Place }),
    z.strictObject({ kind: z.literal('fetch'), from: Place, upTo: LsnField }),
  ]),
  goodbye: z.strictObject({ code: Code, message: Sentence }),
  state: z.strictObject({ kept: z.string().max(MAX_KEPT).nullable() }),
  /** To a follower: could it execute this now? `local`: VOLUME~NAME. */
  ask: z.strictObject({ number: Word, adopt: z.strictObject({ local: LocalName, digest: Id, sizeBytes: LsnField }) }),
  /** What it lacks; null = nothing. */
  answer: z.strictObject({ number: Word, lack: Sentence.nullable() }),
} as const;

export type MessageName = keyof typeof messages;
export type Message<N extends MessageName> = z.output<(typeof messages)[N]>;

const packr = new Packr({ useRecords: false, mapsAsObjects: true, int64AsType: 'number', variableMapSize: true });

export function encodeMessage<N extends MessageName>(_name: N, message: Message<N>): Uint8Array {
  return new Uint8Array(packr.pack(message));
}

/** `bytes`: the msgpack part of a body; not kept. Throws PeerError for anything but exactly such a message. */
export function decodeMessage<N extends MessageName>(name: N, bytes: Uint8Array): Message<N> {
  let value: unknown;
  try {
    value = packr.unpack(Uint8Array.from(bytes));
  } catch {
    throw new PeerError('link/garbage', `a ${name} message that is no msgpack`);
  }
  const checked = messages[name].safeParse(value);
  if (checked.success) return checked.data as Message<N>;
  const where = checked.error.issues[0]?.path.join('.') ?? '';
  throw new PeerError('link/garbage', `a malformed ${name} message${where === '' ? '' : ` (at "${where}")`}`);
}

/** Words that may be shown and sent: one line, no control characters, bounded. */
export function cleanSentence(words: string, most = MAX_SENTENCE): string {
  let clean = '';
  for (const char of words) {
    if (clean.length >= most - 5) return `${clean} ...`;
    clean += char < ' ' || (char >= '\x7f' && char <= '\x9f') ? ' ' : char;
  }
  return clean;
}
