/**
 * `lockstep seal` and `adopt`: makes a local snapshot of every node one
 * replicated snapshot.
 *
 * Owns: options, and the order seal → digest → note it. Must not know: what a
 * digest is made of (base/content-digest.ts), what the daemon does.
 */

import type { Command } from 'commander';
import { OperatorError } from '../../base/errors.js';
import { parseDeviceName } from '../../base/names.js';
import { formatSize } from '../../base/units.js';
import type { SealReply } from '../../control/schema/replies.js';
import { deviceArgument } from '../context.js';
import type { Context } from '../context.js';
import { serverAddress } from '../nbd/server.js';
import { forcing, sealing } from '../nbd/stale-devices.js';
import { waitOptions, waits } from '../operands.js';
import type { ForceOption, WaitOptions } from '../operands.js';
import type { Register } from '../register.js';
import { NbdDevice } from '../reconcile/device.js';
import { digestDevice } from '../reconcile/tree.js';

const PROGRESS_MS = 5000;

export function registerAdoption(program: Command, register: Register): void {
  program.command('seal <group/volume~name>')
    .description("make a local snapshot of this node read-only, and note its content's digest")
    .option('--undo', 'make it writable again')
    .option('--force', 'disconnect its clients')
    .action(register(seal));
  waitOptions(program.command('adopt <group/volume~name>'))
    .description('make the local snapshots of this name, sealed and equal on all nodes, one replicated snapshot')
    .option('--as <snapshot>', 'its name behind the "@"; default: the one behind the "~"')
    .option('--force', 'disconnect its clients')
    .action(register(adopt));
}

function localArgument(name: string): { group: string; device: string; local: string } {
  const { group, device } = deviceArgument(name);
  const local = parseDeviceName(device)?.local;
  if (local === undefined) throw new OperatorError('usage', `${name} is no local snapshot: name one as GROUP/VOLUME~NAME`);
  return { group, device, local };
}

async function seal(context: Context, options: ForceOption & { undo?: boolean }, name: string): Promise<void> {
  const { group, device } = localArgument(name);
  if (options.undo === true) {
    const reply = await context.client.seal(group, { device, undo: true });
    return context.print(reply, () => `unsealed ${name}: it can be written to`);
  }
  const force = options.force === true;
  const { reply: sealed, notice } = await sealing(context, group, device, force, () => context.client.seal(group, { device, force }));
  // At once: the digest may take its time.
  if (notice !== null) context.remark(notice);
  const reply = sealed.digest !== null ? sealed : await context.client.seal(group, { device, known: { digest: await digestOf(context, name, sealed), sealedLsn: sealed.sealedLsn } });
  context.print(reply, () => `sealed ${name}: ${formatSize(reply.device.sizeBytes)}, content digest ${reply.digest}`);
}

/** Nobody writes to it any more. */
async function digestOf(context: Context, name: string, sealed: SealReply): Promise<string> {
  const device = await NbdDevice.open(await serverAddress(context, undefined), name);
  try {
    if (!device.readOnly || device.sizeBytes !== sealed.device.sizeBytes) throw new OperatorError('local/not-sealed', `${name} was unsealed meanwhile; seal it again`);
    let said = context.streams.now();
    const digest = await digestDevice(device, { readBytes: 0, hashedBytes: 0 }, (doneBytes) => {
      if (context.streams.now() - said < PROGRESS_MS) return;
      said = context.streams.now();
      context.streams.err(context.json ? `${JSON.stringify({ progress: { doneBytes, sizeBytes: device.sizeBytes } })}\n` : `lockstep: ${formatSize(doneBytes)} of ${formatSize(device.sizeBytes)} read\n`);
    });
    await device.close();
    return digest;
  } finally {
    device.destroy();
  }
}

async function adopt(context: Context, options: WaitOptions & ForceOption & { as?: string }, name: string): Promise<void> {
  const { group, device, local } = localArgument(name);
  const asked = waits(options);
  const force = options.force === true;
  const reply = await forcing(context, group, force, () => context.client.adopt(group, { local: device, name: options.as ?? local, force, ...asked }), device);
  context.printOperation(reply, `adopted ${name} as ${group}/${reply.device?.name ?? ''}`, asked);
}
