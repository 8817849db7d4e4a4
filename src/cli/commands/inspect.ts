/** Commands that only look, and `link drop`: list, status, link, journal, version. */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { formatSize } from '../../base/units.js';
import { VERSION } from '../../base/version.js';
import { ControlError } from '../../control/client.js';
import type { GroupStatus, NodeStatus } from '../../control/schema/status.js';
import type { JournalRecord, SizesReply } from '../../control/schema/replies.js';
import { EXIT_FAILED, groupArgument, wholeNumber } from '../context.js';
import type { Context } from '../context.js';
import type { Register } from '../register.js';
import { registerCarriage } from './journal.js';
import { adviseGroup } from '../render/advice.js';
import { renderList, renderTree } from '../render/devices.js';
import type { GroupDevices } from '../render/devices.js';
import { renderOperations } from '../render/operations.js';
import { renderGroup, renderLink, renderStatus } from '../render/status.js';
import type { Style } from '../render/words.js';
import { COLOURED, PLAIN } from '../render/words.js';

export function registerInspection(program: Command, register: Register): void {
  program.command('list [group]')
    .description('list volumes and snapshots')
    .option('--tree', 'show what was taken from what, with the bytes that are its own and those that it shares; they are counted on demand')
    .option('--no-sizes', 'with --tree: count nothing')
    .action(register(list));
  program.command('status [group]')
    .description('role, positions, lag and why, journal use, destage backlog, and what to do if something is wrong')
    .option('--check', 'exit with 1 when there is a problem, for monitoring')
    .action(register(status));
  program.command('operations <group>')
    .description('what the newest operations cost on this node: bytes changed (<= while it is an upper bound), bytes on each link, time of the data thread')
    .action(register(operations));
  const link = program.command('link').description('links to and from other nodes');
  link.command('status [group]').description('show the links').action(register(linkStatus));
  link.command('drop <group> <peer>')
    .description('give a peer up: the journal is no longer kept for it')
    .action(register(linkDrop));
  const journal = program.command('journal').description('the journal of a group');
  journal.command('dump <group>')
    .description('print records: LSN, epoch, kind, device, offset, length; markers with their contents')
    .option('--from <lsn>', 'first record; default: the oldest that is retained')
    .option('--to <lsn>', 'stop before this position; default: what is appended now')
    .option('-f, --follow', 'go on with records as they are appended')
    .action(register(journalDump));
  registerCarriage(program, journal, register);
  program.command('version').description('versions of this program and of the daemon').action(register(version));
}

function styleOf(context: Context): Style {
  return context.streams.terminal && context.streams.env['NO_COLOR'] === undefined ? COLOURED : PLAIN;
}

function groupOf(status: NodeStatus, name: string): GroupStatus {
  const group = status.groups.find((one) => one.name === name);
  if (group !== undefined) return group;
  const known = status.groups.map((one) => one.name).join(', ');
  throw new OperatorError('group/not-found', `node ${status.node} has no group ${JSON.stringify(name)}${known === '' ? '' : `; it has ${known}`}`);
}

async function list(context: Context, options: { tree?: boolean; sizes: boolean }, name?: string): Promise<void> {
  const groups: GroupDevices[] = name !== undefined
    ? [await context.client.devices(groupArgument(name))]
    : (await context.client.status()).groups.map((group) => ({ group: group.name, lsn: group.lsn.applied, devices: group.devices }));
  const shown = options.tree === true && options.sizes ? await withSizes(context, groups) : groups;
  context.print(name === undefined ? { groups: shown } : shown[0], () => (options.tree === true ? renderTree(shown) : renderList(shown)));
}

/** A group whose sizes cannot be counted is shown without, and the reason said. */
async function withSizes(context: Context, groups: readonly GroupDevices[]): Promise<GroupDevices[]> {
  const counted: GroupDevices[] = [];
  for (const one of groups) {
    let sizes: SizesReply | null = null;
    try {
      sizes = await context.client.sizes(one.group);
    } catch (error) {
      if (!(error instanceof ControlError) || error.kind !== 'operator') throw error;
      context.streams.err(`lockstep: ${one.group}: ${error.message}\n`);
    }
    counted.push({ ...one, sizes });
  }
  return counted;
}

async function status(context: Context, options: { check?: boolean }, name?: string): Promise<void> {
  const all = await context.client.status();
  const shown = name === undefined ? all : { ...all, groups: [groupOf(all, groupArgument(name))] };
  context.print(shown, () => (name === undefined ? renderStatus(all, context.streams.now(), styleOf(context)) : renderGroup(shown.groups[0], styleOf(context))));
  const problems = shown.groups.flatMap(adviseGroup).filter((advice) => advice.severity === 'problem');
  if (options.check === true && problems.length > 0) context.exitCode = EXIT_FAILED;
}

async function operations(context: Context, _options: object, name: string): Promise<void> {
  const reply = await context.client.operations(groupArgument(name));
  context.print(reply, () => renderOperations(reply));
}

async function linkStatus(context: Context, _options: object, name?: string): Promise<void> {
  const groups = name !== undefined
    ? [await context.client.links(groupArgument(name))]
    : (await context.client.status()).groups.map((group) => ({ group: group.name, links: group.links }));
  context.print(name === undefined ? { groups } : groups[0], () =>
    groups.map((one) => [`group ${one.group}`, ...(one.links.length === 0 ? ['  no links'] : one.links.flatMap(renderLink))].join('\n')).join('\n\n'),
  );
}

async function linkDrop(context: Context, _options: object, name: string, peer: string): Promise<void> {
  const group = groupArgument(name);
  const reply = await context.client.dropLink(group, peer);
  context.print(reply, () => `dropped the link to ${reply.peer} in ${group}: ${formatSize(reply.freedBytes)} of journal are no longer kept for it (from LSN ${reply.lsn})`);
}

async function journalDump(context: Context, options: { from?: string; to?: string; follow?: boolean }, name: string): Promise<void> {
  const position = (words: string | undefined, what: string): number | undefined => (words === undefined ? undefined : wholeNumber(words, what, 0, Number.MAX_SAFE_INTEGER));
  const range = { from: position(options.from, '--from'), to: position(options.to, '--to'), ...(options.follow === true ? { follow: true } : {}) };
  if (!context.json) context.streams.out(`${recordLine(['LSN', 'EPOCH', 'KIND', 'DEVICE', 'OFFSET', 'LENGTH'], '').trimEnd()}\n`);
  for await (const record of context.client.journal(groupArgument(name), range, context.streams.interrupted)) {
    context.streams.out(`${context.json ? JSON.stringify(record) : recordText(record)}\n`);
  }
}

function recordText(record: JournalRecord): string {
  const number = (value: number | null): string => (value === null ? '-' : String(value));
  const cells = [String(record.lsn), String(record.epoch), record.kind, number(record.device), number(record.offset), number(record.length)];
  // Sums of fields are long, and say nothing to a person.
  const body = record.body === null ? '' : JSON.stringify(record.body, (key, value: unknown) => (key === 'sums' ? undefined : value));
  return recordLine(cells, body).trimEnd();
}

/** Fixed columns: records arrive one by one. */
function recordLine([lsn, epoch, kind, device, offset, length]: readonly string[], body: string): string {
  return `${lsn.padStart(15)}  ${epoch.padStart(5)}  ${kind.padEnd(10)}  ${device.padStart(6)}  ${offset.padStart(16)}  ${length.padStart(11)}  ${body}`;
}

async function version(context: Context): Promise<void> {
  const daemon = await context.client.version().catch((error: unknown) => (error instanceof Error ? error.message : String(error)));
  const reply = { lockstep: VERSION, lockstepd: typeof daemon === 'string' ? null : daemon.version };
  context.print(reply, () => `lockstep ${VERSION}\nlockstepd ${typeof daemon === 'string' ? `not reached: ${daemon}` : daemon.version}`);
}
