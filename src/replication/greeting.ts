/**
 * The greeting of a session: the messages until both ends have proven who they
 * are, in their order.
 *
 * Owns: who says which of them when, and what somebody who has proven nothing is
 * told. Must not know: what is proven and how (hello.ts), groups, what comes
 * after.
 */

import { assert } from '../base/assert.js';
import { PeerError } from '../base/errors.js';
import type { Connection } from './connection.js';
import type { DialerHello, LinkIdentity, ListenerHello, SessionKeys } from './hello.js';
import { NOT_ACCEPTED } from './hello.js';
import type { Message, MessageName } from './message.js';
import { cleanSentence, FrameType as Type } from './message.js';
import type { Phase } from './phase.js';

export type GreetingSide =
  | { readonly kind: 'dialer'; readonly hello: DialerHello; readonly owner: { readonly peer: string } }
  | { readonly kind: 'listener'; readonly hello: ListenerHello };

/** The session, as far as its greeting needs it. */
export interface GreetingHost {
  readonly connection: Connection;
  readonly phase: Phase;
  say<N extends MessageName>(name: N, message: Message<N>): void;
  /** The peer has proven who it is: to a listener, that it is `identity.peer`. */
  proven(keys: SessionKeys, identity: LinkIdentity | undefined): void;
}

/** Each method throws PeerError when the message is wrong: the session ends. */
export class Greeting {
  constructor(private readonly session: GreetingHost, private readonly side: GreetingSide) {}

  /** Listener: waits for the first message. */
  listens(): void {
    this.session.connection.allow(Type.hello);
  }

  /** Dialer: says the first message. */
  connected(): void {
    assert(this.side.kind === 'dialer', 'a listener does not connect');
    this.session.connection.allow(Type.challenge, Type.reject);
    this.session.say('hello', this.side.hello.hello());
  }

  hello(hello: Message<'hello'>): void {
    assert(this.side.kind === 'listener', 'a hello at a dialer');
    this.session.connection.allow(Type.proof, Type.reject);
    this.session.say('challenge', this.side.hello.greeted(hello));
  }

  challenge(challenge: Message<'challenge'>): void {
    assert(this.side.kind === 'dialer', 'a challenge at a listener');
    this.session.connection.allow(Type.proof, Type.reject);
    this.session.say('proof', this.side.hello.challenged(challenge));
  }

  proof(proof: Message<'proof'>): void {
    const { session, side } = this;
    if (side.kind === 'dialer') {
      session.proven(side.hello.proven(proof), undefined);
      return;
    }
    const { identity, reply, keys } = side.hello.proven(proof);
    // Unsigned, and the last such message: the dialer derives its keys when it has checked this.
    session.say('proof', reply);
    if (session.phase !== 'ended') session.proven(keys, identity);
  }

  /** What a `reject` of the peer ends the session with. */
  rejected(reject: Message<'reject'>): PeerError {
    const { side } = this;
    const who = side.kind === 'dialer' ? `node ${side.owner.peer}` : `who calls itself ${side.hello.claim}`;
    if (reject.code !== NOT_ACCEPTED.code) {
      return new PeerError(reject.code, `${who} says, without having proven who it is: ${cleanSentence(reject.message)}`);
    }
    const why = side.kind === 'dialer'
      ? 'does not accept this link: group, node names or secret do not match its configuration; its log says which'
      : 'does not accept the proof of this node: the secrets differ';
    return new PeerError(NOT_ACCEPTED.code, `${who} ${why}`);
  }
}

/** What a peer that has proven nothing is told of the error that ends its session: nothing, but for its version. */
export function rejection(error: PeerError): Message<'reject'> {
  return error.code === 'link/version' ? { code: error.code, message: cleanSentence(error.message) } : { ...NOT_ACCEPTED };
}
