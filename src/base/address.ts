/**
 * Socket addresses in a person's words: `unix:/path`, `tcp:host:port`,
 * `tcp:[::1]:port`. Owns the spelling; must not resolve or open anything.
 * The shape is that of `SocketAddress` in io/io.ts.
 */

export interface TcpAddress {
  readonly kind: 'tcp';
  /** A name or a numeric address, IPv6 without brackets. */
  readonly host: string;
  readonly port: number;
}

export interface UnixAddress {
  readonly kind: 'unix';
  readonly path: string;
}

export type Address = TcpAddress | UnixAddress;

/** Longest path of a Unix socket in bytes: sun_path is 108 with its final zero (unix(7)). */
export const MAX_SOCKET_PATH_BYTES = 107;

export const ADDRESS_RULE = 'an address such as "unix:/run/lockstep/nbd.sock" or "tcp:127.0.0.1:10809"';

/** The address, or a string that says what is wrong with the words. Port 0 means "any free port" to a listener. */
export function parseAddress(words: string): Address | string {
  if (words.startsWith('unix:')) return parseUnix(words.slice(5));
  if (words.startsWith('tcp:')) return parseTcp(words.slice(4));
  return `must be ${ADDRESS_RULE}`;
}

function parseUnix(path: string): Address | string {
  if (!path.startsWith('/')) return 'must name an absolute path after "unix:"';
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_SOCKET_PATH_BYTES) return `has a path of ${bytes} bytes; a Unix socket path may have ${MAX_SOCKET_PATH_BYTES}`;
  if (path.includes('\0')) return 'must not contain a zero byte';
  return { kind: 'unix', path };
}

function parseTcp(rest: string): Address | string {
  const match = /^(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:[\]/@]+)):(\d{1,5})$/.exec(rest);
  if (match === null) return 'must be "tcp:HOST:PORT", with an IPv6 host in square brackets';
  const port = Number(match[3]);
  if (port > 65535) return `has port ${port}; ports go up to 65535`;
  return { kind: 'tcp', host: match[1] ?? match[2], port };
}

/** As a person writes it; `parseAddress` reads it back. */
export function formatAddress(address: Address): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return `tcp:${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
}
