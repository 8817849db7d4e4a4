/**
 * A client whose every byte the test decides. Non-blocking: the test calls
 * `pump` (Rig.step does) and looks at what has come. Has a RealIo of its own, so
 * that it leaves no trace in the server's arena.
 */
import { RealIo } from '../../src/io/real.js';
import {
  ClientHandshake, NBD_CMD_BLOCK_STATUS, NBD_CMD_READ, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_OFFSET_DATA, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, putRequest,
} from '../../src/vendor/nbd-protocol-ts/index.js';
import type { ClientGoal, ClientOutcome } from '../../src/vendor/nbd-protocol-ts/index.js';

const BUFFER = 4096;
const BUFFER_BYTES = 1024 * 1024;

export interface Reply {
  readonly cookie: number;
  readonly errno: number;
  /** Data of a READ. */
  readonly data: Buffer;
  /** Per context id: pairs (length, flags). */
  readonly extents: Map<number, number[]>;
  readonly structured: boolean;
}

interface Asked {
  readonly type: number;
  readonly length: number;
}

export class RawClient {
  readonly io = RealIo.create({ arenaBytes: BUFFER + BUFFER_BYTES });
  private readonly u8 = new Uint8Array(this.io.memory);
  private fd: number;
  /** Changes whenever bytes went either way. */
  moved = 0;
  /** The server has closed the connection (or this end has). */
  ended = false;
  /** False: nothing is received; the slow reader. */
  reading = true;
  /** Received and not looked at. */
  inbox: Buffer = Buffer.alloc(0);
  readonly replies: Reply[] = [];
  private readonly pieces: Buffer[] = [];
  private piecesBytes = 0;
  private need = 0;
  private outbox: Buffer[] = [];
  private handshake: ClientHandshake | undefined;
  private parsing = false;
  private nextCookie = 1;
  private readonly asked = new Map<number, Asked>();
  private partial: { extents: Map<number, number[]> } | undefined;

  constructor(path: string) {
    this.fd = this.io.connect({ kind: 'unix', path });
    if (this.fd < 0) throw new Error(`connect: ${this.fd}`);
  }

  get outcome(): ClientOutcome {
    return this.handshake!.outcome;
  }

  get unsent(): number {
    return this.outbox.reduce((sum, bytes) => sum + bytes.length, 0);
  }

  /** Requests without a reply. */
  get outstanding(): number {
    return this.asked.size;
  }

  /** Begins a regular handshake. */
  greet(goal: ClientGoal): void {
    this.handshake = new ClientHandshake(goal);
  }

  /** Queues bytes. */
  send(bytes: Uint8Array): void {
    if (bytes.length > 0) this.outbox.push(Buffer.from(bytes));
  }

  /** A request's bytes, and a cookie under which its reply will be found. */
  encode(type: number, flags: number, offset: number, length: number, payload: Uint8Array = new Uint8Array(0)): Buffer {
    const cookie = this.nextCookie++;
    const bytes = Buffer.alloc(28 + payload.length);
    // Both halves are used, so that a mix-up shows.
    putRequest(new DataView(bytes.buffer, bytes.byteOffset), 0, flags, type, ~cookie >>> 0, cookie, offset, length);
    bytes.set(payload, 28);
    this.asked.set(cookie, { type, length });
    return bytes;
  }

  request(type: number, flags: number, offset: number, length: number, payload?: Uint8Array): number {
    this.send(this.encode(type, flags, offset, length, payload));
    return this.nextCookie - 1;
  }

  /** Requests that were encoded will not be sent. */
  forget(): void {
    this.asked.clear();
  }

  reply(cookie: number): Reply | undefined {
    return this.replies.find((reply) => reply.cookie === cookie);
  }

  /** Sends and receives as much as can be done now. */
  pump(): void {
    if (this.fd < 0) return;
    this.pumpOut();
    while (this.reading && !this.ended) {
      const n = this.io.recv(this.fd, BUFFER, BUFFER_BYTES);
      if (n === -11) break;
      if (n <= 0) {
        this.ended = true;
        this.moved++;
        break;
      }
      this.moved += n;
      this.piecesBytes += n;
      this.pieces.push(Buffer.from(this.u8.slice(BUFFER, BUFFER + n)));
    }
    // Joined only when it can be a whole reply: large ones come in hundreds of pieces.
    if (this.pieces.length > 0 && this.inbox.length + this.piecesBytes >= this.need) {
      this.inbox = Buffer.concat([this.inbox, ...this.pieces.splice(0)]);
      this.piecesBytes = 0;
      this.need = 0;
    }
    if (this.handshake !== undefined) this.pumpHandshake(this.handshake);
    if (this.parsing) this.parse();
  }

  private pumpOut(): void {
    while (this.outbox.length > 0 && !this.ended) {
      const bytes = this.outbox[0];
      const n = Math.min(bytes.length, BUFFER_BYTES);
      this.u8.set(bytes.subarray(0, n), BUFFER);
      const sent = this.io.send(this.fd, BUFFER, n);
      if (sent === -11) return;
      if (sent < 0) {
        this.outbox = [];
        return;
      }
      this.moved += sent;
      if (sent === bytes.length) this.outbox.shift();
      else this.outbox[0] = bytes.subarray(sent);
    }
  }

  private pumpHandshake(handshake: ClientHandshake): void {
    if (handshake.outcome.kind !== 'more') return;
    this.inbox = this.inbox.subarray(handshake.push(this.inbox));
    this.send(handshake.takeOutput());
    this.pumpOut();
    if (this.outcome.kind === 'transmission') this.parsing = true;
  }

  /** From here on what comes is replies. */
  parseReplies(): void {
    this.parsing = true;
  }

  private parse(): void {
    for (;;) {
      this.need = 0;
      const { inbox } = this;
      if (inbox.length < 16) return;
      const magic = inbox.readUInt32BE(0);
      if (inbox.readUInt32BE(8) !== ~inbox.readUInt32BE(12) >>> 0) throw new Error('the cookie came back changed');
      const cookie = inbox.readUInt32BE(12);
      const asked = this.asked.get(cookie);
      if (asked === undefined) throw new Error(`a reply to nothing that was asked (cookie ${cookie})`);
      if (magic === NBD_SIMPLE_REPLY_MAGIC) {
        const errno = inbox.readUInt32BE(4);
        const bytes = asked.type === NBD_CMD_READ && errno === 0 ? asked.length : 0;
        this.need = 16 + bytes;
        if (inbox.length < this.need) return;
        this.finish(cookie, errno, inbox.subarray(16, 16 + bytes), new Map(), false);
        this.inbox = inbox.subarray(16 + bytes);
      } else if (magic === NBD_STRUCTURED_REPLY_MAGIC) {
        if (inbox.length < 20) return;
        this.need = 20 + inbox.readUInt32BE(16);
        if (inbox.length < this.need) return;
        this.chunk(cookie, asked, inbox.readUInt16BE(4), inbox.readUInt16BE(6), inbox.subarray(20, 20 + inbox.readUInt32BE(16)));
        this.inbox = inbox.subarray(20 + inbox.readUInt32BE(16));
      } else {
        throw new Error(`a reply with the magic ${magic.toString(16)}`);
      }
    }
  }

  private chunk(cookie: number, asked: Asked, flags: number, type: number, payload: Buffer): void {
    const done = (flags & NBD_REPLY_FLAG_DONE) !== 0;
    this.partial ??= { extents: new Map() };
    const { extents } = this.partial;
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) {
      if (asked.type !== NBD_CMD_READ || !done || payload.length !== asked.length + 8) throw new Error('a READ is answered by one chunk');
      this.finish(cookie, 0, payload.subarray(8), extents, true);
    } else if (type === NBD_REPLY_TYPE_ERROR) {
      if (!done || payload.readUInt16BE(4) !== payload.length - 6) throw new Error('a wrong error chunk');
      this.finish(cookie, payload.readUInt32BE(0), Buffer.alloc(0), extents, true);
    } else if (type === NBD_REPLY_TYPE_BLOCK_STATUS && asked.type === NBD_CMD_BLOCK_STATUS) {
      const list: number[] = [];
      for (let at = 4; at < payload.length; at += 4) list.push(payload.readUInt32BE(at));
      extents.set(payload.readUInt32BE(0), list);
      if (done) this.finish(cookie, 0, Buffer.alloc(0), extents, true);
    } else {
      throw new Error(`an unexpected chunk of type ${type}`);
    }
  }

  private finish(cookie: number, errno: number, data: Buffer, extents: Map<number, number[]>, structured: boolean): void {
    this.asked.delete(cookie);
    this.partial = undefined;
    this.replies.push({ cookie, errno, data: Buffer.from(data), extents, structured });
  }

  /** Closes this end at once. */
  close(): void {
    this.ended = true;
    if (this.fd >= 0) this.io.close(this.fd);
    this.fd = -1;
  }

  dispose(): void {
    this.close();
    this.io.dispose();
  }
}
