/**
 * The file half of a simulated process (`SimIo` of io.ts is the whole).
 *
 * Owns: descriptors, file calls and rows of jobs, their faults, the instant at
 * which the process ends.
 * Must not know: readiness, threads (jobs.ts), what survives (disk.ts).
 */
import { assert } from '../../src/base/assert.js';
import { Errno, IoError } from '../../src/base/errors.js';
import { JobOp, O } from '../../src/io/io.js';
import type { FileStat, SpaceStat } from '../../src/io/io.js';
import type { SimClock, Trace } from './clock.js';
import { EISDIR, SimDirectory, type SimDisk } from './disk.js';
import { SHORT_WRITE, SimCrash, type FaultOp } from './faults.js';
import type { SimFile } from './file.js';
import type { SimListener, SimNetwork, SimStream } from './network.js';
import { PAGE_BYTES } from './page.js';
import type { Random } from './random.js';

/** Checksums by other means (the native addon), with the same results. */
export interface Checksums {
  crc32c(memory: ArrayBuffer, buffer: number, length: number, seed: number): number;
  hash64(memory: ArrayBuffer, buffer: number, length: number, seedHi: number, seedLo: number, out: Uint32Array): void;
}

export interface SimIoOptions {
  /** Name of the node, for partitions and the trace. */
  readonly node: string;
  readonly clock: SimClock;
  readonly trace: Trace;
  readonly disk: SimDisk;
  readonly network: SimNetwork;
  readonly random: Random;
  /** The arena. Zeroed by the constructor, so that runs can share one. */
  readonly memory: ArrayBuffer;
  readonly checksums?: Checksums;
}

export interface OpenFile {
  readonly kind: 'file';
  readonly file: SimFile;
  readonly path: string;
  readonly writable: boolean;
}
export type Handle =
  | OpenFile
  | { readonly kind: 'directory'; readonly path: string }
  | { readonly kind: 'socket'; readonly socket: SimListener | SimStream };

export const VECTOR_PAIRS = 4096;
const FIRST_FD = 4;
const MAX_FD = 4096;
export const NO_PATH = '';
/** enter()'s answer when the process dies within a write. */
const CRASH_WITHIN = -1;
const CRASH_ERRNO = 0x7fff;
const ROW_NAMES = ['jobPread', 'jobPwrite', 'jobFdatasync', 'jobFsync', 'jobPunch', 'jobZero', 'jobClose', 'jobUnlink'];

export abstract class SimFiles {
  readonly memory: ArrayBuffer;
  readonly iov = new Uint32Array(VECTOR_PAIRS * 2);
  /** Set when the process is gone: every call throws. */
  dead = false;
  protected readonly bytes: Uint8Array;
  protected readonly handles: (Handle | undefined)[] = [];

  constructor(protected readonly options: SimIoOptions) {
    this.memory = options.memory;
    this.bytes = new Uint8Array(options.memory);
    this.bytes.fill(0);
  }

  protected abstract closeSocket(socket: SimListener | SimStream): void;
  protected abstract forget(fd: number): void;

  // ---- faults, crash, trace --------------------------------------------------------------------------

  /** Every call begins here. Returns the errno to fail with, or 0; throws SimCrash when the process is gone. */
  protected enter(op: FaultOp, path: string, pos: number, length: number, inJob = false): number {
    if (this.dead) throw new SimCrash(`${this.options.node} is dead`);
    const { faults } = this.options.disk;
    if (faults.burns(op, inJob)) {
      if (op === 'pwrite') return CRASH_WITHIN;
      throw this.crash();
    }
    return faults.errno(op, path, pos, length, inJob);
  }

  private crash(): SimCrash {
    this.dead = true;
    return new SimCrash(`${this.options.node} crashed at operation ${this.options.disk.faults.total}`);
  }

  protected done(what: string, a: number, b: number, result: number): number {
    this.options.trace.note(this.options.clock.now, this.options.node, what, a, b, result);
    return result;
  }

  /** A synchronous disk access takes a little time, and a stalled one much. */
  private spend(us: number): void {
    const { clock, disk } = this.options;
    const { rates } = disk.faults;
    clock.now += us;
    if (this.options.random.chance(rates.stall)) clock.now += this.options.random.below(rates.stallUs);
  }

  protected range(buffer: number, length: number): Uint8Array {
    if (!(buffer >= 0 && length >= 0 && buffer + length <= this.bytes.length)) throw new RangeError(`(${buffer}, ${length}) is outside of the arena`);
    return this.bytes.subarray(buffer, buffer + length);
  }

  protected fileOf(fd: number): OpenFile | undefined {
    const handle = this.handles[fd];
    return handle?.kind === 'file' ? handle : undefined;
  }

  // ---- files, hot ----------------------------------------------------------------------------------------

  pwritev(fd: number, count: number, pos: number): number {
    assert(count > 0 && count <= VECTOR_PAIRS, `a vector of ${count}`);
    let total = 0;
    for (let i = 0; i < count; i++) total += this.iov[i * 2 + 1];
    this.spend(3 + total / 4000);
    const { result, allowed } = this.admit('pwrite', fd, total, pos, 1, false);
    const file = this.fileOf(fd)?.file;
    const call = this.options.disk.nextCall();
    for (let i = 0, done = 0; i < count && done < allowed; i++) {
      const length = Math.min(this.iov[i * 2 + 1], allowed - done);
      file!.write(this.range(this.iov[i * 2], length), pos + done, call);
      done += length;
    }
    if (result === -CRASH_ERRNO) throw this.crash();
    return this.done('pwritev', pos, total, result);
  }

  pwrite(fd: number, buffer: number, length: number, pos: number): number {
    this.spend(3 + length / 4000);
    return this.done('pwrite', pos, length, this.writeOnce(fd, buffer, length, pos, 1, false));
  }

  private writeOnce(fd: number, buffer: number, length: number, pos: number, part: number, inJob: boolean): number {
    const { result, allowed } = this.admit('pwrite', fd, length, pos, part, inJob);
    if (allowed > 0) this.fileOf(fd)!.file.write(this.range(buffer, allowed), pos, this.options.disk.nextCall());
    if (result === -CRASH_ERRNO) throw this.crash();
    return result;
  }

  /** Decides how much of a write happens (`allowed` bytes, a prefix that ends on a page boundary) and what it returns. */
  private admit(op: 'pwrite' | 'zero', fd: number, length: number, pos: number, part: number, inJob: boolean): { result: number; allowed: number } {
    const open = this.fileOf(fd);
    const errno = this.enter(op, open?.path ?? NO_PATH, pos, length, inJob);
    if (open === undefined || !open.writable) return { result: -Errno.EBADF, allowed: 0 };
    const { disk, random } = this.options;
    if (part < 1) return { result: length, allowed: wholePages(pos, length * part) };
    if (errno === CRASH_WITHIN) return { result: -CRASH_ERRNO, allowed: wholePages(pos, length * random.unit()) };
    if (errno === SHORT_WRITE) {
      const allowed = wholePages(pos, (length - 1) * random.unit());
      return { result: allowed, allowed };
    }
    if (errno !== 0) return { result: -errno, allowed: random.chance(0.5) ? wholePages(pos, length * random.unit()) : 0 };
    const noSpace = disk.faults.rates.noSpace;
    if (disk.freeBytes < length + 2 * PAGE_BYTES || noSpace > 0) {
      const needed = open.file.newPages(pos, length) * PAGE_BYTES;
      if (needed > disk.freeBytes || (needed > 0 && random.chance(noSpace))) {
        // As many bytes as surely fit are written before the call that fails.
        const fits = Math.min(disk.freeBytes, length - 1);
        return { result: -Errno.ENOSPC, allowed: random.chance(0.5) ? wholePages(pos, fits) : 0 };
      }
    }
    return { result: length, allowed: length };
  }

  pread(fd: number, buffer: number, length: number, pos: number): number {
    this.spend(2);
    return this.done('pread', pos, length, this.readOnce('pread', fd, buffer, length, pos, false));
  }

  preadNowait(fd: number, buffer: number, length: number, pos: number): number {
    const { faults } = this.options.disk;
    const cold = this.options.random.chance(faults.rates.coldRead);
    const result = this.readOnce('preadNowait', fd, buffer, cold ? 0 : length, pos, false);
    return this.done('preadNowait', pos, length, cold && result >= 0 ? -Errno.EAGAIN : result);
  }

  private readOnce(op: 'pread' | 'preadNowait', fd: number, buffer: number, length: number, pos: number, inJob: boolean): number {
    const open = this.fileOf(fd);
    const errno = this.enter(op, open?.path ?? NO_PATH, pos, length, inJob);
    if (open === undefined) return -Errno.EBADF;
    if (errno !== 0) return -errno;
    open.file.read(this.range(buffer, length), pos);
    return length;
  }

  fdatasync(fd: number): number {
    this.spend(100);
    return this.done('fdatasync', fd, 0, this.syncOnce('fdatasync', fd, false));
  }

  private syncOnce(op: 'fdatasync' | 'fsync', fd: number, inJob: boolean): number {
    const handle = this.handles[fd];
    const open = this.fileOf(fd);
    const errno = this.enter(op, handle?.kind === 'directory' ? handle.path : open?.path ?? NO_PATH, 0, 0, inJob);
    if (open === undefined) {
      if (handle?.kind !== 'directory') return -Errno.EBADF;
      return errno !== 0 ? -errno : this.options.disk.syncDirectory(handle.path);
    }
    if (errno !== 0) {
      open.file.syncFailed(this.options.random, this.options.disk.faults.lossPerPage());
      return -errno;
    }
    open.file.sync();
    return 0;
  }

  // ---- files, cold -----------------------------------------------------------------------------------------

  open(path: string, flags: number, _mode: number): number {
    const { disk } = this.options;
    const errno = this.enter('open', path, 0, 0);
    if (errno !== 0) return this.done('open', flags, 0, -errno);
    let node = disk.lookup(path);
    if (node !== undefined && (flags & O.CREAT) !== 0 && (flags & O.EXCL) !== 0) return this.done('open', flags, 0, -Errno.EEXIST);
    if (node === undefined) {
      const created = (flags & O.CREAT) === 0 ? -Errno.ENOENT : disk.create(path);
      if (typeof created === 'number') return this.done('open', flags, 0, created);
      node = created;
    }
    const writable = (flags & (O.WRONLY | O.RDWR)) !== 0;
    if (node instanceof SimDirectory) {
      return this.done('open', flags, 0, writable ? -EISDIR : this.addHandle({ kind: 'directory', path }));
    }
    if ((flags & O.DIRECTORY) !== 0) return this.done('open', flags, 0, -Errno.ENOTDIR);
    if (writable && (flags & O.TRUNC) !== 0) node.truncate(0, disk.nextCall());
    const fd = this.addHandle({ kind: 'file', file: node, path, writable });
    if (fd >= 0) disk.hold(node);
    return this.done('open', flags, node.id, fd);
  }

  /** The lowest free descriptor, as the kernel gives: a stale one soon names another file. */
  protected addHandle(handle: Handle): number {
    let fd = FIRST_FD;
    while (this.handles[fd] !== undefined) fd++;
    if (fd >= MAX_FD) return -Errno.EMFILE;
    this.handles[fd] = handle;
    return fd;
  }

  /** Open descriptors: tests look for leaks with it. */
  get openCount(): number {
    return this.handles.filter((handle) => handle !== undefined).length;
  }

  close(fd: number): number {
    this.enter('close', this.fileOf(fd)?.path ?? NO_PATH, 0, 0);
    return this.done('close', fd, 0, this.closeHandle(fd));
  }

  protected closeHandle(fd: number): number {
    const handle = this.handles[fd];
    if (handle === undefined) return -Errno.EBADF;
    this.handles[fd] = undefined;
    this.forget(fd);
    if (handle.kind === 'file') this.options.disk.drop(handle.file);
    else if (handle.kind === 'socket') this.closeSocket(handle.socket);
    return 0;
  }

  syncDirectory(path: string): number {
    this.spend(50);
    const errno = this.enter('syncDirectory', path, 0, 0);
    return this.done('syncDirectory', path.length, 0, errno !== 0 ? -errno : this.options.disk.syncDirectory(path));
  }

  mkdir(path: string, _mode: number): number {
    const errno = this.enter('mkdir', path, 0, 0);
    return this.done('mkdir', path.length, 0, errno !== 0 ? -errno : this.options.disk.mkdir(path));
  }

  list(path: string): string[] {
    const errno = this.enter('list', path, 0, 0);
    const node = this.options.disk.lookup(path);
    if (errno !== 0) throw new IoError(errno, 'list', path);
    if (node === undefined) throw new IoError(Errno.ENOENT, 'list', path);
    if (!(node instanceof SimDirectory)) throw new IoError(Errno.ENOTDIR, 'list', path);
    return this.options.random.shuffle([...node.cached.keys()]);
  }

  rename(from: string, to: string): number {
    const errno = this.enter('rename', from, 0, 0);
    return this.done('rename', from.length, to.length, errno !== 0 ? -errno : this.options.disk.rename(from, to));
  }

  unlink(path: string): number {
    const errno = this.enter('unlink', path, 0, 0);
    return this.done('unlink', path.length, 0, errno !== 0 ? -errno : this.options.disk.unlink(path));
  }

  truncate(fd: number, size: number): number {
    const open = this.fileOf(fd);
    const errno = this.enter('truncate', open?.path ?? NO_PATH, size, 0);
    if (open === undefined || !open.writable) return this.done('truncate', fd, size, -Errno.EBADF);
    if (errno === 0) open.file.truncate(size, this.options.disk.nextCall());
    return this.done('truncate', fd, size, -errno | 0);
  }

  stat(fd: number): FileStat {
    const handle = this.handles[fd];
    const open = this.fileOf(fd);
    const errno = this.enter('stat', open?.path ?? NO_PATH, 0, 0);
    if (errno !== 0) throw new IoError(errno, 'stat', open?.path ?? `descriptor ${fd}`);
    if (open !== undefined) return { size: open.file.size, allocated: open.file.allocatedPages * PAGE_BYTES, isDirectory: false };
    if (handle === undefined) throw new IoError(Errno.EBADF, 'stat', `descriptor ${fd}`);
    return { size: 0, allocated: 0, isDirectory: handle.kind === 'directory' };
  }

  nextData(fd: number, pos: number): { start: number; end: number } | undefined {
    const open = this.fileOf(fd);
    const errno = this.enter('stat', open?.path ?? NO_PATH, pos, 0);
    if (errno !== 0 || open === undefined) throw new IoError(errno || Errno.EBADF, 'seek data in', open?.path ?? `descriptor ${fd}`);
    return open.file.nextData(pos);
  }

  adviseRandom(fd: number): number {
    this.enter('advise', NO_PATH, 0, 0);
    return this.fileOf(fd) === undefined ? -Errno.EBADF : 0;
  }

  adviseDontNeed(fd: number, pos: number, length: number): number {
    this.enter('advise', NO_PATH, pos, length);
    const open = this.fileOf(fd);
    if (open === undefined) return -Errno.EBADF;
    open.file.dropClean(pos, length);
    return this.done('dontNeed', pos, length, 0);
  }

  space(path: string): SpaceStat {
    const { disk } = this.options;
    const errno = this.enter('space', path, 0, 0);
    if (errno !== 0) throw new IoError(errno, 'statvfs', path);
    return { totalBytes: disk.capacity, freeBytes: disk.freeBytes };
  }

  /** One row of a job, at the virtual time at which its effect happens. */
  protected runRow(op: number, fd: number, buffer: number, length: number, pos: number, part: number): number {
    try {
      return this.done(ROW_NAMES[op] ?? 'row', pos, length, this.runRowOnce(op, fd, buffer, length, pos, part));
    } catch (error) {
      if (!(error instanceof SimCrash)) throw error;
      this.dead = true; // a fault hook chose this row; World notices before the next step
      return -Errno.EIO;
    }
  }

  private runRowOnce(op: number, fd: number, buffer: number, length: number, pos: number, part: number): number {
    const open = this.fileOf(fd);
    switch (op) {
      case JobOp.pread:
        return part < 1 ? 0 : this.readOnce('pread', fd, buffer, length, pos, true);
      case JobOp.pwrite:
        return this.writeOnce(fd, buffer, length, pos, part, true);
      case JobOp.fdatasync:
      case JobOp.fsync:
        return part < 1 ? 0 : this.syncOnce(op === JobOp.fsync ? 'fsync' : 'fdatasync', fd, true);
      case JobOp.zero: {
        const { result, allowed } = this.admit('zero', fd, length, pos, part, true);
        if (allowed > 0) open!.file.zero(pos, allowed, this.options.disk.nextCall());
        return result;
      }
      case JobOp.punch: {
        const errno = this.enter('punch', open?.path ?? NO_PATH, pos, length, true);
        if (open === undefined || !open.writable) return -Errno.EBADF;
        if (errno !== 0) return -errno;
        open.file.punch(pos, part < 1 ? wholePages(pos, length * part) : length, this.options.disk.nextCall());
        return 0;
      }
      case JobOp.unlink: {
        const path = Buffer.from(this.range(buffer, length - 1)).toString();
        const errno = this.enter('unlink', path, 0, 0, true);
        const result = errno !== 0 ? -errno : part < 1 ? 0 : this.options.disk.unlink(path);
        return result === -Errno.ENOENT ? 0 : result;
      }
      case JobOp.reserve: {
        const errno = this.enter('pwrite', open?.path ?? NO_PATH, pos, length, true);
        return errno !== 0 ? -errno : 0;
      }
      case JobOp.close:
        this.enter('close', open?.path ?? NO_PATH, 0, 0, true);
        return part < 1 ? 0 : this.closeHandle(fd);
      default:
        throw new RangeError(`no job operation ${op}`);
    }
  }
}

/** The longest prefix of at most `most` bytes from `pos` on that ends at a page boundary. */
function wholePages(pos: number, most: number): number {
  return Math.max(0, Math.floor((pos + most) / PAGE_BYTES) * PAGE_BYTES - pos);
}
