/**
 * A tree under change: copied once per operation, however many devices it
 * touches, for the data thread waits for it.
 *
 * Owns: keeping devices, names, the sum of the hashes and those of the fields in step. Must not know:
 * what an operation does (change.ts).
 */

import { deviceHash, MASK_128, nameIn } from './device.js';
import type { Device } from './device.js';
import { sumDevice } from './fieldsums.js';
import type { FieldSums } from './fieldsums.js';

/** What a tree is made of. */
export interface TreeParts {
  readonly devices: ReadonlyMap<number, Device>;
  /** By `volume` or `volume@snapshot`. */
  readonly byName: ReadonlyMap<string, number>;
  /** Of the devices' hashes, modulo 2^128. */
  readonly sum: bigint;
  /** Which kinds of fields differ from another node's. */
  readonly sums: FieldSums;
  /** The id that the next device gets; ids are never reused. */
  readonly nextId: number;
}

export class Draft {
  private readonly devices: Map<number, Device>;
  private readonly byName: Map<string, number>;
  private sum: bigint;
  private readonly sums: Uint32Array;
  private nextId: number;
  private childrenOf: Map<number, Set<number>> | undefined;

  constructor(parts: TreeParts) {
    this.devices = new Map(parts.devices);
    this.byName = new Map(parts.byName);
    this.sum = parts.sum;
    this.sums = parts.sums.slice();
    this.nextId = parts.nextId;
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
    sumDevice(this.sums, device, 1);
    this.nextId = Math.max(this.nextId, device.id + 1);
    if (this.childrenOf !== undefined) this.adopt(device);
  }

  drop(device: Device): void {
    this.forget(device);
    this.devices.delete(device.id);
  }

  /** What the tree after the change is made of; the draft is not used any more. */
  done(): TreeParts {
    return { devices: this.devices, byName: this.byName, sum: this.sum, sums: this.sums, nextId: this.nextId };
  }

  private forget(device: Device): void {
    this.byName.delete(this.nameOf(device));
    this.sum = (this.sum - deviceHash(device)) & MASK_128;
    sumDevice(this.sums, device, -1);
    this.childrenOf?.get(device.parent)?.delete(device.id);
  }

  private adopt(device: Device): void {
    const siblings = this.childrenOf!.get(device.parent);
    if (siblings === undefined) this.childrenOf!.set(device.parent, new Set([device.id]));
    else siblings.add(device.id);
  }
}
