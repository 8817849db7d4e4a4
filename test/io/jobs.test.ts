import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { Errno } from '../../src/base/errors.js';
import type { QueueId } from '../../src/io/io.js';
import { JobOp, JobTable, O, Queue } from '../../src/io/io.js';
import { fixture } from './fixture.js';
import type { Fixture } from './fixture.js';

const PAGE = 4096;

/** Runs one job to its end: 0 or −errno. */
function runJob(f: Fixture, table: JobTable): number {
  let outcome: number | undefined;
  f.reactor.submit(Queue.destage, table, (result) => (outcome = result));
  f.until(() => outcome !== undefined);
  return outcome!;
}

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

t.test('reserve allocates holes and keeps content and size', (t) => {
  const f = fixture(t);
  const { io, arena, directory } = f;
  const path = `${directory}/f`;
  const fd = io.open(path, O.RDWR | O.CREAT, 0o600);
  const MIB = 1024 * 1024;
  const buffer = arena.alloc(PAGE);
  arena.u8.fill(5, buffer, buffer + PAGE);
  t.equal(io.truncate(fd, 4 * MIB), 0);
  t.equal(io.pwrite(fd, buffer, PAGE, MIB), PAGE);
  const before = readFileSync(path);
  t.ok(io.stat(fd).allocated < MIB, 'the file is sparse');
  t.equal(runJob(f, new JobTable().add(JobOp.reserve, fd, 0, MIB, MIB)), 0, 'a hole behind data');
  const reserved = io.stat(fd).allocated;
  t.ok(reserved >= MIB, `${reserved} bytes are allocated`);
  t.equal(runJob(f, new JobTable().add(JobOp.reserve, fd, 0, MIB, MIB)), 0, 'again');
  t.equal(io.stat(fd).allocated, reserved);
  t.equal(runJob(f, new JobTable().add(JobOp.reserve, fd, 0, MIB, 4 * MIB)), 0, 'behind the end');
  t.ok(io.stat(fd).allocated >= 2 * MIB);
  t.equal(io.stat(fd).size, 4 * MIB);
  t.ok(readFileSync(path).equals(before), 'it reads as before');
  t.equal(runJob(f, new JobTable().add(JobOp.reserve, fd, 0, PAGE, 3 * MIB).add(JobOp.pwrite, fd, buffer, PAGE, 3 * MIB)), 0);
  const after = Buffer.from(before);
  after.fill(5, 3 * MIB, 3 * MIB + PAGE);
  t.ok(readFileSync(path).equals(after), 'a write behind it in the job arrives');
  t.equal(runJob(f, new JobTable().add(JobOp.reserve, 9999, 0, PAGE, 0)), -Errno.EBADF);
  io.close(fd);
  t.end();
});

t.test('unlink removes a file, and one that is gone already is no error', (t) => {
  const f = fixture(t);
  const { arena, directory } = f;
  const place = arena.alloc(PAGE);
  const unlink = (path: string, end = '\0'): JobTable => {
    const { written } = new TextEncoder().encodeInto(path + end, arena.u8.subarray(place, place + PAGE));
    return new JobTable().add(JobOp.unlink, -1, place, written, 0);
  };
  const path = `${directory}/not-ascii-\u00e4\u20ac`;
  writeFileSync(path, 'x');
  writeFileSync(`${path}2`, 'y');
  t.equal(runJob(f, unlink(path)), 0);
  t.notOk(existsSync(path));
  t.ok(existsSync(`${path}2`), 'nothing else');
  t.equal(runJob(f, unlink(path)), 0, 'missing');
  t.equal(runJob(f, unlink(`${path}2`, '')), -Errno.EINVAL, 'a path without its zero is not looked at');
  t.ok(existsSync(`${path}2`));
  mkdirSync(`${directory}/d`);
  t.ok(runJob(f, unlink(`${directory}/d`)) < 0, 'a directory is an error');
  t.ok(existsSync(`${directory}/d`));
  t.ok(runJob(f, unlink(`${path}2/x`)) < 0, 'so is a path through a file');
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

/** A third of a second of work or more: more than a busy machine keeps the threads of the other queues, or this one, waiting. */
const BULK_JOBS = 12000;

t.test('queues do not wait for one another', (t) => {
  const f = fixture(t);
  const { io, reactor, directory } = f;
  const bulk = io.open(`${directory}/bulk`, O.RDWR | O.CREAT, 0o600);
  const finished: string[] = [];
  const zeros = new JobTable().add(JobOp.zero, bulk, 0, 1024 * 1024, 0);
  for (let i = 0; i < BULK_JOBS; i++) reactor.submit(Queue.destage, zeros, () => finished.push('bulk'));
  for (const queue of [Queue.sync, Queue.read, Queue.checkpoint, Queue.append]) {
    reactor.submit(queue, new JobTable(), () => finished.push('other'));
  }
  f.until(() => finished.length === BULK_JOBS + 4);
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
