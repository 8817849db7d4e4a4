/** Requests that wait, first come first served. Owns the list, which lies in the request table's columns; must not know what they wait for. */

import type { RequestTable } from './requests.js';

/** Slots in the order they came, each with a number: an LSN that must become durable, or how far it has come. */
export class SlotQueue {
  private head = -1;
  private tail = -1;
  length = 0;

  constructor(private readonly requests: RequestTable) {}

  push(slot: number, lsn: number): void {
    this.requests.serviceWord[slot] = lsn;
    this.requests.next[slot] = -1;
    if (this.tail < 0) this.head = slot;
    else this.requests.next[this.tail] = slot;
    this.tail = slot;
    this.length++;
  }

  /** The first slot, or −1. */
  get first(): number {
    return this.head;
  }

  /** The number of the slot that came last; there is one. */
  get lastLsn(): number {
    return this.requests.serviceWord[this.tail];
  }

  /** The first slot if its LSN is at most `lsn`, removed; else −1. */
  shift(lsn: number): number {
    const slot = this.head;
    if (slot < 0 || this.requests.serviceWord[slot] > lsn) return -1;
    this.head = this.requests.next[slot];
    if (this.head < 0) this.tail = -1;
    this.length--;
    return slot;
  }
}
