/**
 * Micro-bench of the block map: time per look-up and change, memory, metadata
 * bytes per write. `node dist/scripts/bench/map.js`
 */
import { BlockMap, fileOfRef, positionOfRef } from '../../src/store/map/map.js';
import type { MapRoot } from '../../src/store/map/map.js';
import { MapWriter } from '../../src/store/map/writer.js';

const GIB_BLOCKS = 262144;
const LSN_PER_WRITE = 4160;

let state = 88172645;
function random(): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) / 2 ** 32;
}

class File {
  bytes = new Uint8Array(1 << 24);
  size = 4096;
  readonly read = (position: number): Uint8Array => this.bytes.subarray(position, position + 4096);
}

function report(what: string, value: string): void {
  console.log(`${what.padEnd(72)} ${value}`);
}

/** CPU time of the process: other work on the machine does not count. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function timed(what: string, count: number, run: () => void): void {
  const before = cpuMs();
  run();
  report(what, `${(((cpuMs() - before) * 1e6) / count).toFixed(0)} ns`);
}

/** Writes a checkpoint and returns the bytes; reports the longest step of 64 KiB. */
function checkpoint(map: BlockMap, roots: MapRoot[], files: File[], what: string, rewrite = false): number {
  const frozen = roots.map((root) => map.share(root));
  const writer = new MapWriter(map, frozen, { rewrite });
  const oldFile = files[map.currentFile];
  if (rewrite) files[1 - map.currentFile] = new File();
  const file = rewrite ? files[1 - map.currentFile] : oldFile;
  let longest = 0;
  const started = cpuMs();
  while (!writer.done) {
    if (file.size + 65536 > file.bytes.length) {
      const grown = new Uint8Array(file.bytes.length * 2);
      grown.set(file.bytes);
      file.bytes = grown;
    }
    const before = cpuMs();
    const bytes = writer.step(file.bytes, file.size, file.size + 65536, file.size);
    longest = Math.max(longest, cpuMs() - before);
    file.size += bytes;
    if (writer.needed !== undefined) writer.supply(oldFile.bytes.subarray(writer.needed.position, writer.needed.position + 65536));
  }
  const took = cpuMs() - started;
  const before = cpuMs();
  writer.commit();
  for (const root of frozen) map.drop(root);
  const commit = cpuMs() - before;
  report(`${what}: records, ms, longest 64 KiB step, commit`, `${writer.records}, ${took.toFixed(0)} ms, ${longest.toFixed(2)} ms, ${commit.toFixed(2)} ms`);
  while (map.reclaim(1000));
  return writer.bytes;
}

function newMap(): { map: BlockMap; files: File[] } {
  const files = [new File(), new File()];
  return { map: new BlockMap((position, file) => files[file].read(position)), files };
}

function resolveLoading(map: BlockMap, files: File[], root: MapRoot, block: number, out: Uint32Array): number {
  for (let loads = 0; ; loads++) {
    const miss = map.resolve(root, block, 1, out, 0);
    if (miss === 0) return loads;
    const ref = map.diskRefOf(miss);
    const bytes = files[fileOfRef(ref)].read(positionOfRef(ref));
    const second = map.load(miss, ref, bytes);
    if (second !== 0) map.load(miss, ref, bytes, files[fileOfRef(ref)].read(second));
  }
}

/** Every block of the device written once, as a copy of a file system would: runs of 64 KiB in random order of 1 MiB pieces. */
function fill(map: BlockMap, root: MapRoot, layer: number, lsn: number): number {
  for (let block = 0; block < root.sizeBlocks; block += 64) {
    map.set(root, block, Math.min(64, root.sizeBlocks - block), layer, lsn);
    lsn += 64 * LSN_PER_WRITE;
  }
  return lsn;
}

const out = new Uint32Array(512);

function smallDevice(): void {
  const { map } = newMap();
  const root = map.create(GIB_BLOCKS);
  let lsn = fill(map, root, 1, 1);
  for (let round = 0; round < 2; round++) {
    const n = 1000000;
    const label = round === 0 ? ' (warming up)' : '';
    timed(`1 GiB, in cache: set of one block, random${label}`, n, () => {
      for (let i = 0; i < n; i++) map.set(root, Math.floor(random() * GIB_BLOCKS), 1, 1, (lsn += LSN_PER_WRITE));
    });
    timed(`1 GiB, in cache: resolve of one block, random${label}`, n, () => {
      for (let i = 0; i < n; i++) map.resolve(root, Math.floor(random() * GIB_BLOCKS), 1, out, 0);
    });
    timed(`1 GiB, in cache: resolve of 64 blocks, random${label}`, n / 4, () => {
      for (let i = 0; i < n / 4; i++) map.resolve(root, Math.floor(random() * (GIB_BLOCKS - 64)), 64, out, 0);
    });
  }
}

function snapshotted(gib: number, writes: number, mapped: boolean): void {
  const name = `${gib >= 1024 ? `${gib / 1024} TiB` : `${gib} GiB`} ${mapped ? 'mapped' : 'sparse'}`;
  const { map, files } = newMap();
  const root = map.create(gib * GIB_BLOCKS);
  let lsn = 1;
  if (mapped) {
    const before = cpuMs();
    lsn = fill(map, root, 1, 1);
    report(`${name}: filled in 256 KiB writes`, `${((cpuMs() - before) / 1000).toFixed(1)} s`);
    report(`${name}: memory of the map, bytes per leaf`, `${(map.memoryBytes / 2 ** 20).toFixed(1)} MiB, ${(map.memoryBytes / (gib * 512)).toFixed(0)} B`);
    const bytes = checkpoint(map, [root], files, `${name}: first checkpoint`);
    report(`${name}: on disk per TiB`, `${(((bytes / gib) * 1024) / 2 ** 20).toFixed(1)} MiB`);
  }
  const before = cpuMs();
  const snapshot = map.share(root);
  report(`${name}: snapshot`, `${((cpuMs() - before) * 1000).toFixed(0)} µs`);
  const memory = map.memoryBytes;
  timed(`${name}: set of one block after the snapshot, random`, writes, () => {
    for (let i = 0; i < writes; i++) map.set(root, Math.floor(random() * root.sizeBlocks), 1, 2, (lsn += LSN_PER_WRITE));
  });
  report(`${name}: memory per write`, `${((map.memoryBytes - memory) / writes).toFixed(1)} B`);
  const bytes = checkpoint(map, [root, snapshot], files, `${name}: checkpoint of ${writes} random writes`);
  report(`${name}: METADATA BYTES PER RANDOM 4 KiB WRITE`, `${(bytes / writes).toFixed(1)} B`);
  const few = writes / 100;
  for (let i = 0; i < few; i++) map.set(root, Math.floor(random() * root.sizeBlocks), 1, 2, (lsn += LSN_PER_WRITE));
  const fewBytes = checkpoint(map, [root, snapshot], files, `${name}: checkpoint of ${few} random writes`);
  report(`${name}: metadata bytes per random write, few writes between checkpoints`, `${(fewBytes / few).toFixed(1)} B`);
  for (let round = 0; round < 5; round++) {
    for (let i = 0; i < writes / 5; i++) map.set(root, Math.floor(random() * root.sizeBlocks), 1, 2, (lsn += LSN_PER_WRITE));
    const more = checkpoint(map, [root, snapshot], files, `${name}: ${round + 2}. checkpoint, ${writes / 5} random writes`);
    report(`${name}: metadata bytes per random write`, `${(more / (writes / 5)).toFixed(1)} B`);
  }
  timed(`${name}: resolve of one block, random`, 500000, () => {
    for (let i = 0; i < 500000; i++) map.resolve(root, Math.floor(random() * root.sizeBlocks), 1, out, 0);
  });
  timed(`${name}: set of one block, random, in steady state`, 500000, () => {
    for (let i = 0; i < 500000; i++) map.set(root, Math.floor(random() * root.sizeBlocks), 1, 2, (lsn += LSN_PER_WRITE));
  });
  checkpoint(map, [root, snapshot], files, `${name}: before compaction`);
  const compacted = checkpoint(map, [root, snapshot], files, `${name}: compaction of ${(files[map.currentFile].size / 2 ** 20).toFixed(0)} MiB`, true);
  report(`${name}: compacted to`, `${(compacted / 2 ** 20).toFixed(1)} MiB`);
  const full = map.memoryBytes;
  const start = cpuMs();
  map.evict(full / 4);
  report(`${name}: evicted to a quarter`, `${(full / 2 ** 20).toFixed(0)} to ${(map.memoryBytes / 2 ** 20).toFixed(0)} MiB (in pages ${(map.nodes.slabs.pageBytes / 2 ** 20).toFixed(0)}) in ${(cpuMs() - start).toFixed(0)} ms`);
  let loads = 0;
  timed(`${name}: resolve with loading, random`, 50000, () => {
    for (let i = 0; i < 50000; i++) loads += resolveLoading(map, files, root, Math.floor(random() * root.sizeBlocks), out);
  });
  report(`${name}: loads per resolve then`, (loads / 50000).toFixed(2));
  timed(`${name}: set of one block, leaves paged out`, 50000, () => {
    for (let i = 0; i < 50000; i++) map.set(root, Math.floor(random() * root.sizeBlocks), 1, 2, (lsn += LSN_PER_WRITE));
  });
}

smallDevice();
snapshotted(64, 250000, true);
snapshotted(1024, 250000, false);
if (process.argv.includes('--large')) snapshotted(1024, 250000, true);
