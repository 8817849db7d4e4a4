/**
 * Operations of a group on its primary: appended and executed in one step of the
 * data thread, then waited for until they are durable (DESIGN §4).
 *
 * Owns: the order of that step, who waits, how an epoch begins. Must not know:
 * preconditions (judge.ts), who asks, how roles change.
 */

import { OperatorError } from '../../base/errors.js';
import type { CorruptionError, IoError } from '../../base/errors.js';
import type { Log } from '../../base/log.js';
import { toHex } from '../../base/words.js';
import { must } from '../../io/file.js';
import type { Reactor } from '../../io/reactor.js';
import type { Content } from '../content/content.js';
import type { Exports } from '../requests/exports.js';
import type { Ingest } from '../requests/ingest.js';
import { MAX_REASON, type EpochOperation, type Operation } from '../tree/record.js';
import type { Meter } from './meter.js';
import { appendOperation, overtaken } from './perform.js';
import { DurableWaits, type Durable } from './waits.js';

/** What an operation did. */
export interface Performed {
  /** Of its marker. */
  readonly lsn: number;
  /** First LSN behind the marker: it is durable when `durableLsn` has reached this. */
  readonly endLsn: number;
  readonly dataThreadUs: number;
}

/** The group, as far as its operations need it. */
export interface PerformerHost {
  readonly options: { readonly node: string; readonly directory: string };
  readonly content: Content;
  /** Undefined while there is no content. */
  readonly ingest: Ingest | undefined;
  readonly exports: Exports;
  readonly meter: Meter;
  /** Why nothing can be appended any more; undefined while something can. */
  readonly stoppedFor: string | undefined;
  /** Why writers wait for the journal, or null when they do not. */
  stallReason(): string | null;
  /** After something was appended here and applied. */
  appended(): void;
  failed(error: CorruptionError | IoError): void;
}

export class Performer {
  private readonly waits = new DurableWaits();

  constructor(private readonly reactor: Reactor, private readonly group: PerformerHost, private readonly log: Log) {}

  /**
   * Appends and executes an operation whose preconditions hold. The caller has
   * checked them in this same step; a contradiction now is a bug. Throws
   * OperatorError when nothing can be appended, IoError and CorruptionError when
   * the group fails at it.
   */
  perform(operation: Operation): Performed {
    const { group, reactor: { io } } = this;
    const { content } = group;
    const begun = io.nowUs();
    this.checkRoom();
    for (const id of overtaken(operation, content.core.tree)) group.ingest!.cancel(id);
    const at = appendOperation(io, content, operation, group.options.node, (error) => group.failed(error));
    group.exports.update();
    group.appended();
    const endLsn = content.journal.appendedLsn;
    content.journal.sync(endLsn);
    const dataThreadUs = io.nowUs() - begun;
    group.meter.took(at.lsn, dataThreadUs);
    return { lsn: at.lsn, endLsn, dataThreadUs };
  }

  /** Appends what the tick has collected, then throws OperatorError when no operation can be appended now. */
  checkRoom(): void {
    const { group } = this;
    group.ingest!.flushBatch();
    if (group.stoppedFor !== undefined) throw new OperatorError('group/stopped', group.stoppedFor);
    if (!group.content.journal.hasRoomForMarker) throw new OperatorError('journal/stalled', group.stallReason() ?? 'the journal is full; try again in a moment');
  }

  /** Begins the next epoch of the group, durably. Blocking: nothing is served in it yet. Throws as `perform`. */
  beginEpoch(lossless: boolean, reason: string): void {
    const { options, content: { core, journal } } = this.group;
    const operation: EpochOperation = {
      op: 'epoch', number: (core.epoch?.number ?? 0) + 1, id: toHex(this.reactor.io.randomBytes(16)), node: options.node, lossless, reason: reason.slice(0, MAX_REASON),
    };
    // A journal that is full must not keep the group from starting: nothing could ever free it then.
    if (!journal.hasRoomForMarker) journal.pool.createNow();
    this.perform(operation);
    this.log.info('begins a new epoch', { epoch: operation.number, id: operation.id, lossless, reason });
    must(journal.syncNow(), 'make the epoch record durable in', options.directory);
  }

  /** `done` is called when everything below `lsn` is durable here, or with why it never will be. Returns what takes that back. */
  whenDurable(lsn: number, done: Durable): () => void {
    const { group } = this;
    if (group.stoppedFor !== undefined) done(new OperatorError('group/stopped', group.stoppedFor));
    else if (group.content.journal.durableLsn >= lsn) done(undefined);
    else return this.waits.add(lsn, done, group.content.journal);
    return () => undefined;
  }

  /** Everything below `lsn` is durable. */
  durable(lsn: number): void {
    this.waits.advance(lsn);
  }

  /** Nothing becomes durable any more. */
  stop(error: OperatorError): void {
    this.waits.failAll(error);
  }
}
