/**
 * One 4 KiB page of a simulated file: what the cache holds, what the disk
 * holds, and every version in between.
 *
 * Owns: the rule of crash assumption 1 (a 512-byte sector is old or new, never
 * garbage) and the pool of page buffers that runs share.
 * Must not know: files, names, time.
 */
import type { Random } from './random.js';

export const PAGE_BYTES = 4096;
export const SECTOR_BYTES = 512;
const SECTORS = PAGE_BYTES / SECTOR_BYTES;
/** Older versions of a page than this many are forgotten (the oldest first). */
const HISTORY_LIMIT = 32;

/** A page of zeros that is allocated; shared and never written. */
export const ZERO = new Uint8Array(PAGE_BYTES);
/** Zeros of a hole: as ZERO, but not allocated. */
export const HOLE = new Uint8Array(PAGE_BYTES);

const pool: Uint8Array[] = [];

/** A page buffer with any content. */
export function takeBuffer(): Uint8Array {
  if (pool.length === 0) {
    const slab = new ArrayBuffer(256 * PAGE_BYTES);
    for (let at = 0; at < slab.byteLength; at += PAGE_BYTES) pool.push(new Uint8Array(slab, at, PAGE_BYTES));
  }
  return pool.pop()!;
}

function giveBuffer(buffer: Uint8Array): void {
  if (buffer !== ZERO && buffer !== HOLE) pool.push(buffer);
}

/** How a power loss chooses among the versions of a file's sectors; drawn once per file. */
export interface LossStyle {
  /** old, new: all sectors. mixed: each sector by itself, new with probability `newest`, else any version. cut: pages below `cut` as new, others old. */
  readonly kind: 'old' | 'new' | 'uniform' | 'mixed' | 'cut';
  readonly newest: number;
  readonly cut: number;
}

export class Page {
  /** What a power loss leaves of sectors that are not dirty. */
  base: Uint8Array;
  /** What readers see. May be the same buffer as `base`; else this page owns both. */
  data: Uint8Array;
  /** Sectors written since the last fdatasync, one bit each. */
  dirty = 0;
  /** Sectors that the newest write changed. */
  last = 0;
  /** Sectors that differ from the disk though the kernel believes them clean (a failed fsync). */
  lost = 0;
  /** The write call that made `data`: chunks of one vectored write make one version. */
  call = 0;
  private history: Uint8Array[] | undefined;
  private masks: number[] | undefined;

  constructor(readonly index: number, content: Uint8Array) {
    this.base = content;
    this.data = content;
  }

  /** Makes [from, to) of the page writable for write call `call`; the caller then fills it. Returns the buffer. */
  prepare(from: number, to: number, call: number): Uint8Array {
    const mask = ((2 << ((to - 1) >> 9)) - 1) & ~((1 << (from >> 9)) - 1);
    if (this.dirty !== 0 && this.call === call && this.data !== ZERO && this.data !== HOLE) {
      this.last |= mask;
    } else {
      const old = this.data;
      const fresh = takeBuffer();
      if (to - from < PAGE_BYTES) fresh.set(old);
      this.replace(fresh, mask);
    }
    this.dirty |= mask;
    this.lost &= ~mask;
    this.call = call;
    return this.data;
  }

  /** The whole page becomes ZERO or HOLE. */
  clear(to: Uint8Array, call: number): void {
    this.replace(to, 0xff);
    this.dirty = 0xff;
    this.lost = 0;
    this.call = call;
  }

  private replace(fresh: Uint8Array, mask: number): void {
    const old = this.data;
    this.data = fresh;
    if (this.dirty !== 0) {
      this.history ??= [];
      this.masks ??= [];
      this.history.push(old);
      this.masks.push(this.last);
      if (this.history.length > HISTORY_LIMIT) {
        giveBuffer(this.history.shift()!);
        this.masks.shift();
      }
    } else if (old !== this.base) {
      giveBuffer(old); // a lost version: the kernel never writes it
    }
    this.last = mask;
  }

  private forgetHistory(): void {
    if (this.history !== undefined && this.history.length > 0) {
      for (const old of this.history) giveBuffer(old);
      this.history.length = 0;
      this.masks!.length = 0;
    }
    this.dirty = 0;
    this.last = 0;
  }

  /** A successful fdatasync: dirty sectors are durable; lost ones stay lost. */
  synced(): void {
    if (this.lost === 0) {
      if (this.base !== this.data) giveBuffer(this.base);
      this.base = this.data;
    } else {
      this.base = this.merge(this.dirty);
    }
    this.forgetHistory();
  }

  /** A failed fdatasync: the sectors count as clean, and the disk has what it had. */
  syncLost(): void {
    this.lost |= this.dirty;
    this.forgetHistory();
  }

  /** A private copy of `base` with the sectors of `mask` from `data`; gives the old base back. */
  private merge(mask: number): Uint8Array {
    const merged = takeBuffer();
    merged.set(this.base);
    for (let s = 0; s < SECTORS; s++) {
      if ((mask & (1 << s)) !== 0) copySector(merged, this.data, s);
    }
    giveBuffer(this.base);
    return merged;
  }

  /** The cache drops the page: lost sectors read as the disk has them. */
  dropClean(): void {
    if (this.dirty !== 0 || this.data === this.base) return;
    giveBuffer(this.data);
    this.data = this.base;
    this.lost = 0;
  }

  /** Power fails: each dirty sector becomes its durable content or any version written since. */
  powerLoss(random: Random, style: LossStyle): void {
    if (this.dirty !== 0 || this.lost !== 0) {
      const newest = style.kind === 'new' || (style.kind === 'cut' && this.index < style.cut);
      if (this.dirty !== 0 && newest) {
        this.synced();
      } else if (this.dirty !== 0 && (style.kind === 'uniform' || style.kind === 'mixed')) {
        this.chooseVersions(random, style.kind === 'mixed' ? style.newest : -1);
      }
    }
    this.forgetHistory();
    if (this.data !== this.base) giveBuffer(this.data);
    this.data = this.base;
    this.lost = 0;
  }

  private chooseVersions(random: Random, newest: number): void {
    let merged: Uint8Array | undefined;
    const take = (from: Uint8Array, sector: number): void => {
      if (merged === undefined) {
        merged = takeBuffer();
        merged.set(this.base);
      }
      copySector(merged, from, sector);
    };
    const olders = this.masks?.length ?? 0;
    for (let s = 0; s < SECTORS; s++) {
      const bit = 1 << s;
      if ((this.dirty & bit) === 0) continue;
      if (newest >= 0 && random.unit() < newest) {
        take(this.data, s);
        continue;
      }
      let versions = (this.last & bit) !== 0 ? 1 : 0;
      for (let i = 0; i < olders; i++) if ((this.masks![i] & bit) !== 0) versions++;
      // 0 is the durable content, 1 the oldest version since, `versions` the newest. A "mixed" file has old ones left only.
      let choice = random.below(newest >= 0 ? Math.max(versions, 1) : versions + 1);
      if (choice === 0) continue;
      let from = this.data;
      for (let i = 0; i < olders; i++) {
        if ((this.masks![i] & bit) !== 0 && --choice === 0) {
          from = this.history![i];
          break;
        }
      }
      take(from, s);
    }
    if (merged !== undefined) {
      giveBuffer(this.base);
      this.base = merged;
    }
  }

  /** Flips bits of [from, to) on the disk and in the cache. `noise` has a nonzero byte for each. */
  corrupt(from: number, noise: Uint8Array): void {
    const shared = this.data === this.base;
    const flip = (old: Uint8Array): Uint8Array => {
      const fresh = takeBuffer();
      fresh.set(old);
      for (let i = 0; i < noise.length; i++) fresh[from + i] ^= noise[i];
      giveBuffer(old);
      return fresh;
    };
    this.base = flip(this.base);
    this.data = shared ? this.base : flip(this.data);
  }

  /** A page like this one, but with zeros from `from` on; older versions are left out. For a truncation. */
  cloneBelow(from: number): Page {
    const below = (old: Uint8Array): Uint8Array => {
      if (old === ZERO || old === HOLE) return old;
      const fresh = takeBuffer();
      fresh.set(old);
      fresh.fill(0, from);
      return fresh;
    };
    const clone = new Page(this.index, below(this.base));
    if (this.data !== this.base) clone.data = below(this.data);
    clone.dirty = this.dirty;
    clone.last = this.dirty;
    clone.lost = this.lost;
    return clone;
  }

  /** Gives the buffers back; the page is used no more. */
  release(): void {
    this.forgetHistory();
    if (this.data !== this.base) giveBuffer(this.data);
    giveBuffer(this.base);
    this.base = HOLE;
    this.data = HOLE;
  }
}

function copySector(to: Uint8Array, from: Uint8Array, sector: number): void {
  const at = sector * SECTOR_BYTES;
  to.set(from.subarray(at, at + SECTOR_BYTES), at);
}
