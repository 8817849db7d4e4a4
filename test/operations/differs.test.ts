/** A secondary whose tree is not the primary's says which marker and what differs; both nodes' status show it, and the next start does. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import type { CoreState } from '../../src/group/content/core.js';
import type { Device } from '../../src/group/tree/device.js';
import { decodeSlot, encodeSlot, slotPath } from '../../src/store/slot.js';
import { CLI, TestNode } from '../harness/node.js';
import { run, waitFor, type Finished } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { fill, letters, startPair, withDevice } from './devices.js';

/** Changes one device in the newest checkpoint of a node that is down, behind its back. */
function tamper(node: TestNode, name: string, over: Partial<Device>): void {
  const directory = join(node.config.dataDirectory as string, 'groups', 'g');
  const found = [0, 1].map((which) => decodeSlot(readFileSync(slotPath(directory, which)))).flatMap((slot) => (typeof slot === 'string' ? [] : [slot]));
  const newest = found.reduce((one, other) => (one.sequence > other.sequence ? one : other));
  const group = newest.body.group as CoreState;
  const body = { ...newest.body, group: { ...group, devices: group.devices.map((device) => (device.name === name ? { ...device, ...over } : device)) } };
  for (const sequence of [newest.sequence + 1, newest.sequence + 2]) writeFileSync(slotPath(directory, sequence), encodeSlot(sequence, body));
}

function wordsOf(verb: string, lsn: number, what: string): RegExp {
  return new RegExp(`the marker "${verb}" at LSN ${lsn} left the primary with tree digest [0-9a-f]{32}, this node would get [0-9a-f]{32}: the trees differ in ${what}\\. Restart lockstepd here .* build this node anew \\(README, "Rebuild a secondary"\\)`);
}

const { primary, secondary } = await startPair(t);

t.test('over a link: live, on a new connection, and after a restart', async (t) => {
  await primary.control.createVolume('g', { name: 'web', size: 4 * MIB });
  await primary.control.createVolume('g', { name: 'mail', size: 4 * MIB });
  await withDevice(primary, 'web', (client) => fill(client, 0, 2, 'a'));
  await primary.control.snapshot('g', { source: 'web', name: 'monday', wait: 'applied' });
  await secondary.control.flush('g', { upTo: 'checkpoint' });
  await secondary.stop();
  tamper(secondary, 'monday', { protected: true, parent: 2 });
  await secondary.start();
  await waitFor('the link streams again', async () => (await primary.group('g')).links[0].state === 'streaming');
  t.strictSame((await secondary.group('g')).errors, [], 'nothing of it shows before the next marker');

  const { lsn } = await primary.control.resize('g', { device: 'mail', size: 8 * MIB });
  const words = wordsOf('resize', lsn, 'descent and protection of web@monday \\(device 3\\): here taken from device 2, of volume 1, protected');
  const shown = async (): Promise<void> => {
    await waitFor('the secondary says it', async () => (await secondary.group('g')).errors.some((error) => /^stopped applying, serves the last state read-only and keeps what it receives: /.test(error) && words.test(error)));
    await waitFor('the primary says it', async () => words.test((await primary.group('g')).links[0].reason));
  };
  await shown();
  for (const node of [primary, secondary]) t.match(await node.lockstep('status', '--check'), { code: 1, stdout: words });
  await withDevice(primary, 'web', (client) => fill(client, 0, 1, 'b'));
  t.equal(await letters(secondary, 'web', 2), 'aa', 'the last state is served');
  const { lsn: end } = await primary.group('g');
  await waitFor('it keeps what it receives', async () => (await secondary.group('g')).lsn.appended === end.appended);
  t.match(await secondary.lockstep('promote', 'g', '--force'), { code: 2, stderr: words });

  // Nothing is appended meanwhile.
  await secondary.stop();
  await secondary.start();
  await shown();
  await secondary.kill();
  await secondary.start();
  await shown();
  t.equal((await primary.group('g')).lsn.appended, end.appended);
  const logged = secondary.log.replaceAll('\\"', '"').split('\n').filter((line) => words.test(line));
  t.equal(logged.length, 3, 'its log has it, of each start');
  t.match(logged[2], /has not executed what its journal holds from LSN \d+ on: /);
  const dump = await primary.lockstep('journal', 'dump', 'g', '--from', String(lsn - 96));
  t.match(dump.stdout, /"op":"resize"/);
  t.notMatch(dump.stdout, /"sums"/);
  t.match((await primary.lockstep('--json', 'journal', 'dump', 'g', '--from', String(lsn - 96))).stdout, /"op":"resize".*"sums":"03000000[0-9a-f]{144}"/);
});

t.test('through a pipe: the import says it, and every later one; recovery of a primary does, too', async (t) => {
  const directory = makeTempDirectory('differs');
  const node = (name: string, role: string): TestNode => TestNode.prepare(directory, { node: name, groups: [{ name: 'g', role, journal: { size: '64M', segmentSize: '8M' } }] });
  const [from, to] = [node('alpha', 'primary'), node('beta', 'secondary')];
  t.teardown(async () => {
    await Promise.all([from.stop(), to.stop()]);
    removeTempDirectory(directory);
  });
  await Promise.all([from.start(), to.start()]);
  const stage = (one: TestNode, ...args: string[]): string => `'${process.execPath}' '${CLI}' --socket '${one.controlSocket}' journal ${args.join(' ')}`;
  /** The exit code is that of the import. */
  const carry = (): Promise<Finished> => run('bash', ['-c', `${stage(from, 'export', 'g', '--cursor', 'pipe')} | ${stage(to, 'import', 'g')}`]);
  await from.control.createVolume('g', { name: 'web', size: 256 * KIB });
  t.match(await carry(), { code: 0 });
  await to.control.flush('g', { upTo: 'checkpoint' });
  await to.stop();
  tamper(to, 'web', { sizeBytes: 128 * KIB });
  await to.start();
  const { lsn } = await from.control.protect('g', true, { device: 'web' });
  const words = wordsOf('protect', lsn, 'size of web \\(device 1\\): here 131072 bytes');
  t.match(await carry(), { code: 2, stderr: words });
  t.match(await carry(), { code: 2, stderr: words }, 'and the next one');
  t.ok((await to.group('g')).errors.some((error) => words.test(error)));
  await to.stop();
  await to.start();
  t.match(await carry(), { code: 2, stderr: words }, 'and after a restart');

  await from.control.flush('g', { upTo: 'checkpoint' });
  const { lsn: again } = await from.control.protect('g', false, { device: 'web' });
  await from.kill();
  tamper(from, 'web', { name: 'wap' });
  await from.start();
  const { role, roleReason } = await from.group('g');
  t.equal(role, 'stopped', 'a primary that cannot replay its own journal');
  t.match(roleReason, new RegExp(`^its own journal cannot be replayed: .*${wordsOf('unprotect', again, 'name of wap \\(device 1\\): here name wap').source}`));
});
