/**
 * What two nodes of a group do about their histories (DESIGN §2, §3, §8). Pure.
 *
 * Owns: the rules by which a link streams, fetches, rewinds, refuses or fences.
 * Must not know: frames, sockets, how a plan is carried out.
 *
 * The dialer (primary, or a primary that recovers) decides; the listener checks
 * what it is asked to do against its own journal.
 *
 *   listener's history                                  plan
 *   ends on the dialer's                                stream from its end
 *   goes on where the dialer's ends, dialer recovering  fetch: the listener sends first
 *   goes on elsewhere, above its stable LSN             rewind to F, then stream
 *   goes on elsewhere, below its stable LSN             refuse: needs a resync
 *   has a later epoch of another node                   the dialer is fenced
 *   shares nothing, or contradicts                      refuse: diverged
 *
 * F, the last common position: the end of the last epoch that both have by id,
 * in whichever history ends it first. An epoch ends where the next one starts,
 * or at the position.
 */

import type { GroupRole } from '../group/replica.js';
import type { EpochEntry } from '../group/tree/epochs.js';
import { samePosition, type Position } from '../journal/position.js';

/** One node's side of the comparison. */
export interface NodeView {
  readonly node: string;
  readonly groupId: string | undefined;
  readonly role: GroupRole;
  /** Why it has that role, one sentence. */
  readonly reason: string;
  /** Oldest first, ascending numbers and starts. */
  readonly epochs: readonly EpochEntry[];
  readonly position: Position;
  /** Oldest LSN in its journal. */
  readonly firstLsn: number;
  readonly stableLsn: number;
}

export type Plan =
  /** The listener's log is a prefix of the dialer's. */
  | { readonly kind: 'stream'; readonly from: Position }
  /** The listener undoes what it has behind `to`. */
  | { readonly kind: 'rewind'; readonly to: Position }
  /** The listener sends (from, upTo], which continues the dialer's last epoch. */
  | { readonly kind: 'fetch'; readonly from: Position; readonly upTo: number }
  /** The dialer belongs to the past. */
  | { readonly kind: 'fenced'; readonly newer: EpochEntry }
  | { readonly kind: 'refuse'; readonly code: string; readonly sentence: string };

const NO_RESYNC = 'a resync, which this version does not have';

function refuse(code: string, sentence: string): Plan {
  return { kind: 'refuse', code, sentence };
}

/** Indices behind the last epoch that both have; by id, for a message may lack the beginning of a very long history. */
function behindCommon(mine: readonly EpochEntry[], theirs: readonly EpochEntry[]): [number, number] {
  for (let i = mine.length - 1; i >= 0; i--) {
    const there = theirs.findIndex((one) => one.id === mine[i].id);
    if (there >= 0) return [i + 1, there + 1];
  }
  return [0, 0];
}

/** How often the role of primary changed hands behind the common part of two histories. */
function takeovers(epochs: readonly EpochEntry[], common: number): number {
  let count = 0;
  for (let i = common; i < epochs.length; i++) if (i > 0 && epochs[i].node !== epochs[i - 1].node) count++;
  return count;
}

/**
 * The newest epoch of `theirs` that takes the role of primary away from
 * `mine.node`: begun by another node and not known to `mine`.
 *
 * Behind the last epoch that both have, more takeovers win, and only among as
 * many the higher number: a node that restarts begins epochs by itself, however
 * many, and must not outrank the person who promoted another node meanwhile. An
 * epoch that `mine.node` itself began and then lost does not count either.
 */
export function newerEpoch(mine: Pick<NodeView, 'node' | 'epochs'>, theirs: Pick<NodeView, 'epochs'>): EpochEntry | undefined {
  const last = mine.epochs[mine.epochs.length - 1];
  if (last === undefined) return undefined;
  const [ours, common] = behindCommon(mine.epochs, theirs.epochs);
  const more = takeovers(theirs.epochs, common) - takeovers(mine.epochs, ours);
  if (more < 0) return undefined;
  for (let i = theirs.epochs.length - 1; i >= common; i--) {
    const epoch = theirs.epochs[i];
    if (more === 0 && epoch.number <= last.number) return undefined;
    if (epoch.node !== mine.node) return epoch;
  }
  return undefined;
}

/**
 * Decides as the dialer. `chainAt(lsn)`: the dialer's position at a retained
 * batch boundary; undefined when `lsn` is none.
 */
export function decide(dialer: NodeView, listener: NodeView, chainAt: (lsn: number) => Position | undefined): Plan {
  if (dialer.groupId === undefined) return refuse('link/no-group', `node ${dialer.node} has no group yet and cannot be primary of it`);
  if (listener.groupId !== undefined && listener.groupId !== dialer.groupId) {
    return refuse('link/other-group', `node ${listener.node} follows another group of this name (id ${listener.groupId}, this one has ${dialer.groupId})`);
  }
  if (dialer.role !== 'primary' && dialer.role !== 'recovering') {
    return refuse('link/role', `node ${dialer.node} is ${dialer.role}, only a primary sends: ${dialer.reason}`);
  }
  const newer = newerEpoch(dialer, listener);
  if (newer !== undefined) return { kind: 'fenced', newer };
  const role = refuseRole(dialer, listener);
  if (role !== undefined) return role;
  return compare(dialer, listener, chainAt);
}

function refuseRole(dialer: NodeView, listener: NodeView): Plan | undefined {
  switch (listener.role) {
    case 'secondary':
      return undefined;
    case 'fenced':
      return refuse('link/peer-fenced', `node ${listener.node} was primary of an older epoch and waits for a person: ${listener.reason}`);
    case 'stopped':
      return refuse('link/peer-stopped', `the group is stopped on node ${listener.node}: ${listener.reason}`);
    case 'primary':
    case 'recovering':
      return refuse('link/both-primary', `nodes ${dialer.node} and ${listener.node} are both primary; make one of them a secondary (the data of that one needs ${NO_RESYNC})`);
  }
}

/** Where an epoch ends in a history: its successor's start, or the position. */
function endOf(view: NodeView, index: number): number {
  return index + 1 < view.epochs.length ? view.epochs[index + 1].start.lsn : view.position.lsn;
}

function compare(dialer: NodeView, listener: NodeView, chainAt: (lsn: number) => Position | undefined): Plan {
  const [behindD, behindL] = behindCommon(dialer.epochs, listener.epochs);
  if (behindD === 0) return compareFresh(dialer, listener);
  const [d, l] = [behindD - 1, behindL - 1];
  const common = dialer.epochs[d];
  if (!samePosition(common.start, listener.epochs[l].start) || common.number !== listener.epochs[l].number) {
    return refuse('link/diverged', `nodes ${dialer.node} and ${listener.node} say that epoch ${common.number} (${common.id}) began at different positions`);
  }
  const end = Math.min(endOf(dialer, d), endOf(listener, l));
  if (end === listener.position.lsn) return planStream(dialer, listener, chainAt);

  const beyond = listener.epochs.slice(l + 1);
  const foreign = beyond.find((epoch) => epoch.node !== dialer.node);
  if (foreign !== undefined) {
    return refuse('link/diverged', `node ${listener.node} has epoch ${foreign.number} of node ${foreign.node}, which node ${dialer.node} does not know, from LSN ${foreign.start.lsn} on; it needs ${NO_RESYNC}`);
  }
  if (dialer.role === 'recovering' && end === dialer.position.lsn) {
    return { kind: 'fetch', from: dialer.position, upTo: listener.position.lsn };
  }
  return planRewind(dialer, listener, end, chainAt);
}

/** No epoch in common: fine only for a listener that has nothing at all. */
function compareFresh(dialer: NodeView, listener: NodeView): Plan {
  const first = dialer.epochs[0];
  if (listener.epochs.length > 0 || first === undefined) {
    return refuse('link/diverged', `nodes ${dialer.node} and ${listener.node} have no epoch in common; node ${listener.node} needs ${NO_RESYNC}`);
  }
  if (listener.position.lsn < first.start.lsn || dialer.firstLsn > listener.position.lsn) return notRetained(dialer, listener, listener.position.lsn);
  if (!samePosition(first.start, listener.position)) {
    return refuse('link/diverged', `node ${listener.node} has no epoch but stands at LSN ${listener.position.lsn}`);
  }
  return { kind: 'stream', from: listener.position };
}

function planStream(dialer: NodeView, listener: NodeView, chainAt: (lsn: number) => Position | undefined): Plan {
  const { lsn } = listener.position;
  if (lsn < dialer.firstLsn) return notRetained(dialer, listener, lsn);
  const own = lsn === dialer.position.lsn ? dialer.position : chainAt(lsn);
  if (own === undefined || !samePosition(own, listener.position)) {
    return refuse('link/diverged', `nodes ${dialer.node} and ${listener.node} hold different records below LSN ${lsn} of the same epoch; node ${listener.node} needs ${NO_RESYNC}`);
  }
  return { kind: 'stream', from: listener.position };
}

function planRewind(dialer: NodeView, listener: NodeView, end: number, chainAt: (lsn: number) => Position | undefined): Plan {
  if (end < listener.stableLsn) {
    return refuse('link/needs-resync',
      `node ${listener.node} must undo everything behind LSN ${end}, but what it has up to LSN ${listener.stableLsn} cannot be undone any more; it needs ${NO_RESYNC}`);
  }
  if (end < dialer.firstLsn) return notRetained(dialer, listener, end);
  const to = end === dialer.position.lsn ? dialer.position : chainAt(end);
  if (to === undefined) return refuse('link/diverged', `LSN ${end}, where the histories of nodes ${dialer.node} and ${listener.node} part, is no boundary in the journal of node ${dialer.node}`);
  return { kind: 'rewind', to };
}

function notRetained(dialer: NodeView, listener: NodeView, lsn: number): Plan {
  return refuse('link/not-retained',
    `node ${listener.node} needs the journal from LSN ${lsn} on, and node ${dialer.node} has it only from LSN ${dialer.firstLsn} on: node ${listener.node} needs ${NO_RESYNC}; \`lockstep link drop\` ends the attempts`);
}
