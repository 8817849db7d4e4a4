/**
 * What the NBD layer sees of the groups of a node. Groups implement it; nbd/
 * depends on nothing else of them.
 */

import type { DeviceId } from '../../base/units.js';
import type { RequestTable } from './requests.js';

/** One export, kept up to date by its group: read the fields at the moment of use, a marker may have changed them. */
export interface DeviceView {
  readonly id: DeviceId;
  /** Export name: `group/volume` or `group/volume@snapshot`. */
  readonly exportName: string;
  readonly sizeBytes: number;
  /** False on a secondary and on a fenced node: writes answer EPERM. */
  readonly writable: boolean;
  /** True after the device was removed or its group stopped: every request answers ESHUTDOWN. */
  readonly gone: boolean;
  /** Identity strings of DESIGN §8: they tell a client whether it talks to the same content as before. */
  readonly deviceIdentity: string;
  readonly continuityIdentity: string;
  readonly description: string;
}

/** One client connection, as a group sees it. */
export interface DeviceClient {
  /** For logs and status: peer address. */
  readonly peer: string;
  /** Ends the connection; `reason` is a sentence for the log. Requests under way are still answered, into the void. */
  disconnect(reason: string): void;
}

/** Status flags of `extents`, equal to base:allocation of the NBD spec. */
export const ExtentFlag = { hole: 1, zero: 2 } as const;

export interface BlockService {
  readonly requests: RequestTable;
  /** All exports, for NBD_OPT_LIST. */
  list(): DeviceView[];
  /** An export by name; a sentence when it exists but is not served now; undefined when there is none. */
  find(exportName: string): DeviceView | { readonly unavailable: string } | undefined;
  /** Registers a client; from then on the device's operations may disconnect it. */
  addClient(view: DeviceView, client: DeviceClient): void;
  removeClient(view: DeviceView, client: DeviceClient): void;
  /** Takes a request over (see RequestTable). FLUSH covers all writes acknowledged on any connection before it. */
  submit(view: DeviceView, slot: number): void;
  /**
   * Allocation of [offset, offset + length): pairs (bytes, ExtentFlag bits) into `out`, neighbours joined, at most
   * out.length / 2 of them, covering a prefix of the range. Answers by callback (map nodes may have to be read);
   * `count` = pairs, or −errno. At most one call per `out` at a time.
   */
  extents(view: DeviceView, offset: number, length: number, out: Float64Array, done: (count: number) => void): void;
}
