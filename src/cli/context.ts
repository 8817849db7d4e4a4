/**
 * What every command gets: the client, where output goes, and how errors
 * become exit codes. Owns the rules of output: one JSON value per line with
 * --json, people's words otherwise; errors go to standard error in both.
 */

import type { Readable, Writable } from 'node:stream';
import { OperatorError } from '../base/errors.js';
import { NAME_RULE, parseExportName, parseSetName } from '../base/names.js';
import { ControlClient, ControlError } from '../control/client.js';
import type { Waits } from '../control/client.js';
import { passedOverWords } from '../control/schema/reach.js';
import type { OperationReply } from '../control/schema/replies.js';
import type { AttachSystem } from './nbd/attach-system.js';
import type { FreezeSystem } from './freeze/system.js';
import { formatMilliseconds } from './render/words.js';

export const EXIT_OK = 0;
export const EXIT_FAILED = 1;
export const EXIT_OPERATOR = 2;
/** Waits whose time is over: the request was right, and the same one may do another time. */
const RAN_OUT: ReadonlySet<string> = new Set(['halt/not-drained']);

export const DEFAULT_SOCKET = '/run/lockstep/control.sock';

/** Standard input and output as bytes. */
export interface BinaryStreams {
  /** Resolves when more may be written. */
  write(bytes: Uint8Array): Promise<void>;
  read(): AsyncIterable<Uint8Array>;
  /** Whether the input is a terminal. */
  readonly terminal: boolean;
}

/** The process around the command line; tests bring their own. */
export interface Streams {
  out(text: string): void;
  err(text: string): void;
  /** Whether `out` is a terminal: bold and colour are allowed. */
  readonly terminal: boolean;
  /** Milliseconds since 1970. */
  now(): number;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborts when the user interrupts. */
  readonly interrupted: AbortSignal;
  /**
   * Says that there is something to undo: until the result is called, SIGINT, SIGTERM and SIGHUP only abort
   * `interrupted`, and the command ends by itself. (A second SIGINT still ends the process.)
   */
  readonly hold?: () => () => void;
  /** Gives standard input and output to the caller as byte streams; `out` must not be used afterwards. Absent: there are none. */
  readonly takePipe?: () => { readonly input: Readable; readonly output: Writable };
  /** Of commands that move bytes; undefined where there are none. */
  readonly binary?: BinaryStreams;
  /** In place of this machine's kernel. */
  readonly attachSystem?: AttachSystem;
  /** In place of this machine's mounts and processes. */
  readonly freezeSystem?: FreezeSystem;
}

export interface GlobalOptions {
  readonly socket?: string;
  readonly json?: boolean;
}

export class Context {
  readonly json: boolean;
  readonly client: ControlClient;
  /** Set by a command whose work was done, yet not all that was asked for. */
  exitCode = EXIT_OK;

  constructor(readonly streams: Streams, options: GlobalOptions) {
    this.json = options.json === true;
    this.client = new ControlClient(options.socket ?? streams.env['LOCKSTEP_SOCKET'] ?? DEFAULT_SOCKET, streams.interrupted);
  }

  /** The reply as JSON, or the words for a person. */
  print(reply: unknown, words: () => string): void {
    this.streams.out(`${this.json ? JSON.stringify(reply) : words()}\n`);
  }

  /** What a person should know while, or although, a command goes on. */
  remark(words: string): void {
    this.streams.err(this.json ? `${JSON.stringify({ remark: words })}\n` : `lockstep: ${words}\n`);
  }

  /** An operation's reply; one that did not get as far as asked ends with exit code 1. */
  printOperation(reply: OperationReply, what: string, asked: Waits): void {
    this.print(reply, () => `${what} at LSN ${reply.lsn}; ${reply.waited === 'applied' ? appliedWords(reply) : 'durable'} (data thread ${formatMilliseconds(reply.dataThreadUs / 1000)})`);
    if (reply.notice !== null && !this.json) this.streams.err(`lockstep: ${reply.notice}\n`);
    if (asked.wait === 'applied' && reply.waited !== 'applied') this.exitCode = EXIT_FAILED;
  }

  /** Says what went wrong; the exit code. */
  fail(error: unknown): number {
    const failure = this.failureOf(error);
    if (this.json) this.streams.err(`${JSON.stringify({ error: failure })}\n`);
    else this.streams.err(`lockstep: ${failure.message}\n`);
    return failure.kind === 'operator' && !RAN_OUT.has(failure.code) ? EXIT_OPERATOR : EXIT_FAILED;
  }

  private failureOf(error: unknown): { code: string; message: string; kind: string } {
    if (error instanceof ControlError) return { code: error.code, message: error.message, kind: error.kind };
    if (error instanceof OperatorError) return { code: error.code, message: error.message, kind: 'operator' };
    const message = error instanceof Error ? error.message : String(error);
    const code = error instanceof Error ? (error as { code?: unknown }).code : undefined;
    if (typeof code === 'string') return { code, message, kind: 'io' };
    const stack = this.streams.env['LOCKSTEP_DEBUG'] !== undefined && error instanceof Error ? `\n${error.stack ?? ''}` : '';
    return { code: 'bug', message: `a bug, please report it (LOCKSTEP_DEBUG=1 shows where): ${message}${stack}`, kind: 'bug' };
  }
}

/** Where an operation is that was waited for. */
function appliedWords(reply: OperationReply): string {
  const where = reply.waitedFor.length === 0 ? 'no secondary was waited for' : `applied on ${reply.waitedFor.join(', ')}`;
  return `durable here, ${where}${passedOverWords(reply)}`;
}

/** `group/device`; OperatorError `usage` for anything else. */
export function deviceArgument(words: string): { group: string; device: string } {
  const name = parseExportName(words);
  const slash = words.indexOf('/');
  if (name === undefined && slash > 0 && parseSetName(words.slice(slash + 1)) !== undefined) {
    throw new OperatorError('usage', `${JSON.stringify(words)} is a group snapshot, which this command does not take: name one of its members, ${words.slice(0, slash)}/VOLUME${words.slice(slash + 1)}`);
  }
  if (name?.device === undefined) throw new OperatorError('usage', `${JSON.stringify(words)} is no device: name it as GROUP/VOLUME, GROUP/VOLUME@SNAPSHOT or GROUP/VOLUME~LOCAL, each name ${NAME_RULE}`);
  return { group: name.group, device: name.device };
}

export function groupArgument(words: string): string {
  const name = parseExportName(words);
  if (name === undefined || name.device !== undefined) throw new OperatorError('usage', `${JSON.stringify(words)} is not the name of a group`);
  return name.group;
}

/** A whole number in a command's option. */
export function wholeNumber(words: string, what: string, min: number, max: number): number {
  const value = /^\d+$/.test(words) ? Number(words) : NaN;
  if (!(value >= min && value <= max)) throw new OperatorError('usage', `${what} must be a whole number from ${min} to ${max}, not ${JSON.stringify(words)}`);
  return value;
}
