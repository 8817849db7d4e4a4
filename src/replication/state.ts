/**
 * What a link is doing, for people: every state with its sentence.
 *
 * Owns: the union of states, their sentences, the entry that `status` shows.
 * Must not know: how a link gets into a state. The entry fits LinkEntry of
 * control/schema/replies.ts, which this part may not import.
 */

import { unreachable } from '../base/assert.js';
import { formatSize } from '../base/units.js';

export type LinkState =
  /** Nothing to do: this node does not dial now. */
  | { readonly kind: 'waiting'; readonly error: string }
  | { readonly kind: 'no-address' }
  | { readonly kind: 'connecting'; readonly error: string }
  /** Between two attempts. */
  | { readonly kind: 'pausing'; readonly error: string }
  | { readonly kind: 'refused'; readonly error: string }
  | { readonly kind: 'hello' }
  | { readonly kind: 'comparing' }
  | { readonly kind: 'rewinding' }
  | { readonly kind: 'fetching'; readonly bytes: number }
  | { readonly kind: 'serving' }
  | { readonly kind: 'holding' }
  | { readonly kind: 'catching-up'; readonly bytes: number }
  | { readonly kind: 'streaming' }
  /** The other side receives nothing now. */
  | { readonly kind: 'stalled'; readonly why: string }
  | { readonly kind: 'kept'; readonly why: string }
  | { readonly kind: 'following' }
  | { readonly kind: 'dropped' };

export type ShownState = 'connecting' | 'hello' | 'catching-up' | 'streaming' | 'refused' | 'dropped' | 'waiting';

/** The word that `status` shows. */
export function shownState(state: LinkState): ShownState {
  switch (state.kind) {
    case 'waiting': case 'dropped': case 'refused': case 'connecting': case 'hello': case 'catching-up': case 'streaming':
      return state.kind;
    case 'no-address': return 'waiting';
    case 'pausing': return 'connecting';
    case 'comparing': case 'holding': return 'hello';
    case 'rewinding': case 'fetching': case 'serving': case 'stalled': return 'catching-up';
    case 'following': case 'kept': return 'streaming';
    default: return unreachable(state);
  }
}

/** One sentence; empty when all is as it should be. */
export function sentenceOf(state: LinkState, peer: string): string {
  switch (state.kind) {
    case 'waiting': return state.error === '' ? `waits for ${peer} to connect` : `waits for ${peer} to connect; the last connection ended: ${state.error}`;
    case 'no-address': return `the configuration has no address of ${peer}, so this node cannot send to it`;
    case 'connecting': return state.error === '' ? `connects to ${peer}` : `connects to ${peer} again; before: ${state.error}`;
    case 'pausing': return `will try ${peer} again; the last attempt ended: ${state.error}`;
    case 'refused': return state.error;
    case 'hello': return `authenticates with ${peer}`;
    case 'comparing': return `compares histories with ${peer}`;
    case 'rewinding': return 'the secondary undoes what the primary does not have';
    case 'fetching': return `fetches ${formatSize(state.bytes)} that this node lost from ${peer}`;
    case 'serving': return `sends ${peer}, which recovers, what it lost`;
    case 'holding': return 'waits until the group is primary here';
    case 'catching-up': return `${peer} is ${formatSize(state.bytes)} behind and catches up from the journal`;
    case 'streaming': case 'following': return '';
    case 'stalled': return state.why;
    case 'kept': return state.why;
    case 'dropped': return `an operator dropped the link; nothing is retained for ${peer} until this daemon is restarted`;
    default: return unreachable(state);
  }
}

/** Plain data; all LSNs and sizes in bytes. */
export interface LinkStatus {
  readonly peer: string;
  readonly role: 'to' | 'from';
  readonly mode: 'async';
  readonly state: ShownState;
  readonly reason: string;
  readonly shipped: number;
  readonly received: number;
  readonly durable: number;
  readonly applied: number;
  readonly lagBytes: number;
  readonly lagSeconds: number;
  readonly wireBytes: number;
  readonly reconnects: number;
  // ---- beyond the schema ----
  readonly wireBytesSent: number;
  readonly wireBytesReceived: number;
  readonly framesSent: number;
  readonly framesReceived: number;
  readonly lastError: string;
}
