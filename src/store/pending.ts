/**
 * Where the newest bytes of a block are while they are not yet in their layer's
 * file: (layer, block) → LSN of the payload in the journal (DESIGN §5).
 *
 * Owns: the table. Must not know: the journal's files, maps, when to destage.
 *
 * Two generations. `open` takes what is written now; `seal` makes it the
 * `sealed` generation, which a destage round writes out and then drops whole:
 * no entry is ever removed singly, and a round is exactly a prefix of the
 * journal. A lookup asks the open generation first.
 *
 * Each generation is cut into 256 parts by (layer, 2 MiB of device), so that
 * a part can be sorted, destaged or grown in well under a millisecond, and so
 * that neighbouring blocks meet in one part and become one write.
 *
 * Cost: 16 bytes per slot at a load of at most 2/3: 24 to 48 bytes per block
 * that is not yet destaged. The number of blocks is bounded by the journal's size.
 */

import { assert } from '../base/assert.js';

const PARTS = 256;
const FIRST_SLOTS = 64;
const WORDS = 4; // layer, block low, lsn high (21 bits) << 8 | block high (6 bits), lsn low
const TWO_32 = 4294967296;
const TWO_38 = 2 ** 38;

class Generation {
  readonly parts: (Uint32Array | undefined)[] = new Array<Uint32Array | undefined>(PARTS).fill(undefined);
  readonly used = new Uint32Array(PARTS);
  /** A part belongs to the present life only if its tag is the present one; clearing is lazy. */
  readonly tags = new Uint32Array(PARTS);
  tag = 1;
  blocks = 0;

  clear(): void {
    this.tag++;
    this.blocks = 0;
  }
}

function partHash(layer: number, block: number): number {
  let h = Math.imul(layer, 0x9e3779b1) ^ Math.imul((block / 512) | 0, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return (h ^ (h >>> 13)) >>> 0;
}

/** Slot at which the search starts: four neighbouring blocks share a cache line. */
function slotHash(hash: number, blockLow: number, mask: number): number {
  const h = Math.imul(hash ^ (blockLow >>> 2), 0x297a2d39);
  return ((((h ^ (h >>> 15)) << 2) | (blockLow & 3)) & mask) >>> 0;
}

export class PendingTable {
  private open = new Generation();
  private sealed = new Generation();
  private sealedActive = false;

  /** Blocks in the open generation. */
  get openBlocks(): number {
    return this.open.blocks;
  }

  /** Entries of the round under way. */
  get sealedBlocks(): number {
    return this.sealedActive ? this.sealed.blocks : 0;
  }

  /** Entries of both generations; a block that was written again counts twice. */
  get blocks(): number {
    return this.openBlocks + this.sealedBlocks;
  }

  get memoryBytes(): number {
    let bytes = 0;
    for (const generation of [this.open, this.sealed]) {
      for (const part of generation.parts) bytes += part === undefined ? 0 : part.byteLength;
    }
    return bytes;
  }

  /** The newest bytes of `block` in `layer` are at `lsn` (> 0) in the journal. */
  set(layer: number, block: number, lsn: number): void {
    const hash = partHash(layer, block);
    const p = hash >>> 24;
    const generation = this.open;
    let part = generation.parts[p];
    if (part === undefined) {
      part = generation.parts[p] = new Uint32Array(FIRST_SLOTS * WORDS);
      generation.tags[p] = generation.tag;
      generation.used[p] = 0;
    } else if (generation.tags[p] !== generation.tag) {
      part.fill(0);
      generation.tags[p] = generation.tag;
      generation.used[p] = 0;
    }
    if ((generation.used[p] + 1) * 3 > (part.length / WORDS) * 2) part = generation.parts[p] = grow(part);
    const blockLow = block >>> 0;
    const blockHigh = (block - blockLow) / TWO_32;
    const lsnLow = lsn >>> 0;
    const high = (((lsn - lsnLow) / TWO_32) << 8) | blockHigh;
    if (insert(part, hash, layer, blockLow, high, lsnLow)) {
      generation.used[p]++;
      generation.blocks++;
    }
  }

  /** LSN of the newest bytes of `block` in `layer`, or 0: they are in the layer's file. */
  get(layer: number, block: number): number {
    const hash = partHash(layer, block);
    const found = find(this.open, hash, layer, block);
    if (found !== 0 || !this.sealedActive) return found;
    return find(this.sealed, hash, layer, block);
  }

  /** Starts a round: what is pending now becomes the sealed generation. */
  seal(): void {
    assert(!this.sealedActive, 'the previous round has not ended');
    const generation = this.sealed;
    this.sealed = this.open;
    this.open = generation;
    this.open.clear();
    this.sealedActive = true;
  }

  /** Ends a round: everything sealed is in the layers' files. */
  dropSealed(): void {
    assert(this.sealedActive, 'no round is under way');
    this.sealed.clear();
    this.sealedActive = false;
  }

  /** `sealedPart` takes 0 to partCount − 1. */
  get partCount(): number {
    return PARTS;
  }

  /**
   * The sealed entries of one part, sorted by layer and block. Those that the
   * open generation has newer bytes for are left out: the journal keeps the
   * newer ones, and nothing can ask for the older; unless `whole`. Returns their number.
   */
  sealedPart(p: number, out: PendingColumns, whole = false): number {
    const generation = this.sealed;
    const part = generation.parts[p];
    out.count = 0;
    if (!this.sealedActive || part === undefined || generation.tags[p] !== generation.tag) return 0;
    out.reserve(generation.used[p]);
    for (let at = 0; at < part.length; at += WORDS) {
      const layer = part[at];
      if (layer === 0) continue;
      const high = part[at + 2];
      const block = (high & 0xff) * TWO_32 + part[at + 1];
      if (!whole && find(this.open, partHash(layer, block), layer, block) !== 0) continue;
      out.put(layer, block, (high >>> 8) * TWO_32 + part[at + 3]);
    }
    out.sort();
    return out.count;
  }

  clear(): void {
    this.open.clear();
    this.sealed.clear();
    this.sealedActive = false;
  }
}

/** Entries of one part as columns, reused from part to part. */
export class PendingColumns {
  layer = new Uint32Array(1024);
  block = new Float64Array(1024);
  lsn = new Float64Array(1024);
  count = 0;
  private order = new Float64Array(1024);
  private scratch = { layer: new Uint32Array(1024), block: new Float64Array(1024), lsn: new Float64Array(1024) };

  /** Makes room for `count` entries; what was in it is gone. */
  reserve(count: number): void {
    if (count <= this.layer.length) return;
    const size = 2 ** Math.ceil(Math.log2(count));
    this.layer = new Uint32Array(size);
    this.block = new Float64Array(size);
    this.lsn = new Float64Array(size);
    this.order = new Float64Array(size);
    this.scratch = { layer: new Uint32Array(size), block: new Float64Array(size), lsn: new Float64Array(size) };
  }

  /** Adds an entry; `sort` brings it to its place. `lsn`: where in the journal the block's bytes lie. */
  put(layer: number, block: number, lsn: number): void {
    const i = this.count++;
    this.scratch.layer[i] = layer;
    this.scratch.block[i] = block;
    this.scratch.lsn[i] = lsn;
  }

  /**
   * Sorts by layer, then block. A sort of plain numbers is far quicker than one
   * with a comparison function: the key is rank of the layer * 2^38 + block
   * (blocks are below 2^38), and the LSN finds its place by binary search.
   */
  sort(): void {
    const { layer, block, lsn } = this.scratch;
    const count = this.count;
    const layers = [...new Set(layer.subarray(0, count))].sort((a, b) => a - b);
    assert(layers.length < 32768, 'too many layers with pending blocks in one part');
    const rank = new Map(layers.map((one, i) => [one, i * TWO_38]));
    const keys = this.order.subarray(0, count);
    for (let i = 0; i < count; i++) keys[i] = rank.get(layer[i])! + block[i];
    keys.sort();
    for (let i = 0; i < count; i++) {
      const key = keys[i];
      const r = Math.floor(key / TWO_38);
      this.layer[i] = layers[r];
      this.block[i] = key - r * TWO_38;
    }
    for (let i = 0; i < count; i++) this.lsn[lowerBound(keys, rank.get(layer[i])! + block[i])] = lsn[i];
  }
}

function lowerBound(sorted: Float64Array, value: number): number {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function find(generation: Generation, hash: number, layer: number, block: number): number {
  const p = hash >>> 24;
  const part = generation.parts[p];
  if (part === undefined || generation.tags[p] !== generation.tag) return 0;
  const mask = part.length / WORDS - 1;
  const blockLow = block >>> 0;
  const blockHigh = (block - blockLow) / TWO_32;
  let slot = slotHash(hash, blockLow, mask);
  for (;;) {
    const at = slot * WORDS;
    const found = part[at];
    if (found === 0) return 0;
    if (found === layer && part[at + 1] === blockLow && (part[at + 2] & 0xff) === blockHigh) {
      return (part[at + 2] >>> 8) * TWO_32 + part[at + 3];
    }
    slot = (slot + 1) & mask;
  }
}

/** True if the entry is new, false if it replaced one. */
function insert(part: Uint32Array, hash: number, layer: number, blockLow: number, high: number, lsnLow: number): boolean {
  const mask = part.length / WORDS - 1;
  let slot = slotHash(hash, blockLow, mask);
  for (;;) {
    const at = slot * WORDS;
    const found = part[at];
    if (found === 0) {
      part[at] = layer;
      part[at + 1] = blockLow;
      part[at + 2] = high;
      part[at + 3] = lsnLow;
      return true;
    }
    if (found === layer && part[at + 1] === blockLow && (part[at + 2] & 0xff) === (high & 0xff)) {
      part[at + 2] = high;
      part[at + 3] = lsnLow;
      return false;
    }
    slot = (slot + 1) & mask;
  }
}

function grow(part: Uint32Array): Uint32Array {
  const grown = new Uint32Array(part.length * 2);
  for (let at = 0; at < part.length; at += WORDS) {
    if (part[at] === 0) continue;
    const block = (part[at + 2] & 0xff) * TWO_32 + part[at + 1];
    insert(grown, partHash(part[at], block), part[at], part[at + 1], part[at + 2], part[at + 3]);
  }
  return grown;
}
