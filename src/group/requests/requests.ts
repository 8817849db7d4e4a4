/**
 * The requests under way on the data thread, as columns of typed arrays: a
 * request is a slot number, so that none of them costs an object (DESIGN §7).
 *
 * Life of a slot: its owner (an NBD connection, a test client) allocates it,
 * fills the columns and hands it to `BlockService.submit`. The service answers
 * exactly once, by `complete`, possibly before `submit` returns; then the owner
 * sends its reply and frees the slot.
 */

import { assert } from '../../base/assert.js';
import { Errno } from '../../base/errors.js';

/** What a request asks for. Offsets and lengths have been validated against the device before submit. */
export const RequestKind = {
  read: 0,
  write: 1,
  /** Reads as zeros afterwards; both NBD TRIM and WRITE_ZEROES. */
  zero: 2,
  flush: 3,
  /** Brings the range into the page cache. */
  cache: 4,
} as const;

/** Bits of the `flags` column. */
export const RequestFlag = {
  /** Answer only when this request's record is durable. */
  fua: 1,
} as const;

/** Whoever allocates slots. */
export interface RequestOwner {
  /** The slot was answered: `errno` holds 0 or a Linux errno. Called on the data thread; must not throw. */
  completed(slot: number): void;
}

export class RequestTable {
  readonly kind: Uint8Array;
  readonly flags: Uint8Array;
  readonly errno: Uint16Array;
  /** Device id within the service. */
  readonly device: Uint32Array;
  /** Bytes from the device's start. */
  readonly offset: Float64Array;
  /** Bytes; at most 32 MiB for reads and writes, below 4 GiB for zero. */
  readonly length: Uint32Array;
  /** Arena offset of the payload (write; borrowed until completed) or of the destination (read). */
  readonly buffer: Uint32Array;
  /** The owner's own columns; the service does not look at them. */
  readonly connection: Uint32Array;
  readonly cookieHi: Uint32Array;
  readonly cookieLo: Uint32Array;
  readonly ownerWord: Uint32Array;
  /** Free for the current holder (service between submit and complete, owner otherwise): list link, −1 = end. */
  readonly next: Int32Array;
  /** The service's own columns. */
  readonly serviceWord: Float64Array;

  private readonly ownerIndex: Uint8Array;
  private readonly owners: RequestOwner[] = [];
  private firstFree = 0;
  private inUse = 0;

  constructor(readonly capacity: number) {
    this.kind = new Uint8Array(capacity);
    this.flags = new Uint8Array(capacity);
    this.errno = new Uint16Array(capacity);
    this.device = new Uint32Array(capacity);
    this.offset = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.buffer = new Uint32Array(capacity);
    this.connection = new Uint32Array(capacity);
    this.cookieHi = new Uint32Array(capacity);
    this.cookieLo = new Uint32Array(capacity);
    this.ownerWord = new Uint32Array(capacity);
    this.next = new Int32Array(capacity);
    this.serviceWord = new Float64Array(capacity);
    this.ownerIndex = new Uint8Array(capacity);
    for (let i = 0; i < capacity; i++) this.next[i] = i + 1 < capacity ? i + 1 : -1;
  }

  /** Registers an owner (at most 256); the result goes to `alloc`. */
  addOwner(owner: RequestOwner): number {
    assert(this.owners.length < 256, 'too many request owners');
    this.owners.push(owner);
    return this.owners.length - 1;
  }

  /** A free slot, or −1 when all are in use: the caller stops receiving until one is freed. */
  alloc(owner: number): number {
    const slot = this.firstFree;
    if (slot < 0) return -1;
    this.firstFree = this.next[slot];
    this.next[slot] = -1;
    this.errno[slot] = 0;
    this.flags[slot] = 0;
    this.ownerIndex[slot] = owner;
    this.inUse++;
    return slot;
  }

  free(slot: number): void {
    this.next[slot] = this.firstFree;
    this.firstFree = slot;
    this.inUse--;
    assert(this.inUse >= 0, 'a request slot was freed twice');
  }

  get used(): number {
    return this.inUse;
  }

  /**
   * The errno of a request that ends behind its device's end, else 0. The size counts that the device has when it is
   * the request's turn: a marker may have shrunk it since the request was parsed.
   */
  beyondEnd(slot: number, sizeBytes: number): number {
    if (this.offset[slot] + this.length[slot] <= sizeBytes) return 0;
    return this.kind[slot] === RequestKind.write ? Errno.ENOSPC : Errno.EINVAL;
  }

  /** The service's answer; exactly once per submit. */
  complete(slot: number, errno: number): void {
    this.errno[slot] = errno;
    this.owners[this.ownerIndex[slot]].completed(slot);
  }
}
