/**
 * Small cold files, whole: configuration, identity, checkpoint slots' neighbours.
 *
 * Owns: how a file is replaced so that a crash leaves the old or the new one.
 * Must not know: what the files hold. Bulk data goes through jobs instead.
 *
 * The calls go through the arena's reserved first page (SCRATCH in arena.ts),
 * which nobody holds across calls; so they need no allocation and work while
 * the arena is full.
 */
import { Errno, IoError } from '../base/errors.js';
import { SCRATCH_BYTES, SCRATCH_OFFSET } from './arena.js';
import type { Io } from './io.js';
import { O } from './io.js';

const FILE_MODE = 0o600;
const DIRECTORY_MODE = 0o700;
const MAX_WHOLE_FILE_BYTES = 64 * 1024 * 1024;

/** Passes a result n >= 0 through; throws IoError for −errno. */
export function must(result: number, doing: string, file: string): number {
  if (result < 0) throw new IoError(-result, doing, file);
  return result;
}

/** The content of a file of at most `maxBytes`. Throws IoError (EFBIG above the limit). */
export function readWholeFile(io: Io, path: string, maxBytes = MAX_WHOLE_FILE_BYTES): Uint8Array {
  const fd = must(io.open(path, O.RDONLY, 0), 'open', path);
  try {
    const { size } = io.stat(fd);
    if (size > maxBytes) throw new IoError(Errno.EFBIG, 'read', path);
    const bytes = new Uint8Array(size);
    const scratch = new Uint8Array(io.memory, SCRATCH_OFFSET, SCRATCH_BYTES);
    for (let pos = 0; pos < size; pos += SCRATCH_BYTES) {
      const length = Math.min(SCRATCH_BYTES, size - pos);
      must(io.pread(fd, SCRATCH_OFFSET, length, pos), 'read', path);
      bytes.set(scratch.subarray(0, length), pos);
    }
    return bytes;
  } finally {
    io.close(fd);
  }
}

/**
 * Replaces `directory/name` by a file with these bytes. When it returns, the new content is durable; a crash before
 * leaves the old file (and perhaps `name.tmp`, which the next call overwrites). Throws IoError; the old file then
 * still stands, except when only the last fsync of the directory failed: then either may.
 */
export function replaceFile(io: Io, directory: string, name: string, bytes: Uint8Array, mode: number = FILE_MODE): void {
  const path = `${directory}/${name}`;
  const temporary = `${path}.tmp`;
  const fd = must(io.open(temporary, O.WRONLY | O.CREAT | O.TRUNC, mode), 'create', temporary);
  let open = true;
  try {
    const scratch = new Uint8Array(io.memory, SCRATCH_OFFSET, SCRATCH_BYTES);
    for (let pos = 0; pos < bytes.length; pos += SCRATCH_BYTES) {
      const part = bytes.subarray(pos, pos + SCRATCH_BYTES);
      scratch.set(part);
      must(io.pwrite(fd, SCRATCH_OFFSET, part.length, pos), 'write', temporary);
    }
    must(io.fdatasync(fd), 'sync', temporary);
    open = false;
    must(io.close(fd), 'close', temporary);
    must(io.rename(temporary, path), 'rename', temporary);
  } catch (error) {
    if (open) io.close(fd);
    io.unlink(temporary);
    throw error;
  }
  must(io.syncDirectory(directory), 'sync directory', directory);
}

/** Room kept for a `replaceReserved` file. */
const RESERVED_BYTES = 4096;

/**
 * As `replaceFile`, for a file that must be replaceable while the disk is full:
 * beside it stands `name.spare`, a block that the new content is written into
 * and that then takes the name. The next spare takes the room of the file that
 * was replaced; when even that is gone, the next call needs room again. `bytes`
 * are text, padded with spaces.
 */
export function replaceReserved(io: Io, directory: string, name: string, bytes: Uint8Array): void {
  const spare = `${directory}/${name}.spare`;
  const fd = bytes.length > RESERVED_BYTES ? -Errno.EFBIG : io.open(spare, O.WRONLY, FILE_MODE);
  if (fd < 0) {
    replaceFile(io, directory, name, bytes);
  } else {
    const scratch = new Uint8Array(io.memory, SCRATCH_OFFSET, RESERVED_BYTES).fill(0x20);
    scratch.set(bytes);
    try {
      must(io.pwrite(fd, SCRATCH_OFFSET, RESERVED_BYTES, 0), 'write', spare);
      must(io.fdatasync(fd), 'sync', spare);
    } finally {
      io.close(fd);
    }
    must(io.rename(spare, `${directory}/${name}`), 'rename', spare);
    must(io.syncDirectory(directory), 'sync directory', directory);
  }
  reserve(io, spare);
}

/** Best effort: without it the file is as safe as any other. */
function reserve(io: Io, spare: string): void {
  const fd = io.open(spare, O.WRONLY | O.CREAT | O.TRUNC, FILE_MODE);
  if (fd < 0) return;
  new Uint8Array(io.memory, SCRATCH_OFFSET, RESERVED_BYTES).fill(0x20);
  const written = io.pwrite(fd, SCRATCH_OFFSET, RESERVED_BYTES, 0);
  const synced = written === RESERVED_BYTES ? io.fdatasync(fd) : -1;
  io.close(fd);
  if (synced < 0) io.unlink(spare);
}

/** The names in a directory; undefined: there is none. Throws IoError. */
export function listIfThere(io: Io, directory: string): string[] | undefined {
  try {
    return io.list(directory);
  } catch (error) {
    if (error instanceof IoError && error.errno === Errno.ENOENT) return undefined;
    throw error;
  }
}

/** Creates a directory and what is missing above it, durably. What exists already is left as it is. Throws IoError. */
export function mkdirs(io: Io, path: string, mode: number = DIRECTORY_MODE): void {
  const result = io.mkdir(path, mode);
  const parent = parentOf(path);
  if (result === -Errno.ENOENT && parent !== path) {
    mkdirs(io, parent, mode);
    must(io.mkdir(path, mode), 'create directory', path);
  } else if (result === -Errno.EEXIST) {
    // A file of this name is in the way when it does not open as a directory.
    must(io.close(must(io.open(path, O.RDONLY | O.DIRECTORY, 0), 'open directory', path)), 'close directory', path);
    // And durably: a process that was killed may have made it and not synced its name.
  } else {
    must(result, 'create directory', path);
  }
  must(io.syncDirectory(parent), 'sync directory', parent);
}

function parentOf(path: string): string {
  const trimmed = path.replace(/\/+$/, '');
  const slash = trimmed.lastIndexOf('/');
  if (slash < 0) return trimmed === '' ? '/' : '.';
  return slash === 0 ? '/' : trimmed.slice(0, slash);
}
