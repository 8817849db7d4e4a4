/**
 * BlockMap: the block maps of a group's devices (DESIGN §5): which layer holds
 * each block, and which record last changed each 64 KiB region.
 *
 * Owns: the radix trees over shared nodes, the operations on whole devices
 * (share, assign, drop, resize) and on ranges (set, clear, resolve), and the
 * way of nodes to and from memory.
 * Must not know: where a layer's bytes lie, records, files, time. Pure but for
 * the synchronous read of a paged-out node that the constructor is given.
 *
 * Units: 4 KiB blocks; regions of 16 blocks; stamps are LSNs below 2^53, 0 =
 * zero; layer numbers 1 .. LAYER_MAX, 0 = zero.
 */
import { assert } from '../../base/assert.js';
import { CorruptionError } from '../../base/errors.js';
import { MAX_DEVICE_BYTES, BLOCK_BYTES } from '../../base/units.js';
import { Inners } from './inner.js';
import { LeafChanges } from './leafchange.js';
import { NODE_BYTES_MAX } from './codec.js';
import { installNode } from './load.js';
import { FAN_OUT, Kind, LAYER_MAX, LEAF_BLOCKS, LEAF_REGIONS, Nodes, REF_FILE, REF_FLAGS, REF_INNER, REF_LOST, STAMP_MAX, fileOfRef, positionOfRef } from './nodes.js';
import type { RefTable } from './reftable.js';

export { fileOfRef, positionOfRef };

const DEVICE_BLOCKS_MAX = MAX_DEVICE_BYTES / BLOCK_BYTES;

/** A device's map. `handle` is one reference to the root node (0 = all zero); `height` follows from the size. */
export interface MapRoot {
  handle: number;
  height: number;
  sizeBlocks: number;
}

/**
 * Reads a node's record: at least NODE_BYTES_MAX bytes (or to the end of the
 * file) from `position` of map file `file` (0 or 1, see BlockMap.currentFile).
 * The view is borrowed until the next call.
 */
export type NodeSource = (position: number, file: number) => Uint8Array;

/** Levels of inner nodes above the leaves of a device of this size. */
export function heightFor(sizeBlocks: number): number {
  let height = 0;
  for (let capacity = LEAF_BLOCKS; capacity < sizeBlocks; capacity *= FAN_OUT) height++;
  return height;
}

/** Blocks below a node `level` levels above the leaves. */
export function spanBlocks(level: number): number {
  return LEAF_BLOCKS * FAN_OUT ** level;
}

export class BlockMap {
  readonly nodes = new Nodes();
  readonly leaves: LeafChanges;
  readonly inners: Inners;
  /** Set while a compaction's new positions are being taken over. */
  private moved: RefTable | undefined = undefined;
  private settleHand = 0;
  private settleEnd = 0;
  /** A writer that was neither committed nor aborted exists. */
  writing = false;

  /** `loadSync` is used for paged-out inner nodes, and for what `loadNow` is asked for. `fileName` is for error messages. */
  constructor(private readonly loadSync: NodeSource, readonly fileName = 'map') {
    this.leaves = new LeafChanges(this.nodes);
    this.inners = new Inners(this.nodes, (h) => this.loadNow(h));
  }

  /** Which of the two map files (0 or 1) records lie in; a compaction flips it when it commits. */
  get currentFile(): number {
    return this.nodes.currentFile;
  }

  // ---- whole devices, all O(1) or O(height) ----------------------------------------------------

  /** An all-zero device. */
  create(sizeBlocks: number): MapRoot {
    checkSize(sizeBlocks);
    return { handle: 0, height: heightFor(sizeBlocks), sizeBlocks };
  }

  /** The device whose root record was written at `rootPosition` (as MapWriter.rootPositions gave it); nothing is read yet. */
  open(rootPosition: number, sizeBlocks: number): MapRoot {
    const root = this.create(sizeBlocks);
    if (rootPosition !== 0 && (rootPosition % REF_FLAGS & REF_INNER) !== 0 !== root.height > 0) {
      throw new CorruptionError(this.fileName, positionOfRef(rootPosition), 'the root of a map does not fit the size of its device');
    }
    if (rootPosition !== 0) root.handle = this.stub(rootPosition + this.currentFile * REF_FILE, STAMP_MAX);
    return root;
  }

  /** Another device with the same content. The next change of either copies what it touches. */
  share(root: MapRoot): MapRoot {
    this.nodes.retain(root.handle);
    return { handle: root.handle, height: root.height, sizeBlocks: root.sizeBlocks };
  }

  /** `target` becomes what `source` is; `target`'s old nodes are reclaimed in the background. */
  assign(target: MapRoot, source: MapRoot): void {
    this.nodes.retain(source.handle);
    this.nodes.release(target.handle);
    target.handle = source.handle;
    target.height = source.height;
    target.sizeBlocks = source.sizeBlocks;
  }

  /** Ends the use of a root. Its nodes are reclaimed in the background. */
  drop(root: MapRoot): void {
    this.nodes.release(root.handle);
    root.handle = 0;
  }

  /** Background work, in steps of about `maxNodes` nodes: takes dropped trees apart, tidies memory; true while there is more. */
  reclaim(maxNodes: number): boolean {
    const settling = this.settle(maxNodes * FAN_OUT);
    const reclaiming = this.nodes.reclaim(maxNodes);
    return this.nodes.tidy(maxNodes) || reclaiming || settling;
  }

  /**
   * Changes the size. Growing adds zeros; shrinking clears what lies beyond
   * first, as a `clear` with `stamp` up to the end would, so that growing again
   * reads zeros.
   */
  resize(root: MapRoot, sizeBlocks: number, stamp: number): void {
    checkSize(sizeBlocks);
    if (sizeBlocks < root.sizeBlocks) this.clear(root, sizeBlocks, root.sizeBlocks - sizeBlocks, stamp);
    const height = heightFor(sizeBlocks);
    for (; root.height < height; root.height++) {
      if (root.handle === 0) continue;
      const parent = this.inners.create();
      this.nodes.setTop(parent, this.nodes.topOf(root.handle));
      this.inners.setChild(parent, 0, root.handle);
      root.handle = parent;
    }
    for (; root.height > height; root.height--) {
      if (root.handle === 0) continue;
      this.inners.ensure(root.handle);
      const child = this.inners.child(root.handle, 0);
      this.nodes.retain(child);
      this.nodes.release(root.handle);
      root.handle = child;
    }
    root.sizeBlocks = sizeBlocks;
  }

  // ---- ranges ----------------------------------------------------------------------------------

  /** Blocks [first, first + count) are in `layer` from now on, written by the record `stamp`. */
  set(root: MapRoot, first: number, count: number, layer: number, stamp: number): void {
    checkRange(root, first, count);
    assert(layer > 0 && layer <= LAYER_MAX, 'a written block has a layer');
    assert(stamp > 0 && stamp <= STAMP_MAX, 'a record has a stamp');
    this.changeRange(root, first, first + count, layer, stamp);
  }

  /** Blocks [first, first + count) are zero from now on, by the record `stamp`. Costs O(height), whatever the count. */
  clear(root: MapRoot, first: number, count: number, stamp: number): void {
    checkRange(root, first, count);
    assert(stamp > 0 && stamp <= STAMP_MAX, 'a record has a stamp');
    if (count === 0) return;
    // Blocks behind the device's end are zero anyway: a region cut by the end counts as whole when cleared up to it.
    const end = first + count === root.sizeBlocks ? spanBlocks(root.height) : first + count;
    const firstWhole = Math.ceil(first / LEAF_BLOCKS);
    const endWhole = Math.floor(end / LEAF_BLOCKS);
    if (firstWhole > endWhole) {
      this.changeRange(root, first, end, 0, stamp);
      return;
    }
    if (first < firstWhole * LEAF_BLOCKS) this.changeRange(root, first, firstWhole * LEAF_BLOCKS, 0, stamp);
    if (firstWhole < endWhole && root.handle !== 0) {
      if (firstWhole === 0 && endWhole === FAN_OUT ** root.height) {
        this.drop(root);
      } else {
        root.handle = this.inners.own(root.handle);
        this.clearLeaves(root.handle, root.height, firstWhole, endWhole);
      }
    }
    if (end > endWhole * LEAF_BLOCKS) this.changeRange(root, endWhole * LEAF_BLOCKS, end, 0, stamp);
  }

  /**
   * Layer numbers of blocks [first, first + count) into `out` at `outAt`; 0 =
   * zero. Returns 0, or the handle of a node that must be loaded first (then
   * `out` is undefined): see `load`.
   */
  resolve(root: MapRoot, first: number, count: number, out: Uint32Array, outAt: number): number {
    checkRange(root, first, count);
    const end = first + count;
    for (let block = first; block < end; ) {
      const leaf = Math.floor(block / LEAF_BLOCKS);
      const h = this.descend(root, leaf);
      let n: number;
      if (this.level === 0) {
        const from = block - leaf * LEAF_BLOCKS;
        n = Math.min(end - block, LEAF_BLOCKS - from);
        const miss = this.leaves.resolve(h, from, from + n, out, outAt);
        if (miss !== 0) return miss;
      } else {
        if (h !== 0) return h;
        n = Math.min(end - block, spanBlocks(this.level) - (block % spanBlocks(this.level)));
        out.fill(0, outAt, outAt + n);
      }
      block += n;
      outAt += n;
    }
    return 0;
  }

  /** How many blocks from `block` on the nodes above the leaves say to be zero; 0 = look at the leaf. A hole may go on behind them. */
  zeroRun(root: MapRoot, block: number): number {
    if (this.descend(root, Math.floor(block / LEAF_BLOCKS)) !== 0) return 0;
    const span = spanBlocks(this.level);
    return Math.min(root.sizeBlocks - block, span - (block % span));
  }

  /**
   * Whether a block from `first` to the end of the device is not zero: 0 = none
   * is, −1 = one is, else the handle of a node that must be loaded first.
   */
  holdsFrom(root: MapRoot, first: number): number {
    if (first >= root.sizeBlocks) return 0;
    const leaf = Math.floor(first / LEAF_BLOCKS);
    let h = root.handle;
    for (let level = root.height; level > 0 && h !== 0; level--) {
      if (this.nodes.wordOf(h) === 0) return h;
      const slot = Math.floor(leaf / FAN_OUT ** (level - 1)) % FAN_OUT;
      // A node that nothing but zeros is below is not kept (clear).
      for (let later = slot + 1; later < FAN_OUT; later++) if (this.inners.child(h, later) !== 0) return -1;
      h = this.inners.child(h, slot);
    }
    if (h === 0) return 0;
    const from = first % LEAF_BLOCKS;
    const layers = new Uint32Array(LEAF_BLOCKS - from);
    const miss = this.leaves.resolve(h, from, LEAF_BLOCKS, layers, 0);
    if (miss !== 0) return miss;
    return layers.some((layer) => layer !== 0) ? -1 : 0;
  }

  /** Stamps of regions [first, first + count) into `out` at `outAt`. Returns 0 or a miss, as `resolve`. */
  stamps(root: MapRoot, first: number, count: number, out: Float64Array, outAt: number): number {
    for (let region = first; region < first + count; ) {
      const leaf = Math.floor(region / LEAF_REGIONS);
      const from = region - leaf * LEAF_REGIONS;
      const n = Math.min(LEAF_REGIONS - from, first + count - region);
      const h = this.descend(root, leaf);
      if (this.level > 0 && h !== 0) return h;
      const miss = this.leaves.stamps(h, from, from + n, out, outAt);
      if (miss !== 0) return miss;
      region += n;
      outAt += n;
    }
    return 0;
  }

  /** Second result of `descend`: the level at which it ended. */
  level = 0;

  /**
   * Goes down to leaf `leaf` (index in the device). Ends at the leaf (`level`
   * 0), or higher: at ZERO, or at a node without body, whose handle is returned.
   */
  descend(root: MapRoot, leaf: number): number {
    const { nodes } = this;
    let h = root.handle;
    let level = root.height;
    for (; level > 0 && h !== 0; level--) {
      const word = nodes.wordOf(h);
      if (word === 0) break;
      h = nodes.slabs.u32[(word >>> 16) & 0xfff][((word & 0xffff) << 2) + 4 + ((leaf >>> (6 * (level - 1))) & 63)];
    }
    this.level = level;
    return h;
  }

  /** As `descend`, reading paged-out inner nodes at once: ends at the leaf, or at ZERO. */
  descendLoading(root: MapRoot, leaf: number): number {
    let h = this.descend(root, leaf);
    while (this.level > 0 && h !== 0) {
      this.inners.ensure(h);
      h = this.descend(root, leaf);
    }
    return h;
  }

  private changeRange(root: MapRoot, first: number, end: number, layer: number, stamp: number): void {
    for (let block = first; block < end; ) {
      const leaf = Math.floor(block / LEAF_BLOCKS);
      const from = block - leaf * LEAF_BLOCKS;
      const to = Math.min(LEAF_BLOCKS, from + end - block);
      const { nodes, inners } = this;
      const parent = this.ownParent(root, leaf, stamp);
      if (parent === 0) {
        root.handle = this.leaves.change(root.handle, from, to, layer, stamp);
      } else {
        const word = nodes.wordOf(parent);
        const old = nodes.slabs.u32[(word >>> 16) & 0xfff][((word & 0xffff) << 2) + 4 + (leaf & 63)];
        inners.setChild(parent, leaf & 63, this.leaves.change(old, from, to, layer, stamp));
      }
      block += to - from;
    }
  }

  /** Owns the path to a leaf (path copying): returns its parent, to be changed in place; 0 when the leaf is the root. */
  ownParent(root: MapRoot, leaf: number, stamp: number): number {
    if (root.height === 0) return 0;
    const { nodes, inners } = this;
    let parent = inners.own(root.handle);
    root.handle = parent;
    nodes.raiseTop(parent, stamp);
    for (let level = root.height - 1; level > 0; level--) {
      const slot = (leaf >>> (6 * level)) & 63;
      const child = inners.own(inners.child(parent, slot));
      inners.setChild(parent, slot, child);
      nodes.raiseTop(child, stamp);
      parent = child;
    }
    return parent;
  }

  /** Puts ZERO in place of whole leaves [from, to), counted below `h`, which the caller owns. */
  private clearLeaves(h: number, level: number, from: number, to: number): void {
    const { nodes, inners } = this;
    const below = FAN_OUT ** (level - 1);
    for (let slot = Math.floor(from / below); slot * below < to && slot < FAN_OUT; slot++) {
      let child = inners.child(h, slot);
      if (child === 0) continue;
      const start = slot * below;
      if (from <= start && to >= start + below) {
        inners.setChild(h, slot, 0);
        nodes.release(child);
        continue;
      }
      child = inners.own(child);
      inners.setChild(h, slot, child);
      this.clearLeaves(child, level - 1, Math.max(0, from - start), Math.min(below, to - start));
      if (inners.isEmpty(child)) {
        inners.setChild(h, slot, 0);
        nodes.release(child);
      }
    }
  }

  // ---- memory ------------------------------------------------------------------------------------

  /** Where a missed node lies on disk: decode with positionOfRef and fileOfRef, hand back to `load`. */
  diskRefOf(h: number): number {
    let ref = this.nodes.diskRefOf(h);
    if (this.moved !== undefined) ref = this.translate(h, ref);
    assert(ref !== 0 && ref !== REF_LOST, 'only a node on disk is missed');
    return ref;
  }

  /** Two handles with the same identity have the same content: negative for nodes that exist in memory only. */
  identityOf(h: number): number {
    const ref = this.nodes.diskRefOf(h) === 0 ? 0 : this.diskRefOf(h);
    return ref === 0 ? -h : ref;
  }

  /**
   * Installs the record of a missed node, read from where `ref` (diskRefOf)
   * says. Does nothing when the node is there already, was dropped, or has moved
   * since: resolve again and see. Returns 0, or the position (same file) of a
   * second record that is needed: read it and call again with both records.
   * Throws CorruptionError.
   */
  load(h: number, ref: number, bytes: Uint8Array, second?: Uint8Array): number {
    if (this.nodes.refsOf(h) === 0 || this.nodes.wordOf(h) !== 0 || this.diskRefOf(h) !== ref) return 0;
    return installNode(this, h, bytes, second);
  }

  /** Bytes of nodes in memory: handles and bodies. */
  get memoryBytes(): number {
    return this.nodes.memoryBytes;
  }

  /** Nothing is paged out: somebody needs more nodes at once than the limit leaves room for, and would never have them all. */
  keeping = false;

  /** Pages out clean nodes until `memoryBytes <= targetBytes`, looking at no more than `maxSteps`; true when reached. */
  evict(targetBytes: number, maxSteps = Infinity): boolean {
    return this.keeping ? this.memoryBytes <= targetBytes : this.nodes.evict(targetBytes, maxSteps);
  }

  /** A handle for a record on disk whose body is not in memory. */
  stub(ref: number, top: number): number {
    if (ref === 0) return 0;
    return this.nodes.add(ref, top);
  }

  // ---- after a compaction --------------------------------------------------------------------------

  /**
   * Takes over the positions of a committed compaction: from now on every
   * reference is of the new file. References are exchanged when they are asked
   * for, and by `settle` in the background.
   */
  beginTranslation(moved: RefTable): void {
    this.nodes.currentFile = 1 - this.currentFile;
    this.moved = moved;
    this.settleHand = 1;
    this.settleEnd = this.nodes.handleLimit;
  }

  /** Exchanges the references of at most `maxHandles` handles; true while there are more. */
  settle(maxHandles: number): boolean {
    if (this.moved === undefined) return false;
    const end = Math.min(this.settleEnd, this.settleHand + maxHandles);
    for (let h = this.settleHand; h < end; h++) {
      if (this.nodes.refsOf(h) === 0) continue;
      const ref = this.translate(h, this.nodes.diskRefOf(h));
      if (this.nodes.kindOf(h) !== Kind.inner) continue;
      const base = this.inners.recordBase(h);
      if (base === 0 || fileOfRef(base) === this.currentFile) continue;
      // Compaction writes full records only, so a clean node builds on its own; a dirty one starts afresh.
      this.inners.setRecordBase(h, ref === 0 || ref === REF_LOST ? 0 : ref - REF_INNER, 0, 0);
    }
    this.settleHand = end;
    if (end < this.settleEnd) return true;
    this.moved = undefined;
    return false;
  }

  private translate(h: number, ref: number): number {
    if (ref === 0 || ref === REF_LOST || fileOfRef(ref) === this.currentFile) return ref;
    const moved = this.moved!.get(ref);
    const now = moved === 0 ? REF_LOST : moved;
    this.nodes.setDiskRef(h, now);
    return now;
  }

  /** Reads a missed node at once. Throws IoError, CorruptionError. */
  loadNow(h: number): void {
    const ref = this.diskRefOf(h);
    const bytes = this.loadSync(positionOfRef(ref), fileOfRef(ref));
    const needed = installNode(this, h, bytes, undefined);
    if (needed !== 0) {
      // The view is only borrowed until the next read.
      const first = bytes.slice(0, NODE_BYTES_MAX);
      installNode(this, h, first, this.loadSync(needed, fileOfRef(ref)));
    }
    assert(this.nodes.wordOf(h) !== 0, 'two records make an inner node');
  }
}

function checkSize(sizeBlocks: number): void {
  assert(Number.isSafeInteger(sizeBlocks) && sizeBlocks >= 0 && sizeBlocks <= DEVICE_BLOCKS_MAX, 'a device has at most 2^38 blocks');
}

function checkRange(root: MapRoot, first: number, count: number): void {
  assert(first >= 0 && count >= 0 && first + count <= root.sizeBlocks, 'a range lies inside its device');
}
