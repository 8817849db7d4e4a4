/** Commands that change a group: create, snapshot, resize, rename, protect, remove, promote, flush. */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { isName, NAME_RULE, parseDeviceName } from '../../base/names.js';
import { formatSize } from '../../base/units.js';
import type { OperationReply } from '../../control/schema/replies.js';
import { deviceArgument, groupArgument } from '../context.js';
import type { Context } from '../context.js';
import { freezeOptions, quiesce } from '../freeze/freeze.js';
import type { FreezeOptions } from '../freeze/freeze.js';
import { resizedWords, tellAttached } from '../nbd/resize.js';
import { deviceOrSetArgument, sizeArgument, waitOptions, waits } from '../operands.js';
import type { ForceOption, WaitOptions } from '../operands.js';
import type { Register } from '../register.js';
import { forcing } from '../nbd/stale-devices.js';

export function registerOperations(program: Command, register: Register): void {
  waitOptions(program.command('create <group/volume> <size>'))
    .description('create a volume of zeros; the size such as 10G, a multiple of 4096 bytes')
    .action(register(create));
  freezeOptions(waitOptions(program.command('snapshot <group/volume@name>')))
    .description('make a snapshot of a volume, or of one of its snapshots; GROUP/@NAME: of all volumes of the group, at one point; GROUP/VOLUME~NAME: on this node only')
    .option('--of <snapshot>', 'take it of VOLUME@SNAPSHOT, or VOLUME~LOCAL, instead of the volume')
    .option('--local', 'the same as VOLUME~NAME: a writable snapshot on this node only, primary or secondary')
    .action(register(snapshot));
  waitOptions(program.command('resize <group/device> <size>'))
    .description('change the size of a device; what shrinking cuts off is lost')
    .option('--force', 'shrink although there may be data behind the new end, and disconnect its clients')
    .action(register(resize));
  waitOptions(program.command('rename <group/device> <name>'))
    .description("give a volume, a snapshot or GROUP/@SET another name; a snapshot's without the volume and the @")
    .option('--force', 'also one member of a set')
    .action(register(rename));
  waitOptions(program.command('protect <group/device>'))
    .description('keep a device, or GROUP/@SET, from being removed, restored, refreshed and shrunk; a snapshot from being written, too')
    .option('--force', 'disconnect clients of a snapshot')
    .action(register((context: Context, options: WaitOptions & ForceOption, name: string) => protect(context, options, name, true)));
  waitOptions(program.command('unprotect <group/device>'))
    .description('take the protection back')
    .action(register((context: Context, options: WaitOptions & ForceOption, name: string) => protect(context, options, name, false)));
  waitOptions(program.command('remove <group/device>'))
    .description('remove a snapshot, a volume, or GROUP/@SET')
    .option('--with-snapshots', 'remove a volume with all its snapshots')
    .option('--force', 'disconnect its clients; also one member of a set')
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
  if (!isName(device)) {
    const mark = device.includes('~') ? '~' : '@';
    throw new OperatorError('usage', `a volume's name has no "${mark}"; to make a snapshot${mark === '~' ? ' on this node only' : ''}: lockstep snapshot ${name} (a name is ${NAME_RULE})`);
  }
  const size = sizeArgument(sizeWords);
  const asked = waits(options);
  const reply = await context.client.createVolume(group, { name: device, size, ...asked });
  context.printOperation(reply, `created ${name}, ${formatSize(size)},`, asked);
}

async function snapshot(context: Context, options: WaitOptions & FreezeOptions & { of?: string; local?: boolean }, name: string): Promise<void> {
  const asked = waits(options);
  const { group, device, set } = deviceOrSetArgument(name);
  const take = (source: string | null, label: string, local = false): Promise<OperationReply> =>
    quiesce(context, options, { group, device }, asked, (waits) => context.client.snapshot(group, { source, name: label, ...(local ? { local } : {}), ...waits }));
  if (set !== undefined) {
    if (options.local === true) throw new OperatorError('usage', `a local snapshot is of one device: name it as ${group}/VOLUME~${set}`);
    if (options.of !== undefined) throw new OperatorError('usage', `${name} is a snapshot of every volume of group ${group}; --of names the source of a single one`);
    const reply = await take(null, set);
    context.printOperation(reply, `created ${name} of ${reply.devices.length === 1 ? '1 volume' : `${reply.devices.length} volumes`}`, asked);
    return;
  }
  const parsed = parseDeviceName(device);
  const newName = parsed?.snapshot ?? parsed?.local;
  if (parsed === undefined || newName === undefined) throw new OperatorError('usage', `name the new snapshot too: lockstep snapshot ${name}@NAME`);
  const local = options.local === true || parsed.local !== undefined;
  let source = parsed.volume;
  if (options.of !== undefined) {
    const of = options.of.includes('/') ? deviceArgument(options.of) : { group, device: /[@~]/.test(options.of) ? (/^[@~]/.test(options.of) ? parsed.volume : '') + options.of : `${parsed.volume}@${options.of}` };
    const ofName = parseDeviceName(of.device);
    if (of.group !== group || ofName?.volume !== parsed.volume) throw new OperatorError('usage', `--of must name a snapshot of ${group}/${parsed.volume}, not ${JSON.stringify(options.of)}`);
    source = of.device;
  }
  const reply = await take(source, newName, local);
  context.printOperation(reply, local ? `created ${group}/${parsed.volume}~${newName} of ${group}/${source}, on this node only,` : `created ${name} of ${group}/${source}`, asked);
}

async function resize(context: Context, options: WaitOptions & ForceOption, name: string, sizeWords: string): Promise<void> {
  const { group, device } = deviceArgument(name);
  const size = sizeArgument(sizeWords);
  const asked = waits(options);
  const force = options.force === true;
  const reply = await forcing(context, group, force, () => context.client.resize(group, { device, size, force, ...asked }));
  const attached = reply.device === null ? [] : tellAttached(context, group, reply.device);
  const told = { ...reply, attached };
  context.printOperation(told, `${name} has ${formatSize(size)} now`, asked);
  if (!context.json) for (const one of attached) context.streams.out(`${resizedWords(one)}\n`);
}

async function rename(context: Context, options: WaitOptions & ForceOption, name: string, newName: string): Promise<void> {
  const { group, device } = deviceOrSetArgument(name);
  const bare = newName.includes('@') ? newName.slice(newName.indexOf('@') + 1) : newName.includes('/') ? newName.slice(newName.indexOf('/') + 1) : newName;
  if (!isName(bare)) throw new OperatorError('usage', `${JSON.stringify(newName)} is no name: it must be ${NAME_RULE}`);
  const asked = waits(options);
  const reply = await context.client.rename(group, { device, name: bare, force: options.force === true, ...asked });
  context.printOperation(reply, `renamed ${name} to ${reply.devices.map((one) => `${group}/${one.name}`).join(', ')}`, asked);
}

async function protect(context: Context, options: WaitOptions & ForceOption, name: string, on: boolean): Promise<void> {
  const { group, device } = deviceOrSetArgument(name);
  const asked = waits(options);
  const reply = await context.client.protect(group, on, { device, force: options.force === true, ...asked });
  context.printOperation(reply, `${name} is ${on ? '' : 'no longer '}protected`, asked);
}

async function remove(context: Context, options: WaitOptions & ForceOption & { withSnapshots?: boolean }, name: string): Promise<void> {
  const { group, device } = deviceOrSetArgument(name);
  const asked = waits(options);
  const force = options.force === true;
  const reply = await forcing(context, group, force, () => context.client.remove(group, device, { withSnapshots: options.withSnapshots === true, force, ...asked }));
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
