import t from 'tap';
import { BlockMap, heightFor } from '../../src/store/map/map.js';
import type { MapRoot } from '../../src/store/map/map.js';
import { checkMap } from './mapcheck.js';
import { FlatDevice, Random, compare } from './mapmodel.js';

const noDisk = (): Uint8Array => {
  throw new Error('nothing is on disk');
};

t.test('heights follow from sizes up to 1 PiB', async (t) => {
  t.equal(heightFor(0), 0);
  t.equal(heightFor(512), 0);
  t.equal(heightFor(513), 1);
  t.equal(heightFor(512 * 64), 1);
  t.equal(heightFor(512 * 64 + 1), 2);
  t.equal(heightFor(2 ** 38), 5);
});

t.test('a write to a shared device is not seen through the other', async (t) => {
  const map = new BlockMap(noDisk);
  const volume = map.create(100000);
  map.set(volume, 5000, 10, 1, 100);
  const snapshot = map.share(volume);
  map.set(volume, 5003, 1, 2, 200);
  const out = new Uint32Array(5);
  t.equal(map.resolve(volume, 5001, 5, out, 0), 0);
  t.same([...out], [1, 1, 2, 1, 1]);
  t.equal(map.resolve(snapshot, 5001, 5, out, 0), 0);
  t.same([...out], [1, 1, 1, 1, 1]);
  checkMap(map, [volume, snapshot]);
});

t.test('clearing 4 GiB and 1 PiB costs a few nodes', async (t) => {
  const map = new BlockMap(noDisk);
  const volume = map.create(2 ** 38);
  const random = new Random(1);
  for (let i = 0; i < 2000; i++) map.set(volume, random.below(2 ** 30) * 251, 1, 1, i + 1);
  const before = map.nodes.handleLimit;
  map.clear(volume, 12345, 2 ** 20, 5000);
  map.clear(volume, 777, 2 ** 37, 5001);
  t.ok(map.nodes.handleLimit - before < 20, 'few new nodes');
  map.clear(volume, 0, 2 ** 38, 5002);
  t.equal(volume.handle, 0);
  while (map.reclaim(100));
  checkMap(map, [volume]);
  t.equal(map.nodes.liveCount, 0);
});

t.test('stamps follow the record alone: whole regions cleared are 0, parts carry the record', async (t) => {
  const map = new BlockMap(noDisk);
  const volume = map.create(1000); // the last region, 62, has 8 blocks
  const stamps = new Float64Array(63);
  map.clear(volume, 8, 40, 10); // over ZERO: region 0 in part, 1 and 2 whole
  map.stamps(volume, 0, 63, stamps, 0);
  t.same([...stamps.subarray(0, 4)], [10, 0, 0, 0]);
  map.set(volume, 990, 10, 3, 20);
  map.clear(volume, 992, 8, 30); // to the end of the device: region 62 whole
  map.stamps(volume, 0, 63, stamps, 0);
  t.equal(stamps[61], 20);
  t.equal(stamps[62], 0);
  map.set(volume, 16, 16, 3, 40);
  map.clear(volume, 16, 8, 50);
  map.clear(volume, 24, 8, 60); // whole only together: not by one record
  map.stamps(volume, 0, 63, stamps, 0);
  t.equal(stamps[1], 60);
  checkMap(map, [volume]);
});

t.test('memory that dropped trees leave behind is gathered into whole free pages', async (t) => {
  const map = new BlockMap(noDisk);
  const roots = Array.from({ length: 10 }, () => map.create(512 * 2000));
  for (let leaf = 0; leaf < 2000; leaf++) {
    for (const [i, root] of roots.entries()) map.set(root, leaf * 512 + (leaf % 400), 100, i + 1, leaf + 1);
  }
  const { slabs } = map.nodes;
  for (const root of roots.slice(1)) map.drop(root);
  while (map.nodes.reclaim(100));
  t.ok(slabs.pageBytes > 4 * slabs.usedBytes, 'pages are mostly empty');
  while (map.reclaim(100));
  t.ok(slabs.pageBytes <= 2 * slabs.usedBytes + 2 ** 20, 'pages are used');
  checkMap(map, [roots[0]]);
  const out = new Uint32Array(512);
  let wrong = 0;
  for (let leaf = 0; leaf < 2000; leaf++) {
    map.resolve(roots[0], leaf * 512, 512, out, 0);
    for (let block = 0; block < 512; block++) if (out[block] !== (block >= leaf % 400 && block < (leaf % 400) + 100 ? 1 : 0)) wrong++;
  }
  t.equal(wrong, 0);
});

t.test('random operations on several devices match a flat model', async (t) => {
  for (let seed = 1; seed <= 12; seed++) {
    const random = new Random(seed);
    const capacity = seed % 3 === 0 ? 512 : seed % 3 === 1 ? 8192 : 512 * 64 * 3;
    const map = new BlockMap(noDisk);
    const roots: MapRoot[] = [];
    const models: FlatDevice[] = [];
    const add = (size: number): void => {
      roots.push(map.create(size));
      models.push(new FlatDevice(size, capacity));
    };
    add(capacity);
    add(capacity - 100);
    let stamp = 1;
    try {
      for (let step = 0; step < 1500; step++) {
        stamp += 1 + random.below(100);
        const d = random.below(roots.length);
        const root = roots[d];
        const model = models[d];
        const length = random.below(3) === 0 ? 1 : 1 + random.below(random.below(2) === 0 ? 40 : 3000);
        const first = random.below(Math.max(1, model.size));
        const count = Math.min(length, model.size - first);
        switch (random.below(12)) {
          default: {
            const layer = 1 + random.below(3);
            map.set(root, first, count, layer, stamp);
            model.set(first, count, layer, stamp);
            break;
          }
          case 6:
          case 7:
            map.clear(root, first, count, stamp);
            model.clear(first, count, stamp);
            break;
          case 8:
            if (roots.length < 8) {
              roots.push(map.share(root));
              models.push(new FlatDevice(0, capacity).copyOf(model));
            }
            break;
          case 9: {
            const s = random.below(roots.length);
            map.assign(root, roots[s]);
            model.copyOf(models[s]);
            break;
          }
          case 10:
            if (roots.length > 3) {
              map.drop(root);
              roots.splice(d, 1);
              models.splice(d, 1);
            }
            break;
          case 11: {
            if (random.below(5) !== 0) break;
            const size = 1 + random.below(capacity);
            map.resize(root, size, stamp);
            model.resize(size, stamp);
            break;
          }
        }
        map.reclaim(random.below(4));
        if (step % 100 === 0) {
          checkMap(map, roots);
          for (let i = 0; i < roots.length; i++) compare(map, roots[i], models[i], []);
        }
      }
      for (let i = 0; i < roots.length; i++) compare(map, roots[i], models[i], []);
      for (const root of roots) map.drop(root);
      while (map.reclaim(10));
      checkMap(map, []);
      t.pass(`seed ${seed}`);
      if (map.nodes.liveCount !== 0 || map.nodes.slabs.usedBytes !== 0) throw new Error('nodes leak');
    } catch (error) {
      t.comment(`seed ${seed}`);
      throw error;
    }
  }
});
