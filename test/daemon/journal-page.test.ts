/** The journal dump of a real daemon whose client wrote what looks like a batch, or whose journal is damaged. */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Test } from 'tap';
import { BATCH_HEADER_BYTES, BATCH_MAGIC, SEGMENT_HEADER_BYTES } from '../../src/journal/format.js';
import { prepareSingle } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { withDevice } from '../operations/devices.js';

/** A node that has g/web, of 1 MiB, until the test ends. */
async function withVolume(t: Test): Promise<{ node: TestNode; directory: string }> {
  const directory = makeTempDirectory('dump');
  const node = prepareSingle(directory);
  t.teardown(async () => {
    await node.stop();
    removeTempDirectory(directory);
  });
  await node.start();
  await node.command('create', 'g/web', '1M');
  return { node, directory };
}

t.test('a block of a client that looks like a batch is none, also when the dump begins there', async (t) => {
  const { node } = await withVolume(t);
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
    t.equal(code, 2, 'nothing is damaged');
    t.match(stderr, new RegExp(`LSN ${from} is not the start of a batch`));
  }
  t.ok(node.running, 'and the daemon goes on');
  t.match((await node.lockstep('journal', 'dump', 'g')).stdout, /create[\s\S]*write/);
});

t.test('a dump tells what lies before a damaged place, names that, and can go on behind it', async (t) => {
  const { node, directory } = await withVolume(t);
  const batches: number[] = [];
  await withDevice(node, 'web', async (client) => {
    for (let i = 0; i < 6; i++) {
      batches.push((await node.group('g')).lsn.appended);
      await client.write(i * 8192, Buffer.alloc(8192, i + 1));
    }
  });
  const path = join(directory, 'solo', 'groups', 'g', 'journal', 'segment-000001');
  const file = openSync(path, 'r+');
  t.teardown(() => closeSync(file));
  const { stdout: whole } = await node.lockstep('journal', 'dump', 'g');
  const rowOf = (lsn: number): string => {
    const row = whole.split('\n').find((one) => one.trimStart().startsWith(`${lsn + BATCH_HEADER_BYTES} `));
    if (row === undefined) throw new Error(`no record at LSN ${lsn}`);
    return row;
  };
  // The magic; the LSN, below the checksum.
  for (const [offset, problem] of [[0, 'wrong magic'], [8, 'not the one that was written']] as const) {
    for (const i of [0, 3, 5]) {
      const position = SEGMENT_HEADER_BYTES + batches[i] + offset;
      const good = Buffer.alloc(4);
      readSync(file, good, 0, 4, position);
      writeSync(file, Buffer.from(good.map((byte) => byte ^ 0x55)), 0, 4, position);
      const found = await node.lockstep('journal', 'dump', 'g');
      t.equal(found.code, 1);
      t.equal(found.stdout, whole.slice(0, whole.indexOf(rowOf(batches[i]))), `all before batch ${i}`);
      t.match(found.stderr, new RegExp(`segment-000001, byte ${position - offset}: the batch at LSN ${batches[i]} is damaged: .*${problem}`));
      // The same when the dump begins there, and when it begins within.
      for (const from of [batches[i], batches[i] + 100]) {
        const there = await node.lockstep('journal', 'dump', 'g', '--from', String(from));
        t.match(there.stderr, new RegExp(`the batch at LSN ${batches[i]} is damaged`), `from LSN ${from}`);
      }
      if (i < 5) {
        const behind = await node.lockstep('journal', 'dump', 'g', '--from', String(batches[i + 1]));
        t.equal(behind.code, 0);
        t.ok(behind.stdout.endsWith(whole.slice(whole.indexOf(rowOf(batches[i + 1])))), 'what lies behind it can be told');
      }
      writeSync(file, good, 0, 4, position);
    }
  }
  t.equal((await node.lockstep('journal', 'dump', 'g')).stdout, whole);
});
