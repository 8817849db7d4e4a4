/**
 * `lockstep attach` and `detach`: hands connections of a device to the
 * kernel's NBD client. The kernel keeps them when this program has ended.
 *
 * Owns: options, and the order handshake → kernel. Must not know: netlink's
 * messages, the handshake's bytes.
 */

import type { Command } from 'commander';
import { formatAddress } from '../../base/address.js';
import { OperatorError } from '../../base/errors.js';
import { formatSize } from '../../base/units.js';
import { NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_READ_ONLY } from '../../vendor/nbd-protocol-ts/index.js';
import type { NegotiatedExport } from '../../vendor/nbd-protocol-ts/index.js';
import { REAL_SYSTEM } from '../nbd/attach-system.js';
import type { AttachSystem, NbdKernel } from '../nbd/attach-system.js';
import { deviceArgument, wholeNumber } from '../context.js';
import type { Context } from '../context.js';
import { attachedExport, attachments, identifierOf, idsOf } from '../nbd/backends.js';
import { backendOf, deviceIndex, devicePath, flushUnused } from '../nbd/devices.js';
import { shakeHands } from '../nbd/handshake.js';
import type { Connection } from '../nbd/handshake.js';
import { resizeAttached } from '../nbd/resize.js';
import { serverAddress } from '../nbd/server.js';
import type { Register } from '../register.js';

export interface AttachReply {
  /** "/dev/nbd0" */
  readonly device: string;
  readonly export: string;
  readonly server: string;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly connections: number;
  readonly readOnly: boolean;
  /** True when an attached device was given new connections. */
  readonly reconnected: boolean;
}

interface AttachOptions {
  readonly server?: string;
  readonly blockSize?: string;
  readonly timeout: string;
  readonly deadTimeout: string;
  readonly connections: string;
  readonly reconnect?: boolean;
  readonly resize?: boolean;
}

/** What takes longer is explained. */
const SOON_MS = 500;
const MIN_BLOCK_BYTES = 512;
const MAX_BLOCK_BYTES = 4096;

export function registerAttachment(program: Command, register: Register): void {
  program.command('attach [group/device] [/dev/nbdN]')
    .description("attach a volume or snapshot to the kernel's nbd driver; without a device name the kernel picks one")
    .option('--server <address>', 'unix:/PATH or tcp:HOST:PORT of the NBD server; default: as the daemon says')
    .option('--block-size <bytes>', 'logical block size, 512 to 4096; default: as the server prefers')
    .option('--timeout <seconds>', 'a request that is not answered by then marks its connection dead; 0 waits for ever', '30')
    .option('--dead-timeout <seconds>', 'how long requests wait for a new connection before they fail', '300')
    .option('--connections <number>', 'connections to make', '1')
    .option('--reconnect', 'give a device that is attached already, and whose connections died, new ones')
    .option('--resize', 'attach nothing: tell the kernel the present size of what is attached already; of all without a name')
    .action(register(attach));
  program.command('detach </dev/nbdN|group/device>')
    .description('detach a device, after writing back what the kernel still holds')
    .option('--force', 'also when it is in use or cannot be written back: what is not written is lost')
    .action(register(detach));
}

async function attach(context: Context, options: AttachOptions, name?: string, deviceWords?: string): Promise<void> {
  if (options.resize === true) return resizeAttached(context, options.server, name, deviceWords);
  if (name === undefined) throw new OperatorError('usage', 'name what to attach: lockstep attach GROUP/DEVICE');
  const { group, device } = deviceArgument(name);
  const exportName = `${group}/${device}`;
  const index = deviceWords === undefined ? undefined : indexArgument(deviceWords);
  const connections = wholeNumber(options.connections, '--connections', 1, 16);
  const times = {
    timeoutSeconds: wholeNumber(options.timeout, '--timeout', 0, 86_400),
    deadTimeoutSeconds: wholeNumber(options.deadTimeout, '--dead-timeout', 0, 86_400),
  };
  const wantedBlock = options.blockSize === undefined ? undefined : blockSizeArgument(options.blockSize);
  if (options.reconnect === true && index === undefined) throw new OperatorError('usage', 'to reconnect, name the device too: lockstep attach --reconnect GROUP/DEVICE /dev/nbdN');
  const system = context.streams.attachSystem ?? REAL_SYSTEM;
  const kernel = system.openKernel();
  const made: Connection[] = [];
  const io = system.openIo();
  try {
    if (index !== undefined) checkTarget(system, kernel, index, exportName, options.reconnect === true);
    const server = await serverAddress(context, options.server);
    for (let i = 0; i < connections; i++) made.push(shakeHands(io, server, exportName));
    const facts = agreed(made, exportName);
    const blockBytes = blockSize(facts, wantedBlock, exportName);
    for (const { fd } of made) system.setBlocking(fd);
    const sockets = made.map(({ fd }) => fd);
    const identifier = identifierOf(exportName, facts.description);
    let attached: number;
    if (options.reconnect === true && index !== undefined) {
      // The kernel wants the text that it was attached with, though the volume may have another name by now.
      kernel.reconfigure(index, { sockets, identifier: sameContent(system, index, exportName, identifier), sizeBytes: facts.sizeBytes, ...times });
      attached = index;
    } else {
      attached = kernel.connect({
        ...(index === undefined ? {} : { index }), sockets, sizeBytes: facts.sizeBytes, blockBytes, serverFlags: facts.transmissionFlags, identifier, ...times,
      });
    }
    const reply: AttachReply = {
      device: devicePath(attached), export: exportName, server: formatAddress(server), sizeBytes: facts.sizeBytes, blockBytes, connections,
      readOnly: (facts.transmissionFlags & NBD_FLAG_READ_ONLY) !== 0, reconnected: options.reconnect === true,
    };
    context.print(reply, () => `${reply.reconnected ? 'reconnected' : 'attached'} ${exportName} as ${reply.device}: ${formatSize(reply.sizeBytes)}, blocks of ${blockBytes} bytes${reply.readOnly ? ', read-only' : ''}`);
  } finally {
    // The kernel holds its own references.
    for (const { fd } of made) io.close(fd);
    io.dispose();
    kernel.close();
  }
}

async function detach(context: Context, options: { force?: boolean }, words: string): Promise<void> {
  const system = context.streams.attachSystem ?? REAL_SYSTEM;
  const kernel = system.openKernel();
  try {
    const index = deviceIndex(words) ?? attachedAs(system, words);
    const state = kernel.status(index).find((one) => one.index === index);
    if (state === undefined || !state.connected) throw new OperatorError('nbd/not-attached', `${devicePath(index)} is not attached`);
    if (options.force !== true) await unlessItWaits(flushUnused(system.paths, index), () => context.remark(writingBack(system, index)));
    kernel.disconnect(index);
    context.print({ device: devicePath(index) }, () => `detached ${devicePath(index)}`);
  } finally {
    kernel.close();
  }
}

/** `work`; what it waits for is said when it is not done soon. */
async function unlessItWaits(work: Promise<void>, say: () => void): Promise<void> {
  const timer = setTimeout(say, SOON_MS);
  try {
    await work;
  } finally {
    clearTimeout(timer);
  }
}

/** The kernel does not tell whether a connection lives. */
function writingBack(system: AttachSystem, index: number): string {
  const name = devicePath(index);
  const what = attachedExport(backendOf(system.paths, index));
  return `waiting for the kernel to write back what it still holds for ${name}. If nothing is being written, its connection has died, and it waits for a new one `
    + `for the --dead-timeout that it was attached with (300 s by default). From another terminal: lockstep attach --reconnect ${what ?? 'GROUP/DEVICE'} ${name} gives it one; `
    + `lockstep detach --force ${name} gives up what is not written`;
}

function indexArgument(words: string): number {
  const index = deviceIndex(words);
  if (index === undefined) throw new OperatorError('usage', `${JSON.stringify(words)} is no nbd device; name it as /dev/nbd0`);
  return index;
}

function blockSizeArgument(words: string): number {
  const bytes = wholeNumber(words, '--block-size', MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
  if ((bytes & (bytes - 1)) !== 0) throw new OperatorError('usage', `--block-size must be 512, 1024, 2048 or 4096, not ${bytes}`);
  return bytes;
}

/** Refuses what the kernel would refuse too, with better words, and before the server is troubled. */
function checkTarget(system: AttachSystem, kernel: NbdKernel, index: number, exportName: string, reconnect: boolean): void {
  const connected = kernel.status(index).some((one) => one.index === index && one.connected);
  if (connected && !reconnect) {
    const what = attachedExport(backendOf(system.paths, index));
    const again = what === exportName ? `; if its connection died: lockstep attach --reconnect ${exportName} ${devicePath(index)}` : '';
    // The kernel calls a device connected until its last user has closed it.
    throw new OperatorError('nbd/busy', `${devicePath(index)} is attached already${what === undefined ? '' : ` to ${what}`}${again}. If it was detached, somebody still has it open, and it is free when that ends (findmnt ${devicePath(index)}; fuser -v ${devicePath(index)})`);
  }
  if (!connected && reconnect) throw new OperatorError('nbd/not-attached', `${devicePath(index)} is not attached; attach it without --reconnect`);
}

/** The facts of all connections, which must be the same: else two servers, or two moments, were met. */
function agreed(connections: readonly Connection[], exportName: string): NegotiatedExport {
  const first = connections[0].export;
  for (const { export: other } of connections) {
    if (other.sizeBytes !== first.sizeBytes || other.transmissionFlags !== first.transmissionFlags || other.description !== first.description) {
      throw new OperatorError('export/refused', `${exportName} changed while it was being attached; try again`);
    }
  }
  if (connections.length > 1 && (first.transmissionFlags & NBD_FLAG_CAN_MULTI_CONN) === 0) {
    throw new OperatorError('export/refused', `the server does not allow more than one connection to ${exportName}; leave --connections out`);
  }
  return first;
}

function blockSize(facts: NegotiatedExport, wanted: number | undefined, exportName: string): number {
  const bytes = wanted ?? Math.min(MAX_BLOCK_BYTES, Math.max(MIN_BLOCK_BYTES, facts.preferredBlock));
  if (facts.blockSizesAdvertised && bytes < facts.minimumBlock) throw new OperatorError('usage', `the server serves ${exportName} in blocks of at least ${facts.minimumBlock} bytes, not ${bytes}`);
  if (facts.sizeBytes % bytes !== 0) throw new OperatorError('usage', `the size of ${exportName} is not a multiple of ${bytes} bytes; choose a smaller --block-size`);
  return bytes;
}

// ---- what is attached -------------------------------------------------------------------------------

function attachedAs(system: AttachSystem, words: string): number {
  const { group, device } = deviceArgument(words);
  const exportName = `${group}/${device}`;
  const found = attachments(system.paths).filter((one) => one.exportName === exportName);
  if (found.length === 1) return found[0].index;
  if (found.length === 0) throw new OperatorError('nbd/not-attached', `${exportName} is attached to no device that the kernel names; if it is, name the device: lockstep detach /dev/nbdN`);
  throw new OperatorError('nbd/ambiguous', `${exportName} is attached more than once (${found.map(({ index }) => devicePath(index)).join(', ')}); name the device`);
}

/** The backend text of an attached device, if its content is that of the export. Throws OperatorError when not. */
function sameContent(system: AttachSystem, index: number, exportName: string, identifier: string): string {
  const before = backendOf(system.paths, index);
  if (before === undefined || before === identifier) return identifier;
  const ids = idsOf(identifier);
  if (ids !== undefined && ids === idsOf(before)) return before;
  const what = attachedExport(before);
  if (what !== exportName) throw new OperatorError('nbd/busy', `${devicePath(index)} is attached to ${what ?? 'something that is not a Lockstep device'}, not to ${exportName}`);
  throw new OperatorError(
    'nbd/changed',
    `${exportName} is not what ${devicePath(index)} was attached to any more: it was restored, replaced or rewound meanwhile. What the kernel has cached of it is worthless: unmount it, detach it with --force and attach it anew`,
  );
}
