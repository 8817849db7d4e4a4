/**
 * What is wrong with a group and what a person can do about it, from its
 * status alone. Pure; the one place that turns states into advice.
 */

import { formatSize } from '../../base/units.js';
import { awaitedLinks } from '../../control/schema/reach.js';
import type { GroupStatus } from '../../control/schema/status.js';
import type { LinkEntry } from '../../control/schema/replies.js';
import { formatDuration } from './words.js';

export interface Advice {
  /** `problem`: somebody is hurt or will soon be; `note`: worth knowing. */
  readonly severity: 'problem' | 'note';
  readonly what: string;
  /** What to do; empty when waiting is all there is to do. */
  readonly remedy: string;
}

/** Journal use above which writers will soon stall. */
const JOURNAL_HIGH = 0.85;
/** A replay longer than this is worth a note. */
const LONG_REPLAY_SECONDS = 60;
/** A streaming link that lags more than this has a cause. */
const LONG_LAG_SECONDS = 30;

/** What cannot be caught up from the journal. */
const REBUILD = 'README, "Rebuild a secondary"';

/** Problems before notes. */
export function adviseGroup(group: GroupStatus): Advice[] {
  const problems: Advice[] = [];
  const notes: Advice[] = [];
  const problem = (what: string, remedy: string): void => void problems.push({ severity: 'problem', what, remedy });
  const note = (what: string, remedy: string): void => void notes.push({ severity: 'note', what, remedy });

  switch (group.role) {
    case 'stopped':
      problem(`the group is stopped: ${group.roleReason || 'the log says why'}`, 'mend the cause that the errors name, then restart lockstepd');
      break;
    case 'fenced':
      problem(`the group is fenced: ${group.roleReason || 'another node was promoted'}`, `the other node was promoted: use that one. To make this node its secondary: ${REBUILD}`);
      break;
    case 'starting':
      note(`the group is starting: ${group.roleReason || 'recovering'}`, '');
      break;
    case 'primary': case 'secondary':
      break;
  }
  if (group.journal.stalled !== null && group.journal.heldSeconds !== null) {
    problem(group.journal.stalled, haltRemedy(group, group.journal.heldSeconds));
  } else if (group.journal.stalled !== null) {
    const holding = group.links.filter((link) => link.role === 'to' && link.state !== 'dropped' && link.state !== 'streaming');
    const cursor = group.cursors.find((one) => one.retainedBytes > 0);
    const release = cursor === undefined ? 'wait for the destager' : `let the export of cursor ${cursor.name} go on, or give it up: lockstep journal release ${group.name} ${cursor.name}`;
    const drop = holding.length === 0 ? release : `mend the link, or give it up: ${holding.map((link) => `lockstep link drop ${group.name} ${link.peer}`).join(' or ')}`;
    problem(group.journal.stalled, drop);
  } else if (group.journal.usedBytes > JOURNAL_HIGH * group.journal.sizeBytes) {
    problem(`the journal is ${Math.floor((100 * group.journal.usedBytes) / group.journal.sizeBytes)}% full; writers wait when it is full`, `mend the link${group.cursors.some((one) => one.retainedBytes > 0) ? ' or the export' : ''} that is behind, write less, or configure a larger journal.size`);
  }
  if (group.store.admission !== 'open') {
    problem(group.store.admission, `free space on the data directory's file system (now ${formatSize(group.store.freeBytes)} free), or remove snapshots`);
  }
  // The daemon lists among its errors what the fields above say too.
  const told = [group.roleReason, group.journal.stalled, group.store.admission];
  for (const sentence of group.errors) if (!told.includes(sentence)) problem(sentence, '');
  for (const link of group.links) adviseLink(group, link, problem, note);
  if (group.store.replaySecondsEstimate > LONG_REPLAY_SECONDS) {
    note(`a restart after a crash would replay for about ${formatDuration(group.store.replaySecondsEstimate)}`, 'lower store.checkpointBytes if that is too long');
  }
  return [...problems, ...notes];
}

/** A hold is no full journal: it ends by itself, and whoever gave up a link or a cursor for it had to rebuild what that feeds. */
function haltRemedy({ links, lsn }: GroupStatus, seconds: number): string {
  const behind = awaitedLinks(links).filter((link) => link.applied < lsn.appended).map((link) => link.peer);
  return `it waits until every node has come to the same point and executed it${behind.length === 0 ? '' : `, now for ${behind.join(' and ')}`}; `
    + `the writers go on by themselves when it ends, in ${seconds} s at the latest. To end it at once, interrupt the command that asked for it (Ctrl-C)`;
}

type Say = (what: string, remedy: string) => void;

function adviseLink(group: GroupStatus, link: LinkEntry, problem: Say, note: Say): void {
  const name = `link ${link.role} ${link.peer}`;
  const because = link.reason === '' ? '' : `: ${link.reason}`;
  switch (link.state) {
    case 'connecting':
      problem(`${name} is down${because}`, `check that lockstepd runs on ${link.peer} and that its link address can be reached from here; it reconnects by itself`);
      break;
    case 'waiting':
      problem(`${name} is down${because}`, `check that lockstepd runs on ${link.peer} and reaches this node's link address; or, if it is lost: lockstep promote ${group.name}`);
      break;
    case 'refused':
      problem(`${name} is refused${because}`, 'it will not mend by itself: do what the reason says');
      break;
    case 'dropped':
      problem(`${name} was dropped${because}`, `${link.peer} gets nothing any more. A restart of this lockstepd tries it again; if what it lacks has left the journal: ${REBUILD}`);
      break;
    case 'hello':
      note(`${name} is being made${because}`, '');
      break;
    case 'catching-up':
      note(`${name} is catching up, ${formatSize(link.lagBytes)} behind${because}`, '');
      break;
    case 'streaming':
      // Why the peer receives and does not execute; of this node its own errors say it.
      if (link.role === 'to' && link.reason !== '') problem(`${name}: ${link.reason}`, `do what that says on ${link.peer}; until then it keeps what it receives, and cannot be promoted`);
      if (link.lagSeconds > LONG_LAG_SECONDS) problem(`${name} is ${formatDuration(link.lagSeconds)} behind${because}`, `look for a slow network, or a slow disk on ${link.peer}`);
      break;
  }
}
