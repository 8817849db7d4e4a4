/**
 * `journal import` on the data thread: one stream at a time into each group.
 *
 * Owns: the sessions, and when nothing may be imported. Must not know: the bytes
 * of a stream (replication/carry/importer.ts), HTTP.
 */

import { OperatorError } from '../base/errors.js';
import { formatPosition } from '../base/position.js';
import type { ImportStateRequest } from '../control/carry.js';
import type { ImportState } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { Position } from '../journal/position.js';
import { Importer } from '../replication/carry/importer.js';
import type { Answer } from './answer.js';
import { caught, endingOnce } from './answer.js';
import type { Links } from './links.js';

/** An import syncs its journal at the latest this long after a batch. */
const SYNC_US = 2_000;

interface Session {
  readonly group: Group;
  readonly importer: Importer;
}

export class Imports {
  private readonly sessions = new Map<number, Session>();
  private nextSession = 1;

  constructor(private readonly reactor: Reactor, private readonly links: Links) {}

  /** Begins an import, and ends the one before. Throws OperatorError. */
  open(group: Group, answer: Answer): void {
    const importer = new Importer(this.reactor, group, { syncUs: SYNC_US, blocked: () => this.blocked(group), gone: () => group.closed, committed: () => committedOf(group) });
    const refusal = importer.refusal();
    if (refusal !== undefined) {
      importer.close(refusal);
      throw refusal;
    }
    // Its carrier has gone without a word, or is about to be told.
    for (const [id, session] of this.sessions) {
      if (session.group === group) this.end(id, new OperatorError('import/replaced', `another import of group ${group.name} took the place of this one`));
    }
    const session = this.nextSession++;
    this.sessions.set(session, { group, importer });
    // The position that is told first is a durable one.
    importer.finish(() => answer.done({ session, state: stateOf(importer) }));
  }

  private blocked(group: Group): OperatorError | undefined {
    if (group.closed) return new OperatorError('daemon/closing', 'the daemon is shutting down');
    if (group.changing) return new OperatorError('group/busy', `group ${group.name} is being taken back to an earlier position; try again in a moment`);
    const primary = this.links.connectedPrimary(group.name);
    if (primary === undefined) return undefined;
    return new OperatorError('import/linked', `node ${primary} sends group ${group.name} over a link already; nothing is imported beside it: end the link first (lockstep link drop ${group.name} ${primary}), or do without the import`);
  }

  private session(id: number): Session {
    const found = this.sessions.get(id);
    if (found === undefined) throw new OperatorError('import/replaced', 'this import has ended: another one took its place, or the group was closed');
    return found;
  }

  /** The position is what an acknowledgement waits for, and a writer for that: it is told as soon as it moves. */
  state(request: ImportStateRequest, answer: Answer): void {
    const { importer } = this.session(request.session);
    const once = endingOnce(answer);
    const timer = this.reactor.after(request.waitSeconds * 1e6, () => look(true));
    once.alsoEnd(() => void this.reactor.cancel(timer));
    const look = (over: boolean): void => caught(once, () => {
      this.session(request.session);
      const state = stateOf(importer);
      if (over || state.position !== request.told) once.done(state);
    });
    once.alsoEnd(importer.onMoved(() => look(false)));
    look(false);
  }

  /** The input has ended: answers once all of it is durable. */
  finish(id: number, answer: Answer): void {
    const { importer } = this.session(id);
    importer.finish(() => {
      const state = stateOf(importer);
      if (this.sessions.has(id)) this.end(id, new OperatorError('import/ended', 'the input of this import has ended'));
      answer.done(state);
    });
  }

  private end(id: number, why: Error): void {
    const session = this.sessions.get(id);
    this.sessions.delete(id);
    session?.importer.close(why);
  }

  /** The import of a group that is under way, for `status`. */
  importing(group: Group): ImportState | null {
    for (const session of this.sessions.values()) if (session.group === group) return stateOf(session.importer);
    return null;
  }

  /** Takes the next bytes of a stream. */
  push(id: number, bytes: Uint8Array, answer: Answer): void {
    const { importer } = this.session(id);
    importer.push(bytes, (error) => (error === undefined ? answer.done(stateOf(importer)) : answer.failed(error)));
  }
}

/** Of a volatile journal: what a checkpoint has. */
export function committedOf(group: Group): Position | undefined {
  return group.hasContent && group.journal.volatile ? group.content.checkpointer.committedAt : undefined;
}

function stateOf(importer: Importer): ImportState {
  const { durable, receivedLsn, appliedLsn, from, whole, full } = importer.report;
  return { position: formatPosition(durable), receivedLsn, appliedLsn, from: from ?? null, whole, full };
}
