/**
 * The four kinds of expected errors (DESIGN §12). Anything else that is thrown
 * is a bug and ends the process. `code` is stable: scripts may rely on it.
 */

/** A person asked for what cannot be done. `message` is one sentence that says what to do. CLI exit code 2. */
export class OperatorError extends Error {
  override readonly name = 'OperatorError';
  constructor(readonly code: string, message: string) {
    super(message);
  }
}

/** What our own disk says contradicts itself. Stops the group; never the other groups. */
export class CorruptionError extends Error {
  override readonly name = 'CorruptionError';
  readonly code = 'corruption';
  /** `file` and `position` (bytes) say where; `message` says what was expected and what was found. */
  constructor(readonly file: string, readonly position: number, message: string) {
    super(`${file}, byte ${position}: ${message}`);
  }
}

/** A peer broke the protocol, or may not do what it asks. Drops that link; the node keeps serving. */
export class PeerError extends Error {
  override readonly name = 'PeerError';
  constructor(readonly code: string, message: string) {
    super(message);
  }
}

/** A system call failed. */
export class IoError extends Error {
  override readonly name = 'IoError';
  readonly code: string;
  constructor(readonly errno: number, readonly doing: string, readonly file: string) {
    super(`${doing} ${file}: ${errnoText(errno)}`);
    this.code = `io/${errnoName(errno)}`;
  }
}

const ERRNO_NAMES: Record<number, [string, string]> = {
  1: ['EPERM', 'operation not permitted'],
  2: ['ENOENT', 'no such file or directory'],
  4: ['EINTR', 'interrupted'],
  5: ['EIO', 'input/output error'],
  9: ['EBADF', 'bad file descriptor'],
  11: ['EAGAIN', 'try again'],
  12: ['ENOMEM', 'out of memory'],
  13: ['EACCES', 'permission denied'],
  16: ['EBUSY', 'device or resource busy'],
  17: ['EEXIST', 'file exists'],
  19: ['ENODEV', 'no such device'],
  20: ['ENOTDIR', 'not a directory'],
  22: ['EINVAL', 'invalid argument'],
  24: ['EMFILE', 'too many open files'],
  27: ['EFBIG', 'file too large'],
  28: ['ENOSPC', 'no space left on device'],
  30: ['EROFS', 'read-only file system'],
  32: ['EPIPE', 'broken pipe'],
  34: ['ERANGE', 'out of range'],
  75: ['EOVERFLOW', 'value too large'],
  95: ['ENOTSUP', 'operation not supported'],
  98: ['EADDRINUSE', 'address already in use'],
  99: ['EADDRNOTAVAIL', 'address not available'],
  101: ['ENETUNREACH', 'network is unreachable'],
  104: ['ECONNRESET', 'connection reset by peer'],
  107: ['ENOTCONN', 'not connected'],
  108: ['ESHUTDOWN', 'shut down'],
  110: ['ETIMEDOUT', 'timed out'],
  111: ['ECONNREFUSED', 'connection refused'],
  113: ['EHOSTUNREACH', 'no route to host'],
  115: ['EINPROGRESS', 'in progress'],
  122: ['EDQUOT', 'disk quota exceeded'],
};

function errnoName(errno: number): string {
  return ERRNO_NAMES[errno]?.[0] ?? `errno ${errno}`;
}

/** "no space left on device (ENOSPC)"; `errno` is positive. */
export function errnoText(errno: number): string {
  const known = ERRNO_NAMES[errno];
  return known ? `${known[1]} (${known[0]})` : `errno ${errno}`;
}

/** Linux errno values that the code names. */
export const Errno = {
  EPERM: 1, ENOENT: 2, EINTR: 4, EIO: 5, EBADF: 9, EAGAIN: 11, ENOMEM: 12, EACCES: 13, EBUSY: 16, EEXIST: 17,
  ENODEV: 19, ENOTDIR: 20, EINVAL: 22, EMFILE: 24, EFBIG: 27, ENOSPC: 28, EROFS: 30, EPIPE: 32, EOVERFLOW: 75,
  ENOTSUP: 95, EADDRINUSE: 98, ECONNRESET: 104, ENOTCONN: 107, ESHUTDOWN: 108, ETIMEDOUT: 110,
  ECONNREFUSED: 111, EINPROGRESS: 115,
} as const;
