/**
 * A small NBD server for the tests: exports of memory, one instance per
 * connection, bytes in and bytes out. It is also the example of how the server's
 * parts of the library go together.
 */
import * as nbd from '../index.js';
import { viewOf } from '../src/bytes.js';

const BLOCK = 4096;

export interface MemoryExport extends nbd.ExportInfo {
  readonly bytes: Uint8Array;
}

export const ALL_FLAGS = nbd.NBD_FLAG_HAS_FLAGS | nbd.NBD_FLAG_SEND_FLUSH | nbd.NBD_FLAG_SEND_FUA | nbd.NBD_FLAG_SEND_TRIM
  | nbd.NBD_FLAG_SEND_WRITE_ZEROES | nbd.NBD_FLAG_SEND_DF | nbd.NBD_FLAG_CAN_MULTI_CONN | nbd.NBD_FLAG_SEND_CACHE | nbd.NBD_FLAG_SEND_FAST_ZERO;

export function memoryExport(name: string, sizeBytes: number, changes: Partial<nbd.ExportInfo> = {}): MemoryExport {
  return {
    name, description: `the export ${name}`, sizeBytes, transmissionFlags: ALL_FLAGS, minimumBlock: 1, preferredBlock: BLOCK,
    maximumBlock: nbd.MAX_REQUEST_PAYLOAD, metaContexts: [nbd.NBD_CONTEXT_BASE_ALLOCATION, 'x-test:identity/7'], ...changes,
    bytes: new Uint8Array(sizeBytes),
  };
}

export function directoryOf(exports: readonly nbd.ExportInfo[], refusals: Readonly<Record<string, nbd.ExportRefusal>> = {}): nbd.ExportDirectory {
  return { list: () => exports, find: (name) => exports.find((candidate) => candidate.name === name) ?? refusals[name] };
}

export class MemoryServer {
  readonly handshake: nbd.ServerHandshake;
  /** Why the connection is to be closed; undefined while it goes on. */
  closed: string | undefined;
  /** What the client asked for, as `type flags offset length`. */
  readonly log: string[] = [];
  private buffered: Uint8Array = new Uint8Array(0);
  private session: nbd.ServerTransmission | undefined;

  constructor(directory: nbd.ExportDirectory, private readonly exports: readonly MemoryExport[]) {
    this.handshake = new nbd.ServerHandshake(directory);
  }

  /** What to send for what was received. Call it with nothing for the greeting. */
  exchange(received: Uint8Array): Uint8Array {
    const out: Uint8Array[] = [];
    let at = 0;
    while (this.session === undefined && this.closed === undefined) {
      at += this.handshake.push(received, at);
      const output = this.handshake.takeOutput();
      out.push(output);
      const outcome = this.handshake.outcome;
      if (outcome.kind === 'transmission') this.session = outcome;
      else if (outcome.kind === 'closed') this.closed = outcome.reason;
      else if (at === received.length) break;
    }
    if (this.session !== undefined && this.closed === undefined) {
      this.buffered = concat([this.buffered, received.subarray(at)]);
      this.serveBuffered(this.session, out);
    }
    return concat(out);
  }

  private serveBuffered(session: nbd.ServerTransmission, out: Uint8Array[]): void {
    const view = viewOf(this.buffered);
    let at = 0;
    while (this.closed === undefined && this.buffered.length - at >= nbd.REQUEST_BYTES) {
      const fatal = nbd.requestFatal(view, at);
      if (fatal !== nbd.REQUEST_FATAL_NONE) {
        this.closed = nbd.requestFatalText(fatal);
        return;
      }
      const type = nbd.requestType(view, at);
      const length = nbd.requestLength(view, at);
      const total = nbd.REQUEST_BYTES + (nbd.carriesPayload(type) ? length : 0);
      if (this.buffered.length - at < total) break;
      this.serve(session, view, at, this.buffered.subarray(at + nbd.REQUEST_BYTES, at + total), out);
      at += total;
    }
    this.buffered = this.buffered.slice(at);
  }

  private serve(session: nbd.ServerTransmission, view: DataView, at: number, payload: Uint8Array, out: Uint8Array[]): void {
    const type = nbd.requestType(view, at);
    const flags = nbd.requestFlags(view, at);
    const hi = nbd.requestCookieHi(view, at);
    const lo = nbd.requestCookieLo(view, at);
    const offset = nbd.requestOffset(view, at);
    const length = nbd.requestLength(view, at);
    this.log.push(`${type} ${flags} ${offset} ${length}`);
    const negotiated = { structuredReplies: session.structuredReplies, contextCount: session.contexts.length };
    const errno = nbd.validateRequest(session.export, negotiated, type, flags, offset, length);
    const memory = this.exports.find((candidate) => candidate.name === session.export.name)!.bytes;
    const reply = new Uint8Array(64 * 1024);
    const replyView = viewOf(reply);
    const send = (n: number): void => void out.push(reply.slice(0, n));
    if (type === nbd.NBD_CMD_DISC) {
      this.closed = 'the client disconnected';
      return;
    }
    if (errno !== 0) {
      if (!session.structuredReplies) return send(nbd.putSimpleReply(replyView, 0, errno, hi, lo));
      return send(nbd.putErrorChunk(replyView, 0, nbd.NBD_REPLY_FLAG_DONE, hi, lo, errno, new TextEncoder().encode('refused by the test server')));
    }
    switch (type) {
      case nbd.NBD_CMD_READ:
        if (!session.structuredReplies) {
          send(nbd.putSimpleReply(replyView, 0, 0, hi, lo));
          out.push(memory.slice(offset, offset + length));
          return;
        }
        this.readChunks(memory, offset, length, (flags & nbd.NBD_CMD_FLAG_DF) !== 0, hi, lo, out);
        return;
      case nbd.NBD_CMD_WRITE:
        memory.set(payload, offset);
        break;
      case nbd.NBD_CMD_TRIM:
      case nbd.NBD_CMD_WRITE_ZEROES:
        memory.fill(0, offset, offset + length);
        break;
      case nbd.NBD_CMD_BLOCK_STATUS: {
        session.contexts.forEach((context, index) => {
          const extents = context.name === nbd.NBD_CONTEXT_BASE_ALLOCATION ? extentsOf(memory, offset, length) : [{ length, status: 7 }];
          const sent = (flags & nbd.NBD_CMD_FLAG_REQ_ONE) !== 0 ? extents.slice(0, 1) : extents;
          const done = index === session.contexts.length - 1 ? nbd.NBD_REPLY_FLAG_DONE : 0;
          let n = nbd.putBlockStatusHeader(replyView, 0, done, hi, lo, context.id, sent.length);
          for (const extent of sent) n += nbd.putExtent(replyView, n, extent.length, extent.status);
          send(n);
        });
        return;
      }
    }
    send(nbd.putSimpleReply(replyView, 0, 0, hi, lo));
  }

  /** One chunk per run of zero or nonzero blocks, last one first: a client must put them in order. */
  private readChunks(memory: Uint8Array, offset: number, length: number, whole: boolean, hi: number, lo: number, out: Uint8Array[]): void {
    const runs: { at: number; length: number; status: number }[] = [];
    let at = offset;
    for (const extent of whole ? [{ length, status: 0 }] : extentsOf(memory, offset, length)) {
      runs.unshift({ at, ...extent });
      at += extent.length;
    }
    runs.forEach((run, index) => {
      const done = index === runs.length - 1 ? nbd.NBD_REPLY_FLAG_DONE : 0;
      const header = new Uint8Array(nbd.OFFSET_HOLE_BYTES);
      if (run.status !== 0) {
        nbd.putOffsetHole(viewOf(header), 0, done, hi, lo, run.at, run.length);
        out.push(header);
      } else {
        const n = nbd.putOffsetDataHeader(viewOf(header), 0, done, hi, lo, run.at, run.length);
        out.push(header.subarray(0, n), memory.slice(run.at, run.at + run.length));
      }
    });
  }
}

function extentsOf(memory: Uint8Array, offset: number, length: number): { length: number; status: number }[] {
  const extents: { length: number; status: number }[] = [];
  for (let at = offset; at < offset + length;) {
    const end = Math.min(offset + length, at - (at % BLOCK) + BLOCK);
    const status = memory.subarray(at, end).every((byte) => byte === 0) ? nbd.NBD_STATE_HOLE | nbd.NBD_STATE_ZERO : 0;
    const last = extents.at(-1);
    if (last !== undefined && last.status === status) last.length += end - at;
    else extents.push({ length: end - at, status });
    at = end;
  }
  return extents;
}

/** The client's end of a connection to a server in this process. Answers arrive in pieces of `pieceBytes`. */
export function connectTo(server: MemoryServer, pieceBytes = Infinity): nbd.ByteStream {
  let deliver: (bytes: Uint8Array) => void = () => {};
  let end: (error?: Error) => void = () => {};
  let ended = false;
  const respond = (received: Uint8Array): void => {
    if (ended) return;
    const output = server.exchange(received);
    queueMicrotask(() => {
      for (let at = 0; at < output.length; at += pieceBytes) deliver(output.subarray(at, Math.min(output.length, at + pieceBytes)));
      if (server.closed !== undefined && !ended) {
        ended = true;
        end();
      }
    });
  };
  return {
    write: (bytes) => respond(bytes.slice()),
    onData: (listener) => {
      deliver = listener;
      respond(new Uint8Array(0));
    },
    onEnd: (listener) => (end = listener),
    close: () => {},
    destroy: () => (ended = true),
  };
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Bytes from hexadecimal digits; blanks separate fields. */
export function unhex(digits: string): Uint8Array {
  const packed = digits.replace(/\s+/g, '');
  return Uint8Array.from({ length: packed.length / 2 }, (_, i) => parseInt(packed.slice(2 * i, 2 * i + 2), 16));
}

/** A small seeded generator (mulberry32): numbers in [0, 1). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}
