/**
 * The bodies of markers: which operations there are and how they are written
 * down (DESIGN §4). msgpack maps, checked with zod when they come from a disk or
 * a peer.
 *
 * Owns: the shapes. Must not know: what an operation does (tree.ts, the store).
 */

import { pack, unpack } from 'msgpackr';
import { z } from 'zod';

const id = z.number().int().positive().max(0xffffffff);
const hex128 = z.string().regex(/^[0-9a-f]{32}$/);
const name = z.string().min(1).max(64);
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

const create = z.strictObject({ op: z.literal('create'), id, name, sizeBytes: z.number().int().positive() });

/** One or more snapshots at one point of the stream. */
const snapshot = z.strictObject({
  op: z.literal('snapshot'),
  snapshots: z.array(z.strictObject({ id, source: id, name })).min(1).max(256),
});

/** The target becomes what the source is; `verb` is what the operator called it. */
const assign = z.strictObject({ op: z.literal('assign'), verb: z.enum(['restore', 'refresh', 'sync']), target: id, source: id });

/** In this order: a volume after its snapshots. */
/** Most devices that one marker removes. */
export const MAX_REMOVED = 4096;
const remove = z.strictObject({ op: z.literal('remove'), devices: z.array(id).min(1).max(MAX_REMOVED) });

export const Operation = z.discriminatedUnion('op', [epoch, create, snapshot, assign, remove]);
export type Operation = z.infer<typeof Operation>;
export type EpochOperation = z.infer<typeof epoch>;

export interface Marker {
  readonly operation: Operation;
  /** Wall clock of the primary, ms since 1970. */
  readonly wallMs: number;
  /** Digest of the logical tree after the operation (tree.ts). */
  readonly digest: string;
}

const envelope = z.strictObject({ o: z.unknown(), t: z.number().int().nonnegative(), d: hex128 });

export function encodeMarker(marker: Marker): Uint8Array {
  return pack({ o: marker.operation, t: marker.wallMs, d: marker.digest });
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
    return `it is an operation that this version does not know (${typeof named === 'string' ? named : 'unnamed'})`;
  }
  return { operation: operation.data, wallMs: outer.data.t, digest: outer.data.d };
}

/**
 * Runs the code of a marker a few times on nothing: the first marker of a
 * process would otherwise spend milliseconds of the data thread in cold code.
 */
export function warmUpMarkers(rehearse: (operation: Operation) => string): void {
  for (let i = 0; i < 30; i++) {
    const operations: Operation[] = [
      { op: 'create', id: 1, name: 'warm', sizeBytes: 4096 }, { op: 'snapshot', snapshots: [{ id: 2, source: 1, name: `s${i}` }] },
      { op: 'assign', verb: 'restore', target: 1, source: 2 }, { op: 'remove', devices: [2] },
    ];
    for (const operation of operations) decodeMarker(encodeMarker({ operation, wallMs: i, digest: rehearse(operation) }));
  }
}

/** What a person calls the operation, in dumps and logs. */
export function operationVerb(operation: Operation): string {
  return operation.op === 'assign' ? operation.verb : operation.op;
}
