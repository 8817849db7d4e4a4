/**
 * The journal being written: batches and their append (DESIGN §3).
 *
 * Owns: the position (LSN, chain), the batch under construction, and that a
 * failure is final. Must not know: what records mean, devices, links; when
 * something becomes durable is the business of groupcommit.ts.
 *
 * LSNs kept here only grow within an epoch:
 *   appendedLsn  written to the page cache: survives SIGKILL of the daemon
 *   durableLsn   covered by an fdatasync that succeeded: survives power loss
 *
 * A *volatile* journal lies in memory (tmpfs), where an fdatasync proves nothing:
 * what it holds is durable only when its effect is elsewhere, and whoever knows
 * that says so (`settle`).
 *
 * Any failed write or fsync is final: `onFailure` is called once and nothing
 * more is appended. The kernel may have dropped the dirty pages, so trying
 * again could report as durable what is lost.
 */

import { assert } from '../base/assert.js';
import { IoError } from '../base/errors.js';
import { BLOCK_BYTES } from '../base/units.js';
import { putHex, putU64 } from '../base/words.js';
import { allocatedBytes } from '../io/arena.js';
import type { Reactor } from '../io/reactor.js';
import {
  batch, BATCH_HEADER_BYTES, BATCH_MAGIC, entry, ENTRY_BYTES, MAX_BATCH_RECORDS, MAX_HEADER_BYTES,
  MAX_MARKER_BYTES, RecordKind, usedHeaderBytes,
} from './format.js';
import { EndNote } from './endnote.js';
import { GroupCommit } from './groupcommit.js';
import type { Committed } from './groupcommit.js';
import type { Position } from './position.js';
import { SegmentPool } from './segments.js';

export interface JournalOptions {
  readonly directory: string;
  readonly groupId: string;
  readonly segmentBytes: number;
  readonly maxSegments: number;
  /** The journal fdatasyncs by itself when this many bytes ... */
  readonly syncBytes: number;
  /** ... or microseconds have passed since the last one. */
  readonly syncUs: number;
  /** It lies in memory: it is never durable by itself. */
  readonly volatile?: boolean;
  /** Most payload bytes in a batch of this node's making; at most MAX_BATCH_PAYLOAD, and a batch must fit a segment of every node. */
  readonly maxBatchPayload: number;
}

/** Segments that only markers may use, so that an operation can always be journaled and its effect free space. */
const RESERVED_SEGMENTS = 1;

/** Arena bytes that a journal holds, its segment pool included; a volatile one END_ARENA_BYTES more. */
export const JOURNAL_ARENA_BYTES = allocatedBytes(MAX_HEADER_BYTES) + allocatedBytes(MAX_MARKER_BYTES) + 2 * BLOCK_BYTES;

export class Journal implements Committed {
  readonly pool: SegmentPool;
  /** Of a volatile journal: how far it goes. */
  readonly end: EndNote | undefined;
  /** What of it is durable. */
  readonly commit: GroupCommit;
  appendedLsn = 0;
  chainHi = 0;
  chainLo = 0;
  /** Payload bytes and records appended since open, for metrics. */
  appendedRecords = 0;
  appendedBatches = 0;
  failure: IoError | undefined;

  onDurable: () => void = () => undefined;
  onFailure: (error: IoError) => void = () => undefined;

  private epochNumber = 0;
  private readonly header: number;
  private readonly markerBuffer: number;
  private readonly zeroBlock: number;
  private readonly payloadAt = new Uint32Array(MAX_BATCH_RECORDS);
  private readonly payloadBytesOf = new Uint32Array(MAX_BATCH_RECORDS);
  private readonly hashOut = new Uint32Array(2);
  private count = 0;
  private payloadBytes = 0;
  private headerDirtyTo = 0;
  private closed = false;

  constructor(private readonly reactor: Reactor, readonly options: JournalOptions) {
    this.pool = new SegmentPool(reactor, options.directory, options.groupId, options.segmentBytes, options.maxSegments);
    this.end = options.volatile === true ? new EndNote(reactor, options.directory, options.groupId) : undefined;
    this.commit = new GroupCommit(reactor, this, { syncBytes: options.syncBytes, syncUs: options.syncUs, volatile: this.volatile });
    this.header = reactor.arena.alloc(MAX_HEADER_BYTES);
    this.markerBuffer = reactor.arena.alloc(MAX_MARKER_BYTES);
    this.zeroBlock = reactor.arena.alloc(BLOCK_BYTES);
    assert(this.header >= 0 && this.markerBuffer >= 0 && this.zeroBlock >= 0, 'no arena room for the journal');
    reactor.arena.u8.fill(0, this.zeroBlock, this.zeroBlock + BLOCK_BYTES);
    reactor.arena.u8.fill(0, this.header, this.header + MAX_HEADER_BYTES);
  }

  /** Starts a journal that holds nothing, at `position`. Blocks while the first segments are made. */
  create(position: Position, epoch: { number: number; id: string }): void {
    while (this.pool.freeCount < 2) this.pool.createNow();
    this.setEpoch(epoch);
    this.setPosition(position, position.lsn);
    const result = this.pool.begin({ baseLsn: position.lsn, chainHi: position.chainHi, chainLo: position.chainLo, epochId: epoch.id, epochNumber: epoch.number });
    if (result < 0) throw new IoError(-result, 'write journal segment', this.options.directory);
    this.end?.place(position.lsn);
  }

  /** Sets where the next batch goes; recovery calls it once. */
  setPosition(position: Position, durableLsn: number): void {
    assert(this.count === 0, 'a batch is under construction');
    this.appendedLsn = position.lsn;
    this.chainHi = position.chainHi;
    this.chainLo = position.chainLo;
    this.commit.begin(durableLsn);
  }

  /** The epoch that following batches belong to. */
  setEpoch(epoch: { number: number; id: string }): void {
    assert(this.count === 0, 'a batch is under construction');
    this.epochNumber = epoch.number;
    putHex(this.reactor.arena.u8, this.header + 48, epoch.id);
  }

  /** It lies in memory. */
  get volatile(): boolean {
    return this.options.volatile === true;
  }

  /**
   * No restart of this node undoes what lies below: what is durable. Of a volatile journal all that was appended, for
   * if that is lost so are the group's data, and there is nothing to undo.
   */
  get stableLsn(): number {
    return this.volatile ? this.appendedLsn : this.durableLsn;
  }

  /** Everything below survives power loss. */
  get durableLsn(): number {
    return this.commit.durableLsn;
  }

  /** Behind the last appended batch. */
  get position(): Position {
    return { lsn: this.appendedLsn, chainHi: this.chainHi, chainLo: this.chainLo };
  }

  /** Arena offset of the header of the batch under construction. */
  get headerAt(): number {
    return this.header;
  }

  /** Records in the batch under construction. */
  get pendingRecords(): number {
    return this.count;
  }

  /** Room in the batch under construction for `records` more with this much payload together. */
  fits(payloadBytes: number, records = 1): boolean {
    return this.count + records <= MAX_BATCH_RECORDS && this.payloadBytes + payloadBytes <= this.options.maxBatchPayload;
  }

  /** Whether a largest batch of data can be appended without touching what is reserved for markers. */
  get hasRoomForData(): boolean {
    const rest = this.pool.room(this.pool.current);
    return this.pool.freeCount > RESERVED_SEGMENTS || (this.pool.freeCount === RESERVED_SEGMENTS && rest >= MAX_HEADER_BYTES + this.options.maxBatchPayload);
  }

  /** Whether a marker can be appended: it may use what is reserved. */
  get hasRoomForMarker(): boolean {
    return this.pool.freeCount > 0 || this.pool.room(this.pool.current) >= BLOCK_BYTES + MAX_MARKER_BYTES;
  }

  /** LSN of record `i` of the batch under construction. */
  recordLsn(i: number): number {
    return entry.lsn(this.appendedLsn, i);
  }

  /**
   * Adds a record of whole blocks; `buffer` (arena) is borrowed until `flush`.
   * Returns its index in the batch.
   */
  addData(device: number, offset: number, length: number, buffer: number): number {
    const i = this.addEntry(RecordKind.data, device, offset, length);
    this.payloadAt[i] = buffer;
    this.payloadBytesOf[i] = length;
    this.payloadBytes += length;
    return i;
  }

  /** Adds a record that zeroes whole blocks. */
  addZero(device: number, offset: number, length: number): number {
    const i = this.addEntry(RecordKind.zero, device, offset, length);
    this.payloadBytesOf[i] = 0;
    return i;
  }

  /** Adds a marker, alone in its batch. */
  addMarker(body: Uint8Array): void {
    assert(this.count === 0, 'a marker is alone in its batch');
    assert(body.length > 0 && body.length <= MAX_MARKER_BYTES, `a marker of ${body.length} bytes`);
    const padded = Math.ceil(body.length / BLOCK_BYTES) * BLOCK_BYTES;
    const u8 = this.reactor.arena.u8;
    u8.set(body, this.markerBuffer);
    u8.fill(0, this.markerBuffer + body.length, this.markerBuffer + padded);
    this.addEntry(RecordKind.marker, 0, 0, body.length);
    this.payloadAt[0] = this.markerBuffer;
    this.payloadBytesOf[0] = padded;
    this.payloadBytes = padded;
  }

  private addEntry(kind: number, device: number, offset: number, length: number): number {
    assert(this.count < MAX_BATCH_RECORDS, 'the batch is full');
    const i = this.count++;
    const view = this.reactor.arena.view;
    const e = this.header + BATCH_HEADER_BYTES + i * ENTRY_BYTES;
    view.setUint32(e, kind, true);
    view.setUint32(e + 4, device, true);
    putU64(view, e + 8, offset);
    putU64(view, e + 16, length);
    view.setUint32(e + 24, kind === RecordKind.zero ? 0 : this.payloadBytes, true);
    view.setUint32(e + 28, 0, true);
    return i;
  }

  /**
   * Appends the batch under construction with one pwritev. Returns 0, or −errno
   * (then the journal has failed). Until the next `flush` or `receive`, `batchAt`
   * is the arena offset of the batch's header, `batchLsn` its LSN, and
   * `payload(i)` the arena offset of record i's payload.
   */
  flush(): number {
    if (this.failure !== undefined) return -this.failure.errno;
    const { io, arena } = this.reactor;
    const { view } = arena;
    const at = this.header;
    const count = this.count;
    assert(count > 0, 'flush of an empty batch');
    const used = usedHeaderBytes(count);
    const headerBytes = (used + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1);
    if (used < this.headerDirtyTo) arena.u8.fill(0, at + used, at + Math.max(used, this.headerDirtyTo));
    this.headerDirtyTo = used;

    const iov = io.iov;
    iov[0] = at;
    iov[1] = headerBytes;
    let vectors = 1;
    for (let i = 0; i < count; i++) {
      const bytes = this.payloadBytesOf[i];
      if (bytes === 0) continue;
      const buffer = this.payloadAt[i];
      const e = at + BATCH_HEADER_BYTES + i * ENTRY_BYTES;
      const length = view.getUint32(e + 16, true); // payloads are far below 4 GiB
      view.setUint32(e + 28, io.crc32c(buffer, length, 0), true);
      iov[vectors * 2] = buffer;
      iov[vectors * 2 + 1] = bytes;
      vectors++;
    }
    view.setUint32(at, BATCH_MAGIC, true);
    putU64(view, at + 8, this.appendedLsn);
    view.setUint32(at + 16, this.chainHi, true);
    view.setUint32(at + 20, this.chainLo, true);
    putU64(view, at + 24, this.durableLsn);
    view.setUint32(at + 32, count, true);
    view.setUint32(at + 36, headerBytes, true);
    view.setUint32(at + 40, this.payloadBytes, true);
    view.setUint32(at + 44, this.epochNumber, true);
    putU64(view, at + 64, io.wallMs());
    view.setUint32(at + 4, io.crc32c(at + 8, used - 8, 0), true);

    this.batchAt = at;
    this.batchPayloadAt = -1;
    const result = this.append(at, used, headerBytes + this.payloadBytes, vectors);
    this.discard();
    return result;
  }

  /** Drops the batch under construction. */
  discard(): void {
    this.count = 0;
    this.payloadBytes = 0;
  }

  /**
   * Appends a batch built by another node, already verified to continue this
   * journal: its used header at `at`, its wire payload (without padding) at
   * `payloadAt`. Returns 0 or −errno.
   */
  receive(at: number, payloadAt: number): number {
    if (this.failure !== undefined) return -this.failure.errno;
    assert(this.count === 0, 'a batch is under construction');
    const { io, arena } = this.reactor;
    const { view } = arena;
    const count = batch.count(view, at);
    const used = usedHeaderBytes(count);
    const headerBytes = batch.headerBytes(view, at);
    const iov = io.iov;
    let vectors = 0;
    iov[vectors * 2] = at;
    iov[vectors * 2 + 1] = used;
    vectors++;
    if (headerBytes > used) {
      iov[vectors * 2] = this.zeroBlock;
      iov[vectors * 2 + 1] = headerBytes - used;
      vectors++;
    }
    let run = payloadAt;
    let runBytes = 0;
    for (let i = 0; i < count; i++) {
      const e = entry.at(at, i);
      if (entry.kind(view, e) === RecordKind.zero) continue;
      const length = entry.length(view, e);
      runBytes += length;
      const pad = (BLOCK_BYTES - (length % BLOCK_BYTES)) % BLOCK_BYTES;
      if (pad === 0) continue;
      iov[vectors * 2] = run;
      iov[vectors * 2 + 1] = runBytes;
      iov[vectors * 2 + 2] = this.zeroBlock;
      iov[vectors * 2 + 3] = pad;
      vectors += 2;
      run += runBytes;
      runBytes = 0;
    }
    if (runBytes > 0) {
      iov[vectors * 2] = run;
      iov[vectors * 2 + 1] = runBytes;
      vectors++;
    }
    this.batchAt = at;
    this.batchPayloadAt = payloadAt;
    this.epochNumber = batch.epochNumber(view, at);
    arena.u8.copyWithin(this.header + 48, at + 48, at + 64);
    return this.append(at, used, headerBytes + batch.payloadBytes(view, at), vectors);
  }

  /** The last appended batch: see `flush`. */
  batchAt = 0;
  batchLsn = 0;
  private batchPayloadAt = -1;

  /** Arena offset of the payload of record `i` of the last built batch (not of received ones). */
  payload(i: number): number {
    assert(this.batchPayloadAt < 0, 'payload() of a received batch');
    return this.payloadAt[i];
  }

  /** Writes iov[0..vectors) as the batch with header at `at`, and moves the position. */
  private append(at: number, used: number, bytes: number, vectors: number): number {
    const { io } = this.reactor;
    let segment = this.pool.current;
    if (bytes > this.pool.room(segment)) {
      assert(bytes <= this.pool.capacity, 'a batch larger than a segment');
      // begin() uses no vectors, so iov stays as it is.
      const begun = this.pool.begin({
        baseLsn: this.appendedLsn, chainHi: this.chainHi, chainLo: this.chainLo,
        epochId: batch.epochId(this.reactor.arena.u8, at), epochNumber: this.epochNumber,
      });
      if (begun < 0) return this.fail(begun, 'write the header of a journal segment');
      segment.dirty &&= !this.volatile;
      segment = this.pool.current;
      this.pool.ensureSpare(RESERVED_SEGMENTS + 2);
    }
    const written = io.pwritev(segment.fd, vectors, this.pool.filePosition(segment, segment.endLsn));
    if (written !== bytes) return this.fail(written < 0 ? written : -5, 'append to the journal');
    const noted = this.end?.move(this.appendedLsn + bytes) ?? 0;
    if (noted < 0) return this.fail(noted, 'note how far the journal goes in');
    io.hash64(at, used, this.chainHi, this.chainLo, this.hashOut);
    this.chainHi = this.hashOut[0];
    this.chainLo = this.hashOut[1];
    this.batchLsn = this.appendedLsn;
    this.appendedLsn += bytes;
    segment.endLsn = this.appendedLsn;
    segment.dirty = !this.volatile;
    segment.headed ||= this.volatile;
    this.appendedRecords += batch.count(this.reactor.arena.view, at);
    this.appendedBatches++;
    this.commit.appended();
    return 0;
  }

  /**
   * Makes everything up to `lsn` durable; `onDurable` tells when durableLsn has moved. Group commit: calls join. A
   * volatile journal only notes it, for whoever settles it (groupcommit.ts).
   */
  sync(lsn: number): void {
    this.commit.sync(lsn);
  }

  /**
   * Makes everything appended durable before it returns: for moments at which
   * nothing is served, the start and the end. Returns 0 or −errno. A volatile
   * journal stays as durable as it is.
   */
  syncNow(): number {
    return this.failure === undefined ? this.commit.now() : -this.failure.errno;
  }

  /** The journal's own bound: call once a tick. */
  poll(): void {
    this.commit.poll();
  }

  // ---- for the group commit -----------------------------------------------------------------------

  get failed(): boolean {
    return this.failure !== undefined;
  }

  durableMoved(): void {
    this.onDurable();
  }

  /** Something that cannot be taken back went wrong: −`result`, which is returned. */
  fail(result: number, doing: string): number {
    if (this.failure === undefined) {
      this.failure = new IoError(-result, doing, this.options.directory);
      this.onFailure(this.failure);
    }
    return result;
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.commit.close();
    this.pool.close();
    this.end?.close();
    for (const buffer of [this.header, this.markerBuffer, this.zeroBlock]) this.reactor.arena.release(buffer);
  }
}
