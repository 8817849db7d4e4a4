/** Roles, epochs, fetch and rewind over real connections. */
import t from 'tap';
import type { Position } from '../../src/journal/position.js';
import { randomFrom, seedOfRun } from '../io/fixture.js';
import { difference } from './memory-group.js';
import type { MemoryGroup } from './memory-group.js';
import { FAST, pair, realRig, SECRET } from './rig.js';
import type { RealRig, TestNode } from './rig.js';

const seed = seedOfRun();
t.comment(`TEST_SEED=${seed}`);
const random = randomFrom(seed);

function fill(group: MemoryGroup, batches: number): void {
  for (let i = 0; i < batches; i++) group.append(1 + Math.floor(random() * 4), random);
}

function streaming(rig: RealRig, a: TestNode, b: TestNode): void {
  rig.until(() => b.group.position.lsn === a.group.position.lsn && a.links.status()[0].state === 'streaming', 'streaming');
}

/** Batch boundary somewhere in the middle. */
function middle(group: MemoryGroup): number {
  return group.batches[Math.floor(group.batches.length / 2)].lsn;
}

t.test('a primary that lost its tail fetches it from the peer, begins its epoch and streams on', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig, { ...FAST, readBytes: 32 * 1024 });
  a.links.start();
  b.links.start();
  fill(a.group, 60);
  streaming(rig, a, b);
  a.links.close();
  const whole = a.group.position;
  const lost = middle(a.group);
  a.group.cutTo(lost);
  a.group.role = 'recovering';
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }], { ...FAST, readBytes: 32 * 1024 }).start();
  rig.until(() => a.group.role === 'primary', 'the fetch');
  t.match(a.group.asked[a.group.asked.length - 1], { peer: 'b', outcome: 'fetched' });
  t.strictSame(a.group.epochs[1].start, whole, 'the new epoch begins behind all that the peer had');
  fill(a.group, 20);
  streaming(rig, a, b);
  t.equal(difference(a.group, b.group), undefined);
  t.equal(b.group.rewinds, 0);
  t.equal(b.group.cursors.size, 0);
});

t.test('a recovering primary whose peer has nothing more is told so and streams', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  fill(a.group, 20);
  streaming(rig, a, b);
  a.links.close();
  fill(a.group, 5);
  a.group.role = 'recovering';
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  rig.until(() => a.group.role === 'primary');
  streaming(rig, a, b);
  t.equal(difference(a.group, b.group), undefined);
});

t.test('a recovering primary without an answer is told that the peer is unreachable, then refused', async (t) => {
  const rig = realRig(t);
  const a = rig.node('a');
  a.openGroup().found();
  a.group.role = 'recovering';
  a.connect([{ node: 'b', address: rig.address('nobody'), secret: SECRET }]).start();
  rig.until(() => a.group.asked.length >= 3);
  t.ok(a.group.asked.every((one) => one.outcome === 'unreachable'));
});

t.test('two peers with tails of different length: everything is fetched, one after the other', async (t) => {
  const rig = realRig(t);
  const [a, b, c] = [rig.node('a'), rig.node('b'), rig.node('c')];
  const peers = [{ node: 'b', address: rig.address('b'), secret: SECRET }, { node: 'c', address: rig.address('c'), secret: SECRET }];
  a.openGroup().found();
  for (const node of [b, c]) {
    node.openGroup();
    node.connect([{ node: 'a', secret: SECRET }]);
    node.listen(rig.address(node.name));
  }
  a.connect(peers, { ...FAST, readBytes: 32 * 1024 });
  for (const node of [a, b, c]) node.links.start();
  fill(a.group, 30);
  rig.until(() => [b, c].every((node) => node.group.position.lsn === a.group.position.lsn));
  const base = a.group.position.lsn;
  b.closeLinks(); // b stays behind
  fill(a.group, 30);
  rig.until(() => c.group.position.lsn === a.group.position.lsn);
  const whole = a.group.position.lsn;
  a.links.close();
  a.group.cutTo(middle(a.group));
  a.group.role = 'recovering';
  a.group.askAll = ['b', 'c'];
  b.connect([{ node: 'a', secret: SECRET }]).start();
  b.listen(rig.address('b'));
  t.ok(a.group.position.lsn < base || a.group.position.lsn < whole);
  a.connect(peers, { ...FAST, readBytes: 32 * 1024 }).start();
  rig.until(() => a.group.role === 'primary');
  t.equal(a.group.epochs[1].start.lsn, whole);
  rig.until(() => [b, c].every((node) => node.group.position.lsn === a.group.position.lsn));
  t.equal(difference(a.group, b.group), undefined);
  t.equal(difference(a.group, c.group), undefined);
});

t.test('a secondary undoes what the primary lost, down to the common position', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  fill(a.group, 30);
  streaming(rig, a, b);
  a.links.close();
  const lost = middle(a.group);
  a.group.cutTo(lost);
  b.group.primaryDurable = lost; // what the primary had made durable
  a.group.beginEpoch();
  fill(a.group, 5);
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  streaming(rig, a, b);
  t.equal(b.group.rewinds, 1);
  t.equal(difference(a.group, b.group), undefined);
  fill(a.group, 5);
  streaming(rig, a, b);
  t.equal(difference(a.group, b.group), undefined);
});

t.test('a secondary that cannot undo it any more refuses with a sentence, on both sides', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  fill(a.group, 30);
  streaming(rig, a, b);
  a.links.close();
  a.group.cutTo(middle(a.group));
  a.group.beginEpoch();
  b.group.stableAtLeast = b.group.position.lsn;
  const before = b.group.position;
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  rig.until(() => a.links.status()[0].state === 'refused' && b.links.status()[0].state === 'refused');
  t.match(a.links.status()[0].reason, /cannot be undone any more; it needs a resync, which this version does not have/);
  t.match(b.links.status()[0].reason, /node a says: .*cannot be undone any more/);
  t.strictSame(b.group.position, before);
  t.equal(b.group.rewinds, 0);
});

t.test('the secondary itself looks at what can be undone, whatever the primary plans', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  fill(a.group, 30);
  streaming(rig, a, b);
  a.links.close();
  a.group.cutTo(middle(a.group));
  a.group.beginEpoch();
  const before = b.group.position;
  Object.defineProperty(b.group, 'stableLsn', { get: () => (a.links.link('b')!.outgoing?.phase === 'rewinding' ? before.lsn : 0) });
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  rig.until(() => a.links.status()[0].state === 'refused');
  t.match(a.links.status()[0].reason, /node b says: what node b has up to LSN \d+ cannot be undone any more/);
  t.strictSame(b.group.position, before);
});

t.test('a position that is not retained is refused with both LSNs', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  fill(a.group, 300);
  a.group.recycle(a.group.position.lsn);
  const { firstLsn } = a.group.journal.pool;
  t.ok(firstLsn > 0);
  a.links.start();
  b.links.start();
  rig.until(() => a.links.status()[0].state === 'refused');
  t.match(a.links.status()[0].reason, new RegExp(`node b needs the journal from LSN 0 on, and node a has it only from LSN ${firstLsn} on`));
  t.equal(b.group.groupId, undefined, 'it has not taken the identity of a group that it cannot follow');
});

t.test('the journal is kept from the first attempt on, and the cursor follows what is durable there', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  b.listener!.close();
  a.links.start();
  fill(a.group, 300);
  a.group.recycle(a.group.position.lsn);
  t.equal(a.group.journal.pool.firstLsn, 0);
  rig.until(() => a.links.status()[0].reason.includes('cannot be reached'), 'the back-off');
  t.match(a.links.status()[0], { state: 'connecting', lagBytes: a.group.position.lsn });
  b.listen(rig.address('b'));
  b.links.start();
  streaming(rig, a, b);
  rig.until(() => a.links.link('b')!.durableLsn === a.group.position.lsn);
  a.group.recycle(a.group.position.lsn);
  t.ok(a.group.journal.pool.firstLsn > 0);
});

/** a is primary, b follows; each can dial the other. */
function mutual(rig: RealRig): { a: TestNode; b: TestNode } {
  const [a, b] = [rig.node('a'), rig.node('b')];
  a.openGroup().found();
  b.openGroup();
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]);
  b.connect([{ node: 'a', address: rig.address('a'), secret: SECRET }]);
  a.listen(rig.address('a'));
  b.listen(rig.address('b'));
  a.links.start();
  b.links.start();
  return { a, b };
}

t.test('a promoted secondary fences the old primary, which is told why', async (t) => {
  const rig = realRig(t);
  const { a, b } = mutual(rig);
  fill(a.group, 10);
  streaming(rig, a, b);
  b.group.promote();
  b.links.rolesChanged();
  rig.until(() => a.group.role === 'fenced', 'the fence');
  t.match(a.group.fencedBy[0], { peer: 'b', newer: { number: 2, node: 'b' } });
  t.equal(b.group.role, 'primary');
  rig.until(() => b.links.status()[0].state === 'refused');
  t.match(b.links.status()[0].reason, /node a was primary of an older epoch|belongs to an older|serves no more/);
});

t.test('an old primary that comes back with more records is fenced, and nothing of it is received', async (t) => {
  const rig = realRig(t);
  const { a, b } = mutual(rig);
  fill(a.group, 10);
  streaming(rig, a, b);
  a.closeLinks();
  fill(a.group, 3);
  b.group.promote();
  b.links.rolesChanged();
  const before: Position = b.group.position;
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  rig.until(() => a.group.role === 'fenced');
  t.strictSame(b.group.position, before);
});

t.test('a promotion outranks the restarts of the old primary', async (t) => {
  const rig = realRig(t);
  const { a, b } = mutual(rig);
  fill(a.group, 10);
  streaming(rig, a, b);
  a.closeLinks();
  b.closeLinks();
  for (let i = 0; i < 3; i++) a.group.beginEpoch();
  b.group.promote();
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  b.connect([{ node: 'a', secret: SECRET }]).start();
  b.listen(rig.address('b'));
  rig.until(() => a.group.role === 'fenced');
  t.equal(b.group.role, 'primary');
});

t.test('two nodes that were both promoted refuse each other', async (t) => {
  const rig = realRig(t);
  const { a, b } = mutual(rig);
  const q = rig.node('q');
  a.closeLinks();
  b.closeLinks();
  q.openGroup().found();
  q.connect([{ node: 'a', address: rig.address('a'), secret: SECRET }, { node: 'b', address: rig.address('b'), secret: SECRET }]);
  for (const node of [a, b]) {
    node.group.close();
    node.openGroup({ name: 'h' });
    Object.defineProperty(node.group, 'name', { value: 'g' });
    const other = node === a ? 'b' : 'a';
    node.connect([{ node: 'q', secret: SECRET }, { node: other, address: rig.address(other), secret: SECRET }]).start();
    node.listen(rig.address(node.name));
  }
  q.links.start();
  fill(q.group, 5);
  rig.until(() => [a, b].every((node) => node.group.position.lsn === q.group.position.lsn));
  q.closeLinks();
  a.group.promote();
  b.group.promote();
  for (const node of [a, b]) node.links.rolesChanged();
  rig.until(() => a.links.status()[1].state === 'refused' && b.links.status()[1].state === 'refused');
  for (const node of [a, b]) {
    t.match(node.links.status()[1].reason, /are both primary/);
    t.equal(node.group.role, 'primary');
  }
});

t.test('roles can swap: the promoted node ships, the demoted one receives', async (t) => {
  const rig = realRig(t);
  const { a, b } = mutual(rig);
  fill(a.group, 10);
  streaming(rig, a, b);
  a.group.role = 'secondary'; // as a planned swap would do
  a.links.rolesChanged();
  b.group.promote();
  b.links.rolesChanged();
  fill(b.group, 10);
  streaming(rig, b, a);
  t.equal(difference(a.group, b.group), undefined);
  t.equal(a.group.cursors.size, 0, 'a node that does not dial keeps nothing');
});

t.test('a newer connection of the same peer takes the place of the older one', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  fill(a.group, 10);
  streaming(rig, a, b);
  const first = b.links.link('a')!.incoming;
  const twin = rig.node('twin'); // dials under a's name, as a node does whose old connection hangs
  twin.openGroup();
  for (const one of a.group.batches.slice(0, 1)) void one;
  twin.group.found(a.group.groupId);
  Object.defineProperty(twin, 'name', { value: 'a' });
  twin.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }]).start();
  rig.until(() => b.links.link('a')!.incoming !== first);
  t.equal(first!.endedWith?.code, 'link/replaced');
  // Its history is another one: refused, and a is back.
  rig.until(() => twin.links.status()[0].state === 'refused');
  twin.links.close();
  fill(a.group, 3);
  streaming(rig, a, b);
  t.equal(difference(a.group, b.group), undefined);
});

t.test('attempts back off, doubling with jitter up to the limit, and begin anew after a success', async (t) => {
  const rig = realRig(t);
  const a = rig.node('a');
  a.openGroup().found();
  const delays: number[] = [];
  const after = a.reactor.after.bind(a.reactor);
  a.reactor.after = (delayUs, callback) => {
    delays.push(delayUs);
    return after(delayUs, callback);
  };
  a.connect([{ node: 'b', address: rig.address('nobody'), secret: SECRET }], { ...FAST, backoffLowUs: 1000, backoffHighUs: 8000 }).start();
  rig.until(() => delays.length >= 8);
  const limits = [1000, 2000, 4000, 8000, 8000, 8000, 8000, 8000];
  limits.forEach((limit, i) => t.ok(delays[i] >= limit / 2 && delays[i] < limit, `attempt ${i}: ${delays[i]} of ${limit}`));
  t.ok(new Set(delays).size > 4, 'jitter');
});
