/** Operations that wait until the journal is durable up to an LSN. Owns the list; must not know the journal. */

import type { OperatorError } from '../base/errors.js';

/** Called once: with undefined when durable, or with why it never will be. */
export type Durable = (error: OperatorError | undefined) => void;

export class DurableWaits {
  private waits: { readonly lsn: number; readonly done: Durable }[] = [];

  add(lsn: number, done: Durable): void {
    this.waits.push({ lsn, done });
  }

  /** Everything below `lsn` is durable. */
  advance(lsn: number): void {
    if (this.waits.length === 0) return;
    const ready = this.waits.filter((wait) => wait.lsn <= lsn);
    this.waits = this.waits.filter((wait) => wait.lsn > lsn);
    for (const wait of ready) wait.done(undefined);
  }

  failAll(error: OperatorError): void {
    const waits = this.waits;
    this.waits = [];
    for (const wait of waits) wait.done(error);
  }
}
