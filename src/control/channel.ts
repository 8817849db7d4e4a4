/**
 * ControlPort over a MessagePort: the main thread's half, and the envelopes
 * that the worker's half reads and posts.
 *
 * Owns: matching replies to requests. Must not know: what requests mean.
 */

import type { MessagePort } from 'node:worker_threads';
import { CorruptionError, IoError, OperatorError, PeerError } from '../base/errors.js';
import { handedOver } from './carry.js';
import type { ControlFailure, ControlPort, ControlReplies, ControlRequest, ReplyOf } from './port.js';
import { ControlError } from './port.js';

/** Main → worker. */
export interface RequestEnvelope {
  readonly id: number;
  readonly request: ControlRequest;
}

/** Main → worker: nobody waits for the answer to this request any more; one that comes all the same is dropped. */
export interface GoneEnvelope {
  readonly id: number;
  readonly gone: true;
}

/** Worker → main, at most one for each id, and exactly one unless its caller has gone; in any order. */
export type ReplyEnvelope =
  | { readonly id: number; readonly ok: true; readonly reply: ControlReplies[keyof ControlReplies] }
  | { readonly id: number; readonly ok: false; readonly failure: ControlFailure };

/** Requests that may be under way at once; the control server is refused more. */
export const MAX_CALLS = 256;

interface Call {
  readonly resolve: (reply: never) => void;
  readonly reject: (error: Error) => void;
  /** Before either of them. */
  readonly settled: () => void;
}

export class ControlChannel implements ControlPort {
  private readonly waiting = new Map<number, Call>();
  private nextId = 1;
  private closed: ControlFailure | undefined;

  /** `wake` is called after each post: it ends the worker's wait for readiness. */
  constructor(private readonly port: MessagePort, private readonly wake: () => void) {
    port.on('message', (envelope: ReplyEnvelope) => this.receive(envelope));
  }

  call<R extends ControlRequest>(request: R, gone?: AbortSignal): Promise<ReplyOf<R>> {
    if (this.closed !== undefined) return Promise.reject(new ControlError(this.closed));
    if (gone?.aborted === true) return Promise.reject(goneError());
    if (this.waiting.size >= MAX_CALLS) {
      return Promise.reject(new ControlError({ kind: 'operator', code: 'daemon/busy', message: `${MAX_CALLS} control requests are under way; try again when some are done` }));
    }
    const id = this.nextId++;
    return new Promise<ReplyOf<R>>((resolve, reject) => {
      const leave = (): void => this.leave(id);
      this.waiting.set(id, { resolve, reject, settled: () => gone?.removeEventListener('abort', leave) });
      gone?.addEventListener('abort', leave, { once: true });
      this.port.postMessage({ id, request } satisfies RequestEnvelope, handedOver(request));
      this.wake();
    });
  }

  private leave(id: number): void {
    this.take(id)?.reject(goneError());
    this.port.postMessage({ id, gone: true } satisfies GoneEnvelope);
    this.wake();
  }

  /** The call, which is to be settled now. */
  private take(id: number): Call | undefined {
    const call = this.waiting.get(id);
    this.waiting.delete(id);
    call?.settled();
    return call;
  }

  /** Rejects what is under way and everything after; idempotent. */
  close(why: ControlFailure = { kind: 'io', code: 'daemon/closing', message: 'the daemon is shutting down' }): void {
    if (this.closed !== undefined) return;
    this.closed = why;
    this.port.close();
    for (const id of [...this.waiting.keys()]) this.take(id)?.reject(new ControlError(why));
  }

  private receive(envelope: ReplyEnvelope): void {
    const call = this.take(envelope.id);
    if (call === undefined) return;
    if (envelope.ok) call.resolve(envelope.reply as never);
    else call.reject(new ControlError(envelope.failure));
  }
}

function goneError(): ControlError {
  return new ControlError({ kind: 'operator', code: 'control/gone', message: 'whoever asked has gone' });
}

/** An expected error as data; undefined for anything else, which is a bug of ours. */
export function failureOf(error: unknown): ControlFailure | undefined {
  if (error instanceof ControlError) return { kind: error.kind, code: error.code, message: error.message };
  if (error instanceof OperatorError) return { kind: 'operator', code: error.code, message: error.message };
  if (error instanceof CorruptionError) return { kind: 'corruption', code: error.code, message: error.message };
  if (error instanceof PeerError) return { kind: 'peer', code: error.code, message: error.message };
  if (error instanceof IoError) return { kind: 'io', code: error.code, message: error.message };
  return undefined;
}
