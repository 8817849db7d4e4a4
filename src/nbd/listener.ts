/**
 * A listening socket: accepts clients and hands them to the server.
 *
 * Owns: its descriptor, and patience when descriptors run out. Must not know:
 * what happens on a connection.
 */

import { formatAddress } from '../base/address.js';
import { Errno, IoError, errnoText } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { Ready } from '../io/io.js';
import type { SocketAddress } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';

const BACKLOG = 1024;
/** Accepted per tick, so that a flood does not keep those who are connected waiting. */
const ACCEPTS_PER_TICK = 64;
/** How long to wait after accept failed for want of descriptors or memory. */
const RETRY_US = 100_000;

/** Who takes the clients. */
export interface ListenerHost {
  readonly reactor: Reactor;
  readonly log: Log;
  /** Takes ownership of `fd`. */
  adopt(fd: number, peer: string): void;
  /** The listener is closed. */
  forget(listener: Listener): void;
}

export class Listener {
  private readonly fd: number;
  private tag: number | undefined;
  private retry: TimerId | undefined;
  private isClosed = false;

  /** Throws IoError when the address is taken or cannot be used. */
  constructor(
    private readonly server: ListenerHost,
    readonly address: SocketAddress,
  ) {
    const fd = server.reactor.io.listen(address, BACKLOG);
    if (fd < 0) throw new IoError(-fd, 'listen on', formatAddress(address));
    this.fd = fd;
    this.tag = this.watch();
  }

  /** The port of a TCP listener, the one that was given for port 0. */
  get port(): number {
    return this.server.reactor.io.boundPort(this.fd);
  }

  private watch(): number {
    return this.server.reactor.watch(this.fd, Ready.IN, () => this.accept());
  }

  private accept(): void {
    const { io } = this.server.reactor;
    for (let i = 0; i < ACCEPTS_PER_TICK && !this.isClosed; i++) {
      const fd = io.accept(this.fd);
      if (fd === -Errno.EAGAIN) return;
      if (fd < 0) return this.pause(-fd);
      this.server.adopt(fd, io.peerName(fd));
    }
  }

  /** Out of descriptors or memory: the connection stays in the backlog, and the level-triggered watch would spin. */
  private pause(errno: number): void {
    this.server.log.error('NBD clients cannot be accepted at present', {
      address: formatAddress(this.address), error: errnoText(errno), retryMs: RETRY_US / 1000,
    });
    this.unwatch();
    this.retry = this.server.reactor.after(RETRY_US, () => {
      this.retry = undefined;
      this.tag = this.watch();
    });
  }

  private unwatch(): void {
    if (this.tag !== undefined) this.server.reactor.unwatch(this.tag);
    this.tag = undefined;
  }

  /** Idempotent. Connections that were accepted stay. Removes the file of a Unix socket. */
  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.unwatch();
    if (this.retry !== undefined) this.server.reactor.cancel(this.retry);
    this.server.reactor.io.close(this.fd);
    if (this.address.kind === 'unix') this.server.reactor.io.unlink(this.address.path);
    this.server.forget(this);
  }
}
