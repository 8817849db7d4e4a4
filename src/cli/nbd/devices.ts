/**
 * What the machine says of its /dev/nbdN: names, who uses one, what is
 * attached to it.
 *
 * Owns: /dev and /sys as far as they concern nbd. Must not know: sockets,
 * netlink, commands.
 */

import { constants, readFileSync, readdirSync } from 'node:fs';
import { open } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { OperatorError } from '../../base/errors.js';

/** Where the two file systems are; tests name their own. */
export interface DevicePaths {
  readonly dev: string;
  readonly sysBlock: string;
}

export const DEVICE_PATHS: DevicePaths = { dev: '/dev', sysBlock: '/sys/block' };
const MAX_INDEX = 2 ** 20;
/** The unit of sizes in /sys, whatever the device's blocks are. */
const SECTOR_BYTES = 512;

/** N of "/dev/nbdN" or "nbdN"; undefined for other words. */
export function deviceIndex(words: string): number | undefined {
  const match = /^(?:\/dev\/)?nbd(\d{1,7})$/.exec(words);
  if (match === null) return undefined;
  const index = Number(match[1]);
  return index <= MAX_INDEX ? index : undefined;
}

export function devicePath(index: number): string {
  return `/dev/nbd${index}`;
}

/** What attach left with the kernel, or undefined: not attached, attached by something else, or a kernel before 5.14. */
export function backendOf(paths: DevicePaths, index: number): string | undefined {
  try {
    const text = readFileSync(join(paths.sysBlock, `nbd${index}`, 'backend'), 'utf8').trim();
    return text === '' ? undefined : text;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** What size the kernel takes the device for, in bytes; 0 when nothing is attached. Throws OperatorError. */
export function sizeOf(paths: DevicePaths, index: number): number {
  try {
    return Number(readFileSync(join(paths.sysBlock, `nbd${index}`, 'size'), 'utf8')) * SECTOR_BYTES;
  } catch (error) {
    if (isMissing(error)) throw new OperatorError('nbd/not-found', `there is no ${devicePath(index)}`);
    throw error;
  }
}

/** All devices with a backend text. */
export function backends(paths: DevicePaths): { index: number; backend: string }[] {
  let names: string[];
  try {
    names = readdirSync(paths.sysBlock);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
  return names.flatMap((name) => {
    const index = deviceIndex(name);
    const backend = index === undefined ? undefined : backendOf(paths, index);
    return index === undefined || backend === undefined ? [] : [{ index, backend }];
  });
}

/**
 * Makes sure that nothing uses the device, and writes back what the kernel
 * still holds for it. Throws OperatorError `nbd/busy`, `nbd/dirty`. The open
 * with O_EXCL fails for mounted, swapped-to or otherwise claimed devices.
 * While the device's connection is dead this waits for a new one, as long as
 * the device was told to, hence not on the main thread.
 */
export async function flushUnused(paths: DevicePaths, index: number): Promise<void> {
  const name = devicePath(index);
  let file: FileHandle;
  try {
    file = await open(join(paths.dev, `nbd${index}`), constants.O_RDONLY | constants.O_EXCL);
  } catch (error) {
    switch ((error as NodeJS.ErrnoException).code) {
      case 'EBUSY': throw new OperatorError('nbd/busy', `${name} is in use (mounted, or part of another device): unmount it first, or cut it off with --force`);
      case 'ENOENT': throw new OperatorError('nbd/not-found', `there is no ${name}`);
      case 'EACCES': throw new OperatorError('nbd/not-root', `to detach ${name} needs root`);
      default: throw new OperatorError('nbd/dirty', `cannot open ${name} to write back what is cached (${(error as Error).message}); detach it all the same with --force`);
    }
  }
  try {
    await file.sync();
  } catch (error) {
    throw new OperatorError('nbd/dirty', `cannot write back what is cached for ${name} (${(error as Error).message}); detach it all the same with --force`);
  } finally {
    await file.close();
  }
}

function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code;
  return code === 'ENOENT' || code === 'ENOTDIR' || code === 'ENODEV';
}
