/**
 * What must become of an operator's request, told from the model alone: the
 * reasons for which it has to be refused or, when there are none, the operation
 * that has to appear in the stream.
 *
 * Owns: the rules as a user reads them in the README. Must not know: how the
 * product decides (src/group/operations/judge.ts), so that each checks the other.
 */
import type { OperationRequest, Ranges } from '../../src/control/port.js';
import type { Operation } from '../../src/group/tree/record.js';
import { BLOCK } from './devices.js';
import type { Device, Devices } from './devices.js';

type AnyDevice = Device<unknown>;
type State = Devices<unknown>;

export interface Verdict {
  /** Codes of all reasons against it; the product names one of them. Empty: it must be done. */
  readonly against: ReadonlySet<string>;
  /** Codes that the product may refuse with although nothing is wrong, for it may not know for certain. */
  readonly doubtful: ReadonlySet<string>;
  /** What has to be in the stream; undefined when there is a reason against it. */
  readonly operation: Operation | undefined;
  /** Devices whose clients are disconnected before. */
  readonly disconnects: readonly number[];
}

const MOST_RANGES = 64;

/** Collects reasons; each rule adds its own, whatever the others say. */
class Judgement {
  readonly against = new Set<string>();
  readonly doubtful = new Set<string>();
  private readonly closing = new Set<number>();

  constructor(readonly state: State, private readonly clientsOf: (id: number) => number, private readonly force: boolean) {}

  unless(fine: boolean, code: string): void {
    if (!fine) this.against.add(code);
  }

  one(name: string): AnyDevice | undefined {
    const device = this.state.find(name);
    this.unless(device !== undefined, 'device/not-found');
    return device;
  }

  /** A device by name, or a set by @NAME. A member that is named by itself needs force. */
  some(name: string): readonly AnyDevice[] {
    if (!name.startsWith('@')) {
      const device = this.one(name);
      if (device === undefined) return [];
      this.unless(device.set === '' || this.force, 'device/in-set');
      return [device];
    }
    const members = this.state.membersOf(name.slice(1));
    this.unless(members.length > 0, 'set/not-found');
    return members;
  }

  nameIsFree(name: string): void {
    this.unless(this.state.find(name) === undefined, 'device/exists');
  }

  notProtected(devices: readonly AnyDevice[]): void {
    this.unless(devices.every((one) => !one.protected), 'device/protected');
  }

  /** Their clients would not notice. */
  withoutClients(devices: readonly AnyDevice[]): void {
    for (const one of devices) {
      if (this.clientsOf(one.id) === 0) continue;
      this.unless(this.force, 'device/busy');
      this.closing.add(one.id);
    }
  }

  ranges(ranges: Ranges, target: AnyDevice, source: AnyDevice): void {
    this.unless(ranges.length <= MOST_RANGES, 'operation/too-large');
    const end = Math.min(target.sizeBytes, source.sizeBytes);
    let last = 0;
    for (const [offset, length] of ranges) {
      this.unless(offset % BLOCK === 0 && length % BLOCK === 0 && length > 0 && offset >= last && offset + length <= end, 'range/invalid');
      last = offset + length;
    }
  }

  volumeOf(device: AnyDevice): AnyDevice {
    return this.state.devices.get(device.volume)!;
  }

  end(operation: () => Operation): Verdict {
    const { against, doubtful } = this;
    return { against, doubtful, operation: against.size > 0 ? undefined : operation(), disconnects: [...this.closing].sort((a, b) => a - b) };
  }
}

/** `clientsOf`: NBD connections of a device now. `certain`: whether a block that the model has holds data for certain. */
export function judge<B>(state: Devices<B>, request: OperationRequest, clientsOf: (id: number) => number, certain: (content: B) => boolean = () => true): Verdict {
  const j = new Judgement(state, clientsOf, 'force' in request && request.force);
  switch (request.op) {
    case 'adopt':
      throw new Error('the model has no local snapshots, and draws no adoption');
    case 'create':
      j.nameIsFree(request.name);
      return j.end(() => ({ op: 'create', id: state.nextId, name: request.name, sizeBytes: request.sizeBytes }));
    case 'clone': {
      const source = j.one(request.source);
      j.unless(source?.kind !== 'volume', 'device/not-snapshot');
      j.nameIsFree(request.name);
      return j.end(() => ({ op: 'clone', id: state.nextId, source: source!.id, name: request.name }));
    }
    case 'snapshot':
      return request.source === null ? snapshotOfGroup(j, request.name) : snapshotOfDevice(j, request.source, request.name);
    case 'restore':
      if (request.source.startsWith('@')) return restoreSet(j, request);
      j.unless(request.target !== null, 'usage');
      return assignOne(j, 'restore', request.target ?? '', request.source, request.ranges);
    case 'sync':
      return assignOne(j, 'sync', request.target, request.source, request.ranges);
    case 'refresh': {
      const targets = j.some(request.target);
      j.unless(targets.every((one) => one.kind === 'snapshot'), 'device/not-snapshot');
      j.notProtected(targets);
      j.withoutClients(targets);
      return j.end(() => ({ op: 'assign', verb: 'refresh', pairs: targets.map((one) => ({ target: one.id, source: one.parent })), ranges: [] }));
    }
    case 'resize': {
      const device = j.one(request.device);
      if (device !== undefined) size(j, device, request.sizeBytes, request.force, certain as (content: unknown) => boolean);
      return j.end(() => ({ op: 'resize', device: device!.id, sizeBytes: request.sizeBytes }));
    }
    case 'remove':
      return remove(j, request.device, request.withSnapshots);
    case 'rename': {
      const devices = j.some(request.device);
      const isSet = request.device.startsWith('@');
      if (isSet) j.unless(state.membersOf(request.name).length === 0, 'set/exists');
      for (const one of devices) j.nameIsFree(one.kind === 'volume' ? request.name : `${j.volumeOf(one).name}@${request.name}`);
      return j.end(() => ({ op: 'rename', set: isSet ? request.name : '', devices: devices.map((one) => one.id), name: request.name }));
    }
    case 'protect': {
      // Protecting one member changes nothing of what the set is.
      const devices = request.device.startsWith('@') ? j.some(request.device) : [j.one(request.device)].filter((one) => one !== undefined);
      j.unless(devices.length === 0 || devices.some((one) => one.protected !== request.on), 'device/same');
      if (request.on) j.withoutClients(devices.filter((one) => one.kind === 'snapshot' && !one.protected));
      return j.end(() => ({ op: 'protect', devices: devices.map((one) => one.id), on: request.on }));
    }
  }
}

function snapshotOfDevice(j: Judgement, sourceName: string, name: string): Verdict {
  const source = j.one(sourceName);
  if (source !== undefined) j.nameIsFree(`${j.volumeOf(source).name}@${name}`);
  return j.end(() => ({ op: 'snapshot', set: '', snapshots: [{ id: j.state.nextId, source: source!.id, name }] }));
}

function snapshotOfGroup(j: Judgement, name: string): Verdict {
  const volumes = [...j.state.devices.values()].filter((one) => one.kind === 'volume').sort((a, b) => a.id - b.id);
  j.unless(volumes.length > 0, 'group/empty');
  j.unless(j.state.membersOf(name).length === 0, 'set/exists');
  for (const volume of volumes) j.nameIsFree(`${volume.name}@${name}`);
  return j.end(() => ({ op: 'snapshot', set: name, snapshots: volumes.map((volume, i) => ({ id: j.state.nextId + i, source: volume.id, name })) }));
}

function restoreSet(j: Judgement, request: { target: string | null; source: string; ranges: Ranges }): Verdict {
  const members = j.some(request.source);
  const targets = members.map((one) => j.volumeOf(one));
  j.unless(request.target === null, 'usage');
  if (request.ranges.length > 0 && members.length > 1) j.unless(false, 'usage');
  j.unless(request.ranges.length <= MOST_RANGES, 'operation/too-large');
  if (members.length === 1) j.ranges(request.ranges, targets[0], members[0]);
  j.notProtected(targets);
  j.withoutClients(targets);
  return j.end(() => assign('restore', members.map((one) => [one.volume, one.id]), request.ranges));
}

function assignOne(j: Judgement, verb: 'restore' | 'sync', targetName: string, sourceName: string, ranges: Ranges): Verdict {
  const target = j.one(targetName);
  const source = j.one(sourceName);
  if (target !== undefined && source !== undefined) {
    j.unless(target !== source, 'device/same');
    j.unless(target.volume === source.volume, 'device/unrelated');
    if (verb === 'sync') j.unless(target.kind === 'snapshot' && source.kind === 'snapshot', 'device/not-snapshot');
    j.some(targetName);
    j.ranges(ranges, target, source);
    j.notProtected([target]);
    j.withoutClients([target]);
  }
  return j.end(() => assign(verb, [[target!.id, source!.id]], ranges));
}

function assign(verb: 'restore' | 'sync', pairs: readonly (readonly [number, number])[], ranges: Ranges): Operation {
  return { op: 'assign', verb, pairs: pairs.map(([target, source]) => ({ target, source })), ranges: ranges.map(([offset, length]) => [offset, length]) };
}

function size(j: Judgement, device: AnyDevice, sizeBytes: number, force: boolean, certain: (content: unknown) => boolean): void {
  j.unless(sizeBytes !== device.sizeBytes, 'device/same-size');
  if (sizeBytes >= device.sizeBytes) return;
  j.unless(device.set === '' || force, 'device/in-set');
  j.notProtected([device]);
  j.withoutClients([device]);
  if (force) return;
  let holds = false;
  for (const [block, content] of device.blocks) holds ||= block * BLOCK >= sizeBytes && certain(content);
  // Zeros that were written in pieces over data may count as data.
  if (holds) j.unless(false, 'device/has-data');
  else j.doubtful.add('device/has-data');
}

function remove(j: Judgement, name: string, withSnapshots: boolean): Verdict {
  const named = name.startsWith('@') || j.state.find(name)?.kind !== 'volume' ? j.some(name) : [j.one(name)!];
  const doomed: AnyDevice[] = [];
  for (const one of named) {
    if (one.kind === 'volume') {
      // Youngest first: a device goes before the one that it was taken from.
      const family = [...j.state.devices.values()].filter((other) => other.volume === one.id && other !== one).sort((a, b) => b.id - a.id);
      j.unless(family.length === 0 || withSnapshots, 'device/has-snapshots');
      doomed.push(...family);
    }
    doomed.push(one);
  }
  j.notProtected(doomed);
  j.withoutClients(doomed);
  return j.end(() => ({ op: 'remove', devices: doomed.map((one) => one.id) }));
}
