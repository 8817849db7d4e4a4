/** Stops and restarts of real daemons, one case each. */
import t from 'tap';
import type { Test } from 'tap';
import { MIB } from '../../src/base/units.js';
import { preparePair, prepareSingle, TestNode, waitCaughtUp } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { checkNode, checkPair, deviceNames, hashDevice } from './check.js';
import { GROUP, openDevice } from './clients.js';
import { delay, SMALL_GROUP } from './kills.js';
import { Load } from './load.js';
import { CrashModel } from './model.js';

t.setTimeout(300_000);

const directory = (t: Test, name: string): string => {
  const path = makeTempDirectory(name);
  t.teardown(() => removeTempDirectory(path));
  return path;
};

t.test('a primary that restarts keeps the journal that an absent secondary still needs', async (t) => {
  const pair = await preparePair(directory(t, 'keep'), SMALL_GROUP);
  t.teardown(() => Promise.all([pair.primary.kill(), pair.secondary.kill()]));
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  await pair.primary.control.createVolume(GROUP, { name: 'v', size: 32 * MIB });
  await waitCaughtUp(pair);
  await pair.secondary.kill();
  const client = await openDevice(pair.primary, 'v');
  for (let i = 0; i < 32; i++) await client.write(i * MIB, new Uint8Array(MIB).fill(i + 1));
  await client.disconnect();
  // The checkpoint needs none of it any more.
  await pair.primary.control.flush(GROUP, { upTo: 'checkpoint' });
  await waitFor('the low-water mark of the checkpoint has moved', async () => (await pair.primary.group(GROUP)).destage.pendingBlocks === 0);
  await pair.primary.control.flush(GROUP, { upTo: 'checkpoint' });
  await pair.primary.kill();
  await pair.primary.start();
  await pair.secondary.start();
  await waitCaughtUp(pair, GROUP, 20_000);
  t.equal(await hashDevice(pair.secondary, 'v'), await hashDevice(pair.primary, 'v'));
});

t.test('SIGTERM under load is a clean stop: no reply that was given is taken back, no new epoch follows', async (t) => {
  const seed = Number(process.env.LOCKSTEP_CRASH_SEED ?? Math.floor(Math.random() * 2 ** 32));
  t.comment(`seed ${seed}`);
  const random = new Random(seed);
  const model = new CrashModel(seed);
  const pair = await preparePair(directory(t, 'term'), SMALL_GROUP);
  const load = new Load(() => pair.primary, model, random.fork(1));
  t.teardown(async () => {
    load.down = true;
    await Promise.all([pair.primary.kill(), pair.secondary.kill()]);
    await load.end();
  });
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  await load.createVolumes();
  load.start();
  const { epoch } = await pair.primary.group(GROUP);
  for (let i = 0; i < 2; i++) {
    const before = load.counts.writes;
    await Promise.race([load.failed, waitFor('some writes are acknowledged', () => load.counts.writes > before + 100)]);
    await delay(random.below(200));
    load.down = true;
    await pair.primary.stop();
    t.equal(await pair.primary.exitCode(), 0);
    await load.pause();
    await pair.primary.start();
    const group = await pair.primary.group(GROUP);
    t.strictSame(group.epoch, epoch, 'the same epoch');
    t.equal(group.role, 'primary');
    load.settle(await deviceNames(pair.primary));
    await checkNode(pair.primary, model, random);
    load.down = false;
    load.resume();
  }
  await load.pause();
  await checkPair(pair, model, random);
  await load.end();
});

t.test('a second daemon on the data directory ends with a sentence, and the first one goes on serving', async (t) => {
  const place = directory(t, 'twice');
  const node = prepareSingle(place, SMALL_GROUP);
  t.teardown(() => node.kill());
  await node.start();
  await node.control.createVolume(GROUP, { name: 'v', size: 4 * MIB });
  const client = await openDevice(node, 'v');
  await client.write(0, new Uint8Array(4096).fill(7));
  const other = TestNode.prepare(place, { node: 'other', dataDirectory: node.config.dataDirectory, groups: node.config.groups });
  t.teardown(() => other.kill());
  await t.rejects(other.start(), new RegExp(`ended with 2:[^]*another lockstepd \\(process ${node.pid}\\) uses the data directory`));
  await client.write(4096, new Uint8Array(4096).fill(8));
  t.strictSame(new Set(await client.read(0, 8192)), new Set([7, 8]));
  await client.disconnect();
});

t.test('a journal that is full because of a dead link stalls writers, status names the link, and link drop frees them', async (t) => {
  const pair = await preparePair(directory(t, 'stall'), SMALL_GROUP);
  t.teardown(() => Promise.all([pair.primary.kill(), pair.secondary.kill()]));
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  await pair.primary.control.createVolume(GROUP, { name: 'v', size: 32 * MIB });
  await waitCaughtUp(pair);
  await pair.secondary.kill();
  const client = await openDevice(pair.primary, 'v');
  let acknowledged = 0;
  const writes: Promise<void>[] = [];
  for (let i = 0; i < 80; i++) writes.push(client.write((i % 32) * MIB, new Uint8Array(MIB).fill(i + 1)).then(() => void acknowledged++));
  await waitFor('status says that writers wait, and why', async () => {
    const { journal, errors } = await pair.primary.group(GROUP);
    return /link beta still needs it from LSN \d+; writers wait.*lockstep link drop g beta/.test(journal.stalled ?? '') && errors.length > 0;
  });
  t.match((await pair.primary.lockstep('status')).stdout, /link beta still needs it/);
  t.ok(acknowledged < 80, `${acknowledged} of 80 writes were acknowledged before the journal was full`);
  const reader = await openDevice(pair.primary, 'v');
  t.equal((await reader.read(0, 4096)).length, 4096, 'reads are served');
  await reader.disconnect();
  // Room for operations is set aside.
  t.ok((await pair.primary.control.snapshot(GROUP, { source: 'v', name: 's' })).lsn > 0);
  t.equal((await pair.primary.lockstep('link', 'drop', GROUP, 'beta')).code, 0);
  await Promise.all(writes);
  t.equal(acknowledged, 80);
  for (let i = 48; i < 80; i++) t.equal((await client.read((i % 32) * MIB, 512))[0], i + 1);
  t.equal((await pair.primary.group(GROUP)).journal.stalled, null);
  await client.disconnect();
  await pair.secondary.start();
  await waitFor('the secondary is told why it is not served', async () => {
    const [link] = (await pair.secondary.group(GROUP)).links;
    return link !== undefined && /dropped|not-retained|resync|waits/.test(link.reason);
  });
});

t.test('writers that wait for a full journal get on when the secondary comes back', async (t) => {
  const pair = await preparePair(directory(t, 'wait'), SMALL_GROUP);
  t.teardown(() => Promise.all([pair.primary.kill(), pair.secondary.kill()]));
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  await pair.primary.control.createVolume(GROUP, { name: 'v', size: 32 * MIB });
  await waitCaughtUp(pair);
  await pair.secondary.kill();
  const client = await openDevice(pair.primary, 'v');
  const writes: Promise<void>[] = [];
  for (let i = 0; i < 80; i++) writes.push(client.write((i % 32) * MIB, new Uint8Array(MIB).fill(i + 1)));
  await waitFor('writers wait', async () => (await pair.primary.group(GROUP)).journal.stalled !== null);
  await pair.secondary.start();
  await Promise.all(writes);
  await client.disconnect();
  await waitCaughtUp(pair);
  t.equal(await hashDevice(pair.secondary, 'v'), await hashDevice(pair.primary, 'v'));
});

t.test('SIGTERM while writers wait for a full journal is a clean stop: they are refused, and no new epoch follows', async (t) => {
  const pair = await preparePair(directory(t, 'full'), SMALL_GROUP);
  t.teardown(() => Promise.all([pair.primary.kill(), pair.secondary.kill()]));
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  await pair.primary.control.createVolume(GROUP, { name: 'v', size: 32 * MIB });
  await waitCaughtUp(pair);
  await pair.secondary.kill();
  const client = await openDevice(pair.primary, 'v');
  const writes: Promise<boolean>[] = [];
  for (let i = 0; i < 80; i++) {
    writes.push(client.write((i % 32) * MIB, new Uint8Array(MIB).fill(i + 1)).then(() => true, () => false));
  }
  await waitFor('writers wait', async () => (await pair.primary.group(GROUP)).journal.stalled !== null);
  const { epoch } = await pair.primary.group(GROUP);
  await pair.primary.stop();
  t.equal(await pair.primary.exitCode(), 0);
  const taken = (await Promise.all(writes)).filter((one) => one).length;
  t.ok(taken < 80, `${taken} of 80 writes were acknowledged`);
  await pair.primary.start();
  t.strictSame((await pair.primary.group(GROUP)).epoch, epoch, 'the same epoch');
});
