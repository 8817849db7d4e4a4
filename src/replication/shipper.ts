/**
 * Sends a group's journal over one connection.
 *
 * Owns: how far was shipped and acknowledged, the window, the two ways of
 * reading the journal. Must not know: why it ships from where it does.
 *
 *   hot       the batch that was just appended, straight from the arena with the iovecs of the append: one sendv
 *   catch-up  whatever lies between `shippedLsn` and the end: windows of the segment files, read on a helper
 *
 * Hot needs: everything before was shipped, nothing is queued, the window is
 * open. Else the batch waits in the journal, which keeps it (the link's cursor),
 * so a slow peer costs no memory and never makes the data thread wait. Batches
 * lie in one segment each and only a marker's payload is padded, at its end: so
 * a batch's wire payload is always a prefix of what the file holds.
 */

import { assert } from '../base/assert.js';
import { errnoText, PeerError } from '../base/errors.js';
import type { ReplicatedGroup } from '../group/replica.js';
import { JobOp, JobTable, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { batch, checkBatchShape, entry, payloadLength, RecordKind, usedHeaderBytes } from '../journal/format.js';
import { wirePayloadBytes } from '../journal/verify.js';
import type { Connection } from './connection.js';
import { FRAME_HEADER_BYTES, FrameType, putFrameHeader, sealFrame } from './message.js';
import { BLOCK_BYTES } from '../base/units.js';
import type { LinkWindows } from './windows.js';
import { takeLarge } from './windows.js';

export interface ShipperOptions {
  /** Most journal bytes shipped and not acknowledged as received. */
  readonly windowBytes: number;
  /** Bytes read from the journal at a time when catching up. */
  readonly readBytes: number;
  readonly windows?: LinkWindows;
}

/** Frames queued at a time; bounds the page of frame headers and the outbox. */
const MAX_FRAMES = 256;
/** Arena bytes that a shipper holds beside its window. */
export const SHIPPER_ARENA_BYTES = MAX_FRAMES * FRAME_HEADER_BYTES;
const SEGMENTS_PER_FRAME = 3;
const RETRY_US = 10_000;

export class Shipper {
  /** Everything below has been handed to the connection. */
  shippedLsn: number;
  receivedLsn: number;
  /** Wall clock of the batch that was shipped last, ms; 0 before the first. */
  lastWallMs = 0;
  /** Batches that went the hot way, and by catch-up. */
  hotBatches = 0;
  caughtUpBatches = 0;

  private readonly headers: number;
  private window = -1;
  /** Bytes of the window that were read, and where the first one that is not queued yet lies. */
  private windowFill = 0;
  private windowAt = 0;
  private reading = false;
  private retry: TimerId | undefined;
  private closed = false;
  private readonly table = new JobTable(1);

  /** `upTo`: ships no further (a fetch) and calls `onDone`; undefined follows the journal. Throws PeerError. */
  constructor(
    private readonly reactor: Reactor,
    private readonly group: ReplicatedGroup,
    private readonly peer: string,
    private readonly connection: Connection,
    private readonly options: ShipperOptions,
    from: number,
    private readonly upTo: number | undefined,
    private readonly onDone: () => void,
    private readonly onFailure: (error: PeerError) => void,
  ) {
    this.shippedLsn = this.receivedLsn = from;
    this.headers = reactor.arena.alloc(SHIPPER_ARENA_BYTES);
    if (this.headers < 0) throw new PeerError('link/no-memory', 'the arena has no room for frame headers');
  }

  private get endLsn(): number {
    return this.upTo ?? this.group.journal.appendedLsn;
  }

  get caughtUp(): boolean {
    return this.shippedLsn >= this.endLsn;
  }

  /** The peer has not acknowledged what the window allows. */
  get windowFull(): boolean {
    return this.shippedLsn - this.receivedLsn >= this.options.windowBytes;
  }

  /** The peer has received everything below `lsn`. */
  acknowledged(lsn: number): void {
    assert(lsn <= this.shippedLsn, 'an ack beyond what was shipped');
    this.receivedLsn = Math.max(this.receivedLsn, lsn);
    if (!this.caughtUp) this.pump();
  }

  // ---- hot ----------------------------------------------------------------------------------------------

  /** After an append, while the batch is in the arena. */
  appended(): void {
    const { journal } = this.group;
    if (this.closed || this.upTo !== undefined) return;
    if (this.shippedLsn !== journal.batchLsn || !this.connection.idle || this.windowFull || this.window >= 0) {
      this.pump();
      return;
    }
    const { io, arena } = this.reactor;
    const { view } = arena;
    const at = journal.batchAt;
    const count = batch.count(view, at);
    const { iov } = io;
    iov[0] = this.headers;
    iov[1] = FRAME_HEADER_BYTES;
    iov[2] = at;
    iov[3] = usedHeaderBytes(count);
    let bytes = iov[3];
    let last = 1;
    let end = -1; // neighbours in the arena are joined
    for (let i = 0; i < count; i++) {
      const length = payloadLength(view, entry.at(at, i));
      if (length === 0) continue;
      const buffer = journal.payload(i);
      bytes += length;
      if (buffer === end) {
        iov[2 * last + 1] += length;
      } else {
        last++;
        iov[2 * last] = buffer;
        iov[2 * last + 1] = length;
      }
      end = buffer + length;
    }
    putFrameHeader(view, this.headers, FrameType.batch, bytes, journal.durableLsn, this.connection.outbox.takeNumber());
    sealFrame(this.reactor, this.headers, -1);
    // The frame counts as shipped before sendNow, which may end this session and with it the shipper.
    this.shippedLsn = journal.appendedLsn;
    const before = journal.batchLsn;
    if (this.connection.sendNow(last + 1, FRAME_HEADER_BYTES + bytes)) {
      this.hotBatches++;
      this.meter(at, FRAME_HEADER_BYTES + bytes);
      this.lastWallMs = batch.wallMs(view, at);
    } else {
      this.shippedLsn = before;
    }
  }

  // ---- catch-up -----------------------------------------------------------------------------------------

  /** Sends what can be sent now. Called whenever something may have changed: an append, an ack, `drained`. */
  pump(): void {
    while (!this.closed && !this.reading && this.retry === undefined && this.connection.idle) {
      if (this.window >= 0) {
        // The outbox is empty, so the ranges that were queued have gone.
        if (this.windowAt < this.windowFill) {
          if (this.windowFull) {
            if (this.isLarge) this.releaseWindow();
            return;
          }
          if (this.queueFrames() > 0) this.connection.flush();
          continue;
        }
        this.releaseWindow();
      }
      if (this.caughtUp) {
        if (this.upTo !== undefined) this.finish();
        return;
      }
      if (this.windowFull) return;
      this.read(0);
    }
  }

  /** The window is for a batch that is larger than usual. */
  private get isLarge(): boolean {
    return this.window >= 0 && this.reactor.arena.sizeOf(this.window) > this.options.readBytes;
  }

  /** Holds a large window that the peer does not receive, for `stuckUs`. */
  hoards(stuckUs: number): boolean {
    return this.isLarge && !this.reading && this.reactor.nowUs - this.connection.outbox.lastSentUs > stuckUs;
  }

  private finish(): void {
    this.close();
    this.onDone();
  }

  private releaseWindow(): void {
    if (this.window >= 0) this.reactor.arena.release(this.window);
    this.window = -1;
    this.windowFill = this.windowAt = 0;
  }

  /** Reads from `shippedLsn` on into a fresh window, on a helper: `needed` bytes, or as many as usual. */
  private read(needed: number): void {
    const { pool } = this.group.journal;
    const segment = pool.find(this.shippedLsn);
    if (segment === undefined || segment.endLsn <= this.shippedLsn) {
      this.onFailure(new PeerError('link/not-retained', `the journal holds LSN ${this.shippedLsn} no more`));
      return;
    }
    const there = Math.min(segment.endLsn, this.endLsn) - this.shippedLsn;
    if (needed > there) {
      this.damaged(`it says that it has ${needed} bytes, where ${there} are`);
      return;
    }
    const length = Math.min(Math.max(needed, this.options.readBytes), there);
    const window = this.options.windows === undefined ? takeLarge(this.reactor.arena, length) : this.options.windows.take(length);
    if (window < 0) {
      // Others need the arena more: their requests finish, links wait.
      this.retry ??= this.reactor.after(RETRY_US, () => {
        this.retry = undefined;
        this.pump();
      });
      return;
    }
    this.window = window;
    this.windowFill = this.windowAt = 0;
    this.reading = true;
    segment.holds++;
    this.table.clear().add(JobOp.pread, segment.fd, window, length, pool.filePosition(segment, this.shippedLsn));
    this.reactor.submit(Queue.read, this.table, (result) => {
      segment.holds--;
      this.reading = false;
      if (this.closed) {
        this.releaseWindow();
        return;
      }
      if (result < 0) {
        this.onFailure(new PeerError('link/journal-unreadable', `cannot read ${segment.path} to catch up: ${errnoText(-result)}`));
        return;
      }
      this.windowFill = length;
      this.pump();
    });
  }

  /** Queues the whole batches of the window as frames. Returns how many; 0 when it began another read or failed. */
  private queueFrames(): number {
    const { view } = this.reactor.arena;
    const { outbox } = this.connection;
    const { durableLsn } = this.group.journal;
    let frames = 0;
    while (frames < MAX_FRAMES && !this.windowFull && outbox.queueRoom >= SEGMENTS_PER_FRAME) {
      const at = this.window + this.windowAt;
      const left = this.windowFill - this.windowAt;
      if (left < BLOCK_BYTES) break;
      const problem = checkBatchShape(view, at) ?? (batch.lsn(view, at) === this.shippedLsn ? undefined : `LSN ${batch.lsn(view, at)}`);
      if (problem !== undefined) return this.damaged(problem);
      const total = batch.totalBytes(view, at);
      if (total > left) {
        if (this.windowAt > 0) break;
        this.releaseWindow();
        this.read(total);
        return frames;
      }
      const used = usedHeaderBytes(batch.count(view, at));
      if (this.reactor.io.crc32c(at + 8, used - 8, 0) !== batch.crc(view, at)) return this.damaged('its header checksum differs');
      const payload = wirePayloadBytes(this.reactor, at);
      if (payload > batch.payloadBytes(view, at)) return this.damaged('its entries are longer than its payload');
      const header = this.headers + frames * FRAME_HEADER_BYTES;
      putFrameHeader(view, header, FrameType.batch, used + payload, durableLsn, outbox.takeNumber());
      sealFrame(this.reactor, header, -1);
      outbox.queue(header, FRAME_HEADER_BYTES);
      outbox.queue(at, used);
      if (payload > 0) outbox.queue(at + batch.headerBytes(view, at), payload);
      this.lastWallMs = batch.wallMs(view, at);
      this.meter(at, FRAME_HEADER_BYTES + used + payload);
      this.windowAt += total;
      this.shippedLsn += total;
      this.caughtUpBatches++;
      frames++;
    }
    // What is left is the beginning of a batch: the next read begins with it.
    if (frames < MAX_FRAMES && !this.windowFull && outbox.queueRoom >= SEGMENTS_PER_FRAME) this.windowAt = this.windowFill;
    return frames;
  }

  /** The batch at `at` was handed over with `bytes` on the wire. */
  private meter(at: number, bytes: number): void {
    const { view } = this.reactor.arena;
    if (entry.kind(view, entry.at(at, 0)) === RecordKind.marker) this.group.meter.markerOnWire(this.peer, entry.lsn(batch.lsn(view, at), 0), bytes);
  }

  private damaged(problem: string): number {
    const segment = this.group.journal.pool.find(this.shippedLsn);
    const where = segment === undefined ? '' : ` (${segment.path}, byte ${this.group.journal.pool.filePosition(segment, this.shippedLsn)})`;
    this.onFailure(new PeerError('link/journal-unreadable', `the batch at LSN ${this.shippedLsn} of this node's journal is damaged${where}: ${problem}`));
    return 0;
  }

  /** The connection must be closed first, or idle: its queue borrows from here. Idempotent. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    if (this.retry !== undefined) this.reactor.cancel(this.retry);
    if (!this.reading) this.releaseWindow();
    this.reactor.arena.release(this.headers);
  }
}
