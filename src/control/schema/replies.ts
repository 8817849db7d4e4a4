/**
 * Replies of the admin API, but for `status` (status.ts). Part of the one source
 * of its types (DESIGN §9, §10).
 *
 * Owns: names and shapes. Must not know: HTTP, where the figures come from.
 * Replies are open: a newer daemon may say more than an older client knows.
 */

import { z } from 'zod';
import { Wait } from './words.js';

/** Four kinds of DESIGN §12, and `bug` for anything else. */
export const ErrorKind = z.enum(['operator', 'corruption', 'peer', 'io', 'bug']);
export type ErrorKind = z.infer<typeof ErrorKind>;

/** Body of every reply that is not 2xx. */
export const ErrorReply = z.object({
  error: z.object({ code: z.string(), message: z.string(), kind: ErrorKind.default('bug') }),
});
export type ErrorReply = z.infer<typeof ErrorReply>;

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
export type DeviceEntry = z.infer<typeof DeviceEntry>;

export const DevicesReply = z.object({ group: z.string(), lsn: z.number(), devices: z.array(DeviceEntry) });
export type DevicesReply = z.infer<typeof DevicesReply>;

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
export type SizesReply = z.infer<typeof SizesReply>;

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
  /** Of `applied`: the secondaries that have executed it, and who was not waited for (dropped links, cursors that are behind). */
  waitedFor: z.array(z.string()).default([]),
  passedOver: z.array(z.string()).default([]),
  /** A sentence when `waited` is less than what was asked for (who is behind, and why), or when more was done than was named. */
  notice: z.string().nullable(),
});
export type OperationReply = z.infer<typeof OperationReply>;

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
export type MeteredEntry = z.infer<typeof MeteredEntry>;

/** The newest operations, newest last, and sums per verb since the daemon started. */
export const OperationsReply = z.object({
  group: z.string(),
  operations: z.array(MeteredEntry),
  totals: z.array(z.object({ verb: z.string(), operations: z.number().int(), changedBytes: z.number(), wireBytes: z.record(z.string(), z.number()), dataThreadUs: z.number() })),
});
export type OperationsReply = z.infer<typeof OperationsReply>;

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
export type MeteredSums = z.infer<typeof MeteredSums>;

export const SealReply = z.object({
  device: DeviceEntry,
  /** LSN in the local journal of the record that sealed it; 0 = it is not sealed. */
  sealedLsn: z.number(),
  /** Content digest (32 hexadecimal digits); null when it was not noted yet. */
  digest: z.string().nullable(),
});
export type SealReply = z.infer<typeof SealReply>;

export const PromoteReply = z.object({
  lsn: z.number(),
  epoch: z.object({ number: z.number().int(), id: z.string(), lossless: z.boolean() }),
  /** A sentence when something was given up, such as records received and not applied. */
  notice: z.string().nullable(),
});
export type PromoteReply = z.infer<typeof PromoteReply>;

export const FlushReply = z.object({ lsn: z.number(), upTo: z.string() });
export type FlushReply = z.infer<typeof FlushReply>;

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
export type LinkEntry = z.infer<typeof LinkEntry>;

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
export type CursorEntry = z.infer<typeof CursorEntry>;

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
export type ImportState = z.infer<typeof ImportState>;

export const PositionReply = z.object({ group: z.string(), position: z.string(), lsn: z.number() });
export type PositionReply = z.infer<typeof PositionReply>;

export const CursorReleaseReply = z.object({
  cursor: z.string(),
  /** Journal bytes that nothing but this cursor retained. */
  freedBytes: z.number(),
  lsn: z.number(),
});
export type CursorReleaseReply = z.infer<typeof CursorReleaseReply>;

export const DrainReply = z.object({
  lsn: z.number(),
  drained: z.boolean(),
  /** Who has not confirmed everything below `lsn`, and why, a sentence each. */
  behind: z.array(z.string()),
  /** The links and cursors that count, and the links that do not, with why. */
  waitedFor: z.array(z.string()).default([]),
  passedOver: z.array(z.string()).default([]),
  /** A sentence where there is nothing to drain on this node; null otherwise. */
  notice: z.string().nullable().default(null),
});
export type DrainReply = z.infer<typeof DrainReply>;

export const LinksReply = z.object({ group: z.string(), links: z.array(LinkEntry) });
export type LinksReply = z.infer<typeof LinksReply>;

export const LinkDropReply = z.object({
  peer: z.string(),
  /** Journal bytes that nothing but this link retained. */
  freedBytes: z.number(),
  /** Position from which the peer would have had to be served. */
  lsn: z.number(),
});
export type LinkDropReply = z.infer<typeof LinkDropReply>;

export const VersionReply = z.object({ name: z.literal('lockstep'), version: z.string(), api: z.literal('v1') });
export type VersionReply = z.infer<typeof VersionReply>;

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
export type JournalRecord = z.infer<typeof JournalRecord>;
