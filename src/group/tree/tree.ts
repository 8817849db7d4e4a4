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
import { changeTree } from './change.js';
import type { Operation, Range } from './record.js';

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
  /** The group snapshot that it belongs to; '' = none. */
  readonly set: string;
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
  /** `target` becomes what `source` is (DESIGN §4: the one primitive), in these ranges or, when there are none, as a whole. A new snapshot is a target, too. */
  | { readonly kind: 'assign'; readonly target: number; readonly source: number; readonly ranges: readonly Range[] }
  | { readonly kind: 'resize'; readonly device: number; readonly sizeBytes: number }
  | { readonly kind: 'remove'; readonly device: number }
  /** The new device becomes what this node's local snapshot `local` is, and that is no more (adoption.ts). */
  | { readonly kind: 'adopt'; readonly device: number; readonly sizeBytes: number; readonly local: string; readonly digest: string };

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
    d.id, d.name, d.kind, d.parent, d.volume, d.sizeBytes, d.protected, d.createdLsn, d.createdMs, d.changedLsn, d.set, d.continuity,
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

  /** The members of a group snapshot, in the order of their ids. */
  membersOf(set: string): Device[] {
    return [...this.devices.values()].filter((device) => device.set === set && set !== '').sort((a, b) => a.id - b.id);
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
    const problem = changeTree(draft, operation, at, effects);
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

/**
 * A tree under change: copied once per operation, however many devices it
 * touches, for the data thread waits for it.
 */
export class Draft {
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

  /** Whether a device has this name, `volume` or `volume@snapshot`. */
  has(name: string): boolean {
    return this.byName.has(name);
  }

  all(): Device[] {
    return [...this.devices.values()];
  }

  nameOf(device: Device): string {
    return nameIn(this.devices, device);
  }

  /** In place of `put` where the name of a volume changes: it is part of the names of all that descend from it. */
  renameVolume(volume: Device, renamed: Device): void {
    const family = [...this.devices.values()].filter((device) => device.volume === volume.id && device !== volume);
    for (const device of family) this.byName.delete(this.nameOf(device));
    this.put(renamed);
    for (const device of family) this.byName.set(this.nameOf(device), device.id);
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
