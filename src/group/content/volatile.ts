/**
 * How a group with a volatile journal makes anything durable (DESIGN §3, §5).
 *
 * The journal lies in memory. It outlives the daemon, not the power: no
 * fdatasync of it proves anything. A record is durable when its effect is: its
 * blocks are in the layers' files, and a committed checkpoint names maps and
 * tree with it. So FLUSH, FUA and operations wait for a *round*:
 *
 *   1. seal      the pending table is sealed and a checkpoint captured, at one and the same LSN
 *   2. destage   all that was sealed goes to the layers' files, fdatasync  } at the
 *   3. maps      what was captured goes to the map file, fdatasync         } same time
 *   4. commit    when both have ended: the slot. From here everything below the LSN is durable
 *
 * One round serves all that wait when it begins; those that come later wait for
 * the next one (group commit).
 *
 * The write-ahead rule does not wait for the journal: `stable` is what was
 * appended. Between two commits blocks are overwritten in place with content
 * that no checkpoint knows, so after a power loss the disk holds no state that
 * ever was. After a stop in order it does: see `exact`.
 *
 * Owns: when a round begins, what it makes durable. Must not know: files,
 * records, roles.
 */

import type { Reactor } from '../../io/reactor.js';
import type { Journal } from '../../journal/journal.js';
import type { Checkpointer } from '../../store/checkpointer.js';
import type { Destager } from '../../store/destager.js';
import type { Store } from '../../store/store.js';

export interface RoundsHost {
  readonly journal: Journal;
  readonly store: Store;
  readonly destager: Destager;
  readonly checkpointer: Checkpointer;
  readonly appliedLsn: number;
  /** Everything below is in the layers' files. */
  readonly destagedLsn: number;
  /** A checkpoint is wanted for other reasons than durability. */
  checkpointDue(): boolean;
  /** Captures now: a checkpoint whose low-water mark is its own position. */
  beginCheckpoint(): void;
}

export class VolatileRounds {
  private finishing = false;
  /** Layer files may have been written up to here. */
  private writtenLsn = 0;

  constructor(private readonly reactor: Reactor, private readonly host: RoundsHost) {}

  /** The destager has sealed what was applied by now. */
  sealed(): void {
    this.host.beginCheckpoint();
    this.reactor.again();
  }

  /** A round of the destager has ended; or, at the start, an earlier process may have got so far. */
  written(lsn: number): void {
    this.writtenLsn = lsn;
    this.reactor.again();
  }

  /** Once a tick, in place of destager and checkpointer. `stable`: nothing below can be undone. */
  poll(stable: number): void {
    const { host } = this;
    const { destager, checkpointer, store } = host;
    host.journal.commit.settle(checkpointer.committedAt.lsn);
    if (!destager.busy && !checkpointer.busy && this.wanted) {
      if (store.pending.blocks > 0) destager.request();
      else host.beginCheckpoint();
    }
    // By itself the destager begins only where a checkpoint can be captured with it.
    if (destager.busy || !checkpointer.busy) destager.poll(stable);
    checkpointer.poll(Math.min(stable, host.destagedLsn));
  }

  private get wanted(): boolean {
    const { journal, appliedLsn, checkpointer } = this.host;
    const asked = this.finishing ? appliedLsn : Math.min(journal.commit.wantedLsn, appliedLsn);
    return asked > checkpointer.committedAt.lsn || this.host.checkpointDue();
  }

  /** The node is about to stop: everything is to be made durable. */
  finish(): void {
    this.finishing = true;
    this.reactor.again();
  }

  /** The disk holds what the newest checkpoint says, and nothing beyond: then the journal is not needed any more. */
  get exact(): boolean {
    const { destager, checkpointer } = this.host;
    return !destager.writing && !checkpointer.committing && this.writtenLsn <= checkpointer.committedAt.lsn;
  }

  /** As much as can be made durable is. What lies above `stable` on a secondary will be sent again. */
  finished(stable: number): boolean {
    const { checkpointer, destager, appliedLsn } = this.host;
    if (checkpointer.committedAt.lsn === appliedLsn) return this.exact;
    const waits = (busy: boolean, lsn: number): boolean => !busy || lsn > stable;
    return stable < appliedLsn && waits(destager.busy, destager.sealedLsn) && waits(checkpointer.busy, checkpointer.capturedLsn);
  }

  /** Why a round does not end. */
  get failure(): string | undefined {
    return this.host.destager.lastError ?? this.host.checkpointer.lastError;
  }
}
