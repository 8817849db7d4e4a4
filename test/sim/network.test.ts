/** Simulated connections: order, limits, ends and cuts. */
import t from 'tap';
import { Errno } from '../../src/base/errors.js';
import { Ready } from '../../src/io/io.js';
import type { SimIo } from './io.js';
import { Random } from './random.js';
import { World, type SimNode } from './world.js';

const PORT = 7000;
const events = new Int32Array(16);
const ADDRESS = { kind: 'tcp', host: '127.0.0.1', port: PORT } as const;

interface Pair {
  world: World;
  server: SimNode;
  client: SimNode;
  a: SimIo;
  b: SimIo;
  /** Server's end and client's end. */
  afd: number;
  bfd: number;
}

function nodes(seed: number): Omit<Pair, 'afd' | 'bfd'> {
  const world = new World({ seed });
  const server = world.node('server', { memory: 262_144 });
  const client = world.node('client', { memory: 262_144 });
  return { world, server, client, a: server.start(), b: client.start() };
}

function connected(seed: number): Pair {
  const pair = nodes(seed);
  const listener = pair.a.listen(ADDRESS, 4);
  const bfd = pair.b.connect(ADDRESS);
  pair.world.drain();
  const afd = pair.a.accept(listener);
  if (afd < 0 || pair.b.socketError(bfd) !== 0) throw new Error('no connection');
  return { ...pair, afd, bfd };
}

/** Readiness of one descriptor, for all events. */
function ready(io: SimIo, fd: number): number {
  io.watch(fd, Ready.IN | Ready.OUT | Ready.RDHUP, 9);
  const count = io.wait(0, events);
  io.unwatch(fd);
  return count === 0 ? 0 : events[1];
}

t.test('bytes arrive once, in order, through small buffers and partial calls', async (t) => {
  for (let seed = 1; seed <= 10; seed++) {
    const { world, a, b, afd, bfd } = connected(seed);
    const total = 300_000;
    const sent = new Random(seed).fill(new Uint8Array(total));
    const got = new Uint8Array(total);
    const random = new Random(seed, 1);
    let from = 0;
    let to = 0;
    let full = 0;
    let rounds = 0;
    while (to < total) {
      if (++rounds > 100_000) throw new Error(`seed ${seed}: ${to} of ${total} after many rounds`);
      const part = sent.subarray(from, from + random.between(1, 60_000));
      new Uint8Array(b.memory).set(part);
      if (part.length > 0) {
        b.iov.set([0, Math.floor(part.length / 2), Math.floor(part.length / 2), part.length - Math.floor(part.length / 2)]);
        const n = random.chance(0.5) ? b.send(bfd, 0, part.length) : b.sendv(bfd, 2);
        if (n === -Errno.EAGAIN) full++;
        else from += n;
      }
      if (random.chance(0.5)) world.clock.advanceTo(world.clock.now + random.below(500));
      if (random.chance(0.3)) {
        const n = a.recv(afd, 0, random.between(1, 100_000));
        if (n > 0) {
          got.set(new Uint8Array(a.memory, 0, n), to);
          to += n;
        }
      }
    }
    t.equal(Buffer.compare(got, sent), 0, `seed ${seed}`);
    if (full === 0) t.comment(`seed ${seed}: the buffer was never full`);
    t.equal(a.recv(afd, 0, 10), -Errno.EAGAIN);
    world.dispose();
  }
});

t.test('readiness is level-triggered: IN while bytes wait, OUT while there is room', async (t) => {
  const { world, a, b, afd, bfd } = connected(3);
  t.equal(ready(a, afd), Ready.OUT);
  b.send(bfd, 0, 100);
  world.drain();
  t.equal(ready(a, afd), Ready.IN | Ready.OUT);
  t.equal(ready(a, afd), Ready.IN | Ready.OUT);
  while (a.recv(afd, 0, 1000) > 0);
  t.equal(ready(a, afd), Ready.OUT);
  let sent = 0;
  for (let n = 0; (n = b.send(bfd, 0, 100_000)) > 0; ) sent += n;
  t.equal(ready(b, bfd), 0, 'a full buffer is not writable');
  t.ok(sent >= 8192 - 1 && sent <= 262_144, `limited: ${sent}`);
  world.drain();
  while (a.recv(afd, 0, 100_000) > 0);
  t.equal(ready(b, bfd), Ready.OUT);
  t.equal(b.watch(bfd, Ready.IN, 1), 0);
  t.equal(b.watch(bfd, Ready.IN, 1), -Errno.EEXIST);
  t.equal(b.rewatch(bfd, Ready.OUT, 2), 0);
  t.equal(b.close(bfd), 0);
  t.equal(b.unwatch(bfd), -Errno.ENOENT, 'close ends the watch');
  world.dispose();
});

t.test('a connection is pending until accepted, refused without a listener, refused by chance', async (t) => {
  const { world, a, b } = nodes(5);
  const refused = b.connect(ADDRESS);
  t.equal(ready(b, refused), 0, 'connecting');
  world.drain();
  t.ok((ready(b, refused) & Ready.OUT) !== 0);
  t.equal(b.socketError(refused), -Errno.ECONNREFUSED);
  const listener = a.listen({ ...ADDRESS, port: 0 }, 4);
  const port = a.boundPort(listener);
  t.equal(a.accept(listener), -Errno.EAGAIN);
  t.equal(a.listen({ ...ADDRESS, port }, 4), -Errno.EADDRINUSE);
  world.network.rates.refuse = 1;
  const unlucky = b.connect({ ...ADDRESS, port });
  world.drain();
  t.equal(b.socketError(unlucky), -Errno.ECONNREFUSED);
  world.network.rates.refuse = 0;
  const fd = b.connect({ ...ADDRESS, port });
  world.drain();
  t.equal(ready(a, listener), Ready.IN);
  t.ok(a.accept(listener) >= 0);
  t.equal(b.socketError(fd), 0);
  t.equal(b.connect({ kind: 'unix', path: '/s' }), -Errno.ENOENT);
  const local = b.listen({ kind: 'unix', path: '/s' }, 4);
  t.ok(b.connect({ kind: 'unix', path: '/s' }) >= 0);
  t.ok(b.accept(local) >= 0);
  world.dispose();
});

t.test('close delivers what was sent, then the end; sending to nobody is reset', async (t) => {
  const { world, a, b, afd, bfd } = connected(6);
  world.network.rates.partial = 0;
  b.send(bfd, 0, 500);
  b.close(bfd);
  world.drain();
  t.equal(ready(a, afd) & (Ready.IN | Ready.RDHUP), Ready.IN | Ready.RDHUP);
  t.equal(a.recv(afd, 0, 1000), 500);
  t.equal(a.recv(afd, 0, 1000), 0);
  t.equal(a.send(afd, 0, 10), 10);
  world.drain();
  t.equal(a.send(afd, 0, 10), -Errno.ECONNRESET);
  t.equal(a.send(afd, 0, 10), -Errno.EPIPE);
  world.dispose();
});

t.test('a cut resets both ends and loses bytes in flight; the next connection works', async (t) => {
  const { world, a, b, afd, bfd } = connected(7);
  b.send(bfd, 0, 500);
  world.network.cut('client', 'server');
  world.drain();
  t.equal(a.recv(afd, 0, 1000), -Errno.ECONNRESET);
  t.equal(a.recv(afd, 0, 1000), 0);
  t.ok((ready(b, bfd) & Ready.ERR) !== 0);
  t.equal(b.socketError(bfd), -Errno.ECONNRESET);
  const again = b.connect(ADDRESS);
  world.drain();
  t.equal(b.socketError(again), 0);
  t.equal(ready(b, again), Ready.OUT);
  world.dispose();
});

t.test('in a partition nobody is told; healing it resets, and a connect that waited succeeds', async (t) => {
  const { world, a, b, afd, bfd } = connected(8);
  b.send(bfd, 0, 500);
  world.network.partition('server', 'client');
  t.ok(b.send(bfd, 0, 500) > 0, 'the sender does not know');
  const waiting = b.connect(ADDRESS);
  world.clock.advanceTo(world.clock.now + 500_000);
  t.equal(a.recv(afd, 0, 1000), -Errno.EAGAIN);
  t.equal(ready(b, waiting), 0);
  world.network.heal('client', 'server');
  world.drain();
  t.equal(a.recv(afd, 0, 1000), -Errno.ECONNRESET);
  t.equal(b.recv(bfd, 0, 1000), -Errno.ECONNRESET);
  t.equal(b.socketError(waiting), 0);
  world.network.partition('server', 'client');
  const late = b.connect(ADDRESS);
  world.drain();
  t.equal(b.socketError(late), -Errno.ETIMEDOUT, 'a connect gives up in the end');
  world.dispose();
});

t.test('a killed node is seen as end or reset, one without power later as reset; what arrives is a prefix', async (t) => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 80; seed++) {
    for (const kind of ['kill', 'power'] as const) {
      const { world, server, a, b, afd, bfd } = connected(seed);
      world.network.rates.partial = 0;
      const bytes = new Random(seed).fill(new Uint8Array(a.memory, 0, 2000));
      for (let i = 0; i < 4; i++) a.send(afd, i * 500, 500);
      world.clock.advanceTo(world.clock.now + seed * 3);
      const sent = bytes.slice();
      server.crash(kind);
      world.drain();
      const n = b.recv(bfd, 0, 4000);
      const got = Math.max(0, n);
      t.equal(Buffer.compare(new Uint8Array(b.memory, 0, got), sent.subarray(0, got)), 0);
      const end = n > 0 ? b.recv(bfd, 0, 4000) : n;
      t.ok(end === 0 || end === -Errno.ECONNRESET);
      seen.add(`${kind} ${end === 0 ? 'end' : 'reset'} ${got === 0 ? 'none' : got < 2000 ? 'part' : 'all'}`);
      const fd = b.connect(ADDRESS);
      world.drain();
      t.equal(b.socketError(fd), -Errno.ECONNREFUSED, 'its listener is gone');
      world.dispose();
    }
  }
  for (const outcome of ['kill end all', 'kill reset none', 'kill reset part', 'power reset none', 'power reset part']) t.ok(seen.has(outcome), outcome);
  t.notOk([...seen].some((outcome) => outcome.startsWith('power end')));
});
