/**
 * Timers of a Reactor: a binary heap on typed arrays.
 *
 * Owns: deadlines, their order, and the ids of timers. Timers with the same
 * deadline fire in the order in which they were set. Must not know: what the
 * time is, or what a callback does.
 */
import { assert } from '../base/assert.js';

/** Identity of one timer: never that of another, also after it has fired. */
export type TimerId = number;

/** Timers at once; more are a leak. */
const MAX_TIMERS = 65536;
const SLOT_RANGE = 65536;

export class TimerHeap {
  private count = 0;
  private sequence = 0;
  /** The heap: slots, smallest (deadline, sequence) first. */
  private heap = new Int32Array(64);
  private deadlines = new Float64Array(64);
  private sequences = new Float64Array(64);
  /** Per slot: its place in the heap, or −1. */
  private places = new Int32Array(64).fill(-1);
  private generations = new Uint32Array(64);
  private readonly callbacks: ((() => void) | undefined)[] = [];
  private readonly free: number[] = [];
  private slots = 0;

  /** Timers that are set. */
  get size(): number {
    return this.count;
  }

  /** Deadline of the first timer, or Infinity. */
  get nextDeadline(): number {
    return this.count === 0 ? Infinity : this.deadlines[this.heap[0]];
  }

  add(deadline: number, callback: () => void): TimerId {
    assert(!Number.isNaN(deadline), 'a timer has no deadline');
    const slot = this.free.pop() ?? this.newSlot();
    this.deadlines[slot] = deadline;
    this.sequences[slot] = this.sequence++;
    this.callbacks[slot] = callback;
    this.rise(this.count++, slot);
    return this.generations[slot] * SLOT_RANGE + slot;
  }

  /** False when the timer has fired or was cancelled before. */
  cancel(id: TimerId): boolean {
    const slot = id % SLOT_RANGE;
    if (slot >= this.slots || this.generations[slot] !== Math.floor(id / SLOT_RANGE) || this.places[slot] < 0) return false;
    this.take(this.places[slot]);
    return true;
  }

  /** Runs what is due at `now`, but not timers that were set meanwhile. Returns how many ran. */
  fire(now: number): number {
    const before = this.sequence;
    let fired = 0;
    while (this.count > 0) {
      const slot = this.heap[0];
      if (this.deadlines[slot] > now || this.sequences[slot] >= before) break;
      const callback = this.callbacks[slot];
      this.take(0);
      fired++;
      if (callback !== undefined) callback();
    }
    return fired;
  }

  private newSlot(): number {
    assert(this.slots < MAX_TIMERS, `more than ${MAX_TIMERS} timers`);
    if (this.slots === this.heap.length) {
      const length = this.slots * 2;
      this.heap = copy(new Int32Array(length), this.heap);
      this.deadlines = copy(new Float64Array(length), this.deadlines);
      this.sequences = copy(new Float64Array(length), this.sequences);
      this.places = copy(new Int32Array(length).fill(-1), this.places);
      this.generations = copy(new Uint32Array(length), this.generations);
    }
    return this.slots++;
  }

  private take(place: number): void {
    const slot = this.heap[place];
    this.places[slot] = -1;
    this.generations[slot]++;
    this.callbacks[slot] = undefined;
    this.free.push(slot);
    const last = this.heap[--this.count];
    if (place === this.count) return;
    this.sink(place, last);
    this.rise(this.places[last], last);
  }

  private before(a: number, b: number): boolean {
    const difference = this.deadlines[a] - this.deadlines[b];
    return difference < 0 || (difference === 0 && this.sequences[a] < this.sequences[b]);
  }

  private rise(from: number, slot: number): void {
    let place = from;
    while (place > 0) {
      const parent = (place - 1) >> 1;
      if (!this.before(slot, this.heap[parent])) break;
      this.put(place, this.heap[parent]);
      place = parent;
    }
    this.put(place, slot);
  }

  private sink(from: number, slot: number): void {
    let place = from;
    for (;;) {
      let child = 2 * place + 1;
      if (child >= this.count) break;
      if (child + 1 < this.count && this.before(this.heap[child + 1], this.heap[child])) child++;
      if (!this.before(this.heap[child], slot)) break;
      this.put(place, this.heap[child]);
      place = child;
    }
    this.put(place, slot);
  }

  private put(place: number, slot: number): void {
    this.heap[place] = slot;
    this.places[slot] = place;
  }
}

function copy<T extends { set(from: T): void }>(to: T, from: T): T {
  to.set(from);
  return to;
}
