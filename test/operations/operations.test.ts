/** Every operation on a real pair of nodes: what it does, that the secondary holds the same, and what is refused. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { waitFor } from '../harness/process.js';
import { BLOCK, differences, fill, letters, open, withDevice, refusal, startPair } from './devices.js';

const pair = await startPair(t);
const { primary, secondary } = pair;
const { control } = primary;

async function volume(name: string, content: string, size = 4 * MIB): Promise<void> {
  await control.createVolume('g', { name, size });
  await withDevice(primary, name, async (client) => {
    for (const [i, letter] of [...content].entries()) if (letter !== '.') await fill(client, i, 1, letter);
  });
}

t.test('a snapshot of a snapshot, refresh and sync', async (t) => {
  await volume('a', 'aaaa');
  await control.snapshot('g', { source: 'a', name: 's1' });
  await withDevice(primary, 'a', (client) => fill(client, 1, 1, 'b'));
  await withDevice(primary, 'a@s1', (client) => fill(client, 2, 1, 'x'));
  await control.snapshot('g', { source: 'a@s1', name: 's2' });
  t.equal(await letters(primary, 'a@s2', 5), 'aaxa.');
  await withDevice(primary, 'a@s2', (client) => fill(client, 3, 1, 'y'));
  await control.refresh('g', { target: 'a@s1' });
  t.equal(await letters(primary, 'a@s1', 5), 'abaa.', 'what the volume is');
  await control.refresh('g', { target: 'a@s2' });
  t.equal(await letters(primary, 'a@s2', 5), 'abaa.', 'what its parent is, which is a snapshot');
  await withDevice(primary, 'a@s2', (client) => fill(client, 0, 4, 'z'));
  await control.sync('g', { target: 'a@s1', source: 'a@s2', ranges: [[BLOCK, 2 * BLOCK]] });
  t.equal(await letters(primary, 'a@s1', 5), 'azza.');
  await control.sync('g', { target: 'a@s1', source: 'a@s2' });
  t.equal(await letters(primary, 'a@s1', 5), 'zzzz.');
  t.equal(await letters(primary, 'a', 5), 'abaa.', 'the volume is untouched');
  t.equal(await differences(pair), '');
  t.match(await refusal(control.sync('g', { target: 'a', source: 'a@s1' })), /^device\/not-snapshot: g\/a is a volume/);
  t.match(await refusal(control.refresh('g', { target: 'a' })), /^device\/not-snapshot: .*lockstep restore/);
  t.match(await refusal(control.sync('g', { target: 'a@s1', source: 'a@s1' })), /^(usage|device\/same): /);
});

t.test('a range restore, on edges of leaves and of regions, and what is no range', async (t) => {
  const size = 8 * MIB;
  await control.createVolume('g', { name: 'r', size });
  await withDevice(primary, 'r', (client) => fill(client, 0, size / BLOCK, 'a'));
  await control.snapshot('g', { source: 'r', name: 's' });
  await withDevice(primary, 'r', (client) => fill(client, 0, size / BLOCK, 'b'));
  const ranges: [number, number][] = [[BLOCK, BLOCK], [500 * BLOCK, 30 * BLOCK], [MIB * 4, MIB * 2], [size - BLOCK, BLOCK]];
  await control.restore('g', { target: 'r', source: 'r@s', ranges });
  const want = 'b'.repeat(size / BLOCK).split('');
  for (const [offset, length] of ranges) want.fill('a', offset / BLOCK, (offset + length) / BLOCK);
  t.equal(await letters(primary, 'r', size / BLOCK), want.join(''));
  await withDevice(primary, 'r', (client) => fill(client, 501, 1, 'c'));
  t.equal((await letters(primary, 'r@s', size / BLOCK)), 'a'.repeat(size / BLOCK), 'the snapshot has its own blocks');
  t.equal(await differences(pair), '');
  const bad: [[number, number][], RegExp][] = [
    [[[1, 4096]], /^usage/], [[[0, 0]], /^range\/invalid: .*whole blocks/], [[[size, 4096]], /^range\/invalid: .*ends behind/], [[[0, 8192], [4096, 4096]], /^range\/invalid: .*not behind/],
    [Array.from({ length: 65 }, (_, i): [number, number] => [i * 2 * BLOCK, BLOCK]), /^operation\/too-large: 65 ranges/],
  ];
  for (const [list, words] of bad) t.match(await refusal(control.restore('g', { target: 'r', source: 'r@s', ranges: list })), words);
});

t.test('a group snapshot is one set: made, restored, refreshed, renamed and removed together', async (t) => {
  await volume('u', 'uuuu');
  await volume('v', 'vvvv');
  const made = await control.snapshot('g', { source: null, name: 'set' });
  t.ok(made.devices.length >= 2 && made.devices.every((device) => device.set === 'set' && device.creationLsn === made.lsn), 'all at one LSN');
  await withDevice(primary, 'u', (client) => fill(client, 0, 2, 'x'));
  await withDevice(primary, 'v', (client) => fill(client, 2, 2, 'y'));
  await control.snapshot('g', { source: 'u', name: 'lone' });
  t.match(await refusal(control.refresh('g', { target: 'u@set' })), /^device\/in-set: .* to refresh all of them: lockstep refresh g\/@set; --force refreshes this member alone/);
  t.match(await refusal(control.remove('g', 'u@set')), /^device\/in-set: .* to remove all of them: lockstep remove g\/@set; --force removes this member alone/);
  t.match(await refusal(control.rename('g', { device: 'u@set', name: 'other' })), /^device\/in-set: .* lockstep rename g\/@set other; --force renames this member alone/);
  // Of these a set does something else (restore), or nothing.
  for (const [asked, does] of [
    [control.restore('g', { target: 'u@set', source: 'u@lone' }), 'restores'], [control.sync('g', { target: 'u@set', source: 'u@lone' }), 'syncs'], [control.resize('g', { device: 'u@set', size: 4096 }), 'shrinks'],
  ] as const) {
    const words = await refusal(asked);
    t.match(words, new RegExp(`^device/in-set: g/u@set belongs to the group snapshot @set, whose members are of one point: --force ${does} this member alone`));
    t.notMatch(words, 'g/@set');
  }
  await control.remove('g', 'u@lone');
  t.match(await refusal(control.snapshot('g', { source: null, name: 'set' })), /^set\/exists/);
  const held = await open(primary, 'v');
  t.match(await refusal(control.restore('g', { source: '@set' })), /^device\/busy: g\/v has 1 NBD client/);
  t.equal(await letters(primary, 'u', 4), 'xxuu', 'nothing of a refused set was done');
  await held.disconnect();
  await waitFor('the client is gone', async () => (await control.devices('g')).devices.every((device) => device.clients === 0));
  await control.restore('g', { source: '@set' });
  t.equal(await letters(primary, 'u', 4), 'uuuu');
  t.equal(await letters(primary, 'v', 4), 'vvvv');
  await withDevice(primary, 'u', (client) => fill(client, 0, 1, 'n'));
  await control.refresh('g', { target: '@set' });
  t.equal(await letters(primary, 'u@set', 4), 'nuuu');
  await control.rename('g', { device: '@set', name: 'tuesday' });
  t.equal(await letters(primary, 'u@tuesday', 4), 'nuuu');
  t.equal(await differences(pair), '');
  await control.remove('g', '@tuesday');
  t.equal((await control.devices('g')).devices.filter((device) => device.set !== null).length, 0);
  t.match(await refusal(control.remove('g', '@tuesday')), /^set\/not-found/);
  t.equal(await differences(pair), '');
});

t.test('removing a volume with its snapshots says what is left of the sets that they were members of', async (t) => {
  await volume('w', 'ww');
  const made = await control.snapshot('g', { source: null, name: 'left' });
  const reply = await control.remove('g', 'w', { withSnapshots: true });
  t.equal(reply.notice, `with g/w its members of group snapshots were removed: of members @left has ${made.devices.length - 1} left`);
  await control.remove('g', '@left');
  await volume('w', 'ww');
  t.equal((await control.remove('g', 'w', { withSnapshots: true })).notice, null);
});

t.test('resize: open connections see it, what was cut off never comes back, clients of the secondary are closed', async (t) => {
  await volume('z', 'z'.repeat(8), 8 * BLOCK);
  const client = await open(primary, 'z', false);
  await control.resize('g', { device: 'z', size: 16 * BLOCK });
  await fill(client, 15, 1, 'n');
  t.equal(await letters(primary, 'z', 16), 'zzzzzzzz.......n', 'an open connection reaches what was added');
  await t.rejects(fill(client, 16, 1, 'n'), 'and no further');
  await client.disconnect();
  t.match(await refusal(control.resize('g', { device: 'z', size: 4 * BLOCK })), /^device\/has-data/);
  t.match(await refusal(control.resize('g', { device: 'z', size: 16 * BLOCK })), /^device\/same-size/);
  await control.resize('g', { device: 'z', size: 64 * MIB });
  await primary.control.flush('g', { upTo: 'checkpoint' });
  await primary.kill();
  await primary.start();
  await control.resize('g', { device: 'z', size: 16 * BLOCK });
  t.match(await refusal(control.resize('g', { device: 'z', size: 4 * BLOCK })), /^device\/has-data/, 'maps are read to tell that there is none');
  await control.snapshot('g', { source: 'z', name: 's' });
  await waitFor('the secondary serves the snapshot', async () => (await secondary.control.devices('g')).devices.some((device) => device.name === 'z@s'));
  const reader = await open(secondary, 'z');
  await control.resize('g', { device: 'z', size: 4 * BLOCK, force: true, wait: 'applied' });
  await waitFor('the secondary has closed the connection', () => Promise.resolve(!reader.usable));
  await control.resize('g', { device: 'z', size: 16 * BLOCK });
  t.equal(await letters(primary, 'z', 16), 'zzzz............');
  t.equal(await letters(primary, 'z@s', 16), 'zzzzzzzz.......n', 'the snapshot keeps what it had');
  await control.restore('g', { target: 'z', source: 'z@s' });
  t.equal(await letters(primary, 'z', 16), 'zzzzzzzz.......n');
  t.equal(await differences(pair), '');
});

t.test('protection keeps a device from what would destroy it, and a snapshot from writes', async (t) => {
  await volume('p', 'pppp');
  await control.snapshot('g', { source: 'p', name: 's' });
  const writer = await open(primary, 'p@s');
  t.match(await refusal(control.protect('g', true, { device: 'p@s' })), /^device\/busy/);
  await control.protect('g', true, { device: 'p@s', force: true });
  await waitFor('the writer was disconnected', () => Promise.resolve(!writer.usable));
  t.ok((await withDevice(primary, 'p@s', (client) => Promise.resolve(client.export))).transmissionFlags & 2, 'read-only');
  for (const work of [control.remove('g', 'p@s'), control.remove('g', 'p', { withSnapshots: true }), control.refresh('g', { target: 'p@s', force: true }), control.resize('g', { device: 'p@s', size: BLOCK, force: true })]) {
    t.match(await refusal(work), /^device\/protected: g\/p@s is protected/);
  }
  await control.protect('g', true, { device: 'p' });
  await withDevice(primary, 'p', (client) => fill(client, 0, 1, 'q'));
  t.equal(await letters(primary, 'p', 4), 'qppp', 'a protected volume stays writable');
  t.match(await refusal(control.restore('g', { target: 'p', source: 'p@s' })), /^device\/protected/);
  t.equal(await differences(pair), '');
  await control.protect('g', false, { device: 'p@s' });
  await control.protect('g', false, { device: 'p' });
  await withDevice(primary, 'p@s', (client) => fill(client, 1, 1, 'w'));
  t.equal(await letters(primary, 'p@s', 4), 'pwpp');
  await control.remove('g', 'p', { withSnapshots: true });
  t.equal(await differences(pair), '');
});

t.test('rename takes the snapshots along, a clone lives on without its source', async (t) => {
  await volume('n', 'nnnn');
  await control.snapshot('g', { source: 'n', name: 's' });
  await control.rename('g', { device: 'n', name: 'm' });
  t.equal(await letters(primary, 'm@s', 4), 'nnnn');
  t.match(await refusal(control.rename('g', { device: 'm', name: 'a' })), /^device\/exists/);
  await control.clone('g', { source: 'm@s', name: 'copy' });
  await withDevice(primary, 'copy', (client) => fill(client, 0, 1, 'c'));
  await control.rename('g', { device: 'm@s', name: 't' });
  await control.remove('g', 'm', { withSnapshots: true });
  t.equal(await letters(primary, 'copy', 4), 'cnnn');
  t.match(await refusal(control.clone('g', { source: 'copy', name: 'c2' })), /^device\/not-snapshot/);
  t.match(await refusal(control.restore('g', { target: 'copy', source: 'a@s1' })), /^device\/unrelated: .*clone/);
  t.equal(await differences(pair), '');
});

t.test('the secondary refuses operations and says where to go; after promotion everything goes on there', async (t) => {
  t.match(await refusal(secondary.control.resize('g', { device: 'a', size: 8 * MIB })), /^role\/not-primary: .*promote/);
  t.equal(await differences(pair), '');
  await primary.kill();
  await secondary.control.promote('g', { force: true });
  await secondary.control.resize('g', { device: 'a', size: 6 * MIB });
  await secondary.control.restore('g', { target: 'a', source: 'a@s2', ranges: [[0, BLOCK]] });
  t.equal(await letters(secondary, 'a', 4), 'zbaa');
});
