/**
 * How many blocks each of several trees uses, and how many of them are its own:
 * referred to by no other tree (DESIGN §5, "own/shared sizes").
 *
 * Owns: counting, each distinct leaf once. Must not know: devices' names, when
 * sizes are asked for.
 *
 * At one place (a leaf's 512 blocks) every (layer, block) has an owner: nobody
 * yet, one tree, or several. Memory: 2 KiB per layer that any tree refers to at
 * one place, for the place with the most layers.
 */
import type { BlockMap, MapRoot } from './map/map.js';
import { MapSweep, Sweep } from './map/sweep.js';
import type { LeafVisitor } from './map/sweep.js';
import { Step } from './maptasks.js';
import type { MapTask, StepResult } from './maptasks.js';
import { LEAF_BLOCKS } from './map/nodes.js';

/** Owner of a block that several trees refer to. */
const SEVERAL = 0xffffffff;

/** Counts own blocks from leaves in ascending order. */
class Owners implements LeafVisitor {
  /** Blocks that no other root refers to, per root. */
  readonly own: Float64Array;
  /** Different (layer, block) pairs. */
  stored = 0;
  /** Layer → row, of this place. */
  private readonly rowOf = new Map<number, Uint32Array<ArrayBuffer>>();
  /** Rows to use again. */
  private readonly rows: Uint32Array<ArrayBuffer>[] = [];
  private place = -1;
  private lastLayer = 0;
  private lastRow = new Uint32Array(0);
  private tree = 0;

  constructor(roots: number) {
    this.own = new Float64Array(roots);
  }

  /** LeafVisitor. */
  leaf(firstBlock: number, trees: number, root: number): void {
    if (firstBlock !== this.place) {
      this.place = firstBlock;
      this.rowOf.clear();
      this.lastLayer = 0;
    }
    this.tree = trees === 1 ? root + 1 : SEVERAL;
  }

  /** LeafVisitor. */
  run(layer: number, firstBlock: number, count: number): void {
    const row = this.row(layer);
    const { own, tree } = this;
    const from = firstBlock - this.place;
    for (let block = from; block < from + count; block++) {
      const owner = row[block];
      if (owner === 0) {
        this.stored++;
        row[block] = tree;
        if (tree !== SEVERAL) own[tree - 1]++;
      } else if (owner !== SEVERAL) {
        own[owner - 1]--;
        row[block] = SEVERAL;
      }
    }
  }

  private row(layer: number): Uint32Array {
    if (layer === this.lastLayer) return this.lastRow;
    let row = this.rowOf.get(layer);
    if (row === undefined) {
      const index = this.rowOf.size;
      if (index === this.rows.length) this.rows.push(new Uint32Array(LEAF_BLOCKS));
      row = this.rows[index];
      row.fill(0);
      this.rowOf.set(layer, row);
    }
    this.lastLayer = layer;
    this.lastRow = row;
    return row;
  }
}

/** Blocks of each root, in the order of the roots. */
export interface TreeSizes {
  readonly used: Float64Array;
  readonly own: Float64Array;
  /** Blocks stored for all of them together: each once, whoever shares it. */
  readonly stored: number;
}

export class SizeTask implements MapTask {
  readonly optional = false;
  neededNode = 0;
  private readonly sweep: MapSweep;
  private readonly owners: Owners;

  /** `roots`: shares that pass over to the task. `done` gets the sizes, or why there are none. */
  constructor(map: BlockMap, readonly roots: readonly MapRoot[], private readonly done: (sizes: TreeSizes | string) => void) {
    this.sweep = new MapSweep(map, roots, 0);
    this.owners = new Owners(roots.length);
  }

  /** Nodes looked at. */
  get progress(): number {
    return this.sweep.visited;
  }

  step(budget: number): StepResult {
    for (let left = budget; left > 0; left = this.sweep.budget) {
      switch (this.sweep.step(left, this.owners)) {
        case Sweep.more:
          return Step.more;
        case Sweep.needed:
          this.neededNode = this.sweep.neededNode;
          return Step.needed;
        case Sweep.place:
          break;
        case Sweep.end:
          return Step.end;
      }
    }
    return Step.more;
  }

  ended(problem: string | undefined): void {
    this.sweep.release();
    this.done(problem ?? { used: this.sweep.used, own: this.owners.own, stored: this.owners.stored });
  }
}
