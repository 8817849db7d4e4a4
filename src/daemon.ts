/**
 * The daemon on the main thread: starts the data-path Worker and connects the
 * control port to it.
 *
 * Owns: the Worker's life. Must not know: what runs in it, HTTP.
 */

import { readFileSync } from 'node:fs';
import { MessageChannel, Worker } from 'node:worker_threads';
import { OperatorError } from './base/errors.js';
import type { Log } from './base/log.js';
import { forward } from './base/log.js';
import type { Config } from './config/schema.js';
import { ControlChannel } from './control/channel.js';
import { ControlError } from './control/port.js';
import type { ControlPort } from './control/port.js';
import type { WorkerInput, WorkerMessage } from './daemon/worker.js';
import { wakeThread } from './io/real.js';

export interface Daemon {
  readonly port: ControlPort;
  /** Clean shutdown; idempotent. */
  close(): Promise<void>;
  /** Rejects when the daemon cannot go on; never resolves. */
  readonly failed: Promise<never>;
}

/** Identity of this boot of the kernel: what was in the page cache is there as long as it stays the same. */
function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/**
 * Resolves when everything is open and served. `accepted`: groups whose unknown data are to be served all the same
 * (group/content/place.ts). Rejects with OperatorError, IoError, CorruptionError or a bug.
 */
export async function runDaemon(config: Config, log: Log, accepted: ReadonlyMap<string, number> = new Map()): Promise<Daemon> {
  const { port1, port2 } = new MessageChannel();
  const input: WorkerInput = { config, bootId: bootId(), accepted, control: port2 };
  const worker = new Worker(new URL('./daemon/worker.js', import.meta.url), {
    workerData: input, transferList: [port2], name: 'lockstep-data', stdout: false, stderr: false,
  });
  let wakeFd = -1;
  const wake = (): void => {
    if (wakeFd >= 0) wakeThread(wakeFd);
  };
  const channel = new ControlChannel(port1, wake);

  let opened!: () => void;
  let openFailed!: (error: Error) => void;
  const open = new Promise<void>((resolve, reject) => {
    opened = resolve;
    openFailed = reject;
  });
  let failedWith!: (error: Error) => void;
  const failed = new Promise<never>((_resolve, reject) => (failedWith = reject));
  failed.catch(() => {});
  let ended!: () => void;
  const end = new Promise<void>((resolve) => (ended = resolve));
  let closing = false;

  const fail = (error: Error): void => {
    channel.close({ kind: 'bug', code: 'daemon/failed', message: error.message });
    openFailed(error);
    failedWith(error);
    ended();
  };
  worker.on('message', (message: WorkerMessage) => {
    if (message.kind === 'wake') wakeFd = message.fd;
    else if (message.kind === 'open') opened();
    else if (message.kind === 'log') forward(message.entry, log);
    else if (message.kind === 'failed') fail(errorOf(message));
    else ended();
  });
  worker.on('error', fail);
  worker.on('exit', (code) => {
    wakeFd = -1;
    if (!closing) fail(new Error(`the data thread ended with code ${code}`));
    ended();
  });
  open.catch(() => {});
  await open;
  // Requests may have been posted before the descriptor was known.
  wake();

  return {
    port: channel,
    failed,
    close: async () => {
      if (!closing) {
        closing = true;
        port1.postMessage('close');
        wake();
      }
      await end;
      channel.close();
      await worker.terminate();
    },
  };
}

function errorOf(message: Extract<WorkerMessage, { kind: 'failed' }>): Error {
  if (message.failure === undefined) return new Error(message.bug ?? 'the data thread failed');
  if (message.failure.kind === 'operator') return new OperatorError(message.failure.code, message.failure.message);
  return new ControlError(message.failure);
}
