/**
 * The records of map nodes in the map file (DESIGN §5, §6).
 *
 * Owns: bytes ↔ content, and the check that the bytes are what was written.
 * Must not know: handles, trees, files.
 *
 * Every record (little-endian; starts at a multiple of 8; children and bases lie
 * at lower positions of the same file):
 *
 *   byte 0  u8   magic 0x4e
 *   byte 1  u8   type: 1 leaf, 2 leaf delta, 3 inner, 4 inner delta
 *   byte 2  u16  length, header included, padding to the next multiple of 8 not included
 *   byte 4  u32  CRC32C of bytes 0-3 and 8-length, seeded with the low 32 bits of position / 8:
 *                a record in the wrong place is as bad as a damaged one
 *
 * `varint`: 7 bits per byte, low first, at most 2^53 - 1. `stamps`: varint of
 * the smallest stamp that is not 0 (0: all are 0, nothing follows), then per
 * stamp a varint: 0 = 0, 1 = as the one before, n = smallest + n - 2.
 *
 * Type 1, leaf:        u8 form · stamps of 32 regions ·
 *                      form 0: runs of (varint blocks, varint layer), 512 blocks in all
 *                      form 1: varint layer, 64-byte bitmap of the blocks in it
 *                      form 2: 512 × u32 layer
 * Type 2, leaf delta:  u48 position of the base (0 = ZERO) · u16 count + 1024 × (all in one layer) + 2048 × (bitmap) ·
 *                      64-byte bitmap of the changed blocks, or per change a varint: blocks skipped since the last ·
 *                      varint layer, once or per change · stamps of the touched regions
 * Type 3, inner:       u8 level · varint largest stamp below · 8-byte bitmap of children ·
 *                      per child: reference, varint (largest - its largest)
 * Type 4, inner delta: u8 level · u48 position of the full record · varint largest stamp below ·
 *                      u8 changes · per change: u8 slot (+128: ZERO now, nothing follows), reference, varint
 *
 * A child's `reference` is a zigzag varint: its code less the code of the one
 * before (the first: less the record's own); code = position / 4 + (1 if leaf delta).
 */
import { crc32c } from '../../base/crc32c.js';
import { CorruptionError } from '../../base/errors.js';
import { LeafContent } from './leaf.js';
import type { DeltaEntries } from './leaf.js';
import { FAN_OUT, LAYER_MAX, LEAF_BLOCKS, LEAF_REGIONS, REF_DELTA, REF_FLAGS, REF_INNER, SEE_BASE, STAMP_MAX, STAMP_SEE_BASE } from './nodes.js';
import { RecordReader, RecordWriter, varintBytes } from './bytes.js';

/** No record is longer, padding included. */
export const NODE_BYTES_MAX = 4096;
const NODE_ALIGN = 8;

export const RecordType = { leaf: 1, leafDelta: 2, inner: 3, innerDelta: 4 } as const;

const FORM_RUNS = 0;
const FORM_BITMAP = 1;
const FORM_RAW = 2;
const ONE_LAYER = 1024;
const BLOCK_BITMAP = 2048;
/** With more changes than this the bitmap is never longer. */
const BITMAP_ABOVE = 64;
const LEVEL_MAX = 5;

/** An inner node in the open. */
export class InnerContent {
  /** References of the children as on disk: position + REF_DELTA, REF_INNER; 0 = ZERO. */
  readonly refs = new Float64Array(FAN_OUT);
  readonly tops = new Float64Array(FAN_OUT);
  level = 0;
  top = 0;
  /** Position of the full record that the content (decoded from a delta) builds on; 0 = none. */
  basePosition = 0;
  changedLow = 0;
  changedHigh = 0;

  /** Whether a delta record names this child. */
  isChanged(slot: number): boolean {
    return (((slot < 32 ? this.changedLow : this.changedHigh) >>> (slot & 31)) & 1) !== 0;
  }

  get changedCount(): number {
    return bitCount(this.changedLow) + bitCount(this.changedHigh);
  }

  markChanged(slot: number): void {
    if (slot < 32) this.changedLow |= 1 << slot;
    else this.changedHigh |= 1 << (slot & 31);
  }
}

// ---- leaves --------------------------------------------------------------------------------------

/** Writes a flat leaf at out[at...), which will lie at `position` of the file; returns its length, padded. */
export function encodeLeaf(out: Uint8Array, at: number, position: number, content: LeafContent): number {
  const { layers, stamps } = content;
  let runBytes = 0;
  let only = 0;
  for (let block = 0; block < LEAF_BLOCKS; ) {
    const layer = layers[block];
    const start = block;
    while (block < LEAF_BLOCKS && layers[block] === layer) block++;
    runBytes += varintBytes(block - start) + varintBytes(layer);
    if (layer !== 0 && layer !== only) only = only === 0 ? layer : SEE_BASE;
  }
  const bitmapBytes = only === SEE_BASE ? Infinity : varintBytes(only) + LEAF_BLOCKS / 8;
  const form = runBytes <= bitmapBytes && runBytes <= 2048 ? FORM_RUNS : bitmapBytes < 2048 ? FORM_BITMAP : FORM_RAW;
  const w = writer.begin(out, at, RecordType.leaf);
  w.u8(form);
  w.stamps(stamps, LEAF_REGIONS);
  switch (form) {
    case FORM_RUNS:
      for (let block = 0; block < LEAF_BLOCKS; ) {
        const start = block;
        while (block < LEAF_BLOCKS && layers[block] === layers[start]) block++;
        w.varint(block - start);
        w.varint(layers[start]);
      }
      break;
    case FORM_BITMAP:
      w.varint(only);
      w.bitmap(layers, 0);
      break;
    default:
      for (let block = 0; block < LEAF_BLOCKS; block++) w.u32(layers[block]);
  }
  return w.end(position);
}

function decodeLeaf(r: RecordReader, content: LeafContent): void {
  const form = r.u8();
  r.stamps(content.stamps, LEAF_REGIONS);
  const { layers } = content;
  switch (form) {
    case FORM_RUNS:
      for (let block = 0; block < LEAF_BLOCKS; ) {
        const length = r.varint();
        const layer = r.varint();
        if (length === 0 || length > LEAF_BLOCKS - block || layer > LAYER_MAX) r.fail('a run of blocks is out of bounds');
        layers.fill(layer, block, block + length);
        block += length;
      }
      break;
    case FORM_BITMAP: {
      const layer = r.varint();
      if (layer > LAYER_MAX) r.fail('a layer number is out of bounds');
      r.bitmap(layers, layer, 0);
      break;
    }
    case FORM_RAW:
      for (let block = 0; block < LEAF_BLOCKS; block++) {
        layers[block] = r.u32();
        if (layers[block] > LAYER_MAX) r.fail('a layer number is out of bounds');
      }
      break;
    default:
      r.fail(`the form of a leaf is 0, 1 or 2, not ${form}`);
  }
  r.finish();
}

/** Writes a leaf delta over the flat leaf at `basePosition` (0 = ZERO); returns its length, padded. */
export function encodeLeafDelta(out: Uint8Array, at: number, position: number, basePosition: number, entries: DeltaEntries): number {
  const { count, blocks, layers } = entries;
  let oneLayer = count > 0;
  for (let i = 1; i < count && oneLayer; i++) oneLayer = layers[i] === layers[0];
  const withBitmap = count > BITMAP_ABOVE;
  const w = writer.begin(out, at, RecordType.leafDelta);
  w.u48(basePosition);
  w.u16(count | (oneLayer ? ONE_LAYER : 0) | (withBitmap ? BLOCK_BITMAP : 0));
  if (withBitmap) {
    changed.fill(0);
    for (let i = 0; i < count; i++) changed[blocks[i]] = 1;
    w.bitmap(changed, 0);
  } else {
    let next = 0;
    for (let i = 0; i < count; i++) {
      w.varint(blocks[i] - next);
      next = blocks[i] + 1;
    }
  }
  if (oneLayer) w.varint(layers[0]);
  else for (let i = 0; i < count; i++) w.varint(layers[i]);
  w.stamps(entries.stamps, entries.touched);
  return w.end(position);
}

/** Returns the position of the base (0 = ZERO). */
function decodeLeafDelta(r: RecordReader, content: LeafContent): number {
  content.seeBase();
  const { layers, stamps } = content;
  const base = r.u48();
  if (base >= r.position || base % NODE_ALIGN !== 0) r.fail('the base of a delta is out of bounds');
  const head = r.u16();
  const count = head & 1023;
  if (count > LEAF_BLOCKS || head >= 2 * BLOCK_BITMAP) r.fail('a delta has too many changes');
  if ((head & BLOCK_BITMAP) !== 0) {
    r.bitmap(layers, 0, SEE_BASE);
  } else {
    let next = 0;
    for (let i = 0; i < count; i++) {
      next += r.varint();
      if (next >= LEAF_BLOCKS) r.fail('a changed block is out of bounds');
      layers[next++] = 0;
    }
  }
  const layer = (head & ONE_LAYER) !== 0 ? r.varint() : SEE_BASE;
  let seen = 0;
  let touched = 0;
  for (let block = 0; block < LEAF_BLOCKS; block++) {
    if (layers[block] === SEE_BASE) continue;
    layers[block] = layer === SEE_BASE ? r.varint() : layer;
    if (layers[block] > LAYER_MAX) r.fail('a layer number is out of bounds');
    seen++;
    if (stamps[block >>> 4] === STAMP_SEE_BASE) {
      stamps[block >>> 4] = 0;
      touched++;
    }
  }
  if (seen !== count) r.fail(`a delta of ${count} changes names ${seen} blocks`);
  r.stamps(touchedStamps, touched);
  for (let region = 0, i = 0; region < LEAF_REGIONS; region++) if (stamps[region] === 0) stamps[region] = touchedStamps[i++];
  r.finish();
  return base;
}

// ---- inner nodes ---------------------------------------------------------------------------------

/** Writes a full inner record; returns its length, padded. */
export function encodeInner(out: Uint8Array, at: number, position: number, content: InnerContent): number {
  const w = writer.begin(out, at, RecordType.inner);
  w.u8(content.level);
  w.varint(content.top);
  let low = 0;
  let high = 0;
  for (let slot = 0; slot < 32; slot++) {
    if (content.refs[slot] !== 0) low |= 1 << slot;
    if (content.refs[slot + 32] !== 0) high |= 1 << slot;
  }
  w.u32(low);
  w.u32(high);
  let previous = position / 4;
  for (let slot = 0; slot < FAN_OUT; slot++) {
    if (content.refs[slot] !== 0) previous = writeChild(w, content, slot, previous);
  }
  return w.end(position);
}

/** Writes what changed (content.changed*) since the full record at content.basePosition; returns the length, padded. */
export function encodeInnerDelta(out: Uint8Array, at: number, position: number, content: InnerContent): number {
  const w = writer.begin(out, at, RecordType.innerDelta);
  w.u8(content.level);
  w.u48(content.basePosition);
  w.varint(content.top);
  w.u8(content.changedCount);
  let previous = position / 4;
  for (let slot = 0; slot < FAN_OUT; slot++) {
    if (!content.isChanged(slot)) continue;
    w.u8(content.refs[slot] === 0 ? slot | 128 : slot);
    if (content.refs[slot] !== 0) previous = writeChild(w, content, slot, previous);
  }
  return w.end(position);
}

function writeChild(w: RecordWriter, content: InnerContent, slot: number, previous: number): number {
  const ref = content.refs[slot];
  const code = (ref - (ref % REF_FLAGS)) / 4 + (ref % 2);
  const difference = code - previous;
  w.varint(difference < 0 ? -2 * difference - 1 : 2 * difference);
  w.varint(content.top - content.tops[slot]);
  return code;
}

function readChild(r: RecordReader, content: InnerContent, slot: number, previous: number): number {
  const zigzag = r.varint();
  const code = previous + (zigzag % 2 === 0 ? zigzag / 2 : -(zigzag + 1) / 2);
  const position = (code - (code % 2)) * 4;
  const below = r.varint();
  if (position <= 0 || position >= r.position || below > content.top) r.fail(`child ${slot} is out of bounds`);
  if (code % 2 !== 0 && content.level > 1) r.fail(`child ${slot} is a leaf delta among inner nodes`);
  content.refs[slot] = position + (code % 2 !== 0 ? REF_DELTA : 0) + (content.level > 1 ? REF_INNER : 0);
  content.tops[slot] = content.top - below;
  return code;
}

function decodeInner(r: RecordReader, content: InnerContent): void {
  content.refs.fill(0);
  content.tops.fill(0);
  readInnerHead(r, content);
  const low = r.u32();
  const high = r.u32();
  let previous = r.position / 4;
  for (let slot = 0; slot < FAN_OUT; slot++) {
    if ((((slot < 32 ? low : high) >>> (slot & 31)) & 1) !== 0) previous = readChild(r, content, slot, previous);
  }
  content.basePosition = 0;
  content.changedLow = 0;
  content.changedHigh = 0;
  r.finish();
}

function readInnerHead(r: RecordReader, content: InnerContent): void {
  content.level = r.u8();
  if (content.level < 1 || content.level > LEVEL_MAX) r.fail('the level of an inner node is out of bounds');
  if (r.type === RecordType.innerDelta) content.basePosition = r.u48();
  content.top = r.varint();
  if (content.top > STAMP_MAX) r.fail('a stamp is out of bounds');
}

/** `content` holds the full record at `basePosition` already. */
function overlayInnerDelta(r: RecordReader, content: InnerContent): void {
  const { level } = content;
  readInnerHead(r, content);
  if (content.level !== level) r.fail('an inner delta and its base are of different levels');
  content.changedLow = 0;
  content.changedHigh = 0;
  const count = r.u8();
  let previous = r.position / 4;
  for (let i = 0; i < count; i++) {
    const head = r.u8();
    const slot = head & 127;
    if (slot >= FAN_OUT) r.fail('a changed child is out of bounds');
    content.markChanged(slot);
    content.refs[slot] = 0;
    content.tops[slot] = 0;
    if (head < 128) previous = readChild(r, content, slot, previous);
  }
  r.finish();
}

// ---- decoding ------------------------------------------------------------------------------------

/** What `decodeNode` found. */
export interface Decoded {
  readonly leaf: LeafContent;
  readonly inner: InnerContent;
  type: number;
  /** Leaf delta: position of the base. Inner delta without its base at hand: position of that full record. */
  basePosition: number;
}

/**
 * Decodes the record that lies at `position` of `file` and starts at bytes[0].
 * An inner delta needs `base`, the record that its basePosition names: without
 * it only type and basePosition are set. Throws CorruptionError.
 */
export function decodeNode(bytes: Uint8Array, position: number, file: string, into: Decoded, base?: Uint8Array): void {
  const r = reader.open(bytes, position, file);
  into.type = r.type;
  switch (r.type) {
    case RecordType.leaf:
      decodeLeaf(r, into.leaf);
      return;
    case RecordType.leafDelta:
      into.basePosition = decodeLeafDelta(r, into.leaf);
      return;
    case RecordType.inner:
      into.basePosition = 0;
      decodeInner(r, into.inner);
      return;
    case RecordType.innerDelta: {
      readInnerHead(r, into.inner);
      const basePosition = into.inner.basePosition;
      if (basePosition <= 0 || basePosition >= position || basePosition % NODE_ALIGN !== 0) r.fail('the base of an inner delta is out of bounds');
      into.basePosition = basePosition;
      if (base === undefined) return;
      const b = baseReader.open(base, basePosition, file);
      if (b.type !== RecordType.inner) b.fail('the base of an inner delta is a full inner node');
      decodeInner(b, into.inner);
      overlayInnerDelta(reader.open(bytes, position, file), into.inner);
      return;
    }
    default:
      throw new CorruptionError(file, position, `the type of a map node is 1 to 4, not ${r.type}`);
  }
}

/** Room for one decoded record, to be used again and again. */
export function newDecoded(): Decoded {
  return { leaf: new LeafContent(), inner: new InnerContent(), type: 0, basePosition: 0 };
}

function bitCount(bits: number): number {
  let count = 0;
  for (let rest = bits; rest !== 0; rest &= rest - 1) count++;
  return count;
}

const changed = new Uint32Array(LEAF_BLOCKS);
const touchedStamps = new Float64Array(LEAF_REGIONS);
const writer = new RecordWriter(crc32c);
const reader = new RecordReader(crc32c);
const baseReader = new RecordReader(crc32c);
