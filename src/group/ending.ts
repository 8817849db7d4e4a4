/**
 * The end of an open group: what must have happened before its files are closed,
 * and whether the stop counts as clean.
 *
 * Owns: the order of waiting. Must not know: clients, links; they are gone.
 */

import { IoError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { Reactor } from '../io/reactor.js';
import type { Position } from '../journal/position.js';
import type { Content } from './content/content.js';
import { journalDirectoryOf } from './content/place.js';
import type { GroupRole } from './replica.js';

const WAIT_US = 1000;
/** A disk that answers with errors for so long is not waited for any more. */
const FAILING_US = 10_000_000;

export interface EndingHost {
  readonly role: GroupRole;
  readonly stableLsn: number;
  /** What local devices hold and was not flushed may be lost: the next start has to know. */
  localFailed(): void;
  readonly retention: { readonly cursors: { readonly quiet: boolean } };
}

/** Ends the content's work, then calls `done` with where a clean stop has left the group; undefined when it is none. The caller closes the content. */
export function endContent(reactor: Reactor, host: EndingHost, content: Content, log: Log, done: (at: Position | undefined) => void): void {
  settle(reactor, host, content, log, () => {
    content.stop();
    const wait = (): void => {
      if (!content.quiet || !host.retention.cursors.quiet) {
        reactor.after(WAIT_US, wait);
        return;
      }
      const settled = host.role === 'stopped' ? undefined : content.local.log.settleNow();
      if (settled !== undefined) {
        log.error(`local snapshots may have lost what was written since their last FLUSH: ${settled.message}`);
        host.localFailed();
      }
      const at = cleanEnd(host, content, log);
      // All of it is final, also for a secondary that is made by copying this directory.
      const noted = at === undefined || host.role !== 'primary' ? 0 : content.final.setNow(Math.max(content.final.lsn, at.lsn));
      if (noted < 0) log.warn(`the stop is not a clean one: ${new IoError(-noted, 'note how far the layers are written in', content.options.directory).message}`);
      done(noted < 0 ? undefined : at);
    };
    wait();
  });
}

/** Has a volatile group make everything durable, while its ticks go on. */
function settle(reactor: Reactor, host: EndingHost, content: Content, log: Log, then: () => void): void {
  const { rounds } = content;
  if (rounds === undefined || host.role === 'stopped') {
    then();
    return;
  }
  rounds.finish();
  let failingSince = Infinity;
  const wait = (): void => {
    const now = reactor.nowUs;
    failingSince = rounds.failure === undefined ? Infinity : Math.min(failingSince, now);
    // It may also stop on the way.
    if (host.role === 'stopped' || rounds.finished(host.stableLsn)) {
      then();
    } else if (now - failingSince > FAILING_US) {
      log.error(`cannot make everything durable before the end: ${rounds.failure}. The journal stays in ${journalDirectoryOf(content.options)}: ` +
        'start the daemon again, under this very boot of the machine, once the disk is in order');
      then();
    } else {
      reactor.after(WAIT_US, wait);
    }
  };
  wait();
}

function cleanEnd(host: EndingHost, content: Content, log: Log): Position | undefined {
  const { rounds, journal, checkpointer } = content;
  // Not while it recovers: then the next start has to ask the peers again.
  if (host.role === 'stopped' || host.role === 'recovering') return undefined;
  if (rounds === undefined) return journal.syncNow() === 0 ? journal.position : undefined;
  const whole = host.role === 'secondary' || checkpointer.committedAt.lsn === journal.appendedLsn;
  if (rounds.exact && whole) return checkpointer.committedAt;
  log.warn(`the stop is not a clean one, for the primary has not told yet that it has what is on the disk here: the data need the journal in ${journalDirectoryOf(content.options)}`);
  return undefined;
}
