/**
 * Adopting: a local snapshot of every node becomes one replicated snapshot
 * (DESIGN §8; ARCHITECTURE "Approximately the same point").
 *
 * Owns: what the marker `adopt` does to a local snapshot on a node, and the order
 * of both journals around it. Must not know: how contents are compared
 * (base/content-digest.ts), who may ask for it (operations/adopt.ts), requests.
 *
 * The marker names the local snapshot and its content digest. Every node takes
 * its own copy for the new snapshot; one that has none, sealed, with that very
 * digest, stops applying and says so. A copy counts as sealed only when that
 * survives power loss, so that recovery executes the marker as this node did.
 *
 * Recovery finds the local snapshot by name, and later local records may use that
 * name again. So a record `adopted` follows in the local journal, bound to the
 * group position behind the marker: what stands behind it waits for the marker.
 *
 *     step                                  recovery sees, if it ends right after it
 *     seal record settled                   a sealed local snapshot: no writers any more
 *     its digest settled                    one that can be adopted
 *     marker appended                       it, or nothing of it: then the sealed local snapshot
 *     `adopted` appended                    the same; the next start appends it if it is missing
 *     **marker durable: commit point**      the replicated snapshot
 */

import { assert } from '../../base/assert.js';
import { formatSize, LOCAL_STAMPS } from '../../base/units.js';
import type { Store } from '../../store/store.js';
import type { LocalJournal } from './journal.js';
import type { LocalDevice, LocalTree } from './tree.js';
import type { Follows } from './record.js';
import type { EpochEntry } from '../tree/epochs.js';
import type { Effect } from '../tree/change.js';

type AdoptEffect = Extract<Effect, { kind: 'adopt' }>;

/** What adopting needs of the local devices. */
export interface AdoptionHost {
  readonly tree: LocalTree;
  readonly log: LocalJournal;
  /** Where the group stands; all below is executed. */
  position(): Follows;
}

export class Adoption {
  /** Adopted by a marker that recovery executed, and no `adopted` record seen yet. */
  private owed: number[] | undefined;
  /** Names that a local snapshot had until the marker behind which the group stands at `lsn`. */
  private reserved: { readonly name: string; readonly lsn: number }[] = [];

  constructor(private readonly store: Store, private readonly host: AdoptionHost) {}

  /** Why this node cannot execute the effect, a sentence fragment; undefined when it can. */
  problem(effect: AdoptEffect): string | undefined {
    const lack = this.lack(effect);
    if (lack === undefined) return undefined;
    return `it adopts local snapshot ${effect.local} with content digest ${effect.digest}, and on this node ${lack}; make it equal (lockstep reconcile), seal it and restart the daemon of this node, or build this node anew`;
  }

  /** What is missing for it here: the end of a sentence that begins "on this node"; undefined when nothing is. */
  lack({ local: name, digest, sizeBytes }: Pick<AdoptEffect, 'local' | 'digest' | 'sizeBytes'>): string | undefined {
    const device = this.host.tree.find(name);
    if (device === undefined) return 'there is no local snapshot of that name';
    const found = sealedDigest(device, this.host.log.settledLsn);
    if (found === undefined) return 'it is not sealed';
    if (device.sizeBytes !== sizeBytes) return `it has ${formatSize(device.sizeBytes)}, and not ${formatSize(sizeBytes)}`;
    return found === digest ? undefined : `it has content digest ${found}`;
  }

  /** The effect, at group LSN `lsn`; `problem` was asked. Throws IoError when the local journal fails. */
  execute(effect: AdoptEffect, lsn: number): void {
    const { store, host } = this;
    const device = host.tree.find(effect.local);
    assert(device !== undefined && device.digest === effect.digest, `local snapshot ${effect.local} can be adopted`);
    store.create(effect.device, effect.sizeBytes, lsn);
    // Nothing was written to it since it was sealed.
    const stamp = LOCAL_STAMPS + device.sealedLsn;
    store.assign(effect.device, device.id, lsn, stamp);
    store.remove(device.id, stamp);
    host.tree.drop(device.id);
    if (this.owed !== undefined) {
      this.owed.push(device.id);
      this.reserved.push({ name: device.name, lsn });
      return;
    }
    const follows = host.position();
    host.log.append({ op: 'adopted', device: device.id, follows });
    this.reserved.push({ name: device.name, lsn: follows.lsn });
  }

  /** Whether a local snapshot had this name until an adoption that can still be undone, above `finalLsn`: then it would have it again. */
  isReserved(name: string, finalLsn: number): boolean {
    this.reserved = this.reserved.filter((one) => one.lsn > finalLsn);
    return this.reserved.some((one) => one.name === name);
  }

  // ---- recovery ------------------------------------------------------------------------------------

  /** From here on markers are replayed. */
  replaying(): void {
    this.owed = [];
  }

  /** An `adopted` record was found. */
  recorded(device: number): void {
    this.owed = this.owed?.filter((one) => one !== device);
  }

  /** The replay has ended at `lsn`: appends what is missing. Throws IoError. */
  replayed(lsn: number, epochs: readonly EpochEntry[]): void {
    const owed = this.owed ?? [];
    this.owed = undefined;
    const epoch = epochs.at(-1);
    if (epoch === undefined) return;
    for (const device of owed) this.host.log.append({ op: 'adopted', device, follows: { epochId: epoch.id, lsn } });
  }
}

/** The digest of a local snapshot that is sealed for good; undefined when it is not. */
export function sealedDigest(device: LocalDevice, settledLsn: number): string | undefined {
  return device.ready && device.sealedLsn !== 0 && device.digest !== '' && device.sealedLsn < settledLsn ? device.digest : undefined;
}
