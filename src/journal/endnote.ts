/**
 * The file `end` of a volatile journal: how far the journal goes.
 *
 * Owns: the byte layout; reading and writing it. Must not know: segments,
 * batches, what it means that the journal ends below.
 *
 * What lies in memory is never torn by a power loss, it is gone with it. So all
 * that was appended must be there at the next start, or somebody has taken it
 * away: removed, cut or exchanged segment files while the daemon was down. A
 * durable journal tells that by what it had made durable; here nothing ever is.
 *
 *   step                                  killed right after
 *   a batch is appended                   the journal goes beyond the note: all of it counts
 *   the note is moved to its end          the journal ends where the note says
 *   the batch is acknowledged             the same
 *   a rewind: the note is moved back      the journal goes beyond the note; the peer says again how far it is to go
 *   what lies behind is erased            it ends at the note or above
 *
 * Few bytes of one page: a kill leaves the old note or the new one.
 *
 *   0  u32 magic            4  u32 CRC32C of [8, 40)
 *   8  u32 version          12 u32 zero
 *   16 16B group id         32 u64 LSN
 */

import { assert } from '../base/assert.js';
import { crc32c } from '../base/crc32c.js';
import { Errno } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { getU64, putHex, putU64, toHex } from '../base/words.js';
import type { Io } from '../io/io.js';
import { O } from '../io/io.js';
import { must } from '../io/file.js';
import type { Reactor } from '../io/reactor.js';

const END_FILE = 'end';
/** Arena bytes that a note holds. */
export const END_ARENA_BYTES = BLOCK_BYTES;
const NOTE_BYTES = 40;
const MAGIC = 0x45534b4c; // "LKSE"
const VERSION = 1;

export class EndNote {
  private readonly buffer: number;
  private fd = -1;
  private released = false;

  constructor(private readonly reactor: Reactor, private readonly directory: string, private readonly groupId: string) {
    this.buffer = reactor.arena.alloc(END_ARENA_BYTES);
    assert(this.buffer >= 0, 'no arena room for a note');
  }

  get path(): string {
    return `${this.directory}/${END_FILE}`;
  }

  /** The LSN that is noted, or why it cannot be read; undefined when there is no note. Blocking; throws IoError. */
  read(): number | string | undefined {
    const { io, arena } = this.reactor;
    const fd = io.open(this.path, O.RDONLY | O.CLOEXEC, 0);
    if (fd === -Errno.ENOENT) return undefined;
    must(fd, 'open', this.path);
    const { u8, view } = arena;
    const at = this.buffer;
    u8.fill(0, at, at + NOTE_BYTES);
    const read = io.pread(fd, at, NOTE_BYTES, 0);
    io.close(fd);
    must(read, 'read', this.path);
    if (view.getUint32(at, true) !== MAGIC || view.getUint32(at + 4, true) !== crc32c(u8, at + 8, at + NOTE_BYTES)) return `${this.path} cannot be read`;
    const version = view.getUint32(at + 8, true);
    if (version !== VERSION) return `${this.path} has format ${version}; this version reads format ${VERSION}`;
    const owner = toHex(u8, at + 16, at + 32);
    return owner === this.groupId ? getU64(view, at + 32) : `${this.path} belongs to group ${owner}, not to ${this.groupId}`;
  }

  /** Before `move`: makes the file, or takes the one that is there, and notes `lsn`. Blocking; throws IoError. */
  place(lsn: number): void {
    const { io, arena: { u8, view } } = this.reactor;
    if (this.fd < 0) this.fd = must(io.open(this.path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600), 'create', this.path);
    const at = this.buffer;
    u8.fill(0, at, at + NOTE_BYTES);
    view.setUint32(at, MAGIC, true);
    view.setUint32(at + 8, VERSION, true);
    putHex(u8, at + 16, this.groupId);
    must(this.move(lsn), 'write', this.path);
  }

  /** Once per batch, on the data thread: it needs no memory that the file does not have. Returns 0 or −errno. */
  move(lsn: number): number {
    const { io, arena: { view } } = this.reactor;
    const at = this.buffer;
    assert(this.fd >= 0, 'the note has no place yet');
    putU64(view, at + 32, lsn);
    view.setUint32(at + 4, io.crc32c(at + 8, NOTE_BYTES - 8, 0), true);
    return Math.min(0, io.pwrite(this.fd, at, NOTE_BYTES, 0));
  }

  close(): void {
    if (this.released) return;
    this.released = true;
    if (this.fd >= 0) this.reactor.io.close(this.fd);
    this.reactor.arena.release(this.buffer);
  }
}

/** Removes the note of a journal that is being removed. Throws IoError. */
export function removeEnd(io: Io, directory: string): void {
  const result = io.unlink(`${directory}/${END_FILE}`);
  if (result !== -Errno.ENOENT) must(result, 'remove', `${directory}/${END_FILE}`);
}
