/**
 * What of the arena is taken from the start to the end of the daemon, and who gets
 * how many of its file descriptors.
 *
 * Owns: the sum, the refusal of an arena that is too small, the range for
 * blocking work, the size of links' windows, what the block cache gets, the share of layers in the descriptors. Must not know:
 * what the parts are used for.
 */

import { OperatorError } from '../base/errors.js';
import { alignUp, formatSize, KIB, MIB } from '../base/units.js';
import type { Config } from '../config/schema.js';
import { contentArenaBytes } from '../group/content/content.js';
import type { Arena } from '../io/arena.js';
import { allocatedBytes, SCRATCH_BYTES } from '../io/arena.js';
import { MAX_MEMORY_BYTES } from '../io/real.js';
import { MAX_BATCH_BYTES } from '../journal/format.js';
import { DEFAULT_LIMITS } from '../nbd/limits.js';
import { LinkWindows } from '../replication/windows.js';
import { linkArenaBytes, peerCount } from './links.js';

/** What a link reads or receives at a time: as much as the arena has for all of them. */
const LINK_WINDOW_BYTES: readonly number[] = [MIB, 512 * KIB, 256 * KIB];

/**
 * To be called while all of the arena is free. Throws OperatorError when groups,
 * all links and the NBD server could not be open in it at the same time, with the size that is enough.
 * Returns the windows of the links; undefined without peers.
 */
export function takeFixedMemory(
  arena: Arena, config: Config, scale: { readonly destageBufferBytes: number; readonly checkpointBufferBytes: number }, servesNbd: boolean,
): LinkWindows | undefined {
  const peers = peerCount(config);
  const { reserveBytes, headroomBytes, chunkBytes } = DEFAULT_LIMITS;
  const buffers = { destager: { bufferBytes: scale.destageBufferBytes }, checkpointer: { bufferBytes: scale.checkpointBufferBytes } };
  const groups = config.groups.reduce((sum, { journal }) => sum + contentArenaBytes({ ...buffers, journal }), 0);
  const aside = peers > 0 ? allocatedBytes(MAX_BATCH_BYTES) : 0;
  const least = SCRATCH_BYTES + groups + aside + (servesNbd ? reserveBytes + headroomBytes + 2 * chunkBytes : 0);
  const needed = (windowBytes: number): number => least + (peers > 0 ? linkArenaBytes(config, windowBytes) : 0);
  const has = SCRATCH_BYTES + arena.capacityBytes;
  const windowBytes = LINK_WINDOW_BYTES.find((bytes) => needed(bytes) <= has);
  if (windowBytes === undefined) {
    const enough = alignUp(needed(LINK_WINDOW_BYTES[LINK_WINDOW_BYTES.length - 1]), MIB);
    const links = peers === 0 ? '' : ` with ${counted(peers, 'peer')} in all`;
    throw new OperatorError('config/arena-too-small',
      `dataPath.arena is ${formatSize(has)}, too little for ${counted(config.groups.length, 'group')}${links}: give it at least ${formatSize(enough)}, and more for speed`);
  }
  if (peers === 0) return undefined;
  // For what a link may ask of the data thread at once, however busy the arena is by then.
  arena.setAside(MAX_BATCH_BYTES);
  return new LinkWindows(arena, windowBytes, peers);
}

function counted(count: number, thing: string): string {
  return `${count} ${thing}${count === 1 ? '' : 's'}`;
}

/** Bytes of block cache behind the arena: what the configuration says, or what the arena leaves. */
export function blockCacheBytes({ arena, blockCache }: Config['dataPath']): number {
  return Math.min(blockCache, MAX_MEMORY_BYTES - arena);
}

const MIN_OPEN_LAYERS = 64;
const MAX_OPEN_LAYERS = 8192;

/**
 * Layer files that each of `groups` groups may hold open: half of the process's
 * `descriptors` for all of them, the rest is for clients, links, journals. A
 * volume with a thousand snapshots is read from a thousand files, and opening one
 * costs more than the read.
 */
export function openLayers(descriptors: number, groups: number): number {
  return Math.min(MAX_OPEN_LAYERS, Math.max(MIN_OPEN_LAYERS, Math.floor(descriptors / 2 / Math.max(groups, 1))));
}
