/** What the daemon takes of its arena for good: enough for all, or a sentence at the start. */
import t from 'tap';
import { OperatorError } from '../../src/base/errors.js';
import { MIB } from '../../src/base/units.js';
import type { Config } from '../../src/config/schema.js';
import { DEFAULT_SCALE } from '../../src/daemon/datapath.js';
import { takeFixedMemory } from '../../src/daemon/memory.js';
import { Content, contentArenaBytes } from '../../src/group/content.js';
import { Arena } from '../../src/io/arena.js';
import { MAX_BATCH_BYTES } from '../../src/journal/format.js';
import { Rig } from '../sim/rig.js';

function configOf(groups: number, peers: number): Config {
  return { groups: Array.from({ length: groups }, () => ({ peers: Array.from({ length: peers }) })) } as unknown as Config;
}

t.test('the smallest arena serves a group with a link, not ten; the usual one serves the most groups', async (t) => {
  const arena = (bytes: number): Arena => new Arena({ memory: new ArrayBuffer(bytes) });
  takeFixedMemory(arena(64 * MIB), configOf(1, 1), DEFAULT_SCALE, true);
  t.throws(() => takeFixedMemory(arena(64 * MIB), configOf(10, 0), DEFAULT_SCALE, true), new OperatorError('config/arena-too-small', 'dataPath.arena is 64 MiB, too little for 10 groups: give it at least 76 MiB, and more for speed'));
  takeFixedMemory(arena(76 * MIB), configOf(10, 0), DEFAULT_SCALE, true);
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
