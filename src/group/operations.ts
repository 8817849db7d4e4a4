/**
 * What an operator asks for, judged and turned into the operation that goes
 * into the stream (DESIGN §4).
 *
 * Owns: the preconditions, which hold on the primary before anything is
 * journaled, and their sentences. Must not know: HTTP, how an operation is
 * executed.
 */

import { OperatorError } from '../base/errors.js';
import { formatSize } from '../base/units.js';
import type { Exports } from './exports.js';
import { MAX_REMOVED } from './record.js';
import type { Operation } from './record.js';
import type { Device, Tree } from './tree.js';

/** The state against which a request is judged. */
export interface Judged {
  readonly group: string;
  readonly tree: Tree;
  readonly exports: Exports;
}

function existing(judged: Judged, name: string): Device {
  const device = judged.tree.find(name);
  if (device === undefined) {
    throw new OperatorError('device/not-found', `group ${judged.group} has no device ${name}; lockstep list shows what there is`);
  }
  return device;
}

function free(judged: Judged, name: string): void {
  if (judged.tree.find(name) !== undefined) throw new OperatorError('device/exists', `${judged.group}/${name} exists already; choose another name or remove it first`);
}

/** `longestFile`: what the file system of the data directory can hold, bytes. */
export function planCreate(judged: Judged, name: string, sizeBytes: number, longestFile: number): Operation {
  free(judged, name);
  if (sizeBytes > longestFile) {
    throw new OperatorError('device/too-large',
      `${judged.group}/${name} would have ${formatSize(sizeBytes)}, and the file system of the data directory holds files of at most ${formatSize(longestFile)}; make it smaller, or put the data directory on a file system such as XFS`);
  }
  return { op: 'create', id: judged.tree.nextId, name, sizeBytes };
}

export function planSnapshot(judged: Judged, source: string, name: string): Operation {
  const device = existing(judged, source);
  const volume = judged.tree.get(device.volume) ?? device;
  free(judged, `${volume.name}@${name}`);
  return { op: 'snapshot', snapshots: [{ id: judged.tree.nextId, source: device.id, name }] };
}

/**
 * The target becomes what the source is. Clients that may write to it would go
 * on with what they cached of the old content: refused, unless they are to be
 * disconnected, which `disconnect` says the caller has to do first.
 */
export function planRestore(judged: Judged, targetName: string, sourceName: string, force: boolean): { operation: Operation; disconnect: number[] } {
  const target = existing(judged, targetName);
  const source = existing(judged, sourceName);
  const spelled = `${judged.group}/${targetName}`;
  if (target === source) throw new OperatorError('device/same', `${spelled} cannot be restored from itself; name a snapshot to restore it from`);
  if (target.volume !== source.volume) {
    throw new OperatorError('device/unrelated', `${judged.group}/${sourceName} is no snapshot of the volume that ${spelled} belongs to; a restore takes content from the same tree`);
  }
  if (target.protected) throw new OperatorError('device/protected', `${spelled} is protected`);
  const clients = judged.exports.clientsOf(target.id);
  if (clients > 0 && !force) {
    throw new OperatorError('device/busy',
      `${spelled} has ${clients} NBD client${clients === 1 ? '' : 's'} that would not notice that its content changes: unmount and disconnect ${clients === 1 ? 'it' : 'them'}, or use --force to have the connection${clients === 1 ? '' : 's'} closed first`);
  }
  return { operation: { op: 'assign', verb: 'restore', target: target.id, source: source.id }, disconnect: clients > 0 ? [target.id] : [] };
}

export function planRemove(judged: Judged, name: string, withSnapshots: boolean, force: boolean): { operation: Operation; disconnect: number[] } {
  const device = existing(judged, name);
  const doomed: Device[] = [];
  if (device.kind === 'volume') {
    const snapshots = [...judged.tree.all()].filter((other) => other.volume === device.id && other !== device);
    if (snapshots.length > 0 && !withSnapshots) {
      throw new OperatorError('device/has-snapshots', `${judged.group}/${name} has ${snapshots.length} snapshot${snapshots.length === 1 ? '' : 's'}; remove them first, or use --with-snapshots`);
    }
    // Youngest first: a device goes before the one that it was taken from.
    doomed.push(...snapshots.sort((a, b) => b.id - a.id));
  }
  doomed.push(device);
  if (doomed.length > MAX_REMOVED) {
    throw new OperatorError('operation/too-large', `${judged.group}/${name} has ${doomed.length - 1} snapshots, more than one operation can remove; remove some of them first`);
  }
  const kept = doomed.find((one) => one.protected);
  if (kept !== undefined) throw new OperatorError('device/protected', `${judged.group}/${judged.tree.nameOf(kept)} is protected`);
  const busy = doomed.filter((one) => judged.exports.clientsOf(one.id) > 0);
  if (busy.length > 0 && !force) {
    throw new OperatorError('device/busy', `${judged.group}/${judged.tree.nameOf(busy[0])} has NBD clients: disconnect them, or use --force to have their connections closed`);
  }
  return { operation: { op: 'remove', devices: doomed.map((one) => one.id) }, disconnect: busy.map((one) => one.id) };
}
