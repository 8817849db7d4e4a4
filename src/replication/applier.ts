/**
 * Takes the batches that a peer sends into a group's journal.
 *
 * Owns: the checks that a batch must pass, acks, when the journal is synced for
 * them. Must not know: connections' life, what records mean.
 *
 * Nothing is appended before the frame, the batch header, its place (LSN,
 * chain), its epoch and every payload checksum are right. A batch may only begin
 * an epoch that the sender announced for that place, or, behind what it had
 * announced, by a marker with a higher number.
 */

import { PeerError } from '../base/errors.js';
import { putHex } from '../base/words.js';
import type { ReplicatedGroup } from '../group/replica.js';
import type { EpochEntry } from '../group/tree/epochs.js';
import type { Reactor } from '../io/reactor.js';
import type { TimerId } from '../io/timers.js';
import { batch, entry, RecordKind, usedHeaderBytes } from '../journal/format.js';
import { verifyHeader, verifyPayloads, wirePayloadBytes } from '../journal/verify.js';
import type { Connection } from './connection.js';
import { AckFlag, cleanSentence, FRAME_HEADER_BYTES, MAX_EPOCHS_SENT, MAX_KEPT } from './message.js';

export interface ApplierOptions {
  /** Longest time from a receive to the journal's fdatasync, when none is under way. */
  readonly syncUs: number;
}

/** What the sender said about its history in this session. */
export interface Announced {
  readonly epochs: readonly EpochEntry[];
  /** The sender's position then. */
  readonly lsn: number;
}

export type Taken =
  | { readonly kind: 'taken' }
  /** Not now: no room; offer the batch again after the group's onRoom. */
  | { readonly kind: 'full' };

const TAKEN: Taken = { kind: 'taken' };
const FULL: Taken = { kind: 'full' };

export class Applier {
  full = false;
  /** Wall clock of the last batch received, ms. */
  lastWallMs = 0;
  batches = 0;

  private readonly epochBytes = new Uint8Array(16);
  private epochNumber: number;
  private senderDurable = 0;
  private ackedReceived = -1;
  private ackedDurable = -1;
  private ackedApplied = -1;
  private ackedFlags = -1;
  private toldKept: string | undefined;
  private syncTimer: TimerId | undefined;
  private closed = false;

  /** `mode` follow: as a secondary. fetch: as a recovering primary. */
  constructor(
    private readonly reactor: Reactor,
    private readonly group: ReplicatedGroup,
    private readonly peer: string,
    private readonly connection: Connection,
    private readonly options: ApplierOptions,
    readonly mode: 'follow' | 'fetch',
    private readonly announced: Announced,
  ) {
    const last = group.epochs[group.epochs.length - 1];
    this.epochNumber = last?.number ?? -1;
    if (last !== undefined) putHex(this.epochBytes, 0, last.id);
  }

  /** Takes the batch frame with body [at, at + bytes). Throws PeerError, and then nothing of it was appended. */
  batch(at: number, bytes: number, durableLsn: number): Taken {
    const { group, reactor } = this;
    this.checkRole();
    const position = group.position;
    const wrong = verifyHeader(reactor, at, bytes, position);
    if (wrong !== undefined) throw new PeerError('link/bad-batch', `at LSN ${position.lsn}: ${wrong}`);
    const { view } = reactor.arena;
    const used = usedHeaderBytes(batch.count(view, at));
    const payload = wirePayloadBytes(reactor, at);
    if (used + payload !== bytes) throw new PeerError('link/bad-batch', `at LSN ${position.lsn}: a batch of ${used + payload} bytes in a frame of ${bytes}`);
    if (!this.sameEpoch(at)) this.checkNewEpoch(at, position.lsn);
    const total = batch.totalBytes(view, at);
    if (total > group.journal.pool.capacity) {
      throw new PeerError('link/segment-too-small', `a batch of ${total} bytes does not fit the journal's segments here (${group.journal.pool.segmentBytes} bytes): set segmentSize as on the other node`);
    }
    const broken = verifyPayloads(reactor, at, at + used, false);
    if (broken !== undefined) throw new PeerError('link/bad-batch', `at LSN ${position.lsn}: ${broken}`);

    // Also when the journal is full: room comes from destaging, and that may wait for this very LSN.
    this.heard(durableLsn);
    const result = group.receive(at, at + used);
    switch (result.kind) {
      case 'applied':
      case 'kept':
        break;
      case 'full':
        this.full = true;
        return FULL;
      case 'failed':
        throw new PeerError('link/group-failed', `the group has failed: ${result.reason}`);
    }
    this.full = false;
    this.epochNumber = batch.epochNumber(view, at);
    this.epochBytes.set(reactor.arena.u8.subarray(at + 48, at + 64));
    this.lastWallMs = batch.wallMs(view, at);
    this.batches++;
    const first = entry.at(at, 0);
    if (entry.kind(view, first) === RecordKind.marker) group.meter.markerOnWire(this.peer, entry.lsn(position.lsn, 0), FRAME_HEADER_BYTES + bytes);
    this.wantSync();
    return TAKEN;
  }

  private checkRole(): void {
    const expected = this.mode === 'follow' ? 'secondary' : 'recovering';
    if (this.group.role === expected) return;
    throw new PeerError('link/role-changed', `this node is ${this.group.role} now and receives no more: ${cleanSentence(this.group.roleReason)}`);
  }

  private sameEpoch(at: number): boolean {
    const { u8, view } = this.reactor.arena;
    if (batch.epochNumber(view, at) !== this.epochNumber) return false;
    for (let i = 0; i < 16; i++) if (u8[at + 48 + i] !== this.epochBytes[i]) return false;
    return true;
  }

  private checkNewEpoch(at: number, lsn: number): void {
    const { u8, view } = this.reactor.arena;
    const id = batch.epochId(u8, at);
    const number = batch.epochNumber(view, at);
    const marker = entry.kind(view, entry.at(at, 0)) === RecordKind.marker;
    const known = this.announced.epochs.find((epoch) => epoch.id === id);
    const { epochs } = this.announced;
    // A very long history is announced without its beginning.
    const unannounced = lsn >= this.announced.lsn || (epochs.length === MAX_EPOCHS_SENT && lsn < epochs[0].start.lsn);
    const fits = known !== undefined ? known.number === number && known.start.lsn === lsn : unannounced;
    if (fits && marker && number > this.epochNumber) return;
    throw new PeerError('link/foreign-epoch', `at LSN ${lsn}: a batch of epoch ${number} (${id}), which does not belong there`);
  }

  /** The sender's durable LSN, in every frame. */
  heard(durableLsn: number): void {
    if (this.mode !== 'follow' || durableLsn <= this.senderDurable) return;
    this.senderDurable = durableLsn;
    this.group.setPrimaryDurable(durableLsn);
  }

  /** What the sender had made durable when it last spoke. */
  get durableThere(): number {
    return this.senderDurable;
  }

  private wantSync(): void {
    this.syncTimer ??= this.reactor.after(this.options.syncUs, () => {
      this.syncTimer = undefined;
      const { journal } = this.group;
      // A volatile journal becomes durable by work of another order, in its own time.
      if (!this.closed && journal.failure === undefined && !journal.volatile) journal.sync(journal.appendedLsn);
    });
  }

  /** Tells the sender how far this node has come, if that has changed. `force`: in any case. */
  acknowledge(force: boolean): void {
    if (this.closed || !this.connection.open) return;
    const { journal } = this.group;
    // Also of a group that had stopped before this connection was made: before the first ack, so that it has its reason.
    const kept = this.group.applyProblem;
    if (kept !== this.toldKept) {
      this.toldKept = kept;
      this.connection.send('state', { kept: kept === undefined ? null : cleanSentence(kept, MAX_KEPT) }, journal.durableLsn);
    }
    const received = journal.appendedLsn;
    const durable = journal.durableLsn;
    const applied = this.group.appliedLsn;
    const flags = (kept === undefined ? 0 : AckFlag.kept) | (this.full ? AckFlag.full : 0);
    if (!force && received === this.ackedReceived && durable === this.ackedDurable && applied === this.ackedApplied && flags === this.ackedFlags) return;
    // One ack under way is enough: the next one says more.
    if (!this.connection.idle) return;
    this.ackedReceived = received;
    this.ackedDurable = durable;
    this.ackedApplied = applied;
    this.ackedFlags = flags;
    this.connection.sendAck(received, durable, applied, flags);
  }

  /** Idempotent. */
  close(): void {
    this.closed = true;
    if (this.syncTimer !== undefined) this.reactor.cancel(this.syncTimer);
    this.syncTimer = undefined;
  }
}
