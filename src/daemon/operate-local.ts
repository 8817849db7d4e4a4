/**
 * Carries out the operations on local snapshots, which exist on this node only
 * and are no markers (DESIGN §1).
 *
 * Owns: which requests these are, and the sentences about what a local snapshot
 * cannot do. Must not know: HTTP, how it is done (group/localservice.ts).
 */

import { unreachable } from '../base/assert.js';
import { OperatorError } from '../base/errors.js';
import { isLocalName, parseDeviceName } from '../base/names.js';
import type { OperationRequest, SealRequest } from '../control/port.js';
import type { Group } from '../group/group.js';
import { noLocalSnapshot } from '../group/operations/localjudge.js';
import type { LocalAnswer, LocalService } from '../group/localservice.js';
import type { Answer } from './answer.js';
import { localEntry } from './status.js';

/** The devices that the request names, but for one that it makes or adopts. */
function named(request: OperationRequest): readonly (string | null)[] {
  switch (request.op) {
    case 'create':
    case 'adopt':
      return [];
    case 'snapshot':
    case 'clone':
      return [request.source];
    case 'restore':
    case 'sync':
      return [request.target, request.source];
    case 'refresh':
      return [request.target];
    case 'resize':
    case 'remove':
    case 'rename':
    case 'protect':
      return [request.device];
    default:
      return unreachable(request);
  }
}

function localNames(request: OperationRequest): string[] {
  return named(request).filter((name) => name !== null && isLocalName(name)) as string[];
}

/** Whether the request is about a local snapshot. */
export function isLocal(request: OperationRequest): boolean {
  return localNames(request).length > 0 || (request.op === 'snapshot' && request.local === true);
}

/** On a primary or a secondary. Throws OperatorError when the request is refused. */
export function operateLocally(group: Group, request: OperationRequest, answer: Answer): void {
  const { local } = group;
  if (local === undefined || !group.serving) throw new OperatorError('group/stopped', `group ${group.name} is ${group.role} on this node: ${group.roleReason}`);
  const unknown = localNames(request).find((name) => local.tree.find(name) === undefined);
  if (unknown !== undefined) throw noLocalSnapshot(group.name, unknown);
  if (request.halt === true) throw refusal('--halt is for operations that other nodes execute, too, and a local snapshot is on this node only');
  const replied: LocalAnswer = {
    done: ({ lsn, device, dataThreadUs, notice }) => {
      const devices = device === undefined ? [] : [localEntry(group, device)];
      // Nobody else executes it: then it has come as far as it can.
      answer.done({ lsn, device: devices[0] ?? null, devices, dataThreadUs, waited: notice === null ? request.wait : 'durable', waitedFor: [], passedOver: [], notice });
    },
    failed: (error) => answer.failed(error),
    caller: answer.caller,
  };
  dispatch(local, request, request.waitSeconds * 1e6, replied);
}

function dispatch(local: LocalService, request: OperationRequest, waitUs: number, answer: LocalAnswer): void {
  switch (request.op) {
    case 'snapshot':
      if (request.source === null) throw refusal('a local snapshot is of one device; name it');
      if (request.local !== true) throw refusal(`${request.source} is on this node only, so no snapshot of it can be on other nodes; make a local one with --local, or as VOLUME~NAME`);
      local.snapshot(request.source, request.name, waitUs, answer);
      return;
    case 'restore':
    case 'sync':
      if (request.target === null || !isLocalName(request.target)) {
        throw refusal(`${request.source} is on this node only, and what ${request.target ?? 'the group'} becomes has to be on every node: copy what you need from ${request.source} by hand`);
      }
      if (request.ranges.length > 0) throw refusal('a local snapshot is restored as a whole; leave --range out');
      local.restore(request.target, request.source, request.force, waitUs, answer);
      return;
    case 'refresh':
      local.restore(request.target, null, request.force, waitUs, answer);
      return;
    case 'remove':
      local.remove(request.device, request.force, answer);
      return;
    case 'resize':
    case 'rename':
    case 'protect':
      throw refusal(`${request.device} is a local snapshot: it keeps the name and size that it was made with, and cannot be protected`);
    case 'clone':
      throw refusal(`${request.source} is on this node only, and a volume is on every node: clone a snapshot ${parseDeviceName(request.source)?.volume ?? ''}@NAME instead`);
    case 'create':
    case 'adopt':
      return;
    default:
      unreachable(request);
  }
}

/** Seals or unseals. On a primary or a secondary; throws OperatorError when the request is refused. */
export function sealLocally(group: Group, request: SealRequest, answer: Answer): void {
  const { local } = group;
  if (local === undefined || !group.serving) throw new OperatorError('group/stopped', `group ${group.name} is ${group.role} on this node: ${group.roleReason}`);
  const replied: LocalAnswer = {
    done: ({ device }) => {
      if (device === undefined) answer.failed(new OperatorError('device/not-found', `${group.name}/${request.device} was removed meanwhile`));
      else answer.done({ device: localEntry(group, device), sealedLsn: device.sealedLsn, digest: device.digest === '' ? null : device.digest });
    },
    failed: (error) => answer.failed(error),
    caller: answer.caller,
  };
  if (request.undo) local.unseal(request.device, replied);
  else local.seal(request.device, request.known ?? undefined, request.force, replied);
}

function refusal(sentence: string): OperatorError {
  return new OperatorError('local/refused', sentence);
}
