/**
 * Random work on one simulated node: every kind of request and operation that
 * test/model/draw.ts knows, clients that come and go, and the comparison of all
 * devices with the model.
 *
 * Owns: what is asked for, and keeping it within bounds. Must not know: what the
 * answers should be (client.ts, asked.ts), crashes (powerloss.ts).
 */
import { Caller } from '../../src/base/caller.js';
import { KIB } from '../../src/base/units.js';
import type { OperationRequest } from '../../src/control/port.js';
import { drawDevice, drawOperation, drawRequest, LIMITS } from '../model/draw.js';
import type { Limits, RequestMix } from '../model/draw.js';
import type { SimHost } from './cluster.js';
import { GROUP } from './cluster.js';
import { BLOCK } from './model.js';
import type { ModelDevice } from './model.js';
import type { Random } from './random.js';

export interface WorkloadOptions extends RequestMix {
  readonly limits: Limits;
  readonly maxInFlight: number;
  /** Share of steps that ask for an operation. */
  readonly operations: number;
  /** Share of operations that hold the writers meanwhile. */
  readonly halts?: number;
  /** Share of operations whose caller goes at some moment, answered or not. */
  readonly leaves?: number;
}

export const MIXED: WorkloadOptions = { limits: LIMITS, maxInFlight: 16, operations: 0.12, reads: 0.2, flushes: 0.08, largestWrite: 96 * KIB };

/** Most pretended client connections; each makes an operation without force refused. */
const MAX_CONNECTIONS = 2;
const PIECE = 128 * KIB;
/** Devices of more pieces are not read whole. */
const FEW_PIECES = 16;
/** Places of a large device that are read although the model says zero. */
const ZERO_PLACES = 8;

/** Longest range of one question for block status. */
const MOST_STATUS = 0xfffff000;

export class Workload {
  private nextData = 1;
  steps = 0;
  operations = 0;
  /** Operations whose caller went before they were answered. */
  left = 0;
  private running: { ended: boolean; error?: unknown }[] = [];
  /** Those that will go. */
  private readonly callers = new Set<Caller>();
  /** Pieces that were ever written, of any device: what was cut off or overwritten must not come back. */
  private readonly touched = new Set<number>();

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
    this.callers.clear();
  }

  /** Starts one thing. */
  step(): void {
    const { random, host, options } = this;
    this.steps++;
    const { state } = host.model;
    if (state.devices.size === 0 || random.chance(options.operations)) {
      const request = drawOperation(random, state, GROUP, options.limits);
      if (request !== undefined) this.perform(this.halted(request), random.chance(0.4));
    } else {
      const device = drawDevice(random, [...state.devices.values()]);
      if (random.chance(0.02)) this.comeOrGo(device!);
      else this.request(device!);
    }
    host.node.poke();
  }

  private halted(request: OperationRequest): OperationRequest {
    const { halts } = this.options;
    return halts !== undefined && this.random.chance(halts) ? { ...request, halt: true, waitSeconds: 1 } : request;
  }

  /** `amid`: requests to the device are under way when the operation comes. */
  private perform(request: OperationRequest, amid: boolean): void {
    this.operations++;
    const named = 'device' in request ? request.device : 'target' in request ? request.target : null;
    const device = amid && named !== null ? this.host.model.state.find(named) : undefined;
    for (let i = 0; device !== undefined && i < 4; i++) this.request(device);
    const { leaves } = this.options;
    this.running.push(leaves !== undefined && this.random.chance(leaves) ? this.fleeting(request) : this.host.command(request));
    if (this.running.length > 64) this.running = this.running.filter((one) => !one.ended);
  }

  /** Asks for somebody who does not wait for the end, perhaps. */
  private fleeting(request: OperationRequest): { ended: boolean; error?: unknown } {
    const caller = new Caller();
    const outcome = this.host.command(request, caller);
    this.callers.add(caller);
    this.host.world.after(this.random.logUniform(1, 5_000), () => {
      // One whose process is gone is nobody any more.
      if (!this.callers.delete(caller)) return;
      if (!outcome.ended) this.left++;
      this.host.node.attempt(() => caller.leave());
      this.host.node.poke();
      if (!outcome.ended && this.host.alive && !this.reading(request)) throw new Error(`${JSON.stringify(request)} waits on although its caller has gone`);
    });
    return outcome;
  }

  /** Maps may be read for it still, which ends by itself. */
  private reading(request: OperationRequest): boolean {
    return request.op === 'resize' || ('ranges' in request && request.ranges.length > 0);
  }

  private comeOrGo(device: ModelDevice): void {
    const { asked, path } = this.host;
    const view = this.host.view(device);
    if (view === undefined || asked.connected >= MAX_CONNECTIONS) asked.disconnect(path!.blocks);
    else asked.connect(path!.blocks, view);
  }

  private request(device: ModelDevice): void {
    const client = this.host.client!;
    const view = this.host.view(device);
    if (view === undefined) return;
    const one = drawRequest(this.random, device.sizeBytes, this.options);
    switch (one.kind) {
      case 'read':
        if (this.random.chance(0.2)) client.status(view, one.offset, Math.min(device.sizeBytes - one.offset, this.random.pick([one.length, MOST_STATUS])));
        else client.read(view, one.offset, one.length);
        return;
      case 'flush':
        client.flush(view);
        return;
      case 'zero':
        // The NBD layer answers changes of a read-only export by itself.
        if (view.writable) client.zero(view, one.offset, one.length, one.fua);
        return;
      case 'write':
        if (view.writable) client.write(view, one.offset, this.data(one.length), one.fua);
        for (let at = one.offset; at < one.offset + one.length; at += PIECE) this.touched.add(Math.floor(at / PIECE));
    }
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
    const work: { device: ModelDevice; offset: number; length: number }[] = [];
    for (const device of host.model.state.devices.values()) {
      const view = host.view(device);
      if (view !== undefined) host.client?.status(view, 0, Math.min(device.sizeBytes, MOST_STATUS), 256);
      for (const piece of this.piecesToRead(device)) work.push({ device, offset: piece * PIECE, length: Math.min(PIECE, device.sizeBytes - piece * PIECE) });
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
    if (host.alive) host.compareTree();
  }

  private piecesToRead(device: ModelDevice): Set<number> {
    const pieces = Math.ceil(device.sizeBytes / PIECE);
    const wanted = new Set<number>();
    for (const block of device.blocks.keys()) wanted.add(Math.floor((block * BLOCK) / PIECE));
    if (pieces <= FEW_PIECES) {
      for (let i = 0; i < pieces; i++) wanted.add(i);
      return wanted;
    }
    const others = [...this.touched].filter((piece) => piece < pieces && !wanted.has(piece));
    for (let i = 0; i < ZERO_PLACES; i++) {
      wanted.add(this.random.below(pieces));
      if (others.length > 0) wanted.add(this.random.pick(others));
    }
    return wanted;
  }
}
