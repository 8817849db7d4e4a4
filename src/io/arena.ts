/**
 * Allocator of the Io's memory: a buddy system.
 *
 * Owns: which byte ranges of `Io.memory` are in use, and by how many holders.
 * Must not know: what lies in them.
 *
 * Sizes are powers of two from 4 KiB to 64 MiB, each range aligned to its size.
 * A range has a reference count, for one chunk of requests is held by the
 * receive, the append, the destage and the shipper at the same time (DESIGN §7).
 * Everything is O(log n) on typed arrays; nothing is allocated after construction.
 */
import { assert } from '../base/assert.js';
import type { Io } from './io.js';

const UNIT_SHIFT = 12;
const UNIT_BYTES = 1 << UNIT_SHIFT;
const MAX_ORDER = 14;
const ORDERS = MAX_ORDER + 1;
/** Largest range that `alloc` gives, in bytes. */
export const MAX_ALLOC_BYTES = UNIT_BYTES << MAX_ORDER;

/**
 * The first page is never handed out, so that 0 can mean "no buffer". Cold
 * synchronous helpers (file.ts) use it as scratch within one call.
 */
export const SCRATCH_OFFSET = 0;
export const SCRATCH_BYTES = UNIT_BYTES;

/** What the first unit of a range says about it; units inside of a range say INSIDE. */
const INSIDE = 0xff;
const USED = 0x80;
const NONE = 0xffffffff;

export class Arena {
  /** All of `io.memory`. */
  readonly u8: Uint8Array;
  readonly view: DataView;
  /** Bytes that can be handed out in all. */
  readonly capacityBytes: number;
  private used = 0;
  private readonly units: number;
  /** Per unit: order of the free range that begins here, USED | order, or INSIDE. */
  private readonly state: Uint8Array;
  /** Per first unit of a used range: its references. */
  private readonly references: Uint32Array;
  /** Free ranges of one order form a list. Last freed, first used: its pages are warm. */
  private readonly next: Uint32Array;
  private readonly previous: Uint32Array;
  private readonly heads = new Uint32Array(ORDERS).fill(NONE);
  /** The range that `lend` falls back to. */
  private aside = -1;
  /** Bit k: list k is not empty. */
  private available = 0;

  /** Takes the first `bytes` of `io.memory`; there is one Arena per Io. What lies behind is somebody else's. */
  constructor(io: Pick<Io, 'memory'>, bytes = io.memory.byteLength) {
    assert(bytes >= 2 * UNIT_BYTES && bytes % UNIT_BYTES === 0 && bytes <= io.memory.byteLength, `an arena of ${bytes} bytes is not a number of pages of its memory`);
    this.u8 = new Uint8Array(io.memory);
    this.view = new DataView(io.memory);
    this.units = bytes / UNIT_BYTES;
    this.capacityBytes = bytes - SCRATCH_BYTES;
    this.state = new Uint8Array(this.units).fill(INSIDE);
    this.references = new Uint32Array(this.units);
    this.next = new Uint32Array(this.units);
    this.previous = new Uint32Array(this.units);
    // Cover [1, units) with the largest aligned ranges, from the end, so that the lists begin low.
    for (let end = this.units; end > 1; ) {
      let order = Math.min(MAX_ORDER, trailingZeros(end));
      while (end - (1 << order) < 1) order--;
      end -= 1 << order;
      this.push(end, order);
    }
    this.state[0] = USED;
    this.references[0] = 1;
  }

  /** Bytes in use, counted as handed out (rounded up to powers of two). */
  get usedBytes(): number {
    return this.used;
  }

  /** The most bytes that `alloc` would give now; 0 when full. */
  get largestFree(): number {
    return this.available === 0 ? 0 : UNIT_BYTES << (31 - Math.clz32(this.available));
  }

  /**
   * A range of at least `bytes` (1 to 64 MiB) with one reference: its offset,
   * aligned to its size, or −1 when there is no room (the caller then stops
   * receiving). Its content is what the last holder left.
   */
  alloc(bytes: number): number {
    assert(bytes >= 1 && bytes <= MAX_ALLOC_BYTES, `alloc of ${bytes} bytes`);
    const order = orderOf(bytes);
    const fitting = (this.available >>> order) << order;
    if (fitting === 0) return -1;
    let have = 31 - Math.clz32(fitting & -fitting);
    const unit = this.heads[have];
    this.remove(unit, have);
    while (have > order) {
      have--;
      this.push(unit + (1 << have), have);
    }
    this.state[unit] = USED | order;
    this.references[unit] = 1;
    this.used += UNIT_BYTES << order;
    return unit * UNIT_BYTES;
  }

  /** Keeps a range of `bytes` for `lend`. Once, while there is room: at start. */
  setAside(bytes: number): void {
    assert(this.aside < 0, 'a range was set aside already');
    this.aside = this.alloc(bytes);
    assert(this.aside >= 0, `no arena room to set ${bytes} bytes aside`);
  }

  /**
   * As `alloc`; when that finds nothing, the range that was set aside. Only for
   * blocking work, which releases it before it returns, so that it is free
   * whenever somebody asks. −1: none was set aside, or it is too small.
   */
  lend(bytes: number): number {
    const at = this.alloc(bytes);
    if (at >= 0 || this.aside < 0 || this.sizeOf(this.aside) < bytes) return at;
    if (this.referencesOf(this.aside) > 1) return -1;
    this.retain(this.aside);
    return this.aside;
  }

  /** Size in bytes of the range that begins at `offset`. */
  sizeOf(offset: number): number {
    return UNIT_BYTES << (this.state[this.usedUnit(offset)] & ~USED);
  }

  /** One more holder of the range that begins at `offset`. */
  retain(offset: number): void {
    this.references[this.usedUnit(offset)]++;
  }

  /** One holder less; the last one frees the range. */
  release(offset: number): void {
    let unit = this.usedUnit(offset);
    if (--this.references[unit] > 0) return;
    let order = this.state[unit] & ~USED;
    this.used -= UNIT_BYTES << order;
    this.state[unit] = INSIDE;
    while (order < MAX_ORDER) {
      const buddy = unit ^ (1 << order);
      // A buddy beyond the end has no state; one that is in use or split says so.
      if (buddy >= this.units || this.state[buddy] !== order) break;
      this.remove(buddy, order);
      unit = Math.min(unit, buddy);
      order++;
    }
    this.push(unit, order);
  }

  /** References of the range that begins at `offset`. For assertions and tests. */
  referencesOf(offset: number): number {
    return this.references[this.usedUnit(offset)];
  }

  private usedUnit(offset: number): number {
    const unit = offset / UNIT_BYTES;
    // The comparison with 1 keeps the reserved page out; a fraction or a stranger finds no state.
    const state = unit >= 1 ? this.state[unit] : undefined;
    assert(state !== undefined && state !== INSIDE && (state & USED) !== 0, 'an arena range was used that is not allocated');
    return unit;
  }

  private push(unit: number, order: number): void {
    const head = this.heads[order];
    this.state[unit] = order;
    this.next[unit] = head;
    this.previous[unit] = NONE;
    if (head !== NONE) this.previous[head] = unit;
    this.heads[order] = unit;
    this.available |= 1 << order;
  }

  private remove(unit: number, order: number): void {
    const next = this.next[unit];
    const previous = this.previous[unit];
    if (previous === NONE) this.heads[order] = next;
    else this.next[previous] = next;
    if (next !== NONE) this.previous[next] = previous;
    if (this.heads[order] === NONE) this.available &= ~(1 << order);
    this.state[unit] = INSIDE;
  }
}

/** What `alloc(bytes)` takes. */
export function allocatedBytes(bytes: number): number {
  return UNIT_BYTES << orderOf(bytes);
}

function orderOf(bytes: number): number {
  const units = Math.ceil(bytes / UNIT_BYTES);
  return units <= 1 ? 0 : 32 - Math.clz32(units - 1);
}

function trailingZeros(value: number): number {
  return 31 - Math.clz32(value & -value);
}
