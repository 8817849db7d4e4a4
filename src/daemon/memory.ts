/**
 * What of the arena is taken from the start to the end of the daemon, and who gets
 * how many of its file descriptors.
 *
 * Owns: the sum, the refusal of an arena that is too small, the range for
 * blocking work, what the block cache gets, the share of layers in the descriptors. Must not know: what the parts are used for.
 */

import { OperatorError } from '../base/errors.js';
import { alignUp, formatSize, MIB } from '../base/units.js';
import type { Config } from '../config/schema.js';
import { contentArenaBytes } from '../group/content/content.js';
import type { Arena } from '../io/arena.js';
import { allocatedBytes, SCRATCH_BYTES } from '../io/arena.js';
import { MAX_MEMORY_BYTES } from '../io/real.js';
import { MAX_BATCH_BYTES } from '../journal/format.js';
import { DEFAULT_LIMITS } from '../nbd/limits.js';

/**
 * To be called while all of the arena is free. Throws OperatorError when groups,
 * links and NBD server could not all be opened in it.
 */
export function takeFixedMemory(
  arena: Arena, config: Config, scale: { readonly destageBufferBytes: number; readonly checkpointBufferBytes: number }, servesNbd: boolean,
): void {
  const linked = config.groups.some((group) => group.peers.length > 0);
  const { reserveBytes, headroomBytes, chunkBytes } = DEFAULT_LIMITS;
  const buffers = { destager: { bufferBytes: scale.destageBufferBytes }, checkpointer: { bufferBytes: scale.checkpointBufferBytes } };
  const groups = config.groups.reduce((sum, { journal }) => sum + contentArenaBytes({ ...buffers, journal }), 0);
  const links = linked ? allocatedBytes(MAX_BATCH_BYTES) : 0;
  const needed = SCRATCH_BYTES + groups + links + (servesNbd ? reserveBytes + headroomBytes + 2 * chunkBytes : 0);
  if (needed > SCRATCH_BYTES + arena.capacityBytes) {
    throw new OperatorError('config/arena-too-small',
      `dataPath.arena is ${formatSize(SCRATCH_BYTES + arena.capacityBytes)}, too little for ${config.groups.length} groups: give it at least ${formatSize(alignUp(needed, MIB))}, and more for speed`);
  }
  // For what a link may ask of the data thread at once, however busy the arena is by then.
  if (linked) arena.setAside(MAX_BATCH_BYTES);
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
