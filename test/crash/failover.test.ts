/** Failover drills: the primary is killed, the secondary promoted, the old primary comes back. */
import t from 'tap';
import type { Test } from 'tap';
import { MIB } from '../../src/base/units.js';
import { NbdConnectionError } from '../../src/vendor/nbd-protocol-ts/index.js';
import type { Pair } from '../harness/node.js';
import { preparePair, waitCaughtUp } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { catchUp, checkNode } from './check.js';
import { GROUP, openDevice } from './clients.js';
import { delay, SMALL_GROUP } from './kills.js';
import { Load } from './load.js';
import { CrashModel } from './model.js';

t.setTimeout(300_000);
const seed = Number(process.env.LOCKSTEP_CRASH_SEED ?? Math.floor(Math.random() * 2 ** 32));

async function startPair(t: Test, name: string): Promise<Pair> {
  const directory = makeTempDirectory(name);
  const pair = await preparePair(directory, SMALL_GROUP);
  t.teardown(async () => {
    await Promise.all([pair.primary.kill(), pair.secondary.kill()]);
    removeTempDirectory(directory);
  });
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  return pair;
}

async function isFenced(t: Test, pair: Pair): Promise<void> {
  const old = pair.primary;
  await waitFor('the old primary is fenced', async () => (await old.group(GROUP)).role === 'fenced');
  const group = await old.group(GROUP);
  t.match(group.roleReason, /node beta took over as primary in epoch \d+ \(told by beta\).*it serves nothing/);
  t.match((await old.lockstep('status')).stdout, /fenced/);
  await t.rejects(openDevice(old, 'v1'), NbdConnectionError);
  await t.rejects(old.control.snapshot(GROUP, { source: 'v1', name: 'late' }), { code: 'role/not-primary' });
}

t.test(`a failover after all was shipped loses nothing, and the old primary is fenced (seed ${seed})`, async (t) => {
  const random = new Random(seed);
  const model = new CrashModel(seed);
  const pair = await startPair(t, 'failover');
  const before = new Load(() => pair.primary, model, random.fork(1));
  await before.createVolumes();
  before.start();
  await Promise.race([before.failed, waitFor('some writes are acknowledged', () => before.counts.writes > 300)]);
  await before.pause();

  const client = await openDevice(pair.secondary, 'v1', { checked: false });
  for (const attempt of [client.write(0, new Uint8Array(512)), client.trim(0, 4096), client.writeZeroes(0, 4096), client.write(0, new Uint8Array(4096), { fua: true })]) {
    await t.rejects(attempt, { code: 'EPERM' }, 'a write to the secondary');
  }
  await client.disconnect();
  await t.rejects(pair.secondary.control.snapshot(GROUP, { source: 'v1', name: 'wrong' }), { code: 'role/not-primary' });
  await t.rejects(pair.secondary.control.promote(GROUP), /alpha is primary of group g and connected/);

  await catchUp(pair);
  before.down = true;
  await pair.primary.kill();
  await before.end();
  await waitFor('the secondary has noticed', async () => (await pair.secondary.group(GROUP)).links.every((link) => link.state !== 'streaming'));
  const promoted = await pair.secondary.control.promote(GROUP);
  t.ok(promoted.epoch.number > 1);
  t.equal((await pair.secondary.group(GROUP)).role, 'primary');
  await checkNode(pair.secondary, model, random);

  const after = new Load(() => pair.secondary, model, random.fork(2), 'n');
  after.start();
  await Promise.race([after.failed, waitFor('the new primary takes writes', () => after.counts.writes > 200)]);
  await pair.primary.start();
  await isFenced(t, pair);
  // And it stays so over restarts of both.
  await after.pause();
  after.down = true;
  await Promise.all([pair.primary.kill(), pair.secondary.kill()]);
  await after.end();
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  t.equal((await pair.secondary.group(GROUP)).role, 'primary');
  await isFenced(t, pair);
  await checkNode(pair.secondary, model, random);
});

t.test(`a failover under load keeps a prefix of what was acknowledged (seed ${seed})`, async (t) => {
  const random = new Random(seed);
  const pair = await startPair(t, 'prefix');
  await pair.primary.control.createVolume(GROUP, { name: 'v1', size: 8 * MIB });
  await waitCaughtUp(pair);
  const client = await openDevice(pair.primary, 'v1');
  const blocks = 64;
  const places = Array.from({ length: 4000 }, () => random.below(blocks));
  let acknowledged = 0;
  const writer = (async (): Promise<void> => {
    for (const [i, place] of places.entries()) {
      const block = new Uint32Array(1024).fill(i + 1);
      await client.write(place * 4096, new Uint8Array(block.buffer));
      acknowledged = i + 1;
    }
  })().catch((error: unknown) => {
    if (!(error instanceof NbdConnectionError)) throw error;
  });
  await waitFor('some writes are acknowledged', () => acknowledged > 50);
  await delay(random.below(500));
  await pair.primary.kill();
  await writer;
  await pair.secondary.control.promote(GROUP, { force: true });
  const reader = await openDevice(pair.secondary, 'v1');
  const bytes = await reader.read(0, blocks * 4096);
  const found = Array.from({ length: blocks }, (_unused, i) => new Uint32Array(bytes.buffer.slice(i * 4096, (i + 1) * 4096)));
  for (const words of found) t.ok(words.every((word) => word === words[0]), 'a block is of one write');
  const newest = Math.max(...found.map((words) => words[0]));
  t.ok(newest <= acknowledged + 1, `write ${newest} is there, ${acknowledged} were acknowledged`);
  const expected = new Array<number>(blocks).fill(0);
  for (let i = 0; i < newest; i++) expected[places[i]] = i + 1;
  t.strictSame(found.map((words) => words[0]), expected, `everything up to write ${newest}, and nothing later`);
  await reader.write(0, new Uint8Array(4096).fill(1));
  await reader.disconnect();
  await pair.primary.start();
  await isFenced(t, pair);
});
