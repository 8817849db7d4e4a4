/**
 * An operation between two halts (the design's other embodiment: stop the
 * stream, drain it, operate on all nodes, resume), for operators who want to
 * see every node stand still at one position while it happens.
 *
 *     hold the writers  →  every secondary has applied all there is, durably here
 *     →  the operation, the only record behind that position
 *     →  every secondary has executed it  →  the writers go on
 *
 * Owns: the order of these steps, and that writers always go on: at the end, on
 * errors, when the time is over, and at once when whoever asked has gone. Must
 * not know: what the operation is.
 */

import { OperatorError } from '../base/errors.js';
import type { Group } from '../group/group.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';
import type { Links } from './links.js';

/**
 * Holds the writers, drains, and calls `work` with an answer that releases them
 * before it is passed on. When a secondary does not come along within
 * `seconds`, nothing is done and the failure names it. Throws OperatorError when
 * another halt is under way.
 */
export function whileHalted(group: Group, links: Links, seconds: number, answer: Answer, work: (answer: Answer) => void): void {
  refuseWhileHalted(group);
  const ingest = group.ingest!;
  const releasing = endingOnce(answer, (gone) => {
    ingest.release();
    if (gone) group.log.warn('the caller of an operation with --halt has gone: the writers go on');
  });
  if (answer.caller.gone) return;
  ingest.hold();
  drain();

  function drain(): void {
    const lsn = group.journal.appendedLsn;
    releasing.alsoEnd(group.operations.whenDurable(lsn, (error) => {
      if (error !== undefined) {
        releasing.failed(error);
        return;
      }
      releasing.alsoEnd(links.whenApplied(group.name, lsn, seconds * 1e6, (notice) => {
        try {
          if (notice !== null) throw new OperatorError('halt/not-drained', `nothing was done, and the writers go on: ${notice}`);
          if (group.role !== 'primary') throw new OperatorError('role/not-primary', `group ${group.name} is ${group.role} on this node: ${group.roleReason}`);
          // An operation that was judged before the hold may have come in between.
          if (group.journal.appendedLsn === lsn) work(releasing);
          else drain();
        } catch (failure) {
          releasing.failed(failure);
        }
      }));
    }));
  }
}

/** Between hold and release nothing else may become a record: throws OperatorError. */
export function refuseWhileHalted(group: Group): void {
  if (group.ingest?.holding === true) throw new OperatorError('halt/busy', `an operation with --halt is under way in group ${group.name}; try again when it has ended`);
}
