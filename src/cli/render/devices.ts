/** Lists of devices for people. Pure. */

import { formatSize } from '../../base/units.js';
import type { DeviceEntry, SizesReply } from '../../control/schema/replies.js';
import { formatTime, table } from './words.js';

export interface GroupDevices {
  readonly group: string;
  readonly devices: readonly DeviceEntry[];
  /** Null when they could not be counted. */
  readonly sizes?: SizesReply | null;
}

const HEADER = ['NAME', 'ID', 'SIZE', 'CREATED', 'LSN', 'CLIENTS', ''];
const RIGHT = [1, 2, 4, 5];
const SIZED_HEADER = ['NAME', 'ID', 'SIZE', 'OWN', 'SHARED', 'CREATED', 'LSN', 'CLIENTS', ''];
const SIZED_RIGHT = [1, 2, 3, 4, 6, 7];

export function renderList(groups: readonly GroupDevices[]): string {
  return render(groups, false, (one) => [...one.devices].sort(byName).map((device) => cells(`${one.group}/${device.name}`, device, undefined)));
}

/** Snapshots below what they were taken from; with sizes when any group has some. */
export function renderTree(groups: readonly GroupDevices[]): string {
  const sized = groups.some((one) => one.sizes !== undefined);
  const rows = render(groups, sized, (one) => {
    const sizes = sized ? new Map((one.sizes?.devices ?? []).map((device) => [device.id, [formatSize(device.ownBytes), formatSize(device.sharedBytes)]])) : undefined;
    const ids = new Set(one.devices.map((device) => device.id));
    const below = new Map<number | null, DeviceEntry[]>();
    for (const device of [...one.devices].sort((a, b) => a.creationLsn - b.creationLsn || a.id - b.id)) {
      const parent = device.parent !== null && ids.has(device.parent) ? device.parent : null;
      const siblings = below.get(parent);
      if (siblings === undefined) below.set(parent, [device]);
      else siblings.push(device);
    }
    const rows: string[][] = [];
    // A stack and no recursion: chains of snapshots may be long. The last one pushed is printed next.
    const waiting = (below.get(null) ?? []).map((device) => ({ device, name: `${one.group}/${device.name}`, indent: '' })).reverse();
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const { device, name, indent } = next;
      rows.push(cells(name, device, sizes));
      const children = below.get(device.id) ?? [];
      for (let i = children.length - 1; i >= 0; i--) {
        const last = i === children.length - 1;
        waiting.push({ device: children[i], name: `${indent}${last ? '└─ ' : '├─ '}${children[i].name}`, indent: indent + (last ? '   ' : '│  ') });
      }
    }
    return rows;
  });
  const stored = groups.flatMap((one) => (one.sizes === undefined || one.sizes === null ? [] : [`${one.group}: ${formatSize(one.sizes.storedBytes)} in all at LSN ${one.sizes.lsn}, shared blocks counted once`]));
  return [rows, ...stored].join('\n');
}

function render(groups: readonly GroupDevices[], sized: boolean, rowsOf: (one: GroupDevices) => string[][]): string {
  const rows = groups.flatMap(rowsOf);
  if (rows.length === 0) return 'no devices; make one with: lockstep create GROUP/VOLUME SIZE';
  return sized ? table(SIZED_HEADER, rows, SIZED_RIGHT) : table(HEADER, rows, RIGHT);
}

/** `sizes`: own and shared bytes in words, by device id; a device that is younger than the count has none. */
function cells(name: string, device: DeviceEntry, sizes: ReadonlyMap<number, readonly string[]> | undefined): string[] {
  const marks = [...(device.kind === 'local' ? ['local'] : []), ...(device.seal === undefined ? [] : ['sealed']), ...(device.protected ? ['protected'] : []), ...(device.set === null ? [] : [`set @${device.set}`])];
  return [
    name, String(device.id), formatSize(device.sizeBytes), ...(sizes === undefined ? [] : (sizes.get(device.id) ?? ['-', '-'])),
    formatTime(device.creationTimeMs), String(device.creationLsn), String(device.clients), marks.join(', '),
  ];
}

function byName(a: DeviceEntry, b: DeviceEntry): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}
