/**
 * A simulated file: sparse pages, a size, and what of both is durable.
 *
 * Owns: the two views of content (cache and disk), fdatasync, its failure,
 * truncation, holes.
 * Must not know: names and directories (disk.ts), time, descriptors.
 */
import { HOLE, PAGE_BYTES, Page, ZERO, type LossStyle } from './page.js';
import type { Random } from './random.js';

/** A shrink not yet durable: pages that a power loss may bring back. */
interface Shrink {
  readonly sizeBefore: number;
  readonly sizeAfter: number;
  /** How many sizes of `sizes` came before it. */
  readonly sizesBefore: number;
  readonly removed: Page[];
}

/** Bytes of allocated pages over all files of a disk. */
export interface Usage {
  pages: number;
}

export class SimFile {
  private readonly pages = new Map<number, Page>();
  private dirty: Page[] = [];
  size = 0;
  private durableSize = 0;
  /** Sizes that the file had since the last fdatasync. */
  private sizes: number[] = [];
  private shrinks: Shrink[] = [];
  allocatedPages = 0;
  /** Names, descriptors and pending directory operations that refer to it; disk.ts counts. */
  references = 0;

  constructor(readonly id: number, private readonly usage: Usage) {}

  /** Copies `source` to `pos`. `call` tells the write calls apart. Not atomic beyond a page. */
  write(source: Uint8Array, pos: number, call: number): void {
    const length = source.length;
    for (let done = 0; done < length; ) {
      const at = pos + done;
      const index = Math.floor(at / PAGE_BYTES);
      const from = at - index * PAGE_BYTES;
      const take = Math.min(PAGE_BYTES - from, length - done);
      const page = this.dirtyPage(index);
      if (page.data === HOLE) this.allocate(1);
      const target = page.prepare(from, from + take, call);
      if (take === length) target.set(source, from);
      else target.set(source.subarray(done, done + take), from);
      done += take;
    }
    this.grow(pos + length);
  }

  /** Allocated zeros at [pos, pos + length); grows the file. */
  zero(pos: number, length: number, call: number): void {
    this.clearRange(pos, pos + length, ZERO, call);
    this.grow(pos + length);
  }

  /** A hole at [pos, pos + length): whole pages are freed, edges zeroed; the size stays. */
  punch(pos: number, length: number, call: number): void {
    this.clearRange(pos, Math.min(pos + length, this.size), HOLE, call);
  }

  private clearRange(pos: number, end: number, to: Uint8Array, call: number): void {
    if (end <= pos) return;
    const first = Math.floor(pos / PAGE_BYTES);
    const last = Math.floor((end - 1) / PAGE_BYTES);
    if (to === HOLE && last - first >= this.pages.size) {
      for (const index of [...this.pages.keys()]) if (index >= first && index <= last) this.clearPage(index, pos, end, to, call);
      return;
    }
    for (let index = first; index <= last; index++) {
      if (to === ZERO || this.pages.has(index)) this.clearPage(index, pos, end, to, call);
    }
  }

  private clearPage(index: number, pos: number, end: number, to: Uint8Array, call: number): void {
    const at = index * PAGE_BYTES;
    const known = this.pages.get(index);
    if (known !== undefined && to === HOLE && known.data === HOLE) return;
    const page = this.dirtyPage(index);
    const from = Math.max(pos - at, 0);
    const upTo = Math.min(end - at, PAGE_BYTES);
    if (to === ZERO && page.data === HOLE) this.allocate(1);
    if (from === 0 && upTo === PAGE_BYTES) {
      if (to === HOLE && page.data !== HOLE) this.allocate(-1);
      page.clear(to, call);
    } else {
      page.prepare(from, upTo, call).fill(0, from, upTo);
    }
  }

  /** The page, listed as dirty: the caller writes to it. */
  private dirtyPage(index: number): Page {
    let page = this.pages.get(index);
    if (page === undefined) {
      page = new Page(index, HOLE);
      this.pages.set(index, page);
    }
    if (page.dirty === 0) this.dirty.push(page);
    return page;
  }

  private allocate(pages: number): void {
    this.allocatedPages += pages;
    this.usage.pages += pages;
  }

  private grow(size: number): void {
    if (size > this.size) {
      if (this.sizes.length < 64) this.sizes.push(this.size);
      this.size = size;
    }
  }

  /** Pages that a write of this range would newly allocate. */
  newPages(pos: number, length: number): number {
    let count = 0;
    const end = pos + length;
    for (let index = Math.floor(pos / PAGE_BYTES); index * PAGE_BYTES < end; index++) {
      if ((this.pages.get(index)?.data ?? HOLE) === HOLE) count++;
    }
    return count;
  }

  /** Copies [pos, pos + target.length) of the cached view; zeros behind the end of the file. */
  read(target: Uint8Array, pos: number): void {
    this.copyOut(target, pos, false);
  }

  /** As read, of what is durable now. */
  readDurable(target: Uint8Array, pos: number): void {
    this.copyOut(target, pos, true);
  }

  private copyOut(target: Uint8Array, pos: number, durable: boolean): void {
    const length = target.length;
    for (let done = 0; done < length; ) {
      const at = pos + done;
      const index = Math.floor(at / PAGE_BYTES);
      const from = at - index * PAGE_BYTES;
      const take = Math.min(PAGE_BYTES - from, length - done);
      const page = this.pages.get(index);
      const content = page === undefined ? HOLE : durable ? page.base : page.data;
      if (content === HOLE || content === ZERO) target.fill(0, done, done + take);
      else target.set(take === PAGE_BYTES ? content : content.subarray(from, from + take), done);
      done += take;
    }
  }

  truncate(size: number, call: number): void {
    if (size >= this.size) {
      this.grow(size);
      return;
    }
    const removed: Page[] = [];
    const first = Math.floor(size / PAGE_BYTES);
    for (const page of [...this.pages.values()]) {
      const index = page.index;
      if (index < first) continue;
      removed.push(page);
      this.pages.delete(index);
      if (page.data !== HOLE) this.allocate(-1);
      if (index === first && size % PAGE_BYTES !== 0) {
        const kept = page.cloneBelow(size % PAGE_BYTES);
        kept.call = call;
        this.pages.set(index, kept);
        if (kept.data !== HOLE) this.allocate(1);
      }
    }
    this.dirty = [...this.pages.values()].filter((page) => page.dirty !== 0);
    this.shrinks.push({ sizeBefore: this.size, sizeAfter: size, sizesBefore: this.sizes.length, removed });
    this.sizes.push(this.size);
    this.size = size;
  }

  /** All that was written so far is durable now, size included. */
  sync(): void {
    for (const page of this.dirty) {
      page.synced();
      if (page.data === HOLE && page.base === HOLE) this.pages.delete(page.index);
    }
    this.dirty = [];
    this.sizeIsDurable();
  }

  private sizeIsDurable(): void {
    this.durableSize = this.size;
    this.sizes = [];
    for (const shrink of this.shrinks) for (const page of shrink.removed) page.release();
    this.shrinks = [];
  }

  /**
   * fdatasync failed with EIO. As Linux does, pages count as clean though they
   * were not written. Each page is lost with probability `lossPerPage`, else it
   * was written. Holes and size are metadata: they wait for the next fdatasync.
   */
  syncFailed(random: Random, lossPerPage: number): void {
    const still: Page[] = [];
    for (const page of this.dirty) {
      if (page.data === HOLE) still.push(page);
      else if (lossPerPage >= 1 || random.unit() < lossPerPage) page.syncLost();
      else page.synced();
    }
    this.dirty = still;
  }

  dropClean(pos: number, length: number): void {
    const first = Math.ceil(pos / PAGE_BYTES);
    const end = length === 0 ? Infinity : Math.floor((pos + length) / PAGE_BYTES);
    for (const page of this.pages.values()) {
      if (page.index >= first && page.index < end && page.dirty === 0 && page.lost !== 0) {
        const before = page.data === HOLE;
        page.dropClean();
        if (before !== (page.data === HOLE)) this.allocate(before ? 1 : -1);
      }
    }
  }

  /** Power fails. Afterwards both views are the same, and all of it is durable. */
  powerLoss(random: Random): void {
    this.undoShrinks(random);
    const style = this.lossStyle(random);
    for (const page of this.pages.values()) {
      if (page.dirty !== 0 || page.lost !== 0 || page.data !== page.base) page.powerLoss(random, style);
    }
    this.dirty = [];
    const among = this.sizes.length;
    if (style.kind === 'old') this.size = this.durableSize;
    else if (style.kind !== 'new' && among > 0 && random.chance(0.5)) this.size = this.sizes[random.below(among)];
    this.sizes = [];
    this.durableSize = this.size;
    this.cutBehind(this.size);
    this.recount();
  }

  /** A truncation is atomic (file systems journal it): the last of them may not have happened. */
  private undoShrinks(random: Random): void {
    let keep = this.shrinks.length;
    if (keep > 0) keep = random.below(keep + 1);
    while (this.shrinks.length > keep) {
      const { sizeBefore, sizesBefore, removed } = this.shrinks.pop()!;
      for (const page of removed) {
        this.pages.get(page.index)?.release();
        this.pages.set(page.index, page);
      }
      this.size = sizeBefore;
      this.sizes.length = Math.min(this.sizes.length, sizesBefore);
    }
    for (const shrink of this.shrinks) for (const page of shrink.removed) page.release();
    const last = this.shrinks.at(-1);
    if (last !== undefined) {
      // What the size was before a truncation that happened is no candidate any more.
      this.durableSize = last.sizeAfter;
      this.sizes.splice(0, last.sizesBefore + 1);
    }
    this.shrinks = [];
  }

  private lossStyle(random: Random): LossStyle {
    const roll = random.unit();
    if (roll < 0.15) return { kind: 'old', newest: 0, cut: 0 };
    if (roll < 0.3) return { kind: 'new', newest: 1, cut: 0 };
    if (roll < 0.6) return { kind: 'uniform', newest: 0, cut: 0 };
    if (roll < 0.8) return { kind: 'mixed', newest: random.pick([0.05, 0.5, 0.9, 0.99]), cut: 0 };
    const around = this.dirty.length === 0 ? 0 : this.dirty[random.below(this.dirty.length)].index;
    return { kind: 'cut', newest: 0, cut: around + random.below(2) };
  }

  private cutBehind(size: number): void {
    const first = Math.floor(size / PAGE_BYTES);
    for (const page of [...this.pages.values()]) {
      const index = page.index;
      if (index < first) continue;
      this.pages.delete(index);
      if (index === first && size % PAGE_BYTES !== 0) this.pages.set(index, page.cloneBelow(size % PAGE_BYTES));
      page.release();
    }
  }

  private recount(): void {
    let allocated = 0;
    for (const page of this.pages.values()) {
      if (page.data !== HOLE) allocated++;
      else this.pages.delete(page.index);
    }
    this.allocate(allocated - this.allocatedPages);
  }

  nextData(pos: number): { start: number; end: number } | undefined {
    let first = -1;
    const wanted = Math.floor(pos / PAGE_BYTES);
    const isData = (index: number): boolean => (this.pages.get(index)?.data ?? HOLE) !== HOLE;
    if (isData(wanted)) first = wanted;
    else {
      for (const page of this.pages.values()) {
        if (page.index > wanted && (first < 0 || page.index < first) && page.data !== HOLE) first = page.index;
      }
    }
    if (first < 0 || Math.max(first * PAGE_BYTES, pos) >= this.size) return undefined;
    let end = first + 1;
    while (isData(end)) end++;
    return { start: Math.max(first * PAGE_BYTES, pos), end: Math.min(end * PAGE_BYTES, this.size) };
  }

  /** Flips every byte of the range, in both views. */
  corrupt(pos: number, noise: Uint8Array): void {
    for (let done = 0; done < noise.length; ) {
      const index = Math.floor((pos + done) / PAGE_BYTES);
      const from = pos + done - index * PAGE_BYTES;
      const take = Math.min(PAGE_BYTES - from, noise.length - done);
      let page = this.pages.get(index);
      if (page === undefined) {
        page = new Page(index, ZERO);
        this.pages.set(index, page);
        this.allocate(1);
      }
      page.corrupt(from, noise.subarray(done, done + take));
      done += take;
    }
  }

  /** Whether a power loss could change the file. */
  get isDirty(): boolean {
    return this.dirty.length > 0 || this.sizes.length > 0 || this.shrinks.length > 0;
  }

  /** Frees all memory; the file is used no more. */
  release(): void {
    for (const page of this.pages.values()) page.release();
    this.pages.clear();
    for (const shrink of this.shrinks) for (const page of shrink.removed) page.release();
    this.shrinks = [];
    this.dirty = [];
    this.allocate(-this.allocatedPages);
  }
}
