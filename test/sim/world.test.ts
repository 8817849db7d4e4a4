/** Time, jobs, crashes of jobs in flight, determinism, checksums of the simulator. */
import t from 'tap';
import { crc32c } from '../../src/base/crc32c.js';
import { Errno } from '../../src/base/errors.js';
import { hash64 } from '../../src/base/hash64.js';
import { JobOp, JobTable, O, Queue, Ready, TAG_JOBS, TAG_WAKE } from '../../src/io/io.js';
import { SimCrash } from './faults.js';
import { crc32cFast, hash64Fast } from './hash.js';
import { Random } from './random.js';
import type { SimIo } from './io.js';
import { World, type SimNode } from './world.js';

const memory = new ArrayBuffer(1024 * 1024);
const RW = O.RDWR | O.CREAT;
const events = new Int32Array(16);
const reaped = new Float64Array(48);

function start(seed: number): { world: World; node: SimNode; io: SimIo; bytes: Uint8Array; fd: number } {
  const world = new World({ seed });
  const node = world.node('n', { memory });
  const io = node.start();
  const fd = io.open('/f', RW, 0o600);
  io.syncDirectory('/');
  return { world, node, io, bytes: new Uint8Array(memory), fd };
}

t.test('checksums agree with the references of src/base, at every length and alignment', async (t) => {
  const random = new Random(11);
  const bytes = random.fill(new Uint8Array(6000));
  const out = new Uint32Array(2);
  for (let i = 0; i < 300; i++) {
    const from = random.below(64);
    const length = i < 40 ? i : random.below(5000);
    const part = bytes.subarray(from, from + length);
    const seed = random.u32();
    t.equal(crc32cFast(bytes, from, from + length, seed), crc32c(part, 0, part.length, seed));
    const [hi, lo] = [random.u32(), random.u32()];
    hash64Fast(bytes, from, length, hi, lo, out);
    t.equal((BigInt(out[0]) << 32n) | BigInt(out[1]), hash64(part, (BigInt(hi) << 32n) | BigInt(lo)), `hash64 of ${length} bytes`);
  }
  const zeros = new Uint8Array(100);
  hash64Fast(zeros, 0, 100, 1, 2, out);
  t.equal((BigInt(out[0]) << 32n) | BigInt(out[1]), hash64(zeros, (1n << 32n) | 2n), 'of zeros');
});

t.test('random numbers are uniform enough, and forks differ', async (t) => {
  const random = new Random(1);
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < 10_000; i++) counts[random.below(10)]++;
  t.ok(counts.every((count) => count > 850 && count < 1150), counts.join(' '));
  t.not(random.fork(1).u32(), random.fork(1).u32());
  t.equal(new Random(5).u32(), new Random(5).u32());
  t.not(new Random(5).u32(), new Random(6).u32());
});

t.test('a job takes effect between submit and completion, not before', async (t) => {
  const { world, node, io, bytes, fd } = start(2);
  bytes.fill(1, 0, 4096);
  const job = new JobTable().add(JobOp.pwrite, fd, 0, 4096, 0).add(JobOp.fdatasync, fd, 0, 0, 0).add(JobOp.pread, fd, 8192, 4096, 0);
  io.submit(Queue.destage, job.rows, job.count, 77);
  t.equal(io.wait(-1, events), 0);
  t.equal(node.disk.peek('/f', 0, 1)[0], 0);
  world.drain();
  t.equal(io.wait(-1, events), 1);
  t.equal(events[0], TAG_JOBS);
  t.equal(io.reap(reaped), 1);
  t.same([...reaped.subarray(0, 3)], [77, 0, -1]);
  t.equal(bytes[8192], 1);
  t.equal(node.disk.peekDurable('/f', 0, 1)[0], 1);
  t.equal(io.wait(-1, events), 0);
  io.wake();
  t.equal(io.wait(-1, events), 1);
  t.equal(events[0], TAG_WAKE);
  t.equal(io.wait(-1, events), 0, 'a wake is told once');
  world.dispose();
});

t.test('a failing row ends its job and is named; the next job of the queue runs', async (t) => {
  const { world, node, io, fd } = start(3);
  node.disk.faults.hook = (site) => (site.inJob && site.op === 'pwrite' && site.pos === 4096 ? Errno.EIO : 0);
  const job = new JobTable().add(JobOp.pwrite, fd, 0, 512, 0).add(JobOp.pwrite, fd, 0, 512, 4096).add(JobOp.close, fd, 0, 0, 0);
  io.submit(Queue.destage, job.rows, 3, 1);
  io.submit(Queue.destage, job.rows, 1, 2);
  job.clear().add(JobOp.pwrite, 99, 0, 512, 0);
  io.submit(Queue.destage, job.rows, 1, 3);
  world.drain();
  t.equal(io.reap(reaped), 3);
  t.same([...reaped.subarray(0, 9)], [1, -Errno.EIO, 1, 2, 0, -1, 3, -Errno.EBADF, 0]);
  world.dispose();
});

t.test('one queue completes in order, the read queue does not', async (t) => {
  let reordered = 0;
  for (let seed = 1; seed <= 10; seed++) {
    const { world, io, fd } = start(seed);
    const job = new JobTable().add(JobOp.pread, fd, 0, 512, 0);
    for (const queue of [Queue.sync, Queue.read] as const) {
      for (let token = 0; token < 8; token++) io.submit(queue, job.rows, 1, token);
      world.drain();
      t.equal(io.reap(reaped), 8);
      const tokens = Array.from({ length: 8 }, (_, i) => reaped[i * 3]);
      const sorted = [...tokens].sort((a, b) => a - b);
      t.same(sorted, [0, 1, 2, 3, 4, 5, 6, 7]);
      if (queue === Queue.sync) t.same(tokens, sorted);
      else if (tokens.join() !== sorted.join()) reordered++;
    }
    world.dispose();
  }
  t.ok(reordered > 0);
});

t.test('zero preallocates and punch frees; before fdatasync a punched sector is old or zero', async (t) => {
  const seen = new Set<number>();
  for (let seed = 1; seed <= 60; seed++) {
    const { world, node, io, bytes, fd } = start(seed);
    const job = new JobTable().add(JobOp.zero, fd, 0, 65_536, 0);
    io.submit(Queue.checkpoint, job.rows, 1, 1);
    world.drain();
    t.equal(io.stat(fd).size, 65_536);
    t.equal(io.stat(fd).allocated, 65_536);
    bytes.fill(3, 0, 16_384);
    io.pwrite(fd, 0, 16_384, 0);
    io.fdatasync(fd);
    job.clear().add(JobOp.punch, fd, 0, 8192, 4096);
    io.submit(Queue.destage, job.rows, 1, 2);
    world.drain();
    t.equal(io.stat(fd).allocated, 65_536 - 8192);
    t.same([...node.disk.peek('/f', 4095, 2), ...node.disk.peek('/f', 12_287, 2)], [3, 0, 0, 3]);
    node.crash('power');
    const after = node.disk.peek('/f', 0, 16_384);
    for (let at = 0; at < 16_384; at += 512) {
      const value = after[at];
      if (!after.subarray(at, at + 512).every((b) => b === value)) t.fail(`seed ${seed}: torn at ${at}`);
      if (at >= 4096 && at < 12_288) seen.add(value);
      else t.equal(value, 3);
    }
    world.dispose();
  }
  t.same([...seen].sort(), [0, 3]);
});

t.test('a kill leaves jobs in flight not done, done, or done to a page boundary, in order', async (t) => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 150; seed++) {
    const { world, node, io, bytes, fd } = start(seed);
    bytes.fill(1, 0, 16_384);
    const job = new JobTable().add(JobOp.pwrite, fd, 0, 16_384, 0).add(JobOp.pwrite, fd, 0, 512, 65_536);
    io.submit(Queue.destage, job.rows, 2, 1);
    node.crash('kill');
    const done = node.disk.peek('/f', 0, 16_384).lastIndexOf(1) + 1;
    const second = node.disk.peek('/f', 65_536, 1)[0];
    t.equal(done % 4096, 0);
    t.ok(second === 0 || done === 16_384, 'the second row only after the first');
    seen.add(done === 0 ? 'none' : done < 16_384 ? 'part' : second === 0 ? 'first' : 'all');
    world.dispose();
  }
  t.same([...seen].sort(), ['all', 'first', 'none', 'part']);
});

t.test('run advances to the timeout that a node asked for, and reports a stall with the seed', async (t) => {
  const { world, node, io } = start(42);
  let fired = -1;
  node.step = () => {
    if (fired < 0 && io.nowUs() >= 5000) fired = io.nowUs();
    io.wait(fired < 0 ? 5000 - io.nowUs() : -1, events);
  };
  world.run(() => fired >= 0);
  t.ok(fired >= 5000 && fired < 5100, String(fired));
  t.throws(() => world.run(() => false), /simulation 42 stalled/);
  t.throws(() => world.run(() => io.nowUs() < 0, { steps: 0 }), /simulation 42/);
  let late = false;
  world.after(1e6, () => (late = true));
  world.run(() => late);
  t.ok(io.nowUs() >= 1e6);
  world.dispose();
});

t.test('a node that polls without end still lets time pass', async (t) => {
  const { world, node, io } = start(43);
  node.step = () => io.wait(0, events);
  world.run(() => io.nowUs() > 100_000, { steps: 2000 });
  t.pass();
  world.dispose();
});

t.test('a fault hook can end the process at a row of a job; run crashes the node and tells', async (t) => {
  const { world, node, io, bytes, fd } = start(44);
  bytes.fill(1, 0, 512);
  let crashed = '';
  node.onCrash = (kind) => (crashed = kind);
  node.disk.faults.hook = (site) => {
    if (site.inJob && site.op === 'fdatasync') throw new SimCrash('chosen');
    return 0;
  };
  const job = new JobTable().add(JobOp.pwrite, fd, 0, 512, 0).add(JobOp.fdatasync, fd, 0, 0, 0).add(JobOp.pwrite, fd, 0, 512, 512);
  io.submit(Queue.sync, job.rows, job.count, 1);
  node.step = () => io.wait(-1, events);
  world.run(() => crashed !== '');
  t.equal(crashed, 'power');
  t.notOk(node.alive);
  t.equal(node.disk.peek('/f', 512, 1)[0], 0, 'no row after it');
  node.disk.faults.hook = undefined;
  const again = node.start();
  t.ok(again.open('/f', O.RDONLY, 0) >= 0, 'the synced name is there');
  t.throws(() => io.nowUs() >= 0 && io.fdatasync(fd), SimCrash);
  world.dispose();
});

/** Two nodes that write, sync and talk; returns the trace's hash. */
function busyRun(seed: number): { hash: number; count: number } {
  const world = new World({ seed });
  let echoed = 0;
  const nodes = ['a', 'b'].map((name, which) => {
    const node = world.node(name, { memory: 65_536 });
    const io = node.start();
    Object.assign(node.disk.faults.rates, { coldRead: 0.2, syncError: 0.05, writeError: 0.05, stall: 0.05 });
    const random = world.random.fork(which);
    const fd = io.open('/f', RW, 0o600);
    const job = new JobTable();
    const listener = which === 0 ? io.listen({ kind: 'tcp', host: '::', port: 7000 }, 5) : -1;
    let peer = which === 1 ? io.connect({ kind: 'tcp', host: 'a', port: 7000 }) : -1;
    if (listener >= 0) io.watch(listener, Ready.IN, 5);
    if (peer >= 0) io.watch(peer, Ready.IN | Ready.OUT, 6);
    node.step = () => {
      const count = io.wait(1000, events);
      for (let i = 0; i < count; i++) {
        if (events[i * 2] === TAG_JOBS) io.reap(reaped);
        if (events[i * 2] === 5) {
          peer = io.accept(listener);
          if (peer >= 0) io.watch(peer, Ready.IN, 6);
        }
        if (events[i * 2] === 6 && (events[i * 2 + 1] & Ready.IN) !== 0 && io.recv(peer, 4096, 3000) > 0) echoed++;
        if (events[i * 2] === 6 && random.chance(0.5)) io.send(peer, 0, random.below(3000));
      }
      io.pwrite(fd, 0, random.below(10_000), random.below(100_000));
      if (io.jobs.outstanding < 4) io.submit(random.chance(0.5) ? Queue.read : Queue.sync, job.clear().add(random.pick([0, 2, 4, 5]), fd, 0, 512, 512).rows, 1, 1);
    };
    return node;
  });
  world.run(() => echoed > 20, { steps: 20_000 });
  nodes[0].crash('power');
  nodes[1].crash('kill');
  for (const node of nodes) {
    const path = node.disk.paths()[0];
    if (path !== undefined) world.trace.note(0, node.name, 'left', crc32c(node.disk.peek(path, 0, 100_000)), node.disk.file(path).size, 0);
  }
  world.dispose();
  return { hash: world.trace.hash, count: world.trace.count };
}

t.test('the same seed gives the same trace, other seeds others', async (t) => {
  const hashes = new Set<number>();
  for (let seed = 1; seed <= 20; seed++) {
    const first = busyRun(seed);
    t.same(busyRun(seed), first, `seed ${seed}`);
    t.ok(first.count > 50);
    hashes.add(first.hash);
  }
  t.equal(hashes.size, 20);
});
