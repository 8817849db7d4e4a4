/**
 * When a walk in search of free space is worth it, and the measures of a walk.
 *
 * Owns: what was dropped and not yet looked for, and the rest between walks.
 * Must not know: what a walk does.
 */
import { MIB } from '../../base/units.js';
import type { Store } from '../store.js';

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

export interface WalkerOptions extends DueOptions {
  /** Between two steps, microseconds. */
  readonly pauseUs: number;
  /** Budget of a step, in nodes looked at: about 0.1 µs each. */
  readonly stepUnits: number;
  /** A step also ends after this, microseconds. */
  readonly stepUs: number;
  /** Bytes that one job punches at most. */
  readonly jobBytes: number;
  /** A layer's file with less than this is unlinked as it is. */
  readonly unlinkBytes: number;
  /** A step that looks at files waits so long at most for the destager, microseconds: a file that is written to is locked. */
  readonly waitUs: number;
}

export const DEFAULT_WALKER: WalkerOptions = {
  waitUs: 1e6,
  pauseUs: 2000,
  stepUnits: 1500,
  stepUs: 200,
  jobBytes: 16 * MIB,
  unlinkBytes: MIB,
  retryUs: 30e6,
  restFactor: 4,
  restUs: 1e6,
  overwrittenBlocks: 1024 * 1024,
};

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
    if (this.owes(dropped)) return true;
    if (dropped.overwrittenBlocks - this.handled.overwrittenBlocks < this.options.overwrittenBlocks) return false;
    for (const layer of layers.all()) if (layer.frozenLsn !== 0) return true;
    this.handled = { drops: this.handled.drops, overwrittenBlocks: dropped.overwrittenBlocks };
    return false;
  }

  /** Whether there is a reason for a walk beside overwriting, rest or not. */
  owes(dropped: Dropped): boolean {
    return (dropped.drops > this.handled.drops || this.leftOver) && this.store.layers.count > 0;
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
