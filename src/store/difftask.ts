/**
 * How many blocks differ between states of devices, counted beside everything
 * else (maptasks.ts).
 *
 * Owns: the place where the count stands. Must not know: what the states are.
 */
import type { BlockMap, MapRoot } from './map/map.js';
import { MapDiff } from './map/diff.js';
import { Step } from './maptasks.js';
import type { MapTask, StepResult } from './maptasks.js';

/** Fewer nodes might not get below the inner ones that lead to where the count stands. */
const BUDGET_MIN = 16;

/** Two states of one device: shares. */
export interface StatePair {
  readonly before: MapRoot;
  readonly after: MapRoot;
}

export class DiffTask implements MapTask {
  readonly optional = true;
  readonly roots: readonly MapRoot[];
  neededNode = 0;
  progress = 0;
  private index = 0;
  private diff: MapDiff | undefined;
  private block = 0;
  private blocks = 0;
  private readonly count = (_first: number, count: number): void => {
    this.blocks += count;
  };

  /** The shares pass over to the task. `done` gets the blocks whose entries differ in all pairs together, or undefined: cut off. */
  constructor(private readonly map: BlockMap, private readonly pairs: readonly StatePair[], private readonly done: (blocks: number | undefined) => void) {
    this.roots = pairs.flatMap(({ before, after }) => [before, after]);
  }

  step(budget: number): StepResult {
    if (this.index === this.pairs.length) return Step.end;
    const { before, after } = this.pairs[this.index];
    const end = Math.max(before.sizeBlocks, after.sizeBlocks);
    this.diff ??= new MapDiff(this.map, before, after);
    const from = this.block;
    this.block = this.diff.run(this.block, end, this.count, Math.max(budget, BUDGET_MIN));
    this.progress += this.block - from;
    if (this.block === end) {
      this.index++;
      this.block = 0;
      this.diff = undefined;
      return Step.more;
    }
    this.neededNode = this.diff.needed;
    return this.neededNode === 0 ? Step.more : Step.needed;
  }

  ended(problem: string | undefined): void {
    this.done(problem === undefined ? this.blocks : undefined);
  }
}
