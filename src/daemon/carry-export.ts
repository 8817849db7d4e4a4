/**
 * `journal export` on the data thread: where a stream begins, and its pages.
 *
 * Owns: which cursor a stream belongs to, waiting for what can be exported. Must
 * not know: the bytes of a stream (replication/carry/format.ts), HTTP.
 *
 * Exported is only what nothing can undo on this node: on a primary what is
 * durable, on a secondary what is durable on its primary, too. So a secondary
 * can be exported from like a primary.
 */

import { callerGone } from '../base/caller.js';
import { IoError, OperatorError } from '../base/errors.js';
import type { EpochPosition } from '../base/position.js';
import type { CarryReplies, ExportOpenRequest, ExportPageRequest } from '../control/carry.js';
import type { Group } from '../group/group.js';
import { MAX_CURSORS } from '../group/content/cursorfile.js';
import { epochPosition } from '../group/tree/epochs.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { readBoundary } from '../journal/boundary.js';
import { emptyFrame, StreamType } from '../replication/carry/format.js';
import { exportableLsn, exportPage, exportPreface } from '../replication/carry/exporter.js';
import type { Answer } from './answer.js';
import { caught, endingOnce } from './answer.js';
import { checkFinal, checkPlace, checkRetained, noCursor } from './cursors.js';

/** How often a stream that has caught up looks whether there is more, beside being told. */
const LOOK_US = 50_000;

/** Opens and continues exports; what an export is lies with its cursor and with whoever asks for the next page. */
export class ExportStreams {
  constructor(private readonly reactor: Reactor, private readonly node: string) {}

  /** Makes the cursor, if there is none yet. Throws OperatorError; other errors go to `answer`. */
  open(group: Group, request: ExportOpenRequest, answer: Answer): void {
    checkExportable(group);
    const { cursors } = group.retention;
    const existing = cursors.get(request.cursor);
    if (existing !== undefined) {
      checkPlace(this.reactor, group, existing.position, `cursor ${existing.name}`, 'release it, and begin anew with another one', (error) => {
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
      checkPlace(this.reactor, group, from, 'the position', 'name another one, or leave --from out for the oldest', (error) => {
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

  /** Answers with what comes next, or with a sign of life when nothing does for `waitSeconds`. */
  page(group: Group, request: ExportPageRequest, answer: Answer): void {
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
}

function checkExportable(group: Group): void {
  if (!group.hasContent) throw new OperatorError('journal/not-retained', `group ${group.name} has no journal on this node yet`);
  if (group.closed) throw new OperatorError('daemon/closing', 'the daemon is shutting down');
  if (group.role === 'stopped' || group.role === 'fenced') {
    throw new OperatorError(group.role === 'stopped' ? 'group/stopped' : 'role/fenced', `group ${group.name} is ${group.role} on this node and exports nothing: ${group.roleReason}`);
  }
  if (group.changing) throw new OperatorError('group/busy', `group ${group.name} is being taken back to an earlier position; try again in a moment`);
}
