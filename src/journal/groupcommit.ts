/**
 * What of a journal is durable (DESIGN §3): the fdatasyncs, each of which serves
 * all who wait.
 *
 * Owns: durableLsn, when an fdatasync is due, the durable marks in the segments'
 * headers. Must not know: batches, who waits for what.
 *
 * A failed fdatasync is final: it is reported once, to the journal, and nothing
 * becomes durable any more. The kernel may have dropped the dirty pages, so
 * trying again could report as durable what is lost.
 */

import { assert } from '../base/assert.js';
import { JobOp, JobTable, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { SegmentPool } from './segments.js';

export interface GroupCommitOptions {
  /** An fdatasync by itself when this many bytes ... */
  readonly syncBytes: number;
  /** ... or microseconds have passed since the last one. */
  readonly syncUs: number;
  /** Nothing is durable by an fdatasync, but by what `settle` is told. */
  readonly volatile: boolean;
}

/** The journal, as far as its group commit needs it. */
export interface Committed {
  readonly pool: SegmentPool;
  /** Written to the page cache. */
  readonly appendedLsn: number;
  /** It has failed: nothing more is synced. */
  readonly failed: boolean;
  /** Ends the journal's use for −`result`. Returns `result`. */
  fail(result: number, doing: string): number;
  /** `durableLsn` has moved. */
  durableMoved(): void;
}

const MARK_INTERVAL_US = 1_000_000;

export class GroupCommit {
  /** Covered by an fdatasync that succeeded: survives power loss. */
  durableLsn = 0;
  /** What `sync` was asked for. */
  wantedLsn = 0;
  /** fdatasyncs that have ended, `now` not counted. */
  count = 0;
  /** An fdatasync is in flight. */
  inFlight = false;
  private unsyncedSinceUs = -1;
  private lastMarkUs = 0;
  private markedLsn = 0;
  private closed = false;
  private readonly table = new JobTable(4);

  constructor(private readonly reactor: Reactor, private readonly journal: Committed, private readonly options: GroupCommitOptions) {}

  /** Everything below `durableLsn` is durable, and nothing else is waited for. */
  begin(durableLsn: number): void {
    this.durableLsn = durableLsn;
    this.wantedLsn = 0;
    this.unsyncedSinceUs = -1;
  }

  /** After each append. */
  appended(): void {
    if (this.options.volatile) return;
    if (this.unsyncedSinceUs < 0) this.unsyncedSinceUs = this.reactor.nowUs;
    if (this.journal.appendedLsn - this.durableLsn >= this.options.syncBytes) this.sync(this.journal.appendedLsn);
  }

  /** Makes everything up to `lsn` durable; calls join. A volatile journal only notes it, for whoever calls `settle`. */
  sync(lsn: number): void {
    if (lsn <= this.durableLsn || this.journal.failed) return;
    if (lsn > this.wantedLsn) this.wantedLsn = lsn;
    if (!this.inFlight && !this.options.volatile) this.start();
  }

  /** Of a volatile journal: what lies below `lsn` is durable elsewhere. */
  settle(lsn: number): void {
    assert(this.options.volatile && lsn <= this.journal.appendedLsn, 'only what a volatile journal holds is settled');
    if (lsn <= this.durableLsn) return;
    this.durableLsn = lsn;
    this.journal.durableMoved();
  }

  /** Makes everything appended durable before it returns. Returns 0 or −errno. A volatile journal stays as durable as it is. */
  now(): number {
    if (this.options.volatile) return 0;
    for (const segment of this.journal.pool.live) {
      if (!segment.dirty && !this.inFlight) continue;
      segment.dirty = false;
      const result = this.reactor.io.fdatasync(segment.fd);
      if (result < 0) return this.journal.fail(result, 'fdatasync the journal');
      segment.headed = true;
    }
    this.unsyncedSinceUs = -1;
    this.durableLsn = this.journal.appendedLsn;
    return 0;
  }

  /** Once a tick: the bound in time. */
  poll(): void {
    if (this.unsyncedSinceUs >= 0 && !this.inFlight && this.reactor.nowUs - this.unsyncedSinceUs >= this.options.syncUs) {
      this.sync(this.journal.appendedLsn);
    }
  }

  private start(): void {
    const target = this.journal.appendedLsn;
    const table = this.table.clear();
    const synced = this.journal.pool.live.filter((segment) => segment.dirty);
    for (const segment of synced) {
      segment.dirty = false;
      segment.holds++;
      table.add(JobOp.fdatasync, segment.fd, 0, 0, 0);
    }
    this.inFlight = true;
    this.unsyncedSinceUs = -1;
    this.reactor.submit(Queue.sync, table, (result) => {
      for (const segment of synced) segment.holds--;
      this.inFlight = false;
      if (this.closed) return;
      this.count++;
      if (result < 0) {
        this.journal.fail(result, 'fdatasync the journal');
        return;
      }
      for (const segment of synced) segment.headed = true;
      this.durableLsn = Math.max(this.durableLsn, target);
      if (this.wantedLsn > this.durableLsn) this.start();
      this.mark();
      this.journal.durableMoved();
    });
  }

  /** Notes in the newest segment's header how far it is durable, for recovery to tell damage from a torn tail. */
  private mark(): void {
    if (this.markedLsn === this.durableLsn || this.reactor.nowUs - this.lastMarkUs < MARK_INTERVAL_US) return;
    this.lastMarkUs = this.reactor.nowUs;
    this.markedLsn = this.durableLsn;
    const result = this.journal.pool.mark(this.durableLsn);
    if (result < 0) this.journal.fail(result, 'write the durable mark of the journal');
  }

  /** What is in flight changes nothing any more. */
  close(): void {
    this.closed = true;
  }
}
