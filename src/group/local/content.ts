/**
 * What exists on this node only of a group's content: local devices and their
 * journal, merged into the group's history (DESIGN §1).
 *
 * Owns: what a local record does, and at which place of the group's history
 * recovery does it again. Must not know: requests, clients, roles.
 *
 * A record that takes content of a group's device names the group position that
 * it follows: it stands behind all group records below it. Recovery replays both
 * journals from one cut: before a batch of the group at LSN p it executes the
 * local records that follow p. One whose position is not in the history that was
 * recovered, because power loss or a rewind took it, is dropped and reported; it
 * was never used, for a device is ready only once the position is stable.
 */

import { assert } from '../../base/assert.js';
import { CorruptionError } from '../../base/errors.js';
import { BLOCK_BYTES, isLocalDevice, LOCAL_STAMPS } from '../../base/units.js';
import type { Reactor } from '../../io/reactor.js';
import type { Position } from '../../journal/position.js';
import type { Store } from '../../store/store.js';
import { Adoption } from './adoption.js';
import { LOCAL_JOURNAL_ARENA_BYTES, LocalJournal } from './journal.js';
import type { LocalEntry, LocalJournalOptions } from './journal.js';
import { EXTENT_COLUMNS } from './record.js';
import type { Follows, LocalRecord } from './record.js';
import { checkLocalState, LocalTree } from './tree.js';
import type { LocalState } from './tree.js';
import type { EpochEntry } from '../tree/epochs.js';

/** Arena bytes that this part of an open group holds. */
export const LOCAL_ARENA_BYTES = LOCAL_JOURNAL_ARENA_BYTES + 2 * BLOCK_BYTES;

/** Where a record belongs, seen from a place of the group's history. */
type Turn = 'now' | 'later' | 'never';

export class LocalContent {
  readonly log: LocalJournal;
  readonly tree = new LocalTree();
  /** What this start had to drop, in sentences. */
  readonly dropped: string[] = [];
  /** Two blocks for the edges of one request, so that it needs no other memory. */
  readonly spareBlocks: readonly [number, number];
  private queue: LocalEntry[] = [];
  private head = 0;
  readonly adoption: Adoption;
  /** Requests being written through. */
  writesInFlight = 0;
  private released = false;

  /** `position`: where the group stands, all below being executed. */
  constructor(private readonly reactor: Reactor, private readonly store: Store, private readonly options: LocalJournalOptions, readonly position: () => Follows) {
    this.log = new LocalJournal(reactor, store.layers, options);
    this.adoption = new Adoption(store, this);
    this.spareBlocks = [reactor.arena.alloc(BLOCK_BYTES), reactor.arena.alloc(BLOCK_BYTES)];
    assert(this.spareBlocks[1] >= 0, 'no arena room for local devices');
  }

  get jobsInFlight(): boolean {
    return this.writesInFlight > 0 || this.log.jobsInFlight;
  }

  // ---- recovery ----------------------------------------------------------------------------------

  /** Takes the checkpoint's part over and reads the local journal behind it; `advance` executes it. Blocking; throws CorruptionError, IoError. */
  open(saved: { readonly at: Position; readonly state: unknown } | undefined, suspect: boolean): void {
    let state: LocalState | undefined;
    if (saved !== undefined) {
      const checked = checkLocalState(saved.state);
      if (typeof checked === 'string') throw new CorruptionError(`${this.options.directory}/checkpoint-*`, 0, `unexpected content of the local part (${checked})`);
      state = checked;
      this.tree.nextId = state.nextId;
      // A checkpoint commits only what cannot be undone.
      for (const device of state.devices) this.tree.put({ ...device, ready: true });
    }
    this.adoption.replaying();
    this.queue = this.log.recover(saved === undefined || state === undefined ? undefined : { at: saved.at, bootId: state.bootId }, suspect);
    this.head = 0;
    // Ids of what does not count are not used again either.
    for (const { record } of this.queue) if (record.op === 'snapshot') this.tree.sawId(record.id);
  }

  /** The group's replay stands at `lsn`, all below is executed: executes the local records whose turn it is. */
  advance(lsn: number, epochs: readonly EpochEntry[]): void {
    for (; this.head < this.queue.length; this.head++) {
      const next = this.queue[this.head];
      const turn = turnOf(next.record, lsn, epochs);
      if (turn === 'later') return;
      if (turn === 'now') this.execute(next.record, next.lsn);
      else this.drop(next);
    }
  }

  /** The group's replay has ended at `lsn`. Throws IoError. */
  ended(lsn: number, epochs: readonly EpochEntry[]): void {
    this.advance(lsn, epochs);
    while (this.head < this.queue.length) {
      this.drop(this.queue[this.head++]);
      this.advance(lsn, epochs);
    }
    this.queue = [];
    this.head = 0;
    this.adoption.replayed(lsn, epochs);
    // So that a crash right after this start finds the same records to count.
    if (this.log.exists) this.log.settle(this.log.changedLsn);
    // Nobody listens yet.
    if (this.log.failure !== undefined) throw this.log.failure;
  }

  /** Notes that a record does not count: by the next start the group's history has gone on, and what follows it must not wait for it. */
  private drop({ lsn, record }: LocalEntry): void {
    this.log.append({ op: 'dropped', from: lsn, to: lsn + 1 });
    if (record.op === 'snapshot') {
      this.dropped.push(`the local snapshot ${record.name} was dropped: the state of the group that it was taken of (LSN ${record.follows?.lsn ?? 0}) is not in its history any more; it had not been reported as made`);
    } else if (record.op === 'assign') {
      const name = this.tree.get(record.target)?.name ?? `#${record.target}`;
      this.dropped.push(`${name} keeps its former content: the state of the group that it was to be taken of (LSN ${record.follows?.lsn ?? 0}) is not in its history any more`);
    }
  }

  // ---- what records do ---------------------------------------------------------------------------

  /** Appends the record and executes it. Throws IoError; then the local journal has failed. Returns its LSN. */
  perform(record: LocalRecord): number {
    const lsn = this.log.append(record);
    this.execute(record, lsn);
    return lsn;
  }

  /** Executes the record that stands at `lsn`. What speaks of devices that were dropped does nothing. */
  private execute(record: LocalRecord, lsn: number): void {
    const { store, tree } = this;
    const stamp = LOCAL_STAMPS + lsn;
    switch (record.op) {
      case 'snapshot': {
        tree.sawId(record.id);
        const source = store.find(record.source);
        if (source === undefined) return;
        const { id, name, volume, wallMs, follows } = record;
        store.create(id, source.sizeBytes, stamp);
        store.assign(id, source.id, stamp, frozenAt(source.id, stamp, follows));
        tree.put({
          id, name, volume, source: source.id, sizeBytes: source.sizeBytes, createdLsn: lsn, changedLsn: lsn, createdMs: wallMs,
          followsLsn: follows?.lsn ?? 0, ready: follows === null, sealedLsn: 0, digest: '',
        });
        return;
      }
      case 'assign': {
        const target = tree.get(record.target);
        const source = store.find(record.source);
        if (target === undefined || source === undefined) return;
        store.assign(target.id, source.id, stamp, frozenAt(source.id, stamp, record.follows));
        tree.put({ ...target, sizeBytes: source.sizeBytes, changedLsn: lsn, followsLsn: record.follows?.lsn ?? 0, ready: record.follows === null });
        return;
      }
      case 'remove':
        if (tree.get(record.device) === undefined) return;
        store.remove(record.device, stamp);
        tree.drop(record.device);
        return;
      case 'ready': {
        const device = tree.get(record.device);
        if (device !== undefined) tree.put({ ...device, ready: true });
        return;
      }
      case 'seal': {
        const device = tree.get(record.device);
        if (device !== undefined) tree.put({ ...device, sealedLsn: lsn, digest: record.digest });
        return;
      }
      case 'unseal': {
        const device = tree.get(record.device);
        if (device !== undefined) tree.put({ ...device, sealedLsn: 0, digest: '' });
        return;
      }
      case 'adopted':
        this.adoption.recorded(record.device);
        return;
      case 'write':
        for (let i = 0; i < record.extents.length; i += EXTENT_COLUMNS) this.extent(record.extents, i, stamp);
        return;
      case 'barrier':
      case 'dropped':
      case 'opened':
        return;
    }
  }

  private extent(extents: readonly number[], i: number, stamp: number): void {
    const device = this.store.find(extents[i]);
    const [first, count] = [extents[i + 1], extents[i + 2]];
    if (device === undefined || !isLocalDevice(device.id)) return;
    if (count === 0 || (first + count) * BLOCK_BYTES > device.sizeBytes) {
      throw new CorruptionError(`${this.options.directory}/local`, 0, `a record writes ${count} blocks at block ${first} of local device ${device.id}, beyond its end`);
    }
    if (extents[i + 3] === 1) {
      this.store.zero(device.id, first * BLOCK_BYTES, count * BLOCK_BYTES, stamp);
      return;
    }
    const layer = this.store.layerFor(device, this.options.groupId);
    this.store.wroteThrough(device, first, count, stamp);
    this.log.touched(layer);
  }

  // ---- checkpoints -------------------------------------------------------------------------------

  /** This instant, for a checkpoint; undefined as long as there never was a local device. */
  capture(): { at: Position; state: LocalState } | undefined {
    if (!this.log.exists) return undefined;
    return { at: this.log.position, state: { bootId: this.options.bootId, nextId: this.tree.nextId, devices: [...this.tree.all()] } };
  }

  stop(): void {
    this.log.stop();
  }

  /** Gives files and memory back; only when no job is in flight. */
  close(): void {
    if (this.released) return;
    this.released = true;
    this.log.close();
    for (const buffer of this.spareBlocks) this.reactor.arena.release(buffer);
  }
}

/** Where the source is frozen: a device of the group at the group position that the record follows. */
function frozenAt(source: number, stamp: number, follows: Follows | null): number {
  return isLocalDevice(source) || follows === null ? stamp : follows.lsn;
}

/** Whether the record is to be executed when the group stands at `lsn`. */
function turnOf(record: LocalRecord, lsn: number, epochs: readonly EpochEntry[]): Turn {
  const follows = record.op === 'snapshot' || record.op === 'assign' || record.op === 'adopted' ? record.follows : null;
  if (follows === null) return 'now';
  const i = epochs.findIndex((epoch) => epoch.id === follows.epochId);
  if (i < 0) return 'later';
  // The next epoch's first record is where this one ends.
  const end = i + 1 < epochs.length ? epochs[i + 1].start.lsn : Infinity;
  if (follows.lsn > end || follows.lsn < lsn) return 'never';
  return follows.lsn === lsn ? 'now' : 'later';
}
