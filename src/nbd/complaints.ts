/**
 * Log entries that a peer can cause at will, of which only so many are written.
 *
 * Owns: the count per period. Must not know: what is complained about.
 */

import type { Log, LogFields } from '../base/log.js';

const PERIOD_US = 10_000_000;
const PER_PERIOD = 50;

export class Complaints {
  private periodEndUs = -Infinity;
  private written = 0;
  private suppressed = 0;

  constructor(
    private readonly log: Log,
    private readonly clock: { readonly nowUs: number },
  ) {}

  /** A warning; after `PER_PERIOD` of them within ten seconds the others are only counted. */
  warn(message: string, fields: LogFields): void {
    const now = this.clock.nowUs;
    if (now >= this.periodEndUs) {
      if (this.suppressed > 0) this.log.warn('more NBD complaints were left out', { count: this.suppressed });
      this.periodEndUs = now + PERIOD_US;
      this.written = 0;
      this.suppressed = 0;
    }
    if (this.written === PER_PERIOD) {
      this.suppressed++;
      return;
    }
    this.written++;
    this.log.warn(message, fields);
  }
}
