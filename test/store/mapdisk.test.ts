/** The block map against a flat model, with checkpoints, compactions, paging and reopening through a map file in memory. */
import t from 'tap';
import { assert } from '../../src/base/assert.js';
import { BlockMap } from '../../src/store/map/map.js';
import type { MapRoot } from '../../src/store/map/map.js';
import { checkMap } from './mapcheck.js';
import { MapDiff, hashStamps } from '../../src/store/map/diff.js';
import { graft } from '../../src/store/map/graft.js';
import { MapSweep, Sweep } from '../../src/store/map/sweep.js';
import type { SweepResult } from '../../src/store/map/sweep.js';
import { MapWriter } from '../../src/store/map/writer.js';
import { FlatDevice, MemoryFile, Random, compare, load, withLoads } from './mapmodel.js';

class Subject {
  readonly files = [new MemoryFile(), new MemoryFile()];
  readonly map = new BlockMap((position, file) => this.files[file].read(position));
  readonly roots: MapRoot[] = [];
  /** The same operations on a map that is never paged. */
  readonly plain = new BlockMap(() => assert(false, 'the plain map is never paged') as never);
  readonly plainRoots: MapRoot[] = [];
  readonly models: FlatDevice[] = [];
  stamp = 1;
  counts: Record<string, number> = {};

  constructor(readonly random: Random, readonly capacity: number) {
    this.add(capacity);
    this.add(capacity - 1000);
  }

  add(size: number): void {
    this.roots.push(this.map.create(size));
    this.plainRoots.push(this.plain.create(size));
    this.models.push(new FlatDevice(size, this.capacity));
  }

  count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  /** One random operation on devices. */
  change(): void {
    const { random, map, plain } = this;
    this.stamp += 1 + random.below(100);
    const { stamp } = this;
    const d = random.below(this.roots.length);
    const root = this.roots[d];
    const model = this.models[d];
    const first = random.below(Math.max(1, model.size));
    const length = random.below(2) === 0 ? 1 : 1 + random.below(random.below(2) === 0 ? 40 : 3000);
    const count = Math.min(length, model.size - first);
    switch (random.below(16)) {
      default: {
        const layer = 1 + random.below(3);
        map.set(root, first, count, layer, stamp);
        plain.set(this.plainRoots[d], first, count, layer, stamp);
        model.set(first, count, layer, stamp);
        break;
      }
      case 8:
      case 9:
        map.clear(root, first, count, stamp);
        plain.clear(this.plainRoots[d], first, count, stamp);
        model.clear(first, count, stamp);
        break;
      case 10:
        if (this.roots.length >= 6) break;
        this.roots.push(map.share(root));
        this.plainRoots.push(plain.share(this.plainRoots[d]));
        this.models.push(new FlatDevice(0, this.capacity).copyOf(model));
        break;
      case 11: {
        const s = random.below(this.roots.length);
        map.assign(root, this.roots[s]);
        plain.assign(this.plainRoots[d], this.plainRoots[s]);
        model.copyOf(this.models[s]);
        break;
      }
      case 12:
        if (this.roots.length <= 3) break;
        map.drop(root);
        plain.drop(this.plainRoots[d]);
        this.roots.splice(d, 1);
        this.plainRoots.splice(d, 1);
        this.models.splice(d, 1);
        break;
      case 13: {
        if (random.below(6) !== 0) break;
        const size = 1 + random.below(this.capacity);
        map.resize(root, size, stamp);
        plain.resize(this.plainRoots[d], size, stamp);
        model.resize(size, stamp);
        break;
      }
      case 14:
      case 15: {
        const s = random.below(this.roots.length);
        const limit = Math.min(model.size, this.models[s].size);
        if (s === d || first >= limit) break;
        const toEnd = random.below(3) === 0;
        const n = toEnd ? limit - first : Math.min(limit - first, 1 + random.below(4000));
        withLoads(map, this.files, () => graft(map, root, this.roots[s], first, n, stamp));
        assert(graft(plain, this.plainRoots[d], this.plainRoots[s], first, n, stamp) === 0, 'a map in memory misses nothing');
        model.graft(this.models[s], first, n, stamp);
        this.count('graft');
        break;
      }
    }
  }

  /** Steps a writer to its end, with changes between the steps; returns false when it was aborted. */
  write(rewrite: boolean, mayAbort: boolean): { writer: MapWriter; models: FlatDevice[]; sizes: number[] } | undefined {
    const { random, map } = this;
    const frozen = this.roots.map((root) => map.share(root));
    const models = this.models.map((model) => new FlatDevice(0, this.capacity).copyOf(model));
    const writer = new MapWriter(map, frozen, { rewrite });
    const file = this.files[rewrite ? 1 - map.currentFile : map.currentFile];
    const oldFile = this.files[map.currentFile];
    if (rewrite) this.files[1 - map.currentFile] = new MemoryFile();
    const target = rewrite ? this.files[1 - map.currentFile] : file;
    const buffer = new Uint8Array(5000 + random.below(20000));
    let aborted = false;
    while (!writer.done) {
      const bytes = writer.step(buffer, 100, buffer.length, target.size);
      target.room(bytes);
      target.bytes.set(buffer.subarray(100, 100 + bytes), target.size);
      target.size += bytes;
      if (bytes === 0 && writer.needed !== undefined) {
        assert(writer.needed.file === map.currentFile, 'only the present file is read');
        writer.supply(oldFile.read(writer.needed.position));
        this.count('supplied');
      }
      for (let i = random.below(4); i > 0; i--) this.change();
      if (random.below(10) === 0) map.evict(random.below(2) === 0 ? 0 : map.memoryBytes - 10000);
      if (mayAbort && random.below(20) === 0) {
        aborted = true;
        break;
      }
    }
    const sizes = frozen.map((root) => root.sizeBlocks);
    if (aborted) {
      writer.abort();
      this.count('abort');
    } else {
      writer.commit();
      this.count(rewrite ? 'rewrite' : 'append');
      if (rewrite) this.files[1 - map.currentFile] = new MemoryFile(); // the old file is gone
    }
    for (const root of frozen) map.drop(root);
    return aborted ? undefined : { writer, models, sizes };
  }

  /** Opens what a checkpoint wrote in another map, as recovery does, and compares it with the models of its instant. */
  reopen(written: { writer: MapWriter; models: FlatDevice[]; sizes: number[] }): void {
    const file = this.files[this.map.currentFile];
    const map = new BlockMap((position) => file.read(position));
    const roots = written.sizes.map((size, i) => map.open(written.writer.rootPositions[i], size));
    for (let i = 0; i < roots.length; i++) compare(map, roots[i], written.models[i], [file]);
    checkMap(map, roots);
    // A recovered map goes on being changed.
    for (let i = 0; i < 20; i++) {
      const d = this.random.below(roots.length);
      const model = written.models[d];
      const first = this.random.below(model.size);
      map.set(roots[d], first, 1, 9, this.stamp + 1);
      model.set(first, 1, 9, this.stamp + 1);
    }
    map.evict(0);
    for (let i = 0; i < roots.length; i++) compare(map, roots[i], written.models[i], [file]);
    checkMap(map, roots);
  }

  verify(): void {
    checkMap(this.map, this.roots);
    checkMap(this.plain, this.plainRoots);
    for (let i = 0; i < this.roots.length; i++) {
      compare(this.map, this.roots[i], this.models[i], this.files);
      compare(this.plain, this.plainRoots[i], this.models[i], []);
      const leaves = Math.ceil(this.models[i].size / 512);
      const sum = new Uint32Array(2);
      const plainSum = new Uint32Array(2);
      withLoads(this.map, this.files, () => {
        sum.fill(0);
        return hashStamps(this.map, this.roots[i], 0, leaves, sum);
      });
      hashStamps(this.plain, this.plainRoots[i], 0, leaves, plainSum);
      assert(sum[0] === plainSum[0] && sum[1] === plainSum[1], 'the hash does not depend on representation');
    }
  }

  /** The distinct leaves name exactly the (layer, block) pairs that the models hold, whatever the steps. */
  verifySweep(): void {
    const { random } = this;
    const place = 512;
    const first = random.below(2) === 0 ? 0 : random.below(this.capacity);
    /** (block, layer) → number of trees that refer to it. */
    const found = new Map<number, number>();
    let sharers = 0;
    const sweep = new MapSweep(this.map, this.roots, first);
    const visitor = {
      leaf: (firstBlock: number, trees: number, root: number): void => {
        assert(trees >= 1 && this.roots[root].sizeBlocks > firstBlock, 'a leaf is in a tree');
        sharers = trees;
      },
      run: (layer: number, block: number, count: number): void => {
        for (let i = 0; i < count; i++) found.set((block + i) * 16 + layer, (found.get((block + i) * 16 + layer) ?? 0) + sharers);
      },
    };
    for (let result: SweepResult = Sweep.more; result !== Sweep.end; ) {
      result = sweep.step(1 + random.below(100), visitor);
      if (result === Sweep.needed) load(this.map, this.files, sweep.neededNode);
    }
    sweep.release();
    const wanted = new Map<number, number>();
    this.models.forEach((model, i) => {
      let used = 0;
      for (let block = first - (first % place); block < model.size; block++) {
        const pair = block * 16 + model.layers[block];
        if (model.layers[block] === 0) continue;
        wanted.set(pair, (wanted.get(pair) ?? 0) + 1);
        used++;
      }
      assert(first !== 0 || sweep.used[i] === used, `${sweep.used[i]} blocks of device ${i} are in use, not ${used}`);
    });
    assert(found.size === wanted.size, `the sweep finds ${found.size} of ${wanted.size} pairs`);
    for (const [pair, trees] of wanted) assert(found.get(pair) === trees, 'each pair is found once, with the number of its trees');
  }

  verifyDiff(): void {
    const { random } = this;
    const a = random.below(this.roots.length);
    const b = random.below(this.roots.length);
    const first = random.below(this.capacity);
    const end = first + random.below(this.capacity - first);
    const differs = new Uint8Array(this.capacity);
    const diff = new MapDiff(this.map, this.roots[a], this.roots[b]);
    for (let at = first; at < end; ) {
      at = diff.run(at, end, (block, count) => differs.fill(1, block, block + count));
      if (at < end) load(this.map, this.files, diff.needed);
    }
    for (let block = 0; block < this.capacity; block++) {
      const wanted = block >= first && block < end && this.models[a].layers[block] !== this.models[b].layers[block];
      assert((differs[block] === 1) === wanted, `block ${block} differs: ${wanted}`);
    }
  }
}

t.test('random operations with checkpoints, compactions, aborts and paging match a flat model', async (t) => {
  const totals: Record<string, number> = {};
  const seeds = Number(process.env.MAP_SEEDS ?? 10);
  for (let seed = Number(process.env.MAP_FIRST_SEED ?? 1); seed <= seeds; seed++) {
    const random = new Random(seed * 7919);
    const subject = new Subject(random, seed % 4 === 0 ? 2048 : 512 * 64 * 2 + 512 * (seed % 3));
    try {
      for (let step = 0; step < 700; step++) {
        subject.change();
        switch (random.below(40)) {
          case 0: {
            const written = subject.write(random.below(3) === 0, true);
            if (written !== undefined && random.below(2) === 0) subject.reopen(written);
            break;
          }
          case 1:
          case 2:
            subject.map.evict(random.below(2) === 0 ? 0 : subject.map.memoryBytes - random.below(50000));
            break;
          case 3:
            subject.map.reclaim(random.below(10));
            break;
          case 4:
            subject.verifySweep();
            break;
          case 5:
            subject.verifyDiff();
            break;
          default:
        }
        if (step % 140 === 0) subject.verify();
      }
      subject.verify();
      const { map } = subject;
      for (const root of subject.roots) map.drop(root);
      while (map.reclaim(10));
      checkMap(map, []);
      assert(map.nodes.liveCount === 0 && map.nodes.slabs.usedBytes === 0 && map.nodes.slabs.pageBytes === 0, 'nothing leaks');
      t.pass(`seed ${seed}`);
      for (const [what, count] of Object.entries(subject.counts)) totals[what] = (totals[what] ?? 0) + count;
    } catch (error) {
      t.comment(`seed ${seed}`);
      throw error;
    }
  }
  t.comment(JSON.stringify(totals));
  for (const what of ['append', 'rewrite', 'abort', 'supplied', 'graft']) t.ok(totals[what] > 0, `${what} happened`);
});
