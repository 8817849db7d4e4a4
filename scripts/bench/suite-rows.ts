/**
 * The main suite: every row against every server in interleaved rounds with
 * rotated order, so that what else the machine does hits all of them.
 */
import { join } from 'node:path';
import { parseSize } from '../../src/base/units.js';
import { ROWS, type Row } from './rows.js';
import { cpuSeconds, fill, load, peakMemoryBytes, type LoadResult } from './measure.js';
import { SERVER_NAMES, startServer, type BenchServer, type ServerName } from './servers.js';
import { median, quantile, short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

/** One server in one row and round. */
export interface Cell {
  readonly row: string;
  readonly server: string;
  readonly round: number;
  readonly result: LoadResult;
  /** CPU of the server per request, microseconds, while the load ran. */
  readonly cpuUs: number;
  /** The same until the server had settled: destaging included. */
  readonly cpuSettledUs: number;
}

/** A row is bound by the client when its figure is within this factor of the null responder's. */
const CEILING_FACTOR = 1.2;

async function measureCell(server: BenchServer, row: Row, round: number, options: BenchOptions): Promise<Cell> {
  const before = cpuSeconds(server.pid);
  const warmup = row.passes === undefined ? Math.min(0.3, options.seconds / 4) : 0;
  const limit = row.passes === undefined
    ? ['--seconds', String(options.seconds), '--warmup', String(warmup)]
    : ['--count', String((row.passes * options.volumeBytes) / blockBytes(row)), '--seconds', '300'];
  const result = await load(server, [...row.load, '--range', String(options.volumeBytes), ...limit, '--seed', String(round * 100 + 1)]);
  const during = cpuSeconds(server.pid);
  await server.settle();
  const settled = cpuSeconds(server.pid);
  // the warm-up's requests are not counted but cost CPU as well
  const requests = result.requests * (1 + warmup / result.seconds);
  return { row: row.name, server: server.name, round, result, cpuUs: (during - before) * 1e6 / requests, cpuSettledUs: (settled - before) * 1e6 / requests };
}

function blockBytes(row: Row): number {
  return parseSize(row.load[row.load.indexOf('--block') + 1]) ?? NaN;
}

function figure(row: Row, cell: Cell): number {
  return row.unit === 'requests' ? cell.result.requestsPerSecond / 1000 : cell.result.megabytesPerSecond;
}

/** The text of one row, and the sentences about floors that it misses. */
function renderRow(row: Row, cells: readonly Cell[], names: readonly string[]): { text: string; missed: string[] } {
  const of = (name: string): Cell[] => cells.filter((cell) => cell.row === row.name && cell.server === name);
  const medians = new Map(names.map((name) => [name, median(of(name).map((cell) => figure(row, cell)))]));
  const base = medians.get('nbdkit') ?? NaN;
  const ceiling = medians.get('null') ?? NaN;
  const missed: string[] = [];
  const lines: string[][] = [[
    '', row.unit === 'requests' ? 'k req/s' : 'MB/s', 'quartiles', 'x nbdkit', 'floor', 'p50 us', 'p99 us', 'CPU us/req', 'settled', '',
  ]];
  for (const name of names) {
    const mine = of(name);
    const value = medians.get(name) ?? NaN;
    const values = mine.map((cell) => figure(row, cell));
    const ratio = value / base;
    const floor = name === 'lockstep' ? row.floor : name === 'lockstep+async' ? row.asyncFloor : undefined;
    const notes: string[] = [];
    if (name !== 'null' && value * CEILING_FACTOR >= ceiling) notes.push('near the client\'s ceiling');
    if (floor !== undefined && ratio < floor) {
      notes.push('BELOW FLOOR');
      missed.push(`${row.name} ${name}: ${short(ratio)} x nbdkit, floor ${floor}`);
    }
    if (name === 'lockstep' && row.ahead) {
      for (const other of ['nbd-server', 'qemu-nbd']) {
        if (value <= (medians.get(other) ?? -Infinity)) {
          notes.push(`BEHIND ${other}`);
          missed.push(`${row.name} lockstep: behind ${other}, ${short(value)} against ${short(medians.get(other) ?? NaN)}`);
        }
      }
    }
    lines.push([
      name, short(value), `${short(quantile(values, 0.25))}-${short(quantile(values, 0.75))}`, name === 'null' ? '' : short(ratio), floor === undefined ? '' : String(floor),
      short(median(mine.map((cell) => cell.result.latencyUs.p50))), short(median(mine.map((cell) => cell.result.latencyUs.p99))),
      short(median(mine.map((cell) => cell.cpuUs))), short(median(mine.map((cell) => cell.cpuSettledUs))), notes.join(', '),
    ]);
  }
  return { text: `${row.name}: ${row.title}\n${table(lines)}\n`, missed };
}

function pick<T extends string>(what: string, all: readonly T[], wanted: readonly string[] | undefined): T[] {
  for (const name of wanted ?? []) {
    if (!all.some((one) => one === name)) throw new Error(`there is no ${what} ${name}; there are ${all.join(', ')}`);
  }
  return all.filter((one) => wanted === undefined || wanted.includes(one));
}

export async function runRows(options: BenchOptions): Promise<{ cells: Cell[]; missed: string[] }> {
  const rowNames = pick('row', ROWS.map((row) => row.name), options.rows);
  const rows = ROWS.filter((row) => rowNames.includes(row.name));
  const names: ServerName[] = pick('server', SERVER_NAMES, options.servers);
  const servers: BenchServer[] = [];
  const cells: Cell[] = [];
  const peaks = new Map<string, number>();
  try {
    for (const name of names) {
      const server = await startServer(name, { ...options, directory: join(options.directory, 'rows') });
      servers.push(server);
      if (name !== 'null') await fill(server, options.volumeBytes);
      await server.settle();
      options.say(`${name} serves ${options.volumeBytes / 2 ** 20} MiB`);
    }
    for (let round = 0; round < options.rounds; round++) {
      for (const [position, row] of rows.entries()) {
        for (let i = 0; i < servers.length; i++) {
          const server = servers[(i + round + position) % servers.length];
          cells.push(await measureCell(server, row, round, options));
          peaks.set(server.name, Math.max(peaks.get(server.name) ?? 0, peakMemoryBytes(server.pid)));
        }
      }
      options.say(`round ${round + 1} of ${options.rounds} done`);
    }
  } finally {
    await Promise.all(servers.map((server) => server.stop()));
  }
  console.log(`\n${options.transport} socket, one client thread, ${options.rounds} interleaved rounds of ${options.seconds} s, ${options.volumeBytes / 2 ** 20} MiB, warm\n`);
  const missed: string[] = [];
  for (const row of rows) {
    const rendered = renderRow(row, cells, names);
    console.log(rendered.text);
    missed.push(...rendered.missed);
  }
  console.log(table([['peak memory, MiB'], ...names.map((name) => [name, short((peaks.get(name) ?? 0) / 2 ** 20)])]));
  console.log('\nk req/s: data requests. CPU us/req: the server, all threads and children, while the load ran; settled: until it had also');
  console.log('destaged (lockstep) or synced what the load left. With a secondary: the primary alone.');
  return { cells, missed };
}
