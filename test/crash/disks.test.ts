/** Real daemons on directories that are full or damaged. */
import { spawnSync } from 'node:child_process';
import { closeSync, fstatSync, mkdirSync, openSync, readdirSync, readFileSync, readSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Test } from 'tap';
import { MIB } from '../../src/base/units.js';
import { NbdRequestError } from '../../src/vendor/nbd-protocol-ts/index.js';
import { prepareSingle, TestNode } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { GROUP, openDevice } from './clients.js';
import { SMALL_GROUP } from './kills.js';

t.setTimeout(300_000);

/** Mounts a small tmpfs; a sentence when that is not possible here. */
function tryMount(directory: string, size: string): string | undefined {
  if (process.getuid?.() !== 0) return 'mounting a small tmpfs needs root';
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'lockstep-test', directory], { encoding: 'utf8' });
  return mounted.status === 0 ? undefined : `cannot mount a tmpfs: ${(mounted.stderr ?? String(mounted.error)).trim()}`;
}

function unmount(directory: string): void {
  spawnSync('umount', ['-l', directory]);
}

/** False, or why the cases that need a full disk are skipped. */
function whyNoTmpfs(): string | false {
  const directory = makeTempDirectory('mount');
  const why = tryMount(directory, '1M');
  if (why === undefined) unmount(directory);
  removeTempDirectory(directory);
  return why ?? false;
}

const skip = whyNoTmpfs();
if (skip !== false) t.comment(`cases with a full disk are skipped: ${skip}`);

/** A tmpfs of its own; unmounted in teardown, and at the latest when the process ends. */
function mountTmpfs(t: Test, name: string, size: string): string {
  const directory = makeTempDirectory(name);
  const why = tryMount(directory, size);
  if (why !== undefined) throw new Error(why);
  const end = (): void => unmount(directory);
  process.prependListener('exit', end);
  t.teardown(() => {
    end();
    process.removeListener('exit', end);
    removeTempDirectory(directory);
  });
  return directory;
}

const block = (value: number): Uint8Array => new Uint8Array(MIB).fill(value);

t.test('a disk that becomes full answers ENOSPC before it acknowledges, and service comes back with space', { skip }, async (t) => {
  const place = mountTmpfs(t, 'full', '300M');
  const node = prepareSingle(place, SMALL_GROUP);
  t.teardown(() => node.kill());
  await node.start();
  await node.control.createVolume(GROUP, { name: 'v', size: 512 * MIB });
  let client = await openDevice(node, 'v');
  let written = 0;
  await t.rejects((async () => {
    for (; written < 512; written++) await client.write(written * MIB, block(1 + (written % 250)));
  })(), { code: 'ENOSPC' });
  t.ok(written > 0 && written < 300, `${written} MiB were taken`);
  t.match((await node.group(GROUP)).store.admission, /new writes are answered ENOSPC: .* free on the file system of .*writes resume by themselves/);
  const allThere = async (): Promise<boolean> => {
    for (let i = 0; i < written; i++) if (!(await client.read(i * MIB, MIB)).every((byte) => byte === 1 + (i % 250))) return false;
    return true;
  };
  t.ok(await allThere(), 'reads are served, nothing acknowledged is lost');
  await client.flush();
  await node.kill();
  await node.start();
  client = await openDevice(node, 'v');
  t.ok(await allThere(), 'also after kill -9 on the full disk');
  // What was destaged meanwhile may have made a little room; not for the rest.
  await t.rejects((async () => {
    for (let at = 511; at > written; at--) await client.write(at * MIB, block(9));
  })(), { code: 'ENOSPC' });
  // Everything can still be destaged: space was kept for it.
  await node.control.flush(GROUP, { upTo: 'checkpoint' });
  t.ok(await allThere(), 'also from the layers');

  // TRIM needs no space; what it frees comes back.
  await client.trim(0, 512 * MIB);
  await waitFor('writes are taken again', async () => {
    try {
      await client.write(0, block(3));
      return true;
    } catch (error) {
      if (error instanceof NbdRequestError && error.code === 'ENOSPC') return false;
      throw error;
    }
  }, 60_000);
  t.equal((await node.group(GROUP)).store.admission, 'open');
  await client.disconnect();
  await node.stop();
  t.equal(await node.exitCode(), 0);
});

t.test('space that another program takes and gives back stops writes only meanwhile', { skip }, async (t) => {
  const place = mountTmpfs(t, 'taken', '400M');
  const node = prepareSingle(place, SMALL_GROUP);
  t.teardown(() => node.kill());
  await node.start();
  await node.control.createVolume(GROUP, { name: 'v', size: 64 * MIB });
  const client = await openDevice(node, 'v');
  await client.write(0, block(1));
  writeFileSync(join(place, 'filler'), Buffer.alloc(240 * MIB));
  await waitFor('admission notices', async () => (await node.group(GROUP)).store.admission !== 'open');
  await t.rejects(client.write(0, block(2)), { code: 'ENOSPC' });
  t.equal((await client.read(0, 1))[0], 1, 'a refused write has changed nothing');
  rmSync(join(place, 'filler'));
  await waitFor('admission notices', async () => (await node.group(GROUP)).store.admission === 'open');
  await client.write(0, block(2));
  await client.disconnect();
});

t.test('a node starts and serves on a disk that is full to the last byte', { skip }, async (t) => {
  const place = mountTmpfs(t, 'brim', '400M');
  const elsewhere = makeTempDirectory('brim-log');
  const node = prepareSingle(elsewhere, SMALL_GROUP);
  node.config.dataDirectory = join(place, 'data');
  t.teardown(async () => {
    await node.kill();
    removeTempDirectory(elsewhere);
  });
  await node.start();
  await node.control.createVolume(GROUP, { name: 'v', size: 64 * MIB });
  let client = await openDevice(node, 'v');
  await client.write(0, block(1));
  await client.flush();
  await node.kill();
  const filler = openSync(join(place, 'filler'), 'w');
  for (const size of [MIB, 4096]) {
    try {
      for (;;) writeSync(filler, Buffer.alloc(size, 1));
    } catch (error) {
      t.match(error, { code: 'ENOSPC' });
    }
  }
  closeSync(filler);
  for (const how of ['kill', 'stop', 'kill'] as const) {
    await node.start();
    t.match((await node.group(GROUP)).role, 'primary', (await node.group(GROUP)).errors.join('; '));
    client = await openDevice(node, 'v');
    t.ok((await client.read(0, MIB)).every((byte) => byte === 1), 'reads are served');
    await t.rejects(client.write(MIB, block(2)), { code: 'ENOSPC' });
    await node[how]();
  }
  await node.start();
  rmSync(join(place, 'filler'));
  await waitFor('writes are taken again', async () => (await node.group(GROUP)).store.admission === 'open');
  client = await openDevice(node, 'v');
  await client.write(MIB, block(2));
  await client.disconnect();
});

t.test('a data directory without space for a group is reported, not fatal', { skip }, async (t) => {
  const place = mountTmpfs(t, 'tiny', '4M');
  const home = makeTempDirectory('tinyhome');
  t.teardown(() => removeTempDirectory(home));
  const node = TestNode.prepare(home, { ...prepareSingle(home, SMALL_GROUP).config, node: 'tiny', dataDirectory: join(place, 'data') });
  t.teardown(() => node.kill());
  await node.start();
  const group = await node.group(GROUP);
  t.equal(group.role, 'stopped');
  t.match(group.roleReason, /no space|ENOSPC/);
  t.match((await node.lockstep('status')).stdout, /no space|ENOSPC/);
});

// ---- damage -------------------------------------------------------------------------------------------

const GROUP_OPTIONS = { role: 'primary', journal: { size: '64M', segmentSize: '8M' }, peers: [], ...SMALL_GROUP.groupExtra };

/** A stopped node with the groups g and h, both with data in journal, layers and maps. */
async function stoppedNode(t: Test): Promise<TestNode> {
  const directory = makeTempDirectory('damage');
  const node = TestNode.prepare(directory, { node: 'solo', groups: ['g', 'h'].map((name) => ({ name, ...GROUP_OPTIONS })) });
  t.teardown(async () => {
    await node.kill();
    removeTempDirectory(directory);
  });
  await node.start();
  for (const group of ['g', 'h']) {
    await node.control.createVolume(group, { name: 'v', size: 16 * MIB });
    const client = await openDevice(node, 'v', { group });
    for (let i = 0; i < 4; i++) await client.write(i * MIB, block(i + 1));
    await node.control.snapshot(group, { source: 'v', name: 's' });
    for (let i = 0; i < 64; i++) await client.write(i * 65536, new Uint8Array(4096).fill(100));
    await node.control.flush(group, { upTo: 'checkpoint' });
    // Behind the checkpoint: in the journal alone.
    await client.write(8 * MIB, block(50), { fua: true });
    await client.write(9 * MIB, block(51), { fua: true });
    await client.disconnect();
  }
  // Not a clean stop: that would leave nothing to replay.
  await node.kill();
  return node;
}

function flip(file: string, at: number, count = 1): void {
  const fd = openSync(file, 'r+');
  const bytes = Buffer.alloc(count);
  readSync(fd, bytes, 0, count, at);
  for (let i = 0; i < count; i++) bytes[i] ^= 0xff;
  writeSync(fd, bytes, 0, count, at);
  closeSync(fd);
}

const groupFiles = (node: TestNode, part: string, name: RegExp): string[] => {
  const directory = join(node.config.dataDirectory as string, 'groups', 'g', part);
  return readdirSync(directory).filter((one) => name.test(one)).map((one) => join(directory, one)).sort();
};

/** g is reported as stopped because of `words`, and h is served. */
async function onlyThatGroup(t: Test, node: TestNode, words: RegExp): Promise<void> {
  await node.start();
  const group = await node.group('g');
  t.equal(group.role, 'stopped');
  t.match(group.errors.join('\n'), words);
  t.match((await node.lockstep('status')).stdout, words);
  const failed = await node.lockstep('snapshot', 'g/v', 'late');
  t.equal(failed.code, 2, failed.stderr);
  await t.rejects(openDevice(node, 'v', { group: 'g' }));
  const other = await openDevice(node, 'v', { group: 'h' });
  t.equal((await other.read(9 * MIB, 1))[0], 51);
  await other.write(0, block(77));
  await other.disconnect();
}

t.test('a damaged journal segment stops its group with file and byte, and no other', async (t) => {
  const node = await stoppedNode(t);
  const [segment] = groupFiles(node, 'journal', /^segment-/);
  const bytes = readFileSync(segment);
  // The payload of the last write but one: durable, for the last one was a FUA behind it.
  const at = bytes.lastIndexOf(Buffer.alloc(4096, 50));
  t.ok(at > 0);
  flip(segment, at + 100);
  await onlyThatGroup(t, node, new RegExp(`${segment}.*(byte|LSN) \\d+`));
  await node.stop();
  flip(segment, at + 100);
  await node.start();
  const client = await openDevice(node, 'v');
  t.equal((await client.read(8 * MIB, 1))[0], 50, 'put right, it is served again');
  await client.disconnect();
});

t.test('a damaged checkpoint slot is replaced by the other one, and stops its group when both are damaged', async (t) => {
  const node = await stoppedNode(t);
  const slots = groupFiles(node, '', /^checkpoint-[01]$/);
  t.equal(slots.length, 2);
  const damage = (slot: string): void => {
    for (let at = 0; at < statSync(slot).size; at += 512) flip(slot, at);
  };
  for (const slot of slots) {
    const whole = readFileSync(slot);
    damage(slot);
    const damaged = readFileSync(slot);
    await node.start();
    const client = await openDevice(node, 'v');
    t.strictSame([...(await client.read(0, 1)), ...(await client.read(MIB + 4096, 1)), ...(await client.read(9 * MIB, 1))], [100, 2, 51]);
    const snapshot = await openDevice(node, 'v@s');
    t.equal((await snapshot.read(0, 1))[0], 1);
    await node.kill();
    // Unless a new checkpoint was made there.
    if (readFileSync(slot).equals(damaged)) writeFileSync(slot, whole);
  }
  t.match(node.log, /a checkpoint slot was not readable; the other one was used/);
  for (const slot of slots) damage(slot);
  await onlyThatGroup(t, node, /checkpoint/);
});

t.test('a damaged map file stops its group, and no other', async (t) => {
  const node = await stoppedNode(t);
  const maps = groupFiles(node, '', /^map-/);
  t.ok(maps.length > 0);
  for (const map of maps) {
    const fd = openSync(map, 'r');
    const { size } = fstatSync(fd);
    closeSync(fd);
    for (let at = 0; at < size; at += 256) flip(map, at);
  }
  await onlyThatGroup(t, node, /map-/);
});

t.test('a layer file that is missing stops its group with its name, and no other', async (t) => {
  const node = await stoppedNode(t);
  const layers = groupFiles(node, 'layers', /^device-/);
  t.ok(layers.length > 0);
  rmSync(layers[0]);
  await onlyThatGroup(t, node, new RegExp(layers[0].split('/').at(-1)!));
});

t.test('a damaged state.json stops its group, and no other', async (t) => {
  const node = await stoppedNode(t);
  const [file] = groupFiles(node, '', /^state\.json$/);
  writeFileSync(file, '{"format": 1, "role": ');
  await onlyThatGroup(t, node, /state\.json/);
});

t.test('a group whose directory cannot be read is reported, and no other is harmed', async (t) => {
  const node = await stoppedNode(t);
  const directory = join(node.config.dataDirectory as string, 'groups', 'g', 'journal');
  rmSync(directory, { recursive: true });
  writeFileSync(directory, 'not a directory');
  await onlyThatGroup(t, node, /journal/);
  await node.stop();
  rmSync(directory);
  mkdirSync(directory);
  await onlyThatGroup(t, node, /journal/);
});
