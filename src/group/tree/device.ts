/**
 * A device in the logical tree: its fields, its full name, and its part of the
 * digest that proves that two nodes have the same tree (DESIGN §4). Pure.
 */

import { createHash } from 'node:crypto';

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

export const MASK_128 = (1n << 128n) - 1n;

/** The first 128 bits of the SHA-256. */
export function hash128(text: string): bigint {
  return BigInt(`0x${createHash('sha256').update(text).digest('hex').slice(0, 32)}`);
}

/** The canonical encoding that a device's digest is taken of: every field, in this order, as JSON. */
export function deviceHash(d: Device): bigint {
  return hash128(JSON.stringify([
    d.id, d.name, d.kind, d.parent, d.volume, d.sizeBytes, d.protected, d.createdLsn, d.createdMs, d.changedLsn, d.set, d.continuity,
  ]));
}

/** `volume` or `volume@snapshot`; `devices`: all of the tree. */
export function nameIn(devices: ReadonlyMap<number, Device>, device: Device): string {
  if (device.kind === 'volume') return device.name;
  return `${devices.get(device.volume)?.name ?? `#${device.volume}`}@${device.name}`;
}
