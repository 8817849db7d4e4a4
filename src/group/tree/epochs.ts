/**
 * The epochs of a group's history, and which of them a position belongs to
 * (DESIGN §2). Pure. Must not know: who begins an epoch, and why.
 */

import { NO_EPOCH_ID } from '../../base/position.js';
import type { EpochPosition } from '../../base/position.js';
import type { Position } from '../../journal/position.js';

/** One entry of a group's epoch history, oldest first (DESIGN §2). A position belongs to a history only by epoch id. */
export interface EpochEntry {
  readonly number: number;
  /** Random, 32 hexadecimal digits. */
  readonly id: string;
  /** Where the epoch begins: its epoch record is the first record at this position. */
  readonly start: Position;
  /** The node that was primary in it. */
  readonly node: string;
  /** Whether everything acknowledged before it is in it. */
  readonly lossless: boolean;
  readonly wallMs: number;
}

/** Of a journal that nothing was written to. */
export const NO_EPOCH = { number: 0, id: NO_EPOCH_ID } as const;

/** Id of the epoch of the last record below `lsn`. `epochs`: oldest first. */
export function epochIdAt(epochs: readonly EpochEntry[], lsn: number): string {
  for (let i = epochs.length - 1; i >= 0; i--) if (epochs[i].start.lsn < lsn) return epochs[i].id;
  return NO_EPOCH_ID;
}

/** `at`, a batch boundary of the history that `epochs` describes, with its epoch. */
export function epochPosition(epochs: readonly EpochEntry[], { lsn, chainHi, chainLo }: Position): EpochPosition {
  return { epochId: epochIdAt(epochs, lsn), lsn, chainHi, chainLo };
}
