/**
 * How old the oldest record is that a peer lacks.
 *
 * Owns: a bounded set of (LSN, wall clock) samples of a group's appends. Must
 * not know: links. When the set is full every second sample goes, so old ages
 * are coarse and recent ones sharp.
 */

const CAPACITY = 1024;
const STEP_MS = 20;

export class LagClock {
  private readonly lsns = new Float64Array(CAPACITY);
  private readonly times = new Float64Array(CAPACITY);
  private count = 0;

  /** A batch that begins at `lsn` was built at `wallMs`. LSNs ascend; one that does not begins anew (a rewind). */
  note(lsn: number, wallMs: number): void {
    if (this.count > 0) {
      if (lsn <= this.lsns[this.count - 1]) this.count = 0;
      else if (wallMs - this.times[this.count - 1] < STEP_MS) return;
    }
    if (this.count === CAPACITY) {
      for (let i = 0; i < CAPACITY / 2; i++) {
        this.lsns[i] = this.lsns[2 * i];
        this.times[i] = this.times[2 * i];
      }
      this.count = CAPACITY / 2;
    }
    this.lsns[this.count] = lsn;
    this.times[this.count++] = wallMs;
  }

  /** The batch at `lsn`, older than every sample, was built at `wallMs`: known from reading the journal. */
  noteOld(lsn: number, wallMs: number): void {
    if (wallMs === 0 || (this.count > 0 && lsn >= this.lsns[0])) return;
    if (this.count === CAPACITY) this.count--;
    this.lsns.copyWithin(1, 0, this.count);
    this.times.copyWithin(1, 0, this.count);
    this.lsns[0] = lsn;
    this.times[0] = wallMs;
    this.count++;
  }

  /**
   * Seconds since the batch at `lsn` was built, as of `nowMs`: from the last sample at or below it (so rather too long
   * than too short), else from the first one above. 0 without samples.
   */
  secondsSince(lsn: number, nowMs: number): number {
    if (this.count === 0) return 0;
    let low = 0;
    let high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.lsns[middle] <= lsn) low = middle;
      else high = middle - 1;
    }
    return Math.max(0, nowMs - this.times[low]) / 1000;
  }
}
