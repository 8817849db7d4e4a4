/**
 * The file `final` of a group: up to which LSN this node has overwritten layer
 * files in place, or may have, so that no rewind may go below (DESIGN §5).
 *
 * Owns: the byte layout, and when the note is durable. Must not know: roles,
 * what is written to the layers, who rewinds.
 *
 * A secondary's `stable` follows what its primary told, and that lies in memory
 * only. After a restart the note stands in for it. One sector, which is written
 * in place: after power loss it is the old or the new one (crash assumption 1).
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 40)
 *   8  u32 version          12 u32 zero
 *   16 16B group id         32 u64 LSN
 *
 * All zeros, or an empty file: the very first write was cut off, and no layer
 * was written after it.
 */

import { assert } from '../../base/assert.js';
import { crc32c } from '../../base/crc32c.js';
import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { BLOCK_BYTES } from '../../base/units.js';
import { getU64, putHex, putU64, toHex } from '../../base/words.js';
import { readWholeFile } from '../../io/file.js';
import { JobOp, JobTable, O, Queue } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';

export const FINAL_FILE = 'final';
/** Arena bytes that an open note holds. */
export const FINAL_ARENA_BYTES = BLOCK_BYTES;
const NOTE_BYTES = 512;
const CRC_END = 40;
const MAGIC = 0x46534b4c; // "LKSF"
const VERSION = 1;

/** The LSN in a whole note, or why there is none. */
function decode(bytes: Uint8Array, groupId: string): number | string {
  if (bytes.every((byte) => byte === 0)) return 0;
  if (bytes.length < NOTE_BYTES) return `only ${bytes.length} bytes`;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(0, true) !== MAGIC) return 'wrong magic';
  if (view.getUint32(4, true) !== crc32c(bytes, 8, CRC_END)) return 'its checksum differs';
  const version = view.getUint32(8, true);
  if (version !== VERSION) return `format ${version}; this version reads format ${VERSION}`;
  const owner = toHex(bytes, 16, 32);
  return owner === groupId ? getU64(view, 32) : `it belongs to group ${owner}, not to ${groupId}`;
}

export class FinalNote {
  /** The note that is durable; 0 = none. */
  lsn = 0;
  private readonly buffer: number;
  /** Its name is durable. */
  private named = false;
  private writing = false;
  private released = false;

  constructor(private readonly reactor: Reactor, private readonly directory: string, private readonly groupId: string) {
    this.buffer = reactor.arena.alloc(FINAL_ARENA_BYTES);
    assert(this.buffer >= 0, 'no arena room for a note');
  }

  private get path(): string {
    return `${this.directory}/${FINAL_FILE}`;
  }

  /** Reads what an earlier process noted. Blocking; throws CorruptionError, IoError. */
  load(): void {
    const { io } = this.reactor;
    const fd = io.open(this.path, O.RDWR | O.CLOEXEC, 0);
    if (fd === -Errno.ENOENT) return;
    if (fd < 0) throw new IoError(-fd, 'open', this.path);
    // What a failed fdatasync left in the page cache looks written but is not on the disk: as with the journal.
    const synced = io.fdatasync(fd);
    io.adviseDontNeed(fd, 0, 0);
    io.close(fd);
    if (synced < 0) throw new IoError(-synced, 'fdatasync', this.path);
    const found = decode(readWholeFile(io, this.path, BLOCK_BYTES), this.groupId);
    if (typeof found === 'string') {
      throw new CorruptionError(this.path, 0, `the note of how far this node's layer files were written cannot be read (${found}). Restore the file from a backup, or build this node anew from its primary`);
    }
    this.lsn = found;
  }

  /**
   * Notes that nothing below `lsn` is undone any more. Calls `done` with 0 once that is durable, at once if it is
   * already, or with −errno. One at a time.
   */
  note(lsn: number, done: (result: number) => void): void {
    if (lsn <= this.lsn) {
      done(0);
      return;
    }
    assert(!this.writing, 'one note at a time');
    const { reactor } = this;
    const { io } = reactor;
    this.writing = true;
    const fd = io.open(this.path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600);
    const folder = fd < 0 ? fd : io.open(this.directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0);
    const finish = (result: number): void => {
      if (folder >= 0) io.close(folder);
      if (fd >= 0) io.close(fd);
      this.writing = false;
      if (result >= 0) {
        this.named = true;
        this.lsn = lsn;
      }
      done(Math.min(result, 0));
    };
    if (folder < 0) {
      reactor.after(0, () => finish(folder));
      return;
    }
    this.encode(lsn);
    const table = new JobTable(3).add(JobOp.pwrite, fd, this.buffer, NOTE_BYTES, 0).add(JobOp.fdatasync, fd, 0, 0, 0);
    if (!this.named) table.add(JobOp.fsync, folder, 0, 0, 0);
    reactor.submit(Queue.destage, table, finish);
  }

  /** Sets the note, also to a lower LSN: at the start or the end of a group. Blocking; returns 0 or −errno. */
  setNow(lsn: number): number {
    if (lsn === this.lsn) return 0;
    assert(!this.writing, 'one note at a time');
    const { io } = this.reactor;
    const fd = io.open(this.path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600);
    if (fd < 0) return fd;
    this.encode(lsn);
    let result = io.pwrite(fd, this.buffer, NOTE_BYTES, 0);
    if (result >= 0) result = io.fdatasync(fd);
    if (result >= 0) result = io.syncDirectory(this.directory);
    io.close(fd);
    if (result < 0) return result;
    this.named = true;
    this.lsn = lsn;
    return 0;
  }

  private encode(lsn: number): void {
    const { u8, view } = this.reactor.arena;
    const at = this.buffer;
    u8.fill(0, at, at + NOTE_BYTES);
    view.setUint32(at, MAGIC, true);
    view.setUint32(at + 8, VERSION, true);
    putHex(u8, at + 16, this.groupId);
    putU64(view, at + 32, lsn);
    view.setUint32(at + 4, crc32c(u8, at + 8, at + CRC_END), true);
  }

  /** Gives memory back; only when nothing is being written. */
  close(): void {
    if (this.released) return;
    assert(!this.writing, 'a note is closed while it is being written');
    this.released = true;
    this.reactor.arena.release(this.buffer);
  }
}
