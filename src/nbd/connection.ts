/**
 * One client: its socket, from accept to close.
 *
 * Owns: the descriptor and its watch, the handshake, and the end of the
 * connection. Must not know: requests and replies (transmission.ts).
 *
 *     handshake ── GO or EXPORT_NAME ──▶ transmission ── DISC, end of stream, close() ──▶ draining
 *     any ── error, disconnect(), drained ──▶ closed ── the service has answered all ──▶ gone from the server
 */

import { unreachable } from '../base/assert.js';
import { Errno, errnoText } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { BlockService, DeviceClient } from '../group/requests/service.js';
import { SCRATCH_BYTES, SCRATCH_OFFSET } from '../io/arena.js';
import { Ready } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { ServerHandshake } from '../vendor/nbd-protocol-ts/index.js';
import type { ServerTransmission } from '../vendor/nbd-protocol-ts/index.js';
import type { Complaints } from './complaints.js';
import { ServiceDirectory } from './export.js';
import type { DeviceExport } from './export.js';
import { Stall } from './host.js';
import type { TransmissionHost } from './host.js';
import type { Shared } from './shared.js';
import { Transmission } from './transmission.js';

export type Phase =
  /** Options are exchanged; no device is attached. */
  | 'handshake'
  /** The handshake is over, but the requests that came behind it found no memory. */
  | 'entering'
  /** Requests are served. */
  | 'transmission'
  /** Nothing more is received; what is under way is answered and sent. */
  | 'draining'
  /** The socket is closed; the service may still hold requests. */
  | 'closed';

/** What `status` shows of a client. */
export interface ConnectionStatus {
  readonly peer: string;
  readonly phase: Phase;
  readonly exportName: string | undefined;
  readonly requests: number;
  readonly inFlight: number;
  /** Why no requests are taken at present: bits of Stall. */
  readonly stall: number;
}

/** What a connection needs of its server. */
export interface ConnectionHost {
  readonly reactor: Reactor;
  readonly service: BlockService;
  readonly log: Log;
  readonly complaints: Complaints;
  readonly shared: Shared;
  /** Counts half stall times while somebody stands in line; see `Connection.progress`. */
  readonly reckoning: number;
  /** `connection` wants its `endTick`. */
  touch(connection: Connection): void;
  /** Puts `connection` at the end of the line of those who wait for slots or memory. */
  starve(connection: Connection): void;
  handshakeEnded(connection: Connection): void;
  /** Its socket is closed. */
  closed(connection: Connection): void;
  /** Closed, and the service holds nothing of it any more. */
  settled(connection: Connection): void;
}

export class Connection implements TransmissionHost, DeviceClient {
  phase: Phase = 'handshake';
  /** In the server's list of the tick. */
  isTouched = false;
  /** The server's reckoning when this connection last made progress. */
  progress = 0;
  transmission: Transmission | undefined;

  private readonly handshake: ServerHandshake;
  /** Handshake bytes that the socket did not take yet. */
  private unsent: Uint8Array = new Uint8Array(0);
  /** Received bytes that the handshake did not take, or that came behind it. */
  private early: Uint8Array = new Uint8Array(0);
  private received = 0;
  private interest = 0;
  private readonly tag: number;

  /** Takes ownership of `fd`. Throws IoError when it cannot be watched. */
  constructor(
    private readonly server: ConnectionHost,
    readonly fd: number,
    readonly index: number,
    readonly peer: string,
  ) {
    this.handshake = new ServerHandshake(new ServiceDirectory(server.service));
    this.interest = Ready.IN;
    this.tag = server.reactor.watch(fd, this.interest, (events) => this.ready(events));
  }

  /** Sends the greeting. */
  start(): void {
    this.handshaken();
    this.adjust();
  }

  status(): ConnectionStatus {
    const { transmission } = this;
    return {
      peer: this.peer,
      phase: this.phase,
      exportName: transmission?.exported.name,
      requests: transmission?.requestCount ?? 0,
      inFlight: transmission?.replies.pending ?? 0,
      stall: transmission?.stall ?? 0,
    };
  }

  // ---- events -------------------------------------------------------------------------------------

  private ready(events: number): void {
    this.progress = this.server.reckoning;
    switch (this.phase) {
      case 'handshake':
      case 'entering':
        this.readyToShake(events);
        break;
      case 'transmission':
      case 'draining':
        this.readyToTransmit(events);
        break;
      case 'closed':
        break;
      default:
        unreachable(this.phase);
    }
    if (!this.isClosed) this.adjust();
  }

  private readyToTransmit(events: number): void {
    const transmission = this.transmission!;
    if ((events & Ready.OUT) !== 0) transmission.writable();
    if (this.isClosed) return;
    if ((events & Ready.IN) !== 0 && transmission.stall === 0 && transmission.reading) transmission.receive();
    else if ((events & (Ready.HUP | Ready.ERR)) !== 0) this.close('the client went away');
    else if (!transmission.reading) this.finishIfIdle();
  }

  /** Follows what may happen next: watches for exactly that. */
  private adjust(): void {
    let wanted = 0;
    switch (this.phase) {
      case 'handshake':
        wanted = this.unsent.length > 0 ? Ready.OUT : Ready.IN;
        break;
      case 'entering':
        break;
      case 'transmission':
      case 'draining': {
        const { stall, reading } = this.transmission!;
        if (stall === 0 && reading) wanted |= Ready.IN;
        if ((stall & Stall.blocked) !== 0) wanted |= Ready.OUT;
        break;
      }
      case 'closed':
        return;
      default:
        unreachable(this.phase);
    }
    if (wanted === this.interest) return;
    this.interest = wanted;
    this.server.reactor.rewatch(this.tag, wanted);
  }

  // ---- handshake ----------------------------------------------------------------------------------

  private readyToShake(events: number): void {
    if (this.unsent.length > 0) {
      if ((events & Ready.OUT) !== 0) this.handshaken();
      else if ((events & (Ready.HUP | Ready.ERR)) !== 0) this.close('the client went away during the handshake');
      return;
    }
    if (this.phase === 'handshake' && (events & Ready.IN) !== 0) return this.receiveHandshake();
    if ((events & (Ready.HUP | Ready.ERR)) !== 0) this.close('the client went away during the handshake');
  }

  private receiveHandshake(): void {
    const { io, arena, limits } = this.server.shared;
    const n = io.recv(this.fd, SCRATCH_OFFSET, SCRATCH_BYTES);
    if (n === -Errno.EAGAIN) return;
    if (n < 0) return this.lost(n);
    if (n === 0) return this.close(this.received === 0 ? 'the client said nothing' : 'the client left during the handshake');
    this.received += n;
    if (this.received > limits.maxHandshakeBytes) return this.fail(`the handshake took more than ${limits.maxHandshakeBytes} bytes`);
    this.early = arena.u8.slice(SCRATCH_OFFSET, SCRATCH_OFFSET + n);
    this.handshaken();
  }

  /** Pushes what was received, sends what that gave, until one of them has to wait or the handshake is over. */
  private handshaken(): void {
    for (;;) {
      if (!this.sendUnsent()) return;
      if (this.handshake.outcome.kind === 'more' && this.early.length > 0) {
        this.early = this.early.subarray(this.handshake.push(this.early));
      }
      this.unsent = this.handshake.takeOutput();
      if (this.unsent.length === 0) break;
    }
    const { outcome } = this.handshake;
    switch (outcome.kind) {
      case 'more':
        break;
      case 'transmission':
        this.enter(outcome);
        break;
      case 'closed':
        if (outcome.code === 'abort') this.close(outcome.reason);
        else this.fail(outcome.reason);
        break;
      default:
        unreachable(outcome);
    }
  }

  /** True when nothing is left to send; false when it has to wait, or the connection was lost. */
  private sendUnsent(): boolean {
    const { io, arena } = this.server.shared;
    while (this.unsent.length > 0) {
      const bytes = Math.min(this.unsent.length, SCRATCH_BYTES);
      arena.u8.set(this.unsent.subarray(0, bytes), SCRATCH_OFFSET);
      const n = io.send(this.fd, SCRATCH_OFFSET, bytes);
      if (n === -Errno.EAGAIN) return false;
      if (n < 0) {
        this.lost(n);
        return false;
      }
      this.unsent = this.unsent.subarray(n);
    }
    return true;
  }

  private enter(outcome: ServerTransmission): void {
    // The directory that the handshake was given makes nothing else.
    const exported = outcome.export as DeviceExport;
    const { server } = this;
    const transmission = new Transmission(this, server.shared, exported, outcome);
    this.transmission = transmission;
    this.phase = 'entering';
    server.handshakeEnded(this);
    server.service.addClient(exported.device, this);
    server.log.info('NBD client attached', {
      peer: this.peer, export: exported.name, structuredReplies: outcome.structuredReplies, contexts: outcome.contexts.map((c) => c.name),
    });
    this.beginTransmission(transmission);
  }

  private beginTransmission(transmission: Transmission): void {
    if (this.isClosed) return;
    this.phase = 'transmission';
    if (this.early.length === 0) return;
    if (transmission.adopt(this.early)) {
      this.early = new Uint8Array(0);
      return;
    }
    this.phase = 'entering';
    this.starved();
  }

  // ---- for the server -----------------------------------------------------------------------------

  /** End of a tick in which this connection was touched. */
  endTick(): void {
    if (this.isClosed || this.transmission === undefined) return;
    const before = this.transmission.replies.queuedBytes;
    this.transmission.endTick();
    if (this.isClosed) return;
    if (this.transmission.replies.queuedBytes < before) this.progress = this.server.reckoning;
    if (!this.transmission.reading) this.finishIfIdle();
    if (!this.isClosed) this.adjust();
  }

  /** It is this connection's turn for slots and memory. */
  fed(): void {
    const transmission = this.transmission!;
    if (this.phase === 'entering') this.beginTransmission(transmission);
    else transmission.fed();
    if (!this.isClosed) this.adjust();
  }

  get isStarved(): boolean {
    return this.phase === 'entering' || (!this.isClosed && (this.transmission!.stall & Stall.starved) !== 0);
  }

  /** Requests taken in so far. */
  get intake(): number {
    return this.transmission!.requestCount;
  }

  /** Holds memory that only its client can free. */
  get holdsMemory(): boolean {
    const { transmission } = this;
    return transmission !== undefined && (transmission.input.awaitsPayload || (transmission.stall & Stall.blocked) !== 0);
  }

  get isClosed(): boolean {
    return this.phase === 'closed';
  }

  /** Closed, and nothing of it is left with the service. */
  get isGone(): boolean {
    return this.phase === 'closed' && (this.transmission?.underService ?? 0) === 0;
  }

  completed(slot: number): void {
    this.transmission!.completed(slot);
  }

  settled(): void {
    this.server.settled(this);
  }

  /** The server is being stopped: answers what is under way, then closes. */
  drain(): void {
    const { transmission } = this;
    if (this.isClosed) return;
    if (transmission === undefined || this.phase === 'entering') return this.close('the server is being stopped');
    transmission.stopReading('the server is being stopped');
    this.startDraining();
    this.finishIfIdle();
    if (!this.isClosed) this.adjust();
  }

  private startDraining(): void {
    if (this.phase === 'transmission') this.phase = 'draining';
  }

  private finishIfIdle(): void {
    this.startDraining();
    if (this.transmission!.idle) this.close(this.transmission!.endReason);
  }

  // ---- for the transmission, and for the group ----------------------------------------------------

  touched(): void {
    if (!this.isTouched && !this.isClosed) this.server.touch(this);
  }

  starved(): void {
    this.server.starve(this);
  }

  disconnect(reason: string): void {
    this.close(reason);
  }

  fail(reason: string): void {
    this.close(reason, true);
  }

  lost(result: number): void {
    this.close(`the connection was lost: ${errnoText(-result)}`);
  }

  /** Idempotent. `wrong`: the client broke the protocol. */
  close(reason: string, wrong = false): void {
    if (this.isClosed) return;
    const wasHandshake = this.phase === 'handshake';
    this.phase = 'closed';
    this.server.reactor.unwatch(this.tag);
    this.server.shared.io.close(this.fd);
    const { transmission, server } = this;
    const fields = { peer: this.peer, reason, export: transmission?.exported.name, requests: transmission?.requestCount ?? 0 };
    if (wrong) server.complaints.warn('NBD connection closed', fields);
    else if (wasHandshake) server.log.debug('NBD connection closed', fields);
    else server.log.info('NBD connection closed', fields);
    if (transmission !== undefined) {
      transmission.dispose();
      server.service.removeClient(transmission.exported.device, this);
    }
    this.early = this.unsent = new Uint8Array(0);
    server.closed(this);
  }
}
