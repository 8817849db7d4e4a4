/**
 * Whether this node can listen where its configuration says. Owns: trying the
 * addresses before anything is opened, and the words for those that cannot be
 * had. Must not know: who listens there.
 *
 * A group that is opened may begin an epoch, and one that is not closed again
 * begins another at the next start: a wrong address must be found before.
 */

import { dirname } from 'node:path';
import type { Address } from '../base/address.js';
import { formatAddress } from '../base/address.js';
import { Errno, errnoText, IoError, OperatorError } from '../base/errors.js';
import type { Config } from '../config/schema.js';
import { mkdirs } from '../io/file.js';
import type { Reactor } from '../io/reactor.js';

const EADDRNOTAVAIL = 99;

/** Runs what listens at `address`, the value of `key`; its IoError becomes an OperatorError. */
export function listening<T>(key: string, address: Address | undefined, listen: () => T): T {
  try {
    return listen();
  } catch (error) {
    if (!(error instanceof IoError) || address === undefined) throw error;
    throw new OperatorError('listen', `cannot listen on ${formatAddress(address)}: ${reason(error.errno, address)} (${key} in the configuration)`);
  }
}

function reason(errno: number, address: Address): string {
  const unix = address.kind === 'unix';
  switch (errno) {
    case Errno.EADDRINUSE: return unix ? 'a process listens there, or a file that is not a socket is in the way' : 'the address is in use';
    case EADDRNOTAVAIL: return 'this machine has no such address, or the name is unknown';
    case Errno.EACCES: return 'permission denied';
    case Errno.ENOENT: return 'the directory does not exist';
    case Errno.ENOTDIR: return 'a part of the path is not a directory';
    default: return errnoText(errno);
  }
}

/** Listens on all addresses at the same time, and no longer. Throws OperatorError. */
export function tryAddresses(reactor: Reactor, config: Config, serveNbd: boolean): void {
  const { io } = reactor;
  const tried: { fd: number; address: Address }[] = [];
  const attempt = (key: string, address: Address): void => listening(key, address, () => {
    if (address.kind === 'unix') mkdirs(io, dirname(address.path));
    const fd = io.listen(address, 1);
    if (fd < 0) throw new IoError(-fd, 'listen on', formatAddress(address));
    tried.push({ fd, address });
  });
  try {
    if (config.link.listen !== undefined) attempt('link.listen', config.link.listen);
    if (serveNbd) for (const address of config.nbd.listen) attempt('nbd.listen', address);
  } finally {
    for (const { fd, address } of tried) {
      io.close(fd);
      if (address.kind === 'unix') io.unlink(address.path);
    }
  }
}
