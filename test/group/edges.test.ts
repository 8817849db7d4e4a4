/**
 * Requests that do not begin or end at a block: completed with what the block
 * holds at that moment, wherever that comes from. The client (sim/client.ts)
 * compares every journaled block with the model.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { Rig } from '../sim/rig.js';

/** Offsets and lengths around the borders of blocks, leaves and the device. */
const RANGES = [
  [0, 1], [1, 1], [511, 2], [0, 512], [512, 512], [3584, 512], [4095, 1], [4095, 2], [4096, 4095], [1, 4096], [4000, 8192], [100, 12288], [8192, 1], [8191, 4098],
  [2 * MIB - 512, 1024], [2 * MIB - 1, 2], [4 * MIB - 513, 513], [4 * MIB - 4097, 4097], [12345, 54321],
] as const;

for (const cold of [0, 0.6]) {
  t.test(`writes and trims of all shapes${cold > 0 ? ', out of a cold page cache' : ''}`, async (t) => {
    const rig = Rig.started(1, { segmentBytes: MIB, mapMemory: 8 * KIB });
    t.teardown(() => rig.dispose());
    rig.host.node.disk.faults.rates.coldRead = cold;
    rig.create('v', 4 * MIB);
    for (const destaged of [false, true]) {
      t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
      if (destaged) rig.flushTo('destaged');
      for (const [offset, length] of RANGES) {
        t.equal(rig.ask('v', 'write', offset, length), 0, `write ${offset}+${length}`);
        t.equal(rig.ask('v', 'zero', offset, Math.max(1, length - 1)), 0, `zero ${offset}+${length - 1}`);
        t.equal(rig.ask('v', 'read', offset, length), 0);
      }
      rig.verify();
    }
    rig.snapshot('v', 's');
    for (const [offset, length] of RANGES) t.equal(rig.ask('v@s', 'write', offset, length), 0, 'into a snapshot');
    rig.verify();
  });
}

t.test('requests of one tick that touch one block all leave their bytes', async (t) => {
  const rig = Rig.started(2);
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  for (const cold of [0, 0.5]) {
    rig.host.node.disk.faults.rates.coldRead = cold;
    const asked = Array.from({ length: 8 }, (_, i) => rig.submit('v', i % 3 === 2 ? 'zero' : 'write', i * 512, 512));
    asked.push(rig.submit('v', 'write', 256, 5000), rig.submit('v', 'write', 4096, 4096));
    rig.run(() => asked.every((one) => one.errno >= 0));
    t.ok(asked.every((one) => one.errno === 0));
  }
  rig.verify();
});

t.test('an edge that cannot be read fails its request with EIO, and no other', async (t) => {
  const rig = Rig.started(3);
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  t.equal(rig.ask('v', 'write', 0, 64 * KIB), 0);
  rig.flushTo('destaged');
  rig.host.node.disk.faults.hook = (site) => ((site.op === 'pread' || site.op === 'preadNowait') && site.path.includes('/layers/') ? 5 : 0);
  t.equal(rig.ask('v', 'write', 512, 512), 5);
  t.equal(rig.ask('v', 'write', 4096, 4096), 0);
  rig.host.node.disk.faults.hook = undefined;
  t.equal(rig.ask('v', 'write', 512, 512), 0);
  rig.verify();
});

t.test('beyond the end of the device', async (t) => {
  const rig = Rig.started(4);
  t.teardown(() => rig.dispose());
  rig.create('v', MIB);
  t.equal(rig.ask('v', 'write', MIB - 512, 1024), 28);
  t.equal(rig.ask('v', 'zero', MIB - 512, 1024), 22);
  rig.verify();
});
