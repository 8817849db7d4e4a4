/** A real daemon with a journal on a real tmpfs: kills, stops, and a machine that was started anew. */
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statfsSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Test } from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { TestNode } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { decodeSegmentHeader } from '../../src/journal/format.js';
import { openDevice } from './clients.js';

t.setTimeout(120_000);

const SHM = '/dev/shm';
const TMPFS = 0x01021994;
const inMemory = existsSync(SHM) && statfsSync(SHM).type === TMPFS;
const STORE = { checkpointSeconds: 1, mapMemory: '16M', freeSpaceWatermark: 0 };

function prepare(t: Test, store: Record<string, unknown> = {}): { node: TestNode; memory: string; state: string } {
  const directory = makeTempDirectory('volatile');
  const memory = mkdtempSync(join(SHM, 'lockstep-test-'));
  const journal = { size: '64M', segmentSize: '8M' };
  const node = TestNode.prepare(directory, {
    node: 'solo',
    groups: [
      { name: 'g', role: 'primary', journal: { ...journal, volatile: true, directory: join(memory, 'g') }, store: { ...STORE, ...store } },
      { name: 'd', role: 'primary', journal, store: STORE },
    ],
  });
  t.teardown(async () => {
    await node.kill();
    rmSync(memory, { recursive: true, force: true });
    removeTempDirectory(directory);
  });
  return { node, memory, state: join(directory, 'solo', 'groups', 'g', 'state.json') };
}

/** What is left when the machine was started anew: no tmpfs, another boot id. */
function reboot(memory: string, state: string): void {
  rmSync(join(memory, 'g'), { recursive: true });
  writeFileSync(state, readFileSync(state, 'utf8').replace(/"bootId": "[^"]*"/, '"bootId": "another boot"'));
}

/** Names of the segments that were taken into use and not released, in that order. */
function segments(directory: string): string[] {
  const found: [number, string][] = [];
  for (const name of readdirSync(directory).filter((one) => one.startsWith('segment-'))) {
    const header = decodeSegmentHeader(readFileSync(join(directory, name)), 0);
    if (typeof header !== 'string') found.push([header.serial, name]);
  }
  return found.sort((a, b) => a[0] - b[0]).map(([, name]) => name);
}

async function write(node: TestNode, from: number, count: number, fill: number, flush: boolean): Promise<void> {
  const client = await openDevice(node, 'v');
  for (let i = from; i < from + count; i++) await client.write(i * 64 * KIB, new Uint8Array(64 * KIB).fill(fill + i));
  if (flush) await client.flush();
  await client.disconnect();
}

async function check(t: Test, node: TestNode, from: number, count: number, fill: number): Promise<void> {
  const client = await openDevice(node, 'v');
  for (let i = from; i < from + count; i++) t.ok((await client.read(i * 64 * KIB, 64 * KIB)).every((byte) => byte === fill + i), `piece ${i}`);
  await client.disconnect();
}

t.test('kill -9 loses nothing acknowledged; a clean stop survives a new boot; otherwise the group alone is refused, until it is accepted', { skip: !inMemory && 'no tmpfs at /dev/shm' }, async (t) => {
  const { node, memory, state } = prepare(t);
  await node.start();
  await node.control.createVolume('g', { name: 'v', size: 8 * MIB });
  t.ok(readdirSync(join(memory, 'g')).some((name) => name.startsWith('segment-')));
  await write(node, 0, 16, 1, false);
  t.match((await node.lockstep('status', 'g')).stdout, /volatile: in memory; .* in no checkpoint yet/);
  await node.kill();
  await node.start();
  await check(t, node, 0, 16, 1);
  t.match(await node.group('g'), { role: 'primary', epoch: { number: 2, lossless: true }, journal: { volatile: true } });

  // SIGTERM: everything is on the disk.
  await node.stop();
  t.equal(await node.exitCode(), 0);
  reboot(memory, state);
  await node.start();
  t.match(await node.group('g'), { role: 'primary', epoch: { number: 2 } });
  await check(t, node, 0, 16, 1);

  await write(node, 16, 16, 1, true);
  const { lsn } = await node.group('g');
  t.ok(lsn.checkpoint >= lsn.durable && lsn.durable > 0);
  await write(node, 32, 8, 1, false);
  await node.kill();
  reboot(memory, state);
  await node.start();
  const refused = await node.group('g');
  t.match(refused, { role: 'stopped', roleReason: /its volatile journal is lost: the machine was started anew since.*--accept-inconsistent g@\d+$/, journal: { volatile: true } });
  t.equal((await node.group('d')).role, 'primary', 'the other group is served');
  t.match((await node.lockstep('status')).stdout, /--accept-inconsistent g@/);
  await node.stop();

  const option = `g@${/g@(\d+)$/.exec(refused.roleReason)![1]}`;
  await t.rejects(node.start(30_000, ['--accept-inconsistent', 'g']), /ended with 2:[^]*wants GROUP@LSN/);
  await t.rejects(node.start(30_000, ['--accept-inconsistent', 'other@5']), /ended with 2:[^]*the configuration has no such group/);
  await node.start(30_000, ['--accept-inconsistent', option]);
  t.match(await node.group('g'), { role: 'primary', epoch: { number: 3, lossless: false } });
  await check(t, node, 0, 32, 1);
  await node.kill();
  await node.start(30_000, ['--accept-inconsistent', option]);
  t.match(await node.group('g'), { role: 'primary', epoch: { number: 4, lossless: true } }, 'given again it has no effect');
  t.match(node.log, /--accept-inconsistent is not needed/);
  await check(t, node, 0, 32, 1);
  await node.stop();
});

/** Writes round after round and kills, until the journal is left with several segments. Returns what the last round wrote. */
async function killWith(node: TestNode, directory: string, least: number): Promise<number> {
  for (let round = 1; round < 100; round++) {
    await write(node, 0, 64, round, false);
    if (segments(directory).length < least) continue;
    await node.kill();
    // A destage round may have released some meanwhile.
    if (segments(directory).length >= least) return round;
    await node.start();
  }
  throw new Error(`the journal never has ${least} segments`);
}

t.test('segment files on a tmpfs that are removed, or cut, while the daemon is down are missed; the others are not', { skip: !inMemory && 'no tmpfs at /dev/shm' }, async (t) => {
  const { node, memory } = prepare(t, { checkpointSeconds: 600, checkpointBytes: '1G' });
  const directory = join(memory, 'g');
  await node.start();
  await node.control.createVolume('g', { name: 'v', size: 8 * MIB });
  const round = await killWith(node, directory, 3);
  const kept = join(memory, 'kept');
  cpSync(directory, kept, { recursive: true });
  const restore = (): void => {
    for (const name of readdirSync(kept)) cpSync(join(kept, name), join(directory, name));
  };
  const begun = segments(directory);
  const damages: [string, () => void, RegExp][] = [
    ['the newest file is removed', () => rmSync(join(directory, begun.at(-1)!)), /which continues it, is not there any more/],
    ['the two newest are', () => begun.slice(-2).forEach((name) => rmSync(join(directory, name))), /which continues it, is not there any more/],
    ['the newest file is renamed', () => renameSync(join(directory, begun.at(-1)!), join(directory, 'moved')), /which continues it, is not there any more/],
    ['the newest file is cut', () => truncateSync(join(directory, begun.at(-1)!), 64 * KIB), /has been cut from 8388608 to 65536 bytes/],
    ['the note of the end is removed', () => rmSync(join(directory, 'end')), /says how far the journal goes, is not there/],
  ];
  for (const [name, damage, reason] of damages) {
    damage();
    await node.start();
    const refused = await node.group('g');
    t.match(refused, { role: 'stopped', roleReason: /its volatile journal is not whole any more .*--accept-inconsistent g@\d+$/ }, name);
    t.match(refused.roleReason, reason);
    await node.kill();
    restore();
  }
  rmSync(join(directory, 'moved'), { force: true });
  await node.start();
  t.match(await node.group('g'), { role: 'primary', epoch: { lossless: true } }, 'with all files back nothing was lost');
  await check(t, node, 0, 64, round);
  await node.stop();
});
