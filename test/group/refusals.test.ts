/**
 * What a group refuses rather than get wrong: operations that no node could read
 * back, requests that need a file which is missing, and writes that waited while
 * their device became something else.
 */
import t from 'tap';
import type { Test } from 'tap';
import { SinkLog } from '../../src/base/log.js';
import { KIB, MIB } from '../../src/base/units.js';
import { Commands } from '../../src/daemon/commands.js';
import { DataPath, DEFAULT_SCALE } from '../../src/daemon/datapath.js';
import { planRemove } from '../../src/group/operations/judge.js';
import { decodeMarker, encodeMarker, MAX_REASON, MAX_REMOVED } from '../../src/group/tree/record.js';
import type { Operation } from '../../src/group/tree/record.js';
import { RequestKind } from '../../src/group/requests/requests.js';
import { ExtentFlag } from '../../src/group/requests/service.js';
import type { DeviceView } from '../../src/group/requests/service.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { MAX_MARKER_BYTES } from '../../src/journal/format.js';
import { GROUP, SimHost, SMALL, SPACE_RESERVE } from '../sim/cluster.js';
import { Rig } from '../sim/rig.js';

// ---- markers ------------------------------------------------------------------------------------------

t.test('an epoch whose reason is too long for its marker begins with a shorter one, and can be read back', async (t) => {
  const rig = new Rig(5);
  t.teardown(() => rig.dispose());
  const peers = Array.from({ length: 16 }, (_, i) => ({ node: `node-in-rack-${10 + i}`, address: `b${i}:9` }));
  Object.assign(rig, { host: new SimHost(rig.world, 'lonely', SMALL, { role: 'primary', peers }) });
  rig.start();
  rig.create('v', 8 * MIB);
  rig.host.crash('power');
  rig.start();
  rig.run(() => rig.host.group.role === 'primary');
  t.ok(rig.host.group.roleReason.length > MAX_REASON, 'all peers that did not answer are named');
  t.equal(rig.host.group.epochs.length, 2);
  for (let i = 0; i < 2; i++) {
    rig.host.crash('kill');
    t.equal(rig.tryStart(), undefined);
    t.equal(rig.host.group.epochs.length, 3 + i);
  }
});

/** Performs the operation without the judgement of operations/judge.ts. */
function perform(rig: Rig, operation: Operation): void {
  rig.host.asked.judging = false;
  rig.host.group.operations.perform(operation);
}

t.test('an operation that could not be read back is refused before anything of it is in the stream', async (t) => {
  const rig = Rig.started(6);
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  const { nextId } = rig.host.group.tree;
  const { lsn } = rig.host.group.position;
  const snapshots = Array.from({ length: 257 }, (_, i) => ({ id: nextId + i, source: 1, name: `s${i}` }));
  for (const operation of [{ op: 'snapshot', set: '', snapshots }, { op: 'create', id: nextId, name: 'n'.repeat(65), sizeBytes: MIB }, { op: 'create', id: nextId, name: 'n'.repeat(70_000), sizeBytes: MIB }] as const) {
    t.throws(() => perform(rig, operation), { code: 'operation/too-large' });
  }
  t.equal(rig.host.group.position.lsn, lsn);
  t.equal(rig.host.group.tree.count, 1);
  t.equal(rig.ask('v', 'write', 0, 4096), 0, 'the group goes on');
  rig.snapshot('v', 's');
  rig.host.crash('power');
  t.equal(rig.tryStart(), undefined);
  rig.verify();
});

t.test('a volume with more snapshots than one marker removes is refused whole, and can be removed in parts', async (t) => {
  const rig = Rig.started(7, { segments: 16 });
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  const { group } = rig.host;
  while (group.tree.count <= MAX_REMOVED) {
    const { nextId } = group.tree;
    perform(rig, { op: 'snapshot', set: '', snapshots: Array.from({ length: 256 }, (_, i) => ({ id: nextId + i, source: 1, name: `s${nextId + i}` })) });
  }
  t.equal(group.tree.count, MAX_REMOVED + 1);
  const { lsn } = group.position;
  t.throws(() => rig.remove('v'), { code: 'operation/too-large', message: /4096 snapshots, more than one operation can remove/ });
  t.equal(group.position.lsn, lsn, 'nothing was appended');
  rig.remove('v@s2');
  const { operation } = planRemove({ group: GROUP, tree: group.tree, exports: group.exports }, 'v', true, false);
  const marker = { operation, wallMs: 1, digest: 'ab'.repeat(16) };
  const body = encodeMarker(marker);
  t.same(decodeMarker(body), marker, 'as many as one marker takes can be read back');
  t.ok(body.length <= MAX_MARKER_BYTES);
});

// ---- missing files ------------------------------------------------------------------------------------

const OTHER = 'other';
type Broken = 'layer' | 'map';

/** A node with a group whose oldest layer file (or whose map) is gone, and another group in order. */
class Pair {
  readonly rig: Rig;
  readonly path: DataPath;
  /** What is broken, as far as a message names it. */
  readonly file: string;
  private readonly arena: Arena;

  constructor(seed: number, broken: Broken) {
    const rig = (this.rig = Rig.started(seed));
    rig.create('v', 8 * MIB);
    rig.ask('v', 'write', 0, 64 * KIB);
    rig.snapshot('v', 's');
    rig.ask('v', 'write', MIB, 64 * KIB);
    rig.flushTo('checkpoint');
    rig.stop();
    const { node } = rig.host;
    if (broken === 'layer') {
      [this.file] = rig.paths('layers').filter((path) => path.includes('/device-')).sort();
      const io = node.start();
      io.unlink(this.file);
      io.syncDirectory(Rig.path('layers'));
      node.stop();
    } else {
      const path = rig.paths('').find((one) => /\/map-\d+$/.test(one))!;
      node.disk.corrupt(path, 4096, node.disk.file(path).size - 4096);
      this.file = path.replace(/\d+$/, '');
    }
    const config = rig.host['config']();
    const io = node.start();
    const reactor = new Reactor(io, new Arena(io));
    this.arena = reactor.arena;
    this.path = DataPath.open(reactor, { ...config, groups: [GROUP, OTHER].map((name) => ({ ...config.groups[0], name })) }, new SinkLog(() => undefined), {
      bootId: 'boot', serveNbd: false, scale: { ...DEFAULT_SCALE, requestSlots: 64, maxBatchPayload: SMALL.maxBatchPayload },
      space: (where) => ({ totalBytes: io.space(where).totalBytes, freeBytes: io.space(where).freeBytes + SPACE_RESERVE }),
    });
    node.step = () => reactor.step(-1);
    let created = false;
    new Commands(this.path, 0).handle({ op: 'create', group: OTHER, name: 'w', sizeBytes: MIB, wait: 'durable', waitSeconds: 1 }, {
      done: () => (created = true),
      failed: (error) => {
        throw error;
      },
    });
    rig.run(() => created);
  }

  view(name: string): DeviceView {
    const view = this.path.blocks.find(name);
    if (view === undefined || 'unavailable' in view) throw new Error(`${name} is not served`);
    return view;
  }

  /** One request, answered: its errno. */
  ask(name: string, kind: keyof typeof RequestKind, offset: number, length: number): number {
    const { blocks } = this.path;
    const { requests } = blocks;
    let errno = -1;
    const owner = requests.addOwner({
      completed: (slot) => {
        errno = requests.errno[slot];
        requests.free(slot);
      },
    });
    const slot = requests.alloc(owner);
    const buffer = this.arena.alloc(Math.max(4096, length));
    const view = this.view(name);
    requests.kind[slot] = RequestKind[kind];
    requests.flags[slot] = 0;
    requests.device[slot] = view.id;
    requests.offset[slot] = offset;
    requests.length[slot] = length;
    requests.buffer[slot] = buffer;
    blocks.submit(view, slot);
    this.rig.host.node.poke();
    this.rig.run(() => errno >= 0);
    this.arena.release(buffer);
    return errno;
  }

  extents(view: DeviceView): { count: number; pairs: number[] } {
    const out = new Float64Array(16);
    let count: number | undefined;
    this.path.blocks.extents(view, 0, 4 * MIB, out, (result) => (count = result));
    this.rig.host.node.poke();
    this.rig.run(() => count !== undefined);
    return { count: count!, pairs: [...out.subarray(0, 2 * Math.max(0, count!))] };
  }

  /** The broken group has stopped and says why, the other one serves, and the data path can be closed. */
  checkStopped(t: Pick<Test, 'equal' | 'ok'>): void {
    const group = this.path.blocks.group(GROUP)!;
    t.equal(group.role, 'stopped');
    t.ok(group.roleReason.includes(this.file), `the file is named: ${group.roleReason}`);
    t.ok('unavailable' in this.path.blocks.find(`${GROUP}/v`)!, 'it is not served any more');
    for (const kind of ['write', 'read', 'flush'] as const) t.equal(this.ask(`${OTHER}/w`, kind, 0, 4096), 0, `${kind} of the other group`);
    t.equal(this.path.blocks.group(OTHER)!.role, 'primary');
    let closed = false;
    this.path.close(() => (closed = true));
    this.rig.run(() => closed);
    this.rig.host.node.stop();
  }
}

for (const warm of [false, true]) {
  for (const [kind, offset, length] of [['read', 0, 4096], ['write', 512, 512], ['zero', 100, 5000], ['cache', 0, 4096]] as const) {
    const what = `${offset % 4096 === 0 ? 'a' : 'an unaligned'} ${kind}, ${warm ? 'its map in memory' : 'its map not in memory'}`;
    t.test(`${what}: a missing layer file answers EIO, stops its group and no other`, async (t) => {
      const pair = new Pair(8, 'layer');
      t.teardown(() => pair.rig.dispose());
      if (warm) t.equal(pair.ask(`${GROUP}/v`, 'read', MIB, 4096), 0, 'what lies in another layer is read, and the leaf with it');
      t.equal(pair.path.blocks.group(GROUP)!.role, 'primary');
      t.equal(pair.ask(`${GROUP}/v`, kind, offset, length), 5);
      pair.checkStopped(t);
    });
  }
}

t.test('extents need no layer files, and end with their group', async (t) => {
  const pair = new Pair(9, 'layer');
  t.teardown(() => pair.rig.dispose());
  const view = pair.view(`${GROUP}/v`);
  const hole = ExtentFlag.hole | ExtentFlag.zero;
  t.same(pair.extents(view), { count: 4, pairs: [64 * KIB, 0, MIB - 64 * KIB, hole, 64 * KIB, 0, 3 * MIB - 64 * KIB, hole] });
  t.equal(pair.ask(`${GROUP}/v`, 'read', 0, 4096), 5);
  t.equal(pair.extents(view).count, -108);
  pair.checkStopped(t);
});

t.test('extents by a damaged map answer EIO and stop their group', async (t) => {
  const pair = new Pair(10, 'map');
  t.teardown(() => pair.rig.dispose());
  t.equal(pair.extents(pair.view(`${GROUP}/v`)).count, -5);
  pair.checkStopped(t);
});

// ---- writes that waited -------------------------------------------------------------------------------

const TINY = { segmentBytes: 256 * KIB, segments: 4, maxBatchPayload: 64 * KIB, destageUs: 50_000, checkpointSeconds: 0.01 };

for (const target of ['v', 'w']) {
  t.test(`a write that waits for room with a part of it journaled ${target === 'v' ? 'ends when its device is restored' : 'goes on when another device is restored'}`, async (t) => {
    const rig = Rig.started(11, TINY);
    t.teardown(() => rig.dispose());
    for (const name of ['v', 'w']) {
      rig.create(name, 8 * MIB);
      t.equal(rig.ask(name, 'write', 0, 4096), 0);
      rig.snapshot(name, 's');
    }
    const waits = rig.submit('v', 'write', 0, 6 * MIB);
    rig.run(() => rig.host.group.stalledCount > 0);
    rig.restore(target, `${target}@s`);
    const later = rig.submit('w', 'write', 0, 4096);
    rig.run(() => waits.errno >= 0 && later.errno >= 0);
    t.same([waits.errno, later.errno], [target === 'v' ? 108 : 0, 0]);
    t.equal(rig.host.group.stalledCount, 0);
    rig.verify();
    rig.host.crash('power');
    rig.start();
    rig.verify();
  });
}

t.test('unaligned writes that wait for a disk end when their device is restored, and only those of that device', async (t) => {
  const rig = Rig.started(12, { segmentBytes: MIB });
  t.teardown(() => rig.dispose());
  for (const name of ['v', 'w']) {
    rig.create(name, 8 * MIB);
    t.equal(rig.ask(name, 'write', 0, MIB), 0);
    rig.snapshot(name, 's');
  }
  rig.flushTo('checkpoint');
  rig.host.node.disk.faults.rates.coldRead = 1;
  const ofV = Array.from({ length: 100 }, (_, i) => rig.submit('v', 'write', i * 8 * KIB + 512, 512));
  const ofW = Array.from({ length: 100 }, (_, i) => rig.submit('w', 'write', i * 8 * KIB + 512, 512));
  rig.restore('v', 'v@s');
  rig.host.node.disk.faults.rates.coldRead = 0;
  rig.run(() => [...ofV, ...ofW].every((one) => one.errno >= 0));
  t.ok(ofV.every((one) => one.errno === 108), ofV.map((one) => one.errno).join(' '));
  t.ok(ofW.every((one) => one.errno === 0), ofW.map((one) => one.errno).join(' '));
  rig.verify();
});

// ---- reads that waited --------------------------------------------------------------------------------

t.test('reads and block status that wait for the map while their device is shrunk or removed end with an errno', async (t) => {
  for (const operation of ['resize', 'remove'] as const) {
    const rig = Rig.started(13);
    t.teardown(() => rig.dispose());
    rig.create('v', 8 * MIB);
    t.equal(rig.ask('v', 'write', 5 * MIB, 4096), 0);
    rig.flushTo('checkpoint');
    const { map } = rig.host.group.content.store;
    map.evict(0);
    const read = rig.submit('v', 'read', 5 * MIB, 4096);
    let pairs: number | undefined;
    rig.host.path!.blocks.extents(rig.host.view(rig.device('v'))!, 4 * MIB, 4 * MIB, new Float64Array(16), (count) => (pairs = count));
    t.same([read.errno, pairs], [-1, undefined], 'both wait for the disk');
    const waiting = { wait: 'durable' as const, waitSeconds: 10 };
    rig.host.command(operation === 'resize'
      ? { op: 'resize', group: GROUP, device: 'v', sizeBytes: MIB, force: true, ...waiting }
      : { op: 'remove', group: GROUP, device: 'v', withSnapshots: false, force: true, ...waiting });
    rig.run(() => read.errno >= 0 && pairs !== undefined);
    t.same([read.errno, pairs], operation === 'resize' ? [22, -22] : [108, -108]);
  }
});
