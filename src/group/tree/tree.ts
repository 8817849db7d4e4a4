/**
 * The logical tree of a group: its devices, their names, sizes and descent. Pure.
 *
 * Owns: what every node must agree on, and the digest that proves that it does
 * (DESIGN §4). Must not know: maps, layers, journals, which of it is allowed now.
 *
 * A tree is never changed: `edit` returns another one, so that a marker whose
 * digest turns out wrong leaves no trace.
 */

import { NO_EPOCH_ID } from '../../base/position.js';
import { changeTree } from './change.js';
import type { At, Effect } from './change.js';
import { deviceHash, hash128, MASK_128, nameIn } from './device.js';
import type { Device } from './device.js';
import { Draft } from './draft.js';
import type { TreeParts } from './draft.js';
import { noSums, sumDevice } from './fieldsums.js';
import type { FieldSums } from './fieldsums.js';
import type { Operation, Proof } from './record.js';

export interface Edit {
  readonly tree: Tree;
  readonly effects: readonly Effect[];
}

export class Tree {
  static readonly empty = new Tree({ devices: new Map(), byName: new Map(), sum: 0n, sums: noSums(), nextId: 1 });

  private constructor(private readonly parts: TreeParts) {}

  static fromDevices(devices: readonly Device[], nextId: number): Tree {
    const byId = new Map(devices.map((device) => [device.id, device]));
    const byName = new Map(devices.map((device) => [nameIn(byId, device), device.id]));
    const sum = devices.reduce((total, device) => (total + deviceHash(device)) & MASK_128, 0n);
    const sums = noSums();
    for (const device of devices) sumDevice(sums, device, 1);
    return new Tree({ devices: byId, byName, sum, sums, nextId });
  }

  /** The id that the next device gets; ids are never reused. */
  get nextId(): number {
    return this.parts.nextId;
  }

  /** From which a node whose digest differs says what differs. */
  get sums(): FieldSums {
    return this.parts.sums;
  }

  get(id: number): Device | undefined {
    return this.parts.devices.get(id);
  }

  /** By `volume` or `volume@snapshot`. */
  find(name: string): Device | undefined {
    const id = this.parts.byName.get(name);
    return id === undefined ? undefined : this.parts.devices.get(id);
  }

  all(): IterableIterator<Device> {
    return this.parts.devices.values();
  }

  get count(): number {
    return this.parts.devices.size;
  }

  nameOf(device: Device): string {
    return nameIn(this.parts.devices, device);
  }

  children(id: number): Device[] {
    return [...this.parts.devices.values()].filter((device) => device.parent === id);
  }

  /** The members of a group snapshot, in the order of their ids. */
  membersOf(set: string): Device[] {
    return [...this.parts.devices.values()].filter((device) => device.set === set && set !== '').sort((a, b) => a.id - b.id);
  }

  /** Proof that two nodes have the same tree: 32 hexadecimal digits. */
  digest(epochId: string): string {
    return ((this.parts.sum + hash128(`epoch ${epochId}`)) & MASK_128).toString(16).padStart(32, '0');
  }

  /** What a marker after which the tree is this one says of it. */
  proof(epochId: string): Proof {
    return { digest: this.digest(epochId), sums: this.sums };
  }

  /**
   * The tree after an operation, and what the store has to do. Returns a
   * sentence when the operation contradicts the tree: on the primary that was
   * excluded before, so there it is a bug; on a secondary the applier stops.
   */
  edit(operation: Operation, at: At): Edit | string {
    const draft = new Draft(this.parts);
    const effects: Effect[] = [];
    const problem = changeTree(draft, operation, at, effects);
    return problem ?? { tree: new Tree(draft.done()), effects };
  }
}

/** See warmUpMarkers: edits a tree of its own. */
export function rehearsal(): (operation: Operation) => Proof {
  let tree = Tree.empty;
  const epochId = NO_EPOCH_ID;
  return (operation) => {
    if (operation.op === 'create') tree = Tree.empty;
    const edit = tree.edit(operation, { lsn: 1, epochId, wallMs: 1 });
    if (typeof edit !== 'string') tree = edit.tree;
    return tree.proof(epochId);
  };
}
