/**
 * A simulation: some nodes, one network, one clock, one seed.
 *
 * Owns: which node runs when, the advance of time, crash and restart of nodes.
 * Must not know: what a node does in its step.
 *
 *     const world = new World({ seed });
 *     const node = world.node('primary');
 *     const reactor = new Reactor(node.start());
 *     node.step = () => reactor.step(-1);      // never 0: the timeout says when the node wants to run again
 *     world.run(() => done, { steps: 100_000 });
 */
import { SimClock, Trace } from './clock.js';
import { SimDisk, type DiskOptions } from './disk.js';
import { SimCrash } from './faults.js';
import { SimIo, type Checksums } from './io.js';
import { SimNetwork } from './network.js';
import { Random } from './random.js';

export interface WorldOptions {
  readonly seed: number;
}

export interface NodeOptions extends DiskOptions {
  /** Arena in bytes (default 4 MiB), or one to use (it is zeroed at every start). */
  readonly memory?: number | ArrayBuffer;
  readonly checksums?: Checksums;
}

export interface RunLimits {
  /** Node steps. */
  readonly steps?: number;
  /** Virtual microseconds from the start of this run. */
  readonly us?: number;
}

export type CrashKind = 'kill' | 'power';

/** Empty polls (timeout 0) in a row after which a node is taken to wait all the same. */
const POLLS = 8;
const POLL_US = 1000;

/** One node: a disk that outlives its processes, and the process that runs now. */
export class SimNode {
  readonly disk: SimDisk;
  /** Runs the process once: a reactor step that ends in at most one wait(). Undefined: the node is idle. */
  step: (() => unknown) | undefined;
  /** How the fuse of `disk.faults` and a SimCrash thrown by a hook end the process. */
  fuseKind: CrashKind = 'power';
  /** Called after every crash; may restart the node, or schedule that. */
  onCrash: ((kind: CrashKind) => void) | undefined;
  /** Processes started so far. */
  starts = 0;
  private process: SimIo | undefined;
  private readonly memory: ArrayBuffer;
  /** Virtual time at which the last wait() would have timed out. */
  deadline = 0;
  settled = false;
  private polls = 0;

  constructor(readonly world: World, readonly name: string, private readonly options: NodeOptions) {
    this.disk = new SimDisk(world.random.fork(2), options);
    const memory = options.memory ?? 4 * 1024 * 1024;
    this.memory = typeof memory === 'number' ? new ArrayBuffer(memory) : memory;
  }

  get alive(): boolean {
    return this.process !== undefined;
  }

  /** The running process. Throws when there is none. */
  get io(): SimIo {
    if (this.process === undefined) throw new Error(`node ${this.name} is not running`);
    return this.process;
  }

  /** Starts a process over what is on the disk. */
  start(): SimIo {
    if (this.process !== undefined) throw new Error(`node ${this.name} runs already`);
    const { clock, trace, network, random } = this.world;
    this.process = new SimIo({
      node: this.name,
      clock,
      trace,
      network,
      disk: this.disk,
      random: random.fork(3 + this.starts++),
      memory: this.memory,
      ...(this.options.checksums === undefined ? {} : { checksums: this.options.checksums }),
    });
    this.deadline = 0;
    this.settled = false;
    this.polls = 0;
    return this.process;
  }

  /** Crash, if it runs, and start again. The caller sets a new `step`. */
  restart(kind: CrashKind = 'kill'): SimIo {
    this.crash(kind);
    return this.start();
  }

  /** SIGKILL: the page cache survives. Power: only what is durable surely does. Disarms the fuse. */
  crash(kind: CrashKind): void {
    const process = this.process;
    this.process = undefined;
    this.step = undefined;
    this.disk.faults.fuse = 0;
    process?.die(kind);
    if (kind === 'power') this.disk.powerLoss();
    if (process !== undefined) this.onCrash?.(kind);
  }

  /** Ends the process cleanly. */
  stop(): void {
    this.process?.dispose();
    this.process = undefined;
    this.step = undefined;
  }

  /** Runs `action`; true when it ended, false when the process crashed within (it is then crashed as `fuseKind` says). */
  attempt(action: () => void): boolean {
    const process = this.process;
    try {
      action();
    } catch (error) {
      if (!(error instanceof SimCrash)) throw error;
      if (process !== undefined) process.dead = true;
    }
    // Also when the code under test swallowed it: a dead process does not go on.
    if (process === undefined || !process.dead) return true;
    if (this.process === process) this.crash(this.fuseKind);
    return false;
  }

  /** Crashes the node whose process died outside of a step, in a row of a job. */
  noticeDeath(): void {
    if (this.process?.dead === true) this.crash(this.fuseKind);
  }

  /**
   * Asks for a step at once, for work that was handed to the process from outside of its step. World.run and
   * World.after do it for all nodes; `until` and the steps of other nodes have to.
   */
  poke(): void {
    this.settled = false;
  }

  /** One step; works out when the node wants the next one. */
  runStep(): void {
    const step = this.step;
    const process = this.process;
    if (step === undefined || process === undefined) return;
    const { clock } = this.world;
    const timersDue = clock.now >= this.deadline;
    const waits = process.waits;
    if (!this.attempt(() => void step()) || this.process !== process) return;
    if (process.waits === waits) {
      this.settled = false;
      return;
    }
    const timeout = process.lastTimeoutUs;
    this.deadline = timeout < 0 ? Infinity : clock.now + timeout;
    this.polls = timeout === 0 && process.lastEvents === 0 ? this.polls + 1 : 0;
    if (this.polls >= POLLS) {
      this.deadline = clock.now + POLL_US;
      this.settled = true;
    } else {
      // After events or timers the node may have more to do, and its timeout may have changed: it runs once more.
      this.settled = process.lastEvents === 0 && timeout !== 0 && !timersDue;
    }
  }

  get wantsToRun(): boolean {
    if (this.step === undefined || this.process === undefined) return false;
    return !this.settled || this.world.clock.now >= this.deadline || this.process.hasReady;
  }
}

export class World {
  readonly seed: number;
  readonly clock = new SimClock();
  readonly trace = new Trace();
  readonly random: Random;
  readonly network: SimNetwork;
  readonly nodes: SimNode[] = [];
  private readonly order: Random;

  constructor(options: WorldOptions) {
    this.seed = options.seed;
    this.random = new Random(options.seed);
    this.network = new SimNetwork(this.clock, this.random.fork(4));
    this.order = this.random.fork(5);
  }

  node(name: string, options: NodeOptions = {}): SimNode {
    const node = new SimNode(this, name, options);
    this.nodes.push(node);
    return node;
  }

  /** Runs `action` in `delayUs` virtual microseconds: crashes, cuts, loads of a test. */
  after(delayUs: number, action: () => void): void {
    this.clock.schedule(this.clock.now + delayUs, () => {
      action();
      this.pokeAll();
    });
  }

  /** A condition for `run`: holds once so much virtual time has passed. */
  elapsed(us: number): () => boolean {
    let over = false;
    this.after(us, () => {
      over = true;
    });
    return () => over;
  }

  /** The test may have handed work to any node: each runs once more and says anew when it wants to run. */
  private pokeAll(): void {
    for (const node of this.nodes) node.poke();
  }

  /**
   * Steps nodes and advances time until `until` says so. Throws, with the seed
   * and the tail of the trace, when nothing can happen any more or a limit is
   * reached.
   */
  run(until: () => boolean, limits: RunLimits = {}): void {
    const maxSteps = limits.steps ?? 1_000_000;
    const endAt = this.clock.now + (limits.us ?? Infinity);
    let steps = 0;
    this.pokeAll();
    while (!until()) {
      this.clock.fire();
      for (const node of this.nodes) node.noticeDeath();
      const eager = this.order.shuffle(this.nodes.filter((node) => node.wantsToRun));
      if (eager.length === 0 && !this.advance(until)) this.fail('stalled: nothing is ready and nothing is scheduled');
      for (const node of eager) {
        node.runStep();
        steps++;
        this.clock.now += this.order.unit() * 4; // the time that the step took
        if (until()) return;
      }
      if (steps > maxSteps) this.fail(`took more than ${maxSteps} steps`);
      if (this.clock.now > endAt) this.fail(`took more than ${limits.us} us of virtual time`);
    }
  }

  /** Goes to the next event or deadline. False when there is none, even after every node ran once more. */
  private advance(until: () => boolean): boolean {
    let next = this.clock.nextAt;
    for (const node of this.nodes) if (node.alive && node.step !== undefined) next = Math.min(next, node.deadline);
    if (next !== Infinity) {
      this.clock.advanceTo(next);
      return true;
    }
    const waited = this.nodes.map((node) => (node.alive ? node.io.lastTimeoutUs : 0));
    for (const node of this.order.shuffle([...this.nodes])) node.runStep();
    return until() || this.clock.scheduled > 0 || this.nodes.some((node, i) => node.wantsToRun || (node.alive && node.io.lastTimeoutUs !== waited[i]));
  }

  /** Fires all that is scheduled (jobs, deliveries), without stepping nodes: for tests that drive an Io by hand. */
  drain(): void {
    while (this.clock.scheduled > 0) this.clock.advanceTo(this.clock.nextAt);
  }

  private fail(why: string): never {
    const nodes = this.nodes.map((node) => {
      if (!node.alive) return `${node.name}: not running`;
      return `${node.name}: last timeout ${node.io.lastTimeoutUs} us, ${node.io.jobs.outstanding} jobs, ${node.io.openCount} descriptors`;
    });
    throw new Error(`simulation ${this.seed} ${why} at ${this.clock.now.toFixed(0)} us\n${nodes.join('\n')}\n${this.trace.tail()}`);
  }

  /** Gives the disks' memory back for the next run. */
  dispose(): void {
    for (const node of this.nodes) {
      node.stop();
      node.disk.dispose();
    }
  }
}
