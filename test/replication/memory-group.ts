/**
 * A group for tests of links: the real journal, and instead of an applier a
 * list of the batches that were appended, byte for byte as on the wire.
 */
import { pack, unpack } from 'msgpackr';
import { assert } from '../../src/base/assert.js';
import { toHex } from '../../src/base/words.js';
import type { GroupRole, ReceiveResult, ReplicatedGroup } from '../../src/group/replica.js';
import type { EpochEntry } from '../../src/group/tree/epochs.js';
import { mkdirs } from '../../src/io/file.js';
import type { Reactor } from '../../src/io/reactor.js';
import { batch, entry, payloadLength, RecordKind, usedHeaderBytes } from '../../src/journal/format.js';
import { Journal } from '../../src/journal/journal.js';
import type { JournalOptions } from '../../src/journal/journal.js';
import type { Position } from '../../src/journal/position.js';
import { wirePayloadBytes } from '../../src/journal/verify.js';

export const ZERO: Position = { lsn: 0, chainHi: 0, chainLo: 0 };
const NO_EPOCH = { number: 0, id: '0'.repeat(32) };

/** One appended batch: used header and entries, then the payloads without padding. */
export interface Kept {
  readonly lsn: number;
  readonly end: number;
  readonly bytes: Uint8Array;
}

export interface MemoryGroupOptions {
  readonly name?: string;
  readonly directory: string;
  readonly node: string;
  readonly segmentBytes?: number;
  readonly maxSegments?: number;
  readonly payloadBytes?: number;
}

export class MemoryGroup implements ReplicatedGroup {
  readonly name: string;
  groupId: string | undefined;
  role: GroupRole = 'secondary';
  roleReason = 'says the test';
  epochs: EpochEntry[] = [];
  batches: Kept[] = [];
  /** What links did to this group. */
  readonly fencedBy: { newer: EpochEntry; peer: string }[] = [];
  readonly asked: { peer: string; outcome: string }[] = [];
  readonly cursors = new Map<string, number>();
  /** Bytes that markers put on links, by peer and LSN. */
  readonly wired = new Map<string, number>();
  readonly meter = { markerOnWire: (peer: string, lsn: number, bytes: number): void => void this.wired.set(`${peer} ${lsn}`, (this.wired.get(`${peer} ${lsn}`) ?? 0) + bytes) };
  rewinds = 0;
  primaryDurable = 0;
  applyProblem: string | undefined;
  /** What it answers to a primary that asks. */
  lacks: string | undefined;
  /** A stable LSN that the test dictates. */
  stableAtLeast = 0;
  /** Answers `receive` instead of the group, if it returns something. */
  answer: ((lsn: number) => ReceiveResult | undefined) | undefined;
  /** Peers to be asked before a recovering primary begins its epoch. */
  askAll: string[] | undefined;
  private opened: Journal | undefined;
  private generation = 0;
  private readonly appendedHooks = new Set<() => void>();
  private readonly durableHooks = new Set<() => void>();
  private readonly roomHooks = new Set<() => void>();
  private changing = false;
  private lastApplied: Position = ZERO;

  constructor(private readonly reactor: Reactor, private readonly options: MemoryGroupOptions) {
    this.name = options.name ?? 'g';
    mkdirs(reactor.io, options.directory);
  }

  get journal(): Journal {
    assert(this.opened !== undefined, 'the journal of a group that has none');
    return this.opened;
  }

  get position(): Position {
    return this.opened?.position ?? ZERO;
  }

  get appliedPosition(): Position {
    return this.lastApplied;
  }

  get appliedLsn(): number {
    return this.lastApplied.lsn;
  }

  get stableLsn(): number {
    const own = this.opened?.durableLsn ?? 0;
    return Math.max(this.stableAtLeast, this.role === 'secondary' ? Math.min(own, this.primaryDurable) : own);
  }

  private open(groupId: string): Journal {
    this.groupId = groupId;
    const directory = `${this.options.directory}/journal-${++this.generation}`;
    mkdirs(this.reactor.io, directory);
    const payload = this.options.payloadBytes ?? 256 * 1024;
    const options: JournalOptions = {
      directory, groupId, segmentBytes: this.options.segmentBytes ?? 1024 * 1024, maxSegments: this.options.maxSegments ?? 64,
      syncBytes: 1 << 30, syncUs: 1 << 30, maxBatchPayload: payload,
    };
    const journal = new Journal(this.reactor, options);
    journal.create(ZERO, NO_EPOCH);
    journal.onDurable = () => this.durableHooks.forEach((hook) => hook());
    this.opened = journal;
    return journal;
  }

  // ---- a primary ------------------------------------------------------------------------------------

  /** A new group with its first epoch. */
  found(id = toHex(this.reactor.io.randomBytes(16))): this {
    this.open(id);
    this.role = 'primary';
    this.beginEpoch();
    return this;
  }

  beginEpoch(lossless = false): EpochEntry {
    const number = (this.epochs[this.epochs.length - 1]?.number ?? 0) + 1;
    const epoch: EpochEntry = {
      number, id: toHex(this.reactor.io.randomBytes(16)), start: this.position, node: this.options.node, lossless, wallMs: this.reactor.io.wallMs(),
    };
    this.journal.setEpoch(epoch);
    this.prepare();
    this.journal.addMarker(pack({ epoch }));
    this.epochs.push(epoch);
    this.flush();
    this.journal.syncNow();
    this.durableHooks.forEach((hook) => hook());
    return epoch;
  }

  promote(): EpochEntry {
    this.role = 'primary';
    return this.beginEpoch();
  }

  private prepare(): void {
    while (this.journal.pool.freeCount < 2) this.journal.pool.createNow();
  }

  private flush(): void {
    assert(this.journal.flush() === 0, 'the append failed');
    this.keep();
    this.appendedHooks.forEach((hook) => hook());
  }

  /** Appends one batch of `records` writes or zeroes, with content from `random` (values in [0, 1)). */
  append(records: number, random: () => number, maxBlocks = 3): void {
    const { arena } = this.reactor;
    const { journal } = this;
    this.prepare();
    const buffers: number[] = [];
    for (let i = 0; i < records; i++) {
      const length = 4096 * (1 + Math.floor(random() * maxBlocks));
      const offset = 4096 * Math.floor(random() * 1000);
      if (!journal.fits(length)) break;
      if (random() < 0.2) {
        journal.addZero(1, offset, length * 7);
        continue;
      }
      const buffer = arena.alloc(length);
      assert(buffer >= 0, 'no arena room for a test write');
      buffers.push(buffer);
      const words = new Uint32Array(arena.u8.buffer, buffer, length / 4);
      const first = Math.floor(random() * 2 ** 32);
      for (let w = 0; w < words.length; w++) words[w] = first + w * 2654435761;
      journal.addData(1, offset, length, buffer);
    }
    this.flush();
    buffers.forEach((buffer) => arena.release(buffer));
  }

  appendMarker(bytes: number): void {
    this.prepare();
    this.journal.addMarker(pack({ filler: 'x'.repeat(bytes) }));
    this.flush();
  }

  /** Keeps a copy of the batch that was just appended, from the journal itself. */
  private keep(): void {
    const { arena, io } = this.reactor;
    const { journal } = this;
    const lsn = journal.batchLsn;
    const total = journal.appendedLsn - lsn;
    const segment = journal.pool.find(lsn)!;
    const at = arena.alloc(total);
    assert(at >= 0 && io.pread(segment.fd, at, total, journal.pool.filePosition(segment, lsn)) === total, 'the batch cannot be read back');
    const used = usedHeaderBytes(batch.count(arena.view, at));
    const payload = wirePayloadBytes(this.reactor, at);
    const bytes = new Uint8Array(used + payload);
    bytes.set(arena.u8.subarray(at, at + used));
    const from = at + batch.headerBytes(arena.view, at);
    bytes.set(arena.u8.subarray(from, from + payload), used);
    arena.release(at);
    this.batches.push({ lsn, end: lsn + total, bytes });
    this.lastApplied = journal.position;
  }

  /** Gives journal segments below every cursor, and below `lsn`, back. */
  recycle(lsn: number): void {
    this.journal.syncNow();
    this.journal.pool.releaseBelow(Math.min(lsn, ...this.cursors.values()));
  }

  // ---- ReplicatedGroup ------------------------------------------------------------------------------

  adoptLack(): string | undefined {
    return this.lacks;
  }

  adoptGroupId(groupId: string): void {
    assert(this.opened === undefined, 'a group takes an identity once');
    this.open(groupId);
  }

  receive(at: number, payloadAt: number): ReceiveResult {
    if (this.changing) return { kind: 'full' };
    const answer = this.answer?.(this.position.lsn);
    if (answer !== undefined && answer.kind !== 'kept') return answer;
    if (this.journal.pool.freeCount < 2 && this.journal.pool.fileCount >= this.journal.pool.maxSegments) return { kind: 'full' };
    this.prepare();
    const { view, u8 } = this.reactor.arena;
    const lsn = this.position.lsn;
    const before = this.position;
    const applied = this.lastApplied;
    assert(this.journal.receive(at, payloadAt) === 0, 'the append failed');
    this.keep();
    this.applyProblem = answer?.reason;
    if (answer !== undefined) {
      this.lastApplied = applied;
      return answer;
    }
    const e = entry.at(at, 0);
    if (entry.kind(view, e) === RecordKind.marker) this.learn(u8.slice(payloadAt, payloadAt + payloadLength(view, e)), before);
    assert(this.journal.appendedLsn > lsn, 'nothing was appended');
    return { kind: 'applied' };
  }

  private learn(body: Uint8Array, before: Position): void {
    const { epoch } = unpack(body) as { epoch?: EpochEntry };
    if (epoch !== undefined) this.epochs.push({ ...epoch, start: before });
  }

  setPrimaryDurable(lsn: number): void {
    this.primaryDurable = Math.max(this.primaryDurable, lsn);
  }

  rewind(to: Position, done: (refusal: string | undefined) => void): void {
    this.changing = true;
    this.rewinds++;
    this.reactor.after(1000, () => {
      this.cutTo(to.lsn);
      this.changing = false;
      done(undefined);
      this.roomHooks.forEach((hook) => hook());
    });
  }

  /** Makes the journal anew with what lies below `lsn`: a rewind, or what a power loss left. */
  cutTo(lsn: number): void {
    const { arena } = this.reactor;
    const kept = this.batches.filter((one) => one.end <= lsn);
    const old = this.journal;
    this.opened = undefined;
    old.onDurable = () => undefined;
    const wait = (): void => {
      if (old.commit.inFlight) this.reactor.after(1000, wait);
      else old.close();
    };
    wait();
    this.batches = [];
    this.epochs = this.epochs.filter((epoch) => epoch.start.lsn < lsn);
    const journal = this.open(this.groupId!);
    for (const one of kept) {
      const at = arena.alloc(one.bytes.length);
      arena.u8.set(one.bytes, at);
      this.prepare();
      assert(journal.receive(at, at + usedHeaderBytes(batch.count(arena.view, at))) === 0, 'the append failed');
      arena.release(at);
      this.keep();
    }
    const last = this.epochs[this.epochs.length - 1];
    if (last !== undefined) journal.setEpoch(last);
    journal.syncNow();
    this.primaryDurable = Math.min(this.primaryDurable, lsn);
  }

  onRoom(hook: () => void): () => void {
    this.roomHooks.add(hook);
    return () => void this.roomHooks.delete(hook);
  }

  makeRoom(): void {
    this.answer = undefined;
    this.roomHooks.forEach((hook) => hook());
  }

  setCursor(peer: string, lsn: number | undefined): void {
    if (lsn === undefined) this.cursors.delete(peer);
    else this.cursors.set(peer, lsn);
  }

  onAppended(hook: () => void): () => void {
    this.appendedHooks.add(hook);
    return () => void this.appendedHooks.delete(hook);
  }

  onDurable(hook: () => void): () => void {
    this.durableHooks.add(hook);
    return () => void this.durableHooks.delete(hook);
  }

  fence(newer: EpochEntry, peer: string): void {
    this.fencedBy.push({ newer, peer });
    this.role = 'fenced';
    this.roleReason = `${peer} has epoch ${newer.number}`;
  }

  peerAsked(peer: string, outcome: 'fetched' | 'unreachable' | 'refused'): void {
    this.asked.push({ peer, outcome });
    if (this.role !== 'recovering' || outcome === 'unreachable') return;
    const wanted = this.askAll ?? [peer];
    if (!wanted.every((name) => this.asked.some((one) => one.peer === name && one.outcome !== 'unreachable'))) return;
    this.role = 'primary';
    this.beginEpoch();
  }

  close(): void {
    this.opened?.close();
    this.opened = undefined;
  }
}

/** Undefined when `b` holds, from the first batch that both have on, exactly what `a` holds; else where they differ. */
export function difference(a: MemoryGroup, b: MemoryGroup): string | undefined {
  if (a.batches.length !== b.batches.length) return `${a.batches.length} and ${b.batches.length} batches`;
  for (let i = 0; i < a.batches.length; i++) {
    const [x, y] = [a.batches[i], b.batches[i]];
    if (x.lsn !== y.lsn || Buffer.compare(x.bytes, y.bytes) !== 0) return `batch ${i} at LSN ${x.lsn} and ${y.lsn}`;
  }
  const [p, q] = [a.position, b.position];
  return p.lsn === q.lsn && p.chainHi === q.chainHi && p.chainLo === q.chainLo ? undefined : `positions ${p.lsn} and ${q.lsn}`;
}
