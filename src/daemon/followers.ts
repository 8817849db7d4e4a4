/**
 * Before the links of a volatile primary are closed for good: lets its
 * followers come along.
 *
 * The journal may be gone when the node starts again, and then nobody behind
 * the position of this stop can be served any more. So, while the links are
 * still up: all is made durable, which the followers need to hear in order to
 * make it final, and they are waited for as long as they get on.
 *
 * Owns: the waiting. Must not know: how links or rounds work.
 */

import type { Log } from '../base/log.js';
import type { LinkEntry } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';

const LOOK_US = 2000;
/** Longer than a heartbeat, which tells a follower how far this node is durable. */
const STILL_US = 3_000_000;

export interface LinkStates {
  status(group: string): LinkEntry[];
}

/** `done` is called once, perhaps before this returns. */
export function drainVolatile(reactor: Reactor, groups: Iterable<Group>, links: LinkStates, log: Log, done: () => void): void {
  let open = 1;
  const ended = (): void => {
    if (--open === 0) done();
  };
  for (const group of groups) {
    if (!group.hasContent || group.content.rounds === undefined) continue;
    open++;
    drainOne(reactor, group, links, log.child({ group: group.name }), ended);
  }
  ended();
}

function drainOne(reactor: Reactor, group: Group, links: LinkStates, log: Log, done: () => void): void {
  const { rounds, checkpointer, destager } = group.content;
  let last = -1;
  let since = reactor.nowUs;
  const look = (): void => {
    const followers = links.status(group.name).filter((link) => link.role === 'to' && (link.state === 'streaming' || link.state === 'catching-up'));
    if (group.role !== 'primary' || followers.length === 0) {
      done();
      return;
    }
    rounds!.finish();
    const end = group.position.lsn;
    if (checkpointer.committedAt.lsn >= end && followers.every((link) => link.durable >= end)) {
      done();
      return;
    }
    const progress = followers.reduce((sum, link) => sum + link.received + link.durable, checkpointer.committedAt.lsn + checkpointer.bytesWritten + destager.blocksWritten);
    if (progress !== last) since = reactor.nowUs;
    last = progress;
    if (reactor.nowUs - since > STILL_US) {
      for (const link of followers) {
        if (link.received < end) log.warn(`${link.peer} has not received everything: if the volatile journal is lost before the next start, it has to be rebuilt`, { received: link.received, end });
      }
      done();
      return;
    }
    reactor.after(LOOK_US, look);
  };
  look();
}
