/**
 * The NBD server under test, and how the guest attaches to it: Lockstep with
 * `lockstep attach`, or nbdkit with nbd-client as a stand-in that tells a fault
 * of the rig from one of Lockstep.
 */
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CLI, prepareSingle } from '../harness/node.js';
import { run, startProcess, waitFor, type RunningProcess } from '../harness/process.js';
import type { GuestShell } from './guest-shell.js';

export const PORT = 10809;
/** A request that waits longer marks its connection dead: more than a busy machine needs, little enough for a test. */
export const REQUEST_SECONDS = 20;

export interface ServerUnderTest {
  readonly exportName: string;
  /** For libnbd's tools on the host's side. */
  readonly uri: string;
  start(): Promise<void>;
  /** kill -9 */
  kill(): Promise<void>;
  stop(): Promise<void>;
  /** Attaches `device` in the guest and returns when it is usable. */
  attach(guest: GuestShell, device: string): Promise<void>;
  /** Ends the connection; a device that is mounted keeps its size until it is not. `dead`: the server was killed, so what is cached is lost. */
  disconnect(guest: GuestShell, device: string, dead?: 'dead'): Promise<void>;
}

export function guestAddress(): string {
  const address = process.env.HOST_A;
  if (address === undefined) throw new Error('HOST_A is not set; run by test/kernel/guest');
  return address;
}

/** Waits until the guest's kernel says that the device has `bytes` (0: is detached). */
export async function waitSize(guest: GuestShell, device: string, bytes: number): Promise<void> {
  const name = device.replace('/dev/', '');
  await waitFor(`${device} has ${bytes} bytes`, async () => Number(await guest.succeed(`cat /sys/block/${name}/size`)) * 512 === bytes);
}

/** Detaches a device that nothing uses, and waits until the kernel has let it go. */
export async function detach(server: ServerUnderTest, guest: GuestShell, device: string, dead?: 'dead'): Promise<void> {
  await server.disconnect(guest, device, dead);
  await waitSize(guest, device, 0);
}

/** The CLI as the guest runs it: this checkout, read through the host's root. */
export function lockstepInGuest(words: string): string {
  return `${process.execPath} ${CLI} ${words}`;
}

export interface LockstepServer extends ServerUnderTest {
  readonly controlSocket: string;
  readonly dataDirectory: string;
}

/** One node with the volume g/vol. */
export function lockstepServer(directory: string, volumeBytes: number): LockstepServer {
  const node = prepareSingle(directory, { journalSize: '256M', segmentSize: '16M', nbdAddresses: [`tcp:${guestAddress()}:${PORT}`, ''] });
  let created = false;
  return {
    exportName: 'g/vol',
    controlSocket: node.controlSocket,
    dataDirectory: node.config.dataDirectory as string,
    uri: node.uri('g/vol'),
    async start() {
      await node.start();
      if (!created) await node.control.createVolume('g', { name: 'vol', size: volumeBytes });
      created = true;
    },
    kill: () => node.kill(),
    stop: () => node.stop(),
    async attach(guest, device) {
      await guest.succeed(lockstepInGuest(`attach g/vol ${device} --server tcp:${guestAddress()}:${PORT} --timeout ${REQUEST_SECONDS} --dead-timeout 10`));
      await waitSize(guest, device, volumeBytes);
    },
    async disconnect(guest, device, dead) {
      await guest.succeed(lockstepInGuest(`detach ${device}${dead === undefined ? '' : ' --force'}`));
    },
  };
}

export function nbdkitServer(directory: string, volumeBytes: number): ServerUnderTest {
  const file = join(directory, 'disk.img');
  writeFileSync(file, '');
  truncateSync(file, volumeBytes);
  let running: RunningProcess | undefined;
  return {
    exportName: '',
    uri: `nbd://${guestAddress()}:${PORT}`,
    async start() {
      running = startProcess('nbdkit', ['-f', '-i', guestAddress(), '-p', String(PORT), 'file', file], { log: join(directory, 'nbdkit.log') });
      await waitFor('nbdkit accepts connections', async () => (await run('bash', ['-c', `: </dev/tcp/${guestAddress()}/${PORT}`])).code === 0);
    },
    kill: async () => running?.stop('SIGKILL'),
    stop: async () => running?.stop('SIGTERM'),
    async attach(guest, device) {
      await guest.succeed(`nbd-client -timeout ${REQUEST_SECONDS} ${guestAddress()} ${PORT} ${device}`);
      await waitSize(guest, device, volumeBytes);
    },
    async disconnect(guest, device) {
      await guest.succeed(`nbd-client -d ${device}`);
    },
  };
}
