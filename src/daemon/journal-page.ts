/**
 * One page of a group's journal as data: what `lockstep journal dump` shows.
 * Reads a window of a segment on a helper and decodes the batches in it.
 */

import { assert } from '../base/assert.js';
import { CorruptionError, IoError, OperatorError } from '../base/errors.js';
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

  const read = (batchLsn: number): void => {
    const bytes = Math.min(MAX_BATCH_BYTES, segment.endLsn - batchLsn);
    segment.holds++;
    reactor.submit(Queue.read, new JobTable(1).add(JobOp.pread, segment.fd, window, bytes, pool.filePosition(segment, batchLsn)), (result) => {
      segment.holds--;
      if (result < 0) {
        finish(() => answer.failed(new IoError(-result, 'read the journal of', group.name)));
        return;
      }
      const next = decodeWindow(batchLsn, bytes);
      if (typeof next === 'string') finish(() => answer.failed(new CorruptionError(segment.path, pool.filePosition(segment, batchLsn), next)));
      else if (records.length > 0 || next >= end || next >= segment.endLsn) finish(() => answer.done({ records, next, appended, end: next >= end }));
      else read(next);
    });
  };
  const finish = (then: () => void): void => {
    reactor.arena.release(window);
    then();
  };

  /** Decodes the whole batches in the window; returns the LSN behind the last one taken, or what is wrong. */
  const decodeWindow = (start: number, bytes: number): number | string => {
    const { view, u8 } = reactor.arena;
    let lsn = start;
    while (lsn < end && records.length < request.limit) {
      const at = window + lsn - start;
      if (lsn - start + 4096 > bytes) break;
      // What a client wrote may look like a batch, and `from` may name it.
      let problem = checkBatchShape(view, at);
      const total = batch.totalBytes(view, at);
      if (problem === undefined && lsn + total > segment.endLsn) problem = 'the batch does not fit its segment';
      if (problem === undefined) {
        if (lsn - start + total > bytes) break;
        if (boundaryIn(reactor, at, total, lsn) === undefined) problem = 'the header of the batch is damaged';
      }
      if (problem !== undefined) return from === start && lsn === start ? `LSN ${from} is not the start of a batch; name the LSN of a page's end, or omit it` : problem;
      for (let i = 0; i < batch.count(view, at); i++) {
        const record = decodeRecord(group, at, lsn, i, u8, view);
        if (record.lsn >= from && record.lsn < end) records.push(record);
      }
      lsn += total;
    }
    assert(lsn > start || records.length >= request.limit || lsn >= end, 'a window holds at least one batch');
    return lsn;
  };

  read(from >= segment.baseLsn && isBoundary(from) ? from : segment.baseLsn);

  /** Pages end at boundaries, and those are multiples of a block counted from the segment's start; decodeWindow finds out if it is one. */
  function isBoundary(lsn: number): boolean {
    return (lsn - segment.baseLsn) % 4096 === 0;
  }
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
