/**
 * The port between the control server (main thread) and the data path
 * (worker): one request, one reply, all plain structured-cloneable data.
 *
 * Owns: the union of requests and what each is answered with. Must not know:
 * HTTP, zod at run time, how a request is carried out.
 *
 * Requests arrive validated: names follow base/names.ts, sizes are multiples
 * of 4096 within limits, numbers are safe integers. Whether what they name
 * exists, and whether it may be done now, only the data path knows.
 */

import type { CarryReplies, CarryRequest } from './carry.js';
import type { NodeStatus } from './schema/status.js';
import type {
  DevicesReply, ErrorKind, FlushReply, JournalRecord, LinkDropReply, LinksReply, OperationReply, OperationsReply, PromoteReply, SealReply, SizesReply,
} from './schema/replies.js';
import type { Wait } from './schema/words.js';

/** When to answer an operation. */
export interface Waiting {
  /** `applied` waits for the secondaries of the group too; with none it is the same as `durable`. */
  readonly wait: Wait;
  /** Longest wait for `applied`. When it is over: answer with waited 'durable' and a notice, not with an error. */
  readonly waitSeconds: number;
  /** Hold the writers, let every secondary apply what there is, execute, let every secondary execute it, let the writers go on. */
  readonly halt?: boolean | undefined;
}

/** Creates a volume of zeros. */
export interface CreateRequest extends Waiting {
  readonly op: 'create';
  readonly group: string;
  readonly name: string;
  readonly sizeBytes: number;
}

/**
 * Creates the snapshot VOLUME@name, VOLUME being that of `source`; what `source`
 * is at the marker becomes its content. Without a source: one of every volume of
 * the group, together the set @name.
 */
export interface SnapshotRequest extends Waiting {
  readonly op: 'snapshot';
  readonly group: string;
  /** A device; null = the whole group. */
  readonly source: string | null;
  readonly name: string;
  /** VOLUME~name, on this node only, whatever its role. */
  readonly local?: boolean | undefined;
  /** With `halt`: the writers go on, and the answer comes, when it is durable here. */
  readonly answerDurable?: boolean | undefined;
}

/** Pairs (offset, length) in bytes. */
export type Ranges = readonly (readonly [number, number])[];

/** `target` becomes what `source` is, in `ranges` or, when there are none, as a whole; refused while clients may write to it, unless `force` disconnects them. */
export interface RestoreRequest extends Waiting {
  readonly op: 'restore';
  readonly group: string;
  /** Null when the source is a set: then every volume that has a member. */
  readonly target: string | null;
  /** A device, or @SET. */
  readonly source: string;
  readonly ranges: Ranges;
  readonly force: boolean;
}

/** The snapshot, or every member of the set, becomes what its parent is now. */
export interface RefreshRequest extends Waiting {
  readonly op: 'refresh';
  readonly group: string;
  /** VOLUME@SNAPSHOT or @SET. */
  readonly target: string;
  readonly force: boolean;
}

/** The snapshot `target` becomes what the snapshot `source` is. */
export interface SyncRequest extends Waiting {
  readonly op: 'sync';
  readonly group: string;
  readonly target: string;
  readonly source: string;
  readonly ranges: Ranges;
  readonly force: boolean;
}

/** Shrinking what may hold data, or has clients, only with `force`. */
export interface ResizeRequest extends Waiting {
  readonly op: 'resize';
  readonly group: string;
  readonly device: string;
  readonly sizeBytes: number;
  readonly force: boolean;
}

/** Removes a snapshot (its children go to its parent), a set, or a volume; one with snapshots only `withSnapshots`. */
export interface RemoveRequest extends Waiting {
  readonly op: 'remove';
  readonly group: string;
  /** A device, or @SET. */
  readonly device: string;
  readonly withSnapshots: boolean;
  /** Disconnect its clients first. */
  readonly force: boolean;
}

/** Gives a device another name: a volume's is part of the names of its snapshots. */
export interface RenameRequest extends Waiting {
  readonly op: 'rename';
  readonly group: string;
  /** A device, or @SET. */
  readonly device: string;
  /** The new name of the volume, or the part behind the '@'. */
  readonly name: string;
  /** Also when it is one member of a set. */
  readonly force: boolean;
}

/** `on`: no removal, restore, refresh or shrinking, and no writes to snapshots, until it is taken back. */
export interface ProtectRequest extends Waiting {
  readonly op: 'protect';
  readonly group: string;
  /** A device, or @SET. */
  readonly device: string;
  readonly on: boolean;
  readonly force: boolean;
}

/** A new volume with the content of a snapshot, independent of it from then on. */
export interface CloneRequest extends Waiting {
  readonly op: 'clone';
  readonly group: string;
  readonly source: string;
  readonly name: string;
}

/** The sealed local snapshot `local`, of every node, becomes the snapshot VOLUME@name. */
export interface AdoptRequest extends Waiting {
  readonly op: 'adopt';
  readonly group: string;
  /** VOLUME~NAME. */
  readonly local: string;
  readonly name: string;
  /** Disconnect its clients first. */
  readonly force: boolean;
}

/** What becomes a marker. */
export type OperationRequest =
  | CreateRequest | SnapshotRequest | RestoreRequest | RefreshRequest | SyncRequest | ResizeRequest | RemoveRequest | RenameRequest | ProtectRequest | CloneRequest | AdoptRequest;

/** Makes a local snapshot read-only; then, with `known`, notes what its content digest is. */
export interface SealRequest {
  readonly op: 'seal';
  readonly group: string;
  /** VOLUME~NAME. */
  readonly device: string;
  /** The digest of what was sealed at this LSN of the local journal. */
  readonly known: { readonly digest: string; readonly sealedLsn: number } | null;
  /** Makes it writable again instead. */
  readonly undo: boolean;
  /** Disconnect its clients first. */
  readonly force: boolean;
}

/** Makes a secondary the primary in a new epoch, after it applied all that it has. */
export interface PromoteRequest {
  readonly op: 'promote';
  readonly group: string;
  /** Also when the primary is connected, or when what was received cannot all be applied. */
  readonly force: boolean;
}

/** Answers when what is appended now is durable, destaged, or in a committed checkpoint. */
export interface FlushRequest {
  readonly op: 'flush';
  readonly group: string;
  readonly upTo: 'durable' | 'destaged' | 'checkpoint';
}

/** Everything `lockstep status` shows, of all groups; must answer at once, in any state. */
export interface StatusRequest {
  readonly op: 'status';
}

/** The devices of one group at its applied LSN. */
export interface DevicesRequest {
  readonly op: 'devices';
  readonly group: string;
}

/** What each device uses, alone and shared; answered when it was counted, which may take minutes. A count under way is joined. */
export interface SizesRequest {
  readonly op: 'sizes';
  readonly group: string;
}

/** What the newest operations of a group cost. */
export interface OperationsRequest {
  readonly op: 'operations';
  readonly group: string;
}

/** The links of one group. */
export interface LinksRequest {
  readonly op: 'links';
  readonly group: string;
}

/** Retains no more journal for the peer and closes its link; it needs a resync afterwards. */
export interface LinkDropRequest {
  readonly op: 'linkDrop';
  readonly group: string;
  readonly peer: string;
}

/**
 * One page of the journal, so that a slow reader costs the data path nothing:
 * the server asks again from `next`. Nothing is held between two pages; a page
 * whose start was recycled meanwhile is refused as `journal/not-retained`.
 */
export interface JournalRequest {
  readonly op: 'journal';
  readonly group: string;
  /** First LSN wanted; null = the oldest retained. Inside a record: begins with the next one. */
  readonly from: number | null;
  /** Records that begin at or after it are not wanted; null = up to what is appended. */
  readonly to: number | null;
  /** Most records in the reply. A page may also end early to bound the time on the data thread. */
  readonly limit: number;
}

export interface JournalPage {
  readonly records: readonly JournalRecord[];
  /** Where the next page begins. */
  readonly next: number;
  /** Appended LSN when the page was made: a dump that does not follow ends there. */
  readonly appended: number;
  /** True when `next` has reached `to`, or the appended LSN. */
  readonly end: boolean;
}

/** Counters and gauges beyond those that the server derives from the status, for GET /metrics. */
export interface MetricsRequest {
  readonly op: 'metrics';
}

/** One Prometheus sample. The name without the prefix "lockstep_", unit last, counters ending in "_total". */
export interface MetricSample {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge';
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface MetricsReply {
  readonly samples: readonly MetricSample[];
}

export type ControlRequest =
  | OperationRequest | SealRequest | PromoteRequest | FlushRequest
  | StatusRequest | DevicesRequest | SizesRequest | OperationsRequest | LinksRequest | LinkDropRequest | JournalRequest | MetricsRequest
  | CarryRequest;

/** What each request is answered with. */
export interface ControlReplies extends CarryReplies {
  create: OperationReply;
  snapshot: OperationReply;
  restore: OperationReply;
  refresh: OperationReply;
  sync: OperationReply;
  resize: OperationReply;
  remove: OperationReply;
  rename: OperationReply;
  protect: OperationReply;
  clone: OperationReply;
  adopt: OperationReply;
  seal: SealReply;
  promote: PromoteReply;
  flush: FlushReply;
  status: NodeStatus;
  devices: DevicesReply;
  sizes: SizesReply;
  operations: OperationsReply;
  links: LinksReply;
  linkDrop: LinkDropReply;
  journal: JournalPage;
  metrics: MetricsReply;
}

export type ReplyOf<R extends ControlRequest> = ControlReplies[R['op']];

/**
 * An error as data. `code` is stable, scripts rely on it. The HTTP status
 * follows from it: …/not-found 404, …/exists, …/busy and other operator errors
 * 409, `usage` 400, everything else 500. Codes that the data path uses:
 *
 *   group/not-found device/not-found set/not-found link/not-found
 *   device/exists set/exists device/busy device/protected device/has-snapshots device/has-data
 *   device/same device/same-size device/in-set device/unrelated device/not-snapshot device/too-large
 *   group/empty range/invalid operation/too-large
 *   role/not-primary role/not-secondary group/stopped
 *   space/low journal/not-retained journal/no-boundary journal/stalled control/gone
 */
export interface ControlFailure {
  readonly kind: ErrorKind;
  readonly code: string;
  /** One sentence for a person. */
  readonly message: string;
}

/** What the promise of `call` is rejected with. */
export class ControlError extends Error {
  override readonly name = 'ControlError';
  readonly kind: ErrorKind;
  readonly code: string;
  constructor(failure: ControlFailure) {
    super(failure.message);
    this.kind = failure.kind;
    this.code = failure.code;
  }
}

export interface ControlPort {
  /**
   * Carries a request to the data path. Rejects with ControlError; with code
   * `daemon/closing` once the daemon shuts down. When `gone` aborts, nobody
   * waits for the answer any more: rejects at once with `control/gone`, an
   * operation that is not appended yet is not performed, and what waits for it
   * on the data path ends.
   */
  call<R extends ControlRequest>(request: R, gone?: AbortSignal): Promise<ReplyOf<R>>;
}
