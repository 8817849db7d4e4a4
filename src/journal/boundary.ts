/**
 * Batch boundaries of a journal: whether an LSN is one, and with which chain.
 * Owns how one header is read and trusted; must not know why somebody asks.
 */

import { IoError } from '../base/errors.js';
import { JobOp, JobTable, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { batch, batchStart, checkBatchShape, MAX_HEADER_BYTES, usedHeaderBytes } from './format.js';
import type { Journal } from './journal.js';
import type { Position } from './position.js';
import type { Memory } from './verify.js';

/** A batch boundary. */
export interface Boundary {
  readonly position: Position;
  /** When the batch that begins there was built, ms since 1970; 0 at the end of the journal. */
  readonly wallMs: number;
}

/** The boundary at `lsn` as the batch header in [at, at + bytes) says it; undefined when no good header of that LSN lies there. */
export function boundaryIn(memory: Memory, at: number, bytes: number, lsn: number): Boundary | undefined {
  const { view } = memory.arena;
  if (checkBatchShape(view, at) !== undefined || batch.lsn(view, at) !== lsn) return undefined;
  const used = usedHeaderBytes(batch.count(view, at));
  if (used > bytes || memory.io.crc32c(at + 8, used - 8, 0) !== batch.crc(view, at)) return undefined;
  return { position: batchStart(view, at), wallMs: batch.wallMs(view, at) };
}

const RETRY_US = 10_000;

/**
 * Reads the boundary at `lsn` on a helper: `done` gets it, undefined when `lsn` is not retained or no boundary, or why
 * the journal cannot be read. May be called before this returns.
 */
export function readBoundary(reactor: Reactor, journal: Journal, lsn: number, done: (found: Boundary | undefined | IoError) => void): void {
  const { position, pool } = journal;
  if (lsn === position.lsn) {
    done({ position, wallMs: 0 });
    return;
  }
  const segment = pool.find(lsn);
  if (segment === undefined || lsn >= segment.endLsn) {
    done(undefined);
    return;
  }
  const at = reactor.arena.alloc(MAX_HEADER_BYTES);
  if (at < 0) {
    reactor.after(RETRY_US, () => readBoundary(reactor, journal, lsn, done));
    return;
  }
  const bytes = Math.min(MAX_HEADER_BYTES, segment.endLsn - lsn);
  segment.holds++;
  reactor.submit(Queue.read, new JobTable(1).add(JobOp.pread, segment.fd, at, bytes, pool.filePosition(segment, lsn)), (result) => {
    segment.holds--;
    const found = result < 0 ? new IoError(-result, 'read', segment.path) : boundaryIn(reactor, at, bytes, lsn);
    reactor.arena.release(at);
    done(found);
  });
}
