/**
 * Who is waited for when something is to be applied, or confirmed, everywhere,
 * and who is not: the facts that a reply carries, and their sentence.
 *
 * Owns: which links count. Must not know: how it is waited.
 */

import type { LinkEntry } from './replies.js';

export interface Reach {
  /** By name, in the words of the reply that they are part of. */
  readonly waitedFor: string[];
  /** Who was not, and why. */
  readonly passedOver: string[];
}

/** Links that take this node's journal. A dropped one is given up, and one without an address is never dialled. */
export function awaitedLinks<L extends Pick<LinkEntry, 'role' | 'state'>>(links: readonly L[]): L[] {
  return links.filter(({ role, state }) => role === 'to' && state !== 'dropped' && state !== 'waiting');
}

/** Links of a primary that nobody waits for. */
export function givenUpLinks(links: readonly LinkEntry[]): string[] {
  const passed = links.filter(({ role, state }) => role === 'to' && (state === 'dropped' || state === 'waiting'));
  return passed.map(({ peer, state, reason }) => `${peer} (${state === 'dropped' ? 'its link was dropped' : reason})`);
}

/** Of an operation at `lsn` that all awaited links have applied: a cursor is not waited for, whatever it stands at. */
export function reachOfOperation(links: readonly LinkEntry[], cursors: readonly { readonly name: string; readonly lsn: number }[], lsn: number): Reach {
  const behind = cursors.filter((cursor) => cursor.lsn <= lsn).map(({ name }) => `cursor ${name}`);
  return { waitedFor: awaitedLinks(links).map(({ peer }) => peer), passedOver: [...givenUpLinks(links), ...behind] };
}

/** Ends a sentence; empty when nobody was passed over. */
export function passedOverWords({ passedOver }: Reach): string {
  return passedOver.length === 0 ? '' : `; not waited for: ${passedOver.join(', ')}`;
}
