/**
 * The content digest of a device: 128 bits that name its size and every byte of
 * it. Owns the one definition, which `reconcile`, `seal` and `adopt` share; must
 * not know where the bytes come from.
 *
 *     digest = S + sum over all regions that are not all zeros of H(index)      modulo 2^128
 *     H(index) = SHA-256("lockstep region\n" || index, u64 || bytes of the region)[0..16)
 *     S        = SHA-256("lockstep size\n" || size of the device in bytes, u64)[0..16)
 *
 * Regions are REGION_BYTES long, counted from 0; the last one may be shorter and
 * is not padded. Integers are big-endian, and so are the 16 bytes read as a
 * number. A sum, so that regions may come in any order, a hole costs nothing, and
 * the digest follows a change of one region without the others. It names contents
 * that accidents tell apart; whoever can choose the contents of two devices may be
 * able to find two with one digest, for sums of hashes can be solved for.
 */

import { createHash } from 'node:crypto';
import { REGION_BYTES } from './units.js';

/** Length of a digest, of a device or of a region, in bytes. */
export const DIGEST_BYTES = 16;

const MASK_128 = (1n << 128n) - 1n;
const ZEROS = Buffer.alloc(REGION_BYTES);
const REGION_PREFIX = Buffer.concat([Buffer.from('lockstep region\n'), Buffer.alloc(8)]);
const SIZE_PREFIX = Buffer.concat([Buffer.from('lockstep size\n'), Buffer.alloc(8)]);

/** Whether all of at most REGION_BYTES bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  return ZEROS.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
}

/** Writes H of region `index`, 16 bytes, to `into` at `at`; 16 zero bytes stand for a region of zeros. `bytes` is borrowed. */
export function putRegionDigest(into: Uint8Array, at: number, index: number, bytes: Uint8Array): void {
  if (isZero(bytes)) {
    into.fill(0, at, at + DIGEST_BYTES);
    return;
  }
  REGION_PREFIX.writeBigUInt64BE(BigInt(index), REGION_PREFIX.length - 8);
  into.set(createHash('sha256').update(REGION_PREFIX).update(bytes).digest().subarray(0, DIGEST_BYTES), at);
}

/** Adds the digests of regions up: of a whole device, or of a part of one as a node of a tree. */
export class DigestSum {
  private sum = 0n;

  /** The digests of `count` regions, or of parts, that lie one behind the other in `digests`. */
  add(digests: Uint8Array, at = 0, count = 1): this {
    for (let i = 0; i < count; i++) this.sum += numberAt(digests, at + i * DIGEST_BYTES);
    this.sum &= MASK_128;
    return this;
  }

  /** Takes one away that was added. */
  subtract(digests: Uint8Array, at = 0): this {
    this.sum = (this.sum - numberAt(digests, at)) & MASK_128;
    return this;
  }

  get isZero(): boolean {
    return this.sum === 0n;
  }

  /** The sum alone, 16 bytes. */
  put(into: Uint8Array, at: number): void {
    const view = viewOf(into);
    view.setBigUint64(at, this.sum >> 64n);
    view.setBigUint64(at + 8, BigInt.asUintN(64, this.sum));
  }

  /** The digest of the device, all of whose regions were added: 32 hexadecimal digits. */
  contentDigest(sizeBytes: number): string {
    SIZE_PREFIX.writeBigUInt64BE(BigInt(sizeBytes), SIZE_PREFIX.length - 8);
    const size = numberAt(createHash('sha256').update(SIZE_PREFIX).digest(), 0);
    return ((this.sum + size) & MASK_128).toString(16).padStart(2 * DIGEST_BYTES, '0');
  }
}

function numberAt(bytes: Uint8Array, at: number): bigint {
  const view = viewOf(bytes);
  return (view.getBigUint64(at) << 64n) | view.getBigUint64(at + 8);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
