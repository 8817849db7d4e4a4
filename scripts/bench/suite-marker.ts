/**
 * What a snapshot costs the writers: a sparse volume of 1 TiB under random
 * writes, intervals with and without snapshots interleaved, each snapshot taken
 * while at least 100,000 blocks are not yet destaged.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { prepareSingle, type TestNode } from '../../test/harness/node.js';
import { load, type LoadResult, type Target } from './measure.js';
import { median, quantile, short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

const VOLUME_BYTES = 2 ** 40;
const PENDING_WANTED = 100_000;
const SNAPSHOT_EVERY_MS = 100;
const MARKER_LIMIT_US = 5000;
const DIFFERENCE_LIMIT_US = 20_000;

interface Taken {
  readonly pendingBefore: number;
  readonly dataThreadUs: number;
  readonly roundTripUs: number;
}

/** Waits for enough blocks that are not destaged, then takes one snapshot; undefined when the load was `over` before. */
async function snapshotWhenPending(node: TestNode, name: string, over: () => boolean): Promise<Taken | undefined> {
  while (!over()) {
    const pendingBefore = (await node.group('g')).destage.pendingBlocks;
    if (pendingBefore >= PENDING_WANTED) {
      const before = performance.now();
      const reply = await node.control.snapshot('g', { source: 'vol', name });
      return { pendingBefore, dataThreadUs: reply.dataThreadUs, roundTripUs: (performance.now() - before) * 1000 };
    }
    await new Promise((done) => setTimeout(done, 20));
  }
  return undefined;
}

/** Blocks written per interval: every one is alone in its 2 MiB and its extent, so destaging takes far longer than writing. */
const WRITES = 160_000;

async function interval(node: TestNode, target: Target, seed: number, snapshots: boolean, taken: Taken[]): Promise<LoadResult> {
  let over = false;
  const running = load(target, ['--op', 'write', '--depth', '32', '--count', String(WRITES), '--seed', String(seed)]).finally(() => (over = true));
  for (let i = 0; snapshots && !over; i++) {
    const one = await snapshotWhenPending(node, `s${seed}-${i}`, () => over);
    if (one !== undefined) taken.push(one);
    await new Promise((done) => setTimeout(done, SNAPSHOT_EVERY_MS));
  }
  return running;
}

export async function runMarker(options: BenchOptions): Promise<{ missed: string[]; taken: Taken[]; with: LoadResult[]; without: LoadResult[] }> {
  const directory = join(options.directory, 'marker');
  mkdirSync(directory);
  const node = prepareSingle(directory, { journalSize: '4G', segmentSize: '64M' });
  await node.start();
  const taken: Taken[] = [];
  const withSnapshots: LoadResult[] = [];
  const without: LoadResult[] = [];
  try {
    await node.control.createVolume('g', { name: 'vol', size: VOLUME_BYTES });
    const target: Target = { address: `unix:${node.nbdSocket}`, exportName: 'g/vol' };
    for (let round = 0; round < options.rounds; round++) {
      for (const snapshots of round % 2 === 0 ? [false, true] : [true, false]) {
        (snapshots ? withSnapshots : without).push(await interval(node, target, round * 2 + Number(snapshots) + 1, snapshots, taken));
        const before = performance.now();
        await node.control.flush('g', { upTo: 'destaged' });
        options.say(`${snapshots ? 'with' : 'without'} snapshots; destaged ${((performance.now() - before) / 1000).toFixed(1)} s later`);
      }
      for (const device of (await node.control.devices('g')).devices) {
        if (device.kind === 'snapshot') await node.control.remove('g', device.name);
      }
      options.say(`round ${round + 1} of ${options.rounds}: ${taken.length} snapshots so far`);
    }
  } finally {
    await node.stop();
  }
  const p999 = (results: readonly LoadResult[]): number[] => results.map((one) => one.latencyUs.p999);
  const difference = median(p999(withSnapshots)) - median(p999(without));
  const marker = taken.map((one) => one.dataThreadUs);
  const worst = Math.max(...marker, 0);
  console.log(`\nsnapshots of a sparse 1 TiB volume under 4 KiB random writes, depth 32, ${options.rounds} interleaved rounds\n`);
  console.log(table([
    ['', 'k req/s', 'p99 us', 'p99.9 us', 'quartiles', 'max us'],
    ...([['without', without], ['with snapshots', withSnapshots]] as const).map(([name, results]) => [
      name, short(median(results.map((one) => one.requestsPerSecond)) / 1000), short(median(results.map((one) => one.latencyUs.p99))), short(median(p999(results))),
      `${short(quantile(p999(results), 0.25))}-${short(quantile(p999(results), 0.75))}`, short(Math.max(...results.map((one) => one.latencyUs.max))),
    ]),
  ]));
  console.log(`\n${taken.length} snapshots, each with ${short(Math.min(...taken.map((one) => one.pendingBefore)))} or more blocks not destaged`);
  console.log(`data thread in the marker: median ${short(median(marker))} us, worst ${short(worst)} us, limit ${MARKER_LIMIT_US} us`);
  console.log(`a snapshot as its caller sees it: median ${short(median(taken.map((one) => one.roundTripUs)) / 1000)} ms`);
  console.log(`p99.9 with less p99.9 without: ${short(difference / 1000)} ms, limit ${DIFFERENCE_LIMIT_US / 1000} ms`);
  const missed: string[] = [];
  if (taken.length === 0) missed.push(`marker: there were never ${PENDING_WANTED} blocks not destaged, so no snapshot was measured`);
  if (worst >= MARKER_LIMIT_US) missed.push(`marker: the data thread spent ${short(worst)} us in a snapshot, limit ${MARKER_LIMIT_US}`);
  if (difference >= DIFFERENCE_LIMIT_US) missed.push(`marker: snapshots raise p99.9 by ${short(difference)} us, limit ${DIFFERENCE_LIMIT_US}`);
  return { missed, taken, with: withSnapshots, without };
}
