/**
 * One file system that is to be frozen and thawed, as the command sees it:
 * what its watchdog was told, what it said, and what to do when it dies.
 *
 * Owns: the descriptor of the mount point, and the thaw in place of a dead
 * watchdog. Must not know: when and why somebody freezes.
 */

import { Errno, OperatorError, errnoText } from '../../base/errors.js';
import { ControlError } from '../../control/client.js';
import type { FreezeSystem, WatchdogProcess, Word } from './system.js';
import type { Mount } from './mounts.js';

type State =
  /** Nothing is frozen by us. */
  | { readonly kind: 'open' }
  /** The watchdog was told to freeze, and has not answered. */
  | { readonly kind: 'freezing' }
  /** Frozen; the watchdog thaws it. */
  | { readonly kind: 'frozen' }
  /** We are done with it. `problem`: a sentence when it had been frozen, and was not until we wanted. */
  | { readonly kind: 'over'; readonly problem: string | undefined };

interface Question {
  /** First word of the line that answers it. */
  readonly answer: string;
  readonly done: (errno: number) => void;
  readonly failed: (error: Error) => void;
}

export class FrozenMount {
  private state: State = { kind: 'open' };
  private question: Question | undefined;
  /** How the watchdog ended; undefined while it lives. */
  private end: string | undefined;
  private whenEnded: () => void = () => {};
  private watchdog!: WatchdogProcess;

  private constructor(private readonly system: FreezeSystem, private readonly mount: Mount, private readonly seconds: number, private readonly fd: number) {}

  /** Starts the watchdog of a mount, which thaws after `seconds`. Takes over `fd`, the open mount point, once it returns. */
  static watch(system: FreezeSystem, mount: Mount, fd: number, seconds: number): FrozenMount {
    const one = new FrozenMount(system, mount, seconds, fd);
    one.watchdog = system.watch(one.fd, mount.point, seconds, { line: (line) => one.hear(line), ended: (how) => one.ended(how) });
    return one;
  }

  /** Writes back what the kernel holds of it. Throws when that fails: a snapshot would lack what could not be written. */
  async sync(): Promise<void> {
    const errno = await this.ask('sync', 'synced', `writing back what is cached of ${this.mount.point}`);
    if (errno !== 0) throw failed('freeze/failed', `cannot write back what is cached of ${this.mount.point}: ${errnoText(errno)}. Look at the device below it (${this.mount.source})`);
  }

  /** Returns when it is frozen; throws when it is not. */
  async freeze(): Promise<void> {
    if (this.end === undefined) this.state = { kind: 'freezing' };
    const errno = await this.ask('freeze', 'frozen', `freezing ${this.mount.point}`);
    if (errno !== 0) throw this.refusal(errno);
  }

  /**
   * Ends the freeze, if there is one, ends the watchdog, and lets go of the
   * mount point. Returns a sentence when it had been frozen and was not until
   * now, or may be frozen still. To be called once, and always.
   */
  async thaw(): Promise<string | undefined> {
    const wasFreezing = this.state.kind === 'freezing';
    if (this.end === undefined) this.watchdog.send('thaw');
    let gone = await this.endedWithin(this.system.graceMs);
    if (!gone && !wasFreezing) {
      // Stopped, or stuck: its end makes us thaw. Not while the kernel freezes: then it must live to thaw.
      this.watchdog.kill();
      gone = await this.endedWithin(this.system.graceMs);
    }
    this.system.close(this.fd);
    if (this.state.kind === 'over') return this.state.problem;
    if (gone || this.state.kind === 'open') return undefined;
    return wasFreezing
      ? `the kernel is still freezing ${this.mount.point}: it waits for writes that have begun, probably to ${this.mount.source}. Process ${this.watchdog.pid} thaws it as soon as that ends`
      : `${this.mount.point} may still be frozen, its watchdog (process ${this.watchdog.pid}) does not answer: run fsfreeze --unfreeze ${this.mount.point}`;
  }

  // ---- the watchdog ---------------------------------------------------------------------------------

  private ask(word: Word, answer: string, doing: string): Promise<number> {
    if (this.end !== undefined) return Promise.reject(this.died(this.end));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.question = undefined;
        reject(failed('freeze/timeout', `${doing} is not done after ${this.seconds} s: the device below it (${this.mount.source}) is slow or does not answer. For a slow one, raise --freeze-timeout`));
      }, this.seconds * 1000 + this.system.graceMs);
      const settle = <T>(then: (value: T) => void) => (value: T): void => {
        clearTimeout(timer);
        this.question = undefined;
        then(value);
      };
      this.question = { answer, done: settle(resolve), failed: settle(reject) };
      this.watchdog.send(word);
    });
  }

  private hear(line: string): void {
    const [what, ...rest] = line.split(' ');
    const errno = Number(rest.at(-1));
    if (what === 'thawed') {
      this.wasThawed(rest[0], errno);
      return;
    }
    if (what === 'frozen' && this.state.kind === 'freezing') this.state = errno === 0 ? { kind: 'frozen' } : { kind: 'over', problem: undefined };
    if (this.question?.answer === what) this.question.done(errno);
  }

  private wasThawed(why: string, errno: number): void {
    const { point } = this.mount;
    if (this.state.kind === 'freezing') {
      // It took so long that it was thawed at once: what `freeze` throws.
      this.state = { kind: 'over', problem: errno === 0 ? undefined : this.cannotThaw(errno) };
      this.question?.failed(failed('freeze/timeout', `freezing ${point} took longer than ${this.seconds} s, and it was thawed at once. Raise --freeze-timeout, or look at the device below it (${this.mount.source})`));
      return;
    }
    if (this.state.kind !== 'frozen') return;
    this.state = { kind: 'over', problem: errno === 0 ? earlyThaw(point, why, this.seconds) : this.cannotThaw(errno) };
  }

  private ended(how: string): void {
    this.end = how;
    const { kind } = this.state;
    if (kind === 'freezing' || kind === 'frozen') {
      const errno = -this.system.thaw(this.fd);
      const thawed = errno === 0 || errno === Errno.EINVAL;
      this.state = { kind: 'over', problem: thawed ? `the watchdog of ${this.mount.point} ${how}, and ${this.mount.point} was thawed` : this.cannotThaw(errno) };
    }
    this.question?.failed(this.died(how));
    this.whenEnded();
  }

  private endedWithin(ms: number): Promise<boolean> {
    if (this.end !== undefined) return Promise.resolve(true);
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), ms);
      this.whenEnded = () => {
        clearTimeout(timer);
        resolve(true);
      };
    });
  }

  // ---- sentences ------------------------------------------------------------------------------------

  private died(how: string): Error {
    return failed('freeze/failed', `the watchdog of ${this.mount.point} ${how}, and nothing is frozen without one`);
  }

  private cannotThaw(errno: number): string {
    const { point } = this.mount;
    if (errno === Errno.EINVAL) return `${point} was thawed by somebody else`;
    return `cannot thaw ${point}: ${errnoText(errno)}. It may still be frozen: run fsfreeze --unfreeze ${point}`;
  }

  private refusal(errno: number): Error {
    const { point, type, source } = this.mount;
    switch (errno) {
      case Errno.EBUSY: return new OperatorError('freeze/busy', `${point} is frozen already, by somebody else, and stays so: wait until that is over, or, if nobody needs it any more, run fsfreeze --unfreeze ${point}`);
      case Errno.ENOTSUP: case ENOTTY: return new OperatorError('freeze/unsupported', `${point} cannot be frozen: ${type} does not support it. Leave --freeze ${point} out; sync -f ${point} in --exec-before writes back what it holds`);
      case Errno.EPERM: return new OperatorError('freeze/not-root', `to freeze ${point} needs root (CAP_SYS_ADMIN) over its file system, not only in a container`);
      default: return failed('freeze/failed', `cannot freeze ${point}: ${errnoText(errno)}. Look at the device below it (${source})`);
    }
  }
}

/** A file system, or something in front of it, that knows no ioctl. */
const ENOTTY = 25;

function earlyThaw(point: string, why: string, seconds: number): string | undefined {
  switch (why) {
    case 'command': return undefined;
    case 'timeout': return `${point} was thawed after ${seconds} s (--freeze-timeout), before the snapshot was done`;
    case 'signal': return `${point} was thawed because its watchdog was sent a signal`;
    default: return `${point} was thawed too early (${why})`;
  }
}

/** Not something to change, but something that went wrong: exit code 1. */
export function failed(code: string, message: string): Error {
  return new ControlError({ kind: 'io', code, message });
}
