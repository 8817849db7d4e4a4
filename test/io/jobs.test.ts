import { readFileSync } from 'node:fs';
import t from 'tap';
import { Errno } from '../../src/base/errors.js';
import type { QueueId } from '../../src/io/io.js';
import { JobOp, JobTable, O, Queue } from '../../src/io/io.js';
import { fixture } from './fixture.js';

const PAGE = 4096;

t.test('a job runs its rows in order', (t) => {
  const f = fixture(t);
  const { io, arena, reactor, directory } = f;
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const buffer = arena.alloc(3 * PAGE);
  arena.u8.fill(1, buffer, buffer + PAGE);
  arena.u8.fill(2, buffer + PAGE, buffer + 2 * PAGE);
  arena.u8.fill(9, buffer + 2 * PAGE, buffer + 3 * PAGE);
  const table = new JobTable(1)
    .add(JobOp.pwrite, fd, buffer, PAGE, 0)
    .add(JobOp.pwrite, fd, buffer + PAGE, PAGE, 0)
    .add(JobOp.pwrite, fd, buffer, PAGE, PAGE)
    .add(JobOp.fdatasync, fd, 0, 0, 0)
    .add(JobOp.fsync, fd, 0, 0, 0)
    .add(JobOp.pread, fd, buffer + 2 * PAGE, PAGE, PAGE + 10)
    .add(JobOp.close, fd, 0, 0, 0);
  let outcome: number[] | undefined;
  reactor.submit(Queue.destage, table, (result, row) => (outcome = [result, row]));
  table.clear();
  t.equal(reactor.jobsInFlight, 1);
  f.until(() => outcome !== undefined);
  t.same(outcome, [0, -1]);
  t.equal(reactor.jobsInFlight, 0);
  const got = readFileSync(`${directory}/f`);
  t.equal(got.length, 2 * PAGE);
  t.ok(got.subarray(0, PAGE).every((b) => b === 2) && got.subarray(PAGE).every((b) => b === 1));
  const read = arena.u8.subarray(buffer + 2 * PAGE, buffer + 3 * PAGE);
  t.ok(read.subarray(0, PAGE - 10).every((b) => b === 1) && read.subarray(PAGE - 10).every((b) => b === 0), 'zeros behind the end');
  t.equal(io.close(fd), -Errno.EBADF, 'the job closed it');
  t.end();
});

t.test('the first failing row ends a job and is named', (t) => {
  const f = fixture(t);
  const { io, arena, reactor, directory } = f;
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const buffer = arena.alloc(PAGE);
  arena.u8.fill(7, buffer, buffer + PAGE);
  const table = new JobTable()
    .add(JobOp.pwrite, fd, buffer, PAGE, 0)
    .add(JobOp.pwrite, 9999, buffer, PAGE, 0)
    .add(JobOp.pwrite, fd, buffer, PAGE, PAGE);
  let outcome: number[] | undefined;
  reactor.submit(Queue.checkpoint, table, (result, row) => (outcome = [result, row]));
  f.until(() => outcome !== undefined);
  t.same(outcome, [-Errno.EBADF, 1]);
  t.equal(io.stat(fd).size, PAGE, 'the row behind it did not run');
  io.close(fd);
  t.end();
});

t.test('zero allocates zeros and punch takes the allocation away', (t) => {
  const f = fixture(t);
  const { io, arena, reactor, directory } = f;
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const length = 200_000;
  const run = (table: JobTable): number => {
    let outcome: number | undefined;
    reactor.submit(Queue.checkpoint, table, (result) => (outcome = result));
    f.until(() => outcome !== undefined);
    return outcome as number;
  };
  const buffer = arena.alloc(PAGE);
  arena.u8.fill(3, buffer, buffer + PAGE);
  io.pwrite(fd, buffer, PAGE, 0);
  t.equal(run(new JobTable().add(JobOp.zero, fd, 0, length, 1000).add(JobOp.fdatasync, fd, 0, 0, 0)), 0);
  t.equal(io.stat(fd).size, 1000 + length);
  t.ok(io.stat(fd).allocated >= length);
  const got = readFileSync(`${directory}/f`);
  t.ok(got.subarray(0, 1000).every((b) => b === 3) && got.subarray(1000).every((b) => b === 0));
  t.equal(run(new JobTable().add(JobOp.punch, fd, 0, 131072, 8192).add(JobOp.punch, fd, 0, 0, 0)), 0);
  t.equal(io.stat(fd).size, 1000 + length, 'the size stays');
  t.ok(io.stat(fd).allocated <= length + 8192 - 131072);
  io.close(fd);
  t.end();
});

t.test('jobs of a one-thread queue finish in the order of submission, many at once', (t) => {
  const f = fixture(t);
  const { io, reactor, arena, directory } = f;
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const buffer = arena.alloc(64 * 1024);
  for (const queue of [Queue.sync, Queue.destage, Queue.checkpoint, Queue.append]) {
    const order: number[] = [];
    const count = 3000;
    const table = new JobTable();
    for (let i = 0; i < count; i++) {
      // Every job writes its number over that of the one before: the last one must win.
      new DataView(io.memory).setUint32(buffer + i * 16, i, true);
      reactor.submit(queue, table.clear().add(JobOp.pwrite, fd, buffer + i * 16, 4, 0), () => order.push(i));
    }
    f.until(() => order.length === count);
    t.ok(order.every((n, i) => n === i), `queue ${queue}`);
    t.equal(readFileSync(`${directory}/f`).readUInt32LE(0), count - 1);
  }
  io.close(fd);
  t.end();
});

t.test('queues do not wait for one another', (t) => {
  const f = fixture(t);
  const { io, reactor, directory } = f;
  const bulk = io.open(`${directory}/bulk`, O.RDWR | O.CREAT, 0o600);
  const finished: string[] = [];
  const zeros = new JobTable().add(JobOp.zero, bulk, 0, 1024 * 1024, 0);
  for (let i = 0; i < 200; i++) reactor.submit(Queue.destage, zeros, () => finished.push('bulk'));
  for (const queue of [Queue.sync, Queue.read, Queue.checkpoint, Queue.append]) {
    reactor.submit(queue, new JobTable(), () => finished.push('other'));
  }
  f.until(() => finished.length === 204);
  t.ok(finished.lastIndexOf('other') < finished.lastIndexOf('bulk'), 'the others did not stand behind all of the bulk work');
  io.close(bulk);
  t.end();
});

t.test('an empty job completes: it is a barrier', (t) => {
  const f = fixture(t);
  let done = false;
  f.reactor.submit(Queue.destage, new JobTable(), (result) => (done = result === 0));
  f.until(() => done);
  t.pass();
  t.end();
});

t.test('completions that do not fit one reap are reported by the next wait', (t) => {
  const { io } = fixture(t);
  for (let token = 0; token < 10; token++) io.submit(Queue.sync, new Float64Array(0), 0, token);
  const out = new Float64Array(3 * 4);
  const events = new Int32Array(8);
  const tokens: number[] = [];
  const deadline = io.nowUs() + 20e6;
  while (tokens.length < 10 && io.nowUs() < deadline) {
    if (io.wait(100_000, events) === 0) continue;
    t.equal(events[0], 0, 'the tag of jobs');
    const count = io.reap(out);
    t.ok(count <= 4);
    for (let i = 0; i < count; i++) tokens.push(out[3 * i]);
  }
  t.same(tokens, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  t.equal(io.wait(0, events), 0, 'nothing is left');
  t.end();
});

t.test('a bad row throws at submission and leaves no job', (t) => {
  const { io } = fixture(t, {}, 65536);
  const submit = (queue: number, cells: number[], count = 1): void =>
    io.submit(queue as QueueId, Float64Array.from(cells), count, 1);
  t.throws(() => submit(0, [JobOp.pwrite, 3, 65536, 1, 0]), RangeError, 'buffer outside');
  t.throws(() => submit(0, [JobOp.pread, 3, 0, 65537, 0]), RangeError, 'length outside');
  t.throws(() => submit(0, [JobOp.pread, 3, 0, 1, -1]), RangeError, 'negative position');
  t.throws(() => submit(0, [JobOp.pread, 3, 0.5, 1, 0]), RangeError, 'fraction');
  t.throws(() => submit(0, [99, 3, 0, 1, 0]), RangeError, 'unknown operation');
  t.throws(() => submit(0, [NaN, 3, 0, 1, 0]), RangeError);
  t.throws(() => submit(5, [JobOp.fdatasync, 3, 0, 0, 0]), RangeError, 'unknown queue');
  t.throws(() => submit(0, [JobOp.fdatasync, 3, 0, 0, 0], 2), RangeError, 'more rows than the table');
  t.equal(io.wait(0, new Int32Array(2)), 0);
  t.end();
});
