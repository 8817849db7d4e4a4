/** Positions of a group with the epoch that they belong to. Pure. */

import { NO_EPOCH_ID } from '../base/position.js';
import type { EpochPosition } from '../base/position.js';
import type { Position } from '../journal/journal.js';
import type { EpochEntry } from './replica.js';

/** Id of the epoch of the last record below `lsn`. `epochs`: oldest first. */
export function epochIdAt(epochs: readonly EpochEntry[], lsn: number): string {
  for (let i = epochs.length - 1; i >= 0; i--) if (epochs[i].start.lsn < lsn) return epochs[i].id;
  return NO_EPOCH_ID;
}

/** `at`, a batch boundary of the history that `epochs` describes, with its epoch. */
export function epochPosition(epochs: readonly EpochEntry[], { lsn, chainHi, chainLo }: Position): EpochPosition {
  return { epochId: epochIdAt(epochs, lsn), lsn, chainHi, chainLo };
}
