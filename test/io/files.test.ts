import { existsSync, mkdirSync, readFileSync, statSync, statfsSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { Errno, IoError } from '../../src/base/errors.js';
import { mkdirs, readWholeFile, replaceFile } from '../../src/io/file.js';
import { O } from '../../src/io/io.js';
import { RealIo } from '../../src/io/real.js';
import { fixture } from './fixture.js';

const PAGE = 4096;

t.test('pread fills with zeros what lies behind the end of the file', (t) => {
  const { io, arena, directory } = fixture(t);
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const buffer = arena.alloc(3 * PAGE);
  arena.u8.fill(1, buffer, buffer + 100);
  t.equal(io.pwrite(fd, buffer, 100, 5000), 100);
  for (const read of ['pread', 'preadNowait'] as const) {
    arena.u8.fill(0xee, buffer, buffer + 3 * PAGE);
    t.equal(io[read](fd, buffer, 3 * PAGE, 4096), 3 * PAGE, read);
    const got = arena.u8.subarray(buffer, buffer + 3 * PAGE);
    t.ok(got.subarray(0, 904).every((b) => b === 0), 'hole before the data');
    t.ok(got.subarray(904, 1004).every((b) => b === 1), 'data');
    t.ok(got.subarray(1004).every((b) => b === 0), 'zeros behind the end');
    arena.u8.fill(0xee, buffer, buffer + PAGE);
    t.equal(io[read](fd, buffer, PAGE, 2 ** 40), PAGE, 'far behind the end');
    t.ok(arena.u8.subarray(buffer, buffer + PAGE).every((b) => b === 0));
  }
  io.close(fd);
  t.end();
});

t.test('preadNowait answers EAGAIN when a page is not cached, also when the ones before it are', (t) => {
  const { io, arena, directory } = fixture(t);
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const pages = 16;
  const buffer = arena.alloc(pages * PAGE);
  const mine = io.randomBytes(pages * PAGE);
  arena.u8.set(mine, buffer);
  io.pwrite(fd, buffer, pages * PAGE, 0);
  t.equal(io.fdatasync(fd), 0);
  t.equal(io.adviseRandom(fd), 0);
  // The kernel starts to read what it refuses to wait for, so on a fast disk one refusal may be missed: try again.
  const seen = { nothingCached: 0, firstCached: 0 };
  for (let round = 0; round < 50 && (seen.nothingCached === 0 || seen.firstCached === 0); round++) {
    for (const firstCached of [false, true]) {
      t.equal(io.adviseDontNeed(fd, 0, pages * PAGE), 0);
      if (firstCached) {
        t.equal(io.pread(fd, buffer, PAGE, 0), PAGE);
        t.equal(io.preadNowait(fd, buffer, PAGE, 0), PAGE, 'the cached page alone');
      }
      const result = io.preadNowait(fd, buffer, pages * PAGE, 0);
      if (result === -Errno.EAGAIN) seen[firstCached ? 'firstCached' : 'nothingCached']++;
      else t.equal(result, pages * PAGE, 'all or EAGAIN, nothing between');
      t.equal(io.pread(fd, buffer, pages * PAGE, 0), pages * PAGE);
      t.ok(Buffer.from(arena.u8.subarray(buffer, buffer + pages * PAGE)).equals(mine));
      t.equal(io.preadNowait(fd, buffer, pages * PAGE, 0), pages * PAGE);
    }
  }
  // 0x01021994 is tmpfs, which is its own cache.
  if (statfsSync(directory).type === 0x01021994) t.comment('tmpfs: EAGAIN cannot be seen here');
  else t.ok(seen.nothingCached > 0 && seen.firstCached > 0, JSON.stringify(seen));
  io.close(fd);
  t.end();
});

t.test('pwritev writes all vectors in order, also more than IOV_MAX and empty ones', (t) => {
  const { io, arena, directory } = fixture(t);
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const buffer = arena.alloc(64 * 1024);
  const count = 2500;
  let total = 0;
  const want: number[] = [];
  for (let i = 0; i < count; i++) {
    const length = i % 7;
    arena.u8.fill(i & 0xff, buffer + i * 8, buffer + i * 8 + length);
    io.iov[2 * i] = buffer + i * 8;
    io.iov[2 * i + 1] = length;
    for (let k = 0; k < length; k++) want.push(i & 0xff);
    total += length;
  }
  t.equal(io.pwritev(fd, count, 10), total);
  const got = readFileSync(`${directory}/f`);
  t.ok(got.subarray(10).equals(Buffer.from(want)));
  t.equal(io.pwritev(fd, 0, 0), 0);
  io.close(fd);
  t.end();
});

t.test('offsets above 4 GiB and 2^40 reach the file', (t) => {
  const { io, arena, directory } = fixture(t);
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const buffer = arena.alloc(PAGE);
  const pos = 2 ** 40 + 4096;
  arena.u8.fill(5, buffer, buffer + PAGE);
  t.equal(io.pwrite(fd, buffer, PAGE, pos), PAGE);
  const stat = io.stat(fd);
  t.equal(stat.size, pos + PAGE);
  t.ok(stat.allocated < 2 ** 20, 'sparse');
  t.same(io.nextData(fd, 0), { start: pos, end: pos + PAGE });
  t.equal(io.nextData(fd, pos + PAGE), undefined);
  t.equal(io.truncate(fd, 2 ** 41), 0);
  t.equal(io.stat(fd).size, 2 ** 41);
  io.close(fd);
  t.end();
});

t.test('a range outside of the arena throws and touches nothing', (t) => {
  const { io, directory } = fixture(t, {}, 64 * 1024);
  const fd = io.open(`${directory}/f`, O.RDWR | O.CREAT, 0o600);
  const size = io.memory.byteLength;
  for (const [offset, length] of [[size, 1], [0, size + 1], [size - 10, 11], [-1, 1], [0.5, 1], [NaN, 1], [2 ** 32, 0], [0, -1]]) {
    t.throws(() => io.pwrite(fd, offset, length, 0), RangeError, `${offset},${length}`);
    t.throws(() => io.pread(fd, offset, length, 0), RangeError);
    t.throws(() => io.recv(fd, offset, length), RangeError);
    t.throws(() => io.crc32c(offset, length, 0), RangeError);
  }
  t.throws(() => io.pwrite(fd, 0, 1, -1), RangeError, 'negative position');
  t.throws(() => io.pwrite(fd, 0, 1, 2 ** 53), RangeError, 'position that is no safe integer');
  io.iov.set([0, 10, size - 4, 5]);
  t.throws(() => io.pwritev(fd, 2, 0), RangeError, 'second vector');
  t.throws(() => io.pwritev(fd, io.iov.length, 0), RangeError, 'more vectors than the table');
  t.equal(io.stat(fd).size, 0);
  t.equal(io.pwrite(fd, size - 1, 1, 0), 1, 'the last byte is inside');
  io.close(fd);
  t.end();
});

t.test('system calls give negated errnos', (t) => {
  const { io, directory } = fixture(t);
  t.equal(io.open(`${directory}/none`, O.RDONLY, 0), -Errno.ENOENT);
  t.equal(io.pread(9999, 4096, 1, 0), -Errno.EBADF);
  t.equal(io.pwrite(9999, 4096, 1, 0), -Errno.EBADF);
  t.equal(io.fdatasync(9999), -Errno.EBADF);
  t.equal(io.close(9999), -Errno.EBADF);
  t.equal(io.unlink(`${directory}/none`), -Errno.ENOENT);
  t.equal(io.mkdir(directory, 0o700), -Errno.EEXIST);
  t.equal(io.syncDirectory(`${directory}/none`), -Errno.ENOENT);
  t.throws(() => io.list(`${directory}/none`), { name: 'IoError', code: 'io/ENOENT' });
  t.throws(() => io.stat(9999), IoError);
  t.throws(() => io.space(`${directory}/none`), IoError);
  t.throws(() => io.open('a\0b', O.RDONLY, 0), RangeError, 'a NUL would name another file');
  t.end();
});

t.test('directories are listed, entries renamed and removed', (t) => {
  const { io, directory } = fixture(t);
  t.same(io.list(directory), []);
  writeFileSync(`${directory}/ä`, 'x');
  mkdirSync(`${directory}/d`);
  t.same(io.list(directory).sort(), ['d', 'ä']);
  t.equal(io.rename(`${directory}/ä`, `${directory}/b`), 0);
  t.equal(io.unlink(`${directory}/b`), 0);
  t.same(io.list(directory), ['d']);
  const fd = io.open(`${directory}/d`, O.RDONLY | O.DIRECTORY, 0);
  t.equal(io.stat(fd).isDirectory, true);
  io.close(fd);
  const space = io.space(directory);
  t.ok(space.totalBytes >= space.freeBytes && space.freeBytes > 0);
  t.equal(io.syncDirectory(directory), 0);
  t.end();
});

t.test('replaceFile leaves the new content and no temporary file', (t) => {
  const { io, directory } = fixture(t);
  for (const length of [0, 1, 4096, 4097, 100_000]) {
    const bytes = io.randomBytes(length);
    replaceFile(io, directory, 'whole', bytes);
    t.ok(Buffer.from(readWholeFile(io, `${directory}/whole`)).equals(bytes), `${length} bytes`);
  }
  t.same(io.list(directory), ['whole']);
  t.equal(statSync(`${directory}/whole`).mode & 0o777, 0o600);
  t.throws(() => readWholeFile(io, `${directory}/whole`, 99_999), { code: 'io/EFBIG' });
  t.throws(() => readWholeFile(io, `${directory}/none`), { code: 'io/ENOENT' });
  t.end();
});

t.test('replaceFile that fails keeps the old file and removes its own', (t) => {
  const { io, directory } = fixture(t);
  replaceFile(io, directory, 'whole', new Uint8Array([1, 2, 3]));
  const failing = Object.create(io) as RealIo;
  failing.fdatasync = () => -Errno.EIO;
  t.throws(() => replaceFile(failing, directory, 'whole', new Uint8Array([4])), { code: 'io/EIO' });
  t.same(readWholeFile(io, `${directory}/whole`), new Uint8Array([1, 2, 3]));
  t.same(io.list(directory), ['whole']);
  t.throws(() => replaceFile(io, `${directory}/none`, 'x', new Uint8Array(1)), { code: 'io/ENOENT' });
  t.end();
});

t.test('mkdirs creates what is missing and refuses a file in the way', (t) => {
  const { io, directory } = fixture(t);
  mkdirs(io, `${directory}/a/b/c`);
  mkdirs(io, `${directory}/a/b/c/`);
  t.ok(existsSync(`${directory}/a/b/c`));
  writeFileSync(`${directory}/file`, '');
  t.throws(() => mkdirs(io, `${directory}/file`), { code: 'io/ENOTDIR' });
  t.throws(() => mkdirs(io, `${directory}/file/x`), { code: 'io/ENOTDIR' });
  t.end();
});

t.test('after dispose every use of the arena throws, and dispose may be repeated', (t) => {
  const io = RealIo.create({ arenaBytes: 8192 });
  io.dispose();
  io.dispose();
  t.throws(() => io.pread(0, 0, 1, 0), RangeError);
  t.throws(() => io.pwritev(0, 1, 0), RangeError);
  t.throws(() => io.submit(0, new Float64Array(5), 1, 0), RangeError);
  t.equal(io.wait(0, new Int32Array(2)), -Errno.EBADF);
  t.equal(io.reap(new Float64Array(3)), 0);
  t.end();
});
