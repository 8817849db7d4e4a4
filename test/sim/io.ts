/**
 * `Io` over a simulated disk, network and clock: one process of one node.
 *
 * Owns: readiness, sockets' descriptors, the process's end. Files: files.ts.
 * Must not know: what survives a crash (disk.ts), when nodes run (world.ts).
 *
 * Every call of a dead process throws SimCrash, so that nothing runs on after a
 * crash. `wait` never blocks: World reads from `lastTimeoutUs` and
 * `lastEvents` what the process would have waited for.
 */
import { assert } from '../../src/base/assert.js';
import { Errno } from '../../src/base/errors.js';
import { Ready, TAG_JOBS, TAG_WAKE } from '../../src/io/io.js';
import type { Io, QueueId, SocketAddress } from '../../src/io/io.js';
import { NO_PATH, SimFiles, VECTOR_PAIRS, type SimIoOptions } from './files.js';
import { crc32cFast, hash64Fast } from './hash.js';
import { SimJobs } from './jobs.js';
import { SimListener, SimStream } from './network.js';

export type { Checksums, SimIoOptions } from './files.js';

interface Watched {
  events: number;
  tag: number;
}

const WAKE_FD = 3;
const WALL_START_MS = 1_700_000_000_000;
const ALWAYS_REPORTED = Ready.ERR | Ready.HUP;

export class SimIo extends SimFiles implements Io {
  readonly wakeFd = WAKE_FD;
  /** The timeout that the last wait() asked for, in µs (−1 = for ever). */
  lastTimeoutUs = 0;
  /** How many events the last wait() returned. */
  lastEvents = 0;
  /** wait() calls so far. */
  waits = 0;
  readonly jobs: SimJobs;
  private readonly watched = new Map<number, Watched>();
  private woken = false;

  constructor(options: SimIoOptions) {
    super(options);
    this.jobs = new SimJobs(options.clock, options.random.fork(1), options.disk.faults, (...row) => this.runRow(...row));
  }

  // ---- clock ---------------------------------------------------------------------------------------------

  nowUs(): number {
    return this.options.clock.now;
  }

  wallMs(): number {
    return WALL_START_MS + Math.floor(this.options.clock.now / 1000);
  }

  randomBytes(count: number): Uint8Array {
    return this.options.random.fill(new Uint8Array(count));
  }

  // ---- checksums -------------------------------------------------------------------------------------------

  crc32c(buffer: number, length: number, seed: number): number {
    if (this.options.checksums !== undefined) return this.options.checksums.crc32c(this.memory, buffer, length, seed);
    this.range(buffer, length);
    return crc32cFast(this.bytes, buffer, buffer + length, seed);
  }

  hash64(buffer: number, length: number, seedHi: number, seedLo: number, out: Uint32Array): void {
    if (this.options.checksums !== undefined) {
      this.options.checksums.hash64(this.memory, buffer, length, seedHi, seedLo, out);
      return;
    }
    this.range(buffer, length);
    hash64Fast(this.bytes, buffer, length, seedHi, seedLo, out);
  }

  // ---- helper threads --------------------------------------------------------------------------------------

  submit(queue: QueueId, rows: Float64Array, count: number, token: number): void {
    this.enter('submit', NO_PATH, queue, count);
    this.jobs.submit(queue, rows, count, token);
    this.done('submit', queue, token, count);
  }

  reap(out: Float64Array): number {
    this.enter('reap', NO_PATH, 0, 0);
    return this.jobs.reap(out);
  }

  // ---- sockets and readiness ---------------------------------------------------------------------------------

  private streamOf(fd: number): SimStream | undefined {
    const handle = this.handles[fd];
    return handle?.kind === 'socket' && handle.socket instanceof SimStream ? handle.socket : undefined;
  }

  private listenerOf(fd: number): SimListener | undefined {
    const handle = this.handles[fd];
    return handle?.kind === 'socket' && handle.socket instanceof SimListener ? handle.socket : undefined;
  }

  protected override closeSocket(socket: SimListener | SimStream): void {
    if (socket instanceof SimListener) this.options.network.closeListener(socket);
    else this.options.network.close(socket);
  }

  protected override forget(fd: number): void {
    this.watched.delete(fd);
  }

  private adopt(made: SimListener | SimStream | number): number {
    return typeof made === 'number' ? made : this.addHandle({ kind: 'socket', socket: made });
  }

  listen(address: SocketAddress, backlog: number): number {
    const errno = this.enter('listen', NO_PATH, 0, 0);
    return this.done('listen', backlog, 0, errno !== 0 ? -errno : this.adopt(this.options.network.listen(this.options.node, address, backlog)));
  }

  boundPort(fd: number): number {
    return this.listenerOf(fd)?.port ?? -Errno.EBADF;
  }

  accept(fd: number): number {
    const errno = this.enter('accept', NO_PATH, 0, 0);
    const listener = this.listenerOf(fd);
    if (listener === undefined) return -Errno.EBADF;
    if (errno !== 0) return this.done('accept', fd, 0, -errno);
    const stream = this.options.network.accept(listener);
    return this.done('accept', fd, 0, stream === undefined ? -Errno.EAGAIN : this.adopt(stream));
  }

  connect(address: SocketAddress): number {
    const errno = this.enter('connect', NO_PATH, 0, 0);
    return this.done('connect', 0, 0, errno !== 0 ? -errno : this.adopt(this.options.network.connect(this.options.node, address)));
  }

  socketError(fd: number): number {
    const stream = this.streamOf(fd);
    return stream === undefined ? -Errno.EBADF : -stream.takeError() | 0;
  }

  peerName(fd: number): string {
    return this.streamOf(fd)?.peerName ?? '';
  }

  /** Buffer sizes are the network's choice: small ones are the point. */
  setBuffers(fd: number, _sendBytes: number, _receiveBytes: number): number {
    return this.handles[fd] === undefined ? -Errno.EBADF : 0;
  }

  recv(fd: number, buffer: number, length: number): number {
    const errno = this.enter('recv', NO_PATH, 0, length);
    const stream = this.streamOf(fd);
    if (stream === undefined) return -Errno.EBADF;
    return this.done('recv', fd, length, errno !== 0 ? -errno : stream.recv(this.range(buffer, length)));
  }

  send(fd: number, buffer: number, length: number): number {
    const errno = this.enter('send', NO_PATH, 0, length);
    const stream = this.streamOf(fd);
    if (stream === undefined) return -Errno.EBADF;
    return this.done('send', fd, length, errno !== 0 ? -errno : stream.send(this.range(buffer, length)));
  }

  sendv(fd: number, count: number): number {
    assert(count > 0 && count <= VECTOR_PAIRS, `a vector of ${count}`);
    const errno = this.enter('send', NO_PATH, 0, count);
    const stream = this.streamOf(fd);
    if (stream === undefined) return -Errno.EBADF;
    let total = errno !== 0 ? -errno : 0;
    for (let i = 0; i < count && errno === 0; i++) {
      const length = this.iov[i * 2 + 1];
      if (length === 0) continue;
      const sent = stream.send(this.range(this.iov[i * 2], length));
      if (sent < 0 && total === 0) total = sent;
      if (sent < 0) break;
      total += sent;
      if (sent < length) break;
    }
    return this.done('sendv', fd, count, total);
  }

  shutdown(fd: number): number {
    this.enter('send', NO_PATH, 0, 0);
    return this.done('shutdown', fd, 0, this.streamOf(fd)?.shutdown() ?? -Errno.EBADF);
  }

  watch(fd: number, events: number, tag: number): number {
    if (this.handles[fd] === undefined) return -Errno.EBADF;
    if (this.watched.has(fd)) return -Errno.EEXIST;
    this.watched.set(fd, { events, tag });
    return 0;
  }

  rewatch(fd: number, events: number, tag: number): number {
    const watched = this.watched.get(fd);
    if (watched === undefined) return -Errno.ENOENT;
    watched.events = events;
    watched.tag = tag;
    return 0;
  }

  unwatch(fd: number): number {
    return this.watched.delete(fd) ? 0 : -Errno.ENOENT;
  }

  private readyBits(fd: number, watched: Watched): number {
    const handle = this.handles[fd];
    return handle?.kind !== 'socket' ? 0 : handle.socket.readiness() & (watched.events | ALWAYS_REPORTED);
  }

  /** Whether wait() would return something now. */
  get hasReady(): boolean {
    if (this.woken || this.jobs.hasCompleted) return true;
    for (const [fd, watched] of this.watched) if (this.readyBits(fd, watched) !== 0) return true;
    return false;
  }

  /** Never blocks; see the module header. The order of events is chance, and more than fit wait for the next call. */
  wait(timeoutUs: number, out: Int32Array): number {
    this.enter('wait', NO_PATH, timeoutUs, 0);
    this.waits++;
    this.lastTimeoutUs = timeoutUs;
    const found: number[] = [];
    if (this.jobs.hasCompleted) found.push(TAG_JOBS, 1);
    if (this.woken) found.push(TAG_WAKE, 1);
    for (const [fd, watched] of this.watched) {
      const bits = this.readyBits(fd, watched);
      if (bits !== 0) found.push(watched.tag, bits);
    }
    const pairs = found.length / 2;
    const first = pairs > 1 ? this.options.random.below(pairs) : 0;
    const count = Math.min(pairs, Math.floor(out.length / 2));
    for (let i = 0; i < count; i++) {
      const from = ((first + i) % pairs) * 2;
      out[i * 2] = found[from];
      out[i * 2 + 1] = found[from + 1];
      if (found[from] === TAG_WAKE) this.woken = false;
    }
    this.lastEvents = count;
    return count;
  }

  /** What another thread does with `wakeFd`. */
  wake(): void {
    this.woken = true;
  }

  // ---- end -----------------------------------------------------------------------------------------------------

  /** The process ends at once: `SimNode.crash` calls it, then the disk loses power if it is to. */
  die(kind: 'kill' | 'power'): void {
    this.dead = false; // rows in flight still pass through enter()
    this.jobs.abandon();
    this.dead = true;
    this.options.network.nodeDied(this.options.node, kind);
    this.handles.forEach((handle) => {
      if (handle?.kind === 'file') this.options.disk.drop(handle.file);
    });
    this.handles.length = 0;
    this.watched.clear();
    this.options.trace.note(this.options.clock.now, this.options.node, kind, 0, 0, 0);
  }

  /** A clean end: sockets close in order. Jobs in flight must have completed, as RealIo demands by joining its threads. */
  dispose(): void {
    if (this.dead) return;
    this.jobs.abandon();
    this.handles.forEach((handle, fd) => handle !== undefined && this.closeHandle(fd));
    this.dead = true;
  }
}
