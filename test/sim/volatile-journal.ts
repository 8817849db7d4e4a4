/** For tests of volatile journals: where a simulated node has one, and what a start says that finds it lost. */
import { decodeSegmentHeader, SECTOR_BYTES } from '../../src/journal/format.js';
import { GROUP } from './cluster.js';
import type { SimHost } from './cluster.js';
import { TMPFS } from './disk.js';

export const JOURNAL = `${TMPFS}/${GROUP}/journal`;

/** Segments of the journal, in the order in which they were begun. */
export function segmentsOf(host: SimHost): string[] {
  const { disk } = host.node;
  const serial = (path: string): number => {
    const header = decodeSegmentHeader(disk.peek(path, 0, SECTOR_BYTES), 0);
    return typeof header === 'string' ? 0 : header.serial;
  };
  return disk.paths(JOURNAL).filter((path) => path.includes('segment') && serial(path) > 0).sort((a, b) => serial(a) - serial(b));
}

export const REFUSED = /its volatile journal is lost: the machine was started anew since, and the group was not stopped cleanly before\. Its data are unknown/;

/** The LSN that a refusal names. */
export function acceptableLsn(problem: string | undefined): number {
  const match = /--accept-inconsistent g@(\d+)/.exec(problem ?? '');
  if (match === null) throw new Error(`no LSN in: ${problem}`);
  return Number(match[1]);
}
