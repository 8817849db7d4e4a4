/**
 * What a marker says beside the digest of the tree: sums by kind of field, from which a node whose digest differs reads
 * what differs.
 *
 * Owns: the kinds, their hashes, the sums and their bytes in a marker, and where a difference lies. Must not know:
 * sentences (differs.ts), what happens then. The sums prove nothing: the digest alone decides.
 *
 *   0          u32 devices of the tree
 *   4 + 8k     u32 sum of h(k, d) over all devices d     ) modulo 2^32, little-endian;
 *   8 + 8k     u32 sum of id(d) · h(k, d)                ) k: place in KINDS
 *
 * The second sum tells the device, if it is one alone: then the differences of both sums are x and id · x.
 *
 *   h(k, d)    mix(..mix(mix(0, k), id)..) over the fields of kind k in their order, then one more mix(h, 0)
 *   mix(h, w)  h' = (h xor w) · 0x9e3779b1 mod 2^32; h' xor (h' >> 15)
 *   number     its low 32 bits, then the rest          word           its length, then each character's code
 */

import { assert } from '../../base/assert.js';
import type { Device } from './device.js';

interface Kind {
  /** As in "name of web". */
  readonly word: string;
  readonly mix: (h: number, device: Device) => number;
  /** What this node has. */
  readonly shown: (device: Device) => string;
}

/** The order is part of the format. */
export const KINDS: readonly Kind[] = [
  { word: 'existence or kind', mix: (h, d) => mix(h, d.kind === 'volume' ? 1 : 2), shown: (d) => d.kind },
  { word: 'name', mix: (h, d) => mixWord(h, d.name), shown: (d) => `name ${d.name}` },
  { word: 'set', mix: (h, d) => mixWord(h, d.set), shown: (d) => (d.set === '' ? 'in no set' : `set ${d.set}`) },
  { word: 'descent', mix: (h, d) => mixNumber(mixNumber(h, d.parent), d.volume), shown: (d) => (d.parent === 0 ? 'taken from nothing' : `taken from device ${d.parent}, of volume ${d.volume}`) },
  { word: 'size', mix: (h, d) => mixNumber(h, d.sizeBytes), shown: (d) => `${d.sizeBytes} bytes` },
  { word: 'protection', mix: (h, d) => mix(h, d.protected ? 1 : 0), shown: (d) => (d.protected ? 'protected' : 'not protected') },
  { word: 'creation', mix: (h, d) => mixNumber(mixNumber(h, d.createdLsn), d.createdMs), shown: (d) => `created at LSN ${d.createdLsn}, ${d.createdMs} ms since 1970` },
  { word: 'last change', mix: (h, d) => mixNumber(h, d.changedLsn), shown: (d) => `changed at LSN ${d.changedLsn}` },
  { word: 'continuity', mix: (h, d) => mixWord(h, d.continuity), shown: (d) => `continuity ${d.continuity}` },
];
/** Place in KINDS of the one that says which devices there are. */
export const EXISTENCE = 0;

const WORDS = 1 + 2 * KINDS.length;
export const FIELD_SUMS_BYTES = 4 * WORDS;

/** The words of the table above, in its order. */
export type FieldSums = Readonly<Uint32Array>;

export function noSums(): Uint32Array {
  return new Uint32Array(WORDS);
}

/** `sign` 1: the device joins the tree; -1: it leaves. */
export function sumDevice(sums: Uint32Array, device: Device, sign: 1 | -1): void {
  sums[0] += sign;
  for (let k = 0; k < KINDS.length; k++) {
    const h = Math.imul(sign, fieldHash(k, device));
    sums[1 + 2 * k] += h;
    sums[2 + 2 * k] += Math.imul(device.id, h);
  }
}

export function encodeSums(sums: FieldSums): Uint8Array {
  const bytes = new Uint8Array(FIELD_SUMS_BYTES);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < WORDS; i++) view.setUint32(4 * i, sums[i], true);
  return bytes;
}

/** `bytes`: FIELD_SUMS_BYTES, borrowed. */
export function decodeSums(bytes: Uint8Array): FieldSums {
  assert(bytes.length === FIELD_SUMS_BYTES, `field sums of ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const sums = noSums();
  for (let i = 0; i < WORDS; i++) sums[i] = view.getUint32(4 * i, true);
  return sums;
}

/** How the devices of one tree differ from those of another, in one kind of field. */
export interface Difference {
  /** Place in KINDS. */
  readonly kind: number;
  /** The one device that differs; undefined when there are several. */
  readonly device: number | undefined;
  /** Of that device: what has to be added to the hash of the second tree's. */
  readonly hash: number;
}

/** Empty: no kind differs. `highestId`: no device of either tree has a higher one, as far as can be expected. */
export function differences(theirs: FieldSums, mine: FieldSums, highestId: number): Difference[] {
  const found: Difference[] = [];
  for (let kind = 0; kind < KINDS.length; kind++) {
    const plain = (theirs[1 + 2 * kind] - mine[1 + 2 * kind]) >>> 0;
    const weighted = (theirs[2 + 2 * kind] - mine[2 + 2 * kind]) >>> 0;
    if (plain === 0 && weighted === 0) continue;
    const id = quotient(weighted, plain);
    found.push({ kind, device: id !== undefined && id >= 1 && id <= highestId ? id : undefined, hash: plain });
  }
  return found;
}

/** The smallest x with x · divisor = value modulo 2^32; undefined when there is none, or too many. */
function quotient(value: number, divisor: number): number | undefined {
  if (divisor === 0) return undefined;
  const zeros = 31 - Math.clz32(divisor & -divisor);
  const odd = divisor >>> zeros;
  if ((value & (2 ** zeros - 1)) !== 0) return undefined;
  // Newton's iteration: each step doubles the number of right low bits, of which there are three at first.
  let inverse = odd;
  for (let i = 0; i < 4; i++) inverse = Math.imul(inverse, 2 - Math.imul(odd, inverse));
  return (Math.imul(value >>> zeros, inverse) & (2 ** (32 - zeros) - 1)) >>> 0;
}

/** h(kind, device), unsigned. */
export function fieldHash(kind: number, device: Device): number {
  return mix(KINDS[kind].mix(mix(mix(0, kind), device.id), device), 0) >>> 0;
}

function mix(h: number, word: number): number {
  const mixed = Math.imul(h ^ word, 0x9e3779b1);
  return mixed ^ (mixed >>> 15);
}

function mixNumber(h: number, value: number): number {
  return mix(mix(h, value >>> 0), Math.floor(value / 2 ** 32));
}

function mixWord(h: number, text: string): number {
  let mixed = mix(h, text.length);
  for (let i = 0; i < text.length; i++) mixed = mix(mixed, text.charCodeAt(i));
  return mixed;
}
