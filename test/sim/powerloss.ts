/**
 * One seeded run: random work on one node, crashes at random moments (again
 * during recovery), faults of the disk, and after every start the whole content
 * against the model.
 *
 * Owns: what a seed means. A failure throws with the seed and what went before.
 */
import { KIB, MIB } from '../../src/base/units.js';
import { SimHost, SMALL } from './cluster.js';
import type { Sizes } from './cluster.js';
import type { Random } from './random.js';
import { NO_FAULTS } from './faults.js';
import type { FaultRates } from './faults.js';
import { MIXED, Workload } from './workload.js';
import { World } from './world.js';

export interface RunResult {
  readonly seed: number;
  readonly starts: number;
  readonly powerLosses: number;
  readonly kills: number;
  readonly checkpoints: number;
  readonly layerBlocks: number;
  readonly steps: number;
  readonly operations: number;
  readonly refusals: number;
  readonly virtualUs: number;
  readonly answers: ReadonlyMap<number, number>;
}

function drawSegments(random: Random): { segmentBytes: number; segments: number } {
  return { segmentBytes: random.pick([256 * KIB, 256 * KIB, 512 * KIB, MIB]), segments: random.between(4, 8) };
}

function drawSizes(random: Random): Sizes {
  return {
    ...SMALL,
    ...drawSegments(random),
    syncBytes: random.pick([32 * KIB, 256 * KIB, 4 * MIB]),
    syncMs: random.pick([1, 5, 50]),
    checkpointBytes: random.pick([128 * KIB, 512 * KIB, 4 * MIB]),
    checkpointSeconds: random.pick([0.01, 0.05, 0.5]),
    mapMemory: random.pick([16 * KIB, 64 * KIB, 16 * MIB]),
    maxBatchPayload: random.pick([32 * KIB, 64 * KIB, 128 * KIB]),
    destageFraction: random.pick([0.02, 0.1, 0.3]),
    destageUs: random.pick([1_000, 10_000, 200_000]),
    compactSlackBytes: random.pick([4 * KIB, 64 * KIB]),
  };
}

function drawFaults(random: Random): FaultRates {
  const rates = { ...NO_FAULTS, coldRead: random.pick([0, 0.1, 0.5]) };
  if (random.chance(0.3)) rates.stall = 0.05;
  if (random.chance(0.25)) {
    rates.syncError = random.pick([0.005, 0.05]);
    rates.lossPerPage = random.pick([-1, 0.3, 1]);
  }
  if (random.chance(0.15)) rates.writeError = random.pick([0.002, 0.02]);
  if (random.chance(0.1)) rates.readError = 0.01;
  if (random.chance(0.15)) rates.noSpace = random.pick([0.005, 0.05]);
  return rates;
}

/** Cycles may end before much was asked for. */
const MAX_CYCLES = 40;

export class PowerLossRun {
  private readonly world: World;
  private readonly random: Random;
  /** Decides about changes of the configuration between two starts. */
  private readonly operator: Random;
  readonly host: SimHost;
  private readonly workload: Workload;
  private powerLosses = 0;
  private kills = 0;
  private answers = new Map<number, number>();
  private faults: FaultRates = { ...NO_FAULTS };

  /**
   * `steps`: at least so many things are asked for; fewer when the disk fails for good. `inMemory`: the journal is
   * volatile; then power is lost only after a stop in order: what an unclean one leaves is another test's.
   */
  constructor(readonly seed: number, private readonly steps = 0, private readonly inMemory = false) {
    this.world = new World({ seed });
    this.random = this.world.random.fork(100);
    this.operator = this.world.random.fork(102);
    this.host = new SimHost(this.world, 'node', drawSizes(this.random));
    this.workload = new Workload(this.host, this.random.fork(101), {
      ...MIXED, maxInFlight: this.random.pick([1, 4, 16, 48]), operations: this.random.pick([0.1, 0.25, 0.5]),
      largestWrite: this.random.pick([96 * KIB, 96 * KIB, 96 * KIB, 2 * MIB]),
    });
    if (inMemory) this.host.volatile();
    const crashed = this.host.node.onCrash!;
    this.host.node.onCrash = (kind) => {
      if (kind === 'power') this.powerLosses++;
      else this.kills++;
      for (const [errno, count] of this.host.client?.answers ?? []) this.answers.set(errno, (this.answers.get(errno) ?? 0) + count);
      crashed(kind);
      this.workload.forget();
    };
  }

  /** Throws when anything is lost, torn or wrong. */
  run(): RunResult {
    const cycles = this.random.between(2, 5);
    try {
      for (let cycle = 0; cycle < cycles || (this.workload.steps < this.steps && cycle < MAX_CYCLES); cycle++) {
        this.setFaults(drawFaults(this.random));
        if (!this.startThroughCrashes()) continue;
        if (this.random.chance(0.4)) this.verify();
        if (this.host.alive) this.workUntilCrash();
      }
      this.finish();
    } catch (error) {
      const tail = this.host.log.slice(-60).join('\n');
      throw new Error(`seed ${this.seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n--- ${this.host.standing}\n--- log ---\n${tail}`, { cause: error });
    } finally {
      this.world.dispose();
    }
    return {
      seed: this.seed, starts: this.host.node.starts, powerLosses: this.powerLosses, kills: this.kills, checkpoints: this.host.checkpointsSeen,
      layerBlocks: this.host.layerBlocksSeen, steps: this.workload.steps, operations: this.workload.operations, refusals: this.host.asked.refusals, virtualUs: this.world.clock.now, answers: this.answers,
    };
  }

  private setFaults(rates: FaultRates): void {
    this.faults = rates;
    this.host.node.disk.faults.rates = { ...rates };
  }

  private crash(): void {
    this.host.crash(this.crashKind());
  }

  private crashKind(): 'power' | 'kill' {
    return this.random.chance(0.7) && !this.inMemory ? 'power' : 'kill';
  }

  /** Starts, possibly with crashes and faults on the way; true when the group serves. */
  private startThroughCrashes(): boolean {
    const { host, random } = this;
    for (let attempt = 0; attempt < 6; attempt++) {
      if (this.operator.chance(0.25)) host.sizes = { ...host.sizes, ...drawSegments(this.operator) };
      if (attempt > 2) this.setFaults({ ...NO_FAULTS });
      host.node.fuseKind = this.crashKind();
      host.node.disk.faults.fuse = random.chance(0.3) ? random.between(1, 40) : 0;
      const ended = host.start();
      host.node.disk.faults.fuse = 0;
      if (!ended) continue;
      if (host.problem === undefined && host.group.role === 'primary') return true;
      host.say(`does not serve: ${host.problem ?? host.group.roleReason}`);
      if (!this.faulty) throw new Error(`the group cannot be opened although nothing is broken: ${host.problem ?? host.group.roleReason}`);
      this.crash();
    }
    return false;
  }

  private get faulty(): boolean {
    const f = this.faults;
    return f.syncError > 0 || f.writeError > 0 || f.readError > 0 || f.noSpace > 0;
  }

  /** With faults off: a read that fails says nothing about what is stored. */
  private verify(): void {
    const { host } = this;
    host.node.disk.faults.rates = { ...NO_FAULTS, coldRead: this.faults.coldRead };
    this.workload.verifyAll();
    if (host.alive) host.node.disk.faults.rates = { ...this.faults };
  }

  private workUntilCrash(): void {
    const { host, random, world, workload } = this;
    let crashed = false;
    const starts = host.node.starts;
    const here = (): boolean => host.alive && host.node.starts === starts;
    if (random.chance(0.3)) {
      host.node.fuseKind = this.crashKind();
      host.node.disk.faults.fuse = random.between(1, 400);
    } else {
      world.after(random.logUniform(500, 400_000), () => {
        if (!here()) return;
        crashed = true;
        this.crash();
      });
    }
    let steps = random.between(5, 150);
    // The last cycle does what is left, or a little more.
    if (this.steps > workload.steps) steps = Math.min(steps, this.steps - workload.steps + 5);
    const pace = random.pick([20, 200, 2000]);
    for (let i = 0; i < steps && here() && !crashed; i++) {
      if (host.group.role !== 'primary') break;
      host.node.attempt(() => workload.step());
      this.pass(random.unit() * pace, here);
      if (workload.full) world.run(() => !here() || !workload.full || host.group.role !== 'primary', { us: 30e6 });
      if (random.chance(0.02)) this.settle(here);
    }
    if (!here()) return;
    if (host.group.role === 'primary' && random.chance(0.3)) this.settle(here);
    if (here() && random.chance(0.2)) this.stopCleanly(here);
    if (here()) this.crash();
  }

  private pass(us: number, here: () => boolean): void {
    const over = this.world.elapsed(us);
    this.world.run(() => over() || !here());
  }

  /** Waits until everything under way was answered. */
  private settle(here: () => boolean): void {
    this.world.run(() => !here() || this.workload.idle || this.host.group.role !== 'primary', { us: 60e6 });
  }

  private stopCleanly(here: () => boolean): void {
    const { host, world } = this;
    let closed = false;
    host.node.attempt(() => host.path!.close(() => {
      closed = true;
    }));
    host.node.poke();
    world.run(() => closed || !here(), { us: 60e6 });
    if (!here()) return;
    host.stoppedCleanly();
    if (this.inMemory && host.stopNoted && this.random.chance(0.6)) {
      this.powerLosses++;
      host.crash('power');
    }
  }

  /** Without faults from here on: everything is there, also when it comes from the layers alone. */
  private finish(): void {
    const { host } = this;
    this.setFaults({ ...NO_FAULTS });
    host.node.disk.faults.fuse = 0;
    if (!host.alive && !host.start()) throw new Error('crashed without a cause');
    if (host.problem !== undefined || host.group.role !== 'primary') throw new Error(`the group cannot be opened although nothing is broken: ${host.problem ?? host.group.roleReason}`);
    this.verify();
    const flushed = host.command({ op: 'flush', group: 'g', upTo: 'checkpoint' });
    this.world.run(() => flushed.ended, { us: 60e6 });
    if (flushed.error !== undefined) throw flushed.error as Error;
    this.verify();
    host.crash(this.inMemory ? 'kill' : 'power');
    if (!host.start()) throw new Error('crashed without a cause');
    this.verify();
    this.stopCleanly(() => host.alive);
    if (!host.start()) throw new Error('crashed without a cause');
    this.verify();
  }
}
