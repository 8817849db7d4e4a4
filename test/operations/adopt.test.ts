/** Local snapshots of both nodes, made equal by reconcile, sealed, and adopted as one replicated snapshot. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import type { SealReply } from '../../src/control/schema/replies.js';
import { CLI } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { waitCaughtUp } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { differences, fill, letters, open, withDevice, refusal, startPair } from './devices.js';

t.setTimeout(300_000);
const pair = await startPair(t);
const { primary, secondary } = pair;

/** A name is free only when the adoption of what had it cannot be undone any more. */
async function again(work: () => Promise<unknown>): Promise<void> {
  await waitFor('the name is free', async () => {
    const words = await refusal(work());
    if (words !== 'it was not refused' && !/^group\/busy: .*was adopted, and that can still be undone/.test(words)) throw new Error(words);
    return words === 'it was not refused';
  });
}

const serve = (device: string): string => `'${process.execPath}' '${CLI}' --socket '${secondary.controlSocket}' reconcile --serve '${device}'`;

async function names(node: TestNode): Promise<string[]> {
  return (await node.control.devices('g')).devices.map((device) => device.name).sort();
}

/** `VOLUME~name` on both nodes, at two points of the stream: they differ in some blocks. */
async function localPair(volume: string, name: string): Promise<void> {
  await waitCaughtUp(pair);
  await secondary.control.snapshot('g', { source: volume, name, local: true });
  await withDevice(primary, volume, (client) => fill(client, 100, 40, 'q'));
  await primary.control.snapshot('g', { source: volume, name, local: true });
}

await primary.control.createVolume('g', { name: 'web', size: 16 * MIB });
await withDevice(primary, 'web', (client) => fill(client, 0, 600, 'a'));

t.test('a pair that was reconciled and sealed becomes one replicated snapshot, equal on both nodes', async (t) => {
  await localPair('web', 'try');
  await withDevice(primary, 'web~try', (client) => fill(client, 3, 1, 'p'));
  await withDevice(secondary, 'web~try', (client) => fill(client, 4, 1, 's'));
  t.match(await refusal(primary.control.adopt('g', { local: 'web~try', name: 'try' })), /^local\/not-sealed: g\/web~try is not sealed.*lockstep seal g\/web~try/);
  const reconciled = await primary.command<{ contentBytes: number; digest: string }>('reconcile', 'g/web~try', '--with', serve('g/web~try'));
  t.equal(reconciled.contentBytes, 42 * 4096, 'what differs is sent, and nothing else');
  const seals = [await primary.command<SealReply>('seal', 'g/web~try'), await secondary.command<SealReply>('seal', 'g/web~try')];
  t.strictSame(seals.map((seal) => seal.digest), [reconciled.digest, reconciled.digest]);
  t.match(await primary.lockstep('list'), { stdout: /web~try .*local, sealed/ });
  t.equal((await primary.command<SealReply>('seal', 'g/web~try')).digest, reconciled.digest, 'sealing again tells the same');
  const client = await open(primary, 'web~try');
  await t.rejects(client.write(0, new Uint8Array(4096)), { code: 'EPERM' }, 'nobody writes to what is sealed');
  t.match(await refusal(primary.control.restore('g', { target: 'web~try', source: 'web' })), /^local\/sealed: .*lockstep seal --undo g\/web~try/);
  t.match(await refusal(primary.control.adopt('g', { local: 'web~try', name: 'try' })), /^device\/busy: g\/web~try has 1 NBD client/);
  await client.disconnect();
  t.match(await refusal(secondary.control.adopt('g', { local: 'web~try', name: 'try' })), /^role\/not-primary/);

  const result = await primary.lockstep('adopt', 'g/web~try', '--wait', 'applied');
  t.match(result.stdout, /^adopted g\/web~try as g\/web@try at LSN \d+; durable here, applied on beta/);
  for (const node of [primary, secondary]) t.strictSame(await names(node), ['web', 'web@try']);
  t.equal(await letters(primary, 'web@try', 6), 'aaapaa');
  t.equal(await differences(pair), '');
  await withDevice(primary, 'web@try', (device) => fill(device, 0, 2, 'w'));
  t.equal(await differences(pair), '', 'it is replicated as any other');
  await primary.control.restore('g', { target: 'web', source: 'web@try' });
  t.equal(await letters(primary, 'web', 6), 'wwapaa');
  t.equal(await differences(pair), '');
});

t.test('after kill -9 of both nodes it is the same, also when the name was used again', async (t) => {
  for (const round of [1, 2]) {
    for (const node of [primary, secondary]) await again(() => node.control.snapshot('g', { source: 'web', name: 'try', local: true }));
    await withDevice(primary, 'web~try', (client) => fill(client, 7, 1, 'n'));
    await Promise.all([primary.kill(), secondary.kill()]);
    await Promise.all([primary.start(), secondary.start()]);
    await waitCaughtUp(pair);
    for (const node of [primary, secondary]) t.ok((await names(node)).includes('web~try'), `round ${round}: the local snapshot is there`);
    t.equal(await letters(primary, 'web~try', 8), 'wwapaaan');
    t.equal(await differences(pair), '', `round ${round}`);
    await primary.command('reconcile', 'g/web~try', '--with', serve('g/web~try'));
    for (const node of [primary, secondary]) await node.command('seal', 'g/web~try');
    await Promise.all([primary.kill(), secondary.kill()]);
    await Promise.all([primary.start(), secondary.start()]);
    await primary.command('adopt', 'g/web~try', '--as', `again${round}`, '--wait', 'applied');
  }
  for (const end of ['checkpoint', 'kill'] as const) {
    if (end === 'checkpoint') await Promise.all([primary.control.flush('g', { upTo: 'checkpoint' }), secondary.control.flush('g', { upTo: 'checkpoint' })]);
    await Promise.all([primary.kill(), secondary.kill()]);
    await Promise.all([primary.start(), secondary.start()]);
    await waitCaughtUp(pair);
  }
  for (const node of [primary, secondary]) t.strictSame(await names(node), ['web', 'web@again1', 'web@again2', 'web@try']);
  t.equal(await letters(primary, 'web@again2', 8), 'wwapaaan');
  t.equal(await differences(pair), '');
  for (const node of [primary, secondary]) t.strictSame((await node.group('g')).errors, []);
});

t.test('what a seal refuses, and how it is taken back', async (t) => {
  await primary.control.snapshot('g', { source: 'web', name: 'mine', local: true });
  t.match(await primary.lockstep('seal', 'g/web'), { code: 2, stderr: /is no local snapshot/ });
  t.match(await primary.lockstep('adopt', 'g/web@try'), { code: 2, stderr: /is no local snapshot/ });
  t.match(await primary.lockstep('seal', 'g/web~none'), { code: 2, stderr: /no local snapshot web~none/ });
  const client = await open(primary, 'web~mine');
  t.match(await primary.lockstep('seal', 'g/web~mine'), { code: 2, stderr: /g\/web~mine has 1 NBD client: disconnect it, or use --force/ });
  await primary.command('seal', 'g/web~mine', '--force');
  t.equal(client.usable, false, '--force disconnected it');
  t.match(await refusal(primary.control.adopt('g', { local: 'web~mine', name: 'try' })), /^device\/exists: g\/web@try exists already; choose another name with --as/);
  t.match(await refusal(primary.control.seal('g', { device: 'web~mine', known: { digest: '00'.repeat(16), sealedLsn: 1 } })), /^local\/not-sealed/);
  t.match(await primary.lockstep('seal', '--undo', 'g/web~mine'), { stdout: /^unsealed g\/web~mine/ });
  t.match(await refusal(primary.control.seal('g', { device: 'web~mine', undo: true })), /^local\/not-sealed: g\/web~mine is not sealed/);
  await withDevice(primary, 'web~mine', (device) => fill(device, 0, 1, 'z'));
  t.equal(await letters(primary, 'web~mine', 1), 'z');
  await primary.control.remove('g', 'web~mine');
});

t.test('an adoption that the connected secondary could not execute is refused; one that was away stops applying and says why on both nodes; made equal, it goes on', async (t) => {
  await localPair('web', 'odd');
  await withDevice(secondary, 'web~odd', (client) => fill(client, 9, 1, 'x'));
  const here = await primary.command<SealReply>('seal', 'g/web~odd');
  const there = await secondary.command<SealReply>('seal', 'g/web~odd');
  t.not(here.digest, there.digest);
  const refused = await primary.lockstep('adopt', 'g/web~odd');
  t.match(refused, { code: 2, stderr: `g/web~odd has content digest ${here.digest} here, and on node ${secondary.name} it has content digest ${there.digest}; make it equal there (lockstep reconcile)` });
  t.strictSame((await secondary.group('g')).errors, []);
  await secondary.stop();
  const { lsn } = await primary.control.adopt('g', { local: 'web~odd', name: 'odd' });
  await secondary.start();
  const words = new RegExp(`the marker "adopt" at LSN ${lsn} cannot be executed: it adopts local snapshot web~odd with content digest ${here.digest}, and on this node it has content digest ${there.digest}`);
  await waitFor('the secondary stops applying', async () => (await secondary.group('g')).errors.some((error) => words.test(error)));
  await waitFor('the primary tells it', async () => words.test((await primary.group('g')).links[0].reason));
  t.match(await primary.lockstep('status', '--check'), { code: 1, stdout: words });
  t.ok((await names(secondary)).includes('web~odd'), 'it keeps what it has');
  await withDevice(primary, 'web', (client) => fill(client, 11, 1, 'l'));

  await secondary.command('seal', '--undo', 'g/web~odd');
  await primary.command('reconcile', 'g/web@odd', '--with', serve('g/web~odd'));
  await secondary.command('seal', 'g/web~odd');
  await secondary.stop();
  await secondary.start();
  await waitCaughtUp(pair);
  t.strictSame(await names(secondary), await names(primary));
  t.equal(await differences(pair), '');
  t.strictSame((await secondary.group('g')).errors, []);
});

t.test('a secondary without a local snapshot of that name stops applying', async () => {
  await primary.control.snapshot('g', { source: 'web', name: 'alone', local: true });
  await primary.command('seal', 'g/web~alone');
  await secondary.stop();
  const { lsn } = await primary.control.adopt('g', { local: 'web~alone', name: 'alone' });
  await secondary.start();
  await waitFor('the secondary stops applying', async () => (await secondary.group('g')).errors.some((error) => error.includes(`the marker "adopt" at LSN ${lsn} cannot be executed`) && error.includes('on this node there is no local snapshot of that name')));
});
