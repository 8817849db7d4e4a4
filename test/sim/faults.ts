/**
 * Faults that a simulated disk or network injects.
 *
 * Owns: the seeded probabilities, the hook for chosen faults, the count of each
 * operation, and the fuse that crashes a node at its nth operation.
 * Must not know: how an operation works.
 */
import type { Random } from './random.js';

export const FAULT_OPS = [
  'pwrite', 'pread', 'preadNowait', 'fdatasync', 'fsync', 'punch', 'zero', 'close', 'open',
  'syncDirectory', 'mkdir', 'rename', 'unlink', 'truncate', 'list', 'stat', 'advise', 'space', 'submit', 'reap',
  'listen', 'connect', 'accept', 'recv', 'send', 'wait',
] as const;
/** pwritev counts as pwrite. Rows of a job count when they run, as what they are. */
export type FaultOp = (typeof FAULT_OPS)[number];

/** What a hook sees. One object is reused: copy what you keep. */
export interface FaultSite {
  op: FaultOp;
  /** Path at which the file was opened; '' for sockets. */
  path: string;
  pos: number;
  length: number;
  /** The how-manieth operation of this kind on this disk it is, from 1. */
  nth: number;
  /** Whether a helper thread runs it. */
  inJob: boolean;
}

export interface FaultRates {
  /** Probability of EIO per call. */
  writeError: number;
  readError: number;
  syncError: number;
  /** Probability of ENOSPC per write that would allocate. */
  noSpace: number;
  /** Probability that preadNowait says EAGAIN. */
  coldRead: number;
  /** Probability that a job row takes up to `stallUs` longer. */
  stall: number;
  stallUs: number;
  /**
   * Probability that a page which a failing fdatasync covers is lost; the others were written.
   * −1: drawn per failure, half of the failures lose all.
   */
  lossPerPage: number;
}

export const NO_FAULTS: FaultRates = {
  writeError: 0,
  readError: 0,
  syncError: 0,
  noSpace: 0,
  coldRead: 0,
  stall: 0,
  stallUs: 50_000,
  lossPerPage: -1,
};

/**
 * Thrown out of an Io call when the node's fuse burns down: the process is gone
 * at that instant. World turns it into a crash; code under test must not catch it.
 */
export class SimCrash extends Error {
  override readonly name = 'SimCrash';
}

export class Faults {
  rates: FaultRates = { ...NO_FAULTS };
  /** Returns an errno (positive) to make the operation fail, or 0/undefined to let it be. May throw SimCrash. */
  hook: ((site: FaultSite) => number | undefined) | undefined;
  /** Operations of each kind so far. */
  readonly counts: Record<FaultOp, number>;
  /** All operations so far. */
  total = 0;
  /** Operations until SimCrash; 0 = never. Mutating operations only if `fuseMutationsOnly`. */
  fuse = 0;
  fuseMutationsOnly = true;
  private readonly site: FaultSite = { op: 'stat', path: '', pos: 0, length: 0, nth: 0, inJob: false };

  constructor(private readonly random: Random) {
    this.counts = Object.fromEntries(FAULT_OPS.map((op) => [op, 0])) as Record<FaultOp, number>;
  }

  /** Counts the operation; true when the fuse burns down at it. Operations of helper threads do not burn it. */
  burns(op: FaultOp, inJob: boolean): boolean {
    this.counts[op]++;
    this.total++;
    if (this.fuse === 0 || inJob) return false;
    if (this.fuseMutationsOnly && !MUTATIONS.has(op)) return false;
    return --this.fuse === 0;
  }

  /** The errno that the operation is to fail with, or 0. `burns` was called before. */
  errno(op: FaultOp, path: string, pos: number, length: number, inJob: boolean): number {
    if (this.hook !== undefined) {
      const site = this.site;
      site.op = op;
      site.path = path;
      site.pos = pos;
      site.length = length;
      site.nth = this.counts[op];
      site.inJob = inJob;
      const chosen = this.hook(site) ?? 0;
      if (chosen !== 0) return chosen;
    }
    const rates = this.rates;
    switch (op) {
      case 'pwrite':
      case 'zero':
      case 'punch':
        return this.random.chance(rates.writeError) ? EIO : 0;
      case 'pread':
      case 'preadNowait':
        return this.random.chance(rates.readError) ? EIO : 0;
      case 'fdatasync':
      case 'fsync':
      case 'syncDirectory':
        return !path.startsWith('/tmpfs/') && this.random.chance(rates.syncError) ? EIO : 0;
      default:
        return 0;
    }
  }

  lossPerPage(): number {
    if (this.rates.lossPerPage >= 0) return this.rates.lossPerPage;
    return this.random.chance(0.5) ? 1 : 0.5;
  }
}

const EIO = 5;
/** In place of an errno, of a write that is not a helper's: it returns fewer bytes than it was given. */
export const SHORT_WRITE = 0x7ffe;
const MUTATIONS: ReadonlySet<FaultOp> = new Set<FaultOp>([
  'pwrite', 'fdatasync', 'fsync', 'punch', 'zero', 'open', 'syncDirectory', 'mkdir', 'rename', 'unlink', 'truncate', 'submit', 'send',
]);
