/**
 * Bodies and queries of the admin API. Part of the one source of its types
 * (DESIGN §9, §10).
 *
 * Owns: names, shapes and limits. Must not know: HTTP, sockets, how an operation
 * is done. Requests are strict: an unknown key is an error, so that a misspelt
 * option is never ignored.
 */

import { z } from 'zod';
import { POSITION_RULE, parsePosition } from '../../base/position.js';
import { Name, Device, DeviceOrSet, DeviceSize, Flag, FlagWord, LsnNumber, LsnWord, Ranges, Wait, WaitSeconds, WaitSecondsWord } from './words.js';

const waiting = {
  wait: Wait.default('durable'),
  /** How long to wait for `applied`; the operation stays done when the time is over. */
  waitSeconds: WaitSeconds,
  /** Not in passing: writers are held until every secondary has executed it; refused when one does not come along within `waitSeconds`. */
  halt: Flag.optional(),
};

/** POST /v1/groups/{group}/volumes */
export const CreateVolumeBody = z.strictObject({ name: Name, size: DeviceSize, ...waiting });
export type CreateVolumeBody = z.output<typeof CreateVolumeBody>;

const force = Flag.default(false);

/** POST /v1/groups/{group}/snapshots: `source@name` of a volume's source, `volume@name` of a snapshot's; without source the set `@name` of all volumes. */
export const SnapshotBody = z.strictObject({
  source: Device.nullable().default(null), name: Name,
  /** On this node only, primary or secondary: VOLUME~NAME. */
  local: Flag.optional(),
  /** With `halt`: the writers go on, and the answer comes, when it is durable here, so that a freeze around it is no longer than that. */
  answerDurable: Flag.optional(), ...waiting,
});
export type SnapshotBody = z.output<typeof SnapshotBody>;

/** POST /v1/groups/{group}/restore: `target` becomes what `source` is; without target, the source being a set, all its volumes. */
export const RestoreBody = z.strictObject({ target: Device.nullable().default(null), source: DeviceOrSet, ranges: Ranges, force, ...waiting });
export type RestoreBody = z.output<typeof RestoreBody>;

/** POST /v1/groups/{group}/refresh */
export const RefreshBody = z.strictObject({ target: DeviceOrSet, force, ...waiting });
export type RefreshBody = z.output<typeof RefreshBody>;

/** POST /v1/groups/{group}/sync */
export const SyncBody = z.strictObject({ target: Device, source: Device, ranges: Ranges, force, ...waiting });
export type SyncBody = z.output<typeof SyncBody>;

/** POST /v1/groups/{group}/resize */
export const ResizeBody = z.strictObject({ device: Device, size: DeviceSize, force, ...waiting });
export type ResizeBody = z.output<typeof ResizeBody>;

/** POST /v1/groups/{group}/rename */
export const RenameBody = z.strictObject({ device: DeviceOrSet, name: Name, force, ...waiting });
export type RenameBody = z.output<typeof RenameBody>;

/** POST /v1/groups/{group}/protect and /unprotect */
export const ProtectBody = z.strictObject({ device: DeviceOrSet, force, ...waiting });
export type ProtectBody = z.output<typeof ProtectBody>;

/** POST /v1/groups/{group}/clone */
export const CloneBody = z.strictObject({ source: Device, name: Name, ...waiting });
export type CloneBody = z.output<typeof CloneBody>;

/** POST /v1/groups/{group}/adopt: the sealed local snapshot VOLUME~NAME of every node becomes VOLUME@name. */
export const AdoptBody = z.strictObject({ local: Device, name: Name, force, ...waiting });

const DIGEST_RULE = 'must be 32 hexadecimal digits';

/** POST /v1/groups/{group}/seal, on each node: makes a local snapshot read-only; again, with `known`, notes the digest of its content. */
export const SealBody = z.strictObject({
  device: Device,
  known: z.strictObject({ digest: z.string(DIGEST_RULE).regex(/^[0-9a-f]{32}$/, DIGEST_RULE), sealedLsn: LsnNumber }, 'must be an object of digest and sealedLsn').nullable().default(null),
  /** Make it writable again instead. */
  undo: Flag.default(false),
  force,
});

/** DELETE /v1/groups/{group}/devices/{device}; a query, hence words. */
export const RemoveQuery = z.strictObject({
  withSnapshots: FlagWord.default(false),
  force: FlagWord.default(false),
  wait: Wait.default('durable'),
  waitSeconds: WaitSecondsWord,
  halt: FlagWord.optional(),
});

/** POST /v1/groups/{group}/promote */
export const PromoteBody = z.strictObject({
  /** Promote although the primary is still connected, or although records that were received cannot be applied. */
  force: Flag.default(false),
});

/** POST /v1/groups/{group}/flush */
export const FlushBody = z.strictObject({
  /** `durable`: all that is appended now. `destaged`: and in the layers' files. `checkpoint`: and named by a committed checkpoint. */
  upTo: z.enum(['durable', 'destaged', 'checkpoint'], 'must be "durable", "destaged" or "checkpoint"').default('durable'),
});
export type FlushBody = z.output<typeof FlushBody>;

/** GET /v1/groups/{group}/journal; `from` defaults to the oldest retained record, `to` to the last appended. */
export const JournalQuery = z.strictObject({
  from: LsnWord.optional(),
  to: LsnWord.optional(),
  follow: FlagWord.default(false),
});

const PositionText = z.string(`must be ${POSITION_RULE}`).transform((text, context) => {
  const position = parsePosition(text);
  if (position !== undefined) return position;
  context.addIssue({ code: 'custom', message: `must be ${POSITION_RULE}` });
  return z.NEVER;
});

/** POST /v1/groups/{group}/journal/export */
export const ExportBody = z.strictObject({
  cursor: Name,
  /** Where a new cursor begins; default: at the oldest record that is retained. */
  from: z.union([LsnNumber, PositionText], `must be an LSN, or ${POSITION_RULE}`).optional(),
  /** Go on with records as they become durable. */
  follow: Flag.default(false),
});

/** POST /v1/groups/{group}/cursors/{cursor}/ack */
export const CursorAckBody = z.strictObject({ position: PositionText });

/** POST /v1/groups/{group}/drain */
export const DrainBody = z.strictObject({ waitSeconds: WaitSeconds });
