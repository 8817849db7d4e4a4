/**
 * The seam between Lockstep and the operating system (DESIGN §7, §10).
 *
 * Owns: the shapes of everything that leaves the process: files, sockets,
 * readiness, helper threads, clock and randomness. `RealIo` (real.ts) makes
 * system calls through the native addon; the simulator of test/sim implements
 * the same interface in memory, with a virtual clock and injected faults.
 * Must not know: LSNs, records, devices, policy.
 *
 * Conventions, which keep the data path free of allocation:
 * - A buffer is a byte range of one big arena, named by its offset.
 * - A call returns n >= 0, or a negated Linux errno. Only cold calls throw.
 * - Functions borrow the ranges that they are handed, until they return; a job
 *   borrows them until it has completed.
 */

/** Open flags, Linux values. */
export const O = { RDONLY: 0, WRONLY: 1, RDWR: 2, CREAT: 0o100, EXCL: 0o200, TRUNC: 0o1000, DIRECTORY: 0o200000, NOATIME: 0o1000000, CLOEXEC: 0o2000000 } as const;

/** epoll event bits, Linux values. */
export const Ready = { IN: 1, OUT: 4, ERR: 8, HUP: 16, RDHUP: 0x2000 } as const;

/**
 * Helper queues. Jobs of one queue start in the order of submission. A queue
 * with one thread is therefore a FIFO; `read` has two threads and is not.
 */
export const Queue = {
  /** fdatasync of journal segments; nothing else, so that group commit never waits for bulk work. */
  sync: 0,
  /** Reads that missed the page cache, map nodes, edge blocks. */
  read: 1,
  /** Destage writes, punches and fdatasyncs of layer files: one FIFO keeps them in order per layer. */
  destage: 2,
  /** Map file, checkpoint, segment zeroing. */
  checkpoint: 3,
  /** Writes through to the layers of local devices, and their fdatasyncs: a FIFO of their own, so that they wait for no bulk work. */
  append: 4,
} as const;
export type QueueId = (typeof Queue)[keyof typeof Queue];

/** Operations of a job. */
export const JobOp = {
  /** Reads exactly `length`; what lies behind the end of the file reads as zeros. */
  pread: 0,
  /** Writes all of `length`. */
  pwrite: 1,
  fdatasync: 2,
  fsync: 3,
  /** fallocate(PUNCH_HOLE | KEEP_SIZE) of (pos, length). */
  punch: 4,
  /** Writes zeros to (pos, length) without a buffer; preallocates a segment. */
  zero: 5,
  close: 6,
  /** Unlinks the file whose path lies in `buffer`; `length` includes a terminating zero. One that is gone already is no error. */
  unlink: 7,
  /**
   * Allocates the holes of (pos, length); content and size stay. Before a small write into a sparse file this keeps ext4
   * from searching the whole disk for a large free extent: 40,000 random blocks of a 1 TiB file took 14 s of system time
   * and 40 s to sync without, 0.9 s and 0.9 s with it.
   */
  reserve: 8,
} as const;

/** Columns of one row of a job's table. `buffer` is an arena offset. */
export const JOB_COLUMNS = 5; // op, fd, buffer, length, pos

/**
 * A job: rows of [op, fd, buffer, length, pos], run in order by one helper
 * thread; the first failing row ends it. Build with `JobTable` and hand to
 * `Reactor.submit`.
 */
export class JobTable {
  rows: Float64Array;
  count = 0;

  constructor(capacity = 16) {
    this.rows = new Float64Array(capacity * JOB_COLUMNS);
  }

  /** Takes all rows out. */
  clear(): this {
    this.count = 0;
    return this;
  }

  /** Adds a row (see JobOp): `buffer` is an arena offset, `length` and `pos` are bytes. Grows as needed. */
  add(op: number, fd: number, buffer: number, length: number, pos: number): this {
    let at = this.count * JOB_COLUMNS;
    if (at === this.rows.length) {
      const grown = new Float64Array(this.rows.length * 2);
      grown.set(this.rows);
      this.rows = grown;
    }
    this.rows[at++] = op;
    this.rows[at++] = fd;
    this.rows[at++] = buffer;
    this.rows[at++] = length;
    this.rows[at] = pos;
    this.count++;
    return this;
  }
}

/** Cold file facts. */
export interface FileStat {
  readonly size: number;
  /** Bytes allocated on the file system. */
  readonly allocated: number;
  readonly isDirectory: boolean;
}

export interface SpaceStat {
  readonly totalBytes: number;
  readonly freeBytes: number;
}

export type SocketAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string };

export interface Io {
  /** One range of memory that native code and JavaScript share. Starts zeroed. Size fixed at construction, below 4 GiB. */
  readonly memory: ArrayBuffer;

  /** Monotonic clock, microseconds (fractional allowed). */
  nowUs(): number;
  /** Wall clock, milliseconds since 1970. */
  wallMs(): number;
  /** Cryptographically strong (seeded in the simulator). */
  randomBytes(count: number): Uint8Array;

  // ---- files, hot: synchronous, on the calling thread -------------------------------------------
  /**
   * Vector table of `pwritev`, `sendv`: pairs (arena offset, length), filled by the caller.
   * Holds at least 1024 pairs; a call may use at most 1024 (IOV_MAX).
   */
  readonly iov: Uint32Array;
  /** Writes iov[0..count) at `pos`, all of it (short writes are continued). Returns bytes or −errno. */
  pwritev(fd: number, count: number, pos: number): number;
  pwrite(fd: number, buffer: number, length: number, pos: number): number;
  /** Blocking read. Bytes behind the end of the file read as zeros; returns `length` or −errno. */
  pread(fd: number, buffer: number, length: number, pos: number): number;
  /** As pread, but −EAGAIN when not all of it is in the page cache. */
  preadNowait(fd: number, buffer: number, length: number, pos: number): number;
  fdatasync(fd: number): number;

  // ---- files, cold ------------------------------------------------------------------------------
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  /** fsync of a directory: makes creation, rename and unlink of its entries durable. */
  syncDirectory(path: string): number;
  mkdir(path: string, mode: number): number;
  /** Names in no particular order; throws IoError. */
  list(path: string): string[];
  rename(from: string, to: string): number;
  unlink(path: string): number;
  truncate(fd: number, size: number): number;
  /** Throws IoError. */
  stat(fd: number): FileStat;
  /** Next allocated range at or after `pos`: [start, end), or undefined at the end. Throws IoError. */
  nextData(fd: number, pos: number): { start: number; end: number } | undefined;
  /** posix_fadvise(RANDOM) for layer files. */
  adviseRandom(fd: number): number;
  /** posix_fadvise(DONTNEED): drop clean pages, so that the next read comes from the disk. */
  adviseDontNeed(fd: number, pos: number, length: number): number;
  space(path: string): SpaceStat;

  // ---- checksums --------------------------------------------------------------------------------
  /** CRC32C of a range, continued from `seed` (0 to start). Unsigned. */
  crc32c(buffer: number, length: number, seed: number): number;
  /**
   * 64-bit non-cryptographic hash of a range, continued from the seed (hi, lo); writes hi, lo (u32 each)
   * to `out[0..1]`. Used for the journal's chain. Algorithm: src/base/hash64.ts is the reference.
   */
  hash64(buffer: number, length: number, seedHi: number, seedLo: number, out: Uint32Array): void;

  // ---- helper threads -----------------------------------------------------------------------------
  /** Queues a job (the rows are copied); its completion is reported by `reap` with `token`. */
  submit(queue: QueueId, rows: Float64Array, count: number, token: number): void;
  /**
   * Completed jobs: triples (token, result, failedRow) into `out`; returns the number of jobs.
   * result 0 or −errno of the first failing row. Readiness shows as `jobTag` in wait().
   */
  reap(out: Float64Array): number;

  // ---- sockets and readiness --------------------------------------------------------------------
  /** All sockets are non-blocking and close-on-exec; TCP ones have TCP_NODELAY. A stale Unix socket file is replaced. */
  listen(address: SocketAddress, backlog: number): number;
  /** The port a TCP listener got (for port 0). */
  boundPort(fd: number): number;
  /** A connection or −EAGAIN. */
  accept(fd: number): number;
  /** Starts to connect: fd or −errno; writable when done, then `socketError` tells. */
  connect(address: SocketAddress): number;
  socketError(fd: number): number;
  /** Text of the peer's address, for logs. */
  peerName(fd: number): string;
  setBuffers(fd: number, sendBytes: number, receiveBytes: number): number;
  /** 0 = end of stream. */
  recv(fd: number, buffer: number, length: number): number;
  send(fd: number, buffer: number, length: number): number;
  sendv(fd: number, count: number): number;
  shutdown(fd: number): number;

  watch(fd: number, events: number, tag: number): number;
  rewatch(fd: number, events: number, tag: number): number;
  unwatch(fd: number): number;
  /**
   * Waits at most `timeoutUs` (−1: for ever, 0: polls) for readiness; pairs (tag, events) into `out`;
   * returns the number of pairs. Tag 0 = jobs completed (call reap), tag 1 = `wake()` was called.
   */
  wait(timeoutUs: number, out: Int32Array): number;
  /**
   * Lets another thread that waits for this core run; called between two empty polls of a spin. The simulator
   * needs none.
   */
  relax?(): void;
  /** Another thread's way to end `wait` (an eventfd that both hold): its descriptor. */
  readonly wakeFd: number;

  dispose(): void;
}

export const TAG_JOBS = 0;
export const TAG_WAKE = 1;
/** First tag that the reactor hands out. */
export const TAG_FIRST = 2;
