/**
 * A group's directory on its way to being served: created, opened from its newest
 * checkpoint and journal, cut by a rewind, or begun anew without a journal.
 *
 * Owns: the order of the steps, and what each leaves for a start after a crash.
 * Must not know: what an open content does (content.ts), roles, requests, links.
 */

import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { isLocalDevice } from '../../base/units.js';
import { mkdirs, must } from '../../io/file.js';
import { O } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { batchStart } from '../../journal/format.js';
import { ORIGIN, type Position } from '../../journal/position.js';
import { recoverJournal } from '../../journal/recover.js';
import { MapFile } from '../../store/mapfile.js';
import { NodeReads } from '../../store/nodereads.js';
import { createSlots, encodeSlot, findSlot, slotPath } from '../../store/slot.js';
import type { FoundSlot, SlotBody } from '../../store/slot.js';
import { Store } from '../../store/store.js';
import { NO_EPOCH } from '../tree/epochs.js';
import { Content, contentArenaBytes } from './content.js';
import type { ContentOptions } from './content.js';
import { Core } from './core.js';
import type { CoreState } from './core.js';
import { FINAL_FILE } from './finalnote.js';
import { claim, journalDirectoryOf, removeJournal } from './place.js';
import type { Opening } from './place.js';

/** How far the journal goes, as far as others than itself can tell. */
export interface JournalExtent {
  /** A rewind: it is cut here, whatever lies behind. Then nothing else is looked at. */
  readonly until?: Position;
  /** This node noted that everything below was durable. */
  readonly knownDurableLsn?: number;
  /** Not from the journal: it begins at the checkpoint. */
  readonly opening?: Opening;
  /** A failed fdatasync may have dropped pages under this very boot. */
  readonly suspect?: boolean;
}

/** Makes an empty group in `directory`: durable when it returns. Blocking; throws IoError. */
export function createContent(reactor: Reactor, options: ContentOptions, epoch: { number: number; id: string }): Content {
  const { io } = reactor;
  const { directory } = options;
  // A secondary comes here while clients of other groups use the arena: it tries again later then.
  if (reactor.arena.largestFree < contentArenaBytes(options)) throw new IoError(Errno.ENOMEM, 'find memory for', directory);
  mkdirs(io, `${directory}/layers`);
  claim(reactor, options, false);
  removeLeftovers(reactor, options);
  const nodeReads = new NodeReads(reactor);
  const file = closing(nodeReads, () => MapFile.create(nodeReads, directory, 1, options.groupId));
  const core = openCore(reactor, options, () => content);
  const content = new Content(reactor, options, nodeReads, file, 1, ORIGIN, ORIGIN, core);
  content.journal.create(ORIGIN, epoch);
  must(io.fdatasync(content.journal.pool.current.fd), 'fdatasync', content.journal.pool.current.path);
  must(io.fdatasync(file.fd), 'fdatasync', file.path);
  createSlots(io, directory);
  const slot = encodeSlot(1, {
    groupId: options.groupId, at: ORIGIN, lowWater: ORIGIN, mapFile: 1, mapLength: file.length, nextLayer: 1, layers: [], devices: [], group: core.state(),
  });
  writeNow(reactor, slotPath(directory, 1), slot);
  must(io.syncDirectory(content.journal.options.directory), 'fsync', content.journal.options.directory);
  must(io.syncDirectory(directory), 'fsync', directory);
  return content;
}

/**
 * Opens what is on disk: newest checkpoint, then the journal from there to its
 * end, or to `extent.until`. Moves no data. Blocking; throws CorruptionError,
 * IoError.
 */
export function openContent(reactor: Reactor, options: ContentOptions, extent: JournalExtent): Content {
  const { io } = reactor;
  const { directory } = options;
  const found = findSlot(io, directory);
  if (found === undefined) throw new CorruptionError(`${directory}/checkpoint-0`, 0, 'there is no checkpoint, although the group was created');
  let { sequence, body } = found.slot;
  if (body.groupId !== options.groupId) throw new CorruptionError(slotPath(directory, sequence), 0, `this checkpoint belongs to group ${body.groupId}, not to ${options.groupId}`);
  const unnoted = extent.opening === undefined ? undefined : claim(reactor, options, true);
  if (extent.opening === 'accepted') ({ sequence, body } = leaveHistory(reactor, directory, found.slot));
  const nodeReads = new NodeReads(reactor);
  const file = closing(nodeReads, () => MapFile.open(nodeReads, directory, body.mapFile, options.groupId, body.mapLength));
  const core = openCore(reactor, options, () => content);
  const content = new Content(reactor, options, nodeReads, file, sequence, body.at, body.lowWater, core);
  try {
    content.final.load();
    content.store.layers.restore(body.nextLayer, body.layers);
    content.store.restore(body.devices);
    core.restore(body.group as CoreState);
    content.checkpointer.committedLocalLsn = body.local?.at.lsn ?? 0;
    content.local.open(body.local, extent.suspect === true);
    if ((extent.opening ?? 'journal') === 'journal') replay(reactor, content, body.at, body.lowWater, extent);
    else beginAnew(reactor, content, body.at);
    content.floorLsn = knownFinal(content);
    content.checkpointer.foundFiles(MapFile.numbers(io, directory), found.older?.body.mapFile);
    content.recovered = { ...content.recovered, unnoted, damagedSlot: found.damaged, staleFiles: content.store.layers.reconcile() };
    // Local devices are written in place, and the journal does not have their bytes.
    if (extent.suspect === true) content.store.layers.reread(isLocalDevice);
    else content.store.layers.syncCurrent(isLocalDevice);
  } catch (error) {
    content.close();
    throw error;
  }
  return content;
}

/** Executes the journal from the checkpoint at `at` on; below it, down to `lowWater`, finds again what is pending. */
function replay(reactor: Reactor, content: Content, at: Position, lowWater: Position, extent: JournalExtent): void {
  const { journal, core, local, final } = content;
  const { until } = extent;
  const own = (id: string): boolean => core.epochs.some((epoch) => epoch.id === id && epoch.node === content.options.node);
  let stopped: { readonly before: Position; readonly problem: string } | undefined;
  const result = recoverJournal(reactor, journal, {
    from: lowWater,
    durableLsn: until === undefined ? Math.max(at.lsn, extent.knownDurableLsn ?? 0, final.lsn) : 0,
    ...(until === undefined ? {} : { until }),
    ownEpoch: own,
    visit: (header, payloadAt, lsn) => {
      if (lsn < at.lsn) {
        core.repend(header, lsn);
        return;
      }
      if (stopped === undefined) {
        local.advance(lsn, core.epochs);
        const problem = core.apply(header, lsn, payloadAt);
        if (problem === undefined) return;
        stopped = { before: batchStart(reactor.arena.view, header), problem };
      }
      content.keep(header, payloadAt);
    },
  });
  // What a volatile journal holds is durable by the checkpoint alone.
  if (journal.volatile) journal.setPosition(result.end, at.lsn);
  content.rounds?.written(result.end.lsn);
  if (stopped !== undefined) content.stopApplying(stopped.before, stopped.problem);
  content.recovered = { ...content.recovered, batches: result.batches, tornAt: result.tornAt };
  const epoch = core.epoch;
  if (epoch !== undefined) journal.setEpoch(epoch);
  local.ended(content.appliedLsn, core.epochs);
}

/** Without a journal: the checkpoint has everything below `at`, and the history goes on from there. */
function beginAnew(reactor: Reactor, content: Content, at: Position): void {
  const { journal, core, local, final } = content;
  removeJournal(reactor.io, journal.options.directory);
  // A round that was noted and then not written: what will stand above may be undone again.
  must(final.setNow(Math.min(final.lsn, at.lsn)), 'note how far the layers are written in', content.options.directory);
  journal.create(at, core.epoch ?? NO_EPOCH);
  must(reactor.io.fdatasync(journal.pool.current.fd), 'fdatasync', journal.pool.current.path);
  must(reactor.io.syncDirectory(journal.options.directory), 'fsync', journal.options.directory);
  local.ended(at.lsn, core.epochs);
}

/** What a restart knows of `stable`: layers were written below the note, and a local device is ready only when its position is final. */
function knownFinal(content: Content): number {
  let lsn = content.final.lsn;
  for (const device of content.local.tree.all()) if (device.ready) lsn = Math.max(lsn, device.followsLsn);
  return lsn;
}

/** What `make` returns; when it throws, the buffers are given back. */
function closing(nodeReads: NodeReads, make: () => MapFile): MapFile {
  try {
    return make();
  } catch (error) {
    nodeReads.close();
    throw error;
  }
}

function openCore(reactor: Reactor, options: ContentOptions, content: () => Content): Core {
  const store = new Store(reactor, `${options.directory}/layers`, (position, bit) => content().checkpointer.file(bit).readNow(position), `${options.directory}/map-*`, options.maxOpenLayers);
  return new Core(reactor.arena, store);
}

/** A creation that was cut off left files behind; nothing in them was ever acknowledged. */
function removeLeftovers(reactor: Reactor, options: ContentOptions): void {
  const { io } = reactor;
  const { directory } = options;
  for (const name of ['checkpoint-0', 'checkpoint-1', FINAL_FILE]) io.unlink(`${directory}/${name}`);
  removeJournal(io, journalDirectoryOf(options));
  for (const name of io.list(`${directory}/layers`)) must(io.unlink(`${directory}/layers/${name}`), 'remove', `${directory}/layers/${name}`);
}

/**
 * The content is not what the history says at this position, and no node shall take it for that: the position gets
 * another chain, which no other node has. In both slots, durably: the old chain must not come back. Throws IoError.
 */
function leaveHistory(reactor: Reactor, directory: string, slot: FoundSlot): FoundSlot {
  const random = new DataView(reactor.io.randomBytes(8).buffer);
  const at: Position = { lsn: slot.body.at.lsn, chainHi: random.getUint32(0, true), chainLo: random.getUint32(4, true) };
  const body: SlotBody = { ...slot.body, at, lowWater: at };
  for (const sequence of [slot.sequence + 1, slot.sequence + 2]) writeNow(reactor, slotPath(directory, sequence), encodeSlot(sequence, body));
  return { sequence: slot.sequence + 2, body };
}

function writeNow(reactor: Reactor, path: string, bytes: Uint8Array): void {
  const { io, arena } = reactor;
  const fd = must(io.open(path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600), 'open', path);
  const at = arena.alloc(bytes.length);
  must(at < 0 ? -Errno.ENOMEM : 0, 'find memory for', path);
  arena.u8.set(bytes, at);
  let result = io.pwrite(fd, at, bytes.length, 0);
  if (result >= 0) result = io.fdatasync(fd);
  arena.release(at);
  io.close(fd);
  must(result, 'write', path);
}
