/**
 * The local journal of a group: the log of what happens to devices that exist on
 * this node only, in `local/` beside the group's journal (DESIGN §1).
 *
 * Owns: the files, which records count after a crash, and *settling*: making
 * records and the layer data that they speak of survive power loss. Must not
 * know: what a record does.
 *
 * It is a Journal of markers with LSNs of its own. Data of local devices are
 * written through to the layers' files, and a record of it follows; the kernel
 * may write either back first. So after power loss a record proves nothing of
 * the data: only what a *barrier* record covers counts, and a barrier is
 * appended when the layers' files were fdatasynced. After a kill of the daemon
 * all of it counts, for the page cache survived: an `opened` record says under
 * which boot of the kernel the records behind it were made.
 *
 *     step                                       recovery sees, after a kill · after power loss
 *     data written to a layer's file             a block that no map names, or its newer bytes: as the client never heard of it
 *     record appended; the write is answered     the write · what was there before, as if unflushed data of a disk were lost
 *     layers' files (and their names) fdatasync  the same
 *     barrier appended                           the write · the same
 *     **fdatasync: commit point of FLUSH, FUA**  the write · the write
 *     and of operations
 *
 * What does not count is not erased but named by a `dropped` record, for the
 * records behind it have to keep their LSNs.
 */

import { assert } from '../../base/assert.js';
import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { BLOCK_BYTES, MIB } from '../../base/units.js';
import { listIfThere, mkdirs, must } from '../../io/file.js';
import { JobOp, JobTable, O, Queue } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { batch, entry, MAX_MARKER_BYTES } from '../../journal/format.js';
import { Journal, JOURNAL_ARENA_BYTES } from '../../journal/journal.js';
import { ORIGIN, type Position } from '../../journal/position.js';
import { recoverJournal } from '../../journal/recover.js';
import type { Layer, LayerTable } from '../../store/layers.js';
import { decodeLocal, encodeLocal } from './record.js';
import type { LocalRecord } from './record.js';

export interface LocalJournalOptions {
  /** The group's. */
  readonly directory: string;
  readonly groupId: string;
  readonly bootId: string;
  /** Of the group's journal: this one is no larger. */
  readonly segmentBytes: number;
  readonly journalBytes: number;
  /** What was appended is settled by itself after this, microseconds. */
  readonly syncUs: number;
}

export const LOCAL_JOURNAL_ARENA_BYTES = JOURNAL_ARENA_BYTES;

const SEGMENT_BYTES = MIB;
const JOURNAL_BYTES = 64 * MIB;
const LEAST_SEGMENTS = 4;

/** A record and where it stands. */
export interface LocalEntry {
  readonly lsn: number;
  readonly record: LocalRecord;
}

export class LocalJournal {
  readonly journal: Journal;
  private readonly directory: string;
  private created = false;
  private creating = false;
  private createdWaiters: ((error: IoError | undefined) => void)[] = [];
  /** Everything below survives power loss, with the layer data that it speaks of. */
  settledLsn = 0;
  /** Behind the last record that changed something. */
  changedLsn = 0;
  /** Layers that records above the last barrier speak of. */
  private dirty = new Set<Layer>();
  private wanted = 0;
  private unsettledSinceUs = -1;
  /** Settling is under way: up to where, and the LSN behind its barrier (0 = not appended yet). */
  private target = -1;
  private barrierEnd = 0;
  private jobs = 0;
  private stopped = false;

  /** Why no further segment can be made; undefined when the last one was. */
  growProblem: string | undefined;

  onSettled: () => void = () => undefined;
  /** The journal, or a layer's fdatasync, failed: final, for what was written may be gone. */
  onFailure: (error: IoError) => void = () => undefined;
  /** The first one; also of a time when nobody listened. */
  failure: IoError | undefined;

  constructor(private readonly reactor: Reactor, private readonly layers: LayerTable, private readonly options: LocalJournalOptions) {
    this.directory = `${options.directory}/local`;
    const segmentBytes = Math.min(SEGMENT_BYTES, options.segmentBytes);
    const maxSegments = Math.max(LEAST_SEGMENTS, Math.floor(Math.min(JOURNAL_BYTES, options.journalBytes) / segmentBytes));
    this.journal = new Journal(reactor, {
      directory: this.directory, groupId: options.groupId, segmentBytes, maxSegments,
      // It is made durable when it is settled, and never without the layers.
      syncBytes: Infinity, syncUs: Infinity, maxBatchPayload: MAX_MARKER_BYTES,
    });
    this.journal.onFailure = (error) => this.fail(error);
    this.journal.onDurable = () => this.durable();
    this.journal.pool.onCreated = (failure) => (this.growProblem = failure);
  }

  /** Whether there is one: it is made with the first local device. */
  get exists(): boolean {
    return this.created;
  }

  get position(): Position {
    return this.journal.position;
  }

  /** Another record of changes can be appended; what ends others may use the rest. */
  get hasRoom(): boolean {
    return this.created && this.journal.hasRoomForData;
  }

  get jobsInFlight(): boolean {
    return this.jobs > 0 || this.journal.commit.inFlight || this.journal.pool.busy;
  }

  get bytesToCome(): number {
    return this.created ? this.journal.pool.bytesToCome : 0;
  }

  /** So much is behind the checkpoint whose cut stands at `lsn` that another one is wanted. */
  isLong(lsn: number): boolean {
    const { pool } = this.journal;
    return this.created && this.journal.appendedLsn - lsn >= (pool.maxSegments * pool.segmentBytes) / 2;
  }

  /** Once a tick. */
  poll(): void {
    if (!this.created || this.stopped) return;
    this.journal.pool.ensureSpare(2);
    const { nowUs } = this.reactor;
    if (this.changedLsn <= this.settledLsn) this.unsettledSinceUs = -1;
    else if (this.unsettledSinceUs < 0) this.unsettledSinceUs = nowUs;
    else if (nowUs - this.unsettledSinceUs >= this.options.syncUs) {
      this.unsettledSinceUs = nowUs;
      this.settle(this.changedLsn);
    }
  }

  // ---- creation ----------------------------------------------------------------------------------

  /** Makes the journal if there is none; segments are made by a helper. `done`: with the error that kept it from being made. */
  create(done: (error: IoError | undefined) => void): void {
    if (this.created) {
      done(undefined);
      return;
    }
    this.createdWaiters.push(done);
    if (this.creating) return;
    this.creating = true;
    const { pool } = this.journal;
    const step = (): void => {
      if (this.stopped) this.createEnded(new IoError(Errno.ESHUTDOWN, 'create', this.directory));
      else if (pool.freeCount >= 2) this.begin();
      else pool.ensureSpare(2);
    };
    pool.onCreated = (failure) => {
      if (failure !== undefined) this.createEnded(new IoError(Errno.EIO, `create the local journal (${failure}) in`, this.directory));
      else step();
    };
    try {
      mkdirs(this.reactor.io, this.directory);
      step();
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.createEnded(error);
    }
  }

  /** The segments are there. The header of the first one is durable before any record is: without it recovery takes them for the rest of a creation. */
  private begin(): void {
    const { io } = this.reactor;
    const { journal, directory } = this;
    try {
      journal.create(ORIGIN, { number: 1, id: this.options.groupId });
      must(io.fdatasync(journal.pool.current.fd), 'fdatasync', journal.pool.current.path);
      must(io.syncDirectory(directory), 'fsync', directory);
      must(io.syncDirectory(this.options.directory), 'fsync', this.options.directory);
      this.created = true;
      this.append({ op: 'opened', bootId: this.options.bootId });
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      // It holds nothing yet, so nothing failed but its creation.
      if (!this.created) journal.pool.abandon();
      this.createEnded(error);
      return;
    }
    this.createEnded(undefined);
  }

  private createEnded(error: IoError | undefined): void {
    this.creating = false;
    this.journal.pool.onCreated = (failure) => (this.growProblem = failure);
    const waiters = this.createdWaiters;
    this.createdWaiters = [];
    for (const waiter of waiters) waiter(error);
  }

  // ---- recovery ----------------------------------------------------------------------------------

  /**
   * Reads what is behind the checkpoint's cut, of which `bootId` is the boot
   * under which it was made, and leaves the journal ready to append. Returns the
   * records that count, in order. `suspect`: a failed fdatasync may have dropped
   * pages under this very boot. Blocking; throws CorruptionError, IoError.
   */
  recover(saved: { readonly at: Position; readonly bootId: string } | undefined, suspect: boolean): LocalEntry[] {
    if (!this.present(saved !== undefined)) return [];
    const { journal } = this;
    const found: LocalEntry[] = [];
    const from = saved?.at ?? ORIGIN;
    recoverJournal(this.reactor, journal, {
      from, durableLsn: from.lsn, ownEpoch: () => true,
      visit: (at, payloadAt, lsn) => found.push({ lsn: entry.lsn(lsn, 0), record: this.decode(at, payloadAt, lsn) }),
    });
    journal.setEpoch({ number: 1, id: this.options.groupId });
    this.created = true;
    this.settledLsn = from.lsn;
    this.changedLsn = journal.appendedLsn;
    let bootId = saved?.bootId;
    for (const { record } of found) {
      if (record.op === 'barrier') this.settledLsn = Math.max(this.settledLsn, record.upTo);
      if (record.op === 'opened') bootId = record.bootId;
    }
    const { bootId: now } = this.options;
    const trusted = !suspect && bootId === now;
    const end = trusted ? Infinity : this.settledLsn;
    if (!trusted && found.some(({ lsn, record }) => lsn >= end && record.op !== 'barrier')) this.append({ op: 'dropped', from: end, to: journal.appendedLsn });
    if (!trusted) this.append({ op: 'opened', bootId: now });
    const without = found.filter(({ lsn }) => lsn < end).map(({ record }) => record).filter((record) => record.op === 'dropped');
    return found.filter(({ lsn }) => lsn < end && !without.some((one) => lsn >= one.from && lsn < one.to));
  }

  /** Whether there is a journal; the rest of a creation that was cut off is removed. */
  private present(named: boolean): boolean {
    const { io } = this.reactor;
    const names = (listIfThere(io, this.directory) ?? []).filter((name) => name.startsWith('segment-'));
    if (named && names.length === 0) throw new CorruptionError(this.directory, 0, 'the local journal that the checkpoint names is missing');
    if (named || names.some((name) => !this.isBlank(`${this.directory}/${name}`))) return true;
    for (const name of names) must(io.unlink(`${this.directory}/${name}`), 'remove', `${this.directory}/${name}`);
    return false;
  }

  /** Whether a segment was never begun. */
  private isBlank(path: string): boolean {
    const { io, arena } = this.reactor;
    const fd = must(io.open(path, O.RDONLY | O.CLOEXEC, 0), 'open local journal segment', path);
    const at = arena.alloc(BLOCK_BYTES);
    must(at < 0 ? -Errno.ENOMEM : 0, 'find memory to look at', path);
    // The file may be shorter: its creation was cut off.
    arena.u8.fill(0, at, at + BLOCK_BYTES);
    const read = io.pread(fd, at, BLOCK_BYTES, 0);
    const blank = arena.u8.subarray(at, at + BLOCK_BYTES).every((byte) => byte === 0);
    arena.release(at);
    io.close(fd);
    must(read, 'read local journal segment', path);
    return blank;
  }

  private decode(at: number, payloadAt: number, lsn: number): LocalRecord {
    const { view, u8 } = this.reactor.arena;
    const record = batch.count(view, at) === 1 ? decodeLocal(u8.subarray(payloadAt, payloadAt + entry.length(view, entry.at(at, 0)))) : 'several records';
    if (typeof record === 'string') throw new CorruptionError(this.directory, lsn, `the local journal has ${record} at LSN ${lsn}`);
    return record;
  }

  // ---- appending ---------------------------------------------------------------------------------

  /** Appends a record and returns its LSN. Throws IoError; then the journal has failed. */
  append(record: LocalRecord): number {
    const { journal } = this;
    assert(this.created, 'the local journal was not made');
    if (!journal.hasRoomForMarker) journal.pool.createNow();
    const lsn = journal.recordLsn(0);
    journal.addMarker(encodeLocal(record));
    const result = journal.flush();
    if (result < 0) throw new IoError(-result, 'append to the local journal in', this.directory);
    if (record.op !== 'barrier') this.changedLsn = journal.appendedLsn;
    if (!this.stopped) journal.pool.ensureSpare(2);
    return lsn;
  }

  /** A record speaks of data in this layer's file that no barrier covers yet. */
  touched(layer: Layer): void {
    this.dirty.add(layer);
  }

  /** Frees what lies below the committed checkpoint. */
  releaseBelow(lsn: number): void {
    if (this.created) this.journal.pool.releaseBelow(lsn);
  }

  // ---- settling ----------------------------------------------------------------------------------

  /** Makes records below `lsn` survive power loss; `onSettled` tells. Calls join. */
  settle(lsn: number): void {
    if (lsn <= this.settledLsn || this.stopped) return;
    this.wanted = Math.max(this.wanted, lsn);
    if (this.target < 0) this.syncLayers();
  }

  private fail(error: IoError): void {
    this.failure ??= error;
    this.onFailure(error);
  }

  private syncLayers(): void {
    this.target = this.journal.appendedLsn;
    this.barrierEnd = 0;
    const table = new JobTable(this.dirty.size + 1);
    const held: Layer[] = [];
    const unnamed: Layer[] = [];
    let directory = -1;
    try {
      for (const layer of this.dirty) {
        // One that went away meanwhile is referred to by nothing.
        if (this.layers.find(layer.number) !== layer) continue;
        table.add(JobOp.fdatasync, this.layers.descriptorForWrite(layer), 0, 0, 0);
        layer.holds++;
        held.push(layer);
        if (!layer.named) unnamed.push(layer);
      }
      if (unnamed.length > 0) {
        directory = must(this.reactor.io.open(this.layers.directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0), 'open', this.layers.directory);
        table.add(JobOp.fsync, directory, 0, 0, 0);
      }
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      for (const layer of held) layer.holds--;
      this.fail(error);
      return;
    }
    this.dirty = new Set();
    if (table.count === 0) {
      this.appendBarrier();
      return;
    }
    this.jobs++;
    this.reactor.submit(Queue.append, table, (result) => {
      this.jobs--;
      for (const layer of held) layer.holds--;
      if (directory >= 0) this.reactor.io.close(directory);
      if (result < 0) {
        this.fail(new IoError(-result, 'fdatasync the layers of local devices in', this.layers.directory));
        return;
      }
      for (const layer of unnamed) layer.named = true;
      if (!this.stopped) this.appendBarrier();
    });
  }

  private appendBarrier(): void {
    try {
      this.append({ op: 'barrier', upTo: this.target });
    } catch (error) {
      // The journal has told by itself that it failed.
      if (!(error instanceof IoError)) throw error;
      return;
    }
    this.barrierEnd = this.journal.appendedLsn;
    this.journal.sync(this.barrierEnd);
  }

  private durable(): void {
    if (this.barrierEnd === 0 || this.journal.durableLsn < this.barrierEnd) return;
    this.settledLsn = this.target;
    this.target = -1;
    this.barrierEnd = 0;
    if (this.wanted > this.settledLsn && !this.stopped) this.syncLayers();
    this.onSettled();
  }

  /** At a stop in order, when no job is in flight: what was acknowledged survives a later power loss, too. Blocking; returns why that failed. */
  settleNow(): IoError | undefined {
    if (!this.created || this.settledLsn >= this.changedLsn) return undefined;
    const { io } = this.reactor;
    const upTo = this.journal.appendedLsn;
    try {
      for (const layer of this.dirty) {
        if (this.layers.find(layer.number) === layer) must(io.fdatasync(this.layers.descriptorForWrite(layer)), 'fdatasync', this.layers.path(layer));
      }
      must(io.syncDirectory(this.layers.directory), 'fsync', this.layers.directory);
      this.append({ op: 'barrier', upTo });
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      return error;
    }
    this.journal.syncNow();
    return this.journal.failure;
  }

  /** Starts nothing more; jobs in flight run out. */
  stop(): void {
    this.stopped = true;
    if (this.creating) this.createEnded(new IoError(Errno.ESHUTDOWN, 'create', this.directory));
  }

  close(): void {
    this.stopped = true;
    this.journal.close();
  }
}
