/**
 * What replication sees of a group: its journal, its history, and the few acts
 * that a link may cause. Groups implement it (group.ts); replication/ depends on
 * nothing else of them.
 */

import type { Journal } from '../journal/journal.js';
import type { Position } from '../journal/position.js';
import type { WireMeter } from './operations/meter.js';
import type { EpochEntry } from './tree/epochs.js';

export type GroupRole =
  /** Serves clients and appends. */
  | 'primary'
  /** Was started as primary and first asks its peers for what they have of its last epoch. */
  | 'recovering'
  /** Follows a primary, serves read-only. */
  | 'secondary'
  /** Was primary and met a higher epoch: serves nothing until a person decides. */
  | 'fenced'
  /** Failed; serves nothing. */
  | 'stopped';

export type ReceiveResult =
  /** Appended and applied. */
  | { readonly kind: 'applied' }
  /** Appended, but the applier has stopped (unknown operation, digest differs); the group keeps receiving. */
  | { readonly kind: 'kept'; readonly reason: string }
  /** Not appended: no room in the journal now; try again after `onRoom`. */
  | { readonly kind: 'full' }
  /** Not appended: the group has failed. */
  | { readonly kind: 'failed'; readonly reason: string };

export interface ReplicatedGroup {
  readonly name: string;
  /** 32 hexadecimal digits; undefined on a secondary that has never followed anybody. */
  readonly groupId: string | undefined;
  readonly role: GroupRole;
  /** Why the role is what it is, one sentence. */
  readonly roleReason: string;
  readonly journal: Journal;
  readonly meter: WireMeter;
  /** Of everything below `position`, executed or not. */
  readonly epochs: readonly EpochEntry[];
  /** Position behind the last appended batch. */
  readonly position: Position;
  /** Behind the last batch that was executed on this node's devices: `position`, unless the applier has stopped. */
  readonly appliedPosition: Position;
  /** Its LSN. */
  readonly appliedLsn: number;
  /** Why what arrives is appended and not executed, one sentence or more; undefined while all is executed. */
  readonly applyProblem: string | undefined;
  /** Nothing below can be undone any more (DESIGN §5). */
  readonly stableLsn: number;
  /** What this node lacks to execute `adopt` of this local snapshot now, the end of a sentence that begins "on this node"; undefined: nothing. */
  adoptLack(adopt: { readonly local: string; readonly digest: string; readonly sizeBytes: number }): string | undefined;

  // ---- receiving side ----
  /** A secondary that has nothing takes the identity of the group that it will follow. */
  adoptGroupId(groupId: string): void;
  /**
   * Appends and applies one batch that continues `position`: used header at arena offset `at`, wire payload
   * (without padding) at `payloadAt`; both were verified by the caller (journal/verify.ts), both are borrowed
   * for the call only.
   */
  receive(at: number, payloadAt: number): ReceiveResult;
  /** The sender has made its journal durable up to `lsn` (DESIGN §5, write-ahead rule). */
  setPrimaryDurable(lsn: number): void;
  /**
   * Undoes everything above `to`, a batch boundary at or above `stableLsn`: cuts the journal, reloads the
   * checkpoint, replays. `done` gets undefined, or a sentence that says why not; it is called in a later tick,
   * because helper jobs that use the old state have to end first. Until then `receive` answers 'full'.
   */
  rewind(to: Position, done: (refusal: string | undefined) => void): void;
  /** Called when `receive` may work again after `full`. Returns what removes the hook. */
  onRoom(hook: () => void): () => void;

  // ---- sending side ----
  /** Keeps the journal from `lsn` on for `peer`; undefined releases it. Not persistent. */
  setCursor(peer: string, lsn: number | undefined): void;
  /**
   * `hook` runs after every append of this node, while the batch is still in the arena: header at
   * `journal.batchAt`, LSN `journal.batchLsn`, payload of record i at `journal.payload(i)`.
   */
  onAppended(hook: () => void): () => void;
  /** `hook` runs when `journal.durableLsn` has moved. */
  onDurable(hook: () => void): () => void;
  /** An authenticated peer proved a history with a higher epoch than ours: stop serving, say why. */
  fence(newer: EpochEntry, peer: string): void;
  /**
   * While `recovering`: the link tells what became of asking one peer. `fetched` = we have received everything
   * that the peer has of our last epoch (or it has nothing more).
   */
  peerAsked(peer: string, outcome: 'fetched' | 'unreachable' | 'refused'): void;
}
