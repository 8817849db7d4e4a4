/**
 * For tests that say themselves what fails: a pair of nodes in a quiet
 * simulation, and faults at chosen places.
 */
import { KIB } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { OperationReply } from '../../src/control/schema/replies.js';
import { GROUP, LAZY, SimHost, caughtUp } from './cluster.js';
import type { Sizes } from './cluster.js';
import type { FaultSite } from './faults.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';
import type { Rig } from './rig.js';
import { World } from './world.js';

export const SIZE = 512 * KIB;
const LIMIT = { us: 120e6 };
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };

/** Fails the first `times` operations that `matches`. */
export function fail(rig: Rig | SimHost, times: number, matches: (site: FaultSite) => boolean, errno = 5): { left: number } {
  const host = rig instanceof SimHost ? rig : rig.host;
  const { faults } = host.node.disk;
  const state = { left: times };
  faults.hook = (site) => {
    if (state.left === 0 || !matches(site)) return 0;
    state.left--;
    return errno;
  };
  return state;
}

/** A primary `a` and its secondary `b`, with the volume `v`, both level and durable; `locals`: those of `b`. */
export class Pair {
  readonly world: World;
  readonly a: SimHost;
  readonly b: SimHost;
  readonly locals: LocalDevices;

  constructor(seed: number, sizes: Sizes = LAZY) {
    const world = new World({ seed });
    this.world = world;
    Object.assign(world.network.rates, { latencyLowUs: 50, latencyHighUs: 200, bufferLow: 64 * KIB, bufferHigh: 64 * KIB });
    this.a = new SimHost(world, 'a', sizes, { role: 'primary', peers: [{ node: 'b', address: '10.0.0.2:7002' }] }, 0);
    this.b = new SimHost(world, 'b', sizes, { role: 'secondary', listen: '10.0.0.2:7002', peers: [{ node: 'a' }] }, 1);
    this.locals = new LocalDevices(this.b);
    this.b.start();
    this.a.start();
    this.order(this.a, { op: 'create', group: GROUP, name: 'v', sizeBytes: SIZE, ...WAIT });
    this.write(0, 1);
    this.order(this.a, { op: 'flush', group: GROUP, upTo: 'durable' });
    this.run(() => this.caughtUp && this.b.group.stableLsn === this.a.group.journal.durableLsn);
    this.locals.attach();
  }

  run(until: () => boolean): void {
    this.world.run(until, LIMIT);
  }

  order<R = OperationReply>(host: SimHost, request: ControlRequest): R {
    return host.order(request, (until) => this.run(until));
  }

  write(block: number, letter: number): void {
    let errno = -1;
    const device = [...this.a.model.state.devices.values()][0];
    this.a.client!.write(this.a.view(device)!, block * BLOCK, new Uint8Array(BLOCK).fill(letter), false, (result) => (errno = result));
    this.a.node.poke();
    this.run(() => errno >= 0);
    if (errno !== 0) throw new Error(`errno ${errno}`);
  }

  get caughtUp(): boolean {
    return caughtUp(this.a, this.b);
  }

  /** The secondary gets what its primary loses, and will have to go back. */
  ahead(): void {
    this.write(2, 2);
    this.run(() => this.caughtUp);
    this.loseTail();
  }

  /** The primary loses what it has not made durable, and the secondary has. */
  loseTail(): void {
    this.a.crash('power');
    this.world.network.partition('a', 'b');
    this.a.start();
    this.run(() => this.a.group.role === 'primary');
    if (this.a.group.epochs.at(-1)!.start.lsn >= this.b.group.position.lsn) throw new Error('the primary lost nothing');
    this.world.network.heal('a', 'b');
  }
}
