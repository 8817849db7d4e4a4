/**
 * What freezing needs of the machine: mounts, watchdog processes, shell
 * commands. Tests bring their own.
 *
 * Owns: child processes and descriptors. Must not know: in which order things
 * are done, and what they are for.
 */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { closeSync, constants, openSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { OperatorError } from '../../base/errors.js';
import { thawFileSystem } from '../../io/fsfreeze.js';
import type { Mount, MountPaths } from './mounts.js';
import { MOUNT_PATHS, mountIdOf, parseMounts } from './mounts.js';

/** How a shell command ended. */
export type CommandEnd =
  | { readonly kind: 'exit'; readonly code: number }
  | { readonly kind: 'signal'; readonly signal: string }
  /** It took longer, and was stopped with all that it had started. */
  | { readonly kind: 'timeout'; readonly seconds: number }
  /** `stop` was aborted: likewise. */
  | { readonly kind: 'interrupted' }
  | { readonly kind: 'unstartable'; readonly message: string };

/** What a watchdog can be told; the conversation stands in watchdog.ts. */
export type Word = 'sync' | 'freeze' | 'thaw';

/** A watchdog, as its command sees it. Lines arrive in order; after `ended` nothing comes. */
export interface WatchdogProcess {
  readonly pid: number;
  send(word: Word): void;
  /** SIGKILL: `ended` follows, when the kernel lets it go. */
  kill(): void;
}

export interface WatchdogEvents {
  line(line: string): void;
  /** The process is gone, or could not be started: a sentence without a subject. Once. */
  ended(how: string): void;
}

export interface FreezeSystem {
  readonly paths: MountPaths;
  /** How much later than the kernel a watchdog answers at most: it is a process like any other. */
  readonly graceMs: number;
  mounts(): Mount[];
  /** Whether this process has CAP_SYS_ADMIN. */
  mayFreeze(): boolean;
  /** Opens the directory at a mount point, which keeps it from being unmounted; throws OperatorError. */
  open(point: string): number;
  /** Id of the mount that an open directory lies on, in the table of `mounts`. */
  mountId(fd: number): number | undefined;
  close(fd: number): void;
  /** As in io/fsfreeze.ts: for when a watchdog died. */
  thaw(fd: number): number;
  /** Starts `lockstep freeze-watchdog` on an open directory, in a session of its own. */
  watch(fd: number, point: string, timeoutSeconds: number, events: WatchdogEvents): WatchdogProcess;
  /** Runs `sh -c command`; its output goes to standard error. Never rejects. */
  run(command: string, environment: Readonly<Record<string, string>>, limitMs: number, stop?: AbortSignal): Promise<CommandEnd>;
}

const CAP_SYS_ADMIN = 21n;
const MAIN = fileURLToPath(new URL('../main.js', import.meta.url));
/** Between SIGTERM and SIGKILL to a command that took too long. */
const GRACE_MS = 5000;
/** How often is looked whether what it started is gone, too. */
const LOOK_MS = 50;
const MAX_LINE_CHARACTERS = 256;

export const REAL_FREEZE_SYSTEM: FreezeSystem = {
  paths: MOUNT_PATHS,
  graceMs: 10_000,
  mounts: () => parseMounts(readFileSync(MOUNT_PATHS.mountinfo, 'utf8')),
  mayFreeze: () => {
    const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'));
    return effective !== null && ((BigInt(`0x${effective[1]}`) >> CAP_SYS_ADMIN) & 1n) === 1n;
  },
  open: (point) => {
    try {
      return openSync(point, constants.O_RDONLY | constants.O_DIRECTORY);
    } catch (error) {
      throw new OperatorError('freeze/no-mount', `cannot open the mount point ${point}: ${(error as Error).message}`);
    }
  },
  mountId: (fd) => mountIdOf(MOUNT_PATHS, 'self', fd),
  close: (fd) => closeSync(fd),
  thaw: (fd) => thawFileSystem(fd),
  watch: startWatchdog,
  run: runCommand,
};

function startWatchdog(fd: number, point: string, timeoutSeconds: number, events: WatchdogEvents): WatchdogProcess {
  // `detached` is setsid: neither Ctrl-C nor the end of the terminal reaches it. The mount point is named for ps only.
  const child = spawn(process.execPath, [MAIN, 'freeze-watchdog', '--timeout', String(timeoutSeconds), point], { detached: true, cwd: '/', stdio: ['pipe', 'pipe', 'ignore', fd] });
  // Without free descriptors there are none; 'error' follows.
  const { stdin, stdout } = child;
  let rest = '';
  stdout?.setEncoding('utf8');
  stdout?.on('data', (part: string) => {
    const lines = (rest + part).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) events.line(line);
    if (rest.length > MAX_LINE_CHARACTERS) child.kill('SIGKILL');
  });
  // A watchdog that is gone says so by its end.
  stdin?.on('error', () => {});
  stdout?.on('error', () => {});
  let over = false;
  const end = (how: string): void => {
    if (!over) events.ended(how);
    over = true;
  };
  child.once('error', (error) => end(`could not be started (${error.message})`));
  // 'close', not 'exit': its last lines have been read by then.
  child.once('close', (code, signal) => end(signal === null ? `ended with status ${code ?? '?'}` : `was ended by ${signal}`));
  return {
    pid: child.pid ?? -1,
    send: (word) => void stdin?.write(`${word}\n`),
    kill: () => void child.kill('SIGKILL'),
  };
}

function runCommand(command: string, environment: Readonly<Record<string, string>>, limitMs: number, stop?: AbortSignal): Promise<CommandEnd> {
  return new Promise((resolve) => {
    if (stop?.aborted === true) return resolve({ kind: 'interrupted' });
    // A group of its own, so that all of it can be stopped. Standard output is for the reply alone.
    const child = spawn('/bin/sh', ['-c', command], { detached: true, stdio: ['ignore', 2, 2], env: { ...process.env, ...environment } });
    let why: CommandEnd | undefined;
    let grace: NodeJS.Timeout | undefined;
    let look: NodeJS.Timeout | undefined;
    let killed = false;
    /** How sh ended; what it started may be there still. */
    let ended: CommandEnd | undefined;
    const stopFor = (reason: CommandEnd): void => {
      if (why !== undefined) return;
      why = reason;
      signalGroup(child, 'SIGTERM');
      grace = setTimeout(() => {
        killed = true;
        signalGroup(child, 'SIGKILL');
        if (ended !== undefined) over(ended);
      }, GRACE_MS);
    };
    const timer = setTimeout(() => stopFor({ kind: 'timeout', seconds: limitMs / 1000 }), limitMs);
    const interrupted = (): void => stopFor({ kind: 'interrupted' });
    stop?.addEventListener('abort', interrupted);
    const over = (end: CommandEnd): void => {
      clearTimeout(timer);
      clearTimeout(grace);
      clearInterval(look);
      stop?.removeEventListener('abort', interrupted);
      resolve(why ?? end);
    };
    child.once('error', (error) => over({ kind: 'unstartable', message: error.message }));
    child.once('exit', (code, signal) => {
      const end: CommandEnd = signal === null ? { kind: 'exit', code: code ?? 1 } : { kind: 'signal', signal };
      // What a command that ended by itself left running is its own business; one that is stopped is stopped as a whole.
      if (why === undefined || killed || !signalGroup(child, 0)) return over(end);
      ended = end;
      look = setInterval(() => {
        if (!signalGroup(child, 0)) over(end);
      }, LOOK_MS);
    });
  });
}

/** False: nothing of the group of `child` is there any more. Signal 0 only looks. */
function signalGroup(child: ChildProcess, signal: NodeJS.Signals | 0): boolean {
  if (child.pid === undefined) return false;
  try {
    return process.kill(-child.pid, signal);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // It ended by itself meanwhile.
    if (code === 'ESRCH') return false;
    // What is left of it became another user's (sudo), and only that one can stop it.
    if (code === 'EPERM') return true;
    throw error;
  }
}
