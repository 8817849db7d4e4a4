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
import type { LocalDevice, LocalTree } from '../local/tree.js';
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
  readonly local: LocalDevices | undefined;
  readonly options: { readonly node: string };
}

/** The devices that exist on this node only. */
export interface LocalDevices {
  readonly tree: LocalTree;
  /** Clients may have it open. */
  usable(device: LocalDevice): boolean;
}

/** Its words are made when somebody asks for them: each marker updates all views, and clients look at few. */
export abstract class ExportView implements DeviceView {
  readonly id: DeviceId;
  readonly clients = new Set<DeviceClient>();
  sizeBytes = 0;
  writable = false;
  gone = false;
  /** Why it is gone for now, when that is not the group's state. */
  notYet: string | undefined;
  abstract readonly exportName: string;
  abstract readonly deviceIdentity: string;
  abstract readonly continuityIdentity: string;
  abstract readonly description: string;

  /** `owner` is the group that serves it; service.ts' implementation hands it requests. */
  constructor(readonly owner: ExportsHost, id: number) {
    this.id = deviceId(id);
  }
}

/** A device of the group, as it is in `tree`. */
class TreeView extends ExportView {
  constructor(owner: ExportsHost, public tree: Tree, public device: Device) {
    super(owner, device.id);
  }

  get exportName(): string {
    return `${this.owner.name}/${this.tree.nameOf(this.device)}`;
  }

  get deviceIdentity(): string {
    return `${this.owner.groupId ?? ''}:${this.id}`;
  }

  get continuityIdentity(): string {
    return this.device.continuity;
  }

  get description(): string {
    const parent = this.tree.get(this.device.parent);
    return this.device.kind === 'volume' ? 'volume' : `snapshot of ${parent === undefined ? 'a removed device' : this.tree.nameOf(parent)}`;
  }
}

/** A device of this node only. */
class LocalView extends ExportView {
  constructor(owner: ExportsHost, public device: LocalDevice) {
    super(owner, device.id);
  }

  get exportName(): string {
    return `${this.owner.name}/${this.device.name}`;
  }

  get deviceIdentity(): string {
    return `${this.owner.groupId ?? ''}:${this.owner.options.node}:${this.id}`;
  }

  get continuityIdentity(): string {
    return `local:${this.device.changedLsn}`;
  }

  get description(): string {
    const { tree, local, options } = this.owner;
    const source = tree.get(this.device.source);
    const name = source !== undefined ? tree.nameOf(source) : local?.tree.get(this.device.source)?.name ?? 'a removed device';
    return `local snapshot of ${name}, on node ${options.node} only`;
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
    const { tree, local } = host;
    for (const [id, view] of this.views) {
      if (tree.get(id) !== undefined || local?.tree.get(id) !== undefined) continue;
      view.gone = true;
      this.views.delete(id);
      disconnect(view, `${view.exportName} was removed`);
    }
    for (const device of tree.all()) {
      const known = this.views.get(device.id);
      const view = known instanceof TreeView ? known : this.add(new TreeView(host, tree, device));
      view.tree = tree;
      view.device = device;
      // A client would go on with what was cut off (on a primary, operations/judge.ts had it disconnected before).
      if (device.sizeBytes < view.sizeBytes) disconnect(view, `${view.exportName} was made smaller`);
      view.sizeBytes = device.sizeBytes;
      view.writable = host.writable && !(device.protected && device.kind === 'snapshot');
      view.gone = !host.serving;
    }
    if (local === undefined) return;
    for (const device of local.tree.all()) {
      const known = this.views.get(device.id);
      const view = known instanceof LocalView ? known : this.add(new LocalView(host, device));
      view.device = device;
      if (device.sizeBytes < view.sizeBytes) disconnect(view, `${view.exportName} was made smaller`);
      view.sizeBytes = device.sizeBytes;
      const usable = local.usable(device);
      // Also on a secondary: its content is this node's own.
      view.writable = host.serving && device.sealedLsn === 0;
      view.gone = !host.serving || !usable;
      view.notYet = usable ? undefined : 'it is being made or replaced and cannot be used yet; lockstep status says what it waits for';
    }
  }

  private add<View extends ExportView>(view: View): View {
    this.views.set(view.id, view);
    return view;
  }

  all(): IterableIterator<ExportView> {
    return this.views.values();
  }

  /** By name within the group: `volume`, `volume@snapshot` or `volume~local`. */
  find(name: string): ExportView | undefined {
    const device = this.host.tree.find(name) ?? this.host.local?.tree.find(name);
    return device === undefined ? undefined : this.views.get(device.id);
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
