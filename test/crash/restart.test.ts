/** Stops and restarts of real daemons, one case each. */
import t from 'tap';
import type { Test } from 'tap';
import { MIB } from '../../src/base/units.js';
import { preparePair, waitCaughtUp } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { hashDevice } from './check.js';
import { GROUP, openDevice } from './clients.js';
import { SMALL_GROUP } from './kills.js';

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
