/** Export cursors: the journal is kept for them, over restarts and power losses, and given back when they move or go. */
import t from 'tap';
import type { EpochPosition } from '../../src/base/position.js';
import { NO_EPOCH_ID } from '../../src/base/position.js';
import { KIB, MIB } from '../../src/base/units.js';
import { decodeCursorSlot, encodeCursorSlot, MAX_CURSORS } from '../../src/group/content/cursorfile.js';
import type { Cursors } from '../../src/group/cursors.js';
import { O } from '../../src/io/io.js';
import { Rig } from '../sim/rig.js';

const TINY = { segmentBytes: 256 * KIB, segments: 6, maxBatchPayload: 64 * KIB, destageUs: 1_000, checkpointSeconds: 0.01 };

function cursorsOf(rig: Rig): Cursors {
  return rig.host.group.retention.cursors;
}

/** The position of now; the chain is the test's own business here. */
function here(rig: Rig): EpochPosition {
  return { epochId: NO_EPOCH_ID, ...rig.host.group.position };
}

/** Waits for a change to be durable; throws its error. */
function saved(rig: Rig, change: (done: (error: Error | undefined) => void) => void): void {
  let outcome: Error | undefined | 'under way' = 'under way';
  change((error) => (outcome = error));
  rig.host.node.poke();
  rig.run(() => outcome !== 'under way');
  if (outcome !== undefined) throw outcome as unknown as Error;
}

function create(rig: Rig, name: string): void {
  saved(rig, (done) => cursorsOf(rig).create(rig.host.group.groupId!, name, here(rig), done));
}

function fill(rig: Rig, times: number): void {
  for (let i = 0; i < times; i++) if (rig.ask('v', 'write', (i % 8) * 64 * KIB, 64 * KIB) !== 0) throw new Error('a write failed');
}

t.test('the journal is kept from a cursor on, and given back when it moves and when it goes', async (t) => {
  const rig = Rig.started(1, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  create(rig, 'tape');
  const start = here(rig).lsn;
  const { pool } = rig.host.group.journal;
  fill(rig, 8);
  rig.flushTo('checkpoint');
  t.ok(pool.firstLsn <= start, 'kept');
  t.equal(rig.host.group.retainedLsn(), start);
  const moved = here(rig);
  saved(rig, (done) => cursorsOf(rig).move('tape', moved, done));
  t.equal(rig.host.group.retainedLsn(), moved.lsn);
  rig.run(() => pool.firstLsn > start);
  saved(rig, (done) => cursorsOf(rig).remove('tape', done));
  t.equal(rig.host.group.retainedLsn(), Infinity);
  fill(rig, 8);
  rig.flushTo('checkpoint');
  rig.run(() => pool.firstLsn > moved.lsn);
});

for (const how of ['power', 'kill'] as const) {
  t.test(`a cursor and what it keeps outlive the end of a node by ${how}`, async (t) => {
    const rig = Rig.started(2, TINY);
    t.teardown(() => rig.dispose());
    rig.create('v', MIB);
    create(rig, 'tape');
    const start = here(rig).lsn;
    fill(rig, 8);
    rig.flushTo('checkpoint');
    rig.host.crash(how);
    rig.start();
    t.equal(cursorsOf(rig).get('tape')?.position.lsn, start);
    rig.flushTo('checkpoint');
    t.ok(rig.host.group.journal.pool.firstLsn <= start, 'the journal is still kept');
    rig.stop();
    rig.start();
    t.equal(rig.host.group.retainedLsn(), start, 'and after a clean stop');
    t.ok(rig.host.group.journal.pool.firstLsn <= start);
    rig.verify();
  });
}

t.test('a journal that is full because of a cursor says so, and how to give it up', async (t) => {
  const rig = Rig.started(3, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', 4 * MIB);
  create(rig, 'tape');
  const write = rig.submit('v', 'write', 0, 3 * MIB);
  rig.run(() => rig.host.group.stallReason()?.includes('cursor') === true);
  t.match(rig.host.group.stallReason(), /cursor tape still needs it from LSN \d+; .*lockstep journal release g?\S* tape/);
  t.equal(write.errno, -1);
  saved(rig, (done) => cursorsOf(rig).remove('tape', done));
  rig.run(() => write.errno >= 0);
  t.equal(write.errno, 0);
  t.equal(rig.host.group.stallReason(), null);
});

t.test('power loss at any moment leaves each cursor where somebody was told it is, or where it was going', async (t) => {
  for (let seed = 1; seed <= 40; seed++) {
    const rig = Rig.started(seed, TINY);
    const random = rig.world.random.fork(7);
    rig.create('v', MIB);
    const told = new Map<string, number | undefined>();
    const asked = new Map<string, (number | undefined)[]>();
    for (let step = 0; step < 12; step++) {
      const name = `c${random.below(3)}`;
      const cursors = cursorsOf(rig);
      const at = here(rig);
      const exists = cursors.get(name) !== undefined;
      const lsn = exists && random.below(4) === 0 ? undefined : at.lsn;
      const done = (error: Error | undefined): void => {
        if (error === undefined) told.set(name, lsn);
      };
      asked.set(name, [...(asked.get(name) ?? []), lsn]);
      if (!exists) cursors.create(rig.host.group.groupId!, name, at, done);
      else if (lsn === undefined) cursors.remove(name, done);
      else cursors.move(name, at, done);
      rig.host.node.poke();
      rig.submit('v', 'write', 0, 4 * KIB);
      rig.pass(random.below(3000));
    }
    rig.host.crash('power');
    rig.start();
    for (const [name, wanted] of asked) {
      const found = cursorsOf(rig).get(name)?.position.lsn;
      const toldAt = wanted.lastIndexOf(told.get(name));
      const legal = told.has(name) ? wanted.slice(Math.max(0, toldAt)) : [undefined, ...wanted];
      if (!legal.includes(found)) t.fail(`seed ${seed}: cursor ${name} is at ${found}, told ${told.get(name)}, asked ${wanted.join(' ')}`);
      if (found !== undefined && rig.host.group.journal.pool.firstLsn > found) t.fail(`seed ${seed}: the journal of cursor ${name} is gone`);
    }
    rig.dispose();
  }
});

/** Of a node that is stopped. */
function damage(rig: Rig, slot: number): void {
  const io = rig.host.node.start();
  const fd = io.open(Rig.path('cursors'), O.RDWR, 0);
  new Uint8Array(io.memory).fill(0x55, 4096, 4196);
  io.pwrite(fd, 4096, 100, slot * 8192 + 40);
  io.fdatasync(fd);
  io.close(fd);
  rig.host.node.stop();
}

t.test('a damaged file of cursors stops the group and says what to do; one that was never finished does not', async (t) => {
  const rig = Rig.started(4, TINY);
  t.teardown(() => rig.dispose());
  create(rig, 'a');
  create(rig, 'b');
  rig.stop();
  // Two changes: slots 1 and 0. Without the newer one the older one counts.
  damage(rig, 0);
  t.equal(rig.tryStart(), undefined);
  t.strictSame(cursorsOf(rig).all().map((one) => one.name), ['a']);
  rig.stop();
  damage(rig, 1);
  t.match(rig.tryStart(), /neither slot of cursors can be read .*move the file away/);
});

t.test('damage to the slot of the only change so far loses no cursor silently', async (t) => {
  for (const slot of [0, 1]) {
    const rig = Rig.started(5, TINY);
    t.teardown(() => rig.dispose());
    create(rig, 'a');
    rig.stop();
    damage(rig, slot);
    t.equal(rig.tryStart(), undefined);
    t.strictSame(cursorsOf(rig).all().map((one) => one.name), ['a']);
    rig.stop();
    damage(rig, 1 - slot);
    t.match(rig.tryStart(), /neither slot of cursors can be read/);
  }
});

t.test('as many cursors as may be fit their slot', async (t) => {
  const cursors = Array.from({ length: MAX_CURSORS }, (_, i) => ({
    name: `${'n'.repeat(62)}${String(i).padStart(2, '0')}`, createdMs: Number.MAX_SAFE_INTEGER, movedMs: Number.MAX_SAFE_INTEGER,
    position: { epochId: 'f'.repeat(32), lsn: Number.MAX_SAFE_INTEGER, chainHi: 0xffffffff, chainLo: 0xffffffff },
  }));
  const slot = { sequence: 7, groupId: 'a'.repeat(32), cursors };
  const bytes = encodeCursorSlot(slot);
  t.strictSame(decodeCursorSlot(bytes), slot);
  for (let i = 0; i < 300; i += 7) {
    const damaged = Uint8Array.from(bytes);
    damaged[i] ^= 1 << i % 8;
    t.type(decodeCursorSlot(damaged), 'string', `byte ${i}`);
  }
});
