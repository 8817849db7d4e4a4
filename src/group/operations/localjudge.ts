/**
 * What an operator asks for of local devices, judged: the preconditions of their
 * operations, and the sentences of refusals. Every method throws OperatorError
 * when it refuses, and changes nothing.
 *
 * Must not know: HTTP, the steps of an operation (localservice.ts).
 */

import { OperatorError } from '../../base/errors.js';
import { isLocalDevice } from '../../base/units.js';
import type { Content } from '../content/content.js';
import type { LocalDevice, LocalTree } from '../local/tree.js';
import { MAX_LOCAL_DEVICES } from '../local/tree.js';
import type { Exports } from '../requests/exports.js';

/** The group, as far as judging needs it. */
export interface LocalJudgeHost {
  readonly name: string;
  readonly exports: Exports;
  readonly stableLsn: number;
}

export function noLocalSnapshot(group: string, name: string): OperatorError {
  return new OperatorError('device/not-found', `group ${group} has no local snapshot ${name} on this node; lockstep list shows what there is`);
}

export class LocalJudge {
  private readonly tree: LocalTree;

  /** `blocked`: devices whose content is being replaced, or which are being removed. */
  constructor(private readonly host: LocalJudgeHost, private readonly content: Content, private readonly blocked: ReadonlySet<number>) {
    this.tree = content.local.tree;
  }

  /** The name of a device with that of its group, as people write it. */
  spell(name: string): string {
    return `${this.host.name}/${name}`;
  }

  /** The local device of this name, when no other operation on it is under way. */
  existing(name: string): LocalDevice {
    const device = this.tree.find(name);
    if (device === undefined) throw noLocalSnapshot(this.host.name, name);
    if (this.blocked.has(device.id)) throw new OperatorError('group/busy', `another operation on ${this.spell(name)} is under way; try again in a moment`);
    return device;
  }

  /** No local snapshot has this name. */
  free(name: string): void {
    if (this.tree.find(name) !== undefined) throw new OperatorError('device/exists', `${this.spell(name)} exists already on this node; choose another name or remove it first`);
  }

  /** What VOLUME~`name` is to be taken of, a device of the group or a local one: its id, that of the volume, and the full name. */
  namedSource(sourceName: string, name: string): { source: number; volume: number; spelled: string } {
    const { tree, host } = this;
    const groups = this.content.core.tree;
    const device = groups.find(sourceName);
    const local = device === undefined ? tree.find(sourceName) : undefined;
    if (device === undefined && local === undefined) {
      throw new OperatorError('device/not-found', `group ${host.name} has no device ${sourceName}; lockstep list shows what there is`);
    }
    if (local !== undefined) this.settledContent(local.id);
    const volume = device?.volume ?? local!.volume;
    // A volume may be gone or renamed since the source was made: then its old name goes on.
    const volumeName = device !== undefined ? groups.get(device.volume)?.name ?? device.name : local!.name.split('~')[0];
    const spelled = `${volumeName}~${name}`;
    this.free(spelled);
    const { journal, appliedLsn, local: { adoption } } = this.content;
    // Of a volatile journal `stable` is what was appended, and power loss takes it.
    if (adoption.isReserved(spelled, Math.min(host.stableLsn, journal.durableLsn))) {
      journal.sync(appliedLsn);
      throw new OperatorError('group/busy', `${this.spell(spelled)} was adopted, and that can still be undone, for it is not durable yet here and on the primary; try again in a moment, or choose another name`);
    }
    if (tree.count >= MAX_LOCAL_DEVICES) throw new OperatorError('operation/too-large', `group ${host.name} has ${tree.count} local snapshots on this node, which is the limit; remove some of them first`);
    return { source: device?.id ?? local!.id, volume, spelled };
  }

  /** Id of what `target` is to become; `sourceName` null: what it was taken of. */
  sourceOf(target: LocalDevice, sourceName: string | null): number {
    const { tree, host } = this;
    const groups = this.content.core.tree;
    const found = sourceName === null ? groups.get(target.source) ?? tree.get(target.source) : groups.find(sourceName) ?? tree.find(sourceName);
    if (found === undefined) {
      throw new OperatorError('device/not-found', sourceName === null
        ? `what ${this.spell(target.name)} was taken of was removed; name another source`
        : `group ${host.name} has no device ${sourceName}; lockstep list shows what there is`);
    }
    if (found.id === target.id) throw new OperatorError('device/same', `${this.spell(target.name)} cannot be restored from itself`);
    if (isLocalDevice(found.id)) this.settledContent(found.id);
    if (found.volume !== target.volume) throw new OperatorError('device/unrelated', `${this.spell(sourceName ?? '')} does not belong to the volume that ${this.spell(target.name)} was taken of; a restore takes content from the same tree`);
    return found.id;
  }

  /** Refuses a local source whose content can still be undone, or is being replaced: what is taken of it names no group position and would outlive it. */
  private settledContent(source: number): void {
    const device = this.tree.get(source);
    if (device !== undefined && device.ready && !this.blocked.has(source)) return;
    throw new OperatorError('group/busy', `${this.spell(device?.name ?? `#${source}`)} cannot be used yet; try again in a moment`);
  }

  /** Nobody has it open. */
  unused(device: LocalDevice): void {
    const clients = this.host.exports.clientsOf(device.id);
    if (clients === 0) return;
    throw new OperatorError('device/busy', `${this.spell(device.name)} has ${clients} NBD client${clients === 1 ? '' : 's'}: disconnect ${clients === 1 ? 'it' : 'them'}, or use --force to have the connection${clients === 1 ? '' : 's'} closed first`);
  }

  /** It can be used. */
  ready(device: LocalDevice): void {
    if (!device.ready) throw new OperatorError('group/busy', `${this.spell(device.name)} cannot be used yet; try again in a moment`);
  }

  /** Its content may be replaced. */
  replaceable(device: LocalDevice): void {
    if (device.sealedLsn !== 0) throw new OperatorError('local/sealed', `${this.spell(device.name)} is sealed; if its content is to change: lockstep seal --undo ${this.spell(device.name)}`);
    this.ready(device);
  }

  /** Nobody writes to it. */
  sealed(device: LocalDevice): void {
    if (device.sealedLsn === 0) throw new OperatorError('local/not-sealed', `${this.spell(device.name)} is not sealed`);
  }

  /** It is sealed by the record at this local LSN, and its digest is not noted. */
  sealedAt(device: LocalDevice, sealedLsn: number): void {
    if (device.sealedLsn === sealedLsn && device.digest === '') return;
    throw new OperatorError('local/not-sealed', `${this.spell(device.name)} was unsealed meanwhile; seal it again: lockstep seal ${this.spell(device.name)}`);
  }

  /** What was judged as a source before may be gone, or another restore of it may have come first. */
  stillThere(source: number, target: LocalDevice): void {
    if (this.content.store.find(source) === undefined) throw new OperatorError('device/not-found', `the source of ${this.spell(target.name)} was removed meanwhile`);
    if (isLocalDevice(source)) this.settledContent(source);
  }
}
