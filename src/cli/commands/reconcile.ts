/**
 * `lockstep reconcile`: makes a device on another node equal to one here, by
 * sending only what differs, over the pipe of a command.
 *
 * Owns: options, the command's process, words. Must not know: how differences
 * are found (cli/reconcile).
 */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import type { Command } from 'commander';
import { OperatorError, PeerError } from '../../base/errors.js';
import { formatSize } from '../../base/units.js';
import { deviceArgument, wholeNumber } from '../context.js';
import type { Context } from '../context.js';
import { serverAddress } from '../nbd/server.js';
import type { Register } from '../register.js';
import { Channel } from '../reconcile/channel.js';
import { NbdDevice } from '../reconcile/device.js';
import { DEFAULT_PATIENCE } from '../reconcile/patience.js';
import type { Patience } from '../reconcile/patience.js';
import { refuse } from '../reconcile/side.js';
import { Sink } from '../reconcile/sink.js';
import { Source } from '../reconcile/source.js';
import type { Progress, SourceReport } from '../reconcile/source.js';

interface ReconcileOptions {
  readonly with?: string;
  readonly serve?: boolean;
  readonly server?: string;
  readonly greetingTimeout: string;
  readonly timeout: string;
}

export interface ReconcileReply {
  readonly device: string;
  readonly peerDevice: string;
  readonly sizeBytes: number;
  /** Of both, now. */
  readonly digest: string;
  readonly differingRegions: number;
  /** What of the content went over the pipe, and all that went over it. */
  readonly contentBytes: number;
  readonly pipe: { readonly sentBytes: number; readonly receivedBytes: number };
  readonly here: { readonly readBytes: number; readonly hashedBytes: number };
  readonly there: { readonly readBytes: number; readonly hashedBytes: number; readonly writtenBytes: number; readonly zeroedBytes: number };
}

/** Between two lines about how far it is. */
const PROGRESS_MS = 5000;
/** For a command to end by itself when its input ended. */
const COMMAND_GRACE_MS = 10_000;
const LAST_WORDS_MS = 1000;

export function registerReconciliation(program: Command, register: Register): void {
  program.command('reconcile <group/device>')
    .description('make a device on another node equal to this one: compares digests, and sends only what differs')
    .option('--with <command>', 'shell command that runs the other side, such as \'ssh beta lockstep reconcile --serve main/web~try\'')
    .option('--serve', 'be the other side: speak over standard input and output, and write to the device')
    .option('--server <address>', 'unix:/PATH or tcp:HOST:PORT of the NBD server; default: as the daemon says')
    .option('--greeting-timeout <seconds>', 'how long to wait for the first word of the other side', String(DEFAULT_PATIENCE.greetingMs / 1000))
    .option('--timeout <seconds>', 'how long it may be silent later while an answer is due; it may have 1 GiB to read meanwhile', String(DEFAULT_PATIENCE.silenceMs / 1000))
    .addHelpText('after', '\nNothing else may write to either device meanwhile: compare snapshots. If it is cut off, run it again.')
    .action(register(reconcile));
}

async function reconcile(context: Context, options: ReconcileOptions, name: string): Promise<void> {
  const { group, device } = deviceArgument(name);
  const exportName = `${group}/${device}`;
  if ((options.with === undefined) === (options.serve !== true)) throw new OperatorError('usage', 'say either --with COMMAND, on the side that has the content, or --serve, on the side that is to become equal');
  const patience = patienceOf(options);
  if (options.serve === true) return serve(context, options, exportName, patience);
  const opened = await open(context, options, exportName, group, device);
  try {
    const command = Carrier.start(options.with!, (text) => context.streams.err(text));
    const { report, channel } = await command.carry((channel) => send(context, opened, channel, patience));
    print(context, exportName, opened, report, channel);
    await opened.close();
  } finally {
    opened.destroy();
  }
}

function patienceOf({ greetingTimeout, timeout }: ReconcileOptions): Patience {
  return { greetingMs: 1000 * wholeNumber(greetingTimeout, '--greeting-timeout', 1, 86_400), silenceMs: 1000 * wholeNumber(timeout, '--timeout', 1, 86_400) };
}

async function send(context: Context, device: NbdDevice, channel: Channel, patience: Patience): Promise<SourceReport> {
  const source = new Source(device, channel, progressOf(context), patience);
  const interrupt = (): void => source.fail(new OperatorError('interrupted', 'interrupted; nothing is claimed about the other side. To go on, run the command again'));
  context.streams.interrupted.addEventListener('abort', interrupt, { once: true });
  try {
    return await source.run();
  } finally {
    context.streams.interrupted.removeEventListener('abort', interrupt);
  }
}

async function serve(context: Context, options: ReconcileOptions, exportName: string, patience: Patience): Promise<void> {
  const pipe = context.streams.terminal ? undefined : context.streams.takePipe?.();
  if (pipe === undefined) throw new OperatorError('usage', '--serve speaks with another lockstep over standard input and output; it is started by: lockstep reconcile GROUP/DEVICE --with COMMAND');
  const [group, device] = exportName.split('/');
  const channel = new Channel(pipe.input, pipe.output);
  let opened: NbdDevice;
  try {
    opened = await open(context, options, exportName, group, device);
  } catch (error) {
    await refuse(channel, error as Error);
    throw error;
  }
  try {
    await new Sink(opened, channel, patience).run();
    await opened.close();
  } finally {
    opened.destroy();
  }
}

/** The device, when nobody else can write to it as far as this node's daemon knows. */
async function open(context: Context, options: ReconcileOptions, exportName: string, group: string, device: string): Promise<NbdDevice> {
  const server = await serverAddress(context, options.server);
  if (options.server === undefined) {
    const entry = (await context.client.devices(group)).devices.find((one) => one.name === device);
    const opened = await NbdDevice.open(server, exportName);
    if (entry !== undefined && entry.clients > 0 && !opened.readOnly) {
      opened.destroy();
      throw new OperatorError('device/busy', `${exportName} has ${entry.clients} connection${entry.clients === 1 ? '' : 's'} that may write to it; disconnect them, or use a snapshot that nobody writes to`);
    }
    return opened;
  }
  return NbdDevice.open(server, exportName);
}

/** The command whose standard input and output carry the stream. */
class Carrier {
  private readonly ended: Promise<string>;
  private over = false;

  private constructor(private readonly child: ChildProcess) {
    this.ended = new Promise((resolve) => {
      const settle = (words: string): void => {
        this.over = true;
        resolve(words);
      };
      child.once('error', (error) => settle(`the command could not be started: ${error.message}`));
      child.once('exit', (code, signal) => {
        const words = signal === null ? `the command ended with exit code ${code}` : `the command was ended by ${signal}`;
        // What it printed last is still on its way; something that it left behind may hold the pipe open for ever.
        child.once('close', () => settle(words));
        setTimeout(() => settle(words), LAST_WORDS_MS).unref();
      });
    });
  }

  /** `err` gets what the command prints to its standard error. */
  static start(command: string, err: (text: string) => void): Carrier {
    const child = spawn('/bin/sh', ['-c', command], { stdio: ['pipe', 'pipe', 'pipe'] });
    child.stderr.setEncoding('utf8');
    child.stderr.on('data', (text: string) => err(text));
    return new Carrier(child);
  }

  /** Runs `work` over the command's pipes and ends the command. When the stream broke off, the error says how the command ended. */
  async carry<T>(work: (channel: Channel) => Promise<T>): Promise<{ report: T; channel: Channel }> {
    const channel = new Channel(this.child.stdout!, this.child.stdin!);
    try {
      return { report: await work(channel), channel };
    } catch (error) {
      if (!(error instanceof PeerError) || error.code !== 'reconcile/ended') throw error;
      throw new PeerError(error.code, `${error.message} (${await this.end()})`);
    } finally {
      await this.end();
    }
  }

  /** Ends its input and waits for it; a command that goes on is told to end, then made to. */
  private async end(): Promise<string> {
    this.child.stdin!.destroy();
    const timers = (['SIGTERM', 'SIGKILL'] as const).map((signal, i) => setTimeout(() => {
      if (!this.over) this.child.kill(signal);
    }, COMMAND_GRACE_MS * (i + 1)));
    const words = await this.ended;
    for (const timer of timers) clearTimeout(timer);
    return words;
  }
}

function progressOf(context: Context): (progress: Progress) => void {
  let said = context.streams.now();
  return (progress) => {
    if (context.streams.now() - said < PROGRESS_MS) return;
    said = context.streams.now();
    context.streams.err(context.json
      ? `${JSON.stringify({ progress })}\n`
      : `lockstep: ${formatSize(progress.doneBytes)} of ${formatSize(progress.sizeBytes)} are equal, ${formatSize(progress.contentBytes)} sent\n`);
  };
}

function print(context: Context, exportName: string, device: NbdDevice, report: SourceReport, channel: Channel): void {
  const { readBytes, hashedBytes, differingRegions, writtenBytes, zeroedBytes } = report.there;
  const reply: ReconcileReply = {
    device: exportName, peerDevice: report.peerDevice, sizeBytes: device.sizeBytes, digest: report.digest, differingRegions, contentBytes: report.contentBytes,
    pipe: { sentBytes: channel.sentBytes, receivedBytes: channel.receivedBytes }, here: report.here, there: { readBytes, hashedBytes, writtenBytes, zeroedBytes },
  };
  context.print(reply, () => [
    `${report.peerDevice} on the other side is equal to ${exportName}: content digest ${report.digest}`,
    `${differingRegions} regions of 64 KiB differed; sent ${formatSize(report.contentBytes)} of content, ${formatSize(channel.sentBytes)} in all, received ${formatSize(channel.receivedBytes)}`,
    `read ${formatSize(report.here.readBytes)} here and ${formatSize(readBytes)} there of ${formatSize(device.sizeBytes)}; wrote ${formatSize(writtenBytes)} and zeroed ${formatSize(zeroedBytes)} there`,
  ].join('\n'));
}
