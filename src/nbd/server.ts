/**
 * The NBD server of a node: all client connections of its data thread.
 *
 * Owns: the connections and their number, who has something to send at the end
 * of a tick, and the line of those who wait for slots or memory. Must not know:
 * the protocol, or what a device is.
 *
 * Construct it after the service: its tick-end hook has to run behind that of
 * the service, which completes the writes of the tick. Everything that frees a
 * slot or memory happens within a tick, and each tick ends with a look at the
 * line: no wake-up can be lost.
 */

import { assert } from '../base/assert.js';
import { IoError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { RequestOwner } from '../group/requests/requests.js';
import type { BlockService } from '../group/requests/service.js';
import type { SocketAddress } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { Complaints } from './complaints.js';
import { Connection } from './connection.js';
import type { ConnectionHost, ConnectionStatus } from './connection.js';
import { DEFAULT_LIMITS } from './limits.js';
import type { NbdLimits } from './limits.js';
import { Listener } from './listener.js';
import type { ListenerHost } from './listener.js';
import { Shared } from './shared.js';

export interface NbdServerOptions {
  readonly reactor: Reactor;
  readonly service: BlockService;
  readonly log: Log;
  readonly limits?: Partial<NbdLimits>;
}

export class NbdServer implements RequestOwner, ConnectionHost, ListenerHost {
  readonly reactor: Reactor;
  readonly service: BlockService;
  readonly log: Log;
  readonly complaints: Complaints;
  readonly limits: NbdLimits;
  readonly shared: Shared;
  /** Counts half stall times while somebody stands in line; see `Connection.progress`. */
  reckoning = 0;

  private readonly listeners = new Set<Listener>();
  /** By index, which is the `connection` column of a request; a closed one keeps its index until it is gone. */
  private readonly connections: (Connection | undefined)[] = [];
  private readonly freeIndexes: number[] = [];
  private openCount = 0;
  /** Half-open ones in the order of their arrival, with the timers that end them. */
  private readonly handshakes = new Map<Connection, TimerId>();

  private touched: (Connection | undefined)[] = [];
  private touchedCount = 0;
  private spare: (Connection | undefined)[] = [];
  private readonly line: Connection[] = [];
  private feeding = false;
  private reckoner: TimerId | undefined;

  private readonly removeHook: () => void;
  private state: 'open' | 'closing' | 'closed' = 'open';
  private whenClosed: (() => void)[] = [];
  private closeTimer: TimerId | undefined;

  constructor(options: NbdServerOptions) {
    this.reactor = options.reactor;
    this.service = options.service;
    this.log = options.log;
    this.complaints = new Complaints(this.log, this.reactor);
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    const owner = this.service.requests.addOwner(this);
    this.shared = new Shared(this.reactor.io, this.reactor.arena, this.service, this.limits, owner);
    this.removeHook = this.reactor.onTickEnd(() => this.endTick());
  }

  /** Accepts clients at `address`. Throws IoError. */
  listen(address: SocketAddress): Listener {
    assert(this.state === 'open', 'listen on a server that is closed');
    const listener = new Listener(this, address);
    this.listeners.add(listener);
    return listener;
  }

  forget(listener: Listener): void {
    this.listeners.delete(listener);
  }

  /** Connections that are open, half-open ones included. */
  get connectionCount(): number {
    return this.openCount;
  }

  status(): ConnectionStatus[] {
    return this.connections.filter((c) => c !== undefined && !c.isClosed).map((c) => c!.status());
  }

  // ---- connections --------------------------------------------------------------------------------

  /** Takes ownership of an accepted socket; also for sockets that come from elsewhere (a test's socket pair). */
  adopt(fd: number, peer: string): void {
    if (this.openCount >= this.limits.maxConnections || this.state !== 'open') {
      this.shared.io.close(fd);
      this.complaints.warn('NBD connection refused: too many clients', { peer, limit: this.limits.maxConnections });
      return;
    }
    if (this.handshakes.size >= this.limits.maxHandshakes) {
      // The oldest has had the most time: a flood of silent connections pushes out itself.
      const [oldest] = this.handshakes.keys();
      oldest.fail(`more than ${this.limits.maxHandshakes} handshakes at once`);
    }
    const index = this.freeIndexes.pop() ?? this.connections.length;
    let connection: Connection;
    try {
      connection = new Connection(this, fd, index, peer);
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      if (index === this.connections.length) this.connections.push(undefined);
      this.freeIndexes.push(index);
      this.shared.io.close(fd);
      this.log.error('an NBD connection cannot be watched', { peer, error: error.message });
      return;
    }
    this.connections[index] = connection;
    this.openCount++;
    this.shared.divide(this.openCount);
    const seconds = this.limits.handshakeTimeoutMs / 1000;
    const timer = this.reactor.after(this.limits.handshakeTimeoutMs * 1000, () => {
      connection.fail(`the handshake took more than ${seconds} s`);
    });
    this.handshakes.set(connection, timer);
    connection.start();
  }

  handshakeEnded(connection: Connection): void {
    const timer = this.handshakes.get(connection);
    if (timer === undefined) return;
    this.reactor.cancel(timer);
    this.handshakes.delete(connection);
  }

  closed(connection: Connection): void {
    this.handshakeEnded(connection);
    this.openCount--;
    this.shared.divide(this.openCount);
    const place = this.line.indexOf(connection);
    if (place >= 0) this.line.splice(place, 1);
    this.shared.reserveOpen = this.line.length === 0;
    if (connection.isGone) this.settled(connection);
  }

  /** Closed, and the service holds nothing of it any more. */
  settled(connection: Connection): void {
    assert(this.connections[connection.index] === connection, 'a connection ended twice');
    this.connections[connection.index] = undefined;
    this.freeIndexes.push(connection.index);
    if (this.state === 'closing') this.finishClosing();
  }

  // ---- the end of a tick --------------------------------------------------------------------------

  /** An answer of the service (RequestOwner). */
  completed(slot: number): void {
    this.connections[this.service.requests.connection[slot]]!.completed(slot);
  }

  /** `connection` wants its `endTick`. */
  touch(connection: Connection): void {
    connection.isTouched = true;
    this.touched[this.touchedCount++] = connection;
  }

  private endTick(): void {
    if (this.touchedCount === 0 && this.line.length === 0) return;
    const list = this.touched;
    const count = this.touchedCount;
    this.touched = this.spare;
    this.touchedCount = 0;
    this.spare = list;
    const submitted = this.service.requests.used;
    for (let i = 0; i < count; i++) {
      const connection = list[i]!;
      connection.isTouched = false;
      connection.endTick();
    }
    if (this.line.length > 0) this.feed();
    // What was served just now waits for the next tick's end: of the service, or ours.
    if (this.touchedCount > 0 || this.service.requests.used > submitted) this.reactor.again();
  }

  // ---- the line of those who wait for slots or memory ----------------------------------------------

  /** Puts `connection` at the end of the line, unless it stands there or has just been let try. */
  starve(connection: Connection): void {
    if (this.feeding || this.line.includes(connection)) return;
    this.line.push(connection);
    this.shared.reserveOpen = false;
    if (this.reckoner === undefined) this.startReckoning();
  }

  /**
   * Lets each in line try once, in order. Who got nothing keeps its place; who got something and wants more goes to
   * the end, so that nobody takes all that is freed.
   */
  private feed(): void {
    const turn = this.line.splice(0);
    const again: Connection[] = [];
    this.feeding = true;
    this.shared.reserveOpen = true;
    for (const connection of turn) {
      if (connection.isClosed) continue;
      const before = connection.intake;
      connection.fed();
      if (connection.isStarved) (connection.intake === before ? this.line : again).push(connection);
    }
    this.line.push(...again);
    this.feeding = false;
    this.shared.reserveOpen = this.line.length === 0;
  }

  private startReckoning(): void {
    this.reckoner = this.reactor.after((this.limits.stallMs * 1000) / 2, () => {
      this.reckoner = undefined;
      if (this.line.length === 0) return;
      this.reckoning++;
      for (const connection of this.connections) {
        if (connection !== undefined && !connection.isClosed && connection.holdsMemory && connection.progress <= this.reckoning - 3) {
          connection.fail(`it made no progress for ${this.limits.stallMs} ms while others waited for the memory it holds`);
        }
      }
      this.startReckoning();
    });
  }

  // ---- the end ------------------------------------------------------------------------------------

  /**
   * Stops listening, answers what is under way, closes; after `limits.closeTimeoutMs` cuts what is left. Resolves
   * when the service holds nothing of ours any more. The reactor has to run meanwhile. Idempotent.
   */
  close(): Promise<void> {
    return new Promise((resolve) => this.closeThen(resolve));
  }

  /** The same with a callback: a thread that blocks in the reactor never runs the microtasks that a promise needs. */
  closeThen(done: () => void): void {
    if (this.state === 'closed') {
      done();
      return;
    }
    this.whenClosed.push(done);
    if (this.state === 'closing') return;
    this.state = 'closing';
    for (const listener of [...this.listeners]) listener.close();
    for (const connection of this.connections) connection?.drain();
    if (this.finishClosing()) return;
    this.closeTimer = this.reactor.after(this.limits.closeTimeoutMs * 1000, () => {
      this.closeTimer = undefined;
      for (const connection of this.connections) connection?.close('the server was stopped before the client took its replies');
    });
  }

  private finishClosing(): boolean {
    if (this.state !== 'closing' || this.connections.some((connection) => connection !== undefined)) return false;
    this.state = 'closed';
    if (this.closeTimer !== undefined) this.reactor.cancel(this.closeTimer);
    if (this.reckoner !== undefined) this.reactor.cancel(this.reckoner);
    this.removeHook();
    this.shared.dispose();
    for (const resolve of this.whenClosed) resolve();
    return true;
  }
}
