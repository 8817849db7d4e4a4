import { writeFileSync } from 'node:fs';
import t from 'tap';
import { Errno } from '../../src/base/errors.js';
import { Arena } from '../../src/io/arena.js';
import type { Io } from '../../src/io/io.js';
import { Ready } from '../../src/io/io.js';
import { Reactor } from '../../src/io/reactor.js';
import { wakeThread } from '../../src/io/real.js';
import { TimerHeap } from '../../src/io/timers.js';
import type { Fixture } from './fixture.js';
import { fixture, randomFrom, seedOfRun } from './fixture.js';

/** Two connected sockets over a Unix listener. */
function socketPair(f: Fixture, name = 's'): { a: number; b: number } {
  const path = `${f.directory}/${name}`;
  const listener = f.io.listen({ kind: 'unix', path }, 8);
  if (listener < 0) throw new Error(`listen: ${listener}`);
  const a = f.io.connect({ kind: 'unix', path });
  const b = f.io.accept(listener);
  f.io.close(listener);
  if (a < 0 || b < 0) throw new Error(`no pair: ${a} ${b}`);
  return { a, b };
}

/** An Io whose events are a script and whose clock is a number: the Reactor must not notice. */
class ScriptIo {
  readonly memory = new ArrayBuffer(65536);
  clock = 0;
  readonly waits: number[] = [];
  readonly batches: [number, number][][] = [];
  nowUs(): number {
    return this.clock;
  }
  watch(): number {
    return 0;
  }
  rewatch(): number {
    return 0;
  }
  unwatch(): number {
    return 0;
  }
  wait(timeoutUs: number, out: Int32Array): number {
    this.waits.push(timeoutUs);
    const batch = this.batches.shift() ?? [];
    batch.forEach((pair, i) => out.set(pair, 2 * i));
    if (batch.length === 0 && timeoutUs > 0) this.clock += timeoutUs;
    return batch.length;
  }
}

function scripted(spinUs = 0): { io: ScriptIo; reactor: Reactor } {
  const script = new ScriptIo();
  const io = script as unknown as Io;
  return { io: script, reactor: new Reactor(io, new Arena(io), { spinUs }) };
}

t.test('bytes cross a TCP connection and its end is seen', (t) => {
  const f = fixture(t);
  const { io, arena, reactor } = f;
  const listener = io.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, 8);
  t.ok(listener >= 0);
  t.equal(io.accept(listener), -Errno.EAGAIN);
  const port = io.boundPort(listener);
  const client = io.connect({ kind: 'tcp', host: '127.0.0.1', port });
  t.ok(client >= 0);
  let server = -1;
  let connected = false;
  const listening = reactor.watch(listener, Ready.IN, () => (server = io.accept(listener)));
  const connecting = reactor.watch(client, Ready.OUT, () => {
    connected = true;
    reactor.rewatch(connecting, 0);
  });
  f.until(() => server >= 0 && connected);
  t.equal(io.socketError(client), 0);
  t.match(io.peerName(server), /^127\.0\.0\.1:\d+$/);
  t.equal(io.peerName(client), `127.0.0.1:${port}`);
  t.equal(io.setBuffers(server, 65536, 0), 0);

  const buffer = arena.alloc(8192);
  t.equal(io.recv(server, buffer, 100), -Errno.EAGAIN);
  arena.u8.set([1, 2, 3, 4, 5, 6], buffer);
  io.iov.set([buffer + 4, 2, buffer, 3]);
  t.equal(io.sendv(client, 2), 5);
  let got = 0;
  const serving = reactor.watch(server, Ready.IN, () => (got += Math.max(0, io.recv(server, buffer + 4096 + got, 100))));
  f.until(() => got === 5);
  t.same([...arena.u8.subarray(buffer + 4096, buffer + 4101)], [5, 6, 1, 2, 3]);
  reactor.unwatch(serving);
  reactor.unwatch(connecting);
  io.close(client);
  let end = -1;
  const ending = reactor.watch(server, Ready.IN | Ready.RDHUP, () => (end = io.recv(server, buffer, 100)));
  f.until(() => end === 0);
  reactor.unwatch(ending);
  reactor.unwatch(listening);
  io.close(server);
  io.close(listener);
  t.end();
});

t.test('a refused connection is told by errno', (t) => {
  const f = fixture(t);
  const { io, reactor } = f;
  const listener = io.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, 1);
  const port = io.boundPort(listener);
  io.close(listener);
  const fd = io.connect({ kind: 'tcp', host: '127.0.0.1', port });
  let error = fd < 0 ? fd : 0;
  if (fd >= 0) {
    const tag = reactor.watch(fd, Ready.OUT, () => {
      error = io.socketError(fd);
      reactor.unwatch(tag);
      io.close(fd);
    });
    f.until(() => error !== 0);
  }
  t.equal(error, -Errno.ECONNREFUSED);
  t.equal(io.connect({ kind: 'unix', path: `${f.directory}/none` }), -Errno.ENOENT);
  t.ok(io.connect({ kind: 'unix', path: 'x'.repeat(200) }) < 0, 'a path that is too long');
  t.end();
});

t.test('a full socket buffer answers EAGAIN, and a closed peer EPIPE without a signal', (t) => {
  const f = fixture(t);
  const { io, arena } = f;
  const { a, b } = socketPair(f);
  const buffer = arena.alloc(1024 * 1024);
  let result = 0;
  let sent = 0;
  while ((result = io.send(a, buffer, 1024 * 1024)) > 0) sent += result;
  t.equal(result, -Errno.EAGAIN);
  t.ok(sent > 0);
  t.equal(io.shutdown(b), 0);
  io.close(b);
  t.equal(io.send(a, buffer, 10), -Errno.EPIPE);
  io.close(a);
  t.end();
});

t.test('a stale Unix socket file is replaced, a live one and a plain file are not', (t) => {
  const { io, directory } = fixture(t);
  const path = `${directory}/s`;
  const first = io.listen({ kind: 'unix', path }, 8);
  t.ok(first >= 0);
  t.equal(io.listen({ kind: 'unix', path }, 8), -Errno.EADDRINUSE, 'live');
  io.close(first);
  const second = io.listen({ kind: 'unix', path }, 8);
  t.ok(second >= 0, 'stale');
  io.close(second);
  writeFileSync(`${directory}/plain`, 'precious');
  t.equal(io.listen({ kind: 'unix', path: `${directory}/plain` }, 8), -Errno.EADDRINUSE);
  t.same(io.list(directory).sort(), ['plain', 's']);
  t.end();
});

t.test('an event of a watch that ended earlier in the tick reaches nobody', (t) => {
  const { io, reactor } = scripted();
  const calls: string[] = [];
  const victim = reactor.watch(11, Ready.IN, () => calls.push('victim'));
  let heir = 0;
  const killer = reactor.watch(10, Ready.IN, () => {
    calls.push('killer');
    reactor.unwatch(victim);
    heir = reactor.watch(12, Ready.IN, () => calls.push('heir'));
  });
  io.batches.push([[killer, Ready.IN], [victim, Ready.IN]]);
  reactor.step(0);
  t.same(calls, ['killer']);
  t.equal(heir & 0xffff, victim & 0xffff, 'the heir has the slot of the victim');
  io.batches.push([[heir, Ready.IN]]);
  reactor.step(0);
  t.same(calls, ['killer', 'heir']);
  t.throws(() => reactor.unwatch(victim), { name: 'AssertionError' });
  t.throws(() => reactor.rewatch(victim, 0), { name: 'AssertionError' });
  t.end();
});

t.test('the same, with real descriptors', (t) => {
  const f = fixture(t);
  const { io, arena, reactor } = f;
  const one = socketPair(f, 'one');
  const two = socketPair(f, 'two');
  const quiet = socketPair(f, 'quiet');
  const buffer = arena.alloc(4096);
  io.send(one.a, buffer, 1);
  io.send(two.a, buffer, 1);
  const calls: string[] = [];
  let tagOne = 0;
  let tagTwo = 0;
  const end = (mine: string, other: () => number): void => {
    calls.push(mine);
    reactor.unwatch(other());
    reactor.watch(quiet.b, Ready.IN, () => calls.push('heir'));
  };
  tagOne = reactor.watch(one.b, Ready.IN, () => end('one', () => tagTwo));
  tagTwo = reactor.watch(two.b, Ready.IN, () => end('two', () => tagOne));
  reactor.step(-1);
  t.equal(calls.length, 1, String(calls));
  t.end();
});

t.test('a tick runs events, finished jobs, timers and hooks in this order, hooks once', (t) => {
  const { io, reactor } = scripted();
  const calls: string[] = [];
  const removeFirst = reactor.onTickEnd(() => calls.push('hook 1'));
  reactor.onTickEnd(() => calls.push('hook 2'));
  reactor.after(5, () => calls.push('timer'));
  const tag = reactor.watch(9, Ready.IN, (events) => calls.push(`event ${events}`));
  io.batches.push([[tag, Ready.IN | Ready.HUP]]);
  io.clock = 10;
  t.equal(reactor.step(0), true);
  t.same(calls.splice(0), ['event 17', 'timer', 'hook 1', 'hook 2']);
  t.equal(reactor.step(0), false);
  t.same(calls, [], 'no hook in a tick in which nothing happened');
  removeFirst();
  removeFirst();
  reactor.again();
  t.equal(reactor.step(-1), true);
  t.same(calls, ['hook 2']);
  t.end();
});

t.test('a hook that removes itself or adds another one breaks nothing', (t) => {
  const { reactor } = scripted();
  const calls: string[] = [];
  const remove = reactor.onTickEnd(() => {
    calls.push('once');
    remove();
    reactor.onTickEnd(() => calls.push('later'));
  });
  reactor.onTickEnd(() => calls.push('always'));
  reactor.again();
  reactor.step(0);
  reactor.again();
  reactor.step(0);
  t.same(calls, ['once', 'always', 'later', 'always', 'later']);
  t.end();
});

t.test('timers fire in order of deadline, equal ones in order of setting, cancelled ones never', (t) => {
  const { io, reactor } = scripted();
  const calls: string[] = [];
  reactor.after(30, () => calls.push('30'));
  const cancelled = reactor.after(20, () => calls.push('cancelled'));
  reactor.after(20, () => calls.push('20 a'));
  reactor.after(20, () => {
    calls.push('20 b');
    reactor.after(0, () => calls.push('set while firing'));
  });
  t.equal(reactor.cancel(cancelled), true);
  t.equal(reactor.cancel(cancelled), false);
  t.equal(reactor.step(-1), true);
  t.same(calls, ['20 a', '20 b'], 'not the one that was set meanwhile');
  t.equal(io.clock, 20);
  t.equal(io.waits[0], 20, 'blocked until the first deadline');
  reactor.step(-1);
  t.same(calls.splice(0), ['20 a', '20 b', 'set while firing']);
  reactor.step(3);
  t.equal(io.clock, 23, 'maxWaitUs comes first');
  reactor.step(-1);
  t.same(calls, ['30']);
  reactor.step(-1);
  t.equal(io.waits.at(-1), -1, 'no timer is left');
  t.end();
});

t.test('the timer heap agrees with a sorted list', (t) => {
  const seed = seedOfRun();
  t.comment(`TEST_SEED=${seed}`);
  const random = randomFrom(seed);
  const heap = new TimerHeap();
  let model: { id: number; at: number; order: number }[] = [];
  const fired: number[] = [];
  let order = 0;
  let now = 0;
  for (let step = 0; step < 5000; step++) {
    const dice = random();
    if (dice < 0.5) {
      const at = now + Math.floor(random() * 50);
      const mine = order++;
      model.push({ id: heap.add(at, () => fired.push(mine)), at, order: mine });
    } else if (dice < 0.75 && model.length > 0) {
      const [gone] = model.splice(Math.floor(random() * model.length), 1);
      if (!heap.cancel(gone.id) || heap.cancel(gone.id)) t.fail('cancel');
    } else {
      now += Math.floor(random() * 10);
      const due = model.filter((one) => one.at <= now).sort((a, b) => a.at - b.at || a.order - b.order);
      model = model.filter((one) => one.at > now);
      fired.length = 0;
      heap.fire(now);
      if (String(fired) !== String(due.map((one) => one.order))) t.fail(`at ${now}: fired ${fired}`);
    }
    if (heap.size !== model.length) t.fail('size');
    if (heap.nextDeadline !== Math.min(Infinity, ...model.map((one) => one.at))) t.fail('nextDeadline');
  }
  t.ok(order > 1000);
  t.end();
});

t.test('the reactor polls for spinUs after the last event and then blocks', (t) => {
  const { io, reactor } = scripted(100);
  reactor.step(50);
  t.equal(io.waits.at(-1), 50, 'does not spin before the first event');
  io.batches.push([[1, Ready.IN]]);
  reactor.step(50);
  reactor.step(50);
  t.equal(io.waits.at(-1), 0);
  io.clock += 99;
  reactor.step(50);
  io.clock += 2;
  reactor.step(50); // sees the clock of the tick before
  t.equal(io.waits.at(-1), 0);
  reactor.step(50);
  t.equal(io.waits.at(-1), 50);
  t.end();
});

t.test('wakeFd ends a wait', (t) => {
  const f = fixture(t);
  let woken = 0;
  f.reactor.onWake(() => woken++);
  wakeThread(f.io.wakeFd);
  wakeThread(f.io.wakeFd);
  f.reactor.step(-1);
  t.equal(woken, 1, 'two wakes before a wait are one');
  f.reactor.step(0);
  t.equal(woken, 1);
  t.throws(() => wakeThread(9999), { code: 'io/EBADF' });
  t.end();
});

t.test('run ends after the tick that called stop', (t) => {
  const f = fixture(t);
  const calls: string[] = [];
  f.reactor.onTickEnd(() => calls.push('hook'));
  f.reactor.after(1000, () => {
    f.reactor.stop();
    calls.push('stop');
  });
  f.reactor.run();
  t.same(calls, ['stop', 'hook']);
  t.end();
});
