/**
 * The two checkpoint slots: what a committed checkpoint says, and how it is
 * written and found again (DESIGN §6).
 *
 * Owns: the slots' bytes. Must not know: how a checkpoint is made, or what the
 * group's part of it means.
 *
 *     0  u32 magic     4  u32 CRC32C of [8, 32 + body length)
 *     8  u64 sequence  16 u32 body length  20 u32 format version  24..31 zero
 *     32 body, msgpack
 *
 * The slots are written in turn. The fdatasync of a slot is THE commit point of
 * its checkpoint: before it, recovery finds the other slot; a slot torn by power
 * loss fails its CRC.
 */

import { pack, unpack } from 'msgpackr';
import { z } from 'zod';
import { CorruptionError, IoError } from '../base/errors.js';
import { crc32c } from '../base/crc32c.js';
import { getU64, putU64 } from '../base/words.js';
import { must, readWholeFile } from '../io/file.js';
import { O } from '../io/io.js';
import type { Io } from '../io/io.js';

const MAGIC = 0x434b534c; // "LSKC"
const VERSION = 1;
export const SLOT_HEADER_BYTES = 32;
/** A tree of a hundred thousand devices fits. */
const MAX_SLOT_BYTES = 64 * 1024 * 1024;

const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const position = z.strictObject({ lsn: count, chainHi: count, chainLo: count });

const body = z.strictObject({
  groupId: z.string().regex(/^[0-9a-f]{32}$/),
  /** The checkpoint holds exactly what the journal says below this position. */
  at: position,
  /** Everything below is in the layers' files; the journal is needed from here on. */
  lowWater: position,
  mapFile: count,
  mapLength: count,
  nextLayer: count,
  layers: z.array(z.tuple([count, count, count, z.string(), count, count, z.boolean()])),
  devices: z.array(z.tuple([count, count, count, count, count])),
  /** The group's own part: tree, epochs, roles (group/content/core.ts). */
  group: z.unknown(),
  /** The same cut through the local journal, where there is one: everything below `at` is in here; and the local devices' names. */
  local: z.strictObject({ at: position, state: z.unknown() }).optional(),
});

export type SlotBody = z.infer<typeof body>;

export interface FoundSlot {
  readonly sequence: number;
  readonly body: SlotBody;
}

/** The slot that checkpoint `sequence` is written to: the two take turns. */
export function slotPath(directory: string, sequence: number): string {
  return `${directory}/checkpoint-${sequence % 2}`;
}

/** The slot's bytes; write them at position 0 of `slotPath`, then fdatasync. */
export function encodeSlot(sequence: number, content: SlotBody): Uint8Array {
  const packed = pack(content);
  const bytes = new Uint8Array(SLOT_HEADER_BYTES + packed.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  putU64(view, 8, sequence);
  view.setUint32(16, packed.length, true);
  view.setUint32(20, VERSION, true);
  bytes.set(packed, SLOT_HEADER_BYTES);
  view.setUint32(4, crc32c(bytes, 8), true);
  return bytes;
}

/** A slot, or why there is none. */
export function decodeSlot(bytes: Uint8Array): FoundSlot | string {
  if (bytes.length < SLOT_HEADER_BYTES) return `only ${bytes.length} bytes`;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(0, true) !== MAGIC) return 'wrong magic';
  const length = view.getUint32(16, true);
  if (length > bytes.length - SLOT_HEADER_BYTES) return `a body of ${length} bytes in a file of ${bytes.length}`;
  if (crc32c(bytes, 8, SLOT_HEADER_BYTES + length) !== view.getUint32(4, true)) return 'checksum differs';
  const version = view.getUint32(20, true);
  if (version !== VERSION) return `checkpoint format ${version}; this version reads format ${VERSION}`;
  const parsed = body.safeParse(unpack(bytes.subarray(SLOT_HEADER_BYTES, SLOT_HEADER_BYTES + length)));
  if (!parsed.success) return `unexpected content (${parsed.error.issues[0].path.join('.')}: ${parsed.error.issues[0].message})`;
  return { sequence: getU64(view, 8), body: parsed.data };
}

/** Makes both slot files, empty; for a new group. Throws IoError. */
export function createSlots(io: Io, directory: string): void {
  for (const sequence of [0, 1]) {
    const path = slotPath(directory, sequence);
    const fd = must(io.open(path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600), 'create', path);
    io.close(fd);
  }
}

/**
 * The newest slot that is whole. Throws CorruptionError when neither is, unless
 * both are empty (a group whose creation was cut off): then undefined. A damaged
 * slot beside a whole one is normal after power loss; `damaged` says what it was.
 * A slot whose writing was reported failed and that is whole on the disk all the
 * same is the newest one: all that it names was durable before it was written.
 */
export function findSlot(io: Io, directory: string): { slot: FoundSlot; older: FoundSlot | undefined; damaged: string | undefined } | undefined {
  const found: FoundSlot[] = [];
  const damage: string[] = [];
  let empty = 0;
  for (const sequence of [0, 1]) {
    const path = slotPath(directory, sequence);
    const fd = io.open(path, O.RDWR | O.CLOEXEC, 0);
    if (fd === -2) {
      empty++;
      continue;
    }
    if (fd < 0) throw new IoError(-fd, 'open', path);
    // As for the journal: what a failed fdatasync left in the page cache must not be taken for what is on the disk.
    const synced = io.fdatasync(fd);
    io.adviseDontNeed(fd, 0, 0);
    io.close(fd);
    if (synced < 0) throw new IoError(-synced, 'fdatasync', path);
    const bytes = readWholeFile(io, path, MAX_SLOT_BYTES);
    if (bytes.length === 0) {
      empty++;
      continue;
    }
    const slot = decodeSlot(bytes);
    if (typeof slot === 'string') damage.push(`${path}: ${slot}`);
    else found.push(slot);
  }
  if (empty === 2) return undefined;
  if (found.length === 0) throw new CorruptionError(`${directory}/checkpoint-*`, 0, `no checkpoint is readable (${damage.join('; ')})`);
  found.sort((a, b) => b.sequence - a.sequence);
  return { slot: found[0], older: found.at(1), damaged: damage[0] };
}
