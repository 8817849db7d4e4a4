/** `lockstep status` for people: what matters first, the figures below. Pure. */

import { formatSize } from '../../base/units.js';
import type { GroupStatus, NodeStatus } from '../../control/schema/status.js';
import type { CursorEntry, ImportState, LinkEntry } from '../../control/schema/replies.js';
import { adviseGroup } from './advice.js';
import type { Advice } from './advice.js';
import type { Style } from './words.js';
import { bar, count, formatDuration, formatMilliseconds } from './words.js';

/** `nowMs` is the time of day of the reader, for the uptime. */
export function renderStatus(status: NodeStatus, nowMs: number, style: Style): string {
  const uptime = formatDuration(Math.max(0, nowMs - status.startedMs) / 1000);
  const head = `${style.bold(status.node)}  lockstepd ${status.version}, process ${status.pid}, up ${uptime}, data in ${status.dataDirectory}`;
  const listen = `  nbd ${status.listen.nbd.join(' ') || 'not served'}; link ${status.listen.link ?? 'not served'}`;
  const groups = status.groups.map((group) => renderGroup(group, style));
  return [`${head}\n${listen}`, ...(groups.length > 0 ? groups : ['  no groups are configured'])].join('\n\n');
}

export function renderGroup(group: GroupStatus, style: Style): string {
  const advice = adviseGroup(group);
  const { lsn, journal, destage, store } = group;
  const volumes = group.devices.filter((device) => device.kind === 'volume');
  const locals = group.devices.filter((device) => device.kind === 'local').length;
  const clients = group.devices.reduce((sum, device) => sum + device.clients, 0);
  /** The advice above has it already. */
  const said = (reason: string): boolean => reason !== '' && advice.some((one) => one.what.includes(reason));
  const row = (label: string, text: string): string => `  ${label.padEnd(9)} ${text}`;
  return [
    `${style.bold(`group ${group.name}`)}  ${style.bold(group.role.toUpperCase())}  ${verdict(advice, style)}`,
    ...advice.flatMap((one) => renderAdvice(one, style)),
    row('role', `${group.role}, epoch ${group.epoch.number}${group.epoch.lossless ? '' : ' (lossy: it began without all that was acknowledged before)'}${group.roleReason === '' || said(group.roleReason) ? '' : `; ${group.roleReason}`}`),
    row('lsn', `appended ${lsn.appended}  durable ${lsn.durable}  applied ${lsn.applied}  stable ${lsn.stable}  checkpoint ${lsn.checkpoint}`),
    row('journal', `${bar(journal.usedBytes, journal.sizeBytes)}  ${formatSize(journal.usedBytes)} of ${formatSize(journal.sizeBytes)}, needed from LSN ${lsn.lowWater} on, ${count(journal.segments, 'segment')}`),
    ...(journal.volatile ? [row('', `volatile: in memory; ${formatSize(journal.atRiskBytes)} in no checkpoint yet. A power loss makes the data of this node unknown`)] : []),
    row('destage', destage.pendingBlocks === 0 ? `nothing pending, ${count(destage.roundsDone, 'round')} done` : `${formatSize(destage.pendingBytes)} in ${count(destage.pendingBlocks, 'block')} pending, ${formatSize(destage.behindBytes)} behind, ${count(destage.roundsDone, 'round')} done`),
    row('store', `maps ${formatSize(store.mapBytes)} of ${formatSize(store.mapLimitBytes)}, ${count(store.layers, 'layer')}, ${formatSize(store.freeBytes)} free, replay after a crash about ${formatDuration(store.replaySecondsEstimate)}`),
    row('devices', `${count(volumes.length, 'volume')} (${formatSize(volumes.reduce((sum, device) => sum + device.sizeBytes, 0))}), ${count(group.devices.length - volumes.length - locals, 'snapshot')}, ${locals === 0 ? '' : `${count(locals, 'local snapshot')}, `}${count(clients, 'client connection')}`),
    row('ops', operationsText(group.operations)),
    ...group.links.flatMap((link) => renderLink(said(link.reason) ? { ...link, reason: '' } : link)),
    ...group.cursors.map((cursor) => row('cursor', cursorText(cursor))),
    ...(group.import === null ? [] : [row('import', importText(group.import))]),
    ...(group.links.length === 0 && group.cursors.length === 0 && group.import === null ? [row('links', 'none: this group is not replicated')] : []),
  ].join('\n');
}

function operationsText({ performed, changedBytes, wireBytes, longestUs, last }: GroupStatus['operations']): string {
  if (last === null) return 'none since the daemon started';
  return `${performed} since the daemon started, ${formatSize(changedBytes)} changed by ${formatSize(wireBytes)} on the wire, the longest ${formatMilliseconds(longestUs / 1000)}; last: ${last.verb} ${last.what} at LSN ${last.lsn}`;
}

export function renderLink(link: LinkEntry): string[] {
  const reason = link.reason === '' ? '' : ` (${link.reason})`;
  const label = `link ${link.role === 'to' ? '->' : '<-'}`;
  return [
    `  ${label.padEnd(9)} ${link.peer}  ${link.mode}, ${link.state}${reason}; ${lagText(link)}`,
    `  ${''.padEnd(9)} shipped ${link.shipped}  received ${link.received}  durable ${link.durable}  applied ${link.applied}; ${formatSize(link.wireBytes)} on the wire, ${count(link.reconnects, 'reconnect')}`,
  ];
}

function cursorText(cursor: CursorEntry): string {
  const lag = cursor.behindBytes === 0 ? 'up to date' : `${formatSize(cursor.behindBytes)} behind`;
  return `${cursor.name}  acknowledged up to LSN ${cursor.lsn}, ${lag}; keeps ${formatSize(cursor.retainedBytes)} of journal that is otherwise free`;
}

function importText(state: ImportState): string {
  return `${state.from === null ? 'of a stream that has not begun' : `from ${state.from}`}, received up to LSN ${state.receivedLsn}${state.full ? '; takes nothing now: the journal of this node is full' : ''}`;
}

function lagText(link: LinkEntry): string {
  if (link.lagBytes === 0 && link.lagSeconds === 0) return 'up to date';
  return `${formatSize(link.lagBytes)}, ${formatDuration(link.lagSeconds)} behind`;
}

function verdict(advice: readonly Advice[], style: Style): string {
  const problems = advice.filter((one) => one.severity === 'problem').length;
  return problems === 0 ? 'all is well' : style.alarm(count(problems, 'problem').toUpperCase());
}

function renderAdvice(advice: Advice, style: Style): string[] {
  const mark = advice.severity === 'problem' ? style.alarm('!') : '-';
  return [`  ${mark} ${advice.what}`, ...(advice.remedy === '' ? [] : [`    => ${advice.remedy}`])];
}
