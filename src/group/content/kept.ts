/**
 * The epochs of records that are kept and not executed (DESIGN §4: a stopped applier goes on receiving).
 *
 * Owns: how an epoch is read from a batch that this version may not understand. Must not know: why execution stopped,
 * links, roles.
 *
 * A link compares histories up to the received position, so it needs these, too: with the executed epochs alone, what
 * was received behind them would look like records that the primary never had.
 */

import type { Arena } from '../../io/arena.js';
import { batch, batchStart, entry, RecordKind } from '../../journal/format.js';
import { claimedEpoch } from '../tree/record.js';
import type { EpochEntry } from '../tree/epochs.js';

/**
 * `epochs` with the one that the batch with header at `at` begins, if it begins one; a marker's body is at `payloadAt`.
 * Called for every batch that is kept, in order. Borrows the batch for the call only.
 */
export function withKept(epochs: readonly EpochEntry[], { view, u8 }: Arena, at: number, payloadAt: number): readonly EpochEntry[] {
  const number = batch.epochNumber(view, at);
  if (number <= (epochs.at(-1)?.number ?? 0)) return epochs;
  const first = entry.at(at, 0);
  // Only a marker begins an epoch; whoever received the batch has seen to that.
  if (entry.kind(view, first) !== RecordKind.marker) return epochs;
  const { node, lossless } = claimedEpoch(u8.subarray(payloadAt, payloadAt + entry.length(view, first)));
  return [...epochs, { number, id: batch.epochId(u8, at), start: batchStart(view, at), node, lossless, wallMs: batch.wallMs(view, at) }];
}
