/**
 * Which mounts `--freeze MOUNTPOINT` means.
 *
 * Owns: that what is frozen is what the path leads to and what the user can only
 * mean, and the sentences when that is not so. Must not know: how a freeze is
 * done, what it is for.
 *
 * The directory is opened first, and the kernel says on which mount it lies: a
 * mount that is made over it a moment later changes nothing any more.
 */

import { realpathSync } from 'node:fs';
import { Errno, OperatorError, errnoText } from '../../base/errors.js';
import type { FreezeSystem } from './system.js';
import type { Mount } from './mounts.js';
import { mountOf } from './mounts.js';

export interface ChosenMount {
  readonly mount: Mount;
  /** The open mount point. */
  readonly fd: number;
}

/** Adds to `chosen` what each of `wanted` means; who called closes all descriptors in it, also when this throws OperatorError. */
export function chooseMounts(system: FreezeSystem, wanted: readonly string[], chosen: ChosenMount[]): void {
  for (const words of wanted) {
    const point = realPath(words);
    const fd = system.open(point);
    try {
      const mounts = system.mounts();
      const id = system.mountId(fd);
      const mount = id === undefined ? mountOf(mounts, point) : mounts.find((one) => one.id === id);
      if (mount?.point !== point) throw notThere(mounts, words, point);
      refuseHidden(mounts, mount);
      const twice = chosen.find((one) => one.mount.fileSystem === mount.fileSystem);
      if (twice !== undefined) throw new OperatorError('freeze/twice', `${twice.mount.point} and ${mount.point} are the same file system: name it once`);
      chosen.push({ mount, fd });
    } catch (error) {
      system.close(fd);
      throw error;
    }
  }
}

/** Something is mounted there, but a path does not lead to it; or nothing is. */
function notThere(mounts: readonly Mount[], words: string, point: string): OperatorError {
  const hidden = mounts.findLast((mount) => mount.point === point);
  const upper = mountOf(mounts, point);
  if (hidden === undefined || upper === undefined) {
    return new OperatorError('freeze/no-mount', `nothing is mounted at ${words}: name the mount point as /proc/mounts has it (findmnt --target ${words} shows it)`);
  }
  return new OperatorError('freeze/hidden', `${named(hidden)} is mounted at ${point}, but hidden: ${named(upper)} was mounted over ${upper.point} later, and ${point} is a directory of that now. Unmount what hides it, or name another mount point of it`);
}

/** What only waits for something to be mounted on it, or was there before there was a system. */
const PLACEHOLDERS: ReadonlySet<string> = new Set(['autofs', 'rootfs']);

/** Of two file systems at one point nobody but the user knows which one is meant: programs may still have the lower one open. */
function refuseHidden(mounts: readonly Mount[], mount: Mount): void {
  for (let lower = below(mounts, mount); lower?.point === mount.point && lower.id !== lower.parent; lower = below(mounts, lower)) {
    if (lower.fileSystem === mount.fileSystem || PLACEHOLDERS.has(lower.type)) continue;
    throw new OperatorError('freeze/hidden', `two file systems are mounted at ${mount.point}: ${named(mount)} on top, which the path leads to, and ${named(lower)} hidden below it, which programs may still have open. If the upper one is meant, give it another mount point (mount --bind ${mount.point} /SOMEWHERE) and name that; if the lower one is, unmount the upper one first`);
  }
}

function below(mounts: readonly Mount[], mount: Mount): Mount | undefined {
  return mounts.find((one) => one.id === mount.parent);
}

function named({ type, source }: Mount): string {
  return source === type || source === 'none' || source === '' ? type : `${type} on ${source}`;
}

function realPath(words: string): string {
  try {
    return realpathSync(words);
  } catch (error) {
    const { errno } = error as NodeJS.ErrnoException;
    if (errno === undefined) throw error;
    throw new OperatorError('freeze/no-mount', `--freeze ${words}: ${errnoText(-errno)}${-errno === Errno.ENOENT ? '' : '; name a mount point'}`);
  }
}
