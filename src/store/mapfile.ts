/**
 * The file that map nodes are appended to, never changed in place (DESIGN §6).
 *
 * Owns: its descriptor, its length, reading a node. Must not know: what nodes
 * mean, which of them are live.
 *
 *     block 0   header: u32 magic, u32 CRC32C of [8, 48), u64 number, 16B group id, zero
 *     then      node records, 8-byte aligned (map/codec.ts)
 *
 * Compaction writes the live nodes to a file with the next number, never one
 * that a slot may name; the checkpoint that names it is what makes it the map file.
 */

import { CorruptionError, IoError } from '../base/errors.js';
import { crc32c } from '../base/crc32c.js';
import { BLOCK_BYTES } from '../base/units.js';
import { getU64, putHex, putU64, toHex } from '../base/words.js';
import { O } from '../io/io.js';
import type { Io } from '../io/io.js';
import { NODE_READ_BYTES } from './nodereads.js';
import type { NodeReads } from './nodereads.js';

const MAGIC = 0x4d534b4c; // "LKSM"
const NAME = /^map-(\d{6,})$/;
/** First position of a node: a position is never 0. */
export const FIRST_NODE_POSITION = BLOCK_BYTES;

export class MapFile {
  private holds = 0;
  private closing = false;

  private constructor(
    /** Shared by the group's map files; the group's content closes it. */
    readonly reads: NodeReads,
    readonly path: string,
    readonly number: number,
    readonly fd: number,
    /** Where the next node goes. */
    public length: number,
  ) {}

  /** Of map file `number`. */
  static pathOf(directory: string, number: number): string {
    return `${directory}/map-${String(number).padStart(6, '0')}`;
  }

  /** Numbers of the map files in `directory`. Throws IoError. */
  static numbers(io: Io, directory: string): number[] {
    return io.list(directory).map((name) => Number(NAME.exec(name)?.[1] ?? -1)).filter((number) => number >= 0);
  }

  /** Throws IoError. */
  static create(reads: NodeReads, directory: string, number: number, groupId: string): MapFile {
    const { io, arena } = reads.reactor;
    const path = MapFile.pathOf(directory, number);
    const fd = io.open(path, O.RDWR | O.CREAT | O.TRUNC | O.CLOEXEC, 0o600);
    if (fd < 0) throw new IoError(-fd, 'create map file', path);
    const at = reads.block;
    arena.u8.fill(0, at, at + BLOCK_BYTES);
    arena.view.setUint32(at, MAGIC, true);
    putU64(arena.view, at + 8, number);
    putHex(arena.u8, at + 16, groupId);
    arena.view.setUint32(at + 4, crc32c(arena.u8, at + 8, at + 48), true);
    const result = io.pwrite(fd, at, BLOCK_BYTES, 0);
    if (result < 0) {
      io.close(fd);
      throw new IoError(-result, 'write map file', path);
    }
    return new MapFile(reads, path, number, fd, FIRST_NODE_POSITION);
  }

  /** Opens the file that a checkpoint names; nodes from `length` on are not part of it. Throws IoError, CorruptionError. */
  static open(reads: NodeReads, directory: string, number: number, groupId: string, length: number): MapFile {
    const { io, arena } = reads.reactor;
    const path = MapFile.pathOf(directory, number);
    const fd = io.open(path, O.RDWR | O.CLOEXEC, 0);
    if (fd < 0) throw fd === -2 ? new CorruptionError(path, 0, 'the map file that the checkpoint names is missing') : new IoError(-fd, 'open map file', path);
    const at = reads.block;
    const result = io.pread(fd, at, BLOCK_BYTES, 0);
    let problem: string | undefined;
    if (arena.view.getUint32(at, true) !== MAGIC || arena.view.getUint32(at + 4, true) !== crc32c(arena.u8, at + 8, at + 48)) problem = 'no map file header';
    else if (getU64(arena.view, at + 8) !== number) problem = `this is map file ${getU64(arena.view, at + 8)}, not ${number}`;
    else if (toHex(arena.u8, at + 16, at + 32) !== groupId) problem = 'this map file belongs to another group';
    else if (io.stat(fd).size < length) problem = `the file ends at byte ${io.stat(fd).size}, the checkpoint names ${length}`;
    if (result >= 0 && problem === undefined) return new MapFile(reads, path, number, fd, length);
    io.close(fd);
    throw result < 0 ? new IoError(-result, 'read map file', path) : new CorruptionError(path, 0, problem ?? 'unreadable');
  }

  /** Reads a node on this thread: only for inner nodes on the write path and for recovery. Throws IoError. */
  readNow(position: number): Uint8Array {
    const { reads } = this;
    const { io, arena } = reads.reactor;
    const result = io.pread(this.fd, reads.block, NODE_READ_BYTES, position);
    if (result < 0) throw new IoError(-result, `read map node at byte ${position} of`, this.path);
    return arena.u8.slice(reads.block, reads.block + NODE_READ_BYTES);
  }

  /** Reads a node on a helper. `bytes` is valid during the call; `errno` is 0 or what failed. */
  read(position: number, done: (bytes: Uint8Array, errno: number) => void): void {
    this.holds++;
    this.reads.read(this.fd, position, (bytes, errno) => {
      this.release();
      done(bytes, errno);
    });
  }

  /** Closes when the reads in flight have ended. */
  close(): void {
    if (this.closing) return;
    this.closing = true;
    if (this.holds === 0) this.reads.reactor.io.close(this.fd);
  }

  private release(): void {
    this.holds--;
    if (this.closing && this.holds === 0) this.reads.reactor.io.close(this.fd);
  }
}
