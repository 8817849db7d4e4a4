/**
 * The admin API: HTTP + JSON over a Unix socket, and optionally GET /metrics
 * over TCP (DESIGN §9). It reaches the data path through a ControlPort only.
 *
 * Owns: the sockets, the order validate → call → answer, the journal stream.
 * Must not know: groups, journals, how anything is done.
 */

import { once } from 'node:events';
import { chmodSync, lstatSync, mkdirSync, unlinkSync } from 'node:fs';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { createConnection } from 'node:net';
import type { AddressInfo } from 'node:net';
import { dirname } from 'node:path';
import type { TcpAddress } from '../base/address.js';
import { MAX_SOCKET_PATH_BYTES, formatAddress } from '../base/address.js';
import { OperatorError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { VERSION } from '../base/version.js';
import { receiveImport, sendExport } from './carry-stream.js';
import { failureOf } from './channel.js';
import { HTTP_LIMITS, HttpError, hardenedServer, readJson, sendJson, sendText, usage } from './http.js';
import type { HttpLimits } from './http.js';
import { streamJournal } from './journal-stream.js';
import { Metrics } from './metrics.js';
import type { ControlFailure, ControlPort } from './port.js';
import { matchRoute } from './routes.js';
import type { VersionReply } from './schema/replies.js';

export interface ControlServerOptions {
  /** Path of the Unix socket, at most 107 bytes. */
  readonly socket: string;
  readonly port: ControlPort;
  readonly log: Log;
  /** Where /metrics is served over TCP too. */
  readonly metricsListen?: TcpAddress | undefined;
  readonly limits?: HttpLimits;
  /** How often a following journal stream asks for more. */
  readonly followMs?: number;
}

export class ControlServer {
  private readonly servers: Server[] = [];
  private readonly closing = new AbortController();
  private readonly metrics: Metrics;
  private readonly limits: HttpLimits;

  private constructor(private readonly options: ControlServerOptions) {
    this.metrics = new Metrics(options.port);
    this.limits = options.limits ?? HTTP_LIMITS;
  }

  /** Listens. Throws OperatorError `control/in-use` when a daemon answers on the socket, `control/listen` when it cannot be made. */
  static async open(options: ControlServerOptions): Promise<ControlServer> {
    const control = new ControlServer(options);
    try {
      await control.listenUnix(options.socket);
      if (options.metricsListen !== undefined) await control.listenMetrics(options.metricsListen);
    } catch (error) {
      await control.close();
      throw error;
    }
    return control;
  }

  /** Address of the metrics listener, its port resolved. */
  get metricsAddress(): TcpAddress | undefined {
    const bound = this.servers[1]?.address() as AddressInfo | null | undefined;
    return bound === null || bound === undefined ? undefined : { kind: 'tcp', host: bound.address, port: bound.port };
  }

  /** Ends streams and connections, removes the socket; idempotent. */
  async close(): Promise<void> {
    this.closing.abort();
    await Promise.all(
      this.servers.splice(0).map((server) => {
        const closed = new Promise<void>((resolve) => server.close(() => resolve()));
        server.closeAllConnections();
        return closed;
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private async listenUnix(path: string): Promise<void> {
    await clearStale(path);
    // An import's body may take for ever to arrive: readJson bounds the others.
    const server = hardenedServer({ ...this.limits, requestMs: 0 }, this.options.log, (request, response) => this.handle(request, response));
    // The socket must never exist with a wider mode. The umask belongs to the process, but bind happens within listen().
    const umask = process.umask(0o177);
    try {
      await listening(server, () => server.listen(path), path);
      chmodSync(path, 0o600);
    } finally {
      process.umask(umask);
    }
    this.servers.push(server);
  }

  private async listenMetrics(address: TcpAddress): Promise<void> {
    const server = hardenedServer(this.limits, this.options.log, async (request, response) => {
      const path = (request.url ?? '').split('?')[0];
      if (path !== '/metrics') throw usage('only /metrics is served here', 404, 'request/route');
      if (request.method !== 'GET') throw usage('/metrics answers GET only', 405, 'request/method');
      await this.answerMetrics(response);
    });
    await listening(server, () => server.listen(address.port, address.host), formatAddress(address));
    this.servers.push(server);
  }

  private async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // A body that nobody reads must not keep the connection.
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0) response.shouldKeepAlive = false;
    const { route, params, query } = matchRoute(request.method ?? '', request.url ?? '');
    response.once('finish', () => this.metrics.countRequest(`${route.method} ${route.path}`, response.statusCode));
    const gone = goneSignal(request, response);
    const action = route.action(params, route.body ? await readJson(request, this.limits) : query);
    const stream = { port: this.options.port, gone, closing: this.closing.signal, failed: httpError };
    switch (action.kind) {
      case 'export':
        return sendExport(response, action.request, action.follow, stream);
      case 'import':
        return receiveImport(request, response, action.group, stream);
      case 'version':
        return sendJson(response, 200, { name: 'lockstep', version: VERSION, api: 'v1' } satisfies VersionReply);
      case 'metrics':
        return this.answerMetrics(response);
      case 'journal':
        return streamJournal(response, {
          port: this.options.port, request: action.request, follow: action.follow, pollMs: this.options.followMs ?? 200,
          gone, closing: this.closing.signal, failed: (error) => httpError(error),
        });
      case 'call':
        return sendJson(response, action.status, await this.options.port.call(action.request, gone).catch((error: unknown) => { throw httpError(error); }));
    }
  }

  private async answerMetrics(response: ServerResponse): Promise<void> {
    const text = await this.metrics.text().catch((error: unknown) => { throw httpError(error); });
    sendText(response, 200, this.metrics.contentType, text);
  }
}

/** Aborts when the answer can reach nobody any more: the client was killed, or has closed its connection. */
function goneSignal({ socket }: IncomingMessage, response: ServerResponse): AbortSignal {
  const gone = new AbortController();
  const leave = (): void => gone.abort();
  // An answer that waits behind another one of its connection does not hear of the connection's end by itself.
  socket.setMaxListeners(0).once('close', leave);
  response.once('close', () => {
    socket.off('close', leave);
    leave();
  });
  return gone.signal;
}

/** The HTTP status of a failure of the data path. */
function statusOf(failure: ControlFailure): number {
  if (failure.code.startsWith('daemon/')) return 503;
  if (failure.code === 'usage') return 400;
  if (failure.code.endsWith('/not-found')) return 404;
  switch (failure.kind) {
    case 'operator': return 409;
    case 'peer': return 502;
    default: return 500;
  }
}

/** An expected error as an answer; a bug stays what it is. */
function httpError(error: unknown): unknown {
  const failure = failureOf(error);
  return failure === undefined ? error : new HttpError(statusOf(failure), failure);
}

async function listening(server: Server, listen: () => void, where: string): Promise<void> {
  try {
    const started = once(server, 'listening');
    listen();
    await started;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const why = code === 'EADDRINUSE' ? 'the address is in use' : code === 'EACCES' ? 'permission denied' : code === 'ENOENT' ? 'the directory does not exist' : (error as Error).message;
    throw new OperatorError('control/listen', `cannot listen on ${where}: ${why}`);
  }
}

/** Removes the socket of a daemon that is gone, and makes the directory (one level) if it is missing. */
async function clearStale(path: string): Promise<void> {
  // The kernel's limit; node would cut the path off without a word.
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) throw new OperatorError('control/listen', `cannot listen on ${path}: a Unix socket path may have ${MAX_SOCKET_PATH_BYTES} bytes`);
  try {
    if (!lstatSync(path).isSocket()) throw new OperatorError('control/listen', `cannot listen on ${path}: a file that is not a socket is in the way; move it`);
  } catch (error) {
    switch ((error as NodeJS.ErrnoException).code) {
      case 'ENOENT':
        return makeDirectory(dirname(path));
      case 'EACCES': case 'ENOTDIR':
        throw new OperatorError('control/listen', `cannot listen on ${path}: ${(error as NodeJS.ErrnoException).code === 'EACCES' ? 'permission denied' : 'a part of the path is not a directory'}`);
      default:
        throw error;
    }
  }
  if (await answers(path)) throw new OperatorError('control/in-use', `another daemon answers on ${path}; stop it, or give this one its own control.socket`);
  unlinkSync(path);
}

function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory, { mode: 0o755 });
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== 'EEXIST') throw new OperatorError('control/listen', `cannot make the directory ${directory} of the control socket: ${code === 'ENOENT' ? 'its parent does not exist' : (error as Error).message}`);
  }
}

/** Whether anybody accepts connections on the socket. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createConnection(path);
    const done = (answer: boolean): void => {
      probe.destroy();
      resolve(answer);
    };
    probe.once('connect', () => done(true));
    // A full backlog (EAGAIN) or a denied connection is somebody; only a refusal is nobody.
    probe.once('error', (error: NodeJS.ErrnoException) => done(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT'));
  });
}
