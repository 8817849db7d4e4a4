/**
 * Requests of clients on a primary: from submit to acknowledgement (DESIGN §3, §7).
 *
 * Owns: the tick's batch, which slots it answers, FLUSH and FUA waiting for
 * durability, requests that wait for journal room. Must not know: NBD, links,
 * operations.
 *
 *     plain write, zero    answered when appended
 *     FUA                  answered when its record is durable
 *     FLUSH                answered when everything acknowledged before it is durable
 */

import { assert } from '../../base/assert.js';
import { CorruptionError, Errno, IoError } from '../../base/errors.js';
import { alignUp, BLOCK_BYTES } from '../../base/units.js';
import type { Reactor } from '../../io/reactor.js';
import { entry, MAX_BATCH_RECORDS } from '../../journal/format.js';
import { WOULD_WAIT } from '../../store/read.js';
import type { StoredDevice } from '../../store/store.js';
import type { Content } from '../content/content.js';
import { EdgeCompleter, hasEdges, NO_ROOM } from './edges.js';
import type { Edges } from './edges.js';
import { RequestFlag, RequestKind } from './requests.js';
import type { RequestTable } from './requests.js';
import { SlotQueue } from './slotqueue.js';

/** Requests whose edge blocks are fetched from a disk at the same time; more would only crowd out reads. */
const FETCHES_AT_ONCE = 64;

export interface IngestHost {
  readonly content: Content;
  /** Why new data is not taken now, or 0: the errno for space admission. */
  admit(bytes: number): number;
  /** After a batch of data was appended and applied. */
  appended(): void;
  /** The group has to stop. */
  failed(error: IoError | CorruptionError): void;
}

export class Ingest {
  private readonly batchSlots = new Int32Array(MAX_BATCH_RECORDS + 1);
  private batchSlotCount = 0;
  /** Arena blocks of completed edges, released after the append. */
  private readonly batchBuffers: number[] = [];
  private readonly waiting: SlotQueue;
  /** Requests that wait for journal room, oldest first; in place of an LSN how far they have come. */
  private readonly stalled: SlotQueue;
  private readonly edges: EdgeCompleter;
  private readonly edgePair: Edges = { head: -1, tail: -1 };
  private edgeWaits = 0;
  /** Requests that wait for their turn to have their edge blocks fetched. */
  private readonly fetches: SlotQueue;
  /** How often waiting requests of a device were cancelled. */
  private readonly cuts = new Map<number, number>();
  private stopped = 0;
  /** Not 0: what would wait for room is answered with this at once. */
  private noWaiting = 0;
  /** Writers wait, for an operation with --halt. */
  private held = false;
  private heldUntilUs = 0;

  constructor(private readonly reactor: Reactor, private readonly host: IngestHost, private readonly requests: RequestTable) {
    this.waiting = new SlotQueue(requests);
    this.stalled = new SlotQueue(requests);
    this.fetches = new SlotQueue(requests);
    this.edges = new EdgeCompleter(reactor.arena, host.content);
  }

  /** Requests that wait for room in the journal. */
  get stalledCount(): number {
    return this.stalled.length;
  }

  /** Requests that are not answered yet, reads not counted. */
  get outstanding(): number {
    return this.batchSlotCount + this.waiting.length + this.stalled.length + this.edgeWaits + this.fetches.length;
  }

  /** Takes a write, zero or flush. */
  submit(slot: number): void {
    if (this.stopped !== 0) {
      this.requests.complete(slot, this.stopped);
      return;
    }
    if (this.requests.kind[slot] === RequestKind.flush) this.flush(slot);
    else if (this.held || this.stalled.length > 0 || !this.hasRoom) this.stall(slot, 0);
    else this.change(slot, 0);
  }

  /** One more record can be taken. Asked for where a batch begins: there room for a largest batch is made sure of. */
  private get hasRoom(): boolean {
    const { journal } = this.host.content;
    return journal.pendingRecords > 0 || journal.hasRoomForData;
  }

  private stall(slot: number, progress: number): void {
    if (this.noWaiting !== 0) this.requests.complete(slot, this.noWaiting);
    else this.stalled.push(slot, progress);
  }

  private flush(slot: number): void {
    const { journal } = this.host.content;
    const target = journal.appendedLsn;
    if (target <= journal.durableLsn) {
      this.requests.complete(slot, 0);
      return;
    }
    this.waiting.push(slot, target);
  }

  /**
   * `progress`: 0, or 1 + the bytes of whole blocks of the request that were
   * journaled before it had to wait for room; its edges are journaled then.
   */
  private change(slot: number, progress: number): void {
    try {
      this.judge(slot, progress);
    } catch (error) {
      // An edge could not be read.
      if (!(error instanceof IoError) && !(error instanceof CorruptionError)) throw error;
      this.requests.complete(slot, Errno.EIO);
      this.host.failed(error);
    }
  }

  private judge(slot: number, progress: number): void {
    const { requests, host } = this;
    const device = host.content.store.find(requests.device[slot]);
    const offset = requests.offset[slot];
    const length = requests.length[slot];
    if (device === undefined) {
      requests.complete(slot, Errno.ESHUTDOWN);
      return;
    }
    let refused = requests.beyondEnd(slot, device.sizeBytes);
    if (refused === 0 && requests.kind[slot] === RequestKind.write && progress === 0) refused = host.admit(length);
    if (refused !== 0) {
      requests.complete(slot, refused);
      return;
    }
    if (progress === 0 && hasEdges(offset, length)) this.unaligned(slot, device);
    else this.whole(slot, device.id, progress);
  }

  /**
   * Journals the whole blocks of the request, a batch at a time; the last record
   * carries its slot. Where the journal has no room for the next batch the
   * request waits, and goes on from there.
   */
  private whole(slot: number, device: number, progress: number): void {
    const { journal } = this.host.content;
    const { requests } = this;
    const offset = requests.offset[slot];
    const end = offset + requests.length[slot];
    const first = alignUp(offset, BLOCK_BYTES);
    const last = end - (end % BLOCK_BYTES);
    if (requests.kind[slot] === RequestKind.zero) {
      if (!this.makeRoom(slot, 0, progress)) return;
      journal.addZero(device, first, last - first);
    } else {
      const buffer = requests.buffer[slot] - offset;
      const limit = journal.options.maxBatchPayload;
      for (let at = first + Math.max(0, progress - 1); at < last; ) {
        const bytes = Math.min(limit, last - at);
        if (!this.makeRoom(slot, bytes, 1 + at - first)) return;
        journal.addData(device, at, bytes, buffer + at);
        at += bytes;
      }
    }
    this.batchSlots[this.batchSlotCount++] = slot;
  }

  /** The batch under construction takes one more record of this payload. False: the request waits, or was answered. */
  private makeRoom(slot: number, payloadBytes: number, progress: number): boolean {
    if (!this.host.content.journal.fits(payloadBytes)) this.flushBatch();
    if (this.stopped !== 0) {
      this.requests.complete(slot, this.stopped);
      return false;
    }
    if (this.hasRoom) return true;
    this.stall(slot, progress);
    return false;
  }

  private unaligned(slot: number, device: StoredDevice): void {
    const { requests } = this;
    const offset = requests.offset[slot];
    const length = requests.length[slot];
    const buffer = requests.kind[slot] === RequestKind.write ? requests.buffer[slot] : -1;
    // What the tick's batch holds is not readable yet.
    if (this.batchTouches(device.id, offset, length)) this.flushBatch();
    if (this.stopped !== 0) {
      requests.complete(slot, this.stopped);
      return;
    }
    const pair = this.edgePair;
    let result = this.edges.complete(device, offset, length, buffer, pair);
    if (result === NO_ROOM) {
      // The append gives back what edges of this batch hold, the spare blocks among it.
      this.flushBatch();
      if (this.stopped !== 0) {
        requests.complete(slot, this.stopped);
        return;
      }
      result = this.edges.complete(device, offset, length, buffer, pair);
      assert(result !== NO_ROOM, 'the spare edge blocks are held outside of a batch');
    }
    if (result === WOULD_WAIT) {
      if (this.edgeWaits < FETCHES_AT_ONCE) this.fetch(slot, device);
      else this.fetches.push(slot, 0);
      return;
    }
    if (result < 0) {
      requests.complete(slot, -result);
      return;
    }
    const { journal } = this.host.content;
    // Room for both edges first: an append in between would release them.
    if (!journal.fits(2 * BLOCK_BYTES, 2)) this.flushBatch();
    if (this.stopped !== 0 || !this.hasRoom) {
      this.edges.release(pair);
      if (this.stopped !== 0) requests.complete(slot, this.stopped);
      else this.stall(slot, 0);
      return;
    }
    const end = offset + length;
    const first = alignUp(offset, BLOCK_BYTES);
    const last = end - (end % BLOCK_BYTES);
    if (pair.head >= 0) this.addEdge(device.id, offset - (offset % BLOCK_BYTES), pair.head);
    if (pair.tail >= 0) this.addEdge(device.id, last, pair.tail);
    if (last > first) this.whole(slot, device.id, 1);
    else this.batchSlots[this.batchSlotCount++] = slot;
  }

  /** Has the edge blocks fetched, then tries the request again. */
  private fetch(slot: number, device: StoredDevice): void {
    const { requests } = this;
    const cuts = this.cuts.get(device.id);
    this.edgeWaits++;
    this.edges.fetch(device, requests.offset[slot], requests.length[slot], (fetched) => {
      this.edgeWaits--;
      if (fetched < 0) requests.complete(slot, -fetched);
      else if (cuts !== this.cuts.get(device.id)) requests.complete(slot, Errno.ESHUTDOWN);
      else this.submit(slot);
      // Whatever becomes of the next one, it leaves the queue; it comes back only when all turns are taken again.
      while (this.fetches.length > 0 && this.edgeWaits < FETCHES_AT_ONCE) this.submit(this.fetches.shift(Infinity));
    });
  }

  private addEdge(device: number, offset: number, buffer: number): void {
    this.batchBuffers.push(buffer);
    this.host.content.journal.addData(device, offset, BLOCK_BYTES, buffer);
  }

  /** Whether the batch under construction changes an edge block of the range. */
  private batchTouches(device: number, offset: number, length: number): boolean {
    const { journal } = this.host.content;
    const { view } = this.reactor.arena;
    const from = offset - (offset % BLOCK_BYTES);
    const to = offset + length;
    for (let i = 0; i < journal.pendingRecords; i++) {
      const e = entry.at(journal.headerAt, i);
      if (entry.device(view, e) !== device) continue;
      const start = entry.offset(view, e);
      if (start < to + BLOCK_BYTES && start + entry.length(view, e) > from) return true;
    }
    return false;
  }

  /** Appends, applies and acknowledges the tick's batch. */
  flushBatch(): void {
    const { content } = this.host;
    const { journal } = content;
    if (journal.pendingRecords === 0) return;
    const result = journal.flush();
    const slots = this.batchSlotCount;
    this.batchSlotCount = 0;
    const { requests } = this;
    if (result < 0) {
      this.releaseEdges();
      for (let i = 0; i < slots; i++) requests.complete(this.batchSlots[i], Errno.EIO);
      return;
    }
    try {
      content.core.applyData(journal.batchAt, journal.batchLsn, content.core.epoch!.id);
    } catch (error) {
      if (!(error instanceof IoError) && !(error instanceof CorruptionError)) throw error;
      // A map node could not be read: the group stops, and recovery applies what was appended.
      this.releaseEdges();
      for (let i = 0; i < slots; i++) requests.complete(this.batchSlots[i], Errno.EIO);
      this.host.failed(error);
      return;
    }
    // Links send from the arena, so the edges are theirs until here.
    this.host.appended();
    this.releaseEdges();
    let wantsSync = false;
    for (let i = 0; i < slots; i++) {
      const slot = this.batchSlots[i];
      if ((requests.flags[slot] & RequestFlag.fua) !== 0) {
        this.waiting.push(slot, journal.appendedLsn);
        wantsSync = true;
      } else {
        requests.complete(slot, 0);
      }
    }
    if (wantsSync) journal.sync(journal.appendedLsn);
  }

  private releaseEdges(): void {
    for (const buffer of this.batchBuffers) this.reactor.arena.release(buffer);
    this.batchBuffers.length = 0;
  }

  /** Tick end: one append for all of the tick, then one fdatasync for all that wait. */
  tick(): void {
    this.flushBatch();
    if (this.waiting.length > 0) this.host.content.journal.sync(this.waiting.lastLsn);
    this.resume();
  }

  /** The durable LSN has moved. */
  durable(): void {
    const lsn = this.host.content.journal.durableLsn;
    for (let slot = this.waiting.shift(lsn); slot >= 0; slot = this.waiting.shift(lsn)) this.requests.complete(slot, 0);
  }

  /** Takes up stalled requests while the journal has room. */
  private resume(): void {
    if (this.stalled.length === 0 || this.stopped !== 0 || this.held) return;
    while (this.stalled.length > 0 && this.host.content.journal.hasRoomForData) {
      const slot = this.stalled.shift(Infinity);
      this.change(slot, this.requests.serviceWord[slot]);
      this.flushBatch();
    }
  }

  /** Writers wait from here on, as for journal room, until `release`, which has to come by `untilUs`; what they had sent before is appended. */
  hold(untilUs: number): void {
    this.flushBatch();
    this.held = true;
    this.heldUntilUs = untilUs;
  }

  release(): void {
    this.held = false;
    this.reactor.again();
  }

  get holding(): boolean {
    return this.held;
  }

  /** Longest that writers are held from now on, whole seconds; null = they are not. */
  get heldSeconds(): number | null {
    return this.held ? Math.max(0, Math.ceil((this.heldUntilUs - this.reactor.nowUs) / 1e6)) : null;
  }

  /**
   * Ends what waits to change a device whose content is about to be replaced:
   * its client was disconnected, and what it had not been answered yet must not
   * come out behind the operation.
   */
  cancel(device: number): void {
    this.cuts.set(device, (this.cuts.get(device) ?? 0) + 1);
    for (const queue of [this.stalled, this.fetches]) {
      for (let left = queue.length; left > 0; left--) {
        const slot = queue.shift(Infinity);
        if (this.requests.device[slot] === device) this.requests.complete(slot, Errno.ESHUTDOWN);
        else queue.push(slot, this.requests.serviceWord[slot]);
      }
    }
  }

  /**
   * Answers what waits for journal room, and whatever would from now on, with
   * `errno`: room may never come, and the daemon is to end. What fits is still
   * taken; edge blocks under way come by themselves.
   */
  refuseWaiting(errno: number): void {
    this.noWaiting = errno;
    for (let slot = this.stalled.shift(Infinity); slot >= 0; slot = this.stalled.shift(Infinity)) this.requests.complete(slot, errno);
  }

  /** Answers everything that waits, and everything to come, with `errno`. */
  stop(errno: number): void {
    if (this.stopped !== 0) return;
    this.stopped = errno;
    this.host.content.journal.discard();
    this.releaseEdges();
    for (let i = 0; i < this.batchSlotCount; i++) this.requests.complete(this.batchSlots[i], errno);
    this.batchSlotCount = 0;
    for (const queue of [this.waiting, this.stalled, this.fetches]) {
      for (let slot = queue.shift(Infinity); slot >= 0; slot = queue.shift(Infinity)) this.requests.complete(slot, errno);
    }
  }
}
