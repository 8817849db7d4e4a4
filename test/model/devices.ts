/**
 * The trivial model of a group: devices as plain maps of blocks, and what every
 * operation does to them, in the fewest words that are right.
 *
 * Owns: names, descent, sizes, sets, protection and content after any sequence
 * of operations. Must not know: what a block is (bytes in the simulation,
 * permitted contents over real daemons), when something happens, who asked.
 *
 * Blocks are never changed in place, so that states may share them; a block
 * that is absent is zero.
 */
import type { Operation } from '../../src/group/tree/record.js';

export const BLOCK = 4096;

/** Contents of local snapshots, which the stream does not tell, by their content digest. */
export const adoptable = new Map<string, ReadonlyMap<number, unknown>>();

export interface DeviceFacts {
  readonly id: number;
  readonly name: string;
  readonly kind: 'volume' | 'snapshot';
  readonly volume: number;
  readonly parent: number;
  readonly sizeBytes: number;
  readonly protected: boolean;
  readonly set: string;
}

export class Device<B> implements DeviceFacts {
  readonly blocks: Map<number, B>;
  readonly id: number;
  readonly name: string;
  readonly kind: 'volume' | 'snapshot';
  readonly volume: number;
  readonly parent: number;
  readonly sizeBytes: number;
  readonly protected: boolean;
  readonly set: string;

  constructor(facts: DeviceFacts, blocks: ReadonlyMap<number, B> = new Map<number, B>()) {
    ({ id: this.id, name: this.name, kind: this.kind, volume: this.volume, parent: this.parent, sizeBytes: this.sizeBytes, protected: this.protected, set: this.set } = facts);
    this.blocks = new Map(blocks);
  }

  /** Another device, or the same with other facts or content. */
  with(facts: Partial<DeviceFacts>, blocks: ReadonlyMap<number, B> = this.blocks): Device<B> {
    const { id, name, kind, volume, parent, sizeBytes, set } = this;
    return new Device<B>({ id, name, kind, volume, parent, sizeBytes, protected: this.protected, set, ...facts }, blocks);
  }
}

/** Devices by id, and the id that the next one gets. */
export class Devices<B> {
  readonly devices = new Map<number, Device<B>>();
  nextId = 1;

  clone(): this {
    const copy = new (this.constructor as new () => this)();
    copy.nextId = this.nextId;
    for (const d of this.devices.values()) copy.devices.set(d.id, d.with({}));
    return copy;
  }

  nameOf(device: DeviceFacts): string {
    return device.kind === 'volume' ? device.name : `${this.devices.get(device.volume)?.name}@${device.name}`;
  }

  find(name: string): Device<B> | undefined {
    for (const device of this.devices.values()) if (this.nameOf(device) === name) return device;
    return undefined;
  }

  /** Of a group snapshot, oldest first. */
  membersOf(set: string): Device<B>[] {
    return [...this.devices.values()].filter((one) => one.set === set && set !== '').sort((a, b) => a.id - b.id);
  }

  /** One line per device, sorted: equal lines, equal trees. */
  get facts(): string[] {
    return [...this.devices.values()].map((d) => factsLine(d, this.nameOf(d))).sort();
  }

  private put(device: Device<B>): void {
    this.devices.set(device.id, device);
    this.nextId = Math.max(this.nextId, device.id + 1);
  }

  /** What the operation makes of all devices. */
  operate(operation: Operation): void {
    const { devices } = this;
    switch (operation.op) {
      case 'epoch':
        return;
      case 'adopt': {
        const source = devices.get(operation.source)!;
        const { id, name, sizeBytes, digest } = operation;
        const content = adoptable.get(digest) as ReadonlyMap<number, B> | undefined;
        if (content === undefined) throw new Error(`the model knows no local snapshot with content digest ${digest}`);
        this.put(source.with({ id, name, kind: 'snapshot', parent: source.id, sizeBytes, protected: false, set: '' }, content));
        return;
      }
      case 'create':
        this.put(newVolume(operation.id, operation.name, operation.sizeBytes));
        return;
      case 'clone': {
        const source = devices.get(operation.source)!;
        this.put(newVolume<B>(operation.id, operation.name, source.sizeBytes).with({}, source.blocks));
        return;
      }
      case 'snapshot':
        for (const one of operation.snapshots) {
          this.put(devices.get(one.source)!.with({ id: one.id, name: one.name, kind: 'snapshot', parent: one.source, protected: false, set: operation.set }));
        }
        return;
      case 'assign':
        for (const pair of operation.pairs) {
          const target = devices.get(pair.target)!;
          const source = devices.get(pair.source)!;
          if (operation.ranges.length === 0) this.put(target.with({ sizeBytes: source.sizeBytes }, source.blocks));
          else for (const [offset, length] of operation.ranges) copyRange(target, source, offset / BLOCK, length / BLOCK);
        }
        return;
      case 'resize': {
        const device = devices.get(operation.device)!;
        const end = operation.sizeBytes / BLOCK;
        this.put(device.with({ sizeBytes: operation.sizeBytes }, new Map([...device.blocks].filter(([index]) => index < end))));
        return;
      }
      case 'rename':
        for (const id of operation.devices) {
          const device = devices.get(id)!;
          this.put(device.with({ name: operation.name, set: operation.set === '' ? device.set : operation.set }));
        }
        return;
      case 'protect':
        for (const id of operation.devices) this.put(devices.get(id)!.with({ protected: operation.on }));
        return;
      case 'remove':
        for (const id of operation.devices) {
          const gone = devices.get(id)!;
          devices.delete(id);
          for (const child of [...devices.values()]) if (child.parent === id) this.put(child.with({ parent: gone.parent }));
        }
    }
  }
}

/** What is compared of a device besides its content. */
export function factsLine(device: DeviceFacts, fullName: string): string {
  return `${device.id} ${fullName} ${device.kind} ${device.sizeBytes} <${device.parent}${device.set === '' ? '' : ` @${device.set}`}${device.protected ? ' protected' : ''}`;
}

function newVolume<B>(id: number, name: string, sizeBytes: number): Device<B> {
  return new Device<B>({ id, name, kind: 'volume', volume: id, parent: 0, sizeBytes, protected: false, set: '' });
}

/** Blocks [first, first + count) of `target` become those of `source`. */
function copyRange<B>(target: Device<B>, source: Device<B>, first: number, count: number): void {
  const inside = (index: number): boolean => index >= first && index < first + count;
  for (const index of [...target.blocks.keys()]) if (inside(index)) target.blocks.delete(index);
  for (const [index, block] of source.blocks) if (inside(index)) target.blocks.set(index, block);
}
