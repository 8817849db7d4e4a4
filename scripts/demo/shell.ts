/**
 * Where the demo's filesystem work happens: in the User-Mode Linux guest, or on
 * this machine when its own kernel has the NBD driver.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { run, type Finished } from '../../test/harness/process.js';
import { GuestShell } from '../../test/kernel/guest-shell.js';

export interface Shell {
  readonly place: string;
  /** Addresses that this shell's kernel reaches the two nodes at. */
  readonly addresses: readonly [string, string];
  /** Device nodes that nothing uses. */
  readonly devices: readonly [string, string, string];
  /** Existing empty directory below which the demo makes its mount points. */
  readonly mountRoot: string;
  run(command: string, timeoutMs?: number): Promise<Finished>;
  /** stdout of a command that must end with 0. */
  succeed(command: string, timeoutMs?: number): Promise<string>;
  close(): Promise<void>;
}

/** Whether this kernel has the driver, and this user may use it. */
export function hostHasNbd(): boolean {
  return process.getuid?.() === 0 && existsSync('/dev/nbd0') && existsSync('/sys/block/nbd0');
}

export async function openGuest(): Promise<Shell> {
  const guest = await GuestShell.open();
  const release = (await guest.succeed('uname -r')).trim();
  return {
    place: `a User-Mode Linux guest, kernel ${release}`,
    addresses: [process.env.HOST_A ?? '', process.env.HOST_B ?? ''],
    devices: ['/dev/nbd0', '/dev/nbd1', '/dev/nbd2'],
    mountRoot: '/media',
    run: (command, timeoutMs) => guest.run(command, timeoutMs),
    succeed: (command, timeoutMs) => guest.succeed(command, timeoutMs),
    close: () => guest.close(),
  };
}

/** `mountRoot` is a directory of the demo's own. */
export function openHost(mountRoot: string): Shell {
  const free = readdirSync('/sys/block').filter((name) => /^nbd\d+$/.test(name) && readFileSync(`/sys/block/${name}/size`, 'utf8').trim() === '0').sort();
  if (free.length < 3) throw new Error('the demo needs three free /dev/nbd devices');
  const execute = (command: string, timeoutMs?: number): Promise<Finished> => run('bash', ['-c', command], { ...(timeoutMs === undefined ? {} : { timeoutMs }) });
  return {
    place: 'this machine\'s own kernel',
    addresses: ['127.0.0.1', '127.0.0.1'],
    devices: [`/dev/${free[0]}`, `/dev/${free[1]}`, `/dev/${free[2]}`],
    mountRoot,
    run: execute,
    async succeed(command, timeoutMs) {
      const result = await execute(command, timeoutMs);
      if (result.code !== 0) throw new Error(`exit status ${result.code}: ${command}\n${result.stdout}${result.stderr}`);
      return result.stdout;
    },
    close: () => Promise.resolve(),
  };
}
