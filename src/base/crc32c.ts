/**
 * CRC32C (Castagnoli, RFC 3720 appendix B.4) of small things in plain
 * JavaScript: checkpoint slots, map nodes at recovery, tests. The data path
 * uses `Io.crc32c`, which gives the same values.
 */

const TABLE = new Uint32Array(256);
for (let i = 0; i < 256; i++) {
  let c = i;
  for (let k = 0; k < 8; k++) c = (c & 1) !== 0 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  TABLE[i] = c >>> 0;
}

/** CRC of `bytes[start, end)`, continued from `seed` (0 to start). Unsigned 32-bit. */
export function crc32c(bytes: Uint8Array, start = 0, end = bytes.length, seed = 0): number {
  let c = ~seed >>> 0;
  for (let i = start; i < end; i++) c = TABLE[(c ^ bytes[i]) & 0xff] ^ (c >>> 8);
  return ~c >>> 0;
}
