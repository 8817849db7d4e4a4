/** Local snapshots on a real pair of nodes: made and written on either, through kill -9, while replication goes on. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { waitCaughtUp } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { BLOCK, differences, fill, letters, open, withDevice, refusal, startPair } from './devices.js';

const pair = await startPair(t, { journalSize: '64M', segmentSize: '8M' });
const { primary, secondary } = pair;

async function killAndStart(node: TestNode): Promise<void> {
  await node.kill();
  await node.start();
}

await primary.control.createVolume('g', { name: 'v', size: 8 * MIB });
await withDevice(primary, 'v', (client) => fill(client, 0, 8, 'a'));
await waitCaughtUp(pair);

t.test('a local snapshot on the secondary is written there, survives kill -9, and the group stays equal', async (t) => {
  const made = await secondary.command<{ device: { name: string; kind: string } }>('snapshot', 'g/v~drill');
  t.match(made.device, { name: 'v~drill', kind: 'local' });
  let going = true;
  let written = 0;
  const load = withDevice(primary, 'v', async (client) => {
    while (going) await fill(client, 1 + (written++ % 7), 1, 'b');
  });
  await withDevice(secondary, 'v~drill', async (client) => {
    t.notOk(client.export.transmissionFlags & 2, 'it is writable on a secondary');
    await fill(client, 2, 2, 'x');
    // Not whole blocks: the rest of both is what it was.
    await client.write(5 * BLOCK + 512, Buffer.alloc(BLOCK, 'y'));
    await client.trim(7 * BLOCK, BLOCK);
    await client.flush();
    await fill(client, 1000, 40, 'z');
  });
  await killAndStart(secondary);
  going = false;
  await load;
  const bytes = await withDevice(secondary, 'v~drill', (client) => client.read(0, 1050 * BLOCK));
  const want = Buffer.alloc(1050 * BLOCK);
  want.fill('a', 0, 8 * BLOCK).fill('x', 2 * BLOCK, 4 * BLOCK).fill('y', 5 * BLOCK + 512, 6 * BLOCK + 512).fill(0, 7 * BLOCK, 8 * BLOCK).fill('z', 1000 * BLOCK, 1040 * BLOCK);
  t.equal(Buffer.compare(bytes, want), 0, 'acknowledged writes are there, flushed or not');
  t.ok(written > 10, 'the primary was written to meanwhile');
  t.equal(await differences(pair), '');
  t.same((await primary.control.devices('g')).devices.map((device) => device.name), ['v'], 'the primary knows nothing of it');
});

t.test('the same name on the primary is another device; both are restored, and taken of each other', async (t) => {
  await primary.control.snapshot('g', { source: 'v', name: 'drill', local: true });
  await withDevice(primary, 'v~drill', (client) => fill(client, 0, 4, 'p'));
  await primary.command('snapshot', 'g/v~second', '--of', 'v~drill');
  await withDevice(primary, 'v~drill', (client) => fill(client, 0, 1, 'q'));
  await killAndStart(primary);
  t.match(await letters(primary, 'v~drill', 5), /^qppp./);
  t.match(await letters(primary, 'v~second', 5), /^pppp./);
  t.match(await letters(secondary, 'v~drill', 5), /^aaxxa/);
  await primary.command('restore', 'g/v~drill', 'v~second');
  t.match(await letters(primary, 'v~drill', 5), /^pppp./);
  await primary.control.refresh('g', { target: 'v~drill' });
  t.equal(await letters(primary, 'v~drill', 9), await letters(primary, 'v', 9), 'what it was taken of is now');
  t.equal(await differences(pair), '');
  const list = await primary.lockstep('list', 'g');
  t.match(list.stdout, /g\/v~drill .*local/);
});

t.test('what a local snapshot cannot do is refused with a sentence', async (t) => {
  const { control } = primary;
  t.match(await refusal(control.restore('g', { target: 'v', source: 'v~drill' })), /^local\/refused: v~drill is on this node only/);
  t.match(await refusal(control.snapshot('g', { source: 'v~drill', name: 's' })), /^local\/refused: .*--local/);
  t.match(await refusal(control.clone('g', { source: 'v~drill', name: 'w' })), /^local\/refused: .*clone a snapshot v@NAME/);
  t.match(await refusal(control.resize('g', { device: 'v~drill', size: MIB })), /^local\/refused/);
  t.match(await refusal(control.snapshot('g', { source: 'v', name: 'drill', local: true })), /^device\/exists: g\/v~drill exists already on this node/);
  t.match(await refusal(control.snapshot('g', { source: 'none', name: 'drill', local: true })), /^device\/not-found/);
  const client = await open(primary, 'v~drill');
  t.match(await refusal(control.remove('g', 'v~drill')), /^device\/busy: .*1 NBD client.*--force/);
  await control.remove('g', 'v~drill', { force: true });
  await t.rejects(client.read(0, BLOCK), 'its connection was closed');
  t.match(await refusal(control.remove('g', 'v~drill')), /^device\/not-found/);
  for (const asked of [
    control.clone('g', { source: 'v~drill', name: 'w' }), control.resize('g', { device: 'v~drill', size: MIB }), control.rename('g', { device: 'v~drill', name: 'w' }),
    control.protect('g', true, { device: 'v~drill' }), control.restore('g', { target: 'v', source: 'v~drill' }), control.snapshot('g', { source: 'v~drill', name: 's' }),
  ]) {
    t.equal(await refusal(asked), 'device/not-found: group g has no local snapshot v~drill on this node; lockstep list shows what there is', 'not what cannot be done to one that is there');
  }
});

t.test('it stays when the device that it was taken of is removed, over a stop in order and a promotion', async (t) => {
  await primary.control.remove('g', 'v');
  await waitCaughtUp(pair);
  t.match(await letters(secondary, 'v~drill', 5), /^aaxxa/);
  await withDevice(secondary, 'v~drill', (client) => fill(client, 4, 1, 'n'));
  await secondary.control.flush('g', { upTo: 'checkpoint' });
  await secondary.stop();
  await primary.stop();
  await secondary.start();
  t.match(await letters(secondary, 'v~drill', 5), /^aaxxn/);
  await secondary.control.promote('g');
  await secondary.control.remove('g', 'v~drill');
  t.same((await secondary.control.devices('g')).devices, []);
});
