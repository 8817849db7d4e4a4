/** Commands that carry the journal by other means than a link: journal export, import, ack, release, position; drain. */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { formatSize } from '../../base/units.js';
import { passedOverWords } from '../../control/schema/reach.js';
import type { DrainReply, ImportState } from '../../control/schema/replies.js';
import { EXIT_FAILED, groupArgument, wholeNumber } from '../context.js';
import type { BinaryStreams, Context } from '../context.js';
import type { Register } from '../register.js';

/** `journal`: the command that these are added to. */
export function registerCarriage(program: Command, journal: Command, register: Register): void {
  journal.command('export <group>')
    .description('write the journal to standard output, from a cursor on, for `journal import` on another node')
    .requiredOption('--cursor <name>', 'named reader: the journal is kept for it until acknowledged, over restarts; made when there is none')
    .option('--from <position>', 'where a new cursor begins: a position, or an LSN; default: the oldest that is retained')
    .option('-f, --follow', 'go on with what becomes durable')
    .action(register(exportJournal));
  journal.command('import <group>')
    .description('take an exported journal from standard input into a secondary; prints the position up to which it is durable here')
    .action(register(importJournal));
  journal.command('ack <group> <cursor> <position>')
    .description('tell a cursor what has arrived: the journal below is no longer kept for it; "-" reads positions, one a line')
    .action(register(ack));
  journal.command('release <group> <cursor>')
    .description('give a cursor up: the journal is no longer kept for it')
    .action(register(release));
  journal.command('position <group>')
    .description('print where this node stands, durably: EPOCHID:LSN:CHAIN')
    .action(register(position));
  program.command('drain <group>')
    .description('wait until every link and cursor has confirmed what is appended now')
    .option('--timeout <seconds>', 'how long to wait', '60')
    .action(register(drain));
}

function binary(context: Context): BinaryStreams {
  const { binary } = context.streams;
  if (binary === undefined) throw new OperatorError('usage', 'this needs standard input and output as byte streams');
  return binary;
}

async function exportJournal(context: Context, options: { cursor: string; from?: string; follow?: boolean }, name: string): Promise<void> {
  const group = groupArgument(name);
  const out = binary(context);
  if (context.streams.terminal) throw new OperatorError('usage', `the journal is bytes, not text for a terminal: write it to a file or a pipe, for example | lockstep journal import ${group}`);
  const from = options.from === undefined ? {} : { from: /^\d+$/.test(options.from) ? wholeNumber(options.from, '--from', 0, Number.MAX_SAFE_INTEGER) : options.from };
  const body = { cursor: options.cursor, ...from, ...(options.follow === true ? { follow: true } : {}) };
  for await (const bytes of context.client.exportJournal(group, body, context.streams.interrupted)) await out.write(bytes);
}

async function importJournal(context: Context, _options: object, name: string): Promise<void> {
  const group = groupArgument(name);
  const input = binary(context);
  if (input.terminal) throw new OperatorError('usage', `standard input is a terminal; pipe an exported journal in: lockstep journal export ${group} --cursor NAME | lockstep journal import ${group}`);
  let told = '';
  let last: ImportState | undefined;
  for await (const state of context.client.importJournal(group, input.read(), context.streams.interrupted)) {
    last = state;
    if (state.position === told) continue;
    told = state.position;
    context.print(state, () => state.position);
  }
  if (last?.whole !== false || context.streams.interrupted.aborted) return;
  if (!context.json) context.streams.err(`lockstep: the stream was cut off at LSN ${last.receivedLsn}; what came before is in, export again to go on\n`);
  context.exitCode = EXIT_FAILED;
}

async function ack(context: Context, _options: object, name: string, cursor: string, words: string): Promise<void> {
  const group = groupArgument(name);
  const one = async (text: string): Promise<void> => {
    const reply = await context.client.ackCursor(group, cursor, text);
    context.print(reply, () => `cursor ${cursor} of ${group} stands at LSN ${reply.lsn}, ${formatSize(reply.behindBytes)} behind`);
  };
  if (words !== '-') return one(words);
  // While one is under way only the newest of those that come is worth telling.
  let newest: string | undefined;
  let underWay: Promise<void> | undefined;
  let problem: unknown;
  const tell = async (): Promise<void> => {
    try {
      for (let text = newest; text !== undefined; text = newest) {
        newest = undefined;
        await one(text);
      }
    } catch (error) {
      problem = error;
    }
    underWay = undefined;
  };
  for await (const line of lines(binary(context).read())) {
    newest = line;
    underWay ??= tell();
    if (problem !== undefined) break;
  }
  await underWay;
  if (problem !== undefined) throw problem as Error;
}

async function* lines(input: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of input) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split('\n');
    rest = parts.pop() ?? '';
    if (rest.length > 4096) throw new OperatorError('usage', 'a line of standard input is no position');
    yield* parts.map((part) => part.trim()).filter((part) => part !== '');
  }
  if (rest.trim() !== '') yield rest.trim();
}

async function release(context: Context, _options: object, name: string, cursor: string): Promise<void> {
  const group = groupArgument(name);
  const reply = await context.client.releaseCursor(group, cursor);
  context.print(reply, () => `released cursor ${reply.cursor} of ${group}: ${formatSize(reply.freedBytes)} of journal are no longer kept for it (from LSN ${reply.lsn})`);
}

async function position(context: Context, _options: object, name: string): Promise<void> {
  const reply = await context.client.position(groupArgument(name));
  context.print(reply, () => reply.position);
}

function drainedWords(group: string, reply: DrainReply): string {
  const who = reply.waitedFor.length === 0 ? 'durable here; there was no link and no cursor to wait for' : `confirmed by ${reply.waitedFor.join(', ')}`;
  return `${group}: everything up to LSN ${reply.lsn} is ${who}${passedOverWords(reply)}`;
}

async function drain(context: Context, options: { timeout: string }, name: string): Promise<void> {
  const group = groupArgument(name);
  const reply = await context.client.drain(group, { waitSeconds: wholeNumber(options.timeout, '--timeout', 1, 86_400) });
  context.print(reply, () => (reply.drained ? drainedWords(group, reply) : `${group}: not drained up to LSN ${reply.lsn}${passedOverWords(reply)}`));
  if (reply.notice !== null && !context.json) context.streams.err(`lockstep: ${reply.notice}\n`);
  if (reply.drained) return;
  if (!context.json) context.streams.err(`lockstep: not confirmed: ${reply.behind.join('; ')}\n`);
  context.exitCode = EXIT_FAILED;
}
