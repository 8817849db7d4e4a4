/**
 * Reference implementation of the 64-bit hash that links journal batches (the
 * chain, DESIGN §3). The native addon computes the same; a test compares them.
 *
 * Not cryptographic: it guards against accidents, not against forgery (link
 * authentication and TLS do that).
 *
 * Definition, all arithmetic modulo 2^64, words little-endian:
 *   h = seed XOR (length * P1)
 *   for each 8-byte word w (the last one padded with zeros):
 *     h = (rotl64(h XOR (w * P2), 27) * P1) + P3
 *   h ^= h >> 33; h *= P2; h ^= h >> 29; h *= P3; h ^= h >> 32
 */

const P1 = 0x9e3779b185ebca87n;
const P2 = 0xc2b2ae3d27d4eb4fn;
const P3 = 0x165667b19e3779f9n;
const MASK = 0xffffffffffffffffn;

/** Slow (bigint); the data path uses `Io.hash64`. */
export function hash64(bytes: Uint8Array, seed: bigint): bigint {
  let h = seed ^ ((BigInt(bytes.length) * P1) & MASK);
  for (let at = 0; at < bytes.length; at += 8) {
    let word = 0n;
    for (let i = Math.min(8, bytes.length - at) - 1; i >= 0; i--) word = (word << 8n) | BigInt(bytes[at + i]);
    const mixed = h ^ ((word * P2) & MASK);
    const rotated = ((mixed << 27n) | (mixed >> 37n)) & MASK;
    h = (rotated * P1 + P3) & MASK;
  }
  h ^= h >> 33n;
  h = (h * P2) & MASK;
  h ^= h >> 29n;
  h = (h * P3) & MASK;
  h ^= h >> 32n;
  return h;
}
