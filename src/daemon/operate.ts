/**
 * Carries out the operations that become markers (DESIGN §4): judges the
 * request, disconnects whom it may, appends, and answers when the marker has
 * come as far as was asked.
 *
 * Must not know: HTTP, what an operation does to maps.
 */

import { unreachable } from '../base/assert.js';
import { OperatorError } from '../base/errors.js';
import type { OperationRequest, Waiting } from '../control/port.js';
import type { OperationReply } from '../control/schema.js';
import { planAdopt } from '../group/adoption.js';
import type { Group } from '../group/group.js';
import { planClone, planCreate, planProtect, planRefresh, planRemove, planRename, planResize, planRestore, planSnapshot, planSync } from '../group/operations.js';
import type { Judged, Plan } from '../group/operations.js';
import type { Performed } from '../group/perform.js';
import { preloadRanges } from '../group/preload.js';
import { devicesOf } from '../group/record.js';
import type { Operation } from '../group/record.js';
import type { Answer } from './answer.js';
import { whileHalted } from './halt.js';
import type { Links } from './links.js';
import { deviceEntry } from './status.js';

/** The group stands as primary; throws OperatorError when the request is refused, and nothing has happened then. */
export function operate(group: Group, links: Links, request: OperationRequest, answer: Answer): void {
  planFor(group, request);
  if (request.halt === true) whileHalted(group, links, request.waitSeconds, answer, (inner) => prepare(group, links, { ...request, wait: 'applied' }, inner));
  else prepare(group, links, request, answer);
}

/** Judged afresh in the step that appends: the state may have changed since the operator asked. */
function prepare(group: Group, links: Links, request: OperationRequest, answer: Answer): void {
  const { operation } = planFor(group, request);
  if (operation.op !== 'assign' || operation.ranges.length === 0) {
    carryOut(group, links, request, answer);
    return;
  }
  preloadRanges(group.content, operation.pairs[0].source, operation.ranges, (error) => {
    try {
      if (error !== undefined) throw error;
      if (group.role !== 'primary') throw new OperatorError('role/not-primary', `group ${group.name} is ${group.role} on this node: ${group.roleReason}`);
      carryOut(group, links, request, answer);
    } catch (failure) {
      answer.failed(failure);
    }
  });
}

function carryOut(group: Group, links: Links, request: OperationRequest, answer: Answer): void {
  const { operation, disconnect } = planFor(group, request);
  for (const id of disconnect) group.exports.disconnectDevice(id, `an operator asked for "${request.op}" with --force`);
  const performed = group.perform(operation);
  answerWhenDone(group, links, performed, devicesOf(operation), request, answer);
}

/** `changed`: devices that the reply tells about. */
export function answerWhenDone(group: Group, links: Links, performed: Performed, changed: readonly number[], waiting: Waiting, answer: Answer): void {
  const reply = (waited: OperationReply['waited'], notice: string | null): OperationReply => {
    const devices = changed.flatMap((id) => {
      const device = group.tree.get(id);
      return device === undefined ? [] : [deviceEntry(group, device)];
    });
    return { lsn: performed.lsn, device: devices[0] ?? null, devices, dataThreadUs: performed.dataThreadUs, waited, notice };
  };
  group.whenDurable(performed.endLsn, (error) => {
    if (error !== undefined) answer.failed(error);
    else if (waiting.wait === 'durable') answer.done(reply('durable', null));
    else links.whenApplied(group.name, performed.endLsn, waiting.waitSeconds * 1e6, (notice) => answer.done(reply(notice === null ? 'applied' : 'durable', notice)));
  });
}

function planFor(group: Group, request: OperationRequest): Plan {
  const judged: Judged = { group: group.name, tree: group.tree, exports: group.exports };
  const { content } = group;
  const harmless = (operation: Operation): Plan => ({ operation, disconnect: [] });
  switch (request.op) {
    case 'create':
      return harmless(planCreate(judged, request.name, request.sizeBytes, content.longestFileBytes));
    case 'snapshot':
      return harmless(planSnapshot(judged, request.source, request.name));
    case 'restore':
      return planRestore(judged, request.target, request.source, request.ranges, request.force);
    case 'refresh':
      return planRefresh(judged, request.target, request.force);
    case 'sync':
      return planSync(judged, request.target, request.source, request.ranges, request.force);
    case 'resize':
      return planResize(judged, request.device, request.sizeBytes, request.force, content.longestFileBytes, (device, from) => content.store.mayHoldFrom(device, from));
    case 'remove':
      return planRemove(judged, request.device, request.withSnapshots, request.force);
    case 'rename':
      return harmless(planRename(judged, request.device, request.name, request.force));
    case 'protect':
      return planProtect(judged, request.device, request.on, request.force);
    case 'clone':
      return harmless(planClone(judged, request.source, request.name));
    case 'adopt':
      return planAdopt(judged, content.local, request.local, request.name, request.force);
    default:
      return unreachable(request);
  }
}
