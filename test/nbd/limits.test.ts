/** Back-pressure, floods, slow and silent clients: memory stays bounded, the others are served. */
import { KIB, MIB } from '../../src/base/units.js';
import { Stall } from '../../src/nbd/host.js';
import {
  NBD_CMD_BLOCK_STATUS as BLOCK_STATUS, NBD_CMD_FLUSH as FLUSH, NBD_CMD_READ as READ, NBD_CMD_WRITE as WRITE,
} from '../../src/vendor/nbd-protocol-ts/index.js';
import { pattern, withRig } from './rig.js';
import type { Rig } from './rig.js';
import type { RawClient } from './raw-client.js';

function roundTrip(rig: Rig, client: RawClient, offset: number, length: number): boolean {
  const data = pattern(length, offset);
  const written = client.request(WRITE, 0, offset, length, data);
  rig.until(() => client.reply(written) !== undefined, 'the reply to a WRITE');
  const read = client.request(READ, 0, offset, length);
  rig.until(() => client.reply(read) !== undefined, 'the reply to a READ');
  return client.reply(written)!.errno === 0 && client.reply(read)!.data.equals(data);
}

void withRig('200 clients at once are all served, and idle ones hold no memory', { limits: { maxHandshakes: 300 } }, (rig, t) => {
  rig.service.add('g/v', 200 * MIB);
  const idle = rig.arena.usedBytes;
  const clients = Array.from({ length: 200 }, () => rig.attach('g/v'));
  t.equal(rig.server.connectionCount, 200);
  const cookies = clients.map((client, i) => client.request(WRITE, 0, i * MIB, 10_000, pattern(10_000, i)));
  rig.until(() => clients.every((client, i) => client.reply(cookies[i]) !== undefined), 'every client has its reply');
  const reads = clients.map((client, i) => client.request(READ, 0, i * MIB, 10_000));
  rig.until(() => clients.every((client, i) => client.reply(reads[i]) !== undefined), 'every client has its data');
  t.ok(clients.every((client, i) => client.reply(reads[i])!.data.equals(pattern(10_000, i))));
  rig.settle();
  // The two shared chunks, and a header ring of 4 KiB each.
  t.ok(rig.arena.usedBytes - idle <= 2 * MIB + 200 * 4 * KIB, `${rig.arena.usedBytes - idle} bytes`);
});

void withRig('a client that sends requests and never reads stops itself, not the others, and memory stays bounded', {}, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const good = rig.attach('g/v');
  const slow = rig.attach('g/v');
  slow.reading = false;
  for (let i = 0; i < 2000; i++) slow.send(slow.encode(READ, 0, i * 4096, 128 * KIB));
  rig.settle();
  t.ok(slow.unsent > 0 || rig.server.status()[1].stall !== 0, 'it is stopped');
  t.equal(rig.server.status()[1].stall & Stall.blocked, Stall.blocked);
  const { limits } = rig.server;
  t.ok(rig.arena.usedBytes <= limits.reserveBytes + limits.maxReplyBytes + 8 * limits.chunkBytes, `${rig.arena.usedBytes} bytes`);
  for (let i = 0; i < 20; i++) t.ok(roundTrip(rig, good, i * 70_000, 65_536));
  slow.reading = true;
  rig.until(() => slow.outstanding === 0, 'it gets all its replies once it reads');
});

void withRig('many slow readers of small replies do not pin a chunk each', {}, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const good = rig.attach('g/v');
  const isBlocked = (i: number): boolean => (rig.server.status()[i].stall & Stall.blocked) !== 0;
  const idle = rig.arena.usedBytes;
  for (let i = 1; i <= 25; i++) {
    const slow = rig.attach('g/v');
    slow.reading = false;
    for (let reads = 0; !isBlocked(i); reads++) {
      if (reads === 1000) throw new Error('a thousand replies of 4 KiB do not block a connection that is not read');
      slow.request(READ, 0, 0, 4096);
      rig.step();
      rig.step();
    }
    // The next one's replies will lie in another chunk.
    for (let reads = 0; reads < 5; reads++) t.ok(roundTrip(rig, good, 0, 250_000));
  }
  t.ok(rig.arena.usedBytes - idle <= 5 * MIB, `${rig.arena.usedBytes - idle} bytes`);
});

void withRig('many clients share what memory there is, and leave enough for the others', { arenaBytes: 128 * MIB }, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const greedy = Array.from({ length: 30 }, () => rig.attach('g/v'));
  rig.service.answering = { kind: 'by hand' };
  for (const client of greedy) for (let i = 0; i < 200; i++) client.request(READ, 0, i * 65_536, 512 * KIB);
  rig.settle();
  t.ok(rig.service.waitingCount >= 30, `${rig.service.waitingCount} READs are under way`);
  t.ok(rig.arena.usedBytes <= rig.server.limits.reserveBytes + 40 * MIB, `${rig.arena.usedBytes} bytes`);
  t.equal(rig.server.status().filter(({ stall }) => (stall & Stall.starved) !== 0).length, 0, 'nobody waits for memory');
  rig.service.answer(Infinity);
  rig.service.answering = { kind: 'at once' };
  t.ok(roundTrip(rig, rig.attach('g/v'), 0, 8 * MIB));
});

void withRig('a full connection resumes when its requests are answered, however many it sends', { limits: { maxInFlight: 16 } }, (rig, t) => {
  rig.service.add('g/v', MIB);
  rig.service.answering = { kind: 'by hand' };
  const client = rig.attach('g/v');
  for (let i = 0; i < 1000; i++) client.request(i % 3 === 0 ? WRITE : FLUSH, 0, 0, i % 3 === 0 ? 512 : 0, i % 3 === 0 ? pattern(512, i) : undefined);
  rig.settle();
  t.equal(rig.service.waitingCount, 16);
  for (let turn = 0; client.outstanding > 0; turn++) {
    if (turn === 1000) throw new Error('requests are left that nobody answers');
    rig.service.answer(5);
    rig.settle();
    t.ok(rig.service.waitingCount <= 16);
  }
});

void withRig('requests that wait keep their bytes while others receive into the same memory', { limits: { maxInFlight: 4 } }, (rig, t) => {
  const device = rig.service.add('g/v', 4 * MIB);
  rig.service.answering = { kind: 'by hand' };
  const waiting = rig.attach('g/v');
  const other = rig.attach('g/v');
  const sent: Buffer[] = [];
  for (let i = 0; i < 45; i++) sent.push(waiting.encode(WRITE, 0, i * 4096, 4096, pattern(4096, i)));
  // In one piece: what lies behind the fourth request is far more than is copied aside.
  waiting.send(Buffer.concat(sent));
  rig.settle();
  t.equal(rig.service.waitingCount, 4);
  for (let i = 0; i < 40; i++) other.request(WRITE, 0, 2 * MIB + i * 30_000, 30_000, pattern(30_000, 1000 + i));
  for (let turn = 0; waiting.outstanding + other.outstanding > 0; turn++) {
    t.ok(turn < 200);
    rig.settle();
    rig.service.answer(3);
  }
  const found = new Uint8Array(4096);
  const wrong: number[] = [];
  for (let i = 0; i < 45; i++) {
    device.read(i * 4096, found);
    if (!Buffer.from(found).equals(pattern(4096, i))) wrong.push(i);
  }
  t.strictSame(wrong, []);
});

void withRig('with no slot left clients stand in line and none is forgotten', { slots: 4 }, (rig, t) => {
  rig.service.add('g/v', MIB);
  rig.service.answering = { kind: 'by hand' };
  const clients = Array.from({ length: 10 }, () => rig.attach('g/v'));
  for (const client of clients) for (let i = 0; i < 10; i++) client.request(FLUSH, 0, 0, 0);
  rig.settle();
  t.equal(rig.service.waitingCount, 4);
  t.equal(rig.server.status().filter(({ stall }) => (stall & Stall.starved) !== 0).length, 10);
  // One of those in line leaves.
  clients[7].close();
  rig.settle();
  while (clients.some((client, i) => i !== 7 && client.outstanding > 0)) {
    if (rig.service.answer(3) === 0) throw new Error('requests are left that nobody answers');
    rig.settle();
  }
});

void withRig('when others use up the arena, requests of any size are still served', {
  arenaBytes: 64 * MIB, limits: { headroomBytes: 0 },
}, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const clients = [rig.attach('g/v'), rig.attach('g/v'), rig.attach('g/v')];
  for (const client of clients) t.ok(roundTrip(rig, client, 0, 4096), 'with memory');
  // The group holds the rest, in the smallest pieces.
  const taken: number[] = [];
  for (let block = rig.arena.alloc(4096); block >= 0; block = rig.arena.alloc(4096)) taken.push(block);
  const bytes = pattern(32 * MIB, 3);
  const cookies = clients.map((client) => client.request(WRITE, 0, 0, 32 * MIB, bytes));
  rig.until(() => clients.every((client, i) => client.reply(cookies[i])?.errno === 0), 'three WRITEs of 32 MiB');
  const reads = clients.map((client) => client.request(READ, 0, 0, 32 * MIB));
  rig.until(() => clients.every((client, i) => client.reply(reads[i]) !== undefined), 'three READs of 32 MiB');
  t.ok(clients.every((client, i) => client.reply(reads[i])!.data.equals(bytes)));
  for (const block of taken) rig.arena.release(block);
});

void withRig('when others have left nothing but pages before the first client comes, it is served', { arenaBytes: 64 * MIB }, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const taken: number[] = [];
  while (rig.arena.usedBytes < rig.arena.capacityBytes - 64 * KIB) taken.push(rig.arena.alloc(4096));
  const client = rig.attach('g/v');
  for (const length of [4096, MIB, 32 * MIB]) t.ok(roundTrip(rig, client, 0, length), `${length} bytes`);
  for (const block of taken) rig.arena.release(block);
});

void withRig('with no memory at all the server rests, and goes on as soon as there is some', {
  arenaBytes: 64 * MIB, limits: { headroomBytes: 0 },
}, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const clients = [rig.attach('g/v'), rig.attach('g/v')];
  const taken: number[] = [];
  for (let block = rig.arena.alloc(4096); block >= 0; block = rig.arena.alloc(4096)) taken.push(block);
  const data = pattern(5000, 1);
  const cookies = clients.map((client) => client.request(WRITE, 0, 0, 5000, data));
  // Returns only when nothing happens any more: a server that polls for memory would keep it busy.
  rig.settle();
  t.equal(rig.server.status().filter(({ stall }) => (stall & Stall.starved) !== 0).length, 2);
  for (const block of taken) rig.arena.release(block);
  // Whoever frees memory does so within a tick.
  rig.reactor.again();
  rig.until(() => clients.every((client, i) => client.reply(cookies[i])?.errno === 0), 'both are served');
});

void withRig('who holds memory and makes no progress while others wait for it is closed', {
  arenaBytes: 64 * MIB, limits: { stallMs: 40, headroomBytes: 0, maxHandshakes: 500 },
}, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const good = rig.attach('g/v');
  t.ok(roundTrip(rig, good, 0, 4096));
  // Each announces a payload, sends a part, and falls silent.
  const stuck = Array.from({ length: 3 }, () => rig.attach('g/v'));
  for (const client of stuck) client.send(client.encode(WRITE, 0, 0, 16 * MIB, pattern(100, 1)));
  rig.settle();
  const held = rig.server.status().filter(({ inFlight }) => inFlight === 1).length;
  t.ok(held >= 2, `${held} hold memory`);
  const bytes = pattern(32 * MIB, 4);
  const cookie = good.request(WRITE, 0, 0, 32 * MIB, bytes);
  rig.until(() => good.reply(cookie) !== undefined, 'the good client is served');
  t.equal(good.reply(cookie)!.errno, 0);
  t.ok(rig.logged(/made no progress/).length >= 1);
  t.notOk(good.ended);
});

void withRig('a payload that stops half way keeps nobody else waiting', {}, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const stuck = Array.from({ length: 5 }, () => rig.attach('g/v'));
  for (const client of stuck) client.send(client.encode(WRITE, 0, 0, 8 * MIB, pattern(3 * MIB, 1)));
  rig.until(() => stuck.every((client) => client.unsent === 0), 'the parts are sent');
  t.ok(roundTrip(rig, rig.attach('g/v'), MIB, MIB));
  for (const client of stuck) client.close();
  rig.until(() => rig.server.connectionCount === 1, 'they are gone');
  rig.settle();
  t.equal(rig.service.requests.used, 0);
});

void withRig('connections beyond the limit are refused, and places become free again', { limits: { maxConnections: 3 } }, (rig, t) => {
  rig.service.add('g/v', MIB);
  const clients = [rig.attach('g/v'), rig.attach('g/v'), rig.attach('g/v')];
  const fourth = rig.connect();
  rig.until(() => fourth.ended, 'the fourth is refused');
  t.equal(rig.logged(/too many clients/).length, 1);
  clients[1].close();
  rig.until(() => rig.server.connectionCount === 2, 'a place is free');
  t.ok(roundTrip(rig, rig.attach('g/v'), 0, 512));
});

void withRig('a flood of silent connections pushes out itself', { limits: { maxHandshakes: 5 } }, (rig, t) => {
  rig.service.add('g/v', MIB);
  const good = rig.attach('g/v');
  const silent = Array.from({ length: 50 }, () => rig.connect());
  rig.until(() => silent.filter((client) => client.ended).length === 45, 'all but five are closed');
  t.equal(rig.server.connectionCount, 6);
  t.ok(roundTrip(rig, good, 0, 512));
  t.ok(roundTrip(rig, rig.attach('g/v'), 0, 512), 'a proper client still gets in');
});

void withRig('a handshake has a time limit', { limits: { handshakeTimeoutMs: 500 } }, (rig, t) => {
  rig.service.add('g/v', MIB);
  const silent = rig.connect();
  rig.until(() => silent.ended, 'the silent client is closed');
  t.equal(rig.logged(/the handshake took more than 0.5 s/).length, 1);
  const attached = rig.attach('g/v');
  const start = rig.reactor.nowUs;
  rig.until(() => rig.reactor.nowUs - start > 1_000_000, 'twice the limit');
  t.notOk(attached.ended, 'it does not count after the handshake');
});

void withRig('a handshake has a limit of bytes', { limits: { maxHandshakeBytes: 10_000 } }, (rig, t) => {
  rig.service.add('g/v', MIB);
  const client = rig.connect();
  const option = Buffer.alloc(16 + 4000);
  option.write('IHAVEOPT', 0, 'latin1');
  option.writeUInt32BE(77, 8);
  option.writeUInt32BE(4000, 12);
  client.send(Buffer.from([0, 0, 0, 3]));
  for (let i = 0; i < 10; i++) client.send(option);
  rig.until(() => client.ended, 'the end');
  t.equal(rig.logged(/the handshake took more than 10000 bytes/).length, 1);
});

void withRig('a client that asks for long lists and does not read them is stopped', { limits: { maxHandshakeBytes: 100_000_000 } }, (rig, t) => {
  for (let i = 0; i < 500; i++) rig.service.add(`g/${'v'.repeat(100)}${i}`, MIB);
  const client = rig.connect();
  client.reading = false;
  const list = Buffer.alloc(16);
  list.write('IHAVEOPT', 0, 'latin1');
  list.writeUInt32BE(3, 8);
  client.send(Buffer.from([0, 0, 0, 3]));
  for (let i = 0; i < 100; i++) client.send(list);
  rig.settle();
  t.equal(rig.server.connectionCount, 1);
  client.reading = true;
  // 100 lists of 500 exports: about 160 bytes each.
  rig.until(() => client.moved > 100 * 500 * 120, 'all lists come when it reads');
});

void withRig('BLOCK_STATUS calls beyond the limit wait their turn', { limits: { maxExtentCalls: 2 } }, (rig, t) => {
  rig.service.add('g/v', MIB);
  rig.service.answering = { kind: 'by hand' };
  const clients = [1, 2, 3].map(() => rig.attach('g/v', { structuredReplies: true, contexts: ['base:allocation'] }));
  for (const client of clients) for (let i = 0; i < 5; i++) client.request(BLOCK_STATUS, 0, 0, MIB);
  for (let turn = 0; clients.some((client) => client.outstanding > 0); turn++) {
    t.ok(turn < 20);
    rig.settle();
    t.ok(rig.service.waitingExtentCount <= 2);
    rig.service.answer(0);
  }
});

void withRig('stopping the server answers what is under way and closes the rest', {}, (rig, t) => {
  rig.service.add('g/v', MIB);
  rig.service.answering = { kind: 'by hand' };
  const busy = rig.attach('g/v');
  const idle = rig.attach('g/v');
  const half = rig.connect();
  const cookie = busy.request(WRITE, 0, 0, 4096, pattern(4096, 1));
  rig.until(() => rig.service.waitingCount === 1, 'the request');
  void rig.server.close();
  rig.until(() => idle.ended && half.ended, 'the idle ones are closed');
  t.notOk(busy.ended);
  rig.service.answer(1);
  rig.until(() => busy.ended, 'the busy one is closed behind its reply');
  t.equal(busy.reply(cookie)?.errno, 0);
});

void withRig('stopping the server does not wait for ever for a client that does not read', { limits: { closeTimeoutMs: 20 } }, (rig, t) => {
  rig.service.add('g/v', 64 * MIB);
  const client = rig.attach('g/v');
  client.reading = false;
  for (let i = 0; i < 10; i++) client.request(READ, 0, 0, MIB);
  rig.settle();
  void rig.server.close();
  rig.until(() => rig.server.connectionCount === 0, 'it is cut');
  t.equal(rig.logged(/before the client took its replies/).length, 1);
});
