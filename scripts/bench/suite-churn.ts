/**
 * Random writes all over 1 TiB with little map memory: two daemons, one of which
 * takes a snapshot every ten seconds, loaded in turn. Nothing is removed between
 * rounds, so that the maps grow beyond their memory.
 */
import { mkdirSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { prepareSingle, type TestNode } from '../../test/harness/node.js';
import { cpuSeconds, load, type LoadResult } from './measure.js';
import { median, quantile, short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

const VOLUME_BYTES = 2 ** 40;
const MAP_MEMORY_BYTES = 256 * 2 ** 20;
const ROUND_SECONDS = 30;
const SNAPSHOT_SECONDS = 10;
const FLOOR = 0.8;
/** A round may write so much, and the disk is others' as well. */
const FREE_BYTES_WANTED = 20 * 2 ** 30;

interface Round {
  readonly node: string;
  readonly load: LoadResult;
  /** Requests per second of load and of the destaging that followed. */
  readonly settledPerSecond: number;
  readonly cpuUs: number;
  readonly mapBytes: number;
  readonly metadataBytes: number;
  readonly snapshotUs: readonly number[];
}

async function measureRound(node: TestNode, seconds: number, number: number): Promise<Round> {
  const snapshots = node.name === 'snapshots';
  const [cpu, before, begun] = [cpuSeconds(node.pid), await node.group('g'), performance.now()];
  let over = false;
  const running = load({ address: `unix:${node.nbdSocket}`, exportName: 'g/vol' }, ['--op', 'write', '--depth', '32', '--seconds', String(seconds), '--seed', String(number + 1)])
    .finally(() => (over = true));
  const snapshotUs: number[] = [];
  // the first one in the middle of the first interval, so that a round of 30 s has three
  const every = (SNAPSHOT_SECONDS * 1000 * Math.min(seconds, ROUND_SECONDS)) / ROUND_SECONDS;
  for (let i = 0; snapshots; i++) {
    await new Promise((done) => setTimeout(done, Math.max(0, begun + (i + 0.5) * every - performance.now())));
    if (over) break;
    snapshotUs.push((await node.control.snapshot('g', { source: 'vol', name: `r${number}-${i}` })).dataThreadUs);
  }
  const result = await running;
  await node.control.flush('g', { upTo: 'destaged' });
  const settled = (performance.now() - begun) / 1000;
  const after = await node.group('g');
  return {
    node: node.name, load: result, settledPerSecond: result.requests / settled, cpuUs: ((cpuSeconds(node.pid) - cpu) * 1e6) / result.requests,
    mapBytes: after.store.mapBytes, metadataBytes: after.store.metadataBytesWritten - before.store.metadataBytesWritten, snapshotUs,
  };
}

export async function runChurn(options: BenchOptions): Promise<{ missed: string[]; rounds: Round[] }> {
  const directory = join(options.directory, 'churn');
  mkdirSync(directory);
  const seconds = options.scale === 1 ? Math.max(ROUND_SECONDS, options.seconds) : options.seconds;
  const nodes = ['plain', 'snapshots'].map((name) =>
    prepareSingle(directory, { name, journalSize: '4G', segmentSize: '64M', groupExtra: { store: { mapMemory: MAP_MEMORY_BYTES } } }));
  const rounds: Round[] = [];
  try {
    for (const node of nodes) {
      await node.start();
      await node.control.createVolume('g', { name: 'vol', size: VOLUME_BYTES });
    }
    for (let number = 0; number < options.rounds; number++) {
      const { bavail, bsize } = statfsSync(directory);
      if (bavail * bsize < FREE_BYTES_WANTED) {
        options.say(`${short((bavail * bsize) / 2 ** 30)} GiB are free: no more rounds`);
        break;
      }
      for (const node of number % 2 === 0 ? nodes : [...nodes].reverse()) {
        const one = await measureRound(node, seconds, number);
        rounds.push(one);
        options.say(`round ${number + 1} of ${options.rounds}, ${node.name}: ${short(one.load.requestsPerSecond / 1000)} k/s, map ${short(one.mapBytes / 2 ** 20)} MiB`);
      }
    }
  } finally {
    await Promise.all(nodes.map((node) => node.stop()));
  }
  const of = (name: string): Round[] => rounds.filter((one) => one.node === name);
  const rate = (name: string): number[] => of(name).map((one) => one.load.requestsPerSecond);
  const ratio = median(rate('snapshots')) / median(rate('plain'));
  const settledRatio = median(of('snapshots').map((one) => one.settledPerSecond)) / median(of('plain').map((one) => one.settledPerSecond));
  const count = of('plain').length;
  console.log(`\n4 KiB random writes over a sparse 1 TiB volume, depth 32, map memory ${MAP_MEMORY_BYTES / 2 ** 20} MiB; ${count} interleaved rounds of ${seconds} s, two daemons${options.scale === 1 ? '' : ' (A TRIAL)'}\n`);
  console.log(table([
    ['', 'k req/s', 'quartiles', 'with destaging', 'p99 us', 'p99.9 us', 'CPU us/req', 'metadata B/req', 'map MiB at the end'],
    ...(['plain', 'snapshots'] as const).map((name) => [
      name === 'plain' ? 'no snapshots' : `a snapshot every ${SNAPSHOT_SECONDS} s`, short(median(rate(name)) / 1000),
      `${short(quantile(rate(name), 0.25) / 1000)}-${short(quantile(rate(name), 0.75) / 1000)}`, short(median(of(name).map((one) => one.settledPerSecond)) / 1000),
      short(median(of(name).map((one) => one.load.latencyUs.p99))), short(median(of(name).map((one) => one.load.latencyUs.p999))), short(median(of(name).map((one) => one.cpuUs))),
      short(median(of(name).map((one) => one.metadataBytes / one.load.requests))), short((of(name).at(-1)?.mapBytes ?? NaN) / 2 ** 20),
    ]),
  ]));
  console.log(`\nratio ${ratio.toFixed(3)} (with destaging ${settledRatio.toFixed(3)}), floor ${FLOOR}; data thread in a snapshot: worst ${short(Math.max(...rounds.flatMap((one) => one.snapshotUs), 0))} us`);
  const missed = ratio >= FLOOR ? [] : [`churn: random writes with a snapshot every ${SNAPSHOT_SECONDS} s are ${ratio.toFixed(3)} of those without, floor ${FLOOR}`];
  return { missed, rounds };
}
