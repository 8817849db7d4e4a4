/**
 * Starts of a primary that has lost something, and who is primary afterwards:
 * two whole data paths, a slow or split network, power losses at chosen moments.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import { GROUP, LAZY, SimHost, caughtUp } from './cluster.js';
import type { Peering, Sizes } from './cluster.js';
import { equal } from './model.js';
import { Rig } from './rig.js';
import { Workload } from './workload.js';
import { World } from './world.js';

const LIMIT = { us: 120e6 };
/** `recoverWait` of simulated nodes (cluster.ts). */
const RECOVER_WAIT_US = 0.5e6;
const WRITE_BYTES = 16 * KIB;
const ADDRESS = { a: '10.0.0.1:7001', b: '10.0.0.2:7002' };
const A_DIALS: Peering = { role: 'primary', peers: [{ node: 'b', address: ADDRESS.b }] };
const B_WAITS: Peering = { role: 'secondary', listen: ADDRESS.b, peers: [{ node: 'a' }] };

/** Primary `a` and secondary `b`, both up, with an empty volume `v`. */
class Two {
  readonly world: World;
  readonly a: SimHost;
  readonly b: SimHost;
  private readonly data: Workload;

  constructor(seed: number, peeringOfA: Peering = A_DIALS, peeringOfB: Peering = B_WAITS, sizes: Sizes = LAZY) {
    this.world = new World({ seed });
    this.a = new SimHost(this.world, 'a', sizes, peeringOfA, 0);
    this.b = new SimHost(this.world, 'b', sizes, peeringOfB, 1);
    this.data = new Workload(this.a, this.world.random.fork(3));
    this.line('fast');
    this.start(this.b);
    this.start(this.a);
    this.order(this.a, { op: 'create', group: GROUP, name: 'v', sizeBytes: 8 * MIB, wait: 'durable', waitSeconds: 10 });
    this.run(() => this.caughtUp);
  }

  line(speed: 'fast' | 'slow'): void {
    const buffer = speed === 'fast' ? 64 * KIB : 8 * KIB;
    const [latencyLowUs, latencyHighUs] = speed === 'fast' ? [50, 200] : [20_000, 40_000];
    Object.assign(this.world.network.rates, { latencyLowUs, latencyHighUs, bufferLow: buffer, bufferHigh: buffer });
  }

  split(): void {
    this.world.network.partition('a', 'b');
  }

  heal(): void {
    this.world.network.heal('a', 'b');
  }

  start(host: SimHost): void {
    if (!host.start()) throw new Error(`${host.name} crashed at its start`);
    if (host.problem !== undefined) throw new Error(`${host.name}: ${host.problem}`);
  }

  stop(host: SimHost): void {
    let closed = false;
    host.path!.close(() => (closed = true));
    this.run(() => closed);
    host.stoppedCleanly();
  }

  run(until: () => boolean): void {
    this.world.run(until, LIMIT);
  }

  order(host: SimHost, request: ControlRequest): void {
    host.order(request, (until) => this.run(until));
  }

  get caughtUp(): boolean {
    return caughtUp(this.a, this.b);
  }

  /** Acknowledged writes, one after the other. Returns the errno of the first that failed, or 0. */
  write(host: SimHost, count: number): number {
    const device = [...host.model.state.devices.values()][0];
    for (let i = 0; i < count; i++) {
      let errno = -1;
      host.client!.write(host.view(device)!, i * WRITE_BYTES, this.data.data(WRITE_BYTES), false, (result) => (errno = result));
      host.node.poke();
      this.run(() => errno >= 0);
      if (errno !== 0) return errno;
    }
    return 0;
  }

  verify(host: SimHost): void {
    new Workload(host, this.world.random.fork(7)).verifyAll();
  }

  /** `b` has `writes` writes that `a` has acknowledged and then lost with its power. Returns where the stream ended. */
  loseTail(writes: number): number {
    const { a, b } = this;
    if (this.write(a, writes) !== 0) throw new Error('a write failed');
    this.run(() => this.caughtUp);
    const end = b.group.position.lsn;
    if (a.group.journal.durableLsn > end - writes * WRITE_BYTES) throw new Error('the writes are durable already');
    a.crash('power');
    return end;
  }
}

/** The blocks of device `v` as the node journaled them. */
function blocksOf(host: SimHost): ReadonlyMap<number, Uint8Array> {
  return [...host.model.state.devices.values()][0].blocks;
}

function sameBlocks(one: ReadonlyMap<number, Uint8Array>, other: ReadonlyMap<number, Uint8Array>): boolean {
  return one.size === other.size && [...one].every(([index, block]) => other.has(index) && equal(block, other.get(index)!));
}

t.test('a recovering primary fetches all that it lost, however much longer than recoverWait that takes', async (t) => {
  const two = new Two(12);
  t.teardown(() => two.world.dispose());
  const { a, b, world } = two;
  const end = two.loseTail(48);
  const acknowledged = new Map(blocksOf(b));
  two.line('slow');
  two.start(a);
  t.equal(a.group.role, 'recovering');
  t.ok(a.group.position.lsn < end, 'it has lost something');
  const begun = world.clock.now;
  two.run(() => a.group.role === 'primary');
  t.ok(world.clock.now - begun > 3 * RECOVER_WAIT_US, 'the fetch outlasted recoverWait');
  t.match(a.group.roleReason, /b: fetched/);
  t.equal(a.group.epochs.at(-1)!.start.lsn, end, 'its new epoch begins behind everything that it had acknowledged');
  t.ok(sameBlocks(blocksOf(a), acknowledged));
  two.run(() => two.caughtUp);
  t.same(a.group.epochs, b.group.epochs);
  two.verify(a);
  two.verify(b);
});

/** `a` has a full journal and has lost the marker of an operation, which `b` has. Undefined: the power loss left it. */
function fullAndBehind(seed: number): { two: Two; end: number } | undefined {
  const two = new Two(seed, A_DIALS, B_WAITS, { ...LAZY, destageFraction: 0.3 });
  const { a, b } = two;
  const { journal } = a.group;
  // Nothing is destaged on `a`: its journal fills up. The marker goes into the reserve.
  a.node.disk.faults.hook = ({ op, path }) => (op === 'pwrite' && path.includes('/layers/') ? 5 : 0);
  if (two.write(a, 60) !== 0) throw new Error('a write failed');
  do {
    while (journal.hasRoomForData || journal.pool.fileCount < journal.pool.maxSegments) if (two.write(a, 1) !== 0) throw new Error('a write failed');
    two.order(a, { op: 'flush', group: GROUP, upTo: 'durable' });
    two.run(() => two.caughtUp);
    // A segment that was being made meanwhile is room again.
  } while (journal.hasRoomForData);
  const before = a.group.position.lsn;
  Object.assign(two.world.network.rates, { latencyLowUs: 1, latencyHighUs: 1 });
  a.node.io.jobs.slowness = 1000;
  a.command({ op: 'snapshot', group: GROUP, source: 'v', name: 's', wait: 'durable', waitSeconds: 10 });
  two.run(() => b.group.position.lsn > before);
  a.crash('power');
  a.node.disk.faults.hook = undefined;
  two.start(a);
  if (a.group.position.lsn === before && !a.group.journal.hasRoomForData) return { two, end: b.group.position.lsn };
  two.world.dispose();
  return undefined;
}

t.test('a recovering primary whose journal is full fetches what it lost all the same', async (t) => {
  let found: ReturnType<typeof fullAndBehind>;
  for (let seed = 163; found === undefined && seed < 263; seed++) found = fullAndBehind(seed);
  const { two, end } = found!;
  t.teardown(() => two.world.dispose());
  const { a } = two;
  t.notOk(a.group.journal.hasRoomForData);
  two.run(() => a.group.role === 'primary');
  t.match(a.group.roleReason, /b: fetched/);
  t.equal(a.group.epochs.at(-1)!.start.lsn, end);
  two.run(() => two.caughtUp);
  t.ok(a.group.tree.find('v@s'));
  two.verify(a);
});

t.test('a fetch that falls silent ends after recoverWait, with an epoch that says that something may be lost', async (t) => {
  const two = new Two(13);
  t.teardown(() => two.world.dispose());
  const { a, b, world } = two;
  const end = two.loseTail(48);
  two.line('slow');
  two.start(a);
  const recovered = a.group.position.lsn;
  two.run(() => a.group.position.lsn > recovered + 8 * WRITE_BYTES);
  two.split();
  const [splitAt, had] = [world.clock.now, a.group.position.lsn];
  two.run(() => a.group.role === 'primary');
  t.ok(world.clock.now - splitAt < 3 * RECOVER_WAIT_US, 'it does not wait on');
  const epoch = a.group.epochs.at(-1)!;
  t.ok(had <= epoch.start.lsn && epoch.start.lsn < end);
  t.equal(epoch.lossless, false);
  t.equal(two.write(a, 1), 0);
  two.heal();
  two.line('fast');
  two.run(() => two.caughtUp);
  t.same(a.group.epochs, b.group.epochs, 'the peer undoes what its primary has lost');
  two.verify(a);
  two.verify(b);
});

t.test('a peer that never answers is waited for as long as recoverWait says', async (t) => {
  const two = new Two(14);
  t.teardown(() => two.world.dispose());
  const { a, world } = two;
  two.split();
  a.crash('power');
  two.start(a);
  const begun = world.clock.now;
  two.run(() => a.group.role === 'primary');
  const waited = world.clock.now - begun;
  t.ok(waited >= RECOVER_WAIT_US && waited < 1.5 * RECOVER_WAIT_US, `${waited} us`);
  t.equal(a.group.epochs.at(-1)!.lossless, false);
});

for (const moment of ['before its peer has answered', 'in the middle of a fetch'] as const) {
  t.test(`a stop of a primary that recovers, ${moment}, is not clean: the next start asks again`, async (t) => {
    const two = new Two(15);
    t.teardown(() => two.world.dispose());
    const { a, b } = two;
    const end = two.loseTail(24);
    const acknowledged = new Map(blocksOf(b));
    two.line('slow');
    if (moment === 'before its peer has answered') two.split();
    two.start(a);
    const recovered = a.group.position.lsn;
    if (moment === 'in the middle of a fetch') two.run(() => a.group.position.lsn > recovered + 4 * WRITE_BYTES);
    t.equal(a.group.role, 'recovering');
    two.stop(a);
    two.heal();
    two.start(a);
    t.equal(a.group.role, 'recovering');
    t.equal(a.group.epochs.length, 1);
    two.run(() => a.group.role === 'primary');
    t.equal(a.group.epochs.at(-1)!.start.lsn, end);
    t.ok(sameBlocks(blocksOf(a), acknowledged));
    two.run(() => two.caughtUp);
    two.verify(a);
  });
}

for (const kind of ['kill', 'power'] as const) {
  t.test(`a promotion that ends by ${kind === 'kill' ? 'SIGKILL' : 'power loss'} before its epoch record is finished as a lossy one`, async (t) => {
    const two = new Two(16);
    t.teardown(() => two.world.dispose());
    const { a, b } = two;
    two.loseTail(4);
    const before = [...b.group.tree.all()].map((device) => device.continuity);
    b.node.fuseKind = kind;
    const { faults } = b.node.disk;
    // The next change of the disk, once the new role is durable, is the last one.
    faults.hook = (site) => {
      if (site.op === 'syncDirectory') faults.fuse = 1;
      return 0;
    };
    b.command({ op: 'promote', group: GROUP, force: true });
    faults.hook = undefined;
    t.notOk(b.alive, 'the process ended while it was promoted');
    two.start(b);
    t.equal(b.group.role, 'primary', 'the promotion holds');
    t.same(b.group.epochs.map(({ number, node, lossless }) => [number, node, lossless]), [[1, 'a', true], [2, 'b', false]]);
    for (const [i, device] of [...b.group.tree.all()].entries()) t.not(device.continuity, before[i], 'clients are told that the content may be another');
    t.equal(two.write(b, 2), 0);
    two.verify(b);
    two.start(a);
    two.run(() => a.group.role === 'fenced');
  });
}

const BOTH_DIAL: readonly [Peering, Peering] = [
  { role: 'primary', listen: ADDRESS.a, peers: [{ node: 'b', address: ADDRESS.b }] },
  { role: 'secondary', listen: ADDRESS.b, peers: [{ node: 'a', address: ADDRESS.a }] },
];

for (const [restarts, words] of [[1, 'as many'], [4, 'more']] as const) {
  for (const dialer of ['the old one', 'the promoted one', 'both'] as const) {
    t.test(`a restarted old primary with ${words} epochs is fenced by a promoted node, when ${dialer} may dial`, async (t) => {
      const two = dialer === 'the old one' ? new Two(17) : new Two(17, ...BOTH_DIAL);
      t.teardown(() => two.world.dispose());
      const { a, b } = two;
      t.equal(two.write(a, 3), 0);
      two.run(() => two.caughtUp);
      two.split();
      two.order(b, { op: 'promote', group: GROUP, force: true });
      t.equal(two.write(b, 5), 0);
      if (dialer === 'the promoted one') Object.assign(a, { peering: { ...BOTH_DIAL[0], peers: [{ node: 'b' }] } });
      for (let i = 0; i < restarts; i++) {
        a.crash('kill');
        two.start(a);
        t.equal(two.write(a, 2), 0, 'it cannot know, and goes on');
      }
      t.same([a.group.epochs.length, b.group.epochs.length], [1 + restarts, 2]);
      two.heal();
      two.run(() => a.group.role === 'fenced');
      t.match(a.group.roleReason, /node b took over as primary in epoch 2/);
      t.equal(a.view([...a.model.state.devices.values()][0]), undefined, 'it serves nothing');
      t.equal(b.group.role, 'primary');
      t.equal(two.write(b, 1), 0);
      two.verify(b);
      a.crash('power');
      two.start(a);
      t.equal(a.group.role, 'fenced', 'nor after another restart');
      t.equal(a.group.epochs.length, 1 + restarts);
    });
  }
}

t.test('a journal that failed is noted at the latest by the stop, so that the next start does not call the history whole', async (t) => {
  const rig = Rig.started(5);
  rig.create('v', MIB);
  const { faults } = rig.host.node.disk;
  faults.rates = { ...faults.rates, lossPerPage: 1 };
  let failedNotes = 0;
  faults.hook = ({ op, path }) => {
    if (op === 'fdatasync' && path.includes('/journal/')) return 5;
    // The first attempt to note it finds no room, either.
    return op === 'pwrite' && path.includes('state.json') && failedNotes++ === 0 ? 28 : 0;
  };
  t.not(rig.ask('v', 'write', 0, 4096, { fua: true }), 0);
  t.equal(rig.host.group.role, 'stopped');
  t.equal(failedNotes, 1, 'the failure could not be noted');
  rig.stop();
  faults.hook = undefined;
  t.equal(rig.tryStart(), undefined);
  t.equal(rig.host.group.epochs.at(-1)!.lossless, false, 'the next epoch says that something may be lost');
  rig.dispose();
});
