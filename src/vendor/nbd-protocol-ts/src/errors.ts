/** What the client rejects with, and the names of the protocol's error values. */
import {
  NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL, NBD_EIO, NBD_ENOMEM, NBD_ENOSPC, NBD_ENOTSUP, NBD_EOVERFLOW, NBD_EPERM, NBD_ESHUTDOWN,
} from './constants.js';

/** One request was refused; the connection goes on. */
export class NbdRequestError extends Error {
  override readonly name = 'NbdRequestError';
  /** 'EPERM', 'EIO', ... */
  readonly code: string;

  /** `errno` and `command` are the protocol's numbers; `detail` is what the server said about it, if anything. */
  constructor(readonly errno: number, readonly command: number, readonly detail: string) {
    super(`${commandName(command)}: ${errnoName(errno)}${detail === '' ? '' : ` (${detail})`}`);
    this.code = errnoName(errno);
  }
}

/** The connection is gone, or never came about. */
export class NbdConnectionError extends Error {
  override readonly name = 'NbdConnectionError';

  constructor(message: string, cause?: Error) {
    super(cause === undefined ? message : `${message}: ${cause.message}`, cause === undefined ? undefined : { cause });
  }
}

export function commandName(command: number): string {
  switch (command) {
    case NBD_CMD_READ: return 'READ';
    case NBD_CMD_WRITE: return 'WRITE';
    case NBD_CMD_DISC: return 'DISC';
    case NBD_CMD_FLUSH: return 'FLUSH';
    case NBD_CMD_TRIM: return 'TRIM';
    case NBD_CMD_CACHE: return 'CACHE';
    case NBD_CMD_WRITE_ZEROES: return 'WRITE_ZEROES';
    case NBD_CMD_BLOCK_STATUS: return 'BLOCK_STATUS';
    default: return `command ${command}`;
  }
}

export function errnoName(errno: number): string {
  switch (errno) {
    case NBD_EPERM: return 'EPERM';
    case NBD_EIO: return 'EIO';
    case NBD_ENOMEM: return 'ENOMEM';
    case NBD_EINVAL: return 'EINVAL';
    case NBD_ENOSPC: return 'ENOSPC';
    case NBD_EOVERFLOW: return 'EOVERFLOW';
    case NBD_ENOTSUP: return 'ENOTSUP';
    case NBD_ESHUTDOWN: return 'ESHUTDOWN';
    default: return `error ${errno}`;
  }
}
