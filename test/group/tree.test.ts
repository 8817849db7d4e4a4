/** The logical tree and its digest, and the bodies of markers. */
import fc from 'fast-check';
import { pack } from 'msgpackr';
import t from 'tap';
import { decodeMarker, encodeMarker } from '../../src/group/tree/record.js';
import type { Operation } from '../../src/group/tree/record.js';
import { Tree } from '../../src/group/tree/tree.js';
import type { At } from '../../src/group/tree/change.js';

const EPOCH = 'ab'.repeat(16);
const at = (lsn: number): At => ({ lsn, epochId: EPOCH, wallMs: 1_700_000_000_000 + lsn });

function edited(tree: Tree, operation: Operation, lsn: number): Tree {
  const edit = tree.edit(operation, at(lsn));
  if (typeof edit === 'string') throw new Error(edit);
  return edit.tree;
}

/** A tree: volumes 1 and 2; 3 = 1@a, 4 = 1@b taken from 3. */
function sample(): Tree {
  let tree = Tree.empty;
  tree = edited(tree, { op: 'create', id: 1, name: 'one', sizeBytes: 1 << 20 }, 1);
  tree = edited(tree, { op: 'create', id: 2, name: 'two', sizeBytes: 1 << 21 }, 2);
  tree = edited(tree, { op: 'snapshot', set: '', snapshots: [{ id: 3, source: 1, name: 'a' }] }, 3);
  return edited(tree, { op: 'snapshot', set: '', snapshots: [{ id: 4, source: 3, name: 'b' }] }, 4);
}

t.test('devices are found by name, and names of snapshots follow their volume', async (t) => {
  const tree = sample();
  t.equal(tree.find('one')?.id, 1);
  t.equal(tree.find('one@b')?.id, 4);
  t.equal(tree.find('one@c'), undefined);
  t.equal(tree.get(4)?.parent, 3);
  t.equal(tree.get(4)?.volume, 1);
  t.equal(tree.count, 4);
  t.equal(tree.nextId, 5);
});

t.test('a removed snapshot leaves its children to its parent, and no name behind', async (t) => {
  const tree = edited(sample(), { op: 'remove', devices: [3] }, 5);
  t.equal(tree.get(4)?.parent, 1);
  t.equal(tree.get(4)?.changedLsn, 5);
  t.equal(tree.find('one@a'), undefined);
  t.equal(tree.nextId, 5, 'ids are not used again');
});

t.test('a whole volume goes, youngest snapshot first', async (t) => {
  const tree = edited(sample(), { op: 'remove', devices: [4, 3, 1] }, 5);
  t.same([...tree.all()].map((one) => one.id), [2]);
});

t.test('an assign takes size and breaks continuity of the target only', async (t) => {
  const before = sample();
  const tree = edited(before, { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: 4 }], ranges: [] }, 9);
  t.equal(tree.get(1)?.continuity, `${EPOCH}:9`);
  t.equal(tree.get(4)?.continuity, before.get(4)?.continuity);
});

t.test('a lossy epoch breaks the continuity of all, a lossless one of none', async (t) => {
  const epoch = { op: 'epoch' as const, number: 2, id: EPOCH, node: 'n', reason: '' };
  t.ok([...edited(sample(), { ...epoch, lossless: false }, 9).all()].every((one) => one.continuity === `${EPOCH}:9`));
  t.equal(edited(sample(), { ...epoch, lossless: true }, 9).digest(EPOCH), sample().digest(EPOCH));
});

t.test('what contradicts the tree is refused with a sentence and changes nothing', async (t) => {
  const tree = sample();
  const digest = tree.digest(EPOCH);
  const wrong: Operation[] = [
    { op: 'create', id: 9, name: 'x', sizeBytes: 4096 },
    { op: 'create', id: 5, name: 'one', sizeBytes: 4096 },
    { op: 'snapshot', set: '', snapshots: [{ id: 5, source: 77, name: 'x' }] },
    { op: 'snapshot', set: '', snapshots: [{ id: 6, source: 1, name: 'x' }] },
    { op: 'snapshot', set: '', snapshots: [{ id: 5, source: 1, name: 'a' }] },
    { op: 'snapshot', set: '', snapshots: [{ id: 5, source: 1, name: 'x' }, { id: 6, source: 1, name: 'x' }] },
    { op: 'assign', verb: 'restore', pairs: [{ target: 77, source: 1 }], ranges: [] },
    { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: 77 }], ranges: [] },
    { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: 1 }], ranges: [] },
    { op: 'remove', devices: [77] },
    { op: 'remove', devices: [1] },
    { op: 'remove', devices: [3, 3] },
  ];
  for (const operation of wrong) t.type(tree.edit(operation, at(9)), 'string', JSON.stringify(operation));
  t.equal(tree.digest(EPOCH), digest);
});

t.test('the digest tells every field of every device apart, and the epoch', async (t) => {
  const devices = [...sample().all()];
  const seen = new Set([Tree.fromDevices(devices, 5).digest(EPOCH), sample().digest('cd'.repeat(16))]);
  for (const device of devices) {
    const changes = {
      id: 99, name: 'other', kind: device.kind === 'volume' ? 'snapshot' : 'volume', parent: 77, volume: 78, sizeBytes: 4096, protected: true, createdLsn: 999,
      createdMs: 999, changedLsn: 999, continuity: 'x:1',
    } as const;
    for (const [field, value] of Object.entries(changes)) {
      seen.add(Tree.fromDevices(devices.map((one) => (one === device ? { ...one, [field]: value } : one)), 5).digest(EPOCH));
    }
  }
  t.equal(seen.size, 2 + devices.length * 11);
});

t.test('the digest is the same for the same devices, whatever way led there', async (t) => {
  const operation = fc.oneof(
    fc.record({ kind: fc.constant('create' as const), name: fc.constantFrom('a', 'b', 'c', 'd') }),
    fc.record({ kind: fc.constant('snapshot' as const), source: fc.nat(9), name: fc.constantFrom('s', 't', 'u') }),
    fc.record({ kind: fc.constant('assign' as const), target: fc.nat(9), source: fc.nat(9) }),
    fc.record({ kind: fc.constant('remove' as const), device: fc.nat(9) }),
  );
  fc.assert(fc.property(fc.array(operation, { maxLength: 40 }), (steps) => {
    let tree = Tree.empty;
    let lsn = 1;
    for (const one of steps) {
      const all = [...tree.all()];
      const pick = (i: number): number => all[i % Math.max(1, all.length)]?.id ?? 0;
      let real: Operation;
      if (one.kind === 'create') real = { op: 'create', id: tree.nextId, name: one.name, sizeBytes: 4096 };
      else if (one.kind === 'snapshot') real = { op: 'snapshot', set: '', snapshots: [{ id: tree.nextId, source: pick(one.source), name: one.name }] };
      else if (one.kind === 'assign') real = { op: 'assign', verb: 'restore', pairs: [{ target: pick(one.target), source: pick(one.source) }], ranges: [] };
      else real = { op: 'remove', devices: [pick(one.device)] };
      const edit = tree.edit(real, at(lsn++));
      if (typeof edit !== 'string') tree = edit.tree;
    }
    const again = Tree.fromDevices([...tree.all()].reverse(), tree.nextId);
    if (again.digest(EPOCH) !== tree.digest(EPOCH)) throw new Error('the digest depends on the way');
    if (again.sums.join() !== tree.sums.join()) throw new Error('the sums depend on the way');
    for (const device of tree.all()) if (tree.find(tree.nameOf(device)) !== device || again.find(again.nameOf(device))?.id !== device.id) throw new Error(`${device.id} is not found by its name`);
    for (const device of tree.all()) if (device.parent !== 0 && tree.get(device.parent) === undefined) throw new Error('a parent is missing');
  }), { numRuns: 300 });
  t.pass();
});

t.test('markers come back as they were written', async (t) => {
  const operations: Operation[] = [
    { op: 'epoch', number: 3, id: EPOCH, node: 'n', lossless: true, reason: 'because' },
    { op: 'create', id: 1, name: 'v', sizeBytes: 2 ** 50 },
    { op: 'snapshot', set: '', snapshots: [{ id: 2, source: 1, name: 's' }, { id: 3, source: 1, name: 't' }] },
    { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: 2 }], ranges: [] },
    { op: 'remove', devices: [3, 2, 1] },
  ];
  for (const operation of operations) {
    const older = { operation, wallMs: 1_700_000_000_123, digest: 'ef'.repeat(16) };
    t.same(decodeMarker(encodeMarker(older)), older, 'also of a time before there were sums');
    const marker = { ...older, sums: sample().sums };
    t.same(decodeMarker(encodeMarker(marker)), marker, operation.op);
    t.ok(encodeMarker(marker).length < 1024, 'and are below 1 KiB');
  }
});

t.test('bodies that are no marker are refused with words, never thrown at', async (t) => {
  const good = { o: { op: 'create', id: 1, name: 'v', sizeBytes: 4096 }, t: 1, d: 'ef'.repeat(16) };
  for (const [body, words] of [
    [new Uint8Array([0xc1]), /./], [new Uint8Array([0xdc, 0xff, 0xff]), /./], [pack('x'), /not a marker/], [pack({ ...good, d: 'x' }), /not a marker/], [pack({ ...good, x: 1 }), /not a marker/],
    ...[new Uint8Array(75), new Uint8Array(77), new Uint8Array(0), 'f'.repeat(76), new Array(76).fill(0), null].map((f): [Uint8Array, RegExp] => [pack({ ...good, f }), /not a marker/]),
    [pack({ ...good, o: { op: 'resize', id: 1 } }), /does not know \(resize\)/], [pack({ ...good, o: { ...good.o, extra: 1 } }), /does not know/], [pack({ ...good, o: null }), /unnamed/],
    [pack({ ...good, o: { ...good.o, id: 0 } }), /does not know/], [pack({ ...good, o: { ...good.o, sizeBytes: 1.5 } }), /does not know/],
  ] as const) {
    const found = decodeMarker(body);
    t.type(found, 'string');
    if (typeof found === 'string') t.match(found, words);
  }
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
    decodeMarker(bytes);
  }), { numRuns: 500 });
});
