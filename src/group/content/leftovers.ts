/**
 * What a group's directory holds when its state.json is missing: the rest of a
 * creation that was cut off, or a group that was served.
 *
 * Owns: telling the two apart, without writing anything. Must not know: how a
 * group is created or opened.
 *
 * A creation writes state.json last (DESIGN §3). Cut off before, it leaves at
 * most empty slots, one checkpoint at LSN 0 without devices, and a journal that
 * begins at LSN 0 and holds one batch: its first epoch record.
 */

import { assert } from '../../base/assert.js';
import { CorruptionError, IoError } from '../../base/errors.js';
import { BLOCK_BYTES } from '../../base/units.js';
import { listIfThere } from '../../io/file.js';
import { O } from '../../io/io.js';
import type { Io } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { batch, BATCH_MAGIC, checkBatchShape, decodeSegmentHeader, MAX_BATCH_BYTES, MAX_HEADER_BYTES, SEGMENT_HEADER_BYTES, usedHeaderBytes } from '../../journal/format.js';
import { findSlot } from '../../store/slot.js';
import { CURSOR_FILE } from './cursorfile.js';
import { readState } from './statefile.js';
import type { StateFile } from './statefile.js';

/**
 * The group's state.json; undefined when the group may be created. Blocking.
 * Throws CorruptionError, also when the file is missing beside data; IoError.
 */
export function stateToStartFrom(reactor: Reactor, directory: string, journalDirectory = `${directory}/journal`): StateFile | undefined {
  const found = readState(reactor.io, directory);
  if (found !== undefined) return found;
  const left = servedLeftover(reactor, directory, journalDirectory);
  if (left === undefined) return undefined;
  throw new CorruptionError(`${directory}/state.json`, 0,
    `state.json is missing although the group has data (${left}); restore it from a backup, or move the directory away to start anew`);
}

/** Something that only a served group leaves, in words. */
function servedLeftover(reactor: Reactor, directory: string, journalDirectory: string): string | undefined {
  const { io } = reactor;
  const layer = listIfThere(io, `${directory}/layers`)?.sort().find((name) => name.startsWith('device-'));
  if (layer !== undefined) return `layers/${layer}`;
  if (listIfThere(io, directory)?.includes(CURSOR_FILE) === true) return CURSOR_FILE;
  return checkpointLeft(io, directory) ?? journalLeft(reactor, journalDirectory);
}

function checkpointLeft(io: Io, directory: string): string | undefined {
  let found: ReturnType<typeof findSlot>;
  try {
    found = findSlot(io, directory);
  } catch (error) {
    // The first checkpoint of a creation may be torn; of a group that was served there is a journal, too.
    if (error instanceof CorruptionError) return undefined;
    throw error;
  }
  for (const slot of [found?.slot, found?.older]) {
    if (slot === undefined || (slot.body.at.lsn === 0 && slot.body.devices.length === 0)) continue;
    return `checkpoint-${slot.sequence % 2} at LSN ${slot.body.at.lsn} with ${slot.body.devices.length} devices`;
  }
  return undefined;
}

function journalLeft(reactor: Reactor, directory: string): string | undefined {
  const { io, arena } = reactor;
  const files = (listIfThere(io, directory) ?? []).filter((name) => name.startsWith('segment-')).sort();
  if (files.length === 0) return undefined;
  const window = arena.lend(MAX_BATCH_BYTES);
  assert(window >= 0, 'no arena room to look at the journal');
  try {
    for (const name of files) {
      const path = `${directory}/${name}`;
      const fd = io.open(path, O.RDONLY | O.CLOEXEC, 0);
      if (fd < 0) throw new IoError(-fd, 'open journal segment', path);
      try {
        const lsn = laterLsn(reactor, fd, path, window);
        if (lsn > 0) return `${path} holds LSN ${lsn}`;
      } finally {
        io.close(fd);
      }
    }
  } finally {
    arena.release(window);
  }
  return undefined;
}

/** An LSN above 0 that the segment begins with, or that a batch in it has; 0 when there is none. Throws IoError. */
function laterLsn(reactor: Reactor, fd: number, path: string, window: number): number {
  const { io, arena } = reactor;
  const size = io.stat(fd).size;
  const load = (pos: number): number => {
    const bytes = Math.min(MAX_BATCH_BYTES, size - pos);
    const read = io.pread(fd, window, bytes, pos);
    if (read < 0) throw new IoError(-read, `read the journal at byte ${pos} of`, path);
    return bytes;
  };
  if (size < SEGMENT_HEADER_BYTES) return 0;
  load(0);
  const header = decodeSegmentHeader(arena.u8, window);
  if (typeof header !== 'string' && header.baseLsn > 0) return header.baseLsn;
  // The windows overlap, so that each header lies in one of them whole.
  for (let pos = SEGMENT_HEADER_BYTES; pos < size; pos += MAX_BATCH_BYTES - MAX_HEADER_BYTES) {
    const bytes = load(pos);
    for (let at = window; at + BLOCK_BYTES <= window + bytes; at += BLOCK_BYTES) {
      if (arena.view.getUint32(at, true) !== BATCH_MAGIC || checkBatchShape(arena.view, at) !== undefined) continue;
      const used = usedHeaderBytes(batch.count(arena.view, at));
      if (at + used > window + bytes || io.crc32c(at + 8, used - 8, 0) !== batch.crc(arena.view, at)) continue;
      if (batch.lsn(arena.view, at) > 0) return batch.lsn(arena.view, at);
    }
  }
  return 0;
}
