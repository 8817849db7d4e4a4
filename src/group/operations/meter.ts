/**
 * What operations cost: bytes changed, bytes on the wire, time of the data
 * thread; of the newest ones each, and per verb since the process started.
 *
 * Owns: the figures, and the comparison of maps that makes a bound of the bytes
 * changed exact. Must not know: how an operation is executed, links beyond the
 * name of their peer.
 *
 * It watches a group's core on every node, so a secondary meters what it
 * applies; markers that recovery replays are not metered. In the marker's own
 * step it only takes two shares of a root per changed device: O(1). The shares
 * live as long as their comparison: until it ends, the group is closed or taken
 * back, or map memory runs short; then the bound stays.
 */
import { unreachable } from '../../base/assert.js';
import { BLOCK_BYTES } from '../../base/units.js';
import { DiffTask } from '../../store/difftask.js';
import type { StatePair } from '../../store/difftask.js';
import type { Content } from '../content/content.js';
import type { CommitWatch } from '../content/core.js';
import { devicesOf, operationVerb } from '../tree/record.js';
import type { Operation } from '../tree/record.js';
import type { Edit, Tree } from '../tree/tree.js';
import type { At } from '../tree/change.js';

/** Counts what operations put on the wire. */
export interface WireMeter {
  /** The marker at `lsn` went over the link with `peer`, either way, with `bytes` in all. */
  markerOnWire(peer: string, lsn: number, bytes: number): void;
}

/** One operation. Bytes changed count blocks that another record wrote, hence also those whose bytes happen to be equal. */
export interface MeteredOperation {
  /** Of its marker. */
  readonly lsn: number;
  /** Wall clock of the primary, ms since 1970. */
  readonly wallMs: number;
  readonly verb: string;
  /** What it was about, for people: device names. */
  readonly what: string;
  /** Ids of the devices that it made, changed or removed; at most IDS_KEPT. */
  readonly devices: readonly number[];
  changedBytes: number;
  /** `counting`: an upper bound, being made exact. `bound`: it stays one. */
  state: 'counting' | 'exact' | 'bound';
  /** By peer: what the marker put on that link, either way, frame header included; again when it was sent again. */
  readonly wireBytes: Map<string, number>;
  /** Time that this node's data thread spent in it, microseconds. */
  dataThreadUs: number;
}

/** Sums of one verb since the process started. */
export interface VerbTotals {
  operations: number;
  /** Of operations whose count has ended: exact, or bounds that stay. */
  changedBytes: number;
  readonly wireBytes: Map<string, number>;
  dataThreadUs: number;
}

export const OPERATIONS_KEPT = 256;
const IDS_KEPT = 64;
const NAMES_SHOWN = 4;
/** Comparisons under way; what is performed meanwhile keeps its bound. */
const DIFFS_MAX = 4;
/** Devices that one comparison is about. */
const PAIRS_MAX = 64;

export class Meter implements CommitWatch, WireMeter {
  private readonly kept: MeteredOperation[] = [];
  private readonly verbs = new Map<string, VerbTotals>();
  private content: Content | undefined;
  private diffs = 0;
  /** States before the operation that is being executed. */
  private readonly before: { readonly device: number; readonly root: StatePair['before'] }[] = [];
  /** Longest time of the data thread in one operation, microseconds. */
  longestUs = 0;

  /** Newest last. */
  get operations(): readonly MeteredOperation[] {
    return this.kept;
  }

  get totals(): ReadonlyMap<string, VerbTotals> {
    return this.verbs;
  }

  /** The operation whose marker is at `lsn`, if it is one of the newest. */
  find(lsn: number): MeteredOperation | undefined {
    let low = 0;
    let high = this.kept.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.kept[middle].lsn < lsn) low = middle + 1;
      else high = middle;
    }
    return this.kept[low]?.lsn === lsn ? this.kept[low] : undefined;
  }

  /** Meters what happens to `content` from now on; what lies behind its end was undone. */
  watch(content: Content): void {
    this.content = content;
    this.before.length = 0;
    while (this.kept.length > 0 && this.kept[this.kept.length - 1].lsn >= content.appliedLsn) this.kept.pop();
    content.core.watch = this;
  }

  // ---- in the marker's step ------------------------------------------------------------------------

  /** CommitWatch. */
  executing(edit: Edit): void {
    const { store, mapTasks } = this.content!;
    this.before.length = 0;
    if (this.diffs >= DIFFS_MAX || mapTasks.full) return;
    for (const effect of edit.effects) {
      if (effect.kind !== 'assign') continue;
      const target = store.find(effect.target);
      if (target === undefined) continue;
      if (this.before.length === PAIRS_MAX) {
        this.forgetBefore();
        return;
      }
      this.before.push({ device: effect.target, root: store.map.share(target.root) });
    }
  }

  /** CommitWatch. */
  abandoned(): void {
    this.forgetBefore();
  }

  /** CommitWatch. */
  executed(operation: Operation, edit: Edit, at: At, was: Tree): void {
    if (operation.op === 'epoch') return;
    const ids = devicesOf(operation);
    const changedBytes = boundOf(edit, was);
    const entry: MeteredOperation = {
      lsn: at.lsn, wallMs: at.wallMs, verb: operationVerb(operation), what: phraseOf(operation, was, edit.tree), devices: ids.slice(0, IDS_KEPT), changedBytes,
      state: changedBytes === 0 || operation.op === 'resize' ? 'exact' : 'bound', wireBytes: new Map(), dataThreadUs: 0,
    };
    this.kept.push(entry);
    if (this.kept.length > OPERATIONS_KEPT) this.kept.shift();
    this.totalsOf(entry.verb).operations++;
    if (this.before.length > 0 && entry.state === 'bound') this.compare(entry);
    else this.settle(entry);
  }

  private compare(entry: MeteredOperation): void {
    const { store, mapTasks } = this.content!;
    const pairs = this.before.map(({ device, root }): StatePair => ({ before: root, after: store.map.share(store.device(device).root) }));
    this.before.length = 0;
    this.diffs++;
    entry.state = 'counting';
    mapTasks.add(new DiffTask(store.map, pairs, (blocks) => {
      this.diffs--;
      entry.state = blocks === undefined ? 'bound' : 'exact';
      if (blocks !== undefined) entry.changedBytes = blocks * BLOCK_BYTES;
      this.settle(entry);
    }));
  }

  private settle(entry: MeteredOperation): void {
    this.forgetBefore();
    this.totalsOf(entry.verb).changedBytes += entry.changedBytes;
  }

  private forgetBefore(): void {
    for (const { root } of this.before) this.content!.store.map.drop(root);
    this.before.length = 0;
  }

  /** The data thread spent so long in the marker at `lsn`; an epoch record only counts for the longest. */
  took(lsn: number, dataThreadUs: number): void {
    this.longestUs = Math.max(this.longestUs, dataThreadUs);
    const entry = this.find(lsn);
    if (entry === undefined) return;
    entry.dataThreadUs = dataThreadUs;
    this.totalsOf(entry.verb).dataThreadUs += dataThreadUs;
  }

  /** WireMeter. */
  markerOnWire(peer: string, lsn: number, bytes: number): void {
    const entry = this.find(lsn);
    if (entry === undefined) return;
    for (const wireBytes of [entry.wireBytes, this.totalsOf(entry.verb).wireBytes]) wireBytes.set(peer, (wireBytes.get(peer) ?? 0) + bytes);
  }

  private totalsOf(verb: string): VerbTotals {
    let totals = this.verbs.get(verb);
    if (totals === undefined) {
      totals = { operations: 0, changedBytes: 0, wireBytes: new Map(), dataThreadUs: 0 };
      this.verbs.set(verb, totals);
    }
    return totals;
  }
}

/** The most that can have changed: the assigned ranges, or the devices, of targets that were there before; the difference of a resize. */
function boundOf(edit: Edit, was: Tree): number {
  let bytes = 0;
  for (const effect of edit.effects) {
    if (effect.kind === 'resize') bytes += Math.abs(effect.sizeBytes - (was.get(effect.device)?.sizeBytes ?? effect.sizeBytes));
    if (effect.kind !== 'assign') continue;
    const target = was.get(effect.target);
    if (target === undefined) continue;
    if (effect.ranges.length > 0) for (const [, length] of effect.ranges) bytes += length;
    else bytes += Math.max(target.sizeBytes, edit.tree.get(effect.target)?.sizeBytes ?? 0);
  }
  return bytes;
}

/** "web from web@monday", "web@a, web@b, web@c, web@d and 96 more". */
function phraseOf(operation: Operation, was: Tree, now: Tree): string {
  const name = (tree: Tree, id: number): string => {
    const device = tree.get(id);
    return device === undefined ? `device ${id}` : tree.nameOf(device);
  };
  const some = <T>(all: readonly T[], words: (one: T) => string): string => {
    const shown = all.slice(0, NAMES_SHOWN).map(words).join(', ');
    return all.length > NAMES_SHOWN ? `${shown} and ${all.length - NAMES_SHOWN} more` : shown;
  };
  switch (operation.op) {
    case 'epoch':
      return '';
    case 'create':
      return name(now, operation.id);
    case 'clone':
      return `${name(now, operation.id)} from ${name(now, operation.source)}`;
    case 'adopt':
      return `${name(now, operation.id)} from ${operation.local}`;
    case 'snapshot':
      return some(operation.snapshots, (one) => name(now, one.id));
    case 'assign':
      return some(operation.pairs, (pair) => `${name(now, pair.target)} from ${name(now, pair.source)}`);
    case 'remove':
      return some(operation.devices, (id) => name(was, id));
    case 'rename':
      return some(operation.devices, (id) => `${name(was, id)} to ${name(now, id)}`);
    case 'resize':
      return name(now, operation.device);
    case 'protect':
      return some(operation.devices, (id) => name(now, id));
    default:
      return unreachable(operation);
  }
}
