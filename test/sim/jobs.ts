/**
 * The helper threads of one simulated node.
 *
 * Owns: queues, the virtual times at which rows take effect, completions, and
 * what a crash makes of jobs in flight.
 * Must not know: files; a row is run by the function that it is given.
 */
import { JOB_COLUMNS, JobOp, Queue, type QueueId } from '../../src/io/io.js';
import { assert } from '../../src/base/assert.js';
import type { SimClock } from './clock.js';
import type { Faults } from './faults.js';
import type { Random } from './random.js';

/** Runs one row; `part` < 1 means that the process dies within it: that share of its pages is done. Returns 0.. or −errno. */
export type RunRow = (op: number, fd: number, buffer: number, length: number, pos: number, part: number) => number;

interface Job {
  readonly rows: Float64Array;
  readonly count: number;
  readonly token: number;
  /** Rows done. */
  done: number;
  result: number;
  failedRow: number;
}

const QUEUES = 5;
const WAITING_LIMIT = 65536;

export class SimJobs {
  private readonly waiting: Job[][] = Array.from({ length: QUEUES }, () => []);
  private readonly running: Job[][] = Array.from({ length: QUEUES }, () => []);
  private completed: Job[] = [];
  private dead = false;
  /** Scales every latency; tests make a disk slow or quick with it. */
  slowness = 1;

  constructor(
    private readonly clock: SimClock,
    private readonly random: Random,
    private readonly faults: Faults,
    private readonly runRow: RunRow,
  ) {}

  submit(queue: QueueId, rows: Float64Array, count: number, token: number): void {
    assert(queue >= 0 && queue < QUEUES, `queue ${queue}`);
    assert(count > 0 && rows.length >= count * JOB_COLUMNS, `a job of ${count} rows`);
    assert(this.waiting[queue].length < WAITING_LIMIT, 'too many jobs wait');
    this.waiting[queue].push({ rows: rows.slice(0, count * JOB_COLUMNS), count, token, done: 0, result: 0, failedRow: -1 });
    this.startNext(queue);
  }

  private startNext(queue: QueueId): void {
    const threads = queue === Queue.read ? 2 : 1;
    while (this.running[queue].length < threads && this.waiting[queue].length > 0) {
      const job = this.waiting[queue].shift()!;
      this.running[queue].push(job);
      this.scheduleRow(queue, job);
    }
  }

  private scheduleRow(queue: QueueId, job: Job): void {
    const at = job.done * JOB_COLUMNS;
    let latency = rowLatency(this.random, job.rows[at], job.rows[at + 3]) * this.slowness;
    const rates = this.faults.rates;
    if (this.random.chance(rates.stall)) latency += this.random.below(rates.stallUs);
    this.clock.schedule(this.clock.now + latency, () => {
      if (this.dead) return;
      const result = this.run(job, 1);
      if (result < 0) {
        job.result = result;
        job.failedRow = job.done;
      } else {
        job.done++;
        if (job.done < job.count) {
          this.scheduleRow(queue, job);
          return;
        }
      }
      this.clock.schedule(this.clock.now + this.random.between(1, 30), () => this.finish(queue, job));
    });
  }

  private run(job: Job, part: number): number {
    const r = job.rows;
    const at = job.done * JOB_COLUMNS;
    return this.runRow(r[at], r[at + 1], r[at + 2], r[at + 3], r[at + 4], part);
  }

  private finish(queue: QueueId, job: Job): void {
    if (this.dead) return;
    const running = this.running[queue];
    running.splice(running.indexOf(job), 1);
    this.completed.push(job);
    this.startNext(queue);
  }

  get hasCompleted(): boolean {
    return this.completed.length > 0;
  }

  /** Jobs not yet reaped. */
  get outstanding(): number {
    let count = this.completed.length;
    for (let q = 0; q < QUEUES; q++) count += this.waiting[q].length + this.running[q].length;
    return count;
  }

  reap(out: Float64Array): number {
    const count = Math.min(this.completed.length, Math.floor(out.length / 3));
    for (let i = 0; i < count; i++) {
      const job = this.completed[i];
      out[i * 3] = job.token;
      out[i * 3 + 1] = job.result;
      out[i * 3 + 2] = job.failedRow;
    }
    this.completed.splice(0, count);
    return count;
  }

  /**
   * The process dies. Per thread, some more rows happen, in order, and the one
   * where it stops may be done in part; the rest never happens. (Where in the
   * queue the helper thread stands at the instant of the crash is chance.)
   */
  abandon(): void {
    this.dead = true;
    for (let queue = 0; queue < QUEUES; queue++) {
      const threads = queue === Queue.read ? this.running[queue].map((job) => [job]) : [[...this.running[queue], ...this.waiting[queue]]];
      for (const jobs of threads) this.runSome(jobs);
      this.waiting[queue] = [];
      this.running[queue] = [];
    }
    this.completed = [];
  }

  private runSome(jobs: Job[]): void {
    if (this.random.chance(0.4)) return;
    const goOn = this.random.pick([0.3, 0.7, 0.95]);
    for (const job of jobs) {
      if (job.failedRow >= 0) continue;
      for (; job.done < job.count; job.done++) {
        if (!this.random.chance(goOn)) {
          if (this.random.chance(0.5)) this.run(job, this.random.unit());
          return;
        }
        if (this.run(job, 1) < 0) break;
      }
    }
  }
}

/** Microseconds that a row takes: wide, so that every order of completions comes up. */
function rowLatency(random: Random, op: number, length: number): number {
  switch (op) {
    case JobOp.pread:
      return random.logUniform(10, 400);
    case JobOp.pwrite:
      return random.logUniform(5, 200) + length / 2000;
    case JobOp.fdatasync:
    case JobOp.fsync:
      return random.logUniform(20, 3000);
    case JobOp.zero:
      return random.logUniform(5, 100) + length / 4000;
    default:
      return random.logUniform(2, 100);
  }
}
