/**
 * Space admission: new writes are answered ENOSPC while there is still room to
 * destage all that was acknowledged, never after (DESIGN; issue 2, deliver 4).
 *
 * Owns: the sum. free space − what may still have to be destaged − a reserve
 * for metadata must stay above the watermark. Must not know: requests.
 */

import { Errno, IoError } from '../base/errors.js';
import { formatSize, MIB } from '../base/units.js';
import type { SpaceStat } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';

/** Maps, checkpoint slots, directories: what a full checkpoint may need beside the data. */
const METADATA_RESERVE = 64 * MIB;
const LOOK_INTERVAL_US = 200_000;
const IDLE_INTERVAL_US = 1_000_000;
/** At most this much is admitted between two looks, whatever the clock says. */
const LOOK_BYTES = 64 * MIB;

export interface SpaceNeeds {
  /** Bytes acknowledged and not yet in the layers' files. */
  readonly undestagedBytes: number;
  /** Journal segments that are still to be created. */
  readonly journalBytesToCome: number;
}

export class SpaceAdmission {
  private free = Infinity;
  private lookedAtUs = -Infinity;
  private admittedSinceLook = 0;
  /** Why new writes are refused; undefined while they are taken. */
  refusal: string | undefined;
  onChange: (refusal: string | undefined) => void = () => undefined;

  constructor(
    private readonly reactor: Reactor,
    private readonly directory: string,
    private readonly watermarkBytes: number,
    private readonly look: (path: string) => SpaceStat,
  ) {}

  get freeBytes(): number {
    return Number.isFinite(this.free) ? this.free : 0;
  }

  /** 0, or the errno with which a write of `bytes` is to be answered. */
  admit(bytes: number, needs: SpaceNeeds): number {
    if (this.reactor.nowUs - this.lookedAtUs >= LOOK_INTERVAL_US || this.admittedSinceLook >= LOOK_BYTES) this.update(needs);
    if (this.refusal !== undefined) return Errno.ENOSPC;
    this.admittedSinceLook += bytes;
    return 0;
  }

  /** Called from time to time, also without writes, so that `status` is true and service comes back. */
  refresh(needs: SpaceNeeds): void {
    if (this.reactor.nowUs - this.lookedAtUs >= IDLE_INTERVAL_US) this.update(needs);
  }

  private update(needs: SpaceNeeds): void {
    this.lookedAtUs = this.reactor.nowUs;
    this.admittedSinceLook = 0;
    let refusal: string | undefined;
    try {
      this.free = this.look(this.directory).freeBytes;
      // A journal that was larger before the configuration changed is no space that can be promised.
      const journal = Math.max(0, needs.journalBytesToCome);
      const spare = this.free - needs.undestagedBytes - journal - METADATA_RESERVE - LOOK_BYTES;
      if (spare < this.watermarkBytes) {
        refusal =
          `new writes are answered ENOSPC: ${formatSize(this.free)} free on the file system of ${this.directory}, of which ` +
          `${formatSize(needs.undestagedBytes + journal + METADATA_RESERVE + LOOK_BYTES)} may be needed for what was already ` +
          `acknowledged, and ${formatSize(this.watermarkBytes)} are to stay free; remove snapshots or add space, writes resume by themselves`;
      }
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      refusal = `new writes are answered ENOSPC: ${error.message}`;
    }
    const changed = (refusal === undefined) !== (this.refusal === undefined);
    this.refusal = refusal;
    if (changed) this.onChange(refusal);
  }
}
