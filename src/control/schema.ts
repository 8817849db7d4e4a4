/**
 * The admin API in zod: the one source of its types (DESIGN §9, §10).
 *
 * Owns: names, shapes and limits of every resource, body, query and reply.
 * Must not know: HTTP, sockets, how an operation is done.
 *
 * Requests are strict: an unknown key is an error, so that a misspelt option
 * is never ignored. Replies are open: a newer daemon may say more than an
 * older client knows. All sizes, offsets and LSNs are bytes; times of day are
 * milliseconds since 1970; names end in their unit.
 */

import { z } from 'zod';
import { NAME_PATTERN, NAME_RULE, parseDeviceName, parseSetName } from '../base/names.js';
import { POSITION_RULE, parsePosition } from '../base/position.js';
import { BLOCK_BYTES, MAX_DEVICE_BYTES, formatSize, parseSize } from '../base/units.js';

// ---- words ------------------------------------------------------------------------------------------

export const Name = z.string(`must be ${NAME_RULE}`).regex(NAME_PATTERN, `must be ${NAME_RULE}`);

/** A device within a group. */
export const Device = z
  .string('must be VOLUME, VOLUME@SNAPSHOT or VOLUME~LOCAL')
  .refine((words) => parseDeviceName(words) !== undefined, `must be VOLUME, VOLUME@SNAPSHOT or VOLUME~LOCAL, each ${NAME_RULE}`);

/** A device within a group, or a group snapshot. */
export const DeviceOrSet = z
  .string('must be VOLUME, VOLUME@SNAPSHOT or @SET')
  .refine((words) => parseDeviceName(words) !== undefined || parseSetName(words) !== undefined, `must be VOLUME, VOLUME@SNAPSHOT or @SET, each ${NAME_RULE}`);

const rangeRule = `must be [offset, length] in bytes, whole multiples of ${BLOCK_BYTES}`;
const rangeNumber = z.number(rangeRule).int(rangeRule).nonnegative(rangeRule).max(MAX_DEVICE_BYTES, rangeRule).multipleOf(BLOCK_BYTES, rangeRule);
/** Parts of a device, ascending and apart; none = all of it. */
export const Ranges = z.array(z.tuple([rangeNumber, rangeNumber], rangeRule)).max(1024).default([]);

export const LsnNumber = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);

const sizeRule = `must be a size such as "10G" or 10737418240, a multiple of ${BLOCK_BYTES}, from ${BLOCK_BYTES} to ${formatSize(MAX_DEVICE_BYTES)}`;

/** Size of a device: bytes, or words such as "10G". Becomes bytes. */
export const DeviceSize = z
  .union([z.number(), z.string()], sizeRule)
  .transform((value, context) => {
    const bytes = typeof value === 'number' ? value : parseSize(value);
    if (bytes !== undefined && Number.isSafeInteger(bytes) && bytes % BLOCK_BYTES === 0 && bytes >= BLOCK_BYTES && bytes <= MAX_DEVICE_BYTES) return bytes;
    context.addIssue({ code: 'custom', message: sizeRule });
    return z.NEVER;
  });

/**
 * How far an operation must have come before it is answered: its marker
 * `durable` in this node's journal, or `applied` by every secondary too.
 */
export const Wait = z.enum(['durable', 'applied'], 'must be "durable" or "applied"');

const waiting = {
  wait: Wait.default('durable'),
  /** How long to wait for `applied`; the operation stays done when the time is over. */
  waitSeconds: z.number().positive().max(86_400).default(60),
  /** Not in passing: writers are held until every secondary has executed it; refused when one does not come along within `waitSeconds`. */
  halt: z.boolean().optional(),
};

// ---- request bodies ---------------------------------------------------------------------------------

/** POST /v1/groups/{group}/volumes */
export const CreateVolumeBody = z.strictObject({ name: Name, size: DeviceSize, ...waiting });

const force = z.boolean().default(false);

/** POST /v1/groups/{group}/snapshots: `source@name` of a volume's source, `volume@name` of a snapshot's; without source the set `@name` of all volumes. */
export const SnapshotBody = z.strictObject({
  source: Device.nullable().default(null), name: Name,
  /** On this node only, primary or secondary: VOLUME~NAME. */
  local: z.boolean().optional(), ...waiting,
});

/** POST /v1/groups/{group}/restore: `target` becomes what `source` is; without target, the source being a set, all its volumes. */
export const RestoreBody = z.strictObject({ target: Device.nullable().default(null), source: DeviceOrSet, ranges: Ranges, force, ...waiting });

/** POST /v1/groups/{group}/refresh */
export const RefreshBody = z.strictObject({ target: DeviceOrSet, force, ...waiting });

/** POST /v1/groups/{group}/sync */
export const SyncBody = z.strictObject({ target: Device, source: Device, ranges: Ranges, force, ...waiting });

/** POST /v1/groups/{group}/resize */
export const ResizeBody = z.strictObject({ device: Device, size: DeviceSize, force, ...waiting });

/** POST /v1/groups/{group}/rename */
export const RenameBody = z.strictObject({ device: DeviceOrSet, name: Name, force, ...waiting });

/** POST /v1/groups/{group}/protect and /unprotect */
export const ProtectBody = z.strictObject({ device: DeviceOrSet, force, ...waiting });

/** POST /v1/groups/{group}/clone */
export const CloneBody = z.strictObject({ source: Device, name: Name, ...waiting });

/** POST /v1/groups/{group}/adopt: the sealed local snapshot VOLUME~NAME of every node becomes VOLUME@name. */
export const AdoptBody = z.strictObject({ local: Device, name: Name, force, ...waiting });

/** POST /v1/groups/{group}/seal, on each node: makes a local snapshot read-only; again, with `known`, notes the digest of its content. */
export const SealBody = z.strictObject({
  device: Device,
  known: z.strictObject({ digest: z.string().regex(/^[0-9a-f]{32}$/, 'must be 32 hexadecimal digits'), sealedLsn: LsnNumber }).nullable().default(null),
  /** Make it writable again instead. */
  undo: z.boolean().default(false),
  force,
});

/** DELETE /v1/groups/{group}/devices/{device}; a query, hence words. */
export const RemoveQuery = z.strictObject({
  withSnapshots: z.stringbool().default(false),
  force: z.stringbool().default(false),
  wait: Wait.default('durable'),
  waitSeconds: z.coerce.number().positive().max(86_400).default(60),
  halt: z.stringbool().optional(),
});

/** POST /v1/groups/{group}/promote */
export const PromoteBody = z.strictObject({
  /** Promote although the primary is still connected, or although records that were received cannot be applied. */
  force: z.boolean().default(false),
});

/** POST /v1/groups/{group}/flush */
export const FlushBody = z.strictObject({
  /** `durable`: all that is appended now. `destaged`: and in the layers' files. `checkpoint`: and named by a committed checkpoint. */
  upTo: z.enum(['durable', 'destaged', 'checkpoint'], 'must be "durable", "destaged" or "checkpoint"').default('durable'),
});

/** GET /v1/groups/{group}/journal; `from` defaults to the oldest retained record, `to` to the last appended. */
export const JournalQuery = z.strictObject({
  from: z.coerce.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER).optional(),
  to: z.coerce.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER).optional(),
  follow: z.stringbool().default(false),
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
  follow: z.boolean().default(false),
});

/** POST /v1/groups/{group}/cursors/{cursor}/ack */
export const CursorAckBody = z.strictObject({ position: PositionText });

/** POST /v1/groups/{group}/drain */
export const DrainBody = z.strictObject({ waitSeconds: z.number().positive().max(86_400).default(60) });

// ---- replies ----------------------------------------------------------------------------------------

/** Four kinds of DESIGN §12, and `bug` for anything else. */
export const ErrorKind = z.enum(['operator', 'corruption', 'peer', 'io', 'bug']);

/** Body of every reply that is not 2xx. */
export const ErrorReply = z.object({
  error: z.object({ code: z.string(), message: z.string(), kind: ErrorKind.default('bug') }),
});

export const DeviceEntry = z.object({
  /** Never reused within the group, equal on every node; of a local snapshot, on this node. */
  id: z.number().int(),
  /** VOLUME, VOLUME@SNAPSHOT or VOLUME~LOCAL. */
  name: z.string(),
  /** `local`: a snapshot that exists on this node only. */
  kind: z.enum(['volume', 'snapshot', 'local']),
  /** Id of the device that it was taken from; null at the top. */
  parent: z.number().int().nullable(),
  sizeBytes: z.number(),
  protected: z.boolean(),
  /** The group snapshot that it belongs to; null = none. */
  set: z.string().nullable(),
  creationLsn: z.number(),
  creationTimeMs: z.number(),
  /** Position of the last record that broke continuity (DESIGN §8), as clients see it. */
  continuity: z.string(),
  /** NBD connections that have it open, on this node. */
  clients: z.number().int(),
  /** Of a local snapshot that is sealed; `digest` null: it was not noted yet. */
  seal: z.object({ digest: z.string().nullable() }).optional(),
});

export const DevicesReply = z.object({ group: z.string(), lsn: z.number(), devices: z.array(DeviceEntry) });

/** Exact for the state at `lsn`. */
export const SizesReply = z.object({
  group: z.string(),
  lsn: z.number(),
  /** What all devices together use: a block that several share counts once. */
  storedBytes: z.number(),
  devices: z.array(z.object({
    id: z.number().int(),
    /** Written and not trimmed; own + shared. */
    usedBytes: z.number(),
    /** Of these, what no other device refers to: removing it alone gives back so much. */
    ownBytes: z.number(),
    sharedBytes: z.number(),
  })),
  /** How long counting took. */
  tookUs: z.number(),
});

/** Reply of every operation that is a marker. */
export const OperationReply = z.object({
  /** Position of the marker; of an operation on a local snapshot, the group's position that it follows. */
  lsn: z.number(),
  /** The device that was created or changed; null after a removal. Of several, the first. */
  device: DeviceEntry.nullable(),
  /** All devices that were created or changed. */
  devices: z.array(DeviceEntry),
  /** Time that the data thread spent in it, without waiting. */
  dataThreadUs: z.number(),
  /** What was reached before the reply. */
  waited: Wait,
  /** A sentence when `waited` is less than what was asked for: who is behind, and why. */
  notice: z.string().nullable(),
});

/** What one operation cost on this node (DESIGN §4). */
export const MeteredEntry = z.object({
  /** Position of its marker. */
  lsn: z.number(),
  timeMs: z.number(),
  verb: z.string(),
  /** Names of the devices, for people. */
  what: z.string(),
  /** Ids of the devices that it made, changed or removed; of very many only the first. */
  devices: z.array(z.number().int()),
  changedBytes: z.number(),
  /** `exact`; `counting`: an upper bound that is being made exact; `bound`: an upper bound that stays. */
  changed: z.enum(['exact', 'counting', 'bound']),
  /** By peer: what its marker put on that link, sent here on the primary, received on a secondary. */
  wireBytes: z.record(z.string(), z.number()),
  /** Time that the data thread of this node spent in it. */
  dataThreadUs: z.number(),
});

/** The newest operations, newest last, and sums per verb since the daemon started. */
export const OperationsReply = z.object({
  group: z.string(),
  operations: z.array(MeteredEntry),
  totals: z.array(z.object({ verb: z.string(), operations: z.number().int(), changedBytes: z.number(), wireBytes: z.record(z.string(), z.number()), dataThreadUs: z.number() })),
});

/** Sums over all operations since the daemon started. */
export const MeteredSums = z.object({
  performed: z.number().int(),
  changedBytes: z.number(),
  /** On all links together. */
  wireBytes: z.number(),
  dataThreadUs: z.number(),
  /** The longest single one. */
  longestUs: z.number(),
  last: MeteredEntry.nullable(),
});

export const SealReply = z.object({
  device: DeviceEntry,
  /** LSN in the local journal of the record that sealed it; 0 = it is not sealed. */
  sealedLsn: z.number(),
  /** Content digest (32 hexadecimal digits); null when it was not noted yet. */
  digest: z.string().nullable(),
});

export const PromoteReply = z.object({
  lsn: z.number(),
  epoch: z.object({ number: z.number().int(), id: z.string(), lossless: z.boolean() }),
  /** A sentence when something was given up, such as records received and not applied. */
  notice: z.string().nullable(),
});

export const FlushReply = z.object({ lsn: z.number(), upTo: z.string() });

/** What went on the wire and how far the peer has come. */
export const LinkEntry = z.object({
  peer: z.string(),
  /** `to`: this node is the primary of it. `from`: this node is the secondary. */
  role: z.enum(['to', 'from']),
  mode: z.enum(['async', 'flush', 'sync', 'periodic']),
  state: z.enum([
    'connecting', // no connection now; trying, with back-off
    'hello', // connected; authenticating and comparing histories
    'catching-up', // streaming what the peer missed
    'streaming', // the peer has all but what is on the way
    'refused', // one side does not accept the other; `reason` says why
    'dropped', // an operator dropped it; nothing is retained for it
    'waiting', // `from` only: waits for the primary to connect
  ]),
  /** One sentence; empty when there is nothing to explain. */
  reason: z.string(),
  /** LSNs. On a `from` link shipped = received. */
  shipped: z.number(),
  received: z.number(),
  durable: z.number(),
  applied: z.number(),
  /** How much is appended on the primary and not applied on the secondary. */
  lagBytes: z.number(),
  /** Age of the oldest record not applied there; 0 when there is none. */
  lagSeconds: z.number(),
  /** Bytes sent and received on the wire since the daemon started, headers included. */
  wireBytes: z.number(),
  reconnects: z.number().int(),
});

/** A reader of the journal outside of Lockstep (`lockstep journal export`). */
export const CursorEntry = z.object({
  name: z.string(),
  /** EPOCHID:LSN:CHAIN up to which everything was acknowledged. */
  position: z.string(),
  lsn: z.number(),
  /** Appended here and not acknowledged. */
  behindBytes: z.number(),
  /** Journal that nothing but cursors and links need any more, from this one on. */
  retainedBytes: z.number(),
  createdMs: z.number(),
  /** When it was moved last; null = never. */
  movedMs: z.number().nullable(),
});

/** How far an import has come; one line of its answer. */
export const ImportState = z.object({
  /** EPOCHID:LSN:CHAIN up to which this node's journal is durable: what may be acknowledged. */
  position: z.string(),
  receivedLsn: z.number(),
  appliedLsn: z.number(),
  /** The exporting node; null until the stream has said it. */
  from: z.string().nullable(),
  /** The input ended where a stream does, and was not cut off. */
  whole: z.boolean(),
  /** The journal here is full: nothing is taken now. */
  full: z.boolean(),
});

export const PositionReply = z.object({ group: z.string(), position: z.string(), lsn: z.number() });

export const CursorReleaseReply = z.object({
  cursor: z.string(),
  /** Journal bytes that nothing but this cursor retained. */
  freedBytes: z.number(),
  lsn: z.number(),
});

export const DrainReply = z.object({
  lsn: z.number(),
  drained: z.boolean(),
  /** Who has not confirmed everything below `lsn`, and why, a sentence each. */
  behind: z.array(z.string()),
});

export const LinksReply = z.object({ group: z.string(), links: z.array(LinkEntry) });

export const LinkDropReply = z.object({
  peer: z.string(),
  /** Journal bytes that nothing but this link retained. */
  freedBytes: z.number(),
  /** Position from which the peer would have had to be served. */
  lsn: z.number(),
});

export const GroupStatus = z.object({
  name: z.string(),
  role: z.enum([
    'starting', // recovering, or waiting for peers after an unclean stop
    'primary', // serves and appends
    'secondary', // follows a primary; devices are read-only
    'fenced', // met a higher epoch: serves nothing, waits for an operator
    'stopped', // an error ended it; `errors` says which
  ]),
  /** Why it is in that role, one sentence. */
  roleReason: z.string(),
  epoch: z.object({ number: z.number().int(), id: z.string(), lossless: z.boolean() }),
  /** How far records have come (DESIGN §2), and the two positions that hold the journal's tail. */
  lsn: z.object({
    appended: z.number(),
    durable: z.number(),
    applied: z.number(),
    stable: z.number(),
    checkpoint: z.number(),
    /** Oldest position still needed. */
    lowWater: z.number(),
  }),
  journal: z.object({
    sizeBytes: z.number(),
    usedBytes: z.number(),
    segments: z.number().int(),
    /** Why writers wait, naming who retains the journal; null when they do not. */
    stalled: z.string().nullable(),
    /** It lies in memory. */
    volatile: z.boolean(),
    /** What a power loss now would take; of a volatile journal: and make all data of the node unknown. */
    atRiskBytes: z.number(),
  }),
  destage: z.object({
    pendingBlocks: z.number(),
    pendingBytes: z.number(),
    roundsDone: z.number(),
    /** Journal bytes between the oldest pending block and the end. */
    behindBytes: z.number(),
  }),
  store: z.object({
    mapBytes: z.number(),
    mapLimitBytes: z.number(),
    metadataBytesWritten: z.number(),
    layers: z.number().int(),
    /** What a restart after a crash would take to replay, estimated. */
    replaySecondsEstimate: z.number(),
    freeBytes: z.number(),
    /** "open", or a sentence that says why new writes are answered ENOSPC. */
    admission: z.string(),
  }),
  operations: MeteredSums,
  links: z.array(LinkEntry),
  cursors: z.array(CursorEntry).default([]),
  /** A stream that is being imported now; null when there is none. */
  import: ImportState.nullable().default(null),
  devices: z.array(DeviceEntry),
  /** What is wrong now, each a sentence that says what to do; newest last. */
  errors: z.array(z.string()),
});

export const NodeStatus = z.object({
  node: z.string(),
  version: z.string(),
  pid: z.number().int(),
  startedMs: z.number(),
  dataDirectory: z.string(),
  /** Addresses as bound ("tcp:127.0.0.1:10809"), a port 0 of the config resolved. */
  listen: z.object({ nbd: z.array(z.string()), link: z.string().nullable() }),
  groups: z.array(GroupStatus),
});

export const VersionReply = z.object({ name: z.literal('lockstep'), version: z.string(), api: z.literal('v1') });

/** One line of the journal stream; one that failed half-way ends with an ErrorReply instead, for a 200 cannot be taken back. */
export const JournalRecord = z.object({
  lsn: z.number(),
  /** "write", "zero", a marker's verb, "epoch", "jump", "batch", "padding". */
  kind: z.string(),
  /** Device id; null where the record is about no device. */
  device: z.number().int().nullable(),
  offset: z.number().nullable(),
  length: z.number().nullable(),
  epoch: z.number().int(),
  /** Decoded body of a marker, epoch or jump record: plain JSON. */
  body: z.record(z.string(), z.unknown()).nullable(),
});

// ---- types ------------------------------------------------------------------------------------------

export type Wait = z.infer<typeof Wait>;
export type ErrorKind = z.infer<typeof ErrorKind>;
export type ErrorReply = z.infer<typeof ErrorReply>;
export type DeviceEntry = z.infer<typeof DeviceEntry>;
export type DevicesReply = z.infer<typeof DevicesReply>;
export type SizesReply = z.infer<typeof SizesReply>;
export type MeteredEntry = z.infer<typeof MeteredEntry>;
export type MeteredSums = z.infer<typeof MeteredSums>;
export type OperationsReply = z.infer<typeof OperationsReply>;
export type OperationReply = z.infer<typeof OperationReply>;
export type SealReply = z.infer<typeof SealReply>;
export type PromoteReply = z.infer<typeof PromoteReply>;
export type FlushReply = z.infer<typeof FlushReply>;
export type LinkEntry = z.infer<typeof LinkEntry>;
export type CursorEntry = z.infer<typeof CursorEntry>;
export type ImportState = z.infer<typeof ImportState>;
export type PositionReply = z.infer<typeof PositionReply>;
export type CursorReleaseReply = z.infer<typeof CursorReleaseReply>;
export type DrainReply = z.infer<typeof DrainReply>;
export type LinksReply = z.infer<typeof LinksReply>;
export type LinkDropReply = z.infer<typeof LinkDropReply>;
export type GroupStatus = z.infer<typeof GroupStatus>;
export type NodeStatus = z.infer<typeof NodeStatus>;
export type VersionReply = z.infer<typeof VersionReply>;
export type JournalRecord = z.infer<typeof JournalRecord>;
export type CreateVolumeBody = z.output<typeof CreateVolumeBody>;
export type SnapshotBody = z.output<typeof SnapshotBody>;
export type RestoreBody = z.output<typeof RestoreBody>;
export type RefreshBody = z.output<typeof RefreshBody>;
export type SyncBody = z.output<typeof SyncBody>;
export type ResizeBody = z.output<typeof ResizeBody>;
export type RenameBody = z.output<typeof RenameBody>;
export type ProtectBody = z.output<typeof ProtectBody>;
export type CloneBody = z.output<typeof CloneBody>;
export type FlushBody = z.output<typeof FlushBody>;
