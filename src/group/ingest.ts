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

import { Errno } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import type { Reactor } from '../io/reactor.js';
import { entry, MAX_BATCH_RECORDS } from '../journal/format.js';
import { WOULD_WAIT } from '../store/read.js';
import type { StoredDevice } from '../store/store.js';
import type { Content } from './content.js';
import { EdgeCompleter, hasEdges } from './edges.js';
import type { Edges } from './edges.js';
import { RequestFlag, RequestKind } from './requests.js';
import type { RequestTable } from './requests.js';

/** Slots whose LSN must become durable, in LSN order. */
class DurableQueue {
  private head = -1;
  private tail = -1;
  length = 0;

  constructor(private readonly requests: RequestTable) {}

  push(slot: number, lsn: number): void {
    this.requests.serviceWord[slot] = lsn;
    this.requests.next[slot] = -1;
    if (this.tail < 0) this.head = slot;
    else this.requests.next[this.tail] = slot;
    this.tail = slot;
    this.length++;
  }

  /** The first slot if its LSN is at most `lsn`, removed; else −1. */
  shift(lsn: number): number {
    const slot = this.head;
    if (slot < 0 || this.requests.serviceWord[slot] > lsn) return -1;
    this.head = this.requests.next[slot];
    if (this.head < 0) this.tail = -1;
    this.length--;
    return slot;
  }
}

export interface IngestHost {
  readonly content: Content;
  /** Why new data is not taken now, or 0: the errno for space admission. */
  admit(bytes: number): number;
  /** After a batch of data was appended and applied. */
  appended(): void;
}

export class Ingest {
  private readonly batchSlots = new Int32Array(MAX_BATCH_RECORDS + 1);
  private batchSlotCount = 0;
  /** Arena blocks of completed edges, released after the append. */
  private readonly batchBuffers: number[] = [];
  private readonly waiting: DurableQueue;
  /** Requests that wait for journal room, oldest first. */
  private readonly stalled: DurableQueue;
  private readonly edges: EdgeCompleter;
  private readonly edgePair: Edges = { head: -1, tail: -1 };
  private edgeWaits = 0;
  private stopped = 0;

  constructor(private readonly reactor: Reactor, private readonly host: IngestHost, private readonly requests: RequestTable) {
    this.waiting = new DurableQueue(requests);
    this.stalled = new DurableQueue(requests);
    this.edges = new EdgeCompleter(reactor.arena, host.content.reader);
  }

  /** Requests that wait for room in the journal. */
  get stalledCount(): number {
    return this.stalled.length;
  }

  /** Requests that are not answered yet, reads not counted. */
  get outstanding(): number {
    return this.batchSlotCount + this.waiting.length + this.stalled.length + this.edgeWaits;
  }

  /** Takes a write, zero or flush. */
  submit(slot: number): void {
    if (this.stopped !== 0) {
      this.requests.complete(slot, this.stopped);
      return;
    }
    if (this.requests.kind[slot] === RequestKind.flush) this.flush(slot);
    else if (this.stalled.length > 0 || !this.host.content.journal.hasRoomForData) this.stalled.push(slot, 0);
    else this.change(slot);
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

  private change(slot: number): void {
    const { requests, host } = this;
    const device = host.content.store.find(requests.device[slot]);
    const offset = requests.offset[slot];
    const length = requests.length[slot];
    if (device === undefined) {
      requests.complete(slot, Errno.ESHUTDOWN);
      return;
    }
    if (offset + length > device.sizeBytes) {
      // Judged by the size at its place in the order: a marker may have shrunk the device since it was parsed.
      requests.complete(slot, requests.kind[slot] === RequestKind.write ? Errno.ENOSPC : Errno.EINVAL);
      return;
    }
    const refused = requests.kind[slot] === RequestKind.write ? host.admit(length) : 0;
    if (refused !== 0) {
      requests.complete(slot, refused);
      return;
    }
    if (hasEdges(offset, length)) this.unaligned(slot, device);
    else this.aligned(slot, device.id, offset, length, requests.kind[slot] === RequestKind.write ? requests.buffer[slot] : -1);
  }

  /** Whole blocks, from `buffer` (−1: zeros). The last record of the request carries its slot. */
  private aligned(slot: number, device: number, offset: number, length: number, buffer: number): void {
    const { journal } = this.host.content;
    const limit = journal.options.maxBatchPayload;
    let done = 0;
    if (buffer >= 0) {
      // Larger than a batch: cut; all but the last piece are appended here.
      while (length - done > limit) {
        if (!this.makeRoom(limit)) {
          this.requests.complete(slot, Errno.EIO);
          return;
        }
        journal.addData(device, offset + done, limit, buffer + done);
        done += limit;
      }
    }
    if (!this.makeRoom(buffer < 0 ? 0 : length - done)) {
      this.requests.complete(slot, Errno.EIO);
      return;
    }
    if (buffer < 0) journal.addZero(device, offset, length);
    else journal.addData(device, offset + done, length - done, buffer + done);
    this.batchSlots[this.batchSlotCount++] = slot;
  }

  /** The batch under construction takes one more record of this payload; false when the journal has failed. */
  private makeRoom(payloadBytes: number): boolean {
    if (!this.host.content.journal.fits(payloadBytes)) this.flushBatch();
    return this.stopped === 0;
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
    const result = this.edges.complete(device, offset, length, buffer, pair);
    if (result === WOULD_WAIT) {
      this.edgeWaits++;
      this.edges.fetch(device, offset, length, (fetched) => {
        this.edgeWaits--;
        if (fetched < 0) requests.complete(slot, -fetched);
        else this.submit(slot);
      });
      return;
    }
    if (result < 0) {
      requests.complete(slot, -result);
      return;
    }
    const { journal } = this.host.content;
    const head = pair.head;
    const tail = pair.tail;
    const end = offset + length;
    const headBlock = offset - (offset % BLOCK_BYTES);
    const middle = head >= 0 ? headBlock + BLOCK_BYTES : offset;
    const middleEnd = end - (end % BLOCK_BYTES);
    // Room for both edges first: an append in between would release them.
    if (!journal.fits(2 * BLOCK_BYTES, 2)) this.flushBatch();
    if (this.stopped !== 0) {
      this.edges.release(pair);
      requests.complete(slot, this.stopped);
      return;
    }
    if (head >= 0) {
      this.batchBuffers.push(head);
      journal.addData(device.id, headBlock, BLOCK_BYTES, head);
    }
    if (tail >= 0) {
      this.batchBuffers.push(tail);
      journal.addData(device.id, middleEnd, BLOCK_BYTES, tail);
    }
    if (middleEnd > middle) this.aligned(slot, device.id, middle, middleEnd - middle, buffer < 0 ? -1 : buffer + middle - offset);
    else this.batchSlots[this.batchSlotCount++] = slot;
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
    for (const buffer of this.batchBuffers) this.reactor.arena.release(buffer);
    this.batchBuffers.length = 0;
    const slots = this.batchSlotCount;
    this.batchSlotCount = 0;
    const { requests } = this;
    if (result < 0) {
      for (let i = 0; i < slots; i++) requests.complete(this.batchSlots[i], Errno.EIO);
      return;
    }
    content.core.applyData(journal.batchAt, journal.batchLsn, content.core.epoch!.id);
    this.host.appended();
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

  /** Tick end: one append for all of the tick, then one fdatasync for all that wait. */
  tick(): void {
    this.flushBatch();
    if (this.waiting.length > 0) this.host.content.journal.sync(this.host.content.journal.appendedLsn);
    this.resume();
  }

  /** The durable LSN has moved. */
  durable(): void {
    const lsn = this.host.content.journal.durableLsn;
    for (let slot = this.waiting.shift(lsn); slot >= 0; slot = this.waiting.shift(lsn)) this.requests.complete(slot, 0);
  }

  /** Takes up stalled requests while the journal has room. */
  private resume(): void {
    if (this.stalled.length === 0 || this.stopped !== 0) return;
    while (this.stalled.length > 0 && this.host.content.journal.hasRoomForData) {
      this.change(this.stalled.shift(0));
      this.flushBatch();
    }
  }

  /** Answers everything that waits, and everything to come, with `errno`. */
  stop(errno: number): void {
    if (this.stopped !== 0) return;
    this.stopped = errno;
    this.host.content.journal.discard();
    for (const buffer of this.batchBuffers) this.reactor.arena.release(buffer);
    this.batchBuffers.length = 0;
    for (let i = 0; i < this.batchSlotCount; i++) this.requests.complete(this.batchSlots[i], errno);
    this.batchSlotCount = 0;
    for (const queue of [this.waiting, this.stalled]) {
      for (let slot = queue.shift(Infinity); slot >= 0; slot = queue.shift(Infinity)) this.requests.complete(slot, errno);
    }
  }
}
