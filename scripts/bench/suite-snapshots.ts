/**
 * Random read of a volume under 50 snapshots beside one without any. Both got
 * the same writes; only the layers differ.
 */
import { join } from 'node:path';
import { mkdirSync } from 'node:fs';
import { prepareSingle } from '../../test/harness/node.js';
import { cpuSeconds, fill, load, type Target } from './measure.js';
import { median, quantile, short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

const SNAPSHOTS = 50;
const FLOOR = 0.95;
/** Random 4 KiB writes between two snapshots, 2 % of the volume of 512 MiB. */
const WRITES_BETWEEN = 2600;

export async function runSnapshots(options: BenchOptions): Promise<{ missed: string[]; figures: Record<string, number[]> }> {
  const directory = join(options.directory, 'snapshots');
  mkdirSync(directory);
  const node = prepareSingle(directory, { journalSize: '1G', segmentSize: '64M' });
  await node.start();
  try {
    const target = (name: string): Target => ({ address: `unix:${node.nbdSocket}`, exportName: `g/${name}` });
    for (const name of ['flat', 'deep']) {
      await node.control.createVolume('g', { name, size: options.volumeBytes });
      await fill(target(name), options.volumeBytes);
    }
    for (let i = 0; i < SNAPSHOTS; i++) {
      for (const name of ['flat', 'deep']) {
        await load(target(name), ['--op', 'write', '--depth', '32', '--count', String(WRITES_BETWEEN), '--seed', String(i + 1)]);
      }
      await node.control.snapshot('g', { source: 'deep', name: `s${i}` });
    }
    await node.control.flush('g', { upTo: 'checkpoint' });
    options.say(`a volume with ${SNAPSHOTS} snapshots and one without`);
    const names = ['flat', 'deep'];
    const figures: Record<string, number[]> = { flat: [], deep: [] };
    const cpu: Record<string, number[]> = { flat: [], deep: [] };
    // both warm: one pass in order
    for (const name of names) await load(target(name), ['--op', 'read', '--sequential', '--block', '1M', '--depth', '4', '--count', String(options.volumeBytes / 2 ** 20)]);
    for (let round = 0; round < options.rounds; round++) {
      for (const name of round % 2 === 0 ? names : [...names].reverse()) {
        const before = cpuSeconds(node.pid);
        const result = await load(target(name), ['--op', 'read', '--depth', '32', '--seconds', String(options.seconds), '--seed', String(round + 1)]);
        figures[name].push(result.requestsPerSecond);
        cpu[name].push((cpuSeconds(node.pid) - before) * 1e6 / result.requests);
      }
    }
    const ratio = median(figures.deep) / median(figures.flat);
    console.log(`\n4 KiB random read, depth 32, ${options.rounds} interleaved rounds\n`);
    console.log(table([
      ['', 'k req/s', 'quartiles', 'CPU us/req'],
      ...names.map((name) => [
        name === 'flat' ? 'no snapshots' : `${SNAPSHOTS} snapshots`, short(median(figures[name]) / 1000),
        `${short(quantile(figures[name], 0.25) / 1000)}-${short(quantile(figures[name], 0.75) / 1000)}`, short(median(cpu[name])),
      ]),
    ]));
    console.log(`\nratio ${ratio.toFixed(3)}, floor ${FLOOR}`);
    return { figures, missed: ratio < FLOOR ? [`random read with ${SNAPSHOTS} snapshots: ${ratio.toFixed(3)} of that without, floor ${FLOOR}`] : [] };
  } finally {
    await node.stop();
  }
}
