/**
 * A client of a simulated node that keeps book of every request: what it may be
 * answered with, and what must be in the journal when it is answered.
 *
 * Owns: request slots and buffers, the explanation of every journaled record by
 * a request under way, the versions that a read may return.
 * Must not know: crashes (model.ts says what survives them), workloads.
 */
import type { NodeBlocks } from '../../src/group/blocks.js';
import type { DeviceView } from '../../src/group/requests/service.js';
import type { Operation } from '../../src/group/tree/record.js';
import { RequestFlag, RequestKind } from '../../src/group/requests/requests.js';
import type { Arena } from '../../src/io/arena.js';
import { BLOCK, blockOf, contentOf } from './model.js';
import type { GroupModel, ModelDevice, ModelEntry, ModelRecord, ModelState } from './model.js';

const SECTOR = 512;

export type Change = 'write' | 'zero';

/** A request under way. */
interface Open {
  readonly kind: 'read' | Change | 'flush';
  readonly device: number;
  readonly offset: number;
  readonly length: number;
  readonly fua: boolean;
  /** What a write writes. */
  readonly data: Uint8Array | undefined;
  /** What it writes is all zeros. */
  readonly zeros: boolean;
  readonly buffer: number;
  /** Bytes of it that were journaled so far, and behind which LSN the last of them lies. */
  journaled: number;
  endLsn: number;
  /** Flush: behind what was acknowledged when it was submitted. */
  readonly target: number;
  /** Read: the range at submission and after every change since; none while it is as it was. */
  readonly versions: Uint8Array[];
  /** The device went away or became something else altogether. */
  gone: boolean;
  /** Write: an operation replaced what it was meant for, and its client was disconnected. It may not come out any more. */
  cut: boolean;
  readonly done: (errno: number) => void;
}

/** A question for the allocation of a range that is under way. */
interface Status {
  readonly device: number;
  readonly offset: number;
  readonly length: number;
  /** Something changed the range meanwhile. */
  changed: boolean;
}

export class SimClient {
  private readonly owner: number;
  private readonly open = new Map<number, Open>();
  private readonly statuses = new Set<Status>();
  /** Behind the last record of an acknowledged change. */
  private acknowledgedEnd = 0;
  /** Answers so far, by errno. */
  readonly answers = new Map<number, number>();

  constructor(
    private readonly blocks: NodeBlocks, private readonly arena: Arena, private readonly model: GroupModel, private readonly durableLsn: () => number,
    /** The node appends what its clients ask for, and nothing else. */
    private readonly writable: () => boolean = () => true,
  ) {
    this.owner = blocks.requests.addOwner(this);
    model.beforeRecord = (record, entry, before) => this.explain(record, entry, before);
    model.afterRecord = (record, _entry, after) => this.newVersions(record, after);
    this.acknowledgedEnd = model.endLsn;
  }

  get inFlight(): number {
    return this.open.size;
  }

  /** Submits a read; `done` after its bytes were checked. False when there is no slot or buffer now. */
  read(view: DeviceView, offset: number, length: number, done: (errno: number) => void = () => undefined): boolean {
    return this.submit(view, { kind: 'read', offset, length, fua: false, data: undefined }, done);
  }

  write(view: DeviceView, offset: number, data: Uint8Array, fua: boolean, done: (errno: number) => void = () => undefined): boolean {
    return this.submit(view, { kind: 'write', offset, length: data.length, fua, data }, done);
  }

  zero(view: DeviceView, offset: number, length: number, fua: boolean, done: (errno: number) => void = () => undefined): boolean {
    return this.submit(view, { kind: 'zero', offset, length, fua, data: undefined }, done);
  }

  flush(view: DeviceView, done: (errno: number) => void = () => undefined): boolean {
    return this.submit(view, { kind: 'flush', offset: 0, length: 0, fua: false, data: undefined }, done);
  }

  /** Asks what is allocated; the answer, of at most `most` extents, is checked when it comes. */
  status(view: DeviceView, offset: number, length: number, most = 8): void {
    const status: Status = { device: view.id, offset, length, changed: false };
    const out = new Float64Array(2 * most);
    this.statuses.add(status);
    this.blocks.extents(view, offset, length, out, (count) => {
      this.statuses.delete(status);
      this.answers.set(Math.max(0, -count), (this.answers.get(Math.max(0, -count)) ?? 0) + 1);
      if (count >= 0) this.checkStatus(status, out.subarray(0, 2 * count));
    });
  }

  /** A hole is where nothing is, and the answer covers something. */
  private checkStatus({ device, offset, length, changed }: Status, pairs: Float64Array): void {
    const words = `the allocation of ${offset}+${length} of device ${device} was told as ${pairs.join(' ')}`;
    const held = this.model.state.devices.get(device);
    let at = offset;
    for (let i = 0; i < pairs.length; i += 2) {
      const end = at + pairs[i];
      if (end <= at || end > offset + length) throw new Error(`${words}, which is not within the range`);
      if (pairs[i + 1] !== 0 && !changed && held !== undefined) {
        for (const [block, content] of held.blocks) {
          if ((block + 1) * BLOCK > at && block * BLOCK < end && !isZeros(content)) throw new Error(`WRONG HOLE: ${words}, block ${block} holds data`);
        }
      }
      at = end;
    }
    if (at === offset) throw new Error(`${words}, which says nothing`);
  }

  private submit(
    view: DeviceView, what: { kind: Open['kind']; offset: number; length: number; fua: boolean; data: Uint8Array | undefined }, done: (errno: number) => void,
  ): boolean {
    const { requests } = this.blocks;
    const needsBuffer = what.kind === 'read' || what.kind === 'write';
    const buffer = needsBuffer ? this.arena.alloc(Math.max(BLOCK, what.length)) : -1;
    if (needsBuffer && buffer < 0) return false;
    const slot = requests.alloc(this.owner);
    if (slot < 0) {
      if (buffer >= 0) this.arena.release(buffer);
      return false;
    }
    requests.kind[slot] = { read: RequestKind.read, write: RequestKind.write, zero: RequestKind.zero, flush: RequestKind.flush }[what.kind];
    requests.flags[slot] = what.fua ? RequestFlag.fua : 0;
    requests.device[slot] = view.id;
    requests.offset[slot] = what.offset;
    requests.length[slot] = what.length;
    if (buffer >= 0) requests.buffer[slot] = buffer;
    if (what.data !== undefined) this.arena.u8.set(what.data, buffer);
    const device = this.model.state.devices.get(view.id);
    this.open.set(slot, {
      ...what, zeros: isZeros(what.data), device: view.id, buffer, journaled: 0, endLsn: 0, target: this.acknowledgedEnd, gone: device === undefined, cut: false, done,
      versions: [],
    });
    this.blocks.submit(view, slot);
    return true;
  }

  /** RequestOwner: the answer. */
  completed(slot: number): void {
    const request = this.open.get(slot);
    if (request === undefined) throw new Error(`slot ${slot} was answered twice`);
    this.open.delete(slot);
    const { requests } = this.blocks;
    const errno = requests.errno[slot];
    this.answers.set(errno, (this.answers.get(errno) ?? 0) + 1);
    if (errno === 0) this.check(request);
    if (request.buffer >= 0) this.arena.release(request.buffer);
    requests.free(slot);
    request.done(errno);
  }

  private check(request: Open): void {
    const { model } = this;
    const words = `${request.kind} of ${request.offset}+${request.length} of device ${request.device}`;
    switch (request.kind) {
      case 'read':
        if (!request.gone) this.checkRead(request, words);
        return;
      case 'flush':
        if (this.durableLsn() < request.target) throw new Error(`a FLUSH was acknowledged while LSN ${request.target} was not durable`);
        model.raiseFloor(request.target);
        return;
      case 'write':
      case 'zero':
        if (request.journaled < request.length || (request.journaled > request.length && !request.zeros)) {
          throw new Error(`${words} was acknowledged, ${request.journaled} bytes of it were journaled`);
        }
        if (request.endLsn > model.endLsn) throw new Error(`${words} was acknowledged before it was appended`);
        this.acknowledgedEnd = Math.max(this.acknowledgedEnd, request.endLsn);
        if (!request.fua) return;
        if (this.durableLsn() < request.endLsn) throw new Error(`${words} with FUA was acknowledged while it was not durable`);
        model.raiseFloor(request.endLsn);
    }
  }

  private checkRead(request: Open, words: string): void {
    const got = this.arena.u8.subarray(request.buffer, request.buffer + request.length);
    const { versions } = request;
    if (versions.length === 0) {
      const device = this.model.state.devices.get(request.device)!;
      if (holds(device, request.offset, got)) return;
      versions.push(contentOf(device, request.offset, request.length));
    }
    if (versions.some((version) => Buffer.compare(got, version) === 0)) return;
    for (let at = 0; at < request.length; ) {
      const end = Math.min(request.length, at + SECTOR - ((request.offset + at) % SECTOR));
      const part = got.subarray(at, end);
      if (!request.versions.some((version) => Buffer.compare(part, version.subarray(at, end)) === 0)) {
        const known = this.model.entries.filter((entry) => entry.records.some((r) => r.kind === 'data' && r.device === request.device &&
          r.blocks.some((block, i) => (r.first + i) * BLOCK <= request.offset + at && (r.first + i + 1) * BLOCK >= request.offset + end &&
            Buffer.compare(part, block.subarray((request.offset + at) % BLOCK, ((request.offset + end - 1) % BLOCK) + 1)) === 0)));
        throw new Error(`WRONG DATA: ${words}: byte ${request.offset + at} reads ${hex(part)}, should be ${request.versions.map((v) => hex(v.subarray(at, end))).join(' or ')}` +
          (known.length > 0 ? `; what was read was journaled at LSN ${known.map((entry) => entry.lsn).join(', ')}` : ''));
      }
      at = end;
    }
  }

  /** A record is about to change the device: some request under way must have asked for exactly that. */
  private explain(record: ModelRecord, entry: ModelEntry, before: ModelState): void {
    this.keepVersions(record, before);
    if (record.kind === 'marker') this.cutOff(record.operation, before);
    if (record.kind === 'marker' || !this.writable()) return;
    const device = before.devices.get(record.device);
    const start = record.first * BLOCK;
    const bytes = (record.kind === 'data' ? record.blocks.length : record.count) * BLOCK;
    if (device === undefined || start + bytes > device.sizeBytes) throw new Error(`a record at LSN ${entry.lsn} changes ${start}+${bytes} of device ${record.device}, which has no such bytes`);
    if (device.protected && device.kind === 'snapshot') throw new Error(`a record at LSN ${entry.lsn} changes device ${record.device}, a protected snapshot`);
    let explained = false;
    // Those that are complete come last: what changes nothing looks as if one of them was journaled again.
    const open = [...this.open.values()].sort((a, b) => Number(a.journaled >= a.length) - Number(b.journaled >= b.length));
    for (const request of open) {
      if (request.cut || request.device !== record.device || (request.kind !== 'write' && request.kind !== 'zero')) continue;
      const from = Math.max(start, request.offset);
      const to = Math.min(start + bytes, request.offset + request.length);
      // Requests that write zeros look alike: what another one did later is not counted for one that is complete.
      if (request.journaled >= request.length && (request.zeros || explained)) {
        explained ||= from < to && explains(request, record, (block) => blockOf(device, block), from, to);
        continue;
      }
      if (from >= to || !explains(request, record, (block) => blockOf(device, block), from, to)) continue;
      request.journaled += to - from;
      request.endLsn = entry.endLsn;
      explained = true;
    }
    if (!explained) throw new Error(`a record at LSN ${entry.lsn} changes ${start}+${bytes} of device ${record.device} as no request under way asked`);
  }

  private cutOff(operation: Operation, before: ModelState): void {
    const over = replacedBy(operation, before);
    for (const request of this.open.values()) if (over.includes(request.device)) request.cut = true;
  }

  /** What reads under way may return from before the record. */
  private keepVersions(record: ModelRecord, before: ModelState): void {
    for (const status of this.statuses) status.changed ||= record.kind === 'marker' || (record.device === status.device && overlaps(record, status));
    for (const request of this.open.values()) {
      if (request.kind !== 'read' || request.gone || request.versions.length > 0) continue;
      if (record.kind === 'marker' || (record.device === request.device && overlaps(record, request))) {
        request.versions.push(contentOf(before.devices.get(request.device)!, request.offset, request.length));
      }
    }
  }

  private newVersions(record: ModelRecord, after: ModelState): void {
    for (const request of this.open.values()) {
      if (request.kind !== 'read' || request.gone) continue;
      const device = after.devices.get(request.device);
      if (device === undefined || request.offset + request.length > device.sizeBytes) {
        request.gone = true;
      } else if (record.kind === 'marker' || (record.device === request.device && overlaps(record, request))) {
        request.versions.push(contentOf(device, request.offset, request.length));
      }
    }
  }
}

/** Devices whose writers are disconnected by the operation: what these were not answered yet must not come out behind it. */
function replacedBy(operation: Operation, before: ModelState): number[] {
  switch (operation.op) {
    case 'assign':
      return operation.pairs.map((pair) => pair.target);
    case 'resize':
      return operation.sizeBytes < before.devices.get(operation.device)!.sizeBytes ? [operation.device] : [];
    case 'protect':
      return operation.on ? operation.devices.filter((id) => before.devices.get(id)!.kind === 'snapshot') : [];
    case 'remove':
      return operation.devices;
    default:
      return [];
  }
}

/** Whether the device holds exactly these bytes from `offset` on. */
function holds(device: ModelDevice, offset: number, bytes: Uint8Array): boolean {
  for (let done = 0; done < bytes.length; ) {
    const index = Math.floor((offset + done) / BLOCK);
    const from = offset + done - index * BLOCK;
    const take = Math.min(BLOCK - from, bytes.length - done);
    if (Buffer.compare(bytes.subarray(done, done + take), blockOf(device, index).subarray(from, from + take)) !== 0) return false;
    done += take;
  }
  return true;
}

function overlaps(record: Exclude<ModelRecord, { kind: 'marker' }>, request: { readonly offset: number; readonly length: number }): boolean {
  const start = record.first * BLOCK;
  const end = start + (record.kind === 'data' ? record.blocks.length : record.count) * BLOCK;
  return start < request.offset + request.length && end > request.offset;
}

/** Whether the record is what `request` makes of the blocks as they were: [from, to) is what they share. */
function explains(request: Open, record: Exclude<ModelRecord, { kind: 'marker' }>, before: (block: number) => Uint8Array, from: number, to: number): boolean {
  const start = record.first * BLOCK;
  if (record.kind === 'zero') return request.kind === 'zero' && from === start && to === start + record.count * BLOCK;
  for (let i = 0; i < record.blocks.length; i++) {
    const block = record.blocks[i];
    const at = start + i * BLOCK;
    const expected = new Uint8Array(before(record.first + i));
    const low = Math.max(from, at);
    const high = Math.min(to, at + BLOCK);
    if (low < high) {
      if (request.data === undefined) expected.fill(0, low - at, high - at);
      else expected.set(request.data.subarray(low - request.offset, high - request.offset), low - at);
    }
    if (Buffer.compare(expected, block) !== 0) return false;
  }
  return true;
}

function isZeros(data: Uint8Array | undefined): boolean {
  return data === undefined || data.every((byte) => byte === 0);
}

function hex(bytes: Uint8Array): string {
  return `${Buffer.from(bytes.subarray(0, 16)).toString('hex')}…(${bytes.length})`;
}
