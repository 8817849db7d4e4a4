/**
 * When a walk in search of free space is worth it.
 *
 * Owns: what was dropped and not yet looked for, and the rest between walks.
 * Must not know: what a walk does.
 */
import type { Store } from './store.js';

export interface DueOptions {
  /** A walk that left something over, or failed, is repeated after this at the earliest, microseconds. */
  readonly retryUs: number;
  /** A walk rests at least this many times as long as it took ... */
  readonly restFactor: number;
  /** ... and this, microseconds. */
  readonly restUs: number;
  /** Writes of so many blocks are a reason for a walk where there are frozen layers. */
  readonly overwrittenBlocks: number;
}

/** Store.drops and Store.overwrittenBlocks at one instant. */
export interface Dropped {
  readonly drops: number;
  readonly overwrittenBlocks: number;
}

export class WalkDue {
  /** Looked for; −1: nobody knows what the process before this one left. */
  private handled: Dropped = { drops: -1, overwrittenBlocks: 0 };
  private leftOver = false;
  private notBeforeUs = -Infinity;

  constructor(private readonly store: Store, private readonly options: DueOptions) {}

  /** Whether a walk would find something of `dropped`. */
  isDue(dropped: Dropped, nowUs: number): boolean {
    if (nowUs < this.notBeforeUs) return false;
    const { layers } = this.store;
    if (dropped.drops > this.handled.drops || this.leftOver) return layers.count > 0;
    if (dropped.overwrittenBlocks - this.handled.overwrittenBlocks < this.options.overwrittenBlocks) return false;
    for (const layer of layers.all()) if (layer.frozenLsn !== 0) return true;
    this.handled = { drops: this.handled.drops, overwrittenBlocks: dropped.overwrittenBlocks };
    return false;
  }

  /** A walk ended; `looked`: what it had looked for, unless it failed. */
  ended(looked: Dropped | undefined, leftOver: boolean, begunUs: number, nowUs: number): void {
    const { restUs, restFactor, retryUs } = this.options;
    if (looked !== undefined) this.handled = looked;
    this.leftOver = leftOver;
    const rest = Math.max(restUs, restFactor * (nowUs - begunUs));
    this.notBeforeUs = nowUs + (leftOver ? Math.max(rest, retryUs) : rest);
  }
}
