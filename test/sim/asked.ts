/**
 * The operations that a simulated node was asked for, held against what must
 * become of each (test/model/judge.ts): every marker is one that was asked for
 * and had nothing against it, every refusal has a reason, and clients that
 * would not notice are gone before.
 *
 * Owns: requests under way, pretended client connections. Must not know: how
 * requests are drawn, crashes.
 */
import { isDeepStrictEqual } from 'node:util';
import { OperatorError } from '../../src/base/errors.js';
import type { OperationRequest } from '../../src/control/port.js';
import type { NodeBlocks } from '../../src/group/blocks.js';
import type { Operation } from '../../src/group/tree/record.js';
import type { DeviceClient, DeviceView } from '../../src/group/requests/service.js';
import { judge } from '../model/judge.js';
import type { Verdict } from '../model/judge.js';
import type { ModelState } from './model.js';

/** Refusals that say nothing about the request: the group cannot do anything now, or nobody waits (it may be in the journal then, and is not journaled any more). */
const PASSING = ['control/gone', 'journal/stalled', 'group/stopped', 'role/not-primary', 'halt/busy', 'halt/not-drained'];

export interface AskedRequest {
  readonly request: OperationRequest;
  /** As of the moment it was asked. */
  readonly verdict: Verdict;
  /** Its marker was handed to the journal. */
  executed: boolean;
}

/** A connection that does nothing but be there. */
class Connection implements DeviceClient {
  readonly peer = 'pretended';
  readonly sizeBytes: number;
  constructor(readonly view: DeviceView, private readonly gone: (one: Connection) => void) {
    this.sizeBytes = view.sizeBytes;
  }

  disconnect(): void {
    this.gone(this);
  }
}

export class Asked {
  private readonly open = new Set<AskedRequest>();
  private readonly connections = new Set<Connection>();
  refusals = 0;
  /** False: the test hands operations to the group without asking. */
  judging = true;

  constructor(private readonly state: () => ModelState) {}

  /** The process that was asked is gone. */
  forget(): void {
    this.open.clear();
    this.connections.clear();
  }

  // ---- connections ----------------------------------------------------------------------------------

  connect(blocks: NodeBlocks, view: DeviceView): void {
    const one = new Connection(view, (gone) => this.close(blocks, gone));
    this.connections.add(one);
    blocks.addClient(view, one);
  }

  /** The oldest one goes. */
  disconnect(blocks: NodeBlocks): void {
    const [one] = this.connections;
    if (one !== undefined) this.close(blocks, one);
  }

  private close(blocks: NodeBlocks, one: Connection): void {
    this.connections.delete(one);
    blocks.removeClient(one.view, one);
  }

  get connected(): number {
    return this.connections.size;
  }

  private readonly clientsOf = (id: number): number => {
    let count = 0;
    for (const one of this.connections) if (Number(one.view.id) === id) count++;
    return count;
  };

  /** Nobody is connected to a device that is not there any more, or that was shorter since. */
  checkConnections(): void {
    for (const one of this.connections) {
      const device = this.state().devices.get(Number(one.view.id));
      if (device === undefined) throw new Error(`a client is still connected to device ${one.view.id}, which was removed`);
      if (device.sizeBytes < one.sizeBytes) throw new Error(`a client is still connected to device ${one.view.id}, which was shrunk from ${one.sizeBytes} to ${device.sizeBytes} bytes`);
    }
  }

  // ---- requests ---------------------------------------------------------------------------------------

  ask(request: OperationRequest): AskedRequest {
    const asked: AskedRequest = { request, verdict: judge(this.state(), request, this.clientsOf), executed: false };
    this.open.add(asked);
    return asked;
  }

  /** A marker is about to change `before`: one of those under way has to be that. */
  marker(operation: Operation, before: ModelState): void {
    // An adoption depends on what is local to the node; who draws one judges it.
    if (operation.op === 'epoch' || operation.op === 'adopt' || !this.judging) return;
    const wanted: unknown[] = [];
    for (const asked of this.open) {
      if (asked.executed) continue;
      const verdicts = isJudgedLate(asked.request) ? [judge(before, asked.request, this.clientsOf)] : [asked.verdict];
      // Whether data are in the way is seen before what the tick has so far is appended.
      if (asked.request.op === 'resize') verdicts.push(asked.verdict);
      const verdict = verdicts.find((one) => isDeepStrictEqual(one.operation, operation));
      wanted.push(verdicts[0].operation ?? [...verdicts[0].against]);
      if (verdict === undefined) continue;
      const still = verdict.disconnects.filter((id) => this.clientsOf(id) > 0);
      if (still.length > 0) throw new Error(`${operation.op} is executed while clients of device ${still.join(', ')} are connected that would not notice`);
      asked.executed = true;
      return;
    }
    const words = wanted.map((one) => JSON.stringify(one)).join(' or ');
    throw new Error(`the operation ${JSON.stringify(operation).slice(0, 2000)} was journaled; asked for was ${words.slice(0, 4000) || 'nothing'}`);
  }

  done(asked: AskedRequest): void {
    this.open.delete(asked);
    if (!asked.executed) throw new Error(`${JSON.stringify(asked.request)} was answered as done, and no marker of it was journaled`);
  }

  failed(asked: AskedRequest, error: unknown): void {
    this.open.delete(asked);
    const { request, verdict } = asked;
    if (!(error instanceof OperatorError)) return; // the disk's fault
    if (PASSING.includes(error.code)) return;
    const words = `${JSON.stringify(request)} was refused with ${error.code} (${error.message})`;
    if (asked.executed) throw new Error(`${words} although it is in the journal`);
    this.refusals++;
    const fits = (one: Verdict): boolean => one.against.has(error.code) || one.doubtful.has(error.code);
    if (fits(verdict) || (isJudgedLate(request) && fits(judge(this.state(), request, this.clientsOf)))) return;
    throw new Error(`${words}; against it was ${[...verdict.against].join(', ') || 'nothing'}`);
  }
}

/** Judged again when the map nodes have been read that it depends on, and when the writers stand still. */
function isJudgedLate(request: OperationRequest): boolean {
  return request.halt === true || ('ranges' in request && request.ranges.length > 0) || (request.op === 'resize' && !request.force);
}
