/** Batches cross a link over real sockets and files: equality, back-pressure, cursors, acks. */
import t from 'tap';
import { PeerError } from '../../src/base/errors.js';
import { randomFrom, seedOfRun } from '../io/fixture.js';
import { difference } from './memory-group.js';
import { FAST, pair, realRig, SECRET } from './rig.js';

const seed = seedOfRun();
t.comment(`TEST_SEED=${seed}`);

t.test('a fresh secondary takes identity, history and every batch of the primary', async (t) => {
  const rig = realRig(t);
  const random = randomFrom(seed);
  const { a, b } = pair(rig);
  for (let i = 0; i < 200; i++) a.group.append(1 + Math.floor(random() * 8), random);
  a.group.appendMarker(9000);
  a.links.start();
  b.links.start();
  rig.until(() => b.group.position.lsn === a.group.position.lsn, 'catch-up');
  t.equal(difference(a.group, b.group), undefined);
  t.equal(b.group.groupId, a.group.groupId);
  t.strictSame(b.group.epochs, a.group.epochs);

  rig.until(() => a.links.status()[0].state === 'streaming', 'streaming');
  const shipper = () => a.links.link('b')!.outgoing!.shipper!;
  const before = shipper().hotBatches;
  for (let i = 0; i < 300; i++) {
    a.group.append(1 + Math.floor(random() * 8), random);
    if (i % 50 === 0) a.group.appendMarker(100 + i * 20);
    if (i % 3 === 0) rig.until(() => a.links.link('b')!.receivedLsn === a.group.position.lsn, 'the ack');
  }
  rig.until(() => b.group.position.lsn === a.group.position.lsn, 'the stream');
  t.ok(shipper().hotBatches - before > 100, `${shipper().hotBatches - before} batches went straight from the arena`);
  t.equal(difference(a.group, b.group), undefined);
  a.group.journal.syncNow();
  rig.until(() => b.group.journal.durableLsn === b.group.position.lsn, 'the secondary to sync by itself');
  rig.until(() => a.links.link('b')!.durableLsn === a.group.position.lsn, 'the durable ack');
  t.equal(a.group.cursors.get('b'), a.group.position.lsn, 'the journal is kept from what is durable there');
  const [status] = a.links.status();
  t.match(status, { peer: 'b', role: 'to', state: 'streaming', reason: '', lagBytes: 0, lagSeconds: 0, applied: a.group.position.lsn });
  t.match(b.links.status()[0], { peer: 'a', role: 'from', state: 'streaming', lagBytes: 0 });
  t.equal(b.links.connectedPrimary, 'a');
});

t.test('a batch of the largest size crosses', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig, FAST, { segmentBytes: 8 * 1024 * 1024, payloadBytes: 4 * 1024 * 1024 });
  a.links.start();
  b.links.start();
  const random = randomFrom(seed + 1);
  for (let i = 0; i < 3; i++) {
    a.group.append(1000, random, 1);
    a.group.append(1000, random, 400);
  }
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  for (let i = 0; i < 3; i++) a.group.append(1000, random, 400);
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  t.equal(difference(a.group, b.group), undefined);
});

t.test('a secondary without room stops receiving and goes on when it has some', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  b.group.answer = () => ({ kind: 'full' });
  const random = randomFrom(seed + 2);
  for (let i = 0; i < 500; i++) a.group.append(8, random);
  rig.until(() => a.links.status()[0].reason.includes('full'), 'the stall to be told');
  t.match(a.links.status()[0], { state: 'catching-up', reason: /journal of b is full/ });
  rig.spend(300); // several heartbeats: it is not taken for dead
  t.ok(a.links.status()[0].lagBytes > 0);
  b.group.makeRoom();
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  t.equal(difference(a.group, b.group), undefined);
  t.equal(a.links.status()[0].reconnects, 0);
});

t.test('a peer that acknowledges nothing is sent no more than the window', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig, { ...FAST, windowBytes: 32 * 1024, readBytes: 64 * 1024 });
  a.links.start();
  b.links.start();
  rig.until(() => a.links.status()[0].state === 'streaming');
  b.group.answer = () => ({ kind: 'full' });
  const random = randomFrom(seed + 3);
  for (let i = 0; i < 300; i++) a.group.append(1, random, 1);
  rig.until(() => a.links.link('b')!.outgoing!.shipper!.windowFull);
  for (let i = 0; i < 30; i++) a.group.append(1, random, 1);
  rig.spend(50);
  const shipper = a.links.link('b')!.outgoing!.shipper!;
  t.ok(shipper.shippedLsn - shipper.receivedLsn < 32 * 1024 + 8192, `${shipper.shippedLsn - shipper.receivedLsn} bytes under way`);
  b.group.makeRoom();
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  t.equal(difference(a.group, b.group), undefined);
});

t.test('what the peer has not made durable is kept for it', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig, { ...FAST, syncUs: 1e12 });
  a.links.start();
  b.links.start();
  const random = randomFrom(seed + 8);
  for (let i = 0; i < 300; i++) a.group.append(8, random);
  rig.until(() => a.links.link('b')!.appliedLsn === a.group.position.lsn);
  t.equal(b.group.journal.durableLsn, 0);
  a.group.recycle(a.group.position.lsn);
  t.equal(a.group.journal.pool.firstLsn, 0);
  b.group.journal.sync(b.group.position.lsn);
  rig.until(() => a.links.link('b')!.durableLsn === a.group.position.lsn, 'an ack of what has become durable, without anything received');
  a.group.recycle(a.group.position.lsn);
  t.ok(a.group.journal.pool.firstLsn > 0);
});

t.test('the reason for the end of a link arrives although the stream is full', async (t) => {
  const rig = realRig(t);
  const [a, b] = [rig.node('a'), rig.node('b')];
  a.openGroup().found();
  b.openGroup();
  b.connect([{ node: 'a', secret: SECRET }]);
  a.connect([{ node: 'b', address: b.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }).address, secret: SECRET }]);
  const random = randomFrom(seed + 9);
  for (let i = 0; i < 400; i++) a.group.append(8, random);
  b.group.answer = (lsn) => (lsn > 500_000 ? { kind: 'failed', reason: 'its disk is gone' } : undefined);
  a.links.start();
  b.links.start();
  rig.until(() => a.links.link('b')!.lastError !== undefined);
  t.match(a.links.status()[0], { state: 'refused', reason: /node b says: the group has failed: its disk is gone/ });
});

t.test('a stopped applier is told in every ack, with its reason', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  rig.until(() => a.links.status()[0].state === 'streaming');
  b.group.answer = () => ({ kind: 'kept', reason: 'it does not know the operation "fold"' });
  const stoppedAt = a.group.position.lsn;
  const random = randomFrom(seed + 4);
  a.group.append(2, random);
  rig.until(() => a.links.link('b')!.receivedLsn === a.group.position.lsn);
  t.match(a.links.status()[0], { reason: /b receives but does not apply: it does not know the operation "fold"/, applied: stoppedAt });
  let notice: string | null = '';
  a.links.whenApplied(a.group.position.lsn, 30_000, (said) => void (notice = said));
  rig.until(() => notice !== '');
  t.match(notice, /b has applied up to LSN \d+ \(b receives but does not apply/);
});

t.test('a new connection tells with its first ack why the peer had stopped applying before', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  rig.until(() => b.group.epochs.length === 1, 'the first record');
  const why = `it does not know the operation "${'fold'.repeat(200)}"`;
  b.group.answer = () => ({ kind: 'kept', reason: why });
  a.group.append(2, randomFrom(seed + 10));
  rig.until(() => a.links.status()[0].reason !== '');
  const reason = `b receives but does not apply: ${why}`;
  t.equal(a.links.status()[0].reason, reason, 'as long as such reasons are');
  t.equal(b.links.status()[0].reason, `receives but does not apply: ${why}`);
  const link = a.links.link('b')!;
  const told: string[] = [];
  const acked = link.acked.bind(link);
  link.acked = (session) => {
    acked(session);
    told.push(link.status().reason);
  };
  link.outgoing!.connection.close();
  link.outgoing!.ended(new PeerError('link/lost', 'cut by the test'));
  rig.until(() => told.length >= 2);
  t.strictSame(told.slice(0, 2), ['', reason], 'when shipping began, and with the first ack; nothing was sent');
});

t.test('the reason that a peer gives for not applying is shown as plain words, whatever it holds', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  rig.until(() => b.group.epochs.length === 1, 'the first record');
  // A peer of another security domain sends what it likes, and an operator's terminal shows it.
  const { connection } = b.links.link('a')!.incoming!;
  const send = connection.send.bind(connection);
  connection.send = (name, message, durable) => send(name, name === 'state' ? { kept: '\x1b[2Jall is well\r\n\x9b1m\x7f' } as never : message, durable);
  b.group.answer = () => ({ kind: 'kept', reason: 'it does not know the operation "fold"' });
  a.group.append(2, randomFrom(seed + 11));
  rig.until(() => a.links.status()[0].reason !== '');
  t.equal(a.links.status()[0].reason, 'b receives but does not apply:  [2Jall is well   1m ');
});

t.test('whenApplied answers when the peer has applied, at once when it has already', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  rig.until(() => a.links.status()[0].state === 'streaming');
  const random = randomFrom(seed + 5);
  a.group.append(2, random);
  let notice: string | null = 'none yet';
  a.links.whenApplied(a.group.position.lsn, 10e6, (said) => void (notice = said));
  rig.until(() => notice === null);
  let again: string | null = 'none yet';
  a.links.whenApplied(a.group.position.lsn, 10e6, (said) => void (again = said));
  t.equal(again, null);
  void b;
});

t.test('nothing is left in the arena when links and listener are closed', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  const base = [a.arena.usedBytes, b.arena.usedBytes];
  a.links.start();
  b.links.start();
  const random = randomFrom(seed + 6);
  for (let i = 0; i < 100; i++) a.group.append(8, random);
  rig.until(() => b.group.position.lsn > 1_000_000);
  a.closeLinks();
  b.closeLinks();
  rig.until(() => a.reactor.jobsInFlight + b.reactor.jobsInFlight === 0);
  b.group.close(); // its journal is younger than the base
  t.strictSame([a.arena.usedBytes, b.arena.usedBytes], base);
});

t.test('closing the links ends also a connection that only waits for its last words to be read', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig, { ...FAST, lingerUs: 3_600_000_000 });
  const base = a.arena.usedBytes;
  a.links.start();
  b.links.start();
  rig.until(() => a.links.status()[0].state === 'streaming');
  a.group.role = 'secondary';
  a.links.rolesChanged();
  t.equal(a.links.link('b')?.outgoing, undefined, 'the session has ended');
  t.ok(a.arena.usedBytes > base, 'its connection lingers');
  a.closeLinks();
  t.equal(a.arena.usedBytes, base);
  rig.until(() => b.listener?.connectionCount === 0, 'the end of the connection at the peer');
});

t.test('a drop releases the cursor, ends the link for good, and is told to the peer', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  a.links.start();
  b.links.start();
  rig.until(() => a.links.status()[0].state === 'streaming');
  a.links.drop('b');
  t.equal(a.group.cursors.has('b'), false);
  t.match(a.links.status()[0], { state: 'dropped', reason: /an operator dropped the link/ });
  rig.until(() => b.links.status()[0].state === 'refused');
  t.match(b.links.status()[0].reason, /node a says: an operator of node a dropped this link/);
  a.group.append(1, randomFrom(seed));
  rig.spend(200);
  t.not(b.group.position.lsn, a.group.position.lsn);
  t.throws(() => a.links.drop('nobody'), { code: 'link/not-found' });
  a.links.link('b')!.resume();
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  t.equal(difference(a.group, b.group), undefined);
  // The secondary's operator can do it too.
  b.links.drop('a');
  rig.until(() => a.links.status()[0].state === 'refused');
  t.match(a.links.status()[0].reason, /operator of node b dropped this link/);
});

t.test('TCP carries a link as well as a Unix socket', async (t) => {
  const rig = realRig(t);
  const [a, b] = [rig.node('a'), rig.node('b')];
  a.openGroup().found();
  b.openGroup();
  b.connect([{ node: 'a', secret: SECRET }]);
  const address = b.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }).address;
  a.connect([{ node: 'b', address, secret: SECRET }]);
  a.links.start();
  b.links.start();
  const random = randomFrom(seed + 7);
  for (let i = 0; i < 50; i++) a.group.append(16, random);
  rig.until(() => b.group.position.lsn === a.group.position.lsn);
  t.equal(difference(a.group, b.group), undefined);
});
