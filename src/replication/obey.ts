/**
 * What a listener does with the dialer's plan.
 *
 * Owns: the listener's own checks. It believes nothing that it can look up in
 * its own journal: a wrong plan ends the session and changes nothing. Must not
 * know: frames.
 */

import { IoError, PeerError } from '../base/errors.js';
import type { ReplicatedGroup } from '../group/replica.js';
import type { Reactor } from '../io/reactor.js';
import { samePosition } from '../journal/position.js';
import type { Applier } from './applier.js';
import type { Connection } from './connection.js';
import { newerEpoch } from './decide.js';
import type { NodeView } from './decide.js';
import { boundaryAt, positionMessage, viewOf } from './history.js';
import type { Message, MessageName } from './message.js';
import { cleanSentence, FrameType as Type } from './message.js';
import type { Phase } from './phase.js';
import type { Shipper } from './shipper.js';

/** The listener's session, as far as this step needs it. */
export interface Listener {
  readonly reactor: Reactor;
  readonly group: ReplicatedGroup;
  /** `undoing`: the group is undoing a part of its journal for one of its links. */
  readonly link: { readonly node: string; readonly peer: string; undoing: boolean };
  readonly connection: Connection;
  /** What the dialer said last about itself. */
  readonly peerView: NodeView | undefined;
  phase: Phase;
  /** The journal is kept for a fetch. */
  serving: boolean;
  shipper: Shipper | undefined;
  readonly applier: Applier | undefined;
  say<N extends MessageName>(name: N, message: Message<N>): void;
  /** Only one session of a group receives: the others end. */
  claimReceiving(): void;
  receive(mode: 'follow'): void;
  startShipper(from: number, upTo: number | undefined, onDone: () => void): void;
  end(error: PeerError): void;
}

/** Throws PeerError when the plan cannot be carried out: the session ends, and the dialer is told. */
export function obey(session: Listener, plan: Message<'plan'>): void {
  const { group, link, peerView: dialer } = session;
  if (dialer === undefined) throw new PeerError('link/unexpected', 'a plan before a position');
  if (group.role !== 'secondary') {
    throw new PeerError('link/role', `node ${link.node} is ${group.role} and follows nobody: ${cleanSentence(group.roleReason)}`);
  }
  if (dialer.role !== 'primary' && dialer.role !== 'recovering') throw new PeerError('link/role', `node ${dialer.node} is ${dialer.role}, and only a primary makes plans`);
  if (dialer.groupId === undefined) throw new PeerError('link/no-group', `node ${dialer.node} has no group`);
  if (group.groupId !== undefined && group.groupId !== dialer.groupId) {
    throw new PeerError('link/other-group', `this group of node ${link.node} is another one (id ${group.groupId}) than that of node ${dialer.node} (id ${dialer.groupId})`);
  }
  const newer = newerEpoch(dialer, viewOf(group, link.node));
  if (newer !== undefined) {
    throw new PeerError('link/older-epoch', `node ${dialer.node} belongs to an older epoch: node ${newer.node} became primary with epoch ${newer.number} at LSN ${newer.start.lsn}`);
  }
  switch (plan.kind) {
    case 'stream':
      follow(session, plan);
      return;
    case 'rewind':
      rewind(session, plan);
      return;
    case 'fetch':
      serve(session, plan);
      return;
  }
}

function follow(session: Listener, plan: Extract<Message<'plan'>, { kind: 'stream' }>): void {
  const { group, link } = session;
  if (!samePosition(plan.from, group.position)) {
    throw new PeerError('link/bad-plan', `node ${link.node} stands at LSN ${group.position.lsn} and cannot be sent the stream from LSN ${plan.from.lsn}`);
  }
  session.claimReceiving();
  if (group.groupId === undefined) adopt(session, session.peerView!.groupId!);
  session.phase = 'applying';
  session.connection.allow(Type.batch, Type.ask, Type.goodbye, Type.heartbeat);
  session.receive('follow');
  session.applier?.acknowledge(true);
}

/** Makes the first journal of this node's group: what the disk says to that ends the link, not the node. */
function adopt(session: Listener, groupId: string): void {
  try {
    session.group.adoptGroupId(groupId);
  } catch (error) {
    if (!(error instanceof IoError)) throw error;
    throw new PeerError('link/group-failed', `node ${session.link.node} cannot make its journal: ${error.message}`);
  }
}

function rewind(session: Listener, plan: Extract<Message<'plan'>, { kind: 'rewind' }>): void {
  const { group, link, peerView } = session;
  const { to } = plan;
  if (to.lsn < group.stableLsn) {
    throw new PeerError('link/needs-resync', `what node ${link.node} has up to LSN ${group.stableLsn} cannot be undone any more, so it cannot go back to LSN ${to.lsn}; it needs a resync, which this version does not have`);
  }
  const own = boundaryAt(session.reactor, group, to.lsn)?.position;
  if (own === undefined || !samePosition(own, to)) throw new PeerError('link/diverged', `nodes ${link.peer} and ${link.node} hold different records below LSN ${to.lsn}`);
  const foreign = group.epochs.find((epoch) => epoch.start.lsn >= to.lsn && epoch.node !== peerView?.node);
  if (foreign !== undefined) {
    throw new PeerError('link/diverged', `node ${link.node} has epoch ${foreign.number} of node ${foreign.node} from LSN ${foreign.start.lsn} on, and undoes nothing of it`);
  }
  session.claimReceiving();
  link.undoing = true;
  session.phase = 'undoing';
  session.connection.allow(Type.goodbye, Type.heartbeat);
  group.rewind(to, (refusal) => {
    link.undoing = false;
    if (session.phase !== 'undoing') return;
    if (refusal !== undefined) {
      session.end(new PeerError('link/rewind-failed', `node ${link.node} cannot go back to LSN ${to.lsn}: ${refusal}`));
      return;
    }
    session.phase = 'waiting';
    session.connection.allow(Type.position, Type.plan, Type.goodbye, Type.heartbeat);
    session.say('position', positionMessage(group));
  });
}

/** A recovering primary fetches what it lost: the roles of shipper and applier are reversed. */
function serve(session: Listener, plan: Extract<Message<'plan'>, { kind: 'fetch' }>): void {
  const { group, link, peerView } = session;
  if (peerView?.role !== 'recovering') throw new PeerError('link/bad-plan', 'only a primary that recovers fetches');
  if (plan.upTo !== group.position.lsn) throw new PeerError('link/bad-plan', `node ${link.node} stands at LSN ${group.position.lsn}, not at ${plan.upTo}`);
  const { firstLsn } = group.journal.pool;
  if (plan.from.lsn < firstLsn) {
    throw new PeerError('link/not-retained', `node ${link.peer} lost what it had from LSN ${plan.from.lsn} on, and node ${link.node} has the journal only from LSN ${firstLsn} on`);
  }
  const own = boundaryAt(session.reactor, group, plan.from.lsn)?.position;
  if (own === undefined || !samePosition(own, plan.from)) throw new PeerError('link/diverged', `nodes ${link.peer} and ${link.node} hold different records below LSN ${plan.from.lsn}`);
  session.phase = 'serving';
  session.connection.allow(Type.ack, Type.state, Type.position, Type.goodbye, Type.heartbeat);
  group.setCursor(link.peer, plan.from.lsn);
  session.serving = true;
  session.startShipper(plan.from.lsn, plan.upTo, () => {
    session.shipper = undefined;
    session.serving = false;
    group.setCursor(link.peer, undefined);
    session.phase = 'waiting';
    session.connection.sendEmpty(Type.fetched, group.journal.durableLsn);
  });
}
