/**
 * One group's data directory, opened: journal, store and core together, as
 * opening.ts left them.
 *
 * Owns: the directory's layout, when a checkpoint begins, how far records were
 * executed, what may be released, the end. Must not know: roles, requests, links.
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
import type { Log } from '../../base/log.js';
import { BLOCK_BYTES, KIB } from '../../base/units.js';
import { allocatedBytes } from '../../io/arena.js';
import type { Reactor } from '../../io/reactor.js';
import { END_ARENA_BYTES } from '../../journal/endnote.js';
import { Journal, JOURNAL_ARENA_BYTES } from '../../journal/journal.js';
import type { JournalOptions } from '../../journal/journal.js';
import type { Position } from '../../journal/position.js';
import type { BlockCache } from '../../store/blockcache.js';
import { Checkpointer } from '../../store/checkpointer.js';
import type { CheckpointerOptions } from '../../store/checkpointer.js';
import { DESTAGE_BUFFERS, Destager } from '../../store/destager.js';
import type { DestagerOptions } from '../../store/destager.js';
import { longestFileBytes } from '../../store/layers.js';
import type { MapFile } from '../../store/mapfile.js';
import { DEFAULT_MAP_TASKS, MapTasks } from '../../store/maptasks.js';
import type { MapTaskOptions } from '../../store/maptasks.js';
import { NODE_READS_ARENA_BYTES, type NodeReads } from '../../store/nodereads.js';
import { BlockReader } from '../../store/read.js';
import type { Store } from '../../store/store.js';
import { DEFAULT_WALKER, Walker } from '../../store/walk/walker.js';
import type { WalkerOptions } from '../../store/walk/walker.js';
import type { Core } from './core.js';
import { CacheReads } from './caching.js';
import { FINAL_ARENA_BYTES, FinalNote } from './finalnote.js';
import { withKept } from './kept.js';
import { journalDirectoryOf } from './place.js';
import type { PlaceOptions } from './place.js';
import type { EpochEntry } from '../tree/epochs.js';
import { Sizes } from './sizes.js';
import { LOCAL_ARENA_BYTES, LocalContent } from '../local/content.js';
import { VolatileRounds } from './volatile.js';

export interface ContentOptions extends PlaceOptions {
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
  /** Shared by all groups of the daemon. */
  readonly blockCache: BlockCache;
}

/** Arena bytes that an open group holds. */
export function contentArenaBytes(options: {
  readonly journal: { readonly volatile?: boolean };
  readonly destager: { readonly bufferBytes: number };
  readonly checkpointer: { readonly bufferBytes: number };
}): number {
  return JOURNAL_ARENA_BYTES + (options.journal.volatile === true ? END_ARENA_BYTES : 0) + LOCAL_ARENA_BYTES + NODE_READS_ARENA_BYTES + SINK_BYTES + 2 * BLOCK_BYTES + FINAL_ARENA_BYTES +
    DESTAGE_BUFFERS * allocatedBytes(options.destager.bufferBytes) + allocatedBytes(options.checkpointer.bufferBytes);
}

/** Nodes of dropped trees taken apart per tick. */
const RECLAIM_PER_TICK = 64;
const EVICT_STEPS_PER_TICK = 256;
/** What is read only to have it in the page cache goes here, piece by piece. */
const SINK_BYTES = 256 * KIB;

export interface Recovered {
  readonly batches: number;
  readonly tornAt: number;
  /** What of the newest checkpoint slot was unreadable, if anything. */
  readonly damagedSlot: string | undefined;
  readonly staleFiles: readonly string[];
  /** Why the note whose journal it is could not be written, if it could not. */
  readonly unnoted: string | undefined;
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
  recovered: Recovered = { batches: 0, tornAt: 0, damagedSlot: undefined, staleFiles: [], unnoted: undefined };

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

  /** For opening.ts: nothing is read yet. `file`, `sequence`, `at` and `lowWater` are those of the checkpoint. */
  constructor(private readonly reactor: Reactor, readonly options: ContentOptions, private readonly nodeReads: NodeReads, file: MapFile, sequence: number, at: Position, lowWater: Position, core: Core) {
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
    this.reader = new BlockReader(reactor, this.store, this.journal.pool, (bit) => this.checkpointer.file(bit), options.blockCache);
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

  /** Tells the log how it was opened. */
  report(log: Log): void {
    const { recovered } = this;
    if (recovered.damagedSlot !== undefined) log.warn('a checkpoint slot was not readable; the other one was used', { slot: recovered.damagedSlot });
    if (recovered.unnoted !== undefined) log.warn(`cannot note whose journal it is (${recovered.unnoted}); the next start tries again`);
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

  /** Nothing of the batch with header at `at` is executed; a marker's body is at `payloadAt`. */
  keep(at: number, payloadAt: number): void {
    this.receivedEpochs = withKept(this.epochs, this.reactor.arena, at, payloadAt);
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
      // Writers may be waiting for room, and what somebody releases gives some only as far as it is destaged.
      if (!this.journal.hasRoomForData && this.journal.pool.grown) this.destager.request();
      this.destager.poll(stable);
      checkpointer.poll(stable);
    } else {
      rounds.poll(stable);
    }
    this.walker.poll(this.changedBytes === 0);
    if (rounds === undefined && !checkpointer.busy && this.checkpointDue()) this.beginCheckpoint();
    // Whoever waits for room had their turn in this tick already.
    if (this.journal.pool.releaseBelow(Math.min(checkpointer.lowWater.lsn, retained)) > 0) this.reactor.again();
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
