/**
 * A journal whose configuration has changed between two starts: other segment
 * sizes, another limit. Nothing that is needed may be lost, and what is free
 * takes the new shape.
 */
import t from 'tap';
import type { Test } from 'tap';
import { KIB } from '../../src/base/units.js';
import { Random } from '../sim/random.js';
import { DIRECTORY, JournalRig, SEGMENT } from './rig.js';

/** Sizes of the journal's files by name. */
function sizes(rig: JournalRig): Map<string, number> {
  const { io } = rig.reactor;
  const found = new Map<string, number>();
  for (const name of io.list(DIRECTORY)) {
    const fd = io.open(`${DIRECTORY}/${name}`, 0, 0);
    found.set(name, io.stat(fd).size);
    io.close(fd);
  }
  return found;
}

/** Lets creations in the background end; as many as `spare` asks for. */
function settle(rig: JournalRig, spare = 3): void {
  const { pool } = rig.journal;
  for (;;) {
    pool.ensureSpare(spare);
    if (!pool.busy) return;
    rig.world.run(() => !pool.busy);
  }
}

function appendWhereRoom(rig: JournalRig): void {
  if (!rig.journal.hasRoomForData) settle(rig);
  rig.append(2);
}

/** What is in the journal now, as it was appended. */
function compare(t: Test, rig: JournalRig, from: number, seen: readonly number[], what: string): void {
  t.same(seen, rig.known.map((one) => one.before.lsn).filter((lsn) => lsn >= from), what);
}

for (const [name, segmentBytes, maxSegments] of [['smaller', 32 * KIB, 12], ['larger', 256 * KIB, 4], ['larger than all was', 1024 * KIB, 2]] as const) {
  for (const crash of ['kill', 'power'] as const) {
    t.test(`a flushed journal is whole when segments are ${name} now, after ${crash}`, async (t) => {
      const rig = JournalRig.created(50);
      t.teardown(() => rig.dispose());
      rig.grow(2);
      for (let i = 0; i < 10; i++) rig.append(2);
      rig.sync();
      rig.crash(crash);
      rig.segmentBytes = segmentBytes;
      rig.maxSegments = maxSegments;
      for (let round = 0; round < 2; round++) {
        const seen: number[] = [];
        const result = rig.recover(undefined, { seen });
        compare(t, rig, 0, seen, `start ${round}: every batch`);
        t.same(result.end, rig.known.at(-1)!.after);
        t.equal(result.tornAt, 0, 'nothing was erased');
        for (let i = 0; i < 4; i++) appendWhereRoom(rig);
        rig.sync();
        rig.crash(crash);
      }
    });
  }
}

t.test('a segment of another size is written to its own end, and made anew when it is free', async (t) => {
  for (const segmentBytes of [32 * KIB, 256 * KIB]) {
    const rig = JournalRig.created(51);
    t.teardown(() => rig.dispose());
    rig.grow(1);
    rig.append(2);
    rig.sync();
    rig.crash('power');
    rig.segmentBytes = segmentBytes;
    rig.maxSegments = 6;
    rig.recover();
    const { pool } = rig.journal;
    const old = pool.current;
    t.equal(old.bytes, SEGMENT);
    t.equal(pool.freeCount, 0, 'the free ones of the other size are gone');
    settle(rig);
    while (pool.current === old) {
      t.ok(old.endLsn - old.baseLsn <= SEGMENT - 4 * KIB, 'not beyond its end');
      rig.append(2);
    }
    t.ok(old.endLsn - old.baseLsn > SEGMENT - 24 * KIB, 'it was used to its end');
    t.equal(pool.current.bytes, segmentBytes);
    rig.sync();
    const name = old.path.split('/').at(-1)!;
    t.equal(sizes(rig).get(name), SEGMENT, 'it has not grown');
    t.equal(pool.releaseBelow(old.endLsn), 1);
    t.notOk(sizes(rig).has(name), 'its file is gone');
    settle(rig);
    for (const [file, size] of sizes(rig)) t.equal(size, segmentBytes, file);
    rig.crash('power');
    const seen: number[] = [];
    rig.recover(rig.known.find((one) => one.before.lsn === old.endLsn)!.before, { seen });
    compare(t, rig, old.endLsn, seen, 'what follows is whole');
  }
});

t.test('segments of several sizes that a link still needs stay live and readable', async (t) => {
  const rig = JournalRig.created(52);
  t.teardown(() => rig.dispose());
  for (const segmentBytes of [SEGMENT, 32 * KIB, 128 * KIB, 64 * KIB]) {
    rig.sync();
    rig.crash('power');
    rig.segmentBytes = segmentBytes;
    rig.maxSegments = 24;
    rig.recover();
    for (let i = 0; i < 12; i++) appendWhereRoom(rig);
  }
  rig.sync();
  rig.crash('power');
  // The checkpoint is far ahead of what the link needs.
  rig.recover(rig.known.at(-2)!.before);
  const { pool } = rig.journal;
  t.equal(pool.firstLsn, 0, 'all of it was kept');
  t.ok(new Set(pool.live.map((one) => one.bytes)).size >= 3, 'in several sizes');
  const window = rig.reactor.arena.alloc(4096);
  for (const known of rig.known) {
    const segment = pool.find(known.before.lsn)!;
    t.equal(segment.path, known.path);
    t.equal(pool.filePosition(segment, known.before.lsn), known.pos);
    rig.reactor.io.pread(segment.fd, window, 4096, known.pos);
    t.equal(Number(rig.reactor.arena.view.getBigUint64(window + 8, true)), known.before.lsn);
  }
});

t.test('a smaller limit takes effect as files become free, and never stops the journal', async (t) => {
  const rig = JournalRig.created(53, 12);
  t.teardown(() => rig.dispose());
  rig.grow(10);
  for (let i = 0; i < 24; i++) rig.append(2);
  rig.sync();
  rig.crash('power');
  rig.maxSegments = 4;
  rig.recover();
  const { pool } = rig.journal;
  t.ok(pool.live.length > 4, 'more are live than there should be');
  t.equal(pool.bytesToCome, 0);
  t.ok(rig.journal.hasRoomForData, 'there is room for data');
  const files = sizes(rig).size;
  settle(rig);
  t.equal(sizes(rig).size, files, 'none is added');
  pool.releaseBelow(pool.current.baseLsn);
  t.equal(sizes(rig).size, 4, 'the limit holds');
  for (let i = 0; i < 40; i++) {
    appendWhereRoom(rig);
    rig.sync();
    pool.releaseBelow(pool.current.baseLsn);
    t.ok(sizes(rig).size <= 4);
  }
});

t.test('one old segment larger than the whole journal is now does not stop it', async (t) => {
  const rig = new JournalRig(54, 4, 1024 * KIB);
  t.teardown(() => rig.dispose());
  rig.create();
  rig.append(2);
  rig.sync();
  rig.crash('power');
  rig.segmentBytes = SEGMENT;
  rig.recover();
  const { pool } = rig.journal;
  const old = pool.current;
  while (pool.current === old) appendWhereRoom(rig);
  rig.sync();
  t.equal(pool.releaseBelow(pool.current.baseLsn), 1);
  settle(rig);
  t.same([...sizes(rig).values()], [SEGMENT, SEGMENT, SEGMENT, SEGMENT]);
});

t.test('whatever sizes follow each other, power loss leaves a prefix that holds all that was durable', async (t) => {
  const seed = Number(process.env.TEST_SEED ?? 7000);
  for (let s = seed; s < seed + 40; s++) {
    const rig = JournalRig.created(s, 8);
    const random = new Random(s);
    let low = rig.journal.position;
    for (let round = 0; round < 8; round++) {
      const steps = random.between(0, 14);
      for (let i = 0; i < steps; i++) {
        if (!rig.journal.hasRoomForData) settle(rig);
        if (!rig.journal.hasRoomForData) break;
        rig.append(random.between(1, 3));
        if (random.chance(0.3)) rig.sync();
      }
      const { durableLsn, pool } = rig.journal;
      if (random.chance(0.4)) {
        rig.sync();
        low = random.pick(rig.known.filter((one) => one.before.lsn >= low.lsn && one.before.lsn >= pool.firstLsn).map((one) => one.before).concat([rig.journal.position]));
        pool.releaseBelow(low.lsn);
      }
      const durable = Math.max(durableLsn, rig.journal.durableLsn);
      rig.crash(random.chance(0.7) ? 'power' : 'kill');
      rig.segmentBytes = random.pick([32, 64, 64, 128, 256]) * KIB;
      rig.maxSegments = random.between(4, 10);
      const seen: number[] = [];
      let end: number;
      try {
        end = rig.recover(low, { durableLsn: low.lsn, seen }).end.lsn;
      } catch (error) {
        throw new Error(`seed ${s}, round ${round}: ${String(error)}`, { cause: error });
      }
      if (end < durable) t.fail(`seed ${s}, round ${round}: the journal ends at ${end}, ${durable} was durable`);
      rig.known.splice(0, rig.known.length, ...rig.known.filter((one) => one.after.lsn <= end));
      t.same(seen, rig.known.map((one) => one.before.lsn).filter((lsn) => lsn >= low.lsn), `seed ${s}, round ${round}`);
      settle(rig);
    }
    rig.dispose();
  }
});
