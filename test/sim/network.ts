/**
 * Stream sockets between simulated nodes, in memory.
 *
 * Owns: listeners, connections, bytes in flight, limited buffers, latency,
 * resets, partitions, what a crash of one end looks like to the other.
 * Must not know: descriptors and epoll (io.ts), what the bytes mean.
 *
 * One address space for all nodes: give them different ports. A partition
 * separates two nodes by name. Bytes in flight when it begins are lost, hence
 * its connections end in ECONNRESET when it heals (TCP would retransmit; the
 * harder case is kept). SIGKILL: the peer sees either the end of the stream
 * after some or all bytes in flight, as the kernel closes it, or ECONNRESET
 * (always that, when the dead process had bytes unread). Power loss: the peer
 * sees nothing at first, ECONNRESET later.
 */
import { Errno } from '../../src/base/errors.js';
import { Ready, type SocketAddress } from '../../src/io/io.js';
import type { SimClock } from './clock.js';
import type { Random } from './random.js';

export interface NetworkRates {
  /** Latency of a delivery in µs: log-uniform between these. */
  latencyLowUs: number;
  latencyHighUs: number;
  /** Capacity of one direction of a connection in bytes: log-uniform between these. */
  bufferLow: number;
  bufferHigh: number;
  /** Probability that recv or send moves fewer bytes than it could. */
  partial: number;
  /** Probability that a connection attempt is refused. */
  refuse: number;
  /** Probability per send that the connection is reset. */
  reset: number;
}

const SYN_RETRY_US = 200_000;
const SYN_TRIES = 10;

/** One direction of a connection: a ring of bytes with positions that only grow. */
class Pipe {
  readonly ring: Uint8Array;
  written = 0;
  arrived = 0;
  read = 0;
  /** The writer ended the stream; `finArrived` once the reader knows. */
  fin = false;
  finArrived = false;
  lastArrival = 0;
  /** What is not delivered yet never will be. */
  frozen = false;

  constructor(capacity: number) {
    this.ring = new Uint8Array(capacity);
  }

  get free(): number {
    return this.ring.length - (this.written - this.read);
  }

  put(source: Uint8Array): void {
    const at = this.written % this.ring.length;
    const first = Math.min(source.length, this.ring.length - at);
    this.ring.set(source.subarray(0, first), at);
    if (first < source.length) this.ring.set(source.subarray(first), 0);
    this.written += source.length;
  }

  take(target: Uint8Array): void {
    const at = this.read % this.ring.length;
    const first = Math.min(target.length, this.ring.length - at);
    target.set(this.ring.subarray(at, at + first), 0);
    if (first < target.length) target.set(this.ring.subarray(0, target.length - first), first);
    this.read += target.length;
  }
}

/** One end of a connection. */
export class SimStream {
  /** connecting: no answer yet. open: both ends exist. dead: refused, reset or timed out. */
  state: 'connecting' | 'open' | 'dead' = 'connecting';
  /** Pending SO_ERROR, positive. */
  error = 0;
  closed = false;
  private readShut = false;
  peer: SimStream | undefined;
  inbound!: Pipe;
  outbound!: Pipe;

  constructor(private readonly network: SimNetwork, readonly node: string, readonly peerName: string) {}

  takeError(): number {
    const error = this.error;
    this.error = 0;
    return error;
  }

  recv(target: Uint8Array): number {
    if (this.state === 'connecting') return -Errno.EAGAIN;
    const ready = this.inbound === undefined ? 0 : this.inbound.arrived - this.inbound.read;
    if (ready > 0) {
      const count = this.network.some(Math.min(ready, target.length));
      this.inbound.take(target.subarray(0, count));
      return count;
    }
    if (this.error !== 0) return -this.takeError();
    if (this.state === 'dead' || this.inbound.finArrived || this.readShut) return 0;
    return -Errno.EAGAIN;
  }

  /** Takes what fits of the source; returns the count or −errno. */
  send(source: Uint8Array): number {
    if (this.error !== 0) return -this.takeError();
    if (this.state === 'connecting') return -Errno.EAGAIN;
    if (this.state === 'dead' || this.outbound.fin) return -Errno.EPIPE;
    const room = Math.min(this.outbound.free, source.length);
    if (room <= 0) return source.length === 0 ? 0 : -Errno.EAGAIN;
    const count = this.network.some(room);
    this.outbound.put(source.subarray(0, count));
    this.network.deliver(this);
    return count;
  }

  /** SHUT_RDWR, as RealIo does: the peer reads what was sent, then the end; here, what has arrived can still be read. */
  shutdown(): number {
    if (this.state !== 'open') return -Errno.ENOTCONN;
    this.readShut = true;
    if (!this.outbound.fin) {
      this.outbound.fin = true;
      this.network.deliver(this);
    }
    return 0;
  }

  /** epoll bits, level-triggered. */
  readiness(): number {
    if (this.state === 'connecting') return 0;
    if (this.state === 'dead') return Ready.IN | Ready.OUT | Ready.HUP | Ready.RDHUP | (this.error !== 0 ? Ready.ERR : 0);
    let bits = 0;
    if (this.inbound.arrived > this.inbound.read) bits |= Ready.IN;
    if (this.inbound.finArrived || this.readShut) bits |= Ready.IN | Ready.RDHUP | (this.outbound.fin ? Ready.HUP : 0);
    if (this.outbound.fin || this.outbound.free * 4 >= this.outbound.ring.length) bits |= Ready.OUT;
    return bits;
  }

  /** The connection is gone: pending bytes may be lost, the next call tells. */
  breakWith(error: number, discard: boolean): void {
    if (this.state === 'dead') return;
    this.state = 'dead';
    this.error = error;
    if (this.inbound !== undefined) {
      this.inbound.frozen = true;
      if (discard) this.inbound.read = this.inbound.arrived;
    }
  }
}

export class SimListener {
  readonly queue: SimStream[] = [];
  closed = false;

  constructor(readonly key: string, readonly node: string, readonly port: number, readonly backlog: number) {}

  readiness(): number {
    return this.queue.length > 0 ? Ready.IN : 0;
  }
}

export class SimNetwork {
  rates: NetworkRates = {
    latencyLowUs: 20, latencyHighUs: 500, bufferLow: 8192, bufferHigh: 262144, partial: 0.1, refuse: 0, reset: 0,
  };
  private readonly listeners = new Map<string, SimListener>();
  private readonly streams = new Set<SimStream>();
  private readonly partitions = new Set<string>();
  private nextPort = 40000;

  constructor(private readonly clock: SimClock, readonly random: Random) {}

  // ---- what io.ts calls --------------------------------------------------------------------------

  listen(node: string, address: SocketAddress, backlog: number): SimListener | number {
    const port = address.kind === 'tcp' ? (address.port === 0 ? this.nextPort++ : address.port) : 0;
    const key = address.kind === 'tcp' ? `tcp:${port}` : `unix:${address.path}`;
    if (address.kind === 'tcp' && this.listeners.has(key)) return -Errno.EADDRINUSE;
    const listener = new SimListener(key, node, port, Math.max(1, backlog));
    this.listeners.set(key, listener);
    return listener;
  }

  connect(node: string, address: SocketAddress): SimStream | number {
    const key = address.kind === 'tcp' ? `tcp:${address.port}` : `unix:${address.path}`;
    const text = address.kind === 'tcp' ? `${address.host}:${address.port}` : address.path;
    const stream = new SimStream(this, node, text);
    this.streams.add(stream);
    if (address.kind === 'unix') {
      const listener = this.listeners.get(key);
      if (listener === undefined) return -Errno.ENOENT;
      if (listener.queue.length >= listener.backlog) return -Errno.EAGAIN;
      this.establish(stream, listener);
    } else {
      this.later(() => this.attempt(stream, key, 1));
    }
    return stream;
  }

  private attempt(stream: SimStream, key: string, tries: number): void {
    if (stream.closed || stream.state !== 'connecting') return;
    const listener = this.listeners.get(key);
    const full = listener !== undefined && listener.queue.length >= listener.backlog;
    if (full || (listener !== undefined && this.isPartitioned(stream.node, listener.node))) {
      if (tries >= SYN_TRIES) stream.breakWith(Errno.ETIMEDOUT, true);
      else this.clock.schedule(this.clock.now + SYN_RETRY_US, () => this.attempt(stream, key, tries + 1));
      return;
    }
    if (listener === undefined || this.random.chance(this.rates.refuse)) stream.breakWith(Errno.ECONNREFUSED, true);
    else this.establish(stream, listener);
  }

  private establish(stream: SimStream, listener: SimListener): void {
    const accepted = new SimStream(this, listener.node, `${stream.node}:sim`);
    this.streams.add(accepted);
    stream.peer = accepted;
    accepted.peer = stream;
    stream.inbound = accepted.outbound = this.pipe();
    stream.outbound = accepted.inbound = this.pipe();
    stream.state = accepted.state = 'open';
    listener.queue.push(accepted);
  }

  private pipe(): Pipe {
    return new Pipe(Math.floor(this.random.logUniform(this.rates.bufferLow, this.rates.bufferHigh)));
  }

  accept(listener: SimListener): SimStream | undefined {
    return listener.queue.shift();
  }

  close(stream: SimStream): void {
    if (stream.closed) return;
    stream.closed = true;
    this.streams.delete(stream);
    if (stream.state !== 'open') return;
    const unread = stream.inbound.arrived > stream.inbound.read;
    if (unread) this.resetPeer(stream);
    else stream.shutdown();
  }

  closeListener(listener: SimListener): void {
    listener.closed = true;
    if (this.listeners.get(listener.key) === listener) this.listeners.delete(listener.key);
    for (const stream of listener.queue.splice(0)) {
      stream.closed = true;
      this.streams.delete(stream);
      this.resetPeer(stream);
    }
  }

  /** `count`, or by chance fewer (at least 1). */
  some(count: number): number {
    return count > 1 && this.random.chance(this.rates.partial) ? this.random.between(1, count) : count;
  }

  /** Sends on its way what `from` has written so far. */
  deliver(from: SimStream): void {
    const pipe = from.outbound;
    const peer = from.peer!;
    if (pipe.frozen || this.isPartitioned(from.node, peer.node)) {
      pipe.frozen = true;
      return;
    }
    if (this.random.chance(this.rates.reset)) {
      this.cutStream(from);
      return;
    }
    const { written: mark, fin } = pipe;
    pipe.lastArrival = Math.max(pipe.lastArrival, this.clock.now + this.latency());
    this.clock.schedule(pipe.lastArrival, () => {
      if (pipe.frozen) return;
      if (peer.closed && mark > pipe.arrived) {
        // Nobody reads there any more: the peer's kernel answers with a reset.
        this.later(() => from.breakWith(Errno.ECONNRESET, this.random.chance(0.5)));
        return;
      }
      pipe.arrived = Math.max(pipe.arrived, mark);
      if (fin) pipe.finArrived = true;
    });
  }

  private latency(): number {
    return this.random.logUniform(this.rates.latencyLowUs, this.rates.latencyHighUs);
  }

  private later(action: () => void): void {
    this.clock.schedule(this.clock.now + this.latency(), action);
  }

  private resetPeer(stream: SimStream): void {
    const peer = stream.peer;
    if (peer === undefined) return;
    if (stream.outbound !== undefined) stream.outbound.frozen = true;
    if (!this.isPartitioned(stream.node, peer.node)) this.later(() => peer.breakWith(Errno.ECONNRESET, this.random.chance(0.5)));
  }

  // ---- faults ----------------------------------------------------------------------------------------

  private isPartitioned(a: string, b: string): boolean {
    return this.partitions.size > 0 && this.partitions.has(pairName(a, b));
  }

  private *between(a: string, b: string): Generator<SimStream> {
    for (const stream of this.streams) {
      if (stream.node === a && stream.peer?.node === b) yield stream;
    }
  }

  private cutStream(stream: SimStream): void {
    for (const end of [stream, stream.peer]) {
      if (end === undefined || end.state !== 'open') continue;
      end.outbound.frozen = true;
      this.later(() => end.breakWith(Errno.ECONNRESET, this.random.chance(0.5)));
    }
  }

  /** Resets every connection between two nodes; bytes in flight are lost. New connections are possible at once. */
  cut(a: string, b: string): void {
    for (const stream of [...this.between(a, b)]) this.cutStream(stream);
  }

  /** From now on nothing passes between two nodes, and nobody is told. */
  partition(a: string, b: string): void {
    this.partitions.add(pairName(a, b));
    for (const stream of [...this.between(a, b), ...this.between(b, a)]) {
      if (stream.outbound !== undefined) stream.outbound.frozen = true;
    }
  }

  /** Ends a partition; connections that lived through it are reset at both ends. */
  heal(a: string, b: string): void {
    if (!this.partitions.delete(pairName(a, b))) return;
    for (const stream of [...this.between(a, b), ...this.between(b, a)]) this.cutStream(stream);
  }

  /** The process of `node` is gone. */
  nodeDied(node: string, kind: 'kill' | 'power'): void {
    for (const listener of [...this.listeners.values()]) {
      if (listener.node !== node) continue;
      for (const stream of listener.queue.splice(0)) this.abandon(stream, kind);
      this.closeListener(listener);
    }
    for (const stream of [...this.streams]) if (stream.node === node) this.abandon(stream, kind);
  }

  private abandon(stream: SimStream, kind: 'kill' | 'power'): void {
    this.streams.delete(stream);
    const wasOpen = stream.state === 'open' && !stream.closed;
    stream.closed = true;
    const peer = stream.peer;
    if (!wasOpen || peer === undefined) return;
    if (kind === 'power') {
      stream.outbound.frozen = true;
      const at = this.clock.now + this.random.logUniform(500, 50_000);
      this.clock.schedule(at, () => peer.breakWith(Errno.ECONNRESET, this.random.chance(0.5)));
    } else if (stream.inbound.arrived > stream.inbound.read || this.random.chance(0.5)) {
      this.resetPeer(stream);
    } else {
      stream.shutdown();
    }
  }
}

function pairName(a: string, b: string): string {
  return a < b ? `${a}|${b}` : `${b}|${a}`;
}
