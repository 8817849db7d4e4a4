/**
 * One connection between two nodes about one group, from the first byte to the
 * last.
 *
 * Owns: who may say what in each phase (phase.ts), heartbeats, the end. Must not
 * know: how connections come about (link.ts, listener.ts), how the two ends prove
 * who they are (greeting.ts), how histories are compared (decide.ts, choose.ts,
 * obey.ts), how batches move (shipper.ts, applier.ts).
 */

import { assert, unreachable } from '../base/assert.js';
import { PeerError } from '../base/errors.js';
import type { ReplicatedGroup } from '../group/replica.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { Applier } from './applier.js';
import { answerOf, Questions } from './asking.js';
import { Connection } from './connection.js';
import type { FrameHandler } from './connection.js';
import { choose } from './choose.js';
import { newerEpoch } from './decide.js';
import type { NodeView } from './decide.js';
import { Greeting, rejection } from './greeting.js';
import type { DialerHello, LinkIdentity, ListenerHello, SessionKeys } from './hello.js';
import { boundaryAt, durableLsn, placeOf, positionMessage, viewOf, viewOfPeer } from './history.js';
import { obey } from './obey.js';
import type { Message, MessageName } from './message.js';
import { ack, AckFlag, cleanSentence, decodeMessage, FrameType as Type, MAX_KEPT } from './message.js';
import type { LinkOptions } from './options.js';
import { isRefusal } from './options.js';
import type { LinkCounters } from './outbox.js';
import { fitsRole } from './phase.js';
import type { Phase } from './phase.js';
import { Shipper } from './shipper.js';
import { isShort } from './windows.js';

/** The link that a session belongs to (link.ts). */
export interface SessionOwner {
  readonly group: ReplicatedGroup;
  readonly node: string;
  readonly peer: string;
  readonly counters: LinkCounters;
  /** The group is undoing a part of its journal for one of its links. */
  undoing: boolean;
  /** The session has authenticated. A PeerError refuses it. */
  authenticated(session: LinkSession): PeerError | undefined;
  /** The peer stands at `lsn` and is about to be served from there; `wallMs`: when the batch there was built, 0 = none. */
  shippingFrom(session: LinkSession, lsn: number, wallMs: number): void;
  /** Only one session of a group receives: the others end. */
  receiving(session: LinkSession): void;
  acked(session: LinkSession): void;
  /** Whether no other session fetches; at most one of a group does. */
  mayFetch(session: LinkSession): boolean;
  takeFetch(session: LinkSession): void;
  releaseFetch(session: LinkSession): void;
  /** The group's role may have changed. */
  rolesChanged(): void;
  ended(session: LinkSession, error: PeerError): void;
}

/** How a session begins. */
export type SessionStart =
  | { readonly kind: 'dialer'; readonly hello: DialerHello; readonly owner: SessionOwner }
  | {
    readonly kind: 'listener';
    readonly hello: ListenerHello;
    readonly resolve: (identity: LinkIdentity) => SessionOwner;
    /** Ended before anybody could be told whose session it was. */
    readonly onStranger: (error: PeerError, claim: string, peerName: string) => void;
  };

export class LinkSession implements FrameHandler {
  phase: Phase;
  readonly connection: Connection;
  /** What the peer said last about itself. */
  peerView: NodeView | undefined;
  private peerDurable = 0;
  private peerApplied = 0;
  shipper: Shipper | undefined;
  applier: Applier | undefined;
  /** The peer's last ack. */
  readonly acked = { received: 0, durable: 0, applied: 0, flags: 0 };
  /** Why the peer does not apply; undefined when it does. */
  peerKept: string | undefined;
  /** Of a primary that ships: what its peer was asked and has not answered. */
  readonly questions = new Questions((message) => this.say('ask', message));
  fetchUpTo = 0;
  /** While recovering: the group was told that this peer has nothing more. */
  wasAsked = false;
  /** Dialer: the peer has more for us, but another session fetches now. */
  fetchWaits = false;
  /** Dialer: rewinds that were asked for. */
  rewinds = 0;
  /** Listener: the journal is kept for a fetch. */
  serving = false;
  endedWith: PeerError | undefined;

  private readonly greeting: Greeting;
  private owner: SessionOwner | undefined;
  private handshakeTimer: TimerId | undefined;
  private beatTimer: TimerId | undefined;
  private holdTimer: TimerId | undefined;
  private removeRoom: (() => void) | undefined;
  private readonly shown: string;

  constructor(readonly reactor: Reactor, fd: number, private readonly begin: SessionStart, readonly options: LinkOptions) {
    this.connection = new Connection(reactor, fd, this);
    this.greeting = new Greeting(this, begin);
    this.owner = begin.kind === 'dialer' ? begin.owner : undefined;
    this.phase = begin.kind === 'dialer' ? 'connecting' : 'hello';
    this.shown = reactor.io.peerName(fd);
  }

  /** Takes the descriptor over, also when it throws (PeerError: no memory). */
  start(): void {
    this.connection.start(this.begin.kind === 'dialer');
    if (this.begin.kind === 'listener') this.greeting.listens();
    this.handshakeTimer = this.reactor.after(this.options.handshakeUs, () => {
      this.handshakeTimer = undefined;
      this.end(new PeerError('link/timeout', 'the peer did not authenticate and say its position in time'));
    });
  }

  get authenticated(): boolean {
    return this.connection.keys !== undefined;
  }

  /** The link; only after authentication (a dialer has it from the start). */
  get link(): SessionOwner {
    assert(this.owner !== undefined, 'a session without its link');
    return this.owner;
  }

  get group(): ReplicatedGroup {
    return this.link.group;
  }

  private get durableLsn(): number {
    return this.authenticated ? durableLsn(this.group) : 0;
  }

  // ---- frames -------------------------------------------------------------------------------------------

  connected(): void {
    this.phase = 'hello';
    this.greeting.connected();
  }

  frame(type: number, at: number, bytes: number, durableLsn: number): boolean {
    switch (type as Type) {
      case Type.batch:
        return this.onBatch(at, bytes, durableLsn);
      case Type.ack:
        this.onAck(at);
        return true;
      case Type.heartbeat:
        this.applier?.heard(durableLsn);
        return true;
      case Type.hello:
        this.greeting.hello(this.read('hello', at, bytes));
        return true;
      case Type.challenge:
        this.greeting.challenge(this.read('challenge', at, bytes));
        return true;
      case Type.proof:
        this.greeting.proof(this.read('proof', at, bytes));
        return true;
      case Type.position:
        this.onPosition(this.read('position', at, bytes));
        return true;
      case Type.plan:
        obey(this, this.read('plan', at, bytes));
        return true;
      case Type.fetched:
        this.onFetched();
        return true;
      case Type.state: {
        const { kept } = this.read('state', at, bytes);
        this.peerKept = kept === null ? undefined : cleanSentence(kept, MAX_KEPT);
        return true;
      }
      case Type.ask:
        this.say('answer', answerOf(this.group, this.read('ask', at, bytes)));
        return true;
      case Type.answer:
        this.questions.answered(this.read('answer', at, bytes));
        return true;
      case Type.goodbye: {
        const { code, message } = this.read('goodbye', at, bytes);
        this.finish(new PeerError(code, `node ${this.link.peer} says: ${cleanSentence(message)}`));
        return true;
      }
      case Type.reject:
        this.finish(this.greeting.rejected(this.read('reject', at, bytes)));
        return true;
      default:
        return unreachable(type as never);
    }
  }

  private read<N extends MessageName>(name: N, at: number, bytes: number): Message<N> {
    return decodeMessage(name, this.reactor.arena.u8.subarray(at, at + bytes));
  }

  say<N extends MessageName>(name: N, message: Message<N>): void {
    this.connection.send(name, message, this.durableLsn);
  }

  drained(): void {
    this.shipper?.pump();
    this.applier?.acknowledge(false);
  }

  ended(error: PeerError): void {
    this.end(error);
  }

  // ---- authentication -------------------------------------------------------------------------------------

  /** The peer has proven who it is; a listener learns from `identity` whose session it is. */
  proven(keys: SessionKeys, identity: LinkIdentity | undefined): void {
    this.connection.keys = keys;
    if (this.begin.kind === 'listener') {
      this.owner = this.begin.resolve(identity!);
      this.phase = 'waiting';
      this.connection.allow(Type.position, Type.goodbye, Type.heartbeat, Type.reject);
    }
    this.connection.countInto(this.link.counters);
    const refused = this.link.authenticated(this);
    if (refused !== undefined) {
      this.end(refused);
      return;
    }
    this.beat();
    if (this.begin.kind === 'dialer' && this.phase !== 'ended') this.ask();
  }

  // ---- comparing histories --------------------------------------------------------------------------------

  /** Dialer: exchanges positions. */
  private ask(): void {
    this.phase = 'asking';
    this.connection.allow(Type.position, Type.goodbye, Type.heartbeat);
    this.say('position', positionMessage(this.group));
  }

  private onPosition(message: Message<'position'>): void {
    this.peerView = viewOfPeer(this.link.peer, message);
    this.peerDurable = message.durableLsn;
    this.peerApplied = message.appliedLsn;
    if (this.handshakeTimer !== undefined) this.reactor.cancel(this.handshakeTimer);
    this.handshakeTimer = undefined;
    if (this.begin.kind === 'dialer') {
      choose(this, this.peerView);
      return;
    }
    const { group } = this;
    const newer = newerEpoch(viewOf(group, this.link.node), this.peerView);
    if (newer !== undefined && (group.role === 'primary' || group.role === 'recovering')) {
      group.fence(newer, this.link.peer);
      this.link.rolesChanged();
      if ((this.phase) === 'ended') return;
    }
    this.phase = 'waiting';
    this.connection.allow(Type.position, Type.plan, Type.ack, Type.state, Type.goodbye, Type.heartbeat);
    this.say('position', positionMessage(group));
  }

  /** Dialer: fetches from now on, unless another session of the group does: then false. */
  claimFetch(): boolean {
    if (!this.link.mayFetch(this)) return false;
    this.link.takeFetch(this);
    return true;
  }

  /** Only one session of a group receives: the others end. */
  claimReceiving(): void {
    this.link.receiving(this);
  }

  /** Dialer: waits for its own group, then asks again. */
  hold(): void {
    this.phase = 'holding';
    this.connection.allow(Type.goodbye, Type.heartbeat);
    this.holdTimer = this.reactor.after(this.options.holdUs, () => {
      this.holdTimer = undefined;
      if (this.phase !== 'holding') return;
      this.checkRole();
      if ((this.phase as Phase) === 'ended') return;
      if (this.group.role === 'primary' || (this.fetchWaits && this.link.mayFetch(this))) this.ask();
      else this.hold();
    });
  }

  private onFetched(): void {
    const { group, link } = this;
    if (group.position.lsn !== this.fetchUpTo) {
      throw new PeerError('link/bad-batch', `node ${link.peer} says that it sent all up to LSN ${this.fetchUpTo}, but it ended at ${group.position.lsn}`);
    }
    this.applier?.acknowledge(true);
    this.applier?.close();
    this.applier = undefined;
    link.releaseFetch(this);
    this.asked();
  }

  /** Dialer, recovering: this peer has been asked, and has nothing more for us. */
  asked(): void {
    this.fetchWaits = false;
    this.wasAsked = true;
    this.hold();
    this.group.peerAsked(this.link.peer, 'fetched');
  }

  // ---- sending and receiving batches ------------------------------------------------------------------------

  ship(from: number): void {
    this.phase = 'shipping';
    this.connection.allow(Type.ack, Type.state, Type.answer, Type.goodbye, Type.heartbeat);
    this.connection.setBuffers(this.options.socketBytes);
    const boundary = boundaryAt(this.reactor, this.group, from);
    this.acked.received = from;
    this.acked.durable = Math.min(from, this.peerDurable);
    this.acked.applied = Math.min(from, this.peerApplied);
    this.link.shippingFrom(this, from, boundary?.wallMs ?? 0);
    const { position } = this.peerView!;
    this.say('plan', { kind: 'stream', from: placeOf(position) });
    if (this.connection.open) this.startShipper(from, undefined, () => undefined);
  }

  /** Also of a listener that serves a fetch. */
  startShipper(from: number, upTo: number | undefined, onDone: () => void): void {
    this.shipper = new Shipper(this.reactor, this.group, this.link.peer, this.connection, this.options, from, upTo, onDone, (error) => this.end(error));
    this.shipper.pump();
  }

  /** Gets ready to receive batches; also of a listener that follows. */
  receive(mode: 'follow' | 'fetch'): void {
    const peer = this.peerView!;
    this.connection.setBuffers(this.options.socketBytes);
    this.connection.setReceiveBytes(this.options.receiveBytes, this.options.windows);
    this.applier = new Applier(this.reactor, this.group, this.link.peer, this.connection, this.options, mode, { epochs: peer.epochs, lsn: peer.position.lsn });
    this.removeRoom ??= this.group.onRoom(() => {
      if (this.applier !== undefined) this.connection.resume();
    });
  }

  private onBatch(at: number, bytes: number, durableLsn: number): boolean {
    const applier = this.applier;
    if (applier === undefined) throw new PeerError('link/unexpected', 'a batch came where none may come');
    if (this.phase === 'fetching' && this.group.position.lsn >= this.fetchUpTo) throw new PeerError('link/bad-batch', 'more was sent than was asked for');
    return applier.batch(at, bytes, durableLsn).kind === 'taken';
  }

  /** One ack for all that a receive brought. */
  delivered(): void {
    this.applier?.acknowledge(false);
  }

  durableMoved(): void {
    this.applier?.acknowledge(false);
  }

  private onAck(at: number): void {
    const { view } = this.reactor.arena;
    const received = ack.received(view, at);
    const durable = ack.durable(view, at);
    const applied = ack.applied(view, at);
    const { shipper, acked } = this;
    if (shipper === undefined) return; // of an earlier phase
    if (received > shipper.shippedLsn || received < acked.received || durable > received || durable < acked.durable || applied > received) {
      throw new PeerError('link/bad-ack', `an ack of LSN ${received} (durable ${durable}, applied ${applied}) where ${shipper.shippedLsn} was shipped and ${acked.received} acknowledged`);
    }
    acked.received = received;
    acked.durable = durable;
    acked.applied = applied;
    acked.flags = ack.flags(view, at);
    if ((acked.flags & AckFlag.kept) === 0) this.peerKept = undefined;
    shipper.acknowledged(received);
    if (this.phase === 'shipping') this.link.acked(this);
  }

  /** After an append of the own group, while the batch is in the arena. */
  appended(): void {
    if (this.phase === 'shipping') this.shipper?.appended();
  }

  // ---- signs of life ----------------------------------------------------------------------------------------

  private beat(): void {
    this.beatTimer = this.reactor.after(this.options.heartbeatUs, () => {
      this.beatTimer = undefined;
      if (this.phase === 'ended') return;
      const now = this.reactor.nowUs;
      if (!this.connection.isPaused && now - this.connection.lastReceivedUs > this.options.deadUs) {
        this.end(new PeerError('link/silent', `nothing was heard from the peer for ${Math.round((now - this.connection.lastReceivedUs) / 1e6)} s`));
        return;
      }
      this.checkRole();
      if ((this.phase as Phase) === 'ended') return;
      if (this.applier !== undefined && this.waitsForPrimaryDurable) {
        // What would tell lies behind the frame for which there is no room: a new connection says it at once.
        this.end(new PeerError('link/ask-durable', 'the journal is full until the primary says how far its own is durable; connects again to hear it'));
        return;
      }
      const stuckUs = 2 * this.options.heartbeatUs;
      if (isShort(this.reactor.arena) && (this.connection.hoards(stuckUs) || this.shipper?.hoards(stuckUs) === true)) {
        this.end(new PeerError('link/no-memory', 'no batch goes on here, and other links need the memory that it holds: connects again'));
        return;
      }
      this.shipper?.pump();
      if (this.applier !== undefined) this.applier.acknowledge(true);
      else if (this.connection.idle) this.connection.sendEmpty(Type.heartbeat, this.durableLsn);
      if ((this.phase as Phase) !== 'ended') this.beat();
    });
  }

  /** The journal here is full, and only the primary's durable LSN keeps it from being destaged. */
  private get waitsForPrimaryDurable(): boolean {
    const { group, applier } = this;
    return applier?.full === true && group.stableLsn < group.appliedLsn && group.journal.stableLsn >= group.appliedLsn;
  }

  /** Ends the session if the own group's role no longer allows it. */
  checkRole(): void {
    if (this.phase === 'ended' || !this.authenticated) return;
    const { role, roleReason } = this.group;
    if (!fitsRole(this.phase, role)) this.end(new PeerError('link/role-changed', `node ${this.link.node} is ${role} now: ${cleanSentence(roleReason)}`));
  }

  // ---- the end ------------------------------------------------------------------------------------------------

  /** Ends the session for a reason of ours, and tells the peer as much as it may know. */
  end(error: PeerError): void {
    if (this.phase === 'ended') return;
    if (this.connection.open && error.code !== 'link/lost') {
      this.phase = 'ended';
      if (this.authenticated) this.say('goodbye', { code: error.code, message: cleanSentence(error.message) });
      else this.say('reject', rejection(error));
    }
    this.finish(error);
  }

  private finished = false;

  private finish(error: PeerError): void {
    if (this.finished) return;
    this.finished = true;
    this.phase = 'ended';
    this.endedWith = error;
    for (const timer of [this.handshakeTimer, this.beatTimer, this.holdTimer]) if (timer !== undefined) this.reactor.cancel(timer);
    this.removeRoom?.();
    // First the connection: its queue borrows from the shipper.
    this.connection.linger(this.options.lingerUs);
    this.shipper?.close();
    this.applier?.close();
    const owner = this.owner;
    if (owner !== undefined) {
      owner.releaseFetch(this);
      if (this.serving) owner.group.setCursor(owner.peer, undefined);
      owner.ended(this, error);
    } else if (this.begin.kind === 'listener') {
      this.begin.onStranger(error, this.begin.hello.claim, this.shown);
    }
    this.questions.end();
  }

  /** Whether the end was a refusal. */
  get refused(): boolean {
    return this.endedWith !== undefined && isRefusal(this.endedWith.code);
  }
}
