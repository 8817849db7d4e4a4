/**
 * The status of the data path as plain data (control/schema/status.ts): what is true
 * now and what to do about it. Reads only.
 */

import { VERSION } from '../base/version.js';
import { BLOCK_BYTES } from '../base/units.js';
import type { GroupStatus, NodeStatus } from '../control/schema/status.js';
import type { DeviceEntry } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import type { LocalDevice } from '../group/local/tree.js';
import { Meter } from '../group/operations/meter.js';
import type { Device } from '../group/tree/device.js';
import { cursorEntry } from './cursors.js';
import type { Imports } from './carry-import.js';
import type { BrokenGroup, DataPath } from './datapath.js';
import { meteredSums } from './metering.js';

/** Replay speed assumed until one was measured: a slow disk's sequential read. */
const REPLAY_BYTES_PER_SECOND = 400e6;

export function deviceEntry(group: Group, device: Device): DeviceEntry {
  return {
    id: device.id, name: group.tree.nameOf(device), kind: device.kind, parent: device.parent === 0 ? null : device.parent, sizeBytes: device.sizeBytes,
    protected: device.protected, set: device.set === '' ? null : device.set, creationLsn: device.createdLsn, creationTimeMs: device.createdMs, continuity: device.continuity,
    clients: group.exports.clientsOf(device.id),
  };
}

/** A local snapshot as an entry: its creation LSN is the group's that it follows. */
export function localEntry(group: Group, device: LocalDevice): DeviceEntry {
  return {
    id: device.id, name: device.name, kind: 'local', parent: device.source, sizeBytes: device.sizeBytes, protected: false, set: null,
    creationLsn: device.followsLsn, creationTimeMs: device.createdMs, continuity: `local:${device.changedLsn}`, clients: group.exports.clientsOf(device.id),
    ...(device.sealedLsn === 0 ? {} : { seal: { digest: device.digest === '' ? null : device.digest } }),
  };
}

/** All devices of the group on this node. */
export function deviceEntries(group: Group): DeviceEntry[] {
  const locals = group.local === undefined ? [] : [...group.local.tree.all()];
  return [...[...group.tree.all()].map((device) => deviceEntry(group, device)), ...locals.map((device) => localEntry(group, device))];
}

export function nodeStatus(path: DataPath, startedMs: number, imports: Imports): NodeStatus {
  return {
    node: path.config.node, version: VERSION, pid: process.pid, startedMs, dataDirectory: path.config.dataDirectory, listen: path.listening(),
    groups: [...[...path.blocks.all()].map((group) => groupStatus(path, group, imports)), ...path.broken.map((broken) => brokenStatus(path, broken))],
  };
}

function groupStatus(path: DataPath, group: Group, imports: Imports): GroupStatus {
  const links = path.links.status(group.name);
  const errors: string[] = [];
  const stalled = group.stallReason();
  if (stalled !== null) errors.push(stalled);
  if (group.role === 'stopped' || group.role === 'fenced') errors.push(group.roleReason);
  const admission = group.space.refusal ?? 'open';
  if (admission !== 'open') errors.push(admission);
  const common = {
    name: group.name,
    role: group.role === 'recovering' ? ('starting' as const) : group.role,
    roleReason: group.roleReason,
    operations: meteredSums(group.meter),
    links,
    cursors: group.hasContent ? group.retention.cursors.all().map((cursor) => cursorEntry(group, cursor.name)) : [],
    import: imports.importing(group),
    devices: deviceEntries(group),
    errors,
  };
  if (!group.hasContent) return { ...common, ...nothing(path, group.name) };
  const { journal, checkpointer, destager, store, walker, mapTasks, applyProblem } = group.content;
  if (applyProblem !== undefined) errors.push(`stopped applying, serves the last state read-only and keeps what it receives: ${applyProblem}`);
  if (destager.lastError !== undefined) errors.push(`destaging fails and is tried again: ${destager.lastError}`);
  if (checkpointer.lastError !== undefined) errors.push(`checkpoints fail and are tried again: ${checkpointer.lastError}`);
  if (walker.lastError !== undefined) errors.push(walker.lastError);
  errors.push(...group.local?.problems() ?? []);
  if (mapTasks.lastError !== undefined) errors.push(`sizes, or what an operation changed, could not be counted: ${mapTasks.lastError}`);
  const epoch = group.content.core.epoch;
  const { pool } = journal;
  const used = journal.appendedLsn - pool.firstLsn;
  const toReplay = journal.appendedLsn - checkpointer.lowWater.lsn;
  return {
    ...common,
    epoch: { number: epoch?.number ?? 0, id: epoch?.id ?? '', lossless: epoch?.lossless ?? true },
    lsn: {
      appended: journal.appendedLsn, durable: journal.durableLsn, applied: group.appliedLsn, stable: group.stableLsn,
      checkpoint: checkpointer.committedAt.lsn, lowWater: Math.min(checkpointer.lowWater.lsn, group.retainedLsn()),
    },
    journal: { sizeBytes: pool.maxSegments * pool.segmentBytes, usedBytes: used, segments: pool.fileCount, stalled, heldSeconds: group.ingest?.heldSeconds ?? null, volatile: journal.volatile, atRiskBytes: journal.appendedLsn - journal.durableLsn },
    destage: {
      pendingBlocks: store.pending.blocks, pendingBytes: store.pending.blocks * BLOCK_BYTES, roundsDone: destager.roundsDone,
      behindBytes: group.appliedLsn - group.content.destagedLsn,
    },
    store: {
      mapBytes: store.map.memoryBytes + store.pending.memoryBytes, mapLimitBytes: group.options.mapMemoryBytes,
      metadataBytesWritten: checkpointer.bytesWritten, layers: store.layers.count, replaySecondsEstimate: toReplay / REPLAY_BYTES_PER_SECOND,
      freeBytes: group.space.freeBytes, admission,
    },
  };
}

function nothing(path: DataPath, name: string): Pick<GroupStatus, 'epoch' | 'lsn' | 'journal' | 'destage' | 'store'> {
  const config = path.config.groups.find((group) => group.name === name);
  return {
    epoch: { number: 0, id: '', lossless: true },
    lsn: { appended: 0, durable: 0, applied: 0, stable: 0, checkpoint: 0, lowWater: 0 },
    journal: { sizeBytes: config?.journal.size ?? 0, usedBytes: 0, segments: 0, stalled: null, heldSeconds: null, volatile: config?.journal.volatile ?? false, atRiskBytes: 0 },
    destage: { pendingBlocks: 0, pendingBytes: 0, roundsDone: 0, behindBytes: 0 },
    store: {
      mapBytes: 0, mapLimitBytes: config?.store.mapMemory ?? 0, metadataBytesWritten: 0, layers: 0, replaySecondsEstimate: 0, freeBytes: 0, admission: 'open',
    },
  };
}

function brokenStatus(path: DataPath, broken: BrokenGroup): GroupStatus {
  return {
    name: broken.name, role: 'stopped', roleReason: broken.problem, links: [], cursors: [], import: null, operations: meteredSums(new Meter()), devices: [],
    errors: broken.refused ? [broken.problem] : [`cannot be opened: ${broken.problem}. Its files were left as they are: restore them, or build this node anew from a healthy one (README, "Rebuild a secondary")`],
    ...nothing(path, broken.name),
  };
}
