/**
 * Why a journal is full, and what to do about it: one sentence for the person on
 * call. Owns the diagnosis; changes nothing.
 */

import type { Content } from './content.js';

/** `cursors`: oldest LSN that each link needs. */
export function stallSentence(group: string, content: Content, cursors: ReadonlyMap<string, number>): string {
  let slowest: string | undefined;
  let lowest = Infinity;
  for (const [peer, lsn] of cursors) {
    if (lsn >= lowest) continue;
    lowest = lsn;
    slowest = peer;
  }
  const { checkpointer, destager } = content;
  if (slowest !== undefined && lowest < checkpointer.lowWater.lsn) {
    return (
      `the journal is full because link ${slowest} still needs it from LSN ${lowest}; writers wait. ` +
      `Bring ${slowest} back, or give it up with: lockstep link drop ${group} ${slowest}`
    );
  }
  if (destager.lastError !== undefined) return `the journal is full because destaging fails: ${destager.lastError}; writers wait until it succeeds`;
  if (checkpointer.lastError !== undefined) return `the journal is full because checkpoints fail: ${checkpointer.lastError}; writers wait until one succeeds`;
  return 'the journal is full because it is filled faster than it is destaged; writers wait for the destager';
}
