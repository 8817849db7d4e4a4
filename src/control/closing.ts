/**
 * What the clients of a daemon that shuts down are told.
 *
 * Owns: those sentences, and which error of a call means that. Must not know:
 * HTTP, how anything ends.
 */

import { failureOf } from './channel.js';
import type { ControlFailure } from './port.js';

/** `what` goes on after "the daemon is shutting down". No fault of whoever asked: `lockstep` exits 1, as without a daemon. */
export function closingFailure(what: string): ControlFailure {
  return { kind: 'io', code: 'daemon/closing', message: `the daemon is shutting down${what}` };
}

/** For a request that waited, or came now. True because its call is taken back before the data thread is told to close. */
export const REQUEST_CLOSING = closingFailure(
  ' and ends this request without an answer: an operation that was appended by now stays, one that was not is not done any more'
  + ' (lockstep list and lockstep operations show which once the daemon runs again); whatever only waits or reads can be asked again then',
);

/** Whether a call failed because it was taken back. */
export function takenBack(error: unknown): boolean {
  return failureOf(error)?.code === 'control/gone';
}
