/** What operations cost, for people. Pure. */

import { formatSize } from '../../base/units.js';
import type { MeteredEntry, OperationsReply } from '../../control/schema/replies.js';
import { formatMilliseconds, formatTime, table } from './words.js';

export function renderOperations(reply: OperationsReply): string {
  if (reply.operations.length === 0) return `no operations in group ${reply.group} since the daemon started`;
  const rows = reply.operations.map((one) => [String(one.lsn), formatTime(one.timeMs), one.verb, changedText(one), wireText(one), formatMilliseconds(one.dataThreadUs / 1000), one.what]);
  return table(['LSN', 'TIME', 'VERB', 'CHANGED', 'WIRE', 'THREAD', 'DEVICES'], rows, [0, 3, 5]);
}

function changedText({ changedBytes, changed }: MeteredEntry): string {
  switch (changed) {
    case 'exact': return formatSize(changedBytes);
    case 'bound': return `<= ${formatSize(changedBytes)}`;
    case 'counting': return `<= ${formatSize(changedBytes)}, counting`;
  }
}

function wireText({ wireBytes }: MeteredEntry): string {
  const links = Object.entries(wireBytes).map(([peer, bytes]) => `${peer} ${formatSize(bytes)}`);
  return links.length === 0 ? '-' : links.join(', ');
}
