/** What the daemon takes of its arena for good: enough for all, or a sentence at the start. */
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
import { Rig } from '../sim/rig.js';

function configOf(groups: number, peers: number): Config {
  return { groups: Array.from({ length: groups }, () => ({ journal: { volatile: false }, peers: Array.from({ length: peers }) })) } as unknown as Config;
}

t.test('the smallest arena serves a group with a link, not ten; the usual one serves the most groups', async (t) => {
  const arena = (bytes: number): Arena => new Arena({ memory: new ArrayBuffer(bytes) });
  takeFixedMemory(arena(64 * MIB), configOf(1, 1), DEFAULT_SCALE, true);
  t.throws(() => takeFixedMemory(arena(64 * MIB), configOf(10, 0), DEFAULT_SCALE, true), new OperatorError('config/arena-too-small', 'dataPath.arena is 64 MiB, too little for 10 groups: give it at least 77 MiB, and more for speed'));
  takeFixedMemory(arena(77 * MIB), configOf(10, 0), DEFAULT_SCALE, true);
  takeFixedMemory(arena(256 * MIB), configOf(64, 1), DEFAULT_SCALE, true);
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
