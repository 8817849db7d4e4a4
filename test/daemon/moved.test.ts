/** A journal that real daemons find under another path than before. */
import { readdirSync, readFileSync, renameSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { prepareSingle } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { withDevice } from '../operations/devices.js';

/** From the next start on. */
function lieIn(node: TestNode, directory: string): void {
  const [group] = node.config.groups as { journal: { directory?: string } }[];
  group.journal.directory = directory;
}

t.test('a journal whose former path leads to where it lies now is not removed', async (t) => {
  const directory = makeTempDirectory('moved');
  const node = prepareSingle(directory);
  t.teardown(async () => {
    await node.stop();
    removeTempDirectory(directory);
  });
  const first = join(directory, 'first');
  const second = join(directory, 'second');
  lieIn(node, first);
  await node.start();
  await node.command('create', 'g/web', '1M');
  await withDevice(node, 'web', (client) => client.write(0, Buffer.alloc(8192, 1)));
  await node.stop();
  renameSync(first, second);
  symlinkSync(second, first);
  lieIn(node, second);
  await node.start();
  const segments = (): string[] => readdirSync(second).filter((name) => name.startsWith('segment-'));
  t.ok(segments().length > 0, 'its files are there');
  await withDevice(node, 'web', (client) => client.write(8192, Buffer.alloc(8192, 2)));
  await node.kill();
  await node.start();
  await withDevice(node, 'web', async (client) => {
    t.same([...new Set(await client.read(0, 8192))], [1]);
    t.same([...new Set(await client.read(8192, 8192))], [2]);
  });
  t.notMatch(readFileSync(join(directory, 'solo', 'groups', 'g', 'state.json'), 'utf8'), 'formerJournals');
});
