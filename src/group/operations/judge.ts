/**
 * What an operator asks for, judged and turned into the operation that goes
 * into the stream (DESIGN §4).
 *
 * Owns: the preconditions, which hold on the primary before anything is
 * journaled, and their sentences. Must not know: HTTP, how an operation is
 * executed.
 *
 * A name that begins with '@' means a set: all that one group snapshot made.
 */

import { OperatorError } from '../../base/errors.js';
import { parseSetName } from '../../base/names.js';
import { formatSize, MAX_RANGES } from '../../base/units.js';
import type { Exports } from '../requests/exports.js';
import { MAX_REMOVED, MAX_TOGETHER } from '../tree/record.js';
import type { Operation, Range } from '../tree/record.js';
import type { Tree } from '../tree/tree.js';
import type { Device } from '../tree/device.js';
import { rangesProblem } from '../tree/change.js';

/** The state against which a request is judged. */
export interface Judged {
  readonly group: string;
  readonly tree: Tree;
  readonly exports: Exports;
}

/** An operation whose preconditions hold, once these devices' clients are gone. */
export interface Plan {
  readonly operation: Operation;
  /** Devices whose clients have to be disconnected first; the operator has agreed to that. */
  readonly disconnect: readonly number[];
  /** What the operator should know of it, beside that it was done. */
  readonly notice?: string;
}

function existing(judged: Judged, name: string): Device {
  const device = judged.tree.find(name);
  if (device === undefined) {
    throw new OperatorError('device/not-found', `group ${judged.group} has no device ${name}; lockstep list shows what there is`);
  }
  return device;
}

/** The device, or the members of the set. */
function named(judged: Judged, name: string): readonly Device[] {
  const set = parseSetName(name);
  if (set === undefined) return [existing(judged, name)];
  const members = judged.tree.membersOf(set);
  if (members.length === 0) throw new OperatorError('set/not-found', `group ${judged.group} has no group snapshot ${name}; lockstep list shows what there is`);
  return members;
}

function free(judged: Judged, name: string): void {
  if (judged.tree.find(name) !== undefined) throw new OperatorError('device/exists', `${judged.group}/${name} exists already; choose another name or remove it first`);
}

function spelled(judged: Judged, device: Device): string {
  return `${judged.group}/${judged.tree.nameOf(device)}`;
}

function volumeOf(judged: Judged, device: Device): Device {
  return judged.tree.get(device.volume) ?? device;
}

function unprotected(judged: Judged, devices: readonly Device[]): void {
  const kept = devices.find((device) => device.protected);
  if (kept === undefined) return;
  const name = spelled(judged, kept);
  throw new OperatorError('device/protected', `${name} is protected; if that is no longer wanted: lockstep unprotect ${name}`);
}

/**
 * A member of a set that is changed by itself would no longer be of the same point as the others. `forced`: what
 * --force does. `together`: the command, without the set, that does the same to all members; undefined where there is none.
 */
function alone(judged: Judged, device: Device, force: boolean, forced: string, together?: { readonly what: string; readonly command: string; readonly behind?: string }): void {
  if (device.set === '' || force) return;
  const set = `${judged.group}/@${device.set}`;
  const all = together === undefined ? '' : `to ${together.what} all of them: lockstep ${together.command} ${set}${together.behind ?? ''}; `;
  throw new OperatorError('device/in-set', `${spelled(judged, device)} belongs to the group snapshot @${device.set}, whose members are of one point: ${all}--force ${forced}`);
}

/** Those of `devices` that have clients; refused unless they are to be disconnected. */
function clientsToDisconnect(judged: Judged, devices: readonly Device[], what: string, force: boolean): number[] {
  const busy = devices.filter((device) => judged.exports.clientsOf(device.id) > 0);
  if (busy.length > 0 && !force) {
    const clients = judged.exports.clientsOf(busy[0].id);
    const one = clients === 1;
    throw new OperatorError('device/busy',
      `${spelled(judged, busy[0])} has ${clients} NBD client${one ? '' : 's'} that would not notice that ${what}: unmount and disconnect ${one ? 'it' : 'them'} (lockstep detach, on that machine), or use --force to have the connection${one ? '' : 's'} closed first`);
  }
  return busy.map((device) => device.id);
}

function fitsFile(name: string, sizeBytes: number, longestFile: number): void {
  if (sizeBytes <= longestFile) return;
  throw new OperatorError('device/too-large',
    `${name} would have ${formatSize(sizeBytes)}, and the file system of the data directory holds files of at most ${formatSize(longestFile)}; make it smaller, or put the data directory on a file system such as XFS`);
}

/** `longestFile`: what the file system of the data directory can hold, bytes. */
export function planCreate(judged: Judged, name: string, sizeBytes: number, longestFile: number): Operation {
  free(judged, name);
  fitsFile(`${judged.group}/${name}`, sizeBytes, longestFile);
  return { op: 'create', id: judged.tree.nextId, name, sizeBytes };
}

/** `source` null: all volumes of the group at one point, as a set. */
export function planSnapshot(judged: Judged, source: string | null, name: string): Operation {
  const { tree } = judged;
  if (source !== null) {
    const device = existing(judged, source);
    free(judged, `${volumeOf(judged, device).name}@${name}`);
    return { op: 'snapshot', set: '', snapshots: [{ id: tree.nextId, source: device.id, name }] };
  }
  if (tree.membersOf(name).length > 0) throw new OperatorError('set/exists', `group ${judged.group} has a group snapshot @${name} already; choose another name or remove it first`);
  const volumes = [...tree.all()].filter((device) => device.kind === 'volume');
  if (volumes.length === 0) throw new OperatorError('group/empty', `group ${judged.group} has no volumes; create one first`);
  if (volumes.length > MAX_TOGETHER) throw new OperatorError('operation/too-large', `group ${judged.group} has ${volumes.length} volumes, and one group snapshot holds at most ${MAX_TOGETHER}`);
  for (const volume of volumes) free(judged, `${volume.name}@${name}`);
  return { op: 'snapshot', set: name, snapshots: volumes.map((volume, i) => ({ id: tree.nextId + i, source: volume.id, name })) };
}

/**
 * The target becomes what the source is. Clients that may write to it would go
 * on with what they cached of the old content: refused, unless they are to be
 * disconnected. With a set as source (and no target) every volume becomes what
 * its member of the set is.
 */
export function planRestore(judged: Judged, targetName: string | null, sourceName: string, ranges: readonly Range[], force: boolean): Plan {
  if (parseSetName(sourceName) !== undefined) {
    if (targetName !== null) throw new OperatorError('usage', `${sourceName} restores every volume of group ${judged.group} that it holds; name no target, or name one member as the source`);
    const pairs = named(judged, sourceName).map((member) => ({ target: volumeOf(judged, member), source: member }));
    return planAssign(judged, 'restore', pairs, ranges, force);
  }
  if (targetName === null) throw new OperatorError('usage', 'name the device to restore, or a group snapshot (@NAME) as the source to restore them all');
  const target = existing(judged, targetName);
  const source = existing(judged, sourceName);
  if (target === source) throw new OperatorError('device/same', `${spelled(judged, target)} cannot be restored from itself; name a snapshot to restore it from`);
  if (target.kind === 'snapshot') alone(judged, target, force, overwrites('restores'));
  related(judged, target, source, 'a restore');
  return planAssign(judged, 'restore', [{ target, source }], ranges, force);
}

function overwrites(does: string): string {
  return `${does} this member alone, and disconnects its clients`;
}

/** A snapshot, or every member of a set, becomes what it was taken from is now. */
export function planRefresh(judged: Judged, name: string, force: boolean): Plan {
  const members = named(judged, name);
  if (parseSetName(name) === undefined) alone(judged, members[0], force, overwrites('refreshes'), { what: 'refresh', command: 'refresh' });
  const pairs = members.map((target) => {
    if (target.kind === 'volume') throw new OperatorError('device/not-snapshot', `${spelled(judged, target)} is a volume and was taken from nothing; to bring back an older state: lockstep restore`);
    return { target, source: judged.tree.get(target.parent)! };
  });
  return planAssign(judged, 'refresh', pairs, [], force);
}

/** One snapshot becomes what another snapshot of the same volume is. */
export function planSync(judged: Judged, targetName: string, sourceName: string, ranges: readonly Range[], force: boolean): Plan {
  const [target, source] = [existing(judged, targetName), existing(judged, sourceName)];
  for (const device of [target, source]) {
    if (device.kind === 'volume') throw new OperatorError('device/not-snapshot', `${spelled(judged, device)} is a volume, and sync is between two snapshots; use restore to change a volume, refresh to bring a snapshot up to date`);
  }
  if (target === source) throw new OperatorError('device/same', `${spelled(judged, target)} is what it is; name another snapshot to sync it to`);
  alone(judged, target, force, overwrites('syncs'));
  related(judged, target, source, 'a sync');
  return planAssign(judged, 'sync', [{ target, source }], ranges, force);
}

function related(judged: Judged, target: Device, source: Device, what: string): void {
  if (target.volume === source.volume) return;
  throw new OperatorError('device/unrelated',
    `${spelled(judged, source)} is no snapshot of the volume that ${spelled(judged, target)} belongs to; ${what} takes content from the same tree (a clone makes a volume of any snapshot)`);
}

function planAssign(judged: Judged, verb: 'restore' | 'refresh' | 'sync', pairs: readonly { target: Device; source: Device }[], ranges: readonly Range[], force: boolean): Plan {
  const targets = pairs.map((pair) => pair.target);
  unprotected(judged, targets);
  if (ranges.length > MAX_RANGES) throw new OperatorError('operation/too-large', `${ranges.length} ranges are more than one operation takes (${MAX_RANGES}); do it in parts`);
  if (ranges.length > 0) {
    if (pairs.length !== 1) throw new OperatorError('usage', 'ranges are of one device; a group snapshot is restored as a whole');
    const [{ target, source }] = pairs;
    const problem = rangesProblem(ranges, Math.min(target.sizeBytes, source.sizeBytes));
    if (problem !== undefined) throw new OperatorError('range/invalid', `${spelled(judged, target)} cannot be changed like this: ${problem}`);
  }
  const disconnect = clientsToDisconnect(judged, targets, 'its content changes', force);
  return {
    operation: { op: 'assign', verb, pairs: pairs.map(({ target, source }) => ({ target: target.id, source: source.id })), ranges: ranges.map(([offset, length]) => [offset, length]) },
    disconnect,
  };
}

/** `mayHoldData`: whether there may be data from a byte of the device on. */
export function planResize(judged: Judged, name: string, sizeBytes: number, force: boolean, longestFile: number, mayHoldData: (device: number, fromByte: number) => boolean): Plan {
  const device = existing(judged, name);
  const words = spelled(judged, device);
  if (sizeBytes === device.sizeBytes) throw new OperatorError('device/same-size', `${words} has ${formatSize(sizeBytes)} already`);
  fitsFile(words, sizeBytes, longestFile);
  const operation: Operation = { op: 'resize', device: device.id, sizeBytes };
  if (sizeBytes > device.sizeBytes) return { operation, disconnect: [] };
  alone(judged, device, force, 'shrinks this member alone, whatever lies behind its new end, and disconnects its clients');
  unprotected(judged, [device]);
  if (!force && mayHoldData(device.id, sizeBytes)) {
    throw new OperatorError('device/has-data', `${words} may hold data behind ${formatSize(sizeBytes)}, which would be lost for good (snapshots keep theirs): shrink what is on it first, then use --force`);
  }
  return { operation, disconnect: clientsToDisconnect(judged, [device], 'its end is cut off', force) };
}

/** So many are named when members of sets go. */
const SETS_NAMED = 5;

export function planRemove(judged: Judged, name: string, withSnapshots: boolean, force: boolean): Plan {
  const { tree } = judged;
  const doomed: Device[] = [];
  for (const device of named(judged, name)) {
    if (device.kind === 'volume') {
      const snapshots = [...tree.all()].filter((other) => other.volume === device.id && other !== device);
      if (snapshots.length > 0 && !withSnapshots) {
        throw new OperatorError('device/has-snapshots', `${judged.group}/${name} has ${snapshots.length} snapshot${snapshots.length === 1 ? '' : 's'}; remove them first, or use --with-snapshots`);
      }
      // Youngest first: a device goes before the one that it was taken from.
      doomed.push(...snapshots.sort((a, b) => b.id - a.id));
    } else if (parseSetName(name) === undefined) {
      alone(judged, device, force, 'removes this member alone, and disconnects its clients', { what: 'remove', command: 'remove' });
    }
    doomed.push(device);
  }
  if (doomed.length > MAX_REMOVED) {
    throw new OperatorError('operation/too-large', `${judged.group}/${name} has ${doomed.length - 1} snapshots, more than one operation can remove; remove some of them first`);
  }
  unprotected(judged, doomed);
  const plan = { operation: { op: 'remove', devices: doomed.map((one) => one.id) }, disconnect: clientsToDisconnect(judged, doomed, 'it is removed', force) } as const;
  const notice = withSnapshots ? setsReduced(judged, name, doomed) : undefined;
  return notice === undefined ? plan : { ...plan, notice };
}

/** What is left of the sets that a volume's snapshots were members of: restoring one restores less from now on. */
function setsReduced(judged: Judged, name: string, doomed: readonly Device[]): string | undefined {
  const sets = [...new Set(doomed.flatMap(({ set }) => (set === '' ? [] : [set])))];
  if (sets.length === 0) return undefined;
  const left = sets.slice(0, SETS_NAMED).map((set) => {
    const members = judged.tree.membersOf(set).filter((member) => !doomed.includes(member)).length;
    return `@${set} has ${members === 0 ? 'none left and is gone' : `${members} left`}`;
  });
  const more = sets.length > SETS_NAMED ? `, and ${sets.length - SETS_NAMED} more group snapshots` : '';
  return `with ${judged.group}/${name} its members of group snapshots were removed: of members ${left.join(', ')}${more}`;
}

export function planRename(judged: Judged, name: string, newName: string, force: boolean): Operation {
  const devices = named(judged, name);
  const set = parseSetName(name);
  if (set === undefined) alone(judged, devices[0], force, 'renames this member alone, which stays one of the set', { what: 'rename', command: 'rename', behind: ` ${newName}` });
  else if (judged.tree.membersOf(newName).length > 0) throw new OperatorError('set/exists', `group ${judged.group} has a group snapshot @${newName} already; choose another name`);
  for (const device of devices) free(judged, device.kind === 'volume' ? newName : `${volumeOf(judged, device).name}@${newName}`);
  return { op: 'rename', set: set === undefined ? '' : newName, devices: devices.map((device) => device.id), name: newName };
}

/** A protected device is not removed, restored, refreshed or shrunk; a protected snapshot is not written either. */
export function planProtect(judged: Judged, name: string, on: boolean, force: boolean): Plan {
  const devices = named(judged, name);
  const done = devices.every((device) => device.protected === on);
  if (done) throw new OperatorError('device/same', `${judged.group}/${name} is ${on ? 'protected already' : 'not protected'}`);
  const closing = on ? devices.filter((device) => device.kind === 'snapshot' && !device.protected) : [];
  return { operation: { op: 'protect', devices: devices.map((device) => device.id), on }, disconnect: clientsToDisconnect(judged, closing, 'it becomes read-only', force) };
}

export function planClone(judged: Judged, sourceName: string, name: string): Operation {
  const source = existing(judged, sourceName);
  if (source.kind === 'volume') {
    throw new OperatorError('device/not-snapshot', `${spelled(judged, source)} is a volume; a clone is made of a snapshot: lockstep snapshot ${spelled(judged, source)}@NAME, then clone that`);
  }
  free(judged, name);
  return { op: 'clone', id: judged.tree.nextId, source: source.id, name };
}
