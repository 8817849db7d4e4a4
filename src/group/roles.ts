/**
 * The role of this node in a group: how it starts, and what changes it
 * (DESIGN §3, §8).
 *
 * Owns: role, its reason, state.json. Must not know: requests, records; it asks
 * its host to begin an epoch and to tell everybody.
 */

import { unreachable } from '../base/assert.js';
import { IoError, OperatorError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { Reactor } from '../io/reactor.js';
import { samePosition, type Position } from '../journal/position.js';
import type { Content } from './content/content.js';
import type { JournalExtent } from './content/opening.js';
import { clearFormers, formersOf } from './content/former.js';
import { placeOf } from './content/place.js';
import type { Opening, PlaceOptions } from './content/place.js';
import type { GroupRole } from './replica.js';
import type { EpochEntry } from './tree/epochs.js';
import { writeState } from './content/statefile.js';
import type { StateFile } from './content/statefile.js';

export interface RolesOptions extends PlaceOptions {
  /** Names of the peers that a primary asks after an unclean stop. */
  readonly peers: readonly string[];
  /** How long it waits while none of them gives it anything, microseconds. */
  readonly recoverWaitUs: number;
  /** Identity of this boot of the kernel: as long as it is the same, the page cache has survived. */
  readonly bootId: string;
}

/** In place of a boot id: what was in the page cache is not to be relied on. */
const JOURNAL_FAILED = 'the journal failed';
const ACCEPTING = 'unknown data are being accepted';

export interface RolesHost {
  content(): Content | undefined;
  /** The content is being replaced. */
  changing(): boolean;
  /** Appends the epoch record and makes it durable. Throws IoError. */
  beginEpoch(lossless: boolean, reason: string): void;
  /** After every change of role. */
  roleChanged(): void;
}

export class Roles {
  role: GroupRole;
  reason: string;
  private readonly asked = new Map<string, string>();
  private ended = false;
  private failureUnnoted = false;

  constructor(
    private readonly reactor: Reactor,
    private readonly options: RolesOptions,
    private readonly host: RolesHost,
    private readonly log: Log,
    private state: StateFile,
  ) {
    this.role = state.role;
    this.reason = state.roleReason;
  }

  get groupId(): string | undefined {
    return this.state.groupId ?? undefined;
  }

  /** Whether a node in this role serves clients. */
  get serve(): boolean {
    switch (this.role) {
      case 'primary':
      case 'secondary':
        return true;
      case 'recovering':
      case 'fenced':
      case 'stopped':
        return false;
      default:
        return unreachable(this.role);
    }
  }

  /** Under the kernel of now; not after a failure of the journal. */
  private get sameBoot(): boolean {
    return this.state.bootId === this.options.bootId;
  }

  /**
   * What state.json says of the journal's extent; before the content is opened in this way. That the kernel is still
   * the same proves nothing of it: a failed fsync may have dropped pages, and its note may have failed too. Throws IoError.
   */
  opening(opening: Opening): JournalExtent {
    const extent = { opening, knownDurableLsn: this.state.cleanStop?.lsn ?? 0, suspect: this.state.bootId === JOURNAL_FAILED || this.state.localSuspect === true };
    // Before the content of a volatile group is opened although it is unknown. From here on no start takes the journal
    // for a continuation of what was, until an epoch says what happened.
    if (opening === 'accepted') this.save({ cleanStop: null, bootId: ACCEPTING });
    return extent;
  }

  /** Durable when it returns. Throws IoError. */
  save(change: Partial<StateFile>): void {
    const state = { ...this.state, ...change };
    writeState(this.reactor.io, this.options.directory, state);
    this.state = state;
  }

  /** As `save`, where the group goes on without: `log` gets why, in words. Returns whether it was saved. */
  private trySave(change: Partial<StateFile>, log: (why: string) => void): boolean {
    try {
      this.save(change);
      return true;
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      log(error.message);
      return false;
    }
  }

  /**
   * The journal may have lost what was appended, under this very kernel: the next start must not call its epoch
   * lossless (DESIGN §8). If even this cannot be written down, the log has said so.
   */
  journalFailed(): void {
    // No failed fsync drops what lies in memory: all that was appended is there under this kernel. But local devices are on the disk.
    const change: Partial<StateFile> = this.options.journal.volatile === true ? { localSuspect: true } : { cleanStop: null, bootId: JOURNAL_FAILED, localSuspect: true };
    this.failureUnnoted = !this.trySave(change, (why) => this.log.error(`cannot note that the journal failed: ${why}`));
  }

  /** Local devices may have lost what was not flushed, and the group nothing; at a stop in order. */
  localFailed(): void {
    this.trySave({ localSuspect: true }, (why) => this.log.error(`cannot note that local snapshots may have lost what was not flushed: ${why}`));
  }

  /** From time to time: what could not be noted is tried again. */
  retryNote(): void {
    if (this.failureUnnoted && !this.ended) this.journalFailed();
  }

  /** From here on the page cache of this boot holds everything that the journal's epochs claim. */
  private noteBoot(): void {
    if (this.role === 'stopped') return;
    this.trySave({ bootId: this.options.bootId, promotedPast: undefined, localSuspect: undefined },
      (why) => this.log.warn(`cannot note the boot, the next start will count as one after power loss: ${why}`));
  }

  /** Notes a stop in order; without the note the next start begins a new epoch, and that is all. */
  stoppedCleanly(at: Position): void {
    this.trySave({ cleanStop: at }, (why) => this.log.warn(`cannot note the clean stop, the next start will begin a new epoch: ${why}`));
  }

  /** A group of the primary's was made here. Durable when it returns; throws IoError. */
  adopted(groupId: string): void {
    this.save({ groupId, ...this.here });
  }

  /** What state.json says of this start. */
  private get here(): Pick<StateFile, 'bootId' | 'journal' | 'formerJournals'> {
    return { bootId: this.options.bootId, journal: placeOf(this.options), formerJournals: formersOf(this.options, this.state) };
  }

  /** Removes what the journal left where it lay before, when state.json says that it lies elsewhere now. */
  clearFormers(): void {
    const { formerJournals, groupId } = this.state;
    if (formerJournals === undefined || groupId === null) return;
    const failed = clearFormers(this.reactor, this.options, groupId, formerJournals, this.log);
    this.trySave({ formerJournals: failed }, (why) => this.log.warn(`cannot note that former journals were removed: ${why}`));
  }

  /** Decides what this start means for the history. The journal was recovered up to `end`. */
  started(content: Content, end: Position, opening: Opening): void {
    const stop = this.state.cleanStop;
    const clean = stop !== null && samePosition(stop, end);
    // A stop that was noted and is not what was found: recovery should have refused. Lossless it is not.
    const sameBoot = this.sameBoot && (stop === null || clean);
    // The boot id only once the epoch record of this start is durable: a crash before must find what this start has found.
    if (opening === 'accepted') {
      this.host.beginEpoch(false, 'the volatile journal was lost and an operator accepted that the data are unknown');
      this.save({ cleanStop: null, promotedPast: undefined, localSuspect: undefined, ...this.here });
      return;
    }
    if (this.options.acceptedLsn !== undefined) this.log.warn('--accept-inconsistent is not needed and has no effect: the data are what they should be');
    this.save({ cleanStop: null, ...(clean || this.role !== 'primary' ? this.here : {}) });
    if (this.role !== 'primary') {
      this.noteBoot();
    } else if (content.applyProblem !== undefined) {
      this.stop(`its own journal cannot be replayed: ${content.applyProblem}`);
    } else if (content.core.epoch?.node !== this.options.node || content.core.epoch.number <= (this.state.promotedPast ?? -1)) {
      // A promotion was cut off before its epoch record: this node has what was shipped, and no more than that.
      this.host.beginEpoch(false, 'the promotion of this node was cut off before its epoch began');
      this.noteBoot();
    } else if (clean) {
      this.noteBoot();
      this.log.info('was stopped cleanly, goes on in the same epoch');
    } else if (sameBoot) {
      this.host.beginEpoch(true, 'the daemon was restarted under the same kernel: everything it had appended is still there');
      this.noteBoot();
    } else if (this.options.peers.length === 0) {
      this.host.beginEpoch(false, 'the node was not stopped cleanly and has no peers to ask');
      this.noteBoot();
    } else {
      this.role = 'recovering';
      this.reason = `was not stopped cleanly; asks ${this.options.peers.join(', ')} for what they have of epoch ${content.core.epoch?.number ?? 0}`;
      this.watchSilence(end.lsn);
    }
  }

  /** Ends the wait for peers after a silence; while one of them sends what this node has lost, there is none. */
  private watchSilence(seenLsn: number): void {
    this.reactor.after(this.options.recoverWaitUs, () => {
      if (this.role !== 'recovering' || this.ended) return;
      const content = this.host.content();
      const lsn = content?.journal.appendedLsn ?? seenLsn;
      if (lsn > seenLsn || this.host.changing()) this.watchSilence(lsn);
      else this.endRecovering();
    });
  }

  peerAsked(peer: string, outcome: 'fetched' | 'unreachable' | 'refused'): void {
    if (this.role !== 'recovering') return;
    this.asked.set(peer, outcome);
    const open = this.options.peers.some((name) => (this.asked.get(name) ?? 'unreachable') === 'unreachable');
    if (!open) this.endRecovering();
  }

  private endRecovering(): void {
    if (this.role !== 'recovering' || this.ended) return;
    const content = this.host.content();
    if (content?.applyProblem !== undefined) {
      this.stop(`what it fetched from its peers cannot be executed: ${content.applyProblem}`);
      return;
    }
    if (this.host.changing()) {
      this.reactor.after(10_000, () => this.endRecovering());
      return;
    }
    const answers = this.options.peers.map((name) => `${name}: ${this.asked.get(name) ?? 'no answer'}`).join(', ');
    this.role = 'primary';
    this.reason = `started after an unclean stop; peers: ${answers}`;
    try {
      // Under mode async something may have been acknowledged that neither side has.
      this.host.beginEpoch(false, `the node was not stopped cleanly (${answers})`);
    } catch (error) {
      // The journal has failed, and that has stopped the group.
      if (!(error instanceof IoError)) throw error;
      return;
    }
    this.noteBoot();
    this.host.roleChanged();
  }

  /** A secondary becomes primary in a new epoch. Throws OperatorError. */
  promote(reason: string): EpochEntry {
    const content = this.host.content();
    const group = `group ${this.options.name}`;
    if (this.role !== 'secondary') throw new OperatorError('role/not-secondary', `${group} is ${this.role} on this node; only a secondary can be promoted`);
    if (content === undefined) {
      throw new OperatorError('role/not-secondary', `${group} has never followed a primary, so there is nothing to promote; give a new group "role": "primary" in the configuration`);
    }
    if (this.host.changing()) throw new OperatorError('group/busy', `${group} is being taken back to an earlier position; try again in a moment`);
    if (content.applyProblem !== undefined) {
      throw new OperatorError('group/busy', `${group} holds records that it cannot execute, so promoting it would lose them: ${content.applyProblem}`);
    }
    // The role first: if power fails before the epoch record is durable, the start as primary appends one.
    try {
      this.save({ role: 'primary', roleReason: reason, promotedPast: content.core.epoch?.number ?? 0 });
    } catch (error) {
      if (error instanceof IoError) this.takeBack();
      throw error;
    }
    this.role = 'primary';
    this.reason = reason;
    this.host.beginEpoch(false, reason);
    this.noteBoot();
    this.host.roleChanged();
    return content.core.epoch!;
  }

  /** A promotion could not be noted, or not for sure: the next start must not find it. */
  private takeBack(): void {
    this.trySave({}, (why) => this.log.error(`cannot note either that the promotion has failed (${why}): if the daemon is restarted now, it may start as primary`));
  }

  fence(newer: EpochEntry, peer: string): void {
    if (this.role === 'fenced' || this.role === 'stopped') return;
    const reason =
      `node ${newer.node} took over as primary in epoch ${newer.number} (told by ${peer}), which is not in this node's history: ` +
      'it serves nothing, so that no write goes astray; what it has beyond the common history is kept';
    this.log.error(`fenced: ${reason}`);
    this.role = 'fenced';
    this.reason = reason;
    this.host.roleChanged();
    // Fenced all the same; a restart will meet the peer again.
    this.trySave({ role: 'fenced', roleReason: reason }, (why) => this.log.error(`cannot note that the group is fenced: ${why}`));
  }

  /** Final until the daemon is restarted; not written down. */
  stop(reason: string): void {
    if (this.role === 'stopped') return;
    this.role = 'stopped';
    this.reason = reason;
    this.log.error(`group stopped: ${reason}`);
    this.host.roleChanged();
  }

  /** No timer of a start that is under way does anything any more. What could not be noted has its last chance. */
  end(): void {
    this.retryNote();
    this.ended = true;
  }
}
