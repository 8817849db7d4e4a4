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
    const children = (parent: number | null): DeviceEntry[] => one.devices.filter((device) => (device.parent !== null && ids.has(device.parent) ? device.parent : null) === parent).sort((a, b) => a.creationLsn - b.creationLsn || a.id - b.id);
    const rows: string[][] = [];
    const walk = (device: DeviceEntry, prefix: string, branch: string): void => {
      rows.push(cells(`${prefix}${branch}${branch === '' ? `${one.group}/` : ''}${device.name}`, device));
      const below = children(device.id);
      const deeper = branch === '' ? prefix : prefix + (branch.startsWith('└') ? '   ' : '│  ');
      below.forEach((child, i) => walk(child, deeper, i === below.length - 1 ? '└─ ' : '├─ '));
    };
    for (const top of children(null)) walk(top, '', '');
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
