/**
 * The journal below the place where a recovery begins to read it, the low-water
 * mark: nothing of it is replayed, but a link or an export may still need it.
 *
 * Owns: following batches there, by their headers and chain. Must not know:
 * records. Payloads are not read: they are checked by whoever is sent them.
 *
 * All of it was durable when the checkpoint was committed that has the mark. So
 * the segment that holds the mark must lead to it from its own beginning; what
 * does not is damaged, or the file is a copy of earlier days, and what would be
 * appended behind it would stand behind a gap. Segments before that one stay
 * live as far as they lead up to it, and are released like any others once
 * links and cursors have said what they need.
 */

import { IoError } from '../base/errors.js';
import { BLOCK_BYTES, KIB } from '../base/units.js';
import { batch, checkBatchShape, usedHeaderBytes } from './format.js';
import type { Journal } from './journal.js';
import { samePosition, type Position } from './position.js';
import { segmentName } from './segments.js';
import type { FoundSegment } from './segments.js';
import type { Memory } from './verify.js';
import { positionAfter, verifyHeader } from './verify.js';

/** Many small batches are read together, of a large one little more than its header. */
const STEP_BYTES = 256 * KIB;

/** How far batches follow each other: up to `position`, and why no further; no problem: `to` was reached, or passed by the last one. */
interface Followed {
  readonly position: Position;
  readonly problem: string | undefined;
}

/** Follows the batches of `segment`, which has a header, from its first one to `to`. `window`: arena, STEP_BYTES. Throws IoError. */
function follow(memory: Memory, journal: Journal, segment: FoundSegment, to: number, window: number): Followed {
  const { io, arena: { view } } = memory;
  const out = new Uint32Array(2);
  let position: Position = { lsn: segment.baseLsn, chainHi: segment.header!.chainHi, chainLo: segment.header!.chainLo };
  let loadedFrom = 0;
  let loadedTo = 0;
  const load = (pos: number): void => {
    loadedFrom = pos;
    loadedTo = Math.min(pos + STEP_BYTES, segment.bytes);
    const read = io.pread(segment.fd, window, loadedTo - loadedFrom, pos);
    if (read < 0) throw new IoError(-read, `read the journal at byte ${pos} of`, segment.path);
  };
  while (position.lsn < to) {
    const pos = journal.pool.filePosition(segment, position.lsn);
    if (pos + BLOCK_BYTES > segment.bytes) return { position, problem: 'the segment ends' };
    if (pos + BLOCK_BYTES > loadedTo) load(pos);
    let at = window + pos - loadedFrom;
    let problem = checkBatchShape(view, at);
    if (problem === undefined && pos + batch.totalBytes(view, at) > segment.bytes) problem = 'the batch does not fit its segment';
    if (problem === undefined && pos + usedHeaderBytes(batch.count(view, at)) > loadedTo) {
      load(pos);
      at = window;
    }
    problem ??= verifyHeader(memory, at, loadedTo - pos, position);
    if (problem !== undefined) return { position, problem };
    position = positionAfter(memory, at, position, out);
  }
  return { position, problem: undefined };
}

/**
 * Where, and in what words, the segment that holds `from` does not lead there; undefined: it does. Blocking: reads its
 * headers up to there, and of small batches all that lies between them. Throws IoError.
 */
export function brokenBelow(memory: Memory, journal: Journal, found: readonly FoundSegment[], segment: FoundSegment, from: Position, window: number): { readonly lsn: number; readonly why: string } | undefined {
  const { position, problem } = follow(memory, journal, segment, from.lsn, window);
  if (samePosition(position, from)) return undefined;
  const { lsn } = position;
  const needed = `the journal went on to LSN ${from.lsn} at least, from where the newest checkpoint needs it`;
  const follower = wrongFollower(found, segment);
  if (follower !== undefined) return { lsn, why: `the journal ends here, at LSN ${lsn}, although ${needed}: ${follower}` };
  return { lsn, why: `${problem ?? 'the journal has another history'} at LSN ${lsn}, although ${needed}: the file is damaged, or an older copy` };
}

/** What is wrong with the segment that is named behind one in which a journal cannot end. */
function wrongFollower(found: readonly FoundSegment[], { next }: FoundSegment): string | undefined {
  if (next === undefined) return undefined;
  const follower = found.find((one) => one.number === next.number);
  if (follower === undefined) return `${segmentName(next.number)}, which continues it, is not there any more`;
  if (follower.header === undefined) return `${segmentName(next.number)}, which continues it, cannot be read (${follower.why})`;
  return follower.serial === next.serial ? undefined : `${segmentName(next.number)}, which continues it, holds something else: it is an older copy`;
}

/** The segments below `first` that hold the history up to it, in LSN order. Blocking; throws IoError. */
export function older(memory: Memory, journal: Journal, found: readonly FoundSegment[], first: FoundSegment, window: number): FoundSegment[] {
  const kept: FoundSegment[] = [];
  let next = first;
  for (;;) {
    const before = found
      .filter((one) => one.header !== undefined && one.serial < next.serial && one.baseLsn < next.baseLsn)
      .sort((a, b) => b.serial - a.serial)
      .find((one) => leadsTo(memory, journal, one, next, window));
    if (before === undefined) return kept;
    before.endLsn = next.baseLsn;
    kept.unshift(before);
    next = before;
  }
}

/** Whether the batches of `segment` end where `next` begins, with its chain. */
function leadsTo(memory: Memory, journal: Journal, segment: FoundSegment, next: FoundSegment, window: number): boolean {
  if (journal.pool.filePosition(segment, next.baseLsn) > segment.bytes) return false;
  const { chainHi, chainLo } = next.header!;
  return samePosition(follow(memory, journal, segment, next.baseLsn, window).position, { lsn: next.baseLsn, chainHi, chainLo });
}
