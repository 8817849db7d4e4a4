import t from 'tap';
import { assert } from '../../src/base/assert.js';
import { CorruptionError } from '../../src/base/errors.js';
import { BlockMap } from '../../src/store/map/map.js';
import { DeltaEntries, LeafContent } from '../../src/store/map/leaf.js';
import { InnerContent, NODE_BYTES_MAX, RecordType, decodeNode, encodeInner, encodeInnerDelta, encodeLeaf, encodeLeafDelta, newDecoded } from '../../src/store/map/codec.js';
import { MapWriter } from '../../src/store/map/writer.js';
import { REF_DELTA, REF_INNER, SEE_BASE, STAMP_MAX } from '../../src/store/map/nodes.js';
import { MemoryFile, Random, load } from './mapmodel.js';

const POSITION = 2 ** 40 + 8;

function randomLeaf(random: Random, layerCount: number, runMax: number): LeafContent {
  const leaf = new LeafContent();
  for (let block = 0; block < 512; ) {
    const end = Math.min(512, block + 1 + random.below(runMax));
    leaf.layers.fill(random.below(layerCount + 1), block, end);
    block = end;
  }
  for (let region = 0; region < 32; region++) leaf.stamps[region] = random.below(3) === 0 ? 0 : 2 ** random.below(53) + random.below(1000);
  for (let region = 0; region < 32; region++) if (leaf.stamps[region] > STAMP_MAX) leaf.stamps[region] = STAMP_MAX;
  return leaf;
}

t.test('leaves survive encoding, in every form', async (t) => {
  const random = new Random(3);
  const out = new Uint8Array(NODE_BYTES_MAX + 100);
  const decoded = newDecoded();
  let longest = 0;
  for (let i = 0; i < 3000; i++) {
    const leaf = randomLeaf(random, [0, 1, 3, 1000][random.below(4)], [1, 3, 40, 512][random.below(4)]);
    if (random.below(50) === 0) for (let block = 0; block < 512; block++) leaf.layers[block] = 0xfffffffe - block;
    const bytes = encodeLeaf(out, 24, POSITION, leaf);
    longest = Math.max(longest, bytes);
    decodeNode(out.subarray(24, 24 + bytes), POSITION, 'map', decoded);
    assert(decoded.type === RecordType.leaf && bytes % 8 === 0, 'a leaf');
    assert(leaf.layers.every((layer, block) => layer === decoded.leaf.layers[block]), 'layers are equal');
    assert(leaf.stamps.every((stamp, region) => stamp === decoded.leaf.stamps[region]), 'stamps are equal');
  }
  t.ok(longest <= NODE_BYTES_MAX, `longest leaf: ${longest} bytes`);
});

t.test('leaf deltas survive encoding, from 0 to 512 changes', async (t) => {
  const random = new Random(4);
  const out = new Uint8Array(NODE_BYTES_MAX);
  const decoded = newDecoded();
  const entries = new DeltaEntries();
  let longest = 0;
  for (let i = 0; i < 3000; i++) {
    const content = randomLeaf(random, [0, 1, 3, 1000][random.below(4)], 3);
    if (random.below(50) === 0) for (let block = 0; block < 512; block++) content.layers[block] = 0xfffffffe - block;
    const keep = [0, 1, 4, 60, 100][random.below(5)];
    for (let block = 0; block < 512; block++) if (random.below(100) >= keep) content.layers[block] = SEE_BASE;
    for (let region = 0; region < 32; region++) {
      if (content.layers.subarray(region * 16, region * 16 + 16).every((layer) => layer === SEE_BASE)) content.stamps[region] = -1;
    }
    entries.clear();
    entries.pushAll(content);
    const base = random.below(2) === 0 ? 0 : POSITION - 8 * (1 + random.below(1000));
    const bytes = encodeLeafDelta(out, 0, POSITION, base, entries);
    longest = Math.max(longest, bytes);
    decodeNode(out.subarray(0, bytes), POSITION, 'map', decoded);
    assert(decoded.type === RecordType.leafDelta && decoded.basePosition === base, 'the base is kept');
    assert(content.layers.every((layer, block) => layer === decoded.leaf.layers[block]), 'layers are equal');
    assert(content.stamps.every((stamp, region) => stamp === decoded.leaf.stamps[region]), 'stamps are equal');
  }
  t.ok(longest <= NODE_BYTES_MAX, `longest delta: ${longest} bytes`);
});

function randomInner(random: Random, level: number): InnerContent {
  const inner = new InnerContent();
  inner.level = level;
  for (let slot = 0; slot < 64; slot++) {
    if (random.below(3) === 0) continue;
    inner.refs[slot] = POSITION - 8 * (1 + random.below(2 ** 31)) + (level > 1 ? REF_INNER : random.below(2) * REF_DELTA);
    inner.tops[slot] = random.below(10) === 0 ? STAMP_MAX : random.below(2 ** 31) * 1000;
    inner.top = Math.max(inner.top, inner.tops[slot]);
  }
  return inner;
}

function equalInner(a: InnerContent, b: InnerContent): boolean {
  return a.level === b.level && a.top === b.top && a.refs.every((ref, slot) => ref === b.refs[slot]) && a.tops.every((top, slot) => top === b.tops[slot]);
}

t.test('inner nodes and inner deltas survive encoding', async (t) => {
  const random = new Random(5);
  const out = new Uint8Array(NODE_BYTES_MAX);
  const second = new Uint8Array(NODE_BYTES_MAX);
  const decoded = newDecoded();
  let longest = 0;
  for (let i = 0; i < 2000; i++) {
    const inner = randomInner(random, 1 + random.below(5));
    const bytes = encodeInner(out, 0, POSITION, inner);
    longest = Math.max(longest, bytes);
    decodeNode(out.subarray(0, bytes), POSITION, 'map', decoded);
    assert(equalInner(decoded.inner, inner), 'inner nodes are equal');

    inner.basePosition = POSITION;
    for (let n = random.below(20); n > 0; n--) {
      const slot = random.below(64);
      inner.markChanged(slot);
      inner.refs[slot] = random.below(4) === 0 ? 0 : POSITION + 8 * (1 + random.below(1000)) + (inner.level > 1 ? REF_INNER : 0);
      inner.tops[slot] = inner.refs[slot] === 0 ? 0 : random.below(2 ** 31);
    }
    inner.top = inner.tops.reduce((a, b) => Math.max(a, b));
    const position = POSITION + 80000;
    const deltaBytes = encodeInnerDelta(second, 0, position, inner);
    decodeNode(second.subarray(0, deltaBytes), position, 'map', decoded);
    assert(decoded.type === RecordType.innerDelta && decoded.basePosition === POSITION, 'the base is asked for');
    decodeNode(second.subarray(0, deltaBytes), position, 'map', decoded, out.subarray(0, bytes));
    assert(equalInner(decoded.inner, inner) && decoded.inner.changedCount === inner.changedCount, 'base and delta make the node');
  }
  t.ok(longest <= NODE_BYTES_MAX, `longest inner node: ${longest} bytes`);
});

t.test('damage in any byte of any kind of node is a CorruptionError', async (t) => {
  const random = new Random(6);
  const out = new Uint8Array(NODE_BYTES_MAX);
  const decoded = newDecoded();
  const entries = new DeltaEntries();
  const content = randomLeaf(random, 3, 3);
  content.layers.fill(SEE_BASE, 0, 500);
  content.stamps.fill(-1, 0, 31);
  entries.pushAll(content);
  const inner = randomInner(random, 2);
  inner.basePosition = POSITION - 8000;
  inner.markChanged(1);
  inner.markChanged(40);
  const kinds: [string, () => number][] = [
    ['leaf of runs', () => encodeLeaf(out, 0, POSITION, randomLeaf(random, 3, 40))],
    ['leaf with bitmap', () => encodeLeaf(out, 0, POSITION, randomLeaf(random, 1, 1))],
    ['raw leaf', () => encodeLeaf(out, 0, POSITION, Object.assign(randomLeaf(random, 1, 1), { layers: Uint32Array.from({ length: 512 }, (_, i) => 0xf0000000 + i) }))],
    ['leaf delta', () => encodeLeafDelta(out, 0, POSITION, POSITION - 80, entries)],
    ['inner', () => encodeInner(out, 0, POSITION, inner)],
    ['inner delta', () => encodeInnerDelta(out, 0, POSITION, inner)],
  ];
  for (const [name, encode] of kinds) {
    encode();
    const length = out[2] | (out[3] << 8);
    const good = out.slice(0, length);
    decodeNode(good, POSITION, 'map', decoded);
    let undetected = 0;
    for (let at = 0; at < length; at++) {
      for (const flip of [1, 0x80, 0xff]) {
        const bad = good.slice();
        bad[at] ^= flip;
        try {
          decodeNode(bad, POSITION, 'map', decoded);
          undetected++;
        } catch (error) {
          if (!(error instanceof CorruptionError) || error.position !== POSITION || error.file !== 'map') throw error;
        }
      }
    }
    t.equal(undetected, 0, `${name}: ${length} bytes`);
    let cutUndetected = 0;
    for (let cut = 0; cut < length; cut++) {
      try {
        decodeNode(good.subarray(0, cut), POSITION, 'map', decoded);
        cutUndetected++;
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
      }
    }
    t.equal(cutUndetected, 0, `${name}: cut off anywhere`);
    t.throws(() => decodeNode(good, POSITION + 8, 'map', decoded), CorruptionError, `${name} in the wrong place`);
  }
});

t.test('bytes with a valid checksum but senseless content are a CorruptionError, never an assertion', async (t) => {
  // The checksum is made right after the damage, as if the writer had been wrong.
  const { crc32c } = await import('../../src/base/crc32c.js');
  const random = new Random(7);
  const out = new Uint8Array(NODE_BYTES_MAX);
  const decoded = newDecoded();
  const entries = new DeltaEntries();
  let refused = 0;
  for (let i = 0; i < 20000; i++) {
    const leaf = randomLeaf(random, 3, 40);
    switch (random.below(4)) {
      case 0:
        encodeLeaf(out, 0, POSITION, leaf);
        break;
      case 1:
        leaf.layers.fill(SEE_BASE, 0, 400);
        leaf.stamps.fill(-1, 0, 25);
        entries.clear();
        entries.pushAll(leaf);
        encodeLeafDelta(out, 0, POSITION, 8, entries);
        break;
      default:
        encodeInner(out, 0, POSITION, randomInner(random, 1 + random.below(5)));
    }
    const length = out[2] | (out[3] << 8);
    for (let n = 1 + random.below(3); n > 0; n--) out[8 + random.below(length - 8)] = random.below(256);
    const head = crc32c(out, 0, 4, (POSITION / 8) >>> 0);
    new DataView(out.buffer).setUint32(4, crc32c(out, 8, length, head), true);
    try {
      decodeNode(out.subarray(0, length), POSITION, 'map', decoded);
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      refused++;
    }
  }
  t.ok(refused > 1000, `${refused} of 20000 refused`);
});

t.test('a node that was freed while its record was read is not installed', async (t) => {
  const file = new MemoryFile();
  const map = new BlockMap((position) => file.read(position));
  const root = map.create(100000);
  map.set(root, 5, 1, 1, 10);
  const frozen = map.share(root);
  const writer = new MapWriter(map, [frozen]);
  while (!writer.done) file.size += writer.step(file.bytes, file.size, file.size + NODE_BYTES_MAX, file.size);
  writer.commit();
  map.drop(frozen);
  map.evict(0);
  const out = new Uint32Array(1);
  const missed = map.resolve(root, 5, 1, out, 0);
  t.not(missed, 0);
  const ref = map.diskRefOf(missed);
  map.clear(root, 0, 100000, 20);
  while (map.reclaim(10));
  map.set(root, 70000, 1, 1, 30); // takes the handles over
  t.equal(map.load(missed, ref, file.read(ref)), 0);
  t.equal(map.resolve(root, 5, 1, out, 0), 0);
  t.equal(out[0], 0);
});

t.test('a damaged record shows when it is loaded, with file and position', async (t) => {
  const file = new MemoryFile();
  const map = new BlockMap((position) => file.read(position), 'map-000001');
  const root = map.create(100000);
  for (let i = 0; i < 100; i++) map.set(root, i * 997, 1, 1, i + 1);
  const frozen = map.share(root);
  const writer = new MapWriter(map, [frozen]);
  while (!writer.done) {
    file.room(NODE_BYTES_MAX);
    file.size += writer.step(file.bytes, file.size, file.size + NODE_BYTES_MAX, file.size);
  }
  writer.commit();
  map.drop(frozen);
  map.evict(0);
  const out = new Uint32Array(1);
  const missed = map.resolve(root, 997, 1, out, 0);
  const ref = map.diskRefOf(missed);
  file.bytes[ref - (ref % 8) + 9] ^= 1;
  t.throws(() => load(map, [file], missed), { code: 'corruption', file: 'map-000001', position: ref - (ref % 8) });
  t.throws(() => map.set(root, 997, 1, 1, 1000), CorruptionError, 'also where an inner node is read at once');
  t.throws(() => map.open(ref, 512), CorruptionError, 'an inner node is not the root of a device of one leaf');
});
