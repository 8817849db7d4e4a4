/**
 * Pages of an exported journal: whole batches that cannot be undone any more,
 * read from the segment files on a helper and framed (format.ts).
 *
 * Owns: what of the journal a page holds. Must not know: who reads it, cursors.
 *
 * A page costs the data thread one pass over its batch headers and one copy of
 * at most PAGE_BYTES, or of one batch that is larger.
 */

import { CorruptionError, IoError, OperatorError } from '../../base/errors.js';
import type { EpochPosition } from '../../base/position.js';
import { BLOCK_BYTES } from '../../base/units.js';
import type { ReplicatedGroup } from '../../group/replica.js';
import { JobOp, JobTable, Queue } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { batch, checkBatchShape, usedHeaderBytes } from '../../journal/format.js';
import type { Position } from '../../journal/position.js';
import type { Segment } from '../../journal/segments.js';
import { positionAfter, wirePayloadBytes } from '../../journal/verify.js';
import { encodePreface, putStreamHeader, STREAM_HEADER_BYTES, StreamType } from './format.js';

const PAGE_BYTES = 1024 * 1024;
const RETRY_US = 10_000;

export interface ExportedPage {
  /** Whole frames; the caller's. */
  readonly bytes: Uint8Array;
  /** Where the next page begins. */
  readonly next: Position;
  readonly frames: number;
}

export interface PageAnswer {
  done(page: ExportedPage): void;
  failed(error: OperatorError | CorruptionError | IoError): void;
}

/** What can be exported: nothing undoes it on this node, and a power loss does not take it. A batch boundary. */
export function exportableLsn(group: ReplicatedGroup): number {
  // On a volatile journal nothing waits for durability, so `stable` alone says too much.
  return Math.min(group.stableLsn, group.journal.durableLsn);
}

/** The first frame of a stream from `start` on. */
export function exportPreface(group: ReplicatedGroup, node: string, start: EpochPosition): Uint8Array {
  const epochs = group.epochs.filter((epoch) => epoch.start.lsn < start.lsn);
  return encodePreface({ group: group.name, groupId: group.groupId!, node, epochs, start }, exportableLsn(group));
}

/**
 * Answers, later, with the batches from `from` on, which has to lie below `upTo`; nothing above `upTo` is in the page.
 * `number`: of its first frame. Throws OperatorError when the journal has nothing there.
 */
export function exportPage(reactor: Reactor, group: ReplicatedGroup, from: Position, upTo: number, number: number, answer: PageAnswer): void {
  const { pool } = group.journal;
  const segment = pool.find(from.lsn);
  if (segment === undefined || from.lsn >= segment.endLsn) {
    throw new OperatorError('journal/not-retained', `the journal of group ${group.name} holds LSN ${from.lsn} no more: it begins at LSN ${pool.firstLsn}`);
  }
  new Page(reactor, group, segment, from, upTo, number, answer).read(PAGE_BYTES);
}

class Page {
  private readonly out = new Uint32Array(2);

  constructor(
    private readonly reactor: Reactor, private readonly group: ReplicatedGroup, private readonly segment: Segment,
    private readonly from: Position, private readonly upTo: number, private readonly number: number, private readonly answer: PageAnswer,
  ) {
    segment.holds++;
  }

  read(wanted: number): void {
    const { reactor, segment, from } = this;
    const length = Math.min(wanted, Math.min(segment.endLsn, this.upTo) - from.lsn);
    const window = reactor.arena.alloc(length);
    if (window < 0) {
      reactor.after(RETRY_US, () => this.read(wanted));
      return;
    }
    const at = this.group.journal.pool.filePosition(segment, from.lsn);
    reactor.submit(Queue.read, new JobTable(1).add(JobOp.pread, segment.fd, window, length, at), (result) => {
      const missing = result < 0 ? this.end(() => this.answer.failed(new IoError(-result, 'read', segment.path))) : this.frame(window, length);
      reactor.arena.release(window);
      if (missing > 0) this.read(missing);
    });
  }

  private end(then: () => void): 0 {
    this.segment.holds--;
    then();
    return 0;
  }

  private damaged(lsn: number, problem: string): 0 {
    const { segment, group } = this;
    return this.end(() => this.answer.failed(new CorruptionError(segment.path, group.journal.pool.filePosition(segment, lsn), `the batch at LSN ${lsn} is damaged: ${problem}`)));
  }

  /** Answers with the whole batches of the window; returns how many bytes the first one needs when it is larger, else 0. */
  private frame(window: number, length: number): number {
    const { reactor, group, from } = this;
    const { view, u8 } = reactor.arena;
    let position = from;
    let frames = 0;
    let bytes = 0;
    while (position.lsn - from.lsn + BLOCK_BYTES <= length) {
      const at = window + position.lsn - from.lsn;
      const left = length - (position.lsn - from.lsn);
      const problem = checkBatchShape(view, at) ?? (batch.lsn(view, at) === position.lsn ? undefined : `it says LSN ${batch.lsn(view, at)}`);
      if (problem !== undefined) return this.damaged(position.lsn, problem);
      const total = batch.totalBytes(view, at);
      if (total > left) {
        if (frames > 0) break;
        // The journal of this node ends its batches at `upTo` and at the segment's end.
        if (from.lsn + total > Math.min(this.segment.endLsn, this.upTo)) return this.damaged(position.lsn, `it says that it has ${total} bytes`);
        return total;
      }
      const used = usedHeaderBytes(batch.count(view, at));
      if (reactor.io.crc32c(at + 8, used - 8, 0) !== batch.crc(view, at)) return this.damaged(position.lsn, 'its header checksum differs');
      if (batch.chainHi(view, at) !== position.chainHi || batch.chainLo(view, at) !== position.chainLo) {
        return this.end(() => this.answer.failed(new OperatorError('journal/other-history',
          `the journal of group ${group.name} was changed below LSN ${from.lsn}, where this export stands: it has become another history`)));
      }
      const payload = wirePayloadBytes(reactor, at);
      if (payload > batch.payloadBytes(view, at)) return this.damaged(position.lsn, 'its entries are longer than its payload');
      position = positionAfter(reactor, at, position, this.out);
      bytes += STREAM_HEADER_BYTES + used + payload;
      frames++;
    }
    if (frames === 0) return this.damaged(from.lsn, `only ${length} bytes are there`);
    const page = this.copy(u8, view, window, position.lsn, bytes);
    return this.end(() => this.answer.done({ bytes: page, next: position, frames }));
  }

  private copy(u8: Uint8Array, view: DataView, window: number, endLsn: number, bytes: number): Uint8Array {
    const page = new Uint8Array(bytes);
    const durable = exportableLsn(this.group);
    let to = 0;
    let number = this.number;
    for (let lsn = this.from.lsn; lsn < endLsn;) {
      const at = window + lsn - this.from.lsn;
      const used = usedHeaderBytes(batch.count(view, at));
      const payload = wirePayloadBytes(this.reactor, at);
      putStreamHeader(page, to, StreamType.batch, used + payload, Math.max(durable, this.upTo), number++);
      page.set(u8.subarray(at, at + used), to + STREAM_HEADER_BYTES);
      const payloadAt = at + batch.headerBytes(view, at);
      page.set(u8.subarray(payloadAt, payloadAt + payload), to + STREAM_HEADER_BYTES + used);
      to += STREAM_HEADER_BYTES + used + payload;
      lsn += batch.totalBytes(view, at);
    }
    return page;
  }
}
