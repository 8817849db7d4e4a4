/**
 * What the two sides of reconcile say to each other, in frames of channel.ts.
 * The *source* has the content, the *sink* becomes it. Integers are big-endian.
 *
 *     HELLO         both ways, first     JSON, see Hello
 *     SUBTREE       source → sink        u32 subtree, then the digests of its nodes; none: all zeros
 *     NODE_WANTED   sink → source        u32 subtree, u32 node: they differ
 *     NODE          source → sink        u32 subtree, u32 node, then the digests of its regions
 *     REGION_WANTED sink → source        u64 region, then the digests of the sink's blocks; none: all zeros
 *     REGION        source → sink        u64 region, u16 blocks to zero, u16 blocks that follow, their bytes in order
 *     DONE          sink → source        u32 subtree: it is equal now; the source forgets it
 *     END           source → sink        16 bytes: content digest, after the last DONE
 *     RESULT        sink → source        JSON, see Result: flushed, and the digest is the same
 *     FAILED        both ways            JSON, see Failed: the sender gives up
 *
 * Bit i of a mask is block i of the region. A digest of zeros stands for zeros.
 * Limits: MAX_SUBTREES of which no DONE was sent, MAX_NODES and MAX_REGIONS
 * wanted and not yet answered. Owns: types, bytes, limits, checks of shape.
 */

import { z } from 'zod';
import { PeerError } from '../../base/errors.js';
import { DIGEST_BYTES } from '../../base/content-digest.js';

export const PROTOCOL_VERSION = 1;
export const MAX_SUBTREES = 32;
export const MAX_NODES = 16;
export const MAX_REGIONS = 64;

export const Type = {
  HELLO: 1, SUBTREE: 2, NODE_WANTED: 3, NODE: 4, REGION_WANTED: 5, REGION: 6, DONE: 7, END: 8, RESULT: 9, FAILED: 10,
} as const;

const bytes = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);

/** Versions come first: of a Hello of another version nothing else is looked at. */
export const HelloVersion = z.object({ protocol: z.number().int(), program: z.string().max(64) });
export const Hello = HelloVersion.extend({
  role: z.enum(['source', 'sink']),
  /** For messages. */
  device: z.string().max(300),
  sizeBytes: bytes,
  /** Both sides must cut a device alike. */
  regionBytes: bytes,
  fanOut: bytes,
  blockBytes: bytes,
});
export type Hello = z.infer<typeof Hello>;

/** What the sink did; bytes. */
export const Result = z.object({
  digest: z.string().regex(/^[0-9a-f]{32}$/),
  readBytes: bytes,
  hashedBytes: bytes,
  differingRegions: bytes,
  writtenBytes: bytes,
  zeroedBytes: bytes,
});
export type Result = z.infer<typeof Result>;

/** Longest explanation, characters. */
export const MAX_WORDS = 2000;
export const Failed = z.object({ operator: z.boolean(), message: z.string().max(MAX_WORDS) });
export type Failed = z.infer<typeof Failed>;

export function encodeJson(value: Hello | Result | Failed): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** Throws PeerError when `payload` is not what `schema` says. */
export function decodeJson<S extends z.ZodType>(schema: S, payload: Buffer, what: string): z.output<S> {
  let raw: unknown;
  try {
    raw = JSON.parse(payload.toString());
  } catch {
    throw broken(`its ${what} is not JSON`);
  }
  const parsed = schema.safeParse(raw);
  if (!parsed.success) throw broken(`its ${what} is not as expected at ${parsed.error.issues[0].path.map(String).join('.') || 'its top'} (${parsed.error.issues[0].message})`);
  return parsed.data;
}

export function encodeSubtree(subtree: number, nodes: Buffer | undefined): Buffer {
  return Buffer.concat([u32(subtree), nodes ?? Buffer.alloc(0)]);
}

/** SUBTREE and DONE begin alike. */
export function decodeSubtree(payload: Buffer): { subtree: number; nodes: Buffer } {
  if (payload.length < 4) throw broken('a message about a subtree is too short');
  return { subtree: payload.readUInt32BE(0), nodes: payload.subarray(4) };
}

export function encodeNode(subtree: number, node: number, regions?: Buffer): Buffer {
  return Buffer.concat([u32(subtree), u32(node), regions ?? Buffer.alloc(0)]);
}

export function decodeNode(payload: Buffer): { subtree: number; node: number; regions: Buffer } {
  if (payload.length < 8) throw broken('a message about a node is too short');
  return { subtree: payload.readUInt32BE(0), node: payload.readUInt32BE(4), regions: payload.subarray(8) };
}

export function encodeRegionWanted(region: number, blocks: Buffer | undefined): Buffer {
  return Buffer.concat([u64(region), blocks ?? Buffer.alloc(0)]);
}

export function decodeRegionWanted(payload: Buffer): { region: number; blocks: Buffer } {
  return { region: regionNumber(payload), blocks: payload.subarray(8) };
}

export interface RegionData {
  readonly region: number;
  readonly zeroMask: number;
  readonly dataMask: number;
  readonly data: Buffer;
}

export function encodeRegion(region: number, zeroMask: number, dataMask: number, blocks: readonly Uint8Array[]): Buffer {
  const masks = Buffer.alloc(4);
  masks.writeUInt16BE(zeroMask, 0);
  masks.writeUInt16BE(dataMask, 2);
  return Buffer.concat([u64(region), masks, ...blocks]);
}

export function decodeRegion(payload: Buffer): RegionData {
  const region = regionNumber(payload);
  if (payload.length < 12) throw broken('a message with a region is too short');
  return { region, zeroMask: payload.readUInt16BE(8), dataMask: payload.readUInt16BE(10), data: payload.subarray(12) };
}

export function decodeEnd(payload: Buffer): string {
  if (payload.length !== DIGEST_BYTES) throw broken('its last digest has the wrong length');
  return payload.toString('hex');
}

export function broken(message: string): PeerError {
  return new PeerError('reconcile/protocol', `the other side broke the protocol: ${message}; is it the same version of lockstep?`);
}

function regionNumber(payload: Buffer): number {
  if (payload.length < 8) throw broken('a message about a region is too short');
  const region = Number(payload.readBigUInt64BE(0));
  if (!Number.isSafeInteger(region)) throw broken(`there is no region ${region}`);
  return region;
}

function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value);
  return out;
}

function u64(value: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(BigInt(value));
  return out;
}
