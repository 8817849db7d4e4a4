/**
 * Where a group's journal lies, and whether what is found there may be used.
 *
 * Owns: the directory of the journal and the note of whose it is; the decision
 * how a start begins: from the journal, without one, or not at all. Must not
 * know: how a journal is read, what roles do.
 *
 *   the journal is          was stopped        start
 *   durable, where it was   in any way         from the journal
 *   volatile, same boot     in any way         from the journal, if it is there, and whole
 *   volatile, lost, or a    cleanly            anew, at the position of the checkpoint
 *     part of it
 *   volatile, lost          in another way     refused: the data are unknown. A primary may be told to accept them
 *   moved, or of the other  cleanly            from the journal if it was moved along (durable only); anew if
 *   kind than before                           the checkpoint has everything; else refused
 *   the same                in another way     refused
 *   moved back to where it  cleanly            the same; what it left there then, and could not be removed, is
 *     lay before                               no journal that was moved along
 */

import { CorruptionError, Errno, IoError, OperatorError } from '../../base/errors.js';
import { mkdirs, must, readWholeFile, replaceFile } from '../../io/file.js';
import { SCRATCH_BYTES, SCRATCH_OFFSET } from '../../io/arena.js';
import type { Io } from '../../io/io.js';
import { O } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import { JournalDamage } from '../../journal/damage.js';
import { removeEnd } from '../../journal/endnote.js';
import { decodeSegmentHeader } from '../../journal/format.js';
import type { SegmentHeader } from '../../journal/format.js';
import { samePosition } from '../../journal/position.js';
import { SEGMENT_NAME } from '../../journal/segments.js';
import { findSlot } from '../../store/slot.js';
import type { SlotBody } from '../../store/slot.js';
import type { StateFile } from './statefile.js';

/** Kept in state.json where it is not the usual one. */
export interface Place {
  readonly volatile: boolean;
  readonly directory: string;
}

export interface PlaceOptions {
  readonly name: string;
  /** Name of this node. */
  readonly node: string;
  readonly directory: string;
  /** Where the journal lies; absent: in `directory`. */
  readonly journalDirectory?: string;
  readonly journal: { readonly volatile?: boolean };
  readonly bootId: string;
  /** An operator accepts that the data are unknown, and said from which LSN on the group goes on. */
  readonly acceptedLsn?: number;
}

/** `anew`: a journal that begins at the checkpoint. `accepted`: the same, and the content is not what the history says. */
export type Opening = 'journal' | 'anew' | 'accepted';

export const OWNER_FILE = 'owner';
const NOTE = 'the journal of the group in ';
const ON_NODE = ' on node ';
/** A remedy of its own, beside the usual one for a group that cannot be opened. */
const CODE_PREFIX = 'journal/';

export function journalDirectoryOf(options: Pick<PlaceOptions, 'directory' | 'journalDirectory'>): string {
  return options.journalDirectory ?? `${options.directory}/journal`;
}

/** For state.json: undefined for a durable journal in the group's own directory. */
export function placeOf(options: Pick<PlaceOptions, 'directory' | 'journalDirectory' | 'journal'>): Place | undefined {
  const isVolatile = options.journal.volatile === true;
  return isVolatile || options.journalDirectory !== undefined ? { volatile: isVolatile, directory: journalDirectoryOf(options) } : undefined;
}

/** Whether the error is a refusal of this module: its sentence says what to do. */
export function isRefusal(error: unknown): error is OperatorError {
  return error instanceof OperatorError && error.code.startsWith(CODE_PREFIX);
}

function refuse(code: string, sentence: string): never {
  throw new OperatorError(`${CODE_PREFIX}${code}`, sentence);
}

// ---- whose directory it is ----------------------------------------------------------------------------

/**
 * What the note in a directory of this group's says. The node, too: the path and the group's id alone may be the same on
 * two nodes, and both may reach the directory (containers, a shared file system).
 */
export function ownNote(options: Pick<PlaceOptions, 'directory' | 'node'>): string {
  return `${NOTE}${options.directory}${ON_NODE}${options.node}\n`;
}

/** The path and the node in a note; `node` undefined: of the older form, which names none. Undefined: no note of a group. */
function noted(note: string | undefined): { readonly path: string; readonly node: string | undefined } | undefined {
  if (note?.startsWith(NOTE) !== true) return undefined;
  const words = note.slice(NOTE.length).trimEnd();
  // The path ends in a group's name, which has no spaces.
  const [path, node] = [words.slice(0, words.lastIndexOf(ON_NODE)), words.slice(words.lastIndexOf(ON_NODE) + ON_NODE.length)];
  return words.includes(ON_NODE) && !node.includes('/') ? { path, node } : { path: words, node: undefined };
}

/**
 * Makes the journal's directory, and notes in it whose it is. `existing`: the group has been opened before, and may have
 * been moved itself. Returns why a note could not be written where the group can go on without it; undefined: it is
 * there. Throws OperatorError when it is another group's or node's; IoError.
 */
export function claim(reactor: Reactor, options: PlaceOptions, existing: boolean): string | undefined {
  const { io } = reactor;
  const directory = journalDirectoryOf(options);
  mkdirs(io, directory);
  const note = ownNote(options);
  const found = noteIn(io, directory);
  if (found === note) return undefined;
  // The group's own comes along when its directory is copied or moved.
  const own = options.journalDirectory === undefined;
  if (!own && found !== undefined) refuseOthers(io, options, directory, found, existing);
  try {
    replaceFile(io, directory, OWNER_FILE, new TextEncoder().encode(note));
  } catch (error) {
    // An older version made do with what is there, and a full disk must not keep a group from starting.
    if (!(error instanceof IoError) || !existing || !(own || noted(found)?.path === options.directory)) throw error;
    return error.message;
  }
  return undefined;
}

/** `found` is not `ownNote`. Whether the segments are this group's, their headers say. Throws OperatorError, IoError. */
function refuseOthers(io: Io, options: PlaceOptions, directory: string, found: string, existing: boolean): void {
  const { path, node } = noted(found) ?? {};
  if (node !== undefined && node !== options.node) {
    refuse('other-node', `group ${options.name}: ${directory} holds ${found.trim()}, and this is node ${options.node}; give the group of each node a journal.directory of its own. ` +
      `If that is a copy, made to build this node anew, or this node had that name before: remove ${directory}/${OWNER_FILE}`);
  }
  // Nothing is made in what an older version's note leaves open: another node's journal may lie there.
  const ours = path === options.directory && (existing || segmentsIn(io, directory).length === 0);
  const gone = existing && path !== undefined && !exists(io, `${path}/state.json`);
  if (!ours && !gone) {
    refuse('other-group', `group ${options.name}: ${directory} holds ${found.trim()}; give each group a journal.directory of its own. If that group is gone for good, remove the directory`);
  }
}

function exists(io: Io, path: string): boolean {
  const fd = io.open(path, O.RDONLY | O.CLOEXEC, 0);
  if (fd >= 0) io.close(fd);
  return fd !== -Errno.ENOENT;
}

/** What the note in `directory` says; undefined: there is none. Throws IoError. */
export function noteIn(io: Io, directory: string): string | undefined {
  if (!exists(io, `${directory}/${OWNER_FILE}`)) return undefined;
  return new TextDecoder().decode(readWholeFile(io, `${directory}/${OWNER_FILE}`, SCRATCH_BYTES));
}

function segmentsIn(io: Io, directory: string): string[] {
  const fd = io.open(directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0);
  if (fd === -Errno.ENOENT) return [];
  must(fd, 'open', directory);
  io.close(fd);
  return io.list(directory).filter((name) => SEGMENT_NAME.test(name)).sort();
}

/** Headers of the segments in `directory`, as far as they can be read. Blocking; throws IoError. */
export function headersIn(reactor: Reactor, directory: string): { readonly path: string; readonly header: SegmentHeader }[] {
  const { io, arena } = reactor;
  const headers: { path: string; header: SegmentHeader }[] = [];
  for (const name of segmentsIn(io, directory)) {
    const path = `${directory}/${name}`;
    const fd = must(io.open(path, O.RDONLY | O.CLOEXEC, 0), 'open journal segment', path);
    arena.u8.fill(0, SCRATCH_OFFSET, SCRATCH_OFFSET + SCRATCH_BYTES);
    const read = io.pread(fd, SCRATCH_OFFSET, SCRATCH_BYTES, 0);
    io.close(fd);
    must(read, 'read journal segment', path);
    const header = decodeSegmentHeader(arena.u8, SCRATCH_OFFSET);
    if (typeof header !== 'string') headers.push({ path, header });
  }
  return headers;
}

/** Whether a segment of this group in `directory` begins at or below `lsn`. Throws OperatorError when one is another group's; IoError. */
function holds(reactor: Reactor, options: PlaceOptions, groupId: string, lsn: number): boolean {
  let held = false;
  for (const { path, header } of headersIn(reactor, journalDirectoryOf(options))) {
    if (header.groupId !== groupId) {
      refuse('other-group', `group ${options.name}: ${path} belongs to the journal of another group (id ${header.groupId}, this one has ${groupId}); give each group a journal.directory of its own, or remove the file if that group is gone`);
    }
    held ||= header.baseLsn <= lsn;
  }
  return held;
}

/** Removes the journal in `directory`. Blocking; throws IoError. */
export function removeJournal(io: Io, directory: string): void {
  removeEnd(io, directory);
  for (const name of segmentsIn(io, directory)) must(io.unlink(`${directory}/${name}`), 'remove', `${directory}/${name}`);
}

// ---- how a start begins -------------------------------------------------------------------------------

/** Where the journal lay when state.json was written. */
export function formerPlace(options: Pick<PlaceOptions, 'directory'>, state: StateFile): Place {
  return state.journal ?? { volatile: false, directory: `${options.directory}/journal` };
}

/**
 * Decides how the group is opened and has `open` do it; again, when that finds that a part of a volatile journal is
 * missing, or that a journal was not moved along. Returns how it was opened in the end. Throws OperatorError with the sentence of a refusal; what `open` throws.
 */
export function openAsFound(reactor: Reactor, options: PlaceOptions, state: StateFile & { groupId: string }, open: (opening: Opening) => void): Opening {
  const opening = openingOf(reactor, options, state);
  try {
    open(opening);
    return opening;
  } catch (error) {
    if (opening !== 'journal' || !(error instanceof JournalDamage) || !isOfJournal(options, error.file)) throw error;
    const instead = openingInstead(reactor, options, state, error);
    open(instead);
    return instead;
  }
}

/** How a group is opened instead, whose journal turned out not to be what it should be. Throws OperatorError with the sentence of a refusal, `damage`. */
function openingInstead(reactor: Reactor, options: PlaceOptions, state: StateFile & { groupId: string }, damage: JournalDamage): Opening {
  if (options.journal.volatile === true) return openingWithout(options, state, checkpointOf(reactor, options), `is not whole any more (${damage.message})`);
  const now = journalDirectoryOf(options);
  const former = formerPlace(options, state);
  if (former.directory === now) throw damage;
  const settled = isSettled(state, checkpointOf(reactor, options));
  // It lay here once, and what it left could not be removed then.
  if (settled && state.formerJournals?.includes(now) === true) return 'anew';
  const what = `group ${options.name}: the journal lay in ${former.directory} last, and what lies in ${now} does not go as far as that did, or is damaged (${damage.message})`;
  const needless = settled ? `; or, since the layers' files have everything: remove the files of ${now}, and start` : '';
  return refuse('not-along', `${what}: configure ${former.directory}, and start; or, if files of the journal are still there, put those into ${now} in place of what it holds${needless}`);
}

/** Not of the local journal, which lies on the disk like the maps. */
function isOfJournal(options: PlaceOptions, file: string): boolean {
  const directory = journalDirectoryOf(options);
  return file === directory || file.slice(0, file.lastIndexOf('/')) === directory;
}

function checkpointOf(reactor: Reactor, options: PlaceOptions): SlotBody {
  const slot = findSlot(reactor.io, options.directory)?.slot.body;
  if (slot === undefined) throw new CorruptionError(`${options.directory}/checkpoint-0`, 0, 'there is no checkpoint, although the group was created');
  return slot;
}

/** The disk holds the group as it was when it was stopped, and needs no journal for it. */
function isSettled(state: StateFile, slot: SlotBody): boolean {
  return state.cleanStop !== null && samePosition(state.cleanStop, slot.at) && samePosition(slot.at, slot.lowWater);
}

/**
 * Decides how the group is opened; nothing is written. Throws OperatorError with the sentence of a refusal,
 * CorruptionError, IoError.
 */
function openingOf(reactor: Reactor, options: PlaceOptions, state: StateFile & { groupId: string }): Opening {
  const former = formerPlace(options, state);
  const now: Place = { volatile: options.journal.volatile === true, directory: journalDirectoryOf(options) };
  const moved = former.volatile !== now.volatile || former.directory !== now.directory;
  if (!moved && !now.volatile) return 'journal';
  const slot = checkpointOf(reactor, options);
  const stop = state.cleanStop;
  const there = holds(reactor, options, state.groupId, slot.lowWater.lsn);
  if (moved) {
    if (stop !== null && there && !now.volatile && !former.volatile) return 'journal';
    if (isSettled(state, slot)) return 'anew';
    refuse('moved', movedSentence(options, former, now, stop !== null));
  }
  const sameBoot = state.bootId === options.bootId;
  if (sameBoot && there) return 'journal';
  const why = sameBoot ? `is not there any more (${journalDirectoryOf(options)})` : 'is lost: the machine was started anew since';
  return openingWithout(options, state, slot, why);
}

/** How a group is opened whose volatile journal cannot be used; `why` says so. Throws OperatorError. */
function openingWithout(options: PlaceOptions, state: StateFile, slot: SlotBody, why: string): Opening {
  if (isSettled(state, slot)) return 'anew';
  if (state.role === 'primary' && options.acceptedLsn === slot.at.lsn) return 'accepted';
  return refuse('lost', lostSentence(options, state, why, slot.at.lsn));
}

function kindOf(place: Place): string {
  return `${place.volatile ? 'volatile' : 'durable'} in ${place.directory}`;
}

function movedSentence(options: PlaceOptions, former: Place, now: Place, clean: boolean): string {
  const back = `configure it as it was (journal.volatile ${former.volatile}, directory ${former.directory})`;
  const what = `group ${options.name}: the journal is configured as ${kindOf(now)} and was ${kindOf(former)}`;
  if (!clean) return `${what}; that may be changed only after a clean stop, and this was none: ${back}, start, stop with SIGTERM, then change it`;
  const along = now.volatile || former.volatile ? '' : `move the files of ${former.directory} there, or `;
  return `${what}, and holds what is not in the layers' files yet: ${along}${back}, start, and when nothing writes any more: lockstep flush ${options.name} --up-to checkpoint, then stop with SIGTERM and change it`;
}

function lostSentence(options: PlaceOptions, state: StateFile, why: string, lsn: number): string {
  const what =
    `group ${options.name}: its volatile journal ${why}, and the group was not stopped cleanly before. Its data are unknown: blocks may have been overwritten after ` +
    `the last checkpoint (LSN ${lsn}), so the disk holds no state that ever was`;
  if (state.role !== 'primary') return `${what}. Build it anew from its primary (README, "Rebuild a secondary")`;
  const given = options.acceptedLsn === undefined ? '' : ` (this start was given LSN ${options.acceptedLsn})`;
  return `${what}. If a secondary has the data: promote it, and build this node anew from it (README, "Rebuild a secondary"). ` +
    `To serve what is here all the same, start once with: lockstepd --accept-inconsistent ${options.name}@${lsn}${given}`;
}
