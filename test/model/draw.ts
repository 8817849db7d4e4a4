/**
 * Random work on a group, as decisions only: which operation an operator asks
 * for next, where a client writes. The simulation and the runs against real
 * daemons draw from here, so that both do the same kinds of things.
 *
 * Owns: the mix, the sizes and the places. Must not know: who carries it out,
 * what the right answer is (judge.ts). Some of what is drawn must be refused.
 */
import { GIB, KIB, MIB } from '../../src/base/units.js';
import type { OperationRequest, Ranges } from '../../src/control/port.js';
import type { Random } from '../sim/random.js';
import { BLOCK } from './devices.js';
import type { Device, Devices } from './devices.js';

type AnyDevice = Device<unknown>;
type State = Devices<unknown>;

const LEAF = 2 * MIB;
/** Below a leaf, a leaf, some leaves, one inner node and more, two levels of them, three. */
export const SIZES = [MIB, LEAF, LEAF + 3 * BLOCK, 5 * MIB, 5 * MIB, 11 * MIB, 128 * MIB, 200 * MIB, 9 * GIB];
const LARGE = 64 * MIB;
/** Leaves that large devices are used in: few, so that they are hit again; at the borders of inner nodes. */
const LEAVES = [0, 0, 1, 2, 31, 63, 64, 65, 4095, 4096];
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p'];

export interface Limits {
  readonly devices: number;
  readonly volumes: number;
  /** No new device is larger. */
  readonly largestDevice: number;
}

export const LIMITS: Limits = { devices: 12, volumes: 4, largestDevice: 9 * GIB };

const WAITING = { wait: 'durable' as const, waitSeconds: 10 };

/** An operation, or undefined when nothing comes to mind in this state. */
export function drawOperation(random: Random, state: State, group: string, limits: Limits = LIMITS): OperationRequest | undefined {
  const all = [...state.devices.values()];
  const volumes = all.filter((one) => one.kind === 'volume');
  const draw = new Draw(random, state, group, limits, all, volumes);
  if (volumes.length === 0) return draw.create();
  if (all.length >= limits.devices) return random.chance(0.85) ? draw.remove() : draw.any();
  if (volumes.length < 2 && random.chance(0.3)) return draw.create();
  return draw.any();
}

class Draw {
  constructor(
    private readonly random: Random, private readonly state: State, private readonly group: string, private readonly limits: Limits,
    private readonly all: readonly AnyDevice[], private readonly volumes: readonly AnyDevice[],
  ) {}

  any(): OperationRequest | undefined {
    const { random } = this;
    const roll = random.below(100);
    if (roll < 18) return this.snapshot();
    if (roll < 24) return this.snapshotGroup();
    if (roll < 46) return this.restore();
    if (roll < 50) return this.restoreSet();
    if (roll < 57) return this.refresh();
    if (roll < 67) return this.sync();
    if (roll < 77) return this.resize();
    if (roll < 85) return this.remove();
    if (roll < 90) return this.rename();
    if (roll < 95) return this.protect();
    if (roll < 98) return this.clone();
    return this.create();
  }

  create(): OperationRequest {
    const { random, group } = this;
    // Past the limit it is drawn to be refused.
    const name = this.volumes.length >= this.limits.volumes ? random.pick(this.volumes).name : this.newName(new Set(this.volumes.map((one) => one.name)));
    return { op: 'create', group, name, sizeBytes: this.size(), ...WAITING };
  }

  private size(): number {
    const fitting = SIZES.filter((size) => size <= this.limits.largestDevice);
    const large = this.all.filter((one) => one.sizeBytes >= LARGE).length;
    return this.random.pick(large > 4 ? fitting.filter((size) => size < LARGE) : fitting);
  }

  /** Mostly one that is free; of few, so that names come back after removals and renames. */
  private newName(taken: ReadonlySet<string>): string {
    const { random } = this;
    const free = NAMES.filter((name) => !taken.has(name));
    return free.length > 0 && random.chance(0.93) ? random.pick(free) : random.pick(NAMES);
  }

  private snapshotName(source: AnyDevice): string {
    return this.newName(new Set(this.all.filter((one) => one.volume === source.volume).map((one) => one.name)));
  }

  /** Mostly one that exists. */
  private name(from: readonly AnyDevice[]): string {
    const { random, state } = this;
    if (from.length === 0 || random.chance(0.02)) return random.pick(['nobody', 'a@nothing', 'p@p']);
    return state.nameOf(random.pick(from));
  }

  private get snapshots(): AnyDevice[] {
    return this.all.filter((one) => one.kind === 'snapshot');
  }

  /** Sets that exist, or one that hardly does. */
  private set(): string {
    const sets = [...new Set(this.all.map((one) => one.set))].filter((set) => set !== '');
    return `@${sets.length > 0 && this.random.chance(0.95) ? this.random.pick(sets) : this.random.pick(NAMES)}`;
  }

  private get hasSets(): boolean {
    return this.all.some((one) => one.set !== '');
  }

  private get force(): boolean {
    return this.random.chance(0.75);
  }

  snapshot(): OperationRequest {
    const { random, group } = this;
    const source = random.chance(0.65) ? random.pick(this.volumes) : random.pick(this.all);
    return { op: 'snapshot', group, source: random.chance(0.02) ? 'nobody' : this.state.nameOf(source), name: this.snapshotName(source), ...WAITING };
  }

  snapshotGroup(): OperationRequest {
    return { op: 'snapshot', group: this.group, source: null, name: this.newName(new Set(this.all.flatMap((one) => [one.name, one.set]))), ...WAITING };
  }

  /** Two devices that share content; now and then any two. */
  private related(targets: readonly AnyDevice[], sources: readonly AnyDevice[]): [AnyDevice, AnyDevice] | undefined {
    const { random } = this;
    if (targets.length === 0 || sources.length === 0) return undefined;
    const target = random.pick(targets);
    if (random.chance(0.03)) return [target, random.pick(sources)];
    const family = sources.filter((one) => one.volume === target.volume && one !== target);
    return family.length > 0 ? [target, random.pick(family)] : undefined;
  }

  restore(): OperationRequest | undefined {
    const { random, state, group } = this;
    const pair = this.related(random.chance(0.6) ? this.volumes : this.all, this.all);
    if (pair === undefined) return this.snapshot();
    const target = random.chance(0.02) ? null : state.nameOf(pair[0]);
    return { op: 'restore', group, target, source: state.nameOf(pair[1]), ranges: this.ranges(...pair), force: this.force, ...WAITING };
  }

  restoreSet(): OperationRequest {
    const { random, group } = this;
    if (!this.hasSets && random.chance(0.9)) return this.snapshotGroup();
    const target = random.chance(0.05) ? this.name(this.all) : null;
    const ranges: Ranges = random.chance(0.1) ? [[0, BLOCK]] : [];
    return { op: 'restore', group, target, source: this.set(), ranges, force: this.force, ...WAITING };
  }

  refresh(): OperationRequest {
    const { random, group } = this;
    const target = this.hasSets && random.chance(0.3) ? this.set() : this.name(random.chance(0.9) ? this.snapshots : this.all);
    return { op: 'refresh', group, target, force: this.force, ...WAITING };
  }

  sync(): OperationRequest | undefined {
    const { random, state, group } = this;
    const from = random.chance(0.95) ? this.snapshots : this.all;
    const pair = this.related(from, from);
    if (pair === undefined) return this.snapshot();
    return { op: 'sync', group, target: state.nameOf(pair[0]), source: state.nameOf(pair[1]), ranges: this.ranges(...pair), force: this.force, ...WAITING };
  }

  resize(): OperationRequest {
    const { random, group } = this;
    // What has an odd size was probably shrunk: growing it again must bring nothing back.
    const odd = this.all.filter((one) => !SIZES.includes(one.sizeBytes));
    const device = odd.length > 0 && random.chance(0.5) ? random.pick(odd) : random.pick(this.all);
    const { sizeBytes: old } = device;
    const roll = random.unit();
    let sizeBytes: number;
    if (roll < 0.3) sizeBytes = this.size();
    else if (roll < 0.45) sizeBytes = old + random.between(-700, 700) * BLOCK;
    else if (roll < 0.65) sizeBytes = floorTo(drawPlace(random, old, BLOCK), BLOCK);
    else if (roll < 0.85) sizeBytes = old + Math.ceil(random.logUniform(1, 5 * MIB / BLOCK)) * BLOCK;
    else if (roll < 0.97) sizeBytes = (Math.round(old / LEAF) + random.between(-2, 3)) * LEAF;
    else sizeBytes = old;
    sizeBytes = Math.max(BLOCK, sizeBytes);
    return { op: 'resize', group, device: random.chance(0.02) ? 'nobody' : this.state.nameOf(device), sizeBytes, force: random.chance(0.85), ...WAITING };
  }

  remove(): OperationRequest {
    const { random, group } = this;
    let device: string;
    if (this.hasSets && random.chance(0.2)) device = this.set();
    else device = this.name(this.snapshots.length > 0 && random.chance(0.9) ? this.snapshots : this.all);
    return { op: 'remove', group, device, withSnapshots: random.chance(0.5), force: this.force, ...WAITING };
  }

  rename(): OperationRequest {
    const { random, group } = this;
    const device = this.hasSets && random.chance(0.25) ? this.set() : this.name(this.all);
    return { op: 'rename', group, device, name: this.newName(new Set(this.all.map((one) => one.name))), force: this.force, ...WAITING };
  }

  protect(): OperationRequest {
    const { random, group } = this;
    const kept = this.all.filter((one) => one.protected);
    const off = kept.length > 0 && random.chance(0.7);
    const device = !off && this.hasSets && random.chance(0.2) ? this.set() : this.name(off ? kept : this.all);
    return { op: 'protect', group, device, on: random.chance(0.95) ? !off : off, force: this.force, ...WAITING };
  }

  clone(): OperationRequest {
    const { random, group } = this;
    if (this.volumes.length >= this.limits.volumes) return this.remove();
    const source = this.name(random.chance(0.95) ? this.snapshots : this.all);
    return { op: 'clone', group, source, name: this.newName(new Set(this.volumes.map((one) => one.name))), ...WAITING };
  }

  /** None (the whole), a few that are right, or some that are not. */
  private ranges(target: AnyDevice, source: AnyDevice): Ranges {
    const { random } = this;
    if (random.chance(0.35)) return [];
    const end = Math.min(target.sizeBytes, source.sizeBytes);
    const found: [number, number][] = [];
    for (let count = random.chance(0.05) ? random.between(5, 64) : random.between(1, 4); count > 0; count--) {
      const length = Math.min(end, BLOCK * Math.ceil(random.logUniform(1, Math.max(1, (random.chance(0.8) ? Math.min(end, 8 * MIB) : end) / BLOCK))));
      found.push([floorTo(drawPlace(random, end, length), BLOCK), length]);
    }
    found.sort((a, b) => a[0] - b[0]);
    const apart: [number, number][] = [];
    let behind = 0;
    for (const [offset, length] of found) {
      if (offset < behind) continue;
      apart.push([offset, length]);
      behind = offset + length;
    }
    if (random.chance(0.1)) apart[apart.length - 1][1] = end - apart[apart.length - 1][0];
    if (!random.chance(0.06)) return apart;
    const wrong: Ranges[] = [
      [[0, 2 * BLOCK], [BLOCK, BLOCK]], [[0, 0]], [[0, 512]], [[1024, BLOCK]], [[0, end + BLOCK]], [[end, BLOCK]], Array.from({ length: 65 }, (_unused, i) => [2 * i * BLOCK, BLOCK]), [[BLOCK, BLOCK], [0, BLOCK]],
    ];
    return random.pick(wrong);
  }
}

function floorTo(value: number, unit: number): number {
  return value - (value % unit);
}

/** Where `length` bytes of a device may lie: a hot region, an end, the border of a leaf, anywhere. Not aligned. */
export function drawPlace(random: Random, sizeBytes: number, length: number): number {
  const last = sizeBytes - length;
  const leaves = sizeBytes / LEAF;
  const roll = random.unit();
  let at: number;
  if (roll < 0.4) at = random.below(64) * BLOCK;
  else if (roll < 0.5) at = last;
  else if (sizeBytes >= LARGE) at = random.pick(LEAVES.filter((leaf) => leaf < leaves)) * LEAF + (roll < 0.75 ? -random.below(length + 1) : random.chance(0.3) ? 0 : random.below(64) * BLOCK);
  else if (roll < 0.65) at = LEAF * random.between(1, Math.max(1, Math.floor(leaves))) - random.below(length + 1);
  else at = random.below(last + 1);
  return Math.max(0, Math.min(at, last));
}

/** A length and an offset, aligned or not. */
export function drawRange(random: Random, sizeBytes: number, most: number): { offset: number; length: number } {
  const largest = Math.min(most, sizeBytes);
  let length = Math.max(1, Math.min(largest, Math.floor(random.logUniform(512, largest))));
  let unit = BLOCK;
  const roll = random.unit();
  if (roll < 0.25) unit = 512;
  else if (roll < 0.3) unit = 1;
  length = Math.max(unit, length - (length % unit));
  return { offset: floorTo(drawPlace(random, sizeBytes, length), unit), length };
}

export interface RequestMix {
  readonly reads: number;
  readonly flushes: number;
  readonly largestWrite: number;
}

export type DrawnRequest =
  | { readonly kind: 'read'; readonly offset: number; readonly length: number }
  | { readonly kind: 'flush' }
  | { readonly kind: 'write' | 'zero'; readonly offset: number; readonly length: number; readonly fua: boolean };

/** What a client of a device of this size does next. */
export function drawRequest(random: Random, sizeBytes: number, mix: RequestMix): DrawnRequest {
  const roll = random.unit();
  if (roll < mix.reads) return { kind: 'read', ...drawRange(random, sizeBytes, 128 * KIB) };
  if (roll < mix.reads + mix.flushes) return { kind: 'flush' };
  const fua = random.chance(0.1);
  if (random.chance(0.15)) return { kind: 'zero', ...drawRange(random, sizeBytes, random.chance(0.3) ? Math.min(sizeBytes, 0x7ffff000) : 256 * KIB), fua };
  return { kind: 'write', ...drawRange(random, sizeBytes, mix.largestWrite), fua };
}

/** Volumes are written to most. */
export function drawDevice<D extends AnyDevice>(random: Random, devices: readonly D[]): D | undefined {
  if (devices.length === 0) return undefined;
  const volumes = devices.filter((one) => one.kind === 'volume');
  return random.chance(0.7) && volumes.length > 0 ? random.pick(volumes) : random.pick(devices);
}
