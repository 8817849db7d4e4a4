/**
 * The process that holds a freeze: `lockstep freeze-watchdog`, started by
 * `snapshot --freeze` in a session of its own, one for each mount. It thaws
 * when it is told to, when the pipe to the command ends (which is how it
 * notices that the command was killed), on a signal, and when time is over.
 *
 * Owns: the freeze of one file system, from before it begins until after it is
 * over. Must not know: snapshots, the daemon, mount points: it is handed a
 * descriptor.
 *
 * One process for each mount, because FIFREEZE blocks: were a file system
 * frozen that lies below another one that is being frozen, one thread for both
 * could not thaw the first when time is over.
 *
 * The conversation, in lines. An errno of 0 means that it worked:
 *
 *   command   sync | freeze | thaw
 *   watchdog  synced ERRNO · frozen ERRNO · thawed WHY ERRNO, WHY as below
 *
 * `thawed` is its last word, and so is `frozen` with an errno: then it was not
 * frozen, and nothing is thawed that somebody else may have frozen.
 */

import { fstatSync, writeFileSync, writeSync } from 'node:fs';
import { unreachable } from '../../base/assert.js';
import { OperatorError } from '../../base/errors.js';
import { freezeFileSystem, syncFileSystem, thawFileSystem } from '../../io/fsfreeze.js';
import { wholeNumber } from '../context.js';
import type { Context } from '../context.js';
import type { Word } from './system.js';

/** The descriptor of a directory on the file system, as the process inherits it. */
const MOUNT_FD = 3;
const OUTPUT_FD = 1;
/** No line of the conversation is longer. */
const MAX_LINE_CHARACTERS = 64;

/** Why it was thawed: told to · the time was over · the command went away · a signal. */
export type Why = 'command' | 'timeout' | 'end' | 'signal';

export interface WatchdogSystem {
  /** The three of io/fsfreeze.ts: 0 or −errno. */
  sync(): number;
  freeze(): number;
  thaw(): number;
  say(line: string): void;
  nowMs(): number;
  /** Calls `action` once after that time; the result cancels it. */
  after(ms: number, action: () => void): () => void;
}

type State =
  /** Nothing is frozen. */
  | { readonly kind: 'open' }
  /** Frozen by this process, until `cancel`led or the time is over. */
  | { readonly kind: 'frozen'; readonly cancel: () => void }
  /** Nothing is frozen any more, and never will be. */
  | { readonly kind: 'over' };

export class FreezeWatchdog {
  private state: State = { kind: 'open' };

  /** `timeoutMs`: the longest that the file system stays frozen, from when the freeze begins. `over` is called once. */
  constructor(
    private readonly system: WatchdogSystem,
    private readonly timeoutMs: number,
    private readonly over: () => void,
  ) {}

  /** What the command says. A word that is none of its words is treated as its end. */
  hear(word: string): void {
    switch (word as Word) {
      case 'sync':
        this.system.say(`synced ${-this.system.sync()}`);
        return;
      case 'freeze':
        this.freeze();
        return;
      case 'thaw':
        this.release('command');
        return;
      default:
        this.release('end');
    }
  }

  /** Thaws if it froze, and ends. Idempotent. */
  release(why: Why): void {
    const { state } = this;
    switch (state.kind) {
      case 'open':
        this.state = { kind: 'over' };
        this.over();
        return;
      case 'frozen':
        state.cancel();
        this.thaw(why);
        return;
      case 'over':
        return;
      default:
        return unreachable(state);
    }
  }

  private freeze(): void {
    if (this.state.kind !== 'open') return;
    const begun = this.system.nowMs();
    const result = this.system.freeze();
    if (result < 0) {
      this.state = { kind: 'over' };
      this.system.say(`frozen ${-result}`);
      this.over();
      return;
    }
    // The call may have taken longer than all the time there was.
    const left = begun + this.timeoutMs - this.system.nowMs();
    if (left <= 0) {
      this.thaw('timeout');
      return;
    }
    this.state = { kind: 'frozen', cancel: this.system.after(left, () => this.thaw('timeout')) };
    this.system.say('frozen 0');
  }

  private thaw(why: Why): void {
    this.state = { kind: 'over' };
    this.system.say(`thawed ${why} ${-this.system.thaw()}`);
    this.over();
  }
}

/** The process: standard input and output are the command's pipe. */
export async function runWatchdog(context: Context, options: { timeout: string }): Promise<void> {
  const timeoutMs = wholeNumber(options.timeout, '--timeout', 1, 86_400) * 1000;
  if (!inherited()) throw new OperatorError('usage', 'freeze-watchdog is started by lockstep snapshot --freeze, not by hand');
  // From here on signals end it only by way of a thaw.
  const finish = context.streams.hold?.();
  avoidOom();
  const { stdin } = process;
  await new Promise<void>((over) => {
    const watchdog = new FreezeWatchdog({
      sync: () => syncFileSystem(MOUNT_FD),
      freeze: () => freezeFileSystem(MOUNT_FD),
      thaw: () => thawFileSystem(MOUNT_FD),
      say,
      nowMs: () => performance.now(),
      after: (ms, action) => {
        const timer = setTimeout(action, ms);
        return () => clearTimeout(timer);
      },
    }, timeoutMs, over);
    const end = (): void => watchdog.release('end');
    // Whatever ends this process short of SIGKILL, a bug included, it thaws first.
    process.on('exit', end);
    context.streams.interrupted.addEventListener('abort', () => watchdog.release('signal'));
    let rest = '';
    stdin.setEncoding('utf8');
    stdin.on('data', (part: string) => {
      const lines = (rest + part).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) watchdog.hear(line);
      if (rest.length > MAX_LINE_CHARACTERS) end();
    });
    for (const event of ['end', 'error', 'close']) stdin.on(event, end);
  });
  stdin.destroy();
  finish?.();
}

function inherited(): boolean {
  try {
    return fstatSync(MOUNT_FD).isDirectory();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EBADF') return false;
    throw error;
  }
}

function say(line: string): void {
  try {
    writeSync(OUTPUT_FD, `${line}\n`);
  } catch (error) {
    // The command went away: the end of its pipe says so too. It must not be what ends this process while something is frozen.
    if (typeof (error as NodeJS.ErrnoException).code !== 'string') throw error;
  }
}

/** The kernel takes another process when memory runs out: with this one the thaw would be gone. */
function avoidOom(): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', '-1000');
  } catch (error) {
    // Without the right to it, it is as likely a victim as any; the command thaws then.
    if (typeof (error as NodeJS.ErrnoException).code !== 'string') throw error;
  }
}
