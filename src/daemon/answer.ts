/** How a request of the control port is answered, whoever carries it out. */

import { IoError, OperatorError } from '../base/errors.js';
import type { Caller } from '../base/caller.js';
import { callerGone } from '../base/caller.js';
import type { ControlReplies } from '../control/port.js';

/**
 * Exactly one of the two is called, now or in a later tick. When `caller` goes,
 * whoever waits on its behalf stops to wait and fails it with `callerGone`:
 * nobody hears that, and nothing is left behind.
 */
export interface Answer {
  done(reply: ControlReplies[keyof ControlReplies]): void;
  failed(error: unknown): void;
  readonly caller: Caller;
}

/**
 * An answer in place of `answer` for something that has to be ended or taken
 * back: `ended` is called once, before `answer` is, in whatever way it comes to
 * its end; with true when the caller went first. What comes later is dropped.
 */
export function endingOnce(answer: Answer, ended: (gone: boolean) => void): Answer {
  let over = false;
  let forget: () => void = () => undefined;
  const end = (gone: boolean, pass: () => void): void => {
    if (over) return;
    over = true;
    forget();
    ended(gone);
    pass();
  };
  forget = answer.caller.onGone(() => end(true, () => answer.failed(callerGone())));
  return {
    done: (reply) => end(false, () => answer.done(reply)),
    failed: (error) => end(false, () => answer.failed(error)),
    caller: answer.caller,
  };
}

/** Runs `work`; what it throws goes to `answer`, unless it is a bug. */
export function caught(answer: Pick<Answer, 'failed'>, work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof OperatorError) && !(error instanceof IoError)) throw error;
    answer.failed(error);
  }
}
