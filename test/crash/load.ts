/**
 * The mixed load of the crash tests: several workers with NBD connections of
 * their own, and an operator who takes snapshots, restores and removes.
 *
 * Owns: what is asked for (from the seed) and telling the model what came of
 * it. Must not know: who kills what when; it is told when the node is down.
 */
import { ControlError } from '../../src/control/client.js';
import { KIB, MIB, GIB } from '../../src/base/units.js';
import { NbdConnectionError, NbdRequestError } from '../../src/vendor/nbd-protocol-ts/index.js';
import type { NbdClient } from '../../src/vendor/nbd-protocol-ts/index.js';
import type { TestNode } from '../harness/node.js';
import type { Random } from '../sim/random.js';
import { waitFor } from '../harness/process.js';
import { Connections, GROUP } from './clients.js';
import { BLOCK } from './content.js';
import type { CrashModel, Flight, Image, ModelDevice } from './model.js';

const WORKERS = 4;
const DEPTH = 6;
const MAX_DEVICES = 9;
const MAX_VOLUMES = 3;
const SPARSE_BYTES = 256 * GIB;
/** Places in a sparse volume that are written to: few, so that they are hit again. */
const SPARSE_SPOTS = [0, 2 * MIB - 8 * KIB, 128 * MIB - 64 * KIB, 8 * GIB - 4 * KIB, 100 * GIB, SPARSE_BYTES - 128 * KIB];
const SPOT_BYTES = 128 * KIB;
/** Refusals of operations that are right under this load. */
const EXPECTED_REFUSALS = ['journal/stalled', 'device/has-snapshots'];

/** What an operation ends with when the daemon goes away under it. */
const UNANSWERED = ['daemon/unreachable', 'daemon/closing', 'group/stopped'];

/** An operation whose reply was lost: what is to be done when it turns out to have happened, or not. */
export type Unresolved =
  | { readonly kind: 'new'; readonly device: ModelDevice }
  | { readonly kind: 'remove'; readonly devices: readonly ModelDevice[] };

type Choice = readonly [((client: NbdClient) => Promise<void>) | undefined, Flight | undefined];

export interface LoadCounts {
  writes: number;
  zeroes: number;
  reads: number;
  flushes: number;
  bytesWritten: number;
  lostReplies: number;
  operations: number;
}

export class Load {
  readonly counts: LoadCounts = { writes: 0, zeroes: 0, reads: 0, flushes: 0, bytesWritten: 0, lostReplies: 0, operations: 0 };
  unresolved: Unresolved[] = [];
  private running = false;
  private ended = false;
  private underWay = 0;
  private nextName = 1;
  private fail!: (error: Error) => void;
  private wake: (() => void)[] = [];
  private readonly connections: Connections[] = [];
  private loops: Promise<void>[] = [];
  /** Rejects at the first thing that is wrong. */
  readonly failed = new Promise<never>((_resolve, reject) => (this.fail = reject));
  /** The primary is being killed or is dead: failures of connections are expected. */
  down = false;

  /** `prefix` tells the names of this load from those of another one on the same model. */
  constructor(private readonly node: () => TestNode, private readonly model: CrashModel, private readonly random: Random, private readonly prefix = '') {
    this.failed.catch(() => undefined);
  }

  async createVolumes(): Promise<void> {
    for (const sizeBytes of [12 * MIB, 4 * MIB + 3 * BLOCK, SPARSE_BYTES]) await this.create(sizeBytes);
  }

  start(): void {
    this.running = true;
    for (let i = 0; i < WORKERS; i++) {
      const connections = new Connections(this.node(), 5);
      this.connections.push(connections);
      const random = this.random.fork(i + 1);
      for (let lane = 0; lane < DEPTH; lane++) this.loop(() => this.step(connections, random));
    }
    const random = this.random.fork(99);
    this.loop(async () => {
      await this.operate(random);
      await new Promise((done) => setTimeout(done, random.below(80)));
    });
  }

  private loop(step: () => Promise<void>): void {
    const run = async (): Promise<void> => {
      while (!this.ended) {
        if (!this.running) {
          await new Promise<void>((done) => this.wake.push(done));
          continue;
        }
        this.underWay++;
        try {
          await step();
        } finally {
          this.underWay--;
        }
      }
    };
    this.loops.push(run().catch((error: unknown) => this.fail(error as Error)));
  }

  /** No new requests; resolves when all that are under way have ended. */
  async pause(): Promise<void> {
    this.running = false;
    await Promise.race([this.failed, waitFor('all requests under way are answered', () => this.underWay === 0, 60_000)]);
  }

  resume(): void {
    this.running = true;
    const wake = this.wake;
    this.wake = [];
    for (const go of wake) go();
  }

  async end(): Promise<void> {
    this.ended = true;
    this.resume();
    for (const one of this.connections) one.closeAll();
    await Promise.all(this.loops);
  }

  // ---- requests -----------------------------------------------------------------------------------

  private pick(random: Random): ModelDevice | undefined {
    const devices = [...this.model.devices.values()];
    const volumes = devices.filter((one) => one.isVolume);
    if (devices.length === 0) return undefined;
    return volumes.length > 0 && random.chance(0.75) ? random.pick(volumes) : random.pick(devices);
  }

  private async step(connections: Connections, random: Random): Promise<void> {
    const device = this.pick(random);
    if (device === undefined) return breathe();
    let flight: Flight | undefined;
    try {
      const client = await connections.to(device.name);
      const [action, change] = this.choose(device, random);
      flight = change;
      if (action === undefined) return await breathe();
      await action(client);
      if (flight !== undefined) this.model.acknowledged(flight);
    } catch (error) {
      if (flight !== undefined) {
        this.model.lost(flight);
        this.counts.lostReplies++;
      }
      await this.judge(error, device);
    }
  }

  /** What to do next, and the change of the model that it is; no action when it may not be done now. */
  private choose(device: ModelDevice, random: Random): Choice {
    const roll = random.unit();
    if (roll < 0.2) return [this.read(device, random), undefined];
    if (roll < 0.24) return [(client) => this.flush(client), undefined];
    if (roll < 0.33) return this.zero(device, random);
    return this.write(device, random, roll);
  }

  /** Whether a request may have failed like this. */
  private async judge(error: unknown, device: ModelDevice): Promise<void> {
    const gone = this.down || device.doomed || !this.model.devices.has(device.name);
    if (error instanceof NbdConnectionError) {
      if (this.down) return breathe();
      if (!this.node().running) throw new Error(`the primary ended by itself\n${this.node().log.slice(-3000)}`);
      // Restores and removals close connections; so does a kill that is noticed here first.
      await new Promise((done) => setTimeout(done, 5));
      return;
    }
    if (error instanceof NbdRequestError && error.code === 'ESHUTDOWN' && gone) return;
    throw error;
  }

  private place(device: ModelDevice, random: Random, length: number): number {
    if (device.sizeBytes === SPARSE_BYTES) return Math.min(random.pick(SPARSE_SPOTS) + random.below(SPOT_BYTES), SPARSE_BYTES - length);
    const roll = random.unit();
    const last = device.sizeBytes - length;
    if (roll < 0.3) return Math.min(last, random.below(48) * BLOCK);
    if (roll < 0.4) return last;
    if (roll < 0.5) return Math.max(0, Math.min(last, 2 * MIB * random.between(1, 5) - random.below(length + 1)));
    return random.below(last + 1);
  }

  private range(device: ModelDevice, random: Random, lowest: number, most: number, unit: number): [number, number] {
    const largest = Math.min(most, device.sizeBytes);
    let length = Math.floor(random.logUniform(lowest, largest));
    length = Math.max(unit, length - (length % unit));
    const offset = this.place(device, random, length);
    return [offset - (offset % unit), length];
  }

  private write(device: ModelDevice, random: Random, roll: number): Choice {
    const fua = random.chance(0.08);
    let range: [number, number];
    if (roll < 0.42) range = this.range(device, random, 1, 12 * KIB, 1);
    else if (roll < 0.52) range = this.range(device, random, 512, 3 * KIB, 512);
    else if (roll < 0.54) range = this.range(device, random, 256 * KIB, 3 * MIB, BLOCK);
    else range = this.range(device, random, BLOCK, 48 * KIB, BLOCK);
    const flight = this.model.begin(device, 'write', ...range);
    if (flight === undefined) return [undefined, undefined];
    const payload = this.model.payload(flight);
    return [async (client) => {
      await client.write(flight.offset, payload, { fua });
      this.counts.writes++;
      this.counts.bytesWritten += flight.length;
    }, flight];
  }

  private zero(device: ModelDevice, random: Random): Choice {
    const roll = random.unit();
    let range: [number, number];
    if (roll < 0.03 && device.sizeBytes === SPARSE_BYTES) range = [random.below(60) * 4 * GIB, 2 * GIB + random.below(1000) * MIB];
    else if (roll < 0.4) range = this.range(device, random, 1, 20 * KIB, 1);
    else range = this.range(device, random, BLOCK, random.chance(0.1) ? 4 * MIB : 256 * KIB, BLOCK);
    const fua = random.chance(0.08);
    const trim = random.chance(0.5);
    const options = { fua, noHole: random.chance(0.3), fastZero: random.chance(0.3) };
    const flight = this.model.begin(device, 'zero', ...range);
    if (flight === undefined) return [undefined, undefined];
    return [async (client) => {
      if (trim) await client.trim(flight.offset, flight.length, { fua });
      else await client.writeZeroes(flight.offset, flight.length, options);
      this.counts.zeroes++;
    }, flight];
  }

  private read(device: ModelDevice, random: Random): (client: NbdClient) => Promise<void> {
    const [offset, length] = this.range(device, random, BLOCK, 128 * KIB, BLOCK);
    return async (client) => {
      const watch = this.model.beginRead(device, offset, length);
      const bytes = await client.read(offset, length);
      const mismatch = this.model.endRead(watch, bytes);
      if (mismatch !== undefined) throw new Error(`a read under load was answered wrongly\n${this.model.explain(device, mismatch)}`);
      this.counts.reads++;
    };
  }

  private async flush(client: NbdClient): Promise<void> {
    await client.flush();
    this.counts.flushes++;
  }

  // ---- operations -----------------------------------------------------------------------------------

  private async operate(random: Random): Promise<void> {
    const devices = [...this.model.devices.values()];
    const snapshots = devices.filter((one) => !one.isVolume);
    const volumes = devices.filter((one) => one.isVolume);
    const roll = random.unit();
    if (volumes.length < MAX_VOLUMES) return this.create(random.pick([12 * MIB, 4 * MIB + 3 * BLOCK]));
    if (devices.length >= MAX_DEVICES || (roll < 0.2 && snapshots.length > 0)) {
      if (snapshots.length > 0 && random.chance(0.95)) return this.remove([random.pick(snapshots)], false);
      const volume = random.pick(volumes);
      return this.remove(devices.filter((one) => one.volume === volume.name), true);
    }
    if (roll < 0.5 && snapshots.length > 0) {
      const target = random.pick(devices);
      const family = devices.filter((one) => one.volume === target.volume && one !== target);
      if (family.length > 0) return this.restore(target, random.pick(family));
    }
    return this.snapshot(random.pick(devices));
  }

  /** Carries one out; true when it is done, false when refused, undefined when nobody knows. */
  private async perform(call: () => Promise<unknown>): Promise<boolean | undefined> {
    this.counts.operations++;
    try {
      await call();
      return true;
    } catch (error) {
      if (!(error instanceof ControlError)) throw error;
      if (EXPECTED_REFUSALS.includes(error.code)) {
        await breathe();
        return false;
      }
      if (UNANSWERED.includes(error.code) && (this.down || !this.node().running)) return undefined;
      throw error;
    }
  }

  private async create(sizeBytes: number): Promise<void> {
    const name = `${this.prefix}v${this.nextName++}`;
    const device = this.model.make(name, name, sizeBytes);
    const result = await this.perform(() => this.node().control.createVolume(GROUP, { name, size: sizeBytes }));
    if (result === true) this.model.add(device);
    else if (result === undefined) this.unresolved.push({ kind: 'new', device });
  }

  private async snapshot(source: ModelDevice): Promise<void> {
    const name = `${this.prefix}s${this.nextName++}`;
    const image: Image = this.model.beginImage(source);
    const device = this.model.make(`${source.volume}@${name}`, source.volume, source.sizeBytes, image);
    const result = await this.perform(() => this.node().control.snapshot(GROUP, { source: source.name, name }));
    this.model.endImage(image);
    if (result === true) this.model.add(device);
    else if (result === undefined) this.unresolved.push({ kind: 'new', device });
  }

  private async restore(target: ModelDevice, source: ModelDevice): Promise<void> {
    const image = this.model.beginImage(source, target);
    const result = await this.perform(() => this.node().control.restore(GROUP, { target: target.name, source: source.name, force: true }));
    if (result === true) {
      this.model.restored(target, image);
      return;
    }
    this.model.endImage(image);
    if (result === undefined) target.alternative = image.cells;
  }

  private async remove(devices: readonly ModelDevice[], withSnapshots: boolean): Promise<void> {
    for (const device of devices) {
      device.doomed = true;
      this.model.devices.delete(device.name);
    }
    const top = devices.find((one) => one.isVolume) ?? devices[0];
    const result = await this.perform(() => this.node().control.remove(GROUP, top.name, { withSnapshots, force: true }));
    if (result === undefined) this.unresolved.push({ kind: 'remove', devices });
    else if (result === false) this.keep(devices);
  }

  private keep(devices: readonly ModelDevice[]): void {
    for (const device of devices) {
      device.doomed = false;
      this.model.add(device);
    }
  }

  /** `existing`: names of the devices after a restart. What was in doubt is settled by them; then both must agree. */
  settle(existing: ReadonlySet<string>): void {
    for (const one of this.unresolved) {
      if (one.kind === 'new' && existing.has(one.device.name)) this.model.add(one.device);
      if (one.kind === 'remove') {
        const left = one.devices.filter((device) => existing.has(device.name));
        if (left.length > 0 && left.length < one.devices.length) throw new Error(`a removal was done in part: ${left.map((device) => device.name).join(', ')} are left`);
        this.keep(left);
      }
    }
    this.unresolved = [];
    const expected = [...this.model.devices.keys()].sort();
    const found = [...existing].sort();
    if (expected.join() !== found.join()) throw new Error(`wrong devices after a restart\n  expected: ${expected.join(' ')}\n  found:    ${found.join(' ')}`);
  }
}

/** Lets others run; no tight loop while nothing can be done. */
function breathe(): Promise<void> {
  return new Promise((done) => setTimeout(done, 1));
}
