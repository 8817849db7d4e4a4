/**
 * Nodes: the table of map nodes (DESIGN §5).
 *
 * Owns: *handles* (u32 names of nodes) with their reference counts, where their
 * body is in memory, where it is on disk, and an upper bound of the stamps
 * below them; the list of dropped inner nodes that wait to be taken apart; the
 * clock that pages bodies out. Handle 0 is ZERO, the subtree that holds nothing.
 * Must not know: devices, roots, what a record on disk looks like.
 *
 * Rules that everything in the map relies on:
 * - `diskRef(h) === 0` means dirty: the body exists only in memory.
 * - A clean node has only clean nodes below it (children, or a delta's base).
 * - A body is changed in place only by a caller that holds the only reference,
 *   through parents that are themselves referenced once.
 *
 * A *disk reference* is the position of a node's record in the map file (a
 * multiple of 8) plus flags in its low bits. 0 = not on disk.
 */
import { assert } from '../../base/assert.js';
import { Slabs } from './slabs.js';

export const Kind = { none: 0, inner: 1, mono: 2, full: 3, delta4: 4, delta16: 5, delta64: 6, dense: 7 } as const;

/** Blocks of one leaf, regions of one leaf, children of one inner node. */
export const LEAF_BLOCKS = 512;
export const LEAF_REGIONS = 32;
export const REGION_BLOCKS = 16;
export const FAN_OUT = 64;

/** Layer number that means "ask the base" in a dense delta, hence never a layer. */
export const SEE_BASE = 0xffffffff;
export const LAYER_MAX = 0xfffffffe;
/** Region stamp that means "ask the base" in a dense delta. */
export const STAMP_SEE_BASE = -1;
/** Stamps end two below the largest safe integer; the codec needs the room. */
export const STAMP_MAX = Number.MAX_SAFE_INTEGER - 2;

/** Flag of a disk reference: the record is a leaf delta. */
export const REF_DELTA = 1;
/** Flag of a disk reference, in memory only: which of the two map files (a compaction flips it). */
export const REF_FILE = 2;
/** Flag of a disk reference: the record is an inner node. */
export const REF_INNER = 4;
export const REF_FLAGS = 8;
/** Reference of a node that a compaction did not reach: nobody can come to need it. */
export const REF_LOST = 2 ** 52;

/*
 * Bodies, in u32 words / f64 words of the slot:
 *
 *   inner   f64[0] reference of the last *full* record of this node (0 = none)
 *           u32[2..3] bitmap of the children changed since that record
 *           u32[4..67] child handles
 *   mono    f64[0..31] region stamps · u32[64] layer · u32[65..80] bitmap of the blocks in that layer
 *   full    f64[0..31] region stamps · u32[64..575] layer of each block
 *   deltaN  u32[0] base handle · u32[1] count · f64[1..N] stamp · u32[2+2N..] layer · u16[4+6N..] block, ascending;
 *           all entries of one region carry the same stamp: the region's
 *   dense   u32[0] base handle · f64[1..32] region stamps · u32[66..577] layer of each block; both with "see base"
 */
const SLOT_UNITS = [0, 17, 21, 144, 4, 15, 57, 145];
export const DELTA_CAPACITY: readonly number[] = [0, 0, 0, 0, 4, 16, 64, 0];

const HANDLE_SHIFT = 14;
const HANDLE_CHUNK = 1 << HANDLE_SHIFT;
const HANDLE_MASK = HANDLE_CHUNK - 1;
const HANDLE_BYTES = 24;
const HANDLES_MAX = 2 ** 30;
const REFS_MAX = 0xffffffff;
/** Pages that are being filled, one per class, are no waste. */
const TIDY_SLACK_BYTES = 1024 * 1024;

const ADDRESS_MASK = 0x0fffffff;
const REFERENCED = -0x80000000;

/** A Kind; of the word of a node with a body. */
export function kindOfWord(word: number): number {
  return (word >>> 28) & 7;
}

/** Position in the map file of a disk reference. */
export function positionOfRef(ref: number): number {
  return ref - (ref % REF_FLAGS);
}

/** Map file (0 or 1) of a disk reference. */
export function fileOfRef(ref: number): number {
  return ref % REF_FLAGS & REF_FILE ? 1 : 0;
}

export class Nodes {
  readonly slabs = new Slabs(SLOT_UNITS);
  private readonly refs: Uint32Array[] = [];
  /** 0 = no body, else: bit 31 recently used, bits 28..30 kind, bits 0..27 address. */
  private readonly words: Int32Array[] = [];
  private readonly disk: Float64Array[] = [];
  /** Upper bound of the stamps below; in a free or pending handle: link to the next one. */
  private readonly tops: Float64Array[] = [];

  /** Handles from here on were never used. Handle 0 is ZERO and has no row worth reading. */
  private unused = 1;
  private freeHead = 0;
  private pendingHead = 0;
  private clockHand = 1;
  private tidyHand = 1;
  /** Handles in use, including those that wait to be reclaimed. */
  liveCount = 0;
  /** Dropped inner nodes that wait to be taken apart. */
  pendingCount = 0;
  /** Which of the two map files (0 or 1) new records go to; a compaction flips it when it commits. */
  currentFile = 0;
  /** See `pin`. */
  private pinnedFrom = Infinity;
  private pinnedFile = 0;

  constructor() {
    this.addHandleChunk();
  }

  /** Bytes of handle rows and bodies in use. */
  get memoryBytes(): number {
    return this.liveCount * HANDLE_BYTES + this.slabs.usedBytes;
  }

  /** Bytes that the process holds for nodes, in use or not. */
  get reservedBytes(): number {
    return this.refs.length * HANDLE_CHUNK * HANDLE_BYTES + this.slabs.reservedBytes;
  }

  /** One more than the largest handle ever used: for scans. */
  get handleLimit(): number {
    return this.unused;
  }

  /** References to the node; 0 = the handle is free. */
  refsOf(h: number): number {
    return this.refs[h >>> HANDLE_SHIFT][h & HANDLE_MASK];
  }

  /** The body word; decode with kindOfWord and the two functions below. 0 = no body in memory. */
  wordOf(h: number): number {
    return this.words[h >>> HANDLE_SHIFT][h & HANDLE_MASK];
  }

  /** A Kind; of a node with a body. */
  kindOf(h: number): number {
    return (this.words[h >>> HANDLE_SHIFT][h & HANDLE_MASK] >>> 28) & 7;
  }

  /** Where its record lies (REF_FLAGS); 0 = it has none. */
  diskRefOf(h: number): number {
    return this.disk[h >>> HANDLE_SHIFT][h & HANDLE_MASK];
  }

  /** The newest stamp below it, or an upper bound. */
  topOf(h: number): number {
    return h === 0 ? 0 : this.tops[h >>> HANDLE_SHIFT][h & HANDLE_MASK];
  }

  setTop(h: number, stamp: number): void {
    this.tops[h >>> HANDLE_SHIFT][h & HANDLE_MASK] = stamp;
  }

  raiseTop(h: number, stamp: number): void {
    const tops = this.tops[h >>> HANDLE_SHIFT];
    if (stamp > tops[h & HANDLE_MASK]) tops[h & HANDLE_MASK] = stamp;
  }

  setDiskRef(h: number, ref: number): void {
    this.disk[h >>> HANDLE_SHIFT][h & HANDLE_MASK] = ref;
  }

  /** The body is about to differ from the record on disk. */
  markDirty(h: number): void {
    this.disk[h >>> HANDLE_SHIFT][h & HANDLE_MASK] = 0;
  }

  /** Gives the clock a reason to keep this body for one more round. */
  touch(h: number, word: number): void {
    if (word > 0) this.words[h >>> HANDLE_SHIFT][h & HANDLE_MASK] = word | REFERENCED;
  }

  /** A new handle with one reference, no body, and `ref` as its place on disk. */
  add(ref: number, top: number): number {
    let h = this.freeHead;
    if (h !== 0) {
      this.freeHead = this.tops[h >>> HANDLE_SHIFT][h & HANDLE_MASK];
    } else {
      h = this.unused++;
      if (h >>> HANDLE_SHIFT === this.refs.length) this.addHandleChunk();
    }
    const chunk = h >>> HANDLE_SHIFT;
    const row = h & HANDLE_MASK;
    this.refs[chunk][row] = 1;
    this.words[chunk][row] = 0;
    this.disk[chunk][row] = ref;
    this.tops[chunk][row] = top;
    this.liveCount++;
    return h;
  }

  /** Gives `h`, which has none, a body of undefined content; returns the body word. */
  addBody(h: number, kind: number): number {
    const words = this.words[h >>> HANDLE_SHIFT];
    assert(words[h & HANDLE_MASK] === 0, 'a node has one body');
    const word = (kind << 28) | this.slabs.alloc(kind);
    words[h & HANDLE_MASK] = word;
    return word;
  }

  /** Frees the body alone; what it refers to is the caller's affair. */
  freeBody(h: number): void {
    const words = this.words[h >>> HANDLE_SHIFT];
    const word = words[h & HANDLE_MASK];
    this.slabs.free(kindOfWord(word), word & ADDRESS_MASK);
    words[h & HANDLE_MASK] = 0;
  }

  /** One reference more; 0 stands for zeros and is not counted. */
  retain(h: number): void {
    if (h === 0) return;
    const refs = this.refs[h >>> HANDLE_SHIFT];
    const count = refs[h & HANDLE_MASK];
    assert(count > 0 && count < REFS_MAX, 'only a live node is retained');
    refs[h & HANDLE_MASK] = count + 1;
  }

  /** Gives one reference back. The last one frees a leaf at once and puts an inner node on the list for `reclaim`. */
  release(h: number): void {
    if (h === 0) return;
    const refs = this.refs[h >>> HANDLE_SHIFT];
    const count = refs[h & HANDLE_MASK];
    assert(count > 0, 'a reference is given back once');
    refs[h & HANDLE_MASK] = count - 1;
    if (count > 1) return;
    if (this.kindOf(h) === Kind.inner) {
      this.setTop(h, this.pendingHead);
      this.pendingHead = h;
      this.pendingCount++;
    } else {
      this.takeApart(h);
    }
  }

  /** Takes apart at most `maxNodes` dropped inner nodes (64 releases each); true while there are more. */
  reclaim(maxNodes: number): boolean {
    for (let n = 0; n < maxNodes && this.pendingHead !== 0; n++) {
      const h = this.pendingHead;
      this.pendingHead = this.topOf(h);
      this.pendingCount--;
      this.takeApart(h);
    }
    return this.pendingHead !== 0;
  }

  /** Releases what the body refers to, then frees body and handle. */
  private takeApart(h: number): void {
    if (this.wordOf(h) !== 0) this.dropBody(h);
    this.setTop(h, this.freeHead);
    this.setDiskRef(h, 0);
    this.freeHead = h;
    this.liveCount--;
  }

  /** Frees the body and releases the nodes that it refers to. */
  dropBody(h: number): void {
    const word = this.wordOf(h);
    const kind = kindOfWord(word);
    const u32 = this.slabs.u32[(word >>> 16) & 0xfff];
    const at = (word & 0xffff) << 2;
    if (kind === Kind.inner) {
      for (let slot = 0; slot < FAN_OUT; slot++) this.release(u32[at + 4 + slot]);
    } else if (kind >= Kind.delta4) {
      this.release(u32[at]);
    }
    this.freeBody(h);
  }

  /**
   * Pages out clean bodies that were not used since the clock last passed,
   * until `memoryBytes <= targetBytes` or `maxSteps` handles were looked at.
   * Inner nodes go only when no child has a body; the handles of their children
   * go with them. True when the target was reached.
   */
  evict(targetBytes: number, maxSteps = Infinity): boolean {
    // Three rounds: one to clear the "used" bits, one for leaves, one for the parents that they leave without bodies below.
    const steps = Math.min(maxSteps, this.unused * 3);
    for (let n = 0; n < steps && this.memoryBytes > targetBytes; n++) {
      if (this.clockHand >= this.unused) this.clockHand = 1;
      const h = this.clockHand++;
      const word = this.wordOf(h);
      if (word === 0 || this.refsOf(h) === 0) continue;
      if (word < 0) {
        this.words[h >>> HANDLE_SHIFT][h & HANDLE_MASK] = word & ~REFERENCED;
      } else if (this.isEvictable(h, word)) {
        this.dropBody(h);
      }
    }
    return this.memoryBytes <= targetBytes;
  }

  /**
   * While less than half of the slabs' pages is in use: moves bodies out of
   * mostly empty pages, so that these become free for any class. Looks at no
   * more than `maxHandles`; true while there is more to do.
   */
  tidy(maxHandles: number): boolean {
    for (let n = 0; n < maxHandles; n++) {
      if (this.slabs.pageBytes <= 2 * this.slabs.usedBytes + TIDY_SLACK_BYTES) return false;
      if (this.tidyHand >= this.unused) this.tidyHand = 1;
      const h = this.tidyHand++;
      if (this.wordOf(h) !== 0) this.moveFromSparsePage(h);
    }
    return true;
  }

  /** Nodes whose record lies at `position` or behind it in map file `file` stay in memory: their writer may have to take them back. */
  pin(position: number, file: number): void {
    this.pinnedFrom = position;
    this.pinnedFile = file * REF_FILE;
  }

  /** Ends `pin`. */
  unpin(): void {
    this.pinnedFrom = Infinity;
  }

  /** Whether `pin` holds for the record. */
  isPinnedRef(ref: number): boolean {
    return ref >= this.pinnedFrom && (ref % REF_FLAGS & REF_FILE) === this.pinnedFile;
  }

  private isEvictable(h: number, word: number): boolean {
    const ref = this.diskRefOf(h);
    if (ref === 0 || this.isPinnedRef(ref)) return false;
    if (kindOfWord(word) !== Kind.inner) return true;
    const u32 = this.slabs.u32[(word >>> 16) & 0xfff];
    const at = ((word & 0xffff) << 2) + 4;
    for (let slot = 0; slot < FAN_OUT; slot++) {
      const child = u32[at + slot];
      if (child !== 0 && this.wordOf(child) !== 0) return false;
    }
    return true;
  }

  private moveFromSparsePage(h: number): void {
    const word = this.wordOf(h);
    const kind = kindOfWord(word);
    const from = word & ADDRESS_MASK;
    if (!this.slabs.isSparse(kind, from)) return;
    const to = this.slabs.alloc(kind);
    const words = SLOT_UNITS[kind] * 4;
    const source = (from & 0xffff) << 2;
    this.slabs.u32[to >>> 16].set(this.slabs.u32[from >>> 16].subarray(source, source + words), (to & 0xffff) << 2);
    this.slabs.free(kind, from);
    this.words[h >>> HANDLE_SHIFT][h & HANDLE_MASK] = (word & ~ADDRESS_MASK) | to;
  }

  private addHandleChunk(): void {
    assert(this.refs.length * HANDLE_CHUNK < HANDLES_MAX, 'fewer than 2^30 nodes');
    this.refs.push(new Uint32Array(HANDLE_CHUNK));
    this.words.push(new Int32Array(HANDLE_CHUNK));
    this.disk.push(new Float64Array(HANDLE_CHUNK));
    this.tops.push(new Float64Array(HANDLE_CHUNK));
  }
}
