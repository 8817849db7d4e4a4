/**
 * The layers of a group: what one device wrote between two freezes, each a
 * sparse file in which a block lies at its device offset (DESIGN §5).
 *
 * Owns: layer numbers, identities, files and their descriptors. Must not know:
 * maps, the journal, who reads.
 *
 * A layer's file is created by the destager at first need. Its name carries the
 * identity (epoch, LSN, device, ordinal) of what created it, so that a stale
 * file is never mistaken for a new one.
 */

import { assert } from '../base/assert.js';
import { BLOCK_BYTES, isLocalDevice, MAX_DEVICE_BYTES, MIB } from '../base/units.js';
import { CorruptionError, Errno, IoError } from '../base/errors.js';
import { O } from '../io/io.js';
import type { Io } from '../io/io.js';

export interface Layer {
  readonly number: number;
  readonly device: number;
  /** LSN of the record that made the device start a new layer; writes above it go here. */
  readonly createdLsn: number;
  readonly epochId: string;
  /** Tells layers of one device and LSN apart. */
  readonly ordinal: number;
  /** LSN of the record that froze it, or 0: current. Its content covers (createdLsn, frozenLsn]. */
  frozenLsn: number;
  /** Whether its file exists (as far as this process knows). */
  hasFile: boolean;
  /** Whether the file's name is durable: only then a checkpoint may say that it exists. */
  named: boolean;
  /** A checkpoint said that it exists, and it does not: removed because nothing referred to it, or damage. */
  missing: boolean;
  /** Open descriptor, or −1. */
  fd: number;
  /** Jobs in flight that use fd. */
  holds: number;
  /** For the choice of a descriptor to close. */
  usedAt: number;
  /** Writes through to its file whose map entries are still to come (local devices), and punches in flight: never both at once. */
  writing: number;
  punching: number;
  /** `isThin` has said so. */
  thin: boolean;
  /** It was looked whether it is. */
  judged: boolean;
}

/** Where a committed checkpoint stands. */
export interface Cut {
  /** LSN in the group's journal, and below which everything is in the files as it knows it. */
  readonly at: number;
  readonly lowWater: number;
  /** Stamp in the local journal. */
  readonly localStamp: number;
}

/** Whether the layer was frozen before the checkpoint: what that does not refer to in it will never be referred to. */
export function frozenBefore(layer: Layer, cut: Cut): boolean {
  return layer.frozenLsn !== 0 && layer.frozenLsn < (isLocalDevice(layer.device) ? cut.localStamp : cut.at);
}

/** Whether it is frozen and all of it lies in its file, as the checkpoint knows it; local devices are written through, so there the freeze is enough. */
export function allInFile(layer: Layer, cut: Cut): boolean {
  return layer.frozenLsn !== 0 && (isLocalDevice(layer.device) ? layer.frozenLsn < cut.localStamp : layer.frozenLsn <= cut.lowWater);
}

/** What a checkpoint keeps of a layer. `hasFile`: the file exists for sure, durably; it may also exist without. */
export type LayerRow = [number: number, device: number, createdLsn: number, epochId: string, ordinal: number, frozenLsn: number, hasFile: boolean];

/** A file with less than one byte in so many is thin: 8 pages in one of the kernel's nodes for 64. */
const THIN = 8;
/** Files held open where nobody says how many there may be. */
const MAX_OPEN_LAYERS = 512;
/** Open files that are looked at for one to close. */
const CLOSE_SAMPLE = 16;

/**
 * The longest file that the file system of `directory` can hold (ext4: 16 TiB
 * less a block), as a power of two: a device must not be larger, for a block
 * lies at its device offset. Throws IoError.
 */
export function longestFileBytes(io: Io, directory: string): number {
  const path = `${directory}/probe`;
  const fd = io.open(path, O.RDWR | O.CREAT | O.TRUNC | O.CLOEXEC, 0o600);
  if (fd < 0) throw new IoError(-fd, 'create', path);
  let bytes = MAX_DEVICE_BYTES;
  while (bytes > MIB && io.truncate(fd, bytes - BLOCK_BYTES) < 0) bytes /= 2;
  io.close(fd);
  const removed = io.unlink(path);
  if (removed < 0) throw new IoError(-removed, 'remove', path);
  return bytes;
}

function layerFileName(layer: Pick<Layer, 'device' | 'createdLsn' | 'epochId' | 'ordinal'>): string {
  return `device-${layer.device}-lsn-${layer.createdLsn}-${layer.ordinal}-epoch-${layer.epochId}`;
}

export class LayerTable {
  private readonly byNumber = new Map<number, Layer>();
  /** Layers per device, oldest first. */
  private readonly byDevice = new Map<number, Layer[]>();
  private nextNumber = 1;
  /** With a descriptor, in the order in which they were opened or last looked at for closing. */
  private readonly opened = new Set<Layer>();
  private clock = 0;
  /** Layers whose files were created since `takeDirectoryDirty`, and those that it reported. */
  private fresh: Layer[] = [];
  private syncing: Layer[] = [];
  /** Current layers of the checkpoint that was restored: their files are never removed. */
  private expected: Layer[] = [];

  /** `maxOpen`: files held open at a time; less when the process runs out of descriptors. */
  constructor(private readonly io: Io, readonly directory: string, private maxOpen = MAX_OPEN_LAYERS) {}

  /** A new current layer of a device, whose writes begin above `createdLsn`. */
  create(device: number, createdLsn: number, epochId: string): number {
    const siblings = this.byDevice.get(device) ?? [];
    const ordinal = siblings.filter((other) => other.createdLsn === createdLsn).length;
    const layer: Layer = {
      number: this.nextNumber++, device, createdLsn, epochId, ordinal, frozenLsn: 0, hasFile: false, named: false, missing: false, fd: -1, holds: 0, usedAt: 0,
      writing: 0, punching: 0, thin: false, judged: false,
    };
    assert(layer.number <= 0xffffffff, 'layer numbers are used up');
    this.insert(layer);
    return layer.number;
  }

  /** The layer, which exists. */
  get(number: number): Layer {
    const layer = this.byNumber.get(number);
    assert(layer !== undefined, `layer ${number} is unknown`);
    return layer;
  }

  /** Undefined: there is no such layer (any more). */
  find(number: number): Layer | undefined {
    return this.byNumber.get(number);
  }

  all(): IterableIterator<Layer> {
    return this.byNumber.values();
  }

  get count(): number {
    return this.byNumber.size;
  }

  /** Records above `lsn` are not written to it; its logical content stays as it is. */
  freeze(number: number, lsn: number): void {
    const layer = this.get(number);
    assert(layer.frozenLsn === 0, `layer ${number} is frozen already`);
    layer.frozenLsn = lsn;
  }

  /**
   * The layer that took the writes of `device` at `lsn`, or 0 when it is gone
   * (then nothing refers to that write any more). Used to find pending blocks
   * again at recovery.
   */
  layerAt(device: number, lsn: number): number {
    const layers = this.byDevice.get(device);
    if (layers === undefined) return 0;
    for (let i = layers.length - 1; i >= 0; i--) {
      const layer = layers[i];
      if (layer.createdLsn >= lsn) continue;
      return layer.frozenLsn === 0 || lsn <= layer.frozenLsn ? layer.number : 0;
    }
    return 0;
  }

  /**
   * Descriptor of a layer's file, or −1 when the file does not exist yet (its blocks are all pending). Throws
   * IoError; CorruptionError when it must exist and does not.
   */
  descriptor(layer: Layer): number {
    layer.usedAt = ++this.clock;
    if (layer.fd >= 0) return layer.fd;
    if (layer.missing) throw new CorruptionError(this.path(layer), 0, 'the layer file is missing, although blocks of it are in use');
    if (!layer.hasFile) return -1;
    return this.openFile(layer, O.RDWR | O.CLOEXEC);
  }

  /** The same for writing: creates the file. */
  descriptorForWrite(layer: Layer): number {
    layer.usedAt = ++this.clock;
    if (layer.fd >= 0) return layer.fd;
    if (layer.hasFile) return this.openFile(layer, O.RDWR | O.CLOEXEC);
    const fd = this.openFile(layer, O.RDWR | O.CREAT | O.CLOEXEC);
    layer.hasFile = true;
    this.fresh.push(layer);
    return fd;
  }

  /**
   * Whether the layer's blocks that are in its file, which is open, will never change, and are few and far between: then
   * its pages are slow to find (blockcache.ts). Looked at once, when it is first read after its freeze.
   */
  isThin(layer: Layer): boolean {
    if (layer.judged) return layer.thin;
    if (layer.frozenLsn === 0 || layer.writing > 0) return false;
    layer.judged = true;
    try {
      const { size, allocated } = this.io.stat(layer.fd);
      layer.thin = allocated * THIN < size;
    } catch (error) {
      // What it is like is of use, no need: its blocks are read all the same, and that says what is wrong with it.
      if (!(error instanceof IoError)) throw error;
    }
    return layer.thin;
  }

  /** Whether files were created since the last call: then the directory needs an fsync before a checkpoint may name them. */
  takeDirectoryDirty(): boolean {
    this.syncing.push(...this.fresh);
    this.fresh = [];
    return this.syncing.length > 0;
  }

  /** The directory's fsync failed: it must be tried again. */
  setDirectoryDirty(): void {
    this.fresh.push(...this.syncing);
    this.syncing = [];
  }

  /** The directory's fsync that `takeDirectoryDirty` asked for has succeeded. */
  directorySynced(): void {
    for (const layer of this.syncing) layer.named = true;
    this.syncing = [];
  }

  /** First half of a removal of a layer that nothing refers to: closes its file, which is then to be unlinked. */
  retire(layer: Layer): void {
    assert(layer.holds === 0, `layer ${layer.number} is in use`);
    if (layer.fd >= 0) this.closeFile(layer);
  }

  /** Second half, when its file is gone: drops the layer. */
  forget(number: number): void {
    const layer = this.get(number);
    assert(layer.holds === 0 && layer.fd < 0, `layer ${number} is in use`);
    this.byNumber.delete(number);
    const siblings = this.byDevice.get(layer.device)!;
    siblings.splice(siblings.indexOf(layer), 1);
    if (siblings.length === 0) this.byDevice.delete(layer.device);
  }

  /** Where its file lies, or would lie. */
  path(layer: Layer): string {
    return `${this.directory}/${layerFileName(layer)}`;
  }

  rows(): { next: number; layers: LayerRow[] } {
    const layers: LayerRow[] = [];
    for (const l of this.byNumber.values()) layers.push([l.number, l.device, l.createdLsn, l.epochId, l.ordinal, l.frozenLsn, l.named]);
    return { next: this.nextNumber, layers };
  }

  /** Rows of some time ago, with what is known now about the files' names. */
  named(rows: readonly LayerRow[]): LayerRow[] {
    return rows.map((row) => [row[0], row[1], row[2], row[3], row[4], row[5], row[6] || this.byNumber.get(row[0])?.named === true]);
  }

  /** Takes the table of a checkpoint; only for an empty table. */
  restore(next: number, rows: LayerRow[]): void {
    assert(this.byNumber.size === 0, 'restore into a table in use');
    this.nextNumber = next;
    for (const [number, device, createdLsn, epochId, ordinal, frozenLsn, hasFile] of rows) {
      const layer: Layer = {
        number, device, createdLsn, epochId, ordinal, frozenLsn, hasFile, named: hasFile, missing: false, fd: -1, holds: 0, usedAt: 0, writing: 0, punching: 0,
        thin: false, judged: false,
      };
      this.insert(layer);
      if (hasFile && frozenLsn === 0) this.expected.push(layer);
    }
  }

  /**
   * After recovery: a layer whose file was created after the checkpoint is
   * found again by its name; files that no layer has are deleted, for they
   * belong to what was undone or removed. A file that is missing belongs to a
   * layer that nothing refers to (its removal may be younger than the checkpoint),
   * or is damage: reading it says so. Returns the deleted names. Throws IoError,
   * CorruptionError.
   */
  reconcile(): string[] {
    const known = new Map<string, Layer>();
    for (const layer of this.byNumber.values()) {
      known.set(layerFileName(layer), layer);
      layer.missing = layer.hasFile;
    }
    const deleted: string[] = [];
    // A process that was killed may have made files whose names were not durable yet: what is found here is used.
    const named = this.io.syncDirectory(this.directory);
    if (named < 0) throw new IoError(-named, 'fsync', this.directory);
    for (const name of this.io.list(this.directory)) {
      if (!name.startsWith('device-')) continue;
      const layer = known.get(name);
      if (layer !== undefined) {
        layer.hasFile = true;
        layer.named = true;
        layer.missing = false;
        continue;
      }
      const path = `${this.directory}/${name}`;
      const result = this.io.unlink(path);
      if (result < 0) throw new IoError(-result, 'remove stale layer file', path);
      deleted.push(name);
    }
    for (const layer of known.values()) if (layer.missing) layer.hasFile = false;
    for (const layer of this.expected) {
      if (layer.missing) throw new CorruptionError(this.path(layer), 0, 'the layer file that the checkpoint names is missing');
    }
    this.expected = [];
    return deleted;
  }

  /**
   * After a failed fdatasync, pages of these devices' layers may look written and not be on the disk: from here on is
   * read what the disk has. Blocking; throws IoError.
   */
  reread(which: (device: number) => boolean): void {
    for (const layer of this.byNumber.values()) {
      if (!layer.hasFile || !which(layer.device)) continue;
      this.io.adviseDontNeed(this.sync(layer), 0, 0);
    }
  }

  /**
   * What a process before this one was writing when it ended is read from here on, although nobody was told that it was
   * written: makes it durable, for no write that comes will. Blocking; throws IoError.
   */
  syncCurrent(which: (device: number) => boolean): void {
    for (const layer of this.byNumber.values()) if (layer.hasFile && layer.frozenLsn === 0 && which(layer.device)) this.sync(layer);
  }

  /** Returns its descriptor. */
  private sync(layer: Layer): number {
    const fd = this.descriptor(layer);
    const synced = this.io.fdatasync(fd);
    if (synced < 0) throw new IoError(-synced, 'fdatasync layer file', this.path(layer));
    return fd;
  }

  close(): void {
    for (const layer of this.byNumber.values()) if (layer.fd >= 0) this.closeFile(layer);
  }

  private insert(layer: Layer): void {
    this.byNumber.set(layer.number, layer);
    const siblings = this.byDevice.get(layer.device);
    if (siblings === undefined) this.byDevice.set(layer.device, [layer]);
    else siblings.push(layer);
  }

  private openFile(layer: Layer, flags: number): number {
    if (this.opened.size >= this.maxOpen) this.closeUnused();
    const path = this.path(layer);
    let fd = this.openQuietly(path, flags);
    while (fd === -Errno.EMFILE && this.closeUnused()) {
      this.maxOpen = Math.max(1, this.opened.size);
      fd = this.openQuietly(path, flags);
    }
    if (fd < 0) throw new IoError(-fd, 'open layer file', path);
    this.io.adviseRandom(fd);
    layer.fd = fd;
    this.opened.add(layer);
    return fd;
  }

  /**
   * Without noting when it was read, which costs the kernel a look at two more cold cache lines of each of many files
   * (0.09 us of 0.92 per cached read from one file, 0.25 of 1.87 from a thousand); where somebody else owns it, with.
   */
  private openQuietly(path: string, flags: number): number {
    const fd = this.io.open(path, flags | O.NOATIME, 0o600);
    return fd === -Errno.EPERM ? this.io.open(path, flags, 0o600) : fd;
  }

  private closeFile(layer: Layer): void {
    this.io.close(layer.fd);
    layer.fd = -1;
    this.opened.delete(layer);
  }

  /**
   * Closes a file that was not used lately: of a few, in turn, the one unused for longest. Thousands of layers may
   * be read in turn, so neither a look at all of them nor a list in order of use, kept at every read, would do.
   * False: all are in use.
   */
  private closeUnused(): boolean {
    let looks = this.opened.size;
    let sampled = 0;
    let oldest: Layer | undefined;
    for (const layer of this.opened) {
      if (looks-- === 0 || sampled === CLOSE_SAMPLE) break;
      this.opened.delete(layer);
      this.opened.add(layer);
      if (layer.holds > 0) continue;
      sampled++;
      if (oldest === undefined || layer.usedAt < oldest.usedAt) oldest = layer;
    }
    if (oldest === undefined) return false;
    this.closeFile(oldest);
    return true;
  }
}
