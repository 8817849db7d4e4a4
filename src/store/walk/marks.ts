/**
 * Which blocks of one place (a leaf's 512 blocks) each layer is referred to
 * for, and how many blocks of each layer were referred to in all places so far.
 *
 * Owns: the bits and the sums. Must not know: where they come from.
 */
import { assert } from '../../base/assert.js';
import type { LeafVisitor } from '../map/sweep.js';
import { LEAF_BLOCKS } from '../map/nodes.js';

const WORDS = LEAF_BLOCKS / 32;

export class LayerMarks implements LeafVisitor {
  /** Layer → row. */
  private readonly rows = new Map<number, number>();
  private bits = new Uint32Array(64 * WORDS);
  /** The place that a row's bits are of. */
  private places = new Float64Array(64);
  private sums = new Float64Array(64);
  /** Rows touched at this place. */
  private touched: number[] = [];
  private place = 1;
  private lastLayer = 0;
  private lastRow = 0;
  private firstBlock = 0;

  /** `wanted`: the layers to look at; undefined = all. */
  constructor(private readonly wanted?: ReadonlySet<number>) {}

  /** LeafVisitor. Own and shared bytes per device can be summed here: a leaf comes with its first root and its number of trees. */
  leaf(firstBlock: number): void {
    this.firstBlock = firstBlock;
  }

  /** LeafVisitor. */
  run(layer: number, firstBlock: number, count: number): void {
    if (this.wanted !== undefined && !this.wanted.has(layer)) return;
    this.mark(layer, firstBlock - this.firstBlock, firstBlock - this.firstBlock + count);
  }

  /** Blocks [from, to) of the place are in `layer`. */
  private mark(layer: number, from: number, to: number): void {
    assert(from >= 0 && from < to && to <= LEAF_BLOCKS, 'a run lies in its place');
    const at = this.rowOf(layer) * WORDS;
    for (let word = from >>> 5; word << 5 < to; word++) {
      const low = Math.max(from - (word << 5), 0);
      const high = Math.min(to - (word << 5), 32);
      this.bits[at + word] |= high - low === 32 ? 0xffffffff : ((1 << (high - low)) - 1) << low;
    }
  }

  /** `block`: counted from the start of the present place. */
  isMarked(layer: number, block: number): boolean {
    const row = this.rows.get(layer);
    if (row === undefined || this.places[row] !== this.place) return false;
    return ((this.bits[row * WORDS + (block >>> 5)] >>> (block & 31)) & 1) !== 0;
  }

  /** Everything of this place was marked: adds it to the sums. The bits stay until the next place. */
  endPlace(): void {
    for (const row of this.touched) {
      let count = 0;
      for (let at = row * WORDS; at < (row + 1) * WORDS; at++) count += ones(this.bits[at]);
      this.sums[row] += count;
    }
  }

  /** Begins a place; what was marked and not ended is forgotten. */
  nextPlace(): void {
    this.place++;
    this.touched.length = 0;
    this.lastLayer = 0;
  }

  /** Blocks of `layer` in the places ended so far. */
  total(layer: number): number {
    const row = this.rows.get(layer);
    return row === undefined ? 0 : this.sums[row];
  }

  private rowOf(layer: number): number {
    if (layer === this.lastLayer) return this.lastRow;
    let row = this.rows.get(layer);
    if (row === undefined) {
      row = this.rows.size;
      this.rows.set(layer, row);
      if (row === this.places.length) this.grow();
    }
    if (this.places[row] !== this.place) {
      this.places[row] = this.place;
      this.bits.fill(0, row * WORDS, (row + 1) * WORDS);
      this.touched.push(row);
    }
    this.lastLayer = layer;
    this.lastRow = row;
    return row;
  }

  private grow(): void {
    const rows = this.places.length * 2;
    const bits = new Uint32Array(rows * WORDS);
    bits.set(this.bits);
    this.bits = bits;
    const places = new Float64Array(rows);
    places.set(this.places);
    this.places = places;
    const sums = new Float64Array(rows);
    sums.set(this.sums);
    this.sums = sums;
  }
}

function ones(word: number): number {
  let n = word - ((word >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return Math.imul((n + (n >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
