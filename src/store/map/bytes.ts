/**
 * RecordWriter and RecordReader: the bytes of one map record (layout: codec.ts).
 *
 * Owns: header, CRC, varints, bitmaps; every bound is checked while reading.
 * Must not know: what a record means.
 */
import { assert } from '../../base/assert.js';
import { CorruptionError } from '../../base/errors.js';
import { LEAF_BLOCKS, STAMP_MAX } from './nodes.js';

const MAGIC = 0x4e;
const HEADER_BYTES = 8;
const ALIGN = 8;
const VARINT_BYTES_MAX = 8;

type Crc32c = (bytes: Uint8Array, start: number, end: number, seed: number) => number;

function checksum(crc32c: Crc32c, bytes: Uint8Array, at: number, length: number, position: number): number {
  const head = crc32c(bytes, at, at + 4, (position / ALIGN) >>> 0);
  return crc32c(bytes, at + HEADER_BYTES, at + length, head);
}

/** Bytes that `varint` takes for it. */
export function varintBytes(value: number): number {
  let bytes = 1;
  for (let rest = value; rest >= 128; rest = Math.floor(rest / 128)) bytes++;
  return bytes;
}

export class RecordWriter {
  private out: Uint8Array = new Uint8Array(0);
  private start = 0;
  private at = 0;

  constructor(private readonly crc32c: Crc32c) {}

  /** Borrows `out` until `end`; the caller has made sure of NODE_BYTES_MAX bytes of room. */
  begin(out: Uint8Array, at: number, type: number): this {
    this.out = out;
    this.start = at;
    this.at = at + HEADER_BYTES;
    out[at] = MAGIC;
    out[at + 1] = type;
    return this;
  }

  /** Completes the record; returns its length, padded with zeros. */
  end(position: number): number {
    const { out, start } = this;
    const length = this.at - start;
    assert(this.at <= out.length && length <= 0xffff, 'a record fits its buffer');
    out[start + 2] = length;
    out[start + 3] = length >>> 8;
    const crc = checksum(this.crc32c, out, start, length, position);
    for (let i = 0; i < 4; i++) out[start + 4 + i] = crc >>> (8 * i);
    while ((this.at - start) % ALIGN !== 0) this.u8(0);
    return this.at - start;
  }

  u8(value: number): void {
    this.out[this.at++] = value;
  }

  u16(value: number): void {
    this.u8(value);
    this.u8(value >>> 8);
  }

  u32(value: number): void {
    this.u16(value);
    this.u16(value >>> 16);
  }

  u48(value: number): void {
    this.u32(value >>> 0);
    this.u16(Math.floor(value / 2 ** 32));
  }

  varint(value: number): void {
    let rest = value;
    while (rest >= 0x80000000) {
      this.out[this.at++] = (rest & 127) | 128;
      rest = Math.floor(rest / 128);
    }
    while (rest >= 128) {
      this.out[this.at++] = (rest & 127) | 128;
      rest >>>= 7;
    }
    this.out[this.at++] = rest;
  }

  stamps(stamps: Float64Array, count: number): void {
    let smallest = Infinity;
    for (let i = 0; i < count; i++) if (stamps[i] > 0 && stamps[i] < smallest) smallest = stamps[i];
    this.varint(smallest === Infinity ? 0 : smallest);
    if (smallest === Infinity) return;
    let previous = -1;
    for (let i = 0; i < count; i++) {
      const stamp = stamps[i];
      this.varint(stamp === previous ? 1 : stamp === 0 ? 0 : stamp - smallest + 2);
      previous = stamp;
    }
  }

  /** One bit per block: set where layers[block] !== unless. */
  bitmap(layers: Uint32Array, unless: number): void {
    for (let block = 0; block < LEAF_BLOCKS; block += 8) {
      let bits = 0;
      for (let bit = 0; bit < 8; bit++) if (layers[block + bit] !== unless) bits |= 1 << bit;
      this.u8(bits);
    }
  }
}

export class RecordReader {
  /** Type and file position of the open record. */
  type = 0;
  position = 0;
  private bytes: Uint8Array = new Uint8Array(0);
  private at = 0;
  private end = 0;
  private file = '';

  constructor(private readonly crc32c: Crc32c) {}

  /** Borrows `bytes`, which start at `position` of `file`, and checks the header and the CRC. Throws CorruptionError. */
  open(bytes: Uint8Array, position: number, file: string): this {
    this.position = position;
    this.file = file;
    this.bytes = bytes;
    if (bytes.length < HEADER_BYTES) this.fail('a map node is cut off');
    if (bytes[0] !== MAGIC) this.fail(`a map node starts with ${MAGIC}, not ${bytes[0]}`);
    const length = bytes[2] | (bytes[3] << 8);
    if (length < HEADER_BYTES || length > bytes.length) this.fail(`a map node of ${length} bytes is out of bounds`);
    const stored = (bytes[4] | (bytes[5] << 8) | (bytes[6] << 16) | (bytes[7] << 24)) >>> 0;
    const computed = checksum(this.crc32c, bytes, 0, length, position);
    if (stored !== computed) this.fail(`the checksum of a map node is ${stored}, should be ${computed}`);
    this.type = bytes[1];
    this.at = HEADER_BYTES;
    this.end = length;
    return this;
  }

  /** Throws CorruptionError at this record. */
  fail(message: string): never {
    throw new CorruptionError(this.file, this.position, message);
  }

  /** All bytes were used. */
  finish(): void {
    if (this.at !== this.end) this.fail(`a map node has ${this.end - this.at} bytes too many`);
  }

  u8(): number {
    if (this.at >= this.end) this.fail('a map node ends too early');
    return this.bytes[this.at++];
  }

  u16(): number {
    const low = this.u8();
    return low | (this.u8() << 8);
  }

  u32(): number {
    const low = this.u16();
    return (low | (this.u16() << 16)) >>> 0;
  }

  u48(): number {
    const low = this.u32();
    return low + this.u16() * 2 ** 32;
  }

  varint(): number {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < VARINT_BYTES_MAX; i++) {
      const byte = this.u8();
      value += (byte & 127) * scale;
      if (byte < 128) {
        if (value > Number.MAX_SAFE_INTEGER) break;
        return value;
      }
      scale *= 128;
    }
    return this.fail('a number in a map node is too large');
  }

  stamps(into: Float64Array, count: number): void {
    const smallest = this.varint();
    if (smallest === 0) {
      into.fill(0, 0, count);
      return;
    }
    let previous = -1;
    for (let i = 0; i < count; i++) {
      const code = this.varint();
      const stamp = code === 0 ? 0 : code === 1 ? previous : smallest + (code - 2);
      if (stamp < 0 || stamp > STAMP_MAX) this.fail('a stamp is out of bounds');
      into[i] = stamp;
      previous = stamp;
    }
  }

  /** Reverses RecordWriter.bitmap: blocks whose bit is set become `set`, the others `unset`. */
  bitmap(layers: Uint32Array, set: number, unset: number): void {
    for (let block = 0; block < LEAF_BLOCKS; block += 8) {
      const bits = this.u8();
      for (let bit = 0; bit < 8; bit++) layers[block + bit] = ((bits >>> bit) & 1) !== 0 ? set : unset;
    }
  }
}
