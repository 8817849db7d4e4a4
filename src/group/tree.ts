/**
 * The logical tree of a group: its devices, their names, sizes and descent. Pure.
 *
 * Owns: what every node must agree on, and the digest that proves that it does
 * (DESIGN §4). Must not know: maps, layers, journals, which of it is allowed now.
 *
 * A tree is never changed: `edit` returns another one, so that a marker whose
 * digest turns out wrong leaves no trace.
 */

import { createHash } from 'node:crypto';
import type { Operation } from './record.js';

export interface Device {
  readonly id: number;
  /** Volume: its name. Snapshot: the part behind the '@'. */
  readonly name: string;
  readonly kind: 'volume' | 'snapshot';
  /** The device that it was taken from; 0 = none. */
  readonly parent: number;
  /** The volume at the root of its descent (itself for a volume); gives a snapshot the part before the '@'. */
  readonly volume: number;
  readonly sizeBytes: number;
  readonly protected: boolean;
  readonly createdLsn: number;
  readonly createdMs: number;
  /** LSN of the last marker that changed this entry or its content. */
  readonly changedLsn: number;
  /** `epochId:lsn` of the last record that broke the continuity of its content (DESIGN §8). */
  readonly continuity: string;
}

/** Where an operation stands in the stream. */
export interface At {
  readonly lsn: number;
  readonly epochId: string;
  readonly wallMs: number;
}

/** What an operation does to the devices' content; executed by the store. */
export type Effect =
  | { readonly kind: 'create'; readonly device: number; readonly sizeBytes: number }
  /** `target` becomes what `source` is (DESIGN §4: the one primitive). A new snapshot is a target, too. */
  | { readonly kind: 'assign'; readonly target: number; readonly source: number }
  | { readonly kind: 'remove'; readonly device: number };

export interface Edit {
  readonly tree: Tree;
  readonly effects: readonly Effect[];
}

const MASK_128 = (1n << 128n) - 1n;

function hash128(text: string): bigint {
  return BigInt(`0x${createHash('sha256').update(text).digest('hex').slice(0, 32)}`);
}

/** The canonical encoding that a device's digest is taken of: every field, in this order, as JSON. */
function deviceHash(d: Device): bigint {
  return hash128(JSON.stringify([
    d.id, d.name, d.kind, d.parent, d.volume, d.sizeBytes, d.protected, d.createdLsn, d.createdMs, d.changedLsn, d.continuity,
  ]));
}

export class Tree {
  static readonly empty = new Tree(new Map(), new Map(), 0n, 1);

  private constructor(
    private readonly devices: ReadonlyMap<number, Device>,
    private readonly byName: ReadonlyMap<string, number>,
    private readonly sum: bigint,
    /** The id that the next device gets; ids are never reused. */
    readonly nextId: number,
  ) {}

  static fromDevices(devices: readonly Device[], nextId: number): Tree {
    let tree = Tree.empty;
    for (const device of devices) tree = tree.with(device);
    // Names of snapshots need their volume to be there: index again now that all are.
    const byName = new Map<string, number>();
    for (const device of devices) byName.set(tree.nameOf(device), device.id);
    return new Tree(tree.devices, byName, tree.sum, nextId);
  }

  get(id: number): Device | undefined {
    return this.devices.get(id);
  }

  /** By `volume` or `volume@snapshot`. */
  find(name: string): Device | undefined {
    const id = this.byName.get(name);
    return id === undefined ? undefined : this.devices.get(id);
  }

  all(): IterableIterator<Device> {
    return this.devices.values();
  }

  get count(): number {
    return this.devices.size;
  }

  nameOf(device: Device): string {
    if (device.kind === 'volume') return device.name;
    return `${this.devices.get(device.volume)?.name ?? `#${device.volume}`}@${device.name}`;
  }

  children(id: number): Device[] {
    return [...this.devices.values()].filter((device) => device.parent === id);
  }

  /** Proof that two nodes have the same tree: 32 hexadecimal digits. */
  digest(epochId: string): string {
    return ((this.sum + hash128(`epoch ${epochId}`)) & MASK_128).toString(16).padStart(32, '0');
  }

  /**
   * The tree after an operation, and what the store has to do. Returns a
   * sentence when the operation contradicts the tree: on the primary that was
   * excluded before, so there it is a bug; on a secondary the applier stops.
   */
  edit(operation: Operation, at: At): Edit | string {
    switch (operation.op) {
      case 'epoch':
        return { tree: this.afterEpoch(operation.lossless, at), effects: [] };
      case 'create': {
        if (operation.id !== this.nextId) return `it creates device ${operation.id}, the next id is ${this.nextId}`;
        if (this.find(operation.name) !== undefined) return `there is a device named ${operation.name} already`;
        const device: Device = {
          id: operation.id, name: operation.name, kind: 'volume', parent: 0, volume: operation.id, sizeBytes: operation.sizeBytes, protected: false,
          createdLsn: at.lsn, createdMs: at.wallMs, changedLsn: at.lsn, continuity: continuityAt(at),
        };
        return { tree: this.with(device), effects: [{ kind: 'create', device: device.id, sizeBytes: device.sizeBytes }] };
      }
      case 'snapshot': {
        let tree: Tree = this;
        const effects: Effect[] = [];
        for (const one of operation.snapshots) {
          const source = tree.get(one.source);
          if (source === undefined) return `it snapshots device ${one.source}, which does not exist`;
          if (one.id !== tree.nextId) return `it creates device ${one.id}, the next id is ${tree.nextId}`;
          const device: Device = {
            id: one.id, name: one.name, kind: 'snapshot', parent: source.id, volume: source.volume, sizeBytes: source.sizeBytes, protected: false,
            createdLsn: at.lsn, createdMs: at.wallMs, changedLsn: at.lsn, continuity: continuityAt(at),
          };
          if (tree.find(tree.nameOf(device)) !== undefined) return `there is a device named ${tree.nameOf(device)} already`;
          tree = tree.with(device);
          effects.push({ kind: 'create', device: device.id, sizeBytes: device.sizeBytes }, { kind: 'assign', target: device.id, source: source.id });
        }
        return { tree, effects };
      }
      case 'assign': {
        const target = this.get(operation.target);
        const source = this.get(operation.source);
        if (target === undefined) return `it changes device ${operation.target}, which does not exist`;
        if (source === undefined) return `it reads device ${operation.source}, which does not exist`;
        if (target === source) return `it assigns device ${target.id} to itself`;
        const changed: Device = { ...target, sizeBytes: source.sizeBytes, changedLsn: at.lsn, continuity: continuityAt(at) };
        return { tree: this.with(changed), effects: [{ kind: 'assign', target: target.id, source: source.id }] };
      }
      case 'remove': {
        let tree: Tree = this;
        const effects: Effect[] = [];
        for (const id of operation.devices) {
          const device = tree.get(id);
          if (device === undefined) return `it removes device ${id}, which does not exist`;
          if (device.kind === 'volume' && tree.children(id).length > 0) return `it removes volume ${device.name}, which has snapshots`;
          for (const child of tree.children(id)) tree = tree.with({ ...child, parent: device.parent, changedLsn: at.lsn });
          tree = tree.without(device);
          effects.push({ kind: 'remove', device: id });
        }
        return { tree, effects };
      }
    }
  }

  private afterEpoch(lossless: boolean, at: At): Tree {
    if (lossless) return this;
    let tree: Tree = this;
    for (const device of this.devices.values()) tree = tree.with({ ...device, continuity: continuityAt(at) });
    return tree;
  }

  private with(device: Device): Tree {
    const before = this.devices.get(device.id);
    const devices = new Map(this.devices).set(device.id, device);
    const byName = new Map(this.byName);
    if (before !== undefined) byName.delete(this.nameOf(before));
    byName.set(this.nameOf(device), device.id);
    const sum = (this.sum + deviceHash(device) - (before === undefined ? 0n : deviceHash(before))) & MASK_128;
    return new Tree(devices, byName, sum, Math.max(this.nextId, device.id + 1));
  }

  private without(device: Device): Tree {
    const devices = new Map(this.devices);
    devices.delete(device.id);
    const byName = new Map(this.byName);
    byName.delete(this.nameOf(device));
    return new Tree(devices, byName, (this.sum - deviceHash(device)) & MASK_128, this.nextId);
  }
}

/** See warmUpMarkers: edits a tree of its own. */
export function rehearsal(): (operation: Operation) => string {
  let tree = Tree.empty;
  const epochId = '0'.repeat(32);
  return (operation) => {
    if (operation.op === 'create') tree = Tree.empty;
    const edit = tree.edit(operation, { lsn: 1, epochId, wallMs: 1 });
    if (typeof edit !== 'string') tree = edit.tree;
    return tree.digest(epochId);
  };
}

/** The continuity id of a device whose content broke at this place. */
export function continuityAt(at: At): string {
  return `${at.epochId}:${at.lsn}`;
}
