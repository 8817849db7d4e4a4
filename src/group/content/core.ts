/**
 * apply(record): the one function that gives records their meaning, with its
 * three drivers: the primary at ingest, recovery, and a secondary (DESIGN §1).
 *
 * Owns: tree, epoch history, and the store's maps as far as records change them.
 * Deterministic and free of I/O, clock and local conditions. Must not know:
 * clients, links, roles, preconditions.
 */

import { assert, unreachable } from '../../base/assert.js';
import { isLocalDevice } from '../../base/units.js';
import type { Arena } from '../../io/arena.js';
import { batch, batchStart, entry, RecordKind } from '../../journal/format.js';
import type { Store } from '../../store/store.js';
import { REMEDY, whatDiffers } from '../tree/differs.js';
import { decodeMarker, operationVerb } from '../tree/record.js';
import type { Marker, Operation } from '../tree/record.js';
import type { EpochEntry } from '../tree/epochs.js';
import { Tree } from '../tree/tree.js';
import type { Edit } from '../tree/tree.js';
import type { At, Effect } from '../tree/change.js';
import type { Device } from '../tree/device.js';

/** The group's part of a checkpoint slot. */
export interface CoreState {
  readonly devices: readonly Device[];
  readonly nextId: number;
  readonly epochs: readonly EpochEntry[];
}

/** Looks on while markers are executed; may share roots, and changes nothing. */
export interface CommitWatch {
  /** Just before the effects. */
  executing(edit: Edit): void;
  /** Just after; `was`: the tree before. */
  executed(operation: Operation, edit: Edit, at: At, was: Tree): void;
  /** In place of it, when an effect failed: the group stops, and what this start has executed is not used any more. */
  abandoned(): void;
}

/** This node's local snapshots, as far as a marker concerns them (adoption.ts). */
export interface LocalSnapshots {
  problem(effect: AdoptEffect): string | undefined;
  execute(effect: AdoptEffect, lsn: number): void;
}
type AdoptEffect = Extract<Effect, { kind: 'adopt' }>;

export class Core {
  tree = Tree.empty;
  epochs: readonly EpochEntry[] = [];
  watch: CommitWatch | undefined;
  /** Set once, before records are executed. */
  localSnapshots: LocalSnapshots | undefined;

  constructor(private readonly arena: Arena, readonly store: Store) {}

  /** The epoch that records belong to now; undefined before the first. */
  get epoch(): EpochEntry | undefined {
    return this.epochs[this.epochs.length - 1];
  }

  /**
   * Executes the batch whose header is at `at`, which stands at `lsn`; for a
   * marker, its body is at `payloadAt`. Returns undefined, or a sentence: then
   * nothing of it was executed and nothing behind it may be. Throws as `commit`.
   */
  apply(at: number, lsn: number, payloadAt: number): string | undefined {
    const { view, u8 } = this.arena;
    const first = entry.at(at, 0);
    if (entry.kind(view, first) === RecordKind.marker) {
      const marker = decodeMarker(u8.subarray(payloadAt, payloadAt + entry.length(view, first)));
      if (typeof marker === 'string') return `the marker at LSN ${entry.lsn(lsn, 0)} cannot be executed: ${marker}. ${REMEDY}`;
      return this.applyMarker(marker, at, lsn);
    }
    const { epoch } = this;
    if (epoch === undefined || batch.epochNumber(view, at) !== epoch.number) {
      return `the batch at LSN ${lsn} belongs to epoch ${batch.epochNumber(view, at)}, the history stands in epoch ${epoch?.number ?? 0}`;
    }
    const problem = this.checkRanges(at);
    if (problem !== undefined) return `the batch at LSN ${lsn} cannot be executed: ${problem}`;
    this.applyData(at, lsn, epoch.id);
    return undefined;
  }

  /** The part of `apply` that a batch of this node's own making needs. */
  applyData(at: number, lsn: number, epochId: string): void {
    const { view } = this.arena;
    const count = batch.count(view, at);
    const payloadLsn = lsn + batch.headerBytes(view, at);
    for (let i = 0; i < count; i++) {
      const e = entry.at(at, i);
      const device = entry.device(view, e);
      const offset = entry.offset(view, e);
      const length = entry.length(view, e);
      if (entry.kind(view, e) === RecordKind.data) {
        this.store.write(device, offset, length, payloadLsn + entry.payloadOffset(view, e), entry.lsn(lsn, i), epochId);
      } else {
        this.store.zero(device, offset, length, entry.lsn(lsn, i));
      }
    }
  }

  /** Recovery below the checkpoint: only finds the places of bytes that are not yet destaged. */
  repend(at: number, lsn: number): void {
    const { view } = this.arena;
    const count = batch.count(view, at);
    const payloadLsn = lsn + batch.headerBytes(view, at);
    for (let i = 0; i < count; i++) {
      const e = entry.at(at, i);
      if (entry.kind(view, e) !== RecordKind.data) continue;
      this.store.repend(entry.device(view, e), entry.offset(view, e), entry.length(view, e), payloadLsn + entry.payloadOffset(view, e), entry.lsn(lsn, i));
    }
  }

  /** Records come checked for shape (journal/format.ts); whether their devices exist and are large enough only the tree knows. */
  private checkRanges(at: number): string | undefined {
    const { view } = this.arena;
    const count = batch.count(view, at);
    for (let i = 0; i < count; i++) {
      const e = entry.at(at, i);
      const id = entry.device(view, e);
      // Local devices are in the store, too, and no record of the group may touch them.
      const device = isLocalDevice(id) ? undefined : this.store.find(id);
      if (device === undefined) return `record ${i} writes to device ${id}, which does not exist`;
      if (entry.offset(view, e) + entry.length(view, e) > device.sizeBytes) return `record ${i} writes beyond the end of device ${id}`;
    }
    return undefined;
  }

  private applyMarker(marker: Marker, at: number, lsn: number): string | undefined {
    const { view, u8 } = this.arena;
    const { operation } = marker;
    const verb = operationVerb(operation);
    const place = `the marker "${verb}" at LSN ${entry.lsn(lsn, 0)}`;
    const headerEpoch = { number: batch.epochNumber(view, at), id: batch.epochId(u8, at) };
    if (operation.op === 'epoch') {
      if (operation.number !== headerEpoch.number || operation.id !== headerEpoch.id) return `${place} names another epoch than its batch`;
      if (operation.number <= (this.epoch?.number ?? 0)) return `${place} begins epoch ${operation.number}, the history stands in epoch ${this.epoch?.number ?? 0}`;
    } else if (headerEpoch.id !== this.epoch?.id) {
      return `${place} belongs to epoch ${headerEpoch.number}, the history stands in epoch ${this.epoch?.number ?? 0}`;
    }
    const where: At = { lsn: entry.lsn(lsn, 0), epochId: headerEpoch.id, wallMs: marker.wallMs };
    const edit = this.tree.edit(operation, where);
    if (typeof edit === 'string') return `${place} cannot be executed: ${edit}. ${REMEDY}`;
    const digest = edit.tree.digest(headerEpoch.id);
    if (digest !== marker.digest) {
      return `${place} left the primary with tree digest ${marker.digest}, this node would get ${digest}: ${whatDiffers(marker.sums, this.tree, edit.tree)}. ${REMEDY}`;
    }
    // The one condition that is a node's own: then it stops, as with a tree that differs.
    for (const effect of edit.effects) {
      const problem = effect.kind === 'adopt' ? this.localSnapshots!.problem(effect) : undefined;
      if (problem !== undefined) return `${place} cannot be executed: ${problem}`;
    }
    if (operation.op === 'epoch') {
      this.pushEpoch({
        number: operation.number, id: operation.id, start: batchStart(view, at),
        node: operation.node, lossless: operation.lossless, wallMs: marker.wallMs,
      });
    }
    this.commit(operation, edit, where);
    return undefined;
  }

  pushEpoch(epoch: EpochEntry): void {
    assert(epoch.number > (this.epoch?.number ?? 0), 'epoch numbers grow');
    this.epochs = [...this.epochs, epoch];
  }

  /**
   * Takes an edit over: tree and content change together. Throws IoError (of the local journal, or a map node) and
   * CorruptionError: then a part of it was executed, the group must stop at once, and recovery executes it afresh.
   */
  commit(operation: Operation, edit: Edit, at: At): void {
    const was = this.tree;
    this.watch?.executing(edit);
    this.tree = edit.tree;
    try {
      for (const effect of edit.effects) {
        this.execute(effect, at.lsn);
      }
    } catch (error) {
      this.watch?.abandoned();
      throw error;
    }
    this.watch?.executed(operation, edit, at, was);
  }

  private execute(effect: Effect, lsn: number): void {
    const { store } = this;
    switch (effect.kind) {
      case 'create':
        store.create(effect.device, effect.sizeBytes, lsn);
        return;
      case 'assign':
        if (effect.ranges.length === 0) store.assign(effect.target, effect.source, lsn);
        else store.assignRanges(effect.target, effect.source, effect.ranges, lsn);
        return;
      case 'resize':
        store.resize(effect.device, effect.sizeBytes, lsn);
        return;
      case 'remove':
        store.remove(effect.device, lsn);
        return;
      case 'adopt':
        this.localSnapshots!.execute(effect, lsn);
        return;
      default:
        unreachable(effect);
    }
  }

  state(): CoreState {
    return { devices: [...this.tree.all()], nextId: this.tree.nextId, epochs: this.epochs };
  }

  restore(state: CoreState): void {
    this.tree = Tree.fromDevices(state.devices, state.nextId);
    this.epochs = state.epochs;
  }
}
