/**
 * Looks at the directories that are configured for journals: whether what they
 * lie on keeps what the configuration says, whether they are free for a journal,
 * and who else may change them.
 *
 * Owns: these checks and their sentences. Must not know: groups' data. Makes
 * nothing: a directory that is missing is judged by the nearest one above it.
 */

import { lstatSync, realpathSync, statfsSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { formatSize } from '../base/units.js';
import type { ConfigFile, GroupFile } from './schema.js';

/** f_type of statfs(2). */
const TMPFS = 0x01021994;
const RAMFS = 0x858458f6;
const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;

/** Adds to `problems` and `warnings`; `at` is the group's place in `config`. */
export function checkJournalDirectory({ name, journal }: GroupFile, config: ConfigFile, at: string, problems: string[], warnings: string[]): void {
  const { directory } = journal;
  if (directory === undefined) return;
  try {
    const amid = amidData(directory, config);
    if (amid !== undefined) {
      const usual = `${config.dataDirectory}/groups/${name}/journal`;
      problems.push(`${at}.journal.directory: ${directory} is inside of ${amid}, where groups keep other files, which the journal would overwrite: leave it out, and the journal lies in ${usual}, ` +
        `or use a directory outside of ${config.dataDirectory}. If a journal of this group lies there already, move its files along`);
    }
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

/** The directory of groups' data that `directory` is or lies in, if it is not one that a group has for its journal. Throws what node:fs throws. */
function amidData(directory: string, { dataDirectory, groups }: ConfigFile): string | undefined {
  const real = realOrPlanned(directory);
  const all = join(dataDirectory, 'groups');
  const inAll = relative(realOrPlanned(all), real);
  // Each by itself, too: it may be a link that leads elsewhere.
  for (const group of groups.map(({ name }) => join(all, name))) {
    const inGroup = relative(realOrPlanned(group), real);
    if (isBelow(inGroup)) return inGroup === 'journal' ? undefined : group;
  }
  return isBelow(inAll) && !/^[^/]+\/journal$/.test(inAll) ? all : undefined;
}

/** Of what `relative` says: below, or the same. */
function isBelow(path: string): boolean {
  return path !== '..' && !path.startsWith('../');
}

/** The path without symbolic links, as far as it exists. */
function realOrPlanned(path: string): string {
  let at = resolve(path);
  const rest: string[] = [];
  for (;;) {
    try {
      return join(realpathSync(at), ...rest);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || at === dirname(at)) throw error;
    }
    rest.unshift(relative(dirname(at), at));
    at = dirname(at);
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
