/** Commands by which a device becomes what another one is: restore, refresh, sync, clone. */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { isName, NAME_RULE } from '../../base/names.js';
import { formatSize } from '../../base/units.js';
import { deviceArgument } from '../context.js';
import type { Context } from '../context.js';
import { deviceOrSetArgument, rangeOption, rangesOf, siblingArgument, waitOptions, waits } from '../operands.js';
import type { ForceOption, WaitOptions } from '../operands.js';
import type { Register } from '../register.js';
import { forcing } from '../nbd/stale-devices.js';

type AssignOptions = WaitOptions & ForceOption & { readonly range: string[] };

export function registerAssigns(program: Command, register: Register): void {
  rangeOption(waitOptions(program.command('restore <group/target> [source]')))
    .description('make a device what another one is; the source as GROUP/VOLUME@SNAPSHOT or @SNAPSHOT. GROUP/@SET alone restores every volume of a group snapshot')
    .option('--force', 'disconnect clients that may write to the target')
    .action(register(restore));
  waitOptions(program.command('refresh <group/volume@snapshot>'))
    .description('make a snapshot, or all of GROUP/@SET, what it was taken from is now')
    .option('--force', 'disconnect its clients; also when it is one member of a set')
    .action(register(refresh));
  rangeOption(waitOptions(program.command('sync <group/volume@snapshot> <source>')))
    .description('make a snapshot what another snapshot of the same volume is')
    .option('--force', 'disconnect its clients; also when it is one member of a set')
    .action(register(sync));
  waitOptions(program.command('clone <group/volume@snapshot> <volume>'))
    .description('make a new volume with the content of a snapshot; it takes no space until one of them changes')
    .action(register(clone));
}

function partly(ranges: readonly (readonly [number, number])[]): string {
  if (ranges.length === 0) return '';
  return `${formatSize(ranges.reduce((sum, range) => sum + range[1], 0))} in ${ranges.length === 1 ? '1 range' : `${ranges.length} ranges`} of `;
}

async function restore(context: Context, options: AssignOptions, name: string, from?: string): Promise<void> {
  const target = deviceOrSetArgument(name);
  const asked = waits(options);
  const ranges = rangesOf(options.range);
  const common = { ranges, force: options.force === true, ...asked };
  if (target.set !== undefined) {
    if (from !== undefined) throw new OperatorError('usage', `${name} restores every volume of the group snapshot; name no source`);
    const reply = await forcing(context, target.group, common.force, () => context.client.restore(target.group, { source: target.device, ...common }));
    context.printOperation(reply, `restored ${reply.devices.map((device) => device.name).join(', ')} from ${name}`, asked);
    return;
  }
  if (from === undefined) throw new OperatorError('usage', `name the snapshot too: lockstep restore ${name} @SNAPSHOT`);
  const source = siblingArgument(target, from);
  const reply = await forcing(context, target.group, common.force, () => context.client.restore(target.group, { target: target.device, source, ...common }));
  context.printOperation(reply, `restored ${partly(ranges)}${name} from ${target.group}/${source}`, asked);
}

async function refresh(context: Context, options: WaitOptions & ForceOption, name: string): Promise<void> {
  const { group, device } = deviceOrSetArgument(name);
  const asked = waits(options);
  const force = options.force === true;
  const reply = await forcing(context, group, force, () => context.client.refresh(group, { target: device, force, ...asked }));
  context.printOperation(reply, `refreshed ${name}`, asked);
}

async function sync(context: Context, options: AssignOptions, name: string, from: string): Promise<void> {
  const target = deviceArgument(name);
  const source = siblingArgument(target, from);
  const asked = waits(options);
  const ranges = rangesOf(options.range);
  const force = options.force === true;
  const reply = await forcing(context, target.group, force, () => context.client.sync(target.group, { target: target.device, source, ranges, force, ...asked }));
  context.printOperation(reply, `made ${partly(ranges)}${name} what ${target.group}/${source} is`, asked);
}

async function clone(context: Context, options: WaitOptions, name: string, volume: string): Promise<void> {
  const { group, device } = deviceArgument(name);
  const newName = volume.startsWith(`${group}/`) ? volume.slice(group.length + 1) : volume;
  if (!isName(newName)) throw new OperatorError('usage', `${JSON.stringify(volume)} is no name for a volume of group ${group}: it must be ${NAME_RULE}`);
  const asked = waits(options);
  const reply = await context.client.clone(group, { source: device, name: newName, ...asked });
  context.printOperation(reply, `created ${group}/${newName} as a clone of ${name}`, asked);
}
