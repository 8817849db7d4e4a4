/** What the daemon takes of its arena for good: enough for all, or a sentence at the start. */
import { connect } from 'node:net';
import t from 'tap';
import { OperatorError } from '../../src/base/errors.js';
import { MIB } from '../../src/base/units.js';
import type { Config } from '../../src/config/schema.js';
import { DEFAULT_SCALE } from '../../src/daemon/datapath.js';
import { openLayers, takeFixedMemory } from '../../src/daemon/memory.js';
import { Content, contentArenaBytes } from '../../src/group/content/content.js';
import { createContent } from '../../src/group/content/opening.js';
import { Arena } from '../../src/io/arena.js';
import { MAX_BATCH_BYTES } from '../../src/journal/format.js';
import { DEFAULT_LIMITS } from '../../src/nbd/limits.js';
import { NbdClient, streamOf } from '../../src/vendor/nbd-protocol-ts/index.js';
import { preparePair, waitCaughtUp } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { Rig } from '../sim/rig.js';

/** Ranges of an arena that `groups` open groups take, `bytes` each, in any order. */
function rangesOf(groups: number, bytes: number, random: Random): number[] {
  const ranges: number[] = [];
  for (let i = 0; i < groups; i++) {
    let rest = bytes;
    for (let size = DEFAULT_SCALE.destageBufferBytes; size >= 4096; size /= 2) for (; rest >= size; rest -= size) ranges.push(size);
  }
  for (let i = ranges.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [ranges[i], ranges[j]] = [ranges[j], ranges[i]];
  }
  return ranges;
}

function configOf(groups: number, peers: number): Config {
  return { link: { listen: {}, maxConnections: 64 }, groups: Array.from({ length: groups }, () => ({ journal: { volatile: false }, peers: Array.from({ length: peers }) })) } as unknown as Config;
}

t.test('the smallest arena serves a group with a link, not ten; the usual one serves the most groups', async (t) => {
  const arena = (bytes: number): Arena => new Arena({ memory: new ArrayBuffer(bytes) });
  takeFixedMemory(arena(64 * MIB), configOf(1, 1), DEFAULT_SCALE, true);
  t.throws(() => takeFixedMemory(arena(64 * MIB), configOf(10, 0), DEFAULT_SCALE, true), new OperatorError('config/arena-too-small', 'dataPath.arena is 64 MiB, too little for 10 groups: give it at least 77 MiB, and more for speed'));
  takeFixedMemory(arena(77 * MIB), configOf(10, 0), DEFAULT_SCALE, true);
  takeFixedMemory(arena(256 * MIB), configOf(64, 1), DEFAULT_SCALE, true);
});

t.test('what is refused is served with the size that the refusal names, with every group and link in it', async (t) => {
  const seed = Date.now() % 1_000_000;
  t.comment(`seed ${seed}`);
  const random = new Random(seed);
  const bytes = contentArenaBytes({ destager: { bufferBytes: DEFAULT_SCALE.destageBufferBytes }, checkpointer: { bufferBytes: DEFAULT_SCALE.checkpointBufferBytes }, journal: { volatile: false } });
  for (const [groups, peers] of [[2, 1], [3, 1], [10, 1], [21, 1], [64, 2], [1, 16], [64, 0]] as const) {
    const config = configOf(groups, peers);
    let words = '';
    try {
      takeFixedMemory(new Arena({ memory: new ArrayBuffer(64 * MIB) }), config, DEFAULT_SCALE, true);
    } catch (error) {
      words = (error as Error).message;
    }
    const enough = Number(/at least (\d+) MiB/.exec(words)?.[1]);
    t.throws(() => takeFixedMemory(new Arena({ memory: new ArrayBuffer((enough - 1) * MIB) }), config, DEFAULT_SCALE, true), { code: 'config/arena-too-small' }, words);
    const arena = new Arena({ memory: new ArrayBuffer(enough * MIB) });
    const windows = takeFixedMemory(arena, config, DEFAULT_SCALE, true);
    // As DataPath opens them: groups, the reserve and the chunks of the NBD server, links that are connected in both directions.
    const { reserveBytes, chunkBytes, headroomBytes } = DEFAULT_LIMITS;
    const links = Array.from({ length: 2 * groups * peers }, () => [4096, 4096, 8192]).flat();
    const taken = [...rangesOf(groups, bytes, random), reserveBytes, chunkBytes, chunkBytes, ...links].map((range) => arena.alloc(range));
    for (let i = 0; i < groups * peers; i++) taken.push(windows!.take(windows!.bytes));
    t.ok(taken.every((at) => at > 0), 'everything is open at the same time');
    t.ok(arena.capacityBytes - arena.usedBytes >= headroomBytes, 'what clients leave to others is there, and with it all that they need');
    t.ok(arena.largestFree >= MAX_BATCH_BYTES, 'and a batch of any size can be received');
  }
});

t.test('the least arena that is allowed serves clients on both nodes with all links up', async (t) => {
  const directory = makeTempDirectory('arena');
  const { primary, secondary } = await preparePair(directory, { journalSize: '32M', segmentSize: '8M' });
  t.teardown(async () => {
    await Promise.all([primary.kill(), secondary.kill()]);
    removeTempDirectory(directory);
  });
  const names = ['g0', 'g1', 'g2'];
  for (const { config } of [primary, secondary]) {
    const [group] = config.groups as Record<string, unknown>[];
    Object.assign(config, { groups: names.map((name) => ({ ...group, name, store: { freeSpaceWatermark: 0 } })), dataPath: { arena: '64M' } });
  }
  const refused = await primary.start().then(() => '', (error: Error) => error.message);
  const enough = /give it at least (\d+) MiB/.exec(refused)?.[1];
  t.ok(enough, refused);
  for (const { config } of [primary, secondary]) config.dataPath = { arena: `${enough}M` };
  await Promise.all([primary.start(), secondary.start()]);
  for (const name of names) await primary.control.createVolume(name, { name: 'v', size: 16 * MIB, wait: 'applied', waitSeconds: 30 });
  const open = (node: TestNode, name: string): Promise<NbdClient> => NbdClient.connect(streamOf(connect(node.nbdSocket)), { name: `${name}/v`, maxWaiting: 64 });
  // Batches of the largest size on all links at once.
  await Promise.all(names.map(async (name, i) => {
    const client = await open(primary, name);
    for (let at = 0; at < 16; at += 4) await client.write(at * MIB, Buffer.alloc(4 * MIB, i + 1));
    await client.disconnect();
  }));
  for (const name of names) await waitCaughtUp({ primary, secondary }, name);
  for (const node of [primary, secondary]) {
    for (const [i, name] of names.entries()) {
      const client = await open(node, name);
      t.ok((await client.read(12 * MIB, 4 * MIB)).every((byte) => byte === i + 1), `${name} on ${node.name}`);
      await client.disconnect();
    }
  }
});

t.test('what is set aside is lent to one at a time, when nothing else is there', async (t) => {
  const arena = new Arena({ memory: new ArrayBuffer(32 * MIB) });
  takeFixedMemory(arena, configOf(1, 1), { destageBufferBytes: MIB, checkpointBufferBytes: MIB }, false);
  const { usedBytes } = arena;
  while (arena.largestFree > 0) arena.alloc(arena.largestFree);
  const at = arena.lend(MAX_BATCH_BYTES);
  t.ok(at > 0);
  t.equal(arena.lend(1), -1);
  arena.release(at);
  t.equal(arena.lend(16 * MIB), -1);
  t.equal(arena.lend(4096), at);
  t.ok(usedBytes >= MAX_BATCH_BYTES);
});

t.test('an open group holds as much as is reckoned with', async (t) => {
  const rig = Rig.started(1);
  t.teardown(() => rig.dispose());
  const { options } = rig.host.group.content;
  t.equal(rig.host.reactor!.arena.usedBytes, contentArenaBytes(options));
  t.ok(rig.host.group.content instanceof Content);
});

/** Takes all that is free. */
function exhaust(arena: Arena): void {
  while (arena.largestFree > 0) arena.alloc(arena.largestFree);
}

t.test('a rewind and a new segment need nothing of an arena that clients have used up', async (t) => {
  const rig = Rig.started(2);
  t.teardown(() => rig.dispose());
  const { arena } = rig.host.reactor!;
  arena.setAside(MAX_BATCH_BYTES);
  rig.create('v', MIB);
  t.equal(rig.ask('v', 'write', 0, 65536), 0);
  rig.flushTo('checkpoint');
  const { group } = rig.host;
  group.content.stop();
  rig.run(() => group.content.quiet);
  exhaust(arena);
  const { position } = group;
  group.reopen(position);
  t.same(group.position, position);
  const { pool } = group.journal;
  const { freeCount } = pool;
  pool.createNow();
  t.equal(pool.freeCount, freeCount + 1);
});

t.test('the first journal of a group waits for memory, and leaves nothing behind', async (t) => {
  const rig = Rig.started(3);
  t.teardown(() => rig.dispose());
  const { arena } = rig.host.reactor!;
  exhaust(arena);
  const paths = rig.paths('').length;
  const { usedBytes } = arena;
  const { options } = rig.host.group.content;
  t.throws(() => createContent(rig.host.reactor!, { ...options, directory: `${options.directory}/other` }, { number: 0, id: '0'.repeat(32) }), { name: 'IoError', code: 'io/ENOMEM' });
  t.same([rig.paths('').length, arena.usedBytes], [paths, usedBytes]);
});

t.test('layers may hold half of the descriptors open, shared by the groups, and never next to none', async (t) => {
  t.equal(openLayers(20_000, 1), 8192);
  t.equal(openLayers(20_000, 10), 1000);
  t.equal(openLayers(1024, 1), 512);
  t.equal(openLayers(1024, 64), 64);
});
