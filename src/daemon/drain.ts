/**
 * Waiting until everybody whom the journal is kept for has confirmed it.
 *
 * Owns: who counts, and the sentence about who is behind. Must not know: HTTP.
 */

import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { Answer } from './answer.js';
import type { Links } from './links.js';
import { pollOnceDurable } from './polling.js';

const POLL_US = 5_000;

/** Everything below `lsn` is durable and executed on every secondary, and acknowledged by every cursor; else who is behind, and why. */
function behind(group: Group, links: Links, lsn: number): string[] {
  const late: string[] = [];
  for (const link of links.status(group.name)) {
    // A dropped link is given up; one that is not dialled has nothing to confirm.
    if (link.role !== 'to' || link.state === 'dropped' || link.state === 'waiting' || (link.applied >= lsn && link.durable >= lsn)) continue;
    late.push(`link ${link.peer} has made durable up to LSN ${link.durable} and applied up to LSN ${link.applied}${link.reason === '' ? '' : ` (${link.reason})`}`);
  }
  for (const { name, position } of group.retention.cursors.all()) {
    if (position.lsn < lsn) late.push(`cursor ${name} has been acknowledged up to LSN ${position.lsn}`);
  }
  return late;
}

/** Answers when nobody is behind what is appended now, or when `limitUs` is over; fails when it can never be. */
export function drain(reactor: Reactor, group: Group, links: Links, limitUs: number, answer: Answer): void {
  if (!group.hasContent) {
    answer.done({ lsn: 0, drained: true, behind: [] });
    return;
  }
  const { lsn } = group.position;
  const until = reactor.nowUs + limitUs;
  // Only what is durable here is exported at all.
  pollOnceDurable(reactor, group, lsn, POLL_US, answer, (once) => {
    const late = behind(group, links, lsn);
    if (late.length === 0 || reactor.nowUs >= until || group.closed) once.done({ lsn, drained: late.length === 0, behind: late });
  });
}
