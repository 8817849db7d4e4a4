/**
 * What `status` shows of a node and its groups. Part of the one source of the
 * admin API's types (DESIGN §9, §10).
 *
 * Owns: names and shapes. Must not know: where the figures come from. Open, as
 * all replies (replies.ts).
 */

import { z } from 'zod';
import { DeviceEntry, MeteredSums, LinkEntry, CursorEntry, ImportState } from './replies.js';

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
    /** An operation with --halt makes them wait, for so long at most from now on; null: none does. */
    heldSeconds: z.number().int().nullable(),
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
export type GroupStatus = z.infer<typeof GroupStatus>;

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
export type NodeStatus = z.infer<typeof NodeStatus>;
