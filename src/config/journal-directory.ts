/**
 * Looks at the directories that are configured for journals: whether what they
 * lie on keeps what the configuration says, and who else may change them.
 *
 * Owns: these checks and their sentences. Must not know: groups' data. Makes
 * nothing: a directory that is missing is judged by the nearest one above it.
 */

import { lstatSync, realpathSync, statfsSync } from 'node:fs';
import { dirname } from 'node:path';
import { formatSize } from '../base/units.js';
import type { GroupFile } from './schema.js';

/** f_type of statfs(2). */
const TMPFS = 0x01021994;
const RAMFS = 0x858458f6;
const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;

/** Adds to `problems` and `warnings`; `at` is the group's place in the configuration. */
export function checkJournalDirectory(journal: GroupFile['journal'], at: string, problems: string[], warnings: string[]): void {
  const { directory } = journal;
  if (directory === undefined) return;
  try {
    const existing = nearest(directory);
    const facts = statfsSync(existing);
    const type = facts.type >>> 0;
    const inMemory = type === TMPFS || type === RAMFS;
    if (journal.volatile && !inMemory) {
      problems.push(`${at}.journal.directory: ${directory} is not on a tmpfs (${existing} is on a disk): a volatile journal belongs into memory, such as below /dev/shm; or set journal.volatile to false`);
    } else if (!journal.volatile && inMemory) {
      warnings.push(`${at}.journal.directory: ${directory} is in memory (tmpfs), and nothing in it survives a power loss, whatever is acknowledged: set journal.volatile to true, or use a directory on a disk`);
    }
    const size = facts.bsize * facts.blocks;
    if (size > 0 && size < journal.size) {
      problems.push(`${at}.journal.directory: the file system of ${directory} has ${formatSize(size)}, less than journal.size (${formatSize(journal.size)})`);
    }
    const open = writableByOthers(existing);
    if (open !== undefined) problems.push(`${at}.journal.directory: others than this user and root can change ${open}, and so what lies in ${directory}: use a directory that only lockstepd can write to`);
  } catch (error) {
    problems.push(`${at}.journal.directory: cannot look at ${directory}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** The directory itself or the nearest one above it that exists, without symbolic links. */
function nearest(path: string): string {
  for (let at = path; ; at = dirname(at)) {
    try {
      return realpathSync(at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || at === dirname(at)) throw error;
    }
  }
}

/** A directory on the way whose entries somebody else can replace; a sticky one protects what is owned by us. */
function writableByOthers(path: string): string | undefined {
  for (let at = path; ; at = dirname(at)) {
    const { uid, mode } = lstatSync(at);
    const ours = uid === 0 || uid === process.getuid?.();
    if (!ours || ((mode & OTHERS_WRITE) !== 0 && (mode & STICKY) === 0)) return at;
    if (at === dirname(at)) return undefined;
  }
}
