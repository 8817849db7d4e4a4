/** A stranger on the wire: forwards connections between two nodes, and does to their bytes what a test says. */
import type { Address } from '../../src/base/address.js';
import { Errno } from '../../src/base/errors.js';
import { Arena } from '../../src/io/arena.js';
import type { Io } from '../../src/io/io.js';
import { Ready } from '../../src/io/io.js';
import { Reactor } from '../../src/io/reactor.js';

/** Bytes that were received in one direction become these; undefined cuts the connection. */
export type Meddle = (bytes: Uint8Array, connection: number, fromDialer: boolean, offset: number) => Uint8Array | undefined;

const CHUNK = 64 * 1024;

interface End {
  readonly fd: number;
  tag: number;
  /** Waiting to be sent to this end. */
  pending: Uint8Array;
  received: number;
}

export class Proxy {
  readonly reactor: Reactor;
  /** All bytes of each connection, from the dialer and from the listener. */
  readonly recorded: { dialer: Uint8Array[]; listener: Uint8Array[] }[] = [];
  record = false;
  meddle: Meddle = (bytes) => bytes;
  connections = 0;
  private readonly buffer: number;
  private readonly arena: Arena;
  private readonly live = new Set<() => void>();
  private listener = -1;
  private listenerTag = -1;

  constructor(readonly io: Io, private readonly to: Address) {
    this.arena = new Arena(io);
    this.reactor = new Reactor(io, this.arena);
    this.buffer = this.arena.alloc(CHUNK);
  }

  listen(address: Address): void {
    this.listener = this.io.listen(address, 16);
    if (this.listener < 0) throw new Error(`the proxy cannot listen: ${this.listener}`);
    this.listenerTag = this.reactor.watch(this.listener, Ready.IN, () => {
      const fd = this.io.accept(this.listener);
      if (fd >= 0) this.join(fd);
    });
  }

  private join(dialer: number): void {
    const fd = this.io.connect(this.to);
    if (fd < 0) {
      this.io.close(dialer);
      return;
    }
    const number = this.connections++;
    if (this.record) this.recorded[number] = { dialer: [], listener: [] };
    const ends: [End, End] = [
      { fd: dialer, tag: -1, pending: NONE, received: 0 },
      { fd, tag: -1, pending: NONE, received: 0 },
    ];
    let connected = false;
    let closed = false;
    const close = (): void => {
      if (closed) return;
      closed = true;
      this.live.delete(close);
      for (const end of ends) {
        this.reactor.unwatch(end.tag);
        this.io.close(end.fd);
      }
    };
    const update = (): void => {
      if (closed) return;
      ends.forEach((end, i) => {
        // Back-pressure passes through: nothing is received while the other end takes nothing.
        const wanted = (connected && ends[1 - i].pending.length === 0 ? Ready.IN : 0) | (end.pending.length > 0 || !connected ? Ready.OUT : 0);
        this.reactor.rewatch(end.tag, wanted);
      });
    };
    const push = (end: End): void => {
      while (!closed && end.pending.length > 0) {
        const part = end.pending.subarray(0, CHUNK);
        this.arena.u8.set(part, this.buffer);
        const sent = this.io.send(end.fd, this.buffer, part.length);
        if (sent === -Errno.EAGAIN) break;
        if (sent <= 0) close();
        else end.pending = end.pending.slice(sent);
      }
    };
    const ready = (i: number, events: number): void => {
      const end = ends[i];
      const other = ends[1 - i];
      if (i === 1 && !connected) {
        if (this.io.socketError(fd) !== 0) return close();
        connected = true;
      }
      if (connected && (events & Ready.OUT) !== 0) push(end);
      if (!closed && connected && (events & (Ready.IN | Ready.HUP | Ready.ERR)) !== 0 && other.pending.length === 0) {
        const count = this.io.recv(end.fd, this.buffer, CHUNK);
        if (count === -Errno.EAGAIN) return update();
        if (count <= 0) return close();
        const bytes = this.arena.u8.slice(this.buffer, this.buffer + count);
        if (this.record) this.recorded[number][i === 0 ? 'dialer' : 'listener'].push(bytes);
        const changed = this.meddle(bytes, number, i === 0, end.received);
        end.received += count;
        if (changed === undefined) return close();
        other.pending = changed;
        push(other);
      }
      update();
    };
    ends.forEach((end, i) => void (end.tag = this.reactor.watch(end.fd, i === 0 ? 0 : Ready.OUT, (events) => ready(i, events))));
    this.live.add(close);
  }

  /** Cuts all connections. */
  cut(): void {
    for (const close of [...this.live]) close();
  }

  close(): void {
    this.cut();
    if (this.listener >= 0) {
      this.reactor.unwatch(this.listenerTag);
      this.io.close(this.listener);
    }
    this.listener = -1;
  }
}

const NONE = new Uint8Array(0);
