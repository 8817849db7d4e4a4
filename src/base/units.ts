/**
 * Units and identifiers: one branded type per quantity, made by one checked
 * constructor. Everything is counted in bytes; blocks appear only in store/.
 *
 * Offsets and LSNs are plain numbers kept below 2^53 (DESIGN §7): bigint would
 * allocate on the data path.
 */

declare const brand: unique symbol;
type Branded<T, B extends string> = T & { readonly [brand]: B };

/** Logical byte position in a group's journal since the group's creation. */
export type Lsn = Branded<number, 'Lsn'>;
/** Byte position within a device. */
export type ByteOffset = Branded<number, 'ByteOffset'>;
/** Identity of a device within its group; positive, never reused. */
export type DeviceId = Branded<number, 'DeviceId'>;
/** Random identity of an epoch: 32 lower-case hexadecimal digits (16 bytes). */
export type EpochId = Branded<string, 'EpochId'>;
/** Node-local layer number (u32, never reused); 0 means "no layer", that is zeros. */
export type LayerNumber = Branded<number, 'LayerNumber'>;

/** Size of a map block and of a journal block, in bytes. */
export const BLOCK_BYTES = 4096;
export const BLOCK_SHIFT = 12;
/** Size of a stamped region, in bytes. */
export const REGION_BYTES = 65536;
export const REGION_SHIFT = 16;
/** Bytes that one map leaf describes. */
export const LEAF_BYTES = 2 * 1024 * 1024;
export const LEAF_SHIFT = 21;
/**
 * Local devices (one node only, DESIGN §1): ids from here on, so that they are never mistaken for a group's. Their
 * records' stamps and LSNs count as LOCAL_STAMPS + local LSN in maps and layers, for the same reason.
 */
export const LOCAL_DEVICES = 0x80000000;
export const LOCAL_STAMPS = 2 ** 52;
/** Largest size of a device, in bytes (1 PiB: every block offset fits 38 bits, every byte offset 50). */
export const MAX_DEVICE_BYTES = 2 ** 50;

export function isLocalDevice(id: number): boolean {
  return id >= LOCAL_DEVICES;
}

export const KIB = 1024;
export const MIB = 1024 * 1024;
export const GIB = 1024 * 1024 * 1024;
export const TIB = 1024 * GIB;

function checkedInteger(what: string, value: number, max: number): number {
  if (!Number.isSafeInteger(value) || value < 0 || value > max) {
    throw new RangeError(`${what} must be an integer from 0 to ${max}, not ${value}`);
  }
  return value;
}

export function lsn(value: number): Lsn {
  return checkedInteger('an LSN', value, Number.MAX_SAFE_INTEGER) as Lsn;
}

export function byteOffset(value: number): ByteOffset {
  return checkedInteger('a byte offset', value, MAX_DEVICE_BYTES) as ByteOffset;
}

export function deviceId(value: number): DeviceId {
  return checkedInteger('a device id', value, 0xffffffff) as DeviceId;
}

export function layerNumber(value: number): LayerNumber {
  return checkedInteger('a layer number', value, 0xffffffff) as LayerNumber;
}

export function epochId(hex: string): EpochId {
  if (!/^[0-9a-f]{32}$/.test(hex)) throw new RangeError(`an epoch id is 32 hexadecimal digits, not ${JSON.stringify(hex)}`);
  return hex as EpochId;
}

export function alignDown(value: number, unit: number): number {
  return value - (value % unit);
}

export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + unit - rest;
}

export function isAligned(value: number, unit: number): boolean {
  return value % unit === 0;
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
