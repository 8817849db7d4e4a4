/**
 * One stream socket that carries frames both ways.
 *
 * Owns: the descriptor, the receive window, readiness, the numbers of received
 * frames. Must not know: who the peer is, what a frame means; sending is
 * outbox.ts.
 *
 * Neither direction blocks. A frame is offered to the handler when all of it has
 * arrived and its checksums are right; one that the handler does not take stops
 * receiving until `resume`, so that TCP holds the peer back.
 */

import { assert } from '../base/assert.js';
import { Errno, PeerError, errnoText } from '../base/errors.js';
import { Ready } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import type { SessionKeys } from './hello.js';
import type { FrameType, Message, MessageName } from './message.js';
import {
  carriesMac, checkFrameBody, checkFrameHeader, encodeMessage, frame, FRAME_HEADER_BYTES, FrameType as Type, frameTypeName, MAC_BYTES,
} from './message.js';
import { LinkCounters, Outbox, SMALL_BYTES } from './outbox.js';
import type { LinkWindows } from './windows.js';
import { isShort, takeLarge } from './windows.js';

export interface FrameHandler {
  /** A connection that was being made stands. */
  connected(): void;
  /**
   * A whole frame whose checksums are right (of a batch: the header's): body without its signature at arena offset
   * `at`, borrowed. False: not now; the same frame is offered again by `resume`. May throw PeerError.
   */
  frame(type: number, at: number, bytes: number, durableLsn: number): boolean;
  /** The frames that one receive brought have been offered: the moment to answer them all at once. */
  delivered(): void;
  /** The socket takes bytes again and nothing is queued any more. */
  drained(): void;
  /** The connection is of no more use: the handler must close it, or let it linger. Not called after that. */
  ended(error: PeerError): void;
}

const FIRST_WINDOW_BYTES = 4096;
/** How often a connection looks again whether there is room for the frame that comes. */
const ROOM_US = 10_000;
/** Arena bytes that a connection holds until it receives more than that at a time. */
export const CONNECTION_ARENA_BYTES = FIRST_WINDOW_BYTES + SMALL_BYTES;

export class Connection {
  readonly outbox: Outbox;
  keys: SessionKeys | undefined;
  lastReceivedUs: number;
  /** Called once the descriptor is gone, however it came to that. */
  onClosed: () => void = () => undefined;

  private state: 'new' | 'connecting' | 'open' | 'lingering' | 'closed' = 'new';
  private tag = -1;
  private interest = 0;
  private paused = false;
  private delivering = false;
  private drainedWanted = false;
  private window = -1;
  private windowBytes = 0;
  /** The window, as large as it is, has brought a whole frame. */
  private spent = false;
  private head = 0;
  private tail = 0;
  private headerChecked = false;
  private nextNumber = 0;
  private lingerTimer: TimerId | undefined;
  /** Set while a frame waits for a window. */
  private roomTimer: TimerId | undefined;
  /** Bytes that one recv may bring: fairness between connections. */
  private receiveBytes = FIRST_WINDOW_BYTES;
  private windows: LinkWindows | undefined;
  /** Bit per frame type that may come now. */
  private allowed = 0;

  constructor(private readonly reactor: Reactor, private readonly fd: number, private readonly handler: FrameHandler) {
    this.outbox = new Outbox(reactor, fd, new LinkCounters());
    this.lastReceivedUs = reactor.nowUs;
  }

  /** Takes the descriptor over, also when it throws: PeerError when the arena is full. `connecting`: `connect` was just called. */
  start(connecting: boolean): void {
    const { arena, io } = this.reactor;
    this.window = arena.alloc(FIRST_WINDOW_BYTES);
    if (this.window < 0 || !this.outbox.start()) {
      this.state = 'closed';
      this.release();
      io.close(this.fd);
      throw new PeerError('link/no-memory', 'the arena has no room for another link');
    }
    this.windowBytes = FIRST_WINDOW_BYTES;
    this.state = connecting ? 'connecting' : 'open';
    this.interest = connecting ? Ready.OUT : Ready.IN;
    this.tag = this.reactor.watch(this.fd, this.interest, (events) => this.ready(events));
  }

  get open(): boolean {
    return this.state === 'open';
  }

  /** A frame can go out at once. */
  get idle(): boolean {
    return this.state === 'open' && this.outbox.empty && this.outbox.failure === undefined;
  }

  get isPaused(): boolean {
    return this.paused;
  }

  get peerName(): string {
    return this.state === 'closed' ? '' : this.reactor.io.peerName(this.fd);
  }

  /** From now on (and for what was so far) the bytes count there. */
  countInto(counters: LinkCounters): void {
    counters.add(this.outbox.counters);
    this.outbox.counters = counters;
  }

  /** Which frame types may come from now on; others close the connection. */
  allow(...types: FrameType[]): void {
    this.allowed = types.reduce((bits, type) => bits | (1 << type), 0);
  }

  /** Sizes of the socket's buffers; a refusal does not matter. 0 leaves them to the kernel, which adapts them itself. */
  setBuffers(bytes: number): void {
    if (bytes > 0) this.reactor.io.setBuffers(this.fd, bytes, bytes);
  }

  /** Receives up to `bytes` at a time from now on, into `windows` if there are any; less while the arena has no room. */
  setReceiveBytes(bytes: number, windows?: LinkWindows): void {
    this.receiveBytes = bytes;
    this.windows = windows;
    if (this.windowBytes < bytes) this.resize(bytes);
  }

  /** Holds more than its window and cannot go on: for a frame that is not taken, or (`stuckUs`) one that the peer does not receive. */
  hoards(stuckUs: number): boolean {
    return (this.paused && this.windowBytes > this.receiveBytes) || (this.outbox.holdsRest && this.reactor.nowUs - this.outbox.lastSentUs > stuckUs);
  }

  private ready(events: number): void {
    if (this.state === 'connecting') {
      const error = this.reactor.io.socketError(this.fd);
      if (error !== 0) {
        this.handler.ended(new PeerError('link/unreachable', `it cannot be reached: ${errnoText(Math.abs(error))}`));
        return;
      }
      this.state = 'open';
      this.lastReceivedUs = this.reactor.nowUs;
      this.updateInterest();
      this.handler.connected();
      return;
    }
    if ((events & Ready.OUT) !== 0 && this.state === 'open') this.writable();
    if ((events & (Ready.IN | Ready.HUP | Ready.ERR)) !== 0 && this.state !== 'closed') this.readable();
  }

  private writable(): void {
    const empty = this.outbox.empty || this.outbox.flush();
    if (!this.settle() || !empty) return;
    this.drainedWanted = false;
    this.updateInterest();
    this.handler.drained();
  }

  // ---- receiving ----------------------------------------------------------------------------------------

  private readable(): void {
    const { io } = this.reactor;
    if (this.state === 'lingering') {
      // What the peer still sends is of no interest; reading it lets our last words arrive instead of a reset.
      const count = io.recv(this.fd, this.window, this.windowBytes);
      if (count <= 0 && count !== -Errno.EAGAIN && count !== -Errno.EINTR) this.close();
      return;
    }
    if (this.paused || this.roomTimer !== undefined) {
      // Only a hang-up or an error is reported now.
      const error = io.socketError(this.fd);
      this.lost(`the connection was lost: ${error !== 0 ? errnoText(Math.abs(error)) : 'the peer hung up'}`);
      return;
    }
    if (this.head > 0 && this.windowBytes - this.tail < this.receiveBytes / 4) this.compact();
    const count = io.recv(this.fd, this.window + this.tail, Math.min(this.windowBytes - this.tail, this.receiveBytes));
    if (count === -Errno.EAGAIN || count === -Errno.EINTR) return;
    if (count < 0) {
      this.lost(`the connection was lost: ${errnoText(-count)}`);
    } else if (count === 0) {
      this.lost(this.head === this.tail ? 'the peer closed the connection' : 'the peer closed the connection in the middle of a frame');
    } else {
      this.tail += count;
      this.outbox.counters.wireBytesReceived += count;
      this.lastReceivedUs = this.reactor.nowUs;
      this.deliver();
    }
  }

  private lost(sentence: string): void {
    this.handler.ended(new PeerError('link/lost', sentence));
  }

  private deliver(): void {
    assert(!this.delivering, 'frames are delivered within a frame');
    this.delivering = true;
    try {
      while (this.state === 'open' && !this.paused && this.next()) continue;
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
      if (this.state === 'open') this.handler.ended(error);
    } finally {
      this.delivering = false;
    }
    if (this.head === this.tail) this.head = this.tail = 0;
    if (this.state !== 'open') return;
    if (this.tail === this.head) this.giveBack();
    this.handler.delivered();
  }

  /** One frame; false when it is not complete, or was not taken. */
  private next(): boolean {
    const { view } = this.reactor.arena;
    const have = this.tail - this.head;
    if (have < FRAME_HEADER_BYTES) {
      if (this.head + FRAME_HEADER_BYTES > this.windowBytes) this.compact();
      return false;
    }
    const at = this.window + this.head;
    const type = frame.type(view, at);
    if (!this.headerChecked) {
      checkFrameHeader(this.reactor, at, this.nextNumber);
      if ((this.allowed & (1 << type)) === 0) throw new PeerError('link/unexpected', `a ${frameTypeName(type)} frame came where none may come`);
      this.headerChecked = true;
    }
    const bytes = frame.bodyBytes(view, at);
    const whole = FRAME_HEADER_BYTES + bytes;
    if (have < whole) {
      // In turn with others that wait for such a window.
      if (this.giveBack() && whole > this.windowBytes) this.waitForRoom(whole);
      else if (whole > this.windowBytes) this.awaitRoom(whole);
      else if (this.head + whole > this.windowBytes) this.compact();
      return false;
    }
    if (type !== Type.batch) checkFrameBody(this.reactor, at, at + FRAME_HEADER_BYTES);
    const signed = carriesMac(type);
    if (signed) this.checkMac(at, bytes);
    if (!this.handler.frame(type, at + FRAME_HEADER_BYTES, signed ? bytes - MAC_BYTES : bytes, frame.durable(view, at))) {
      this.paused = true;
      if (this.state === 'open') this.updateInterest();
      return false;
    }
    this.head += whole;
    this.spent = true;
    this.headerChecked = false;
    this.nextNumber = (this.nextNumber + 1) >>> 0;
    this.outbox.counters.framesReceived++;
    return true;
  }

  private checkMac(at: number, bytes: number): void {
    const { u8 } = this.reactor.arena;
    const body = at + FRAME_HEADER_BYTES;
    if (bytes < MAC_BYTES) throw new PeerError('link/garbage', 'a message without its signature');
    const end = body + bytes - MAC_BYTES;
    if (this.keys === undefined || !this.keys.verify(u8.subarray(at + 8, at + 28), u8.subarray(body, end), u8.subarray(end, end + MAC_BYTES))) {
      throw new PeerError('link/forged', 'the signature of a message is wrong');
    }
  }

  /** Offers the held frame again, and goes on receiving if it is taken. */
  resume(): void {
    if (!this.paused || this.state !== 'open') return;
    this.paused = false;
    this.lastReceivedUs = this.reactor.nowUs;
    this.updateInterest();
    this.deliver();
  }

  private compact(): void {
    this.reactor.arena.u8.copyWithin(this.window, this.window + this.head, this.window + this.tail);
    this.tail -= this.head;
    this.head = 0;
  }

  /** A frame of `bytes` comes: receives on when there is a window for it. Others that hold the memory end: TCP holds the peer back meanwhile. */
  private awaitRoom(bytes: number): void {
    if (!this.resize(bytes)) this.waitForRoom(bytes);
  }

  private waitForRoom(bytes: number): void {
    this.roomTimer = this.reactor.after(ROOM_US, () => {
      this.roomTimer = undefined;
      this.lastReceivedUs = this.reactor.nowUs;
      this.awaitRoom(bytes);
      this.updateInterest();
    });
    this.updateInterest();
  }

  /** Exchanges a larger window that has served its frame for one of the usual size, when others may need it. False: there is none to give. */
  private giveBack(): boolean {
    const { arena } = this.reactor;
    return this.spent && this.windowBytes > this.receiveBytes && this.tail - this.head <= this.receiveBytes && isShort(arena) && this.resize(this.receiveBytes);
  }

  /** Another window with the same bytes; false when there is no room. */
  private resize(bytes: number): boolean {
    const { arena } = this.reactor;
    const other = this.windows !== undefined ? this.windows.take(bytes) : bytes <= FIRST_WINDOW_BYTES ? arena.alloc(bytes) : takeLarge(arena, bytes);
    if (other < 0) return false;
    arena.u8.copyWithin(other, this.window + this.head, this.window + this.tail);
    arena.release(this.window);
    this.window = other;
    this.windowBytes = arena.sizeOf(other);
    this.spent = false;
    this.tail -= this.head;
    this.head = 0;
    return true;
  }

  // ---- sending ------------------------------------------------------------------------------------------

  send<N extends MessageName>(name: N, message: Message<N>, durableLsn: number): void {
    this.sendFrame(Type[name], encodeMessage(name, message), durableLsn);
  }

  /** For `fetched` and `heartbeat`. */
  sendEmpty(type: FrameType, durableLsn: number): void {
    this.sendFrame(type, NOTHING, durableLsn);
  }

  private sendFrame(type: FrameType, body: Uint8Array, durableLsn: number): void {
    if (this.state !== 'open') return;
    this.outbox.put(type, body, durableLsn, this.keys);
    this.settle();
  }

  sendAck(received: number, durable: number, applied: number, flags: number): void {
    if (this.state !== 'open') return;
    this.outbox.putAck(received, durable, applied, flags);
    this.settle();
  }

  /** Outbox.sendNow; when the socket takes nothing, `drained` will tell. */
  sendNow(count: number, bytes: number): boolean {
    const taken = this.outbox.sendNow(count, bytes);
    if (!taken) this.drainedWanted = true;
    this.settle();
    return taken;
  }

  /** Outbox.flush; when something is left, `drained` will tell. */
  flush(): boolean {
    const empty = this.outbox.flush();
    return this.settle() && empty;
  }

  /** After every send. False when the connection is over. */
  private settle(): boolean {
    if (this.state !== 'open') return false;
    if (this.outbox.failure !== undefined) {
      this.handler.ended(this.outbox.failure);
      return false;
    }
    this.updateInterest();
    return true;
  }

  private updateInterest(): void {
    if (this.tag < 0) return;
    let wanted = (this.paused || this.roomTimer !== undefined) && this.state === 'open' ? 0 : Ready.IN;
    if (this.state === 'open' && (this.drainedWanted || !this.outbox.empty)) wanted |= Ready.OUT;
    if (wanted === this.interest) return;
    this.interest = wanted;
    this.reactor.rewatch(this.tag, wanted);
  }

  // ---- end ----------------------------------------------------------------------------------------------

  /**
   * Ends the connection so that what was just sent arrives: reads and discards until the peer closes, for at most
   * `lingerUs`. If the socket would not take all of it, closes at once: the queue names ranges that their owners are
   * about to release.
   */
  linger(lingerUs: number): void {
    if (this.state !== 'open' || !this.outbox.empty || this.outbox.failure !== undefined) {
      this.close();
      return;
    }
    this.state = 'lingering';
    if (this.roomTimer !== undefined) this.reactor.cancel(this.roomTimer);
    this.roomTimer = undefined;
    // What comes is thrown away; the window is for the next connection.
    this.head = this.tail = 0;
    this.windows = undefined;
    this.resize(FIRST_WINDOW_BYTES);
    this.updateInterest();
    this.lingerTimer = this.reactor.after(lingerUs, () => this.close());
  }

  /** Closes at once. Idempotent; the handler is not told, `onClosed` is. */
  close(): void {
    if (this.state === 'closed') return;
    this.state = 'closed';
    if (this.lingerTimer !== undefined) this.reactor.cancel(this.lingerTimer);
    if (this.roomTimer !== undefined) this.reactor.cancel(this.roomTimer);
    if (this.tag >= 0) this.reactor.unwatch(this.tag);
    this.tag = -1;
    this.reactor.io.close(this.fd);
    this.release();
    this.onClosed();
  }

  private release(): void {
    this.outbox.close();
    if (this.window >= 0) this.reactor.arena.release(this.window);
    this.window = -1;
  }
}

const NOTHING = new Uint8Array(0);
