/**
 * Holds a data directory for one process: flock (fs-ext) on a file in it.
 *
 * Owns: the lock file. Must not know: what else lies in the directory. The
 * kernel drops the lock when the process ends, however it ends; the file stays
 * and its pid is only for people to read.
 */

import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { flockSync } from 'fs-ext';
import { OperatorError } from '../base/errors.js';

const LOCK_FILE = 'lock';

export class DirectoryLock {
  private constructor(
    private fd: number,
    /** A sentence when the pid could not be written: another daemon will not be able to say who holds the directory. */
    readonly warning: string | undefined,
  ) {}

  /**
   * Makes the directory if only its last part is missing, and locks it. Throws
   * OperatorError: `data/locked` when another process holds it, `data/unusable`
   * otherwise.
   */
  static acquire(directory: string): DirectoryLock {
    makeDirectory(directory);
    const file = join(directory, LOCK_FILE);
    const fd = attempt(`cannot make ${file}`, () => openSync(file, 'a+', 0o600));
    try {
      flockSync(fd, 'exnb');
    } catch (error) {
      closeSync(fd);
      const code = (error as NodeJS.ErrnoException).code;
      if (code !== 'EAGAIN' && code !== 'EWOULDBLOCK') throw new OperatorError('data/unusable', `cannot lock ${file}: ${problem(error)}`);
      throw new OperatorError('data/locked', `another lockstepd${holder(file)} uses the data directory ${directory}; stop it, or give this one its own dataDirectory`);
    }
    return new DirectoryLock(fd, notePid(fd, file));
  }

  /** Idempotent. */
  release(): void {
    if (this.fd < 0) return;
    closeSync(this.fd);
    this.fd = -1;
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

function makeDirectory(directory: string): void {
  try {
    if (!statSync(directory).isDirectory()) throw new OperatorError('data/unusable', `the data directory ${directory} is not a directory`);
  } catch (error) {
    if (error instanceof OperatorError) throw error;
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw new OperatorError('data/unusable', `cannot use the data directory ${directory}: ${problem(error)}`);
    try {
      mkdirSync(directory, { mode: 0o700 });
    } catch (failed) {
      const missing = (failed as NodeJS.ErrnoException).code === 'ENOENT';
      const why = missing ? `${dirname(directory)} does not exist; make it, or mount what belongs there` : problem(failed);
      throw new OperatorError('data/unusable', `cannot make the data directory ${directory}: ${why}`);
    }
  }
}

function attempt<T>(what: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw new OperatorError('data/unusable', `${what}: ${problem(error)}`);
  }
}

function notePid(fd: number, file: string): string | undefined {
  try {
    ftruncateSync(fd, 0);
    writeSync(fd, `${process.pid}\n`);
    return undefined;
  } catch (error) {
    // A full disk must not keep a daemon from starting: it may be the one that frees the space.
    return `cannot note the process id in ${file}: ${problem(error)}`;
  }
}

function holder(file: string): string {
  try {
    const words = readFileSync(file, 'utf8').trim();
    return /^\d+$/.test(words) ? ` (process ${words})` : '';
  } catch {
    return '';
  }
}

function problem(error: unknown): string {
  const code = (error as NodeJS.ErrnoException).code;
  switch (code) {
    case 'EACCES': case 'EPERM': return 'permission denied';
    case 'ENOSPC': return 'no space is left on the device';
    case 'EDQUOT': return 'the disk quota is used up';
    case 'EROFS': return 'the file system is read-only';
    case 'ENOTDIR': return 'a part of the path is not a directory';
    case 'EIO': return 'the disk reports an input/output error';
    case 'EISDIR': return 'it is a directory';
    default: return error instanceof Error ? error.message : String(error);
  }
}
