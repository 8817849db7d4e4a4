/** The rows of the bench: which load, and which floor the project has set itself against nbdkit's file plugin. */

export interface Row {
  readonly name: string;
  readonly title: string;
  /** Arguments of loadgen that make the load. */
  readonly load: readonly string[];
  /** What the figures count: requests per second, or megabytes per second for large blocks. */
  readonly unit: 'requests' | 'megabytes';
  /** Floor of the ratio of lockstep's median to nbdkit's. */
  readonly floor?: number;
  /** The same with an async secondary on the same machine. */
  readonly asyncFloor?: number;
  /**
   * Bounds the load by passes over the volume instead of by time. A log writes every byte to the disk once more than a
   * server that leaves overwritten pages in the page cache, so a long run of large writes without a FLUSH would compare
   * the disk with the memory; what both sides can take in one go is comparable. SWF1M is the row in which both go to the disk.
   */
  readonly passes?: number;
  /** Also has to be ahead of nbd-server and qemu-nbd. */
  readonly ahead: boolean;
}

const write = ['--op', 'write'];
const read = ['--op', 'read'];

function small(name: string, title: string, load: readonly string[], floors: { floor?: number; asyncFloor?: number } = {}): Row {
  return { name, title, load: ['--block', '4K', ...load], unit: 'requests', ahead: true, ...floors };
}

function large(name: string, title: string, load: readonly string[], limits: { floor?: number; passes?: number } = {}): Row {
  return { name, title, load: ['--sequential', '--depth', '8', ...load], unit: 'megabytes', ahead: false, ...limits };
}

export const ROWS: readonly Row[] = [
  small('W1', '4 KiB random write, depth 32', [...write, '--depth', '32'], { floor: 1.7, asyncFloor: 0.85 }),
  small('R1', '4 KiB random read, depth 32', [...read, '--depth', '32'], { floor: 1.7 }),
  small('W2', '4 KiB random write, depth 32, a FLUSH every 32', [...write, '--depth', '32', '--flush-every', '32'], { floor: 2 }),
  small('W3', '4 KiB random write with FUA, depth 16', [...write, '--depth', '16', '--fua'], { floor: 1.2 }),
  small('D1W', '4 KiB random write, depth 1', [...write, '--depth', '1'], { floor: 1 }),
  small('D1R', '4 KiB random read, depth 1', [...read, '--depth', '1'], { floor: 1 }),
  small('W1x4', '4 KiB random write, 4 connections of depth 32', [...write, '--depth', '32', '--connections', '4']),
  small('R1x4', '4 KiB random read, 4 connections of depth 32', [...read, '--depth', '32', '--connections', '4']),
  large('SW128K', '128 KiB sequential write, depth 8, 2 passes', [...write, '--block', '128K'], { passes: 2 }),
  large('SR128K', '128 KiB sequential read, depth 8', [...read, '--block', '128K']),
  large('SW1M', '1 MiB sequential write, depth 8, 2 passes', [...write, '--block', '1M'], { floor: 0.8, passes: 2 }),
  large('SWF1M', '1 MiB sequential write, depth 8, a FLUSH every 256 MiB, 2 passes', [...write, '--block', '1M', '--flush-every', '256'], { passes: 2 }),
  large('SR1M', '1 MiB sequential read, depth 8', [...read, '--block', '1M'], { floor: 0.9 }),
];
