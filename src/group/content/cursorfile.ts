/**
 * The file `cursors` of a group: its export cursors, in two slots that are
 * written in turn, so that a crash leaves the older or the newer state.
 *
 * Owns: the byte layout, and which slot counts. Must not know: what cursors are
 * good for, when they are written.
 *
 * Each slot has 8 KiB; sequence s lies in slot s mod 2:
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 32 + length)
 *   8  u32 version          12 u32 length of the text
 *   16 u64 sequence         24..31 zero
 *   32 JSON text
 *
 * What recovery sees after power loss: the slot being written is whole or its
 * checksum differs; the other one is whole, for it was made durable before. The
 * first change goes to both, one after the other, before anybody is told: so with
 * one slot all zeros and the other one damaged that write was cut off, and once
 * somebody was told, damage to one slot never looks like that.
 */

import { z } from 'zod';
import { assert } from '../../base/assert.js';
import { crc32c } from '../../base/crc32c.js';
import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { NAME_PATTERN } from '../../base/names.js';
import type { EpochPosition } from '../../base/position.js';
import { getU64, putU64 } from '../../base/words.js';
import { readWholeFile } from '../../io/file.js';
import { O } from '../../io/io.js';
import type { Io } from '../../io/io.js';

export const CURSOR_FILE = 'cursors';
/** Most cursors of a group: each one may keep all of the journal. */
export const MAX_CURSORS = 16;
export const CURSOR_SLOT_BYTES = 8192;
const MAGIC = 0x43534b4c; // "LKSC"
const VERSION = 1;
const TEXT_AT = 32;

/** An external reader of the journal, by name. */
export interface Cursor {
  readonly name: string;
  /** Everything below was acknowledged; the journal is kept from here on. */
  readonly position: EpochPosition;
  readonly createdMs: number;
  /** When it was moved last, ms since 1970; null before the first time. */
  readonly movedMs: number | null;
}

export interface CursorSlot {
  readonly sequence: number;
  readonly groupId: string;
  readonly cursors: readonly Cursor[];
}

const hex128 = z.string().regex(/^[0-9a-f]{32}$/);
const word = z.number().int().nonnegative().max(0xffffffff);
const shape = z.strictObject({
  groupId: hex128,
  cursors: z.array(z.strictObject({
    name: z.string().regex(NAME_PATTERN),
    position: z.strictObject({ epochId: hex128, lsn: z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER), chainHi: word, chainLo: word }),
    createdMs: z.number(),
    movedMs: z.number().nullable(),
  })).max(MAX_CURSORS),
});

/** A whole slot. */
export function encodeCursorSlot(slot: CursorSlot): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify({ groupId: slot.groupId, cursors: slot.cursors }));
  assert(TEXT_AT + text.length <= CURSOR_SLOT_BYTES, 'the cursors do not fit their slot');
  const bytes = new Uint8Array(CURSOR_SLOT_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, text.length, true);
  putU64(view, 16, slot.sequence);
  bytes.set(text, TEXT_AT);
  view.setUint32(4, crc32c(bytes, 8, TEXT_AT + text.length), true);
  return bytes;
}

/** The slot in bytes[0, 8192), or why there is none. */
export function decodeCursorSlot(bytes: Uint8Array): CursorSlot | string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(0, true) !== MAGIC) return 'no slot of cursors (wrong magic)';
  const length = view.getUint32(12, true);
  if (length > CURSOR_SLOT_BYTES - TEXT_AT) return `a text of ${length} bytes`;
  if (crc32c(bytes, 8, TEXT_AT + length) !== view.getUint32(4, true)) return 'its checksum differs';
  const version = view.getUint32(8, true);
  if (version !== VERSION) return `format ${version}; this version reads format ${VERSION}`;
  let raw: unknown;
  try {
    raw = JSON.parse(new TextDecoder().decode(bytes.subarray(TEXT_AT, TEXT_AT + length)));
  } catch {
    return 'not JSON';
  }
  const parsed = shape.safeParse(raw);
  if (!parsed.success) return `unexpected content (${parsed.error.issues[0].path.join('.')}: ${parsed.error.issues[0].message})`;
  return { sequence: getU64(view, 16), ...parsed.data };
}

/** The newest slot on disk; undefined when the group never had a cursor. Blocking. Throws CorruptionError, IoError. */
export function readCursors(io: Io, directory: string, groupId: string): CursorSlot | undefined {
  const path = `${directory}/${CURSOR_FILE}`;
  const fd = io.open(path, O.RDONLY | O.CLOEXEC, 0);
  if (fd === -Errno.ENOENT) return undefined;
  if (fd < 0) throw new IoError(-fd, 'open', path);
  // As with the journal: what a failed fdatasync left in the page cache is not what the disk holds.
  io.adviseDontNeed(fd, 0, 0);
  io.close(fd);
  const file = new Uint8Array(2 * CURSOR_SLOT_BYTES);
  file.set(readWholeFile(io, path, file.length));
  const slots = [0, 1].map((i) => file.subarray(i * CURSOR_SLOT_BYTES, (i + 1) * CURSOR_SLOT_BYTES));
  const found = slots.map(decodeCursorSlot);
  const good = found.filter((one) => typeof one !== 'string').sort((a, b) => b.sequence - a.sequence);
  if (good.length === 0) {
    if (slots.some((slot) => slot.every((byte) => byte === 0))) return undefined;
    throw new CorruptionError(path, 0, `neither slot of cursors can be read (${found.join('; ')}). To give all cursors of the group up, move the file away`);
  }
  if (good[0].groupId !== groupId) throw new CorruptionError(path, 0, `these cursors belong to group ${good[0].groupId}, not to ${groupId}`);
  return good[0];
}
