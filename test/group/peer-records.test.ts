/** Records that no honest primary writes are not executed: each is a sentence, and none touches what is this node's own. */
import { pack } from 'msgpackr';
import t from 'tap';
import { putU64 } from '../../src/base/words.js';
import { LOCAL_DEVICES, MIB } from '../../src/base/units.js';
import { Core } from '../../src/group/content/core.js';
import { claimedEpoch, decodeMarker, encodeMarker, UNKNOWN_NODE } from '../../src/group/tree/record.js';
import type { Operation } from '../../src/group/tree/record.js';
import type { Arena } from '../../src/io/arena.js';
import { BATCH_HEADER_BYTES, RecordKind } from '../../src/journal/format.js';
import type { Store } from '../../src/store/store.js';

const create = (name: string, sizeBytes: number, id = 1): Operation => ({ op: 'create', id, name, sizeBytes });
const GOOD: readonly Operation[] = [
  create('w', MIB), create('n'.repeat(64), 4096), { op: 'snapshot', set: '', snapshots: [{ id: LOCAL_DEVICES - 1, source: 1, name: 's' }] },
  { op: 'rename', set: 'other', devices: [1], name: 'other' }, { op: 'resize', device: 1, sizeBytes: 8192 },
];
const BAD: readonly [string, Operation][] = [
  ['larger than any device', create('w', 2 ** 53 - 4096)], ['part of a block', create('w', 4097)], ['the name of a local snapshot', create('v~used', MIB)],
  ['a name that would be printed raw', create('x@../../\0\n', MIB)], ['the id of a local device', create('w', MIB, LOCAL_DEVICES)],
  ['a snapshot with the id of a local device', { op: 'snapshot', set: '', snapshots: [{ id: LOCAL_DEVICES, source: 1, name: 's' }] }],
  ['a set with no name', { op: 'snapshot', set: '@', snapshots: [{ id: 2, source: 1, name: 's' }] }],
  ['a local source', { op: 'assign', verb: 'restore', pairs: [{ target: 1, source: LOCAL_DEVICES }], ranges: [] }],
  ['a rename to nothing', { op: 'rename', set: '', devices: [1], name: '' }], ['a size of part of a block', { op: 'resize', device: 1, sizeBytes: 100 }],
  ['the removal of a local device', { op: 'remove', devices: [LOCAL_DEVICES + 1] }],
];

t.test('a marker is as strict as a request', async (t) => {
  const decode = (operation: Operation): unknown => decodeMarker(encodeMarker({ operation, wallMs: 1, digest: '0'.repeat(32) }));
  for (const operation of GOOD) t.match(decode(operation), { operation });
  for (const [what, operation] of BAD) t.type(decode(operation), 'string', what);
});

t.test('data and zeros for a local device are not written, though the store has the device', async (t) => {
  const u8 = new Uint8Array(8192);
  const view = new DataView(u8.buffer);
  const done: string[] = [];
  const store = {
    find: (id: number) => ({ id, sizeBytes: MIB }),
    write: (id: number) => done.push(`write ${id}`), zero: (id: number) => done.push(`zero ${id}`),
  } as unknown as Store;
  const core = new Core({ u8, view } as unknown as Arena, store);
  const epoch = { number: 1, id: '0'.repeat(32) };
  core.pushEpoch({ ...epoch, start: { lsn: 0, chainHi: 0, chainLo: 0 }, node: 'a', lossless: true, wallMs: 1 });
  const apply = (kind: number, device: number): string | undefined => {
    u8.fill(0);
    view.setUint32(32, 1, true);
    view.setUint32(36, 4096, true);
    view.setUint32(44, epoch.number, true);
    u8[BATCH_HEADER_BYTES] = kind;
    view.setUint32(BATCH_HEADER_BYTES + 4, device, true);
    putU64(view, BATCH_HEADER_BYTES + 16, 4096);
    return core.apply(0, 0, 4096);
  };
  for (const kind of [RecordKind.data, RecordKind.zero]) {
    t.match(apply(kind, LOCAL_DEVICES), /record 0 writes to device 2147483648, which does not exist/);
    t.equal(apply(kind, 7), undefined);
  }
  t.strictSame(done, ['write 7', 'zero 7']);
});

t.test('an epoch whose record this version does not know is still said to be of its node', async (t) => {
  const of = (o: unknown): unknown => claimedEpoch(pack({ o, t: 1, d: '0'.repeat(32) }));
  t.same(of({ op: 'epoch-2', number: 4, node: 'a', lossless: true, more: 1 }), { node: 'a', lossless: true });
  t.same(of({ op: 'epoch-2', node: 'a' }), { node: 'a', lossless: false });
  const unknown = { node: UNKNOWN_NODE, lossless: false };
  for (const o of [undefined, 7, {}, { node: 'no name\n' }, { node: 7, lossless: true }]) t.same(of(o), unknown);
  t.same(claimedEpoch(new Uint8Array([0xc1])), unknown);
  t.same(claimedEpoch(new Uint8Array(0)), unknown);
});
