/**
 * Reading devices: map → layer → journal or layer file → bytes (DESIGN §5).
 *
 * Owns: how a byte range becomes reads of files, and waiting for what is not in
 * memory. Must not know: requests, clients, what is being written.
 *
 * The depth of the snapshot tree never shows: one look-up per block names the
 * layer, whatever its age. Neighbouring blocks that lie together are read together.
 * Blocks of thin layers (layers.ts) are copied into the block cache, and found there.
 */

import { CorruptionError, Errno, IoError } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { JobOp, JobTable, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { Segment, SegmentPool } from '../journal/segments.js';
import type { BlockCache } from './blockcache.js';
import type { Layer } from './layers.js';
import type { MapFile } from './mapfile.js';
import { fileOfRef, positionOfRef } from './map/map.js';
import { blockOf } from './store.js';
import type { Store, StoredDevice } from './store.js';

/** `tryRead` could not finish without waiting. */
export const WOULD_WAIT = 1;

const EAGAIN = -11;
const MAX_BLOCKS = 32 * 1024 * 1024 / BLOCK_BYTES + 2;
/** Map nodes that are loaded for one read until it is clear that they are paged out as fast as they come: the largest one needs some twenty. */
const PATIENT_LOADS = 64;
/** A read that takes more blocks of thin layers from their files leaves them there: who reads much at once rarely reads it again soon. */
const MAX_COPIES = 16;

/** What a block's bytes come from. */
const Source = { zero: 0, journal: 1, file: 2 } as const;

export class BlockReader {
  private readonly layersOf = new Uint32Array(MAX_BLOCKS);
  private readonly table = new JobTable(64);
  // What `plan` found. Arrays that only grow, and how much of each is in use: a read allocates nothing.
  /** Ranges to be zeroed: pairs (arena offset, length). */
  private readonly zeroRanges: number[] = [];
  private zeroCount = 0;
  private readonly heldSegments: Segment[] = [];
  private heldSegmentCount = 0;
  private readonly heldLayers: Layer[] = [];
  private heldLayerCount = 0;
  /** Blocks that the cache should get, triples (layer, block, arena offset); more than MAX_COPIES are counted, not kept. */
  private readonly copies = new Float64Array(3 * MAX_COPIES);
  private copyCount = 0;
  private readonly cacheOwner: number;
  /** Reads in flight by generation modulo 2: `whenQuiet` begins a new one, and waits for the older to run out. */
  private readonly inFlight = [0, 0];
  private generation = 0;
  /** Wait for the older generation; and for the next change, for it came too late for this one. */
  private waiters: (() => void)[] = [];
  private lateWaiters: (() => void)[] = [];
  /** The read that no map node is paged out for, one at a time; undefined: none is starving. */
  private starving: (() => void) | undefined;
  /** Reads that went to a helper, for metrics. */
  missed = 0;

  constructor(
    private readonly reactor: Reactor,
    private readonly store: Store,
    private readonly pool: SegmentPool,
    /** The map file that a disk reference numbers 0 or 1. */
    private readonly mapFile: (file: number) => MapFile,
    private readonly cache: BlockCache,
  ) {
    this.cacheOwner = cache.newOwner();
  }

  /**
   * Reads [offset, offset + length) of the device into the arena at `buffer`,
   * if everything is in memory. Returns 0, −errno, or WOULD_WAIT.
   */
  tryRead(device: StoredDevice, offset: number, length: number, buffer: number): number {
    try {
      const missed = this.plan(device, offset, length, buffer);
      if (missed !== 0) return WOULD_WAIT;
      const { io } = this.reactor;
      this.fillZeros();
      const rows = this.table.rows;
      for (let row = 0, at = 0; row < this.table.count; row++, at += 5) {
        const result = io.preadNowait(rows[at + 1], rows[at + 2], rows[at + 3], rows[at + 4]);
        if (result === EAGAIN) return WOULD_WAIT;
        if (result < 0) return result;
      }
      if (this.copyCount > 0) this.keepCopies();
      return 0;
    } finally {
      this.dropHolds();
    }
  }

  /**
   * The same, waiting for disks on a helper. `done` gets 0 or −errno, never
   * before this returns. The device as it is now is read; writes that come
   * later may or may not show, as NBD allows. Where a marker removed or shrank
   * the device meanwhile, the answer is as `outside` says.
   */
  read(device: StoredDevice, offset: number, length: number, buffer: number, done: (result: number) => void): void {
    this.missed++;
    const { generation } = this;
    this.inFlight[generation]++;
    let loads = 0;
    const finish = (result: number): void => {
      this.inFlight[generation]--;
      if (this.starving === attempt) {
        this.starving = undefined;
        this.store.map.keeping = false;
      }
      done(result);
      if (generation !== this.generation) this.callWaiters();
    };
    const attempt = (): void => {
      const refused = this.outside(device, offset + length);
      if (refused !== 0) {
        this.reactor.after(0, () => finish(refused));
        return;
      }
      let missed: number;
      try {
        missed = this.plan(device, offset, length, buffer);
      } catch (error) {
        // A layer's file is missing or cannot be opened: this read fails, the group stops, the daemon lives.
        if (!(error instanceof CorruptionError) && !(error instanceof IoError)) throw error;
        this.dropHolds();
        this.onProblem(error);
        this.reactor.after(0, () => finish(-Errno.EIO));
        return;
      }
      if (missed !== 0) {
        this.dropHolds();
        if (++loads > PATIENT_LOADS && this.starving === undefined) {
          this.starving = attempt;
          this.store.map.keeping = true;
        }
        this.fetchNode(missed, (result) => {
          if (result < 0) finish(result);
          else attempt();
        });
        return;
      }
      this.fillZeros();
      // Theirs until the helper has read.
      const segments = this.heldSegments.slice(0, this.heldSegmentCount);
      const layers = this.heldLayers.slice(0, this.heldLayerCount);
      this.heldSegmentCount = this.heldLayerCount = 0;
      if (this.table.count === 0) {
        // The map nodes that were loaded say that all of it is zero, or in the cache: no file to read.
        this.reactor.after(0, () => finish(0));
        return;
      }
      this.reactor.submit(Queue.read, this.table, (result) => {
        for (const segment of segments) segment.holds--;
        for (const layer of layers) layer.holds--;
        finish(result);
      });
    };
    attempt();
  }

  /**
   * 0, or −errno when [.., end) of the device cannot be read any more: whoever
   * waited for a map node has to ask, for a marker may have come meanwhile.
   */
  outside(device: StoredDevice, end: number): number {
    if (this.store.find(device.id) !== device) return -Errno.ESHUTDOWN;
    return end > device.sizeBytes ? -Errno.EINVAL : 0;
  }

  /** Damage was found on the disk: the group has to stop. */
  onProblem: (error: CorruptionError | IoError) => void = () => undefined;

  /** Brings a map node into memory, counted as a read in flight; `done` gets 0 or −errno. */
  loadNode(handle: number, done: (result: number) => void): void {
    const { generation } = this;
    this.inFlight[generation]++;
    this.fetchNode(handle, (result) => {
      this.inFlight[generation]--;
      done(result);
      if (generation !== this.generation) this.callWaiters();
    });
  }

  private fetchNode(handle: number, done: (result: number) => void): void {
    const { map } = this.store;
    const ref = map.diskRefOf(handle);
    const file = this.mapFile(fileOfRef(ref));
    file.read(positionOfRef(ref), (bytes, errno) => {
      const needed = errno === 0 ? this.install(handle, ref, bytes) : -errno;
      if (needed <= 0) {
        done(needed);
        return;
      }
      const first = bytes.slice();
      file.read(needed, (second, errnoOfSecond) => done(errnoOfSecond === 0 ? this.install(handle, ref, first, second) : -errnoOfSecond));
    });
  }

  /** 0, the position of a second record that is needed, or −EIO after damage was reported. */
  private install(handle: number, ref: number, bytes: Uint8Array, second?: Uint8Array): number {
    try {
      return this.store.map.load(handle, ref, bytes, second);
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.onProblem(error);
      return -Errno.EIO;
    }
  }

  /** Reads that wait for a helper. */
  get readsInFlight(): number {
    return this.inFlight[0] + this.inFlight[1];
  }

  /**
   * Calls back when every read that is in flight now has ended: then nothing
   * reads by an older state of the maps any more.
   */
  whenQuiet(callback: () => void): void {
    if (this.readsInFlight === 0) {
      callback();
    } else if (this.waiters.length === 0) {
      this.generation = 1 - this.generation;
      this.waiters.push(callback);
      this.callWaiters();
    } else {
      this.lateWaiters.push(callback);
    }
  }

  /** When no read of the older generation is left. A stream of new reads must not keep a waiter waiting. */
  private callWaiters(): void {
    while (this.waiters.length > 0 && this.inFlight[1 - this.generation] === 0) {
      const ready = this.waiters;
      this.waiters = this.lateWaiters;
      this.lateWaiters = [];
      if (this.waiters.length > 0) this.generation = 1 - this.generation;
      for (const waiter of ready) waiter();
    }
  }

  /**
   * Layer numbers of the blocks [first, first + count), into `out`; 0 = zero.
   * Returns 0, or the handle of a node to load first.
   */
  resolve(device: StoredDevice, first: number, count: number, out: Uint32Array): number {
    return this.store.map.resolve(device.root, first, count, out, 0);
  }

  /** See BlockMap.zeroRun. */
  zeroRun(device: StoredDevice, block: number): number {
    return this.store.map.zeroRun(device.root, block);
  }

  /**
   * Fills `table` and `zeroRanges`, and holds what is to be read: where few files may be open, opening one layer closes
   * another, whose descriptor may by then be that of the next. Returns 0, or the handle of a map node to be loaded.
   */
  private plan(device: StoredDevice, offset: number, length: number, buffer: number): number {
    const { store, layersOf, table } = this;
    const first = blockOf(offset);
    const last = blockOf(offset + length - 1);
    const count = last - first + 1;
    table.clear();
    this.zeroCount = this.copyCount = 0;
    const missed = store.map.resolve(device.root, first, count, layersOf, 0);
    if (missed !== 0) return missed;

    let skip = offset - first * BLOCK_BYTES; // bytes of the first block that were not asked for
    let left = length;
    let to = buffer;
    // The run under construction: [runTo, runTo + runBytes) comes from (runFd, runPos).
    let runSource: number = Source.zero;
    let runFd = -1;
    let runPos = 0;
    let runTo = to;
    let runBytes = 0;
    for (let i = 0; i < count; i++) {
      const bytes = Math.min(BLOCK_BYTES - skip, left);
      const number = layersOf[i];
      let source: number = Source.zero;
      let fd = -1;
      let pos = 0;
      if (number !== 0) {
        const lsn = store.pending.get(number, first + i);
        if (lsn !== 0) {
          const segment = this.pool.find(lsn)!;
          source = Source.journal;
          fd = segment.fd;
          pos = this.pool.filePosition(segment, lsn) + skip;
          if (runSource !== Source.journal || runFd !== fd) {
            segment.holds++;
            this.heldSegments[this.heldSegmentCount++] = segment;
          }
        } else {
          const layer = store.layers.get(number);
          if (layer.thin && this.takeCopy(number, first + i, skip, to, bytes)) {
            if (runBytes > 0) this.addRun(runSource, runFd, runPos, runTo, runBytes);
            runBytes = 0;
            to += bytes;
            left -= bytes;
            skip = 0;
            continue;
          }
          fd = store.layers.descriptor(layer);
          // Without a file nothing was ever destaged; a block that is not pending either was never written.
          if (fd >= 0) {
            source = Source.file;
            pos = (first + i) * BLOCK_BYTES + skip;
            if (runSource !== Source.file || runFd !== fd) {
              layer.holds++;
              this.heldLayers[this.heldLayerCount++] = layer;
            }
            if (bytes === BLOCK_BYTES && store.layers.isThin(layer)) this.wantCopy(number, first + i, to);
          }
        }
      }
      if (runBytes > 0 && source === runSource && fd === runFd && (source === Source.zero || pos === runPos + runBytes)) {
        runBytes += bytes;
      } else {
        if (runBytes > 0) this.addRun(runSource, runFd, runPos, runTo, runBytes);
        runSource = source;
        runFd = fd;
        runPos = pos;
        runTo = to;
        runBytes = bytes;
      }
      to += bytes;
      left -= bytes;
      skip = 0;
    }
    if (runBytes > 0) this.addRun(runSource, runFd, runPos, runTo, runBytes);
    return 0;
  }

  private addRun(source: number, fd: number, pos: number, to: number, bytes: number): void {
    if (source === Source.zero) {
      this.zeroRanges[this.zeroCount++] = to;
      this.zeroRanges[this.zeroCount++] = bytes;
    } else {
      this.table.add(JobOp.pread, fd, to, bytes, pos);
    }
  }

  private fillZeros(): void {
    for (let i = 0; i < this.zeroCount; i += 2) {
      const at = this.zeroRanges[i];
      this.reactor.arena.u8.fill(0, at, at + this.zeroRanges[i + 1]);
    }
  }

  /** Bytes [skip, skip + bytes) of the block to `to`, if the cache has it. */
  private takeCopy(number: number, block: number, skip: number, to: number, bytes: number): boolean {
    const at = this.cache.find(this.cacheOwner, number, block);
    if (at < 0) return false;
    this.reactor.arena.u8.copyWithin(to, at + skip, at + skip + bytes);
    return true;
  }

  private wantCopy(number: number, block: number, at: number): void {
    if (this.copyCount < MAX_COPIES) {
      this.copies[3 * this.copyCount] = number;
      this.copies[3 * this.copyCount + 1] = block;
      this.copies[3 * this.copyCount + 2] = at;
    }
    this.copyCount++;
  }

  private keepCopies(): void {
    if (this.copyCount > MAX_COPIES) return;
    for (let i = 0; i < 3 * this.copyCount; i += 3) this.cache.put(this.cacheOwner, this.copies[i], this.copies[i + 1], this.copies[i + 2]);
  }

  private dropHolds(): void {
    for (let i = 0; i < this.heldSegmentCount; i++) this.heldSegments[i].holds--;
    for (let i = 0; i < this.heldLayerCount; i++) this.heldLayers[i].holds--;
    this.heldSegmentCount = this.heldLayerCount = 0;
  }
}
