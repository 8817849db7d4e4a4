/**
 * Moves bytes from the journal to the layers' files, round by round (DESIGN §5).
 *
 * A round covers a prefix of the journal: everything pending when it starts,
 * whatever its temperature; overwrites are absorbed by the pending table. When
 * its writes are durable the journal below its end is needed by no read.
 *
 * Steps of a round, and what recovery sees if power fails right after each:
 *   1. seal        nothing on disk changed
 *   2. wait until `stable` has reached the seal: the write-ahead rule, nothing that could be undone is destaged
 *   3. note        on a secondary: `final` names the seal (group/content/finalnote.ts); nothing below it is undone after a restart either
 *   4. write       layer files hold some blocks twice (here and in the journal); the journal's copy is read
 *   5. fdatasync   the same, durable; the round counts only when a checkpoint names its end as low-water mark
 *   6. drop        (memory only) reads go to the files
 *
 * A failed write or fsync of a round is never repaired by a later fsync that
 * succeeds (the kernel may have dropped the pages): the whole round is written
 * again before the next fdatasync counts.
 */

import { assert } from '../base/assert.js';
import { CorruptionError, IoError } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { JobOp, JobTable, O, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { Journal } from '../journal/journal.js';
import type { Position } from '../journal/position.js';
import type { Layer } from './layers.js';
import { PendingColumns } from './pending.js';
import type { Store } from './store.js';

export interface DestagerOptions {
  /** A round starts when so much journal has been written since the last one was sealed ... */
  readonly startBytes: number;
  /** ... or this long after the first block became pending, microseconds. */
  readonly startUs: number;
  /** Bytes of one job's buffer. */
  readonly bufferBytes: number;
  /** Delay before a failed round is written again, microseconds. */
  readonly retryUs: number;
  /** A round writes also what was overwritten after its seal: the journal that has the newer bytes may be lost. */
  readonly whole?: boolean;
}

/** What the destager is doing. */
type State =
  /** Nothing sealed. */
  | 'idle'
  /** Sealed; waits until nothing of it can be undone. */
  | 'waiting'
  /** It is being noted that nothing of it will be undone. */
  | 'noting'
  /** Copies, part by part. */
  | 'copying'
  /** All copied; waits for the fdatasync of the files. */
  | 'syncing'
  /** A write or fsync failed; the round starts over after a delay. */
  | 'retrying';

export const DESTAGE_BUFFERS = 2;

export class Destager {
  private state: State = 'idle';
  private part = 0;
  private entry = 0;
  private readonly columns = new PendingColumns();
  private loadedPart = -1;
  private readonly buffers: number[] = [];
  private freeBuffers: number[] = [];
  private jobs = 0;
  private failed: IoError | undefined;
  private readonly touched = new Set<Layer>();
  private firstPendingUs = -1;
  private wanted = false;
  private closed = false;
  private syncJob = false;
  private noting = false;

  roundsDone = 0;
  blocksWritten = 0;
  lastError: string | undefined;
  /** A round has ended: everything below `end` is in the layers' files, durably. */
  onRound: (end: Position) => void = () => undefined;
  /** Damage was found in the layers' directory: the group has to stop. */
  onCorruption: (error: CorruptionError) => void = () => undefined;
  /** The seal waits for this LSN to become stable; asks for the fdatasync that gets it there. */
  onWaiting: (lsn: number) => void = () => undefined;
  /**
   * Before the first write of a round: has it noted durably that nothing below `lsn` will be undone, and calls `done`
   * with 0 or −errno, perhaps at once.
   */
  beforeWriting: (lsn: number, done: (result: number) => void) => void = (_lsn, done) => done(0);

  constructor(
    private readonly reactor: Reactor,
    private readonly store: Store,
    private readonly journal: Journal,
    /** Behind the last record that was applied: where a round ends. */
    private readonly appliedPosition: () => Position,
    private readonly options: DestagerOptions,
    /** End of the last round before this start. */
    private seal: Position,
  ) {
    for (let i = 0; i < DESTAGE_BUFFERS; i++) {
      const buffer = reactor.arena.alloc(options.bufferBytes);
      assert(buffer >= 0, 'no arena room for the destager');
      this.buffers.push(buffer);
    }
    this.freeBuffers = [...this.buffers];
  }

  /** A round is under way. */
  get busy(): boolean {
    return this.state !== 'idle';
  }

  /** End of the round under way, or of the last one. */
  get sealedLsn(): number {
    return this.seal.lsn;
  }

  /** Layer files may hold a part of what lies above the last round's end. */
  get writing(): boolean {
    return this.state === 'copying' || this.state === 'syncing' || this.state === 'retrying';
  }

  /** Helper jobs in flight. */
  get jobsInFlight(): boolean {
    return this.jobs > 0 || this.syncJob || this.noting;
  }

  /** Everything pending now is to be destaged as soon as possible. */
  request(): void {
    this.wanted = true;
    this.poll(-1);
  }

  /**
   * Once a tick; `stable` = nothing below can be undone, or −1 if unknown.
   * Starts and drives rounds.
   */
  poll(stable: number): void {
    if (this.closed) return;
    switch (this.state) {
      case 'idle':
        if (!this.due()) return;
        this.start();
        return;
      case 'waiting':
        if (stable < this.seal.lsn) return;
        this.begin();
        return;
      case 'noting':
      case 'copying':
      case 'syncing':
      case 'retrying':
        return;
    }
  }

  private due(): boolean {
    const blocks = this.store.pending.openBlocks;
    if (blocks === 0) {
      this.wanted = false;
      this.firstPendingUs = -1;
      return false;
    }
    if (this.firstPendingUs < 0) this.firstPendingUs = this.reactor.nowUs;
    return this.wanted || this.journal.appendedLsn - this.seal.lsn >= this.options.startBytes || this.reactor.nowUs - this.firstPendingUs >= this.options.startUs;
  }

  private start(): void {
    this.wanted = false;
    this.firstPendingUs = -1;
    this.seal = this.appliedPosition();
    this.store.pending.seal();
    this.state = 'waiting';
    this.rewindRound();
    this.onWaiting(this.seal.lsn);
  }

  /** Nothing of the round can be undone from here on; that a restart knows it, too, comes before the first write. */
  private begin(): void {
    this.state = 'noting';
    this.noting = true;
    this.beforeWriting(this.seal.lsn, (result) => {
      this.noting = false;
      if (this.closed) return;
      if (result < 0) {
        this.failed = new IoError(-result, 'note how far a round goes, beside', this.store.layers.directory);
        this.retry();
        return;
      }
      this.state = 'copying';
      this.pump();
    });
  }

  private rewindRound(): void {
    this.part = 0;
    this.entry = 0;
    this.loadedPart = -1;
    this.failed = undefined;
    this.touched.clear();
  }

  /** Keeps jobs in flight while there are blocks and buffers; bounded work per call: one buffer per job. */
  private pump(): void {
    while (this.state === 'copying' && this.failed === undefined && this.freeBuffers.length > 0) {
      const table = new JobTable(64);
      const buffer = this.freeBuffers.pop()!;
      const held: Layer[] = [];
      let blocks: number;
      try {
        blocks = this.fill(table, buffer, held);
      } catch (error) {
        this.freeBuffers.push(buffer);
        for (const layer of held) layer.holds--;
        if (error instanceof CorruptionError) {
          this.onCorruption(error);
          return;
        }
        if (!(error instanceof IoError)) throw error;
        this.failed = error;
        break;
      }
      if (blocks === 0) {
        this.freeBuffers.push(buffer);
        break;
      }
      this.jobs++;
      this.reactor.submit(Queue.destage, table, (result) => {
        for (const layer of held) layer.holds--;
        this.freeBuffers.push(buffer);
        this.jobs--;
        if (result < 0) this.failed ??= new IoError(-result, 'destage to', this.store.layers.directory);
        else this.blocksWritten += blocks;
        if (!this.closed) this.pump();
      });
    }
    if (this.jobs > 0 || this.state !== 'copying') return;
    if (this.failed !== undefined) this.retry();
    else if (this.part === this.store.pending.partCount) this.sync();
  }

  /** Fills one job with up to a buffer of blocks: reads from the journal, then writes, neighbours joined. Returns blocks. */
  private fill(table: JobTable, buffer: number, held: Layer[]): number {
    const { pending, layers } = this.store;
    const { pool } = this.journal;
    const capacity = this.options.bufferBytes / BLOCK_BYTES;
    const columns = this.columns;
    let used = 0;
    while (used < capacity && this.part < pending.partCount) {
      if (this.loadedPart !== this.part) {
        pending.sealedPart(this.part, columns, this.options.whole);
        this.loadedPart = this.part;
        this.entry = 0;
      }
      if (this.entry >= columns.count) {
        this.part++;
        // One part at a time keeps a step short; a job of few blocks is still worth it only when there is some.
        if (used > 0) break;
        continue;
      }
      const from = this.entry;
      const firstRow = table.count;
      const firstUsed = used;
      // Reads: blocks that follow each other in the journal are read together.
      let readStart = -1;
      let readBytes = 0;
      let readTo = 0;
      let readFd = -1;
      while (this.entry < columns.count && used < capacity) {
        const i = this.entry++;
        const to = buffer + used * BLOCK_BYTES;
        used++;
        const segment = pool.find(columns.lsn[i]);
        assert(segment !== undefined, `pending block at LSN ${columns.lsn[i]} is not in the journal`);
        const pos = pool.filePosition(segment, columns.lsn[i]);
        if (readBytes > 0 && segment.fd === readFd && pos === readStart + readBytes) {
          readBytes += BLOCK_BYTES;
          continue;
        }
        if (readBytes > 0) table.add(JobOp.pread, readFd, readTo, readBytes, readStart);
        readFd = segment.fd;
        readStart = pos;
        readTo = to;
        readBytes = BLOCK_BYTES;
      }
      if (readBytes > 0) table.add(JobOp.pread, readFd, readTo, readBytes, readStart);
      assert(table.count > firstRow, 'a step without a read');
      this.addWrites(table, from, this.entry, buffer + firstUsed * BLOCK_BYTES, held, layers);
    }
    return used;
  }

  private addWrites(table: JobTable, from: number, to: number, buffer: number, held: Layer[], layers: Store['layers']): void {
    const columns = this.columns;
    let i = from;
    while (i < to) {
      let end = i + 1;
      while (end < to && columns.layer[end] === columns.layer[i] && columns.block[end] === columns.block[end - 1] + 1) end++;
      const at = buffer + (i - from) * BLOCK_BYTES;
      const layer = layers.find(columns.layer[i]);
      // A layer that went away meanwhile needs nothing. A file that is missing although the layer still takes blocks is
      // damage: a new one would lack what was destaged before, and the journal has the only copy of these.
      if (layer?.missing === true) throw new CorruptionError(layers.path(layer), 0, 'the layer file is missing, and blocks of it are still to be written there');
      if (layer !== undefined) {
        const fd = layers.descriptorForWrite(layer);
        // At once: the next layer's file may be opened in place of one that nobody holds.
        if (held[held.length - 1] !== layer) {
          held.push(layer);
          layer.holds++;
        }
        this.touched.add(layer);
        table.add(JobOp.reserve, fd, 0, (end - i) * BLOCK_BYTES, columns.block[i] * BLOCK_BYTES);
        table.add(JobOp.pwrite, fd, at, (end - i) * BLOCK_BYTES, columns.block[i] * BLOCK_BYTES);
      }
      i = end;
    }
  }

  private sync(): void {
    this.state = 'syncing';
    const table = new JobTable(this.touched.size + 2);
    const held: Layer[] = [];
    const { layers } = this.store;
    let directory = -1;
    let directoryDirty = false;
    try {
      for (const layer of this.touched) {
        if (layers.find(layer.number) === undefined) continue;
        const fd = layers.descriptorForWrite(layer);
        layer.holds++;
        held.push(layer);
        table.add(JobOp.fdatasync, fd, 0, 0, 0);
      }
      directoryDirty = layers.takeDirectoryDirty();
      if (directoryDirty) {
        directory = this.reactor.io.open(layers.directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0);
        if (directory < 0) throw new IoError(-directory, 'open', layers.directory);
        table.add(JobOp.fsync, directory, 0, 0, 0);
      }
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      for (const layer of held) layer.holds--;
      if (directoryDirty) layers.setDirectoryDirty();
      this.failed = error;
      this.retry();
      return;
    }
    if (table.count === 0) {
      // Everything sealed had been overwritten before it was copied: nothing of the round is on disk, or needed there.
      this.endRound();
      return;
    }
    this.syncJob = true;
    this.reactor.submit(Queue.destage, table, (result) => {
      this.syncJob = false;
      for (const layer of held) layer.holds--;
      if (directory >= 0) this.reactor.io.close(directory);
      if (this.closed) return;
      if (result < 0) {
        if (directoryDirty) layers.setDirectoryDirty();
        this.failed = new IoError(-result, 'fdatasync the layers in', layers.directory);
        this.retry();
        return;
      }
      if (directoryDirty) layers.directorySynced();
      this.endRound();
    });
  }

  private endRound(): void {
    this.store.pending.dropSealed();
    this.roundsDone++;
    this.lastError = undefined;
    this.state = 'idle';
    this.onRound(this.seal);
  }

  /** The round is written again, all of it, after a delay; the pending table still names the journal's copies. */
  private retry(): void {
    this.lastError = this.failed?.message;
    this.state = 'retrying';
    this.reactor.after(this.options.retryUs, () => {
      if (this.closed) return;
      this.rewindRound();
      this.begin();
    });
  }

  /** Starts nothing more; jobs in flight run out. */
  stop(): void {
    this.closed = true;
  }

  /** Releases the buffers; the caller has waited until no jobs are in flight. */
  close(): void {
    this.closed = true;
    if (this.buffers.length === 0) return;
    assert(!this.jobsInFlight, 'the destager is closed with jobs in flight');
    for (const buffer of this.buffers) this.reactor.arena.release(buffer);
    this.buffers.length = 0;
  }
}
