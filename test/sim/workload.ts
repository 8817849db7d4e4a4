/**
 * Random work on one simulated node: writes of every shape, trims, reads,
 * flushes, snapshots of snapshots, restores, removals.
 *
 * Owns: what is asked for, and keeping it within bounds. Must not know: what the
 * answers should be (client.ts), crashes (run.ts).
 */
import { KIB, MIB } from '../../src/base/units.js';
import type { SimHost } from './cluster.js';
import { GROUP } from './cluster.js';
import { BLOCK } from './model.js';
import type { ModelDevice } from './model.js';
import type { Random } from './random.js';

const WAITING = { wait: 'durable' as const, waitSeconds: 10 };

export interface WorkloadOptions {
  readonly maxDevices: number;
  readonly maxInFlight: number;
  /** Weights of the kinds of steps. */
  readonly operations: number;
  readonly reads: number;
  readonly flushes: number;
  readonly largestWrite: number;
}

export const MIXED: WorkloadOptions = { maxDevices: 10, maxInFlight: 16, operations: 0.12, reads: 0.2, flushes: 0.08, largestWrite: 96 * KIB };

const VOLUME_SIZES = [MIB, 2 * MIB, 2 * MIB + 3 * BLOCK, 5 * MIB, 5 * MIB, 200 * MIB];

export class Workload {
  private nextName = 1;
  private nextData = 1;
  operations = 0;
  private running: { ended: boolean; error?: unknown }[] = [];

  constructor(private readonly host: SimHost, private readonly random: Random, readonly options: WorkloadOptions = MIXED) {}

  /** Whether as much is under way as may be. */
  get full(): boolean {
    return (this.host.client?.inFlight ?? 0) >= this.options.maxInFlight;
  }

  get idle(): boolean {
    return (this.host.client?.inFlight ?? 0) === 0 && this.running.every((one) => one.ended);
  }

  /** The process that had been asked is gone. */
  forget(): void {
    this.running.length = 0;
  }

  /** Starts one thing. */
  step(): void {
    const { random, host, options } = this;
    const devices = [...host.model.state.devices.values()];
    if (devices.length === 0 || (devices.length < 2 && random.chance(0.2))) {
      this.create();
      return;
    }
    const device = this.pick(devices);
    const roll = random.unit();
    if (roll < options.operations) this.operate(devices);
    else if (roll < options.operations + options.reads) this.read(device);
    else if (roll < options.operations + options.reads + options.flushes) this.flush(device);
    else this.change(device);
    this.host.node.poke();
  }

  /** Volumes are written to most. */
  private pick(devices: ModelDevice[]): ModelDevice {
    const volumes = devices.filter((one) => one.kind === 'volume');
    return this.random.chance(0.7) && volumes.length > 0 ? this.random.pick(volumes) : this.random.pick(devices);
  }

  private create(): void {
    const taken = [...this.host.model.state.devices.values()].some((one) => one.sizeBytes > 100 * MIB);
    const sizeBytes = this.random.pick(taken ? VOLUME_SIZES.slice(0, -1) : VOLUME_SIZES);
    this.perform({ op: 'create', group: GROUP, name: `v${this.nextName++}`, sizeBytes, ...WAITING });
  }

  private operate(devices: ModelDevice[]): void {
    const { random, host } = this;
    const { state } = host.model;
    const device = random.pick(devices);
    const name = state.nameOf(device);
    const family = devices.filter((one) => one.volume === device.volume && one !== device);
    const roll = random.unit();
    if (devices.length >= this.options.maxDevices || (roll < 0.2 && devices.length > 2)) {
      const snapshots = devices.filter((one) => one.kind === 'snapshot');
      const doomed = snapshots.length > 0 && random.chance(0.9) ? random.pick(snapshots) : device;
      this.perform({ op: 'remove', group: GROUP, device: state.nameOf(doomed), withSnapshots: random.chance(0.5), force: true, ...WAITING });
    } else if (roll < 0.5 && family.length > 0) {
      this.perform({ op: 'restore', group: GROUP, target: name, source: state.nameOf(random.pick(family)), ranges: [], force: true, ...WAITING });
    } else if (roll < 0.95) {
      this.perform({ op: 'snapshot', group: GROUP, source: name, name: `s${this.nextName++}`, ...WAITING });
    } else {
      this.create();
    }
  }

  private perform(request: Parameters<SimHost['command']>[0]): void {
    this.operations++;
    this.running.push(this.host.command(request));
    if (this.running.length > 64) this.running = this.running.filter((one) => !one.ended);
  }

  /** Where: a hot region, an end, a leaf's border, anywhere. */
  private place(device: ModelDevice, length: number): number {
    const { random } = this;
    const last = device.sizeBytes - length;
    const border = 2 * MIB * (1 + random.below(Math.max(1, Math.floor(device.sizeBytes / (2 * MIB)))));
    let at: number;
    const roll = random.unit();
    if (roll < 0.5) at = random.below(64) * BLOCK;
    else if (roll < 0.6) at = last;
    else if (roll < 0.7) at = border - random.below(length + 1);
    else at = random.below(last + 1);
    return Math.max(0, Math.min(at, last));
  }

  /** A length and an offset, aligned or not. */
  private range(device: ModelDevice, most: number): { offset: number; length: number } {
    const { random } = this;
    const largest = Math.min(most, device.sizeBytes);
    let length = Math.max(1, Math.min(largest, Math.floor(random.logUniform(512, largest))));
    let unit = BLOCK;
    const roll = random.unit();
    if (roll < 0.25) unit = 512;
    else if (roll < 0.3) unit = 1;
    length = Math.max(unit, length - (length % unit));
    let offset = this.place(device, length);
    offset -= offset % unit;
    return { offset, length };
  }

  private read(device: ModelDevice): void {
    const view = this.host.view(device);
    if (view === undefined) return;
    const { offset, length } = this.range(device, 128 * KIB);
    this.host.client!.read(view, offset, length);
  }

  private flush(device: ModelDevice): void {
    const view = this.host.view(device);
    if (view !== undefined) this.host.client!.flush(view);
  }

  private change(device: ModelDevice): void {
    const { random } = this;
    const view = this.host.view(device);
    if (view === undefined) return;
    const fua = random.chance(0.1);
    if (random.chance(0.15)) {
      const { offset, length } = this.range(device, random.chance(0.3) ? device.sizeBytes : 256 * KIB);
      this.host.client!.zero(view, offset, length, fua);
      return;
    }
    const { offset, length } = this.range(device, this.options.largestWrite);
    this.host.client!.write(view, offset, this.data(length), fua);
  }

  /** Bytes that no other write has, save for some writes of zeros. */
  data(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    const id = this.nextData++;
    if (this.random.chance(0.04)) return bytes;
    const words = new Uint32Array(Math.ceil(length / 4));
    for (let i = 0; i < words.length; i++) words[i] = Math.imul(id, 0x9e3779b1) ^ Math.imul(i + 1, 0x85ebca6b);
    bytes.set(new Uint8Array(words.buffer, 0, length));
    return bytes;
  }

  /** Reads everything that any device holds, and some of what it does not; ends when all reads have been checked. */
  verifyAll(): void {
    const { host } = this;
    const piece = 128 * KIB;
    const work: { device: ModelDevice; offset: number; length: number }[] = [];
    for (const device of host.model.state.devices.values()) {
      const pieces = Math.ceil(device.sizeBytes / piece);
      const wanted = new Set<number>();
      if (pieces <= 64) for (let i = 0; i < pieces; i++) wanted.add(i);
      for (const block of device.blocks.keys()) wanted.add(Math.floor((block * BLOCK) / piece));
      for (let i = 0; i < 8; i++) wanted.add(this.random.below(pieces));
      for (const i of wanted) work.push({ device, offset: i * piece, length: Math.min(piece, device.sizeBytes - i * piece) });
    }
    let left = work.length;
    let failed = 0;
    host.world.run(() => {
      if (!host.alive) return true;
      while (work.length > 0 && (host.client?.inFlight ?? 0) < 8) {
        const { device, offset, length } = work.pop()!;
        const view = host.view(device);
        if (view === undefined) throw new Error(`${host.model.state.nameOf(device)} is not served: ${host.group.roleReason}`);
        host.client!.read(view, offset, length, (errno) => {
          left--;
          if (errno !== 0) failed++;
        });
        host.node.poke();
      }
      return left === 0;
    }, { us: 60e6 });
    if (failed > 0 && host.alive) throw new Error(`${failed} reads failed although no fault was injected`);
  }
}
