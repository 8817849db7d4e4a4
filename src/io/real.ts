/**
 * `Io` over the operating system, through the native addon.
 *
 * Owns: the arena's memory, the vector table and the addon's context. Thin on
 * purpose: what can be decided is decided above. One RealIo belongs to the
 * thread that created it; several may exist side by side.
 */
import { randomFillSync } from 'node:crypto';
import { assert } from '../base/assert.js';
import { IoError } from '../base/errors.js';
import type { FileStat, Io, QueueId, SocketAddress, SpaceStat } from './io.js';
import type { NativeContext } from './native.js';
import { RESULT_COUNT, loadNative } from './native.js';

/** Pairs that the vector table holds: more than IOV_MAX, so that `pwritev` may be handed a whole tick. */
const VECTOR_COUNT = 4096;
const PAGE_BYTES = 4096;
/** Arena and what lies behind it: the addon counts offsets in 32 bits. */
export const MAX_MEMORY_BYTES = 2 ** 32 - PAGE_BYTES;

/** Ends the `wait` of another thread's Io. `wakeFd` is that Io's; throws IoError when it is closed. */
export function wakeThread(wakeFd: number): void {
  const result = loadNative().wake(wakeFd);
  if (result < 0) throw new IoError(-result, 'wake', `descriptor ${wakeFd}`);
}

/** Makes a socket blocking (before it is handed to the kernel's NBD client) or non-blocking. */
export function setBlocking(fd: number, blocking: boolean): void {
  const result = loadNative().setBlocking(fd, blocking ? 1 : 0);
  if (result < 0) throw new IoError(-result, 'set the mode of', `descriptor ${fd}`);
}

export interface RealIoOptions {
  /** Size of the arena, a multiple of 4 KiB below 4 GiB. Memory is used only where it is touched. */
  readonly arenaBytes: number;
  /** Memory behind the arena, a multiple of 4 KiB; both together at most MAX_MEMORY_BYTES. */
  readonly moreBytes?: number;
}

export class RealIo implements Io {
  readonly iov: Uint32Array;
  readonly wakeFd: number;
  private readonly results: Float64Array;

  private constructor(
    readonly memory: ArrayBuffer,
    control: ArrayBuffer,
    private readonly native: NativeContext,
  ) {
    this.results = new Float64Array(control, 0, RESULT_COUNT);
    this.iov = new Uint32Array(control, RESULT_COUNT * 8, VECTOR_COUNT * 2);
    this.wakeFd = native.wakeFd();
  }

  /** Throws OperatorError when the addon is missing, IoError when no descriptors are left, RangeError without memory. */
  static create(options: RealIoOptions): RealIo {
    const bytes = options.arenaBytes + (options.moreBytes ?? 0);
    assert(bytes > 0 && bytes <= MAX_MEMORY_BYTES && bytes % PAGE_BYTES === 0, `bad size of memory ${bytes}`);
    const memory = new ArrayBuffer(bytes);
    const control = new ArrayBuffer(RESULT_COUNT * 8 + VECTOR_COUNT * 8);
    const native = loadNative().create(memory, control);
    if (typeof native === 'number') throw new IoError(-native, 'open', 'epoll');
    return new RealIo(memory, control, native);
  }

  nowUs(): number {
    return this.native.nowUs();
  }
  wallMs(): number {
    return Date.now();
  }
  randomBytes(count: number): Uint8Array {
    return randomFillSync(new Uint8Array(count));
  }

  pwritev(fd: number, count: number, pos: number): number {
    return this.native.pwritev(fd, count, pos);
  }
  pwrite(fd: number, buffer: number, length: number, pos: number): number {
    return this.native.pwrite(fd, buffer, length, pos);
  }
  pread(fd: number, buffer: number, length: number, pos: number): number {
    return this.native.pread(fd, buffer, length, pos);
  }
  preadNowait(fd: number, buffer: number, length: number, pos: number): number {
    return this.native.preadNowait(fd, buffer, length, pos);
  }
  fdatasync(fd: number): number {
    return this.native.fdatasync(fd);
  }

  open(path: string, flags: number, mode: number): number {
    return this.native.open(path, flags, mode);
  }
  close(fd: number): number {
    return this.native.close(fd);
  }
  syncDirectory(path: string): number {
    return this.native.syncDirectory(path);
  }
  mkdir(path: string, mode: number): number {
    return this.native.mkdir(path, mode);
  }
  list(path: string): string[] {
    const names = this.native.list(path);
    if (typeof names === 'number') throw new IoError(-names, 'list', path);
    return names;
  }
  rename(from: string, to: string): number {
    return this.native.rename(from, to);
  }
  unlink(path: string): number {
    return this.native.unlink(path);
  }
  truncate(fd: number, size: number): number {
    return this.native.truncate(fd, size);
  }
  stat(fd: number): FileStat {
    const result = this.native.stat(fd);
    if (result < 0) throw new IoError(-result, 'stat', `descriptor ${fd}`);
    const [size, allocated, directory] = this.results;
    return { size, allocated, isDirectory: directory === 1 };
  }
  nextData(fd: number, pos: number): { start: number; end: number } | undefined {
    const result = this.native.nextData(fd, pos);
    if (result < 0) throw new IoError(-result, 'seek in', `descriptor ${fd}`);
    return result === 0 ? undefined : { start: this.results[0], end: this.results[1] };
  }
  adviseRandom(fd: number): number {
    return this.native.adviseRandom(fd);
  }
  adviseDontNeed(fd: number, pos: number, length: number): number {
    return this.native.adviseDontNeed(fd, pos, length);
  }
  space(path: string): SpaceStat {
    const result = this.native.space(path);
    if (result < 0) throw new IoError(-result, 'look at the space of', path);
    return { totalBytes: this.results[0], freeBytes: this.results[1] };
  }

  crc32c(buffer: number, length: number, seed: number): number {
    return this.native.crc32c(buffer, length, seed);
  }
  hash64(buffer: number, length: number, seedHi: number, seedLo: number, out: Uint32Array): void {
    this.native.hash64(buffer, length, seedHi, seedLo);
    out[0] = this.results[0];
    out[1] = this.results[1];
  }

  submit(queue: QueueId, rows: Float64Array, count: number, token: number): void {
    this.native.submit(queue, rows, count, token);
  }
  reap(out: Float64Array): number {
    return this.native.reap(out);
  }

  listen(address: SocketAddress, backlog: number): number {
    return address.kind === 'tcp'
      ? this.native.listenTcp(address.host, address.port, backlog)
      : this.native.listenUnix(address.path, backlog);
  }
  boundPort(fd: number): number {
    return this.native.boundPort(fd);
  }
  accept(fd: number): number {
    return this.native.accept(fd);
  }
  /** A literal TCP address is best: a host name is looked up by a blocking call. */
  connect(address: SocketAddress): number {
    return address.kind === 'tcp' ? this.native.connectTcp(address.host, address.port) : this.native.connectUnix(address.path);
  }
  /** 0, or −errno of the connection. */
  socketError(fd: number): number {
    return this.native.socketError(fd);
  }
  peerName(fd: number): string {
    return this.native.peerName(fd);
  }
  /** 0 leaves a size as it is. */
  setBuffers(fd: number, sendBytes: number, receiveBytes: number): number {
    return this.native.setBuffers(fd, sendBytes, receiveBytes);
  }
  recv(fd: number, buffer: number, length: number): number {
    return this.native.recv(fd, buffer, length);
  }
  send(fd: number, buffer: number, length: number): number {
    return this.native.send(fd, buffer, length);
  }
  sendv(fd: number, count: number): number {
    return this.native.sendv(fd, count);
  }
  shutdown(fd: number): number {
    return this.native.shutdown(fd);
  }

  watch(fd: number, events: number, tag: number): number {
    return this.native.watch(fd, events, tag);
  }
  rewatch(fd: number, events: number, tag: number): number {
    return this.native.rewatch(fd, events, tag);
  }
  unwatch(fd: number): number {
    return this.native.unwatch(fd);
  }
  /** May return 0 early: at the latest after 0.5 s, so that a Worker that waits can be terminated. */
  wait(timeoutUs: number, out: Int32Array): number {
    return this.native.wait(timeoutUs, out);
  }

  /** sched_yield. */
  relax(): void {
    this.native.relax();
  }

  /** Waits for running jobs, drops queued ones, closes epoll and the eventfds. Other descriptors are their owners'. Idempotent. */
  dispose(): void {
    this.native.dispose();
  }
}
