/**
 * What recovery makes of every kind of damage: {setup, damage, want}.
 *
 * The same journal each time: batches 0..5 were made durable, 6..9 only
 * appended. They lie in three segments, and batch 6 is the first to carry what
 * was durable.
 */
import t from 'tap';
import { CorruptionError } from '../../src/base/errors.js';
import { JournalRig, regionsOf } from './rig.js';

/** Segment 1: 0, 1, 2, 3; segment 2: 4, 5 | 6, 7; segment 3: 8, 9. */
function build(seed: number): JournalRig {
  const rig = JournalRig.created(seed);
  rig.grow(2);
  for (let i = 0; i < 6; i++) rig.append(i === 3 ? 4 : 3 - (i % 2));
  rig.sync();
  for (let i = 0; i < 4; i++) rig.append(3);
  return rig;
}

function outcome(rig: JournalRig, durableLsn = 0): { corruption: CorruptionError } | { end: number } {
  try {
    return { end: rig.recover(undefined, { durableLsn }).end.lsn };
  } catch (error) {
    if (error instanceof CorruptionError) return { corruption: error };
    throw error;
  }
}

t.test('an undamaged journal is recovered to its end, batch by batch', async (t) => {
  const rig = build(1);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  const seen: number[] = [];
  const result = rig.recover(undefined, { seen });
  t.same(seen, rig.known.map((one) => one.before.lsn));
  t.same(result.end, rig.known[9].after);
  t.equal(result.tornAt, 0);
  t.ok(new Set(rig.known.map((one) => one.path)).size >= 3, 'three segments');
  t.equal(rig.journal.durableLsn, result.end.lsn, 'and all of it is durable now');
});

const regions = Object.keys(regionsOf({ before: { lsn: 0, chainHi: 0, chainLo: 0 }, after: { lsn: 8192, chainHi: 0, chainLo: 0 }, path: '', pos: 0, records: 3, headerBytes: 4096 }));

for (const region of regions) {
  t.test(`damage of the ${region} of a batch`, async (t) => {
    for (let i = 0; i < 10; i++) {
      const rig = build(10 + i);
      rig.crash('kill');
      const { path, pos } = rig.known[i];
      const [from, to] = regionsOf(rig.known[i])[region];
      rig.node.disk.corrupt(path, pos + from, to - from);
      const found = outcome(rig);
      if (i < 6) {
        t.ok('corruption' in found, `batch ${i}, durable: corruption`);
        if ('corruption' in found) {
          t.equal(found.corruption.file, path);
          t.equal(found.corruption.position, pos);
          t.match(found.corruption.message, /LSN \d+.*durable/);
        }
      } else {
        t.same(found, { end: rig.known[i].before.lsn }, `batch ${i}, not durable: the journal ends before it`);
        // The tail is erased: what comes next may not be taken for a part of this history.
        rig.append(1);
        rig.crash('kill');
        t.equal(rig.recover().end.lsn, rig.known.at(-1)!.after.lsn);
      }
      rig.dispose();
    }
  });
}

t.test('damage of bytes that carry nothing is no damage', async (t) => {
  const rig = build(3);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  const { path, pos } = rig.known[2];
  rig.node.disk.corrupt(path, pos + 1000, 3000);
  t.same(outcome(rig), { end: rig.known[9].after.lsn });
});

t.test('a header of a segment that is damaged', async (t) => {
  for (const [name, from, length] of [['magic', 0, 4], ['checksum', 4, 4], ['version', 8, 4], ['group', 16, 16], ['serial', 32, 8], ['base LSN', 40, 8], ['chain', 48, 8], ['epoch', 56, 20], ['all of it', 0, 96]] as const) {
    for (const i of [0, 4, 8]) {
      const rig = build(30);
      rig.crash('kill');
      const { path } = rig.known[i];
      rig.node.disk.corrupt(path, from, length);
      const found = outcome(rig);
      t.ok('corruption' in found, `${name} of the segment with batch ${i}`);
      if ('corruption' in found) t.match(found.corruption.message, path.split('/').at(-1)!, 'the file is named');
      rig.dispose();
    }
  }
});

t.test('a segment of zeros where a durable one was', async (t) => {
  const rig = build(31);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  const io = rig.node.start();
  const fd = io.open(rig.known[4].path, 2, 0);
  io.pwrite(fd, 0, 4096, 0);
  io.fdatasync(fd);
  rig.node.stop();
  t.ok('corruption' in outcome(rig), 'its own batches say what was durable');
});

t.test('a segment that is gone, whether it was durable or not', async (t) => {
  for (const i of [0, 4, 8]) {
    const rig = build(32);
    rig.crash('kill');
    const io = rig.node.start();
    io.unlink(rig.known[i].path);
    rig.node.stop();
    t.ok('corruption' in outcome(rig), `that of batch ${i}`);
    rig.dispose();
  }
});

t.test('a damaged durable mark is no damage, a whole one is believed', async (t) => {
  const rig = JournalRig.created(40);
  t.teardown(() => rig.dispose());
  for (let i = 0; i < 4; i++) rig.append(2);
  rig.sync();
  t.ok(rig.journal.pool.mark(rig.journal.durableLsn) > 0);
  rig.crash('kill');
  rig.node.disk.corrupt(rig.known[3].path, rig.known[3].pos, 4);
  t.ok('corruption' in outcome(rig), 'the mark says that batch 3 was durable');
  rig.node.stop();
  rig.node.disk.corrupt(rig.known[3].path, 512, 32);
  t.same(outcome(rig), { end: rig.known[3].before.lsn }, 'without it nothing says so');
});

t.test('what the checkpoint knows to be durable may not be missing', async (t) => {
  const rig = build(41);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  rig.node.disk.corrupt(rig.known[8].path, rig.known[8].pos, 1);
  t.ok('corruption' in outcome(rig, rig.known[9].before.lsn));
  rig.node.stop();
  t.same(outcome(rig, rig.known[7].after.lsn), { end: rig.known[8].before.lsn });
});

t.test('durable LSNs of other nodes say nothing about this one', async (t) => {
  const rig = build(42);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  rig.node.disk.corrupt(rig.known[2].path, rig.known[2].pos, 1);
  t.equal(rig.recover(undefined, { own: false }).end.lsn, rig.known[2].before.lsn);
});

t.test('a segment of another group is refused', async (t) => {
  const rig = build(43);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  const io = rig.node.start();
  const other = rig.known[4].path;
  // A whole header of a foreign group: written with the node's own encoder.
  const { encodeSegmentHeader } = await import('../../src/journal/format.js');
  encodeSegmentHeader(new Uint8Array(io.memory), 8192, { groupId: 'cd'.repeat(16), serial: 9, baseLsn: 0, chainHi: 0, chainLo: 0, epochId: 'e1'.repeat(16), epochNumber: 1, bytes: 0 });
  io.pwrite(io.open(other, 2, 0), 8192, 512, 0);
  rig.node.stop();
  const found = outcome(rig);
  t.ok('corruption' in found);
  if ('corruption' in found) t.match(found.corruption.message, /belongs to group cdcd/);
});

t.test('a rewind ends the journal at a boundary and refuses another place', async (t) => {
  const rig = build(44);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  t.throws(() => rig.recover(undefined, { until: { ...rig.known[7].before, chainLo: 1 } }), CorruptionError);
  const result = rig.recover(undefined, { until: rig.known[7].before });
  t.same(result.end, rig.known[7].before);
  rig.append(1);
  rig.crash('power');
  t.ok(rig.recover().end.lsn >= rig.known[7].before.lsn);
});

t.test('power loss at any moment leaves a prefix that holds all that was durable, also during recovery', async (t) => {
  for (let seed = 100; seed < 400; seed++) {
    const rig = JournalRig.created(seed, 20);
    const random = rig.world.random.fork(9);
    rig.grow(16);
    let durable = 0;
    const steps = random.between(1, 24);
    for (let i = 0; i < steps; i++) {
      if (random.chance(0.3)) {
        rig.sync();
        durable = rig.journal.durableLsn;
      } else if (random.chance(0.2)) rig.marker(random.between(1, 9000));
      else rig.append(random.between(1, 6));
    }
    rig.crash('power');
    for (let again = random.below(3); again > 0; again--) {
      rig.node.disk.faults.fuse = random.between(1, 30);
      rig.node.fuseKind = 'power';
      rig.node.attempt(() => void rig.recover());
      rig.crash('power');
    }
    const { end } = rig.recover();
    const boundary = end.lsn === 0 || rig.known.some((one) => one.after.lsn === end.lsn && one.after.chainLo === end.chainLo && one.after.chainHi === end.chainHi);
    if (end.lsn < durable || !boundary) t.fail(`seed ${seed}: the journal ends at LSN ${end.lsn}; LSN ${durable} was durable`);
    rig.dispose();
  }
  t.pass('300 seeds');
});

t.test('a segment is not used again before the one behind it is there for sure', async (t) => {
  for (let seed = 500; seed < 560; seed++) {
    const rig = JournalRig.created(seed, 3);
    rig.grow(1);
    const { pool } = rig.journal;
    // Fill the first segment; a checkpoint at its very end.
    while (pool.live.length === 1 && pool.current.endLsn + 5 * 4096 <= pool.capacity) rig.append(4);
    rig.sync();
    const checkpoint = rig.journal.position;
    for (let i = 0; i < 6; i++) {
      if (!rig.journal.hasRoomForMarker) break;
      rig.append(4);
      pool.releaseBelow(checkpoint.lsn);
    }
    rig.crash('power');
    t.ok(rig.recover(checkpoint, { durableLsn: checkpoint.lsn }).end.lsn >= checkpoint.lsn, `seed ${seed}`);
    rig.dispose();
  }
});
