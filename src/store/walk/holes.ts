/**
 * What of the layers' files nothing refers to any more, as rows of one punch job
 * at a time (DESIGN §5).
 *
 * Owns: a cursor over the allocated ranges of every file that is looked at, and
 * the checks that hold at the instant of issue. Must not know: where marks come
 * from, when a job may run.
 *
 *     layer                        a block that the checkpoint C does not refer to is punched if
 *     frozen, all of it destaged   (nothing else: it can never be referred to again)
 *     frozen before C              nothing is pending for it; else a destage write would fill it again
 *     current                      nothing is pending, the live map does not have it, and no checkpoint
 *                                  younger than C was captured, for that one may refer to it
 *     frozen after C               never: whoever shares it since is not known here
 *     written through just now     never: its map entry is still to come; and no such write begins during the punch
 *
 * Rows must be submitted in the same tick in which they were made: a write that
 * comes later is destaged by a job behind this one in the same FIFO.
 */
import { IoError } from '../../base/errors.js';
import { BLOCK_BYTES } from '../../base/units.js';
import { JobOp, JobTable } from '../../io/io.js';
import type { Io } from '../../io/io.js';
import type { LayerMarks } from './marks.js';
import { allInFile, frozenBefore } from '../layers.js';
import type { Cut, Layer } from '../layers.js';
import { LEAF_BLOCKS } from '../map/nodes.js';
import type { Store } from '../store.js';

/** The checkpoint that decides, and what is known beside it. */
export interface HoleRules extends Cut {
  /** Whether no younger checkpoint was captured, be it committed, under way or failed. */
  readonly newest: boolean;
}

/** How `scan` ended. */
export const Scan = {
  /** All allocated ranges below the end of the place were looked at. */
  done: 0,
  /** The budget is used up, or the job is full. */
  more: 1,
  /** `missing` has to be loaded first. */
  missing: 2,
  /** A checkpoint of now is needed to go on. */
  stale: 3,
} as const;
export type ScanResult = (typeof Scan)[keyof typeof Scan];

/** A file under examination: its next allocated range, bytes; `start` is Infinity when there is none. */
interface Cursor {
  readonly number: number;
  start: number;
  end: number;
}

const JOB_ROWS = 64;
/** Costs in the units of a step's budget (about 0.1 µs each). */
const COST_SEEK = 24;
const CURSORS_PER_UNIT = 32;

/** The job with the rows of these layers has ended. */
export function punched(held: readonly Layer[]): void {
  for (const layer of held) {
    layer.holds--;
    layer.punching--;
  }
}

export class LayerHoles {
  readonly table = new JobTable(JOB_ROWS);
  /** Bytes and layers of the rows in `table`; the layers are held. */
  bytes = 0;
  readonly held: Layer[] = [];
  /** After `missing`: a map node without body. */
  missingNode = 0;
  /** Something was left that a later walk can take. */
  skipped = false;
  /** A file could not be looked at. */
  problem: IoError | undefined;
  /** Units left of the budget of the last scan. */
  budget = 0;

  private readonly cursors: Cursor[] = [];
  private index = 0;
  private readonly live = new Uint32Array(LEAF_BLOCKS);
  private rowLayer: Layer | undefined;
  private fd = -1;

  constructor(private readonly io: Io, private readonly store: Store, private readonly jobBytes: number) {}

  /** Adds a layer to be looked at, from its beginning. */
  add(layer: Layer): void {
    const cursor = { number: layer.number, start: 0, end: 0 };
    this.cursors.push(cursor);
    this.seek(cursor, layer);
  }

  /** How many files are looked at. */
  get layers(): number {
    return this.cursors.length;
  }

  /** Numbers of the layers that are looked at. */
  *numbers(): Generator<number> {
    for (const cursor of this.cursors) yield cursor.number;
  }

  /** First byte of any file that was not looked at; Infinity at the end. */
  get start(): number {
    let lowest = Infinity;
    for (const cursor of this.cursors) lowest = Math.min(lowest, cursor.start);
    return lowest;
  }

  /** The job has no room for more. */
  get full(): boolean {
    return this.bytes >= this.jobBytes || this.table.count >= JOB_ROWS - 1;
  }

  /** Empties the table for the next job. */
  clear(): void {
    this.table.clear();
    this.bytes = 0;
    this.held.length = 0;
    this.rowLayer = undefined;
  }

  /** The scan of the present place begins again. */
  restart(): void {
    this.index = 0;
  }

  /**
   * Looks at allocated ranges that end below block `endBlock`: what `marks` has
   * at `placeBlock` is referred to, and nothing below or between places is.
   */
  scan(placeBlock: number, endBlock: number, marks: LayerMarks, rules: HoleRules, budget: number): ScanResult {
    this.budget = budget;
    const end = endBlock * BLOCK_BYTES;
    while (this.index < this.cursors.length) {
      const cursor = this.cursors[this.index];
      if (cursor.start < end) {
        const result = this.scanFile(cursor, placeBlock, end, marks, rules);
        if (result !== Scan.done) return result;
      }
      this.index++;
      if (this.index % CURSORS_PER_UNIT === 0 && --this.budget <= 0 && this.index < this.cursors.length) return Scan.more;
    }
    this.index = 0;
    return Scan.done;
  }

  private scanFile(cursor: Cursor, placeBlock: number, end: number, marks: LayerMarks, rules: HoleRules): ScanResult {
    const layer = this.store.layers.find(cursor.number);
    if (layer === undefined || (layer.frozenLsn !== 0 && !frozenBefore(layer, rules)) || layer.writing > 0) {
      if (layer !== undefined) this.skipped = true;
      cursor.start = Infinity;
      return Scan.done;
    }
    const settled = allInFile(layer, rules);
    while (cursor.start < end) {
      if (this.budget <= 0 || this.full) return Scan.more;
      if (layer.frozenLsn === 0 && !rules.newest) return Scan.stale;
      if (!this.openFile(cursor, layer)) return Scan.done;
      const place = placeBlock * BLOCK_BYTES;
      const from = cursor.start;
      let to = Math.min(cursor.end, end);
      if (from < place) to = Math.min(to, place);
      // Below the place nothing is marked: as much at once as a job may have, unless each block must be checked.
      to = Math.min(to, settled && from < place ? from + this.jobBytes - this.bytes : from + LEAF_BLOCKS * BLOCK_BYTES);
      const result = this.takeRange(layer, from, to, placeBlock, marks, settled);
      if (result !== Scan.done) return result;
      cursor.start = to;
      if (to >= cursor.end) this.seek(cursor, layer);
    }
    return Scan.done;
  }

  /** Adds rows for what of [from, to) of the layer's file nothing refers to. */
  private takeRange(layer: Layer, from: number, to: number, placeBlock: number, marks: LayerMarks, settled: boolean): ScanResult {
    if (settled && to <= placeBlock * BLOCK_BYTES) {
      this.budget--;
      this.row(layer, from, to);
      return Scan.done;
    }
    const first = Math.floor(from / BLOCK_BYTES);
    const last = Math.ceil(to / BLOCK_BYTES);
    if (layer.frozenLsn === 0 && !this.resolveLive(layer, first, last - first)) return Scan.missing;
    this.budget -= settled ? (last - first) >> 3 : last - first;
    let start = -1;
    for (let block = first; block < last; block++) {
      const garbage = this.isGarbage(layer, block, first, placeBlock, marks, settled);
      if (garbage && start < 0) start = block;
      if (!garbage && start >= 0) {
        this.row(layer, start * BLOCK_BYTES, block * BLOCK_BYTES);
        start = -1;
      }
    }
    if (start >= 0) this.row(layer, start * BLOCK_BYTES, last * BLOCK_BYTES);
    return Scan.done;
  }

  private isGarbage(layer: Layer, block: number, first: number, placeBlock: number, marks: LayerMarks, settled: boolean): boolean {
    if (block >= placeBlock && marks.isMarked(layer.number, block - placeBlock)) return false;
    if (settled) return true;
    if (layer.frozenLsn === 0 && this.live[block - first] === layer.number) return false;
    if (this.store.pending.get(layer.number, block) === 0) return true;
    this.skipped = true;
    return false;
  }

  /** What the device of a current layer has now, into `live`; false when a node must be loaded. */
  private resolveLive(layer: Layer, first: number, count: number): boolean {
    const { store, live } = this;
    const device = store.find(layer.device);
    const size = device === undefined || device.layer !== layer.number ? 0 : device.root.sizeBlocks;
    const known = Math.max(0, Math.min(count, size - first));
    live.fill(0, known, count);
    this.missingNode = known === 0 ? 0 : store.map.resolve(device!.root, first, known, live, 0);
    return this.missingNode === 0;
  }

  private row(layer: Layer, from: number, to: number): void {
    const { table } = this;
    this.bytes += to - from;
    if (this.rowLayer === layer) {
      const at = (table.count - 1) * 5;
      if (table.rows[at + 4] + table.rows[at + 3] === from) {
        table.rows[at + 3] += to - from;
        return;
      }
    }
    if (this.held[this.held.length - 1] !== layer) {
      this.held.push(layer);
      layer.holds++;
      layer.punching++;
    }
    table.add(JobOp.punch, this.fd, 0, to - from, from);
    this.rowLayer = layer;
  }

  /** Makes sure that `fd` is the layer's; false when its file cannot be looked at. */
  private openFile(cursor: Cursor, layer: Layer): boolean {
    try {
      this.fd = this.store.layers.descriptor(layer);
      if (this.fd >= 0) return true;
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.problem = error;
    }
    cursor.start = Infinity;
    return false;
  }

  private seek(cursor: Cursor, layer: Layer): void {
    this.budget -= COST_SEEK;
    if (!this.openFile(cursor, layer)) return;
    try {
      const data = this.io.nextData(this.fd, cursor.end);
      cursor.start = data === undefined ? Infinity : data.start;
      cursor.end = data === undefined ? Infinity : data.end;
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.problem = error;
      cursor.start = Infinity;
    }
  }
}
