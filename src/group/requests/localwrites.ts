/**
 * Writes, trims and flushes of local devices, from submit to acknowledgement
 * (DESIGN §1).
 *
 * Owns: the order of requests that touch the same blocks, writing through, the
 * tick's record, FLUSH and FUA waiting until what they cover survives power
 * loss. Must not know: NBD, operations, roles.
 *
 *     plain write   helper writes the blocks to the device's current layer → record appended, map changed → answered
 *     zero          record appended, map changed → answered
 *     FUA, FLUSH    answered when the local journal has settled it
 *
 * Requests wait in one FIFO per device while blocks of theirs are being written,
 * while the walker punches holes into the layer, while an operation needs the
 * device to stand still, and while the local journal has no room. NBD orders
 * only what was acknowledged, so waiting is legal.
 */

import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { alignUp, BLOCK_BYTES } from '../../base/units.js';
import { JobOp, JobTable, Queue } from '../../io/io.js';
import type { Reactor } from '../../io/reactor.js';
import type { Layer } from '../../store/layers.js';
import { WOULD_WAIT } from '../../store/read.js';
import type { StoredDevice } from '../../store/store.js';
import type { Content } from '../content/content.js';
import { EdgeCompleter, hasEdges, NO_ROOM } from './edges.js';
import type { Edges } from './edges.js';
import { MAX_EXTENTS } from '../local/record.js';
import { RequestFlag, RequestKind } from './requests.js';
import type { RequestTable } from './requests.js';
import { SlotQueue } from './slotqueue.js';

/** Requests written through at the same time. */
const AT_ONCE = 64;
const EDGES = 'read what surrounds a write in';
/** Extents of one request: an edge block, what is between, an edge block. */
const EXTENTS_EACH = 3;

/** A request between its start and its record. */
interface Write {
  readonly slot: number;
  readonly device: number;
  /** Blocks [first, end). */
  readonly first: number;
  readonly end: number;
  /** Undefined when nothing is written: whole blocks are zeroed. */
  readonly layer: Layer | undefined;
  readonly edges: Edges;
  readonly extents: readonly number[];
}

interface Waiting {
  readonly queue: SlotQueue;
  /** An edge block of the first request is being fetched. */
  fetching: boolean;
  /** Operations that need it to stand still. */
  held: number;
}

export interface LocalWritesHost {
  readonly content: Content;
  /** Why new data is not taken now, or 0. */
  admit(bytes: number): number;
  /** The group has to stop. */
  failed(error: IoError | CorruptionError): void;
}

export class LocalWrites {
  /** Being written by a helper; and written, waiting for their record. */
  private writing: Write[] = [];
  private written: Write[] = [];
  private readonly devices = new Map<number, Waiting>();
  private readonly flushes: SlotQueue;
  private readonly edges: EdgeCompleter;
  private readonly table = new JobTable(2 * EXTENTS_EACH);
  private idleWaiters: { readonly device: number; readonly done: () => void }[] = [];
  private stopped = 0;
  /** Not 0: what would wait for room in the local journal is answered with this. */
  private noWaiting = 0;
  private readonly content: Content;
  /** Why the last write failed, or the read of an edge; undefined when a later one succeeded. */
  problem: IoError | undefined;
  /** Another one than before. */
  onProblem: (error: IoError) => void = () => undefined;

  constructor(private readonly reactor: Reactor, private readonly host: LocalWritesHost, private readonly requests: RequestTable) {
    this.content = host.content;
    const { reader, store, sink, local } = host.content;
    this.flushes = new SlotQueue(requests);
    this.edges = new EdgeCompleter(reactor.arena, { reader, store, sink, spareBlocks: local.spareBlocks });
    local.log.onSettled = () => this.settled();
  }

  /** Whether requests wait for room in the local journal. */
  get stalled(): boolean {
    const { log } = this.content.local;
    if (this.stopped !== 0 || !log.exists || log.hasRoom) return false;
    if (this.written.length > 0) return true;
    for (const { queue } of this.devices.values()) if (queue.length > 0) return true;
    return false;
  }

  /** Takes a write, zero or flush. */
  submit(slot: number): void {
    if (this.stopped !== 0) this.requests.complete(slot, this.stopped);
    else if (this.requests.kind[slot] === RequestKind.flush) this.flush(slot);
    else {
      const device = this.requests.device[slot];
      this.waitingOf(device).queue.push(slot, 0);
      this.pump(device);
    }
  }

  private waitingOf(device: number): Waiting {
    let found = this.devices.get(device);
    if (found === undefined) {
      found = { queue: new SlotQueue(this.requests), fetching: false, held: 0 };
      this.devices.set(device, found);
    }
    return found;
  }

  private flush(slot: number): void {
    const { log } = this.content.local;
    if (log.changedLsn <= log.settledLsn) {
      this.requests.complete(slot, 0);
      return;
    }
    this.flushes.push(slot, log.changedLsn);
    log.settle(log.changedLsn);
  }

  private settled(): void {
    const { settledLsn } = this.content.local.log;
    for (let slot = this.flushes.shift(settledLsn); slot >= 0; slot = this.flushes.shift(settledLsn)) this.requests.complete(slot, 0);
    this.reactor.again();
  }

  /** Only the client of this request is concerned: nothing was acknowledged, and no record names what was written. */
  private troubled(errno: number, doing: string, file: string): void {
    const known = this.problem?.message;
    this.problem = new IoError(errno, doing, file);
    if (this.problem.message !== known) this.onProblem(this.problem);
  }

  // ---- starting ----------------------------------------------------------------------------------

  /** Starts what waits first, as far as nothing is in its way. */
  private pump(id: number): void {
    const waiting = this.waitingOf(id);
    while (waiting.queue.length > 0 && waiting.held === 0 && !waiting.fetching && this.writing.length + this.written.length < AT_ONCE) {
      const slot = waiting.queue.first;
      let taken: boolean;
      try {
        taken = this.start(slot, waiting);
      } catch (error) {
        // An edge could not be read, or a layer's file not be made.
        if (!(error instanceof IoError) && !(error instanceof CorruptionError)) throw error;
        waiting.queue.shift(Infinity);
        this.requests.complete(slot, Errno.EIO);
        this.host.failed(error);
        return;
      }
      if (!taken) return;
    }
  }

  /** Starts the first request of its queue, and takes it out; false when it has to wait. Throws IoError, CorruptionError. */
  private start(slot: number, waiting: Waiting): boolean {
    const { requests, host } = this;
    const { store, local } = this.content;
    const device = store.find(requests.device[slot]);
    const offset = requests.offset[slot];
    const length = requests.length[slot];
    const isWrite = requests.kind[slot] === RequestKind.write;
    const refuse = (errno: number): true => {
      waiting.queue.shift(Infinity);
      requests.complete(slot, errno);
      return true;
    };
    const known = local.tree.get(requests.device[slot]);
    if (device === undefined || known?.ready !== true) return refuse(Errno.ESHUTDOWN);
    if (known.sealedLsn !== 0) return refuse(Errno.EPERM);
    const beyond = requests.beyondEnd(slot, device.sizeBytes);
    if (beyond !== 0) return refuse(beyond);
    const first = Math.floor(offset / BLOCK_BYTES);
    const end = Math.ceil((offset + length) / BLOCK_BYTES);
    if (length === 0) return refuse(0);
    if (this.overlaps(device.id, first, end)) return false;
    if (!local.log.hasRoom) {
      this.content.requestCheckpoint();
      return this.noWaiting !== 0 && refuse(this.noWaiting);
    }
    const writes = isWrite || hasEdges(offset, length);
    if (device.layer !== 0 && store.layers.get(device.layer).punching > 0 && writes) return false;
    if (isWrite) {
      const refused = host.admit(length);
      if (refused !== 0) return refuse(refused);
    }
    const edges: Edges = { head: -1, tail: -1 };
    if (hasEdges(offset, length)) {
      const result = this.edges.complete(device, offset, length, isWrite ? requests.buffer[slot] : -1, edges);
      if (result === WOULD_WAIT) {
        this.fetch(slot, device, waiting);
        return false;
      }
      // What other requests hold comes back; the spare blocks are free when there are none.
      if (result === NO_ROOM) return false;
      if (result < 0) {
        this.troubled(-result, EDGES, store.layers.directory);
        return refuse(-result);
      }
    }
    waiting.queue.shift(Infinity);
    this.begin(slot, device, first, end, writes, edges);
    return true;
  }

  private overlaps(device: number, first: number, end: number): boolean {
    const near = (one: Write): boolean => one.device === device && one.first < end && first < one.end;
    return this.writing.some(near) || this.written.some(near);
  }

  /** Has the edge blocks fetched, then tries the request again. */
  private fetch(slot: number, device: StoredDevice, waiting: Waiting): void {
    const { requests } = this;
    waiting.fetching = true;
    this.edges.fetch(device, requests.offset[slot], requests.length[slot], (fetched) => {
      waiting.fetching = false;
      if (fetched < 0 && waiting.queue.first === slot) {
        this.troubled(-fetched, EDGES, this.content.store.layers.directory);
        waiting.queue.shift(Infinity);
        requests.complete(slot, -fetched);
      }
      this.pump(device.id);
    });
  }

  /** Hands its blocks to the helper. */
  private begin(slot: number, device: StoredDevice, first: number, end: number, writes: boolean, edges: Edges): void {
    const { requests, table } = this;
    const { store, local, options } = this.content;
    const offset = requests.offset[slot];
    const isWrite = requests.kind[slot] === RequestKind.write;
    // A request within one block has a head only.
    const middle = first + (edges.head >= 0 ? 1 : 0);
    const middleEnd = end - (edges.tail >= 0 ? 1 : 0);
    const extents: number[] = [];
    table.clear();
    let layer: Layer | undefined;
    try {
      if (writes) {
        layer = store.layerFor(device, options.groupId);
        const fd = store.layers.descriptorForWrite(layer);
        const row = (buffer: number, block: number, blocks: number): void => {
          table.add(JobOp.reserve, fd, 0, blocks * BLOCK_BYTES, block * BLOCK_BYTES);
          table.add(JobOp.pwrite, fd, buffer, blocks * BLOCK_BYTES, block * BLOCK_BYTES);
        };
        if (edges.head >= 0) row(edges.head, first, 1);
        if (isWrite && middle < middleEnd) row(requests.buffer[slot] + alignUp(offset, BLOCK_BYTES) - offset, middle, middleEnd - middle);
        if (edges.tail >= 0) row(edges.tail, end - 1, 1);
      }
    } catch (error) {
      this.edges.release(edges);
      if (!(error instanceof IoError)) throw error;
      // The layer's file could not be made or opened: so far nothing was changed.
      this.troubled(error.errno, error.doing, error.file);
      requests.complete(slot, error.errno === Errno.ENOSPC ? Errno.ENOSPC : Errno.EIO);
      return;
    }
    if (isWrite) extents.push(device.id, first, end - first, 0);
    else {
      if (edges.head >= 0) extents.push(device.id, first, 1, 0);
      if (middle < middleEnd) extents.push(device.id, middle, middleEnd - middle, 1);
      if (edges.tail >= 0) extents.push(device.id, end - 1, 1, 0);
    }
    const write: Write = { slot, device: device.id, first, end, layer, edges, extents };
    if (layer === undefined) {
      this.written.push(write);
      this.reactor.again();
      return;
    }
    layer.holds++;
    layer.writing++;
    local.writesInFlight++;
    this.writing.push(write);
    this.reactor.submit(Queue.append, table, (result) => this.ended(write, result));
  }

  private ended(write: Write, result: number): void {
    this.content.local.writesInFlight--;
    this.writing.splice(this.writing.indexOf(write), 1);
    write.layer!.holds--;
    this.edges.release(write.edges);
    if (result < 0 || this.stopped !== 0) {
      write.layer!.writing--;
      if (result < 0) this.troubled(-result, 'write', this.content.store.layers.path(write.layer!));
      this.requests.complete(write.slot, this.stopped !== 0 ? this.stopped : -result);
      this.idle(write.device);
      if (this.stopped === 0) this.pump(write.device);
      return;
    }
    this.problem = undefined;
    this.written.push(write);
  }

  // ---- records -----------------------------------------------------------------------------------

  /** Tick end: one record for what was written since the last one, then answers; and whoever waited has its turn. */
  tick(): void {
    if (this.stopped !== 0) return;
    this.record();
    for (const [id, waiting] of this.devices) {
      if (waiting.queue.length > 0) this.pump(id);
      else if (waiting.held === 0 && !waiting.fetching) this.devices.delete(id);
    }
    // Zeroed blocks need no helper: they are answered in this same tick.
    this.record();
  }

  private record(): void {
    const { local } = this.content;
    while (this.written.length > 0) {
      if (!local.log.hasRoom) {
        this.content.requestCheckpoint();
        if (this.noWaiting !== 0) this.giveUp(this.noWaiting);
        return;
      }
      const part = this.written.splice(0, Math.floor(MAX_EXTENTS / EXTENTS_EACH));
      const extents: number[] = [];
      for (const write of part) for (let i = 0; i < write.extents.length; i++) extents.push(write.extents[i]);
      try {
        local.perform({ op: 'write', extents });
      } catch (error) {
        if (!(error instanceof IoError) && !(error instanceof CorruptionError)) throw error;
        // The journal failed, or a map node could not be read: the group stops, and recovery does what was appended.
        for (const write of part) this.requests.complete(write.slot, Errno.EIO);
        this.host.failed(error);
        return;
      }
      let fua = false;
      for (const write of part) {
        if (write.layer !== undefined) write.layer.writing--;
        if ((this.requests.flags[write.slot] & RequestFlag.fua) === 0) {
          this.requests.complete(write.slot, 0);
          continue;
        }
        this.flushes.push(write.slot, local.log.changedLsn);
        fua = true;
      }
      if (fua) local.log.settle(local.log.changedLsn);
      for (const write of part) this.idle(write.device);
    }
  }

  // ---- standing still ----------------------------------------------------------------------------

  /** Lets nothing new of the device begin, and calls `done` when nothing of it is under way; `release` ends it. */
  hold(device: number, done: () => void): void {
    this.waitingOf(device).held++;
    this.idleWaiters.push({ device, done });
    this.idle(device);
  }

  release(device: number): void {
    const waiting = this.waitingOf(device);
    waiting.held--;
    this.reactor.again();
  }

  private idle(device: number): void {
    if (this.idleWaiters.length === 0 || this.writing.some((one) => one.device === device) || this.written.some((one) => one.device === device)) return;
    const ready = this.idleWaiters.filter((one) => one.device === device);
    this.idleWaiters = this.idleWaiters.filter((one) => one.device !== device);
    for (const { done } of ready) done();
  }

  /** Ends what waits to change a device whose content is about to be replaced: its clients were disconnected. */
  cancel(device: number): void {
    const { queue } = this.waitingOf(device);
    for (let slot = queue.shift(Infinity); slot >= 0; slot = queue.shift(Infinity)) this.requests.complete(slot, Errno.ESHUTDOWN);
  }

  /** Answers everything that waits, and everything to come, with `errno`; what a helper writes is answered when it is done. */
  stop(errno: number): void {
    if (this.stopped !== 0) return;
    this.stopped = errno;
    this.giveUp(errno);
    for (const { queue } of this.devices.values()) {
      for (let slot = queue.shift(Infinity); slot >= 0; slot = queue.shift(Infinity)) this.requests.complete(slot, errno);
    }
    for (let slot = this.flushes.shift(Infinity); slot >= 0; slot = this.flushes.shift(Infinity)) this.requests.complete(slot, errno);
  }

  /** Room may never come, and the daemon is to end: what waits for it, and whatever would from now on, is answered with `errno`. */
  refuseWaiting(errno: number): void {
    this.noWaiting = errno;
    this.reactor.again();
  }

  /** What was written and has no record was never acknowledged. */
  private giveUp(errno: number): void {
    for (const write of this.written) {
      if (write.layer !== undefined) write.layer.writing--;
      this.requests.complete(write.slot, errno);
    }
    this.written = [];
  }
}
