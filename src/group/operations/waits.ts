/** Operations that wait until the journal is durable up to an LSN. Owns the list; must not know the journal. */

import type { OperatorError } from '../../base/errors.js';

/** Called once: with undefined when durable, or with why it never will be. */
export type Durable = (error: OperatorError | undefined) => void;

export class DurableWaits {
  private waits: { readonly lsn: number; readonly done: Durable }[] = [];

  /** Has `journal` made durable up to `lsn`. Returns what takes the wait back: `done` is not called then. */
  add(lsn: number, done: Durable, journal: { sync(lsn: number): void }): () => void {
    const wait = { lsn, done };
    this.waits.push(wait);
    journal.sync(lsn);
    return () => void (this.waits = this.waits.filter((one) => one !== wait));
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
