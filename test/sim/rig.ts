/**
 * One node in a quiet simulation, for tests that say each step themselves.
 *
 * Owns: short words for the commonest steps, each run until it has ended.
 */
import type { FlushReply, OperationReply } from '../../src/control/schema/replies.js';
import { ALONE, GROUP, SimHost, SMALL } from './cluster.js';
import type { Sizes } from './cluster.js';
import type { ModelDevice } from './model.js';
import { Workload } from './workload.js';
import { World } from './world.js';

const LIMIT = { us: 120e6 };
const WAITING = { wait: 'durable' as const, waitSeconds: 10 };

export class Rig {
  readonly world: World;
  readonly host: SimHost;
  readonly workload: Workload;

  constructor(seed: number, sizes: Partial<Sizes> = {}) {
    this.world = new World({ seed });
    this.host = new SimHost(this.world, 'node', { ...SMALL, ...sizes }, ALONE);
    this.workload = new Workload(this.host, this.world.random.fork(50));
  }

  /** A started rig. */
  static started(seed: number, sizes: Partial<Sizes> = {}): Rig {
    const rig = new Rig(seed, sizes);
    rig.start();
    return rig;
  }

  start(): void {
    if (!this.host.start()) throw new Error('crashed at the start');
  }

  /** Starts, and returns why the group is not served (`undefined`: it is). */
  tryStart(): string | undefined {
    this.start();
    if (this.host.problem !== undefined) return this.host.problem;
    return this.host.group.role === 'primary' ? undefined : this.host.group.roleReason;
  }

  run(until: () => boolean): void {
    this.world.run(until, LIMIT);
  }

  /** Lets virtual time pass. */
  pass(us: number): void {
    this.world.run(this.world.elapsed(us));
  }

  device(name: string): ModelDevice {
    const found = [...this.host.model.state.devices.values()].find((one) => this.host.model.state.nameOf(one) === name);
    if (found === undefined) throw new Error(`no device ${name}`);
    return found;
  }

  private operation(request: Parameters<SimHost['command']>[0]): OperationReply {
    return this.host.order(request, (until) => this.run(until));
  }

  create(name: string, sizeBytes: number): OperationReply {
    return this.operation({ op: 'create', group: GROUP, name, sizeBytes, ...WAITING });
  }

  snapshot(source: string, name: string): OperationReply {
    return this.operation({ op: 'snapshot', group: GROUP, source, name, ...WAITING });
  }

  restore(target: string, source: string): OperationReply {
    return this.operation({ op: 'restore', group: GROUP, target, source, ranges: [], force: true, ...WAITING });
  }

  remove(device: string): OperationReply {
    return this.operation({ op: 'remove', group: GROUP, device, withSnapshots: true, force: true, ...WAITING });
  }

  flushTo(upTo: 'durable' | 'destaged' | 'checkpoint'): FlushReply {
    return this.operation({ op: 'flush', group: GROUP, upTo }) as unknown as FlushReply;
  }

  /** Submits without waiting; the result is filled in when it is answered. */
  submit(name: string, what: 'read' | 'write' | 'zero' | 'flush', offset = 0, length = 0, options: { fua?: boolean; data?: Uint8Array } = {}): { errno: number } {
    const outcome = { errno: -1 };
    const view = this.host.view(this.device(name));
    if (view === undefined) throw new Error(`${name} is not served`);
    const done = (errno: number): void => {
      outcome.errno = errno;
    };
    const { client } = this.host;
    let taken = false;
    if (what === 'read') taken = client!.read(view, offset, length, done);
    else if (what === 'write') taken = client!.write(view, offset, options.data ?? this.workload.data(length), options.fua === true, done);
    else if (what === 'zero') taken = client!.zero(view, offset, length, options.fua === true, done);
    else taken = client!.flush(view, done);
    if (!taken) throw new Error('no slot or no memory for a request');
    this.host.node.poke();
    return outcome;
  }

  /** The same, answered: returns the errno. */
  ask(name: string, what: 'read' | 'write' | 'zero' | 'flush', offset = 0, length = 0, options: { fua?: boolean; data?: Uint8Array } = {}): number {
    const outcome = this.submit(name, what, offset, length, options);
    this.run(() => outcome.errno >= 0);
    return outcome.errno;
  }

  verify(): void {
    this.workload.verifyAll();
  }

  stop(): void {
    let closed = false;
    this.host.path!.close(() => {
      closed = true;
    });
    this.run(() => closed);
    this.host.stoppedCleanly();
  }

  /** Path of a file of the group on the simulated disk. */
  static path(name: string): string {
    return `/data/groups/${GROUP}/${name}`;
  }

  paths(under: string): string[] {
    return this.host.node.disk.paths(Rig.path(under));
  }

  dispose(): void {
    this.world.dispose();
  }
}
