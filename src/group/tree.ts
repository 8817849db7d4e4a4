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
    const byId = new Map(devices.map((device) => [device.id, device]));
    const byName = new Map(devices.map((device) => [nameIn(byId, device), device.id]));
    const sum = devices.reduce((total, device) => (total + deviceHash(device)) & MASK_128, 0n);
    return new Tree(byId, byName, sum, nextId);
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
    return nameIn(this.devices, device);
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
    const draft = new Draft(this);
    const effects: Effect[] = [];
    const problem = change(draft, operation, at, effects);
    return problem ?? { tree: draft.done(), effects };
  }

  /** For drafts. */
  parts(): TreeParts {
    return { devices: this.devices, byName: this.byName, sum: this.sum };
  }

  static fromParts(parts: TreeParts, nextId: number): Tree {
    return new Tree(parts.devices, parts.byName, parts.sum, nextId);
  }
}

export interface TreeParts {
  readonly devices: ReadonlyMap<number, Device>;
  readonly byName: ReadonlyMap<string, number>;
  readonly sum: bigint;
}

/** Carries an operation out on a draft. Returns why it cannot be, and then the draft is thrown away. */
function change(draft: Draft, operation: Operation, at: At, effects: Effect[]): string | undefined {
  switch (operation.op) {
    case 'epoch':
      // What was acknowledged before may be missing: clients that had seen it must not go on as if nothing happened.
      if (!operation.lossless) for (const device of draft.all()) draft.put({ ...device, continuity: continuityAt(at) });
      return undefined;
    case 'create': {
      if (operation.id !== draft.next) return `it creates device ${operation.id}, the next id is ${draft.next}`;
      if (draft.has(operation.name)) return `there is a device named ${operation.name} already`;
      draft.put({
        id: operation.id, name: operation.name, kind: 'volume', parent: 0, volume: operation.id, sizeBytes: operation.sizeBytes, protected: false,
        createdLsn: at.lsn, createdMs: at.wallMs, changedLsn: at.lsn, continuity: continuityAt(at),
      });
      effects.push({ kind: 'create', device: operation.id, sizeBytes: operation.sizeBytes });
      return undefined;
    }
    case 'snapshot':
      for (const one of operation.snapshots) {
        const source = draft.get(one.source);
        if (source === undefined) return `it snapshots device ${one.source}, which does not exist`;
        if (one.id !== draft.next) return `it creates device ${one.id}, the next id is ${draft.next}`;
        const device: Device = {
          id: one.id, name: one.name, kind: 'snapshot', parent: source.id, volume: source.volume, sizeBytes: source.sizeBytes, protected: false,
          createdLsn: at.lsn, createdMs: at.wallMs, changedLsn: at.lsn, continuity: continuityAt(at),
        };
        if (draft.has(draft.nameOf(device))) return `there is a device named ${draft.nameOf(device)} already`;
        draft.put(device);
        effects.push({ kind: 'create', device: device.id, sizeBytes: device.sizeBytes }, { kind: 'assign', target: device.id, source: source.id });
      }
      return undefined;
    case 'assign': {
      const target = draft.get(operation.target);
      const source = draft.get(operation.source);
      if (target === undefined) return `it changes device ${operation.target}, which does not exist`;
      if (source === undefined) return `it reads device ${operation.source}, which does not exist`;
      if (target === source) return `it assigns device ${target.id} to itself`;
      draft.put({ ...target, sizeBytes: source.sizeBytes, changedLsn: at.lsn, continuity: continuityAt(at) });
      effects.push({ kind: 'assign', target: target.id, source: source.id });
      return undefined;
    }
    case 'remove':
      for (const id of operation.devices) {
        const device = draft.get(id);
        if (device === undefined) return `it removes device ${id}, which does not exist`;
        const children = draft.children(id);
        if (device.kind === 'volume' && children.length > 0) return `it removes volume ${device.name}, which has snapshots`;
        for (const child of children) draft.put({ ...child, parent: device.parent, changedLsn: at.lsn });
        draft.drop(device);
        effects.push({ kind: 'remove', device: id });
      }
      return undefined;
  }
}

/**
 * A tree under change: copied once per operation, however many devices it
 * touches, for the data thread waits for it.
 */
class Draft {
  private readonly devices: Map<number, Device>;
  private readonly byName: Map<string, number>;
  private sum: bigint;
  private nextId: number;
  private childrenOf: Map<number, Set<number>> | undefined;

  constructor(tree: Tree) {
    const parts = tree.parts();
    this.devices = new Map(parts.devices);
    this.byName = new Map(parts.byName);
    this.sum = parts.sum;
    this.nextId = tree.nextId;
  }

  get next(): number {
    return this.nextId;
  }

  get(id: number): Device | undefined {
    return this.devices.get(id);
  }

  has(name: string): boolean {
    return this.byName.has(name);
  }

  all(): Device[] {
    return [...this.devices.values()];
  }

  nameOf(device: Device): string {
    return nameIn(this.devices, device);
  }

  children(id: number): Device[] {
    if (this.childrenOf === undefined) {
      this.childrenOf = new Map();
      for (const device of this.devices.values()) this.adopt(device);
    }
    return [...(this.childrenOf.get(id) ?? [])].map((child) => this.devices.get(child)!);
  }

  put(device: Device): void {
    const before = this.devices.get(device.id);
    if (before !== undefined) this.forget(before);
    this.devices.set(device.id, device);
    this.byName.set(this.nameOf(device), device.id);
    this.sum = (this.sum + deviceHash(device)) & MASK_128;
    this.nextId = Math.max(this.nextId, device.id + 1);
    if (this.childrenOf !== undefined) this.adopt(device);
  }

  drop(device: Device): void {
    this.forget(device);
    this.devices.delete(device.id);
  }

  done(): Tree {
    return Tree.fromParts({ devices: this.devices, byName: this.byName, sum: this.sum }, this.nextId);
  }

  private forget(device: Device): void {
    this.byName.delete(this.nameOf(device));
    this.sum = (this.sum - deviceHash(device)) & MASK_128;
    this.childrenOf?.get(device.parent)?.delete(device.id);
  }

  private adopt(device: Device): void {
    const siblings = this.childrenOf!.get(device.parent);
    if (siblings === undefined) this.childrenOf!.set(device.parent, new Set([device.id]));
    else siblings.add(device.id);
  }
}

function nameIn(devices: ReadonlyMap<number, Device>, device: Device): string {
  if (device.kind === 'volume') return device.name;
  return `${devices.get(device.volume)?.name ?? `#${device.volume}`}@${device.name}`;
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
