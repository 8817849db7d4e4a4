/**
 * The receiving side of a group: batches of another node, appended and applied,
 * and undone when the primary turns out not to have them (DESIGN §3, §5).
 *
 * Owns: the primary's durable LSN, waiting for journal room, the rewind. Must
 * not know: links, frames; batches come verified.
 */

import { CorruptionError, IoError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { Reactor } from '../io/reactor.js';
import { batch, entry, RecordKind } from '../journal/format.js';
import type { Journal } from '../journal/journal.js';
import type { Position } from '../journal/position.js';
import type { Content } from './content/content.js';
import type { Meter } from './operations/meter.js';
import type { GroupRole, ReceiveResult } from './replica.js';

export interface FollowerHost {
  readonly name: string;
  readonly content: Content;
  readonly meter: Meter;
  readonly role: GroupRole;
  /** Why batches are not taken now; undefined = they are. */
  readonly notFollowing: string | undefined;
  readonly stableLsn: number;
  /** Tree, sizes or epoch changed. */
  contentChanged(): void;
  /** Closes the content and opens it again, cut at `to`. Only when it is quiet. */
  reopen(to: Position): void;
  /** The group has to stop. */
  failed(error: IoError | CorruptionError): void;
  /** The same, and the next start must not rely on what was appended and not synced. */
  journalFailed(error: IoError): void;
  readonly closed: boolean;
}

const WAIT_US = 1000;

export class Follower {
  /** What the primary has made durable, as far as it told. */
  primaryDurableLsn = 0;
  /** A rewind is under way. */
  changing = false;
  private wantsRoom = false;
  private readonly roomHooks = new Set<() => void>();

  constructor(private readonly reactor: Reactor, private readonly host: FollowerHost, private readonly log: Log) {}

  receive(at: number, payloadAt: number): ReceiveResult {
    const { io, arena } = this.reactor;
    if (entry.kind(arena.view, entry.at(at, 0)) !== RecordKind.marker) return this.take(at, payloadAt);
    const lsn = entry.lsn(batch.lsn(arena.view, at), 0);
    const begun = io.nowUs();
    const result = this.take(at, payloadAt);
    if (result.kind === 'applied') this.host.meter.took(lsn, io.nowUs() - begun);
    return result;
  }

  private take(at: number, payloadAt: number): ReceiveResult {
    const { host } = this;
    if (host.notFollowing !== undefined) return { kind: 'failed', reason: host.notFollowing };
    const { content } = host;
    const { journal } = content;
    if (this.changing || !(journal.hasRoomForData || this.makesRoom(journal))) {
      this.wantsRoom = true;
      return { kind: 'full' };
    }
    const before = journal.position;
    const result = journal.receive(at, payloadAt);
    if (result < 0) return { kind: 'failed', reason: host.notFollowing ?? 'the journal failed' };
    if (content.applyProblem !== undefined) {
      content.keep(at, payloadAt);
      return { kind: 'kept', reason: content.applyProblem };
    }
    const { tree, epoch } = content.core;
    let problem: string | undefined;
    try {
      problem = content.core.apply(at, before.lsn, payloadAt);
    } catch (error) {
      // The group stops. Nobody is told that a record was applied of which only a part was executed.
      if (error instanceof IoError || error instanceof CorruptionError) content.stopApplying(before, error.message);
      throw error;
    }
    if (problem !== undefined) {
      content.stopApplying(before, problem);
      content.keep(at, payloadAt);
      this.log.error(`stops applying, serves the last state read-only and keeps what it receives: ${problem}`);
      host.contentChanged();
      return { kind: 'kept', reason: problem };
    }
    if (tree !== content.core.tree || epoch?.number !== batch.epochNumber(this.reactor.arena.view, at)) host.contentChanged();
    return { kind: 'applied' };
  }

  /**
   * A primary that recovers takes what its peers have of its last epoch also when
   * its journal is full: the wait for them ends, and then it would be lost. It is
   * not more than was appended and not durable here, and nothing is served yet.
   */
  private makesRoom(journal: Journal): boolean {
    if (this.host.role !== 'recovering') return false;
    try {
      journal.pool.createNow();
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.log.warn(`cannot make room for what peers have: ${error.message}`);
    }
    return journal.hasRoomForData;
  }

  setPrimaryDurable(lsn: number): void {
    if (lsn > this.primaryDurableLsn) this.primaryDurableLsn = lsn;
  }

  onRoom(hook: () => void): () => void {
    this.roomHooks.add(hook);
    return () => void this.roomHooks.delete(hook);
  }

  /** Once a tick. */
  poll(): void {
    if (!this.wantsRoom || this.changing || !this.host.content.journal.hasRoomForData) return;
    this.wantsRoom = false;
    for (const hook of [...this.roomHooks]) hook();
  }

  /** See ReplicatedGroup.rewind. What lies above `stable` was never destaged nor checkpointed, so cutting the journal undoes it. */
  rewind(to: Position, done: (refusal: string | undefined) => void): void {
    const { host } = this;
    const { content } = host;
    const final = Math.max(host.stableLsn, content.checkpointer.committedAt.lsn);
    let refusal: string | undefined;
    if (host.notFollowing !== undefined) refusal = host.notFollowing;
    else if (this.changing) refusal = `group ${host.name} is being taken back already`;
    else if (to.lsn < final) refusal = `the histories part at LSN ${to.lsn}, and this node has made everything below LSN ${final} final: it needs a resync, which this version does not have`;
    if (refusal !== undefined) {
      const said = refusal;
      this.reactor.after(0, () => done(said));
      return;
    }
    this.log.warn('undoes records that the primary does not have', { from: content.journal.appendedLsn, to: to.lsn });
    this.changing = true;
    content.stop();
    const wait = (): void => {
      if (host.closed) return;
      if (!content.quiet) {
        this.reactor.after(WAIT_US, wait);
        return;
      }
      // Something failed while the jobs ended: what the disk has is for a start to find out, with what is noted of it.
      if (host.notFollowing !== undefined) {
        done(host.notFollowing);
        return;
      }
      try {
        // A crash between the next two steps finds the whole tail, or a part of it, above every durable mark: all legal ends.
        content.journal.pool.lowerMarks(to.lsn);
        host.reopen(to);
      } catch (error) {
        if (error instanceof IoError) host.journalFailed(error);
        else if (error instanceof CorruptionError) host.failed(error);
        else throw error;
        done(host.notFollowing ?? error.message);
        return;
      }
      // What the primary of the undone records had made durable says nothing of those that will follow.
      this.primaryDurableLsn = Math.min(this.primaryDurableLsn, to.lsn);
      this.changing = false;
      this.wantsRoom = true;
      host.contentChanged();
      done(undefined);
      this.reactor.again();
    };
    this.reactor.after(0, wait);
  }
}
