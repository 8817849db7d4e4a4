/** Two nodes of which one has a volatile journal: what the other makes of its kills, stops and power losses. */
import t from 'tap';
import type { Test } from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { GROUP, SimHost, SMALL, caughtUp } from './cluster.js';
import type { Peering } from './cluster.js';
import { acceptableLsn, REFUSED } from './volatile-journal.js';
import { Workload } from './workload.js';
import { World } from './world.js';

const ADDRESS = { a: '10.0.0.1:7001', b: '10.0.0.2:7002' };
const DIALS: Peering = { role: 'primary', peers: [{ node: 'b', address: ADDRESS.b }] };
const WAITS: Peering = { role: 'secondary', listen: ADDRESS.b, peers: [{ node: 'a' }] };

class Two {
  readonly world: World;
  readonly a: SimHost;
  readonly b: SimHost;
  private readonly data: Workload;

  constructor(t: Test, seed: number, inMemory: 'a' | 'b' | 'both') {
    this.world = new World({ seed });
    t.teardown(() => this.world.dispose());
    this.a = new SimHost(this.world, 'a', { ...SMALL, segments: 12 }, DIALS, 0);
    this.b = new SimHost(this.world, 'b', { ...SMALL, segments: 12 }, WAITS, 1);
    for (const host of inMemory === 'both' ? [this.a, this.b] : [this[inMemory]]) host.volatile();
    this.data = new Workload(this.a, this.world.random.fork(3));
    this.start(this.b);
    this.start(this.a);
    this.a.order({ op: 'create', group: GROUP, name: 'v', sizeBytes: 4 * MIB, wait: 'durable', waitSeconds: 10 }, (until) => this.run(until));
    this.run(() => this.caughtUp);
  }

  start(host: SimHost): string | undefined {
    if (!host.start()) throw new Error(`${host.name} crashed at its start`);
    return host.problem;
  }

  stop(host: SimHost): void {
    let closed = false;
    host.path!.close(() => (closed = true));
    this.run(() => closed);
    host.node.stop();
    const idle = host as unknown as { forget(): void };
    idle.forget();
  }

  run(until: () => boolean): void {
    this.world.run(until, { us: 120e6 });
  }

  get caughtUp(): boolean {
    return caughtUp(this.a, this.b);
  }

  write(count: number): void {
    const device = [...this.a.model.state.devices.values()][0];
    for (let i = 0; i < count; i++) {
      let errno = -1;
      this.a.client!.write(this.a.view(device)!, i * 16 * KIB, this.data.data(16 * KIB), false, (result) => (errno = result));
      this.a.node.poke();
      this.run(() => errno >= 0);
      if (errno !== 0) throw new Error(`a write failed with ${errno}`);
    }
  }

  verify(): void {
    for (const host of [this.a, this.b]) new Workload(host, this.world.random.fork(7)).verifyAll();
  }
}

t.test('a volatile secondary calls durable what a checkpoint of it has, follows on after a clean stop, and is refused after a power loss', async (t) => {
  const two = new Two(t, 20, 'b');
  const { a, b } = two;
  two.write(8);
  two.run(() => two.caughtUp);
  const [link] = a.path!.links.status(GROUP);
  t.ok(link.durable <= b.group.content.checkpointer.committedAt.lsn, 'its acks claim no more');
  two.run(() => b.group.journal.durableLsn === b.group.position.lsn);
  two.write(4);
  two.stop(b);
  b.crash('power');
  t.equal(two.start(b), undefined);
  two.run(() => two.caughtUp);
  two.write(4);
  two.run(() => two.caughtUp);
  two.verify();
  const { lsn } = b.group.content.checkpointer.committedAt;
  b.crash('power');
  const problem = two.start(b);
  t.match(problem, REFUSED);
  t.match(problem, /Build it anew from its primary/);
  b.crash('kill');
  b.acceptedLsn = lsn;
  t.match(two.start(b), REFUSED, 'and cannot be accepted: it would not be what its primary is');
});

for (const settled of [false, true]) {
  t.test(`a secondary that was killed, and stopped before it heard of its primary, takes its disk for what the checkpoint says only if it is: ${settled}`, async (t) => {
    const two = new Two(t, 24, 'b');
    const { a, b } = two;
    two.write(8);
    two.run(() => two.caughtUp);
    if (settled) two.run(() => b.group.journal.durableLsn === b.group.position.lsn);
    t.equal(b.group.journal.durableLsn === b.group.position.lsn, settled);
    b.crash('kill');
    a.crash('kill');
    t.equal(two.start(b), undefined);
    two.stop(b);
    t.equal(b.stopNoted, settled);
    b.crash('power');
    const problem = two.start(b);
    if (settled) t.equal(problem, undefined);
    else t.match(problem, REFUSED);
  });
}

for (const seed of [21, 22]) {
  t.test(`a primary whose unknown data were accepted is not followed by a secondary that had followed it, seed ${seed}`, async (t) => {
    const two = new Two(t, seed, 'a');
    const { a, b } = two;
    two.write(seed === 21 ? 8 : 0);
    if (seed === 21) two.run(() => two.caughtUp);
    a.crash('power');
    a.acceptedLsn = acceptableLsn(two.start(a));
    a.crash('kill');
    t.equal(two.start(a), undefined);
    t.equal(a.group.role, 'primary');
    const before = b.group.position;
    two.run(() => a.path!.links.status(GROUP)[0].state === 'refused');
    t.match(a.path!.links.status(GROUP)[0].reason, /different records|resync/);
    t.same(b.group.position, before);
  });
}

for (const inMemory of ['a', 'both'] as const) {
  t.test(`both nodes are stopped, the primary first, lose what was in memory, and go on together: ${inMemory}`, async (t) => {
    const two = new Two(t, 25, inMemory);
    const { a, b } = two;
    two.write(40);
    t.ok(b.group.position.lsn <= a.group.position.lsn);
    two.stop(a);
    two.stop(b);
    t.ok(a.stopNoted && b.stopNoted);
    a.crash('power');
    b.crash('power');
    t.equal(two.start(b), undefined);
    t.equal(two.start(a), undefined);
    two.write(3);
    two.run(() => two.caughtUp);
    t.equal(a.group.epochs.length, 1);
    two.verify();
  });
}

t.test('a volatile primary that is killed goes on with its secondary, in a lossless epoch', async (t) => {
  const two = new Two(t, 23, 'a');
  const { a, b } = two;
  two.write(8);
  a.crash('kill');
  t.equal(two.start(a), undefined);
  two.write(3);
  two.run(() => two.caughtUp);
  t.same(a.group.epochs.map((epoch) => epoch.lossless), [true, true]);
  t.ok(b.group.stableLsn <= a.group.journal.durableLsn, 'the secondary makes final only what a checkpoint of the primary has');
  two.verify();
});
