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

/** Worker → main, exactly one for each id, in any order. */
export type ReplyEnvelope =
  | { readonly id: number; readonly ok: true; readonly reply: ControlReplies[keyof ControlReplies] }
  | { readonly id: number; readonly ok: false; readonly failure: ControlFailure };

/** Requests that may be under way at once; the control server is refused more. */
export const MAX_CALLS = 256;

export class ControlChannel implements ControlPort {
  private readonly waiting = new Map<number, { resolve: (reply: never) => void; reject: (error: Error) => void }>();
  private nextId = 1;
  private closed: ControlFailure | undefined;

  /** `wake` is called after each post: it ends the worker's wait for readiness. */
  constructor(private readonly port: MessagePort, private readonly wake: () => void) {
    port.on('message', (envelope: ReplyEnvelope) => this.receive(envelope));
  }

  call<R extends ControlRequest>(request: R): Promise<ReplyOf<R>> {
    if (this.closed !== undefined) return Promise.reject(new ControlError(this.closed));
    if (this.waiting.size >= MAX_CALLS) {
      return Promise.reject(new ControlError({ kind: 'operator', code: 'daemon/busy', message: `${MAX_CALLS} control requests are under way; try again when some are done` }));
    }
    const id = this.nextId++;
    return new Promise<ReplyOf<R>>((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve, reject });
      this.port.postMessage({ id, request } satisfies RequestEnvelope, handedOver(request));
      this.wake();
    });
  }

  /** Rejects what is under way and everything after; idempotent. */
  close(why: ControlFailure = { kind: 'operator', code: 'daemon/closing', message: 'the daemon is shutting down' }): void {
    if (this.closed !== undefined) return;
    this.closed = why;
    this.port.close();
    for (const call of this.waiting.values()) call.reject(new ControlError(why));
    this.waiting.clear();
  }

  private receive(envelope: ReplyEnvelope): void {
    const call = this.waiting.get(envelope.id);
    if (call === undefined) return;
    this.waiting.delete(envelope.id);
    if (envelope.ok) call.resolve(envelope.reply as never);
    else call.reject(new ControlError(envelope.failure));
  }
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
