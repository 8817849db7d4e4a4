/**
 * Units, limits and identifiers. Everything is counted in bytes; blocks appear
 * only in store/.
 *
 * Offsets and LSNs (logical byte positions in a group's journal since the
 * group's creation) are plain numbers kept below 2^53 (DESIGN §7): bigint would
 * allocate on the data path.
 */

declare const brand: unique symbol;
type Branded<T, B extends string> = T & { readonly [brand]: B };

/** Identity of a device within its group; positive, never reused. */
export type DeviceId = Branded<number, 'DeviceId'>;

/** Size of a map block and of a journal block, in bytes. */
export const BLOCK_BYTES = 4096;
export const BLOCK_SHIFT = 12;
/** Size of a stamped region, in bytes. */
export const REGION_BYTES = 65536;
/**
 * Local devices (one node only, DESIGN §1): ids from here on, so that they are never mistaken for a group's. Their
 * records' stamps and LSNs count as LOCAL_STAMPS + local LSN in maps and layers, for the same reason.
 */
export const LOCAL_DEVICES = 0x80000000;
export const LOCAL_STAMPS = 2 ** 52;
/** Largest size of a device, in bytes (1 PiB: every block offset fits 38 bits, every byte offset 50). */
export const MAX_DEVICE_BYTES = 2 ** 50;
/** Most ranges of one restore or sync: each may cost a secondary the reading of two map leaves. */
export const MAX_RANGES = 64;

/** Whether the id is one of a device that exists on this node only. */
export function isLocalDevice(id: number): boolean {
  return id >= LOCAL_DEVICES;
}

export const KIB = 1024;
export const MIB = 1024 * 1024;
export const GIB = 1024 * 1024 * 1024;
export const TIB = 1024 * GIB;

/** The one way to a DeviceId. Throws RangeError for what is no u32: a bug of ours. */
export function deviceId(value: number): DeviceId {
  if (!Number.isSafeInteger(value) || value < 0 || value > 0xffffffff) throw new RangeError(`a device id must be an integer from 0 to ${0xffffffff}, not ${value}`);
  return value as DeviceId;
}

/** `value` or the next multiple of `unit` above it. */
export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + unit - rest;
}

const SIZE_UNITS: Record<string, number> = { '': 1, k: KIB, m: MIB, g: GIB, t: TIB, p: 1024 * TIB };

/**
 * Bytes from a person's words: "10G", "512 MiB", "4096". Units are binary.
 * Returns undefined when the words are no size.
 */
export function parseSize(words: string): number | undefined {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*$/i.exec(words);
  if (match === null) return undefined;
  const bytes = Number(match[1]) * SIZE_UNITS[match[2].toLowerCase()];
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Bytes in a person's words: "1.5 GiB". */
export function formatSize(bytes: number): string {
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < names.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || Number.isInteger(value) ? 0 : value < 10 ? 2 : 1;
  return `${value.toFixed(digits)} ${names[unit]}`;
}
