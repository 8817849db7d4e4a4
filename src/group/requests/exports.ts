/**
 * The devices of a group as clients see them: one view per device, kept in
 * step with the tree, and the clients that have it open.
 *
 * Owns: views, client lists, answers about allocation. Must not know: NBD, what
 * operations are under way.
 */

import { BLOCK_BYTES, deviceId } from '../../base/units.js';
import type { DeviceId } from '../../base/units.js';
import type { BlockReader } from '../../store/read.js';
import { blockOf } from '../../store/store.js';
import type { StoredDevice } from '../../store/store.js';
import type { DeviceClient, DeviceView } from './service.js';
import { ExtentFlag } from './service.js';
import type { Tree } from '../tree/tree.js';
import type { Device } from '../tree/device.js';

/** What the views need to know of their group. */
export interface ExportsHost {
  readonly name: string;
  readonly groupId: string | undefined;
  readonly tree: Tree;
  /** Clients may read. */
  readonly serving: boolean;
  /** Clients may write. */
  readonly writable: boolean;
  readonly local: { views(): Iterable<LocalView> } | undefined;
}

/** A device that exists on this node only, as its view needs it. */
export interface LocalView {
  readonly id: number;
  readonly name: string;
  readonly sizeBytes: number;
  /** Clients may have it open. */
  readonly usable: boolean;
  /** And write to it. */
  readonly writable: boolean;
  readonly identity: string;
  readonly continuity: string;
  readonly description: string;
}

export class ExportView implements DeviceView {
  readonly id: DeviceId;
  readonly clients = new Set<DeviceClient>();
  sizeBytes = 0;
  writable = false;
  gone = false;
  /** Why it is gone for now, when that is not the group's state. */
  notYet: string | undefined;
  exportName = '';
  deviceIdentity = '';
  continuityIdentity = '';
  description = '';

  /** `owner` is the group that serves it; service.ts' implementation hands it requests. */
  constructor(readonly owner: object, id: number) {
    this.id = deviceId(id);
  }
}

/** Blocks looked at per step of an allocation query. */
const EXTENT_STEP = 4096;

export class Exports {
  private readonly views = new Map<number, ExportView>();
  private readonly layers = new Uint32Array(EXTENT_STEP);

  constructor(private readonly host: ExportsHost) {}

  /** Brings the views in step with tree and role; clients of removed devices are disconnected. */
  update(): void {
    const { host } = this;
    const { tree } = host;
    const locals = new Map([...host.local?.views() ?? []].map((local) => [local.id, local]));
    for (const [id, view] of this.views) {
      if (tree.get(id) !== undefined || locals.has(id)) continue;
      view.gone = true;
      this.views.delete(id);
      disconnect(view, `${view.exportName} was removed`);
    }
    for (const device of tree.all()) {
      const view = this.viewOf(device.id);
      view.exportName = `${host.name}/${tree.nameOf(device)}`;
      // A client would go on with what was cut off (on a primary, operations/judge.ts had it disconnected before).
      if (device.sizeBytes < view.sizeBytes) disconnect(view, `${view.exportName} was made smaller`);
      view.sizeBytes = device.sizeBytes;
      view.writable = host.writable && !(device.protected && device.kind === 'snapshot');
      view.gone = !host.serving;
      view.deviceIdentity = `${host.groupId ?? ''}:${device.id}`;
      view.continuityIdentity = device.continuity;
      view.description = describe(tree, device);
    }
    for (const local of locals.values()) {
      const view = this.viewOf(local.id);
      view.exportName = `${host.name}/${local.name}`;
      if (local.sizeBytes < view.sizeBytes) disconnect(view, `${view.exportName} was made smaller`);
      view.sizeBytes = local.sizeBytes;
      // Also on a secondary: its content is this node's own.
      view.writable = host.serving && local.writable;
      view.gone = !host.serving || !local.usable;
      view.notYet = local.usable ? undefined : 'it is being made or replaced and cannot be used yet; lockstep status says what it waits for';
      view.deviceIdentity = local.identity;
      view.continuityIdentity = local.continuity;
      view.description = local.description;
    }
  }

  private viewOf(id: number): ExportView {
    let view = this.views.get(id);
    if (view === undefined) {
      view = new ExportView(this.host, id);
      this.views.set(id, view);
    }
    return view;
  }

  all(): IterableIterator<ExportView> {
    return this.views.values();
  }

  /** By name within the group: `volume`, `volume@snapshot` or `volume~local`. */
  find(name: string): ExportView | undefined {
    const device = this.host.tree.find(name);
    if (device !== undefined) return this.views.get(device.id);
    for (const local of this.host.local?.views() ?? []) if (local.name === name) return this.views.get(local.id);
    return undefined;
  }

  get(id: number): ExportView | undefined {
    return this.views.get(id);
  }

  clientsOf(id: number): number {
    return this.views.get(id)?.clients.size ?? 0;
  }

  disconnectDevice(id: number, reason: string): void {
    const view = this.views.get(id);
    if (view !== undefined) disconnect(view, reason);
  }

  disconnectAll(reason: string): void {
    for (const view of this.views.values()) disconnect(view, reason);
  }

  /**
   * Allocation of [offset, offset + length) as pairs (bytes, flags) into `out`;
   * `done` gets the number of pairs, or −errno. Holes are what no layer has;
   * zeros that were written as data are data.
   */
  extents(device: StoredDevice, reader: BlockReader, offset: number, length: number, out: Float64Array, done: (count: number) => void): void {
    let pairs = 0;
    let at = offset;
    const end = offset + length;
    /** False: `out` is full. */
    const add = (endBlock: number, flags: number): boolean => {
      const bytes = Math.min(end, endBlock * BLOCK_BYTES) - at;
      if (pairs > 0 && out[2 * pairs - 1] === flags) {
        out[2 * pairs - 2] += bytes;
      } else {
        if (2 * pairs === out.length) return false;
        out[2 * pairs] = bytes;
        out[2 * pairs + 1] = flags;
        pairs++;
      }
      at += bytes;
      return true;
    };
    const hole = ExtentFlag.hole | ExtentFlag.zero;
    const step = (): void => {
      while (at < end) {
        const first = blockOf(at);
        // A terabyte of nothing must not cost the data thread a look at each of its blocks.
        const zeros = reader.zeroRun(device, first);
        if (zeros > 0) {
          if (add(first + zeros, hole)) continue;
          break;
        }
        const count = Math.min(EXTENT_STEP, blockOf(end - 1) - first + 1);
        const missed = reader.resolve(device, first, count, this.layers);
        if (missed !== 0) {
          reader.loadNode(missed, (result) => {
            const refused = result < 0 ? result : reader.outside(device, end);
            if (refused < 0) done(refused);
            else step();
          });
          return;
        }
        for (let i = 0; i < count; i++) {
          if (add(first + i + 1, this.layers[i] === 0 ? hole : 0)) continue;
          done(pairs);
          return;
        }
      }
      done(pairs);
    };
    step();
  }
}

function disconnect(view: ExportView, reason: string): void {
  for (const client of [...view.clients]) client.disconnect(reason);
}

function describe(tree: Tree, device: Device): string {
  const parent = tree.get(device.parent);
  return device.kind === 'volume' ? 'volume' : `snapshot of ${parent === undefined ? 'a removed device' : tree.nameOf(parent)}`;
}
