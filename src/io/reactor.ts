/**
 * The event loop of a data-path thread, over any `Io`.
 *
 * Owns: who is told about which descriptor, timer and finished job, in which
 * order, and when to block. Must not know: what the handlers do.
 *
 * One tick: wait · events in the order reported · finished jobs · timers · the
 * tick-end hooks in the order registered. Hooks are where work of a whole tick
 * becomes one system call (one append, one send per connection); they run in
 * every tick in which anything happened or that `again()` asked for. Nothing is
 * allocated per event. A handler that throws has found a bug: the exception
 * leaves `step`, and the reactor is not to be used again.
 */
import { assert } from '../base/assert.js';
import { IoError } from '../base/errors.js';
import type { Arena } from './arena.js';
import type { Io, JobTable, QueueId } from './io.js';
import { TAG_FIRST, TAG_JOBS, TAG_WAKE } from './io.js';
import type { TimerId } from './timers.js';
import { TimerHeap } from './timers.js';

/** `events`: bits of `Ready`. */
export type EventHandler = (events: number) => void;
/** `result`: 0, or −errno of the first failing row, whose index `failedRow` is (−1 when none failed). */
export type JobDone = (result: number, failedRow: number) => void;

export interface ReactorOptions {
  /**
   * Microseconds for which the reactor keeps polling after the last event before
   * it blocks. 0 for tests and the simulator, whose clock stands still in a poll.
   */
  readonly spinUs?: number;
}

/** Descriptors, and jobs in flight, at once. */
const MAX_WATCHES = 65536;
const MAX_JOBS = 65536;
const EVENTS_PER_WAIT = 256;
const COMPLETIONS_PER_REAP = 256;

/** A tag is generation << 16 | slot: an event of an earlier owner of the slot is recognised and dropped. */
const SLOT_MASK = 0xffff;
const GENERATION_MASK = 0x7fff;

export class Reactor {
  /** See ReactorOptions. May be changed at any time. */
  spinUs: number;
  private now: number;
  private inTick = false;
  private stopping = false;
  private moreToDo = false;
  private lastActiveUs = -Infinity;

  private readonly events = new Int32Array(2 * EVENTS_PER_WAIT);
  private readonly completions = new Float64Array(3 * COMPLETIONS_PER_REAP);
  /** Per slot: the tag in force (or the next one, while the slot is free), descriptor (−1: free), handler. */
  private readonly tags: number[] = [TAG_JOBS, TAG_WAKE];
  private readonly fds: number[] = [-1, -1];
  private readonly handlers: (EventHandler | undefined)[] = [undefined, undefined];
  private readonly freeSlots: number[] = [];

  private readonly jobs: (JobDone | undefined)[] = [];
  private readonly freeJobs: number[] = [];
  private jobCount = 0;

  private readonly timers = new TimerHeap();
  private readonly hooks: ((() => void) | undefined)[] = [];
  private readonly wakers: ((() => void) | undefined)[] = [];

  constructor(
    readonly io: Io,
    readonly arena: Arena,
    options: ReactorOptions = {},
  ) {
    this.spinUs = options.spinUs ?? 0;
    this.now = io.nowUs();
  }

  /** Monotonic time in microseconds; within a tick that of its beginning. */
  get nowUs(): number {
    if (!this.inTick) this.now = this.io.nowUs();
    return this.now;
  }

  /** Jobs submitted whose `done` has not been called. */
  get jobsInFlight(): number {
    return this.jobCount;
  }

  // ---- descriptors ------------------------------------------------------------------------------

  /**
   * Calls `handler` whenever `fd` is ready for one of `events` (ERR and HUP always count). The descriptor stays
   * its owner's, who calls `unwatch` before closing it. Returns the tag that names this watch. Throws IoError.
   */
  watch(fd: number, events: number, handler: EventHandler): number {
    let slot = this.freeSlots.pop();
    if (slot === undefined) {
      slot = this.tags.length;
      assert(slot >= TAG_FIRST && slot < MAX_WATCHES, `more than ${MAX_WATCHES} watched descriptors`);
      this.tags.push(slot);
      this.fds.push(-1);
      this.handlers.push(undefined);
    }
    const result = this.io.watch(fd, events, this.tags[slot]);
    if (result < 0) {
      this.freeSlots.push(slot);
      throw new IoError(-result, 'watch', `descriptor ${fd}`);
    }
    this.fds[slot] = fd;
    this.handlers[slot] = handler;
    return this.tags[slot];
  }

  /** Changes what the watch waits for; 0 leaves only errors and hang-ups. */
  rewatch(tag: number, events: number): void {
    const result = this.io.rewatch(this.fds[this.watched(tag)], events, tag);
    assert(result >= 0, `rewatch failed with ${result}: was the descriptor closed before unwatch?`);
  }

  /** Ends the watch: its handler is not called again, not even for events that this tick has already got. */
  unwatch(tag: number): void {
    const slot = this.watched(tag);
    const result = this.io.unwatch(this.fds[slot]);
    assert(result >= 0, `unwatch failed with ${result}: was the descriptor closed before?`);
    const generation = ((tag >>> 16) + 1) & GENERATION_MASK;
    this.tags[slot] = (generation << 16) | slot;
    this.fds[slot] = -1;
    this.handlers[slot] = undefined;
    this.freeSlots.push(slot);
  }

  private watched(tag: number): number {
    const slot = tag & SLOT_MASK;
    assert(slot >= TAG_FIRST && this.tags[slot] === tag && this.fds[slot] >= 0, `tag ${tag} is not watched`);
    return slot;
  }

  // ---- jobs -------------------------------------------------------------------------------------

  /**
   * Hands the job to a helper queue; `done` is called in a later tick. The rows are copied, so the table may be
   * used again at once; the arena ranges that they name stay borrowed until `done`.
   */
  submit(queue: QueueId, table: JobTable, done: JobDone): void {
    let token = this.freeJobs.pop();
    if (token === undefined) {
      token = this.jobs.length;
      assert(token < MAX_JOBS, `more than ${MAX_JOBS} jobs in flight`);
      this.jobs.push(undefined);
    }
    this.jobs[token] = done;
    this.jobCount++;
    this.io.submit(queue, table.rows, table.count, token);
  }

  // ---- timers and hooks -------------------------------------------------------------------------

  /** Calls `callback` once, at least `delayUs` after the beginning of this tick, and never in this tick. */
  after(delayUs: number, callback: () => void): TimerId {
    assert(delayUs >= 0, `a delay of ${delayUs} µs`);
    return this.timers.add(this.nowUs + delayUs, callback);
  }

  /** False when the timer has already fired or was cancelled. */
  cancel(id: TimerId): boolean {
    return this.timers.cancel(id);
  }

  /** Timers that are set. */
  get timerCount(): number {
    return this.timers.size;
  }

  /** Registers a tick-end hook (see above); returns what removes it. */
  onTickEnd(hook: () => void): () => void {
    return register(this.hooks, hook);
  }

  /** `callback` runs when another thread wrote to `io.wakeFd`; returns what removes it. */
  onWake(callback: () => void): () => void {
    return register(this.wakers, callback);
  }

  /**
   * There is work that no event will announce (a request that was received but not served): the next tick polls
   * instead of blocking, and runs the hooks.
   */
  again(): void {
    this.moreToDo = true;
  }

  // ---- the loop ---------------------------------------------------------------------------------

  /**
   * One tick; blocks for at most `maxWaitUs` (−1: until something happens, though the Io may return early).
   * Returns whether anything happened.
   */
  step(maxWaitUs: number): boolean {
    assert(!this.inTick, 'step was called within a tick, or after a handler threw');
    const asked = this.moreToDo;
    this.moreToDo = false;
    const spinning = !asked && this.now - this.lastActiveUs < this.spinUs;
    const count = this.io.wait(asked || spinning ? 0 : this.timeout(maxWaitUs), this.events);
    if (count < 0) throw new IoError(-count, 'wait for', 'events');
    // Without this, a helper or a client that the scheduler put on our core waits until the spin is over.
    if (count === 0 && spinning) this.io.relax?.();
    this.now = this.io.nowUs();
    this.inTick = true;
    if (count > 0) this.dispatch(count);
    if (count > 0 || asked) this.lastActiveUs = this.now;
    let happened = count > 0 || asked;
    if (this.timers.nextDeadline <= this.now && this.timers.fire(this.now) > 0) happened = true;
    if (happened) runAll(this.hooks);
    this.inTick = false;
    return happened;
  }

  /** Ticks until `stop()`; the tick that called it is finished. */
  run(): void {
    while (!this.stopping) this.step(-1);
    this.stopping = false;
  }

  /** `run` returns at the end of the tick under way. */
  stop(): void {
    this.stopping = true;
  }

  private timeout(maxWaitUs: number): number {
    if (maxWaitUs === 0 || this.timers.size === 0) return maxWaitUs;
    const untilTimer = Math.max(0, this.timers.nextDeadline - this.io.nowUs());
    return maxWaitUs < 0 ? untilTimer : Math.min(maxWaitUs, untilTimer);
  }

  private dispatch(count: number): void {
    let jobsDone = false;
    for (let i = 0; i < count; i++) {
      const tag = this.events[2 * i];
      const slot = tag & SLOT_MASK;
      if (this.tags[slot] !== tag) continue;
      if (slot === TAG_JOBS) {
        jobsDone = true;
      } else if (slot === TAG_WAKE) {
        runAll(this.wakers);
      } else {
        const handler = this.handlers[slot];
        if (handler !== undefined) handler(this.events[2 * i + 1]);
      }
    }
    if (jobsDone) this.finishJobs();
  }

  private finishJobs(): void {
    for (;;) {
      const count = this.io.reap(this.completions);
      for (let i = 0; i < count; i++) {
        const token = this.completions[3 * i];
        const done = this.jobs[token];
        assert(done !== undefined, `job ${token} was completed twice`);
        this.jobs[token] = undefined;
        this.freeJobs.push(token);
        this.jobCount--;
        done(this.completions[3 * i + 1], this.completions[3 * i + 2]);
      }
      if (count < COMPLETIONS_PER_REAP) return;
    }
  }
}

function register(list: ((() => void) | undefined)[], callback: () => void): () => void {
  list.push(callback);
  return () => {
    const at = list.indexOf(callback);
    // The place stays while the list may be running; runAll closes the gap.
    if (at >= 0) list[at] = undefined;
  };
}

function runAll(list: ((() => void) | undefined)[]): void {
  let gaps = false;
  for (let i = 0; i < list.length; i++) {
    const callback = list[i];
    if (callback === undefined) gaps = true;
    else callback();
  }
  if (!gaps) return;
  let kept = 0;
  for (const callback of list) {
    if (callback !== undefined) list[kept++] = callback;
  }
  list.length = kept;
}
