/**
 * All groups of a node as one BlockService: what the NBD layer talks to.
 *
 * Owns: export names → groups. Must not know: NBD.
 */

import { Errno } from '../base/errors.js';
import { ExportView } from './requests/exports.js';
import type { Group } from './group.js';
import type { RequestTable } from './requests/requests.js';
import type { BlockService, DeviceClient, DeviceView } from './requests/service.js';

export class NodeBlocks implements BlockService {
  private readonly groups = new Map<string, Group>();

  constructor(readonly requests: RequestTable) {}

  add(group: Group): void {
    this.groups.set(group.name, group);
  }

  all(): IterableIterator<Group> {
    return this.groups.values();
  }

  group(name: string): Group | undefined {
    return this.groups.get(name);
  }

  list(): DeviceView[] {
    const views: DeviceView[] = [];
    for (const group of this.groups.values()) for (const view of group.exports.all()) if (!view.gone) views.push(view);
    return views;
  }

  find(exportName: string): DeviceView | { readonly unavailable: string } | undefined {
    const slash = exportName.indexOf('/');
    if (slash < 0) return undefined;
    const group = this.groups.get(exportName.slice(0, slash));
    if (group === undefined) return undefined;
    const view = group.exports.find(exportName.slice(slash + 1));
    if (view === undefined) return undefined;
    return view.gone ? { unavailable: view.notYet ?? `group ${group.name} is ${group.role}: ${group.roleReason}` } : view;
  }

  addClient(view: DeviceView, client: DeviceClient): void {
    own(view).clients.add(client);
  }

  removeClient(view: DeviceView, client: DeviceClient): void {
    own(view).clients.delete(client);
  }

  submit(view: DeviceView, slot: number): void {
    (own(view).owner as Group).submit(slot);
  }

  extents(view: DeviceView, offset: number, length: number, out: Float64Array, done: (count: number) => void): void {
    const group = own(view).owner as Group;
    const device = group.hasContent ? group.content.store.find(view.id) : undefined;
    if (device === undefined || view.gone) done(-Errno.ESHUTDOWN);
    else if (offset + length > device.sizeBytes) done(-Errno.EINVAL);
    else group.exports.extents(device, group.content.reader, offset, length, out, done);
  }
}

/** Views come from `list` and `find` only. */
function own(view: DeviceView): ExportView {
  if (view instanceof ExportView) return view;
  throw new TypeError('a view of another service');
}
