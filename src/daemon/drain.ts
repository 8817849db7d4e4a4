/**
 * Waiting until everybody whom the journal is kept for has confirmed it.
 *
 * Owns: the sentences about who is behind, and where there is nothing to drain. Must not know: HTTP.
 */

import { OperatorError } from '../base/errors.js';
import { awaitedLinks, givenUpLinks } from '../control/schema/reach.js';
import type { Reach } from '../control/schema/reach.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { Answer } from './answer.js';
import { caught } from './answer.js';
import type { Links } from './links.js';
import { pollOnceDurable } from './polling.js';

const POLL_US = 5_000;

/** Everything below `lsn` is durable and executed on every secondary, and acknowledged by every cursor; else who is behind, and why. */
function behind(group: Group, links: Links, lsn: number): string[] {
  const late: string[] = [];
  for (const link of awaitedLinks(links.status(group.name))) {
    if (link.applied >= lsn && link.durable >= lsn) continue;
    late.push(`link ${link.peer} has made durable up to LSN ${link.durable} and applied up to LSN ${link.applied}${link.reason === '' ? '' : ` (${link.reason})`}`);
  }
  for (const { name, position } of group.retention.cursors.all()) {
    if (position.lsn < lsn) late.push(`cursor ${name} has been acknowledged up to LSN ${position.lsn}`);
  }
  return late;
}

function reach(group: Group, links: Links): Reach {
  const entries = links.status(group.name);
  const counted = [...awaitedLinks(entries).map(({ peer }) => `link ${peer}`), ...group.retention.cursors.all().map(({ name }) => `cursor ${name}`)];
  return { waitedFor: counted, passedOver: givenUpLinks(entries) };
}

/** A secondary sends its journal over no link: whoever drains it means its primary, or what it applies itself. */
function noticeOf(group: Group, links: Links): string | null {
  if (group.role !== 'secondary') return null;
  const primary = links.connectedPrimary(group.name);
  const { applyProblem } = group;
  const stopped = applyProblem === undefined ? '' : `; what it received is applied here up to LSN ${group.appliedLsn} only: ${applyProblem}`;
  return `this node is secondary of group ${group.name} and sends to no other node, so there is nothing to drain here but cursors: drain its primary${primary === undefined ? '' : `, ${primary}`}${stopped}`;
}

/** Nobody takes the journal of a group that is fenced or stopped: throws OperatorError. */
function refuseUnlessSending(group: Group): void {
  if (group.role !== 'fenced' && group.role !== 'stopped') return;
  throw new OperatorError(group.role === 'stopped' ? 'group/stopped' : 'role/not-primary', `group ${group.name} is ${group.role} on this node, and nobody takes its journal, so it cannot be drained: ${group.roleReason}`);
}

/** Answers when nobody is behind what is appended now, or when `limitUs` is over; fails when it can never be. */
export function drain(reactor: Reactor, group: Group, links: Links, limitUs: number, answer: Answer): void {
  if (!group.hasContent) {
    answer.done({ lsn: 0, drained: true, behind: [], waitedFor: [], passedOver: [], notice: `group ${group.name} has nothing on this node yet, so there is nothing to drain here` });
    return;
  }
  refuseUnlessSending(group);
  const { lsn } = group.position;
  const until = reactor.nowUs + limitUs;
  // Only what is durable here is exported at all.
  pollOnceDurable(reactor, group, lsn, POLL_US, answer, (once) => caught(once, () => {
    refuseUnlessSending(group);
    const late = behind(group, links, lsn);
    if (late.length === 0 || reactor.nowUs >= until || group.closed) once.done({ lsn, drained: late.length === 0, behind: late, ...reach(group, links), notice: noticeOf(group, links) });
  }));
}
