/**
 * The bodies of markers: which operations there are and how they are written
 * down (DESIGN §4). msgpack maps, checked with zod when they come from a disk or
 * a peer.
 *
 * Owns: the shapes. Must not know: what an operation does (tree.ts, the store).
 */

import { pack, unpack } from 'msgpackr';
import { z } from 'zod';
import { unreachable } from '../../base/assert.js';
import { NAME_PATTERN } from '../../base/names.js';
import { BLOCK_BYTES, LOCAL_DEVICES, MAX_DEVICE_BYTES, MAX_RANGES } from '../../base/units.js';
import { decodeSums, encodeSums, FIELD_SUMS_BYTES } from './fieldsums.js';
import type { FieldSums } from './fieldsums.js';

/** Ids from LOCAL_DEVICES on are of one node only. */
const id = z.number().int().positive().max(LOCAL_DEVICES - 1);
const sizeBytes = z.number().int().positive().multipleOf(BLOCK_BYTES).max(MAX_DEVICE_BYTES);
const hex128 = z.string().regex(/^[0-9a-f]{32}$/);
const name = z.string().regex(NAME_PATTERN);
/** '' = none. */
const setName = z.union([z.literal(''), name]);
/** Longest reason of an epoch; longer ones are cut by who begins it. */
export const MAX_REASON = 400;

/** Raised by every promotion and every start of a primary that is not a proven clean stop. First record of its epoch. */
const epoch = z.strictObject({
  op: z.literal('epoch'),
  number: z.number().int().positive().max(0xffffffff),
  id: hex128,
  /** Who is primary in it. */
  node: z.string().min(1).max(64),
  lossless: z.boolean(),
  /** Why it began, one sentence. */
  reason: z.string().max(MAX_REASON),
});

const create = z.strictObject({ op: z.literal('create'), id, name, sizeBytes });

/** Most devices that one marker snapshots, assigns, renames or protects: the volumes of a group. */
export const MAX_TOGETHER = 256;
/** Most devices that one marker removes. */
export const MAX_REMOVED = 4096;
const position = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);

/** One or more snapshots at one point of the stream. With a `set` they are a group snapshot of that name. */
const snapshot = z.strictObject({
  op: z.literal('snapshot'),
  set: setName,
  snapshots: z.array(z.strictObject({ id, source: id, name })).min(1).max(MAX_TOGETHER),
});

/**
 * Each target becomes what its source is; `verb` is what the operator called it.
 * `ranges`: pairs (offset, length) in bytes, ascending and apart, of the one
 * pair; none = the whole device.
 */
const assign = z.strictObject({
  op: z.literal('assign'),
  verb: z.enum(['restore', 'refresh', 'sync']),
  pairs: z.array(z.strictObject({ target: id, source: id })).min(1).max(MAX_TOGETHER),
  ranges: z.array(z.tuple([position, position])).max(MAX_RANGES),
});

const resize = z.strictObject({ op: z.literal('resize'), device: id, sizeBytes });

/** In this order: a volume after its snapshots. */
const remove = z.strictObject({ op: z.literal('remove'), devices: z.array(id).min(1).max(MAX_REMOVED) });

/** `set`: the name of the renamed members' set from now on; '' for single devices, which keep theirs. */
const rename = z.strictObject({ op: z.literal('rename'), set: setName, devices: z.array(id).min(1).max(MAX_TOGETHER), name });

const protect = z.strictObject({ op: z.literal('protect'), devices: z.array(id).min(1).max(MAX_TOGETHER), on: z.boolean() });

/** A new volume with the content of another device; independent of it from then on. */
const clone = z.strictObject({ op: z.literal('clone'), id, source: id, name });

/** The local snapshot `local` of every node, whose content has this digest (base/content-digest.ts), becomes the snapshot `name` of `source`. */
const adopt = z.strictObject({ op: z.literal('adopt'), id, source: id, name, local: z.string().min(1).max(129), digest: hex128, sizeBytes });

export const Operation = z.discriminatedUnion('op', [epoch, create, snapshot, assign, resize, remove, rename, protect, clone, adopt]);
export type Operation = z.infer<typeof Operation>;
export type EpochOperation = z.infer<typeof epoch>;
export type Range = readonly [offset: number, length: number];

/** What a marker says of the logical tree after its operation (tree.ts). */
export interface Proof {
  readonly digest: string;
  /** For the sentence when the digest differs (differs.ts); markers of before there were any have none. */
  readonly sums?: FieldSums;
}

export interface Marker extends Proof {
  readonly operation: Operation;
  /** Wall clock of the primary, ms since 1970. */
  readonly wallMs: number;
}

/** Operation, time, digest, field sums. */
const envelope = z.strictObject({
  o: z.unknown(), t: z.number().int().nonnegative(), d: hex128,
  f: z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.length === FIELD_SUMS_BYTES).optional(),
});

export function encodeMarker({ operation, wallMs, digest, sums }: Marker): Uint8Array {
  return pack({ o: operation, t: wallMs, d: digest, ...(sums === undefined ? {} : { f: encodeSums(sums) }) });
}

/**
 * The marker in `bytes`, or a sentence fragment: not a marker at all, or an
 * operation that this version does not know. Then the applier stops; it never
 * skips and never guesses.
 */
export function decodeMarker(bytes: Uint8Array): Marker | string {
  let raw: unknown;
  try {
    raw = unpack(bytes);
  } catch (error) {
    return `its body is not msgpack (${error instanceof Error ? error.message : String(error)})`;
  }
  const outer = envelope.safeParse(raw);
  if (!outer.success) return 'its body is not a marker';
  const operation = Operation.safeParse(outer.data.o);
  if (!operation.success) {
    const named = (outer.data.o as { op?: unknown } | null)?.op;
    return `it is an operation that this version does not know (${typeof named === 'string' && NAME_PATTERN.test(named) ? named : 'unnamed'})`;
  }
  const { t, d, f } = outer.data;
  return { operation: operation.data, wallMs: t, digest: d, ...(f === undefined ? {} : { sums: decodeSums(f) }) };
}

/** Of an epoch whose record names no node in a way that this version understands. */
export const UNKNOWN_NODE = 'unknown';

/**
 * Whose an epoch is, from a record in `bytes` that this version may not know: only what it says plainly. Where it says
 * nothing, the epoch counts as another node's, of which nothing is undone, and as one before which something was lost.
 */
export function claimedEpoch(bytes: Uint8Array): Pick<EpochOperation, 'node' | 'lossless'> {
  let raw: unknown;
  try {
    raw = unpack(bytes);
  } catch {
    // Whatever it is: nothing of it is executed, and decodeMarker has said so.
    raw = undefined;
  }
  const claims = z.object({ o: z.object({ node: z.string().regex(NAME_PATTERN), lossless: z.boolean().catch(false) }) }).safeParse(raw);
  return claims.success ? claims.data.o : { node: UNKNOWN_NODE, lossless: false };
}

/** The code of markers is warm in this process. */
let warm = false;

/**
 * Runs the code of a marker a few times on nothing: the first marker of a
 * process would otherwise spend milliseconds of the data thread in cold code.
 */
export function warmUpMarkers(rehearse: (operation: Operation) => Proof): void {
  if (warm) return;
  warm = true;
  for (let i = 0; i < 30; i++) {
    const operations: Operation[] = [
      { op: 'create', id: 1, name: 'warm', sizeBytes: 4096 }, { op: 'snapshot', set: '', snapshots: [{ id: 2, source: 1, name: `s${i}` }] },
      { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: 2 }], ranges: [] }, { op: 'assign', verb: 'sync', pairs: [{ target: 1, source: 2 }], ranges: [[0, 4096]] },
      { op: 'clone', id: 3, source: 2, name: 'clone' }, { op: 'rename', set: '', devices: [3], name: 'other' }, { op: 'protect', devices: [2], on: true },
      { op: 'protect', devices: [2], on: false }, { op: 'resize', device: 3, sizeBytes: 8192 }, { op: 'remove', devices: [2] },
    ];
    for (const operation of operations) decodeMarker(encodeMarker({ operation, wallMs: i, ...rehearse(operation) }));
  }
}

/** What a person calls the operation, in dumps and logs. */
export function operationVerb(operation: Operation): string {
  if (operation.op === 'assign') return operation.verb;
  return operation.op === 'protect' && !operation.on ? 'unprotect' : operation.op;
}

/** Ids of the devices that an operation makes, changes or removes. */
export function devicesOf(operation: Operation): readonly number[] {
  switch (operation.op) {
    case 'epoch':
      return [];
    case 'create':
    case 'clone':
    case 'adopt':
      return [operation.id];
    case 'snapshot':
      return operation.snapshots.map((one) => one.id);
    case 'assign':
      return operation.pairs.map((pair) => pair.target);
    case 'resize':
      return [operation.device];
    case 'remove':
    case 'rename':
    case 'protect':
      return operation.devices;
    default:
      return unreachable(operation);
  }
}
