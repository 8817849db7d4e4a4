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

export interface EndingAnswer extends Answer {
  /** `takeBack` ends a wait for this answer: called once, when the answer comes to its end, or at once if it has. */
  alsoEnd(takeBack: () => void): void;
}

/**
 * An answer in place of `answer` for something that has to be ended or taken
 * back: in whatever way it comes to its end, what `alsoEnd` was told of is ended
 * first, then `ended` is called, with true when the caller went first, then
 * `answer`; each once. What comes later is dropped.
 */
export function endingOnce(answer: Answer, ended?: (gone: boolean) => void): EndingAnswer {
  let over = false;
  const waits: (() => void)[] = [];
  const end = (gone: boolean, pass: () => void): void => {
    if (over) return;
    over = true;
    for (const takeBack of waits) takeBack();
    ended?.(gone);
    pass();
  };
  const alsoEnd = (takeBack: () => void): void => {
    if (over) takeBack();
    else waits.push(takeBack);
  };
  alsoEnd(answer.caller.onGone(() => end(true, () => answer.failed(callerGone()))));
  return {
    done: (reply) => end(false, () => answer.done(reply)),
    failed: (error) => end(false, () => answer.failed(error)),
    caller: answer.caller,
    alsoEnd,
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
