/**
 * Export cursors as operators see them: acknowledging, releasing, and at which
 * places of a journal one may stand.
 *
 * Owns: these rules and their sentences. Must not know: streams, HTTP, how a
 * cursor is kept (group/cursors.ts).
 */

import { IoError, OperatorError } from '../base/errors.js';
import type { EpochPosition } from '../base/position.js';
import { formatPosition } from '../base/position.js';
import type { CursorEntry } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import { epochIdAt } from '../group/tree/epochs.js';
import type { Reactor } from '../io/reactor.js';
import { readBoundary } from '../journal/boundary.js';
import { exportableLsn } from '../replication/carry/exporter.js';
import type { Answer } from './answer.js';
import { caught } from './answer.js';

/** Moves the cursor to `to`, which the importing node has. Throws OperatorError; other errors go to `answer`. */
export function acknowledge(reactor: Reactor, group: Group, name: string, to: EpochPosition, answer: Answer): void {
  const { cursors } = group.retention;
  const cursor = cursors.get(name);
  if (cursor === undefined) throw noCursor(group, name);
  const forward = (): void => {
    const now = cursors.get(name);
    if (now === undefined) throw noCursor(group, name);
    if (to.lsn < now.position.lsn) {
      throw new OperatorError('cursor/behind', `cursor ${name} of group ${group.name} stands at LSN ${now.position.lsn} and moves forward only, not to LSN ${to.lsn}`);
    }
  };
  forward();
  if (!group.hasContent || to.lsn > Math.max(exportableLsn(group), cursor.position.lsn)) {
    throw new OperatorError('cursor/not-exported', `LSN ${to.lsn} of group ${group.name} has not been exported: this node has it durable up to LSN ${exportableLsn(group)}`);
  }
  checkPlace(reactor, group, to, 'the position', `acknowledge what lockstep journal import printed for cursor ${name}`, (error) => {
    if (error !== undefined) {
      answer.failed(error);
      return;
    }
    caught(answer, () => {
      forward();
      cursors.move(name, to, (failed) => {
        if (failed === undefined) answer.done(cursorEntry(group, name));
        else answer.failed(failed);
      });
    });
  });
}

/** Gives the cursor up. Throws OperatorError; other errors go to `answer`. */
export function release(group: Group, name: string, answer: Answer): void {
  const { cursors } = group.retention;
  const cursor = cursors.get(name);
  if (cursor === undefined) throw noCursor(group, name);
  const before = group.retainedLsn();
  const { lsn } = cursor.position;
  cursors.remove(name, (error) => {
    if (error !== undefined) {
      answer.failed(error);
      return;
    }
    const needed = Math.min(group.retainedLsn(), group.content.checkpointer.lowWater.lsn);
    answer.done({ cursor: name, lsn, freedBytes: Math.max(0, needed - Math.min(before, needed)) });
  });
}

/** A cursor for `status`. */
export function cursorEntry(group: Group, name: string): CursorEntry {
  const { position, createdMs, movedMs } = group.retention.cursors.get(name)!;
  const { appendedLsn } = group.journal;
  return {
    name, position: formatPosition(position), lsn: position.lsn, behindBytes: Math.max(0, appendedLsn - position.lsn),
    retainedBytes: Math.max(0, group.content.checkpointer.lowWater.lsn - group.retention.cursors.keptFrom(name)), createdMs, movedMs,
  };
}

export function noCursor(group: Group, name: string): OperatorError {
  return new OperatorError('cursor/not-found', `group ${group.name} has no cursor ${name}; lockstep status ${group.name} names those it has`);
}

/** `done(undefined)` when `place` is a batch boundary of this group's history, below what can be exported, and retained. */
export function checkPlace(reactor: Reactor, group: Group, place: EpochPosition, what: string, remedy: string, done: (error: unknown) => void): void {
  try {
    checkRetained(group, place.lsn);
  } catch (error) {
    done(error);
    return;
  }
  readBoundary(reactor, group.journal, place.lsn, (found) => {
    if (found instanceof IoError) done(found);
    else if (found === undefined || found.position.chainHi !== place.chainHi || found.position.chainLo !== place.chainLo || epochIdAt(group.epochs, place.lsn) !== place.epochId) {
      done(new OperatorError('cursor/other-history', `${what} (${formatPosition(place)}) does not lie in the history of group ${group.name} on this node; ${remedy}`));
    } else done(undefined);
  });
}

/** Throws OperatorError where the journal does not hold `lsn`. */
export function checkRetained(group: Group, lsn: number): void {
  const { pool, appendedLsn } = group.journal;
  if (lsn < pool.firstLsn) {
    throw new OperatorError('journal/not-retained', `the journal of group ${group.name} begins at LSN ${pool.firstLsn} now, LSN ${lsn} is gone: a node that was fed from there has to be built anew (README, "Rebuild a secondary"), unless it is at LSN ${pool.firstLsn} already (lockstep journal position ${group.name}, run there): then acknowledge that`);
  }
  if (lsn > appendedLsn) throw new OperatorError('cursor/other-history', `LSN ${lsn} lies beyond the journal of group ${group.name}, which ends at LSN ${appendedLsn}`);
}

/** A cursor begins at nothing that this node, or its primary, may lose still: after that it would stand in no history. */
export function checkFinal(group: Group, lsn: number): void {
  checkRetained(group, lsn);
  // A secondary that was just started does not know yet what its primary has; what a checkpoint has stays in any case.
  const final = Math.max(exportableLsn(group), group.content.checkpointer.committedAt.lsn);
  if (lsn > final) {
    throw new OperatorError('cursor/not-exported', `LSN ${lsn} of group ${group.name} can still be lost: this node knows it to be durable up to LSN ${final} only; try again in a moment, or begin at that LSN or below`);
  }
}
