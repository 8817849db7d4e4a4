/** Commands that change a group: create, snapshot, restore, remove, promote, flush. */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { isName, parseDeviceName } from '../../base/names.js';
import { formatSize, parseSize } from '../../base/units.js';
import type { Waits } from '../../control/client.js';
import { deviceArgument, groupArgument, wholeNumber } from '../context.js';
import type { Context } from '../context.js';
import type { Register } from '../program.js';

interface WaitOptions {
  readonly wait: string;
  readonly waitTimeout: string;
}

function waitOptions(command: Command): Command {
  return command
    .option('--wait <what>', 'answer when the marker is "durable" here, or "applied" on every secondary', 'durable')
    .option('--wait-timeout <seconds>', 'how long to wait for "applied"; the operation stays done', '60');
}

function waits(options: WaitOptions): Waits {
  if (options.wait !== 'durable' && options.wait !== 'applied') throw new OperatorError('usage', `--wait must be "durable" or "applied", not ${JSON.stringify(options.wait)}`);
  return { wait: options.wait, waitSeconds: wholeNumber(options.waitTimeout, '--wait-timeout', 1, 86_400) };
}

export function registerOperations(program: Command, register: Register): void {
  waitOptions(program.command('create <group/volume> <size>'))
    .description('create a volume of zeros; the size such as 10G, a multiple of 4096 bytes')
    .action(register(create));
  waitOptions(program.command('snapshot <group/volume@name>'))
    .description('make a snapshot of a volume, or of one of its snapshots')
    .option('--of <snapshot>', 'take it of VOLUME@SNAPSHOT instead of the volume')
    .action(register(snapshot));
  waitOptions(program.command('restore <group/target> <source>'))
    .description('make a device what another one is; the source as GROUP/VOLUME@SNAPSHOT or @SNAPSHOT')
    .option('--force', 'disconnect clients that may write to the target')
    .action(register(restore));
  waitOptions(program.command('remove <group/device>'))
    .description('remove a snapshot or a volume')
    .option('--with-snapshots', 'remove a volume with all its snapshots')
    .option('--force', 'disconnect its clients')
    .action(register(remove));
  program.command('promote <group>')
    .description('make this secondary the primary, in a new epoch, after it applied all that it has')
    .option('--force', 'also when the primary is connected, or when not all that was received can be applied')
    .action(register(promote));
  program.command('flush <group>')
    .description('wait until all that was written is durable, destaged, or in a checkpoint')
    .option('--up-to <what>', '"durable", "destaged" or "checkpoint"', 'durable')
    .action(register(flush));
}

async function create(context: Context, options: WaitOptions, name: string, sizeWords: string): Promise<void> {
  const { group, device } = deviceArgument(name);
  if (!isName(device)) throw new OperatorError('usage', `a volume's name has no "@"; to make a snapshot: lockstep snapshot ${name}`);
  const size = parseSize(sizeWords);
  if (size === undefined) throw new OperatorError('usage', `${JSON.stringify(sizeWords)} is not a size; write for example 10G or 512M`);
  const asked = waits(options);
  const reply = await context.client.createVolume(group, { name: device, size, ...asked });
  context.printOperation(reply, `created ${name}, ${formatSize(size)},`, asked);
}

async function snapshot(context: Context, options: WaitOptions & { of?: string }, name: string): Promise<void> {
  const { group, device } = deviceArgument(name);
  const parsed = parseDeviceName(device);
  if (parsed?.snapshot === undefined) throw new OperatorError('usage', `name the new snapshot too: lockstep snapshot ${name}@NAME`);
  let source = parsed.volume;
  if (options.of !== undefined) {
    const of = options.of.includes('/') ? deviceArgument(options.of) : { group, device: options.of.includes('@') ? (options.of.startsWith('@') ? parsed.volume : '') + options.of : `${parsed.volume}@${options.of}` };
    const ofName = parseDeviceName(of.device);
    if (of.group !== group || ofName?.volume !== parsed.volume) throw new OperatorError('usage', `--of must name a snapshot of ${group}/${parsed.volume}, not ${JSON.stringify(options.of)}`);
    source = of.device;
  }
  const asked = waits(options);
  const reply = await context.client.snapshot(group, { source, name: parsed.snapshot, ...asked });
  context.printOperation(reply, `created ${name} of ${group}/${source}`, asked);
}

async function restore(context: Context, options: WaitOptions & { force?: boolean }, name: string, from: string): Promise<void> {
  const target = deviceArgument(name);
  const volume = parseDeviceName(target.device)?.volume ?? '';
  const source = deviceArgument(from.startsWith('@') ? `${target.group}/${volume}${from}` : from.includes('/') ? from : `${target.group}/${from}`);
  if (source.group !== target.group) throw new OperatorError('usage', `both devices must be in one group: ${name} is in ${target.group}, ${from} in ${source.group}`);
  const asked = waits(options);
  const reply = await context.client.restore(target.group, { target: target.device, source: source.device, force: options.force === true, ...asked });
  context.printOperation(reply, `restored ${name} from ${source.group}/${source.device}`, asked);
}

async function remove(context: Context, options: WaitOptions & { force?: boolean; withSnapshots?: boolean }, name: string): Promise<void> {
  const { group, device } = deviceArgument(name);
  const asked = waits(options);
  const reply = await context.client.remove(group, device, { withSnapshots: options.withSnapshots === true, force: options.force === true, ...asked });
  context.printOperation(reply, `removed ${name}`, asked);
}

async function promote(context: Context, options: { force?: boolean }, name: string): Promise<void> {
  const group = groupArgument(name);
  const reply = await context.client.promote(group, { force: options.force === true });
  context.print(reply, () => `promoted ${group}: primary in epoch ${reply.epoch.number} (${reply.epoch.lossless ? 'nothing acknowledged was lost' : 'lossy: what the old primary had not shipped is not here'}), from LSN ${reply.lsn}`);
  if (reply.notice !== null && !context.json) context.streams.err(`lockstep: ${reply.notice}\n`);
}

async function flush(context: Context, options: { upTo: string }, name: string): Promise<void> {
  const group = groupArgument(name);
  const upTo = options.upTo;
  if (upTo !== 'durable' && upTo !== 'destaged' && upTo !== 'checkpoint') throw new OperatorError('usage', `--up-to must be "durable", "destaged" or "checkpoint", not ${JSON.stringify(upTo)}`);
  const reply = await context.client.flush(group, { upTo });
  context.print(reply, () => `${group}: ${reply.upTo === 'checkpoint' ? 'in a checkpoint' : reply.upTo} up to LSN ${reply.lsn}`);
}
