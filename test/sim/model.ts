/**
 * What a group must hold: its journal as a list of entries, and the devices as
 * plain maps of blocks (test/model/devices.ts), one state per place of the list.
 *
 * Owns: the order in which things were journaled, what may be missing after a
 * crash (never anything below `floor`), and what every device then holds.
 * Must not know: how any of it is stored.
 */
import { decodeMarker } from '../../src/group/tree/record.js';
import type { Operation } from '../../src/group/tree/record.js';
import { BLOCK, Devices } from '../model/devices.js';
import type { Device } from '../model/devices.js';

export { BLOCK };
export const ZERO_BLOCK = new Uint8Array(BLOCK);

/** One record, as it was handed to the journal. Positions in blocks. */
export type ModelRecord =
  | { readonly kind: 'data'; readonly device: number; readonly first: number; readonly blocks: readonly Uint8Array[] }
  | { readonly kind: 'zero'; readonly device: number; readonly first: number; readonly count: number }
  | { readonly kind: 'marker'; readonly operation: Operation };

/** One batch. `certain`: its append succeeded; else it may be in the journal or not (the process died, or the write failed). */
export interface ModelEntry {
  readonly lsn: number;
  readonly endLsn: number;
  readonly epochId: string;
  readonly records: readonly ModelRecord[];
  certain: boolean;
}

export type ModelDevice = Device<Uint8Array>;

export function blockOf(device: ModelDevice, index: number): Uint8Array {
  return device.blocks.get(index) ?? ZERO_BLOCK;
}

/** Copies [offset, offset + length). */
export function contentOf(device: ModelDevice, offset: number, length: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const index = Math.floor((offset + done) / BLOCK);
    const from = offset + done - index * BLOCK;
    const take = Math.min(BLOCK - from, length - done);
    const found = device.blocks.get(index);
    if (found !== undefined) out.set(found.subarray(from, from + take), done);
    done += take;
  }
  return out;
}

/** The devices, with what a record does to them. */
export class ModelState extends Devices<Uint8Array> {
  apply(record: ModelRecord): void {
    if (record.kind === 'marker') {
      this.operate(record.operation);
      return;
    }
    const device = this.devices.get(record.device);
    if (device === undefined) throw new Error(`a record for device ${record.device}, which does not exist`);
    if (record.kind === 'data') {
      record.blocks.forEach((block, i) => device.blocks.set(record.first + i, block));
    } else if (record.count > device.blocks.size) {
      for (const index of [...device.blocks.keys()]) if (index >= record.first && index < record.first + record.count) device.blocks.delete(index);
    } else {
      for (let i = 0; i < record.count; i++) device.blocks.delete(record.first + i);
    }
  }
}

/** Hears of every record right before it changes the state. */
export type RecordListener = (record: ModelRecord, entry: ModelEntry, before: ModelState) => void;

export class GroupModel {
  state = new ModelState();
  /** Entries behind the base, oldest first. */
  entries: ModelEntry[] = [];
  /** Nothing below may ever be missing. */
  floor = 0;
  /** The same while no power is lost: what the page cache holds. */
  cacheFloor = 0;
  /** Batches that were appended for certain and then found missing, and where the first of them was. The host resets it. */
  lost = 0;
  lostAt = 0;
  private base = new ModelState();
  private baseLsn = 0;
  /** Every version of a block that was ever journaled and not undone, with the end of its entry: for the write-ahead rule. */
  private readonly versions = new Map<string, { endLsn: number; content: Uint8Array }[]>();
  beforeRecord: RecordListener = () => undefined;
  afterRecord: RecordListener = () => undefined;

  /** Behind the last entry that certainly was appended. */
  get endLsn(): number {
    const last = this.entries.at(-1);
    if (last === undefined) return this.baseLsn;
    return last.certain ? last.endLsn : last.lsn;
  }

  /** The node hands `entry` to the journal. What the model has from its LSN on must have been lost in a crash. */
  begin(entry: ModelEntry): void {
    this.endIs(entry.lsn);
    this.entries.push(entry);
  }

  /** The append of the last entry succeeded. */
  appended(): void {
    const entry = this.entries.at(-1)!;
    entry.certain = true;
    for (const record of entry.records) {
      this.beforeRecord(record, entry, this.state);
      this.state.apply(record);
      this.remember(record, entry);
      this.afterRecord(record, entry, this.state);
    }
  }

  private remember(record: ModelRecord, entry: ModelEntry): void {
    if (record.kind !== 'data') return;
    record.blocks.forEach((content, i) => {
      const key = `${record.device}:${record.first + i}`;
      const list = this.versions.get(key);
      if (list === undefined) this.versions.set(key, [{ endLsn: entry.endLsn, content }]);
      else list.push({ endLsn: entry.endLsn, content });
    });
  }

  /** End of the oldest entry that wrote this content to this block; undefined when none did. */
  writtenAt(device: number, block: number, content: Uint8Array): number | undefined {
    return this.versions.get(`${device}:${block}`)?.find((one) => equal(one.content, content))?.endLsn;
  }

  /**
   * The journal was found to end at `lsn`. It has to be the end of an entry, and
   * not below the floor; the state becomes what it was there.
   */
  endIs(lsn: number): void {
    const last = this.entries.at(-1);
    if (last !== undefined && !last.certain) {
      // The append that failed, or that the process died in, happened or did not.
      if (lsn === last.endLsn) {
        this.appended();
        return;
      }
      this.entries.pop();
    }
    if (lsn === this.endLsn) return;
    if (lsn > this.endLsn) throw new Error(`the journal ends at LSN ${lsn}, but nothing was ever appended behind LSN ${this.endLsn}`);
    const floor = Math.max(this.floor, this.cacheFloor);
    if (lsn < floor) throw new Error(`LOST: the journal ends at LSN ${lsn}; everything below LSN ${floor} had been acknowledged as safe`);
    const at = this.entries.findIndex((entry) => entry.lsn === lsn);
    if (at < 0) throw new Error(`the journal ends at LSN ${lsn}, which is no boundary of a batch`);
    const lost = this.entries.slice(at).filter((entry) => entry.records.some((r) => r.kind !== 'marker' || r.operation.op !== 'epoch'));
    if (lost.length > 0) {
      this.lost += lost.length;
      this.lostAt = lsn;
    }
    this.entries.length = at;
    this.state = this.base.clone();
    for (const entry of this.entries) for (const record of entry.records) this.state.apply(record);
    for (const [key, list] of this.versions) this.versions.set(key, list.filter((one) => one.endLsn <= lsn));
  }

  /** What was held where the entry of this epoch ends; undefined when there is none, or it was forgotten. */
  stateAt(endLsn: number, epochId: string): ModelState | undefined {
    const at = this.entries.findIndex((entry) => entry.certain && entry.endLsn === endLsn && entry.epochId === epochId);
    if (at < 0) return undefined;
    const state = this.base.clone();
    for (const entry of this.entries.slice(0, at + 1)) for (const record of entry.records) state.apply(record);
    return state;
  }

  /** Forgets the way to the present state, if it can never be undone. */
  rebase(): void {
    if (this.floor < this.endLsn || this.entries.at(-1)?.certain === false) return;
    this.base = this.state.clone();
    this.baseLsn = this.endLsn;
    this.entries = [];
  }

  /** What the node's own durable LSN may be told to be; the host keeps it. */
  durableTruth: () => number = () => Infinity;

  raiseFloor(lsn: number): void {
    if (lsn > this.floor) this.floor = lsn;
  }
}

export function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** The marker in a body, for entries that are captured from the bytes on their way to the journal. */
export function markerRecord(body: Uint8Array): ModelRecord {
  const marker = decodeMarker(body);
  if (typeof marker === 'string') throw new Error(`the journal was handed a marker that cannot be read: ${marker}`);
  return { kind: 'marker', operation: marker.operation };
}
