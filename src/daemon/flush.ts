/**
 * `flush`: waiting until what is appended now is durable, destaged, or in a
 * committed checkpoint, and having it done.
 *
 * Owns: the waiting. Must not know: HTTP, how rounds and checkpoints work.
 */

import { OperatorError } from '../base/errors.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';

const POLL_US = 2000;

/** The group has content. What was begun goes on when the caller goes, but nothing more is begun for it. */
export function flush(reactor: Reactor, group: Group, upTo: 'durable' | 'destaged' | 'checkpoint', answer: Answer): void {
  const { content } = group;
  const lsn = content.appliedLsn;
  let timer: TimerId | undefined;
  let cancel: () => void = () => undefined;
  const once = endingOnce(answer, () => {
    cancel();
    if (timer !== undefined) reactor.cancel(timer);
  });
  const poll = (): void => {
    timer = undefined;
    if (group.role === 'stopped' || group.closed) {
      once.failed(new OperatorError('group/stopped', group.roleReason));
      return;
    }
    if (group.content !== content) {
      // Nothing moves on the one that this began with.
      once.failed(new OperatorError('group/busy', `group ${group.name} was taken back to an earlier position meanwhile; try again`));
      return;
    }
    if (content.store.pending.blocks > 0 && content.destagedLsn < lsn) {
      content.destager.request();
    } else if (upTo === 'destaged' || content.checkpointer.committedAt.lsn >= lsn) {
      once.done({ lsn, upTo });
      return;
    } else {
      content.requestCheckpoint();
    }
    reactor.again();
    timer = reactor.after(POLL_US, poll);
  };
  cancel = group.operations.whenDurable(content.journal.appendedLsn, (error) => {
    if (error !== undefined) once.failed(error);
    else if (upTo === 'durable') once.done({ lsn, upTo });
    else poll();
  });
}
