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

import type {
  DevicesReply, ErrorKind, FlushReply, JournalRecord, LinkDropReply, LinksReply, NodeStatus, OperationReply, PromoteReply, Wait,
} from './schema.js';

/** When to answer an operation. */
export interface Waiting {
  /** `applied` waits for the secondaries of the group too; with none it is the same as `durable`. */
  readonly wait: Wait;
  /** Longest wait for `applied`. When it is over: answer with waited 'durable' and a notice, not with an error. */
  readonly waitSeconds: number;
}

/** Creates a volume of zeros. */
export interface CreateRequest extends Waiting {
  readonly op: 'create';
  readonly group: string;
  readonly name: string;
  readonly sizeBytes: number;
}

/** Creates the snapshot VOLUME@name, VOLUME being that of `source`; what `source` is at the marker becomes its content. */
export interface SnapshotRequest extends Waiting {
  readonly op: 'snapshot';
  readonly group: string;
  /** VOLUME or VOLUME@SNAPSHOT. */
  readonly source: string;
  readonly name: string;
}

/** `target` becomes what `source` is; refused while clients may write to it, unless `force` disconnects them. */
export interface RestoreRequest extends Waiting {
  readonly op: 'restore';
  readonly group: string;
  readonly target: string;
  readonly source: string;
  readonly force: boolean;
}

/** Removes a snapshot (its children go to its parent), or a volume; one with snapshots only `withSnapshots`. */
export interface RemoveRequest extends Waiting {
  readonly op: 'remove';
  readonly group: string;
  readonly device: string;
  readonly withSnapshots: boolean;
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
  | CreateRequest | SnapshotRequest | RestoreRequest | RemoveRequest | PromoteRequest | FlushRequest
  | StatusRequest | DevicesRequest | LinksRequest | LinkDropRequest | JournalRequest | MetricsRequest;

/** What each request is answered with. */
export interface ControlReplies {
  create: OperationReply;
  snapshot: OperationReply;
  restore: OperationReply;
  remove: OperationReply;
  promote: PromoteReply;
  flush: FlushReply;
  status: NodeStatus;
  devices: DevicesReply;
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
 *   group/not-found device/not-found link/not-found
 *   device/exists device/busy device/protected device/has-snapshots
 *   role/not-primary role/not-secondary group/stopped
 *   space/low journal/not-retained journal/stalled
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
   * `daemon/closing` once the daemon shuts down. When the caller gives up,
   * the request is carried out all the same.
   */
  call<R extends ControlRequest>(request: R): Promise<ReplyOf<R>>;
}
