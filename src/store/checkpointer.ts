/**
 * Makes checkpoints: exact pictures of maps and tree at one LSN (DESIGN §6).
 *
 * Owns: the order of the writes and the commit point. Must not know: what the
 * group's part of a slot means, or when a position becomes stable.
 *
 * Steps, and what recovery finds if power fails right after each:
 *   1. capture      (memory) roots shared, tables copied: O(devices); later changes copy what they touch
 *   2. append       changed map nodes at the end of the map file: the old slot names a shorter length, the rest is ignored
 *   3. fdatasync    of the map file, and fsync of the directory when the file is new: the same
 *   4. wait         until `stable` has reached the captured LSN, and the local journal's part survives power loss: nothing in
 *                   a checkpoint can ever be undone
 *   5. slot         written: torn or whole, the other slot still stands
 *   6. fdatasync    of the slot: THE COMMIT POINT. From here recovery starts at this checkpoint
 *   7. release      journal below the low-water mark and, after a compaction, the old map file
 *
 * When 5 or 6 fails, nobody knows which of both is on the disk. The checkpoint
 * counts as not made: nothing is released, and the next attempt writes the same
 * slot. But the slot that failed may be what recovery finds, so all that it
 * names stays until a later commit has replaced it:
 *   - nodes appended for it: the next attempt appends behind them
 *   - the file of a compaction: kept, its number is not used again, and no other compaction begins meanwhile
 * Recovery writes both slots back and reads them from the disk itself (slot.ts).
 * A newer slot that is whole there is a checkpoint like any other; one that is
 * not will never be, so what follows the older one's nodes may be overwritten and
 * map files that neither names are removed.
 *
 * The layers' data need no step of their own: the low-water mark is the end of
 * the last destage round, which was durable before it was captured.
 */

import { assert } from '../base/assert.js';
import { LOCAL_STAMPS } from '../base/units.js';
import { CorruptionError, Errno, IoError } from '../base/errors.js';
import { JobOp, JobTable, O, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { Position } from '../journal/position.js';
import { FIRST_NODE_POSITION, MapFile } from './mapfile.js';
import type { MapRoot } from './map/map.js';
import { MapWriter } from './map/writer.js';
import { encodeSlot, slotPath } from './slot.js';
import type { SlotBody } from './slot.js';
import type { Cut } from './layers.js';
import type { Store, StoredDeviceRow } from './store.js';

/** What the checkpointer is doing. */
type State =
  | 'idle'
  /** Appending map nodes. */
  | 'writing'
  /** fdatasync of the map file. */
  | 'syncing'
  /** Waits until the captured LSN is stable. */
  | 'waiting'
  /** Writing and fdatasyncing the slot. */
  | 'committing'
  /** Failed; tries again, from a new capture, after a delay. */
  | 'retrying';

export interface CheckpointerOptions {
  readonly directory: string;
  readonly groupId: string;
  /** Bytes of map nodes encoded at a time: bounds the step on the data thread. */
  readonly bufferBytes: number;
  /** The map file is compacted when it is larger than twice its live size plus this. */
  readonly compactSlackBytes: number;
  readonly retryUs: number;
}

/** What the group adds to a capture. */
export interface Capture {
  readonly at: Position;
  readonly lowWater: Position;
  readonly group: unknown;
  /** The local journal's part, where there is one. */
  readonly local: { readonly at: Position; readonly state: unknown } | undefined;
}

/** A committed checkpoint, for the walker: what it refers to can be looked at as long as the roots are held. */
export interface CommittedMaps extends Cut {
  /** Shares; whoever takes them drops them, and at the latest when the next commit offers new ones. */
  readonly roots: MapRoot[];
  /** Which capture it was: `Checkpointer.captures` at that instant. */
  readonly capture: number;
  /** Store.drops and Store.overwrittenBlocks at that instant. */
  readonly drops: number;
  readonly overwrittenBlocks: number;
}

export class Checkpointer {
  private state: State = 'idle';
  private capture: Capture | undefined;
  /** Of the devices, as in `rows`; in a compaction followed by those that others hold. */
  private roots: MapRoot[] = [];
  private rows: [id: number, sizeBytes: number, layer: number, frozenLsn: number][] = [];
  private layerRows: ReturnType<Store['layers']['rows']> = { next: 1, layers: [] };
  private writer: MapWriter | undefined;
  private target: MapFile;
  private readonly buffer: number;
  private busyJob = false;
  private closed = false;
  private released = false;
  /** Map files by BlockMap's file bit; the one not in use is undefined. */
  private readonly files: (MapFile | undefined)[] = [undefined, undefined];
  /** Highest number that a map file has had. */
  private lastNumber: number;
  /** Numbers of map files that a slot may still name; they go after the next commit. */
  private leftovers: number[] = [];
  /** A slot whose writing failed may be durable, and no commit has replaced it yet. */
  private doubtful = false;
  /** Length of the map file right after the last compaction: an estimate of what is live. */
  private liveBytes: number;

  committedAt: Position;
  lowWater: Position;
  /** The committed cut through the local journal; LSN 0 without one. */
  committedLocalLsn = 0;
  commits = 0;
  bytesWritten = 0;
  lastError: string | undefined;
  /** Captures since start, committed or not. */
  captures = 0;
  private drops = 0;
  private overwrittenBlocks = 0;
  /** Offers the roots of a commit; true when they were taken over. */
  onCommitted: (maps: CommittedMaps) => boolean = () => false;
  /** Damage was found in the map file: the group has to stop. */
  onCorruption: (error: CorruptionError) => void = () => undefined;
  /** What of the local journal survives power loss. */
  settledLocal: () => number = () => 0;
  /** The captured LSN should become stable soon, and the local one settled. */
  onWaiting: (lsn: number, localLsn: number) => void = () => undefined;

  constructor(
    private readonly reactor: Reactor,
    private readonly store: Store,
    private readonly options: CheckpointerOptions,
    file: MapFile,
    private sequence: number,
    committedAt: Position,
    lowWater: Position,
  ) {
    this.target = file;
    this.files[0] = file;
    this.lastNumber = file.number;
    this.liveBytes = file.length;
    this.committedAt = committedAt;
    this.lowWater = lowWater;
    this.buffer = reactor.arena.alloc(options.bufferBytes);
    assert(this.buffer >= 0, 'no arena room for checkpoints');
  }

  /** At opening: numbers of all map files there are. Removes those that neither slot names; `older`: the one that the older slot names. */
  foundFiles(numbers: readonly number[], older: number | undefined): void {
    const { number } = this.file(this.store.map.currentFile);
    this.lastNumber = Math.max(number, ...numbers);
    this.leftovers = numbers.filter((other) => other !== number && other !== older);
    this.removeLeftovers();
    if (older !== undefined && older !== number) this.leftovers.push(older);
  }

  /** The map file of BlockMap's file bit 0 or 1. */
  file(bit: number): MapFile {
    const file = this.files[bit];
    assert(file !== undefined, `no map file ${bit}`);
    return file;
  }

  /** A checkpoint is under way. */
  get busy(): boolean {
    return this.state !== 'idle';
  }

  /** What the checkpoint under way, or the last one, holds: everything below. */
  get capturedLsn(): number {
    return this.capture?.at.lsn ?? this.committedAt.lsn;
  }

  /** What the slot says on the disk is being changed. */
  get committing(): boolean {
    return this.state === 'committing';
  }

  /** A helper job is in flight. */
  get jobInFlight(): boolean {
    return this.busyJob;
  }

  /** Length of the map file that is written to. */
  get mapFileBytes(): number {
    return this.file(this.store.map.currentFile).length;
  }

  /** Starts a checkpoint of this instant; false when one is under way. */
  begin(capture: Capture): boolean {
    if (this.state !== 'idle' || this.closed) return false;
    this.capture = capture;
    this.captures++;
    this.drops = this.store.drops;
    this.overwrittenBlocks = this.store.overwrittenBlocks;
    this.layerRows = this.store.layers.rows();
    this.rows = [];
    this.roots = [];
    for (const device of this.store.all()) {
      this.rows.push([device.id, device.sizeBytes, device.layer, device.frozenLsn]);
      this.roots.push(this.store.map.share(device.root));
    }
    const current = this.file(this.store.map.currentFile);
    const rewrite = !this.doubtful && current.length > 2 * this.liveBytes + this.options.compactSlackBytes;
    try {
      this.target = rewrite ? MapFile.create(current.reads, this.options.directory, this.lastNumber + 1, this.options.groupId) : current;
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.fail(error.message);
      return true;
    }
    if (rewrite) {
      this.files[1 - this.store.map.currentFile] = this.target;
      // Nodes that only these reach would be lost: no file would have them any more.
      for (const root of this.store.held) this.roots.push(this.store.map.share(root));
    }
    this.lastNumber = Math.max(this.lastNumber, this.target.number);
    this.writer = new MapWriter(this.store.map, this.roots, { rewrite });
    this.state = 'writing';
    this.pump();
    return true;
  }

  /** Once a tick: `stable` as in Destager.poll. */
  poll(stable: number): void {
    if (this.state === 'waiting' && !this.closed && stable >= this.capture!.at.lsn && this.settledLocal() >= this.localLsn) this.commit();
  }

  private get localLsn(): number {
    return this.capture?.local?.at.lsn ?? 0;
  }

  private get rewriting(): boolean {
    return this.target !== this.files[this.store.map.currentFile];
  }

  /** Encodes up to a buffer of nodes and hands them to the helper; one job at a time. */
  private pump(): void {
    const writer = this.writer!;
    const { arena } = this.reactor;
    const bytes = writer.step(arena.view, this.buffer, this.buffer + this.options.bufferBytes, this.target.length);
    if (bytes > 0) {
      const position = this.target.length;
      this.target.length += bytes;
      this.bytesWritten += bytes;
      this.run(new JobTable(1).add(JobOp.pwrite, this.target.fd, this.buffer, bytes, position), Queue.checkpoint, () => this.pump());
      return;
    }
    if (writer.needed !== undefined) {
      const { position, file } = writer.needed;
      this.busyJob = true;
      this.file(file).read(position, (node, errno) => {
        this.busyJob = false;
        if (this.closed) return;
        if (errno !== 0) {
          this.fail(new IoError(errno, `read map node at byte ${position} of`, this.file(file).path).message);
          return;
        }
        try {
          writer.supply(node);
        } catch (error) {
          if (!(error instanceof CorruptionError)) throw error;
          this.fail(error.message);
          this.onCorruption(error);
          return;
        }
        this.pump();
      });
      return;
    }
    assert(writer.done, 'the map writer neither wrote nor ended');
    this.sync();
  }

  private sync(): void {
    this.state = 'syncing';
    const { io } = this.reactor;
    const table = new JobTable(2).add(JobOp.fdatasync, this.target.fd, 0, 0, 0);
    let directory = -1;
    if (this.rewriting || this.commits === 0) {
      directory = io.open(this.options.directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0);
      if (directory < 0) {
        this.fail(new IoError(-directory, 'open', this.options.directory).message);
        return;
      }
      table.add(JobOp.fsync, directory, 0, 0, 0);
    }
    this.run(table, Queue.checkpoint, () => {
      this.state = 'waiting';
      this.onWaiting(this.capture!.at.lsn, this.localLsn);
    }, () => {
      if (directory >= 0) io.close(directory);
    });
  }

  private commit(): void {
    this.state = 'committing';
    const { io } = this.reactor;
    const capture = this.capture!;
    const positions = this.writer!.rootPositions;
    const devices = this.rows.map(([id, sizeBytes, layer, frozenLsn], i): StoredDeviceRow => [id, positions[i], sizeBytes, layer, frozenLsn]);
    const body: SlotBody = {
      groupId: this.options.groupId, at: capture.at, lowWater: capture.lowWater, mapFile: this.target.number, mapLength: this.target.length,
      nextLayer: this.layerRows.next, layers: this.store.layers.named(this.layerRows.layers), devices, group: capture.group,
      ...(capture.local === undefined ? {} : { local: capture.local }),
    };
    const bytes = encodeSlot(this.sequence + 1, body);
    const path = slotPath(this.options.directory, this.sequence + 1);
    const fd = io.open(path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600);
    if (fd < 0) {
      this.fail(new IoError(-fd, 'open checkpoint slot', path).message);
      return;
    }
    this.bytesWritten += bytes.length;
    this.writeSlot(fd, bytes, 0);
  }

  /** Writes the slot from byte `from` on, a buffer at a time: however long it is, it needs no memory that requests could have taken. */
  private writeSlot(fd: number, bytes: Uint8Array, from: number): void {
    const { io, arena } = this.reactor;
    const to = Math.min(bytes.length, from + this.options.bufferBytes);
    const last = to === bytes.length;
    arena.u8.set(bytes.subarray(from, to), this.buffer);
    const table = new JobTable(2).add(JobOp.pwrite, fd, this.buffer, to - from, from);
    if (last) table.add(JobOp.fdatasync, fd, 0, 0, 0);
    this.run(table, Queue.checkpoint, () => (last ? this.committed() : this.writeSlot(fd, bytes, to)), (result) => {
      if (last || result < 0 || this.closed) io.close(fd);
    });
  }

  private committed(): void {
    const { map } = this.store;
    const capture = this.capture!;
    this.sequence++;
    this.commits++;
    this.doubtful = false;
    const rewriting = this.rewriting;
    this.writer!.commit();
    if (rewriting) {
      const oldBit = this.files.findIndex((file) => file !== undefined && file !== this.target);
      const old = this.files[oldBit]!;
      this.files[oldBit] = undefined;
      assert(this.files[map.currentFile] === this.target, 'the compaction flips the map file');
      this.liveBytes = this.target.length - FIRST_NODE_POSITION;
      old.close();
      this.leftovers.push(old.number);
    }
    this.removeLeftovers();
    this.committedAt = capture.at;
    this.lowWater = capture.lowWater;
    this.committedLocalLsn = this.localLsn;
    this.state = 'idle';
    this.lastError = undefined;
    for (const held of this.roots.splice(this.rows.length)) map.drop(held);
    const maps: CommittedMaps = {
      roots: this.roots, at: capture.at.lsn, lowWater: capture.lowWater.lsn, localStamp: LOCAL_STAMPS + this.localLsn, capture: this.captures, drops: this.drops, overwrittenBlocks: this.overwrittenBlocks,
    };
    if (this.onCommitted(maps)) this.roots = [];
    else this.dropRoots();
  }

  /** Runs one job; `then` on success, `always` in any case, with what the job returned. */
  private run(table: JobTable, queue: (typeof Queue)['checkpoint'], then: () => void, always?: (result: number) => void): void {
    this.busyJob = true;
    this.reactor.submit(queue, table, (result) => {
      this.busyJob = false;
      always?.(result);
      if (this.closed) return;
      if (result < 0) this.fail(new IoError(-result, 'write a checkpoint in', this.options.directory).message);
      else then();
    });
  }

  /**
   * Gives this checkpoint up. What was written of it counts as not written,
   * whatever a later fsync says: the next attempt appends all of it again. But
   * its slot may be durable, and then all that it names has to be there.
   */
  private fail(message: string): void {
    this.lastError = message;
    if (this.state === 'committing') this.doubtful = true;
    this.writer?.abort();
    this.writer = undefined;
    const other = 1 - this.store.map.currentFile;
    const abandoned = this.files[other];
    if (abandoned !== undefined) {
      this.files[other] = undefined;
      abandoned.close();
      this.leftovers.push(abandoned.number);
      if (this.state !== 'committing') this.removeLeftovers();
    }
    this.dropRoots();
    this.state = 'retrying';
    this.reactor.after(this.options.retryUs, () => {
      if (this.state === 'retrying') this.state = 'idle';
    });
  }

  /** Removes map files that no slot names. One that cannot be removed is tried again after the next commit. */
  private removeLeftovers(): void {
    this.leftovers = this.leftovers.filter((number) => {
      const result = this.reactor.io.unlink(MapFile.pathOf(this.options.directory, number));
      return result < 0 && -result !== Errno.ENOENT;
    });
  }

  private dropRoots(): void {
    for (const root of this.roots) this.store.map.drop(root);
    this.roots = [];
  }

  /** Starts nothing more; a job in flight runs out. */
  stop(): void {
    this.closed = true;
  }

  /** Gives everything back; the caller has waited until `jobInFlight` is false. */
  close(): void {
    this.closed = true;
    if (this.released) return;
    this.released = true;
    assert(!this.busyJob, 'the checkpointer is closed with a job in flight');
    this.writer?.abort();
    this.dropRoots();
    for (const file of this.files) file?.close();
    this.reactor.arena.release(this.buffer);
  }
}
