/**
 * The background walker: gives space back that no device refers to any more
 * (DESIGN §5).
 *
 * Owns: when a walk is due, its steps, and what it knows between them. Must not
 * know: why space became free, or who writes.
 *
 * A walk looks at one committed checkpoint C, whose roots it holds. When another
 * one commits meanwhile, the walk goes on with that one from the place where it
 * stands: what a layer frozen before the first C was not referred to for at an
 * older checkpoint, it is not at a younger one either. Nothing of an older one is
 * kept: a compaction forgets the places of nodes that the younger does not have.
 *
 *   1. count     visits every distinct leaf, sums the blocks of each layer that are referred to
 *   2. size      compares with what the layers' files have allocated (sizing.ts)
 *   3. delete    frozen layers without any reference: punched empty if large, unlinked, dropped from the table
 *   4. punch     visits the leaves where files with garbage have data, and punches what is not referred to
 *
 * What recovery sees if power fails right after
 *   a commit, nothing reclaimed yet    C. Space that was free stays in use until the next walk: there is one after every start
 *   a punch, durable or not            C refers to nothing of it. What was written there after C is in the journal, which is
 *                                      kept from C's low-water mark on; its destage writes come behind the punch in one FIFO
 *   an unlink, durable                 C's slot may name the layer: a row whose file is missing. No map refers to it, and no
 *                                      record above the low-water mark (frozen below it): never opened; the next walk drops it
 *   an unlink, not durable             the same with its file, or, from a younger C, a file that no row names: `reconcile` deletes it
 *   a commit without the layer's row   nothing of it is left
 * The other slot, older than C, may name the layer too. It is read only when the medium has damaged the slot of C, and
 * then everything between the two is replayed first, or recovery fails for want of journal or map file: the end is the same.
 *
 * A commit that is reported failed may have become durable all the same. It is
 * younger than C: what frozen layers lack at C they lack there; current layers
 * are left alone until a later commit succeeds (holes.ts).
 *
 * A failed punch or unlink is reported in `lastError` and tried again by a later
 * walk. No step is longer than its budget, and steps pause in between.
 */

import { unreachable } from '../../base/assert.js';
import { Errno, IoError } from '../../base/errors.js';
import type { CorruptionError } from '../../base/errors.js';
import { BLOCK_BYTES } from '../../base/units.js';
import { Queue } from '../../io/io.js';
import type { JobTable } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import type { Checkpointer, CommittedMaps } from '../checkpointer.js';
import { LayerHoles, punched, Scan } from './holes.js';
import { LayerMarks } from './marks.js';
import { LayerRemover, Piece } from './remove.js';
import { LayerSizing, mayPass } from './sizing.js';
import { MapSweep, Sweep } from '../map/sweep.js';
import type { SweepResult } from '../map/sweep.js';
import { loadNode } from '../nodeload.js';
import { LEAF_BLOCKS } from '../map/nodes.js';
import type { BlockReader } from '../read.js';
import type { Store } from '../store.js';
import { DEFAULT_WALKER, WalkDue } from './due.js';
import type { WalkerOptions } from './due.js';

export { DEFAULT_WALKER };
export type { WalkerOptions };

/** What the walker is doing: see the steps above. */
type State = 'idle' | 'counting' | 'sizing' | 'deleting' | 'punching';

/** How a step ended; after `nothing` something else schedules the next one. */
const After = { pause: 0, nothing: 1 } as const;
type AfterStep = (typeof After)[keyof typeof After];

/** Costs in units. */
const COST_STAT = 120;
/** The clock is looked at after so many units. */
const SLICE = 128;
const NO_PUNCH = 'the file system of the data directory cannot punch holes: space comes back only with whole layers';

export class Walker {
  private state: State = 'idle';
  private maps: CommittedMaps | undefined;
  private sweep: MapSweep | undefined;
  private marks = new LayerMarks();
  /** What the walk began with. */
  private first: CommittedMaps | undefined;
  /** Everything below this block was visited in this pass. */
  private resumeBlock = 0;
  /** Reads that began before `maps` was committed have ended. */
  private quiet = false;
  private sizing: LayerSizing | undefined;
  private remover: LayerRemover | undefined;
  private holes: LayerHoles | undefined;
  /** A place was visited and its files not yet scanned: where it ends; 0 = none. */
  private placeEnd = 0;
  private placeBlock = 0;

  private busyJob = false;
  private loading = false;
  private timer = false;
  private closed = false;
  private waitsForCheckpoint = false;
  private askedUs = -Infinity;
  private begunUs = 0;
  private lastStepUs = 0;
  private stepBegunUs = 0;
  private skipped = false;
  private problem: IoError | CorruptionError | undefined;
  private canPunch = true;
  private budget = 0;
  private readonly due: WalkDue;

  bytesPunched = 0;
  layersDeleted = 0;
  walksDone = 0;
  steps = 0;
  stepUs = 0;
  longestStepUs = 0;
  lastError: string | undefined;
  /** A checkpoint of now is wanted. */
  onWanted: () => void = () => undefined;

  constructor(
    private readonly reactor: Reactor,
    private readonly store: Store,
    private readonly reader: BlockReader,
    private readonly checkpointer: Checkpointer,
    private readonly options: WalkerOptions,
    /** Whether layer files are being written to just now. */
    private readonly destaging: () => boolean,
  ) {
    this.due = new WalkDue(store, options);
  }

  /** A walk is under way. */
  get walking(): boolean {
    return this.state !== 'idle';
  }

  /** A helper job is in flight. */
  get jobInFlight(): boolean {
    return this.busyJob || this.loading;
  }

  /** Space may be free that no walk has looked for. */
  get owes(): boolean {
    return this.due.owes(this.store);
  }

  // ---- when --------------------------------------------------------------------------------------

  /** A checkpoint was committed; true if its roots were taken over. */
  offer(maps: CommittedMaps): boolean {
    if (this.closed) return false;
    if (this.state === 'idle') {
      if (!this.due.isDue(maps, this.reactor.nowUs)) return false;
      this.begin(maps);
    }
    this.take(maps);
    return true;
  }

  /** Once a tick; `settled`: nothing was applied since the last commit, so that none will come by itself. */
  poll(settled: boolean): void {
    if (this.closed || this.checkpointer.busy) return;
    const { nowUs } = this.reactor;
    const asks = this.state === 'idle' ? settled && this.due.isDue(this.store, nowUs) : this.waitsForCheckpoint;
    if (!asks || nowUs - this.askedUs < this.options.restUs) return;
    this.askedUs = nowUs;
    this.onWanted();
  }

  private begin(maps: CommittedMaps): void {
    this.first = maps;
    this.begunUs = this.reactor.nowUs;
    this.marks = new LayerMarks();
    this.skipped = false;
    this.problem = undefined;
    this.resumeBlock = 0;
    this.state = 'counting';
  }

  private take(maps: CommittedMaps): void {
    this.giveBack();
    this.maps = maps;
    this.waitsForCheckpoint = false;
    if (this.state === 'counting' || this.state === 'punching') this.startSweep();
    this.quiet = false;
    this.reader.whenQuiet(() => {
      if (this.maps !== maps) return;
      this.quiet = true;
      this.schedule(0);
    });
    this.schedule(this.options.pauseUs);
  }

  private startSweep(): void {
    this.placeEnd = 0;
    this.holes?.restart();
    this.marks.nextPlace();
    this.sweep = new MapSweep(this.store.map, this.maps!.roots, this.resumeBlock);
    if (this.state === 'punching') this.skipDone();
  }

  private giveBack(): void {
    this.sweep?.release();
    this.sweep = undefined;
    for (const root of this.maps?.roots ?? []) this.store.map.drop(root);
    this.maps = undefined;
  }

  /** Ends the walk; what it left over, if anything, is a reason for another one. */
  private end(error: IoError | CorruptionError | undefined): void {
    const { nowUs } = this.reactor;
    const failure = error ?? this.problem;
    this.giveBack();
    if (error === undefined) this.walksDone++;
    const leftOver = error !== undefined || this.skipped || (this.holes?.skipped ?? false);
    this.due.ended(error === undefined ? this.first : undefined, leftOver, this.begunUs, nowUs);
    this.lastError = failure === undefined && !this.canPunch ? NO_PUNCH : failure === undefined ? undefined : `space is not given back: ${failure.message}`;
    this.state = 'idle';
    this.waitsForCheckpoint = false;
    this.first = undefined;
    this.holes = undefined;
    this.sizing = undefined;
    this.remover = undefined;
    this.marks = new LayerMarks();
  }

  // ---- steps -------------------------------------------------------------------------------------

  private schedule(delayUs: number): void {
    if (this.timer || this.closed) return;
    this.timer = true;
    this.reactor.after(delayUs, () => {
      this.timer = false;
      this.step();
    });
  }

  private step(): void {
    if (this.closed || this.state === 'idle' || this.busyJob || this.loading) return;
    const { io } = this.reactor;
    const begun = io.nowUs();
    if (this.state !== 'counting' && this.destaging() && this.reactor.nowUs - this.lastStepUs < this.options.waitUs) {
      this.schedule(this.options.pauseUs);
      return;
    }
    this.lastStepUs = this.reactor.nowUs;
    this.stepBegunUs = begun;
    this.budget = this.options.stepUnits;
    const after = this.dispatch();
    const took = io.nowUs() - begun;
    this.steps++;
    this.stepUs += took;
    this.longestStepUs = Math.max(this.longestStepUs, took);
    if (after === After.pause) this.schedule(this.options.pauseUs);
  }

  private dispatch(): AfterStep {
    switch (this.state) {
      case 'idle':
        return After.nothing;
      case 'counting':
        return this.count();
      case 'sizing':
        return this.size();
      case 'deleting':
        return this.quiet ? this.delete() : After.nothing;
      case 'punching':
        return this.quiet ? this.punch() : After.nothing;
      default:
        return unreachable(this.state);
    }
  }

  private advance(): SweepResult {
    const sweep = this.sweep!;
    for (;;) {
      const slice = Math.min(this.budget, SLICE);
      const result = sweep.step(slice, this.marks);
      this.budget -= slice - sweep.budget;
      if (result !== Sweep.more || this.spent) return result;
    }
  }

  /** Budget or time of this step is used up: time, because code that runs for the first time is slow. */
  private get spent(): boolean {
    return this.budget <= 0 || this.reactor.io.nowUs() - this.stepBegunUs > this.options.stepUs;
  }

  private count(): AfterStep {
    while (!this.spent) {
      switch (this.advance()) {
        case Sweep.more:
          return After.pause;
        case Sweep.needed:
          return this.load(this.sweep!.neededNode);
        case Sweep.place:
          this.marks.endPlace();
          this.marks.nextPlace();
          this.resumeBlock = this.sweep!.placeBlock + LEAF_BLOCKS;
          break;
        case Sweep.end:
          this.sweep!.release();
          this.sweep = undefined;
          this.holes = new LayerHoles(this.reactor.io, this.store, this.options.jobBytes);
          this.remover = new LayerRemover(this.reactor, this.store.layers, this.options.jobBytes, this.options.unlinkBytes);
          this.sizing = new LayerSizing(this.reactor.io, this.store, this.marks, this.first!, this.remover, this.canPunch ? this.holes : undefined);
          this.state = 'sizing';
          return After.pause;
      }
    }
    return After.pause;
  }

  /** Decides about each layer: delete, punch, leave. */
  private size(): AfterStep {
    const sizing = this.sizing!;
    while (!this.spent) {
      if (!sizing.next(this.maps!)) {
        this.skipped ||= sizing.skipped;
        this.problem = sizing.problem;
        this.sizing = undefined;
        this.state = 'deleting';
        return After.pause;
      }
      this.budget -= COST_STAT;
    }
    return After.pause;
  }

  private delete(): AfterStep {
    const remover = this.remover!;
    switch (remover.plan(this.budget, this.canPunch)) {
      case Piece.more:
        return After.pause;
      case Piece.job:
        this.submit(remover.table, remover.bytes, remover.doing, (succeeded) => {
          this.layersDeleted += remover.ended(succeeded);
        });
        return After.nothing;
      case Piece.none:
        if (remover.problem !== undefined) {
          this.problem = remover.problem;
          this.skipped ||= mayPass(remover.problem);
        }
        return this.startPunching();
    }
  }

  private startPunching(): AfterStep {
    const holes = this.holes!;
    if (holes.layers === 0) {
      this.end(undefined);
      return After.nothing;
    }
    this.marks = new LayerMarks(new Set(holes.numbers()));
    this.resumeBlock = 0;
    this.state = 'punching';
    this.startSweep();
    return After.pause;
  }

  private punch(): AfterStep {
    const holes = this.holes!;
    holes.clear();
    for (;;) {
      const after = this.placeEnd === 0 ? this.visitPlace() : this.scanPlace();
      if (after === undefined) continue;
      // In this same tick: the checks hold no longer.
      if (holes.table.count === 0) return after;
      const held = [...holes.held];
      this.submit(holes.table, holes.bytes, 'punch holes into layers in', () => punched(held));
      return After.nothing;
    }
  }

  /** Visits the next place where a file has data; undefined: its files can be scanned. */
  private visitPlace(): AfterStep | undefined {
    const sweep = this.sweep!;
    switch (this.advance()) {
      case Sweep.more:
        return After.pause;
      case Sweep.needed:
        return this.holes!.table.count > 0 ? After.pause : this.load(sweep.neededNode);
      case Sweep.place:
        this.placeBlock = sweep.placeBlock;
        this.placeEnd = this.placeBlock + LEAF_BLOCKS;
        return undefined;
      case Sweep.end:
        this.marks.nextPlace();
        this.placeBlock = Infinity;
        this.placeEnd = Infinity;
        return undefined;
    }
  }

  private scanPlace(): AfterStep | undefined {
    const holes = this.holes!;
    const maps = this.maps!;
    const rules = { ...maps, newest: this.checkpointer.captures === maps.capture };
    const slice = Math.min(this.budget, SLICE);
    const result = holes.scan(this.placeBlock, this.placeEnd, this.marks, rules, slice);
    this.budget -= slice - holes.budget;
    this.problem ??= holes.problem;
    switch (result) {
      case Scan.more:
        return holes.full || this.spent ? After.pause : undefined;
      case Scan.missing:
        return holes.table.count > 0 ? After.pause : this.load(holes.missingNode);
      case Scan.stale:
        if (holes.table.count > 0) return After.pause;
        this.waitsForCheckpoint = true;
        return After.nothing;
      case Scan.done:
        break;
    }
    if (this.placeEnd === Infinity) {
      if (holes.table.count > 0) return After.pause;
      this.end(undefined);
      return After.nothing;
    }
    this.resumeBlock = this.placeEnd;
    this.placeEnd = 0;
    this.marks.nextPlace();
    this.skipDone();
    return undefined;
  }

  /** Places where no file has data any more need not be visited. */
  private skipDone(): void {
    this.sweep!.skipTo(Math.floor(this.holes!.start / BLOCK_BYTES));
  }

  // ---- helpers -----------------------------------------------------------------------------------

  /** Punches or unlinks. One job at a time. */
  private submit(table: JobTable, bytes: number, doing: string, ended: (succeeded: boolean) => void): void {
    this.busyJob = true;
    this.reactor.submit(Queue.destage, table, (result) => {
      this.busyJob = false;
      ended(result >= 0);
      if (result >= 0) this.bytesPunched += bytes;
      if (this.closed) return;
      if (-result === Errno.ENOTSUP) this.canPunch = false;
      if (result < 0) this.end(new IoError(-result, doing, this.store.layers.directory));
      else this.schedule(this.options.pauseUs);
    });
  }

  /** Brings a map node into memory and goes on. */
  private load(h: number): AfterStep {
    const { maps } = this;
    // When another checkpoint has come meanwhile, the handle may name another node, or one whose file is gone.
    const still = (): boolean => !this.closed && this.maps === maps;
    this.loading = true;
    loadNode(this.store.map, (bit) => this.checkpointer.file(bit), h, still, (error) => {
      this.loading = false;
      if (error !== undefined && still()) this.end(error);
      else this.schedule(this.options.pauseUs / 8);
    });
    return After.nothing;
  }

  /** Starts nothing more; a job in flight runs out. */
  stop(): void {
    this.closed = true;
  }

  /** Gives everything back; the caller has waited until `jobInFlight` is false. */
  close(): void {
    this.closed = true;
    this.giveBack();
  }
}
