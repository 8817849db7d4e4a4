/** Times and sizes of links, and which errors are refusals. Owns the defaults; must not know configuration files. */

import type { LinkWindows } from './windows.js';

export interface LinkOptions {
  /** A sign of life at least this often, microseconds. */
  readonly heartbeatUs: number;
  /** A peer that is silent for longer is taken for dead. */
  readonly deadUs: number;
  /** A connection that has not authenticated and compared histories by then is closed. */
  readonly handshakeUs: number;
  /** Back-off between attempts: from, doubling up to. */
  readonly backoffLowUs: number;
  readonly backoffHighUs: number;
  /** How often a node that must not dial looks whether its role has changed. */
  readonly idleUs: number;
  /** How often a link that waits for its own group looks again. */
  readonly holdUs: number;
  /** How long a closed connection may wait for the peer to read our last words. */
  readonly lingerUs: number;
  /** The receiver syncs its journal at the latest this long after a receive. */
  readonly syncUs: number;
  /** Most journal bytes sent and not acknowledged as received. */
  readonly windowBytes: number;
  /** Bytes read from the journal at a time when catching up. */
  readonly readBytes: number;
  /** Bytes received at a time, once batches flow. */
  readonly receiveBytes: number;
  /** Where links take windows of these two sizes from; undefined: from the arena, as they need them. */
  readonly windows?: LinkWindows;
  /** Size of the socket's buffers; 0 leaves them to the kernel, which adapts those of TCP itself. */
  readonly socketBytes: number;
}

export const DEFAULT_LINK_OPTIONS: LinkOptions = {
  heartbeatUs: 1_000_000,
  deadUs: 10_000_000,
  handshakeUs: 10_000_000,
  backoffLowUs: 100_000,
  backoffHighUs: 5_000_000,
  idleUs: 1_000_000,
  holdUs: 20_000,
  lingerUs: 2_000_000,
  syncUs: 2_000,
  windowBytes: 64 * 1024 * 1024,
  readBytes: 1024 * 1024,
  receiveBytes: 1024 * 1024,
  socketBytes: 0,
};

/**
 * Codes that mean: trying again changes nothing until a person, or the other node, does something. Links try again all
 * the same, and show the reason meanwhile.
 */
const REFUSALS: ReadonlySet<string> = new Set([
  'link/not-accepted', 'link/wrong-secret', 'link/version', 'link/other-group', 'link/diverged', 'link/needs-resync', 'link/not-retained',
  'link/both-primary', 'link/peer-fenced', 'link/peer-stopped', 'link/older-epoch', 'link/dropped', 'link/no-group', 'link/role',
  'link/group-failed', 'link/journal-unreadable', 'link/rewind-failed', 'link/segment-too-small',
]);

export function isRefusal(code: string): boolean {
  return REFUSALS.has(code);
}
