/**
 * A BlockService over byte arrays, for tests of the NBD layer: sparse, in 64 KiB
 * regions, with answers at once, at the end of the tick, or after random times.
 * Owns its devices. Keeps count of what it was asked, so that a test can compare.
 */
import { assert, unreachable } from '../../src/base/assert.js';
import { deviceId } from '../../src/base/units.js';
import type { DeviceId } from '../../src/base/units.js';
import { RequestKind, RequestTable } from '../../src/group/requests/requests.js';
import { ExtentFlag } from '../../src/group/requests/service.js';
import type { BlockService, DeviceClient, DeviceView } from '../../src/group/requests/service.js';
import type { Reactor } from '../../src/io/reactor.js';

const REGION = 65536;

export class MemoryDevice implements DeviceView {
  writable = true;
  gone = false;
  unavailable: string | undefined;
  deviceIdentity: string;
  continuityIdentity = 'c0ffee.0';
  description = '';
  readonly regions = new Map<number, Uint8Array>();
  readonly clients = new Set<DeviceClient>();

  constructor(readonly id: DeviceId, readonly exportName: string, public sizeBytes: number) {
    this.deviceIdentity = `dev-${id}`;
  }

  read(offset: number, into: Uint8Array): void {
    for (let at = 0; at < into.length; ) {
      const region = Math.floor((offset + at) / REGION);
      const within = (offset + at) % REGION;
      const n = Math.min(REGION - within, into.length - at);
      const bytes = this.regions.get(region);
      if (bytes === undefined) into.fill(0, at, at + n);
      else into.set(bytes.subarray(within, within + n), at);
      at += n;
    }
  }

  write(offset: number, from: Uint8Array): void {
    for (let at = 0; at < from.length; ) {
      const region = Math.floor((offset + at) / REGION);
      const within = (offset + at) % REGION;
      const n = Math.min(REGION - within, from.length - at);
      let bytes = this.regions.get(region);
      if (bytes === undefined) this.regions.set(region, (bytes = new Uint8Array(REGION)));
      bytes.set(from.subarray(at, at + n), within);
      at += n;
    }
  }

  zero(offset: number, length: number): void {
    const end = offset + length;
    for (const [region, bytes] of this.regions) {
      const start = region * REGION;
      if (start >= end || start + REGION <= offset) continue;
      if (start >= offset && start + REGION <= end) this.regions.delete(region);
      else bytes.fill(0, Math.max(0, offset - start), Math.min(REGION, end - start));
    }
  }
}

/** When requests are answered. */
export type Answering =
  /** Within `submit`. */
  | { readonly kind: 'at once' }
  /** Reads within `submit`, everything else at the end of the tick: as a group does. */
  | { readonly kind: 'tick end' }
  /** Each after a random delay of at most `maxUs`, in any order; `random` gives [0, 1). */
  | { readonly kind: 'delayed'; readonly maxUs: number; readonly random: () => number }
  /** When the test calls `answer`. */
  | { readonly kind: 'by hand' };

export class MemoryService implements BlockService {
  readonly requests: RequestTable;
  readonly devices = new Map<string, MemoryDevice>();
  answering: Answering = { kind: 'tick end' };
  /** Answers with this errno instead of serving; per request. */
  failWith: ((kind: number, offset: number) => number) | undefined;
  readonly counts = { read: 0, write: 0, zero: 0, flush: 0, cache: 0, fua: 0, extents: 0 };
  private readonly waiting: { view: MemoryDevice; slot: number }[] = [];
  private readonly waitingExtents: (() => void)[] = [];

  /** Construct it before the server: its hook has to run first. */
  constructor(private readonly reactor: Reactor, slots = 4096) {
    this.requests = new RequestTable(slots);
    reactor.onTickEnd(() => {
      if (this.answering.kind === 'tick end') this.answer(Infinity);
    });
  }

  add(exportName: string, sizeBytes: number): MemoryDevice {
    const device = new MemoryDevice(deviceId(this.devices.size + 1), exportName, sizeBytes);
    this.devices.set(exportName, device);
    return device;
  }

  list(): DeviceView[] {
    return [...this.devices.values()];
  }

  find(exportName: string): DeviceView | { unavailable: string } | undefined {
    const device = this.devices.get(exportName);
    return device?.unavailable === undefined ? device : { unavailable: device.unavailable };
  }

  addClient(view: DeviceView, client: DeviceClient): void {
    const { clients } = view as MemoryDevice;
    assert(!clients.has(client), 'a client was added twice');
    clients.add(client);
  }

  removeClient(view: DeviceView, client: DeviceClient): void {
    assert((view as MemoryDevice).clients.delete(client), 'a client was removed that was not there');
  }

  submit(view: DeviceView, slot: number): void {
    const device = view as MemoryDevice;
    assert(this.requests.device[slot] === device.id, 'the slot names another device');
    const kind = this.requests.kind[slot];
    switch (this.answering.kind) {
      case 'at once':
        return this.serve(device, slot);
      case 'tick end':
        if (kind === RequestKind.read) this.serve(device, slot);
        else this.waiting.push({ view: device, slot });
        return;
      case 'delayed':
        this.reactor.after(this.answering.random() * this.answering.maxUs, () => this.serve(device, slot));
        return;
      case 'by hand':
        this.waiting.push({ view: device, slot });
        return;
      default:
        unreachable(this.answering);
    }
  }

  /** Answers up to `count` of the waiting requests, the oldest first. Returns how many that were. */
  answer(count: number): number {
    let answered = 0;
    while (answered < count && this.waiting.length > 0) {
      const { view, slot } = this.waiting.shift()!;
      this.serve(view, slot);
      answered++;
    }
    for (const done of this.waitingExtents.splice(0)) done();
    // By hand means outside of a tick, which the real service never is.
    if (this.answering.kind === 'by hand') this.reactor.again();
    return answered;
  }

  get waitingCount(): number {
    return this.waiting.length;
  }

  get waitingExtentCount(): number {
    return this.waitingExtents.length;
  }

  private serve(device: MemoryDevice, slot: number): void {
    const table = this.requests;
    const kind = table.kind[slot];
    const offset = table.offset[slot];
    const length = table.length[slot];
    const errno = this.failWith?.(kind, offset) ?? 0;
    if (errno !== 0) return table.complete(slot, errno);
    if (table.flags[slot] !== 0) this.counts.fua++;
    switch (kind) {
      case RequestKind.read:
        this.counts.read++;
        device.read(offset, this.reactor.arena.u8.subarray(table.buffer[slot], table.buffer[slot] + length));
        break;
      case RequestKind.write:
        this.counts.write++;
        device.write(offset, this.reactor.arena.u8.subarray(table.buffer[slot], table.buffer[slot] + length));
        break;
      case RequestKind.zero:
        this.counts.zero++;
        device.zero(offset, length);
        break;
      case RequestKind.flush:
        this.counts.flush++;
        break;
      case RequestKind.cache:
        this.counts.cache++;
        break;
      default:
        assert(false, `a request of kind ${kind}`);
    }
    table.complete(slot, 0);
  }

  extents(view: DeviceView, offset: number, length: number, out: Float64Array, done: (count: number) => void): void {
    const device = view as MemoryDevice;
    this.counts.extents++;
    const errno = this.failWith?.(-1, offset) ?? 0;
    if (errno !== 0) return done(-errno);
    const give = (): void => {
      let count = 0;
      let at = offset;
      while (at < offset + length) {
        const region = Math.floor(at / REGION);
        const end = Math.min((region + 1) * REGION, offset + length);
        const flags = device.regions.has(region) ? 0 : ExtentFlag.hole | ExtentFlag.zero;
        if (count > 0 && out[2 * count - 1] === flags) {
          out[2 * count - 2] += end - at;
        } else {
          if (2 * count === out.length) break;
          out[2 * count] = end - at;
          out[2 * count + 1] = flags;
          count++;
        }
        at = end;
      }
      done(count);
    };
    if (this.answering.kind === 'by hand') this.waitingExtents.push(give);
    else give();
  }
}
