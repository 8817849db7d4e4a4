/** Runs the load generator, and reads what servers cost from /proc. */
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { run } from '../../test/harness/process.js';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
export const LOADGEN = process.env.LOCKSTEP_LOADGEN ?? join(ROOT, 'native', 'build', 'loadgen');

/** One line of loadgen; see scripts/bench/loadgen.cc. */
export interface LoadResult {
  readonly requests: number;
  readonly seconds: number;
  readonly requestsPerSecond: number;
  readonly megabytesPerSecond: number;
  readonly flushes: number;
  readonly latencyUs: { readonly p50: number; readonly p99: number; readonly p999: number; readonly max: number };
  readonly clientCpuUsPerRequest: number;
  readonly errors: number;
}

export interface Target {
  /** `unix:PATH` or `tcp:HOST:PORT`. */
  readonly address: string;
  readonly exportName: string;
}

/** Throws when loadgen fails: an error from a server makes a figure worthless. */
export async function load(target: Target, args: readonly string[]): Promise<LoadResult> {
  const result = await run(LOADGEN, ['--address', target.address, '--export', target.exportName, ...args], { timeoutMs: 600_000 });
  if (result.code !== 0) throw new Error(`loadgen ${args.join(' ')} at ${target.address}: exit code ${result.code}: ${result.stderr.trim()}`);
  return JSON.parse(result.stdout) as LoadResult;
}

/**
 * Writes the range once in order, so that nothing is sparse, and reads it once, so that it is cached. With 4 KiB
 * writes: 1 MiB ones leave large folios in the page cache, which make the servers that write to a file in place
 * three times slower at random 4 KiB writes (nbdkit: 21 us of CPU per write instead of 7).
 */
export async function fill(target: Target, bytes: number): Promise<void> {
  const range = ['--sequential', '--range', String(bytes)];
  await load(target, ['--op', 'write', '--block', '4K', '--depth', '32', ...range, '--count', String(Math.floor(bytes / 4096))]);
  await load(target, ['--op', 'read', '--block', '1M', '--depth', '4', ...range, '--count', String(Math.floor(bytes / 2 ** 20))]);
}

const TICKS_PER_SECOND = 100; // USER_HZ, the unit of /proc/PID/stat on every Linux of today

function childrenOf(pid: number): number[] {
  const found: number[] = [];
  try {
    for (const task of readdirSync(`/proc/${pid}/task`)) {
      const text = readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').trim();
      for (const child of text === '' ? [] : text.split(' ')) found.push(Number(child), ...childrenOf(Number(child)));
    }
  } catch {
    // it ended meanwhile; its time is in its parent's cutime then
  }
  return found;
}

/** Seconds of CPU that a process used, all threads, with its children: the living ones and those it has waited for. */
export function cpuSeconds(pid: number): number {
  let ticks = 0;
  for (const one of [pid, ...childrenOf(pid)]) {
    try {
      const stat = readFileSync(`/proc/${one}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ').map(Number);
      ticks += fields[11] + fields[12] + fields[13] + fields[14]; // utime stime cutime cstime
    } catch {
      // as above
    }
  }
  return ticks / TICKS_PER_SECOND;
}

/** Largest resident memory so far in bytes, of the process and its living children; 0 when it has ended. */
export function peakMemoryBytes(pid: number): number {
  let bytes = 0;
  for (const one of [pid, ...childrenOf(pid)]) {
    try {
      const line = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${one}/status`, 'utf8'));
      bytes += line === null ? 0 : Number(line[1]) * 1024;
    } catch {
      // as above
    }
  }
  return bytes;
}
