/**
 * Virtual time of a simulation, and the trace of what happened in it.
 *
 * Owns: the clock that all nodes share, the heap of scheduled events (job rows,
 * deliveries, test actions), a hash and the tail of the trace.
 * Must not know: what an event does.
 */

interface Scheduled {
  readonly at: number;
  readonly order: number;
  readonly action: () => void;
}

export class SimClock {
  /** Microseconds since the start of the simulation. */
  now = 0;
  private readonly heap: Scheduled[] = [];
  private order = 0;

  /** Runs `action` once the clock reaches `at` (at once, at the next `fire`, when that has passed). Ties fire in order of scheduling. */
  schedule(at: number, action: () => void): void {
    const heap = this.heap;
    const added = { at: Math.max(at, this.now), order: this.order++, action };
    let i = heap.length;
    heap.push(added);
    while (i > 0) {
      const above = (i - 1) >> 1;
      if (!before(added, heap[above])) break;
      heap[i] = heap[above];
      i = above;
    }
    heap[i] = added;
  }

  /** Time of the next event; Infinity when none is scheduled. */
  get nextAt(): number {
    return this.heap.length === 0 ? Infinity : this.heap[0].at;
  }

  get scheduled(): number {
    return this.heap.length;
  }

  /** Runs all events that are due. Returns how many. */
  fire(): number {
    let fired = 0;
    while (this.heap.length > 0 && this.heap[0].at <= this.now) {
      this.pop().action();
      fired++;
    }
    return fired;
  }

  /** Moves to `at`, running the events on the way, each at its own time. */
  advanceTo(at: number): void {
    while (this.heap.length > 0 && this.heap[0].at <= at) {
      this.now = Math.max(this.now, this.heap[0].at);
      this.pop().action();
    }
    this.now = Math.max(this.now, at);
  }

  private pop(): Scheduled {
    const heap = this.heap;
    const top = heap[0];
    const moved = heap.pop()!;
    if (heap.length > 0) {
      let i = 0;
      for (;;) {
        let below = 2 * i + 1;
        if (below >= heap.length) break;
        if (below + 1 < heap.length && before(heap[below + 1], heap[below])) below++;
        if (!before(heap[below], moved)) break;
        heap[i] = heap[below];
        i = below;
      }
      heap[i] = moved;
    }
    return top;
  }
}

function before(a: Scheduled, b: Scheduled): boolean {
  return a.at !== b.at ? a.at < b.at : a.order < b.order;
}

const KEPT = 512;

/** What happened, in order: equal seeds must give equal hashes. */
export class Trace {
  private state = 0x9e3779b9 | 0;
  count = 0;
  private readonly lines: (string | number)[][] = [];

  /** `time` in µs; `who` and `what` from a small set of words; numbers as they come. */
  note(time: number, who: string, what: string, a: number, b: number, result: number): void {
    const text = this.mix(this.mixText(this.mixText(this.state, who), what), a | 0);
    this.state = this.mix(this.mix(this.mix(text, b | 0), result | 0), Math.floor(time * 16) | 0);
    this.lines[this.count++ % KEPT] = [time, who, what, a, b, result];
  }

  private mix(state: number, value: number): number {
    const mixed = Math.imul(state ^ value, 0x85ebca6b);
    return mixed ^ (mixed >>> 15);
  }

  private mixText(state: number, text: string): number {
    return this.mix(state, text.length === 0 ? 0 : text.charCodeAt(0) * 65537 + text.charCodeAt(text.length - 1) + text.length * 257);
  }

  get hash(): number {
    return this.state >>> 0;
  }

  /** The last `lines` entries as text, oldest first. */
  tail(lines = 40): string {
    const out: string[] = [];
    for (let i = Math.max(0, this.count - Math.min(lines, KEPT)); i < this.count; i++) {
      const [time, who, what, a, b, result] = this.lines[i % KEPT];
      out.push(`${Number(time).toFixed(1)}us ${who} ${what}(${a}, ${b}) = ${result}`);
    }
    return out.join('\n');
  }
}
