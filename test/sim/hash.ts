/**
 * CRC32C and the chain hash over byte ranges, fast enough in plain JavaScript
 * for thousands of simulated runs. Same results as src/base/crc32c.ts and
 * src/base/hash64.ts (the references; sim.hash.test.ts compares them).
 *
 * Must not know: files, records.
 */

// SLICES[k * 256 + b]: CRC of byte b followed by k zero bytes (slicing-by-8).
const SLICES = new Int32Array(8 * 256);
for (let i = 0; i < 256; i++) {
  let c = i;
  for (let k = 0; k < 8; k++) c = (c & 1) !== 0 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  SLICES[i] = c;
}
for (let at = 256; at < SLICES.length; at++) {
  const before = SLICES[at - 256];
  SLICES[at] = (before >>> 8) ^ SLICES[before & 0xff];
}

/** CRC32C of `bytes[start, end)`, continued from `seed`. Unsigned. */
export function crc32cFast(bytes: Uint8Array, start: number, end: number, seed: number): number {
  let c = ~seed;
  let at = start;
  const t = SLICES;
  for (const last = end - 8; at <= last; at += 8) {
    c ^= bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
    c =
      t[1792 + (c & 0xff)] ^
      t[1536 + ((c >>> 8) & 0xff)] ^
      t[1280 + ((c >>> 16) & 0xff)] ^
      t[1024 + (c >>> 24)] ^
      t[768 + bytes[at + 4]] ^
      t[512 + bytes[at + 5]] ^
      t[256 + bytes[at + 6]] ^
      t[bytes[at + 7]];
  }
  for (; at < end; at++) c = t[(c ^ bytes[at]) & 0xff] ^ (c >>> 8);
  return ~c >>> 0;
}

// The multipliers of hash64 in 16-bit limbs, lowest first.
const P1 = [0xca87, 0x85eb, 0x79b1, 0x9e37] as const;
const P2 = [0xeb4f, 0x27d4, 0xae3d, 0xc2b2] as const;
const P3 = [0x79f9, 0x9e37, 0x67b1, 0x1656] as const;
const P3_LO = 0x9e3779f9;
const P3_HI = 0x165667b1;

/** Result of `multiply`: high and low half of the product modulo 2^64. */
let productHi = 0;
let productLo = 0;

function multiply(hi: number, lo: number, by: readonly [number, number, number, number]): void {
  const a0 = lo & 0xffff;
  const a1 = lo >>> 16;
  const b0 = by[0];
  const b1 = by[1];
  // Column sums stay below 2^34: doubles are exact there.
  const low = a0 * b0;
  const middle = a1 * b0 + a0 * b1 + Math.floor(low / 65536);
  const high = a1 * b1 + Math.floor(middle / 65536);
  productLo = (low & 0xffff) | (middle << 16);
  const byLo = b0 | (b1 << 16);
  const byHi = by[2] | (by[3] << 16);
  productHi = (high + Math.imul(lo, byHi) + Math.imul(hi, byLo)) | 0;
}

/** hash64 of `bytes[start, start + length)`; writes high and low half of the result to `out[0..1]`. */
export function hash64Fast(
  bytes: Uint8Array,
  start: number,
  length: number,
  seedHi: number,
  seedLo: number,
  out: Uint32Array,
): void {
  multiply(Math.floor(length / 4294967296) | 0, length | 0, P1);
  let hi = seedHi ^ productHi;
  let lo = seedLo ^ productLo;
  const end = start + length;
  for (let at = start; at < end; at += 8) {
    let wordLo = 0;
    let wordHi = 0;
    if (at + 8 <= end) {
      wordLo = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
      wordHi = bytes[at + 4] | (bytes[at + 5] << 8) | (bytes[at + 6] << 16) | (bytes[at + 7] << 24);
    } else {
      for (let i = at; i < end; i++) {
        const shift = (i - at) * 8;
        if (shift < 32) wordLo |= bytes[i] << shift;
        else wordHi |= bytes[i] << (shift - 32);
      }
    }
    if ((wordLo | wordHi) !== 0) {
      multiply(wordHi, wordLo, P2);
      hi ^= productHi;
      lo ^= productLo;
    }
    multiply((hi << 27) | (lo >>> 5), (lo << 27) | (hi >>> 5), P1);
    const sum = (productLo >>> 0) + P3_LO;
    lo = sum | 0;
    hi = (productHi + P3_HI + (sum > 0xffffffff ? 1 : 0)) | 0;
  }
  lo ^= hi >>> 1;
  multiply(hi, lo, P2);
  lo = productLo ^ ((productHi << 3) | (productLo >>> 29));
  hi = productHi ^ (productHi >>> 29);
  multiply(hi, lo, P3);
  out[0] = productHi >>> 0;
  out[1] = (productLo ^ productHi) >>> 0;
}
