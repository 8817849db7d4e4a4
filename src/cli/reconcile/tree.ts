/**
 * The digest tree of a device, one subtree at a time.
 *
 *     device    →  subtrees of 1 GiB, in order
 *     subtree   →  up to 128 nodes of 8 MiB     digest: sum of those of its regions
 *     node      →  up to 128 regions of 64 KiB  digest: base/content-digest.ts
 *     region    →  up to 16 blocks of 4 KiB     digest: 8 bytes of SHA-256, made when asked for
 *
 * A subtree in memory takes 264 KiB, one of zeros nothing; so the memory is that
 * of the subtrees under way, whatever the size of the device. Owns: the geometry
 * and the scan. Must not know: the other side.
 */

import { createHash } from 'node:crypto';
import { assert } from '../../base/assert.js';
import { DIGEST_BYTES, DigestSum, isZero, putRegionDigest } from '../../base/content-digest.js';
import { BLOCK_BYTES, REGION_BYTES } from '../../base/units.js';
import type { RegionDevice } from './device.js';

export const FAN_OUT = 128;
const NODE_BYTES = FAN_OUT * REGION_BYTES;
const SUBTREE_BYTES = FAN_OUT * NODE_BYTES;
export const BLOCK_DIGEST_BYTES = 8;

/** One read takes so many neighbouring regions ... */
const READ_REGIONS = 16;
/** ... and so many reads are under way. */
const READ_DEPTH = 8;

const NO_DIGEST = Buffer.alloc(DIGEST_BYTES);

/** What reading and hashing came to, in bytes. */
export interface ScanCounts {
  readBytes: number;
  hashedBytes: number;
}

export function subtreeCount(sizeBytes: number): number {
  return Math.ceil(sizeBytes / SUBTREE_BYTES);
}

/** Length in bytes of the part of `unitBytes` that begins at `offset`: the last one of a device may be short. */
export function partBytes(sizeBytes: number, offset: number, unitBytes: number): number {
  return Math.min(unitBytes, sizeBytes - offset);
}

/** Digests of one subtree. `undefined` stands for zeros alone. */
export class Subtree {
  /** `digests`: DIGEST_BYTES for each of its regions, its own from now on. */
  constructor(readonly index: number, readonly bytes: number, private readonly digests: Buffer | undefined) {}

  get offset(): number {
    return this.index * SUBTREE_BYTES;
  }

  get firstRegion(): number {
    return this.index * FAN_OUT * FAN_OUT;
  }

  get regionCount(): number {
    return Math.ceil(this.bytes / REGION_BYTES);
  }

  get nodeCount(): number {
    return Math.ceil(this.bytes / NODE_BYTES);
  }

  get isZero(): boolean {
    return this.digests === undefined;
  }

  /** Number of regions below node `node`. */
  regionsOf(node: number): number {
    return Math.min(FAN_OUT, this.regionCount - node * FAN_OUT);
  }

  /** The digests of all nodes, one behind the other; undefined when all is zero. */
  nodeDigests(): Buffer | undefined {
    if (this.digests === undefined) return undefined;
    const nodes = Buffer.alloc(this.nodeCount * DIGEST_BYTES);
    for (let node = 0; node < this.nodeCount; node++) {
      new DigestSum().add(this.digests, node * FAN_OUT * DIGEST_BYTES, this.regionsOf(node)).put(nodes, node * DIGEST_BYTES);
    }
    return nodes;
  }

  /** The digests of the regions of one node; a view. */
  regionDigests(node: number): Buffer {
    const count = this.regionsOf(node);
    if (this.digests === undefined) return Buffer.alloc(count * DIGEST_BYTES);
    return this.digests.subarray(node * FAN_OUT * DIGEST_BYTES, (node * FAN_OUT + count) * DIGEST_BYTES);
  }

  /** The digest of a region, counted from the start of the device; a view. */
  regionDigest(region: number): Buffer {
    if (this.digests === undefined) return NO_DIGEST;
    const at = (region - this.firstRegion) * DIGEST_BYTES;
    assert(at >= 0 && at < this.digests.length, `region ${region} is not in subtree ${this.index}`);
    return this.digests.subarray(at, at + DIGEST_BYTES);
  }

  addTo(sum: DigestSum): void {
    if (this.digests !== undefined) sum.add(this.digests, 0, this.regionCount);
  }
}

/** Reads and hashes what of a subtree is not known to be zero. Rejects when the device does. */
export async function scanSubtree(device: RegionDevice, index: number, counts: ScanCounts): Promise<Subtree> {
  const offset = index * SUBTREE_BYTES;
  const bytes = partBytes(device.sizeBytes, offset, SUBTREE_BYTES);
  const wanted = await wantedRegions(device, offset, bytes);
  if (!wanted.includes(1)) return new Subtree(index, bytes, undefined);
  const digests = Buffer.alloc(wanted.length * DIGEST_BYTES);
  let next = 0;
  const reader = async (): Promise<void> => {
    for (;;) {
      const from = wanted.indexOf(1, next);
      if (from < 0) return;
      let to = from + 1;
      while (to < wanted.length && to - from < READ_REGIONS && wanted[to] === 1) to++;
      next = to;
      const at = offset + from * REGION_BYTES;
      const data = await device.read(at, partBytes(device.sizeBytes, at, (to - from) * REGION_BYTES));
      counts.readBytes += data.length;
      for (let region = from; region < to; region++) {
        const start = (region - from) * REGION_BYTES;
        const piece = data.subarray(start, start + REGION_BYTES);
        counts.hashedBytes += piece.length;
        putRegionDigest(digests, region * DIGEST_BYTES, offset / REGION_BYTES + region, piece);
      }
    }
  };
  const stopping = async (): Promise<void> => {
    try {
      await reader();
    } finally {
      next = wanted.length; // the others need not go on after an error
    }
  };
  await allOrFirstError(Array.from({ length: READ_DEPTH }, stopping));
  return new Subtree(index, bytes, digests.equals(Buffer.alloc(digests.length)) ? undefined : digests);
}

/** One byte per region: 1 = it may hold something else than zeros. */
async function wantedRegions(device: RegionDevice, offset: number, bytes: number): Promise<Uint8Array> {
  const wanted = new Uint8Array(Math.ceil(bytes / REGION_BYTES));
  await device.allocated(offset, bytes, (from, to) => {
    wanted.fill(1, Math.floor((from - offset) / REGION_BYTES), Math.ceil((to - offset) / REGION_BYTES));
  });
  return wanted;
}

/** Waits for all, so that nothing goes on behind the caller's back; then throws what was thrown first. */
async function allOrFirstError(work: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(work)) if (result.status === 'rejected') throw result.reason;
}

/** BLOCK_DIGEST_BYTES for each block of a region; zeros for a block of zeros. `region` is borrowed. */
export function blockDigests(region: Uint8Array): Buffer {
  const count = Math.ceil(region.length / BLOCK_BYTES);
  const digests = Buffer.alloc(count * BLOCK_DIGEST_BYTES);
  for (let block = 0; block < count; block++) {
    const bytes = region.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    if (!isZero(bytes)) createHash('sha256').update(bytes).digest().copy(digests, block * BLOCK_DIGEST_BYTES, 0, BLOCK_DIGEST_BYTES);
  }
  return digests;
}

/** The digest of a whole device, for `seal`. `visit` is called after each subtree with the bytes done. */
export async function digestDevice(device: RegionDevice, counts: ScanCounts, visit: (doneBytes: number) => void): Promise<string> {
  const sum = new DigestSum();
  for (let index = 0; index < subtreeCount(device.sizeBytes); index++) {
    const subtree = await scanSubtree(device, index, counts);
    subtree.addTo(sum);
    visit(subtree.offset + subtree.bytes);
  }
  return sum.contentDigest(device.sizeBytes);
}
