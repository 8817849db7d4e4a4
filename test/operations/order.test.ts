/**
 * Group snapshots under load on eight volumes: the images of both nodes keep
 * the order of writes across volumes; so does what a secondary is left with when
 * its primary dies. LOCKSTEP_ORDER_SNAPSHOTS and LOCKSTEP_ORDER_SEED change it.
 */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { waitCaughtUp, preparePair } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { BLOCK, open, withDevice } from './devices.js';
import { OrderBook } from './order.js';
import type { Image } from './order.js';

const VOLUMES = 8;
const WRITERS = 24;
const SNAPSHOTS = Number(process.env.LOCKSTEP_ORDER_SNAPSHOTS ?? 12);
const SEED = Number(process.env.LOCKSTEP_ORDER_SEED ?? Date.now() % 1e9);
const SIZE = 64 * MIB;

const directory = makeTempDirectory('order');
const { primary, secondary } = await preparePair(directory);
t.teardown(async () => {
  await Promise.all([primary.stop(), secondary.stop()]);
  removeTempDirectory(directory);
});

function imageOf(book: OrderBook, node: TestNode, suffix: string): Promise<Image> {
  return book.image((volume, bytes) => withDevice(node, `v${volume}${suffix}`, (client) => client.read(0, bytes)));
}

t.test('the checker finds a write that lost an earlier one', async (t) => {
  const book = new OrderBook(2, 10);
  const accepts = { write: () => Promise.resolve() } as never;
  let left = 6;
  await book.write([accepts, accepts], 1, () => left-- === 0);
  t.equal(book.problem(new Set([0, 1, 2])), '');
  t.match(book.problem(new Set([0, 2])), /write 2 .* is there, write 1 .* is not/);
  t.match(book.problemAt(new Set([0]), 4, 4), /write 1, acknowledged/);
  t.match(book.problemAt(new Set([0, 1, 2]), 2, 4), /write 2, sent/);
});

t.test('group snapshots under load, and what is left when the primary dies, keep the order of writes', async (t) => {
  t.comment(`LOCKSTEP_ORDER_SEED=${SEED}`);
  await Promise.all([primary.start(), secondary.start()]);
  for (let i = 0; i < VOLUMES; i++) await primary.control.createVolume('g', { name: `v${i}`, size: SIZE });
  const book = new OrderBook(VOLUMES, SIZE / BLOCK);
  const lanes = await Promise.all(Array.from({ length: 3 }, () => Promise.all(Array.from({ length: VOLUMES }, (_, i) => open(primary, `v${i}`)))));
  let ended = false;
  const writers = Array.from({ length: WRITERS }, (_, i) => book.write(lanes[i % lanes.length], SEED + i, () => ended));
  const taken: { name: string; before: number; after: number }[] = [];
  for (let i = 0; i < SNAPSHOTS; i++) {
    const goal = book.acknowledged + 200;
    await waitFor('the load goes on', () => Promise.resolve(book.acknowledged >= goal));
    const before = book.clock;
    await primary.control.snapshot('g', { source: null, name: `s${i}` });
    taken.push({ name: `s${i}`, before, after: book.clock });
    if (i === Math.floor(SNAPSHOTS / 2)) {
      await secondary.kill();
      await secondary.start();
    }
  }
  ended = true;
  await Promise.all(writers);
  await waitCaughtUp({ primary, secondary });
  const sizes: number[] = [];
  for (const { name, before, after } of taken) {
    const [here, there] = [await imageOf(book, primary, `@${name}`), await imageOf(book, secondary, `@${name}`)];
    t.equal(book.problemAt(here, before, after), '', `@${name} of the primary`);
    t.equal(book.problemAt(there, before, after), '', `@${name} of the secondary`);
    t.strictSame([...here].sort(), [...there].sort(), 'both nodes hold the same');
    sizes.push(here.size);
  }
  t.ok(sizes.every((size, i) => i === 0 || size > sizes[i - 1]), `the images grow: ${sizes.join(' ')}`);

  ended = false;
  const more = Array.from({ length: WRITERS }, (_, i) => book.write(lanes[i % lanes.length], SEED + 100 + i, () => ended));
  const goal = book.acknowledged + 2000;
  await waitFor('the load goes on', () => Promise.resolve(book.acknowledged >= goal));
  await primary.kill();
  ended = true;
  await Promise.all(more);
  // Until what was on the way is applied.
  let applied = -1;
  await waitFor('the secondary stands still', async () => {
    const now = (await secondary.group('g')).lsn.applied;
    const still = now === applied;
    applied = now;
    return still;
  });
  const left = await imageOf(book, secondary, '');
  t.equal(book.problem(left), '', 'the secondary of a dead primary');
  await secondary.kill();
  await secondary.start();
  const restarted = await imageOf(book, secondary, '');
  t.equal(book.problem(restarted), '', 'after its own death, too');
  t.ok(restarted.size >= sizes[sizes.length - 1], `${restarted.size} of ${book.count} writes, ${book.acknowledged} acknowledged`);
});
