/**
 * The journal's files: a pool of preallocated, zero-filled segments that are
 * used, released and used again (DESIGN §3).
 *
 * Owns: segment files, their headers, which LSN range each one holds, the pool
 * of free ones. Must not know: batches, records, when a range may be released.
 *
 * A segment is *live* while it holds a range that somebody may still need and
 * *free* otherwise. The live ones hold one contiguous LSN range; the last one is
 * being written. A batch never spans two segments: what does not fit starts the
 * next one, and the rest of the old file has no LSNs.
 *
 * Each live segment but the last names the file that follows it, so that a file
 * which somebody took away is missed; recovery names those that nobody named. No
 * file is removed while a segment on the disk names it and recovery could end there.
 *
 *   step of beginning a segment         killed right after      power fails right after
 *   1 its header is written             begun, without batches  its header is there or not: the journal ends before it
 *   2 the one before names its file     the same                named, and its header is there or not: the same
 *   3 its first batch is written        recovered               the same; torn, if the header is there
 *   4 fdatasync of both files           recovered               recovered
 *
 * The configuration may change between two starts. A file keeps the size that it
 * was made with for as long as it is live: what lies in it was placed by that
 * size. Only new files get the configured one; a file of another size, or one
 * too many, is removed when it becomes free.
 */

import { assert } from '../base/assert.js';
import { Errno, IoError } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { JobOp, JobTable, O, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { JournalDamage } from './damage.js';
import {
  decodeDurableMark, decodeNext, decodeSegmentHeader, encodeDurableMark, encodeNext, encodeSegmentHeader, MARK_OFFSET, NEXT_OFFSET, SECTOR_BYTES, SEGMENT_HEADER_BYTES,
} from './format.js';
import type { NextSegment, SegmentHeader } from './format.js';

export interface Segment {
  readonly fd: number;
  readonly path: string;
  /** In the name of its file. */
  readonly number: number;
  /** Size of its file in whole blocks: where its batches end, whatever is configured now. */
  readonly bytes: number;
  /** Counts every use of any segment file of this journal; orders the live ones. */
  serial: number;
  baseLsn: number;
  /** First LSN behind what was written to this segment. */
  endLsn: number;
  /** Written to since the last fdatasync was submitted. */
  dirty: boolean;
  /** Its header is durable: recovery finds it. */
  headed: boolean;
  /** Reads in flight on helper threads; a held segment is not taken into use again. */
  holds: number;
}

export interface FoundSegment extends Segment {
  /** Undefined when the header cannot be read; `why` says so. */
  header: SegmentHeader | undefined;
  why: string;
  /** The header is all zeros: never used, or erased, or begun without its header having reached the disk. */
  blank: boolean;
  durableMark: number;
  /** What it says of the segment behind it. */
  next: NextSegment | undefined;
}

/** Names of segment files. */
export const SEGMENT_NAME = /^segment-(\d{6})$/;

/** Of the file, within the journal's directory. */
export function segmentName(number: number): string {
  return `segment-${String(number).padStart(6, '0')}`;
}

/** So many files are made whatever their sizes sum up to: one is written to, and writing can go on while others are being freed. */
const LEAST_FILES = 4;
/** A file too many is removed only while so many are free: one for data and the one that is reserved for markers. */
const LEAST_FREE = 2;

export class SegmentPool {
  readonly live: Segment[] = [];
  private readonly free: Segment[] = [];
  private nextNumber = 1;
  private nextSerial = 1;
  private creating = false;
  private total = 0;
  /** What all files have together. */
  private totalBytes = 0;
  private closed = false;
  private readonly scratch: number;
  /** Called when a background creation has made room, or has failed (a sentence). */
  onCreated: (failure: string | undefined) => void = () => undefined;

  constructor(
    private readonly reactor: Reactor,
    readonly directory: string,
    readonly groupId: string,
    readonly segmentBytes: number,
    readonly maxSegments: number,
  ) {
    assert(segmentBytes % BLOCK_BYTES === 0, 'segments are whole blocks');
    this.scratch = reactor.arena.alloc(BLOCK_BYTES);
    assert(this.scratch >= 0, 'no arena room for a segment header');
  }

  /** Bytes of batches that a segment of the configured size can hold: every batch has to fit. */
  get capacity(): number {
    return this.segmentBytes - SEGMENT_HEADER_BYTES;
  }

  /** Segments that can be begun at once. */
  get freeCount(): number {
    return this.free.length;
  }

  /** Files that exist. */
  get fileCount(): number {
    return this.total;
  }

  /** Bytes that files still to be created will take. */
  get bytesToCome(): number {
    return Math.max(0, this.maxSegments * this.segmentBytes - this.totalBytes);
  }

  /** Bytes that can still be appended to a live segment. */
  room(segment: Segment): number {
    return segment.bytes - SEGMENT_HEADER_BYTES - (segment.endLsn - segment.baseLsn);
  }

  /** Opens what is on disk. The caller decides by `adopt` which of it is live; the rest becomes free. */
  scan(): FoundSegment[] {
    const { io, arena } = this.reactor;
    const found: FoundSegment[] = [];
    // A process that was killed may have made files whose names were not durable yet: what is found here is used.
    const named = io.syncDirectory(this.directory);
    if (named < 0) throw new IoError(-named, 'fsync', this.directory);
    for (const name of io.list(this.directory)) {
      const match = SEGMENT_NAME.exec(name);
      if (match === null) continue;
      const path = `${this.directory}/${name}`;
      const fd = io.open(path, O.RDWR | O.CLOEXEC, 0);
      if (fd < 0) throw new IoError(-fd, 'open journal segment', path);
      const number = Number(match[1]);
      this.nextNumber = Math.max(this.nextNumber, number + 1);
      const size = io.stat(fd).size;
      const bytes = size - (size % BLOCK_BYTES);
      this.total++;
      this.totalBytes += bytes;
      // What a failed fdatasync left in the page cache looks written but is not on the disk: after an fdatasync that
      // succeeds, dropping the clean pages makes every read below show what the disk really holds.
      const synced = io.fdatasync(fd);
      if (synced < 0) throw new IoError(-synced, 'fdatasync journal segment', path);
      io.adviseDontNeed(fd, 0, 0);
      const read = io.pread(fd, this.scratch, BLOCK_BYTES, 0);
      if (read < 0) throw new IoError(-read, 'read journal segment', path);
      // A file that is shorter ends in zeros, not in what was read before.
      arena.u8.fill(0, this.scratch + read, this.scratch + BLOCK_BYTES);
      const header = decodeSegmentHeader(arena.u8, this.scratch);
      const segment: FoundSegment = {
        fd, path, number, bytes, serial: 0, baseLsn: 0, endLsn: 0, dirty: false, headed: true, holds: 0, header: undefined, why: '', blank: false, durableMark: 0, next: undefined,
      };
      if (typeof header === 'string') {
        segment.why = header;
        segment.blank = arena.u8.subarray(this.scratch, this.scratch + SECTOR_BYTES).every((byte) => byte === 0);
      } else if (header.groupId !== this.groupId) {
        throw new JournalDamage(path, 0, `this segment belongs to group ${header.groupId}, not to ${this.groupId}`);
      } else {
        segment.header = header;
        segment.serial = header.serial;
        segment.baseLsn = header.baseLsn;
        segment.endLsn = header.baseLsn;
        segment.durableMark = decodeDurableMark(arena.u8, this.scratch + MARK_OFFSET, header.serial) ?? 0;
        segment.next = decodeNext(arena.u8, this.scratch + NEXT_OFFSET, header.serial);
        this.nextSerial = Math.max(this.nextSerial, header.serial + 1);
      }
      found.push(segment);
    }
    return found;
  }

  /** Takes a scanned segment as the next live one; they come in LSN order. */
  adopt(segment: Segment): void {
    const last = this.live[this.live.length - 1];
    assert(last === undefined || last.endLsn === segment.baseLsn, 'live segments are contiguous');
    this.live.push(segment);
  }

  /** Gives a scanned segment that holds nothing needed to the pool, or removes its file. Throws IoError. */
  discard(segment: Segment): void {
    const result = this.reuse(segment);
    if (result < 0) throw new IoError(-result, 'remove journal segment', segment.path);
  }

  /**
   * A segment that is not live any more becomes free, or, being of another size than the configured one or one too
   * many, its file is removed. Returns 0 or −errno of the removal; the file is out of the pool in any case.
   */
  private reuse(segment: Segment): number {
    const tooMany = this.totalBytes > this.maxSegments * this.segmentBytes && this.free.length >= LEAST_FREE;
    if (segment.bytes === this.segmentBytes && !tooMany) {
      this.free.push(segment);
      return 0;
    }
    this.total--;
    this.totalBytes -= segment.bytes;
    this.reactor.io.close(segment.fd);
    return this.reactor.io.unlink(segment.path);
  }

  /** The live segment that holds `lsn`, or the one being written when lsn is its end. Undefined below and above. */
  find(lsn: number): Segment | undefined {
    const live = this.live;
    let low = 0;
    let high = live.length - 1;
    if (high < 0 || lsn < live[0].baseLsn || lsn > live[high].endLsn) return undefined;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (live[middle].baseLsn <= lsn) low = middle;
      else high = middle - 1;
    }
    return live[low];
  }

  /** Byte of the segment's file at which `lsn`, which it holds, lies. */
  filePosition(segment: Segment, lsn: number): number {
    return SEGMENT_HEADER_BYTES + lsn - segment.baseLsn;
  }

  /** The one that is written to. */
  get current(): Segment {
    return this.live[this.live.length - 1];
  }

  /** Oldest LSN that is still held. */
  get firstLsn(): number {
    return this.live.length === 0 ? 0 : this.live[0].baseLsn;
  }

  /**
   * Takes a free segment into use at `header.baseLsn`, and has the one before
   * name it. Both are in the page cache only; the fdatasync that makes its first
   * batch durable covers both. Returns 0, or −errno on a failed write: then the
   * segment stays a free one.
   */
  begin(header: Omit<SegmentHeader, 'serial' | 'groupId' | 'bytes'>): number {
    const { arena } = this.reactor;
    const segment = this.free.shift();
    assert(segment !== undefined, 'begin() without a free segment');
    segment.serial = this.nextSerial++;
    encodeSegmentHeader(arena.u8, this.scratch, { ...header, groupId: this.groupId, serial: segment.serial, bytes: segment.bytes });
    encodeDurableMark(arena.u8, this.scratch + MARK_OFFSET, 0, 0);
    arena.u8.fill(0, this.scratch + NEXT_OFFSET, this.scratch + NEXT_OFFSET + SECTOR_BYTES);
    let result = this.put(segment, NEXT_OFFSET + SECTOR_BYTES, 0);
    if (result >= 0 && this.live.length > 0) {
      const before = this.current;
      encodeNext(arena.u8, this.scratch, before.serial, segment);
      before.dirty = true;
      result = this.put(before, SECTOR_BYTES, NEXT_OFFSET);
    }
    if (result < 0) {
      this.free.unshift(segment);
      return result;
    }
    segment.baseLsn = header.baseLsn;
    segment.endLsn = header.baseLsn;
    segment.dirty = true;
    segment.headed = false;
    this.live.push(segment);
    return 0;
  }

  /** Writes the first `bytes` of the scratch block into a segment's header. Returns them or −errno; half a write is a failed one. */
  private put(segment: Segment, bytes: number, pos: number): number {
    const written = this.reactor.io.pwrite(segment.fd, this.scratch, bytes, pos);
    return written < 0 || written === bytes ? written : -Errno.EIO;
  }

  /** Writes the durable mark into the segment being written; the next fdatasync carries it to the disk. Returns its bytes or −errno. */
  mark(durableLsn: number): number {
    encodeDurableMark(this.reactor.arena.u8, this.scratch, this.current.serial, durableLsn);
    this.current.dirty = true;
    return this.put(this.current, SECTOR_BYTES, MARK_OFFSET);
  }

  /** The journal ends in a scanned segment that names another behind it: it does not any more. In the page cache; throws IoError. */
  endsIn(segment: FoundSegment): void {
    if (segment.next === undefined) return;
    this.reactor.arena.u8.fill(0, this.scratch, this.scratch + SECTOR_BYTES);
    const result = this.put(segment, SECTOR_BYTES, NEXT_OFFSET);
    if (result < 0) throw new IoError(-result, 'write the header of journal segment', segment.path);
    segment.next = undefined;
  }

  /** A scanned segment is followed by another: from here on it names it, durably, if it did not. Blocking; throws IoError. */
  followedBy(segment: FoundSegment, follower: Segment): void {
    if (segment.next?.number === follower.number && segment.next.serial === follower.serial) return;
    const { io, arena } = this.reactor;
    encodeNext(arena.u8, this.scratch, segment.serial, follower);
    let result = this.put(segment, SECTOR_BYTES, NEXT_OFFSET);
    if (result >= 0) result = io.fdatasync(segment.fd);
    if (result < 0) throw new IoError(-result, 'write the header of journal segment', segment.path);
    segment.next = { serial: follower.serial, number: follower.number };
  }

  /** A helper reads from a segment, or syncs one: its descriptor must stay open. */
  get held(): boolean {
    return this.live.some((segment) => segment.holds > 0);
  }

  /** All files that the limit allows are there: room comes from releasing alone. */
  get grown(): boolean {
    return !this.creating && !this.mayCreate;
  }

  /** A background creation is under way. */
  get busy(): boolean {
    return this.creating;
  }

  /**
   * Lowers every durable mark to `lsn` (a rewind): what lies above is about to
   * be erased on purpose and must not look like corruption. Blocking; throws IoError.
   */
  lowerMarks(lsn: number): void {
    const { io, arena } = this.reactor;
    for (const segment of this.live) {
      encodeDurableMark(arena.u8, this.scratch, segment.serial, Math.min(lsn, segment.endLsn));
      let result = this.put(segment, SECTOR_BYTES, MARK_OFFSET);
      if (result >= 0) result = io.fdatasync(segment.fd);
      if (result < 0) throw new IoError(-result, 'lower the durable mark of', segment.path);
    }
  }

  /**
   * Frees the live segments that lie wholly below `lsn`, as far as nobody holds
   * them. Returns how many. Recovery from `lsn` has to find a segment: the one
   * behind must be there for sure before this one may be used again. A file
   * that cannot be removed is reported and left to the next start.
   */
  releaseBelow(lsn: number): number {
    let count = 0;
    while (this.live.length > 1 && this.live[0].endLsn <= lsn && this.live[0].holds === 0 && !this.live[0].dirty && this.live[1].headed) {
      const segment = this.live.shift()!;
      this.forget(segment);
      const result = this.reuse(segment);
      if (result < 0) this.onCreated(new IoError(-result, 'remove journal segment', segment.path).message);
      count++;
    }
    return count;
  }

  /**
   * Erases what says that a released segment holds a part of the history: the next recovery then keeps what was still
   * needed at the end and no more. Only a hint: if it fails, or is lost with power, that recovery keeps some more.
   */
  private forget(segment: Segment): void {
    this.reactor.arena.u8.fill(0, this.scratch, this.scratch + SECTOR_BYTES);
    this.put(segment, SECTOR_BYTES, 0);
  }

  /** Erases the header of a segment that is not live, so that no recovery takes it for a part of the history. */
  wipe(segment: Segment): void {
    const { io, arena } = this.reactor;
    arena.u8.fill(0, this.scratch, this.scratch + BLOCK_BYTES);
    let result = this.put(segment, BLOCK_BYTES, 0);
    if (result >= 0) result = io.fdatasync(segment.fd);
    if (result < 0) throw new IoError(-result, 'erase journal segment', segment.path);
  }

  /** Creates a segment now, blocking; for opening a group. */
  createNow(): void {
    const { io } = this.reactor;
    const segment = this.openNew();
    const { fd, path } = segment;
    // Also for a new epoch, while clients use the arena: then in smaller steps.
    const own = this.reactor.arena.alloc(64 * 1024);
    const zeros = own >= 0 ? own : this.scratch;
    const rows = own >= 0 ? 64 * 1024 : BLOCK_BYTES;
    this.reactor.arena.u8.fill(0, zeros, zeros + rows);
    let result = 0;
    for (let pos = 0; pos < this.segmentBytes && result >= 0; pos += rows) {
      result = io.pwrite(fd, zeros, Math.min(rows, this.segmentBytes - pos), pos);
    }
    if (own >= 0) this.reactor.arena.release(own);
    if (result >= 0) result = io.fdatasync(fd);
    if (result >= 0) result = io.syncDirectory(this.directory);
    if (result < 0) {
      io.close(fd);
      throw new IoError(-result, 'create journal segment', path);
    }
    this.total++;
    this.totalBytes += this.segmentBytes;
    this.free.push(segment);
  }

  /** Starts creating a segment on a helper when few are free and the limit allows one more. */
  ensureSpare(spare: number): void {
    if (this.creating || this.closed || this.free.length >= spare || !this.mayCreate) return;
    const { io } = this.reactor;
    let segment: Segment;
    try {
      segment = this.openNew();
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.onCreated(error.message);
      return;
    }
    const { fd, path } = segment;
    const directory = io.open(this.directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0);
    if (directory < 0) {
      io.close(fd);
      this.onCreated(new IoError(-directory, 'open', this.directory).message);
      return;
    }
    this.creating = true;
    this.total++;
    this.totalBytes += this.segmentBytes;
    const table = new JobTable(4)
      .add(JobOp.zero, fd, 0, this.segmentBytes, 0)
      .add(JobOp.fdatasync, fd, 0, 0, 0)
      .add(JobOp.fsync, directory, 0, 0, 0);
    this.reactor.submit(Queue.checkpoint, table, (result) => {
      this.creating = false;
      io.close(directory);
      if (result < 0 || this.closed) {
        this.total--;
        this.totalBytes -= this.segmentBytes;
        io.close(fd);
        if (result < 0) {
          io.unlink(path);
          this.onCreated(new IoError(-result, 'create journal segment', path).message);
        }
        return;
      }
      this.free.push(segment);
      this.onCreated(undefined);
    });
  }

  /**
   * Gives up a journal whose creation failed, with its files: the next attempt must not build on one whose fdatasync
   * failed. A file that cannot be removed is left to the next start. No creation is under way.
   */
  abandon(): void {
    assert(!this.creating, 'segments are given up while one is being made');
    for (const segment of [...this.live, ...this.free]) {
      this.reactor.io.close(segment.fd);
      this.reactor.io.unlink(segment.path);
    }
    this.live.length = this.free.length = this.total = this.totalBytes = 0;
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const segment of [...this.live, ...this.free]) this.reactor.io.close(segment.fd);
    this.live.length = 0;
    this.free.length = 0;
    this.reactor.arena.release(this.scratch);
  }

  /** Files of other sizes count by their bytes; but a single old file may be larger than all that is configured now. */
  private get mayCreate(): boolean {
    return this.total < Math.min(LEAST_FILES, this.maxSegments) || this.totalBytes + this.segmentBytes <= this.maxSegments * this.segmentBytes;
  }

  /** A segment of the configured size whose file is empty still. Throws IoError. */
  private openNew(): Segment {
    const number = this.nextNumber++;
    const path = `${this.directory}/${segmentName(number)}`;
    const fd = this.reactor.io.open(path, O.RDWR | O.CREAT | O.TRUNC | O.CLOEXEC, 0o600);
    if (fd < 0) throw new IoError(-fd, 'create journal segment', path);
    return { fd, path, number, bytes: this.segmentBytes, serial: 0, baseLsn: 0, endLsn: 0, dirty: false, headed: false, holds: 0 };
  }
}
