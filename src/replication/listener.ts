/**
 * Where other nodes connect to this one: one listener for all groups.
 *
 * Owns: accepting, the limits on connections, finding the link that a
 * connection belongs to. Must not know: what happens on it.
 *
 * A connection that has not authenticated costs two pages and a timer, and
 * there are few of them at a time: a flood of strangers can delay a peer, which
 * tries again, but takes nothing else from this node.
 */

import type { Address } from '../base/address.js';
import { formatAddress } from '../base/address.js';
import { Errno, IoError, PeerError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { Ready } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { ListenerHello } from './hello.js';
import type { LinkIdentity } from './hello.js';
import type { OutgoingLink } from './link.js';
import type { GroupLinks } from './links.js';
import type { LinkOptions } from './options.js';
import { LinkSession } from './session.js';

export interface LinkListenerOptions {
  readonly address: Address;
  readonly maxConnections: number;
  /** Of these, connections that have not authenticated. */
  readonly maxStrangers: number;
  readonly link: LinkOptions;
}

const ACCEPTS_PER_EVENT = 16;
const BACKLOG = 64;
const PAUSE_US = 200_000;
const LOG_INTERVAL_US = 1_000_000;

export class LinkListener {
  /** Connections that were closed at once, for one of the limits. */
  turnedAway = 0;
  private fd = -1;
  private tag = -1;
  private pause: TimerId | undefined;
  private readonly sessions = new Set<LinkSession>();
  private lastLogUs = -Infinity;
  private unlogged = 0;

  constructor(
    private readonly reactor: Reactor,
    private readonly node: string,
    private readonly options: LinkListenerOptions,
    private readonly groups: readonly GroupLinks[],
    private readonly log: Log,
  ) {}

  /** Throws IoError. */
  open(): void {
    const fd = this.reactor.io.listen(this.options.address, BACKLOG);
    if (fd < 0) throw new IoError(-fd, 'listen on', formatAddress(this.options.address));
    this.fd = fd;
    this.tag = this.reactor.watch(fd, Ready.IN, () => this.accept());
  }

  /** The address as bound: a port 0 resolved. */
  get address(): Address {
    const { address } = this.options;
    return address.kind === 'tcp' && this.fd >= 0 ? { ...address, port: this.reactor.io.boundPort(this.fd) } : address;
  }

  get connectionCount(): number {
    return this.sessions.size;
  }

  private get strangers(): number {
    let count = 0;
    for (const session of this.sessions) if (!session.authenticated) count++;
    return count;
  }

  private accept(): void {
    const { io } = this.reactor;
    for (let i = 0; i < ACCEPTS_PER_EVENT; i++) {
      const fd = io.accept(this.fd);
      if (fd === -Errno.EAGAIN) return;
      if (fd < 0) {
        // Out of descriptors or memory: the connection stays in the backlog, so look again later and not at once.
        if (fd !== -Errno.EINTR && fd !== -Errno.ECONNRESET) this.pauseAccepting(-fd);
        return;
      }
      if (this.sessions.size >= this.options.maxConnections || this.strangers >= this.options.maxStrangers) {
        this.turnedAway++;
        io.close(fd);
        this.stranger(new PeerError('link/too-many', 'too many connections'), '', '');
        continue;
      }
      this.welcome(fd);
    }
  }

  private pauseAccepting(errno: number): void {
    this.log.warn(`cannot accept link connections now (errno ${errno})`);
    this.reactor.rewatch(this.tag, 0);
    this.pause = this.reactor.after(PAUSE_US, () => {
      this.pause = undefined;
      if (this.tag >= 0) this.reactor.rewatch(this.tag, Ready.IN);
    });
  }

  private welcome(fd: number): void {
    const { reactor } = this;
    const hello = new ListenerHello((group, from, to) => this.find(group, from, to), (count) => reactor.io.randomBytes(count));
    const session = new LinkSession(reactor, fd, {
      kind: 'listener', hello,
      resolve: (identity) => this.linkOf(identity),
      onStranger: (error, claim, peerName) => this.stranger(error, claim, peerName),
    }, this.options.link);
    this.sessions.add(session);
    session.connection.onClosed = () => void this.sessions.delete(session);
    try {
      session.start();
    } catch (error) {
      this.sessions.delete(session);
      if (!(error instanceof PeerError)) throw error;
      this.stranger(error, '', '');
    }
  }

  private find(group: string, from: string, to: string): LinkIdentity | PeerError {
    const links = this.groups.find((one) => one.group.name === group);
    if (links === undefined) return new PeerError('link/unknown-group', `node ${from} asks for group ${group}, which this node does not have`);
    if (to !== this.node) return new PeerError('link/wrong-node', `node ${from} asks for node ${to}, but this is node ${this.node}`);
    const link = links.link(from);
    if (link === undefined) return new PeerError('link/unknown-node', `node ${from} is no peer of group ${group} in the configuration of this node`);
    return link.identity;
  }

  private linkOf(identity: LinkIdentity): OutgoingLink {
    const link = this.groups.find((one) => one.group.name === identity.group)?.link(identity.peer);
    if (link === undefined) throw new PeerError('link/unknown-node', 'the link has gone');
    return link;
  }

  /** Strangers may be many: at most one line a second. */
  private stranger(error: PeerError, claim: string, peerName: string): void {
    const now = this.reactor.nowUs;
    this.unlogged++;
    if (now - this.lastLogUs < LOG_INTERVAL_US) return;
    this.lastLogUs = now;
    this.log.warn(`a link connection was turned away: ${error.message}`, { code: error.code, claim, from: peerName, since: this.unlogged });
    this.unlogged = 0;
  }

  /** Ends all connections that came in. Idempotent. */
  close(): void {
    if (this.fd < 0) return;
    if (this.pause !== undefined) this.reactor.cancel(this.pause);
    this.reactor.unwatch(this.tag);
    this.reactor.io.close(this.fd);
    this.fd = this.tag = -1;
    for (const session of [...this.sessions]) {
      session.end(new PeerError('link/closing', `node ${this.node} is shutting down`));
      session.connection.close();
    }
  }
}
