/**
 * Two real daemons without a link, joined by a shell pipe: SIGKILLs of both
 * daemons and of every process of the pipe, under load with operations. Then
 * the importing node is promoted.
 */
import { rmSync } from 'node:fs';
import t from 'tap';
import type { Pair } from '../harness/node.js';
import { TestNode } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { checkHashes, checkNode, checkPair, deviceNames } from './check.js';
import { GROUP } from './clients.js';
import { delay, SMALL_GROUP } from './kills.js';
import { Load } from './load.js';
import { CrashModel } from './model.js';
import { CarryPipe, STAGES } from './pipe.js';

const kills = Number(process.env.LOCKSTEP_CRASH_KILLS ?? 5);
const seed = Number(process.env.LOCKSTEP_CRASH_SEED ?? Math.floor(Math.random() * 2 ** 32));
const CURSOR = 'pipe';

t.setTimeout(7_200_000);

function prepareUnlinked(directory: string): Pair {
  const node = (name: string, role: string): TestNode => TestNode.prepare(directory, {
    node: name, groups: [{ name: GROUP, role, journal: { size: SMALL_GROUP.journalSize, segmentSize: SMALL_GROUP.segmentSize }, ...SMALL_GROUP.groupExtra }],
  });
  return { primary: node('alpha', 'primary'), secondary: node('beta', 'secondary') };
}

t.test(`two nodes joined by a shell pipe stay equal over ${kills} SIGKILLs of daemons and pipe, and a promotion (seed ${seed})`, { timeout: 7_200_000 }, async (t) => {
  const directory = makeTempDirectory('carry');
  const random = new Random(seed);
  const model = new CrashModel(seed);
  const pair = prepareUnlinked(directory);
  const { primary, secondary } = pair;
  const pipe = new CarryPipe(directory, primary, secondary, GROUP, CURSOR);
  const load = new Load(() => primary, model, random.fork(7));
  t.teardown(async () => {
    load.down = true;
    await pipe.stop();
    await Promise.all([primary.kill(), secondary.kill()]);
    await load.end();
    removeTempDirectory(directory);
  });
  const killed: Record<string, number> = {};
  try {
    await Promise.all([primary.start(), secondary.start()]);
    pipe.start();
    // Without it the beginning of the journal would be given back, and an empty node needs it.
    await waitFor('the cursor is made', async () => (await primary.group(GROUP)).cursors.length === 1);
    await load.createVolumes();
    load.start();
    const order = random.shuffle(['alpha', 'beta', ...STAGES]);
    for (let i = 0; i < kills; i++) {
      await Promise.race([load.failed, delay(random.between(100, 900))]);
      // Everybody dies once before anybody does again.
      const victim = order[i % order.length];
      killed[victim] = (killed[victim] ?? 0) + 1;
      if (victim === 'alpha') {
        load.down = true;
        await primary.kill();
        await load.pause();
        rmSync(primary.controlSocket, { force: true });
        await primary.start();
        load.settle(await deviceNames(primary));
        load.down = false;
        load.resume();
      } else if (victim === 'beta') {
        await secondary.kill();
        rmSync(secondary.controlSocket, { force: true });
        await delay(random.below(500));
        await secondary.start();
      } else {
        await pipe.kill(victim as (typeof STAGES)[number]);
      }
    }
    await load.pause();
    const drained = await primary.command<{ drained: boolean; lsn: number }>('drain', GROUP, '--timeout', '60');
    t.equal(drained.drained, true);
    t.equal((await secondary.group(GROUP)).lsn.durable, drained.lsn, 'a cursor confirms what is durable there');
    await checkPair(pair, model, random);
    const hashes = await checkHashes(pair, model);
    const { cursors } = await primary.group(GROUP);
    t.match(cursors, [{ name: CURSOR, lsn: drained.lsn, behindBytes: 0, retainedBytes: 0 }]);
    t.comment(`seed ${seed}: killed ${JSON.stringify(killed)}; ${load.counts.writes} writes, ${load.counts.operations} operations; ${hashes} devices equal by sha256`);

    await load.end();
    await pipe.stop();
    await primary.kill();
    await secondary.command('promote', GROUP);
    await checkNode(secondary, model, random);
    const after = new Load(() => secondary, model, random.fork(8), 'after');
    await after.createVolumes();
    after.start();
    await Promise.race([after.failed, waitFor('the promoted node takes writes', () => after.counts.writes > 50)]);
    await after.end();
    await checkNode(secondary, model, random);
  } catch (error) {
    throw new Error(`seed ${seed}, killed ${JSON.stringify(killed)}: ${(error as Error).message}\n--- pipe\n${pipe.log.slice(-2000)}\n--- alpha\n${primary.log.slice(-1500)}\n--- beta\n${secondary.log.slice(-1500)}`, { cause: error });
  }
});

t.test('the journal is kept for a cursor over restarts, until what was exported is acknowledged', async (t) => {
  const directory = makeTempDirectory('carry');
  const pair = prepareUnlinked(directory);
  const { primary, secondary } = pair;
  t.teardown(async () => {
    await Promise.all([primary.kill(), secondary.kill()]);
    removeTempDirectory(directory);
  });
  await Promise.all([primary.start(), secondary.start()]);
  const random = new Random(seed);
  const model = new CrashModel(seed);
  const load = new Load(() => primary, model, random.fork(1));
  const carry = async (): Promise<string> => {
    let position = '';
    for await (const state of secondary.control.importJournal(GROUP, primary.control.exportJournal(GROUP, { cursor: CURSOR }))) position = state.position;
    return position;
  };
  const first = await carry();
  await load.createVolumes();
  load.start();
  await Promise.race([load.failed, waitFor('some writes', () => load.counts.writes > 400)]);
  await load.end();
  await primary.control.flush(GROUP, { upTo: 'checkpoint' });
  t.equal((await primary.group(GROUP)).lsn.lowWater, 0, 'nothing is given back, though nothing else needs it');
  await primary.stop();
  await primary.start();
  await primary.kill();
  rmSync(primary.controlSocket, { force: true });
  await primary.start();
  const [cursor] = (await primary.group(GROUP)).cursors;
  t.match(cursor, { name: CURSOR, lsn: 0 });
  t.ok(cursor.retainedBytes > 0, `${cursor.retainedBytes} bytes are kept`);
  t.match((await primary.lockstep('status', GROUP)).stdout, /cursor +pipe {2}acknowledged up to LSN 0, .* behind; keeps .*iB of journal/);

  const late = await primary.lockstep('drain', GROUP, '--timeout', '1');
  t.equal(late.code, 1);
  t.match(late.stderr, /not confirmed: cursor pipe has been acknowledged up to LSN 0/);

  const second = await carry();
  t.not(second, first);
  for (const [words, message] of [
    [second.replace(/.$/, (digit) => (digit === '0' ? '1' : '0')), /does not lie in the history/],
    [second.replace(/^../, 'zz'), /must be a position/],
    [second.replace(/:(\d+):/, ':99999999999:'), /has not been exported/],
  ] as const) {
    const refused = await primary.lockstep('journal', 'ack', GROUP, CURSOR, words);
    t.equal(refused.code, 2, words);
    t.match(refused.stderr, message);
  }
  t.match((await primary.group(GROUP)).cursors, [{ lsn: 0 }], 'a refused acknowledgement moves nothing');
  t.equal((await primary.lockstep('journal', 'ack', GROUP, CURSOR, second)).code, 0);
  await waitFor('the journal is given back', async () => (await primary.group(GROUP)).lsn.lowWater > 0);
  const back = await primary.lockstep('journal', 'ack', GROUP, CURSOR, first);
  t.match(back.stderr, /moves forward only/);
  t.equal((await primary.lockstep('drain', GROUP)).code, 0);
  await checkPair(pair, model, random);
  t.equal((await primary.lockstep('journal', 'release', GROUP, CURSOR)).code, 0);
  t.strictSame((await primary.group(GROUP)).cursors, []);
});
