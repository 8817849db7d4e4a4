/**
 * One seeded run of two nodes: random work on the primary, crashes of either,
 * cuts of the network; after catch-up both must hold the same, and a promoted
 * secondary what it had.
 *
 * Owns: what a seed means. A failure throws with the seed and what went before.
 */
import { KIB, MIB } from '../../src/base/units.js';
import { Carrier } from './carrier.js';
import { ALONE, GROUP, LINKED, SimHost, SMALL, UNLINKED, caughtUp, lastWords } from './cluster.js';
import type { Sizes } from './cluster.js';
import { blockOf, equal } from './model.js';
import type { ModelState } from './model.js';
import type { Random } from './random.js';
import { MIXED, Workload } from './workload.js';
import { World } from './world.js';

export interface PairResult {
  readonly seed: number;
  readonly starts: number;
  readonly crashes: number;
  readonly compared: number;
  /** How often the secondary was held against what the primary had been at that LSN, while both went on. */
  readonly cuts: number;
  readonly steps: number;
  readonly operations: number;
  readonly refusals: number;
  readonly promoted: boolean;
  /** Why the secondary could not follow any more, if so. */
  readonly refused: string | undefined;
}

function drawSizes(random: Random): Sizes {
  return {
    ...SMALL,
    segmentBytes: random.pick([256 * KIB, 512 * KIB]), segments: random.between(6, 12), syncBytes: random.pick([32 * KIB, MIB]), syncMs: random.pick([1, 20]),
    checkpointBytes: random.pick([128 * KIB, MIB]), checkpointSeconds: random.pick([0.02, 0.5]), mapMemory: random.pick([32 * KIB, 16 * MIB]),
    destageFraction: random.pick([0.05, 0.2]), destageUs: random.pick([2_000, 50_000]), compactSlackBytes: 16 * KIB,
  };
}

const MAX_ROUNDS = 30;

export class PairRun {
  readonly world: World;
  private readonly random: Random;
  readonly a: SimHost;
  readonly b: SimHost;
  readonly workload: Workload;
  private crashes = 0;
  private compared = 0;
  private cuts = 0;
  private refused: string | undefined;
  private promoted = false;

  /** In place of links. */
  readonly carrier: Carrier | undefined;

  /**
   * `steps`: at least so many things are asked for. `inMemory`: one of the nodes, or
   * both, have a volatile journal; those are killed and do not lose power. `carried`:
   * no links; the journal is carried by others. `leaving`: callers go before they are
   * answered, in halts, too.
   */
  constructor(readonly seed: number, private readonly steps = 0, inMemory = false, carried = false, leaving = false) {
    this.world = new World({ seed });
    this.random = this.world.random.fork(200);
    this.a = new SimHost(this.world, 'a', drawSizes(this.random), carried ? ALONE : LINKED.a, 0);
    this.b = new SimHost(this.world, 'b', { ...drawSizes(this.random), maxBatchPayload: SMALL.maxBatchPayload }, carried ? UNLINKED : LINKED.b, 1);
    if (carried) this.carrier = new Carrier(this.a, this.b, this.random.fork(202), { death: this.random.pick([0, 0.02, 0.2]), damage: this.random.pick([0, 0.02]) });
    if (inMemory) for (const host of this.random.pick([[this.a], [this.b], [this.a, this.b]])) host.volatile();
    this.workload = new Workload(this.a, this.random.fork(201), { ...MIXED, maxInFlight: this.random.pick([4, 16]), operations: this.random.pick([0.1, 0.3, 0.5]), ...(inMemory ? { halts: 0.1 } : {}), ...(leaving ? { halts: 0.3, leaves: 0.6 } : {}) });
    for (const host of [this.a, this.b]) {
      const crashed = host.node.onCrash!;
      host.node.onCrash = (kind) => {
        this.crashes++;
        crashed(kind);
        this.carrier?.reset();
        if (host === this.a) this.workload.forget();
      };
    }
    // The write-ahead rule of a secondary: not above what the primary has made durable, either.
    this.b.stableLimit = () => (this.b.path?.blocks.group(GROUP)?.role === 'secondary' ? this.a.model.durableTruth() : Infinity);
  }

  run(): PairResult {
    try {
      this.start(this.a);
      this.start(this.b);
      const rounds = this.random.between(1, 4);
      for (let i = 0; (i < rounds || (this.workload.steps < this.steps && i < MAX_ROUNDS)) && this.refused === undefined; i++) {
        this.work();
        this.disturb();
        this.catchUp();
        if (this.refused === undefined) this.compare();
      }
      if (this.refused === undefined && this.random.chance(0.5)) this.takeOver();
    } catch (error) {
      throw new Error(`seed ${this.seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n--- ${this.a.standing}\n--- ${this.b.standing}\n--- log ---\n${lastWords([this.a, this.b], 70)}`, { cause: error });
    } finally {
      this.world.dispose();
    }
    return {
      seed: this.seed, starts: this.a.node.starts + this.b.node.starts, crashes: this.crashes, compared: this.compared, cuts: this.cuts, promoted: this.promoted, refused: this.refused,
      steps: this.workload.steps, operations: this.workload.operations, refusals: this.a.asked.refusals + this.b.asked.refusals,
    };
  }

  private crash(host: SimHost, kind: 'power' | 'kill'): void {
    host.crash(host.journalPlace.volatile ? 'kill' : kind);
  }

  private start(host: SimHost): void {
    if (!host.start()) throw new Error(`${host.name} crashed at the start`);
    if (host.problem !== undefined) throw new Error(`${host.name} cannot open the group: ${host.problem}`);
  }

  private get serving(): boolean {
    return this.a.alive && this.a.path !== undefined && this.a.group.role === 'primary';
  }

  private advance(until: () => boolean, us = 120e6): void {
    this.world.run(() => {
      this.carrier?.step();
      return until();
    }, { us });
  }

  private pass(us: number): void {
    this.advance(this.world.elapsed(us));
  }

  private work(): void {
    const { random, workload } = this;
    this.advance(() => this.serving);
    const steps = random.between(5, 80);
    const pace = random.pick([50, 500, 5000]);
    for (let i = 0; i < steps && this.serving; i++) {
      this.a.node.attempt(() => workload.step());
      this.pass(random.unit() * pace);
      if (random.chance(0.06)) this.cut();
      if (random.chance(0.03)) this.watch();
      if (workload.full) this.advance(() => !this.serving || !workload.full);
    }
  }

  /** A client reads from the secondary, or ends to: removals and shrinks have to close its connection. */
  private watch(): void {
    const { b, random } = this;
    const devices = [...b.model.state.devices.values()];
    if (b.path === undefined || b.client === undefined || devices.length === 0) return;
    const view = b.view(random.pick(devices));
    if (view === undefined || b.asked.connected > 3) b.asked.disconnect(b.path.blocks);
    else b.asked.connect(b.path.blocks, view);
  }

  /** Whatever the secondary has by now, it is what the primary had at that LSN. */
  private cut(): void {
    const { a, b } = this;
    const last = b.model.entries.at(-1);
    if (!b.alive || b.client === undefined || last?.certain !== true) return;
    const then = a.model.stateAt(last.endLsn, last.epochId);
    if (then === undefined) return;
    this.cuts++;
    compareStates(then, b.model.state, `at LSN ${last.endLsn}`);
    b.asked.checkConnections();
  }

  /** A crash of one or both, or a cut, at a random moment; then all runs again. */
  private disturb(): void {
    const { random, world, a, b } = this;
    const roll = random.unit();
    const kind = (): 'power' | 'kill' => (random.chance(0.5) ? 'power' : 'kill');
    this.pass(random.unit() * random.pick([10, 1000, 20_000]));
    const inMemory = [a, b].filter((host) => host.journalPlace.volatile);
    if (inMemory.length > 0 && random.chance(0.4)) {
      this.stopAndLosePower(random.pick(inMemory));
    } else if (roll < 0.3) {
      this.crash(b, kind());
      this.pass(random.unit() * 50_000);
      this.start(b);
    } else if (roll < 0.6) {
      this.crash(a, kind());
      this.pass(random.unit() * 50_000);
      this.start(a);
    } else if (roll < 0.8) {
      this.crash(a, kind());
      this.crash(b, kind());
      for (const host of random.shuffle([a, b])) this.start(host);
    } else if (this.carrier !== undefined) {
      this.carrier.paused = true;
      this.workSome(10);
      this.carrier.paused = false;
    } else {
      world.network.partition('a', 'b');
      this.pass(random.unit() * 200_000);
      this.workSome(10);
      this.verifyCutOff();
      world.network.heal('a', 'b');
    }
  }

  /** What a stop in order says that it has is there without the journal. */
  private stopAndLosePower(host: SimHost): void {
    let closed = false;
    if (!host.group.hasContent) return;
    // Nothing waits for a carrier: what it has not taken away by then may be gone.
    if (this.carrier !== undefined && host === this.a && this.random.chance(0.8)) this.catchUp();
    host.node.attempt(() => host.path!.close(() => {
      closed = true;
    }));
    host.node.poke();
    this.advance(() => closed);
    host.stoppedCleanly();
    this.carrier?.die();
    if (host === this.a) this.workload.forget();
    if (!host.stopNoted && (host === this.a || this.promoted)) throw new Error(`the stop of ${host.name} was not clean`);
    // A secondary that was killed before may have more on its disk than it knows that its primary has.
    if (host.stopNoted) {
      host.crash('power');
      this.crashes++;
    }
    this.start(host);
  }

  /** The secondary has no link and some earlier state: it has to serve exactly that. */
  private verifyCutOff(): void {
    const { b } = this;
    if (!b.alive || b.client === undefined || this.random.chance(0.5)) return;
    this.advance(() => b.group.appliedLsn === b.group.journal.appendedLsn);
    this.cut();
    b.compareTree();
    this.verify(b);
  }

  private workSome(steps: number): void {
    for (let i = 0; i < steps && this.serving; i++) {
      this.a.node.attempt(() => this.workload.step());
      this.pass(this.random.unit() * 500);
    }
  }

  /** Until the secondary has applied all that the primary has, or is refused for good. */
  private catchUp(): void {
    let refusedSince = -1;
    this.advance(() => {
      if (!this.serving || !this.b.alive) return false;
      if (this.carrier?.lost !== undefined) {
        this.refused = this.carrier.lost;
        return true;
      }
      const link = this.carrier === undefined ? this.a.path!.links.status(GROUP)[0] : undefined;
      if (link?.state === 'refused') {
        if (refusedSince < 0) refusedSince = this.world.clock.now;
        // A refusal may be passing, while the peer starts.
        if (this.world.clock.now - refusedSince > 20e6) {
          this.refused = link.reason;
          return true;
        }
      } else {
        refusedSince = -1;
      }
      return this.workload.idle && (link === undefined || link.state === 'streaming') && caughtUp(this.a, this.b);
    }, 300e6);
  }

  /** Device by device, block by block, and the digest of the tree. */
  private compare(): void {
    const { a, b } = this;
    const [one, other] = [a.group, b.group];
    this.compared++;
    const want = one.position;
    const have = other.position;
    if (want.chainHi !== have.chainHi || want.chainLo !== have.chainLo) throw new Error(`equal LSNs ${want.lsn}, other chains`);
    const epoch = one.epochs.at(-1)!.id;
    if (one.tree.digest(epoch) !== other.tree.digest(epoch)) throw new Error('the trees differ');
    if (JSON.stringify(one.epochs) !== JSON.stringify(other.epochs)) throw new Error(`the epochs differ: ${JSON.stringify(one.epochs)} and ${JSON.stringify(other.epochs)}`);
    compareStates(a.model.state, b.model.state, `at LSN ${want.lsn}`);
    a.compareTree();
    b.compareTree();
    // Nothing on the simulated network damages a batch.
    const spoilt = [...a.log, ...b.log].find((line) => line.includes('link/bad-batch'));
    if (spoilt !== undefined) throw new Error(`a batch was spoilt on its way: ${spoilt}`);
    this.verify(a);
    this.verify(b);
  }

  private verify(host: SimHost): void {
    new Workload(host, this.random.fork(7)).verifyAll();
  }

  /** The primary is gone for good; the secondary takes over with what it has. */
  private takeOver(): void {
    const { a, b, random } = this;
    this.work();
    this.pass(random.unit() * 5_000);
    this.crash(a, 'power');
    if (random.chance(0.5)) {
      this.crash(b, random.chance(0.5) ? 'power' : 'kill');
      this.start(b);
    }
    if (!b.group.hasContent) return;
    if (this.carrier !== undefined) this.carrier.paused = true;
    const had = b.model.endLsn;
    b.order({ op: 'promote', group: GROUP, force: true }, (until) => this.advance(until));
    if (b.model.endLsn <= had || b.group.role !== 'primary') throw new Error('the promotion appended no epoch');
    this.promoted = true;
    b.model.raiseFloor(b.model.endLsn);
    this.verify(b);
    const work = new Workload(b, random.fork(8), MIXED);
    for (let i = 0; i < 20; i++) {
      b.node.attempt(() => work.step());
      this.pass(random.unit() * 500);
    }
    // What was the primary meets the higher epoch, and serves nothing more.
    if (this.carrier === undefined && random.chance(0.5)) {
      this.start(a);
      this.advance(() => a.group.role === 'fenced');
    }
    // The link to it retains the journal; writers may wait for that, until it is given up.
    if (this.carrier === undefined) b.order({ op: 'linkDrop', group: GROUP, peer: 'a' }, (until) => this.advance(until));
    this.advance(() => work.idle);
    if (b.journalPlace.volatile && random.chance(0.5)) {
      this.stopAndLosePower(b);
    } else {
      this.crash(b, 'power');
      this.start(b);
    }
    this.advance(() => b.group.role === 'primary');
    this.verify(b);
  }
}

/** Device by device, block by block: what was shipped is what was journaled. */
function compareStates(one: ModelState, other: ModelState, where: string): void {
  const [here, there] = [one.facts.join('\n'), other.facts.join('\n')];
  if (here !== there) throw new Error(`${where} the primary has\n${here}\nthe secondary\n${there}`);
  for (const device of one.devices.values()) {
    const mirror = other.devices.get(device.id)!;
    for (const index of new Set([...device.blocks.keys(), ...mirror.blocks.keys()])) {
      if (!equal(blockOf(device, index), blockOf(mirror, index))) throw new Error(`${where} block ${index} of device ${device.id} was shipped otherwise`);
    }
  }
}
