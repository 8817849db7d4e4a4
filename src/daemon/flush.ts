/**
 * `flush`: waiting until what is appended now is durable, destaged, or in a
 * committed checkpoint that needs no journal for it, and having it done.
 *
 * Owns: the waiting. Must not know: HTTP, how rounds and checkpoints work.
 */

import { OperatorError } from '../base/errors.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { Answer } from './answer.js';
import { pollOnceDurable } from './polling.js';

const POLL_US = 2000;

/** The group has content. What was begun goes on when the caller goes, but nothing more is begun for it. */
export function flush(reactor: Reactor, group: Group, upTo: 'durable' | 'destaged' | 'checkpoint', answer: Answer): void {
  const { content } = group;
  const lsn = content.appliedLsn;
  pollOnceDurable(reactor, group, content.journal.appendedLsn, POLL_US, answer, (once) => {
    if (upTo === 'durable') {
      once.done({ lsn, upTo });
    } else if (group.role === 'stopped' || group.closed) {
      once.failed(new OperatorError('group/stopped', group.roleReason));
    } else if (group.content !== content) {
      // Nothing moves on the one that this began with.
      once.failed(new OperatorError('group/busy', `group ${group.name} was taken back to an earlier position meanwhile; try again`));
    } else if (content.store.pending.blocks > 0 && content.destagedLsn < lsn) {
      content.destager.request();
      reactor.again();
    } else if (upTo === 'destaged' || (content.checkpointer.committedAt.lsn >= lsn && content.checkpointer.lowWater.lsn >= lsn)) {
      // The low-water mark, too: a checkpoint that began before all was destaged needs the journal below itself.
      once.done({ lsn, upTo });
    } else {
      content.requestCheckpoint();
      reactor.again();
    }
  });
}
