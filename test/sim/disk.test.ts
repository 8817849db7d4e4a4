/** What the simulated disk keeps and loses: each statement of the modules' headers. */
import t from 'tap';
import { Errno } from '../../src/base/errors.js';
import { O } from '../../src/io/io.js';
import { SimCrash } from './faults.js';
import type { SimIo } from './io.js';
import { World, type SimNode } from './world.js';

const memory = new ArrayBuffer(1024 * 1024);
const RW = O.RDWR | O.CREAT;

function start(seed: number, capacity?: number): { world: World; node: SimNode; io: SimIo; bytes: Uint8Array } {
  const world = new World({ seed });
  const node = world.node('n', { memory, ...(capacity === undefined ? {} : { capacity }) });
  node.disk.makeDirectories('/d');
  return { world, node, io: node.start(), bytes: new Uint8Array(memory) };
}

/** A file of `length` bytes of `value`, durable with its name. */
function durableFile(io: SimIo, path: string, length: number, value: number): number {
  const fd = io.open(path, RW, 0o600);
  new Uint8Array(io.memory).fill(value, 0, length);
  if (io.pwrite(fd, 0, length, 0) !== length || io.fdatasync(fd) !== 0 || io.syncDirectory('/d') !== 0) throw new Error('setup');
  return fd;
}

function write(io: SimIo, fd: number, value: number, length: number, pos: number): number {
  new Uint8Array(io.memory).fill(value, 8192, 8192 + length);
  return io.pwrite(fd, 8192, length, pos);
}

/** Counts outcomes of `run` over seeds. */
function outcomes(count: number, run: (seed: number) => string): Map<string, number> {
  const seen = new Map<string, number>();
  for (let seed = 1; seed <= count; seed++) {
    const outcome = run(seed);
    seen.set(outcome, (seen.get(outcome) ?? 0) + 1);
  }
  return seen;
}

t.test('a write that was fdatasynced is never lost, one that was not sometimes is', async (t) => {
  const seen = outcomes(100, (seed) => {
    const { world, node, io } = start(seed);
    const fd = durableFile(io, '/d/f', 8192, 1);
    write(io, fd, 2, 4096, 4096);
    node.crash('power');
    const bytes = node.disk.peek('/d/f', 0, 8192);
    t.ok(bytes.subarray(0, 4096).every((b) => b === 1), `seed ${seed}: the durable page is there`);
    const kept = bytes.subarray(4096);
    world.dispose();
    return kept.every((b) => b === 1) ? 'old' : kept.every((b) => b === 2) ? 'new' : 'torn';
  });
  t.same([...seen.keys()].sort(), ['new', 'old', 'torn']);
});

t.test('power loss tears at 512 bytes, and each sector is one of the versions written', async (t) => {
  const versions = new Set<number>();
  for (let seed = 1; seed <= 200; seed++) {
    const { world, node, io } = start(seed);
    const fd = durableFile(io, '/d/f', 4096, 1);
    write(io, fd, 2, 4096, 0);
    write(io, fd, 3, 1024, 0);
    write(io, fd, 4, 4096, 0);
    node.crash('power');
    const bytes = node.disk.peek('/d/f', 0, 4096);
    for (let s = 0; s < 8; s++) {
      const sector = bytes.subarray(s * 512, s * 512 + 512);
      const value = sector[0];
      if (!sector.every((b) => b === value)) t.fail(`seed ${seed}: sector ${s} is torn`);
      if (value < 1 || value > 4 || (s >= 2 && value === 3)) t.fail(`seed ${seed}: sector ${s} holds ${value}`);
      versions.add(value);
    }
    if (Buffer.compare(node.disk.peekDurable('/d/f', 0, 4096), bytes) !== 0) t.fail(`seed ${seed}: what survived is not durable`);
    world.dispose();
  }
  t.same([...versions].sort(), [1, 2, 3, 4]);
});

t.test('one vectored write makes one version of a page, whatever its chunks', async (t) => {
  for (let seed = 1; seed <= 60; seed++) {
    const { world, node, io, bytes } = start(seed);
    const fd = durableFile(io, '/d/f', 512, 1);
    bytes.fill(2, 0, 512);
    io.iov.set([0, 100, 100, 412]);
    t.equal(io.pwritev(fd, 2, 0), 512);
    node.crash('power');
    const after = node.disk.peek('/d/f', 0, 512);
    if (!after.every((b) => b === after[0])) t.fail(`seed ${seed}: a sector with half of a write`);
    world.dispose();
  }
});

t.test('SIGKILL loses nothing that was written', async (t) => {
  const { world, node, io } = start(5);
  const fd = io.open('/d/f', RW, 0o600);
  t.equal(write(io, fd, 7, 10_000, 300), 10_000);
  t.throws(() => node.restart('kill') && io.fdatasync(fd), SimCrash, 'the old process is dead');
  const again = node.io;
  const fd2 = again.open('/d/f', O.RDONLY, 0);
  t.equal(again.stat(fd2).size, 10_300);
  t.equal(again.pread(fd2, 0, 10_304, 0), 10_304);
  const bytes = new Uint8Array(memory);
  t.ok(bytes.subarray(0, 300).every((b) => b === 0) && bytes.subarray(300, 10_300).every((b) => b === 7));
  t.same([...bytes.subarray(10_300, 10_304)], [0, 0, 0, 0], 'zeros behind the end');
  world.dispose();
});

t.test('a failed fdatasync returns EIO once; its pages read as new until dropped, and power loss loses them', async (t) => {
  for (const drop of [false, true]) {
    const { world, node, io, bytes } = start(9);
    const fd = durableFile(io, '/d/f', 4096, 1);
    node.disk.faults.rates.lossPerPage = 1;
    write(io, fd, 2, 1024, 0);
    node.disk.faults.hook = (site) => (site.op === 'fdatasync' && site.path === '/d/f' && site.nth === 2 ? Errno.EIO : 0);
    t.equal(io.fdatasync(fd), -Errno.EIO);
    t.equal(io.fdatasync(fd), 0, 'a later fdatasync succeeds');
    t.equal(io.pread(fd, 0, 4096, 0), 4096);
    t.equal(bytes[0], 2, 'the cache shows what was written');
    write(io, fd, 3, 512, 1024);
    t.equal(io.fdatasync(fd), 0, 'a later write of another sector');
    if (drop) {
      t.equal(io.adviseDontNeed(fd, 0, 0), 0);
      io.pread(fd, 0, 4096, 0);
      t.same([bytes[0], bytes[1024], bytes[2048]], [1, 3, 1], 'dropped: the disk shows');
    }
    node.crash('power');
    const after = node.disk.peek('/d/f', 0, 4096);
    t.same([after[0], after[1023], after[1024], after[2048]], [1, 1, 3, 1], 'lost for good, and only that');
    world.dispose();
  }
});

t.test('what is written again after a failed fdatasync is durable after the next', async (t) => {
  const { world, node, io } = start(3);
  const fd = durableFile(io, '/d/f', 8192, 1);
  write(io, fd, 2, 8192, 0);
  node.disk.faults.rates.syncError = 1;
  t.equal(io.fdatasync(fd), -Errno.EIO);
  node.disk.faults.rates.syncError = 0;
  write(io, fd, 2, 8192, 0);
  t.equal(io.fdatasync(fd), 0);
  node.crash('power');
  t.ok(node.disk.peek('/d/f', 0, 8192).every((b) => b === 2));
  world.dispose();
});

t.test('a failed fdatasync may have written some of its pages', async (t) => {
  const seen = outcomes(40, (seed) => {
    const { world, node, io } = start(seed);
    const fd = durableFile(io, '/d/f', 8192, 1);
    write(io, fd, 2, 8192, 0);
    node.disk.faults.rates.syncError = 1;
    io.fdatasync(fd);
    node.crash('power');
    const after = node.disk.peek('/d/f', 0, 8192);
    world.dispose();
    return `${after[0]}${after[4096]}`;
  });
  t.same([...seen.keys()].sort(), ['11', '12', '21', '22']);
});

t.test('a name that was not synced may vanish with its data; after syncDirectory it never does', async (t) => {
  const seen = outcomes(60, (seed) => {
    const { world, node, io } = start(seed);
    const fd = io.open('/d/f', RW, 0o600);
    write(io, fd, 1, 4096, 0);
    io.fdatasync(fd);
    durableFile(io, '/d/g', 512, 2);
    const kept = io.open('/d/h', RW, 0o600);
    write(io, kept, 3, 512, 0);
    io.fdatasync(kept);
    node.crash('power');
    t.ok(node.disk.peek('/d/g', 0, 512).every((b) => b === 2), `seed ${seed}`);
    const paths = node.disk.paths().join(' ');
    world.dispose();
    return paths;
  });
  t.same([...seen.keys()].sort(), ['/d/f /d/g', '/d/f /d/g /d/h'], 'f was synced with g, h by chance');
});

t.test('a rename happens at both names or at neither', async (t) => {
  const seen = outcomes(80, (seed) => {
    const { world, node, io } = start(seed);
    durableFile(io, '/d/slot', 512, 1);
    durableFile(io, '/d/slot.new', 512, 2);
    t.equal(io.rename('/d/slot.new', '/d/slot'), 0);
    node.crash('power');
    const paths = node.disk.paths();
    const value = node.disk.peek('/d/slot', 0, 1)[0];
    t.ok(paths.length === (value === 2 ? 1 : 2), `seed ${seed}: slot is ${value}, files ${paths.join(' ')}`);
    world.dispose();
    return String(value);
  });
  t.same([...seen.keys()].sort(), ['1', '2']);
});

t.test('a file renamed twice has one name after power loss; syncDirectory takes what its operations depend on', async (t) => {
  const seen = outcomes(100, (seed) => {
    const { world, node, io } = start(seed);
    durableFile(io, '/d/a', 512, 1);
    t.equal(io.rename('/d/a', '/d/b'), 0);
    t.equal(io.rename('/d/b', '/d/c'), 0);
    node.crash('power');
    const paths = node.disk.paths().join(' ');
    world.dispose();
    return paths;
  });
  t.same([...seen.keys()].sort(), ['/d/a', '/d/b', '/d/c']);
  for (let seed = 1; seed <= 20; seed++) {
    const { world, node, io } = start(seed);
    node.disk.makeDirectories('/e');
    durableFile(io, '/d/a', 512, 1);
    io.rename('/d/a', '/d/b');
    io.rename('/d/b', '/e/c');
    t.equal(io.syncDirectory('/e'), 0);
    node.crash('power');
    t.same(node.disk.paths(), ['/e/c'], `seed ${seed}`);
    world.dispose();
  }
});

t.test('a restarted process finds zeroed memory, its descriptors closed and its errors in order', async (t) => {
  const { world, node, io, bytes } = start(2);
  durableFile(io, '/d/f', 512, 1);
  t.equal(bytes[0], 1);
  const again = node.restart('kill');
  t.equal(bytes[0], 0);
  t.equal(again.pread(4, 0, 512, 0), -Errno.EBADF);
  t.equal(again.open('/d/none', O.RDONLY, 0), -Errno.ENOENT);
  t.equal(again.open('/none/f', RW, 0), -Errno.ENOENT);
  t.equal(again.open('/d/f', RW | O.EXCL, 0), -Errno.EEXIST);
  t.equal(again.mkdir('/d', 0), -Errno.EEXIST);
  t.equal(again.unlink('/d/none'), -Errno.ENOENT);
  t.same(again.list('/d'), ['f']);
  t.throws(() => again.list('/none'), { code: 'io/ENOENT' });
  const fd = again.open('/d/f', O.RDONLY, 0);
  t.equal(again.pwrite(fd, 0, 512, 0), -Errno.EBADF, 'opened for reading');
  t.equal(again.close(fd), 0);
  t.equal(again.close(fd), -Errno.EBADF);
  world.dispose();
});

t.test('an unlink that was not synced may come back; operations on one name keep their order', async (t) => {
  const seen = outcomes(100, (seed) => {
    const { world, node, io } = start(seed);
    durableFile(io, '/d/f', 512, 1);
    io.unlink('/d/f');
    const fd = io.open('/d/f', RW, 0o600);
    write(io, fd, 2, 512, 0);
    io.fdatasync(fd);
    node.crash('power');
    const paths = node.disk.paths();
    const outcome = paths.length === 0 ? 'gone' : String(node.disk.peek('/d/f', 0, 1)[0]);
    world.dispose();
    return outcome;
  });
  t.same([...seen.keys()].sort(), ['1', '2', 'gone']);
});

t.test('a directory whose name was not synced takes all below it along', async (t) => {
  const seen = outcomes(40, (seed) => {
    const { world, node, io } = start(seed);
    t.equal(io.mkdir('/d/sub', 0o700), 0);
    const fd = io.open('/d/sub/f', RW, 0o600);
    write(io, fd, 1, 512, 0);
    io.fdatasync(fd);
    io.syncDirectory('/d/sub');
    node.crash('power');
    const paths = node.disk.paths().join(' ');
    world.dispose();
    return paths;
  });
  t.same([...seen.keys()].sort(), ['', '/d/sub/f']);
});

t.test('the size grows durably with fdatasync only; a truncation is atomic', async (t) => {
  const grown = outcomes(60, (seed) => {
    const { world, node, io } = start(seed);
    const fd = durableFile(io, '/d/f', 512, 1);
    write(io, fd, 2, 512, 512);
    node.crash('power');
    const { size } = node.disk.file('/d/f');
    world.dispose();
    return String(size);
  });
  t.same([...grown.keys()].sort(), ['1024', '512']);
  const cut = outcomes(60, (seed) => {
    const { world, node, io } = start(seed);
    const fd = durableFile(io, '/d/f', 10_000, 1);
    t.equal(io.truncate(fd, 5000), 0);
    t.same([...node.disk.peek('/d/f', 4999, 2)], [1, 0]);
    node.crash('power');
    const { size } = node.disk.file('/d/f');
    t.ok(node.disk.peek('/d/f', 0, size).every((b) => b === 1), `seed ${seed}: no zeros within ${size} bytes`);
    world.dispose();
    return String(size);
  });
  t.same([...cut.keys()].sort(), ['10000', '5000']);
});

t.test('capacity and injected ENOSPC fail a write, which may have been done in part', async (t) => {
  const { world, node, io } = start(1, 64 * 1024);
  const fd = io.open('/d/f', RW, 0o600);
  t.equal(io.space('/d').freeBytes, 65_536);
  t.equal(write(io, fd, 1, 60 * 1024, 0), 60 * 1024);
  t.equal(io.space('/d').freeBytes, 4096);
  t.equal(write(io, fd, 2, 8192, 60 * 1024), -Errno.ENOSPC);
  t.equal(write(io, fd, 3, 8192, 0), 8192, 'overwriting needs no space');
  io.truncate(fd, 0);
  t.equal(io.space('/d').freeBytes, 65_536);
  node.disk.faults.rates.noSpace = 1;
  t.equal(write(io, fd, 1, 512, 0), -Errno.ENOSPC);
  node.disk.faults.rates.noSpace = 0;
  t.equal(write(io, fd, 1, 512, 0), 512);
  t.equal(io.close(fd), 0);
  t.equal(io.unlink('/d/f'), 0);
  t.equal(node.disk.usage.pages, 1, 'an unlinked file keeps its pages until the names are durable');
  io.syncDirectory('/d');
  t.equal(node.disk.usage.pages, 0);
  world.dispose();
});

t.test('a sparse file of 1 TiB costs what is written in it, and nextData walks it', async (t) => {
  const { world, node, io } = start(1);
  const fd = io.open('/d/f', RW, 0o600);
  const tib = 2 ** 40;
  io.truncate(fd, tib);
  write(io, fd, 1, 8192, tib / 2);
  write(io, fd, 1, 100, tib - 4096);
  t.equal(io.stat(fd).size, tib);
  t.equal(io.stat(fd).allocated, 3 * 4096);
  t.same(io.nextData(fd, 0), { start: tib / 2, end: tib / 2 + 8192 });
  t.same(io.nextData(fd, tib / 2 + 5000), { start: tib / 2 + 5000, end: tib / 2 + 8192 });
  t.same(io.nextData(fd, tib / 2 + 8192), { start: tib - 4096, end: tib });
  node.disk.file('/d/f').punch(0, tib - 4096, node.disk.nextCall());
  t.equal(io.stat(fd).allocated, 4096);
  t.same(io.nextData(fd, 0), { start: tib - 4096, end: tib });
  t.equal(io.nextData(fd, tib), undefined);
  world.dispose();
});

t.test('corrupt changes every byte of its range and no other, for good', async (t) => {
  const { world, node, io } = start(4);
  durableFile(io, '/d/f', 8192, 5);
  node.disk.corrupt('/d/f', 4000, 200);
  node.crash('power');
  const bytes = node.disk.peek('/d/f', 0, 8192);
  t.ok(bytes.subarray(4000, 4200).every((b) => b !== 5));
  t.ok(bytes.subarray(0, 4000).every((b) => b === 5) && bytes.subarray(4200).every((b) => b === 5));
  world.dispose();
});

t.test('a cold preadNowait says EAGAIN and touches nothing; errors fail reads and writes', async (t) => {
  const { world, node, io, bytes } = start(4);
  const fd = durableFile(io, '/d/f', 4096, 5);
  const { rates } = node.disk.faults;
  bytes[0] = 9;
  rates.coldRead = 1;
  t.equal(io.preadNowait(fd, 0, 4096, 0), -Errno.EAGAIN);
  t.equal(bytes[0], 9);
  rates.coldRead = 0;
  t.equal(io.preadNowait(fd, 0, 4096, 0), 4096);
  rates.readError = 1;
  t.equal(io.pread(fd, 0, 4096, 0), -Errno.EIO);
  rates.writeError = 1;
  t.equal(io.pwrite(fd, 0, 4096, 0), -Errno.EIO);
  t.equal(io.pwrite(99, 0, 4096, 0), -Errno.EBADF);
  world.dispose();
});

t.test('the fuse ends the process within the nth mutation, also when the error is swallowed', async (t) => {
  for (let fuse = 1; fuse <= 6; fuse++) {
    const { world, node, io } = start(fuse);
    node.fuseKind = 'kill';
    node.disk.faults.fuse = fuse;
    let reached = 0;
    const whole = node.attempt(() => {
      for (const action of [
        () => io.open('/d/a', RW, 0o600), // 1
        () => write(io, 4, 1, 40_000, 0), // 2
        () => io.fdatasync(4), // 3
        () => io.rename('/d/a', '/d/b'), // 4
        () => io.syncDirectory('/d'), // 5
      ]) {
        try {
          action();
          reached++;
        } catch {
          // a process cannot survive its end
        }
      }
    });
    t.equal(whole, fuse === 6);
    t.equal(reached, Math.min(fuse - 1, 5));
    t.equal(node.alive, fuse === 6);
    t.same(node.disk.paths(), fuse === 1 ? [] : fuse <= 4 ? ['/d/a'] : ['/d/b']);
    if (fuse === 2) t.equal(node.disk.file('/d/a').size % 4096, 0, 'a write stopped within ends at a page');
    world.dispose();
  }
});
