/**
 * What attach leaves with the kernel as a device's backend, which it shows as
 * /sys/block/nbdN/backend:
 *
 *   lockstep:GROUP/DEVICE [GROUP-ID:DEVICE-ID CONTINUITY-ID]
 *
 * Owns: that text. Must not know: how the kernel is spoken to.
 */

import type { DevicePaths } from './devices.js';
import { backends } from './devices.js';

const PREFIX = 'lockstep:';

/**
 * The export and, when the server is a Lockstep, the two ids of DESIGN §8. The
 * kernel gives a device a new connection only with the same text, so one whose
 * content was restored or rewound meanwhile is never continued.
 */
export function identifierOf(exportName: string, description: string | undefined): string {
  const ids = /device (\S+), continuity ([^\s)]+)\)?$/.exec(description ?? '');
  return `${PREFIX}${exportName}${ids === null ? '' : ` ${ids[1]} ${ids[2]}`}`;
}

export function attachedExport(backend: string | undefined): string | undefined {
  return backend?.startsWith(PREFIX) === true ? backend.slice(PREFIX.length).split(' ')[0] : undefined;
}

/** The two ids of a backend text, which stay when the device gets another name; undefined when the server is no Lockstep. */
export function idsOf(backend: string): string | undefined {
  const space = backend.indexOf(' ');
  return backend.startsWith(PREFIX) && space > 0 ? backend.slice(space + 1) : undefined;
}

/** Whether a backend is this device: no two devices of any groups have both ids in common. */
export function isBackendOf(backend: string, device: { readonly id: number; readonly continuity: string }): boolean {
  return idsOf(backend)?.endsWith(`:${device.id} ${device.continuity}`) === true;
}

export interface Attachment {
  readonly index: number;
  readonly backend: string;
  /** GROUP/DEVICE */
  readonly exportName: string;
}

/** Every device of this machine that a Lockstep export is attached to, by its number. */
export function attachments(paths: DevicePaths): Attachment[] {
  return backends(paths).flatMap(({ index, backend }) => {
    const exportName = attachedExport(backend);
    return exportName === undefined ? [] : [{ index, backend, exportName }];
  }).sort((a, b) => a.index - b.index);
}
