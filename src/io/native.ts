/**
 * Finds and loads the addon (native/), and gives its functions types.
 *
 * Owns: where the addon lies and what its absence is called. Must not know:
 * what its functions are used for.
 */
import { createRequire } from 'node:module';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { OperatorError } from '../base/errors.js';

/** Functions on one arena; results as in io.ts, with several results in the control buffer. */
export interface NativeContext {
  nowUs(): number;
  pwritev(fd: number, count: number, pos: number): number;
  pwrite(fd: number, buffer: number, length: number, pos: number): number;
  pread(fd: number, buffer: number, length: number, pos: number): number;
  preadNowait(fd: number, buffer: number, length: number, pos: number): number;
  fdatasync(fd: number): number;
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  syncDirectory(path: string): number;
  mkdir(path: string, mode: number): number;
  list(path: string): string[] | number;
  rename(from: string, to: string): number;
  unlink(path: string): number;
  truncate(fd: number, size: number): number;
  /** results: size, allocated bytes, 1 for a directory. */
  stat(fd: number): number;
  /** 1 with results (start, end), 0 when no data follow. */
  nextData(fd: number, pos: number): number;
  adviseRandom(fd: number): number;
  adviseDontNeed(fd: number, pos: number, length: number): number;
  /** results: total bytes, free bytes. */
  space(path: string): number;
  crc32c(buffer: number, length: number, seed: number): number;
  /** The road of processors without the instruction, for tests. */
  crc32cByTable(buffer: number, length: number, seed: number): number;
  /** results: high, low half. */
  hash64(buffer: number, length: number, seedHi: number, seedLo: number): number;
  submit(queue: number, rows: Float64Array, count: number, token: number): void;
  reap(out: Float64Array): number;
  listenTcp(host: string, port: number, backlog: number): number;
  listenUnix(path: string, backlog: number): number;
  connectTcp(host: string, port: number): number;
  connectUnix(path: string): number;
  boundPort(fd: number): number;
  accept(fd: number): number;
  socketError(fd: number): number;
  peerName(fd: number): string;
  setBuffers(fd: number, sendBytes: number, receiveBytes: number): number;
  recv(fd: number, buffer: number, length: number): number;
  send(fd: number, buffer: number, length: number): number;
  sendv(fd: number, count: number): number;
  shutdown(fd: number): number;
  watch(fd: number, events: number, tag: number): number;
  rewatch(fd: number, events: number, tag: number): number;
  unwatch(fd: number): number;
  wait(timeoutUs: number, out: Int32Array): number;
  relax(): void;
  wakeFd(): number;
  dispose(): void;
}

/** Functions of the module itself. All return n >= 0 or a negated errno. */
export interface NativeModule {
  create(arena: ArrayBuffer, control: ArrayBuffer): NativeContext | number;
  /** Ends the `wait` of the Io whose `wakeFd` this is, from any thread. */
  wake(fd: number): number;
  closeFd(fd: number): number;
  setBlocking(fd: number, blocking: 0 | 1): number;
  /** `request` and `argument` are u32; blocks for as long as the kernel does. */
  ioctl(fd: number, request: number, argument: number): number;
  /** Writes back the whole file system of `fd`. */
  syncfs(fd: number): number;
  netlinkOpen(protocol: number, timeoutMs: number): number;
  netlinkSend(fd: number, bytes: Uint8Array): number;
  netlinkReceive(fd: number, into: Uint8Array): number;
  netlinkJoin(fd: number, group: number): number;
}

/** float64 results at the start of the control buffer; the vector table follows. */
export const RESULT_COUNT = 8;

let loaded: NativeModule | undefined;

/** The addon, loaded once per thread. Throws OperatorError `native/missing` or `native/broken`. */
export function loadNative(): NativeModule {
  loaded ??= load(packageDirectory(dirname(fileURLToPath(import.meta.url))));
  return loaded;
}

function load(root: string | undefined): NativeModule {
  const file = join(root ?? '.', 'native', 'build', 'lockstep.node');
  if (root === undefined || !existsSync(file)) {
    throw new OperatorError('native/missing', `the native addon is missing (${file}): run make build`);
  }
  try {
    return createRequire(import.meta.url)(file) as NativeModule;
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new OperatorError('native/broken', `the native addon ${file} cannot be loaded (${why}): run make build on this machine`);
  }
}

/** The nearest directory at or above `from` whose package.json is ours: the output directory may lie at any depth. */
function packageDirectory(from: string): string | undefined {
  for (let directory = from; ; directory = dirname(directory)) {
    const file = join(directory, 'package.json');
    if (existsSync(file)) {
      const found: unknown = JSON.parse(readFileSync(file, 'utf8'));
      if (typeof found === 'object' && found !== null && 'name' in found && found.name === 'lockstep') return directory;
    }
    if (directory === dirname(directory)) return undefined;
  }
}
