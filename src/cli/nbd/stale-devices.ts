/**
 * An operation with --force takes a device from clients that have it open.
 * Finds the /dev/nbdN of this machine that are such clients, and says what to
 * do: the kernel keeps what it has cached of the old content, and does not ask.
 *
 * Owns: that comparison of what was attached before and what is there after.
 * Must not know: which operation it was.
 */

import type { ControlClient } from '../../control/client.js';
import { ControlError } from '../../control/client.js';
import type { DeviceEntry, OperationReply } from '../../control/schema/replies.js';
import { REAL_SYSTEM } from './attach-system.js';
import type { Context } from '../context.js';
import { attachments, isBackendOf } from './backends.js';
import type { Attachment } from './backends.js';
import { devicePath } from './devices.js';

/**
 * Carries `operate` out; with `force`, its reply's notice names the devices of
 * this machine whose content it broke or removed. Throws what `operate` throws.
 */
export async function forcing<R extends OperationReply>(context: Context, group: string, force: boolean, operate: () => Promise<R>): Promise<R> {
  const attached = force ? attachments((context.streams.attachSystem ?? REAL_SYSTEM).paths).filter((one) => one.exportName.startsWith(`${group}/`)) : [];
  if (attached.length === 0) return operate();
  const before = await entriesOf(context.client, group);
  const reply = await operate();
  const notices = reply.notice === null ? [] : [reply.notice];
  try {
    const after = await entriesOf(context.client, group);
    for (const one of attached) {
      const was = before.find((entry) => isBackendOf(one.backend, entry));
      // Of another cluster, or broken by an earlier operation: not the doing of this one.
      if (was === undefined || after.some((entry) => isBackendOf(one.backend, entry))) continue;
      notices.push(staleWords(one, group, after.find((entry) => entry.id === was.id && entry.kind === was.kind)));
    }
  } catch (error) {
    if (!(error instanceof ControlError)) throw error;
    // What was asked for is done.
    notices.push(`the operation is done; whether it broke what ${attached.map(({ index }) => devicePath(index)).join(', ')} had attached is not known: ${error.message}`);
  }
  return notices.length === 0 ? reply : { ...reply, notice: notices.join('\n') };
}

async function entriesOf(client: ControlClient, group: string): Promise<readonly DeviceEntry[]> {
  return (await client.devices(group)).devices;
}

function staleWords(one: Attachment, group: string, now: DeviceEntry | undefined): string {
  const device = devicePath(one.index);
  const what = now === undefined ? `${one.exportName}, which is removed` : `what ${group}/${now.name} was before`;
  const next = now === undefined ? '' : `; lockstep attach ${group}/${now.name} ${device}`;
  return `${device} is attached to ${what}: it answers from its cache, or not at all. Unmount what is on it, then: lockstep detach --force ${device}${next}`;
}
