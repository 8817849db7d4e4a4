/**
 * An operation between two halts (the design's other embodiment: stop the
 * stream, drain it, operate on all nodes, resume), for operators who want to
 * see every node stand still at one position while it happens.
 *
 *     hold the writers  →  every secondary has applied all there is, durably here
 *     →  the operation, the only record behind that position
 *     →  every secondary has executed it  →  the writers go on
 *        (a snapshot of something frozen: it is durable here)
 *
 * Owns: the order of these steps, and that writers always go on: at the end, on
 * errors, when the time is over, and at once when whoever asked has gone. Must
 * not know: what the operation is.
 */

import { unreachable } from '../base/assert.js';
import { OperatorError } from '../base/errors.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';
import type { Links } from './links.js';

/** When an operation may be appended, and how long it is waited for. */
export interface Pace {
  /** Called in the step that appends. Throws OperatorError when it is not the time any more. */
  begin(): void;
  /** Longest to wait from now on for every secondary to execute it, microseconds. */
  appliedUs(): number;
}

/**
 * Holds the writers, drains, and calls `work` with an answer that releases them
 * before it is passed on. They go on after `seconds` at the latest, all steps
 * together: when nothing was appended by then, nothing is done, and the failure
 * names who did not come along; what was appended stays, and is waited for
 * without holding anybody. Throws OperatorError when another halt is under way.
 */
export function whileHalted(reactor: Reactor, group: Group, links: Links, seconds: number, answer: Answer, work: (answer: Answer, pace: Pace) => void): void {
  refuseWhileHalted(group);
  const ingest = group.ingest!;
  const untilUs = reactor.nowUs + seconds * 1e6;
  let held = false;
  let step: 'durable' | 'applied' | 'work' | 'appended' = 'durable';
  const release = (): void => {
    if (held) ingest.release();
    held = false;
  };
  const releasing = endingOnce(answer, (gone) => {
    release();
    if (gone) group.log.warn('the caller of an operation with --halt has gone: the writers go on');
  });
  if (answer.caller.gone) return;
  ingest.hold(untilUs);
  held = true;
  const pace: Pace = {
    begin: () => {
      if (!held) throw notDrained(`it was not begun within ${seconds} s`);
      step = 'appended';
    },
    appliedUs: () => Math.max(0, untilUs - reactor.nowUs),
  };
  const timer = reactor.after(seconds * 1e6, timeOver);
  releasing.alsoEnd(() => reactor.cancel(timer));
  drain();

  function drain(): void {
    const lsn = group.journal.appendedLsn;
    step = 'durable';
    releasing.alsoEnd(group.operations.whenDurable(lsn, (error) => {
      if (error !== undefined) {
        releasing.failed(error);
        return;
      }
      step = 'applied';
      releasing.alsoEnd(links.whenApplied(group.name, lsn, pace.appliedUs(), (notice) => {
        try {
          if (notice !== null || pace.appliedUs() === 0) throw notDrained(notice ?? `the secondaries came along only after ${seconds} s`);
          if (group.role !== 'primary') throw new OperatorError('role/not-primary', `group ${group.name} is ${group.role} on this node: ${group.roleReason}`);
          // An operation that was judged before the hold may have come in between.
          if (group.journal.appendedLsn !== lsn) {
            drain();
            return;
          }
          step = 'work';
          work(releasing, pace);
        } catch (failure) {
          releasing.failed(failure);
        }
      }));
    }));
  }

  function timeOver(): void {
    switch (step) {
      case 'durable':
        releasing.failed(notDrained(`what was written before is not durable on this node after ${seconds} s`));
        return;
      case 'applied':
        // The links end their wait now, and say who is behind.
        return;
      case 'work':
        releasing.failed(notDrained(`it could not be begun within ${seconds} s`));
        return;
      case 'appended':
        group.log.warn(`an operation with --halt was appended, and has not come to its end after ${seconds} s: the writers go on`);
        release();
        return;
      default:
        unreachable(step);
    }
  }
}

function notDrained(why: string): OperatorError {
  return new OperatorError('halt/not-drained', `nothing was done, and the writers go on: ${why}`);
}

/** Between hold and release nothing else may become a record: throws OperatorError. */
export function refuseWhileHalted(group: Group): void {
  if (group.ingest?.holding === true) throw new OperatorError('halt/busy', `an operation with --halt is under way in group ${group.name}; try again when it has ended`);
}
