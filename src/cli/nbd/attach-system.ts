/**
 * What attaching needs of the machine: the kernel's nbd client, sockets, /dev
 * and /sys. Tests bring their own.
 */

import type { Io } from '../../io/io.js';
import { NbdNetlink } from '../../io/netlink.js';
import { RealIo, setBlocking } from '../../io/real.js';
import { DEVICE_PATHS } from './devices.js';
import type { DevicePaths } from './devices.js';
import { HANDSHAKE_ARENA_BYTES } from './handshake.js';

export type NbdKernel = Pick<NbdNetlink, 'connect' | 'reconfigure' | 'disconnect' | 'status' | 'close'>;

export interface AttachSystem {
  openKernel(): NbdKernel;
  openIo(): Io;
  setBlocking(fd: number): void;
  readonly paths: DevicePaths;
}

export const REAL_SYSTEM: AttachSystem = {
  openKernel: () => NbdNetlink.open(),
  openIo: () => RealIo.create({ arenaBytes: HANDSHAKE_ARENA_BYTES }),
  setBlocking: (fd) => setBlocking(fd, true),
  paths: DEVICE_PATHS,
};
