/**
 * Links in the simulator: two nodes, a network that delays, splits, resets and
 * partitions, nodes that are killed and lose power. Afterwards both hold the
 * same, nothing durable is missing, and nobody had to refuse.
 *
 * LOCKSTEP_SIM_RUNS=N runs N seeds, TEST_SEED=N that one.
 */
import t from 'tap';
import type { EpochEntry } from '../../src/group/tree/epochs.js';
import type { LinkOptions } from '../../src/replication/options.js';
import { Random } from './random.js';
import { World } from './world.js';
import type { SimNode } from './world.js';
import { difference } from '../replication/memory-group.js';
import type { Kept } from '../replication/memory-group.js';
import { FAST, SECRET, TestNode } from '../replication/rig.js';

const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 60);
const FIRST = process.env.TEST_SEED === undefined ? undefined : Number(process.env.TEST_SEED);
const ADDRESS = { kind: 'tcp', host: '10.0.0.2', port: 7000 } as const;
const OPTIONS: LinkOptions = {
  ...FAST, heartbeatUs: 20_000, deadUs: 200_000, handshakeUs: 300_000, backoffHighUs: 20_000,
  readBytes: 32 * 1024, receiveBytes: 32 * 1024, windowBytes: 256 * 1024,
};
const GROUP = { segmentBytes: 256 * 1024, payloadBytes: 64 * 1024 };
const MEMORY = [new ArrayBuffer(4 * 1024 * 1024), new ArrayBuffer(4 * 1024 * 1024)];
const RECOVER_WAIT_US = 150_000;

/** What a node's disk would hold: the simulated process gets it back when it starts again. */
interface Survived {
  readonly groupId: string | undefined;
  readonly batches: readonly Kept[];
  readonly epochs: readonly EpochEntry[];
}

class Side {
  node!: TestNode;
  /** Durable LSN and batches as of the last look; the real ones may be ahead. */
  codes: string[] = [];
  starts = 0;

  constructor(readonly sim: SimNode, readonly primary: boolean, private readonly random: Random) {}

  start(survived?: Survived): void {
    const io = this.sim.start();
    this.node = new TestNode(this.sim.name, io, `/${this.starts++}`);
    const { node } = this;
    const group = node.openGroup(GROUP);
    if (survived?.groupId !== undefined) {
      group.adoptGroupId(survived.groupId);
      group.batches = [...survived.batches];
      group.epochs = [...survived.epochs];
      group.cutTo(Infinity);
    } else if (this.primary) {
      group.found();
    }
    node.connect([{ node: this.primary ? 'b' : 'a', secret: SECRET, ...(this.primary ? { address: ADDRESS } : {}) }], OPTIONS);
    if (this.primary && survived !== undefined) {
      group.role = 'recovering';
      node.reactor.after(RECOVER_WAIT_US, () => {
        if (group.role !== 'recovering') return;
        group.role = 'primary';
        group.beginEpoch();
      });
    }
    if (!this.primary) node.listen(ADDRESS, { link: OPTIONS });
    node.links.start();
    this.sim.step = () => node.reactor.step(-1);
  }

  /** The process ends; what it leaves behind. `power`: everything durable, and by chance some of the rest. */
  end(kind: 'kill' | 'power'): Survived {
    const { group } = this.node;
    const end = group.groupId === undefined ? 0 : group.journal.appendedLsn;
    const durable = group.groupId === undefined ? 0 : group.journal.durableLsn;
    const keep = kind === 'kill' ? end : durable + Math.floor(this.random.unit() * (end - durable));
    const batches = group.batches.filter((one) => one.end <= keep);
    const last = batches[batches.length - 1]?.end ?? 0;
    this.codes.push(...this.node.codes);
    const { groupId } = group;
    this.sim.crash(kind);
    return { groupId, batches, epochs: group.epochs.filter((epoch) => epoch.start.lsn < last) };
  }
}

function run(seed: number): { codes: Set<string>; hot: number; virtualUs: number; crashes: number } {
  const world = new World({ seed });
  const random = new Random(seed, 77);
  Object.assign(world.network.rates, {
    partial: random.pick([0, 0.1, 0.5]), reset: random.pick([0, 0, 0.001, 0.01]), refuse: random.pick([0, 0.2]),
    bufferLow: random.pick([256, 8192]), bufferHigh: random.pick([8192, 262144]), latencyHighUs: random.pick([100, 5000]),
  });
  const a = new Side(world.node('a', { memory: MEMORY[0] }), true, random.fork(1));
  const b = new Side(world.node('b', { memory: MEMORY[1] }), false, random.fork(2));
  a.start();
  b.start();
  let crashes = 0;
  let hot = 0;
  let durableOnPrimary = 0;
  const unit = (): number => random.unit();
  const steps = 20 + random.below(30);
  for (let i = 0; i < steps; i++) {
    const until = world.clock.now + random.logUniform(50, 100_000);
    world.after(until - world.clock.now, () => undefined);
    world.run(() => world.clock.now >= until, { steps: 300_000 });
    const { group } = a.node;
    if (group.role === 'primary') {
      a.sim.attempt(() => {
        for (let k = random.below(6); k > 0; k--) group.append(1 + random.below(5), unit);
        if (random.chance(0.1)) group.appendMarker(1 + random.below(20_000));
        if (random.chance(0.3)) group.journal.sync(group.journal.appendedLsn);
      });
      a.sim.poke();
      hot += a.node.links.link('b')?.outgoing?.shipper?.hotBatches ?? 0;
    }
    durableOnPrimary = Math.max(durableOnPrimary, group.journal.durableLsn);
    const chance = random.unit();
    if (chance < 0.08) {
      world.network.cut('a', 'b');
    } else if (chance < 0.12) {
      world.network.partition('a', 'b');
      world.after(random.logUniform(1000, 500_000), () => world.network.heal('a', 'b'));
    } else if (chance < 0.2) {
      const side = random.chance(0.5) ? a : b;
      const survived = side.end(random.pick(['kill', 'power']));
      crashes++;
      side.start(survived);
    } else if (chance < 0.24 && b.node.group.groupId !== undefined) {
      const full = b.node.group;
      full.answer = () => ({ kind: 'full' });
      world.after(random.logUniform(100, 100_000), () => {
        if (b.node.group !== full) return;
        full.makeRoom();
        b.sim.poke();
      });
    }
  }
  b.node.group.makeRoom();
  b.sim.poke();
  world.network.heal('a', 'b');
  Object.assign(world.network.rates, { reset: 0, refuse: 0 });
  const done = (): boolean => a.node.group.role === 'primary' && b.node.group.groupId !== undefined && a.node.group.position.lsn === b.node.group.position.lsn;
  world.run(done, { steps: 2_000_000, us: 60e6 });
  const problem = difference(a.node.group, b.node.group);
  if (problem !== undefined) throw new Error(`seed ${seed}: the nodes differ: ${problem}`);
  if (a.node.group.position.lsn < durableOnPrimary) throw new Error(`seed ${seed}: the primary had made ${durableOnPrimary} durable and stands at ${a.node.group.position.lsn}`);
  const codes = new Set([...a.codes, ...b.codes, ...a.node.codes, ...b.node.codes]);
  codes.delete('');
  for (const code of codes) if (!EXPECTED.has(code)) throw new Error(`seed ${seed}: ${code} was said: ${[...a.node.entries, ...b.node.entries].map((one) => one.message).join(' | ')}`);
  checkLeaks(seed, world, a, b);
  world.dispose();
  return { codes, hot, virtualUs: world.clock.now, crashes };
}

/** What a network and crashes may lead to. Refusals are not among it. */
const EXPECTED = new Set(['link/ask-durable', 'link/lost', 'link/unreachable', 'link/timeout', 'link/silent', 'link/replaced', 'link/busy', 'link/role-changed', 'link/closing']);

function checkLeaks(seed: number, world: World, a: Side, b: Side): void {
  const usedOf = (side: Side): number => side.node.arena.usedBytes;
  for (const side of [a, b]) {
    side.sim.attempt(() => side.node.closeLinks());
    side.sim.poke();
  }
  world.run(() => a.node.reactor.jobsInFlight + b.node.reactor.jobsInFlight === 0, { steps: 100_000 });
  for (const side of [a, b]) {
    side.sim.attempt(() => side.node.group.close());
    if (usedOf(side) !== 0) throw new Error(`seed ${seed}: ${usedOf(side)} bytes of the arena of ${side.sim.name} are still in use`);
  }
}

// The limit is that of the runner (test/run.ts --timeout), also when this file is run by itself.
t.setTimeout(7_200_000);

t.test('two nodes agree whatever the network and crashes do', async (t) => {
  const seeds = FIRST === undefined ? Array.from({ length: RUNS }, (_, i) => i + 1) : [FIRST];
  const seen = new Map<string, number>();
  let [hot, virtualUs, crashes] = [0, 0, 0];
  for (const seed of seeds) {
    const result = run(seed);
    hot += result.hot;
    virtualUs += result.virtualUs;
    crashes += result.crashes;
    for (const code of result.codes) seen.set(code, (seen.get(code) ?? 0) + 1);
  }
  t.comment(`${seeds.length} seeds, ${(virtualUs / 1e6).toFixed(0)} virtual seconds, ${crashes} crashes, ${[...seen].map((pair) => pair.join(': ')).sort().join(', ')}`);
  if (seeds.length > 20) {
    t.ok(hot > 0, 'batches went the hot way');
    t.ok(crashes > 0);
  }
  t.pass('all seeds');
});
