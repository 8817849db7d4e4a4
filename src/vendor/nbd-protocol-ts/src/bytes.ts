/**
 * Byte buffers of the handshake: a growing output, a bounded collector of input
 * that arrives in pieces, and a cursor over received data that never throws. Not
 * for the transmission phase, whose codecs work in place.
 */
import { MAX_STRING_BYTES } from './constants.js';
import { getUint53, putUint53 } from './wire.js';

const encoder = new TextEncoder();
const strictDecoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Text as UTF-8 of at most MAX_STRING_BYTES, cut between characters. For texts of our own, not for names. */
export function encodeClipped(text: string): Uint8Array {
  const bytes = encoder.encode(text);
  if (bytes.length <= MAX_STRING_BYTES) return bytes;
  let end = MAX_STRING_BYTES;
  // A byte 10xxxxxx continues a character: step back to where one begins.
  while (end > 0 && (bytes[end] & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

/** A string of the protocol ("Conventions"): valid UTF-8 without NUL, at most 4096 bytes; else undefined. */
export function decodeString(bytes: Uint8Array): string | undefined {
  if (bytes.length > MAX_STRING_BYTES) return undefined;
  for (let i = 0; i < bytes.length; i++) if (bytes[i] === 0) return undefined;
  try {
    return strictDecoder.decode(bytes);
  } catch {
    // TypeError is the only thing a fatal decoder throws: the bytes are not UTF-8, which is the answer.
    return undefined;
  }
}

/** A peer's text as it may stand in a message: quoted, escaped and short. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}...` : text);
}

/** Output that grows; `take` hands it over. */
export class ByteWriter {
  private bytes = new Uint8Array(256);
  private view = viewOf(this.bytes);
  private used = 0;

  get length(): number {
    return this.used;
  }

  u16(value: number): this {
    this.reserve(2);
    this.view.setUint16(this.used, value);
    this.used += 2;
    return this;
  }

  u32(value: number): this {
    this.reserve(4);
    this.view.setUint32(this.used, value);
    this.used += 4;
    return this;
  }

  /** A number in 0..2^53 - 1 as 64 bits. */
  u64(value: number): this {
    this.reserve(8);
    putUint53(this.view, this.used, value);
    this.used += 8;
    return this;
  }

  raw(bytes: Uint8Array): this {
    this.reserve(bytes.length);
    this.bytes.set(bytes, this.used);
    this.used += bytes.length;
    return this;
  }

  zeroes(count: number): this {
    this.reserve(count);
    this.bytes.fill(0, this.used, this.used + count);
    this.used += count;
    return this;
  }

  /** Everything written since the last call; the caller owns it. */
  take(): Uint8Array {
    const taken = this.bytes.slice(0, this.used);
    this.used = 0;
    return taken;
  }

  private reserve(count: number): void {
    if (this.used + count <= this.bytes.length) return;
    const grown = new Uint8Array(Math.max(this.bytes.length * 2, this.used + count));
    grown.set(this.bytes.subarray(0, this.used));
    this.bytes = grown;
    this.view = viewOf(grown);
  }
}

/**
 * Collects exactly `wanted` bytes from pieces. Memory follows what has arrived (at
 * most twice as much), not what the peer announced.
 */
export class Collector {
  private bytes = new Uint8Array(64);
  private have = 0;
  private wanted = 0;

  /** Forgets what was collected and waits for `count` bytes. */
  expect(count: number): void {
    this.wanted = count;
    this.have = 0;
  }

  /** Keeps what was collected and waits until it is `count` bytes in all. */
  extend(count: number): void {
    this.wanted = count;
  }

  get complete(): boolean {
    return this.have === this.wanted;
  }

  /** Copies from `bytes[from..to)` what is still missing; returns how much that was. */
  feed(bytes: Uint8Array, from: number, to: number): number {
    const count = Math.min(this.wanted - this.have, to - from);
    if (this.have + count > this.bytes.length) {
      const grown = new Uint8Array(Math.min(this.wanted, Math.max(this.bytes.length * 2, this.have + count)));
      grown.set(this.bytes.subarray(0, this.have));
      this.bytes = grown;
    }
    this.bytes.set(bytes.subarray(from, from + count), this.have);
    this.have += count;
    return count;
  }

  /** What was collected; valid until the next `expect` or `feed`. */
  data(): Uint8Array {
    return this.bytes.subarray(0, this.have);
  }
}

/**
 * Reads fields from received bytes in order. After the first field that is not
 * there, `ok` is false and every further field is empty: check `ok` once at the end.
 */
export class Cursor {
  ok = true;
  private at = 0;
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = viewOf(bytes);
  }

  get remaining(): number {
    return this.bytes.length - this.at;
  }

  private take(count: number): number {
    if (!this.ok || count > this.remaining) {
      this.ok = false;
      return -1;
    }
    const at = this.at;
    this.at += count;
    return at;
  }

  u16(): number {
    const at = this.take(2);
    return at < 0 ? 0 : this.view.getUint16(at);
  }

  u32(): number {
    const at = this.take(4);
    return at < 0 ? 0 : this.view.getUint32(at);
  }

  /** `Infinity` above 2^53 - 1. */
  u64(): number {
    const at = this.take(8);
    return at < 0 ? 0 : getUint53(this.view, at);
  }

  /** Borrowed. */
  raw(count: number): Uint8Array {
    const at = this.take(count);
    return at < 0 ? new Uint8Array(0) : this.bytes.subarray(at, at + count);
  }
}
