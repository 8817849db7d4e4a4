/**
 * Mutual authentication of a link (DESIGN §8): four messages, no I/O.
 *
 * Owns: what is proven, by which computation, and the session's keys. Must not
 * know: sockets, groups' state.
 *
 *   dialer                                          listener
 *   hello {group, from, to, nonce D}        ->
 *                                           <-      challenge {nonce L}
 *   proof {HMAC(secret, "dialer", T)}       ->      checked first: until here the listener has said nothing but a nonce
 *                                           <-      proof {HMAC(secret, "listener", T)}
 *
 * T = version, group, dialer, listener, nonce D, nonce L, each with its length:
 * a proof counts for this connection, these names, this speaker only. Replaying
 * an old one fails, for L is fresh; mirroring one fails, for the speaker is in it.
 * A hello with an unknown group or node is taken to the proof all the same and
 * fails there like a wrong secret: who has no secret learns no names.
 *
 * Session keys, one per direction: HKDF-SHA256(secret, salt SHA-256(T)). They
 * sign every later message that a decision hangs on (message.ts). A
 * secret is shared by the two ends of one link only.
 */

import { createHash, createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import { PeerError } from '../base/errors.js';
import type { Message } from './message.js';
import { MAC_BYTES, NONCE_BYTES, PROTOCOL_VERSION } from './message.js';

/** One end of a link, as configured. */
export interface LinkIdentity {
  readonly group: string;
  /** This node. */
  readonly self: string;
  readonly peer: string;
  /** At least 32 bytes; never logged, never in an error. */
  readonly secret: Uint8Array;
}

export type Speaker = 'dialer' | 'listener';

interface Transcript {
  readonly group: string;
  readonly dialer: string;
  readonly listener: string;
  readonly dialerNonce: Uint8Array;
  readonly listenerNonce: Uint8Array;
}

function bytesOf(t: Transcript): Buffer {
  const parts = ['lockstep link', String(PROTOCOL_VERSION), t.group, t.dialer, t.listener, t.dialerNonce, t.listenerNonce];
  return Buffer.concat(parts.flatMap((part) => {
    const bytes = typeof part === 'string' ? Buffer.from(part) : part;
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    return [length, bytes];
  }));
}

function proofOf(secret: Uint8Array, speaker: Speaker, t: Transcript): Buffer {
  return createHmac('sha256', secret).update(`${speaker}\n`).update(bytesOf(t)).digest();
}

/** Signs what one direction says and checks what the other says. */
export class SessionKeys {
  private readonly sending: Uint8Array;
  private readonly receiving: Uint8Array;

  constructor(secret: Uint8Array, speaker: Speaker, transcript: Transcript) {
    const salt = createHash('sha256').update(bytesOf(transcript)).digest();
    const keys = new Uint8Array(hkdfSync('sha256', secret, salt, 'lockstep link session', 2 * MAC_BYTES));
    const fromDialer = keys.subarray(0, MAC_BYTES);
    const fromListener = keys.subarray(MAC_BYTES);
    this.sending = speaker === 'dialer' ? fromDialer : fromListener;
    this.receiving = speaker === 'dialer' ? fromListener : fromDialer;
  }

  /** MAC of what is sent: `header` = the frame header's bytes [8, 28), `body` = the body before the MAC. */
  sign(header: Uint8Array, body: Uint8Array): Uint8Array {
    return createHmac('sha256', this.sending).update(header).update(body).digest();
  }

  verify(header: Uint8Array, body: Uint8Array, mac: Uint8Array): boolean {
    const expected = createHmac('sha256', this.receiving).update(header).update(body).digest();
    return mac.length === MAC_BYTES && timingSafeEqual(expected, mac);
  }
}

/** What the dialer says and checks. Methods are called in the order in which they stand. */
export class DialerHello {
  private transcript: Transcript | undefined;

  /** `nonce`: NONCE_BYTES strong random bytes, for this connection only. */
  constructor(private readonly identity: LinkIdentity, private readonly nonce: Uint8Array) {}

  hello(): Message<'hello'> {
    const { group, self, peer } = this.identity;
    return { group, from: self, to: peer, nonce: this.nonce };
  }

  challenged(challenge: Message<'challenge'>): Message<'proof'> {
    const { group, self, peer, secret } = this.identity;
    this.transcript = { group, dialer: self, listener: peer, dialerNonce: this.nonce, listenerNonce: challenge.nonce };
    return { mac: proofOf(secret, 'dialer', this.transcript) };
  }

  /** Throws PeerError when the listener does not have the secret. */
  proven(proof: Message<'proof'>): SessionKeys {
    const { peer, secret } = this.identity;
    if (this.transcript === undefined) throw new PeerError('link/unexpected', 'a proof before a challenge');
    if (!timingSafeEqual(proof.mac, proofOf(secret, 'listener', this.transcript))) {
      throw new PeerError('link/wrong-secret', `who answers at the address of node ${peer} does not have the secret of this link`);
    }
    return new SessionKeys(secret, 'dialer', this.transcript);
  }
}

/** Looks a link up; a PeerError says why there is none. */
export type FindIdentity = (group: string, from: string, to: string) => LinkIdentity | PeerError;

/** What the listener says and checks. */
export class ListenerHello {
  private identity: LinkIdentity | undefined;
  private problem: PeerError | undefined;
  private transcript: Transcript | undefined;
  /** Whom the dialer claims to be; nothing is proven by it. */
  claim = '';

  /** `randomBytes` gives strong random bytes. */
  constructor(private readonly find: FindIdentity, private readonly randomBytes: (count: number) => Uint8Array) {}

  greeted(hello: Message<'hello'>): Message<'challenge'> {
    const found = this.find(hello.group, hello.from, hello.to);
    if (found instanceof PeerError) this.problem = found;
    else this.identity = found;
    this.claim = `node ${hello.from} in group ${hello.group}`;
    const listenerNonce = this.randomBytes(NONCE_BYTES);
    this.transcript = { group: hello.group, dialer: hello.from, listener: hello.to, dialerNonce: hello.nonce, listenerNonce };
    return { nonce: listenerNonce };
  }

  /** Throws PeerError when the dialer is not who it says; the sentence is for our own log, not for the dialer. */
  proven(proof: Message<'proof'>): { identity: LinkIdentity; reply: Message<'proof'>; keys: SessionKeys } {
    const { identity, transcript } = this;
    if (transcript === undefined) throw new PeerError('link/unexpected', 'a proof before a hello');
    // Without an identity the same work is done with a random secret.
    const secret = identity?.secret ?? this.randomBytes(MAC_BYTES);
    const right = timingSafeEqual(proof.mac, proofOf(secret, 'dialer', transcript));
    if (this.problem !== undefined) throw this.problem;
    if (!right || identity === undefined) {
      throw new PeerError('link/wrong-secret', `who calls itself ${this.claim} does not have the secret of that link`);
    }
    return { identity, reply: { mac: proofOf(secret, 'listener', transcript) }, keys: new SessionKeys(secret, 'listener', transcript) };
  }
}

/** What a dialer that has proven nothing is told, whatever is wrong. */
export const NOT_ACCEPTED = {
  code: 'link/not-accepted',
  message: 'the other node does not accept this link: group, node names or secret do not match its configuration; its log says which',
} as const;
