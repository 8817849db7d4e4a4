/** The meter: a bound at once, the exact number of changed bytes when maps were compared, and nothing kept for it. */
import t from 'tap';
import { IoError } from '../../src/base/errors.js';
import { KIB, MIB } from '../../src/base/units.js';
import { OPERATIONS_KEPT } from '../../src/group/operations/meter.js';
import type { MeteredOperation } from '../../src/group/operations/meter.js';
import type { Operation, Range } from '../../src/group/tree/record.js';
import { Random } from '../sim/random.js';
import type { Rig } from '../store/walkrig.js';
import { BLOCK, Machine, machine } from '../store/walkmachine.js';

t.setTimeout(300_000);

function perform(rig: Rig, operation: Operation): MeteredOperation {
  const { lsn } = rig.group.operations.perform(operation);
  return rig.group.meter.find(lsn)!;
}

function idOf(rig: Rig, name: string): number {
  return rig.group.tree.find(name)!.id;
}

/** `target` becomes what `source` is, whole or in ranges of bytes, in group and model. */
function assign(rig: Rig, target: string, source: string, ranges: Range[] = []): MeteredOperation {
  const operation = perform(rig, { op: 'assign', verb: 'restore', pairs: [{ target: idOf(rig, target), source: idOf(rig, source) }], ranges: ranges.map(([offset, length]) => [offset, length]) });
  const from = rig.model.get(source)!.tags;
  const { tags } = rig.model.get(target)!;
  const inside = (block: number): boolean => ranges.length === 0 || ranges.some(([offset, length]) => block * BLOCK >= offset && block * BLOCK < offset + length);
  for (const block of [...tags.keys()]) if (inside(block)) tags.delete(block);
  for (const [block, tag] of from) if (inside(block)) tags.set(block, tag);
  return operation;
}

/** Blocks whose tag differs. */
function differing(a: ReadonlyMap<number, number>, b: ReadonlyMap<number, number>): number {
  return [...new Set([...a.keys(), ...b.keys()])].filter((block) => a.get(block) !== b.get(block)).length;
}

t.test('a bound at once, the exact bytes when the comparison has ended', async (t) => {
  const at = machine(1);
  const { rig } = at;
  const { meter } = rig.group;
  rig.create('v', 64 * MIB);
  for (let i = 0; i < 30; i++) rig.write('v', i * 512, 3);
  rig.snapshot('v', 'a');
  t.match(meter.operations.map(({ verb, what, changedBytes, state }) => [verb, what, changedBytes, state]), [['create', 'v', 0, 'exact'], ['snapshot', 'v@a', 0, 'exact']]);
  rig.write('v', 1, 7);
  rig.write('v', 5000, 20);
  rig.trim('v', 512, 2);
  const restore = assign(rig, 'v', 'v@a');
  t.match(restore, { verb: 'restore', what: 'v from v@a', devices: [1], changedBytes: 64 * MIB, state: 'counting' });
  t.ok(restore.dataThreadUs >= 0 && rig.group.meter.longestUs >= restore.dataThreadUs);
  t.equal(rig.group.content.store.held.size, 2);
  rig.write('v', 0, 40);
  rig.until(() => restore.state !== 'counting');
  t.match(restore, { state: 'exact', changedBytes: (7 + 20 + 2) * BLOCK });
  t.equal(rig.group.content.store.held.size, 0, 'no root is held any more');

  const part = assign(rig, 'v', 'v@a', [[0, 4 * BLOCK], [16 * BLOCK, 100 * BLOCK]]);
  t.match(part, { changedBytes: 104 * BLOCK, state: 'counting' });
  rig.until(() => part.state !== 'counting');
  t.match(part, { state: 'exact', changedBytes: (4 + 24) * BLOCK });

  t.match(perform(rig, { op: 'resize', device: 1, sizeBytes: 80 * MIB }), { verb: 'resize', what: 'v', changedBytes: 16 * MIB, state: 'exact' });
  t.match(perform(rig, { op: 'resize', device: 1, sizeBytes: 70 * MIB }), { changedBytes: 10 * MIB, state: 'exact' });
  t.match(perform(rig, { op: 'clone', id: 3, source: 2, name: 'w' }), { verb: 'clone', what: 'w from v@a', devices: [3], changedBytes: 0, state: 'exact' });
  t.match(perform(rig, { op: 'rename', set: '', devices: [3], name: 'x' }), { verb: 'rename', what: 'w to x', changedBytes: 0 });
  t.match(perform(rig, { op: 'protect', devices: [3], on: true }), { verb: 'protect', what: 'x', changedBytes: 0 });
  t.match(perform(rig, { op: 'protect', devices: [3], on: false }), { verb: 'unprotect', what: 'x' });
  t.match(perform(rig, { op: 'remove', devices: [2] }), { verb: 'remove', what: 'v@a', devices: [2], changedBytes: 0 });
  t.match(meter.totals.get('restore'), { operations: 2, changedBytes: (29 + 28) * BLOCK });
  t.match(meter.totals.get('resize'), { operations: 2, changedBytes: 26 * MIB });
  at.world.dispose();
});

t.test('a whole assign between sizes is bounded by the larger one', async (t) => {
  const at = machine(2);
  const { rig } = at;
  rig.create('v', 8 * MIB);
  rig.write('v', 2000, 10);
  rig.snapshot('v', 'a');
  perform(rig, { op: 'resize', device: 1, sizeBytes: 4 * MIB });
  const restore = assign(rig, 'v', 'v@a');
  t.match(restore, { changedBytes: 8 * MIB });
  rig.until(() => restore.state !== 'counting');
  t.match(restore, { state: 'exact', changedBytes: 10 * BLOCK });
  at.world.dispose();
});

t.test('a set is compared device by device', async (t) => {
  const at = machine(3);
  const { rig } = at;
  for (const name of ['v', 'w', 'x']) {
    rig.create(name, 4 * MIB);
    rig.write(name, 0, 10);
  }
  perform(rig, { op: 'snapshot', set: 's', snapshots: [{ id: 4, source: 1, name: 's' }, { id: 5, source: 2, name: 's' }, { id: 6, source: 3, name: 's' }] });
  rig.write('v', 0, 3);
  rig.write('x', 100, 4);
  const restore = perform(rig, { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: 4 }, { target: 2, source: 5 }, { target: 3, source: 6 }], ranges: [] });
  t.match(restore, { what: 'v from v@s, w from w@s, x from x@s', changedBytes: 12 * MIB, state: 'counting' });
  rig.until(() => restore.state !== 'counting');
  t.match(restore, { state: 'exact', changedBytes: 7 * BLOCK });
  at.world.dispose();
});

t.test('of many operations at once some keep their bound, and only the newest are kept', async (t) => {
  const at = machine(4);
  const { rig } = at;
  const { meter } = rig.group;
  rig.create('v', 4 * MIB);
  rig.write('v', 0, 10);
  rig.snapshot('v', 'a');
  rig.write('v', 5, 1);
  for (let i = 0; i < 10; i++) assign(rig, 'v', 'v@a');
  const count = (state: string): number => meter.operations.filter((one) => one.verb === 'restore' && one.state === state).length;
  t.same([count('counting'), count('bound')], [4, 6]);
  rig.until(() => count('counting') === 0);
  t.same([count('exact'), count('bound')], [4, 6]);
  t.equal(meter.totals.get('restore')!.changedBytes, BLOCK + 6 * 4 * MIB, 'one block, then nothing three times, then bounds');
  const first = meter.operations[0].lsn;
  for (let i = 0; i < OPERATIONS_KEPT; i++) perform(rig, { op: 'protect', devices: [2], on: i % 2 === 0 });
  t.equal(meter.operations.length, OPERATIONS_KEPT);
  t.equal(meter.find(first), undefined);
  t.equal(meter.find(meter.operations[17].lsn), meter.operations[17]);
  t.equal(meter.find(meter.operations[17].lsn + 1), undefined);
  at.world.dispose();
});

t.test('a comparison that is cut off leaves the bound', async (t) => {
  const at = machine(5);
  const { rig } = at;
  rig.create('v', 64 * MIB);
  rig.write('v', 0, 10);
  rig.snapshot('v', 'a');
  rig.write('v', 5, 1);
  const restore = assign(rig, 'v', 'v@a');
  t.equal(restore.state, 'counting');
  rig.close();
  t.match(restore, { state: 'bound', changedBytes: 64 * MIB });
  at.world.dispose();
});

t.test('operations that a rewind undoes are forgotten, and their comparisons end', async (t) => {
  const at = machine(6);
  const { rig } = at;
  const { meter, content } = rig.group;
  rig.create('v', 64 * MIB);
  rig.write('v', 0, 10);
  rig.snapshot('v', 'a');
  rig.settle();
  rig.write('v', 5, 1);
  const kept = assign(rig, 'v', 'v@a');
  const { position } = rig.group;
  const undone = assign(rig, 'v', 'v@a');
  perform(rig, { op: 'protect', devices: [2], on: true });
  t.same([kept.state, undone.state], ['counting', 'counting']);
  content.stop();
  rig.until(() => content.quiet);
  rig.group.reopen(position);
  t.same([kept.state, undone.state], ['bound', 'bound']);
  t.same(meter.operations.map(({ verb }) => verb), ['create', 'snapshot', 'restore']);
  t.equal(content.store.held.size, 0);
  const again = assign(rig, 'v', 'v@a');
  rig.until(() => again.state === 'exact');
  t.match(again, { lsn: undone.lsn, changedBytes: 0 });
  t.equal(meter.find(again.lsn), again);
  at.world.dispose();
});

t.test('a marker that fails half-way gives its shares back, is not metered, and stops the group', async (t) => {
  const at = machine(7);
  const { rig } = at;
  const { meter, content } = rig.group;
  rig.create('v', 64 * MIB);
  rig.write('v', 0, 10);
  rig.snapshot('v', 'a');
  rig.settle();
  const { store } = content;
  const metered = meter.operations.length;
  let shares = 0;
  const share = store.map.share.bind(store.map);
  const drop = store.map.drop.bind(store.map);
  store.map.share = (root) => {
    shares++;
    return share(root);
  };
  store.map.drop = (root) => {
    shares--;
    drop(root);
  };
  store.assign = () => {
    throw new IoError(5, 'read the map of', '/data');
  };
  t.throws(() => assign(rig, 'v', 'v@a'), IoError);
  t.equal(shares, 0);
  t.equal(meter.operations.length, metered);
  t.equal(rig.group.role, 'stopped');
  t.match(rig.group.roleReason, /read the map of \/data: .*\(EIO\)/);
  at.world.dispose();
});

/** Random work; every comparison must find what the model says. Returns how many were checked, and compactions meanwhile. */
function randomRun(seed: number): { checked: number; compactions: number } {
  const random = new Random(seed);
  const at = new Machine(seed, {
    walker: { pauseUs: 50, restUs: 200, restFactor: 0, retryUs: 1000, overwrittenBlocks: 64 },
    destageUs: random.pick([500, 20_000]), checkpointUs: random.pick([2000, 20_000]), mapMemoryBytes: random.pick([16 * KIB, 16 * MIB]),
    compactSlackBytes: random.pick([0, 8 * KIB]), mapTasks: { pauseUs: random.pick([50, 2000]), stepUs: 300, stepUnits: random.pick([16, 200, 2000]) },
  });
  at.start();
  const { rig } = at;
  const sizeBytes = random.pick([MIB, 24 * MIB, 300 * MIB]) + 3 * BLOCK;
  const blocks = sizeBytes / BLOCK;
  rig.create('v', sizeBytes);
  rig.snapshot('v', 'first');
  const awaited: { operation: MeteredOperation; want: number }[] = [];
  const fileNumber = (): number => rig.group.content.checkpointer.file(rig.group.content.store.map.currentFile).number;
  let mapFile = fileNumber();
  let compactions = 0;
  let name = 1;
  for (let step = 0; step < 120; step++) {
    const devices = [...rig.model.keys()];
    const device = random.pick(devices);
    const block = Math.min(blocks - 1, random.pick([0, 500, 1024, 5000, 40_000, 70_000]) + random.below(40));
    const count = Math.min(blocks - block, random.between(1, random.pick([2, 40, 1200])));
    const roll = random.unit();
    if (roll < 0.5) rig.write(device, block, Math.min(count, 100));
    else if (roll < 0.6) rig.trim(device, block, count);
    else if (roll < 0.7 && devices.length < 8) rig.snapshot(device, `s${name++}`);
    else if (roll < 0.75 && devices.length > 3) rig.remove(random.pick(devices.filter((one) => one !== 'v')));
    else if (roll < 0.95 && devices.length > 1) {
      const source = random.pick(devices.filter((one) => one !== device));
      const before = new Map(rig.model.get(device)!.tags);
      const operation = assign(rig, device, source, random.chance(0.5) ? [] : [[block * BLOCK, count * BLOCK]]);
      if (operation.state === 'counting') awaited.push({ operation, want: differing(before, rig.model.get(device)!.tags) * BLOCK });
    }
    if (random.chance(0.3)) rig.settle();
    if (fileNumber() !== mapFile && awaited.some(({ operation }) => operation.state === 'counting')) compactions++;
    mapFile = fileNumber();
  }
  rig.until(() => awaited.every(({ operation }) => operation.state !== 'counting'));
  let checked = 0;
  for (const { operation, want } of awaited) {
    if (operation.state === 'bound') continue;
    checked++;
    if (operation.changedBytes !== want) throw new Error(`${operation.what} at LSN ${operation.lsn} changed ${operation.changedBytes}, should be ${want}`);
  }
  if (rig.group.content.store.held.size > 0) throw new Error('a root is held for nothing');
  at.world.dispose();
  return { checked, compactions };
}

t.test('exact is what a flat model says, while writes, paging and compactions go on', async (t) => {
  const first = Number(process.env['TEST_SEED'] ?? 1);
  let checked = 0;
  let compactions = 0;
  for (let seed = first; seed < first + 25; seed++) {
    try {
      const run = randomRun(seed);
      checked += run.checked;
      compactions += run.compactions;
    } catch (error) {
      t.fail(`TEST_SEED=${seed}: ${error instanceof Error ? error.stack : String(error)}`);
      return;
    }
  }
  t.comment(`25 seeds from ${first}: ${checked} comparisons, ${compactions} compactions of the map file while some ran`);
  t.ok(checked > 400);
  t.ok(compactions > 0 || process.env['TEST_SEED'] !== undefined, 'compactions happen during comparisons');
});
