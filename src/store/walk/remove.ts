/**
 * Removing layers that nothing refers to, as one job at a time: large files are
 * emptied piece by piece first, because a file system takes long to free much at
 * once; then files are unlinked by a helper, because a change of a directory may
 * wait for the file system's log; then the layers are dropped from the table.
 *
 * Owns: what one job does. Must not know: which layers these are, or when.
 */
import { Errno, IoError } from '../../base/errors.js';
import { JobOp, JobTable } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import type { Layer, LayerTable } from '../layers.js';

export const Piece = {
  /** No layer is left. */
  none: 0,
  /** The budget is used up. */
  more: 1,
  /** `table` holds a job; submit it and call `ended`. */
  job: 2,
} as const;
export type PieceResult = (typeof Piece)[keyof typeof Piece];

const ROWS = 16;
/** Cost of looking at one file in the units of a step's budget (about 0.1 µs each). */
const COST_LOOK = 100;

export class LayerRemover {
  readonly table = new JobTable(ROWS);
  /** Bytes that the job punches. */
  bytes = 0;
  doing = '';
  /** A file could not be looked at. */
  problem: IoError | undefined;

  private readonly doomed: Layer[] = [];
  /** Small enough to be unlinked. */
  private dying: Layer[] = [];
  /** What the job in flight is about. */
  private drained: Layer | undefined;
  private unlinked: Layer[] = [];
  private paths = -1;

  constructor(private readonly reactor: Reactor, private readonly layers: LayerTable, private readonly jobBytes: number, private readonly smallBytes: number) {}

  /** `layer` is frozen and nothing refers to it: it is to be removed. */
  add(layer: Layer): void {
    this.doomed.push(layer);
  }

  /** Prepares the next job. */
  plan(budget: number, canPunch: boolean): PieceResult {
    this.table.clear();
    this.bytes = 0;
    for (let left = budget; this.doomed.length > 0 && this.dying.length < ROWS; left -= COST_LOOK) {
      if (left <= 0) return Piece.more;
      const layer = this.doomed[this.doomed.length - 1];
      try {
        if (canPunch && this.drain(layer)) return Piece.job;
        this.dying.push(layer);
      } catch (error) {
        if (!(error instanceof IoError)) throw error;
        this.problem = error;
      }
      this.doomed.pop();
    }
    return this.dying.length === 0 ? Piece.none : this.unlink();
  }

  /** The job has ended; returns how many layers are gone. */
  ended(succeeded: boolean): number {
    if (this.drained !== undefined) this.drained.holds--;
    this.drained = undefined;
    if (this.paths >= 0) this.reactor.arena.release(this.paths);
    this.paths = -1;
    const { unlinked } = this;
    this.unlinked = [];
    if (!succeeded) return 0;
    for (const layer of unlinked) this.layers.forget(layer.number);
    return unlinked.length;
  }

  /** A job that punches a part of a file with more than `smallBytes`; false when it has no more. Throws IoError. */
  private drain(layer: Layer): boolean {
    const { io } = this.reactor;
    if (layer.missing) return false;
    let fd: number;
    try {
      fd = this.layers.descriptor(layer);
    } catch (error) {
      // Unlinked by a job that failed later, or by a person: only the row is left.
      if (error instanceof IoError && error.errno === Errno.ENOENT) return false;
      throw error;
    }
    if (fd < 0 || io.stat(fd).allocated <= this.smallBytes) return false;
    for (let at = 0; this.bytes < this.jobBytes && this.table.count < ROWS; ) {
      const data = io.nextData(fd, at);
      if (data === undefined) break;
      const length = Math.min(data.end - data.start, this.jobBytes - this.bytes);
      this.table.add(JobOp.punch, fd, 0, length, data.start);
      this.bytes += length;
      at = data.start + length;
    }
    if (this.bytes === 0) return false;
    this.doing = 'punch holes into layers in';
    this.drained = layer;
    layer.holds++;
    return true;
  }

  /** A job that unlinks the dying; layers that have no file go at once. */
  private unlink(): PieceResult {
    const { layers } = this;
    const { arena } = this.reactor;
    const paths = this.dying.map((layer) => Buffer.from(`${layers.path(layer)}\0`));
    this.paths = arena.alloc(paths.reduce((sum, path) => sum + path.length, 0));
    // No memory just now: the next step tries again.
    if (this.paths < 0) return Piece.more;
    let at = this.paths;
    for (const path of paths) {
      arena.u8.set(path, at);
      this.table.add(JobOp.unlink, -1, at, path.length, 0);
      at += path.length;
    }
    for (const layer of this.dying) layers.retire(layer);
    this.doing = 'unlink layers in';
    this.unlinked = this.dying;
    this.dying = [];
    return Piece.job;
  }
}
