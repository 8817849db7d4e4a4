/**
 * One group's data directory, opened: journal, store and core together, as
 * creation, recovery or a rewind left them.
 *
 * Owns: the directory's layout, the order of opening, the low-water mark and
 * what may be released. Must not know: roles, requests, links.
 *
 *     state.json          statefile.ts
 *     final               finalnote.ts
 *     journal/segment-*   journal/, unless it lies elsewhere (place.ts)
 *     map-*               store/mapfile.ts
 *     checkpoint-0, -1    store/slot.ts
 *     layers/device-*     store/layers.ts
 *     local/segment-*     local/journal.ts, made with the first local device
 */

import { assert } from '../../base/assert.js';
import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import type { Log } from '../../base/log.js';
import { BLOCK_BYTES, isLocalDevice, KIB } from '../../base/units.js';
import { mkdirs, must } from '../../io/file.js';
import { allocatedBytes } from '../../io/arena.js';
import { O } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { Journal, JOURNAL_ARENA_BYTES } from '../../journal/journal.js';
import type { JournalOptions, Position } from '../../journal/journal.js';
import { recoverJournal } from '../../journal/recover.js';
import { Checkpointer } from '../../store/checkpointer.js';
import type { CheckpointerOptions } from '../../store/checkpointer.js';
import { DESTAGE_BUFFERS, Destager } from '../../store/destager.js';
import type { DestagerOptions } from '../../store/destager.js';
import { longestFileBytes } from '../../store/layers.js';
import { MapFile } from '../../store/mapfile.js';
import { DEFAULT_MAP_TASKS, MapTasks } from '../../store/maptasks.js';
import type { MapTaskOptions } from '../../store/maptasks.js';
import { NODE_READS_ARENA_BYTES, NodeReads } from '../../store/nodereads.js';
import { BlockReader } from '../../store/read.js';
import { createSlots, encodeSlot, findSlot, slotPath } from '../../store/slot.js';
import type { FoundSlot, SlotBody } from '../../store/slot.js';
import { Store } from '../../store/store.js';
import { DEFAULT_WALKER, Walker } from '../../store/walk/walker.js';
import type { WalkerOptions } from '../../store/walk/walker.js';
import { Core } from './core.js';
import type { CoreState } from './core.js';
import { CacheReads } from './caching.js';
import { FINAL_ARENA_BYTES, FINAL_FILE, FinalNote } from './finalnote.js';
import { withKept } from './kept.js';
import { claim, journalDirectoryOf, removeJournal } from './place.js';
import type { Opening, PlaceOptions } from './place.js';
import type { EpochEntry } from '../tree/epochs.js';
import { Sizes } from './sizes.js';
import { LOCAL_ARENA_BYTES, LocalContent } from '../local/content.js';
import { VolatileRounds } from './volatile.js';

export interface ContentOptions extends PlaceOptions {
  readonly node: string;
  readonly groupId: string;
  readonly journal: Omit<JournalOptions, 'directory' | 'groupId'>;
  readonly destager: DestagerOptions;
  readonly checkpointer: Omit<CheckpointerOptions, 'directory' | 'groupId'>;
  readonly walker?: Partial<WalkerOptions>;
  readonly mapTasks?: MapTaskOptions;
  /** A checkpoint at the latest after this much journal ... */
  readonly checkpointBytes: number;
  /** ... or after this long with activity, microseconds. */
  readonly checkpointUs: number;
  /** Limit of map nodes in memory, bytes. */
  readonly mapMemoryBytes: number;
  /** Layer files held open. */
  readonly maxOpenLayers?: number;
}

/** Arena bytes that an open group holds. */
export function contentArenaBytes(options: { readonly destager: { readonly bufferBytes: number }; readonly checkpointer: { readonly bufferBytes: number } }): number {
  return JOURNAL_ARENA_BYTES + LOCAL_ARENA_BYTES + NODE_READS_ARENA_BYTES + SINK_BYTES + 2 * BLOCK_BYTES + FINAL_ARENA_BYTES +
    DESTAGE_BUFFERS * allocatedBytes(options.destager.bufferBytes) + allocatedBytes(options.checkpointer.bufferBytes);
}

const ZERO: Position = { lsn: 0, chainHi: 0, chainLo: 0 };
/** Nodes of dropped trees taken apart per tick. */
const RECLAIM_PER_TICK = 64;
const EVICT_STEPS_PER_TICK = 256;
/** What is read only to have it in the page cache goes here, piece by piece. */
const SINK_BYTES = 256 * KIB;

/** How far the journal goes, as far as others than itself can tell. */
export interface JournalExtent {
  /** A rewind: it is cut here, whatever lies behind. Then nothing else is looked at. */
  readonly until?: Position;
  /** This node noted that everything below was durable. */
  readonly knownDurableLsn?: number;
  /** Not from the journal: it begins at the checkpoint. */
  readonly opening?: Opening;
  /** A failed fdatasync may have dropped pages under this very boot. */
  readonly suspect?: boolean;
}

export interface Recovered {
  readonly batches: number;
  readonly tornAt: number;
  /** What of the newest checkpoint slot was unreadable, if anything. */
  readonly damagedSlot: string | undefined;
  readonly staleFiles: readonly string[];
}

export class Content {
  readonly journal: Journal;
  readonly store: Store;
  readonly core: Core;
  readonly reader: BlockReader;
  readonly destager: Destager;
  readonly checkpointer: Checkpointer;
  readonly walker: Walker;
  /** Sizes and comparisons under way. */
  readonly mapTasks: MapTasks;
  readonly sizes: Sizes;
  readonly local: LocalContent;
  readonly caching: CacheReads;
  /** How far the layers may have been written by a secondary. */
  readonly final: FinalNote;
  /** Known since the start: nothing below can be undone, whatever the primary has told since. */
  floorLsn = 0;
  /** How a group with a volatile journal becomes durable. */
  readonly rounds: VolatileRounds | undefined;
  /** SINK_BYTES of arena that anything may be read into and nothing is read from. */
  readonly sink: number;
  /** Two blocks for the edges of one request, so that it needs no other memory. */
  readonly spareBlocks: readonly [number, number];
  /** No device may be longer than this. */
  readonly longestFileBytes: number;
  recovered: Recovered = { batches: 0, tornAt: 0, damagedSlot: undefined, staleFiles: [] };

  /** Set when a record could not be executed: everything behind it is kept, nothing is executed. */
  applyProblem: string | undefined;
  private stoppedAt: Position | undefined;
  /** Executed and kept ones; undefined while everything is executed. */
  private receivedEpochs: readonly EpochEntry[] | undefined;
  private destaged: Position;
  private lastCheckpointUs: number;
  private checkpointWanted = false;
  private closing = false;
  private released = false;

  private constructor(private readonly reactor: Reactor, readonly options: ContentOptions, private readonly nodeReads: NodeReads, file: MapFile, sequence: number, at: Position, lowWater: Position, core: Core) {
    this.core = core;
    this.store = core.store;
    this.sink = reactor.arena.alloc(SINK_BYTES);
    this.spareBlocks = [reactor.arena.alloc(BLOCK_BYTES), reactor.arena.alloc(BLOCK_BYTES)];
    assert(this.sink >= 0 && this.spareBlocks[1] >= 0, 'no arena room for a group');
    this.journal = new Journal(reactor, { ...options.journal, directory: journalDirectoryOf(options), groupId: options.groupId });
    this.local = new LocalContent(reactor, this.store, {
      directory: options.directory, groupId: options.groupId, bootId: options.bootId,
      segmentBytes: options.journal.segmentBytes, journalBytes: options.journal.segmentBytes * options.journal.maxSegments, syncUs: options.journal.syncUs,
    }, () => ({ epochId: core.epoch!.id, lsn: this.appliedLsn }));
    this.final = new FinalNote(reactor, options.directory, options.groupId);
    core.localSnapshots = this.local.adoption;
    this.destaged = lowWater;
    this.longestFileBytes = longestFileBytes(reactor.io, `${options.directory}/layers`);
    this.lastCheckpointUs = reactor.nowUs;
    this.reader = new BlockReader(reactor, this.store, this.journal.pool, (bit) => this.checkpointer.file(bit));
    this.caching = new CacheReads(this.store, this.reader, this.sink, SINK_BYTES);
    this.destager = new Destager(reactor, this.store, this.journal, () => this.appliedPosition, { ...options.destager, whole: this.journal.volatile }, lowWater);
    this.checkpointer = new Checkpointer(reactor, this.store, { ...options.checkpointer, directory: options.directory, groupId: options.groupId }, file, sequence, at, lowWater);
    this.walker = new Walker(reactor, this.store, this.reader, this.checkpointer, { ...DEFAULT_WALKER, ...options.walker }, () => this.destager.jobsInFlight);
    this.mapTasks = new MapTasks(reactor, this.store, (bit) => this.checkpointer.file(bit), options.mapMemoryBytes, options.mapTasks ?? DEFAULT_MAP_TASKS);
    this.sizes = new Sizes(reactor, this);
    this.checkpointer.onCommitted = (maps) => this.walker.offer(maps);
    this.walker.onWanted = () => this.requestCheckpoint();
    const rounds = this.journal.volatile ? new VolatileRounds(reactor, this) : undefined;
    this.rounds = rounds;
    this.destager.onWaiting = (lsn) => (rounds === undefined ? this.journal.sync(lsn) : rounds.sealed());
    this.checkpointer.onWaiting = (lsn, localLsn) => {
      this.journal.sync(lsn);
      this.local.log.settle(localLsn);
    };
    this.checkpointer.settledLocal = () => this.local.log.settledLsn;
    this.destager.onRound = (end) => {
      this.destaged = end;
      // A round that frees no segment is not worth a checkpoint of its own.
      if (rounds !== undefined) rounds.written(end.lsn);
      else if (end.lsn - this.checkpointer.lowWater.lsn >= options.journal.segmentBytes) this.checkpointWanted = true;
    };
  }

  /** Makes an empty group in `directory`: durable when it returns. Blocking; throws IoError. */
  static create(reactor: Reactor, options: ContentOptions, epoch: { number: number; id: string }): Content {
    const { io } = reactor;
    const { directory } = options;
    // A secondary comes here while clients of other groups use the arena: it tries again later then.
    if (reactor.arena.largestFree < contentArenaBytes(options)) throw new IoError(Errno.ENOMEM, 'find memory for', directory);
    mkdirs(io, `${directory}/layers`);
    claim(reactor, options, false);
    removeLeftovers(reactor, options);
    const nodeReads = new NodeReads(reactor);
    const file = closing(nodeReads, () => MapFile.create(nodeReads, directory, 1, options.groupId));
    const core = openCore(reactor, options, () => content);
    const content = new Content(reactor, options, nodeReads, file, 1, ZERO, ZERO, core);
    content.journal.create(ZERO, epoch);
    must(io.fdatasync(content.journal.pool.current.fd), 'fdatasync', content.journal.pool.current.path);
    must(io.fdatasync(file.fd), 'fdatasync', file.path);
    createSlots(io, directory);
    const slot = encodeSlot(1, {
      groupId: options.groupId, at: ZERO, lowWater: ZERO, mapFile: 1, mapLength: file.length, nextLayer: 1, layers: [], devices: [], group: core.state(),
    });
    writeNow(reactor, slotPath(directory, 1), slot);
    must(io.syncDirectory(content.journal.options.directory), 'fsync', content.journal.options.directory);
    must(io.syncDirectory(directory), 'fsync', directory);
    return content;
  }

  /**
   * Opens what is on disk: newest checkpoint, then the journal from there to its
   * end, or to `extent.until`. Moves no data. Blocking; throws CorruptionError,
   * IoError.
   */
  static open(reactor: Reactor, options: ContentOptions, extent: JournalExtent): Content {
    const { io } = reactor;
    const { directory } = options;
    const found = findSlot(io, directory);
    if (found === undefined) throw new CorruptionError(`${directory}/checkpoint-0`, 0, 'there is no checkpoint, although the group was created');
    let { sequence, body } = found.slot;
    if (body.groupId !== options.groupId) throw new CorruptionError(slotPath(directory, sequence), 0, `this checkpoint belongs to group ${body.groupId}, not to ${options.groupId}`);
    if (extent.opening !== undefined) claim(reactor, options, true);
    if (extent.opening === 'accepted') ({ sequence, body } = leaveHistory(reactor, directory, found.slot));
    const nodeReads = new NodeReads(reactor);
    const file = closing(nodeReads, () => MapFile.open(nodeReads, directory, body.mapFile, options.groupId, body.mapLength));
    const core = openCore(reactor, options, () => content);
    const content = new Content(reactor, options, nodeReads, file, sequence, body.at, body.lowWater, core);
    try {
      content.final.load();
      content.store.layers.restore(body.nextLayer, body.layers);
      content.store.restore(body.devices);
      core.restore(body.group as CoreState);
      content.checkpointer.committedLocalLsn = body.local?.at.lsn ?? 0;
      content.local.open(body.local, extent.suspect === true);
      if ((extent.opening ?? 'journal') === 'journal') content.replay(body.at, body.lowWater, extent);
      else content.beginAnew(body.at);
      content.floorLsn = content.knownFinal();
      content.checkpointer.foundFiles(MapFile.numbers(io, directory), found.older?.body.mapFile);
      content.recovered = { ...content.recovered, damagedSlot: found.damaged, staleFiles: content.store.layers.reconcile() };
      if (extent.suspect === true) content.store.layers.reread(isLocalDevice);
    } catch (error) {
      content.close();
      throw error;
    }
    return content;
  }

  private replay(at: Position, lowWater: Position, extent: JournalExtent): void {
    const { journal, core } = this;
    const { until } = extent;
    const own = (id: string): boolean => core.epochs.some((epoch) => epoch.id === id && epoch.node === this.options.node);
    let applied: Position | undefined;
    const result = recoverJournal(this.reactor, journal, {
      from: lowWater,
      durableLsn: until === undefined ? Math.max(at.lsn, extent.knownDurableLsn ?? 0, this.final.lsn) : 0,
      ...(until === undefined ? {} : { until }),
      ownEpoch: own,
      visit: (header, payloadAt, lsn) => {
        if (lsn < at.lsn) {
          core.repend(header, lsn);
          return;
        }
        if (this.applyProblem === undefined) {
          this.local.advance(lsn, core.epochs);
          this.applyProblem = core.apply(header, lsn, payloadAt);
          if (this.applyProblem === undefined) return;
          applied = { lsn, ...chainBefore(this.reactor, header) };
        }
        this.keep(header, lsn, payloadAt);
      },
    });
    // What a volatile journal holds is durable by the checkpoint alone.
    if (journal.volatile) journal.setPosition(result.end, at.lsn);
    this.rounds?.written(result.end.lsn);
    this.stoppedAt = applied;
    this.recovered = { ...this.recovered, batches: result.batches, tornAt: result.tornAt };
    const epoch = core.epoch;
    if (epoch !== undefined) journal.setEpoch(epoch);
    this.local.ended(this.appliedLsn, core.epochs);
  }

  /** Without a journal: the checkpoint has everything below `at`, and the history goes on from there. */
  private beginAnew(at: Position): void {
    const { journal, core } = this;
    removeJournal(this.reactor.io, journal.options.directory);
    // A round that was noted and then not written: what will stand above may be undone again.
    must(this.final.setNow(Math.min(this.final.lsn, at.lsn)), 'note how far the layers are written in', this.options.directory);
    journal.create(at, core.epoch ?? { number: 0, id: '0'.repeat(32) });
    must(this.reactor.io.fdatasync(journal.pool.current.fd), 'fdatasync', journal.pool.current.path);
    must(this.reactor.io.syncDirectory(journal.options.directory), 'fsync', journal.options.directory);
    this.local.ended(at.lsn, core.epochs);
  }

  /** What a restart knows of `stable`: layers were written below the note, and a local device is ready only when its position is final. */
  private knownFinal(): number {
    let lsn = this.final.lsn;
    for (const device of this.local.tree.all()) if (device.ready) lsn = Math.max(lsn, device.followsLsn);
    return lsn;
  }

  /** Tells the log how it was opened. */
  report(log: Log): void {
    const { recovered } = this;
    if (recovered.damagedSlot !== undefined) log.warn('a checkpoint slot was not readable; the other one was used', { slot: recovered.damagedSlot });
    if (recovered.tornAt !== 0) log.info('erased what lay behind the end of the journal; nothing in it had been acknowledged as durable');
    log.info('opened', { lsn: this.journal.appendedLsn, checkpoint: this.checkpointer.committedAt.lsn, batches: recovered.batches, devices: this.core.tree.count });
    if (this.applyProblem !== undefined) log.error(`has not executed what its journal holds from LSN ${this.appliedLsn} on: ${this.applyProblem}`);
  }

  /** Behind the last batch that was executed. */
  get appliedPosition(): Position {
    return this.stoppedAt ?? this.journal.position;
  }

  get appliedLsn(): number {
    return this.stoppedAt?.lsn ?? this.journal.appendedLsn;
  }

  /** Of everything below the journal's end; `core.epochs` are those of what was executed. */
  get epochs(): readonly EpochEntry[] {
    return this.receivedEpochs ?? this.core.epochs;
  }

  /** Nothing of the batch with header at `at`, which stands at `lsn`, is executed; a marker's body is at `payloadAt`. */
  keep(at: number, lsn: number, payloadAt: number): void {
    this.receivedEpochs = withKept(this.epochs, this.reactor.arena, at, lsn, payloadAt);
  }

  /** The record behind `before` could not be executed. */
  stopApplying(before: Position, problem: string): void {
    this.stoppedAt = before;
    this.applyProblem = problem;
  }

  /** Everything below is in the layers' files, durably. */
  get destagedLsn(): number {
    return this.destaged.lsn;
  }

  /** A checkpoint is wanted as soon as one may begin. */
  requestCheckpoint(): void {
    this.checkpointWanted = true;
  }

  /**
   * Once a tick: drives destager, checkpoints and memory. `stable`: nothing
   * below can be undone. `retained`: oldest LSN that a link or an export needs.
   */
  poll(stable: number, retained: number): void {
    if (this.closing) return;
    const { checkpointer, store, rounds } = this;
    this.journal.poll();
    this.local.log.poll();
    if (rounds === undefined) {
      this.destager.poll(stable);
      checkpointer.poll(stable);
    } else {
      rounds.poll(stable);
    }
    this.walker.poll(this.changedBytes === 0);
    if (rounds === undefined && !checkpointer.busy && this.checkpointDue()) this.beginCheckpoint();
    this.journal.pool.releaseBelow(Math.min(checkpointer.lowWater.lsn, retained));
    this.local.log.releaseBelow(checkpointer.committedLocalLsn);
    if (store.map.reclaim(RECLAIM_PER_TICK)) this.reactor.again();
    if (store.map.memoryBytes > this.options.mapMemoryBytes && !store.map.evict(this.options.mapMemoryBytes, EVICT_STEPS_PER_TICK)) {
      // What cannot be paged out is dirty: a checkpoint makes it clean.
      if (!checkpointer.busy && this.changedBytes > 0) this.checkpointWanted = true;
    }
  }

  /** Of this instant. Of a volatile group it is committed only when all below is destaged: then it needs no journal. */
  beginCheckpoint(): void {
    this.checkpointWanted = false;
    this.lastCheckpointUs = this.reactor.nowUs;
    const at = this.appliedPosition;
    // Nothing pending: all that was applied is in the files, though no round ended here.
    if (this.store.pending.blocks === 0) this.destaged = at;
    this.checkpointer.begin({ at, lowWater: this.rounds === undefined ? this.destaged : at, group: this.core.state(), local: this.local.capture() });
  }

  /** Journal behind the committed checkpoint, of both journals. */
  private get changedBytes(): number {
    const { checkpointer, local } = this;
    return this.appliedLsn - checkpointer.committedAt.lsn + Math.max(0, local.log.changedLsn - checkpointer.committedLocalLsn);
  }

  checkpointDue(): boolean {
    const since = this.changedBytes;
    // One that failed is tried again: it may have been to free journal that writers wait for, and then nothing else ever happens.
    if (this.checkpointWanted || this.checkpointer.lastError !== undefined || this.local.log.isLong(this.checkpointer.committedLocalLsn)) return true;
    if (since === 0) return false;
    // Trims and operations fill the journal, too, and no destage round ever ends for them.
    if (this.store.pending.blocks === 0 && this.appliedLsn - this.checkpointer.lowWater.lsn >= this.options.journal.segmentBytes) return true;
    return since >= this.options.checkpointBytes || this.reactor.nowUs - this.lastCheckpointUs >= this.options.checkpointUs;
  }

  /** Nothing new is started here any more. */
  get stopped(): boolean {
    return this.closing;
  }

  /** No helper job uses this content any more. */
  get quiet(): boolean {
    return !this.destager.jobsInFlight && !this.checkpointer.jobInFlight && !this.walker.jobInFlight && !this.mapTasks.jobInFlight && !this.journal.commit.inFlight && !this.journal.pool.busy && !this.journal.pool.held && !this.local.jobsInFlight && this.reader.readsInFlight === 0;
  }

  /** Starts nothing more; `quiet` tells when it may be closed. */
  stop(): void {
    this.closing = true;
    this.local.stop();
    this.caching.stop();
    this.destager.stop();
    this.checkpointer.stop();
    this.walker.stop();
    this.mapTasks.stop();
  }

  /** Gives files and memory back; only when `quiet`. */
  close(): void {
    this.stop();
    this.destager.close();
    this.walker.close();
    this.mapTasks.close();
    this.checkpointer.close();
    this.store.close();
    this.local.close();
    this.final.close();
    this.journal.close();
    if (this.released) return;
    this.released = true;
    this.nodeReads.close();
    for (const buffer of [this.sink, ...this.spareBlocks]) this.reactor.arena.release(buffer);
  }
}

/** What `make` returns; when it throws, the buffers are given back. */
function closing(nodeReads: NodeReads, make: () => MapFile): MapFile {
  try {
    return make();
  } catch (error) {
    nodeReads.close();
    throw error;
  }
}

function openCore(reactor: Reactor, options: ContentOptions, content: () => Content): Core {
  const store = new Store(reactor, `${options.directory}/layers`, (position, bit) => content().checkpointer.file(bit).readNow(position), `${options.directory}/map-*`, options.maxOpenLayers);
  return new Core(reactor.arena, store);
}

function chainBefore(reactor: Reactor, header: number): { chainHi: number; chainLo: number } {
  const { view } = reactor.arena;
  return { chainHi: view.getUint32(header + 16, true), chainLo: view.getUint32(header + 20, true) };
}

/** A creation that was cut off left files behind; nothing in them was ever acknowledged. */
function removeLeftovers(reactor: Reactor, options: ContentOptions): void {
  const { io } = reactor;
  const { directory } = options;
  for (const name of ['checkpoint-0', 'checkpoint-1', FINAL_FILE]) io.unlink(`${directory}/${name}`);
  removeJournal(io, journalDirectoryOf(options));
  for (const name of io.list(`${directory}/layers`)) must(io.unlink(`${directory}/layers/${name}`), 'remove', `${directory}/layers/${name}`);
}

/**
 * The content is not what the history says at this position, and no node shall take it for that: the position gets
 * another chain, which no other node has. In both slots, durably: the old chain must not come back. Throws IoError.
 */
function leaveHistory(reactor: Reactor, directory: string, slot: FoundSlot): FoundSlot {
  const random = new DataView(reactor.io.randomBytes(8).buffer);
  const at: Position = { lsn: slot.body.at.lsn, chainHi: random.getUint32(0, true), chainLo: random.getUint32(4, true) };
  const body: SlotBody = { ...slot.body, at, lowWater: at };
  for (const sequence of [slot.sequence + 1, slot.sequence + 2]) writeNow(reactor, slotPath(directory, sequence), encodeSlot(sequence, body));
  return { sequence: slot.sequence + 2, body };
}

function writeNow(reactor: Reactor, path: string, bytes: Uint8Array): void {
  const { io, arena } = reactor;
  const fd = must(io.open(path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600), 'open', path);
  const at = arena.alloc(bytes.length);
  must(at < 0 ? -12 : 0, 'find memory for', path);
  arena.u8.set(bytes, at);
  let result = io.pwrite(fd, at, bytes.length, 0);
  if (result >= 0) result = io.fdatasync(fd);
  arena.release(at);
  io.close(fd);
  must(result, 'write', path);
}
