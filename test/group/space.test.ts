/** Space admission: ENOSPC while all that was acknowledged still fits, and service again when space returns. */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { Rig } from '../sim/rig.js';

const SIZES = { segmentBytes: 256 * KIB, segments: 6, destageUs: 3600e6, checkpointSeconds: 0.05 };

t.test('writes answer ENOSPC before the disk is full, what was taken is destaged, and they are taken again', async (t) => {
  const rig = Rig.started(1, SIZES);
  t.teardown(() => rig.dispose());
  const { disk } = rig.host.node;
  rig.create('v', 64 * MIB);
  disk.capacity = disk.capacity - disk.freeBytes + 6 * MIB;
  let errno = 0;
  let taken = 0;
  for (let i = 0; i < 64 && errno === 0; i++) {
    errno = rig.ask('v', 'write', i * MIB, 128 * KIB);
    if (errno === 0) taken++;
    rig.pass(250_000);
  }
  t.equal(errno, 28);
  t.ok(taken > 4, `${taken} writes were taken before`);
  t.match(rig.host.group.space.refusal, /ENOSPC/);
  t.equal(rig.ask('v', 'read', 0, 64 * KIB), 0, 'reads go on');
  t.equal(rig.ask('v', 'flush'), 0, 'and flushes');
  t.equal(rig.ask('v', 'zero', 0, 64 * KIB), 0, 'and trims');
  t.equal(rig.flushTo('destaged').upTo, 'destaged', 'all that was acknowledged finds room');
  t.equal(rig.flushTo('checkpoint').upTo, 'checkpoint');
  rig.verify();
  disk.capacity += 64 * MIB;
  rig.pass(3_000_000);
  t.equal(rig.host.group.space.refusal, undefined);
  t.equal(rig.ask('v', 'write', 0, 128 * KIB), 0);
  rig.host.crash('power');
  rig.start();
  rig.verify();
});

t.test('a disk that cannot be asked for its space refuses writes with a reason', async (t) => {
  const rig = Rig.started(2, SIZES);
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  rig.pass(3_000_000);
  rig.host.node.disk.faults.hook = (site) => (site.op === 'space' ? 5 : 0);
  rig.pass(3_000_000);
  t.equal(rig.ask('v', 'write', 0, 4096), 28);
  t.match(rig.host.group.space.refusal, /statvfs/);
  rig.host.node.disk.faults.hook = undefined;
  rig.pass(3_000_000);
  t.equal(rig.ask('v', 'write', 0, 4096), 0);
});
