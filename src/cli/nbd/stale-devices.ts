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
 * this machine whose content it broke or removed. `adopted`: a local snapshot
 * that becomes the reply's device. Throws what `operate` throws.
 */
export async function forcing<R extends OperationReply>(context: Context, group: string, force: boolean, operate: () => Promise<R>, adopted?: string): Promise<R> {
  const attached = force ? attachedHere(context).filter((one) => one.exportName.startsWith(`${group}/`)) : [];
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
      if (was.name === adopted && reply.device !== null) notices.push(adoptedWords(one, `${group}/${reply.device.name}`));
      else notices.push(staleWords(one, group, after.find((entry) => entry.id === was.id && entry.kind === was.kind)));
    }
  } catch (error) {
    if (!(error instanceof ControlError)) throw error;
    // What was asked for is done.
    notices.push(`the operation is done; whether it broke what ${attached.map(({ index }) => devicePath(index)).join(', ')} had attached is not known: ${error.message}`);
  }
  return notices.length === 0 ? reply : { ...reply, notice: notices.join('\n') };
}

/**
 * Carries out `seal`, after which a local snapshot takes no writes; with
 * `force`, the notice names what is cut off by that: connections, and the
 * devices of this machine. Throws what `seal` throws.
 */
export async function sealing<R>(context: Context, group: string, device: string, force: boolean, seal: () => Promise<R>): Promise<{ reply: R; notice: string | null }> {
  const was = force ? (await entriesOf(context.client, group)).find((entry) => entry.name === device) : undefined;
  const reply = await seal();
  // What is sealed already keeps its clients.
  if (was === undefined || was.seal !== undefined) return { reply, notice: null };
  const notices = was.clients === 0 ? [] : [`${was.clients} NBD connection${was.clients === 1 ? ' was' : 's were'} closed: what their clients had not written yet is not in ${group}/${device}`];
  for (const one of attachedHere(context)) if (isBackendOf(one.backend, was)) notices.push(sealedWords(one));
  return { reply, notice: notices.length === 0 ? null : notices.join('\n') };
}

function attachedHere(context: Context): Attachment[] {
  return attachments((context.streams.attachSystem ?? REAL_SYSTEM).paths);
}

async function entriesOf(client: ControlClient, group: string): Promise<readonly DeviceEntry[]> {
  return (await client.devices(group)).devices;
}

function staleWords(one: Attachment, group: string, now: DeviceEntry | undefined): string {
  const what = now === undefined ? `${one.exportName}, which is removed` : `what ${group}/${now.name} was before`;
  return `${devicePath(one.index)} is attached to ${what}: it answers from its cache, or not at all. ${renewWords(one, now === undefined ? undefined : `${group}/${now.name}`)}`;
}

function adoptedWords(one: Attachment, now: string): string {
  return `${devicePath(one.index)} is attached to ${one.exportName}, which is ${now} now: it answers from its cache, or not at all. ${renewWords(one, now)}`;
}

function sealedWords(one: Attachment): string {
  return `${devicePath(one.index)} was attached to ${one.exportName}: what its kernel has not written back never will be. ${renewWords(one, one.exportName)}`;
}

/** `now`: what can be attached in its place. */
function renewWords(one: Attachment, now: string | undefined): string {
  const device = devicePath(one.index);
  return `Unmount what is on it, then: lockstep detach --force ${device}${now === undefined ? '' : `; lockstep attach ${now} ${device}`}`;
}
