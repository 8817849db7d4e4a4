/** What users run: fio's NBD engine and nbdcopy against every server. They are slow enough to hide differences. */
import { join } from 'node:path';
import { fill, type Target } from './measure.js';
import { SERVER_NAMES, startServer, type BenchServer } from './servers.js';
import { median, short, table } from './statistics.js';
import { run } from '../../test/harness/process.js';
import type { BenchOptions } from './options.js';

interface ToolRow {
  readonly title: string;
  readonly unit: string;
  measure(server: BenchServer, options: BenchOptions): Promise<number>;
}

function uri(target: Target): string {
  const name = encodeURIComponent(target.exportName);
  return target.address.startsWith('unix:') ? `nbd+unix:///${name}?socket=${target.address.slice(5)}` : `nbd://${target.address.slice(4)}/${name}`;
}

async function succeed(command: string, args: readonly string[]): Promise<string> {
  const result = await run(command, args, { timeoutMs: 300_000 });
  if (result.code !== 0) throw new Error(`${command} ${args.join(' ')}: exit code ${result.code}: ${result.stderr}`);
  return result.stdout;
}

function fio(title: string, rw: string): ToolRow {
  return {
    title, unit: 'k req/s',
    async measure(server, options) {
      const text = await succeed('fio', [
        '--name=bench', '--ioengine=nbd', `--uri=${uri(server)}`, `--rw=${rw}`, '--bs=4k', '--iodepth=32', `--size=${options.volumeBytes}`,
        '--time_based', `--runtime=${Math.max(1, Math.round(options.seconds))}`, '--output-format=json', '--eta=never',
      ]);
      const jobs = (JSON.parse(text.slice(text.indexOf('{'))) as { jobs: { read: { iops: number }; write: { iops: number } }[] }).jobs;
      return (jobs[0].read.iops + jobs[0].write.iops) / 1000;
    },
  };
}

const ROWS: readonly ToolRow[] = [
  fio('fio, 4 KiB random write, depth 32', 'randwrite'),
  fio('fio, 4 KiB random read, depth 32', 'randread'),
  {
    title: 'nbdcopy, all of it to null:', unit: 'MB/s',
    async measure(server, options) {
      const before = performance.now();
      await succeed('nbdcopy', [uri(server), 'null:']);
      return options.volumeBytes / 1e3 / (performance.now() - before);
    },
  },
];

export async function runTools(options: BenchOptions): Promise<{ missed: string[]; figures: Record<string, Record<string, number[]>> }> {
  const names = SERVER_NAMES.filter((name) => name !== 'null' && (options.servers?.includes(name) ?? true));
  const servers: BenchServer[] = [];
  const figures: Record<string, Record<string, number[]>> = {};
  try {
    for (const name of names) {
      const server = await startServer(name, { ...options, directory: join(options.directory, 'tools') });
      servers.push(server);
      await fill(server, options.volumeBytes);
      await server.settle();
    }
    for (let round = 0; round < options.rounds; round++) {
      for (const row of ROWS) {
        for (let i = 0; i < servers.length; i++) {
          const server = servers[(i + round) % servers.length];
          ((figures[row.title] ??= {})[server.name] ??= []).push(await row.measure(server, options));
          await server.settle();
        }
      }
      options.say(`tools, round ${round + 1} of ${options.rounds} done`);
    }
  } finally {
    await Promise.all(servers.map((server) => server.stop()));
  }
  console.log(`\nfio and nbdcopy, medians of ${options.rounds} interleaved rounds\n`);
  console.log(table([['', ...names], ...ROWS.map((row) => [`${row.title}, ${row.unit}`, ...names.map((name) => short(median(figures[row.title][name])))])]));
  return { missed: [], figures };
}
