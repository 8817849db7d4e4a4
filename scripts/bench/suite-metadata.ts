/** Metadata bytes that reach the disk per random 4 KiB write after a snapshot, once all is destaged and checkpointed. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { prepareSingle } from '../../test/harness/node.js';
import { fill, load } from './measure.js';
import { short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

const LIMIT_BYTES = 100;

interface Case {
  readonly title: string;
  readonly volumeBytes: number;
  /** Written in full before the snapshot; 0 leaves the volume sparse. */
  readonly filledBytes: number;
  readonly writes: number;
}

interface Measured extends Case {
  readonly metadataBytes: number;
  readonly perWrite: number;
}

export async function runMetadata(options: BenchOptions): Promise<{ missed: string[]; measured: Measured[] }> {
  const full = options.volumeBytes;
  const cases: Case[] = [
    { title: 'full volume, 100,000 writes', volumeBytes: full, filledBytes: full, writes: 100_000 },
    { title: 'full volume, 10,000 writes', volumeBytes: full, filledBytes: full, writes: 10_000 },
    { title: '64 GiB, sparse, 100,000 writes', volumeBytes: 64 * 2 ** 30, filledBytes: 0, writes: 100_000 },
  ];
  const directory = join(options.directory, 'metadata');
  mkdirSync(directory);
  const node = prepareSingle(directory, { journalSize: '1G', segmentSize: '64M' });
  await node.start();
  const measured: Measured[] = [];
  try {
    for (const [i, one] of cases.entries()) {
      const name = `vol${i}`;
      const target = { address: `unix:${node.nbdSocket}`, exportName: `g/${name}` };
      await node.control.createVolume('g', { name, size: one.volumeBytes });
      if (one.filledBytes > 0) await fill(target, one.filledBytes);
      await node.control.snapshot('g', { source: name, name: 's' });
      await node.control.flush('g', { upTo: 'checkpoint' });
      const before = (await node.group('g')).store.metadataBytesWritten;
      await load(target, ['--op', 'write', '--depth', '32', '--count', String(one.writes), '--seed', String(i + 1)]);
      await node.control.flush('g', { upTo: 'destaged' });
      await node.control.flush('g', { upTo: 'checkpoint' });
      const metadataBytes = (await node.group('g')).store.metadataBytesWritten - before;
      measured.push({ ...one, metadataBytes, perWrite: metadataBytes / one.writes });
      options.say(`${one.title}: done`);
    }
  } finally {
    await node.stop();
  }
  console.log('\nmetadata written per random 4 KiB write after a snapshot\n');
  console.log(table([['', 'bytes', 'per write'], ...measured.map((one) => [one.title, String(one.metadataBytes), short(one.perWrite)])]));
  console.log(`\nlimit ${LIMIT_BYTES} bytes`);
  const missed = measured.filter((one) => !(one.perWrite <= LIMIT_BYTES)).map((one) => `metadata, ${one.title}: ${short(one.perWrite)} bytes per write, limit ${LIMIT_BYTES}`);
  return { missed, measured };
}
