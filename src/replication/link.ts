/**
 * The link between a group of this node and one peer, whichever of them is
 * primary.
 *
 * Owns: dialing with back-off, the one session in each direction, what the
 * peer has acknowledged, the cursor that keeps the journal for it, drop. Must
 * not know: frames, other peers (links.ts).
 *
 * A primary (or recovering primary) dials, for ever; a secondary waits. The role
 * is read again before every attempt. The journal is kept for the peer from the
 * first attempt on, not from the first success: a primary that restarts must not
 * recycle what a peer, which is only slower to come back, still needs.
 */

import { PeerError } from '../base/errors.js';
import type { Address } from '../base/address.js';
import { errnoText } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { ReplicatedGroup } from '../group/replica.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import type { Connection } from './connection.js';
import { DialerHello } from './hello.js';
import type { LinkIdentity } from './hello.js';
import { firstLsn } from './history.js';
import { AckFlag, NONCE_BYTES } from './message.js';
import { isRefusal } from './options.js';
import type { LinkOptions } from './options.js';
import { LinkCounters } from './outbox.js';
import { LinkSession } from './session.js';
import type { SessionOwner } from './session.js';
import type { LinkState, LinkStatus } from './state.js';
import { sentenceOf, shownState } from './state.js';

/** A peer of a group, as configured. */
export interface PeerConfig {
  readonly node: string;
  /** Undefined: this node can only wait for it. */
  readonly address?: Address | undefined;
  /** At least 32 bytes. */
  readonly secret: Uint8Array;
}

/** What a link needs of its group's links as a whole (links.ts). */
export interface LinkHost {
  readonly reactor: Reactor;
  readonly group: ReplicatedGroup;
  readonly node: string;
  readonly options: LinkOptions;
  readonly log: Log;
  undoing: boolean;
  /** The session that fetches, while this node recovers. */
  fetching: LinkSession | undefined;
  /** Ends every other session that receives. */
  receiving(session: LinkSession): void;
  acked(link: OutgoingLink): void;
  noteOld(lsn: number, wallMs: number): void;
  secondsSince(lsn: number): number;
  rolesChanged(): void;
}

/** Named after its more active half: it also holds the peer's connection to us, while we are a secondary. */
export class OutgoingLink implements SessionOwner {
  readonly counters = new LinkCounters();
  outgoing: LinkSession | undefined;
  incoming: LinkSession | undefined;
  dropped = false;
  /** What the peer has acknowledged, in this session or the last one. */
  shippedLsn = 0;
  receivedLsn = 0;
  durableLsn = 0;
  appliedLsn = 0;
  lastError: PeerError | undefined;

  /** Dialled and not closed: that of `outgoing`, and of ended sessions those whose last words the peer has yet to read. */
  private readonly dialled = new Set<Connection>();
  private connects = 0;
  private failures = 0;
  private cursor: number | undefined;
  private timer: TimerId | undefined;
  private closed = false;
  private started = false;

  constructor(private readonly host: LinkHost, readonly config: PeerConfig) {}

  get peer(): string {
    return this.config.node;
  }
  get node(): string {
    return this.host.node;
  }
  get group(): ReplicatedGroup {
    return this.host.group;
  }
  get undoing(): boolean {
    return this.host.undoing;
  }
  set undoing(value: boolean) {
    this.host.undoing = value;
  }

  get identity(): LinkIdentity {
    return { group: this.group.name, self: this.node, peer: this.peer, secret: this.config.secret };
  }

  start(): void {
    this.started = true;
    this.attempt();
  }

  // ---- dialing --------------------------------------------------------------------------------------------

  private get mayDial(): boolean {
    const { role } = this.group;
    return !this.dropped && this.config.address !== undefined && (role === 'primary' || role === 'recovering');
  }

  /** Looks at once whether there is something to dial: the role may have changed. */
  kick(): void {
    if (!this.started || this.closed || this.outgoing !== undefined || (this.failures > 0 && this.mayDial)) return;
    this.attempt();
  }

  private schedule(delayUs: number): void {
    if (this.timer !== undefined) this.host.reactor.cancel(this.timer);
    this.timer = this.host.reactor.after(delayUs, () => this.attempt());
  }

  private attempt(): void {
    if (this.timer !== undefined) this.host.reactor.cancel(this.timer);
    this.timer = undefined;
    if (this.closed || this.dropped || this.outgoing !== undefined) return;
    const { reactor, options, group } = this.host;
    const { address } = this.config;
    if (!this.mayDial || address === undefined) {
      if (this.cursor !== undefined) this.keepFrom(undefined);
      this.failures = 0;
      this.schedule(options.idleUs);
      return;
    }
    if (this.cursor === undefined) this.keepFrom(firstLsn(group));
    const fd = reactor.io.connect(address);
    if (fd < 0) {
      this.failed(new PeerError('link/unreachable', `it cannot be reached: ${errnoText(-fd)}`));
      return;
    }
    const hello = new DialerHello(this.identity, reactor.io.randomBytes(NONCE_BYTES));
    const session = new LinkSession(reactor, fd, { kind: 'dialer', hello, owner: this }, options);
    this.outgoing = session;
    try {
      session.start();
      const { connection } = session;
      this.dialled.add(connection);
      connection.onClosed = () => void this.dialled.delete(connection);
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
      this.outgoing = undefined;
      this.failed(error);
    }
  }

  /** `asked`: the group knows already that this peer has nothing more for it. */
  private failed(error: PeerError, asked = false): void {
    const { options, reactor, group, log } = this.host;
    if (this.lastError?.message !== error.message) log.warn(`link to ${this.peer}: ${error.message}`, { code: error.code });
    this.lastError = error;
    if (this.closed || this.dropped) return;
    const full = Math.min(options.backoffHighUs, options.backoffLowUs * 2 ** Math.min(this.failures, 20));
    const random = reactor.io.randomBytes(2);
    this.schedule(full * (0.5 + (random[0] * 256 + random[1]) / 131072));
    this.failures++;
    // Last, for the group may begin its epoch at this.
    if (group.role === 'recovering' && !asked) group.peerAsked(this.peer, isRefusal(error.code) ? 'refused' : 'unreachable');
  }

  private keepFrom(lsn: number | undefined): void {
    if (this.cursor === lsn) return;
    this.cursor = lsn;
    this.group.setCursor(this.peer, lsn);
  }

  // ---- what sessions tell -----------------------------------------------------------------------------------

  authenticated(session: LinkSession): PeerError | undefined {
    if (this.closed) return new PeerError('link/closing', `node ${this.node} is shutting down`);
    if (this.dropped) return new PeerError('link/dropped', `an operator of node ${this.node} dropped this link`);
    if (session !== this.outgoing) {
      if (this.undoing) return new PeerError('link/busy', `node ${this.node} is still undoing a part of its journal`);
      // The peer has no use for two: the older one is a leftover whose end has not been noticed here yet.
      this.incoming?.end(new PeerError('link/replaced', `a newer connection of node ${this.peer} took the place of this one`));
      this.incoming = session;
    }
    this.connects++;
    return undefined;
  }

  shippingFrom(session: LinkSession, lsn: number, wallMs: number): void {
    this.failures = 0;
    this.shippedLsn = lsn;
    this.host.noteOld(lsn, wallMs);
    this.host.log.info(`ships to ${this.peer}`, { from: lsn, behindBytes: this.group.position.lsn - lsn });
    this.acked(session);
  }

  receiving(session: LinkSession): void {
    this.host.receiving(session);
    this.host.log.info(`receives from ${this.peer}`, { from: this.group.position.lsn });
  }

  acked(session: LinkSession): void {
    this.receivedLsn = session.acked.received;
    this.durableLsn = session.acked.durable;
    this.appliedLsn = session.acked.applied;
    this.keepFrom(Math.max(this.durableLsn, firstLsn(this.group)));
    this.host.acked(this);
  }

  mayFetch(session: LinkSession): boolean {
    return this.host.fetching === undefined || this.host.fetching === session;
  }

  takeFetch(session: LinkSession): void {
    this.host.fetching = session;
  }

  releaseFetch(session: LinkSession): void {
    if (this.host.fetching === session) this.host.fetching = undefined;
  }

  rolesChanged(): void {
    this.host.rolesChanged();
  }

  ended(session: LinkSession, error: PeerError): void {
    if (session.shipper !== undefined) this.shippedLsn = Math.max(this.shippedLsn, session.shipper.shippedLsn);
    if (session === this.outgoing) {
      this.outgoing = undefined;
      this.failed(error, session.wasAsked);
      return;
    }
    if (session === this.incoming) this.incoming = undefined;
    this.host.log.warn(`link from ${this.peer}: ${error.message}`, { code: error.code });
    this.lastError = error;
  }

  // ---- operator -----------------------------------------------------------------------------------------------

  /**
   * `link drop`: ends the link and keeps nothing for the peer any more, until the daemon is restarted or `resume` is
   * called. Returns the LSN from which the peer would have had to be served.
   */
  drop(): number {
    const lsn = this.cursor ?? this.durableLsn;
    this.dropped = true;
    if (this.timer !== undefined) this.host.reactor.cancel(this.timer);
    this.timer = undefined;
    const error = new PeerError('link/dropped', `an operator of node ${this.node} dropped this link`);
    this.outgoing?.end(error);
    this.incoming?.end(error);
    this.keepFrom(undefined);
    this.host.acked(this);
    return lsn;
  }

  /** Takes a drop back; what was recycled meanwhile stays gone. */
  resume(): void {
    if (!this.dropped || this.closed) return;
    this.dropped = false;
    this.failures = 0;
    this.attempt();
  }

  /** Ends the sessions at once, and what still lingers of earlier ones that were dialled (others: LinkListener). Idempotent. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    if (this.timer !== undefined) this.host.reactor.cancel(this.timer);
    for (const session of [this.outgoing, this.incoming]) {
      session?.end(new PeerError('link/closing', `node ${this.node} is shutting down`));
      session?.connection.close();
    }
    for (const connection of [...this.dialled]) connection.close();
    this.keepFrom(undefined);
  }

  // ---- status ---------------------------------------------------------------------------------------------------

  get state(): LinkState {
    if (this.dropped) return { kind: 'dropped' };
    const error = this.lastError?.message ?? '';
    const refused = this.lastError !== undefined && isRefusal(this.lastError.code);
    const session = this.outgoing ?? this.incoming;
    if (session === undefined) {
      if (refused) return { kind: 'refused', error };
      if (this.group.role === 'secondary') return { kind: 'waiting', error };
      if (this.config.address === undefined) return { kind: 'no-address' };
      return this.mayDial ? { kind: 'pausing', error } : { kind: 'waiting', error };
    }
    return this.stateOf(session, error, refused);
  }

  private stateOf(session: LinkSession, error: string, refused: boolean): LinkState {
    switch (session.phase) {
      case 'connecting': return refused ? { kind: 'refused', error } : { kind: 'connecting', error };
      case 'hello': return refused ? { kind: 'refused', error } : { kind: 'hello' };
      case 'asking': case 'waiting': return refused ? { kind: 'refused', error } : { kind: 'comparing' };
      case 'rewinding': case 'undoing': return { kind: 'rewinding' };
      case 'holding': return { kind: 'holding' };
      case 'serving': return { kind: 'serving' };
      case 'fetching': return { kind: 'fetching', bytes: Math.max(0, session.fetchUpTo - this.group.position.lsn) };
      case 'shipping': return this.shippingState(session);
      case 'applying': {
        const { applyProblem } = this.group;
        if (applyProblem !== undefined) return { kind: 'kept', why: `receives but does not apply: ${applyProblem}` };
        if (session.applier?.full === true) return { kind: 'stalled', why: 'receives nothing now: the journal of this node is full' };
        return { kind: 'following' };
      }
      case 'ended': return { kind: 'pausing', error };
    }
  }

  private shippingState(session: LinkSession): LinkState {
    const { peer } = this;
    const { shipper, acked } = session;
    if ((acked.flags & AckFlag.kept) !== 0) {
      return { kind: 'kept', why: `${peer} receives but does not apply: ${session.peerKept ?? 'it has not said why'}` };
    }
    if ((acked.flags & AckFlag.full) !== 0) return { kind: 'stalled', why: `the journal of ${peer} is full, so it receives nothing now` };
    if (shipper === undefined || shipper.caughtUp) return { kind: 'streaming' };
    if (shipper.windowFull) return { kind: 'stalled', why: `${peer} has not acknowledged ${shipper.shippedLsn - acked.received} bytes that were sent` };
    return { kind: 'catching-up', bytes: this.group.position.lsn - acked.received };
  }

  status(): LinkStatus {
    const { group, counters, peer } = this;
    const state = this.state;
    const from = group.role === 'secondary';
    const end = group.position.lsn;
    const own = { shipped: end, received: end, durable: group.groupId === undefined ? 0 : group.journal.durableLsn, applied: group.appliedLsn };
    const theirs = {
      shipped: this.outgoing?.shipper?.shippedLsn ?? this.shippedLsn, received: this.receivedLsn, durable: this.durableLsn, applied: this.appliedLsn,
    };
    const known = from ? Math.max(end, this.incoming?.applier?.durableThere ?? 0) : end;
    const place = from ? own : theirs;
    // Before the first contact nobody knows how far the peer is; what is kept for it is the most that it can be served.
    const reached = from || this.connects > 0 ? place.applied : Math.max(place.applied, this.cursor ?? 0);
    const lagBytes = Math.max(0, known - reached);
    const wallMs = this.incoming?.applier?.lastWallMs ?? 0;
    const fromSeconds = wallMs === 0 ? 0 : Math.max(0, this.host.reactor.io.wallMs() - wallMs) / 1000;
    return {
      peer, role: from ? 'from' : 'to', mode: 'async', state: shownState(state), reason: sentenceOf(state, peer),
      ...place, lagBytes, lagSeconds: lagBytes === 0 ? 0 : from ? fromSeconds : this.host.secondsSince(place.applied),
      wireBytes: counters.wireBytesSent + counters.wireBytesReceived, reconnects: Math.max(0, this.connects - 1),
      wireBytesSent: counters.wireBytesSent, wireBytesReceived: counters.wireBytesReceived,
      framesSent: counters.framesSent, framesReceived: counters.framesReceived, lastError: this.lastError?.message ?? '',
    };
  }
}
