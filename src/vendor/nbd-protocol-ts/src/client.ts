/**
 * A convenient NBD client: promises over any byte stream, requests pipelined. Owns
 * sending, cookies and the number of requests under way; the bytes themselves are
 * the business of request.ts, reply-reader.ts and handshake-client.ts.
 */
import {
  MAX_REQUEST_PAYLOAD, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES,
  NBD_ESHUTDOWN, REQUEST_BYTES,
} from './constants.js';
import { viewOf } from './bytes.js';
import { NbdConnectionError, NbdRequestError } from './errors.js';
import { ClientHandshake } from './handshake-client.js';
import type { ClientGoal, ClientOutcome, NegotiatedExport } from './handshake-client.js';
import { putRequest } from './request.js';
import { Coverage, ReplyReader } from './reply-reader.js';
import type { Extent, PendingReply } from './reply-reader.js';
import type { ByteStream } from './stream.js';
import { validateRequest } from './validate.js';

export interface ConnectOptions {
  /** Export name; '' is the default export. */
  readonly name: string;
  /** Ask for structured replies; default true. */
  readonly structuredReplies?: boolean;
  /** Metadata contexts to select, for `blockStatus`. */
  readonly contexts?: readonly string[];
  /** Requests under way at a time; default 64. Further ones wait. */
  readonly maxInFlight?: number;
  /** Requests that wait; default 4096. Further ones are rejected. */
  readonly maxWaiting?: number;
  /** False: send also what the server must refuse. Default true: such requests are rejected here, with the same error. */
  readonly checked?: boolean;
}

export interface ContextExtents {
  readonly context: string;
  readonly extents: readonly Extent[];
}

interface Request extends PendingReply {
  readonly flags: number;
  readonly payload: Uint8Array | undefined;
  cookie: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** For commands without data: a multiple of every possible minimum block size. */
const MAX_EFFECT_BYTES = 0xffff_0000;

/** Carries a handshake out. Resolves with an outcome that is not 'more' and what was received after it. */
export async function negotiate(stream: ByteStream, goal: ClientGoal): Promise<ClientOutcome> {
  const link = new Link(stream);
  return await link.negotiate(goal);
}

/** One reader of a stream, so that nothing is lost between handshake and transmission. */
class Link {
  onBytes: (bytes: Uint8Array) => void = () => {};
  onEnd: (error: Error | undefined) => void = () => {};

  constructor(readonly stream: ByteStream) {
    stream.onData((bytes) => this.onBytes(bytes));
    stream.onEnd((error) => this.onEnd(error));
  }

  negotiate(goal: ClientGoal): Promise<ClientOutcome> {
    const handshake = new ClientHandshake(goal);
    return new Promise((resolve, reject) => {
      this.onEnd = (error) => reject(new NbdConnectionError('the server closed the connection during the handshake', error));
      this.onBytes = (bytes) => {
        const used = handshake.push(bytes);
        const output = handshake.takeOutput();
        if (output.length > 0) this.stream.write(output);
        const outcome = handshake.outcome;
        if (outcome.kind === 'more') return;
        this.onBytes = () => {};
        this.onEnd = () => {};
        if (outcome.kind !== 'transmission') this.stream.close();
        if (outcome.kind === 'transmission' && used < bytes.length) {
          this.stream.destroy();
          reject(new NbdConnectionError('the server sent something before it was asked'));
          return;
        }
        resolve(outcome);
      };
    });
  }
}

export class NbdClient {
  /** What was negotiated. */
  readonly export: NegotiatedExport;
  private readonly pending = new Map<number, Request>();
  private readonly waiting: Request[] = [];
  private readonly reader: ReplyReader;
  private readonly maxInFlight: number;
  private readonly maxWaiting: number;
  private readonly checked: boolean;
  private lastCookie = 0;
  private state: 'open' | 'closing' | 'closed' = 'open';
  private closeReason: NbdConnectionError | undefined;
  private whenClosed: (() => void)[] = [];

  /**
   * Negotiates and enters transmission. The client takes the stream over. Rejects with NbdConnectionError when the
   * server refuses or breaks the protocol.
   */
  static async connect(stream: ByteStream, options: ConnectOptions): Promise<NbdClient> {
    const link = new Link(stream);
    const outcome = await link.negotiate({
      kind: 'go',
      name: options.name,
      structuredReplies: options.structuredReplies ?? true,
      contexts: options.contexts ?? [],
    });
    if (outcome.kind !== 'transmission') {
      throw new NbdConnectionError(outcome.kind === 'failed' ? outcome.reason : 'the handshake did not lead to transmission');
    }
    return new NbdClient(link, outcome.export, options);
  }

  private constructor(private readonly link: Link, described: NegotiatedExport, options: ConnectOptions) {
    this.export = described;
    this.maxInFlight = options.maxInFlight ?? 64;
    this.maxWaiting = options.maxWaiting ?? 4096;
    this.checked = options.checked ?? true;
    this.reader = new ReplyReader(
      {
        pending: (hi, lo) => (hi === 0 ? this.pending.get(lo) : undefined),
        replied: (_hi, lo) => this.replied(lo),
      },
      this.export.structuredReplies,
    );
    link.onBytes = (bytes) => {
      this.reader.push(bytes);
      if (this.reader.problem !== undefined) this.fail(new NbdConnectionError(this.reader.problem));
    };
    link.onEnd = (error) => this.fail(new NbdConnectionError('the server closed the connection', error));
  }

  /** Requests sent and not yet answered. */
  get inFlight(): number {
    return this.pending.size;
  }

  /** False after `disconnect`, `destroy`, a failure, or an ESHUTDOWN from the server. */
  get usable(): boolean {
    return this.state === 'open';
  }

  /** Reads `length` bytes; more than the maximum block size in several requests. With `dontFragment` (DF) each is answered by one chunk. */
  async read(offset: number, length: number, options: { readonly dontFragment?: boolean } = {}): Promise<Uint8Array> {
    const into = new Uint8Array(length);
    const flags = options.dontFragment === true ? NBD_CMD_FLAG_DF : 0;
    await this.inPieces(offset, length, this.payloadLimit(), (at, count) =>
      this.request(NBD_CMD_READ, flags, at, count, into.subarray(at - offset, at - offset + count)));
    return into;
  }

  /** Writes `data` (borrowed until the promise settles). More than the maximum block size is not atomic. */
  async write(offset: number, data: Uint8Array, options: { readonly fua?: boolean } = {}): Promise<void> {
    await this.inPieces(offset, data.length, this.payloadLimit(), (at, count) =>
      this.request(NBD_CMD_WRITE, fuaFlag(options), at, count, undefined, data.subarray(at - offset, at - offset + count)));
  }

  async flush(): Promise<void> {
    await this.request(NBD_CMD_FLUSH, 0, 0, 0);
  }

  async trim(offset: number, length: number, options: { readonly fua?: boolean } = {}): Promise<void> {
    await this.inPieces(offset, length, MAX_EFFECT_BYTES, (at, count) => this.request(NBD_CMD_TRIM, fuaFlag(options), at, count));
  }

  async writeZeroes(
    offset: number, length: number, options: { readonly fua?: boolean; readonly noHole?: boolean; readonly fastZero?: boolean } = {},
  ): Promise<void> {
    const flags = fuaFlag(options) | (options.noHole === true ? NBD_CMD_FLAG_NO_HOLE : 0) | (options.fastZero === true ? NBD_CMD_FLAG_FAST_ZERO : 0);
    // The maximum block size binds WRITE_ZEROES unless FAST_ZERO is set ("Block size constraints").
    const limit = options.fastZero === true ? MAX_EFFECT_BYTES : Math.min(this.export.maximumBlock, MAX_EFFECT_BYTES);
    await this.inPieces(offset, length, limit, (at, count) => this.request(NBD_CMD_WRITE_ZEROES, flags, at, count));
  }

  async cache(offset: number, length: number): Promise<void> {
    const limit = Math.min(this.export.maximumBlock, MAX_EFFECT_BYTES);
    await this.inPieces(offset, length, limit, (at, count) => this.request(NBD_CMD_CACHE, 0, at, count));
  }

  /**
   * What the selected contexts say from `offset` on. The extents of a context may cover less than `length` (ask again
   * from where they end), or with their last one more. `length` is at most 2^32 - 1.
   */
  async blockStatus(offset: number, length: number, options: { readonly requestOne?: boolean } = {}): Promise<ContextExtents[]> {
    const reply = await this.request(NBD_CMD_BLOCK_STATUS, options.requestOne === true ? NBD_CMD_FLAG_REQ_ONE : 0, offset, length);
    const named: ContextExtents[] = [];
    for (const { id, name } of this.export.contexts) {
      const extents = reply.statuses.get(id);
      if (extents !== undefined) named.push({ context: name, extents });
    }
    return named;
  }

  /** Waits for the requests under way, says goodbye (DISC), and resolves when the connection is closed. */
  async disconnect(): Promise<void> {
    if (this.state === 'closed') return;
    this.state = 'closing';
    const closed = new Promise<void>((resolve) => this.whenClosed.push(resolve));
    this.sayGoodbyeWhenIdle();
    await closed;
  }

  /** Closes at once; whatever is under way is rejected. */
  destroy(): void {
    this.fail(new NbdConnectionError('the connection was closed here'));
  }

  /**
   * Sends one request as it is given, with any type and flags. `into` receives the data of a READ and `payload`
   * follows a WRITE; both have `length` bytes. Rejects with NbdRequestError when it is refused.
   */
  async request(
    type: number, flags: number, offset: number, length: number, into?: Uint8Array, payload?: Uint8Array,
  ): Promise<PendingReply> {
    if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isInteger(length) || length < 0 || length > 0xffff_ffff) {
      throw new RangeError(`offset ${offset} or length ${length} is not a number of bytes that a request can carry`);
    }
    if (this.state !== 'open') throw this.closeReason ?? new NbdConnectionError('the connection is being closed');
    if (this.checked) {
      const session = { structuredReplies: this.export.structuredReplies, contextCount: this.export.contexts.length };
      const errno = validateRequest(this.export, session, type, flags, offset, length);
      if (errno !== 0) throw new NbdRequestError(errno, type, 'not sent: the export does not allow this request');
    }
    if (this.waiting.length >= this.maxWaiting) throw new NbdConnectionError(`more than ${this.maxWaiting} requests are waiting`);
    return await new Promise<PendingReply>((resolve, reject) => {
      const request: Request = {
        type, flags, offset, length, payload, into: type === NBD_CMD_READ ? into ?? new Uint8Array(length) : undefined,
        coverage: new Coverage(), statuses: new Map(), errno: 0, message: '', cookie: -1, resolve: () => resolve(request), reject,
      };
      this.waiting.push(request);
      this.sendWaiting();
    });
  }

  private payloadLimit(): number {
    // The maximum is a multiple of the minimum or 0xffffffff, and so is 32 MiB.
    return Math.min(this.export.maximumBlock, MAX_REQUEST_PAYLOAD);
  }

  private async inPieces(offset: number, length: number, limit: number, send: (at: number, count: number) => Promise<unknown>): Promise<void> {
    if (length <= limit) {
      await send(offset, length);
      return;
    }
    const pieces: Promise<unknown>[] = [];
    for (let at = offset; at < offset + length; at += limit) pieces.push(send(at, Math.min(limit, offset + length - at)));
    await Promise.all(pieces);
  }

  private sendWaiting(): void {
    while (this.waiting.length > 0 && this.pending.size < this.maxInFlight) {
      const request = this.waiting.shift()!;
      request.cookie = this.freeCookie();
      this.pending.set(request.cookie, request);
      const header = new Uint8Array(REQUEST_BYTES);
      putRequest(viewOf(header), 0, request.flags, request.type, 0, request.cookie, request.offset, request.length);
      this.link.stream.write(header);
      if (request.payload !== undefined && request.payload.length > 0) this.link.stream.write(request.payload);
    }
  }

  private freeCookie(): number {
    do this.lastCookie = (this.lastCookie + 1) >>> 0;
    while (this.pending.has(this.lastCookie));
    return this.lastCookie;
  }

  private replied(cookie: number): void {
    const request = this.pending.get(cookie)!;
    this.pending.delete(cookie);
    if (request.errno === 0) request.resolve();
    else request.reject(new NbdRequestError(request.errno, request.type, request.message));
    // After ESHUTDOWN the client must end the connection in the orderly way.
    if (request.errno === NBD_ESHUTDOWN && this.state === 'open') this.state = 'closing';
    this.sendWaiting();
    if (this.state === 'closing') this.sayGoodbyeWhenIdle();
  }

  private sayGoodbyeWhenIdle(): void {
    if (this.pending.size > 0 || this.waiting.length > 0) return;
    const header = new Uint8Array(REQUEST_BYTES);
    putRequest(viewOf(header), 0, 0, NBD_CMD_DISC, 0, 0, 0, 0);
    this.link.stream.write(header);
    this.link.stream.close();
    this.state = 'closed';
    this.closeReason = new NbdConnectionError('the connection was closed here');
    this.link.onBytes = () => {};
    this.link.onEnd = () => this.settleClosed();
  }

  private fail(reason: NbdConnectionError): void {
    if (this.state === 'closed') return;
    this.state = 'closed';
    this.closeReason = reason;
    this.link.onBytes = () => {};
    this.link.onEnd = () => {};
    this.link.stream.destroy();
    for (const request of [...this.pending.values(), ...this.waiting]) request.reject(reason);
    this.pending.clear();
    this.waiting.length = 0;
    this.settleClosed();
  }

  private settleClosed(): void {
    for (const settle of this.whenClosed) settle();
    this.whenClosed = [];
  }
}

function fuaFlag(options: { readonly fua?: boolean }): number {
  return options.fua === true ? NBD_CMD_FLAG_FUA : 0;
}
