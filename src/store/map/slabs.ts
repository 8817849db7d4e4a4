/**
 * Slabs: the memory in which the bodies of map nodes live (DESIGN §5).
 *
 * Owns: chunks of 1 MiB cut into pages of 64 KiB; a page holds slots of one
 * size class. A body is named by its *address*, counted in units of 16 bytes,
 * so that no JavaScript object exists per node. A page that becomes empty may
 * serve another class.
 * Must not know: what a slot means, handles, trees, disks.
 *
 * All three views of a chunk cover the same bytes: pick by what you read.
 */
import { assert } from '../../base/assert.js';

/** Addresses count units of this many bytes. */
const UNIT_BYTES = 16;
/** Bits of an address; 2^28 units are 4 GiB of bodies. */
const ADDRESS_BITS = 28;
const CHUNK_UNITS = 65536;
const PAGE_UNITS = 4096;
const PAGE_BYTES = PAGE_UNITS * UNIT_BYTES;
const PAGES_PER_CHUNK = CHUNK_UNITS / PAGE_UNITS;
const PAGES_MAX = 2 ** ADDRESS_BITS / PAGE_UNITS;
const NONE = -1;

/** A class beyond the last real one marks pages that nobody uses. */
const FREE_PAGE = 255;

export class Slabs {
  /** Views of chunk `address >>> 16`; index of a slot: (address & 0xffff) times 4, 2 or 8. */
  readonly u32: Uint32Array[] = [];
  readonly f64: Float64Array[] = [];
  readonly u16: Uint16Array[] = [];

  /** Bytes in slots that are in use. */
  usedBytes = 0;
  /** Bytes in pages that hold at least one used slot. */
  pageBytes = 0;

  private pageClass = new Uint8Array(64);
  private pageUsed = new Uint16Array(64);
  /** First slot (counted in slots) of the page that was never used. */
  private pageFresh = new Uint16Array(64);
  /** Free slots of a page, linked through their first word: address + 1, 0 = end. */
  private pageFree = new Uint32Array(64);
  /** Doubly linked list of the pages of a class that have room. */
  private pageNext = new Int32Array(64);
  private pagePrevious = new Int32Array(64);
  private pageCount = 0;
  private freePages = NONE;
  private readonly withRoom: Int32Array;
  private readonly slotsPerPage: Uint16Array;

  /** `slotUnits[c]`: size of a slot of class c in units; 0 = no such class. */
  constructor(private readonly slotUnits: readonly number[]) {
    this.withRoom = new Int32Array(slotUnits.length).fill(NONE);
    this.slotsPerPage = Uint16Array.from(slotUnits, (units) => (units === 0 ? 0 : Math.floor(PAGE_UNITS / units)));
  }

  /** Bytes that the process holds for chunks, in use or not. */
  get reservedBytes(): number {
    return this.u32.length * CHUNK_UNITS * UNIT_BYTES;
  }

  /** Address of a slot with undefined content. */
  alloc(slabClass: number): number {
    let page = this.withRoom[slabClass];
    if (page === NONE) page = this.takePage(slabClass);
    let address: number;
    const free = this.pageFree[page];
    if (free !== 0) {
      address = free - 1;
      this.pageFree[page] = this.u32[address >>> 16][(address & 0xffff) << 2];
    } else {
      address = page * PAGE_UNITS + this.pageFresh[page]++ * this.slotUnits[slabClass];
    }
    if (++this.pageUsed[page] === this.slotsPerPage[slabClass]) this.unlinkPage(page, slabClass);
    this.usedBytes += this.slotUnits[slabClass] * UNIT_BYTES;
    return address;
  }

  /** Gives back what `alloc` gave for this class. */
  free(slabClass: number, address: number): void {
    const page = address >>> 12;
    assert(this.pageClass[page] === slabClass && this.pageUsed[page] > 0, 'a slot is freed as what it was allocated');
    const wasFull = this.pageUsed[page] === this.slotsPerPage[slabClass];
    this.u32[address >>> 16][(address & 0xffff) << 2] = this.pageFree[page];
    this.pageFree[page] = address + 1;
    this.usedBytes -= this.slotUnits[slabClass] * UNIT_BYTES;
    if (--this.pageUsed[page] === 0) {
      if (!wasFull) this.unlinkPage(page, slabClass);
      this.pageClass[page] = FREE_PAGE;
      this.pageNext[page] = this.freePages;
      this.freePages = page;
      this.pageBytes -= PAGE_BYTES;
    } else if (wasFull) {
      this.linkPage(page, slabClass);
    }
  }

  /** True when the page of this slot is at most half full and another page of the class has room for its content. */
  isSparse(slabClass: number, address: number): boolean {
    const page = address >>> 12;
    return this.pageUsed[page] * 2 <= this.slotsPerPage[slabClass] && this.withRoom[slabClass] !== page;
  }

  private takePage(slabClass: number): number {
    let page = this.freePages;
    if (page === NONE) {
      this.addChunk();
      page = this.freePages;
    }
    this.freePages = this.pageNext[page];
    this.pageClass[page] = slabClass;
    this.pageUsed[page] = 0;
    this.pageFresh[page] = 0;
    this.pageFree[page] = 0;
    this.pageBytes += PAGE_BYTES;
    this.linkPage(page, slabClass);
    return page;
  }

  private addChunk(): void {
    assert(this.pageCount + PAGES_PER_CHUNK <= PAGES_MAX, 'map memory stays below 4 GiB');
    const bytes = new ArrayBuffer(CHUNK_UNITS * UNIT_BYTES);
    this.u32.push(new Uint32Array(bytes));
    this.f64.push(new Float64Array(bytes));
    this.u16.push(new Uint16Array(bytes));
    if (this.pageCount + PAGES_PER_CHUNK > this.pageClass.length) this.growPageTable();
    // Pushed in reverse, so that pages are taken in ascending order.
    for (let page = this.pageCount + PAGES_PER_CHUNK - 1; page >= this.pageCount; page--) {
      this.pageClass[page] = FREE_PAGE;
      this.pageNext[page] = this.freePages;
      this.freePages = page;
    }
    this.pageCount += PAGES_PER_CHUNK;
  }

  private growPageTable(): void {
    const length = this.pageClass.length * 2;
    const grow = <A extends Uint8Array | Uint16Array | Uint32Array | Int32Array>(into: A, from: A): A => (into.set(from), into);
    this.pageClass = grow(new Uint8Array(length), this.pageClass);
    this.pageUsed = grow(new Uint16Array(length), this.pageUsed);
    this.pageFresh = grow(new Uint16Array(length), this.pageFresh);
    this.pageFree = grow(new Uint32Array(length), this.pageFree);
    this.pageNext = grow(new Int32Array(length), this.pageNext);
    this.pagePrevious = grow(new Int32Array(length), this.pagePrevious);
  }

  private linkPage(page: number, slabClass: number): void {
    const head = this.withRoom[slabClass];
    this.pageNext[page] = head;
    this.pagePrevious[page] = NONE;
    if (head !== NONE) this.pagePrevious[head] = page;
    this.withRoom[slabClass] = page;
  }

  private unlinkPage(page: number, slabClass: number): void {
    const next = this.pageNext[page];
    const previous = this.pagePrevious[page];
    if (previous === NONE) this.withRoom[slabClass] = next;
    else this.pageNext[previous] = next;
    if (next !== NONE) this.pagePrevious[next] = previous;
  }
}
