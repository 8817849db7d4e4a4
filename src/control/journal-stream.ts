/**
 * The journal as lines of JSON, page by page, at the reader's pace.
 *
 * Owns: paging, following, back-pressure of one stream. Must not know: what a
 * record means.
 */

import type { ServerResponse } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { failureOf } from './channel.js';
import { closingFailure, takenBack } from './closing.js';
import { errorBody } from './http.js';
import type { ControlPort, JournalPage, JournalRequest } from './port.js';

export interface JournalStream {
  readonly port: ControlPort;
  readonly request: JournalRequest;
  readonly follow: boolean;
  readonly pollMs: number;
  /** Aborts when the reader has gone. */
  readonly gone: AbortSignal;
  /** Aborts then, and when the server closes. */
  readonly ended: AbortSignal;
  /** Words an error of the first page, when the HTTP status can still be chosen. */
  readonly failed: (error: unknown) => unknown;
}

/** A reader that takes nothing for this long is disconnected. */
const SLOW_READER_MS = 60_000;

/**
 * Resolves when the stream has ended, by its end, the reader, the server or an error; an error on the way is its last
 * line, and so is that the daemon shuts down: a dump that is cut off must not look whole.
 */
export async function streamJournal(response: ServerResponse, stream: JournalStream): Promise<void> {
  const { gone, ended } = stream;
  let page: JournalPage = await stream.port.call(stream.request, ended).catch((error: unknown) => { throw stream.failed(error); });
  // Writers go on: without follow the dump ends at what was appended when it began.
  const to = stream.request.to ?? (stream.follow ? null : page.appended);
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  response.flushHeaders();
  try {
    for (;;) {
      const lines = page.records.filter((record) => to === null || record.lsn < to).map((record) => `${JSON.stringify(record)}\n`);
      if (lines.length > 0 && !response.write(lines.join(''))) await drained(response, ended, SLOW_READER_MS);
      if (to !== null && page.next >= to) break;
      if (page.end && !stream.follow) break;
      // It rejects at the end of the stream only, and then the call does.
      if (page.end) await sleep(stream.pollMs, undefined, { signal: ended }).catch(() => undefined);
      page = await stream.port.call({ ...stream.request, from: page.next, to }, ended);
    }
  } catch (error) {
    if (gone.aborted) return;
    const failure = takenBack(error) ? closingFailure(`: the journal was told up to LSN ${page.next}; ask from there once the daemon runs again`) : failureOf(error);
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
