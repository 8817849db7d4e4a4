/**
 * The records of a group's local journal: what happened to devices that exist on
 * this node only (DESIGN §1). msgpack maps, each the body of a marker, checked
 * with zod when they are read back.
 *
 * Owns: the shapes. Must not know: what a record does, or when it counts.
 */

import { pack, unpack } from 'msgpackr';
import { z } from 'zod';
import { LOCAL_DEVICES } from '../../base/units.js';

const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const id = z.number().int().positive().max(0xffffffff);
const localId = z.number().int().min(LOCAL_DEVICES).max(0xffffffff);

/** The place in the group's history behind which a record stands: all records below it were executed, and none above. */
const follows = z.strictObject({ epochId: z.string().regex(/^[0-9a-f]{32}$/), lsn: count });

/**
 * A new device `id` becomes what `source` is. `follows` is null when the source
 * is a local device itself: then only the order of this journal matters.
 */
const snapshot = z.strictObject({
  op: z.literal('snapshot'), id: localId, source: id, name: z.string().min(1).max(129), volume: id, follows: follows.nullable(), wallMs: count,
});
const assign = z.strictObject({ op: z.literal('assign'), target: localId, source: id, follows: follows.nullable(), wallMs: count });
const remove = z.strictObject({ op: z.literal('remove'), device: localId });
/** Nothing is written to the device from here on; with its content digest once that is known, '' before. */
const seal = z.strictObject({ op: z.literal('seal'), device: localId, digest: z.string().regex(/^([0-9a-f]{32})?$/) });
const unseal = z.strictObject({ op: z.literal('unseal'), device: localId });
/** A marker made the device a replicated one: records behind this one are not executed before the marker. */
const adopted = z.strictObject({ op: z.literal('adopted'), device: localId, follows });
/** The group position that the device's content follows can not be undone any more: it may be used. */
const ready = z.strictObject({ op: z.literal('ready'), device: localId });

/** Blocks that were written through to the devices' layers, or zeroed: [device, first block, blocks, 0 written | 1 zeroed] each, flat. */
const write = z.strictObject({ op: z.literal('write'), extents: z.array(count) });

/** The layers' files hold, durably, what records below `upTo` say of them. */
const barrier = z.strictObject({ op: z.literal('barrier'), upTo: count });
/** Records from `from` on and below `to` do not count: power loss may have taken what they speak of, or the group's history is another one. */
const dropped = z.strictObject({ op: z.literal('dropped'), from: count, to: count });
/** Opened under this boot of the kernel: as long as it is the same, the page cache has what was appended. */
const opened = z.strictObject({ op: z.literal('opened'), bootId: z.string() });

const LocalRecord = z.discriminatedUnion('op', [snapshot, assign, remove, ready, seal, unseal, adopted, write, barrier, dropped, opened]);
export type LocalRecord = z.infer<typeof LocalRecord>;
export type Follows = z.infer<typeof follows>;

/** Numbers per extent. */
export const EXTENT_COLUMNS = 4;
/** Extents in one record: with 22 bytes each at most, its body stays far below the limit of a marker. */
export const MAX_EXTENTS = 1024;

export function encodeLocal(record: LocalRecord): Uint8Array {
  return pack(record);
}

/** The record in `bytes`, or what is wrong with them. */
export function decodeLocal(bytes: Uint8Array): LocalRecord | string {
  let raw: unknown;
  try {
    raw = unpack(bytes);
  } catch (error) {
    return `not msgpack (${error instanceof Error ? error.message : String(error)})`;
  }
  const parsed = LocalRecord.safeParse(raw);
  if (!parsed.success) return 'a record that this version does not know';
  if (parsed.data.op === 'write' && parsed.data.extents.length % EXTENT_COLUMNS !== 0) return 'extents that are cut off';
  return parsed.data;
}
