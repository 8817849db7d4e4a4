/**
 * A thousand snapshots of one volume, beside a daemon whose volume got the same
 * writes and has none: making them, reading, restarting after SIGKILL, memory,
 * and the space that comes back when they go.
 */
import { mkdirSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { formatSize } from '../../src/base/units.js';
import { prepareSingle, type TestNode } from '../../test/harness/node.js';
import { waitFor } from '../../test/harness/process.js';
import { fill, load, type Target } from './measure.js';
import { startServer } from './servers.js';
import { median, quantile, short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

const SNAPSHOTS = 1000;
/** Random 4 KiB writes between two snapshots. */
const WRITES_BETWEEN = 200;
const ENDS = 50;
const CREATE_LIMIT_MS = 5;
const READ_FLOOR = 0.9;
const RESTART_LIMIT_SECONDS = 5;
const RESTARTS = 3;
/** Of what the snapshots took, how much has to come back. */
const SPACE_BACK_SHARE = 0.95;
const SPACE_WAIT_MS = 300_000;

interface Change {
  readonly roundTripMs: number;
  readonly dataThreadMs: number;
}

interface Memory {
  readonly residentBytes: number;
  readonly mapBytes: number;
}

async function memory(node: TestNode): Promise<Memory> {
  const resident = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${node.pid}/status`, 'utf8'));
  return { residentBytes: Number(resident?.[1]) * 1024, mapBytes: (await node.group('g')).store.mapBytes };
}

/** Bytes that the layers and maps of a node have on the disk; not the journal, which keeps its segments. */
function spaceBytes(node: TestNode): number {
  const group = join(node.config.dataDirectory as string, 'groups', 'g');
  const allocated = (path: string): number => statSync(path, { throwIfNoEntry: false })?.blocks ?? 0;
  const layers = readdirSync(join(group, 'layers')).map((name) => join(group, 'layers', name));
  const maps = readdirSync(group).filter((name) => name.startsWith('map-') || name.startsWith('checkpoint-')).map((name) => join(group, name));
  return [...layers, ...maps].reduce((sum, path) => sum + allocated(path) * 512, 0);
}

function targetOf(node: TestNode, device = 'vol'): Target {
  return { address: `unix:${node.nbdSocket}`, exportName: `g/${device}` };
}

async function change(operation: () => Promise<{ dataThreadUs: number }>): Promise<Change> {
  const begun = performance.now();
  const { dataThreadUs } = await operation();
  return { roundTripMs: performance.now() - begun, dataThreadMs: dataThreadUs / 1000 };
}

/** Seconds from SIGKILL under way to the first read that is answered. */
async function restartSeconds(node: TestNode, device: string): Promise<number> {
  await node.kill();
  const begun = performance.now();
  await node.start();
  await waitFor('the volume is served', async () => load(targetOf(node, device), ['--op', 'read', '--count', '1']).then(() => true, () => false));
  return (performance.now() - begun) / 1000;
}

function ends(changes: readonly Change[], of: (one: Change) => number): string[] {
  const values = changes.map(of);
  return [short(median(values.slice(0, ENDS))), short(median(values.slice(-ENDS))), short(quantile(values, 0.99)), short(Math.max(...values))];
}

export async function runMany(options: BenchOptions): Promise<{ missed: string[]; created: Change[]; removed: Change[]; reads: Record<string, number[]>; restarts: number[] }> {
  const directory = join(options.directory, 'many');
  mkdirSync(directory);
  const snapshots = Math.max(2 * ENDS, Math.round(SNAPSHOTS * options.scale));
  const flat = prepareSingle(directory, { name: 'flat', journalSize: '1G', segmentSize: '64M' });
  const deep = prepareSingle(directory, { name: 'deep', journalSize: '1G', segmentSize: '64M' });
  const created: Change[] = [];
  const removed: Change[] = [];
  const reads: Record<string, number[]> = { flat: [], deep: [], nbdkit: [] };
  const restarts: number[] = [];
  const flatRestarts: number[] = [];
  const lines: string[] = [];
  const missed: string[] = [];
  // What a good C server does with one file that has no snapshots.
  const peer = await startServer('nbdkit', options);
  try {
    await fill(peer, options.volumeBytes);
    for (const node of [flat, deep]) {
      await node.start();
      await node.control.createVolume('g', { name: 'vol', size: options.volumeBytes });
      await fill(targetOf(node), options.volumeBytes);
      await node.control.flush('g', { upTo: 'destaged' });
      await node.control.flush('g', { upTo: 'checkpoint' });
    }
    const spaceBefore = spaceBytes(deep);
    const before = { flat: await memory(flat), deep: await memory(deep) };
    for (let i = 0; i < snapshots; i++) {
      created.push(await change(() => deep.control.snapshot('g', { source: 'vol', name: `s${i}` })));
      for (const node of [flat, deep]) await load(targetOf(node), ['--op', 'write', '--depth', '32', '--count', String(WRITES_BETWEEN), '--seed', String(i + 1)]);
      // the next operation waits for its own marker alone
      await deep.control.flush('g', { upTo: 'durable' });
      if (i % 100 === 99) options.say(`${i + 1} snapshots`);
    }
    for (const node of [flat, deep]) {
      await node.control.flush('g', { upTo: 'destaged' });
      await node.control.flush('g', { upTo: 'checkpoint' });
    }
    const spaceFull = spaceBytes(deep);
    const after = { flat: await memory(flat), deep: await memory(deep) };
    const grown = (of: keyof Memory): number => (after.deep[of] - before.deep[of] - (after.flat[of] - before.flat[of])) / snapshots;

    const readers = [{ name: 'flat', target: targetOf(flat) }, { name: 'deep', target: targetOf(deep) }, { name: 'nbdkit', target: peer }];
    // Until each has in memory what it keeps there: all in the page cache, and every block read a few times at random.
    for (const { target } of readers) {
      await load(target, ['--op', 'read', '--sequential', '--block', '1M', '--depth', '4', '--count', String(options.volumeBytes / 2 ** 20)]);
      await load(target, ['--op', 'read', '--depth', '32', '--count', String(5 * (options.volumeBytes / 4096)), '--seed', '77']);
    }
    for (let round = 0; round < options.rounds; round++) {
      for (const { name, target } of round % 2 === 0 ? readers : [...readers].reverse()) {
        reads[name].push((await load(target, ['--op', 'read', '--depth', '32', '--seconds', String(options.seconds), '--seed', String(round + 1)])).requestsPerSecond);
      }
    }
    const ratio = median(reads.deep) / median(reads.flat);
    options.say('read');

    for (let i = 0; i < RESTARTS; i++) {
      flatRestarts.push(await restartSeconds(flat, 'vol'));
      restarts.push(await restartSeconds(deep, `vol@s${snapshots - 1 - i}`));
      await load(targetOf(deep), ['--op', 'write', '--depth', '32', '--count', '20000', '--seed', String(9000 + i)]);
    }
    options.say('restarted');

    for (let i = 0; i < snapshots; i++) removed.push(await change(() => deep.control.remove('g', `vol@s${i}`)));
    const begun = performance.now();
    const limit = spaceFull - SPACE_BACK_SHARE * (spaceFull - spaceBefore);
    const back = await waitFor('the space comes back', () => spaceBytes(deep) <= limit, SPACE_WAIT_MS).then(() => true, () => false);
    const backSeconds = (performance.now() - begun) / 1000;
    const spaceAfter = spaceBytes(deep);
    const end = await memory(deep);

    lines.push(`\n${snapshots} snapshots of one volume of ${formatSize(options.volumeBytes)}, ${WRITES_BETWEEN} random 4 KiB writes after each${options.scale === 1 ? '' : ' (A TRIAL)'}\n`);
    lines.push(table([
      ['ms', `median of the first ${ENDS}`, `of the last ${ENDS}`, 'p99', 'worst'],
      ['create, as its caller sees it (durable)', ...ends(created, (one) => one.roundTripMs)],
      ['create, data thread', ...ends(created, (one) => one.dataThreadMs)],
      ['remove, as its caller sees it (durable)', ...ends(removed, (one) => one.roundTripMs)],
      ['remove, data thread', ...ends(removed, (one) => one.dataThreadMs)],
    ]));
    lines.push(`\n4 KiB random read, depth 32, ${options.rounds} interleaved rounds: ${short(median(reads.deep) / 1000)} k/s with them, ${short(median(reads.flat) / 1000)} k/s without: ratio ${ratio.toFixed(3)}, floor ${READ_FLOOR}; nbdkit with one file: ${short(median(reads.nbdkit) / 1000)} k/s, ratio ${(median(reads.deep) / median(reads.nbdkit)).toFixed(2)}`);
    lines.push(`restart after SIGKILL until a snapshot is read: ${restarts.map((one) => short(one)).join(', ')} s, limit ${RESTART_LIMIT_SECONDS} (without snapshots: ${flatRestarts.map((one) => short(one)).join(', ')} s)`);
    lines.push(`memory per snapshot: ${formatSize(grown('residentBytes'))} resident, of it ${formatSize(grown('mapBytes'))} of map; resident ${formatSize(after.deep.residentBytes)} with all of them, ${formatSize(end.residentBytes)} after`);
    lines.push(`space of layers and maps: ${formatSize(spaceBefore)} before, ${formatSize(spaceFull)} with all of them, ${formatSize(spaceAfter)} ${short(backSeconds)} s after the last was removed`);
    const lastCreate = median(created.slice(-ENDS).map((one) => one.roundTripMs));
    const firstCreate = median(created.slice(0, ENDS).map((one) => one.roundTripMs));
    if (!(firstCreate < CREATE_LIMIT_MS && lastCreate < CREATE_LIMIT_MS)) missed.push(`many: a snapshot takes ${short(firstCreate)} ms at first and ${short(lastCreate)} ms at last, limit ${CREATE_LIMIT_MS}`);
    if (!(ratio >= READ_FLOOR)) missed.push(`many: random read with ${snapshots} snapshots is ${ratio.toFixed(3)} of that without, floor ${READ_FLOOR}`);
    if (!(Math.max(...restarts) < RESTART_LIMIT_SECONDS)) missed.push(`many: a restart took ${short(Math.max(...restarts))} s, limit ${RESTART_LIMIT_SECONDS}`);
    if (!back) missed.push(`many: of ${formatSize(spaceFull - spaceBefore)} that the snapshots took only ${formatSize(spaceFull - spaceAfter)} came back in ${SPACE_WAIT_MS / 1000} s`);
  } finally {
    await Promise.all([flat.stop(), deep.stop(), peer.stop()]);
  }
  console.log(lines.join('\n'));
  return { missed, created, removed, reads, restarts };
}
