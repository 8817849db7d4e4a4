/**
 * The local devices of a group on this node: names, descent, sizes (DESIGN §1).
 *
 * Owns: the table and its part of a checkpoint. Must not know: maps, journals,
 * what may be done now.
 */

import { z } from 'zod';
import { LOCAL_DEVICES } from '../../base/units.js';

const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);

const device = z.strictObject({
  id: count,
  /** `VOLUME~NAME`, as the volume was called when it was made; never changes. */
  name: z.string(),
  /** Id of the group's volume that it descends from; that may be gone. */
  volume: count,
  /** Id of what it was taken from, a device of the group or a local one. */
  source: count,
  sizeBytes: count,
  /** LSNs in the local journal of the record that made it, and of the last one that replaced its content. */
  createdLsn: count,
  changedLsn: count,
  createdMs: count,
  /** Group LSN that its content follows; 0 when it was taken of a local device. */
  followsLsn: count,
  /** Whether it may be used: nothing that it was taken of can be undone. */
  ready: z.boolean(),
  /** LSN in the local journal of the record that sealed it: nothing was written to it since; 0 = not sealed. */
  sealedLsn: count,
  /** Its content digest when it was sealed; '' = not known yet. */
  digest: z.string(),
});
export type LocalDevice = z.infer<typeof device>;

const state = z.strictObject({ bootId: z.string(), nextId: count, devices: z.array(device) });
/** The local journal's part of a checkpoint slot. */
export type LocalState = z.infer<typeof state>;

/** A slot's local state, or what is wrong with it. */
export function checkLocalState(raw: unknown): LocalState | string {
  const parsed = state.safeParse(raw);
  return parsed.success ? parsed.data : `${parsed.error.issues[0].path.join('.')}: ${parsed.error.issues[0].message}`;
}

/** Every device costs an export, a map and up to an open file. */
export const MAX_LOCAL_DEVICES = 1024;

export class LocalTree {
  private readonly devices = new Map<number, LocalDevice>();
  private readonly byName = new Map<string, number>();
  /** Ids are never reused, not even those of devices that were dropped. */
  nextId = LOCAL_DEVICES;

  get(id: number): LocalDevice | undefined {
    return this.devices.get(id);
  }

  find(name: string): LocalDevice | undefined {
    const id = this.byName.get(name);
    return id === undefined ? undefined : this.devices.get(id);
  }

  all(): IterableIterator<LocalDevice> {
    return this.devices.values();
  }

  get count(): number {
    return this.devices.size;
  }

  put(one: LocalDevice): void {
    this.devices.set(one.id, one);
    this.byName.set(one.name, one.id);
    this.sawId(one.id);
  }

  drop(id: number): void {
    const one = this.devices.get(id);
    if (one === undefined) return;
    this.byName.delete(one.name);
    this.devices.delete(id);
  }

  sawId(id: number): void {
    this.nextId = Math.max(this.nextId, id + 1);
  }
}
