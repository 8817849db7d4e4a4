/**
 * Waiting, for an answer, for what nobody announces: it is looked at again and
 * again once the journal is durable so far.
 *
 * Owns: when is looked, and that nothing of it stays behind. Must not know: what
 * is waited for.
 */

import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';

/**
 * Calls `look` once everything below `lsn` is durable on this node, and then
 * every `everyUs` until it has answered or the caller has gone. Fails when that
 * never becomes durable.
 */
export function pollOnceDurable(reactor: Reactor, group: Group, lsn: number, everyUs: number, answer: Answer, look: (once: Answer) => void): void {
  let timer: TimerId | undefined;
  let over = false;
  const once = endingOnce(answer, () => {
    over = true;
    if (timer !== undefined) reactor.cancel(timer);
  });
  const poll = (): void => {
    look(once);
    if (!over) timer = reactor.after(everyUs, poll);
  };
  once.alsoEnd(group.operations.whenDurable(lsn, (error) => (error === undefined ? poll() : once.failed(error))));
}
