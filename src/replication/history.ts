/**
 * A group's position and history as a link says and reads them. Owns the way
 * from a group to a `NodeView` and a position message and back; must not know
 * what is decided with them.
 */

import { PeerError } from '../base/errors.js';
import type { ReplicatedGroup } from '../group/replica.js';
import { boundaryIn } from '../journal/boundary.js';
import type { Boundary } from '../journal/boundary.js';
import { MAX_HEADER_BYTES } from '../journal/format.js';
import type { Position } from '../journal/position.js';
import type { Reactor } from '../io/reactor.js';
import type { NodeView } from './decide.js';
import type { Message } from './message.js';
import { cleanSentence, MAX_EPOCHS_SENT } from './message.js';

/** Oldest LSN in the group's journal. A secondary that has never followed anybody has no journal yet. */
export function firstLsn(group: ReplicatedGroup): number {
  return group.groupId === undefined ? 0 : group.journal.pool.firstLsn;
}

/** What the group has made durable. */
export function durableLsn(group: ReplicatedGroup): number {
  return group.groupId === undefined ? 0 : group.journal.durableLsn;
}

export function viewOf(group: ReplicatedGroup, node: string): NodeView {
  return {
    node, groupId: group.groupId, role: group.role, reason: group.roleReason, epochs: group.epochs, position: group.position,
    firstLsn: firstLsn(group), stableLsn: group.stableLsn,
  };
}

export function viewOfPeer(node: string, message: Message<'position'>): NodeView {
  const { groupId, role, reason, epochs, position, firstLsn, stableLsn } = message;
  return { node, groupId: groupId ?? undefined, role, reason: cleanSentence(reason), epochs, position, firstLsn, stableLsn };
}

export function positionMessage(group: ReplicatedGroup): Message<'position'> {
  return {
    groupId: group.groupId ?? null, role: group.role, reason: cleanSentence(group.roleReason),
    epochs: group.epochs.slice(-MAX_EPOCHS_SENT).map(({ number, id, start, node, lossless, wallMs }) => (
      { number, id, start: placeOf(start), node, lossless, wallMs }
    )),
    position: placeOf(group.position),
    firstLsn: firstLsn(group), durableLsn: durableLsn(group), appliedLsn: group.appliedLsn, stableLsn: group.stableLsn,
  };
}

/** A position as messages carry it: nothing but its three numbers. */
export function placeOf({ lsn, chainHi, chainLo }: Position): Position {
  return { lsn, chainHi, chainLo };
}

/**
 * The boundary at `lsn`, or undefined: not retained, or no boundary. Reads one batch header, blocking: only for hellos. Throws PeerError when there is no memory.
 */
export function boundaryAt(reactor: Reactor, group: ReplicatedGroup, lsn: number): Boundary | undefined {
  const { position } = group;
  if (lsn === position.lsn) return { position, wallMs: 0 };
  if (group.groupId === undefined) return undefined;
  const { journal } = group;
  const segment = journal.pool.find(lsn);
  if (segment === undefined || lsn >= segment.endLsn) return undefined;
  const { io, arena } = reactor;
  const at = arena.lend(MAX_HEADER_BYTES);
  if (at < 0) throw new PeerError('link/no-memory', 'the arena has no room to look into the journal');
  try {
    const bytes = Math.min(MAX_HEADER_BYTES, segment.endLsn - lsn);
    if (io.pread(segment.fd, at, bytes, journal.pool.filePosition(segment, lsn)) < 0) return undefined;
    return boundaryIn(reactor, at, bytes, lsn);
  } finally {
    arena.release(at);
  }
}
