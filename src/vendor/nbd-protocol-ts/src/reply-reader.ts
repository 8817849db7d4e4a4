/**
 * Takes the server's side of the transmission phase apart, in whatever pieces it
 * arrives, and fills in the requests that wait for it. Data of a READ is copied
 * once, straight to its destination. Owns the rules a server has to keep; knows
 * nothing of streams, promises or sending.
 */
import {
  NBD_CMD_BLOCK_STATUS, NBD_CMD_READ, NBD_EINVAL, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR_BIT,
  NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_BYTES, STRUCTURED_HEADER_BYTES,
} from './constants.js';
import { Collector, decodeString, viewOf } from './bytes.js';
import {
  blockStatusContextId, chunkFlags, chunkLength, chunkOffset, chunkType, ERROR_CHUNK_BYTES, errorChunkErrno, errorChunkMessageLength,
  extentCount, holeLength, OFFSET_DATA_HEADER_BYTES, OFFSET_HOLE_BYTES, replyCookieHi, replyCookieLo, replyMagic, simpleReplyErrno,
} from './reply.js';

/** Longest chunk that is neither data nor a hole: error texts, block status (8 bytes an extent). */
export const MAX_CHUNK_BYTES = 1024 * 1024;

export interface Extent {
  /** Bytes. */
  readonly length: number;
  /** As the context defines; for base:allocation NBD_STATE_.... */
  readonly status: number;
}

/** A request that was sent, and what has come in for it. */
export interface PendingReply {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** Where the data of a READ goes; `length` bytes. Undefined for other requests. */
  readonly into: Uint8Array | undefined;
  /** Of a READ: which parts have come. */
  readonly coverage: Coverage;
  /** Of a BLOCK_STATUS: extents by context id. */
  readonly statuses: Map<number, Extent[]>;
  /** Of the first error chunk, or of a simple reply; 0 while there is none. */
  errno: number;
  message: string;
}

export interface ReplySink {
  /** The request with this cookie, or undefined if there is none under way. */
  pending(cookieHi: number, cookieLo: number): PendingReply | undefined;
  /** The reply is complete; `errno` and the data are final. The cookie is free again. */
  replied(cookieHi: number, cookieLo: number, reply: PendingReply): void;
}

/** Disjoint ranges of a request that have been received. */
export class Coverage {
  /** Start and end of each range, ascending. */
  private readonly ranges: { from: number; to: number }[] = [];
  private total = 0;

  /** Bytes covered. */
  get bytes(): number {
    return this.total;
  }

  /** False, and nothing is added, when [from, to) overlaps what was added before. */
  add(from: number, to: number): boolean {
    let low = 0;
    let high = this.ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.ranges[middle].to <= from) low = middle + 1;
      else high = middle;
    }
    if (low < this.ranges.length && this.ranges[low].from < to) return false;
    this.total += to - from;
    // In order is the normal case: then one range grows.
    if (low > 0 && this.ranges[low - 1].to === from) this.ranges[low - 1].to = to;
    else this.ranges.splice(low, 0, { from, to });
    return true;
  }
}

export class ReplyReader {
  private readonly input = new Collector();
  private readonly sink: ReplySink;
  private readonly structuredReplies: boolean;
  private current: PendingReply | undefined;
  /** Data that is being copied: where to, and how much is still to come. */
  private dataAt = 0;
  private dataLeft = 0;
  private cookieHi = 0;
  private cookieLo = 0;
  private done = false;
  private broken: string | undefined;

  constructor(sink: ReplySink, structuredReplies: boolean) {
    this.sink = sink;
    this.structuredReplies = structuredReplies;
    this.input.expect(SIMPLE_REPLY_BYTES);
  }

  /** Why the server broke the protocol, as a sentence: close the connection. Undefined while it has not. */
  get problem(): string | undefined {
    return this.broken;
  }

  /** Takes received bytes (borrowed). After a problem it takes no more. */
  push(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length && this.broken === undefined) {
      if (this.dataLeft > 0) {
        const count = Math.min(this.dataLeft, bytes.length - at);
        this.current!.into!.set(bytes.subarray(at, at + count), this.dataAt);
        at += count;
        this.dataAt += count;
        this.dataLeft -= count;
        if (this.dataLeft === 0) this.chunkEnd();
        continue;
      }
      at += this.input.feed(bytes, at, bytes.length);
      if (this.input.complete) this.broken = this.header(this.input.data());
    }
  }

  /** Called whenever the bytes waited for are there: first those all replies have, then more by kind. */
  private header(bytes: Uint8Array): string | undefined {
    const view = viewOf(bytes);
    const magic = replyMagic(view, 0);
    if (bytes.length === SIMPLE_REPLY_BYTES) {
      this.cookieHi = replyCookieHi(view, 0);
      this.cookieLo = replyCookieLo(view, 0);
      if (magic !== NBD_SIMPLE_REPLY_MAGIC && magic !== NBD_STRUCTURED_REPLY_MAGIC) return 'the server sent something that is not a reply (wrong magic)';
      this.current = this.sink.pending(this.cookieHi, this.cookieLo);
      if (this.current === undefined) return 'the server answered a request that was not sent';
      if (magic === NBD_SIMPLE_REPLY_MAGIC) return this.simpleReply(this.current, simpleReplyErrno(view, 0));
      if (!this.structuredReplies) return 'the server sent a structured reply, which was not negotiated';
      this.input.extend(STRUCTURED_HEADER_BYTES);
      return undefined;
    }
    const type = chunkType(view, 0);
    const length = chunkLength(view, 0);
    this.done = (chunkFlags(view, 0) & NBD_REPLY_FLAG_DONE) !== 0;
    if (bytes.length === STRUCTURED_HEADER_BYTES) {
      const missing = this.payloadBytes(type, length);
      if (typeof missing === 'string') return missing;
      if (missing > 0) {
        this.input.extend(STRUCTURED_HEADER_BYTES + missing);
        return undefined;
      }
    }
    return this.chunk(this.current!, view, type, length);
  }

  private simpleReply(reply: PendingReply, errno: number): string | undefined {
    this.done = true;
    if (errno !== 0) {
      reply.errno = errno;
    } else if (reply.type === NBD_CMD_BLOCK_STATUS) {
      return 'the server answered BLOCK_STATUS with a simple reply';
    } else if (reply.type === NBD_CMD_READ) {
      if (this.structuredReplies) return 'the server answered READ with a simple reply although structured replies were negotiated';
      this.startData(reply, reply.offset, reply.length);
      if (this.dataLeft > 0) return undefined;
    }
    this.chunkEnd();
    return this.broken;
  }

  /** How many bytes behind the chunk's header to collect before `chunk` can look at it; or what is wrong with the header. */
  private payloadBytes(type: number, length: number): number | string {
    switch (type) {
      case NBD_REPLY_TYPE_NONE:
        return length !== 0 || !this.done ? 'a chunk of type NONE has a payload or is not the last' : 0;
      case NBD_REPLY_TYPE_OFFSET_DATA:
        return length < 9 ? 'a data chunk has no data' : OFFSET_DATA_HEADER_BYTES - STRUCTURED_HEADER_BYTES;
      case NBD_REPLY_TYPE_OFFSET_HOLE:
        return length !== 12 ? 'a hole chunk has a wrong length' : OFFSET_HOLE_BYTES - STRUCTURED_HEADER_BYTES;
      case NBD_REPLY_TYPE_BLOCK_STATUS:
        if (extentCount(length) < 0) return 'a block status chunk has a wrong length';
        break;
      default:
        if ((type & NBD_REPLY_TYPE_ERROR_BIT) === 0) return `the server sent a chunk of unknown type ${type}`;
        if (length < 6) return 'an error chunk is too short';
    }
    return length > MAX_CHUNK_BYTES ? `a chunk of type ${type} announces ${length} bytes` : length;
  }

  private chunk(reply: PendingReply, view: DataView, type: number, length: number): string | undefined {
    switch (type) {
      case NBD_REPLY_TYPE_NONE:
        break;
      case NBD_REPLY_TYPE_OFFSET_DATA: {
        const problem = this.startData(reply, chunkOffset(view, 0), length - 8);
        if (problem !== undefined) return problem;
        return undefined;
      }
      case NBD_REPLY_TYPE_OFFSET_HOLE: {
        const hole = holeLength(view, 0);
        const problem = hole === 0 ? 'a hole chunk has no length' : this.startData(reply, chunkOffset(view, 0), hole);
        if (problem !== undefined) return problem;
        reply.into!.fill(0, this.dataAt, this.dataAt + hole);
        this.dataLeft = 0;
        break;
      }
      case NBD_REPLY_TYPE_BLOCK_STATUS: {
        if (reply.type !== NBD_CMD_BLOCK_STATUS) return 'the server sent block status for another command';
        const id = blockStatusContextId(view, 0);
        if (reply.statuses.has(id)) return `the server sent two block status chunks for context ${id}`;
        const extents: Extent[] = [];
        for (let at = 24; at < 20 + length; at += 8) {
          if (view.getUint32(at) === 0) return 'the server sent an extent of length 0';
          extents.push({ length: view.getUint32(at), status: view.getUint32(at + 4) });
        }
        reply.statuses.set(id, extents);
        break;
      }
      default: {
        const messageLength = errorChunkMessageLength(view, 0);
        if (messageLength > length - 6) return 'the message of an error chunk is longer than the chunk';
        // A first error is kept; 0 is not allowed here, and must not turn into success.
        if (reply.errno === 0) {
          reply.errno = errorChunkErrno(view, 0) || NBD_EINVAL;
          reply.message = decodeString(new Uint8Array(view.buffer, view.byteOffset + ERROR_CHUNK_BYTES, messageLength)) ?? '';
        }
      }
    }
    this.chunkEnd();
    return this.broken;
  }

  /** Expects `length` bytes for `offset` of the export. */
  private startData(reply: PendingReply, offset: number, length: number): string | undefined {
    if (reply.into === undefined) return 'the server sent data for a command other than READ';
    const from = offset - reply.offset;
    if (from < 0 || from > reply.length || length > reply.length - from) return 'the server sent data outside of the request';
    if (!reply.coverage.add(from, from + length)) return 'the server sent the same data twice';
    this.dataAt = from;
    this.dataLeft = length;
    return undefined;
  }

  /** A chunk or a simple reply is complete; if it was the last, so is the reply. */
  private chunkEnd(): void {
    this.input.expect(SIMPLE_REPLY_BYTES);
    if (!this.done) return;
    const reply = this.current!;
    this.current = undefined;
    if (reply.errno === 0) {
      if (reply.type === NBD_CMD_READ && reply.coverage.bytes !== reply.length) this.broken = 'the server reported success but did not send all data';
      if (reply.type === NBD_CMD_BLOCK_STATUS && reply.statuses.size === 0) this.broken = 'the server reported success but sent no block status';
      if (this.broken !== undefined) return;
    }
    this.sink.replied(this.cookieHi, this.cookieLo, reply);
  }
}
