/** The background walker: space comes back, and nothing else changes, whatever happens meanwhile. */
import t from 'tap';
import { CorruptionError } from '../../src/base/errors.js';
import { KIB, MIB } from '../../src/base/units.js';
import { RequestKind } from '../../src/group/requests/requests.js';
import { Queue } from '../../src/io/io.js';
import { Random } from '../sim/random.js';
import { copyModel } from './walkrig.js';
import type { RigOptions } from './walkrig.js';
import { BLOCK, machine } from './walkmachine.js';
import type { Machine } from './walkmachine.js';

t.setTimeout(300_000);

t.test('space comes back after a trim, of the current layer too', async (t) => {
  const at = machine(1);
  const { rig } = at;
  rig.create('v', 8 * MIB);
  rig.write('v', 0, 1500);
  rig.settle();
  t.equal(at.layerBytes, 1500 * BLOCK);
  rig.trim('v', 10, 1000);
  rig.trim('v', 1300, 1);
  rig.walk();
  t.equal(at.layerBytes, 499 * BLOCK);
  t.equal(rig.walker.bytesPunched, 1001 * BLOCK);
  t.equal(rig.difference(), undefined);
  t.equal(rig.walker.lastError, undefined);
  at.world.dispose();
});

t.test('nothing is walked while nothing was dropped', async (t) => {
  const at = machine(2);
  const { rig } = at;
  rig.create('v', 2 * MIB);
  rig.write('v', 0, 100);
  rig.walk();
  const { walksDone } = rig.walker;
  rig.write('v', 50, 100);
  rig.settle();
  let over = false;
  at.world.after(5e6, () => {
    over = true;
  });
  rig.until(() => over);
  t.equal(rig.walker.walksDone, walksDone, 'one walk after the start, none since');
  rig.trim('v', 0, 1);
  rig.walk();
  t.equal(rig.walker.walksDone, walksDone + 1);
  at.world.dispose();
});

t.test('space comes back after a snapshot was removed: what others share stays', async (t) => {
  const at = machine(3);
  const { rig } = at;
  rig.create('v', 8 * MIB);
  rig.write('v', 0, 600);
  rig.snapshot('v', 'a');
  rig.write('v', 100, 600);
  rig.snapshot('v', 'b');
  rig.write('v', 0, 300);
  rig.write('v@b', 1000, 5);
  rig.walk();
  t.equal(at.layerBytes, rig.neededBlocks * BLOCK);
  const files = at.layers.length;
  rig.remove('v@b');
  rig.walk();
  t.equal(at.layerBytes, rig.neededBlocks * BLOCK, 'blocks that only b had are gone');
  t.equal(at.layers.length, files - 1, 'so is the layer that b alone had written');
  t.equal(rig.difference(), undefined);
  rig.remove('v@a');
  rig.walk();
  t.equal(at.layerBytes, rig.neededBlocks * BLOCK);
  t.equal(rig.difference(), undefined);
  at.world.dispose();
});

t.test('space comes back after a restore: the layer that was left is deleted', async (t) => {
  const at = machine(4);
  const { rig } = at;
  rig.create('v', 8 * MIB);
  rig.write('v', 0, 400);
  rig.snapshot('v', 's');
  rig.write('v', 200, 1000);
  rig.settle();
  rig.restore('v', 'v@s');
  rig.walk();
  t.equal(at.layerBytes, 400 * BLOCK);
  t.equal(at.layers.length, 1);
  t.equal(rig.walker.layersDeleted, 1);
  t.equal(rig.difference(), undefined);
  at.world.dispose();
});

t.test('an idle group gives everything back when its last device goes', async (t) => {
  const at = machine(5, { walker: { pauseUs: 50, restUs: 1000, jobBytes: 64 * KIB, unlinkBytes: 16 * KIB } });
  const { rig } = at;
  rig.create('v', 8 * MIB);
  rig.write('v', 0, 800);
  rig.settle();
  rig.remove('v');
  rig.walk();
  t.same(at.layers, []);
  t.equal(rig.group.content.store.layers.count, 0);
  t.ok(rig.walker.bytesPunched > 700 * BLOCK, 'a large file is emptied piece by piece first');
  at.world.dispose();
});

/** Walks once, so that the next walk has only what comes now to look for. */
function firstWalk(at: Machine): void {
  at.rig.settle();
  at.rig.until(() => at.rig.walker.walksDone > 0 && !at.rig.walker.walking);
  let over = false;
  at.world.after(3e6, () => {
    over = true;
  });
  at.rig.until(() => over);
}

/** Walks up to the step in which files are punched, and stops before it. */
function walkUpToPunching(at: Machine): void {
  const { rig } = at;
  const walker = rig.walker as unknown as { state: string; options: { pauseUs: number } };
  const { walksDone } = rig.walker;
  rig.settle();
  rig.until(() => walker.state === 'punching' || rig.walker.walksDone > walksDone);
  if (walker.state !== 'punching') throw new Error('the walk found nothing to punch');
  // The timer of the next step runs already; nothing else does before it.
}

const SLOW: Partial<RigOptions> = { walker: { pauseUs: 400_000, restUs: 1000, restFactor: 0, retryUs: 1000 }, checkpointUs: 100e6, destageUs: 1000 };

t.test('blocks written to a current layer after the checkpoint are not punched', async (t) => {
  const at = machine(6, SLOW);
  const { rig } = at;
  rig.create('v', 4 * MIB);
  rig.write('v', 0, 600);
  firstWalk(at);
  rig.trim('v', 100, 400);
  walkUpToPunching(at);
  rig.write('v', 200, 50);
  rig.write('v', 490, 5);
  rig.until(() => {
    rig.group.content.destager.request();
    return rig.group.content.store.pending.blocks === 0;
  });
  t.ok(rig.walker.walking && rig.walker.bytesPunched === 0, 'the writes are in the file before the punch');
  rig.until(() => !rig.walker.walking);
  t.ok(rig.walker.bytesPunched > 0);
  t.equal(rig.difference(), undefined);
  t.equal(at.layerBytes, 255 * BLOCK);
  at.world.dispose();
});

t.test('a layer that a snapshot froze after the checkpoint is left alone', async (t) => {
  const at = machine(7, SLOW);
  const { rig } = at;
  rig.create('v', 4 * MIB);
  rig.write('v', 0, 600);
  firstWalk(at);
  rig.trim('v', 100, 400);
  walkUpToPunching(at);
  rig.write('v', 200, 50);
  rig.snapshot('v', 's');
  rig.trim('v', 0, 512);
  rig.until(() => {
    rig.group.content.destager.request();
    return rig.group.content.store.pending.blocks === 0;
  });
  t.ok(rig.walker.walking && rig.walker.bytesPunched === 0);
  rig.until(() => !rig.walker.walking);
  t.equal(rig.difference(), undefined, 'the snapshot has its blocks');
  rig.walk();
  t.equal(at.layerBytes, rig.neededBlocks * BLOCK, 'the next walk punches what the snapshot does not have');
  at.world.dispose();
});

t.test('a block that a younger checkpoint refers to is not punched for the sake of the older one', async (t) => {
  const at = machine(8, SLOW);
  const { rig } = at;
  const { content } = rig.group;
  rig.create('v', 4 * MIB);
  rig.write('v', 0, 600);
  firstWalk(at);
  rig.trim('v', 100, 400);
  walkUpToPunching(at);
  rig.write('v', 200, 50);
  rig.flush();
  rig.until(() => {
    content.destager.request();
    return content.store.pending.blocks === 0;
  });
  // The younger checkpoint names these blocks in the file; its commit is held back, and they are trimmed again.
  const { checkpointer } = content;
  const commit = checkpointer.poll.bind(checkpointer);
  checkpointer.poll = () => undefined;
  content.requestCheckpoint();
  rig.until(() => checkpointer.captures === checkpointer.commits + 1);
  const after = copyModel(rig.model);
  rig.trim('v', 200, 50);
  const waits = rig.walker as unknown as { waitsForCheckpoint: boolean };
  rig.until(() => waits.waitsForCheckpoint || !rig.walker.walking);
  t.ok(rig.walker.walking);
  t.equal(rig.walker.bytesPunched, 0, 'it waits for the younger one');
  checkpointer.poll = commit;
  const { commits } = checkpointer;
  // Power fails right behind the commit: the trim was never durable on its own.
  rig.until(() => checkpointer.commits > commits);
  at.node.crash('power');
  at.start(rig.model, rig.lastTag);
  t.ok(at.rig.difference() === undefined || at.rig.difference(after) === undefined, 'the blocks are there, or trimmed by the journal');
  at.world.dispose();
});

t.test('a read that began before a restore still finds its layer', async (t) => {
  const at = machine(9, { walker: { pauseUs: 50, restUs: 1000, unlinkBytes: 0, jobBytes: 64 * KIB } });
  const { rig } = at;
  rig.create('v', 2 * MIB);
  rig.write('v', 0, 10);
  rig.snapshot('v', 's');
  rig.write('v', 0, 300);
  rig.settle();
  const tags = new Map(rig.model.get('v')!.tags);
  // The page cache has nothing, and the helper does not come to it.
  const io = at.node.io;
  const submit = io.submit.bind(io);
  const heldBack: (() => void)[] = [];
  io.submit = (queue, rows, count, token) => {
    if (queue !== Queue.read) return submit(queue, rows, count, token);
    const copy = rows.slice();
    heldBack.push(() => submit(queue, copy, count, token));
  };
  at.node.disk.faults.rates = { ...at.node.disk.faults.rates, coldRead: 1 };
  const buffer = rig.reactor.arena.alloc(64 * KIB);
  let answer = -1;
  rig.submit(RequestKind.read, 'v', 0, 16 * BLOCK, buffer, (errno) => {
    answer = errno;
  });
  t.equal(heldBack.length, 1);
  rig.restore('v', 'v@s');
  const walker = rig.walker as unknown as { state: string; quiet: boolean };
  rig.settle();
  rig.until(() => walker.state === 'deleting');
  let over = false;
  at.world.after(1e6, () => {
    over = true;
  });
  rig.until(() => over);
  t.same([walker.state, walker.quiet, rig.walker.layersDeleted, rig.walker.bytesPunched], ['deleting', false, 0, 0]);
  io.submit = submit;
  at.node.disk.faults.rates = { ...at.node.disk.faults.rates, coldRead: 0 };
  for (const go of heldBack) go();
  rig.until(() => answer >= 0);
  t.equal(answer, 0);
  const words = new Uint32Array(rig.reactor.arena.u8.buffer, rig.reactor.arena.u8.byteOffset + buffer, 16 * 1024);
  t.same(Array.from({ length: 16 }, (_, i) => words[i * 1024]), Array.from({ length: 16 }, (_, i) => tags.get(i)));
  rig.until(() => rig.walker.layersDeleted === 1);
  t.equal(rig.difference(), undefined);
  at.world.dispose();
});

t.test('reads that began later do not keep a walk waiting', async (t) => {
  const at = machine(10);
  const { rig } = at;
  rig.create('v', 2 * MIB);
  rig.write('v', 0, 64);
  rig.settle();
  const { reader, store } = rig.group.content;
  at.node.disk.faults.rates = { ...at.node.disk.faults.rates, coldRead: 1 };
  const buffer = rig.reactor.arena.alloc(BLOCK);
  const device = store.find(rig.group.tree.find('v')!.id)!;
  let reading = true;
  let lowest = Infinity;
  const next = (): void => {
    lowest = Math.min(lowest, reader.readsInFlight);
    if (reading) reader.read(device, 0, BLOCK, buffer, next);
  };
  for (let i = 0; i < 8; i++) next();
  const called: number[] = [];
  reader.whenQuiet(() => called.push(1));
  rig.until(() => called.length === 1);
  reader.whenQuiet(() => called.push(2));
  reader.whenQuiet(() => called.push(3));
  rig.until(() => called.length === 3);
  t.same(called, [1, 2, 3]);
  reading = false;
  rig.until(() => reader.readsInFlight === 0);
  at.world.dispose();
});

t.test('a failed punch is reported and tried again', async (t) => {
  const at = machine(11);
  const { rig } = at;
  rig.create('v', 2 * MIB);
  rig.write('v', 0, 300);
  rig.walk();
  let failures = 0;
  at.node.disk.faults.hook = (site) => (site.op === 'punch' && failures++ < 2 ? 5 : 0);
  rig.trim('v', 0, 200);
  rig.settle();
  rig.until(() => rig.walker.lastError !== undefined);
  t.match(rig.walker.lastError, /space is not given back.*punch.*EIO/);
  t.equal(rig.group.role, 'primary');
  rig.until(() => failures > 2 && !rig.walker.walking);
  t.equal(rig.walker.lastError, undefined);
  t.equal(at.layerBytes, 100 * BLOCK);
  t.equal(rig.difference(), undefined);
  at.world.dispose();
});

t.test('a failed unlink is reported and tried again; without punching, whole layers still come back', async (t) => {
  const at = machine(12);
  const { rig } = at;
  rig.create('v', 2 * MIB);
  rig.write('v', 0, 300);
  rig.snapshot('v', 's');
  rig.write('v', 0, 300);
  rig.walk();
  let failures = 0;
  at.node.disk.faults.hook = (site) => {
    if (site.op === 'punch') return 95;
    return site.op === 'unlink' && site.path.includes('device-') && failures++ < 1 ? 5 : 0;
  };
  rig.trim('v', 0, 100);
  rig.settle();
  rig.until(() => /cannot punch|ENOTSUP/.test(rig.walker.lastError ?? ''));
  rig.remove('v@s');
  rig.settle();
  rig.until(() => failures >= 2 && !rig.walker.walking);
  t.equal(at.layers.length, 1);
  t.match(rig.walker.lastError, /cannot punch holes/);
  t.equal(rig.difference(), undefined);
  at.world.dispose();
});

t.test('a node whose newest checkpoint slot was destroyed after a deletion serves the same content, or says why not', async (t) => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 10; seed++) {
    const at = machine(seed);
    const { rig } = at;
    const random = new Random(seed);
    rig.create('v', 4 * MIB);
    rig.write('v', 0, 300);
    rig.snapshot('v', 's');
    rig.write('v', random.below(500), 200);
    if (random.chance(0.5)) rig.settle();
    rig.remove('v@s');
    rig.trim('v', random.below(300), 100);
    rig.walk();
    rig.flush();
    const { checkpointer } = rig.group.content;
    const slot = `/g/checkpoint-${(checkpointer as unknown as { sequence: number }).sequence % 2}`;
    at.node.crash('power');
    at.node.disk.corrupt(slot, 40, 8);
    try {
      at.start(rig.model, rig.lastTag);
      t.equal(at.rig.difference(), undefined, `seed ${seed}`);
      seen.add('serves');
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      seen.add('refuses');
    }
    at.world.dispose();
  }
  t.ok(seen.size > 0, [...seen].join());
});
