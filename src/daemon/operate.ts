/**
 * Carries out the operations that become markers (DESIGN §4): judges the
 * request, disconnects whom it may, appends, and answers when the marker has
 * come as far as was asked.
 *
 * Must not know: HTTP, what an operation does to maps.
 */

import { assert, unreachable } from '../base/assert.js';
import { callerGone } from '../base/caller.js';
import { OperatorError } from '../base/errors.js';
import type { AdoptRequest, OperationRequest, Waiting } from '../control/port.js';
import { reachOfOperation } from '../control/schema/reach.js';
import type { OperationReply } from '../control/schema/replies.js';
import { planAdopt } from '../group/operations/adopt.js';
import type { Group } from '../group/group.js';
import { planClone, planCreate, planProtect, planRefresh, planRemove, planRename, planResize, planRestore, planSnapshot, planSync } from '../group/operations/judge.js';
import type { Judged, Plan } from '../group/operations/judge.js';
import type { Performed } from '../group/operations/performer.js';
import { preload } from '../group/operations/preload.js';
import { devicesOf } from '../group/tree/record.js';
import type { Operation } from '../group/tree/record.js';
import type { Reactor } from '../io/reactor.js';
import type { Objection } from '../replication/asking.js';
import type { Answer, EndingAnswer } from './answer.js';
import { endingOnce } from './answer.js';
import type { Pace } from './halt.js';
import { refuseWhileHalted, whileHalted } from './halt.js';
import type { Links } from './links.js';
import { deviceEntry } from './status.js';

/** Longest that writers may be held. */
const MAX_HALT_SECONDS = 600;
/** How long a secondary may take to say whether it could execute something; a link that is dead has ended before (replication/options.ts). */
const ASK_US = 15_000_000;
/** Map nodes loaded for one end of a range: a leaf, its base, and the way down to it. */
const LOADS_PER_END = 16;

/** The group stands as primary; throws OperatorError when the request is refused, and nothing has happened then. */
export function operate(reactor: Reactor, group: Group, links: Links, request: OperationRequest, answer: Answer): void {
  refuseWhileHalted(group);
  if (request.halt !== true) {
    prepare(group, links, request, { begin: () => refuseWhileHalted(group), appliedUs: () => request.waitSeconds * 1e6 }, answer);
    return;
  }
  if (request.waitSeconds > MAX_HALT_SECONDS) throw new OperatorError('usage', `writers may be held for at most ${MAX_HALT_SECONDS} s: give --halt a --wait-timeout of that or less`);
  if (request.op !== 'resize') planFor(group, request);
  const wait = request.op === 'snapshot' && request.answerDurable === true ? 'durable' : 'applied';
  whileHalted(reactor, group, links, request.waitSeconds, answer, (inner, pace) => prepare(group, links, { ...request, wait }, pace, inner));
}

/** Judged afresh in the step that appends: the state may have changed while maps were loaded, or peers asked. */
function prepare(group: Group, links: Links, request: OperationRequest, pace: Pace, answer: Answer): void {
  if (request.op === 'adopt') {
    const once = endingOnce(answer);
    const asked = adoptionOf(group, request);
    askPeers(group, links, asked, once, (error) => goOn(group, links, request, pace, once, error, () => refuseChanged(group, asked, adoptionOf(group, request))));
    return;
  }
  const ends = endsToLoad(group, request);
  if (ends === 0) {
    carryOut(group, links, request, pace, answer);
    return;
  }
  preload(group.content, () => nodeNeeded(group, request), ends * LOADS_PER_END, (error) => goOn(group, links, request, pace, answer, error));
}

/** Carries out what was prepared; `error`: why it cannot be; `recheck` throws OperatorError when it was prepared for something else. */
function goOn(group: Group, links: Links, request: OperationRequest, pace: Pace, answer: Answer, error: Error | undefined, recheck?: () => void): void {
  try {
    if (error !== undefined) throw error;
    if (group.role !== 'primary') throw new OperatorError('role/not-primary', `group ${group.name} is ${group.role} on this node: ${group.roleReason}`);
    recheck?.();
    carryOut(group, links, request, pace, answer);
  } catch (failure) {
    answer.failed(failure);
  }
}

type Adoption = Extract<Operation, { op: 'adopt' }>;

/** Throws OperatorError when the request is refused. */
function adoptionOf(group: Group, request: AdoptRequest): Adoption {
  const { operation } = planFor(group, request);
  assert(operation.op === 'adopt', 'an adoption is planned as one');
  return operation;
}

/** The local snapshot may have been unsealed, written and sealed while the peers were asked about it: their answers are not about that. */
function refuseChanged(group: Group, asked: Adoption, now: Adoption): void {
  const changed = [
    ...(now.source === asked.source ? [] : [`it is a snapshot of ${nameOf(group, now.source)} now, and was one of ${nameOf(group, asked.source)}`]),
    ...(now.sizeBytes === asked.sizeBytes ? [] : [`it has ${now.sizeBytes} bytes now, and had ${asked.sizeBytes}`]),
    ...(now.digest === asked.digest ? [] : [`it has content digest ${now.digest} now, and had ${asked.digest}`]),
  ];
  if (changed.length > 0) throw new OperatorError('adopt/changed', `nothing was done: ${group.name}/${now.local} has changed while the secondaries were asked whether they could adopt it: ${changed.join('; ')}; adopt it again`);
}

function nameOf(group: Group, id: number): string {
  const device = group.tree.get(id);
  return device === undefined ? 'a device that was removed' : group.tree.nameOf(device);
}

/** A secondary that cannot execute an adoption stops applying: asks those that are connected, and has the rest find out. */
function askPeers(group: Group, links: Links, { local, digest, sizeBytes }: Adoption, answer: EndingAnswer, done: (error: OperatorError | undefined) => void): void {
  answer.alsoEnd(links.ask(group.name, { adopt: { local, digest, sizeBytes } }, ASK_US, (objections) => {
    if (objections === undefined) done(new OperatorError('group/stopped', 'nothing was done: the daemon is shutting down'));
    else done(objections.length === 0 ? undefined : new OperatorError('adopt/not-ready', `nothing was done, for a secondary would stop applying: ${objections.map((one) => objectionWords(`${group.name}/${local}`, digest, one)).join('; ')}`));
  }));
}

function objectionWords(local: string, digest: string, { peer, lack }: Objection): string {
  if (lack === undefined) return `node ${peer} has not said within ${ASK_US / 1e6} s whether it can adopt ${local}; try again, or see what its link says (lockstep link status)`;
  return `${local} has content digest ${digest} here, and on node ${peer} ${lack}; make it equal there (lockstep reconcile), run on node ${peer}: lockstep seal ${local}, and adopt it again`;
}

/** Places of maps that the request depends on; throws OperatorError when it is refused whatever is there. */
function endsToLoad(group: Group, request: OperationRequest): number {
  if (request.op === 'resize') return request.force ? 0 : 1;
  const { operation } = planFor(group, request);
  return operation.op === 'assign' ? 2 * operation.ranges.length : 0;
}

/** A map node to load before the request is judged and executed; 0 = none. What it names may be gone by now. */
function nodeNeeded(group: Group, request: OperationRequest): number {
  const { store } = group.content;
  if (request.op === 'resize') {
    const device = group.tree.find(request.device);
    return device === undefined ? 0 : Math.max(0, store.holdsFrom(device.id, request.sizeBytes));
  }
  if (request.op !== 'restore' && request.op !== 'sync') return 0;
  const source = group.tree.find(request.source);
  if (source === undefined) return 0;
  for (const [offset, length] of request.ranges) {
    const miss = offset + length > source.sizeBytes ? 0 : store.missing(source.id, offset, length);
    if (miss !== 0) return miss;
  }
  return 0;
}

function carryOut(group: Group, links: Links, request: OperationRequest, pace: Pace, answer: Answer): void {
  if (answer.caller.gone) throw notDone(group, request.op);
  pace.begin();
  const { operation, disconnect, notice } = planFor(group, request);
  // A refusal must not cost anybody a connection.
  group.operations.checkRoom();
  for (const id of disconnect) group.exports.disconnectDevice(id, `an operator asked for "${request.op}" with --force`);
  const performed = group.operations.perform(operation);
  answerWhenDone(group, links, performed, devicesOf(operation), notice ?? null, request, pace, answer);
}

/** An operation that was not appended before whoever asked for it had gone. */
function notDone(group: Group, op: string): OperatorError {
  group.log.warn(`${op} was not done: its caller has gone`);
  return callerGone();
}

/** `changed`: devices that the reply tells about; `remark`: what else it says. What was performed stays, whoever goes. */
function answerWhenDone(group: Group, links: Links, performed: Performed, changed: readonly number[], remark: string | null, request: Waiting & { readonly op: string }, pace: Pace, answer: Answer): void {
  const once = endingOnce(answer, (gone) => {
    if (gone) group.log.warn(`the caller of ${request.op} has gone: it was appended at LSN ${performed.lsn}, and stays`);
  });
  const reply = (waited: OperationReply['waited'], notice: string | null): OperationReply => {
    const devices = changed.flatMap((id) => {
      const device = group.tree.get(id);
      return device === undefined ? [] : [deviceEntry(group, device)];
    });
    const cursors = group.retention.cursors.all().map(({ name, position }) => ({ name, lsn: position.lsn }));
    const reach = waited === 'applied' ? reachOfOperation(links.status(group.name), cursors, performed.lsn) : { waitedFor: [], passedOver: [] };
    return { lsn: performed.lsn, device: devices[0] ?? null, devices, dataThreadUs: performed.dataThreadUs, waited, ...reach, notice: [notice, remark].filter((one) => one !== null).join('; ') || null };
  };
  once.alsoEnd(group.operations.whenDurable(performed.endLsn, (error) => {
    if (error !== undefined) once.failed(error);
    else if (request.wait === 'durable') once.done(reply('durable', null));
    else once.alsoEnd(links.whenApplied(group.name, performed.endLsn, pace.appliedUs(), (notice) => once.done(reply(notice === null ? 'applied' : 'durable', notice))));
  }));
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
      return planResize(judged, request.device, request.sizeBytes, request.force, content.longestFileBytes, (device, from) => content.store.holdsFrom(device, from) !== 0);
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
