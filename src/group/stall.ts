/**
 * Why a journal is full, and what to do about it: one sentence for the person on
 * call. Owns the diagnosis; changes nothing.
 */

import { unreachable } from '../base/assert.js';
import type { Content } from './content/content.js';
import type { Holder } from './retention.js';

export function stallSentence(group: string, content: Content, slowest: Holder | undefined): string {
  const { checkpointer, destager } = content;
  if (slowest !== undefined && slowest.lsn < checkpointer.lowWater.lsn) {
    const { kind, name, lsn } = slowest;
    const why = `the journal is full because ${kind} ${name} still needs it from LSN ${lsn}; writers wait. `;
    switch (kind) {
      case 'link': return `${why}Bring ${name} back, or give it up with: lockstep link drop ${group} ${name}`;
      case 'cursor': return `${why}Let its export go on and acknowledge what has arrived, or give it up with: lockstep journal release ${group} ${name}`;
      default: return unreachable(kind);
    }
  }
  if (destager.lastError !== undefined) return `the journal is full because destaging fails: ${destager.lastError}; writers wait until it succeeds`;
  if (checkpointer.lastError !== undefined) return `the journal is full because checkpoints fail: ${checkpointer.lastError}; writers wait until one succeeds`;
  return 'the journal is full because it is filled faster than it is destaged; writers wait for the destager';
}
