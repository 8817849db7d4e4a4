/** The journal dump of a real daemon whose client wrote what looks like a batch. */
import t from 'tap';
import { BATCH_MAGIC } from '../../src/journal/format.js';
import { prepareSingle } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { withDevice } from '../operations/devices.js';

t.test('a block of a client that looks like a batch is none, also when the dump begins there', async (t) => {
  const directory = makeTempDirectory('dump');
  const node = prepareSingle(directory);
  t.teardown(async () => {
    await node.stop();
    removeTempDirectory(directory);
  });
  await node.start();
  await node.command('create', 'g/web', '1M');
  const { appended } = (await node.group('g')).lsn;
  const looksLike = (payloadBytes: number): Buffer => {
    const block = Buffer.alloc(4096);
    block.writeUInt32LE(BATCH_MAGIC, 0);
    block.writeBigUInt64LE(BigInt(appended + 4096), 8);
    block.writeUInt32LE(1, 32);
    block.writeUInt32LE(4096, 36);
    block.writeUInt32LE(payloadBytes, 40);
    block.writeUInt8(1, 96);
    block.writeUInt32LE(1, 100);
    block.writeBigUInt64LE(BigInt(payloadBytes), 112);
    return block;
  };
  // Longer than what follows it; and fitting in.
  await withDevice(node, 'web', (client) => client.write(0, Buffer.concat([looksLike(409_600), looksLike(4096), Buffer.alloc(8192)])));
  for (const from of [appended + 4096, appended + 8192]) {
    const { code, stderr } = await node.lockstep('journal', 'dump', 'g', '--from', String(from));
    t.equal(code, 1);
    t.match(stderr, new RegExp(`LSN ${from} is not the start of a batch`));
  }
  t.ok(node.running, 'and the daemon goes on');
  t.match((await node.lockstep('journal', 'dump', 'g')).stdout, /create[\s\S]*write/);
});
