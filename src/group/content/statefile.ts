/**
 * `state.json` of a group: the few facts that are this node's own and not in the
 * journal: which group this is, the node's role in it, and whether it was
 * stopped cleanly. Replaced atomically.
 */

import { z } from 'zod';
import { CorruptionError } from '../../base/errors.js';
import { readWholeFile, replaceReserved } from '../../io/file.js';
import type { Io } from '../../io/io.js';
import { O } from '../../io/io.js';

const hex128 = z.string().regex(/^[0-9a-f]{32}$/);
const position = z.strictObject({ lsn: z.number(), chainHi: z.number(), chainLo: z.number() });

const shape = z.strictObject({
  format: z.literal(1),
  /** null on a secondary that never followed anybody. */
  groupId: hex128.nullable(),
  role: z.enum(['primary', 'secondary', 'fenced']),
  roleReason: z.string(),
  /** Kernel boot during which the node last ran: the page cache survives a crash of the daemon, not one of the kernel. */
  bootId: z.string(),
  /** While a promotion is under way: the epoch that its own must exceed. Until that is durable the promotion has not happened. */
  promotedPast: z.number().int().nonnegative().optional(),
  /**
   * Where the journal ended when the node was stopped in order; null while it runs. Of a volatile journal: how far the
   * disk had it, when the disk held that and nothing beyond.
   */
  cleanStop: position.nullable(),
  /** A failed fdatasync may have dropped pages of local devices or their journal, under the boot of `bootId`. */
  localSuspect: z.literal(true).optional(),
  /** Where the journal lies, if not in `journal/`, or volatile. */
  journal: z.strictObject({ volatile: z.boolean(), directory: z.string() }).optional(),
  /** Where it lay before, and what it left there may not have been removed yet (former.ts). */
  formerJournals: z.array(z.string()).optional(),
});

export type StateFile = z.infer<typeof shape>;

const NAME = 'state.json';

/** Undefined when there is none: the group was never opened here. Throws CorruptionError, IoError. */
export function readState(io: Io, directory: string): StateFile | undefined {
  const path = `${directory}/${NAME}`;
  const fd = io.open(path, O.RDONLY | O.CLOEXEC, 0);
  if (fd === -2) return undefined;
  if (fd >= 0) io.close(fd);
  const text = new TextDecoder().decode(readWholeFile(io, path));
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new CorruptionError(path, 0, 'not JSON');
  }
  const parsed = shape.safeParse(raw);
  if (!parsed.success) throw new CorruptionError(path, 0, `unexpected content (${parsed.error.issues[0].path.join('.')}: ${parsed.error.issues[0].message})`);
  return parsed.data;
}

/** Durable when it returns; also on a full disk, which must not keep a group from starting. Throws IoError. */
export function writeState(io: Io, directory: string, state: StateFile): void {
  replaceReserved(io, directory, NAME, new TextEncoder().encode(`${JSON.stringify(state, null, 1)}\n`));
}
