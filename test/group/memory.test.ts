/**
 * A node whose arena is used up by what clients have under way: requests that
 * page maps, complete edges or fill the page cache are answered all the same,
 * never with ENOMEM, and checkpoints go on.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { RequestKind } from '../../src/group/requests/requests.js';
import { Rig } from '../sim/rig.js';

const STRIDE = 2 * MIB;
const LEAVES = 96;

/** Takes all of the arena; returns what gives it back. */
function exhaust(rig: Rig): () => void {
  const { arena } = rig.host.reactor!;
  const taken: number[] = [];
  while (arena.largestFree > 0) taken.push(arena.alloc(arena.largestFree));
  return () => {
    for (const at of taken) arena.release(at);
  };
}

/** A volume with a block in each of many leaves, none of which is in memory, nor any block in the page cache. */
function cold(seed: number): Rig {
  const rig = Rig.started(seed, { segmentBytes: MIB, mapMemory: 8 * KIB });
  rig.create('v', LEAVES * STRIDE);
  for (let i = 0; i < LEAVES; i++) rig.ask('v', 'write', i * STRIDE, 4 * KIB);
  rig.flushTo('checkpoint');
  rig.stop();
  rig.start();
  rig.host.node.disk.faults.rates.coldRead = 1;
  return rig;
}

/** Submits requests that need no buffer of the client's, and returns their errnos as they come. */
function submitAll(rig: Rig, requests: readonly { kind: number; offset: number; length: number; buffer?: number }[]): number[] {
  const { blocks } = rig.host.path!;
  const table = blocks.requests;
  const view = rig.host.view(rig.device('v'))!;
  const answers: number[] = [];
  const owner = table.addOwner({
    completed: (slot) => {
      answers.push(table.errno[slot]);
      table.free(slot);
    },
  });
  for (const one of requests) {
    const slot = table.alloc(owner);
    table.kind[slot] = one.kind;
    table.device[slot] = view.id;
    table.offset[slot] = one.offset;
    table.length[slot] = one.length;
    table.buffer[slot] = one.buffer ?? 0;
    blocks.submit(view, slot);
  }
  rig.host.node.poke();
  return answers;
}

function allZero(answers: readonly number[], count: number): boolean {
  return answers.length === count && answers.every((errno) => errno === 0);
}

t.test('READs of unpaged maps', async (t) => {
  const rig = cold(1);
  t.teardown(() => rig.dispose());
  const asked = Array.from({ length: LEAVES }, (_, i) => rig.submit('v', 'read', i * STRIDE, 4 * KIB));
  exhaust(rig);
  rig.run(() => asked.every((one) => one.errno >= 0));
  t.ok(asked.every((one) => one.errno === 0));
});

t.test('CACHE of many ranges', async (t) => {
  const rig = cold(2);
  t.teardown(() => rig.dispose());
  exhaust(rig);
  const answers = submitAll(rig, Array.from({ length: LEAVES - 1 }, (_, i) => ({ kind: RequestKind.cache, offset: i * STRIDE, length: STRIDE })));
  rig.run(() => answers.length === LEAVES - 1);
  t.ok(allZero(answers, LEAVES - 1), `${answers}`);
});

for (const bytes of [512, 8 * KIB]) {
  t.test(`unaligned trims of ${bytes} bytes`, async (t) => {
    const rig = cold(3);
    t.teardown(() => rig.dispose());
    // Not always: the merge has to find its block some time.
    rig.host.node.disk.faults.rates.coldRead = 0.7;
    const give = exhaust(rig);
    const asked = Array.from({ length: LEAVES }, (_, i) => rig.submit('v', 'zero', i * STRIDE + 512, bytes));
    rig.run(() => asked.every((one) => one.errno >= 0));
    t.ok(asked.every((one) => one.errno === 0));
    // Again, now that nothing has to be fetched: all of them are merged in one tick.
    rig.host.node.disk.faults.rates.coldRead = 0;
    const again = Array.from({ length: LEAVES }, (_, i) => rig.submit('v', 'zero', i * STRIDE + 1024, bytes));
    rig.run(() => again.every((one) => one.errno >= 0));
    t.ok(again.every((one) => one.errno === 0));
    give();
    rig.verify();
  });
}

t.test('checkpoints, also those that begin a new map file', async (t) => {
  const rig = Rig.started(4, { segmentBytes: MIB, mapMemory: 8 * KIB, compactSlackBytes: 0 });
  t.teardown(() => rig.dispose());
  // A slot larger than the checkpoint buffer.
  for (let i = 0; i < 300; i++) rig.create(`volume-with-quite-a-long-name-${i}`, MIB);
  const { checkpointer, store } = rig.host.group.content;
  const files = new Set([checkpointer.file(store.map.currentFile).number]);
  for (let round = 0; round < 6; round++) {
    const { commits } = checkpointer;
    const asked = Array.from({ length: 200 }, (_, i) => rig.submit(`volume-with-quite-a-long-name-${i}`, 'write', round * 16 * KIB, 8 * KIB));
    const give = exhaust(rig);
    rig.run(() => asked.every((one) => one.errno >= 0));
    t.ok(asked.every((one) => one.errno === 0));
    rig.flushTo('checkpoint');
    t.ok(checkpointer.commits > commits, `${checkpointer.lastError}`);
    files.add(checkpointer.file(store.map.currentFile).number);
    give();
  }
  t.ok(files.size > 1, `map files ${[...files].join()}, ${checkpointer.mapFileBytes} bytes`);
  rig.stop();
  rig.start();
  rig.verify();
});

t.test('a removed device or a stop ends CACHE requests that wait', async (t) => {
  const rig = cold(5);
  t.teardown(() => rig.dispose());
  const ranges = Array.from({ length: 64 }, () => ({ kind: RequestKind.cache, offset: 0, length: LEAVES * STRIDE }));
  const removed = submitAll(rig, ranges);
  rig.remove('v');
  rig.run(() => removed.length === 64);
  t.ok(removed.every((errno) => errno === 108), `${removed}`);
  rig.create('v', LEAVES * STRIDE);
  const stopped = submitAll(rig, ranges);
  rig.stop();
  t.ok(stopped.length === 64 && stopped.every((errno) => errno === 108), `${stopped}`);
});
