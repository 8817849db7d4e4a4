/**
 * What is mounted where, as /proc/self/mountinfo says it, and which file
 * systems a daemon writes to.
 *
 * Owns: reading that table and the block devices below a file system. Must not
 * know: why somebody asks.
 *
 * One line, fields separated by spaces, ends of lines and spaces in names as
 * octal escapes (proc(5)):
 *
 *   ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG ...] - TYPE SOURCE SUPEROPTIONS
 *
 * MAJOR:MINOR names the file system itself: all mounts of one file system have
 * the same, also where stat(2) gives others (subvolumes of btrfs). What a path
 * leads to follows from PARENT alone: of two mounts at one point one is the
 * other's parent and hidden by it, and so is what is mounted further down in the
 * hidden one. The order of the lines says nothing (mount --move, --beneath).
 */

import { readFileSync, readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';

export interface Mount {
  /** Of this mount, among those that are mounted now. */
  readonly id: number;
  /** Of the mount that it lies on; of the root it is in no table. */
  readonly parent: number;
  /** Absolute, without links. */
  readonly point: string;
  /** "254:0"; the same for all mounts of one file system. */
  readonly fileSystem: string;
  /** "ext4" */
  readonly type: string;
  /** "/dev/nbd0" */
  readonly source: string;
}

/** Where the tables are; tests name their own. */
export interface MountPaths {
  readonly mountinfo: string;
  readonly proc: string;
  readonly sysDevBlock: string;
}

export const MOUNT_PATHS: MountPaths = { mountinfo: '/proc/self/mountinfo', proc: '/proc', sysDevBlock: '/sys/dev/block' };

export function parseMounts(text: string): Mount[] {
  return text.split('\n').flatMap((line) => {
    const fields = line.split(' ');
    const dash = fields.indexOf('-', 6);
    if (dash < 0 || fields.length < dash + 3) return [];
    return [{ id: Number(fields[0]), parent: Number(fields[1]), fileSystem: fields[2], point: unescape(fields[4]), type: fields[dash + 1], source: unescape(fields[dash + 2]) }];
  });
}

function unescape(words: string): string {
  // Byte by byte: an escape may be part of a character.
  return words.includes('\\') ? Buffer.from(words.replace(/[^\x20-\x7e]+/g, (part) => Buffer.from(part).toString('latin1')).replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8))), 'latin1').toString() : words;
}

/** The mount that a path leads to; the path is absolute and without links. */
export function mountOf(mounts: readonly Mount[], path: string): Mount | undefined {
  const ids = new Set(mounts.map((mount) => mount.id));
  const places = [path];
  for (let at = path; at !== dirname(at); at = dirname(at)) places.unshift(dirname(at));
  let found: Mount | undefined;
  for (const point of places) {
    // More steps than mounts: a table that was changed while it was read.
    for (let steps = mounts.length; steps > 0; steps--) {
      const upper = mounts.find((mount) => mount.point === point && mount.id !== found?.id && (found === undefined ? !ids.has(mount.parent) || mount.parent === mount.id : mount.parent === found.id));
      if (upper === undefined) break;
      found = upper;
    }
  }
  return found;
}

/** The mount that an open file of process `pid` lies on, whatever has been mounted over it since; undefined when that cannot be seen. */
export function mountIdOf(where: MountPaths, pid: number | 'self', fd: number | string): number | undefined {
  const found = /^mnt_id:\s*(\d+)$/m.exec(attempt(() => readFileSync(join(where.proc, String(pid), 'fdinfo', String(fd)), 'utf8')) ?? '');
  return found === null ? undefined : Number(found[1]);
}

/** How deep stacks of block devices are followed: loop on dm on md ... */
const MAX_DEPTH = 16;

/** Something that a daemon writes to. */
export interface Written {
  readonly path: string;
  /** Where it lies, as far as that is known from its being open; else its path says it. */
  readonly mountId?: number | undefined;
}

/**
 * The file systems that have to take writes so that all of `written` can be
 * written: those that hold them, and those that hold the files of loop devices
 * below these. As MAJOR:MINOR → the path that needs it. A path that does not
 * exist (of another machine or container) needs none.
 */
export function writtenFileSystems(mounts: readonly Mount[], written: readonly Written[], where: MountPaths): Map<string, string> {
  const found = new Map<string, string>();
  const follow = (path: string, needs: string, depth: number, mountId?: number): void => {
    const real = attempt(() => realpathSync(path));
    const mount = mounts.find((one) => one.id === mountId) ?? (real === undefined ? undefined : mountOf(mounts, real));
    if (mount === undefined || found.has(mount.fileSystem)) return;
    found.set(mount.fileSystem, needs);
    const device = attempt(() => realpathSync(join(where.sysDevBlock, mount.fileSystem)));
    if (device !== undefined) below(device, needs, depth);
  };
  const below = (device: string, needs: string, depth: number): void => {
    if (depth >= MAX_DEPTH) return;
    const file = attempt(() => readFileSync(join(device, 'loop', 'backing_file'), 'utf8').trim());
    if (file !== undefined) follow(file, needs, depth + 1);
    for (const slave of attempt(() => readdirSync(join(device, 'slaves'))) ?? []) {
      const lower = attempt(() => realpathSync(join(device, 'slaves', slave)));
      if (lower !== undefined) below(lower, needs, depth + 1);
    }
    // a partition: the disk that it is part of
    if (attempt(() => readFileSync(join(device, 'partition'), 'utf8')) !== undefined) below(dirname(device), needs, depth + 1);
  };
  for (const { path, mountId } of written) follow(path, path, 0, mountId);
  return found;
}

/**
 * The directories of all files that a process has open, its output included;
 * none when there is no such process here, or it does not have `lockFile` open:
 * the daemon of another machine or container, where the number means another.
 */
export function openedBy(where: MountPaths, pid: number, lockFile: string): Written[] {
  const descriptors = join(where.proc, String(pid), 'fd');
  const lock = attempt(() => realpathSync(lockFile)) ?? lockFile;
  const found = new Map<string, Written>();
  let own = false;
  for (const fd of attempt(() => readdirSync(descriptors)) ?? []) {
    const target = attempt(() => readlinkSync(join(descriptors, fd)));
    if (target?.startsWith('/') !== true || target.startsWith('/dev/')) continue;
    // By name also when the directory is hidden by a mount of today.
    own ||= target === lock || target === lockFile;
    const one = { path: dirname(target), mountId: mountIdOf(where, pid, fd) };
    found.set(`${one.path} ${one.mountId ?? ''}`, one);
  }
  return own ? [...found.values()] : [];
}

/** What is not there, or may not be seen, is nothing that has to be respected: the watchdog's time limit ends what could follow. */
function attempt<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (typeof (error as NodeJS.ErrnoException).code === 'string') return undefined;
    throw error;
  }
}
