/**
 * Whoever asked for something that may take a while, and may be gone before it
 * is done: a command that was killed, a connection that was dropped.
 *
 * Owns: that everybody who waits on its behalf hears of it once. Must not know:
 * what was asked, or by which way.
 */

import { OperatorError } from './errors.js';

export class Caller {
  private left = false;
  private readonly hooks = new Set<() => void>();

  /** It does not wait for an answer any more. */
  get gone(): boolean {
    return this.left;
  }

  /** Calls `hook` once, when it goes, or at once when it is gone. Returns what takes the hook back. */
  onGone(hook: () => void): () => void {
    if (this.left) {
      hook();
      return () => undefined;
    }
    this.hooks.add(hook);
    return () => void this.hooks.delete(hook);
  }

  /** Idempotent. */
  leave(): void {
    if (this.left) return;
    this.left = true;
    // One that is taken back by an earlier one is not called any more.
    for (const hook of this.hooks) {
      this.hooks.delete(hook);
      hook();
    }
  }
}

/** What a request ends with when its caller goes; nobody hears it. */
export function callerGone(): OperatorError {
  return new OperatorError('control/gone', 'whoever asked has gone: nothing more is done for this request');
}
