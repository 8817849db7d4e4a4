/**
 * The journal as lines of JSON, page by page, at the reader's pace.
 *
 * Owns: paging, following, back-pressure of one stream. Must not know: what a
 * record means.
 */

import type { ServerResponse } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { errorBody } from './http.js';
import { failureOf } from './channel.js';
import type { ControlPort, JournalPage, JournalRequest } from './port.js';

export interface JournalStream {
  readonly port: ControlPort;
  readonly request: JournalRequest;
  readonly follow: boolean;
  readonly pollMs: number;
  /** Aborts when the reader has gone. */
  readonly gone: AbortSignal;
  /** Ends the stream when the server closes. */
  readonly closing: AbortSignal;
  /** Words an error of the first page, when the HTTP status can still be chosen. */
  readonly failed: (error: unknown) => unknown;
}

/** A reader that takes nothing for this long is disconnected. */
const SLOW_READER_MS = 60_000;

/** Resolves when the stream has ended, by its end, the reader or an error; an error on the way is its last line. */
export async function streamJournal(response: ServerResponse, stream: JournalStream): Promise<void> {
  const signal = AbortSignal.any([stream.gone, stream.closing]);
  let page: JournalPage = await stream.port.call(stream.request).catch((error: unknown) => { throw stream.failed(error); });
  // Writers go on: without follow the dump ends at what was appended when it began.
  const to = stream.request.to ?? (stream.follow ? null : page.appended);
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  response.flushHeaders();
  try {
    while (!signal.aborted) {
      const lines = page.records.filter((record) => to === null || record.lsn < to).map((record) => `${JSON.stringify(record)}\n`);
      if (lines.length > 0 && !response.write(lines.join(''))) await drained(response, signal, SLOW_READER_MS);
      if (to !== null && page.next >= to) break;
      if (page.end && !stream.follow) break;
      if (page.end) await sleep(stream.pollMs, undefined, { signal });
      if (signal.aborted) break;
      page = await stream.port.call({ ...stream.request, from: page.next, to });
    }
  } catch (error) {
    if (signal.aborted) return;
    const failure = failureOf(error);
    if (failure === undefined) throw error;
    response.write(`${JSON.stringify(errorBody(failure))}\n`);
  }
  response.end();
}

/** Resolves when the reader takes more, or is gone; one that takes nothing for `slowMs` is disconnected. */
export async function drained(response: ServerResponse, signal: AbortSignal, slowMs: number | undefined): Promise<void> {
  if (signal.aborted) return;
  const slow = slowMs === undefined ? undefined : AbortSignal.timeout(slowMs);
  await new Promise<void>((resolve) => {
    const done = (): void => {
      response.off('drain', done);
      signal.removeEventListener('abort', done);
      slow?.removeEventListener('abort', cut);
      resolve();
    };
    const cut = (): void => {
      response.destroy();
      done();
    };
    response.on('drain', done);
    signal.addEventListener('abort', done);
    slow?.addEventListener('abort', cut);
  });
}
