/**
 * Client of the admin API: one request per connection over the Unix socket.
 *
 * Owns: how a call becomes HTTP and an answer a checked value. Must not know:
 * what the command line looks like. Every failure is a ControlError.
 */

import { request as httpRequest } from 'node:http';
import type { ClientRequest, IncomingMessage, OutgoingHttpHeaders } from 'node:http';
import type { z } from 'zod';
import { MAX_SOCKET_PATH_BYTES } from '../base/address.js';
import { VERSION } from '../base/version.js';
import { ControlError } from './port.js';
import { NodeStatus } from './schema/status.js';
import {
  CursorEntry, CursorReleaseReply, DevicesReply, DrainReply, ErrorReply, FlushReply, ImportState, JournalRecord, LinkDropReply, LinksReply, OperationReply, OperationsReply, PositionReply, PromoteReply, SealReply, SizesReply, VersionReply,
} from './schema/replies.js';
import type { Wait } from './schema/words.js';

export { ControlError };

export interface Waits {
  readonly wait?: Wait | undefined;
  readonly waitSeconds?: number | undefined;
  /** Hold the writers until every secondary has executed it. */
  readonly halt?: boolean | undefined;
}

export interface JournalRange {
  readonly from?: number | undefined;
  readonly to?: number | undefined;
  readonly follow?: boolean | undefined;
}

/** A reply is at most this many bytes: a status of thousands of devices has a few MiB. */
const MAX_REPLY_BYTES = 256 * 1024 * 1024;
const MAX_LINE_CHARACTERS = 16 * 1024 * 1024;
/** How long the daemon may be silent, beyond the time that the call itself may take. */
const PATIENCE_MS = 30_000;
/** Calls whose duration depends on how much there is to do. */
const LONG_MS = 24 * 3600 * 1000;

type Method = 'GET' | 'POST' | 'DELETE';

export class ControlClient {
  /** When `interrupted` aborts, calls end at once, which the daemon notices; streams have signals of their own. */
  constructor(readonly socket: string, private readonly interrupted?: AbortSignal) {}

  status(): Promise<NodeStatus> {
    return this.call('GET', '/v1/status', undefined, NodeStatus);
  }

  version(): Promise<VersionReply> {
    return this.call('GET', '/v1/version', undefined, VersionReply);
  }

  devices(group: string): Promise<DevicesReply> {
    return this.call('GET', `${groupPath(group)}/devices`, undefined, DevicesReply);
  }

  /** Counted on demand: takes as long as there are maps to walk. */
  sizes(group: string): Promise<SizesReply> {
    return this.call('GET', `${groupPath(group)}/sizes`, undefined, SizesReply, LONG_MS);
  }

  /** What the newest operations cost. */
  operations(group: string): Promise<OperationsReply> {
    return this.call('GET', `${groupPath(group)}/operations`, undefined, OperationsReply);
  }

  links(group: string): Promise<LinksReply> {
    return this.call('GET', `${groupPath(group)}/links`, undefined, LinksReply);
  }

  /** `size` in bytes or in words such as "10G". */
  createVolume(group: string, body: { name: string; size: number | string } & Waits): Promise<OperationReply> {
    return this.call('POST', `${groupPath(group)}/volumes`, body, OperationReply, patience(body));
  }

  /** Without a source: of every volume, as the set `@name`. */
  snapshot(group: string, body: { source: string | null; name: string; local?: boolean; answerDurable?: boolean } & Waits): Promise<OperationReply> {
    return this.call('POST', `${groupPath(group)}/snapshots`, body, OperationReply, patience(body));
  }

  /** `source` may be a set (@NAME), and then there is no target. */
  restore(group: string, body: { target?: string; source: string; ranges?: [number, number][]; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, 'restore', body);
  }

  refresh(group: string, body: { target: string; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, 'refresh', body);
  }

  sync(group: string, body: { target: string; source: string; ranges?: [number, number][]; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, 'sync', body);
  }

  /** `size` in bytes or in words. */
  resize(group: string, body: { device: string; size: number | string; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, 'resize', body);
  }

  rename(group: string, body: { device: string; name: string; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, 'rename', body);
  }

  protect(group: string, on: boolean, body: { device: string; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, on ? 'protect' : 'unprotect', body);
  }

  clone(group: string, body: { source: string; name: string } & Waits): Promise<OperationReply> {
    return this.operate(group, 'clone', body);
  }

  /** `local` (VOLUME~NAME), sealed on every node, becomes VOLUME@name. */
  adopt(group: string, body: { local: string; name: string; force?: boolean } & Waits): Promise<OperationReply> {
    return this.operate(group, 'adopt', body);
  }

  /** Makes a local snapshot read-only; then, with `known`, notes its content digest. */
  seal(group: string, body: { device: string; known?: { digest: string; sealedLsn: number }; undo?: boolean; force?: boolean }): Promise<SealReply> {
    return this.call('POST', `${groupPath(group)}/seal`, body, SealReply, LONG_MS);
  }

  private operate(group: string, verb: string, body: Waits): Promise<OperationReply> {
    return this.call('POST', `${groupPath(group)}/${verb}`, body, OperationReply, patience(body));
  }

  remove(group: string, device: string, options: { withSnapshots?: boolean; force?: boolean } & Waits = {}): Promise<OperationReply> {
    const path = `${groupPath(group)}/devices/${encodeURIComponent(device)}${queryText(options)}`;
    return this.call('DELETE', path, undefined, OperationReply, patience(options));
  }

  promote(group: string, body: { force?: boolean } = {}): Promise<PromoteReply> {
    return this.call('POST', `${groupPath(group)}/promote`, body, PromoteReply, LONG_MS);
  }

  flush(group: string, body: { upTo?: 'durable' | 'destaged' | 'checkpoint' } = {}): Promise<FlushReply> {
    return this.call('POST', `${groupPath(group)}/flush`, body, FlushReply, LONG_MS);
  }

  dropLink(group: string, peer: string): Promise<LinkDropReply> {
    return this.call('POST', `${groupPath(group)}/links/${encodeURIComponent(peer)}/drop`, {}, LinkDropReply);
  }

  // ---- the journal carried by others (carry.ts) ------------------------------------------------------------

  /** This node's position in a group, durable. */
  position(group: string): Promise<PositionReply> {
    return this.call('GET', `${groupPath(group)}/position`, undefined, PositionReply);
  }

  /** `position`: as an import printed it. */
  ackCursor(group: string, cursor: string, position: string): Promise<CursorEntry> {
    return this.call('POST', `${groupPath(group)}/cursors/${encodeURIComponent(cursor)}/ack`, { position }, CursorEntry);
  }

  releaseCursor(group: string, cursor: string): Promise<CursorReleaseReply> {
    return this.call('DELETE', `${groupPath(group)}/cursors/${encodeURIComponent(cursor)}`, undefined, CursorReleaseReply);
  }

  drain(group: string, body: { waitSeconds?: number } = {}): Promise<DrainReply> {
    return this.call('POST', `${groupPath(group)}/drain`, body, DrainReply, PATIENCE_MS + (body.waitSeconds ?? 60) * 1000);
  }

  /** The bytes of an exported journal, at the caller's pace. `signal` ends the stream quietly. */
  async *exportJournal(group: string, body: { cursor: string; from?: number | string; follow?: boolean }, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
    const response = await this.send('POST', `${groupPath(group)}/journal/export`, body, LONG_MS);
    if (response.statusCode !== 200) throw errorOf(response, await readText(response));
    yield* exportedBytes(response, this.socket, signal);
  }

  /** Sends `input` as an exported journal; yields how far it has come, the last time when all of it is durable. */
  async *importJournal(group: string, input: AsyncIterable<Uint8Array>, signal?: AbortSignal): AsyncGenerator<ImportState> {
    const path = `${groupPath(group)}/journal/import`;
    const response = await this.open('POST', path, LONG_MS, { 'content-type': 'application/octet-stream', 'transfer-encoding': 'chunked' }, (request) => void feed(request, input));
    if (response.statusCode !== 200) throw errorOf(response, await readText(response));
    yield* importStates(response, this.socket, signal);
  }

  /** Prometheus text. */
  async metrics(): Promise<string> {
    const response = await this.send('GET', '/metrics', undefined, PATIENCE_MS);
    const text = await readText(response);
    if (response.statusCode !== 200) throw errorOf(response, text);
    return text;
  }

  /** Records in the order of the journal, at the caller's pace. `signal` ends the stream quietly. */
  async *journal(group: string, range: JournalRange = {}, signal?: AbortSignal): AsyncGenerator<JournalRecord> {
    const response = await this.send('GET', `${groupPath(group)}/journal${queryText(range)}`, undefined, range.follow === true ? LONG_MS : PATIENCE_MS);
    if (response.statusCode !== 200) throw errorOf(response, await readText(response));
    const stop = (): void => void response.destroy();
    signal?.addEventListener('abort', stop);
    if (signal?.aborted === true) stop();
    try {
      for await (const line of lines(response, this.socket, 'journal')) {
        const value = parseReply(line, response);
        const failure = ErrorReply.safeParse(value);
        if (failure.success) throw new ControlError(failure.data.error);
        yield checked(JournalRecord, value, 'a journal record');
      }
    } catch (error) {
      if (signal?.aborted !== true) throw error;
    } finally {
      signal?.removeEventListener('abort', stop);
      response.destroy();
    }
  }

  private async call<S extends z.ZodType>(method: Method, path: string, body: unknown, schema: S, waitMs = PATIENCE_MS): Promise<z.output<S>> {
    const [response, text] = await this.exchange(method, path, body, waitMs);
    const status = response.statusCode ?? 0;
    if (status < 200 || status > 299) throw errorOf(response, text);
    return checked(schema, parseReply(text, response), `the reply to ${method} ${path.split('?')[0]}`);
  }

  private async exchange(method: Method, path: string, body: unknown, waitMs: number): Promise<[IncomingMessage, string]> {
    const { interrupted } = this;
    try {
      const response = await this.send(method, path, body, waitMs, interrupted);
      return [response, await readText(response)];
    } catch (error) {
      if (interrupted?.aborted !== true) throw error;
      throw new ControlError({ kind: 'io', code: 'interrupted', message: 'interrupted: an operation that was not appended yet is not done any more; lockstep list shows what there is' });
    }
  }

  private send(method: Method, path: string, body: unknown, waitMs: number, signal?: AbortSignal): Promise<IncomingMessage> {
    const text = body === undefined ? '' : JSON.stringify(body);
    const headers = text === '' ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
    return this.open(method, path, waitMs, headers, (request) => {
      // By hand: node keeps no socket open for it, and a signal that has fired before is heard, too.
      const stop = (): void => void request.destroy();
      request.once('close', () => signal?.removeEventListener('abort', stop));
      signal?.addEventListener('abort', stop, { once: true });
      if (signal?.aborted === true) stop();
      else request.end(text);
    });
  }

  /** Opens a connection for one request; `write` writes its body and ends it. */
  private open(method: Method, path: string, waitMs: number, headers: OutgoingHttpHeaders, write: (request: ClientRequest) => void): Promise<IncomingMessage> {
    if (Buffer.byteLength(this.socket) > MAX_SOCKET_PATH_BYTES) {
      // node would cut the path off without a word.
      return Promise.reject(new ControlError({ kind: 'operator', code: 'usage', message: `${this.socket}: a Unix socket path may have ${MAX_SOCKET_PATH_BYTES} bytes` }));
    }
    return new Promise((resolve, reject) => {
      const request = httpRequest({ socketPath: this.socket, method, path, agent: false, headers }, resolve);
      request.setTimeout(Math.min(waitMs, 2 ** 31 - 1), () => {
        request.destroy(unreachableError(this.socket, `the daemon did not answer within ${Math.round(waitMs / 1000)} s`));
      });
      request.on('error', (error: NodeJS.ErrnoException) => reject(error instanceof ControlError ? error : connectError(this.socket, error)));
      write(request);
    });
  }
}

function groupPath(group: string): string {
  return `/v1/groups/${encodeURIComponent(group)}`;
}

function queryText(options: object): string {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(options)) if (value !== undefined) query.set(key, String(value));
  const text = query.toString();
  return text === '' ? '' : `?${text}`;
}

function patience(waits: Waits): number {
  return PATIENCE_MS + (waits.wait === 'applied' || waits.halt === true ? (waits.waitSeconds ?? 60) * 1000 : 0);
}

/** Writes the body of a request at the pace of its reader; an input that fails ends the request. */
async function feed(request: ClientRequest, input: AsyncIterable<Uint8Array>): Promise<void> {
  try {
    for await (const chunk of input) {
      if (request.destroyed) return;
      if (!request.write(chunk)) await taken(request);
    }
    request.end();
  } catch (error) {
    request.destroy(error instanceof Error ? error : new Error(String(error)));
  }
}

/** Resolves when the request takes more, or is over. */
function taken(request: ClientRequest): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      request.off('drain', done);
      request.off('close', done);
      resolve();
    };
    request.on('drain', done);
    request.on('close', done);
  });
}

async function* exportedBytes(response: IncomingMessage, socket: string, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  const stop = (): void => void response.destroy();
  signal?.addEventListener('abort', stop);
  if (signal?.aborted === true) stop();
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) yield chunk;
  } catch {
    if (signal?.aborted === true) return;
    throw unreachableError(socket, 'the connection ended in the middle of the export');
  } finally {
    signal?.removeEventListener('abort', stop);
    response.destroy();
  }
  const failed = response.trailers['lockstep-error'];
  if (failed === undefined) return;
  const parsed = ErrorReply.safeParse(parseReply(decodeURIComponent(failed), response));
  throw parsed.success ? new ControlError(parsed.data.error) : unexpected('the trailer of the export is no error');
}

async function* importStates(response: IncomingMessage, socket: string, signal: AbortSignal | undefined): AsyncGenerator<ImportState> {
  const stop = (): void => void response.destroy();
  signal?.addEventListener('abort', stop);
  if (signal?.aborted === true) stop();
  try {
    for await (const line of lines(response, socket, 'import')) {
      const value = parseReply(line, response);
      const failure = ErrorReply.safeParse(value);
      if (failure.success) throw new ControlError(failure.data.error);
      yield checked(ImportState, value, 'the state of the import');
    }
  } catch (error) {
    if (signal?.aborted !== true) throw error;
  } finally {
    signal?.removeEventListener('abort', stop);
    response.destroy();
  }
}

/** The lines of a stream; a stream that breaks off is an error, not an end. */
async function* lines(response: IncomingMessage, socket: string, what: string): AsyncGenerator<string> {
  let rest = '';
  response.setEncoding('utf8');
  try {
    for await (const chunk of response as AsyncIterable<string>) {
      const parts = (rest + chunk).split('\n');
      rest = parts.pop() ?? '';
      if (rest.length > MAX_LINE_CHARACTERS) throw unexpected(`a line is longer than ${MAX_LINE_CHARACTERS} characters`);
      yield* parts.filter((line) => line !== '');
    }
  } catch (error) {
    if (error instanceof ControlError) throw error;
    throw unreachableError(socket, `the connection ended in the middle of the ${what}`);
  }
  if (rest !== '') yield rest;
}

async function readText(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > MAX_REPLY_BYTES) throw unexpected(`the reply is larger than ${MAX_REPLY_BYTES} bytes`);
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof ControlError) throw error;
    throw new ControlError({ kind: 'io', code: 'daemon/unreachable', message: 'the daemon closed the connection before it had answered' });
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parseReply(text: string, response: IncomingMessage): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    throw unexpected(`the answer (HTTP ${response.statusCode ?? 0}) is not JSON; is this the socket of a lockstepd?`);
  }
}

function errorOf(response: IncomingMessage, text: string): ControlError {
  const parsed = ErrorReply.safeParse(parseReply(text, response));
  return parsed.success ? new ControlError(parsed.data.error) : unexpected(`the answer (HTTP ${response.statusCode ?? 0}) has no error body`);
}

function checked<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw unexpected(`${what} is not as expected at ${issue.path.map(String).join('.') || 'its top'} (${issue.message}); this is lockstep ${VERSION}, the daemon may be another version`);
}

function unexpected(message: string): ControlError {
  return new ControlError({ kind: 'bug', code: 'reply/unexpected', message });
}

function unreachableError(socket: string, message: string): ControlError {
  return new ControlError({ kind: 'io', code: 'daemon/unreachable', message: `${socket}: ${message}` });
}

function connectError(socket: string, error: NodeJS.ErrnoException): ControlError {
  const hint = 'name the socket with --socket or LOCKSTEP_SOCKET';
  switch (error.code) {
    case 'ENOENT': return unreachableError(socket, `there is no such socket; is lockstepd running? (${hint})`);
    case 'ECONNREFUSED': return unreachableError(socket, `no daemon listens there; lockstepd has stopped or crashed (${hint})`);
    case 'EACCES': case 'EPERM': return unreachableError(socket, 'permission denied; run as the user of the daemon, or as root');
    case 'ENOTSOCK': return unreachableError(socket, `it is not a socket (${hint})`);
    case 'ECONNRESET': case 'EPIPE': return unreachableError(socket, 'the daemon closed the connection before it had answered');
    default: return unreachableError(socket, error.message);
  }
}
