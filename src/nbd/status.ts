/**
 * BLOCK_STATUS: asks the service for extents and builds the reply chunks.
 *
 * Owns: a limited pool of calls under way, each with its table of extents. A
 * rare command, off the hot path: its replies get a buffer of their own. Must
 * not know: how the reply is sent. (NBD specification, "NBD_CMD_BLOCK_STATUS".)
 */

import { assert } from '../base/assert.js';
import type { BlockService } from '../group/requests/service.js';
import type { Arena } from '../io/arena.js';
import {
  BLOCK_STATUS_HEADER_BYTES, EXTENT_BYTES, NBD_CONTEXT_BASE_ALLOCATION, NBD_REPLY_FLAG_DONE, putBlockStatusHeader, putExtent,
} from '../vendor/nbd-protocol-ts/index.js';
import type { ServerTransmission } from '../vendor/nbd-protocol-ts/index.js';
import { NO_BLOCK } from './chunk.js';
import type { DeviceExport } from './export.js';

const MAX_EXTENT_BYTES = 0xffffffff;

/** Where replies are built, and who knows the extents. */
export interface StatusMemory {
  readonly arena: Arena;
  readonly service: BlockService;
  /** A buffer for one request, with one reference; −1: wait in line. */
  allocate(bytes: number): number;
}

/** Whose request it is. */
export interface StatusAsker {
  readonly exported: DeviceExport;
  readonly outcome: ServerTransmission;
  /** `errno` 0: the reply has `bytes` bytes from arena offset `block` on, whose one reference is given over either way. */
  statusAnswered(errno: number, hi: number, lo: number, block: number, bytes: number): void;
}

export class StatusCalls {
  private readonly free: StatusCall[] = [];
  private made = 0;

  constructor(
    private readonly shared: StatusMemory,
    private readonly maxCalls: number,
    private readonly maxExtents: number,
  ) {}

  /** A call to `start`, with memory for a reply about `contexts` contexts; undefined when either is short: wait in line. */
  take(contexts: number): StatusCall | undefined {
    const spare = this.free.length > 0;
    if (!spare && this.made === this.maxCalls) return undefined;
    const block = this.shared.allocate(contexts * BLOCK_STATUS_HEADER_BYTES + (this.maxExtents + contexts) * EXTENT_BYTES);
    if (block < 0) return undefined;
    const call = this.free.pop() ?? new StatusCall(this.shared, this.maxExtents, (done) => this.free.push(done));
    if (!spare) this.made++;
    call.block = block;
    return call;
  }

  /** Calls that the service has not answered. */
  get underWay(): number {
    return this.made - this.free.length;
  }
}

/** One BLOCK_STATUS request. */
class StatusCall {
  private readonly out: Float64Array;
  private readonly single: Float64Array;
  private transmission: StatusAsker | undefined;
  private hi = 0;
  private lo = 0;
  private length = 0;
  /** Where the reply is built; one reference, which goes to the transmission. */
  block = NO_BLOCK;
  private extents: Float64Array;

  constructor(
    private readonly shared: StatusMemory,
    maxExtents: number,
    private readonly giveBack: (call: StatusCall) => void,
  ) {
    this.out = new Float64Array(2 * maxExtents);
    this.single = this.out.subarray(0, 2);
    this.extents = this.out;
  }

  /** Answers by `transmission.statusAnswered`, perhaps before it returns. */
  start(transmission: StatusAsker, one: boolean, hi: number, lo: number, offset: number, length: number): void {
    this.transmission = transmission;
    this.hi = hi;
    this.lo = lo;
    this.length = length;
    this.extents = one ? this.single : this.out;
    const { contexts } = transmission.outcome;
    if (contexts.some((context) => context.name === NBD_CONTEXT_BASE_ALLOCATION)) {
      this.shared.service.extents(transmission.exported.device, offset, length, this.extents, this.answered);
    } else {
      this.answered(0);
    }
  }

  private readonly answered = (count: number): void => {
    const { transmission, hi, lo } = this;
    assert(transmission !== undefined, 'a BLOCK_STATUS call was answered twice');
    this.transmission = undefined;
    const errno = count < 0 ? -count : 0;
    assert(count <= this.extents.length / 2, 'the service gave more extents than there is room for');
    const bytes = errno === 0 ? this.build(transmission, this.block, count) : 0;
    this.giveBack(this);
    transmission.statusAnswered(errno, hi, lo, this.block, bytes);
  };

  /** One chunk per selected context, the last one marked as done. Returns the bytes written. */
  private build(transmission: StatusAsker, block: number, count: number): number {
    const { view } = this.shared.arena;
    const { contexts } = transmission.outcome;
    let at = block;
    contexts.forEach((context, index) => {
      const flags = index === contexts.length - 1 ? NBD_REPLY_FLAG_DONE : 0;
      if (context.name !== NBD_CONTEXT_BASE_ALLOCATION) {
        // What the context says of the device is its name; it holds for all of the range.
        at += putBlockStatusHeader(view, at, flags, this.hi, this.lo, context.id, 1);
        at += putExtent(view, at, this.length, 0);
        return;
      }
      assert(count > 0, 'the service gave no extent');
      at += putBlockStatusHeader(view, at, flags, this.hi, this.lo, context.id, count);
      for (let i = 0; i < count; i++) {
        const length = this.extents[2 * i];
        assert(length > 0 && length <= MAX_EXTENT_BYTES, 'the service gave an extent without a length');
        at += putExtent(view, at, length, this.extents[2 * i + 1]);
      }
    });
    return at - block;
  }
}
