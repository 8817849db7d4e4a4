/**
 * One of two nodes whose disks fail where local devices and their journals lie.
 *
 * Owns: the places that fail, which ends and refused starts a fault explains, how
 * the local devices of the node are judged after that. Must not know: what a run
 * does, and when.
 */
import { Errno } from '../../src/base/errors.js';
import { GROUP } from './cluster.js';
import type { SimHost } from './cluster.js';
import { SHORT_WRITE } from './faults.js';
import type { FaultOp, FaultSite } from './faults.js';
import { LocalDevices } from './local.js';
import type { Random } from './random.js';
import type { CrashKind } from './world.js';

interface Place {
  readonly name: string;
  readonly ops: readonly FaultOp[];
  readonly path: RegExp;
  readonly errnos: readonly number[];
}

const JOURNAL = /\/local\/segment-/;
/** Local devices' ids begin at 2^31. */
const LAYER = /\/layers\/device-2147\d{6}-/;
const EITHER = [Errno.EIO, Errno.ENOSPC];

const PLACES: readonly Place[] = [
  { name: 'append', ops: ['pwrite'], path: JOURNAL, errnos: [...EITHER, SHORT_WRITE] },
  { name: 'fdatasync of the journal', ops: ['fdatasync'], path: JOURNAL, errnos: EITHER },
  { name: 'making a segment', ops: ['open', 'zero'], path: JOURNAL, errnos: EITHER },
  { name: 'write of a layer', ops: ['pwrite'], path: LAYER, errnos: EITHER },
  { name: 'fdatasync of a layer', ops: ['fdatasync'], path: LAYER, errnos: EITHER },
  { name: 'opening a layer', ops: ['open'], path: LAYER, errnos: [...EITHER, Errno.EMFILE] },
  { name: 'punching', ops: ['punch'], path: LAYER, errnos: [Errno.EIO] },
  { name: 'fsync of a directory', ops: ['fsync', 'syncDirectory'], path: /\/(local|layers)$/, errnos: [Errno.EIO] },
];

/** How a sentence ends that a fault explains. */
const EXPLAINED = /\((EIO|ENOSPC|EMFILE)\)/;

export class FaultySide {
  readonly locals: LocalDevices;
  readonly fired = new Map<string, number>();
  /** Since the last start: something failed; an fdatasync did. */
  failed = false;
  syncFailed = false;
  /** How the last crashes are to be judged, until both nodes are up again. */
  private crashed: CrashKind | undefined;
  private place: Place | undefined;
  private errno = 0;
  private passing = 0;
  private left = 0;

  constructor(readonly host: SimHost, private readonly random: Random) {
    this.locals = new LocalDevices(host);
    host.node.disk.faults.hook = (site) => this.decide(site);
  }

  /** Something fails soon. */
  arm(name?: string): void {
    const { random } = this;
    this.place = name === undefined ? random.pick(PLACES) : PLACES.find((one) => one.name === name)!;
    this.errno = random.pick(this.place.errnos);
    this.passing = random.pick([0, 0, 1, 3, 10]);
    this.left = random.pick([1, 1, 2, 20]);
  }

  disarm(): void {
    this.place = undefined;
  }

  private decide({ op, path, inJob }: FaultSite): number {
    const { place } = this;
    if (place === undefined || !place.ops.includes(op) || !place.path.test(path)) return 0;
    if (this.errno === SHORT_WRITE && inJob) return 0;
    if (this.passing > 0) {
      this.passing--;
      return 0;
    }
    if (this.left-- === 1) this.place = undefined;
    this.fired.set(place.name, (this.fired.get(place.name) ?? 0) + 1);
    this.failed = true;
    if (op === 'fdatasync' || op === 'fsync' || op === 'syncDirectory') this.syncFailed = true;
    return this.errno;
  }

  /** The group serves nothing until the next start. */
  get stopped(): boolean {
    const group = this.host.path?.blocks.group(GROUP);
    return group === undefined || group.role === 'stopped';
  }

  /** The group has stopped and is there to say why, which is because of a fault. */
  get stoppedByFault(): boolean {
    const group = this.host.path?.blocks.group(GROUP);
    if (group?.role !== 'stopped') return false;
    if (!EXPLAINED.test(group.roleReason)) throw new Error(`${this.host.name} stopped, and says ${group.roleReason}`);
    return true;
  }

  /** The kind of crash for which `kind` was drawn: that an fdatasync failed was told to a process that noted it, or the machine loses power, too. */
  crashKind(kind: CrashKind): CrashKind {
    return this.syncFailed && !this.stopped ? 'power' : kind;
  }

  /** Faults may keep it from starting; not for ever. `mended`: how likely none does. Returns how many starts failed. */
  start(random: Random, mended: number): number {
    const { host } = this;
    for (let failures = 0; ; failures++) {
      if (failures > 2 || random.chance(mended)) this.disarm();
      this.failed = this.syncFailed = false;
      if (!host.start()) throw new Error(`${host.name} crashed at its start`);
      if (host.problem === undefined) return failures;
      if (!this.failed || !EXPLAINED.test(host.problem)) throw new Error(`${host.name} does not start: ${host.problem}`);
      host.crash(random.pick(['kill', 'power']));
      this.judgeAs('power');
    }
  }

  // ---- its local devices -------------------------------------------------------------------------------

  /** It has crashed; of several crashes a power loss counts. */
  judgeAs(kind: CrashKind): void {
    this.crashed = kind === 'power' || this.crashed === 'power' ? 'power' : 'kill';
  }

  get isToBeJudged(): boolean {
    return this.crashed !== undefined;
  }

  /** All is up again: its local devices hold what they must after the crashes since it was last judged. False: there were none. */
  judge(): boolean {
    if (this.crashed === undefined) return false;
    this.locals.judge(this.crashed);
    this.crashed = undefined;
    return true;
  }

  get ready(): readonly string[] {
    const tree = this.host.group.local?.tree;
    return [...this.locals.devices.values()].filter((one) => !one.removed && tree?.get(one.id)?.ready === true).map((one) => one.name);
  }

  isSealed(name: string): boolean {
    return (this.host.group.local!.tree.find(name)?.sealedLsn ?? 0) !== 0;
  }
}

/** How often what has failed, by place, in all of these together. */
export function allFired(results: readonly { readonly fired: ReadonlyMap<string, number> }[]): Map<string, number> {
  const fired = new Map<string, number>();
  for (const result of results) for (const [name, times] of result.fired) fired.set(name, (fired.get(name) ?? 0) + times);
  return fired;
}
