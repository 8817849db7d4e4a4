/**
 * Connects to an NBD server and shakes hands, on a bare descriptor: what comes
 * out can be handed to the kernel.
 *
 * Owns: the connection until it is handed over. Must not know: the kernel's
 * side, commands. Blocks the process: for the command line only.
 */

import type { Address } from '../../base/address.js';
import { formatAddress } from '../../base/address.js';
import { Errno, OperatorError, errnoText } from '../../base/errors.js';
import type { Io } from '../../io/io.js';
import { Ready, TAG_FIRST } from '../../io/io.js';
import { ClientHandshake, NBD_REP_ERR_UNKNOWN } from '../../vendor/nbd-protocol-ts/index.js';
import type { NegotiatedExport } from '../../vendor/nbd-protocol-ts/index.js';

export interface Connection {
  /** A connected socket in transmission phase; the caller's to close. */
  readonly fd: number;
  readonly export: NegotiatedExport;
}

const HANDSHAKE_MS = 10_000;
/** Arena that `shakeHands` needs: one receive. */
export const HANDSHAKE_ARENA_BYTES = 64 * 1024;

/**
 * Enters transmission on `exportName`, with simple replies (the kernel's
 * client knows no others). Throws OperatorError `export/not-found`,
 * `export/refused`, `server/unreachable`, `server/protocol`.
 */
export function shakeHands(io: Io, server: Address, exportName: string, timeoutMs = HANDSHAKE_MS): Connection {
  const deadline = io.nowUs() + timeoutMs * 1000;
  const fd = io.connect(reachable(server));
  if (fd < 0) throw unreachable(server, -fd);
  try {
    io.watch(fd, Ready.OUT, TAG_FIRST);
    waitReady(io, server, deadline);
    const failed = io.socketError(fd);
    if (failed !== 0) throw unreachable(server, Math.abs(failed));
    return { fd, export: negotiate(io, fd, server, exportName, deadline) };
  } catch (error) {
    io.close(fd);
    throw error;
  }
}

function negotiate(io: Io, fd: number, server: Address, exportName: string, deadline: number): NegotiatedExport {
  const handshake = new ClientHandshake({ kind: 'go', name: exportName, structuredReplies: false });
  const arena = new Uint8Array(io.memory, 0, HANDSHAKE_ARENA_BYTES);
  for (;;) {
    const outcome = handshake.outcome;
    sendAll(io, fd, server, handshake.takeOutput(), deadline);
    switch (outcome.kind) {
      case 'more':
        break;
      case 'transmission':
        io.unwatch(fd);
        return outcome.export;
      case 'failed':
        throw refusal(server, exportName, outcome.replyType, outcome.reason);
      default:
        throw new OperatorError('server/protocol', `${formatAddress(server)} ended the handshake in an unexpected way`);
    }
    io.rewatch(fd, Ready.IN, TAG_FIRST);
    waitReady(io, server, deadline);
    const received = io.recv(fd, 0, HANDSHAKE_ARENA_BYTES);
    if (received === -Errno.EAGAIN) continue;
    if (received < 0) throw unreachable(server, -received);
    if (received === 0) throw new OperatorError('server/unreachable', `${formatAddress(server)} closed the connection during the handshake`);
    const used = handshake.push(arena, 0, received);
    if (handshake.outcome.kind === 'transmission' && used < received) throw new OperatorError('server/protocol', `${formatAddress(server)} sent something before it was asked`);
  }
}

function sendAll(io: Io, fd: number, server: Address, bytes: Uint8Array, deadline: number): void {
  for (let at = 0; at < bytes.length;) {
    const length = Math.min(bytes.length - at, HANDSHAKE_ARENA_BYTES);
    new Uint8Array(io.memory, 0, length).set(bytes.subarray(at, at + length));
    const sent = io.send(fd, 0, length);
    if (sent === -Errno.EAGAIN) {
      io.rewatch(fd, Ready.OUT, TAG_FIRST);
      waitReady(io, server, deadline);
    } else if (sent < 0) {
      throw unreachable(server, -sent);
    } else {
      at += sent;
    }
  }
}

function waitReady(io: Io, server: Address, deadline: number): void {
  const ready = new Int32Array(16);
  for (;;) {
    const left = deadline - io.nowUs();
    if (left <= 0) throw new OperatorError('server/unreachable', `${formatAddress(server)} did not answer in time; is it an NBD server?`);
    if (io.wait(Math.ceil(left), ready) > 0) return;
  }
}

/** A listener's address as one connects to it: "any" means this machine. */
function reachable(address: Address): Address {
  if (address.kind === 'unix') return address;
  if (address.host === '0.0.0.0') return { ...address, host: '127.0.0.1' };
  return address.host === '::' ? { ...address, host: '::1' } : address;
}

function unreachable(server: Address, errno: number): OperatorError {
  switch (errno) {
    case Errno.ENOENT: return new OperatorError('server/unreachable', `${formatAddress(server)}: there is no such socket; is lockstepd running?`);
    case Errno.ECONNREFUSED: return new OperatorError('server/unreachable', `${formatAddress(server)}: nobody listens there; is lockstepd running?`);
    case Errno.EACCES: return new OperatorError('server/unreachable', `${formatAddress(server)}: permission denied`);
    case Errno.ECONNRESET: case Errno.EPIPE: return new OperatorError('server/unreachable', `${formatAddress(server)} closed the connection during the handshake`);
    default: return new OperatorError('server/unreachable', `${formatAddress(server)}: ${errnoText(errno)}`);
  }
}

function refusal(server: Address, exportName: string, replyType: number, reason: string): OperatorError {
  if (replyType === NBD_REP_ERR_UNKNOWN) return new OperatorError('export/not-found', `${formatAddress(server)} has no export ${JSON.stringify(exportName)}; lockstep list shows what there is`);
  return new OperatorError(replyType === 0 ? 'server/protocol' : 'export/refused', `${formatAddress(server)}, export ${JSON.stringify(exportName)}: ${reason}`);
}
