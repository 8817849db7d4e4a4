/** A flat model of a device's map, and comparison of a BlockMap with it. Not a test itself. */
import { assert } from '../../src/base/assert.js';
import { fileOfRef, positionOfRef } from '../../src/store/map/map.js';
import type { BlockMap, MapRoot } from '../../src/store/map/map.js';

/** Small seeded generator (xorshift32), for tests that print their seed. */
export class Random {
  private state: number;
  constructor(seed: number) {
    this.state = (seed * 2654435761) >>> 0 || 1;
  }
  /** Integer in [0, limit). */
  below(limit: number): number {
    let x = this.state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.state = x >>> 0;
    return this.state % limit;
  }
}

export class FlatDevice {
  layers: Uint32Array;
  stamps: Float64Array;
  constructor(public size: number, readonly capacity: number) {
    this.layers = new Uint32Array(capacity);
    this.stamps = new Float64Array(capacity / 16);
  }

  set(first: number, count: number, layer: number, stamp: number): void {
    this.layers.fill(layer, first, first + count);
    for (let region = first >>> 4; region << 4 < first + count; region++) this.stamps[region] = stamp;
  }

  clear(first: number, count: number, stamp: number): void {
    if (count === 0) return;
    const end = first + count;
    this.layers.fill(0, first, end);
    for (let region = first >>> 4; region << 4 < end; region++) {
      const regionEnd = Math.min(this.size, (region + 1) << 4);
      this.stamps[region] = first <= region << 4 && end >= regionEnd ? 0 : stamp;
    }
  }

  resize(size: number, stamp: number): void {
    if (size < this.size) this.clear(size, this.size - size, stamp);
    this.size = size;
  }

  graft(source: FlatDevice, first: number, count: number, stamp: number): void {
    const end = first + count;
    for (let region = first >>> 4; region << 4 < end; region++) {
      const from = Math.max(first, region << 4);
      const to = Math.min(end, (region + 1) << 4);
      const whole = from === region << 4 && (to === (region + 1) << 4 || (to === this.size && to === source.size));
      this.layers.set(source.layers.subarray(from, to), from);
      this.stamps[region] = whole ? source.stamps[region] : stamp;
    }
  }

  copyOf(other: FlatDevice): this {
    this.size = other.size;
    this.layers.set(other.layers);
    this.stamps.set(other.stamps);
    return this;
  }
}

/** A map file in memory. */
export class MemoryFile {
  bytes = new Uint8Array(1 << 20);
  /** Position 0 is no node's. */
  size = 64;
  reads = 0;

  room(bytes: number): void {
    if (this.size + bytes <= this.bytes.length) return;
    const grown = new Uint8Array(this.bytes.length * 2 + bytes);
    grown.set(this.bytes);
    this.bytes = grown;
  }

  readonly read = (position: number): Uint8Array => {
    this.reads++;
    return this.bytes.slice(position, Math.min(this.size, position + 4096));
  };
}

/** Loads a node that was missed, from `files` (index: file of its reference). */
export function load(map: BlockMap, files: readonly MemoryFile[], missed: number): void {
  const ref = map.diskRefOf(missed);
  const file = files[fileOfRef(ref)];
  const bytes = file.read(positionOfRef(ref));
  const second = map.load(missed, ref, bytes);
  if (second !== 0) assert(map.load(missed, ref, bytes, file.read(second)) === 0, 'two records are enough');
}

/** Repeats `ask` until it misses nothing. */
export function withLoads(map: BlockMap, files: readonly MemoryFile[], ask: () => number): void {
  for (let guard = 0; guard < 100000; guard++) {
    const miss = ask();
    if (miss === 0) return;
    load(map, files, miss);
  }
  const miss = ask();
  throw new Error(`loading does not end: ${miss} kind ${map.nodes.kindOf(miss)} ref ${map.nodes.diskRefOf(miss)} ${map.diskRefOf(miss)}`);
}

export function compare(map: BlockMap, root: MapRoot, model: FlatDevice, files: readonly MemoryFile[], first = 0, count = root.sizeBlocks): void {
  assert(root.sizeBlocks === model.size, 'sizes agree');
  const layers = new Uint32Array(count);
  withLoads(map, files, () => map.resolve(root, first, count, layers, 0));
  for (let i = 0; i < count; i++) {
    if (layers[i] !== model.layers[first + i]) throw new Error(`block ${first + i}: layer ${layers[i]}, should be ${model.layers[first + i]}`);
  }
  for (let block = first; block < first + count; ) {
    const run = map.zeroRun(root, block);
    if (block + run > root.sizeBlocks) throw new Error(`block ${block}: ${run} zeros, behind the end of the device`);
    for (let i = 0; i < run; i++) if (model.layers[block + i] !== 0) throw new Error(`block ${block + i}: is told to be zero, has layer ${model.layers[block + i]}`);
    block += Math.max(run, 1);
  }
  const firstRegion = first >>> 4;
  const regions = count === 0 ? 0 : ((first + count + 15) >>> 4) - firstRegion;
  const stamps = new Float64Array(regions);
  withLoads(map, files, () => map.stamps(root, firstRegion, regions, stamps, 0));
  for (let i = 0; i < regions; i++) {
    if (stamps[i] !== model.stamps[firstRegion + i]) throw new Error(`region ${firstRegion + i}: stamp ${stamps[i]}, should be ${model.stamps[firstRegion + i]}`);
  }
}
