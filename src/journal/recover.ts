/**
 * Opening a journal that exists: finds its end, and tells a torn tail from
 * corruption (DESIGN §3).
 *
 * Crash assumptions (numbered; ARCHITECTURE.md lists them all):
 *   1. after power loss each 512-byte sector that was not made durable is old or new, never garbage;
 *   2. a successful fdatasync makes everything durable that was written to that file before it was submitted.
 *
 * Consequences. Below the LSN that this node itself knows to have been durable
 * every batch must verify: anything else is corruption, and the group does not
 * start. Above it, the first batch that does not verify is where the tail was
 * torn: nothing behind it was ever acknowledged as durable, whatever it holds,
 * and it is erased before anything new is appended.
 *
 *   damage                                                what recovery does
 *   batch below the durable LSN does not verify           CorruptionError with file, byte and LSN
 *   the file where reading starts does not lead there     CorruptionError: damaged, or an older copy (below.ts)
 *   segment missing below the durable LSN                 CorruptionError
 *   segment missing that the one before it names          CorruptionError: no crash takes a file away
 *   file shorter than when it was taken into use          CorruptionError, if the journal ends in it
 *   batch above it does not verify                        ends the journal there, zeroes the rest
 *   segment begun, its header not on disk                 the journal ends before it; the file is free
 *   segment header damaged (sectors are never torn)       CorruptionError, if the segment continues the journal
 *   valid batches behind the torn one                     erased with the rest
 *   volatile: ends below the note of its end, or no note  CorruptionError: in memory nothing is torn but a batch that
 *                                                         nobody was told of. Older versions noted nothing
 *   power fails again during all this                     the next recovery does the same
 *
 * Every file is read, written and erased within its own size: the configured one
 * may have changed since it was made.
 *
 * Below the low-water mark nothing is replayed, but a link may still need it: see
 * below.ts.
 */

import { IoError } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { assert } from '../base/assert.js';
import { brokenBelow, older } from './below.js';
import { JournalDamage } from './damage.js';
import type { EndNote } from './endnote.js';
import { batch, BATCH_MAGIC, checkBatchShape, MAX_BATCH_BYTES, SEGMENT_HEADER_BYTES, usedHeaderBytes } from './format.js';
import type { Journal } from './journal.js';
import { samePosition, type Position } from './position.js';
import { segmentName } from './segments.js';
import type { FoundSegment } from './segments.js';
import type { Memory } from './verify.js';
import { positionAfter, verifyHeader, verifyPayloads } from './verify.js';

export interface RecoverInput {
  /** Where reading starts: the low-water mark of the checkpoint, a batch boundary. */
  readonly from: Position;
  /** A rewind: the journal ends here, a batch boundary, and what lies behind is erased. */
  readonly until?: Position;
  /** Everything below was durable, as the checkpoint knows it. */
  readonly durableLsn: number;
  /** Whether this node wrote the batches of an epoch as primary: only then their durable LSNs speak of this node. */
  ownEpoch(epochId: string): boolean;
  /**
   * Called for every batch in order: arena offsets of the header and of the
   * padded payload, valid during the call. May throw.
   */
  visit(at: number, payloadAt: number, lsn: number): void;
}

export interface RecoverResult {
  readonly end: Position;
  /** Bytes from which a torn tail was erased, for the log; 0 if the end was clean. */
  readonly tornAt: number;
  readonly batches: number;
}

/** Reads the journal from `input.from` to its end and leaves it ready to append. Blocking; throws JournalDamage (a CorruptionError), IoError. */
export function recoverJournal(memory: Memory, journal: Journal, input: RecoverInput): RecoverResult {
  const { arena } = memory;
  const { pool } = journal;
  const found = pool.scan();
  // Also at a rewind, while clients use the arena.
  const window = arena.lend(MAX_BATCH_BYTES);
  assert(window >= 0, 'no arena room to recover the journal');
  const out = new Uint32Array(2);
  let durable = input.durableLsn;
  for (const segment of found) durable = Math.max(durable, segment.durableMark);
  if (journal.end !== undefined && input.until === undefined) durable = Math.max(durable, notedEnd(journal, journal.end, found));

  let position = input.from;
  let segment = firstSegment(found, position.lsn);
  if (segment === undefined) {
    const unreadable = found.filter((one) => one.header === undefined && !one.blank).map((one) => ` ${one.path}: ${one.why}.`);
    throw new JournalDamage(journal.options.directory, 0, `no journal segment holds LSN ${position.lsn}; the oldest needed one is missing.${unreadable.join('')}`);
  }
  const live: FoundSegment[] = [];
  let batches = 0;
  let ended = false;
  try {
    const broken = brokenBelow(memory, journal, found, segment, position, window);
    if (broken !== undefined) throw new JournalDamage(segment.path, pool.filePosition(segment, broken.lsn), broken.why);
    while (!ended) {
      live.push(segment);
      segment.endLsn = position.lsn;
      let why = '';
      let loaded = 0; // window holds [windowPos, windowPos + loaded) of the segment
      let windowPos = 0;
      for (;;) {
        if (position.lsn === input.until?.lsn) {
          ended = true;
          break;
        }
        const pos = pool.filePosition(segment, position.lsn);
        if (pos + BLOCK_BYTES > segment.bytes) {
          why = 'the segment ends';
          break;
        }
        if (loaded === 0 || pos + BLOCK_BYTES > windowPos + loaded) {
          windowPos = pos;
          loaded = readWindow(memory, segment, window, pos);
        }
        let at = window + pos - windowPos;
        let problem = checkBatchShape(arena.view, at);
        if (problem === undefined && pos + batch.totalBytes(arena.view, at) > segment.bytes) problem = 'the batch does not fit its segment';
        if (problem === undefined && pos + batch.totalBytes(arena.view, at) > windowPos + loaded) {
          windowPos = pos;
          loaded = readWindow(memory, segment, window, pos);
          at = window;
        }
        problem ??= verifyHeader(memory, at, windowPos + loaded - pos, position);
        const payloadAt = problem === undefined ? at + batch.headerBytes(arena.view, at) : 0;
        problem ??= verifyPayloads(memory, at, payloadAt, true);
        if (problem !== undefined) {
          why = problem;
          break;
        }
        const next = positionAfter(memory, at, position, out);
        if (input.ownEpoch(batch.epochId(arena.u8, at))) durable = Math.max(durable, batch.durable(arena.view, at));
        input.visit(at, payloadAt, position.lsn);
        batches++;
        position = next;
        segment.endLsn = position.lsn;
      }
      if (ended) break;
      const following = nextSegment(found, segment, position);
      if (following !== undefined) {
        segment = following;
        continue;
      }
      const headless = headlessNext(memory, found, position, window);
      if (headless !== undefined && !headless.blank) {
        throw new JournalDamage(headless.path, 0, `${headless.why}, although the segment continues the journal at LSN ${position.lsn}`);
      }
      durable = Math.max(durable, durableBehind(memory, found, segment, headless, position.lsn, window, input));
      const gone = missing(found, segment);
      if (gone !== undefined) {
        throw new JournalDamage(segment.path, pool.filePosition(segment, position.lsn), `the journal ends here, at LSN ${position.lsn}, and should not: ${gone}`);
      }
      if (position.lsn < durable) {
        throw new JournalDamage(segment.path, pool.filePosition(segment, position.lsn),
          `${why} at LSN ${position.lsn}, although ${journal.volatile ? 'it went on' : 'this node had made the journal durable up'} to LSN ${durable}`);
      }
      ended = true;
    }
    if (input.until !== undefined && !samePosition(position, input.until)) {
      throw new JournalDamage(segment.path, pool.filePosition(segment, position.lsn),
        `the journal ends at LSN ${position.lsn} where a rewind to LSN ${input.until.lsn} was asked for, or has another history there`);
    }
    return finish(memory, journal, found, live, segment, position, batches, window);
  } finally {
    arena.release(window);
  }
}

/** How far a volatile journal goes, as it was noted; 0 when it was written by a version that noted nothing. */
function notedEnd(journal: Journal, note: EndNote, found: readonly FoundSegment[]): number {
  const noted = note.read();
  if (typeof noted === 'number') return noted;
  // Headers have said how long their file is for as long as there are notes.
  if (noted === undefined && found.every(({ header }) => header === undefined || header.bytes === 0)) return 0;
  throw new JournalDamage(journal.options.directory, 0, noted ?? `${note.path}, which says how far the journal goes, is not there`);
}

/** Reads from `pos` on, not beyond the segment's own end; returns how many bytes that are. */
function readWindow(memory: Memory, segment: FoundSegment, window: number, pos: number): number {
  const bytes = Math.min(MAX_BATCH_BYTES, segment.bytes - pos);
  if (bytes <= 0) return 0;
  const read = memory.io.pread(segment.fd, window, bytes, pos);
  if (read < 0) throw new IoError(-read, `read the journal at byte ${pos} of`, segment.path);
  return bytes;
}

function firstSegment(found: FoundSegment[], lsn: number): FoundSegment | undefined {
  let best: FoundSegment | undefined;
  for (const segment of found) {
    if (segment.header === undefined || segment.baseLsn > lsn) continue;
    if (best === undefined || segment.baseLsn > best.baseLsn || (segment.baseLsn === best.baseLsn && segment.serial > best.serial)) best = segment;
  }
  return best;
}

/** The segment that continues the history at `position`: begun after `segment`, at this LSN and chain. */
function nextSegment(found: FoundSegment[], segment: FoundSegment, position: Position): FoundSegment | undefined {
  let best: FoundSegment | undefined;
  for (const other of found) {
    if (other.header === undefined || other.serial <= segment.serial || other.baseLsn !== position.lsn) continue;
    if (other.header.chainHi !== position.chainHi || other.header.chainLo !== position.chainLo) continue;
    if (best === undefined || other.serial > best.serial) best = other;
  }
  return best;
}

/** What somebody must have taken away behind the end of the journal in `last`; no crash does. */
function missing(found: readonly FoundSegment[], last: FoundSegment): string | undefined {
  const { next } = last;
  if (next !== undefined && !found.some((one) => one.number === next.number)) return `${segmentName(next.number)}, which continues it, is not there any more`;
  const had = last.header?.bytes ?? 0;
  return last.bytes < had ? `the file has been cut from ${had} to ${last.bytes} bytes` : undefined;
}

/** A segment without a readable header that begins with the batch that belongs at `position`. */
function headlessNext(memory: Memory, found: FoundSegment[], position: Position, window: number): FoundSegment | undefined {
  for (const other of found) {
    if (other.header !== undefined) continue;
    const bytes = readWindow(memory, other, window, SEGMENT_HEADER_BYTES);
    if (bytes >= BLOCK_BYTES && verifyHeader(memory, window, bytes, position) === undefined) return other;
  }
  return undefined;
}

/**
 * Looks behind the first batch that does not verify for batches of this node
 * that prove that the place was durable once. Returns the highest LSN so proven.
 */
function durableBehind(memory: Memory, found: FoundSegment[], segment: FoundSegment, headless: FoundSegment | undefined, lsn: number, window: number, input: RecoverInput): number {
  const { arena, io } = memory;
  let durable = 0;
  for (const other of found) {
    if (other === headless) other.baseLsn = lsn;
    else if (other !== segment && (other.header === undefined || other.serial < segment.serial || other.baseLsn < lsn)) continue;
    const start = other === segment ? SEGMENT_HEADER_BYTES + lsn - other.baseLsn : SEGMENT_HEADER_BYTES;
    for (let pos = start; pos < other.bytes; pos += MAX_BATCH_BYTES) {
      const bytes = readWindow(memory, other, window, pos);
      for (let at = window; at + BLOCK_BYTES <= window + bytes; at += BLOCK_BYTES) {
        if (arena.view.getUint32(at, true) !== BATCH_MAGIC || checkBatchShape(arena.view, at) !== undefined) continue;
        const used = usedHeaderBytes(batch.count(arena.view, at));
        if (at + used > window + bytes || io.crc32c(at + 8, used - 8, 0) !== batch.crc(arena.view, at)) continue;
        const expected = other.baseLsn + pos + (at - window) - SEGMENT_HEADER_BYTES;
        if (batch.lsn(arena.view, at) !== expected || !input.ownEpoch(batch.epochId(arena.u8, at))) continue;
        durable = Math.max(durable, batch.durable(arena.view, at));
      }
    }
  }
  return durable;
}

/** Erases what lies behind the end and hands the segments to the pool. */
function finish(memory: Memory, journal: Journal, found: FoundSegment[], live: FoundSegment[], last: FoundSegment, end: Position, batches: number, window: number): RecoverResult {
  const { io, arena } = memory;
  const { pool } = journal;
  // Before anything is erased, so that what a kill leaves is never less than what is noted.
  journal.end?.place(end.lsn);
  const tailPos = pool.filePosition(last, end.lsn);
  let tornAt = 0;
  // Read before writing: a clean tail is zeros already, and then nothing needs to be written.
  for (let pos = tailPos; pos < last.bytes; pos += MAX_BATCH_BYTES) {
    const bytes = readWindow(memory, last, window, pos);
    if (isZero(arena.u8, window, bytes)) continue;
    // A recycled segment holds its former life behind the end; only a batch at the end itself is a torn tail.
    if (tornAt === 0) tornAt = pos;
    arena.u8.fill(0, window, window + bytes);
    const written = io.pwrite(last.fd, window, bytes, pos);
    if (written < 0) throw new IoError(-written, `erase the torn tail at byte ${pos} of`, last.path);
  }
  pool.endsIn(last);
  const synced = io.fdatasync(last.fd);
  if (synced < 0) throw new IoError(-synced, 'fdatasync journal segment', last.path);
  live.unshift(...older(memory, journal, found, live[0], window));
  // An older version named none, a name may be lost with power, and a file may have got another number.
  for (const [i, segment] of live.slice(0, -1).entries()) pool.followedBy(segment, live[i + 1]);
  const rest = found.filter((segment) => !live.includes(segment));
  for (const segment of rest) if (segment.header !== undefined && segment.baseLsn >= live[0].baseLsn) pool.wipe(segment);
  // Files are removed when nothing that a recovery could follow names them any more.
  for (const segment of rest) pool.discard(segment);
  for (const segment of live) {
    segment.dirty = false;
    pool.adopt(segment);
  }
  journal.setPosition(end, end.lsn);
  const marked = pool.mark(end.lsn);
  if (marked < 0) throw new IoError(-marked, 'write the durable mark of', last.path);
  return { end, tornAt, batches };
}

function isZero(bytes: Uint8Array, start: number, length: number): boolean {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset + start, length >> 2);
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  return true;
}
