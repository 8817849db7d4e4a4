/**
 * All links of one group.
 *
 * Owns: the links, the group's hooks for them, what they share: which session
 * receives, which one fetches, the clock of lag, who waits for `applied`. Must
 * not know: frames, listeners.
 */

import { OperatorError, PeerError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { ReplicatedGroup } from '../group/replica.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { batch } from '../journal/format.js';
import { askAll } from './asking.js';
import type { Objection, Question } from './asking.js';
import { LagClock } from './lag.js';
import { OutgoingLink } from './link.js';
import type { LinkHost, PeerConfig } from './link.js';
import type { LinkOptions } from './options.js';
import type { LinkSession } from './session.js';
import type { LinkStatus } from './state.js';
import { sentenceOf } from './state.js';

interface AppliedWait {
  readonly lsn: number;
  readonly done: (notice: string | null) => void;
  timer: TimerId | undefined;
}

export class GroupLinks implements LinkHost {
  readonly links: readonly OutgoingLink[];
  undoing = false;
  fetching: LinkSession | undefined;
  /** Called after an ack of a peer was taken in. */
  onAck: (peer: string) => void = () => undefined;

  private readonly lag = new LagClock();
  private readonly removers: (() => void)[] = [];
  private waits: AppliedWait[] = [];
  private closed = false;

  constructor(
    readonly reactor: Reactor,
    readonly group: ReplicatedGroup,
    readonly node: string,
    peers: readonly PeerConfig[],
    readonly options: LinkOptions,
    readonly log: Log,
  ) {
    this.links = peers.map((peer) => new OutgoingLink(this, peer));
  }

  /** Begins to dial, if the group's role is to. */
  start(): void {
    this.removers.push(this.group.onAppended(() => this.appended()), this.group.onDurable(() => this.durable()));
    for (const link of this.links) link.start();
  }

  link(peer: string): OutgoingLink | undefined {
    return this.links.find((one) => one.peer === peer);
  }

  status(): LinkStatus[] {
    return this.links.map((link) => link.status());
  }

  /** See OutgoingLink.drop. Throws OperatorError. */
  drop(peer: string): number {
    const link = this.link(peer);
    if (link === undefined) throw new OperatorError('link/not-found', `group ${this.group.name} has no link to ${peer}`);
    return link.drop();
  }

  /** The peer that sends us its journal now. */
  get connectedPrimary(): string | undefined {
    return this.links.find((link) => link.incoming?.phase === 'applying')?.peer;
  }

  private *sessions(): Generator<LinkSession> {
    for (const link of this.links) {
      if (link.outgoing !== undefined) yield link.outgoing;
      if (link.incoming !== undefined) yield link.incoming;
    }
  }

  // ---- hooks ------------------------------------------------------------------------------------------------

  private appended(): void {
    const { journal } = this.group;
    this.lag.note(journal.batchLsn, batch.wallMs(this.reactor.arena.view, journal.batchAt));
    for (const link of this.links) link.outgoing?.appended();
  }

  private durable(): void {
    for (const link of this.links) {
      link.outgoing?.durableMoved();
      link.incoming?.durableMoved();
    }
  }

  /** The group's role may have changed: ends what no longer fits, dials what is to be dialled. */
  rolesChanged(): void {
    if (this.closed) return;
    for (const session of [...this.sessions()]) session.checkRole();
    for (const link of this.links) link.kick();
    this.checkWaits();
  }

  // ---- for links --------------------------------------------------------------------------------------------

  receiving(session: LinkSession): void {
    for (const other of [...this.sessions()]) {
      if (other === session || (other.phase !== 'applying' && other.phase !== 'undoing')) continue;
      other.end(new PeerError('link/replaced', `node ${this.node} follows node ${session.link.peer} now`));
    }
  }

  acked(link: OutgoingLink): void {
    this.checkWaits();
    this.onAck(link.peer);
  }

  noteOld(lsn: number, wallMs: number): void {
    this.lag.noteOld(lsn, wallMs);
  }

  secondsSince(lsn: number): number {
    return this.lag.secondsSince(lsn, this.reactor.io.wallMs());
  }

  // ---- asking ------------------------------------------------------------------------------------------------

  /** askAll of every peer that is being shipped to now. `done(undefined)`: the links were closed meanwhile, which is no answer. */
  ask(question: Question, limitUs: number, done: (objections: Objection[] | undefined) => void): () => void {
    const peers = this.links.flatMap(({ peer, outgoing }) => (outgoing?.phase === 'shipping' ? [{ peer, questions: outgoing.questions }] : []));
    return askAll(this.reactor, peers, question, limitUs, (objections) => done(this.closed ? undefined : objections));
  }

  // ---- waiting for `applied` ----------------------------------------------------------------------------------

  /** Links that have not applied everything below `lsn`. A dropped link, and one that is never dialled, are not waited for. */
  private behind(lsn: number): OutgoingLink[] {
    return this.links.filter((link) => !link.dropped && link.config.address !== undefined && link.appliedLsn < lsn);
  }

  /**
   * `done(null)` once every secondary has applied everything below `lsn`; after `limitUs` microseconds, or when the
   * links are closed, `done` with a sentence that says who is behind, and why. May be called before this returns.
   * Returns what takes the wait back: `done` is not called then.
   */
  whenApplied(lsn: number, limitUs: number, done: (notice: string | null) => void): () => void {
    if (this.behind(lsn).length === 0) {
      done(null);
      return () => undefined;
    }
    const wait: AppliedWait = { lsn, done, timer: undefined };
    wait.timer = this.reactor.after(limitUs, () => {
      wait.timer = undefined;
      this.waits = this.waits.filter((one) => one !== wait);
      done(this.noticeOf(lsn));
    });
    this.waits.push(wait);
    return () => {
      if (wait.timer !== undefined) this.reactor.cancel(wait.timer);
      this.waits = this.waits.filter((one) => one !== wait);
    };
  }

  private noticeOf(lsn: number): string {
    const who = this.behind(lsn).map((link) => {
      const why = sentenceOf(link.state, link.peer);
      return `${link.peer} has applied up to LSN ${link.appliedLsn}${why === '' ? '' : ` (${why})`}`;
    });
    return `not applied everywhere yet: ${who.join('; ')}`;
  }

  private checkWaits(): void {
    if (this.waits.length === 0) return;
    const ready = this.waits.filter((wait) => this.behind(wait.lsn).length === 0);
    if (ready.length === 0) return;
    this.waits = this.waits.filter((wait) => !ready.includes(wait));
    for (const wait of ready) {
      if (wait.timer !== undefined) this.reactor.cancel(wait.timer);
      wait.done(null);
    }
  }

  /** Ends all sessions and releases the cursors. Idempotent. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const remove of this.removers) remove();
    for (const link of this.links) link.close();
    const waits = this.waits;
    this.waits = [];
    for (const wait of waits) {
      if (wait.timer !== undefined) this.reactor.cancel(wait.timer);
      wait.done(this.noticeOf(wait.lsn));
    }
  }
}
