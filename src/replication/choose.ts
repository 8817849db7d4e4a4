/**
 * What a dialer does with the listener's position: carries out the plan of
 * decide.ts. Owns that step only; must not know frames. The listener's half is
 * obey.ts.
 */

import { unreachable } from '../base/assert.js';
import { PeerError } from '../base/errors.js';
import type { ReplicatedGroup } from '../group/replica.js';
import type { Reactor } from '../io/reactor.js';
import type { Connection } from './connection.js';
import { decide } from './decide.js';
import type { NodeView } from './decide.js';
import { boundaryAt, placeOf, viewOf } from './history.js';
import { FrameType as Type } from './message.js';
import type { Message, MessageName } from './message.js';
import type { Phase } from './phase.js';

/** The dialer's session, as far as this step needs it. */
export interface Dialer {
  readonly reactor: Reactor;
  readonly group: ReplicatedGroup;
  readonly link: { readonly node: string; readonly peer: string; rolesChanged(): void };
  readonly connection: Connection;
  phase: Phase;
  /** The peer has more for us, but another session fetches now. */
  fetchWaits: boolean;
  fetchUpTo: number;
  /** Rewinds that were asked for. */
  rewinds: number;
  say<N extends MessageName>(name: N, message: Message<N>): void;
  /** Fetches from now on, unless another session of the group does: then false. */
  claimFetch(): boolean;
  /** Waits for its own group, then asks again. */
  hold(): void;
  /** This peer has been asked, and has nothing more for us. */
  asked(): void;
  receive(mode: 'fetch'): void;
  ship(from: number): void;
  end(error: PeerError): void;
}

/** Throws PeerError when nothing can be done: the session ends, and the peer is told. */
export function choose(session: Dialer, peer: NodeView): void {
  const { group, link } = session;
  const plan = decide(viewOf(group, link.node), peer, (lsn) => boundaryAt(session.reactor, group, lsn)?.position);
  switch (plan.kind) {
    case 'refuse':
      throw new PeerError(plan.code, plan.sentence);
    case 'fenced': {
      const { newer } = plan;
      group.fence(newer, link.peer);
      session.end(new PeerError('link/older-epoch',
        `node ${link.node} was primary up to LSN ${newer.start.lsn}; there node ${newer.node} became primary with epoch ${newer.number}, so node ${link.node} serves no more`));
      link.rolesChanged();
      return;
    }
    case 'fetch':
      session.fetchWaits = !session.claimFetch();
      if (session.fetchWaits) {
        session.hold();
        return;
      }
      session.phase = 'fetching';
      session.fetchUpTo = plan.upTo;
      session.receive('fetch');
      session.connection.allow(Type.batch, Type.fetched, Type.goodbye, Type.heartbeat);
      session.say('plan', { kind: 'fetch', from: placeOf(plan.from), upTo: plan.upTo });
      return;
    case 'rewind':
    case 'stream':
      if (group.role === 'recovering') {
        // It has nothing of our last epoch that we lack. Sending has to wait for the new epoch: what we have may yet
        // turn out to be behind the point where another node took over.
        session.asked();
      } else if (plan.kind === 'stream') {
        session.ship(plan.from.lsn);
      } else {
        session.rewinds++;
        if (session.rewinds > 1) throw new PeerError('link/diverged', `node ${link.peer} did not come to LSN ${plan.to.lsn} by a rewind`);
        session.phase = 'rewinding';
        session.say('plan', { kind: 'rewind', to: placeOf(plan.to) });
      }
      return;
    default:
      unreachable(plan);
  }
}
