/**
 * Directories in which the journal lay before it was moved: what it left there
 * is removed.
 *
 * Owns: which directories these are, and what in them is surely this group's.
 * Must not know: how a start begins, when a move is allowed.
 *
 *   step                                                     killed, or power lost, right after
 *   the journal is opened where it lies now                  state.json still has it where it lay: as if nothing had been done
 *   state.json: where it lies now, and where it lay          the next start removes what it left
 *   the files there are removed, the note of the owner last  the same
 *   state.json: nowhere else                                 done
 *
 * Nothing is removed where it is not certain whose it is: a directory of a group
 * can be given to another one, the way to it may lead to where the journal lies
 * now (a symbolic link, a bind mount), and state.json may be a copy of another
 * node's, whose directory is reached from here, too.
 */

import { Errno, IoError } from '../../base/errors.js';
import type { Log } from '../../base/log.js';
import { listIfThere, must } from '../../io/file.js';
import type { Io } from '../../io/io.js';
import { O } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { formerPlace, headersIn, journalDirectoryOf, noteIn, OWNER_FILE, ownNote, removeJournal } from './place.js';
import type { PlaceOptions } from './place.js';
import type { StateFile } from './statefile.js';

const PROBE_FILE = 'probe';

/** For state.json: directories other than the present one that a journal of this group lay in, and that may hold files of it; undefined: none. */
export function formersOf(options: PlaceOptions, state: StateFile): string[] | undefined {
  const now = journalDirectoryOf(options);
  const formers = new Set([...(state.formerJournals ?? []), formerPlace(options, state).directory]);
  formers.delete(now);
  return formers.size === 0 ? undefined : [...formers];
}

/**
 * Removes what the journal has left in `formers`, durably. Returns those that could not be cleared, to be tried again
 * at the next start; undefined: none. The journal is open where it lies now. Blocking.
 */
export function clearFormers(reactor: Reactor, options: PlaceOptions, groupId: string, formers: readonly string[], log: Log): string[] | undefined {
  const failed: string[] = [];
  for (const directory of formers) {
    try {
      const why = notOurs(reactor, options, groupId, directory);
      if (why !== undefined) log.warn(`the journal lay in ${directory} before, and nothing is removed there: ${why}`);
      else if (listIfThere(reactor.io, directory) !== undefined) clear(reactor.io, directory);
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      log.warn(`what the journal left in ${directory}, where it lay before, cannot be removed (${error.message}); the next start tries again`);
      failed.push(directory);
    }
  }
  return failed.length === 0 ? undefined : failed;
}

/** Why what lies in `directory` may not be this group's to remove; undefined: it is, or nothing is there. Throws IoError. */
function notOurs(reactor: Reactor, options: PlaceOptions, groupId: string, directory: string): string | undefined {
  const { io } = reactor;
  if ((listIfThere(io, directory) ?? []).length === 0) return undefined;
  if (leadsTo(io, directory, journalDirectoryOf(options))) return 'it is the directory that the journal lies in';
  const note = noteIn(io, directory);
  // Also in the group's own directory: a link or a mount there may lead to what another node, of which this one is a copy, uses.
  if (note !== ownNote(options)) return `it holds ${note?.trim() ?? 'no note whose it is'}; if nothing else uses it, remove it`;
  const other = headersIn(reactor, directory).find(({ header }) => header.groupId !== groupId);
  return other === undefined ? undefined : `${other.path} belongs to the journal of another group (id ${other.header.groupId})`;
}

/** Whether `directory` is the one that `now` is, by whatever way: a file that is made in the one shows up in the other. Throws IoError. */
function leadsTo(io: Io, directory: string, now: string): boolean {
  const path = `${now}/${PROBE_FILE}`;
  const removed = io.unlink(path);
  if (removed !== -Errno.ENOENT) must(removed, 'remove', path);
  if (io.list(directory).includes(PROBE_FILE)) return false;
  io.close(must(io.open(path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600), 'create', path));
  const found = io.list(directory).includes(PROBE_FILE);
  must(io.unlink(path), 'remove', path);
  return found;
}

/** Also where nothing is to be seen any more: what a start that was cut off has removed may come back with power lost. Throws IoError. */
function clear(io: Io, directory: string): void {
  removeJournal(io, directory);
  const owner = io.unlink(`${directory}/${OWNER_FILE}`);
  if (owner !== -Errno.ENOENT) must(owner, 'remove', `${directory}/${OWNER_FILE}`);
  must(io.syncDirectory(directory), 'fsync', directory);
}
