/**
 * Tells the kernel's nbd client what size an attached device has now. The
 * kernel is told a size when a device is attached and never asks again.
 *
 * Owns: which attached device is which export, and that it is still the same
 * one. Must not know: how a device is resized.
 */

import { IoError, OperatorError } from '../../base/errors.js';
import { parseExportName } from '../../base/names.js';
import { formatSize } from '../../base/units.js';
import type { DeviceEntry } from '../../control/schema/replies.js';
import { REAL_SYSTEM } from './attach-system.js';
import type { AttachSystem, NbdKernel } from './attach-system.js';
import { EXIT_FAILED, deviceArgument } from '../context.js';
import type { Context } from '../context.js';
import { attachments, identifierOf, isBackendOf } from './backends.js';
import type { Attachment } from './backends.js';
import { deviceIndex, devicePath, sizeOf } from './devices.js';
import { shakeHands } from './handshake.js';
import { serverAddress } from './server.js';

export interface Resized {
  /** "/dev/nbd0" */
  readonly device: string;
  readonly export: string;
  readonly beforeBytes: number;
  readonly sizeBytes: number;
}

/**
 * Makes the kernel know the size of one attached device. No request is lost or
 * refused meanwhile, mounted or not. Throws OperatorError or IoError.
 */
function tellSize(system: AttachSystem, kernel: NbdKernel, attached: Attachment, sizeBytes: number): Resized {
  const device = devicePath(attached.index);
  const beforeBytes = sizeOf(system.paths, attached.index);
  if (beforeBytes !== sizeBytes) {
    // The kernel refuses a change without the text that it was attached with.
    kernel.reconfigure(attached.index, { sizeBytes, identifier: attached.backend });
    const now = sizeOf(system.paths, attached.index);
    if (now !== sizeBytes) throw new OperatorError('nbd/not-resized', `the kernel keeps ${device} at ${formatSize(now)}; detach it and attach it anew to see the ${formatSize(sizeBytes)} of ${attached.exportName}`);
  }
  return { device, export: attached.exportName, beforeBytes, sizeBytes };
}

/** `lockstep attach --resize [GROUP/DEVICE | /dev/nbdN]`; without a name: every Lockstep device that is attached here. */
export async function resizeAttached(context: Context, server: string | undefined, words: string | undefined, more: string | undefined): Promise<void> {
  if (more !== undefined) throw new OperatorError('usage', 'with --resize, name GROUP/DEVICE or /dev/nbdN, not both');
  const system = context.streams.attachSystem ?? REAL_SYSTEM;
  const chosen = choose(system, words);
  const kernel = system.openKernel();
  try {
    const done: Resized[] = [];
    for (const attached of chosen) {
      try {
        done.push(tellSize(system, kernel, attached, await presentSize(context, system, server, attached)));
      } catch (error) {
        // One that cannot be told does not keep the others from it.
        if (chosen.length === 1) throw error;
        context.fail(error);
        context.exitCode = EXIT_FAILED;
      }
    }
    context.print({ devices: done }, () => (done.length === 0 ? 'no device was told anything' : done.map(resizedWords).join('\n')));
  } finally {
    kernel.close();
  }
}

/**
 * After `device` of a group was resized: tells every /dev/nbdN of this machine
 * that it is attached to. What goes wrong is said on standard error: the resize
 * is done, and `attach --resize` can be run again.
 */
export function tellAttached(context: Context, group: string, device: DeviceEntry): Resized[] {
  const system = context.streams.attachSystem ?? REAL_SYSTEM;
  const exportName = `${group}/${device.name}`;
  // By ids: the device may have been attached under another name, and another cluster's may have the same one.
  const same = attachments(system.paths).filter((one) => isBackendOf(one.backend, device));
  return same.flatMap((attached) => {
    try {
      const kernel = system.openKernel();
      try {
        return [tellSize(system, kernel, attached, device.sizeBytes)];
      } finally {
        kernel.close();
      }
    } catch (error) {
      if (!(error instanceof OperatorError || error instanceof IoError)) throw error;
      context.streams.err(`lockstep: ${devicePath(attached.index)} does not know the new size yet: ${error.message}; then run: lockstep attach --resize ${exportName}\n`);
      return [];
    }
  });
}

export function resizedWords(one: Resized): string {
  if (one.beforeBytes === one.sizeBytes) return `${one.device} (${one.export}) has ${formatSize(one.sizeBytes)}, as before`;
  const next = one.sizeBytes > one.beforeBytes ? '; now grow what is on it (resize2fs, xfs_growfs, btrfs filesystem resize)' : '';
  return `${one.device} (${one.export}) has ${formatSize(one.sizeBytes)} now; before: ${formatSize(one.beforeBytes)}${next}`;
}

function choose(system: AttachSystem, words: string | undefined): Attachment[] {
  const all = attachments(system.paths);
  if (words === undefined) {
    if (all.length === 0) throw new OperatorError('nbd/not-attached', 'no Lockstep device is attached here that the kernel names (it does since Linux 5.14)');
    return all;
  }
  const index = deviceIndex(words);
  const exportName = index === undefined ? nameOf(words) : undefined;
  const chosen = all.filter((one) => (index === undefined ? one.exportName === exportName : one.index === index));
  if (chosen.length > 0) return chosen;
  throw new OperatorError('nbd/not-attached', `${index === undefined ? `${words} is attached to no device` : `nothing of Lockstep is attached to ${devicePath(index)}`} that the kernel names; if it is attached all the same, detach it and attach it anew`);
}

function nameOf(words: string): string {
  const { group, device } = deviceArgument(words);
  return `${group}/${device}`;
}

/** What the server says in the NBD handshake; without one, what the daemon of this machine says. Throws when it is not what was attached. */
async function presentSize(context: Context, system: AttachSystem, server: string | undefined, attached: Attachment): Promise<number> {
  const changed = new OperatorError('nbd/changed',
    `${attached.exportName} is not what ${devicePath(attached.index)} was attached to any more: it was restored, shrunk, replaced or rewound meanwhile, or it is of another server (name that with --server). Unmount it, detach it and attach it anew`);
  if (server !== undefined) {
    const address = await serverAddress(context, server);
    const io = system.openIo();
    try {
      const connection = shakeHands(io, address, attached.exportName);
      io.close(connection.fd);
      if (identifierOf(attached.exportName, connection.export.description) !== attached.backend) throw changed;
      return connection.export.sizeBytes;
    } finally {
      io.dispose();
    }
  }
  const name = parseExportName(attached.exportName);
  const { devices } = await context.client.devices(name?.group ?? '');
  const entry = devices.find((one) => isBackendOf(attached.backend, one));
  if (entry === undefined) throw changed;
  return entry.sizeBytes;
}
