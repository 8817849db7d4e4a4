/**
 * Application consistency around a snapshot: `--exec-before`, `--freeze`,
 * `--exec-after`.
 *
 * Owns: the order of the steps, and that each of them is undone whatever
 * happens: on errors, on time limits, on signals; a watchdog process for each
 * mount (watchdog.ts) undoes its freeze also when this process is killed. Must
 * not know: which operation it is that the steps are around.
 *
 *   check everything that can be checked · exec-before · write back · freeze ·
 *   the operation, until it is durable · thaw · exec-after · wait for applied
 */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { ControlClient } from '../../control/client.js';
import type { Waits } from '../../control/client.js';
import { awaitedLinks, reachOfOperation } from '../../control/schema/reach.js';
import type { OperationReply } from '../../control/schema/replies.js';
import { EXIT_FAILED, wholeNumber } from '../context.js';
import type { Context } from '../context.js';
import { REAL_FREEZE_SYSTEM } from './system.js';
import type { CommandEnd, FreezeSystem } from './system.js';
import { chooseMounts } from './choice.js';
import type { ChosenMount } from './choice.js';
import { FrozenMount, failed } from './frozen-mount.js';
import { openedBy, writtenFileSystems } from './mounts.js';

export interface FreezeOptions {
  readonly freeze?: readonly string[];
  readonly freezeTimeout: string;
  readonly execBefore?: string;
  readonly execAfter?: string;
  readonly execTimeout: string;
}

const MAX_MOUNTS = 64;

export function freezeOptions(command: Command): Command {
  return command
    .option('--freeze <mountpoint>', 'freeze this mounted file system while the snapshot is made; may be repeated', (one: string, all: readonly string[] = []) => [...all, one])
    .option('--freeze-timeout <seconds>', 'the longest that it stays frozen', '30')
    .option('--exec-before <command>', 'run this before, with sh; no snapshot if it fails')
    .option('--exec-after <command>', 'run this after, with sh, also when there is no snapshot; LOCKSTEP_RESULT says "done" or "failed"')
    .option('--exec-timeout <seconds>', 'the longest that each of the two commands may take', '60');
}

/** What the steps are around; for the commands' environment and for messages. */
export interface Quiesced {
  readonly group: string;
  /** The device that is made, or @SET. */
  readonly device: string;
}

/**
 * Carries out `operate` between the steps that `options` ask for; without any,
 * it is just called. `operate` is asked to wait as it is told, which is never
 * longer than until the operation is durable while something is frozen, also
 * with a halt.
 *
 * Throws what a step throws, after everything is undone. When only what comes
 * after the operation failed, the reply is returned, the failure is printed,
 * and the exit code set.
 */
export async function quiesce<R extends OperationReply>(context: Context, options: FreezeOptions, what: Quiesced, asked: Waits, operate: (waits: Waits & { answerDurable?: boolean }) => Promise<R>): Promise<R> {
  const plan = planOf(options);
  if (plan === undefined) return operate(asked);
  const system = context.streams.freezeSystem ?? REAL_FREEZE_SYSTEM;
  const finish = context.streams.hold?.();
  try {
    const reply = await new Quiet(context, system, plan, what).around(() => operate({ ...asked, wait: 'durable', ...(asked.halt === true ? { answerDurable: true } : {}) }));
    return asked.wait === 'applied' && reply.waited === 'durable' ? await applied(context, what.group, reply, asked.waitSeconds ?? 60) : reply;
  } finally {
    finish?.();
  }
}

interface Plan {
  readonly mounts: readonly string[];
  readonly freezeSeconds: number;
  readonly before: string | undefined;
  readonly after: string | undefined;
  readonly execSeconds: number;
}

function planOf(options: FreezeOptions): Plan | undefined {
  const freezeSeconds = wholeNumber(options.freezeTimeout, '--freeze-timeout', 1, 86_400);
  const execSeconds = wholeNumber(options.execTimeout, '--exec-timeout', 1, 86_400);
  const mounts = options.freeze ?? [];
  if (mounts.length > MAX_MOUNTS) throw new OperatorError('usage', `--freeze may be given ${MAX_MOUNTS} times at most`);
  if (mounts.length === 0 && options.execBefore === undefined && options.execAfter === undefined) return undefined;
  return { mounts, freezeSeconds, before: options.execBefore, after: options.execAfter, execSeconds };
}

class Quiet {
  private readonly frozen: FrozenMount[] = [];

  constructor(
    private readonly context: Context,
    private readonly system: FreezeSystem,
    private readonly plan: Plan,
    private readonly what: Quiesced,
  ) {}

  async around<R extends OperationReply>(operate: () => Promise<R>): Promise<R> {
    await this.prepare();
    let reply: R | undefined;
    let failure: { readonly error: unknown } | undefined;
    try {
      reply = await this.whileQuiet(operate);
    } catch (error) {
      failure = { error };
    }
    // A failure of the operation is what is reported in the end; what else went wrong is said beside it.
    const broken = await this.thaw();
    if (broken !== undefined && failure === undefined) failure = { error: this.notConsistent(broken, reply) };
    else if (broken !== undefined) this.complain(failed('freeze/lost', broken));
    const late = await this.runAfter(failure === undefined, reply);
    if (late !== undefined) this.complain(late);
    if (failure !== undefined) throw failure.error;
    return reply as R;
  }

  // ---- before ---------------------------------------------------------------------------------------

  /** Everything that can be refused before anything was done. */
  private async prepare(): Promise<void> {
    const { system, plan } = this;
    if (plan.mounts.length === 0) return;
    if (!system.mayFreeze()) throw new OperatorError('freeze/not-root', 'to freeze a file system needs root (CAP_SYS_ADMIN): run it with sudo, or leave --freeze out and quiesce the application with --exec-before');
    const opened: ChosenMount[] = [];
    try {
      chooseMounts(system, plan.mounts, opened);
      await this.refuseOwn(this.context.client, opened);
      for (let one = opened[0]; one !== undefined; one = opened[0]) {
        this.frozen.push(FrozenMount.watch(system, one.mount, one.fd, plan.freezeSeconds));
        opened.shift();
      }
    } catch (error) {
      for (const { fd } of opened) system.close(fd);
      await this.thaw();
      throw error;
    }
  }

  /** A daemon whose own file system is frozen would make no snapshot. */
  private async refuseOwn(client: ControlClient, chosen: readonly ChosenMount[]): Promise<void> {
    const { system } = this;
    const { dataDirectory, pid, node } = await client.status();
    const opened = openedBy(system.paths, pid, `${dataDirectory}/lock`);
    const written = writtenFileSystems(system.mounts(), [{ path: dataDirectory }, ...opened], system.paths);
    for (const { mount } of chosen) {
      const needs = written.get(mount.fileSystem);
      if (needs === undefined) continue;
      throw new OperatorError('freeze/own', `${mount.point} holds what node ${node} writes (${needs}: its data, its journal or its log): frozen, the daemon would have to wait, and no snapshot would ever be made. Leave --freeze ${mount.point} out`);
    }
  }

  private async whileQuiet<R extends OperationReply>(operate: () => Promise<R>): Promise<R> {
    const { plan, context } = this;
    if (plan.before !== undefined) {
      const problem = problemOf(await this.execute(plan.before, {}, context.streams.interrupted));
      if (problem !== undefined) throw failed('exec/before', `--exec-before ${problem}: no snapshot was made`);
    }
    // Written back first, all at once, so that the freezes after it are short.
    await this.unlessInterrupted(Promise.all(this.frozen.map((mount) => mount.sync())));
    for (const mount of this.frozen) await this.unlessInterrupted(mount.freeze());
    return this.unlessInterrupted(operate());
  }

  private unlessInterrupted<T>(work: Promise<T>): Promise<T> {
    const { interrupted } = this.context.streams;
    return new Promise((resolve, reject) => {
      const stop = (): void => reject(failed('interrupted', `interrupted: lockstep list ${this.what.group} shows whether ${this.what.device} was made`));
      if (interrupted.aborted) stop();
      interrupted.addEventListener('abort', stop, { once: true });
      work.then(resolve, reject).finally(() => interrupted.removeEventListener('abort', stop));
    });
  }

  // ---- after ----------------------------------------------------------------------------------------

  /** Ends every freeze, whatever becomes of the others; what was wrong with them, in a sentence. */
  private async thaw(): Promise<string | undefined> {
    const problems = await Promise.all(this.frozen.map((mount) => mount.thaw()));
    const sentences = problems.filter((problem) => problem !== undefined);
    return sentences.length === 0 ? undefined : sentences.join('. ');
  }

  private notConsistent(broken: string, reply: OperationReply | undefined): Error {
    const made = `${this.what.group}/${this.what.device}`;
    return failed('freeze/lost', `${broken}. ${made} was made at LSN ${reply?.lsn ?? '?'}, but perhaps not while everything was frozen: remove it (lockstep remove ${made}) and try again`);
  }

  /** What went wrong in it. Not interrupted: it undoes what exec-before did. */
  private async runAfter(done: boolean, reply: OperationReply | undefined): Promise<Error | undefined> {
    const { after } = this.plan;
    if (after === undefined) return undefined;
    const problem = problemOf(await this.execute(after, { LOCKSTEP_RESULT: done ? 'done' : 'failed', LOCKSTEP_LSN: reply === undefined ? '' : String(reply.lsn) }));
    return problem === undefined ? undefined : failed('exec/after', `--exec-after ${problem}${done ? '; the snapshot was made' : ''}`);
  }

  private execute(command: string, more: Readonly<Record<string, string>>, stop?: AbortSignal): Promise<CommandEnd> {
    const environment = { LOCKSTEP_GROUP: this.what.group, LOCKSTEP_DEVICE: this.what.device, ...more };
    return this.system.run(command, environment, this.plan.execSeconds * 1000, stop);
  }

  /** A failure beside the one that is thrown, or after what was asked for was done. */
  private complain(error: Error): void {
    this.context.fail(error);
    this.context.exitCode = EXIT_FAILED;
  }
}

function problemOf(end: CommandEnd): string | undefined {
  switch (end.kind) {
    case 'exit': return end.code === 0 ? undefined : `ended with status ${end.code}`;
    case 'signal': return `was ended by ${end.signal}`;
    case 'timeout': return `was not done after ${end.seconds} s and was stopped`;
    case 'interrupted': return 'was interrupted';
    case 'unstartable': return `could not be started (${end.message})`;
  }
}

// ---- waiting for the secondaries, when nothing is frozen any more -----------------------------------

const POLL_MS = 100;

/** Waits until every secondary has applied the reply's marker; says who has not when the time is over. */
async function applied<R extends OperationReply>(context: Context, group: string, reply: R, seconds: number): Promise<R> {
  const deadline = performance.now() + seconds * 1000;
  // An interruption ends the wait, and must not cost the reply.
  const client = new ControlClient(context.client.socket);
  for (;;) {
    const { links } = await client.links(group);
    // `lsn` is where the marker begins, and nothing ends inside of it.
    const behind = awaitedLinks(links).filter((link) => link.applied <= reply.lsn);
    if (behind.length === 0) {
      const cursors = (await client.status()).groups.find((one) => one.name === group)?.cursors ?? [];
      return { ...reply, waited: 'applied', ...reachOfOperation(links, cursors, reply.lsn) };
    }
    if (performance.now() >= deadline || context.streams.interrupted.aborted) {
      const who = behind.map((link) => `${link.peer} (${link.reason === '' ? link.state : link.reason})`).join(', ');
      return { ...reply, notice: `not applied yet after ${seconds} s by ${who}; it is done here, and is applied there when the link gets to it` };
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}
