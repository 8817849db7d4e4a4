/** A journal that is full: requests wait, go on by themselves, and the reserve for markers is kept. */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { Rig } from '../sim/rig.js';

const TINY = { segmentBytes: 256 * KIB, segments: 4, maxBatchPayload: 64 * KIB, destageUs: 1_000, checkpointSeconds: 0.01 };

t.test('a write larger than the whole journal is taken piece by piece', async (t) => {
  const rig = Rig.started(1, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  t.equal(rig.ask('v', 'write', 0, 4 * MIB), 0);
  t.equal(rig.ask('v', 'write', 2 * MIB + 512, 3 * MIB + 1024, { fua: true }), 0, 'unaligned, with FUA');
  rig.verify();
  rig.host.crash('power');
  rig.start();
  rig.verify();
});

t.test('many large writes at once are all taken, and an operation finds room meanwhile', async (t) => {
  const rig = Rig.started(2, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  const asked = Array.from({ length: 7 }, (_, i) => rig.submit('v', 'write', i * MIB, MIB));
  rig.run(() => rig.host.group.stalledCount > 0);
  t.match(rig.host.group.stallReason(), /journal is full/);
  rig.snapshot('v', 's');
  rig.run(() => asked.every((one) => one.errno >= 0));
  t.same(asked.map((one) => one.errno), [0, 0, 0, 0, 0, 0, 0]);
  t.equal(rig.host.group.stallReason(), null);
  rig.verify();
});

t.test('a stalled request whose device is removed meanwhile is refused', async (t) => {
  const rig = Rig.started(3, { ...TINY, destageUs: 50_000 });
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  rig.create('w', 8 * MIB);
  const first = rig.submit('w', 'write', 0, 6 * MIB);
  const second = rig.submit('v', 'write', 0, MIB);
  rig.run(() => rig.host.group.stalledCount > 0);
  rig.remove('v');
  rig.run(() => first.errno >= 0 && second.errno >= 0);
  t.equal(first.errno, 0);
  t.not(second.errno, 0);
  rig.verify();
});

t.test('trims alone do not fill the journal for ever', async (t) => {
  const rig = Rig.started(4, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  t.equal(rig.ask('v', 'write', 0, 64 * KIB), 0);
  // Far more than the journal has blocks.
  for (let i = 0; i < 600; i++) if (rig.ask('v', 'zero', (i % 8) * MIB, 8 * KIB) !== 0) t.fail('a trim failed');
  rig.verify();
});

t.test('one block over and over, trims and operations make room for themselves, however rare checkpoints are', async (t) => {
  const rig = Rig.started(5, { ...TINY, checkpointSeconds: 3600, checkpointBytes: 1024 * MIB, destageUs: 3600e6 });
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  for (let i = 0; i < 300; i++) if (rig.ask('v', 'write', 4096, 4096) !== 0) t.fail('a write failed');
  for (let i = 0; i < 600; i++) if (rig.ask('v', 'zero', 8192, 4096) !== 0) t.fail('a trim failed');
  for (let i = 0; i < 200; i++) {
    rig.snapshot('v', `s${i}`);
    rig.restore('v', `v@s${i}`);
    rig.remove(`v@s${i}`);
  }
  rig.verify();
});

t.test('while destaging fails writers wait, status says why, and they go on when it works again', async (t) => {
  const rig = Rig.started(6, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  const { faults } = rig.host.node.disk;
  faults.hook = (site) => (site.op === 'pwrite' && site.path.includes('/layers/') ? 28 : 0);
  const asked = rig.submit('v', 'write', 0, 3 * MIB);
  rig.run(() => rig.host.group.stallReason()?.includes('destaging fails') === true);
  t.match(rig.host.group.stallReason(), /no space left/);
  t.equal(asked.errno, -1);
  faults.hook = undefined;
  rig.run(() => asked.errno >= 0);
  t.equal(asked.errno, 0);
  rig.verify();
});

t.test('while checkpoints fail writers wait, status says why, and they go on when they work again', async (t) => {
  const rig = Rig.started(7, TINY);
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  const { faults } = rig.host.node.disk;
  faults.hook = (site) => ((site.op === 'pwrite' || site.op === 'fdatasync') && site.path.includes('checkpoint-') ? 5 : 0);
  const asked = rig.submit('v', 'write', 0, 3 * MIB);
  rig.run(() => rig.host.group.stallReason()?.includes('checkpoints fail') === true);
  faults.hook = undefined;
  rig.run(() => asked.errno >= 0);
  t.equal(asked.errno, 0);
  rig.verify();
});

t.test('a checkpoint that fails is tried again also when nothing was appended since the last one', async (t) => {
  const rig = Rig.started(8, { segmentBytes: 256 * KIB, segments: 8, destageUs: 3600e6, destageFraction: 0.9, checkpointSeconds: 3600, checkpointBytes: 1024 * MIB });
  t.teardown(() => rig.dispose());
  rig.create('v', 8 * MIB);
  for (let i = 0; i < 8; i++) t.equal(rig.ask('v', 'write', i * MIB, 64 * KIB), 0);
  // Committed with all of it pending: the journal is needed still.
  const { content } = rig.host.group;
  const { checkpointer } = content;
  content.requestCheckpoint();
  rig.run(() => checkpointer.committedAt.lsn === content.appliedLsn);
  t.ok(checkpointer.lowWater.lsn < content.appliedLsn);
  // The one that would say that the journal is not needed any more fails.
  const { faults } = rig.host.node.disk;
  let failed = 0;
  faults.hook = ({ op, path }) => (op === 'fdatasync' && path.includes('/checkpoint-') && failed++ === 0 ? 5 : 0);
  content.destager.request();
  rig.run(() => checkpointer.lastError !== undefined);
  rig.run(() => checkpointer.lowWater.lsn === content.appliedLsn);
  t.equal(failed, 2);
  t.equal(checkpointer.lastError, undefined);
});
