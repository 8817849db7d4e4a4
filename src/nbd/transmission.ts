/**
 * The transmission phase of one connection: requests in, replies out.
 *
 * Owns: parsing, validation, the slots of this connection's requests, its
 * replies and its back-pressure. Must not know: how the handshake went, how
 * connections are watched and closed (connection.ts), how a device is stored.
 *
 * This is the hot path: numbers in typed arrays, nothing allocated per request.
 * (NBD specification, "Transmission phase"; DESIGN §7.)
 */

import { Errno } from '../base/errors.js';
import { RequestFlag, RequestKind } from '../group/requests/requests.js';
import type { RequestTable } from '../group/requests/requests.js';
import type { BlockService } from '../group/requests/service.js';
import {
  ERROR_CHUNK_BYTES, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ,
  NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_REPLY_FLAG_DONE, OFFSET_DATA_HEADER_BYTES, REQUEST_BYTES, REQUEST_FATAL_NONE,
  SIMPLE_REPLY_BYTES, putErrorChunk, putOffsetDataHeader, putSimpleReply, requestCookieHi, requestCookieLo, requestFatal, requestFatalText,
  requestFlags, requestLength, requestOffset, requestType, validateRequest,
} from '../vendor/nbd-protocol-ts/index.js';
import type { ServerTransmission, SessionFacts } from '../vendor/nbd-protocol-ts/index.js';
import { DeviceFacts, wireErrno } from './export.js';
import type { DeviceExport } from './export.js';
import { Stall } from './host.js';
import type { TransmissionHost } from './host.js';
import { NO_MEMORY, Receiver } from './receive.js';
import { BLOCKED, FLUSHED, ReplyQueue } from './reply.js';
import type { Shared } from './shared.js';

export class Transmission {
  readonly replies: ReplyQueue;
  readonly input: Receiver;
  /** Bits of Stall; 0: requests are taken. */
  stall = 0;
  /** False after DISC or the end of the stream: what is under way is answered, nothing more is taken. */
  reading = true;
  /** Why `reading` is false, as a sentence. */
  endReason = '';
  /** Slots and BLOCK_STATUS calls that the service has not answered. */
  underService = 0;
  /** Requests taken in, refused ones included. */
  requestCount = 0;

  private readonly facts = new DeviceFacts();
  private readonly session: SessionFacts;
  private readonly structured: boolean;
  private readonly readHeaderBytes: number;
  private readonly table: RequestTable;
  private readonly service: BlockService;
  private payloadBytes = 0;
  private disposed = false;
  private parsing = false;
  // The error that answers a refused WRITE, once its payload has been thrown away.
  private refusedErrno = 0;
  private refusedHi = 0;
  private refusedLo = 0;

  constructor(
    private readonly host: TransmissionHost,
    private readonly shared: Shared,
    readonly exported: DeviceExport,
    readonly outcome: ServerTransmission,
  ) {
    const { io, arena, limits } = shared;
    this.replies = new ReplyQueue(io, arena, limits.maxInFlight);
    this.input = new Receiver(io, arena, shared.receiveChunk, shared.held);
    this.session = { structuredReplies: outcome.structuredReplies, contextCount: outcome.contexts.length };
    this.structured = outcome.structuredReplies;
    this.readHeaderBytes = this.structured ? OFFSET_DATA_HEADER_BYTES : SIMPLE_REPLY_BYTES;
    this.service = shared.service;
    this.table = shared.service.requests;
  }

  /** Everything taken in was answered and sent. */
  get idle(): boolean {
    return this.replies.pending === 0;
  }

  // ---- receiving ----------------------------------------------------------------------------------

  /** The socket is readable: takes at most `limits.tickBytes` of it. */
  receive(): void {
    let budget = this.shared.limits.tickBytes;
    while (budget > 0 && this.stall === 0 && this.reading) {
      const n = this.input.receive(this.host.fd, budget);
      if (n > 0) {
        budget -= n;
        this.received();
        if (this.disposed || n < this.input.asked) return;
      } else if (n === -Errno.EAGAIN) {
        return;
      } else if (n === NO_MEMORY) {
        return this.starve();
      } else if (n < 0) {
        return this.host.lost(n);
      } else if (this.input.midRequest) {
        return this.host.fail('the client closed the connection in the middle of a request');
      } else {
        return this.stopReading('the client closed the connection');
      }
    }
  }

  private received(): void {
    const { input } = this;
    if (input.payloadSlot >= 0) {
      if (input.payloadLeft === 0) this.submit(input.takePayload());
    } else if (input.refusing) {
      if (input.refusedLeft > 0) return;
      input.refusing = false;
      this.answerError(NBD_CMD_WRITE, this.refusedErrno, this.refusedHi, this.refusedLo);
    } else {
      this.serve();
    }
  }

  /** Requests that came behind the handshake, before anything is received; false when there is no memory now. */
  adopt(bytes: Uint8Array): boolean {
    if (!this.input.adopt(bytes)) return false;
    this.serve();
    return true;
  }

  /** Nothing more is taken; the host closes when `idle`, for `reason`. */
  stopReading(reason: string): void {
    this.reading = false;
    this.endReason = reason;
    this.host.touched();
  }

  /** Serves the requests that are here, as far as back-pressure allows. */
  private serve(): void {
    this.parsing = true;
    this.parse();
    this.parsing = false;
    if (!this.disposed) this.input.settle();
  }

  private parse(): void {
    const { input, replies } = this;
    const { view } = this.shared.arena;
    while (input.end - input.pos >= REQUEST_BYTES && this.stall === 0 && this.reading && !this.disposed) {
      const at = input.pos;
      const fatal = requestFatal(view, at);
      if (fatal !== REQUEST_FATAL_NONE) return this.host.fail(requestFatalText(fatal));
      const type = requestType(view, at);
      if (type === NBD_CMD_DISC) {
        input.pos = input.end;
        return this.stopReading('the client disconnected');
      }
      if (!replies.admit()) {
        if (replies.starving) this.starve();
        else this.stall |= Stall.full;
        return;
      }
      const flags = requestFlags(view, at);
      const hi = requestCookieHi(view, at);
      const lo = requestCookieLo(view, at);
      const offset = requestOffset(view, at);
      const length = requestLength(view, at);
      const device = this.exported.device;
      let errno: number = Errno.ESHUTDOWN;
      if (!device.gone) {
        this.facts.refresh(device);
        errno = validateRequest(this.facts, this.session, type, flags, offset, length);
      }
      if (errno !== 0) {
        this.refuse(type, errno, hi, lo, length);
        continue;
      }
      const fua = (flags & NBD_CMD_FLAG_FUA) !== 0 ? RequestFlag.fua : 0;
      switch (type) {
        case NBD_CMD_READ:
          this.read(hi, lo, offset, length);
          break;
        case NBD_CMD_WRITE:
          this.write(fua, hi, lo, offset, length);
          break;
        case NBD_CMD_FLUSH:
          this.plain(RequestKind.flush, 0, hi, lo, 0, 0);
          break;
        case NBD_CMD_TRIM:
        case NBD_CMD_WRITE_ZEROES:
          // NO_HOLE and FAST_ZERO ask for nothing that is not so anyway: a map entry, with nothing to preallocate.
          this.plain(RequestKind.zero, fua, hi, lo, offset, length);
          break;
        case NBD_CMD_CACHE:
          this.plain(RequestKind.cache, 0, hi, lo, offset, length);
          break;
        case NBD_CMD_BLOCK_STATUS:
          this.blockStatus((flags & NBD_CMD_FLAG_REQ_ONE) !== 0, hi, lo, offset, length);
          break;
        default:
          this.refuse(type, Errno.EINVAL, hi, lo, length);
      }
    }
  }

  // ---- one request of each kind: takes it from the input, or stalls and leaves it there ------------

  private read(hi: number, lo: number, offset: number, length: number): void {
    const { replies, shared } = this;
    if (replies.readBytes > 0 && replies.readBytes + length > shared.replyQuota) {
      this.stall |= Stall.full;
      return;
    }
    const slot = this.slot(RequestKind.read, 0, hi, lo, offset, length);
    if (slot < 0) return;
    const { table } = this;
    if (length >= shared.limits.largeReadBytes) {
      const block = shared.allocate(length);
      if (block < 0) return this.giveBack(slot);
      table.buffer[slot] = block;
      table.ownerWord[slot] = block;
      replies.readBytes += length;
    } else {
      // Header and data lie together, so that a burst of small reads is one range.
      const chunk = shared.sendChunk;
      const bytes = this.readHeaderBytes + length;
      const at = chunk.reserve(bytes);
      if (at < 0) return this.giveBack(slot);
      chunk.take(bytes);
      shared.arena.retain(chunk.block);
      table.buffer[slot] = at + this.readHeaderBytes;
      table.ownerWord[slot] = chunk.block;
      replies.readBytes += bytes;
    }
    this.take();
    this.input.pos += REQUEST_BYTES;
    this.input.ahead = true;
    this.submit(slot);
  }

  private write(fua: number, hi: number, lo: number, offset: number, length: number): void {
    const { input, shared, table } = this;
    if (this.payloadBytes > 0 && this.payloadBytes + length > shared.payloadQuota) {
      this.stall |= Stall.full;
      return;
    }
    const slot = this.slot(RequestKind.write, fua, hi, lo, offset, length);
    if (slot < 0) return;
    const at = input.pos + REQUEST_BYTES;
    if (input.end - at >= length) {
      shared.arena.retain(input.block);
      table.buffer[slot] = at;
      table.ownerWord[slot] = input.block;
      input.pos = at + length;
      input.ahead = true;
      this.payloadBytes += length;
      this.take();
      this.submit(slot);
      return;
    }
    const block = shared.allocate(length);
    if (block < 0) return this.giveBack(slot);
    table.buffer[slot] = block;
    table.ownerWord[slot] = block;
    input.pos = at;
    input.ahead = length < shared.limits.largeWriteBytes;
    input.beginPayload(slot, block, length);
    this.payloadBytes += length;
    this.take();
  }

  /** A request without data in either direction. */
  private plain(kind: number, flags: number, hi: number, lo: number, offset: number, length: number): void {
    const slot = this.slot(kind, flags, hi, lo, offset, length);
    if (slot < 0) return;
    this.take();
    this.input.pos += REQUEST_BYTES;
    this.input.ahead = true;
    this.submit(slot);
  }

  private blockStatus(one: boolean, hi: number, lo: number, offset: number, length: number): void {
    const call = this.shared.statusCalls.take(this.outcome.contexts.length);
    if (call === undefined) return this.starve();
    this.take();
    this.underService++;
    this.input.pos += REQUEST_BYTES;
    this.input.ahead = true;
    call.start(this, one, hi, lo, offset, length);
  }

  private take(): void {
    this.replies.pending++;
    this.requestCount++;
  }

  /** Answers `errno` at once, or when the payload of a WRITE has passed by. */
  private refuse(type: number, errno: number, hi: number, lo: number, length: number): void {
    this.input.pos += REQUEST_BYTES;
    this.take();
    if (type !== NBD_CMD_WRITE || this.input.refuse(length)) return this.answerError(type, errno, hi, lo);
    this.refusedErrno = errno;
    this.refusedHi = hi;
    this.refusedLo = lo;
  }

  private slot(kind: number, flags: number, hi: number, lo: number, offset: number, length: number): number {
    const { table } = this;
    const slot = table.alloc(this.shared.owner);
    if (slot < 0) {
      this.starve();
      return -1;
    }
    table.kind[slot] = kind;
    table.flags[slot] = flags;
    table.device[slot] = this.exported.device.id;
    table.offset[slot] = offset;
    table.length[slot] = length;
    table.connection[slot] = this.host.index;
    table.cookieHi[slot] = hi;
    table.cookieLo[slot] = lo;
    return slot;
  }

  /** The slot got no memory: the request stays in the input. */
  private giveBack(slot: number): void {
    this.table.free(slot);
    this.starve();
  }

  private submit(slot: number): void {
    this.underService++;
    this.service.submit(this.exported.device, slot);
  }

  private starve(): void {
    this.stall |= Stall.starved;
    this.host.starved();
  }

  // ---- answering ----------------------------------------------------------------------------------

  /** The service answered `slot`: queues the reply and frees the slot. */
  completed(slot: number): void {
    const { table, replies, shared } = this;
    const { view } = shared.arena;
    const kind = table.kind[slot];
    const errno = wireErrno(table.errno[slot]);
    const block = table.ownerWord[slot];
    const length = table.length[slot];
    const hi = table.cookieHi[slot];
    const lo = table.cookieLo[slot];
    const buffer = table.buffer[slot];
    const offset = table.offset[slot];
    table.free(slot);
    this.underService--;
    if (this.disposed) {
      if (kind === RequestKind.read || kind === RequestKind.write) shared.arena.release(block);
      if (this.underService === 0) this.host.settled();
      return;
    }
    if (kind === RequestKind.read) {
      if (errno !== 0) {
        replies.readBytes -= buffer === block ? length : length + this.readHeaderBytes;
        shared.arena.release(block);
        return this.answerError(NBD_CMD_READ, errno, hi, lo);
      }
      const own = buffer === block;
      const at = own ? replies.headerAt() : buffer - this.readHeaderBytes;
      if (this.structured) putOffsetDataHeader(view, at, NBD_REPLY_FLAG_DONE, hi, lo, offset, length);
      else putSimpleReply(view, at, 0, hi, lo);
      if (own) {
        replies.pushHeader(this.readHeaderBytes, 0);
        replies.pushData(block, length, block, 1);
      } else {
        replies.pushData(at, this.readHeaderBytes + length, block, 1);
      }
    } else {
      if (kind === RequestKind.write) {
        this.payloadBytes -= length;
        shared.arena.release(block);
      }
      replies.pushHeader(putSimpleReply(view, replies.headerAt(), errno, hi, lo), 1);
    }
    this.queued();
  }

  private answerError(type: number, errno: number, hi: number, lo: number): void {
    const { replies } = this;
    const { view } = this.shared.arena;
    // READ and BLOCK_STATUS are always answered in structured form once that was negotiated ("Structured replies").
    if (this.structured && (type === NBD_CMD_READ || type === NBD_CMD_BLOCK_STATUS)) {
      putErrorChunk(view, replies.headerAt(), NBD_REPLY_FLAG_DONE, hi, lo, errno);
      replies.pushHeader(ERROR_CHUNK_BYTES, 1);
    } else {
      replies.pushHeader(putSimpleReply(view, replies.headerAt(), errno, hi, lo), 1);
    }
    this.queued();
  }

  /** A BLOCK_STATUS call was answered: an errno, or `length` bytes of chunks in `block`, whose reference is taken over. */
  statusAnswered(errno: number, hi: number, lo: number, block: number, length: number): void {
    this.underService--;
    if (this.disposed) {
      this.shared.arena.release(block);
      if (this.underService === 0) this.host.settled();
      return;
    }
    if (errno !== 0) {
      this.shared.arena.release(block);
      return this.answerError(NBD_CMD_BLOCK_STATUS, wireErrno(errno), hi, lo);
    }
    this.replies.readBytes += length;
    this.replies.pushData(block, length, block, 1);
    this.queued();
  }

  private queued(): void {
    if (this.parsing && this.stall === 0 && this.replies.queuedBytes >= this.shared.limits.flushBytes) this.flush();
    this.host.touched();
  }

  /** Sends what is queued. */
  flush(): void {
    const result = this.replies.flush(this.host.fd);
    if (result === FLUSHED) this.stall &= ~Stall.blocked;
    else if (result === BLOCKED) this.stall |= Stall.blocked;
    else this.host.lost(result);
  }

  // ---- back-pressure ------------------------------------------------------------------------------

  /** End of a tick in which something was answered: send, then serve what had to wait for it. */
  endTick(): void {
    if ((this.stall & Stall.blocked) === 0) this.flush();
    if (this.disposed) return;
    if ((this.stall & Stall.blocked) !== 0) this.replies.compact();
    this.resume();
  }

  /** The socket takes replies again. */
  writable(): void {
    this.flush();
    if (!this.disposed) this.resume();
  }

  /** It is this connection's turn for slots and memory; it is still `starved` afterwards if it got too little. */
  fed(): void {
    // To go on receiving without room would only bring it back here at once, over and over.
    if (this.input.unparsed === 0 && !this.input.hasRoom) return;
    this.stall &= ~Stall.starved;
    this.resume();
  }

  private resume(): void {
    if ((this.stall & Stall.blocked) !== 0) return;
    this.stall &= ~Stall.full;
    if (this.stall === 0 && this.input.unparsed > 0 && this.reading) this.serve();
  }

  /** Gives memory back; what the service still has is given back as it is answered. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.reading = false;
    const slot = this.input.dispose();
    if (slot >= 0) this.table.free(slot);
    this.replies.dispose();
  }
}
