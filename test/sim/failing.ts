/**
 * For tests that say themselves what fails: a pair of nodes in a quiet
 * simulation, and faults at chosen places.
 */
import { KIB, MIB } from '../../src/base/units.js';
import { GROUP, SimHost, SMALL } from './cluster.js';
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

/** Nothing becomes durable but by FLUSH or by what an operation waits for. */
export const LAZY = { ...SMALL, segments: 12, syncMs: 60_000, syncBytes: 64 * MIB, checkpointSeconds: 1000, checkpointBytes: 64 * MIB, destageUs: 3600e6, destageFraction: 0.9 };

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
    const create = this.a.command({ op: 'create', group: GROUP, name: 'v', sizeBytes: SIZE, ...WAIT });
    this.run(() => create.ended);
    this.write(0, 1);
    const flushed = this.a.command({ op: 'flush', group: GROUP, upTo: 'durable' });
    this.run(() => flushed.ended && this.caughtUp && this.b.group.stableLsn === this.a.group.journal.durableLsn);
    this.locals.attach();
  }

  run(until: () => boolean): void {
    this.world.run(() => {
      if (this.b.alive && this.b.path?.blocks.group(GROUP)?.hasContent === true) this.b.adopted();
      return until();
    }, LIMIT);
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
    return this.b.group.hasContent && this.b.group.position.lsn === this.a.group.position.lsn && this.b.group.epochs.length === this.a.group.epochs.length;
  }

  /** The secondary gets what its primary loses, and will have to go back. */
  ahead(): void {
    this.write(2, 2);
    this.run(() => this.caughtUp);
    this.a.crash('power');
    this.world.network.partition('a', 'b');
    this.a.start();
    this.run(() => this.a.group.role === 'primary');
    if (this.a.group.epochs.at(-1)!.start.lsn >= this.b.group.position.lsn) throw new Error('the primary lost nothing');
    this.world.network.heal('a', 'b');
  }
}
