/**
 * node:http with limits: small requests, bounded time and connections, and
 * every answer, the parser's own included, a JSON body of one shape.
 *
 * Owns: how bytes become a request and an answer bytes. Must not know: routes,
 * operations.
 */

import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Log } from '../base/log.js';
import { errorFields } from '../base/log.js';
import type { ControlFailure } from './port.js';
import type { ErrorReply } from './schema/replies.js';

export interface HttpLimits {
  /** Most bytes of a request body. */
  readonly bodyBytes: number;
  /** A request must have arrived whole within this time; 0: the handler sees to that. */
  readonly requestMs: number;
  readonly headersMs: number;
  /** An idle connection is closed after this time. */
  readonly keepAliveMs: number;
  readonly connections: number;
  /** What of a body is read ahead, and of an answer written ahead, while its other side is busy. */
  readonly aheadBytes: number;
}

export const HTTP_LIMITS: HttpLimits = { bodyBytes: 64 * 1024, requestMs: 10_000, headersMs: 5_000, keepAliveMs: 5_000, connections: 128, aheadBytes: 256 * 1024 };
const HEADER_BYTES = 16 * 1024;

/** A request that is answered with an error before any operation is tried. */
export class HttpError extends Error {
  constructor(readonly status: number, readonly failure: ControlFailure, readonly headers: Readonly<Record<string, string>> = {}) {
    super(failure.message);
  }
}

export function usage(message: string, status = 400, code = 'usage'): HttpError {
  return new HttpError(status, { kind: 'operator', code, message });
}

export type Handler = (request: IncomingMessage, response: ServerResponse) => Promise<void>;

/**
 * A server that is not listening yet. `handler` may throw HttpError; anything
 * else it throws is logged and answered 500: nothing in the admin API can harm
 * data, so a bug there must not take the exports down.
 */
export function hardenedServer(limits: HttpLimits, log: Log, handler: Handler): Server {
  const server = createServer(
    { maxHeaderSize: HEADER_BYTES, requestTimeout: limits.requestMs, headersTimeout: limits.headersMs, highWaterMark: limits.aheadBytes, keepAliveTimeout: limits.keepAliveMs, connectionsCheckingInterval: Math.min(1000, limits.headersMs) },
    (request, response) => {
      // A client that goes away is no event of ours: writes to it are discarded.
      request.on('error', () => {});
      response.on('error', () => {});
      handler(request, response).catch((error: unknown) => {
        // Nor is one that goes away in the middle of its request.
        if (!(request.destroyed && (error as NodeJS.ErrnoException).code === 'ECONNRESET')) answerError(response, error, log);
      });
    },
  );
  server.maxConnections = limits.connections;
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => answerGarbage(error, socket));
  // Upgrades are refused by a listener; without one node would treat them as plain requests.
  server.on('upgrade', (_request, socket: Duplex) => answerRaw(socket, 400, 'Bad Request', 'usage', 'protocol upgrades are not offered'));
  server.on('connect', (_request, socket: Duplex) => answerRaw(socket, 405, 'Method Not Allowed', 'request/method', 'CONNECT is not offered'));
  return server;
}

export function sendJson(response: ServerResponse, status: number, body: unknown, headers: Readonly<Record<string, string>> = {}): void {
  sendText(response, status, 'application/json', `${JSON.stringify(body)}\n`, headers);
}

export function sendText(response: ServerResponse, status: number, type: string, text: string, headers: Readonly<Record<string, string>> = {}): void {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(text), ...headers });
  response.end(text);
}

export function errorBody(failure: ControlFailure): ErrorReply {
  return { error: { code: failure.code, message: failure.message, kind: failure.kind } };
}

function answerError(response: ServerResponse, error: unknown, log: Log): void {
  if (error instanceof HttpError) {
    // What is left of a body that was refused would be taken for the next request.
    const headers = error.status === 413 || error.status === 408 ? { ...error.headers, connection: 'close' } : error.headers;
    sendJson(response, error.status, errorBody(error.failure), headers);
    return;
  }
  log.error('the control server failed to answer a request', errorFields(error));
  if (response.headersSent) response.destroy();
  else sendJson(response, 500, errorBody({ kind: 'bug', code: 'bug', message: 'the control server failed; its log says more' }));
}

/** The request's body as JSON; `{}` when there is none. Throws HttpError 400, 408, 413. */
export async function readJson(request: IncomingMessage, limits: HttpLimits): Promise<unknown> {
  const tooLarge = (): HttpError => usage(`the request body is larger than ${limits.bodyBytes} bytes`, 413, 'request/too-large');
  if (Number(request.headers['content-length'] ?? 0) > limits.bodyBytes) throw tooLarge();
  const text = (await Promise.race([readBody(request, limits.bodyBytes, tooLarge), late(request, limits.requestMs)])).trim();
  if (text === '') return {};
  try {
    return JSON.parse(text) as unknown;
  } catch {
    throw usage('the request body is not JSON');
  }
}

async function readBody(request: IncomingMessage, limitBytes: number, tooLarge: () => HttpError): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > limitBytes) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

/** Rejects when the request has not arrived whole in time; never resolves. */
function late(request: IncomingMessage, limitMs: number): Promise<never> {
  return new Promise((_resolve, reject) => {
    const timer = setTimeout(() => reject(usage('the request did not arrive in time', 408, 'request/timeout')), limitMs).unref();
    request.once('close', () => clearTimeout(timer));
    request.once('end', () => clearTimeout(timer));
  });
}

/** Answers what the HTTP parser refused. */
function answerGarbage(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  switch (error.code) {
    case 'HPE_HEADER_OVERFLOW':
      return answerRaw(socket, 431, 'Request Header Fields Too Large', 'request/too-large', `the request headers are larger than ${HEADER_BYTES} bytes`);
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return answerRaw(socket, 408, 'Request Timeout', 'request/timeout', 'the request did not arrive in time');
    default:
      return answerRaw(socket, 400, 'Bad Request', 'request/garbage', 'this is not an HTTP/1.1 request');
  }
}

function answerRaw(socket: Duplex, status: number, reason: string, code: string, message: string): void {
  const body = `${JSON.stringify(errorBody({ kind: 'operator', code, message }))}\n`;
  socket.on('error', () => {});
  socket.end(`HTTP/1.1 ${status} ${reason}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`);
}
