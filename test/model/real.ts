/**
 * A run of the model test against real daemons: a pair of nodes, several NBD
 * connections, an operator at the control socket, SIGKILLs; whatever happens,
 * both nodes hold what the model permits.
 *
 * Owns: the schedule, from the seed, and connections. Must not know: what the
 * right answer is (belief.ts, judge.ts), how devices are compared (compare.ts).
 */
import { ControlError } from '../../src/control/client.js';
import type { OperationRequest } from '../../src/control/port.js';
import { GIB, KIB } from '../../src/base/units.js';
import type { Operation } from '../../src/group/tree/record.js';
import { NbdConnectionError, NbdRequestError } from '../../src/vendor/nbd-protocol-ts/index.js';
import type { NbdClient } from '../../src/vendor/nbd-protocol-ts/index.js';
import { catchUp } from '../crash/check.js';
import { GROUP, openDevice } from '../crash/clients.js';
import { Content } from '../crash/content.js';
import type { Pair, TestNode } from '../harness/node.js';
import { preparePair } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { Belief } from './belief.js';
import type { BelievedDevice, BelievedState, Flight, Permitted } from './belief.js';
import { compareFacts, compareNode } from './compare.js';
import { drawDevice, drawOperation, drawRequest, LIMITS } from './draw.js';
import { judge } from './judge.js';
import type { Verdict } from './judge.js';
import { carryOut } from './operator.js';

const GROUP_OPTIONS = {
  journalSize: '64M', segmentSize: '8M',
  groupExtra: { recoverWait: 2, store: { checkpointSeconds: 1, checkpointBytes: '1M', mapMemory: '16M', freeSpaceWatermark: 0 } },
} as const;
const MIX = { reads: 0.2, flushes: 0.05, largestWrite: 256 * KIB };
const DRAW_LIMITS = { ...LIMITS, devices: 10, volumes: 3, largestDevice: 9 * GIB };
const OPERATIONS = 0.35;
const MAX_IN_FLIGHT = 12;
const MAX_CONNECTIONS = 6;
/** The group cannot do anything now: says nothing about the request. */
const PASSING = ['journal/stalled'];
/** What an operation ends with when the daemon goes away under it. */
const UNANSWERED = ['daemon/unreachable', 'daemon/closing', 'group/stopped'];
/** How requests may end that an operation came over. */
const OVERTAKEN = ['ESHUTDOWN', 'ENOSPC', 'EINVAL', 'EPERM'];

export interface RealResult {
  readonly seed: number;
  steps: number;
  requests: number;
  operations: number;
  refusals: number;
  kills: number;
  comparisons: number;
  promotions: number;
}

export class RealRun {
  readonly result: RealResult;
  private readonly random: Random;
  private readonly belief: Belief;
  private readonly touched = new Set<number>();
  private readonly connections = new Map<number, NbdClient>();
  private readonly requests = new Set<Promise<void>>();
  private operation: Promise<void> | undefined;
  /** An operation whose reply was lost: the state if it was done. */
  private inDoubt: BelievedState | undefined;
  private primary!: TestNode;
  private down = false;
  private failure: Error | undefined;

  constructor(readonly seed: number, private readonly steps: number) {
    this.random = new Random(seed, 300);
    this.belief = new Belief(seed);
    this.result = { seed, steps: 0, requests: 0, operations: 0, refusals: 0, kills: 0, comparisons: 0, promotions: 0 };
  }

  /** Throws with the seed and everything that is known about what differs. */
  async run(): Promise<RealResult> {
    const { random, result } = this;
    const directory = makeTempDirectory('model');
    const pair = await preparePair(directory, GROUP_OPTIONS);
    this.primary = pair.primary;
    try {
      await Promise.all([pair.primary.start(), pair.secondary.start()]);
      const kills = new Set(Array.from({ length: random.between(1, 2) }, () => random.between(20, this.steps - 5)));
      const cut = random.between(20, this.steps);
      for (; result.steps < this.steps; result.steps++) {
        await this.step();
        if (kills.has(result.steps)) await this.kill(pair);
        if (result.steps === cut) await this.comparePair(pair);
      }
      await this.comparePair(pair);
      if (random.chance(0.3)) await this.promote(pair);
      return result;
    } catch (error) {
      const logs = [pair.primary, pair.secondary].map((node) => `--- log of ${node.name}\n${node.log.split('\n').filter((line) => !line.includes('"part":"nbd"')).slice(-10).join('\n')}`);
      throw new Error(`run ${this.seed}, step ${result.steps}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n${logs.join('\n')}`, { cause: error });
    } finally {
      this.down = true;
      await Promise.all([pair.primary.kill(), pair.secondary.kill()]);
      this.closeAll();
      await this.quiet().catch(() => undefined);
      removeTempDirectory(directory);
    }
  }

  // ---- one thing ----------------------------------------------------------------------------------

  private async step(): Promise<void> {
    const { random, belief } = this;
    if (this.failure !== undefined) throw this.failure;
    const devices = [...belief.state.devices.values()];
    if (devices.length === 0 || random.chance(OPERATIONS)) {
      const request = drawOperation(random, belief.state, GROUP, DRAW_LIMITS);
      if (request !== undefined) await this.operate(request, random.chance(0.5));
      return;
    }
    const device = drawDevice(random, devices)!;
    if (random.chance(0.04)) await this.disconnect(device.id);
    // What a client does in a row is one step.
    else for (let i = random.between(1, 6); i > 0; i--) await this.request(device);
    while (this.requests.size >= MAX_IN_FLIGHT) await Promise.race(this.requests);
  }

  /** Nothing is under way any more. */
  private async quiet(): Promise<void> {
    await this.operation;
    while (this.requests.size > 0) await Promise.race(this.requests);
    if (this.failure !== undefined) throw this.failure;
  }

  // ---- requests -----------------------------------------------------------------------------------

  private async connection(device: BelievedDevice): Promise<NbdClient | undefined> {
    const known = this.connections.get(device.id);
    if (known?.usable === true) return known;
    // How many clients a device has must be certain while an operation is judged.
    if (this.operation !== undefined) return undefined;
    const [oldest] = this.connections.keys();
    if (this.connections.size >= MAX_CONNECTIONS) await this.disconnect(oldest);
    const client = await openDevice(this.primary, this.belief.state.nameOf(device));
    if (client.export.sizeBytes !== device.sizeBytes) throw new Error(`${this.belief.state.nameOf(device)} is served with ${client.export.sizeBytes} bytes instead of ${device.sizeBytes}`);
    this.connections.set(device.id, client);
    return client;
  }

  private async disconnect(id: number): Promise<void> {
    const client = this.connections.get(id);
    if (client === undefined || this.operation !== undefined) return;
    this.connections.delete(id);
    await client.disconnect();
  }

  private closeAll(): void {
    for (const client of this.connections.values()) client.destroy();
    this.connections.clear();
  }

  private async request(device: BelievedDevice): Promise<void> {
    const { random, belief } = this;
    const client = await this.connection(device);
    if (client === undefined) return;
    const one = drawRequest(random, device.sizeBytes, MIX);
    const [trim, options] = [random.chance(0.5), { noHole: random.chance(0.3), fastZero: random.chance(0.5) }];
    if (one.kind === 'read') {
      const watch = belief.beginRead(device, one.offset, one.length);
      this.follow(device, undefined, async () => {
        const wrong = belief.endRead(watch, await client.read(one.offset, one.length));
        if (wrong !== undefined) throw new Error(`a read was answered wrongly: ${wrong}`);
      });
    } else if (one.kind === 'flush') {
      this.follow(device, undefined, () => client.flush());
    } else {
      if (device.protected && device.kind === 'snapshot') return;
      const flight = belief.begin(device, one.kind, one.offset, one.length);
      if (flight === undefined) return;
      for (const block of flight.before.keys()) this.touched.add(block);
      const { fua } = one;
      const payload = one.kind === 'write' ? belief.payload(flight) : undefined;
      this.follow(device, flight, async () => {
        if (payload !== undefined) await client.write(one.offset, payload, { fua });
        else if (trim) await client.trim(one.offset, one.length, { fua });
        else await client.writeZeroes(one.offset, one.length, { fua, ...options });
      });
    }
  }

  /** Sends it without waiting; tells the belief how it ended. */
  private follow(device: BelievedDevice, flight: Flight | undefined, send: () => Promise<void>): void {
    const beside = { overtaken: this.operation !== undefined };
    this.result.requests++;
    this.watching.add(beside);
    const sent = send().then(
      () => (flight === undefined ? undefined : this.belief.acknowledged(flight)),
      (error: unknown) => {
        if (flight !== undefined) this.belief.lost(flight);
        const passing = this.down || beside.overtaken;
        if (error instanceof NbdConnectionError && passing) return;
        if (error instanceof NbdRequestError && passing && OVERTAKEN.includes(error.code)) return;
        this.failure ??= new Error(`a request to device ${device.id} failed: ${String(error)}`, { cause: error });
      },
    ).catch((error: unknown) => void (this.failure ??= error as Error)).finally(() => {
      this.watching.delete(beside);
      this.requests.delete(sent);
    });
    this.requests.add(sent);
  }

  private readonly watching = new Set<{ overtaken: boolean }>();

  // ---- operations -----------------------------------------------------------------------------------

  private readonly clientsOf = (id: number): number => (this.connections.get(id)?.usable === true ? 1 : 0);

  /** `alone`: nothing else is under way meanwhile. */
  private async operate(request: OperationRequest, alone: boolean): Promise<void> {
    await this.operation;
    if (alone) await this.quiet();
    const { belief } = this;
    this.result.operations++;
    const verdict = judge(belief.state, request, this.clientsOf, holdsData);
    belief.beginOperation();
    for (const one of this.watching) one.overtaken = true;
    const operation = this.perform(request, verdict).catch((error: unknown) => void (this.failure ??= error as Error)).finally(() => {
      this.operation = undefined;
    });
    this.operation = operation;
    if (alone) await operation;
  }

  private async perform(request: OperationRequest, verdict: Verdict): Promise<void> {
    const { belief } = this;
    const words = JSON.stringify(request);
    try {
      const reply = await carryOut(this.primary.control, request);
      if (verdict.operation === undefined) throw new Error(`${words} was done; against it was ${[...verdict.against].join(', ')}`);
      belief.endOperation(belief.after(verdict.operation));
      await this.dropConnections(verdict.operation);
      compareFacts(reply.devices, belief.state, `the reply to ${words}`, false);
    } catch (error) {
      if (!(error instanceof ControlError)) throw error;
      if (UNANSWERED.includes(error.code) && this.down) {
        this.inDoubt = verdict.operation === undefined ? undefined : belief.after(verdict.operation);
        belief.endOperation(belief.state);
        return;
      }
      belief.endOperation(belief.state);
      if (PASSING.includes(error.code)) return;
      this.result.refusals++;
      // The API refuses ranges of odd bytes, and a device as its own source, before anybody looks at devices.
      const usage = error.code === 'usage' && (verdict.against.has('range/invalid') || verdict.against.has('device/same'));
      if (!verdict.against.has(error.code) && !usage && !verdict.doubtful.has(error.code)) throw new Error(`${words} was refused with ${error.code} (${error.message}); against it was ${[...verdict.against].join(', ') || 'nothing'}`);
    }
  }

  /** Connections that the operation closed, or that know another size of the device. The daemon must not count them any more. */
  private async dropConnections(operation: Operation): Promise<void> {
    for (const id of concerned(operation)) {
      const client = this.connections.get(id);
      this.connections.delete(id);
      await client?.disconnect();
    }
  }

  // ---- kills and comparisons ------------------------------------------------------------------------

  private async kill(pair: Pair): Promise<void> {
    const { random } = this;
    const roll = random.unit();
    this.result.kills++;
    if (roll < 0.3) {
      await pair.secondary.kill();
      for (let i = random.below(10); i > 0; i--) await this.step();
      await pair.secondary.start();
      return;
    }
    const both = roll > 0.85;
    this.down = true;
    await Promise.all([pair.primary.kill(), ...(both ? [pair.secondary.kill()] : [])]);
    await this.quiet();
    this.closeAll();
    await Promise.all([pair.primary.start(), ...(both ? [pair.secondary.start()] : [])]);
    await waitFor('the primary serves', async () => (await pair.primary.group(GROUP)).role === 'primary');
    this.down = false;
    await this.compare(pair.primary);
  }

  /** The node holds what the model permits, and from now on nothing else is. */
  private async compare(node: TestNode): Promise<void> {
    const { belief, inDoubt } = this;
    this.result.comparisons++;
    this.inDoubt = undefined;
    belief.state = await compareNode(node, belief, inDoubt === undefined ? [belief.state] : [belief.state, inDoubt], this.touched, this.random);
  }

  private async comparePair(pair: Pair): Promise<void> {
    await this.quiet();
    await this.compare(pair.primary);
    await catchUp(pair);
    await this.compare(pair.secondary);
  }

  /** The primary is gone for good; the secondary goes on as one. Both are at the same LSN. */
  private async promote(pair: Pair): Promise<void> {
    const { secondary } = pair;
    this.result.promotions++;
    this.closeAll();
    await pair.primary.kill();
    await waitFor('the secondary has noticed', async () => (await secondary.group(GROUP)).links.every((link) => link.state !== 'streaming'));
    await secondary.control.promote(GROUP);
    this.primary = secondary;
    for (let i = 0; i < 30; i++) await this.step();
    await this.quiet();
    await this.compare(secondary);
  }
}

function holdsData(contents: Permitted): boolean {
  return contents.every((one) => one !== Content.zero && one.bytes === undefined);
}

function concerned(operation: Operation): readonly number[] {
  switch (operation.op) {
    case 'assign':
      return operation.pairs.map((pair) => pair.target);
    case 'resize':
      return [operation.device];
    case 'remove':
    case 'protect':
      return operation.devices;
    default:
      return [];
  }
}
