/** The background walker over real files: what `du` says. */
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import type { GroupSizes } from '../../src/group/content/sizes.js';
import { Random } from '../sim/random.js';
import { Rig } from './walkrig.js';

t.setTimeout(300_000);
const BLOCK = 4096;

t.test('on a real file system 1,000 removed snapshots leave the volume\'s own size', async (t) => {
  const io = RealIo.create({ arenaBytes: 32 * MIB });
  const directory = makeTempDirectory('walker');
  const reactor = new Reactor(io, new Arena(io));
  const until = (condition: () => boolean): void => {
    while (!condition()) reactor.step(10_000);
  };
  const du = (): number => Number(execFileSync('du', ['-s', '-B1', `${directory}/g/layers`], { encoding: 'utf8' }).split('\t')[0]);
  const rig = Rig.open(reactor, `${directory}/g`, until, {
    walker: { restUs: 10_000 }, destageUs: 50_000, checkpointUs: 200_000, segmentBytes: 4 * MIB, segments: 32, mapMemoryBytes: 64 * MIB,
  });
  const random = new Random(1);
  rig.create('v', 64 * MIB);
  rig.write('v', 0, 2048);
  for (let i = 0; i < 1000; i++) {
    rig.snapshot('v', `s${i}`);
    for (let n = 0; n < 4; n++) rig.write('v', random.below(16_000), random.between(1, 4));
  }
  rig.settle();
  // What the removal of all snapshots will give back is what only they refer to: their own bytes say a part of it, for each alone.
  let sizes: GroupSizes | undefined;
  rig.group.content.sizes.ask((result) => {
    if (result instanceof Error) throw result;
    sizes = result;
  });
  rig.until(() => sizes !== undefined);
  const { mapTasks } = rig.group.content;
  t.comment(`sizes of ${sizes!.devices.length} devices: ${(sizes!.tookUs / 1000).toFixed(0)} ms, ${mapTasks.steps} steps, ${(mapTasks.stepUs / 1000).toFixed(0)} ms of the data thread, the longest ${mapTasks.longestStepUs.toFixed(0)} us`);
  t.equal(sizes!.storedBytes, rig.neededBlocks * BLOCK);
  const volume = sizes!.devices.find((device) => device.id === 1)!;
  t.equal(volume.usedBytes, rig.model.get('v')!.tags.size * BLOCK);
  t.equal(volume.ownBytes, [...rig.model.get('v')!.tags].filter(([block, tag]) => rig.model.get('v@s999')!.tags.get(block) !== tag).length * BLOCK);
  const before = du();
  const filesBefore = readdirSync(`${directory}/g/layers`).length;
  const { walker } = rig;
  rig.until(() => !walker.walking);
  const counted = { steps: walker.steps, us: walker.stepUs };
  for (let i = 0; i < 1000; i++) rig.remove(`v@s${i}`);
  rig.walk();
  const after = du();
  const own = rig.neededBlocks * BLOCK;
  const steps = walker.steps - counted.steps;
  t.comment(`${filesBefore} files with ${before} bytes became ${readdirSync(`${directory}/g/layers`).length} files with ${after}; the volume has ${own}; ` +
    `${steps} steps of ${((walker.stepUs - counted.us) / steps).toFixed(0)} us, the longest of all ${walker.longestStepUs.toFixed(0)} us`);
  // A directory and the extents of fragmented files take some blocks of their own.
  t.ok(after >= own && after <= own * 1.05 + MIB, `${after} for ${own}`);
  t.ok(before > after);
  t.equal(rig.difference(), undefined);
  rig.close();
  io.dispose();
  removeTempDirectory(directory);
});
