/**
 * The journal carried by software outside of Lockstep: the data thread's half
 * of `journal export`, `import`, `ack`, `release`, `position` and `drain`.
 *
 * Owns: which cursor a stream belongs to, the import sessions, waiting for what
 * can be exported. Must not know: the bytes of a stream (replication/
 * carry-format.ts), HTTP.
 *
 * Exported is only what nothing can undo on this node: on a primary what is
 * durable, on a secondary what is durable on its primary, too. So a secondary
 * can be exported from like a primary.
 */

import { unreachable } from '../base/assert.js';
import { callerGone } from '../base/caller.js';
import { IoError, OperatorError } from '../base/errors.js';
import type { EpochPosition } from '../base/position.js';
import { formatPosition } from '../base/position.js';
import type { CarryReplies, CarryRequest, ExportOpenRequest, ExportPageRequest, ImportStateRequest } from '../control/carry.js';
import type { CursorEntry, ImportState } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import { MAX_CURSORS } from '../group/content/cursorfile.js';
import { epochIdAt, epochPosition } from '../group/tree/epochs.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { readBoundary } from '../journal/boundary.js';
import type { Position } from '../journal/journal.js';
import { emptyFrame, StreamType } from '../replication/carry-format.js';
import { exportableLsn, exportPage, exportPreface } from '../replication/exporter.js';
import { Importer } from '../replication/importer.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';
import { drain } from './drain.js';
import type { Links } from './links.js';

/** How often a stream that has caught up looks whether there is more, beside being told. */
const LOOK_US = 50_000;
/** An import syncs its journal at the latest this long after a batch. */
const SYNC_US = 2_000;

interface Session {
  readonly group: Group;
  readonly importer: Importer;
}

export class Carry {
  private readonly sessions = new Map<number, Session>();
  private nextSession = 1;

  constructor(private readonly reactor: Reactor, private readonly node: string, private readonly find: (name: string) => Group, private readonly links: Links) {}

  /** Throws OperatorError; other errors go to `answer`. */
  handle(request: CarryRequest, answer: Answer): void {
    switch (request.op) {
      case 'exportOpen':
        this.exportOpen(this.find(request.group), request, answer);
        return;
      case 'exportPage':
        this.exportPart(this.find(request.group), request, answer);
        return;
      case 'importOpen':
        this.importOpen(this.find(request.group), answer);
        return;
      case 'importPush': {
        const { importer } = this.session(request.session);
        importer.push(request.bytes, (error) => (error === undefined ? answer.done(stateOf(importer)) : answer.failed(error)));
        return;
      }
      case 'importState':
        this.importState(request, answer);
        return;
      case 'importEnd':
        this.importEnd(request.session, answer);
        return;
      case 'position':
        position(this.find(request.group), answer);
        return;
      case 'cursorAck':
        this.acknowledge(this.find(request.group), request.cursor, request.position, answer);
        return;
      case 'cursorRelease':
        this.release(this.find(request.group), request.cursor, answer);
        return;
      case 'drain':
        drain(this.reactor, this.find(request.group), this.links, request.waitSeconds * 1e6, answer);
        return;
      default:
        unreachable(request);
    }
  }

  // ---- export -----------------------------------------------------------------------------------------------

  private exportOpen(group: Group, request: ExportOpenRequest, answer: Answer): void {
    checkExportable(group);
    const { cursors } = group.retention;
    const existing = cursors.get(request.cursor);
    if (existing !== undefined) {
      this.checkPlace(group, existing.position, `cursor ${existing.name}`, 'release it, and begin anew with another one', (error) => {
        if (error === undefined) answer.done(this.beginning(group, existing.position));
        else answer.failed(error);
      });
      return;
    }
    if (cursors.count >= MAX_CURSORS) {
      throw new OperatorError('cursor/too-many', `group ${group.name} has ${MAX_CURSORS} cursors already; give one up with: lockstep journal release ${group.name} CURSOR (lockstep status ${group.name} names them)`);
    }
    const { from } = request;
    const create = (start: EpochPosition): void => {
      // The journal would be kept for a reader that never comes.
      if (answer.caller.gone) throw callerGone();
      if (cursors.get(request.cursor) !== undefined) throw new OperatorError('cursor/exists', `cursor ${request.cursor} of group ${group.name} has just been made by somebody else; start the export again`);
      cursors.create(group.groupId!, request.cursor, start, (error) => {
        if (error === undefined) answer.done(this.beginning(group, start));
        else answer.failed(error);
      });
    };
    if (from !== null) checkFinal(group, typeof from === 'object' ? from.lsn : from);
    if (typeof from === 'object' && from !== null) {
      this.checkPlace(group, from, 'the position', 'name another one, or leave --from out for the oldest', (error) => {
        if (error === undefined) caught(answer, () => create(from));
        else answer.failed(error);
      });
      return;
    }
    const lsn = from ?? group.journal.pool.firstLsn;
    checkRetained(group, lsn);
    readBoundary(this.reactor, group.journal, lsn, (found) => caught(answer, () => {
      if (found instanceof IoError) throw found;
      if (found === undefined) throw new OperatorError('cursor/no-boundary', `LSN ${lsn} of group ${group.name} is not the beginning of a batch; name a position, or leave --from out for the oldest`);
      create(epochPosition(group.epochs, found.position));
    }));
  }

  private beginning(group: Group, start: EpochPosition): CarryReplies['exportOpen'] {
    const { lsn, chainHi, chainLo } = start;
    return { bytes: exportPreface(group, this.node, start), place: { lsn, chainHi, chainLo, frame: 1 }, durable: Math.max(exportableLsn(group), lsn), end: false };
  }

  /** `done(undefined)` when `place` is a batch boundary of this group's history, below what can be exported, and retained. */
  private checkPlace(group: Group, place: EpochPosition, what: string, remedy: string, done: (error: unknown) => void): void {
    try {
      checkRetained(group, place.lsn);
    } catch (error) {
      done(error);
      return;
    }
    readBoundary(this.reactor, group.journal, place.lsn, (found) => {
      if (found instanceof IoError) done(found);
      else if (found === undefined || found.position.chainHi !== place.chainHi || found.position.chainLo !== place.chainLo || epochIdAt(group.epochs, place.lsn) !== place.epochId) {
        done(new OperatorError('cursor/other-history', `${what} (${formatPosition(place)}) does not lie in the history of group ${group.name} on this node; ${remedy}`));
      } else done(undefined);
    });
  }

  private exportPart(group: Group, request: ExportPageRequest, answer: Answer): void {
    const { place } = request;
    const waitUntilUs = this.reactor.nowUs + request.waitSeconds * 1e6;
    let removeHook: (() => void) | undefined;
    let timer: TimerId | undefined;
    let looking = true;
    const stop = (): void => {
      looking = false;
      removeHook?.();
      if (timer !== undefined) this.reactor.cancel(timer);
    };
    const once = endingOnce(answer, stop);
    const part = (type: typeof StreamType.end | typeof StreamType.heartbeat): void => {
      const durable = Math.max(exportableLsn(group), place.lsn);
      once.done({ bytes: emptyFrame(type, durable, place.frame), place: { ...place, frame: place.frame + 1 }, durable, end: type === StreamType.end });
    };
    const look = (): void => {
      if (!looking) return;
      caught(once, () => {
        checkExportable(group);
        const cursor = group.retention.cursors.get(request.cursor);
        if (cursor === undefined) throw noCursor(group, request.cursor);
        // The importing node may have had, and acknowledged, more than the cursor said when the stream began. What lies
        // below is sent as long as it is there; if it is not, the next export begins where the cursor is now.
        if (place.lsn < group.journal.pool.firstLsn && place.lsn < cursor.position.lsn) {
          throw new OperatorError('cursor/moved', `cursor ${request.cursor} of group ${group.name} has moved to LSN ${cursor.position.lsn}, and LSN ${place.lsn}, where this export stands, is gone; start the export again`);
        }
        const durable = Math.max(exportableLsn(group), place.lsn);
        const upTo = request.to === null ? durable : Math.min(durable, request.to);
        if (place.lsn < upTo) {
          stop();
          exportPage(this.reactor, group, place, upTo, place.frame, {
            done: (page) => once.done({ bytes: page.bytes, place: { ...page.next, frame: place.frame + page.frames }, durable, end: false }),
            failed: (error) => once.failed(error),
          });
        } else if (request.to !== null && place.lsn >= request.to) {
          part(StreamType.end);
        } else if (this.reactor.nowUs >= waitUntilUs) {
          part(StreamType.heartbeat);
        } else {
          removeHook ??= group.onDurable(look);
        }
      });
    };
    const again = (): void => {
      timer = undefined;
      look();
      if (looking) timer = this.reactor.after(LOOK_US, again);
    };
    again();
  }

  // ---- import -----------------------------------------------------------------------------------------------

  private importOpen(group: Group, answer: Answer): void {
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
  private importState(request: ImportStateRequest, answer: Answer): void {
    const { importer } = this.session(request.session);
    let remove: () => void = () => undefined;
    const timer = this.reactor.after(request.waitSeconds * 1e6, () => look(true));
    const once = endingOnce(answer, () => {
      remove();
      this.reactor.cancel(timer);
    });
    const look = (over: boolean): void => caught(once, () => {
      this.session(request.session);
      const state = stateOf(importer);
      if (over || state.position !== request.told) once.done(state);
    });
    remove = importer.onMoved(() => look(false));
    look(false);
  }

  private importEnd(id: number, answer: Answer): void {
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

  // ---- cursors ----------------------------------------------------------------------------------------------

  private acknowledge(group: Group, name: string, to: EpochPosition, answer: Answer): void {
    const { cursors } = group.retention;
    const cursor = cursors.get(name);
    if (cursor === undefined) throw noCursor(group, name);
    const forward = (): void => {
      const now = cursors.get(name);
      if (now === undefined) throw noCursor(group, name);
      if (to.lsn < now.position.lsn) {
        throw new OperatorError('cursor/behind', `cursor ${name} of group ${group.name} stands at LSN ${now.position.lsn} and moves forward only, not to LSN ${to.lsn}`);
      }
    };
    forward();
    if (!group.hasContent || to.lsn > Math.max(exportableLsn(group), cursor.position.lsn)) {
      throw new OperatorError('cursor/not-exported', `LSN ${to.lsn} of group ${group.name} has not been exported: this node has it durable up to LSN ${exportableLsn(group)}`);
    }
    this.checkPlace(group, to, 'the position', `acknowledge what lockstep journal import printed for cursor ${name}`, (error) => {
      if (error !== undefined) {
        answer.failed(error);
        return;
      }
      caught(answer, () => {
        forward();
        cursors.move(name, to, (failed) => {
          if (failed === undefined) answer.done(cursorEntry(group, name));
          else answer.failed(failed);
        });
      });
    });
  }

  private release(group: Group, name: string, answer: Answer): void {
    const { cursors } = group.retention;
    const cursor = cursors.get(name);
    if (cursor === undefined) throw noCursor(group, name);
    const before = group.retainedLsn();
    const { lsn } = cursor.position;
    cursors.remove(name, (error) => {
      if (error !== undefined) {
        answer.failed(error);
        return;
      }
      const needed = Math.min(group.retainedLsn(), group.content.checkpointer.lowWater.lsn);
      answer.done({ cursor: name, lsn, freedBytes: Math.max(0, needed - Math.min(before, needed)) });
    });
  }
}

/** A cursor for `status`. */
export function cursorEntry(group: Group, name: string): CursorEntry {
  const { position, createdMs, movedMs } = group.retention.cursors.get(name)!;
  const { appendedLsn } = group.journal;
  return {
    name, position: formatPosition(position), lsn: position.lsn, behindBytes: Math.max(0, appendedLsn - position.lsn),
    retainedBytes: Math.max(0, group.content.checkpointer.lowWater.lsn - group.retention.cursors.keptFrom(name)), createdMs, movedMs,
  };
}

/** Of a volatile journal: what a checkpoint has. */
function committedOf(group: Group): Position | undefined {
  return group.hasContent && group.journal.volatile ? group.content.checkpointer.committedAt : undefined;
}

/**
 * What this node has executed, once it is durable; LSN 0 for a node that has nothing. A volatile secondary that does
 * not know what its primary has makes no more durable: of that one what is.
 */
function position(group: Group, answer: Answer): void {
  const committed = group.stableLsn < group.appliedLsn ? committedOf(group) : undefined;
  const here = epochPosition(group.epochs, committed ?? group.appliedPosition);
  const reply = { group: group.name, position: formatPosition(here), lsn: here.lsn };
  if (!group.hasContent) {
    answer.done(reply);
    return;
  }
  let cancel: () => void = () => undefined;
  const once = endingOnce(answer, () => cancel());
  cancel = group.operations.whenDurable(here.lsn, (error) => (error === undefined ? once.done(reply) : once.failed(error)));
}

function stateOf(importer: Importer): ImportState {
  const { durable, receivedLsn, appliedLsn, from, whole, full } = importer.report;
  return { position: formatPosition(durable), receivedLsn, appliedLsn, from: from ?? null, whole, full };
}

function noCursor(group: Group, name: string): OperatorError {
  return new OperatorError('cursor/not-found', `group ${group.name} has no cursor ${name}; lockstep status ${group.name} names those it has`);
}

function checkExportable(group: Group): void {
  if (!group.hasContent) throw new OperatorError('journal/not-retained', `group ${group.name} has no journal on this node yet`);
  if (group.closed) throw new OperatorError('daemon/closing', 'the daemon is shutting down');
  if (group.role === 'stopped' || group.role === 'fenced') {
    throw new OperatorError(group.role === 'stopped' ? 'group/stopped' : 'role/fenced', `group ${group.name} is ${group.role} on this node and exports nothing: ${group.roleReason}`);
  }
  if (group.changing) throw new OperatorError('group/busy', `group ${group.name} is being taken back to an earlier position; try again in a moment`);
}

function checkRetained(group: Group, lsn: number): void {
  const { pool, appendedLsn } = group.journal;
  if (lsn < pool.firstLsn) {
    throw new OperatorError('journal/not-retained', `the journal of group ${group.name} begins at LSN ${pool.firstLsn} now, LSN ${lsn} is gone: a node that was fed from there has to be built anew (README, "Rebuild a secondary"), unless it is at LSN ${pool.firstLsn} already (lockstep journal position ${group.name}, run there): then acknowledge that`);
  }
  if (lsn > appendedLsn) throw new OperatorError('cursor/other-history', `LSN ${lsn} lies beyond the journal of group ${group.name}, which ends at LSN ${appendedLsn}`);
}

/** A cursor begins at nothing that this node, or its primary, may lose still: after that it would stand in no history. */
function checkFinal(group: Group, lsn: number): void {
  checkRetained(group, lsn);
  // A secondary that was just started does not know yet what its primary has; what a checkpoint has stays in any case.
  const final = Math.max(exportableLsn(group), group.content.checkpointer.committedAt.lsn);
  if (lsn > final) {
    throw new OperatorError('cursor/not-exported', `LSN ${lsn} of group ${group.name} can still be lost: this node knows it to be durable up to LSN ${final} only; try again in a moment, or begin at that LSN or below`);
  }
}

/** Runs `work`; what it throws goes to `answer`, unless it is a bug. */
function caught(answer: Pick<Answer, 'failed'>, work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof OperatorError) && !(error instanceof IoError)) throw error;
    answer.failed(error);
  }
}
