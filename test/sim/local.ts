/**
 * Local devices of a simulated node, and what they must hold: after a kill what
 * was acknowledged, after power loss what a disk promises (what was flushed, and
 * of later writes any sector of them or not).
 *
 * Owns: requests to local devices, operations on them, the model. Must not know:
 * the group's model but for the content of what a local device is taken of.
 */
import { RequestFlag, RequestKind } from '../../src/group/requests/requests.js';
import type { LocalRecord } from '../../src/group/local/record.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { OperationReply } from '../../src/control/schema/replies.js';
import { isLocalDevice } from '../../src/base/units.js';
import { GROUP } from './cluster.js';
import type { SimHost } from './cluster.js';
import { SimCrash } from './faults.js';
import { BLOCK, ZERO_BLOCK } from './model.js';
import type { CrashKind } from './world.js';

const SECTOR = 512;
const LIMIT = { us: 120e6 };

interface Version {
  readonly data: Uint8Array;
  acknowledged: boolean;
}

class Device {
  readonly sure = new Map<number, Uint8Array>();
  /** Versions since what is sure, in the order in which they were asked for. */
  readonly later = new Map<number, Version[]>();
  reported = false;
  removing = false;
  removed = false;

  constructor(readonly id: number, readonly name: string, public blocks: number) {}

  current(block: number): Uint8Array {
    const versions = this.later.get(block) ?? [];
    for (let i = versions.length - 1; i >= 0; i--) if (versions[i].acknowledged) return versions[i].data;
    return this.sure.get(block) ?? ZERO_BLOCK;
  }

  add(block: number, data: Uint8Array, acknowledged = false): Version {
    const version = { data, acknowledged };
    const versions = this.later.get(block);
    if (versions === undefined) this.later.set(block, [version]);
    else versions.push(version);
    return version;
  }

  /** Everything that the block may hold, after a crash of this kind. */
  candidates(block: number, kind: CrashKind): Uint8Array[] {
    const versions = this.later.get(block) ?? [];
    const open = versions.filter((one) => !one.acknowledged).map((one) => one.data);
    if (kind === 'kill') return [this.current(block), ...open];
    return [this.sure.get(block) ?? ZERO_BLOCK, ...versions.map((one) => one.data)];
  }

  get touched(): Set<number> {
    return new Set([...this.sure.keys(), ...this.later.keys()]);
  }
}

export interface Outcome {
  errno: number;
}

export class LocalDevices {
  readonly devices = new Map<number, Device>();
  private owner = -1;
  private readonly open = new Map<number, (errno: number) => void>();
  private attachedTo: unknown;
  /** What was acknowledged when the last operation was executed: it survives once that is reported. */
  private atOperation: [Device, number, Version][] = [];
  /** What the last assign put into its target. */
  private assigned: Version[] = [];

  constructor(readonly host: SimHost) {}

  /** After every start of the node. */
  attach(): void {
    const { host } = this;
    if (this.attachedTo === host.path) return;
    this.attachedTo = host.path;
    this.open.clear();
    this.owner = host.path!.blocks.requests.addOwner({ completed: (slot) => this.completed(slot) });
    this.watch();
  }

  /** Also after a rewind, which opens the content anew. */
  watch(): void {
    const { local } = this.host.group.content;
    const perform = local.perform.bind(local);
    local.perform = (record) => {
      this.performed(record);
      return perform(record);
    };
  }

  find(name: string): Device | undefined {
    return [...this.devices.values()].find((one) => one.name === name && !one.removed);
  }

  private performed(record: LocalRecord): void {
    if (record.op === 'snapshot') {
      const device = new Device(record.id, record.name, 0);
      this.copy(device, record.source);
      this.devices.set(device.id, device);
    } else if (record.op === 'assign') {
      const target = this.devices.get(record.target)!;
      const before = new Set(target.touched);
      const fresh = new Device(0, '', 0);
      this.copy(fresh, record.source);
      target.blocks = fresh.blocks;
      // Until it is reported, a crash may find the one or the other.
      this.assigned = [...new Set([...before, ...fresh.touched])].map((block) => target.add(block, fresh.current(block), true));
      this.atOperation = this.marks();
      for (const version of this.assigned) version.acknowledged = false;
      return;
    } else if (record.op === 'remove') {
      this.devices.get(record.device)!.removing = true;
    } else return;
    this.atOperation = this.marks();
  }

  private copy(to: Device, source: number): void {
    if (!isLocalDevice(source)) {
      const from = this.host.model.state.devices.get(source)!;
      to.blocks = from.sizeBytes / BLOCK;
      for (const [block, data] of from.blocks) to.sure.set(block, data);
      return;
    }
    const from = this.devices.get(source)!;
    to.blocks = from.blocks;
    for (const [block, data] of from.sure) to.sure.set(block, data);
    for (const [block, versions] of from.later) to.later.set(block, versions.filter((one) => one.acknowledged).map((one) => ({ ...one })));
  }

  // ---- operations ------------------------------------------------------------------------------------

  command(request: ControlRequest): { reply?: OperationReply; error?: Error; ended: boolean } {
    const { host } = this;
    const outcome: { reply?: OperationReply; error?: Error; ended: boolean } = { ended: false };
    host.node.attempt(() => host.commands!.handle(request, {
      done: (reply) => {
        outcome.reply = reply as OperationReply;
        outcome.ended = true;
      },
      failed: (error) => {
        outcome.error = error as Error;
        outcome.ended = true;
      },
    }));
    host.node.poke();
    return outcome;
  }

  /** Runs it to its end; false when the node crashed before. Throws what it was refused with. */
  operate(request: ControlRequest): OperationReply | undefined {
    const outcome = this.command(request);
    const { host } = this;
    host.world.run(() => outcome.ended || !host.alive, LIMIT);
    // What a crash threw came through the code under test.
    if (outcome.error !== undefined && !(outcome.error instanceof SimCrash)) throw outcome.error;
    return outcome.reply;
  }

  snapshot(source: string, name: string): OperationReply | undefined {
    const reply = this.operate({ op: 'snapshot', group: GROUP, source, name, local: true, wait: 'durable', waitSeconds: 10 });
    if (reply !== undefined && reply.device !== null && reply.notice === null) {
      this.devices.get(reply.device.id)!.reported = true;
      this.settle(this.atOperation);
    }
    return reply;
  }

  restore(target: string, source: string): OperationReply | undefined {
    const reply = this.operate({ op: 'restore', group: GROUP, target, source, ranges: [], force: true, wait: 'durable', waitSeconds: 10 });
    if (reply !== undefined) for (const version of this.assigned) version.acknowledged = true;
    if (reply !== undefined && reply.notice === null) this.settle(this.atOperation);
    return reply;
  }

  remove(device: string): void {
    if (this.operate({ op: 'remove', group: GROUP, device, withSnapshots: false, force: true, wait: 'durable', waitSeconds: 10 }) === undefined) return;
    this.find(device)!.removed = true;
  }

  /** These versions survive power loss. */
  private settle(marks: readonly [Device, number, Version][]): void {
    for (const [device, block, version] of marks) {
      const versions = device.later.get(block) ?? [];
      const at = versions.indexOf(version);
      if (at < 0) continue;
      device.sure.set(block, version.data);
      device.later.set(block, versions.slice(at + 1));
    }
  }

  private marks(): [Device, number, Version][] {
    const marks: [Device, number, Version][] = [];
    for (const device of this.devices.values()) {
      for (const [block, versions] of device.later) {
        const last = versions.filter((one) => one.acknowledged).at(-1);
        if (last !== undefined) marks.push([device, block, last]);
      }
    }
    return marks;
  }

  // ---- requests --------------------------------------------------------------------------------------

  private submit(name: string, kind: number, offset: number, length: number, data: Uint8Array | undefined, fua: boolean, done: (errno: number, bytes: Uint8Array) => void): boolean {
    const { host } = this;
    const path = host.path!;
    const { requests } = path.blocks;
    const view = path.blocks.find(`${GROUP}/${name}`);
    if (view === undefined || 'unavailable' in view) throw new Error(`${name} is not served: ${view?.unavailable ?? 'unknown'}`);
    const { arena } = host.reactor!;
    const buffer = length > 0 && kind !== RequestKind.zero ? arena.alloc(Math.max(BLOCK, length)) : -1;
    if (buffer === -1 && length > 0 && kind !== RequestKind.zero) return false;
    const slot = requests.alloc(this.owner);
    if (slot < 0) {
      if (buffer >= 0) arena.release(buffer);
      return false;
    }
    requests.kind[slot] = kind;
    requests.flags[slot] = fua ? RequestFlag.fua : 0;
    requests.device[slot] = view.id;
    requests.offset[slot] = offset;
    requests.length[slot] = length;
    if (buffer >= 0) requests.buffer[slot] = buffer;
    if (data !== undefined) arena.u8.set(data, buffer);
    this.open.set(slot, (errno) => {
      const bytes = kind === RequestKind.read && errno === 0 ? arena.u8.slice(buffer, buffer + length) : new Uint8Array(0);
      if (buffer >= 0) arena.release(buffer);
      requests.free(slot);
      done(errno, bytes);
    });
    host.node.attempt(() => path.blocks.submit(view, slot));
    host.node.poke();
    return true;
  }

  private completed(slot: number): void {
    const done = this.open.get(slot);
    if (done === undefined) throw new Error(`slot ${slot} was answered twice`);
    this.open.delete(slot);
    done(this.host.path!.blocks.requests.errno[slot]);
  }

  get inFlight(): number {
    return this.open.size;
  }

  /** `data` undefined: zeroes [offset, offset + length). No other change of these blocks may be under way. */
  change(name: string, offset: number, length: number, data: Uint8Array | undefined, fua = false): Outcome {
    const outcome: Outcome = { errno: -1 };
    const device = this.find(name)!;
    const versions: Version[] = [];
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + length; block++) {
      const merged = device.current(block).slice();
      const from = Math.max(offset, block * BLOCK);
      const to = Math.min(offset + length, (block + 1) * BLOCK);
      if (data === undefined) merged.fill(0, from - block * BLOCK, to - block * BLOCK);
      else merged.set(data.subarray(from - offset, to - offset), from - block * BLOCK);
      versions.push(device.add(block, merged));
    }
    this.submit(name, data === undefined ? RequestKind.zero : RequestKind.write, offset, length, data, fua, (errno) => {
      outcome.errno = errno;
      if (errno !== 0) return;
      for (const version of versions) version.acknowledged = true;
      if (fua) this.settle(versions.map((version, i) => [device, Math.floor(offset / BLOCK) + i, version]));
    });
    return outcome;
  }

  flush(name: string): Outcome {
    const outcome: Outcome = { errno: -1 };
    const marks = this.marks();
    this.submit(name, RequestKind.flush, 0, 0, undefined, false, (errno) => {
      outcome.errno = errno;
      if (errno === 0) this.settle(marks);
    });
    return outcome;
  }

  read(name: string, offset: number, length: number): Uint8Array | undefined {
    const { host } = this;
    let errno = -1;
    let found: Uint8Array | undefined;
    this.submit(name, RequestKind.read, offset, length, undefined, false, (result, bytes) => {
      errno = result;
      found = bytes;
    });
    host.world.run(() => errno >= 0 || !host.alive, LIMIT);
    if (errno > 0) throw new Error(`reading ${name} at ${offset} failed with errno ${errno}`);
    return found;
  }

  /** Blocks of changes that were answered with an error, or not at all. */
  private uncertain(device: Device): number[] {
    return [...device.later].filter(([, versions]) => versions.some((one) => !one.acknowledged)).map(([block]) => block);
  }

  get isUncertain(): boolean {
    return [...this.devices.values()].some((device) => !device.removed && this.uncertain(device).length > 0);
  }

  /** Nothing is under way: what was answered with an error is there or not, and from here on what is found is there. */
  takeUncertain(): void {
    for (const device of this.devices.values()) {
      if (device.removed || this.host.group.local!.tree.get(device.id)?.ready !== true) continue;
      for (const block of this.uncertain(device)) {
        const bytes = this.read(device.name, block * BLOCK, BLOCK);
        if (bytes !== undefined) this.judgeBlock(device, block, bytes, 'kill', true);
      }
    }
  }

  /** The daemon was stopped in order: all that was acknowledged survives power loss. */
  allSettled(): void {
    this.settle(this.marks());
  }

  // ---- judging ---------------------------------------------------------------------------------------

  /** Nothing is under way: every block is what was acknowledged last. */
  verify(): void {
    for (const device of this.devices.values()) {
      if (device.removed || this.host.group.local!.tree.get(device.id)?.ready !== true) continue;
      this.compare(device, 'kill', false);
    }
  }

  /** After a crash and a start: devices and contents are what may be there. What is found is what there is from here on. */
  judge(kind: CrashKind): void {
    this.attach();
    const { tree } = this.host.group.local!;
    for (const device of [...this.devices.values()]) {
      const there = tree.get(device.id);
      if (device.removed && there !== undefined) throw new Error(`${device.name} was removed and is back`);
      if (there === undefined) {
        if (device.reported && !device.removing) throw new Error(`${device.name} was reported as made and is gone: ${this.host.log.slice(-12).join('\n')}`);
        this.devices.delete(device.id);
        continue;
      }
      device.removing = false;
      device.blocks = there.sizeBytes / BLOCK;
    }
    for (const there of tree.all()) if (!this.devices.has(there.id)) throw new Error(`local device ${there.name} was never made`);
    this.host.world.run(() => [...tree.all()].every((one) => one.ready) || !this.host.alive, LIMIT);
    for (const device of this.devices.values()) {
      this.compare(device, kind, true);
      device.reported = true;
    }
  }

  private compare(device: Device, kind: CrashKind, adopt: boolean): void {
    const piece = 64 * BLOCK;
    for (let offset = 0; offset < device.blocks * BLOCK && this.host.alive; offset += piece) {
      let bytes: Uint8Array | undefined;
      try {
        bytes = this.read(device.name, offset, Math.min(piece, device.blocks * BLOCK - offset));
      } catch (error) {
        // Its adoption, which the crash had undone here, was shipped again meanwhile: who adopts judges that.
        if (adopt && this.host.group.local?.tree.get(device.id) === undefined) return;
        throw error;
      }
      if (bytes === undefined) return;
      for (let done = 0; done < bytes.length; done += BLOCK) this.judgeBlock(device, (offset + done) / BLOCK, bytes.slice(done, done + BLOCK), kind, adopt);
    }
  }

  private judgeBlock(device: Device, block: number, found: Uint8Array, kind: CrashKind, adopt: boolean): void {
    const candidates = adopt ? device.candidates(block, kind) : [device.current(block)];
    for (let at = 0; at < BLOCK; at += SECTOR) {
      const sector = found.subarray(at, at + SECTOR);
      if (candidates.some((one) => Buffer.compare(one.subarray(at, at + SECTOR), sector) === 0)) continue;
      const show = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(at, at + 8)).toString('hex');
      throw new Error(`${device.name} (${device.id}), block ${block}, byte ${at}, after ${adopt ? kind : 'no crash'}: ${show(found)} is none of ${candidates.map(show).join(' ')}\n${this.host.log.slice(-30).join('\n')}`);
    }
    if (!adopt) return;
    if (kind === 'power') {
      device.sure.set(block, found);
      device.later.delete(block);
    } else if (device.later.has(block)) {
      // It is in the page cache and need not be on the disk.
      const versions = device.later.get(block)!.filter((one) => Buffer.compare(one.data, found) !== 0);
      device.later.set(block, [...versions.map((one) => ({ data: one.data, acknowledged: true })), { data: found, acknowledged: true }]);
    }
  }
}
