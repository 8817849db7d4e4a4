/**
 * Takes an exported journal in: the receiving side of a secondary that software
 * outside of Lockstep feeds.
 *
 * Owns: the order of a stream, the checks before anything is appended, waiting
 * for room, how far the journal is durable. Must not know: pipes, HTTP.
 *
 *   preface     a stream has to begin; says whether it fits this node's history
 *   stream      batches: below this node's position they are checked and skipped, at it appended
 *   ended       the stream said that it is whole; another one may follow
 *   failed      nothing more is taken
 *
 * A batch is appended only when its frame, header, place (LSN and chain), epoch
 * and every payload checksum are right and the exporting node has it durable.
 */

import { IoError, OperatorError, PeerError } from '../../base/errors.js';
import type { EpochPosition } from '../../base/position.js';
import { putHex } from '../../base/words.js';
import { epochPosition } from '../../group/tree/epochs.js';
import type { ReplicatedGroup } from '../../group/replica.js';
import type { Reactor } from '../../io/reactor.js';
import type { TimerId } from '../../io/timers.js';
import { batch, entry, RecordKind, usedHeaderBytes } from '../../journal/format.js';
import { ORIGIN, samePosition, type Position } from '../../journal/position.js';
import { positionAfter, verifyHeader, verifyPayloads, wirePayloadBytes } from '../../journal/verify.js';
import { decodePreface, StreamReader, StreamType } from './format.js';
import type { Preface, StreamFrame } from './format.js';
import { MAX_EPOCHS_SENT } from '../message.js';

export interface ImporterOptions {
  /** The journal is synced at the latest this long after a batch was taken, microseconds. */
  readonly syncUs: number;
  /** Why nothing may be imported now, beside the group's role: a sentence; undefined when it may. */
  readonly blocked: () => OperatorError | undefined;
  /** The group is closed: nothing of it may be touched. */
  readonly gone: () => boolean;
  /**
   * Of a volatile journal: the position of the newest checkpoint. What lies above is made durable only when the
   * exporting node has said that it has it.
   */
  readonly committed?: () => Position | undefined;
}

type State =
  | { readonly kind: 'preface' }
  | { readonly kind: 'stream'; readonly preface: Preface }
  | { readonly kind: 'ended' }
  | { readonly kind: 'failed'; readonly error: Error };

export interface ImportReport {
  /** Everything below is durable in this node's journal, and executed: what may be acknowledged. */
  readonly durable: EpochPosition;
  /** Everything below was received, and executed. */
  readonly receivedLsn: number;
  readonly appliedLsn: number;
  /** The exporting node; undefined before its preface. */
  readonly from: string | undefined;
  /** The input ended where a stream did. */
  readonly whole: boolean;
  /** No room in the journal: nothing is taken now. */
  readonly full: boolean;
}

/** Called once, now or later: undefined when all was taken, or why not. */
export type Pushed = (error: Error | undefined) => void;

const RETRY_US = 10_000;
const NEEDS_REBUILD = 'this node has to be built anew from the exporting one (README, "Rebuild a secondary")';

export class Importer {
  private state: State = { kind: 'preface' };
  /** Where the next batch of the stream continues. */
  private at: Position = ORIGIN;
  private readonly reader = new StreamReader();
  private readonly out = new Uint32Array(2);
  private readonly epochBytes = new Uint8Array(16);
  private answer: Pushed | undefined;
  private from: string | undefined;
  private full = false;
  private retry: TimerId | undefined;
  private syncTimer: TimerId | undefined;
  /** Durable, and what the sync under way will make durable. */
  private durable: EpochPosition;
  private syncing: EpochPosition | undefined;
  private readonly removers: (() => void)[] = [];
  private readonly movedHooks = new Set<() => void>();
  private closed = false;

  constructor(private readonly reactor: Reactor, private readonly group: ReplicatedGroup, private readonly options: ImporterOptions) {
    this.durable = epochPosition(group.epochs, options.committed?.() ?? this.at);
    this.removers.push(group.onRoom(() => this.resume()), group.onDurable(() => this.durableMoved()));
    this.wantSync();
  }

  get report(): ImportReport {
    const { group, durable, from, full } = this;
    const whole = this.state.kind === 'ended' && this.reader.heldBytes === 0;
    return { durable, receivedLsn: group.position.lsn, appliedLsn: group.appliedLsn, from, whole, full };
  }

  /** Takes `bytes` in, which is copied; one call at a time. A refusal is final, and what came before it stays. */
  push(bytes: Uint8Array, answer: Pushed): void {
    if (this.state.kind === 'failed') {
      answer(this.state.error);
      return;
    }
    this.reader.push(bytes);
    this.answer = answer;
    this.run();
  }

  /** Answers when everything taken and executed is durable, or can never be; or cannot before more of the stream has come. */
  finish(done: () => void): void {
    const poll = (): void => {
      const { group } = this;
      const blind = this.options.committed?.() !== undefined && group.stableLsn < group.appliedLsn;
      if (!this.idle && !blind && group.groupId !== undefined && group.role !== 'stopped' && this.durable.lsn < group.appliedLsn) {
        this.sync();
        this.reactor.after(RETRY_US, poll);
        return;
      }
      done();
    };
    poll();
  }

  /** `hook` runs when `report.durable` has moved, and when the importer is closed. Returns what removes it. */
  onMoved(hook: () => void): () => void {
    this.movedHooks.add(hook);
    return () => void this.movedHooks.delete(hook);
  }

  /** Everything below `position` is durable and executed. */
  private reached(position: EpochPosition): void {
    this.durable = position;
    this.moved();
  }

  private moved(): void {
    for (const hook of this.movedHooks) hook();
  }

  private get idle(): boolean {
    return this.closed || this.options.gone();
  }

  private resume(): void {
    if (this.full) this.run();
  }

  private run(): void {
    if (this.answer === undefined || this.idle) return;
    try {
      for (let frame = this.reader.peek(); frame !== undefined; frame = this.reader.peek()) {
        const problem = this.refusal();
        if (problem !== undefined) throw problem;
        if (!this.frame(frame)) return;
        this.reader.take(frame);
      }
    } catch (error) {
      if (!(error instanceof PeerError) && !(error instanceof OperatorError) && !(error instanceof IoError)) throw error;
      this.state = { kind: 'failed', error };
    }
    const { answer, state } = this;
    this.answer = undefined;
    answer(state.kind === 'failed' ? state.error : undefined);
  }

  /** Why this node takes nothing in now; undefined when it does. */
  refusal(): OperatorError | undefined {
    const { group } = this;
    if (group.role !== 'secondary') {
      const hint = group.role === 'primary' ? `; to make this node follow the exporting one: ${NEEDS_REBUILD}` : `: ${group.roleReason}`;
      return new OperatorError('role/not-secondary', `group ${group.name} is ${group.role} on this node, and only a secondary imports${hint}`);
    }
    if (group.applyProblem !== undefined && this.state.kind !== 'stream') {
      return new OperatorError('import/kept', `group ${group.name} has stopped applying at LSN ${group.appliedLsn} and imports nothing more: ${group.applyProblem}`);
    }
    return this.options.blocked();
  }

  /** False: not now; the frame has to be offered again. */
  private frame(frame: StreamFrame): boolean {
    if (frame.type === StreamType.preface) {
      if (this.state.kind === 'stream') throw new PeerError('stream/garbage', 'a second preface within the stream');
      this.begin(decodePreface(frame.body));
      return true;
    }
    if (this.state.kind !== 'stream') throw new PeerError('stream/garbage', 'the stream does not begin with its preface');
    switch (frame.type) {
      case StreamType.batch:
        return this.batch(this.state.preface, frame);
      case StreamType.heartbeat:
        return true;
      case StreamType.end:
        this.ended(this.state.preface);
        return true;
    }
  }

  // ---- where a stream begins and ends -------------------------------------------------------------------

  private begin(preface: Preface): void {
    const { group } = this;
    const { start } = preface;
    const own = group.position;
    if (group.groupId === undefined) {
      if (preface.group !== group.name) throw new OperatorError('import/other-group', `the stream is of group ${preface.group}, not of ${group.name}`);
      if (start.lsn !== 0) {
        throw new OperatorError('import/gap',
          `this node has nothing of group ${group.name}, and the stream begins at LSN ${start.lsn}; such a node can only begin at LSN 0, which the exporting node ${preface.node} has to retain still`);
      }
    } else {
      if (preface.groupId !== group.groupId) {
        throw new OperatorError('import/other-group', `the stream is of another group (${preface.group}, id ${preface.groupId}) than group ${group.name} of this node (id ${group.groupId})`);
      }
      if (start.lsn > own.lsn) {
        throw new OperatorError('import/gap',
          `the stream begins at LSN ${start.lsn}, and this node ends at LSN ${own.lsn}: what lies between is missing. Export it with a cursor that begins where this node ends (lockstep journal position ${group.name} prints it)`);
      }
      this.compare(preface);
    }
    this.at = { lsn: start.lsn, chainHi: start.chainHi, chainLo: start.chainLo };
    if (this.at.lsn === own.lsn) this.meet();
    const last = group.epochs[group.epochs.length - 1];
    if (last !== undefined) putHex(this.epochBytes, 0, last.id);
    this.from = preface.node;
    this.state = { kind: 'stream', preface };
  }

  /** The epochs below the stream's start have to be this node's own. */
  private compare(preface: Preface): void {
    const { group } = this;
    const { epochs, start } = preface;
    // A very long history is told without its beginning.
    const from = epochs.length === MAX_EPOCHS_SENT ? epochs[0].start.lsn : 0;
    const mine = group.epochs.filter((epoch) => epoch.start.lsn >= from && epoch.start.lsn < start.lsn);
    for (let i = 0; i < Math.max(mine.length, epochs.length); i++) {
      if (mine[i]?.id === epochs[i]?.id && samePosition(mine[i].start, epochs[i].start)) continue;
      throw this.parted(mine[i]?.start.lsn ?? epochs[i].start.lsn);
    }
  }

  private parted(lsn: number): OperatorError {
    const { group } = this;
    return new OperatorError('import/other-history', `below LSN ${lsn} the stream holds other records of group ${group.name} than this node: their histories have parted, and ${NEEDS_REBUILD}`);
  }

  /** The stream has come to where this node's journal ends: equal positions, equal logs, and the exporting node has it durable. */
  private meet(): void {
    if (!samePosition(this.at, this.group.position)) throw this.parted(this.at.lsn);
    this.group.setPrimaryDurable(this.at.lsn);
  }

  private ended(preface: Preface): void {
    const own = this.group.position;
    if (this.at.lsn < own.lsn) {
      throw new OperatorError('import/behind', `the stream ends at LSN ${this.at.lsn}, and this node has group ${this.group.name} up to LSN ${own.lsn}: node ${preface.node} has less than this one, or it is an old stream; nothing was appended`);
    }
    this.state = { kind: 'ended' };
  }

  // ---- batches --------------------------------------------------------------------------------------------

  private batch(preface: Preface, frame: StreamFrame): boolean {
    const { arena } = this.reactor;
    const at = arena.alloc(frame.body.length);
    if (at < 0) {
      // Requests need the arena more; they finish, and this waits.
      this.retry ??= this.reactor.after(RETRY_US, () => {
        this.retry = undefined;
        this.run();
      });
      return false;
    }
    try {
      arena.u8.set(frame.body, at);
      return this.take(preface, at, frame.body.length, frame.durableLsn);
    } finally {
      arena.release(at);
    }
  }

  private take(preface: Preface, at: number, bytes: number, durableLsn: number): boolean {
    const { reactor, group } = this;
    const { view } = reactor.arena;
    const own = group.position;
    const here = this.at;
    if (here.lsn > own.lsn) throw new OperatorError('import/behind', `this node was taken back to LSN ${own.lsn} while the stream was at LSN ${here.lsn}; start the export again`);
    const bad = (problem: string): PeerError => new PeerError('stream/bad-batch', `at LSN ${here.lsn}: ${problem}`);
    const wrong = verifyHeader(reactor, at, bytes, here);
    if (wrong !== undefined) throw bad(wrong);
    const used = usedHeaderBytes(batch.count(view, at));
    const payload = wirePayloadBytes(reactor, at);
    if (used + payload !== bytes) throw bad(`a batch of ${used + payload} bytes in a frame of ${bytes}`);
    const broken = verifyPayloads(reactor, at, at + used, false);
    if (broken !== undefined) throw bad(broken);
    const next = positionAfter(reactor, at, here, this.out);
    if (durableLsn < next.lsn) throw bad(`the exporting node has it durable only up to LSN ${durableLsn}`);
    if (here.lsn < own.lsn) {
      if (next.lsn > own.lsn) throw this.parted(own.lsn);
      this.at = next;
      if (next.lsn === own.lsn) this.meet();
      return true;
    }
    this.meet();
    this.checkEpoch(at, here.lsn);
    if (group.groupId === undefined) group.adoptGroupId(preface.groupId);
    const total = batch.totalBytes(view, at);
    if (total > group.journal.pool.capacity) {
      throw new OperatorError('link/segment-too-small', `a batch of ${total} bytes does not fit the journal's segments here (${group.journal.pool.segmentBytes} bytes): set segmentSize as on node ${preface.node}`);
    }
    // Meeting has said so far how much is final, also when the journal is full: room comes from destaging what is here.
    const result = group.receive(at, at + used);
    this.full = result.kind === 'full';
    if (this.full) return false;
    if (result.kind === 'failed') throw new OperatorError('group/stopped', `group ${group.name} takes nothing in: ${result.reason}`);
    group.setPrimaryDurable(next.lsn);
    this.at = next;
    this.epochBytes.set(reactor.arena.u8.subarray(at + 48, at + 64));
    this.wantSync();
    if (result.kind === 'kept') {
      throw new OperatorError('import/kept', `group ${group.name} cannot execute the record at LSN ${here.lsn}, so it has stopped applying and imports nothing more: ${result.reason}`);
    }
    return true;
  }

  /** A batch of another epoch than the last one begins it: by a marker, with a higher number. */
  private checkEpoch(at: number, lsn: number): void {
    const { u8, view } = this.reactor.arena;
    const number = batch.epochNumber(view, at);
    const last = this.group.epochs[this.group.epochs.length - 1];
    let same = last !== undefined && number === last.number;
    for (let i = 0; i < 16 && same; i++) same = u8[at + 48 + i] === this.epochBytes[i];
    if (same) return;
    if (entry.kind(view, entry.at(at, 0)) === RecordKind.marker && number > (last?.number ?? -1)) return;
    throw new PeerError('stream/foreign-epoch', `at LSN ${lsn}: a batch of epoch ${number} (${batch.epochId(u8, at)}), which does not belong there`);
  }

  // ---- durable --------------------------------------------------------------------------------------------

  private wantSync(): void {
    this.syncTimer ??= this.reactor.after(this.options.syncUs, () => {
      this.syncTimer = undefined;
      this.sync();
    });
  }

  private sync(): void {
    const { group } = this;
    if (this.idle || group.groupId === undefined) return;
    // Not the journal's end: a record that this node cannot execute has arrived, but nobody may give it up for that.
    const end = group.appliedPosition;
    // Behind the position only after a rewind: then that sync says nothing any more.
    if (this.syncing !== undefined && this.syncing.lsn <= end.lsn) return;
    const target = epochPosition(group.epochs, end);
    if (group.journal.durableLsn >= target.lsn) {
      this.reached(target);
      return;
    }
    this.syncing = target;
    group.journal.sync(target.lsn);
  }

  private durableMoved(): void {
    const { syncing, group } = this;
    const committed = this.options.committed?.();
    if (committed !== undefined && committed.lsn > this.durable.lsn) this.reached(epochPosition(group.epochs, committed));
    if (syncing === undefined || group.journal.durableLsn < syncing.lsn) return;
    this.syncing = undefined;
    this.reached(syncing);
    if (group.appliedLsn > syncing.lsn) this.wantSync();
  }

  /** Takes nothing more; a push under way is answered with `why`. Idempotent. */
  close(why: Error): void {
    this.closed = true;
    for (const remove of this.removers.splice(0)) remove();
    for (const timer of [this.retry, this.syncTimer]) if (timer !== undefined) this.reactor.cancel(timer);
    this.retry = this.syncTimer = undefined;
    const { answer } = this;
    this.answer = undefined;
    answer?.(why);
    this.moved();
  }
}
