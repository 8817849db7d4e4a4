/** The block cache: it has what was put into it, or does not; never something else. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import { BlockCache } from '../../src/store/blockcache.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { Rig } from './walkrig.js';

const BLOCK = 4096;
const WAYS = 8;

/** Memory whose first block is where things are put from. */
function cacheOf(blocks: number): { cache: BlockCache; u8: Uint8Array; words: Uint32Array } {
  const u8 = new Uint8Array((blocks + 1) * BLOCK);
  return { cache: new BlockCache(u8, BLOCK), u8, words: new Uint32Array(u8.buffer) };
}

t.test('a block is found by owner, layer and number, and by nothing less', async (t) => {
  const { cache, u8 } = cacheOf(64 * WAYS);
  const owner = cache.newOwner();
  const other = cache.newOwner();
  t.not(owner, other);
  u8.fill(7, 0, BLOCK);
  cache.put(owner, 5, 2 ** 33 + 9, 0);
  const at = cache.find(owner, 5, 2 ** 33 + 9);
  t.ok(at >= BLOCK);
  t.strictSame(u8.subarray(at, at + BLOCK), new Uint8Array(BLOCK).fill(7));
  for (const [who, layer, block] of [[other, 5, 2 ** 33 + 9], [owner, 6, 2 ** 33 + 9], [owner, 5, 2 ** 33 + 8], [owner, 5, 9], [owner, 5, 2 ** 34 + 9], [owner, 0, 0]]) {
    t.equal(cache.find(who, layer, block), -1, `${who} ${layer} ${block}`);
  }
  t.equal(cache.usedBytes, BLOCK);
  t.equal(cache.hits, 1);
});

t.test('a cache without room for a set has nothing', async (t) => {
  for (const blocks of [0, WAYS - 1]) {
    const { cache } = cacheOf(blocks);
    cache.put(cache.newOwner(), 1, 1, 0);
    t.equal(cache.find(0, 1, 1), -1);
    t.equal(cache.usedBytes, 0);
  }
});

t.test('whatever is put in and asked for, what is found is what was put in', async (t) => {
  const seed = Number(process.env.LOCKSTEP_SEED ?? 20261123);
  t.comment(`seed ${seed}`);
  const random = new Random(seed);
  const { cache, u8, words } = cacheOf(16 * WAYS);
  const owners = [cache.newOwner(), cache.newOwner(), cache.newOwner()];
  const put = new Map<string, number>();
  let found = 0;
  for (let i = 1; i <= 50_000; i++) {
    const owner = owners[random.below(owners.length)];
    const layer = random.between(1, 4);
    const block = random.below(40) + (random.chance(0.3) ? 2 ** 32 * random.between(1, 3) : 0);
    const key = `${owner} ${layer} ${block}`;
    const at = cache.find(owner, layer, block);
    if (at >= 0) {
      found++;
      const have = words.subarray(at / 4, at / 4 + 1024);
      if (have.some((word) => word !== put.get(key))) t.fail(`${key} is ${have[0]}, should be ${put.get(key)}`);
    } else {
      words.fill(i, 0, 1024);
      cache.put(owner, layer, block, 0);
      put.set(key, i);
    }
  }
  t.ok(found > 1000, `${found} found`);
  t.ok(put.size > 16 * WAYS, 'more than it has room for');
  t.equal(cache.usedBytes, 16 * WAYS * BLOCK);
  t.equal(u8.length, (16 * WAYS + 1) * BLOCK);
});

t.test('what is asked for stays while others pass through; what is not goes', async (t) => {
  const { cache } = cacheOf(WAYS);
  const owner = cache.newOwner();
  for (let block = 0; block < WAYS; block++) cache.put(owner, 1, block, 0);
  let lost = 0;
  for (let i = 0; i < 1000; i++) {
    if (cache.find(owner, 1, 3) < 0) {
      lost++;
      cache.put(owner, 1, 3, 0);
    }
    if (cache.find(owner, 2, i) < 0) cache.put(owner, 2, i, 0);
  }
  t.equal(lost, 0);
  const kept = Array.from({ length: WAYS }, (_, block) => block).filter((block) => cache.find(owner, 1, block) >= 0);
  t.strictSame(kept, [3]);
});

t.test('blocks of thin frozen layers are read from the cache, through everything that operations do', async (t) => {
  const io = RealIo.create({ arenaBytes: 31 * MIB, moreBytes: MIB });
  const directory = makeTempDirectory('blockcache');
  t.teardown(() => {
    io.dispose();
    removeTempDirectory(directory);
  });
  const reactor = new Reactor(io, new Arena(io, 31 * MIB));
  const until = (condition: () => boolean): void => {
    while (!condition()) reactor.step(10_000);
  };
  const rig = Rig.open(reactor, `${directory}/g`, until, { walker: { restUs: 1000 }, mapMemoryBytes: 64 * MIB });
  const { blockCache: cache } = rig;
  const random = new Random(3);
  const scatter = (device: string): void => {
    for (let n = 0; n < 12; n++) rig.write(device, random.below(2040), random.between(1, 3));
  };
  rig.create('v', 8 * MIB);
  rig.write('v', 0, 2048);
  for (let i = 0; i < 12; i++) {
    rig.snapshot('v', `s${i}`);
    scatter('v');
  }
  t.equal(cache.hits, 0);
  rig.settle();
  t.equal(rig.difference(), undefined);
  t.ok(cache.usedBytes > 0, 'what was read is kept');
  const first = cache.hits;
  t.equal(rig.difference(), undefined);
  t.ok(cache.hits > first + 12, `${cache.hits - first} blocks found`);

  // Every kind of change, in files whose blocks are in the cache.
  rig.write('v@s3', 0, 4);
  scatter('v@s5');
  t.equal(rig.difference(), undefined, 'snapshots were written to');
  rig.restore('v', 'v@s4');
  scatter('v');
  t.equal(rig.difference(), undefined, 'restored, and written to');
  rig.trim('v', 100, 500);
  t.equal(rig.difference(), undefined, 'trimmed');
  for (const name of ['s1', 's2', 's7', 's8']) rig.remove(`v@${name}`);
  rig.walkAll();
  t.equal(rig.difference(), undefined, 'snapshots removed, and holes punched');
  rig.snapshot('v', 'again');
  scatter('v');
  rig.settle();
  t.equal(rig.difference(), undefined);
  t.equal(rig.difference(), undefined);
  rig.close();
});
