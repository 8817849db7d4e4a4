/**
 * The exported journal over HTTP: its bytes in chunks, at the reader's and the
 * importing node's pace.
 *
 * Owns: the loops, back-pressure, how an error is told half-way. Must not know:
 * what the bytes mean.
 *
 * A 200 cannot be taken back: an export that fails says so in the trailer
 * `lockstep-error` (percent-encoded JSON of an ErrorReply), an import in the last
 * line of its answer. Both streams then end where a frame ends.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExportOpenRequest } from './carry.js';
import { MAX_IMPORT_BYTES } from './carry.js';
import { failureOf } from './channel.js';
import { closingFailure, takenBack } from './closing.js';
import { errorBody } from './http.js';
import { drained } from './journal-stream.js';
import type { ControlPort } from './port.js';
import { ControlError } from './port.js';
import type { ImportState } from './schema/replies.js';

export interface CarryStream {
  readonly port: ControlPort;
  /** Aborts when the client has gone. */
  readonly gone: AbortSignal;
  /** Aborts then, and when the server closes. */
  readonly ended: AbortSignal;
  /** Words an error when the HTTP status can still be chosen. */
  readonly failed: (error: unknown) => unknown;
}

/** A stream that has nothing to say gives a sign of life so often: a pipe that has gone is noticed by writing to it. */
const BEAT_SECONDS = 1;
/** How often an import tells its position when that does not move, and finds out that its client has gone. */
const TELL_SECONDS = 0.5;
/** Rest between two tellings: acknowledgements cost the exporting node a write each. */
const REST_MS = 20;

/** Resolves when the stream has ended, by its end, the reader, the server or an error. */
export async function sendExport(response: ServerResponse, request: ExportOpenRequest, follow: boolean, stream: CarryStream): Promise<void> {
  const { gone, ended } = stream;
  const { group, cursor } = request;
  let part = await stream.port.call(request, ended).catch((error: unknown) => { throw stream.failed(error); });
  // Writers go on: without follow it ends at what was durable when it began.
  const to = follow ? null : part.durable;
  response.writeHead(200, { 'content-type': 'application/octet-stream', trailer: 'lockstep-error' });
  try {
    for (;;) {
      // A reader may be slow for as long as it likes: the cursor keeps the journal for it anyway.
      if (!response.write(part.bytes)) await drained(response, ended, undefined);
      if (part.end) break;
      part = await stream.port.call({ op: 'exportPage', group, cursor, place: part.place, to, waitSeconds: BEAT_SECONDS }, ended);
    }
  } catch (error) {
    if (gone.aborted) return;
    const failure = takenBack(error)
      ? closingFailure(`: the export ends here, with a whole frame; cursor ${cursor} keeps what is not acknowledged: export again once the daemon runs`)
      : failureOf(error);
    if (failure === undefined) throw error;
    response.addTrailers(trailer(failure));
  }
  response.end();
}

function trailer(failure: Parameters<typeof errorBody>[0]): Record<string, string> {
  return { 'lockstep-error': encodeURIComponent(JSON.stringify(errorBody(failure))) };
}

/** Tells how far the import has come, until `over`, or until the session ends; why it did is told by whoever ends it. */
async function tellProgress(port: ControlPort, session: number, from: ImportState, over: AbortSignal, tell: (state: ImportState) => void): Promise<void> {
  let told = from.position;
  try {
    while (!over.aborted) {
      const state = await port.call({ op: 'importState', session, told, waitSeconds: TELL_SECONDS }, over);
      told = state.position;
      tell(state);
      await sleep(REST_MS, undefined, { signal: over });
    }
  } catch (error) {
    if (!over.aborted && failureOf(error) === undefined) throw error;
  }
}

/** The chunks of a request's body until it has ended, or until `ended` aborts; leaves the connection as it is: the answer goes the same way. */
async function* bodyUntil(request: IncomingMessage, ended: AbortSignal): AsyncGenerator<Buffer> {
  const chunks = request.iterator({ destroyOnReturn: false }) as AsyncIterator<Buffer>;
  let stop: () => void = () => undefined;
  ended.addEventListener('abort', () => stop(), { once: true });
  try {
    while (!ended.aborted) {
      const next = await new Promise<IteratorResult<Buffer> | undefined>((resolve, reject) => {
        stop = () => resolve(undefined);
        chunks.next().then(resolve, reject);
      });
      if (next === undefined || next.done === true) return;
      yield next.value;
    }
  } finally {
    const released = chunks.return?.().catch(() => undefined);
    // It waits for a chunk that was asked for, which may never come.
    if (!ended.aborted) await released;
  }
}

/** Resolves when the input has ended and what was taken of it is durable, or the client has gone, or the server closes. */
export async function receiveImport(request: IncomingMessage, response: ServerResponse, group: string, stream: CarryStream): Promise<void> {
  const { port, gone, ended } = stream;
  // The client still writes when it is refused: on a connection that is closed then, its writing fails, and it loses the
  // answer. It hangs up when it has read that, or the server's time for idle connections ends it.
  response.shouldKeepAlive = true;
  const opened = await port.call({ op: 'importOpen', group }).catch((error: unknown) => {
    // For the same reason what is on its way is read.
    request.resume();
    throw stream.failed(error);
  });
  const { session } = opened;
  let ending: Promise<ImportState> | undefined;
  const end = (): Promise<ImportState> => (ending ??= port.call({ op: 'importEnd', session }));
  // Also while a push waits for room in the journal.
  const stop = (): void => void end().catch(() => undefined);
  ended.addEventListener('abort', stop, { once: true });
  if (ended.aborted) stop();

  // Also when nothing has changed: while a push waits nothing is read, and only a write finds out that the client has gone.
  const tell = (state: ImportState): void => {
    if (!response.writableNeedDrain) response.write(`${JSON.stringify(state)}\n`);
  };
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  tell(opened.state);
  const over = new AbortController();
  const telling = tellProgress(port, session, opened.state, over.signal, tell);
  let problem: unknown;
  try {
    for await (const chunk of bodyUntil(request, ended)) {
      for (let at = 0; at < chunk.length; at += MAX_IMPORT_BYTES) {
        await port.call({ op: 'importPush', session, bytes: Uint8Array.from(chunk.subarray(at, at + MAX_IMPORT_BYTES)) });
      }
    }
  } catch (error) {
    problem = error;
  } finally {
    over.abort();
  }
  await telling;
  const last = await end().catch((error: unknown) => void (problem ??= error));
  if (gone.aborted || response.destroyed) return;
  if (ended.aborted && (problem === undefined ? !request.readableEnded : failureOf(problem)?.code === 'import/ended')) {
    problem = new ControlError(closingFailure(': the import ends here, and what came up to the position told last is durable; export again from there once the daemon runs'));
  }
  if (last !== undefined) response.write(`${JSON.stringify(last)}\n`);
  if (problem !== undefined) {
    const failure = failureOf(problem);
    if (failure === undefined) throw problem instanceof Error ? problem : new Error(String(problem));
    response.write(`${JSON.stringify(errorBody(failure))}\n`);
  }
  response.end();
  request.resume();
}
