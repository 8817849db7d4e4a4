/**
 * Work on maps that runs beside everything else: counting sizes, comparing two
 * states of a device (DESIGN §4, §5).
 *
 * Owns: the order of the tasks, their steps, the map nodes that they need, and
 * the roots that they look at. Must not know: what a task finds out.
 *
 * The roots are shares that nobody changes. They are in `Store.held` as long as a
 * task looks at them, because a compaction of the map file forgets where nodes
 * lie that no root it was told of reaches. What they refer to is kept in memory
 * only as far as the limit of map memory allows: pages of theirs go to the disk
 * and come back like any other.
 *
 * A task whose roots hold layers that are deleted meanwhile goes on: it compares
 * numbers of layers, and these are never used again.
 */
import { assert, unreachable } from '../base/assert.js';
import type { Reactor } from '../io/reactor.js';
import type { BlockMap, MapRoot } from './map/map.js';
import type { MapFile } from './mapfile.js';
import { loadNode } from './nodeload.js';

/** How a step of a task ended. */
export const Step = {
  more: 0,
  /** `neededNode` has to be loaded first. */
  needed: 1,
  end: 2,
} as const;
export type StepResult = (typeof Step)[keyof typeof Step];

export interface MapTask {
  /** Shares, given back by MapTasks when the task has ended. */
  readonly roots: readonly MapRoot[];
  /** Not worth memory: cut off when map memory is far above its limit. */
  readonly optional: boolean;
  neededNode: number;
  /** Grows with every node that is done with. */
  readonly progress: number;
  /** Looks at about `budget` nodes: 128 must take well below 0.1 ms. */
  step(budget: number): StepResult;
  /** Last call, exactly once, also when it was cut off: then `problem` says why. The roots are still there. */
  ended(problem: string | undefined): void;
}

export interface MapTaskOptions {
  /** Between two steps, microseconds. */
  readonly pauseUs: number;
  /** A step ends after this, microseconds ... */
  readonly stepUs: number;
  /** ... or after so many nodes. */
  readonly stepUnits: number;
}

export const DEFAULT_MAP_TASKS: MapTaskOptions = { pauseUs: 1000, stepUs: 300, stepUnits: 2500 };

/** The clock is looked at after so many units. */
const SLICE = 128;
/** Handles looked at per step to make room while map memory is above its limit. */
const EVICT_STEPS = 512;
/** Optional tasks are cut off when map memory is above twice its limit and this. */
const SLACK_BYTES = 1024 * 1024;
/** Nodes loaded without any progress: they are paged out again before all that are needed together are there. */
const LOADS_IN_VAIN = 500;
/** Tasks at a time; more are refused. */
const MAX_MAP_TASKS = 16;

/** What MapTasks needs of a store. */
export interface MapHolder {
  readonly map: BlockMap;
  readonly held: Set<MapRoot>;
}

export class MapTasks {
  private readonly tasks: MapTask[] = [];
  private timer = false;
  private loading = false;
  /** Loads since the task at the head of the line had this progress. */
  private loads = 0;
  private loadedAt = -1;
  private closed = false;
  /** Steps since start, the time that they took, and the longest one. */
  steps = 0;
  stepUs = 0;
  longestStepUs = 0;
  /** The last task that ended found a map node that cannot be read. */
  lastError: string | undefined;

  constructor(
    private readonly reactor: Reactor,
    private readonly store: MapHolder,
    private readonly mapFile: (bit: number) => MapFile,
    private readonly memoryLimit: number,
    private readonly options: MapTaskOptions,
  ) {}

  /** Tasks waiting or under way. */
  get count(): number {
    return this.tasks.length;
  }

  /** No task is taken now. */
  get full(): boolean {
    return this.closed || this.tasks.length >= MAX_MAP_TASKS;
  }

  /** A helper job is in flight. */
  get jobInFlight(): boolean {
    return this.loading;
  }

  /** Takes ownership of `task.roots`. Not when `full`. */
  add(task: MapTask): void {
    assert(!this.full, 'no room for another task over the maps');
    for (const root of task.roots) this.store.held.add(root);
    this.tasks.push(task);
    this.schedule(this.options.pauseUs);
  }

  private schedule(delayUs: number): void {
    if (this.timer || this.closed) return;
    this.timer = true;
    this.reactor.after(delayUs, () => {
      this.timer = false;
      this.step();
    });
  }

  /** One step of the first task, which then goes to the end of the line; `loaded`: a node came for it just now. */
  private step(loaded = false): void {
    if (this.closed || this.loading || this.tasks.length === 0) return;
    const { io } = this.reactor;
    const begun = io.nowUs();
    const task = this.tasks.shift()!;
    if (task.optional && this.store.map.memoryBytes > 2 * this.memoryLimit + SLACK_BYTES) {
      this.finish(task, 'there is no memory for it');
      this.schedule(this.options.pauseUs);
      return;
    }
    // Never between a step and the load that it asks for: the node's parent may go, and its handle with it.
    if (!loaded) this.makeRoom();
    let result: StepResult = Step.more;
    for (let left = this.options.stepUnits; left > 0 && result === Step.more && io.nowUs() - begun < this.options.stepUs; left -= SLICE) {
      result = task.step(Math.min(left, SLICE));
    }
    const took = io.nowUs() - begun;
    this.steps++;
    this.stepUs += took;
    this.longestStepUs = Math.max(this.longestStepUs, took);
    switch (result) {
      case Step.more:
        this.tasks.push(task);
        this.schedule(this.options.pauseUs);
        return;
      case Step.needed:
        // At the head of the line: what was loaded must not be paged out again before it was looked at.
        this.tasks.unshift(task);
        if (loaded) this.schedule(this.options.pauseUs / 8);
        else this.load(task);
        return;
      case Step.end:
        this.finish(task, undefined);
        this.lastError = undefined;
        if (this.tasks.length > 0) this.schedule(this.options.pauseUs);
        return;
      default:
        unreachable(result);
    }
  }

  /** What was loaded makes others go; a checkpoint that makes dirty nodes clean is the group's affair. */
  private makeRoom(): void {
    const { map } = this.store;
    if (map.memoryBytes > this.memoryLimit) map.evict(this.memoryLimit, EVICT_STEPS);
  }

  /** Loads what the task at the head of the line needs, and goes on with it. */
  private load(task: MapTask): void {
    this.loads = this.loadedAt === task.progress ? this.loads + 1 : 0;
    this.loadedAt = task.progress;
    if (this.loads > LOADS_IN_VAIN) {
      this.giveUp('the memory for maps is too small: nodes go to the disk before they were looked at');
      return;
    }
    this.loading = true;
    loadNode(this.store.map, this.mapFile, task.neededNode, () => !this.closed, (error) => {
      this.loading = false;
      if (this.closed) this.endAll();
      else if (error !== undefined) this.giveUp(error.message, error.message);
      else this.step(true);
    });
  }

  private giveUp(problem: string, damage?: string): void {
    this.finish(this.tasks.shift()!, problem);
    this.lastError = damage;
    this.schedule(this.options.pauseUs);
  }

  private finish(task: MapTask, problem: string | undefined): void {
    task.ended(problem);
    for (const root of task.roots) {
      this.store.held.delete(root);
      this.store.map.drop(root);
    }
  }

  private endAll(): void {
    for (const task of this.tasks.splice(0)) this.finish(task, 'the group was stopped, or taken back to an earlier state');
  }

  /** Cuts off what is under way, as soon as a read in flight has ended. */
  stop(): void {
    this.closed = true;
    if (!this.loading) this.endAll();
  }

  /** The caller has waited until `jobInFlight` is false: no root is held any more. */
  close(): void {
    assert(!this.loading, 'tasks over the maps are closed with a read in flight');
    this.stop();
  }
}
