/**
 * The content of a group's devices: which layer every block belongs to, and
 * where the bytes of a layer are now (DESIGN §5).
 *
 * Owns: maps, layers and pending table of all devices, and what each record does
 * to them. Must not know: names, roles, links, when a record may be applied.
 *
 * Everything here happens on the data thread in the order of the journal, costs
 * O(1) or O(blocks written), and does no I/O; reading (read.ts), destaging
 * (destager.ts), checkpoints (checkpointer.ts) and punching (walk/walker.ts) do.
 */

import { assert } from '../base/assert.js';
import { BLOCK_BYTES, BLOCK_SHIFT } from '../base/units.js';
import type { Reactor } from '../io/reactor.js';
import { LayerTable } from './layers.js';
import type { Layer } from './layers.js';
import { BlockMap } from './map/map.js';
import { graft, graftMiss } from './map/graft.js';
import type { MapRoot, NodeSource } from './map/map.js';
import { PendingTable } from './pending.js';

/** The store's side of one device. */
export interface StoredDevice {
  readonly id: number;
  readonly root: MapRoot;
  sizeBytes: number;
  /** Its current layer; 0 until the first write after a freeze. */
  layer: number;
  /** LSN of the last record that froze it: its next layer begins there. */
  frozenLsn: number;
}

/** What a checkpoint keeps of a device. */
export type StoredDeviceRow = [id: number, rootPosition: number, sizeBytes: number, layer: number, frozenLsn: number];

const TWO_32 = 4294967296;

/** Blocks of a byte position; positions pass 2^32, where `>>` would not do. */
export function blockOf(bytes: number): number {
  return bytes < TWO_32 ? bytes >>> BLOCK_SHIFT : Math.floor(bytes / BLOCK_BYTES);
}

export class Store {
  readonly pending = new PendingTable();
  readonly layers: LayerTable;
  readonly map: BlockMap;
  private readonly devices = new Map<number, StoredDevice>();
  /** The device looked up last: requests come in runs. */
  private lastDevice: StoredDevice | undefined;
  /** Roots beside those of the devices that something looks at; a compaction of the map file keeps what they reach. */
  readonly held = new Set<MapRoot>();
  /** Acts since start after which space may be free that was in use: trims, removals, restores. */
  drops = 0;
  /** Blocks written since start: those over blocks of frozen layers may leave them without reference. */
  overwrittenBlocks = 0;
  /** Bytes that writes may still make the layers' files grow by; for space admission. */
  get undestagedBytes(): number {
    return this.pending.blocks * BLOCK_BYTES;
  }

  constructor(reactor: Reactor, layersDirectory: string, loadInner: NodeSource, mapName: string, maxOpenLayers?: number) {
    this.layers = new LayerTable(reactor.io, layersDirectory, maxOpenLayers);
    this.map = new BlockMap(loadInner, mapName);
  }

  /** The device, which exists. */
  device(id: number): StoredDevice {
    const last = this.lastDevice;
    if (last !== undefined && last.id === id) return last;
    const device = this.devices.get(id);
    assert(device !== undefined, `device ${id} has no content`);
    this.lastDevice = device;
    return device;
  }

  /** Undefined: there is no such device. */
  find(id: number): StoredDevice | undefined {
    return this.devices.get(id);
  }

  all(): IterableIterator<StoredDevice> {
    return this.devices.values();
  }

  get deviceCount(): number {
    return this.devices.size;
  }

  /** An all-zero device; its first layer begins behind `lsn`. */
  create(id: number, sizeBytes: number, lsn: number): void {
    assert(!this.devices.has(id), `device ${id} exists`);
    this.devices.set(id, { id, root: this.map.create(blockOf(sizeBytes)), sizeBytes, layer: 0, frozenLsn: lsn });
  }

  /** Ends the device at `lsn`; what only it used is given back in the background. */
  remove(id: number, lsn: number): void {
    const device = this.device(id);
    this.freeze(device, lsn);
    this.drops++;
    this.map.drop(device.root);
    this.devices.delete(id);
    this.lastDevice = undefined;
  }

  /**
   * `target` becomes what `source` is at `lsn`. O(1): both share one tree from here on. `sourceLsn`: where the source is
   * frozen, when it counts otherwise than the target (a local device that is taken of a group's).
   */
  assign(target: number, source: number, lsn: number, sourceLsn = lsn): void {
    const to = this.device(target);
    const from = this.device(source);
    this.freeze(from, sourceLsn);
    this.freeze(to, lsn);
    if (to.root.handle !== 0) this.drops++;
    this.map.assign(to.root, from.root);
    to.sizeBytes = from.sizeBytes;
  }

  /**
   * `target` becomes what `source` is at `lsn` in whole-block ranges (offset,
   * length; bytes), inside both. O(ranges x height). Map nodes at their edges
   * that are not in memory are read at once, so that every node does it at the
   * same point: at most two leaves a range (see `missing` for doing that before).
   * Throws IoError, CorruptionError before anything of the range has changed.
   */
  assignRanges(target: number, source: number, ranges: readonly (readonly [number, number])[], lsn: number): void {
    const to = this.device(target);
    const from = this.device(source);
    // The source's blocks are in two maps from here on. The target keeps its layer: what it wrote there is its own still.
    this.freeze(from, lsn);
    this.drops++;
    for (const [offset, length] of ranges) {
      for (;;) {
        const miss = graft(this.map, to.root, from.root, blockOf(offset), blockOf(length), lsn);
        if (miss === 0) break;
        this.map.loadNow(miss);
      }
    }
  }

  /** A map node that `assignRanges` of this range would have to read first (NodeReads can, without blocking), or 0. Changes nothing. */
  missing(source: number, offset: number, length: number): number {
    return graftMiss(this.map, this.device(source).root, blockOf(offset), blockOf(length));
  }

  /** Whether there is data from byte `from` on: 0 = no, −1 = yes (or zeros that were written in pieces), else a map node to load first. */
  holdsFrom(id: number, from: number): number {
    return this.map.holdsFrom(this.device(id).root, blockOf(from));
  }

  /** Growing adds zeros; what shrinking cuts off is gone for good (BlockMap.resize). */
  resize(id: number, sizeBytes: number, lsn: number): void {
    const device = this.device(id);
    if (sizeBytes < device.sizeBytes) this.drops++;
    this.map.resize(device.root, blockOf(sizeBytes), lsn);
    device.sizeBytes = sizeBytes;
  }

  private freeze(device: StoredDevice, lsn: number): void {
    if (device.layer !== 0) this.layers.freeze(device.layer, lsn);
    device.layer = 0;
    device.frozenLsn = lsn;
  }

  /**
   * Whole blocks [offset, offset + length) were journaled; their bytes lie at
   * `payloadLsn`, the record at `recordLsn`.
   */
  write(id: number, offset: number, length: number, payloadLsn: number, recordLsn: number, epochId: string): void {
    const device = this.device(id);
    if (device.layer === 0) device.layer = this.layers.create(id, device.frozenLsn, epochId);
    const first = blockOf(offset);
    const count = blockOf(length);
    this.map.set(device.root, first, count, device.layer, recordLsn);
    this.overwrittenBlocks += count;
    for (let i = 0; i < count; i++) this.pending.set(device.layer, first + i, payloadLsn + i * BLOCK_BYTES);
  }

  /** The current layer of a device that is written through (local devices): created when there is none. */
  layerFor(device: StoredDevice, identity: string): Layer {
    if (device.layer === 0) device.layer = this.layers.create(device.id, device.frozenLsn, identity);
    return this.layers.get(device.layer);
  }

  /** Whole blocks were written through to the device's current layer, and are its content from here on. */
  wroteThrough(device: StoredDevice, firstBlock: number, count: number, stamp: number): void {
    assert(device.layer !== 0, 'blocks were written through to a layer');
    this.map.set(device.root, firstBlock, count, device.layer, stamp);
    this.overwrittenBlocks += count;
  }

  /** Whole blocks read as zeros from here on. */
  zero(id: number, offset: number, length: number, recordLsn: number): void {
    const device = this.device(id);
    if (device.root.handle !== 0) this.drops++;
    this.map.clear(device.root, blockOf(offset), blockOf(length), recordLsn);
  }

  /**
   * Recovery below the checkpoint: the maps hold this record already, only the
   * place of its bytes must be found again. A record whose layer is gone is
   * referred to by nothing.
   */
  repend(id: number, offset: number, length: number, payloadLsn: number, recordLsn: number): void {
    const layer = this.layers.layerAt(id, recordLsn);
    if (layer === 0) return;
    const first = blockOf(offset);
    const count = blockOf(length);
    for (let i = 0; i < count; i++) this.pending.set(layer, first + i, payloadLsn + i * BLOCK_BYTES);
  }

  /** Takes the devices of a checkpoint; only for an empty store. */
  restore(rows: readonly StoredDeviceRow[]): void {
    assert(this.devices.size === 0, 'restore into a store in use');
    for (const [id, rootPosition, sizeBytes, layer, frozenLsn] of rows) {
      this.devices.set(id, { id, root: this.map.open(rootPosition, blockOf(sizeBytes)), sizeBytes, layer, frozenLsn });
    }
  }

  /** Forgets everything in memory and closes files. */
  close(): void {
    for (const device of this.devices.values()) this.map.drop(device.root);
    this.devices.clear();
    this.lastDevice = undefined;
    this.layers.close();
  }
}
