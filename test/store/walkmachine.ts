/** A simulated machine for the walker's tests: a world, a disk and the rig on it. */
import { MIB } from '../../src/base/units.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { World } from '../sim/world.js';
import type { SimNode } from '../sim/world.js';
import { Rig } from './walkrig.js';
import type { Model, RigOptions } from './walkrig.js';

const memory = new ArrayBuffer(16 * MIB);
export const BLOCK = 4096;

/** A simulated machine with a group on it. */
export class Machine {
  readonly world: World;
  readonly node: SimNode;
  rig!: Rig;
  private boots = 0;

  constructor(seed: number, readonly options: Partial<RigOptions> = {}) {
    this.world = new World({ seed });
    this.node = this.world.node('n', { memory });
  }

  /** Starts a process; false when it crashed while it did. */
  start(model: Model = new Map(), nextTag = 1): boolean {
    const io = this.node.start();
    const reactor = new Reactor(io, new Arena(io));
    this.boots++;
    const until = (condition: () => boolean): void => this.world.run(() => !this.node.alive || condition(), { us: 60e6 });
    return this.node.attempt(() => {
      this.rig = Rig.open(reactor, '/g', until, { ...this.options, bootId: `boot-${this.boots}` }, model, nextTag);
      this.node.step = () => reactor.step(-1);
    });
  }

  /** Bytes that layer files have. */
  get layerBytes(): number {
    return this.layers.reduce((sum, path) => sum + this.node.disk.file(path).allocatedPages * BLOCK, 0);
  }

  get layers(): string[] {
    return this.node.disk.paths('/g/layers');
  }
}

export function machine(seed: number, options: Partial<RigOptions> = {}): Machine {
  const made = new Machine(seed, options);
  made.start();
  return made;
}
