/**
 * What becomes of each layer, once a walk has counted the blocks of it that are
 * referred to: deleted, punched, or left (walker.ts, step 2).
 *
 * Owns: the comparison with what the layers' files have allocated, and what it
 * says of them. Must not know: how blocks are counted, when files are changed.
 */

import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { BLOCK_BYTES } from '../../base/units.js';
import type { Io } from '../../io/io.js';
import type { CommittedMaps } from '../checkpointer.js';
import type { LayerHoles } from './holes.js';
import type { LayerMarks } from './marks.js';
import type { LayerRemover } from './remove.js';
import { allInFile, frozenBefore } from '../layers.js';
import type { Layer } from '../layers.js';
import type { Store } from '../store.js';

/** A file system's own blocks (extents) count as allocated. */
const OVERHEAD = 1 / 256;

export class LayerSizing {
  /** Something was left that a later walk may give back. */
  skipped = false;
  /** The last file that could not be looked at. */
  problem: IoError | CorruptionError | undefined;
  private readonly rows: IterableIterator<Layer>;

  /** `marks` were counted at `first` or later; `remover` and `holes` get what is to be deleted and punched. */
  constructor(
    private readonly io: Io,
    private readonly store: Store,
    private readonly marks: LayerMarks,
    private readonly first: CommittedMaps,
    private readonly remover: LayerRemover,
    /** Undefined: the file system cannot punch. */
    private readonly holes: LayerHoles | undefined,
  ) {
    this.rows = store.layers.all();
  }

  /** Judges the next layer, with one stat at most; false when there is none. `maps`: the newest that the walk looks at. */
  next(maps: CommittedMaps): boolean {
    const next = this.rows.next();
    if (next.done === true) return false;
    this.judge(next.value, maps);
    return true;
  }

  private judge(layer: Layer, maps: CommittedMaps): void {
    const { marks, store } = this;
    const frozen = layer.frozenLsn !== 0;
    if (frozen && !frozenBefore(layer, this.first)) return;
    const inFile = allInFile(layer, maps);
    const blocks = marks.total(layer.number);
    if (frozen && blocks === 0) {
      // Above the low-water mark recovery would look for its writes again, and its file for them.
      if (inFile) this.remover.add(layer);
      else this.skipped = true;
      return;
    }
    if (this.holes === undefined || (!layer.hasFile && !layer.missing)) return;
    try {
      const { allocated } = this.io.stat(store.layers.descriptor(layer));
      // What is referred to and still pending is not in the file.
      const pending = inFile ? 0 : store.pending.blocks;
      if (allocated - (blocks - pending) * BLOCK_BYTES > allocated * OVERHEAD) this.holes.add(layer);
    } catch (error) {
      this.note(error);
    }
  }

  /** A file that cannot be looked at is reported and left; the walk goes on with the others. */
  private note(error: unknown): void {
    if (!(error instanceof IoError) && !(error instanceof CorruptionError)) throw error;
    this.problem = error;
    if (mayPass(error)) this.skipped = true;
  }
}

/** Whether another walk may fare better: a missing file does not come back, nor does damage go. */
export function mayPass(error: IoError | CorruptionError): boolean {
  return error instanceof IoError && error.errno !== Errno.ENOENT;
}
