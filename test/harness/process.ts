/**
 * Child processes of tests, the bench and the demo. Owns that nothing is left
 * behind: every child that `startProcess` made is killed by its pid when this
 * process ends, whatever the reason. Knows nothing of Lockstep.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';

/** Children that have not ended yet. */
const running = new Set<ChildProcess>();
/** Processes that made themselves independent and told their pid. */
const adopted = new Set<number>();
let guarded = false;

function guard(): void {
  if (guarded) return;
  guarded = true;
  process.on('exit', () => {
    for (const child of running) child.kill('SIGKILL');
    for (const pid of adopted) signalPid(pid, 'SIGKILL');
  });
}

/** The environment of a child: tap's own loaders and settings must not reach it (DESIGN §11). */
export function cleanEnvironment(extra: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const environment: NodeJS.ProcessEnv = { ...process.env, ...extra };
  delete environment.NODE_OPTIONS;
  for (const name of Object.keys(environment)) {
    if (name === 'TAP' || name.startsWith('TAP_') || name.startsWith('_TAPJS_')) delete environment[name];
  }
  return environment;
}

export interface ProcessOptions {
  /** File that gets stdout and stderr (appended); without it both are dropped. */
  readonly log?: string;
  readonly environment?: NodeJS.ProcessEnv;
  readonly directory?: string;
}

export interface RunningProcess {
  readonly pid: number;
  /** Settles when it has ended; never rejects. */
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  hasEnded(): boolean;
  /** Sends `signal` and waits for the end; after `graceMs` SIGKILL follows. Idempotent. */
  stop(signal?: NodeJS.Signals, graceMs?: number): Promise<void>;
}

export function startProcess(command: string, args: readonly string[], options: ProcessOptions = {}): RunningProcess {
  guard();
  const output = options.log === undefined ? 'ignore' : openSync(options.log, 'a');
  const child = spawn(command, args, {
    stdio: ['ignore', output, output],
    env: cleanEnvironment(options.environment),
    ...(options.directory === undefined ? {} : { cwd: options.directory }),
  });
  if (typeof output === 'number') closeSync(output);
  running.add(child);
  let over = false;
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((done) => {
    const finish = (code: number | null, signal: NodeJS.Signals | null): void => {
      over = true;
      running.delete(child);
      done({ code, signal });
    };
    child.once('exit', finish);
    child.once('error', () => finish(127, null));
  });
  return {
    pid: child.pid ?? -1,
    ended,
    hasEnded: () => over,
    async stop(signal: NodeJS.Signals = 'SIGTERM', graceMs = 20_000): Promise<void> {
      if (over) return;
      child.kill(signal);
      const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
      await ended;
      clearTimeout(timer);
    },
  };
}

/** False when there is no such process (any more). */
function signalPid(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
}

/** For a daemon that went into the background and wrote its pid: `stop` ends it, and so does the end of this process. */
export function adoptProcess(pid: number): Pick<RunningProcess, 'pid' | 'hasEnded' | 'stop'> {
  guard();
  adopted.add(pid);
  return {
    pid,
    hasEnded: () => !signalPid(pid, 0),
    async stop(signal: NodeJS.Signals = 'SIGTERM', graceMs = 20_000): Promise<void> {
      if (signalPid(pid, signal)) await waitFor(`process ${pid} ends`, () => !signalPid(pid, 0), graceMs);
      adopted.delete(pid);
    },
  };
}

export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end. Exit codes are results; only a command that cannot be started or passes `timeoutMs` throws. */
export async function run(
  command: string, args: readonly string[],
  options: { input?: string; timeoutMs?: number; environment?: NodeJS.ProcessEnv; directory?: string } = {},
): Promise<Finished> {
  guard();
  const child = spawn(command, args, {
    env: cleanEnvironment(options.environment),
    ...(options.directory === undefined ? {} : { cwd: options.directory }),
  });
  running.add(child);
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on('data', (part: Buffer) => stdout.push(part));
  child.stderr.on('data', (part: Buffer) => stderr.push(part));
  child.stdin.on('error', () => undefined); // a child that ends without reading its input
  child.stdin.end(options.input ?? '');
  const limitMs = options.timeoutMs ?? 120_000;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill('SIGKILL');
  }, limitMs);
  try {
    const code = await new Promise<number>((done, fail) => {
      child.once('error', fail);
      child.once('close', (exit, signal) => done(exit ?? (signal === null ? 1 : 128)));
    });
    const result = { code, stdout: Buffer.concat(stdout).toString(), stderr: Buffer.concat(stderr).toString() };
    if (late) throw new Error(`${command} ${args.join(' ')}: not done after ${limitMs} ms\n${result.stdout}${result.stderr}`);
    return result;
  } finally {
    clearTimeout(timer);
    running.delete(child);
  }
}

/** Polls until `probe` is true; throws with `what` after `timeoutMs`. */
export async function waitFor(what: string, probe: () => boolean | Promise<boolean>, timeoutMs = 30_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    if (await probe()) return;
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 15));
  }
}

/** Whether something accepts connections at a Unix socket path or a TCP port of the loopback. */
export function accepts(address: string | number): Promise<boolean> {
  return new Promise((done) => {
    const socket = typeof address === 'number' ? createConnection(address, '127.0.0.1') : createConnection(address);
    socket.once('connect', () => {
      socket.destroy();
      done(true);
    });
    socket.once('error', () => done(false));
  });
}

/** A TCP port of the loopback that was free a moment ago. */
export function freePort(): Promise<number> {
  return new Promise((done, fail) => {
    const server = createServer();
    server.once('error', fail);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => {
        if (address === null || typeof address === 'string') fail(new Error('no port'));
        else done(address.port);
      });
    });
  });
}
