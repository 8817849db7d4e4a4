/** Lists of devices for people. Pure. */

import { formatSize } from '../../base/units.js';
import type { DeviceEntry } from '../../control/schema.js';
import { formatTime, table } from './words.js';

export interface GroupDevices {
  readonly group: string;
  readonly devices: readonly DeviceEntry[];
}

const HEADER = ['NAME', 'ID', 'SIZE', 'CREATED', 'LSN', 'CLIENTS', ''];
const RIGHT = [1, 2, 4, 5];

export function renderList(groups: readonly GroupDevices[]): string {
  return render(groups, (one) => [...one.devices].sort(byName).map((device) => cells(`${one.group}/${device.name}`, device)));
}

/** Snapshots below what they were taken from. */
export function renderTree(groups: readonly GroupDevices[]): string {
  return render(groups, (one) => {
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
      rows.push(cells(name, device));
      const children = below.get(device.id) ?? [];
      for (let i = children.length - 1; i >= 0; i--) {
        const last = i === children.length - 1;
        waiting.push({ device: children[i], name: `${indent}${last ? '└─ ' : '├─ '}${children[i].name}`, indent: indent + (last ? '   ' : '│  ') });
      }
    }
    return rows;
  });
}

function render(groups: readonly GroupDevices[], rowsOf: (one: GroupDevices) => string[][]): string {
  const rows = groups.flatMap(rowsOf);
  if (rows.length === 0) return 'no devices; make one with: lockstep create GROUP/VOLUME SIZE';
  return table(HEADER, rows, RIGHT);
}

function cells(name: string, device: DeviceEntry): string[] {
  return [name, String(device.id), formatSize(device.sizeBytes), formatTime(device.creationTimeMs), String(device.creationLsn), String(device.clients), device.protected ? 'protected' : ''];
}

function byName(a: DeviceEntry, b: DeviceEntry): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}
