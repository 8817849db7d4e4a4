/**
 * MapWriter: brings map nodes to the disk for a checkpoint (DESIGN §6).
 *
 * Owns: the order (children and bases before what refers to them), where each
 * record lies, the choice between full and delta records, and taking it back.
 * Must not know: files, fsync, slots, roots that were not handed to it.
 *
 * Two modes:
 * - append: writes the nodes that are not on disk yet. Cost: what changed.
 * - rewrite (compaction): writes every node that the roots reach to another
 *   file, reading the ones on disk record by record through `needed`/`supply`;
 *   a node that several trees share is written once. `roots` must hold every
 *   root in use: what they do not reach is gone after the commit.
 *
 * Used as: step until done (write the bytes, supply what is needed), fsync,
 * commit slot, then `commit`; or `abort` at any point.
 */
import { assert } from '../../base/assert.js';
import type { BlockMap, MapRoot } from './map.js';
import { fileOfRef, positionOfRef } from './map.js';
import { InnerContent, NODE_BYTES_MAX, RecordType, decodeNode, encodeInner, encodeInnerDelta, encodeLeaf, encodeLeafDelta, newDecoded } from './codec.js';
import { DeltaEntries, LeafContent } from './leaf.js';
import { FAN_OUT, Kind, REF_DELTA, REF_FILE, REF_FLAGS, REF_INNER, REF_LOST } from './nodes.js';
import { RefTable } from './reftable.js';

/** An inner delta is written for at most so many changed children: on average the cheapest against full records now and then. */
const INNER_DELTA_MAX = 12;

/** Records of one step: bounds its time (about 1 µs each) where records are small. */
const STEP_RECORDS_MAX = 1024;

/** Results of a visit that are no disk reference. */
const BLOCKED = -1;
const PUSHED = -2;

/** An inner node whose children are being visited. */
class Frame {
  readonly content = new InnerContent();
  /** Node in memory, or 0: then `ref` is where its record was read. */
  handle = 0;
  ref = 0;
  slot = 0;
}

/** Bytes that were supplied from [position, position + length) of the file being compacted. */
interface Window {
  position: number;
  length: number;
  bytes: Uint8Array;
}

export class MapWriter {
  /** What BlockMap.open takes, per root; complete when `done`. */
  readonly rootPositions: Float64Array;
  /** All nodes were written. */
  done = false;
  /** Set when `step` returned 0 and cannot go on: read from `position` of map file `file`, at least NODE_BYTES_MAX bytes or to its end, and `supply`. */
  needed: { readonly position: number; readonly file: number } | undefined = undefined;
  /** Records written, and their bytes. */
  records = 0;
  bytes = 0;

  private readonly rewrite: boolean;
  /** File bit of what is written, as in BlockMap.currentFile. */
  private readonly file: number;
  private readonly moved = new RefTable();
  private readonly frames: Frame[] = [];
  private depth = 0;
  private rootIndex = 0;
  private ended = false;
  /** A delta's base that must be in memory before the delta can be written. */
  private awaited = 0;
  private awaitedRef = 0;
  private readonly windows: Window[] = [];
  private lastWindow = 0;

  private out: Uint8Array = new Uint8Array(0);
  private at = 0;
  private limit = 0;
  private position = 0;
  private started = false;

  private readonly leaf = new LeafContent();
  private readonly entries = new DeltaEntries();
  private readonly decoded = newDecoded();

  /** `roots` are frozen (made by BlockMap.share for this purpose) and stay the caller's, to be dropped after commit or abort. */
  constructor(private readonly map: BlockMap, private readonly roots: readonly MapRoot[], options: { readonly rewrite?: boolean } = {}) {
    assert(!map.writing, 'one writer at a time');
    map.settle(Infinity);
    map.writing = true;
    this.rewrite = options.rewrite ?? false;
    this.file = this.rewrite ? 1 - map.currentFile : map.currentFile;
    this.rootPositions = new Float64Array(roots.length);
  }

  /**
   * Encodes nodes into memory[at, limit), which is at least NODE_BYTES_MAX long
   * and will be written at `filePos` (a multiple of 8, above 0, and nowhere that
   * an aborted writer of this map has used). Returns the bytes used: 0 means
   * `done` or `needed`.
   */
  step(memory: Uint8Array | DataView, at: number, limit: number, filePos: number): number {
    assert(!this.ended && limit - at >= NODE_BYTES_MAX && filePos > 0 && filePos % REF_FLAGS === 0, 'a step has room, at an aligned position');
    if (!this.started) {
      this.started = true;
      this.map.nodes.pin(filePos, this.file);
    }
    this.out = memory instanceof Uint8Array ? memory : new Uint8Array(memory.buffer, memory.byteOffset, memory.byteLength);
    this.at = at;
    this.limit = limit;
    this.position = filePos;
    const records = this.records + STEP_RECORDS_MAX;
    while (!this.done && this.needed === undefined && this.records < records && this.advance());
    return this.at - at;
  }

  /** Hands over the bytes that `needed` named (borrowed during the call). Throws CorruptionError. */
  supply(bytes: Uint8Array): void {
    assert(this.needed !== undefined, 'bytes are supplied when needed');
    const { position } = this.needed;
    this.needed = undefined;
    if (this.awaited !== 0) {
      // The frozen tree holds the node; it is still where it was.
      const second = this.map.load(this.awaited, this.awaitedRef, bytes);
      assert(second === 0, 'a leaf is one record');
      this.map.nodes.release(this.awaited);
      this.awaited = 0;
      return;
    }
    const index = this.windows.length < 2 ? this.windows.length : 1 - this.lastWindow;
    let window = this.windows[index];
    if (window === undefined || window.bytes.length < bytes.length) {
      window = { position: 0, length: 0, bytes: new Uint8Array(bytes.length) };
      this.windows[index] = window;
    }
    window.bytes.set(bytes);
    window.position = position;
    window.length = bytes.length;
    this.lastWindow = index;
  }

  /** The checkpoint that names `rootPositions` is durable: what was written counts. O(1). */
  commit(): void {
    assert(this.done && !this.ended, 'a writer that is done commits once');
    this.end();
    if (!this.rewrite) return;
    this.map.beginTranslation(this.moved);
  }

  /** What was written does not count; all of it will be written again. Costs a scan of the handles. Idempotent, also after commit (then nothing happens). */
  abort(): void {
    if (this.ended) return;
    const { nodes, inners } = this.map;
    if (this.started) {
      for (let h = 1; h < nodes.handleLimit; h++) {
        if (nodes.refsOf(h) === 0) continue;
        if (nodes.isPinnedRef(nodes.diskRefOf(h))) nodes.markDirty(h);
        if (nodes.kindOf(h) === Kind.inner && nodes.isPinnedRef(inners.recordBase(h))) inners.setRecordBase(h, 0, 0, 0);
      }
    }
    this.end();
  }

  private end(): void {
    this.ended = true;
    this.needed = undefined;
    if (this.awaited !== 0) this.map.nodes.release(this.awaited);
    this.awaited = 0;
    this.map.nodes.unpin();
    this.map.writing = false;
  }

  /** One move of the traversal; false when it is blocked. */
  private advance(): boolean {
    if (this.depth > 0) return this.advanceFrame(this.frames[this.depth - 1]);
    if (this.rootIndex === this.roots.length) {
      this.done = true;
      return true;
    }
    const ref = this.visitHandle(this.roots[this.rootIndex].handle, this.roots[this.rootIndex].height);
    if (ref === BLOCKED) return false;
    if (ref !== PUSHED) this.rootPositions[this.rootIndex++] = onDisk(ref);
    return true;
  }

  private advanceFrame(frame: Frame): boolean {
    const { content } = frame;
    for (; frame.slot < FAN_OUT; frame.slot++) {
      let ref: number;
      if (frame.handle !== 0) {
        const child = this.map.inners.child(frame.handle, frame.slot);
        ref = child === 0 ? 0 : this.visitHandle(child, content.level - 1);
        content.tops[frame.slot] = this.map.nodes.topOf(child);
      } else {
        const old = content.refs[frame.slot];
        ref = old === 0 ? 0 : this.visitRef(old + (1 - this.file) * REF_FILE);
      }
      if (ref === BLOCKED) return false;
      if (ref === PUSHED) return true;
      content.refs[frame.slot] = onDisk(ref);
    }
    if (!this.hasRoom()) return false;
    this.finishFrame(frame);
    this.depth--;
    return true;
  }

  private finishFrame(frame: Frame): void {
    const { content } = frame;
    const { nodes, inners } = this.map;
    content.top = 0;
    for (let slot = 0; slot < FAN_OUT; slot++) if (content.refs[slot] !== 0 && content.tops[slot] > content.top) content.top = content.tops[slot];
    if (frame.handle === 0) {
      this.moved.set(frame.ref, this.wrote(encodeInner(this.out, this.at, this.position, content), REF_INNER));
      return;
    }
    const base = inners.recordBase(frame.handle);
    content.changedLow = inners.changedBits(frame.handle, 0);
    content.changedHigh = inners.changedBits(frame.handle, 1);
    content.basePosition = base === 0 ? 0 : positionOfRef(base);
    const asDelta = base !== 0 && fileOfRef(base) === this.file && !this.rewrite && content.changedCount <= INNER_DELTA_MAX;
    let ref: number;
    if (asDelta) {
      ref = this.wrote(encodeInnerDelta(this.out, this.at, this.position, content), REF_INNER);
    } else {
      ref = this.wrote(encodeInner(this.out, this.at, this.position, content), REF_INNER);
      inners.setRecordBase(frame.handle, positionOfRef(ref) + this.file * REF_FILE, 0, 0);
    }
    nodes.setDiskRef(frame.handle, ref);
    nodes.setTop(frame.handle, content.top);
  }

  /** Reference of a node in the file that is written, or BLOCKED, or PUSHED when its children come first. */
  private visitHandle(h: number, level: number): number {
    if (h === 0) return 0;
    const { nodes, leaves } = this.map;
    const ref = nodes.diskRefOf(h);
    assert(ref !== REF_LOST, 'every root in use was handed to the last compaction');
    if (ref !== 0) return fileOfRef(ref) === this.file ? ref : this.visitRef(ref);
    if (level > 0) {
      assert(nodes.kindOf(h) === Kind.inner, 'an inner level holds inner nodes');
      const frame = this.push(level);
      frame.handle = h;
      return PUSHED;
    }
    let basePosition = -1;
    if (leaves.isDelta(h)) {
      let base = leaves.baseOf(h);
      if (base !== 0 && (nodes.diskRefOf(base) % REF_FLAGS & REF_DELTA) !== 0) {
        // The change was made over a delta that was paged out. On disk a delta has a flat base, so that a read needs two records at most.
        if (!leaves.isDelta(base)) return this.awaitNode(base);
        // A newer change, outside the frozen trees, may have been put over the same base before it came back.
        if (this.rewrite && nodes.refsOf(base) > 1 && this.visitHandle(base, 0) === BLOCKED) return BLOCKED;
        leaves.flatten(h);
        base = leaves.baseOf(h);
      }
      const baseRef = this.visitHandle(base, 0);
      if (baseRef === BLOCKED) return BLOCKED;
      basePosition = positionOfRef(baseRef);
    }
    if (!this.hasRoom()) return BLOCKED;
    let written: number;
    if (basePosition >= 0) {
      leaves.entries(h, this.entries);
      written = this.wrote(encodeLeafDelta(this.out, this.at, this.position, basePosition, this.entries), REF_DELTA);
    } else {
      const miss = leaves.expand(h, this.leaf);
      assert(miss === 0, 'a dirty leaf is in memory');
      written = this.wrote(encodeLeaf(this.out, this.at, this.position, this.leaf), 0);
    }
    nodes.setDiskRef(h, written);
    return written;
  }

  /** Compaction: as visitHandle, for a record of the old file. */
  private visitRef(ref: number): number {
    assert(this.rewrite, 'only a compaction moves records');
    const known = this.moved.get(ref);
    if (known !== 0) return known;
    const position = positionOfRef(ref);
    const bytes = this.recordAt(position);
    if (bytes === undefined) return BLOCKED;
    const { decoded } = this;
    decodeNode(bytes, position, this.map.fileName, decoded);
    let moved: number;
    switch (decoded.type) {
      case RecordType.leaf:
        if (!this.hasRoom()) return BLOCKED;
        moved = this.wrote(encodeLeaf(this.out, this.at, this.position, decoded.leaf), 0);
        break;
      case RecordType.leafDelta: {
        let base = 0;
        if (decoded.basePosition !== 0) {
          const baseOld = decoded.basePosition + (1 - this.file) * REF_FILE;
          base = this.moved.get(baseOld);
          if (base === 0) {
            // Decoding the base overwrites `decoded`: come back for this record.
            base = this.visitRef(baseOld);
            return base === BLOCKED ? BLOCKED : this.visitRef(ref);
          }
        }
        if (!this.hasRoom()) return BLOCKED;
        this.entries.clear();
        this.entries.pushAll(decoded.leaf);
        moved = this.wrote(encodeLeafDelta(this.out, this.at, this.position, positionOfRef(base), this.entries), REF_DELTA);
        break;
      }
      default: {
        let base: Uint8Array | undefined;
        if (decoded.type === RecordType.innerDelta) {
          base = this.recordAt(decoded.basePosition);
          if (base === undefined) return BLOCKED;
        }
        const frame = this.push(0);
        frame.ref = ref;
        decodeNode(bytes, position, this.map.fileName, { leaf: decoded.leaf, inner: frame.content, type: 0, basePosition: 0 }, base);
        return PUSHED;
      }
    }
    this.moved.set(ref, moved);
    return moved;
  }

  private push(level: number): Frame {
    if (this.depth === this.frames.length) this.frames.push(new Frame());
    const frame = this.frames[this.depth++];
    frame.handle = 0;
    frame.ref = 0;
    frame.slot = 0;
    frame.content.level = level;
    return frame;
  }

  /** Accounts for a record at the present position; returns its reference. */
  private wrote(bytes: number, flags: number): number {
    const ref = this.position + flags + this.file * REF_FILE;
    this.at += bytes;
    this.position += bytes;
    this.bytes += bytes;
    this.records++;
    return ref;
  }

  private hasRoom(): boolean {
    return this.limit - this.at >= NODE_BYTES_MAX;
  }

  private awaitNode(h: number): number {
    this.map.nodes.retain(h);
    this.awaited = h;
    this.awaitedRef = this.map.nodes.diskRefOf(h);
    this.needed = { position: positionOfRef(this.awaitedRef), file: fileOfRef(this.awaitedRef) };
    return BLOCKED;
  }

  /** The record at `position` of the old file if it was supplied, else asks for it. */
  private recordAt(position: number): Uint8Array | undefined {
    for (let i = 0; i < this.windows.length; i++) {
      const { position: start, length, bytes } = this.windows[i];
      const from = position - start;
      if (from < 0 || from + 8 > length) continue;
      const recordLength = bytes[from + 2] | (bytes[from + 3] << 8);
      // A record that starts the window is whole, or the file is damaged; one further in may be cut off.
      if (from > 0 && from + recordLength > length) continue;
      this.lastWindow = i;
      return bytes.subarray(from, Math.min(length, from + NODE_BYTES_MAX));
    }
    this.needed = { position, file: 1 - this.file };
    return undefined;
  }
}

/** A reference as records and slots name it: without the bit for the file. */
function onDisk(ref: number): number {
  return fileOfRef(ref) === 1 ? ref - REF_FILE : ref;
}
