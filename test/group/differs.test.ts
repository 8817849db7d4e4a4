/** What a node says when it gets another tree than a marker says: which kinds of fields differ, of which device, and what to do. */
import { pack } from 'msgpackr';
import t from 'tap';
import { putHex, putU64 } from '../../src/base/words.js';
import { Core } from '../../src/group/content/core.js';
import { REMEDY } from '../../src/group/tree/differs.js';
import { encodeSums } from '../../src/group/tree/fieldsums.js';
import { encodeMarker } from '../../src/group/tree/record.js';
import type { Marker, Operation } from '../../src/group/tree/record.js';
import { Tree } from '../../src/group/tree/tree.js';
import type { Device } from '../../src/group/tree/device.js';
import type { Arena } from '../../src/io/arena.js';
import { BATCH_HEADER_BYTES, MAX_MARKER_BYTES, RecordKind } from '../../src/journal/format.js';
import type { Store } from '../../src/store/store.js';
import { MAX_KEPT } from '../../src/replication/message.js';

const EPOCH = 'ab'.repeat(16);
const BATCH_LSN = 8192;
const AT = { lsn: BATCH_LSN + BATCH_HEADER_BYTES, epochId: EPOCH, wallMs: 1_700_000_000_000 };
const BODY_AT = 4096;

function device(id: number, over: Partial<Device> = {}): Device {
  return {
    id, name: `v${id}`, kind: 'volume', parent: 0, volume: id, sizeBytes: 4096 * id, protected: false, createdLsn: 100 + id, createdMs: 1000 + id, changedLsn: 200 + id,
    set: '', continuity: `${EPOCH}:${100 + id}`, ...over,
  };
}

const SAMPLE = [device(1), device(2), device(3, { name: 'a', kind: 'snapshot', parent: 1, volume: 1, set: 'x' })];
const PROTECT_TWO: Operation = { op: 'protect', devices: [2], on: true };

function treeOf(devices: readonly Device[]): Tree {
  return Tree.fromDevices(devices, Math.max(...devices.map((one) => one.id)) + 1);
}

function markerOf(tree: Tree, operation: Operation): Marker {
  const edit = tree.edit(operation, AT);
  if (typeof edit === 'string') throw new Error(edit);
  return { operation, wallMs: AT.wallMs, ...edit.tree.proof(EPOCH) };
}

/** What a node with `tree` says to the marker with this body. */
function said(tree: Tree, body: Uint8Array): string {
  const u8 = new Uint8Array(BODY_AT + MAX_MARKER_BYTES);
  const view = new DataView(u8.buffer);
  view.setUint32(32, 1, true);
  view.setUint32(44, 1, true);
  putHex(u8, 48, EPOCH);
  u8[BATCH_HEADER_BYTES] = RecordKind.marker;
  putU64(view, BATCH_HEADER_BYTES + 16, body.length);
  u8.set(body, BODY_AT);
  const core = new Core({ u8, view } as unknown as Arena, {} as Store);
  core.tree = tree;
  core.pushEpoch({ number: 1, id: EPOCH, start: { lsn: 0, chainHi: 0, chainLo: 0 }, node: 'a', lossless: true, wallMs: 1 });
  const problem = core.apply(0, BATCH_LSN, BODY_AT);
  if (problem === undefined) return 'nothing';
  if (core.tree !== tree) throw new Error('something of it was executed');
  return problem;
}

/** Of two nodes with these devices, what the second says to the first one's marker, without what is the same in all. */
function between(theirs: readonly Device[], mine: readonly Device[], operation: Operation = PROTECT_TWO): string {
  const sentence = said(treeOf(mine), encodeMarker(markerOf(treeOf(theirs), operation)));
  const framed = /^the marker "[a-z]+" at LSN 8288 left the primary with tree digest [0-9a-f]{32}, this node would get [0-9a-f]{32}: (.*)$/.exec(sentence);
  if (framed === null || !sentence.endsWith(`. ${REMEDY}`)) return sentence;
  if (sentence.length > MAX_KEPT - 5) throw new Error(`a sentence of ${sentence.length} characters, which does not reach the primary as a whole`);
  return framed[1].slice(0, -REMEDY.length - 2);
}

t.test('each kind of field that differs is named, with the device and what is here', async (t) => {
  const wanted: Record<Exclude<keyof Device, 'id'>, [unknown, string, string]> = {
    kind: ['volume', 'existence or kind of a (device 3)', 'volume'],
    name: ['b', 'name of v1@b (device 3)', 'name b'],
    set: ['', 'set of v1@a (device 3)', 'in no set'],
    parent: [2, 'descent of v1@a (device 3)', 'taken from device 2, of volume 1'],
    volume: [2, 'descent of v2@a (device 3)', 'taken from device 1, of volume 2'],
    sizeBytes: [2 ** 40, 'size of v1@a (device 3)', '1099511627776 bytes'],
    protected: [true, 'protection of v1@a (device 3)', 'protected'],
    createdLsn: [9, 'creation of v1@a (device 3)', 'created at LSN 9, 1003 ms since 1970'],
    createdMs: [2 ** 41, 'creation of v1@a (device 3)', 'created at LSN 103, 2199023255552 ms since 1970'],
    changedLsn: [9, 'last change of v1@a (device 3)', 'changed at LSN 9'],
    continuity: ['x:1', 'continuity of v1@a (device 3)', 'continuity x:1'],
  };
  t.same(Object.keys(wanted).sort(), Object.keys(SAMPLE[0]).filter((field) => field !== 'id').sort(), 'every field is tried');
  for (const [field, [value, what, here]] of Object.entries(wanted)) {
    const mine = SAMPLE.map((one) => (one.id === 3 ? { ...one, [field]: value } : one));
    t.equal(between(SAMPLE, mine), `the trees differ in ${what}: here ${here}`, field);
  }
  t.match(between(SAMPLE, [SAMPLE[0], SAMPLE[1], { ...SAMPLE[2], id: 9 }]), /^the trees differ in which devices there are, and perhaps in more\. Of the devices that the marker touches/, 'id');
  t.equal(between(SAMPLE, [SAMPLE[0], SAMPLE[1], { ...SAMPLE[2], protected: true, sizeBytes: 8192 }]), 'the trees differ in size and protection of v1@a (device 3): here 8192 bytes, protected');
  t.equal(between(SAMPLE, [SAMPLE[0], { ...SAMPLE[1], sizeBytes: 12288 }, SAMPLE[2]]), 'the trees differ in size of v2 (device 2): here 12288 bytes', 'of the device that the marker touches');
  t.equal(between(SAMPLE, [{ ...SAMPLE[0], sizeBytes: 8192 }, SAMPLE[1], { ...SAMPLE[2], set: 'y' }]), 'the trees differ in set of v1@a (device 3): here set y; size of v1 (device 1): here 8192 bytes', 'two devices');
});

t.test('a device that only one of the nodes has is named, and what else differs, too', async (t) => {
  const more = [...SAMPLE, device(4)];
  t.equal(between(more, SAMPLE), 'the trees differ in device 4, which the primary has and this node would not');
  t.equal(between(SAMPLE, more), 'the trees differ in v4 (device 4), which this node would have and the primary has not');
  t.match(between([...SAMPLE, device(4), device(5)], SAMPLE), /^the trees differ in which devices there are \(the primary has 5, this node would have 3\), and perhaps in more\./);
  const resized = [{ ...SAMPLE[0], sizeBytes: 8192 }, SAMPLE[1], SAMPLE[2]];
  t.match(between(more, resized), /^the trees differ in device 4, which the primary has and this node would not; size of several devices\. Of the devices that the marker touches this node would have v2 \(device 2\): 8192 bytes$/);
});

t.test('what differs of many devices is said of those that the marker touches, and never at length', async (t) => {
  const name = (i: number): string => `${'n'.repeat(60)}${1000 + i}`;
  const theirs = Array.from({ length: 256 }, (_, i) => device(1 + i, { name: name(i) }));
  const snapshots = theirs.map((one, i) => ({ id: 257 + i, source: one.id, name: 's'.repeat(64) }));
  const together: Operation = { op: 'snapshot', set: 's'.repeat(64), snapshots };
  const sizes = between(theirs, theirs.map((one) => ({ ...one, sizeBytes: one.sizeBytes + 4096 })), together);
  t.match(sizes, /^the trees differ in size of several devices\. Of the devices that the marker touches this node would have n{60}1000@s{64} \(device 257\): 8192 bytes; .*; and 25\d more$/);
  const all = theirs.map((one) => ({
    ...one, name: `m${one.name.slice(1)}`, kind: 'snapshot' as const, parent: 999, volume: 998, sizeBytes: 2 ** 49, protected: true, createdLsn: 2 ** 52, createdMs: 2 ** 52, changedLsn: 2 ** 52, set: 's'.repeat(64), continuity: 'c'.repeat(60),
  }));
  t.match(between(theirs, all, { op: 'protect', devices: [1, 2, 3], on: true }), /^the trees differ in which devices there are, and perhaps in more\. Of the devices that the marker touches/);
  const apart = theirs.slice(0, 9).map((one, i) => ({ ...one, ...[{ name: 'q'.repeat(64) }, { set: 's'.repeat(64) }, { sizeBytes: 4096 }, { protected: true }, { createdLsn: 7 }, { changedLsn: 7 }, { continuity: 'z' }, { parent: 5 }, {}][i] }));
  t.match(between(theirs.slice(0, 9), apart), /; and \d more$/);
  const long = (letter: string): Device[] => SAMPLE.map((one) => ({ ...one, continuity: letter.repeat(5000) }));
  t.match(between(long('c'), long('d')), /^the trees differ in continuity of several devices\. Of the .* would have v2 \(device 2\): continuity d+ \.\.\.$/, 'however long a field is');
});

t.test('when no field differs it says so; a marker without sums says that the trees differ', async (t) => {
  const marker = markerOf(treeOf(SAMPLE), PROTECT_TWO);
  const foreign = { ...marker, digest: '0'.repeat(32) };
  t.match(said(treeOf(SAMPLE), encodeMarker(foreign)), /would get [0-9a-f]{32}: all fields of all devices agree, so only the epoch, or how the digest is computed, differs\. Restart lockstepd/);
  const { operation, wallMs, digest } = marker;
  t.equal(said(treeOf(SAMPLE.slice(0, 2)), encodeMarker({ operation, wallMs, digest })), `the marker "protect" at LSN 8288 left the primary with tree digest ${digest}, this node would get ${treeOf([SAMPLE[0], { ...SAMPLE[1], protected: true, changedLsn: 8288 }]).digest(EPOCH)}: the trees differ. ${REMEDY}`);
});

t.test('a record that is not known, or contradicts the tree, is said with the same remedy', async (t) => {
  t.equal(said(treeOf(SAMPLE), pack({ o: { op: 'fold' }, t: 1, d: '0'.repeat(32) })), `the marker at LSN 8288 cannot be executed: it is an operation that this version does not know (fold). ${REMEDY}`);
  t.equal(said(treeOf(SAMPLE), pack({ o: PROTECT_TWO, t: 1, d: '0'.repeat(32), f: new Uint8Array(7) })), `the marker at LSN 8288 cannot be executed: its body is not a marker. ${REMEDY}`);
  t.equal(said(treeOf(SAMPLE.slice(0, 1)), encodeMarker(markerOf(treeOf(SAMPLE), PROTECT_TWO))), `the marker "protect" at LSN 8288 cannot be executed: it protects device 2, which does not exist. ${REMEDY}`);
});

t.test('the sums have the bytes that their table says', async (t) => {
  const mask = 0xffffffffn;
  const mix = (h: bigint, word: bigint): bigint => {
    const mixed = ((h ^ word) * 0x9e3779b1n) & mask;
    return mixed ^ (mixed >> 15n);
  };
  const words = (value: string | number | boolean): bigint[] => {
    if (typeof value === 'string') return [BigInt(value.length), ...[...value].map((character) => BigInt(character.charCodeAt(0)))];
    return typeof value === 'boolean' ? [BigInt(value)] : [BigInt(value) & mask, BigInt(value) >> 32n];
  };
  const kinds: ((d: Device) => bigint[])[] = [
    (d) => [d.kind === 'volume' ? 1n : 2n], (d) => words(d.name), (d) => words(d.set), (d) => [...words(d.parent), ...words(d.volume)], (d) => words(d.sizeBytes),
    (d) => words(d.protected), (d) => [...words(d.createdLsn), ...words(d.createdMs)], (d) => words(d.changedLsn), (d) => words(d.continuity),
  ];
  const devices = [...SAMPLE, device(2 ** 31 - 1, { sizeBytes: 2 ** 50, protected: true, createdMs: 2 ** 52 + 1 })];
  const bytes = new DataView(new ArrayBuffer(76));
  bytes.setUint32(0, devices.length, true);
  for (const [k, fields] of kinds.entries()) {
    const hash = (d: Device): bigint => [BigInt(k), BigInt(d.id), ...fields(d), 0n].reduce(mix, 0n);
    bytes.setUint32(4 + 8 * k, Number(devices.reduce((sum, d) => sum + hash(d), 0n) & mask), true);
    bytes.setUint32(8 + 8 * k, Number(devices.reduce((sum, d) => sum + BigInt(d.id) * hash(d), 0n) & mask), true);
  }
  t.same(encodeSums(treeOf(devices).sums), new Uint8Array(bytes.buffer));
});
