/**
 * Entry of the data-path Worker: the data path over the real system, driven by
 * messages of the main thread.
 *
 * A Worker that blocks in epoll_wait sees no events of its own event loop: the
 * main thread posts a message and then wakes the reactor; replies go out with
 * postMessage, which needs no event loop here.
 */

import { readFileSync } from 'node:fs';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { createRequire } from 'node:module';
import { Caller } from '../base/caller.js';
import { errorFields, SinkLog } from '../base/log.js';
import type { LogEntry } from '../base/log.js';
import { IoError } from '../base/errors.js';
import type { Config } from '../config/schema.js';
import { handedOver } from '../control/carry.js';
import { failureOf } from '../control/channel.js';
import type { GoneEnvelope, ReplyEnvelope, RequestEnvelope } from '../control/channel.js';
import { Arena } from '../io/arena.js';
import type { SpaceStat } from '../io/io.js';
import { Reactor } from '../io/reactor.js';
import { RealIo } from '../io/real.js';
import { Commands } from './commands.js';
import { DataPath } from './datapath.js';
import { blockCacheBytes } from './memory.js';

export interface WorkerInput {
  readonly config: Config;
  readonly bootId: string;
  readonly accepted: ReadonlyMap<string, number>;
  readonly control: MessagePort;
}

/** Worker → main, on the parent port. */
export type WorkerMessage =
  /** The addon is loaded: `wake` this descriptor after posting. */
  | { readonly kind: 'wake'; readonly fd: number }
  | { readonly kind: 'open' }
  | { readonly kind: 'log'; readonly entry: LogEntry }
  | { readonly kind: 'failed'; readonly failure: ReturnType<typeof failureOf>; readonly bug: string | undefined }
  | { readonly kind: 'closed' };

/** fs-ext's statVFS: what the user asked for, and it loads in a Worker. */
const { statVFS } = createRequire(import.meta.url)('fs-ext') as {
  statVFS(path: string): { f_frsize: number; f_blocks: number; f_bavail: number };
};

function space(path: string): SpaceStat {
  try {
    const { f_frsize, f_blocks, f_bavail } = statVFS(path);
    return { totalBytes: f_blocks * f_frsize, freeBytes: f_bavail * f_frsize };
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).errno;
    throw new IoError(typeof errno === 'number' ? Math.abs(errno) : 5, 'look at the free space of', path);
  }
}

/** How many descriptors this process may have; node has raised the soft limit to the hard one. */
function descriptorLimit(): number {
  const found = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'));
  // "unlimited" is as many as the kernel counts to
  return found === null ? 2 ** 20 : Number(found[1]);
}

function post(message: WorkerMessage): void {
  parentPort!.postMessage(message);
}

function run(input: WorkerInput): void {
  const { config } = input;
  const log = new SinkLog((entry) => post({ kind: 'log', entry }), config.log.level);
  const arenaBytes = config.dataPath.arena;
  const io = RealIo.create({ arenaBytes, moreBytes: blockCacheBytes(config.dataPath) });
  const reactor = new Reactor(io, new Arena(io, arenaBytes), { spinUs: config.dataPath.spinUs });
  post({ kind: 'wake', fd: io.wakeFd });
  const path = DataPath.open(reactor, config, log, { bootId: input.bootId, accepted: input.accepted, space, descriptors: descriptorLimit() });
  const commands = new Commands(path, Date.now());

  const callers = new Map<number, Caller>();
  const reply = (envelope: ReplyEnvelope): void => {
    // A caller that has gone was taken out before.
    if (callers.delete(envelope.id)) input.control.postMessage(envelope, envelope.ok ? handedOver(envelope.reply) : []);
  };
  const serve = ({ id, request }: RequestEnvelope, caller: Caller): void => {
    callers.set(id, caller);
    commands.handle(request, {
      done: (value) => reply({ id, ok: true, reply: value }),
      failed: (error) => {
        const failure = failureOf(error);
        if (failure === undefined) throw error;
        reply({ id, ok: false, failure });
      },
    }, caller);
  };
  const gone = (id: number): void => {
    const caller = callers.get(id);
    callers.delete(id);
    caller?.leave();
  };
  reactor.onWake(() => {
    // All of them first: one whose caller has gone meanwhile is not even begun.
    const envelopes: (RequestEnvelope | GoneEnvelope | 'close')[] = [];
    for (let message = receiveMessageOnPort(input.control); message !== undefined; message = receiveMessageOnPort(input.control)) {
      envelopes.push(message.message as RequestEnvelope | GoneEnvelope | 'close');
    }
    const left = new Set(envelopes.flatMap((envelope) => (envelope !== 'close' && 'gone' in envelope ? [envelope.id] : [])));
    for (const envelope of envelopes) {
      if (envelope === 'close') path.close(() => reactor.stop());
      else if ('gone' in envelope) gone(envelope.id);
      else if (!left.has(envelope.id)) serve(envelope, new Caller());
    }
    reactor.again();
  });
  post({ kind: 'open' });
  // What came before the reactor listened.
  reactor.again();
  reactor.run();
  io.dispose();
  post({ kind: 'closed' });
}

try {
  run(workerData as WorkerInput);
} catch (error) {
  const failure = failureOf(error);
  post({ kind: 'failed', failure, bug: failure === undefined ? String(errorFields(error)['stack'] ?? error) : undefined });
}
