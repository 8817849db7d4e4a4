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
import { REQUEST_CLOSING, takenBack } from './closing.js';
import { HTTP_LIMITS, HttpError, hardenedServer, readJson, sendJson, sendText, usage } from './http.js';
import type { HttpLimits } from './http.js';
import { streamJournal } from './journal-stream.js';
import { Metrics } from './metrics.js';
import type { ControlFailure, ControlPort } from './port.js';
import { ControlError } from './port.js';
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

/** A stop waits so long, at the most, for the answers of what was under way to reach their clients. */
const ANSWER_MS = 1000;

export class ControlServer {
  private readonly servers: Server[] = [];
  private readonly closing = new AbortController();
  /** Of each request that has not been answered: aborts when it is, or when its client has gone. */
  private readonly unanswered = new Set<AbortSignal>();
  private closed: Promise<void> | undefined;
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

  /**
   * Listens no more, removes the socket, ends streams and what waits with `daemon/closing`, and then connections, after
   * ANSWER_MS also those of clients that have not taken their answer; idempotent.
   */
  close(): Promise<void> {
    return (this.closed ??= this.end());
  }

  private async end(): Promise<void> {
    this.closing.abort();
    const servers = this.servers.splice(0);
    const closed = servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve())));
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([
      Promise.all([...this.unanswered].map((answered) => once(answered, 'abort'))),
      new Promise((resolve) => (timer = setTimeout(resolve, ANSWER_MS))),
    ]);
    clearTimeout(timer);
    for (const server of servers) server.closeAllConnections();
    await Promise.all(closed);
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
      this.track(signalsOf(request, response, this.closing.signal).gone);
      await this.answerMetrics(response);
    });
    await listening(server, () => server.listen(address.port, address.host), formatAddress(address));
    this.servers.push(server);
  }

  private async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // A body that nobody reads must not keep the connection.
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0) response.shouldKeepAlive = false;
    const { route, params, query } = matchRoute(request.method ?? '', request.url ?? '');
    response.once('finish', () => {
      this.metrics.countRequest(`${route.method} ${route.path}`, response.statusCode);
      if (this.closing.signal.aborted) request.socket.end();
    });
    const { gone, ended } = signalsOf(request, response, this.closing.signal);
    const action = route.action(params, route.body ? await readJson(request, this.limits) : query);
    // A client that still writes the body of an import loses its answer when the connection is closed before it hangs up.
    this.track(action.kind === 'import' ? hungUp(request) : gone);
    const failed = (error: unknown): unknown => httpError(takenBack(error) && !gone.aborted ? new ControlError(REQUEST_CLOSING) : error);
    const stream = { port: this.options.port, gone, ended, failed };
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
          ...stream, request: action.request, follow: action.follow, pollMs: this.options.followMs ?? 200,
        });
      case 'call':
        await heard();
        if (gone.aborted) {
          if (route.method !== 'GET') this.options.log.warn(`${route.method} ${route.path} was not begun: its client has gone`, params);
          return;
        }
        return sendJson(response, action.status, await this.options.port.call(action.request, ended).catch((error: unknown) => { throw failed(error); }));
    }
  }

  /** A stop waits for it. */
  private track(answered: AbortSignal): void {
    this.unanswered.add(answered);
    answered.addEventListener('abort', () => this.unanswered.delete(answered), { once: true });
  }

  private async answerMetrics(response: ServerResponse): Promise<void> {
    const text = await this.metrics.text().catch((error: unknown) => { throw httpError(error); });
    sendText(response, 200, this.metrics.contentType, text);
  }
}

/**
 * Resolves when the end of a connection that the kernel has told together with its request was heard, too: a request
 * may have lain in its socket while this process stood still, and its client, killed meanwhile, has let go of what it
 * asked this for (a frozen file system is frozen no more).
 */
function heard(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * `gone` aborts when the answer can reach nobody any more: it was given, the client was killed, or has closed its
 * connection. `ended` aborts then, too, and when `closing` does.
 */
function signalsOf({ socket }: IncomingMessage, response: ServerResponse, closing: AbortSignal): { readonly gone: AbortSignal; readonly ended: AbortSignal } {
  const gone = new AbortController();
  const ended = new AbortController();
  const end = (): void => ended.abort();
  const leave = (): void => {
    socket.off('close', leave);
    socket.off('end', leave);
    closing.removeEventListener('abort', end);
    gone.abort();
    end();
  };
  // An answer that waits behind another one of its connection does not hear of the connection's end by itself.
  // Its end is heard first; node answers nothing on a connection whose client has ended it.
  socket.setMaxListeners(0).once('end', leave).once('close', leave);
  response.once('close', leave);
  // By hand: AbortSignal.any would leave something of every request behind in `closing`.
  closing.addEventListener('abort', end, { once: true });
  if (closing.aborted) end();
  return { gone: gone.signal, ended: ended.signal };
}

/** Aborts when the connection has ended. */
function hungUp({ socket }: IncomingMessage): AbortSignal {
  const over = new AbortController();
  socket.setMaxListeners(0).once('close', () => over.abort());
  return over.signal;
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
