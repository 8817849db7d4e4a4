/**
 * One page of a group's journal as data: what `lockstep journal dump` shows.
 * Reads a window of a segment on a helper and decodes the batches in it.
 */

import { assert } from '../base/assert.js';
import { CorruptionError, IoError, OperatorError } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { toHex } from '../base/words.js';
import type { JournalPage, JournalRequest } from '../control/port.js';
import type { JournalRecord } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import { encodeSums } from '../group/tree/fieldsums.js';
import { decodeMarker, operationVerb } from '../group/tree/record.js';
import { JobOp, JobTable, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { boundaryIn } from '../journal/boundary.js';
import { batch, checkBatchShape, entry, MAX_BATCH_BYTES, RecordKind, recordKindName } from '../journal/format.js';
import { meteredFields } from './metering.js';

/** Answers with records from `request.from` on; the page ends with the window that it read. */
export function journalPage(
  reactor: Reactor, group: Group, request: JournalRequest,
  answer: { done(page: JournalPage): void; failed(error: unknown): void },
): void {
  if (!group.hasContent) throw new OperatorError('journal/not-retained', `group ${group.name} has no journal on this node yet`);
  const { journal } = group;
  const { pool } = journal;
  const appended = journal.appendedLsn;
  const end = Math.min(request.to ?? appended, appended);
  const from = request.from ?? pool.firstLsn;
  if (from >= end) {
    answer.done({ records: [], next: from, appended, end: true });
    return;
  }
  if (from < pool.firstLsn) {
    throw new OperatorError('journal/not-retained', `the journal of group ${group.name} begins at LSN ${pool.firstLsn} now; LSN ${from} has been recycled`);
  }
  // Batches can only be found from a segment's start on, or from a boundary that an earlier page ended at.
  const segment = pool.find(from)!;
  const window = reactor.arena.alloc(MAX_BATCH_BYTES);
  if (window < 0) throw new OperatorError('daemon/busy', 'no memory for a page of the journal right now; try again');
  const records: JournalRecord[] = [];
  // Where reading began: pages end at boundaries, and those are whole blocks behind the segment's start.
  let start = (from - segment.baseLsn) % BLOCK_BYTES === 0 ? from : segment.baseLsn;

  const read = (batchLsn: number): void => {
    const bytes = Math.min(MAX_BATCH_BYTES, segment.endLsn - batchLsn);
    segment.holds++;
    reactor.submit(Queue.read, new JobTable(1).add(JobOp.pread, segment.fd, window, bytes, pool.filePosition(segment, batchLsn)), (result) => {
      segment.holds--;
      if (result < 0) {
        finish(() => answer.failed(new IoError(-result, 'read the journal of', group.name)));
        return;
      }
      const { next, problem } = decodeWindow(batchLsn, bytes);
      if (problem !== undefined) stop(next, problem);
      else if (records.length > 0 || next >= end || next >= segment.endLsn) finish(() => answer.done({ records, next, appended, end: next >= end }));
      else read(next);
    });
  };
  /** There is no batch at `lsn`. */
  const stop = (lsn: number, problem: Error): void => {
    // What is good comes first; the next page begins at `lsn` and says the problem.
    if (records.length > 0) finish(() => answer.done({ records, next: lsn, appended, end: false }));
    else if (lsn === start && start !== segment.baseLsn) {
      // Whether one belongs there, the batches before it know.
      start = segment.baseLsn;
      read(start);
    } else finish(() => answer.failed(problem));
  };
  const finish = (then: () => void): void => {
    reactor.arena.release(window);
    then();
  };
  const damaged = (lsn: number, problem: string): Window => ({
    next: lsn, problem: new CorruptionError(segment.path, pool.filePosition(segment, lsn), `the batch at LSN ${lsn} is damaged: ${problem}`),
  });

  /** Decodes the whole batches in the window, from `first` on. */
  const decodeWindow = (first: number, bytes: number): Window => {
    const { view, u8 } = reactor.arena;
    let lsn = first;
    while (lsn < end && records.length < request.limit) {
      const at = window + lsn - first;
      if (lsn - first + BLOCK_BYTES > bytes) break;
      // What a client wrote may look like a batch, and `from` may name it.
      const shape = checkBatchShape(view, at);
      if (shape !== undefined) return damaged(lsn, shape);
      const total = batch.totalBytes(view, at);
      if (lsn + total > segment.endLsn) return damaged(lsn, 'it does not fit its segment');
      if (lsn - first + total > bytes) break;
      if (boundaryIn(reactor, at, total, lsn) === undefined) return damaged(lsn, 'its header is not the one that was written');
      if (start < from && lsn < from && lsn + total > from && (from - lsn) % BLOCK_BYTES === 0) {
        return { next: lsn, problem: new OperatorError('journal/no-boundary', `LSN ${from} is not the start of a batch; name the LSN of a page's end, or omit it`) };
      }
      for (let i = 0; i < batch.count(view, at); i++) {
        const record = decodeRecord(group, at, lsn, i, u8, view);
        if (record.lsn >= from && record.lsn < end) records.push(record);
      }
      lsn += total;
    }
    assert(lsn > first || records.length >= request.limit || lsn >= end, 'a window holds at least one batch');
    return { next: lsn, problem: undefined };
  };

  read(start);
}

/** What a window held: whole batches up to `next`, and what is wrong there if that ended it. */
interface Window {
  readonly next: number;
  readonly problem: CorruptionError | OperatorError | undefined;
}

function decodeRecord(group: Group, at: number, batchLsn: number, i: number, u8: Uint8Array, view: DataView): JournalRecord {
  const e = entry.at(at, i);
  const kind = entry.kind(view, e);
  const lsn = entry.lsn(batchLsn, i);
  const epoch = batch.epochNumber(view, at);
  if (kind !== RecordKind.marker) {
    return {
      lsn, kind: kind === RecordKind.data ? 'write' : recordKindName(kind), device: entry.device(view, e), offset: entry.offset(view, e), length: entry.length(view, e), epoch, body: null,
    };
  }
  const payloadAt = at + batch.headerBytes(view, at) + entry.payloadOffset(view, e);
  const length = entry.length(view, e);
  const marker = decodeMarker(u8.subarray(payloadAt, payloadAt + length));
  if (typeof marker === 'string') return { lsn, kind: 'marker', device: null, offset: null, length, epoch, body: { problem: marker } };
  return {
    lsn, kind: operationVerb(marker.operation), device: null, offset: null, length, epoch,
    body: { ...marker.operation, wallMs: marker.wallMs, digest: marker.digest, ...(marker.sums === undefined ? {} : { sums: toHex(encodeSums(marker.sums)) }), ...meteredFields(group.meter, lsn) },
  };
}
