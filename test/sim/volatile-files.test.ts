/** Files of a volatile journal that are removed while the daemon is down, and local snapshots when what followed was lost. */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { GROUP, SMALL } from './cluster.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';
import { Rig } from './rig.js';
import { acceptableLsn, segmentsOf } from './volatile-journal.js';

/** Nothing is destaged by itself: what was acknowledged is in the journal only. */
const LAZY = { ...SMALL, checkpointSeconds: 1000, checkpointBytes: 64 * MIB, destageUs: 3600e6, destageFraction: 0.95, segments: 12 };

for (const count of [1, 2]) {
  t.test(`a journal whose newest ${count === 1 ? 'file is' : 'files are'} removed while the daemon is down is refused like a lost one, and may be accepted`, async (t) => {
    const rig = new Rig(12, LAZY);
    t.teardown(() => rig.dispose());
    rig.host.volatile();
    rig.start();
    rig.create('v', 4 * MIB);
    for (let i = 0; i < 16; i++) t.equal(rig.ask('v', 'write', i * 64 * KIB, 64 * KIB), 0);
    const before = [...rig.host.group.epochs];
    rig.host.crash('kill');
    const segments = segmentsOf(rig.host);
    t.ok(segments.length > 3, `${segments.length} segments`);
    for (const path of segments.slice(-count)) rig.host.node.disk.unlink(path);
    const problem = rig.tryStart();
    t.match(problem, /its volatile journal is not whole any more \(.*segment-\d+, which continues it, is not there any more\), and the group was not stopped cleanly before\. Its data are unknown/);
    t.match(problem, /promote it, and build this node anew/);
    const left = segmentsOf(rig.host);
    rig.host.crash('kill');
    t.equal(rig.tryStart(), problem, 'nor by the next start');
    t.same(segmentsOf(rig.host), left, 'nothing was changed');
    rig.host.crash('kill');
    rig.host.acceptedLsn = acceptableLsn(problem);
    rig.host.model.cacheFloor = 0;
    t.equal(rig.tryStart(), undefined);
    const { epochs } = rig.host.group;
    t.equal(epochs.length, before.length + 1);
    t.match(epochs.at(-1), { lossless: false, start: { lsn: rig.host.acceptedLsn } });
    rig.verify();
  });
}

for (const how of ['power is lost', 'the newest file is removed'] as const) {
  t.test(`when ${how}, local snapshots that were reported stay as they are, and one that follows what was accepted away is dropped`, async (t) => {
    const rig = new Rig(14, LAZY);
    t.teardown(() => rig.dispose());
    const { host } = rig;
    host.volatile();
    rig.start();
    rig.create('v', 4 * MIB);
    const fill = (byte: number): number => rig.ask('v', 'write', 0, 64 * KIB, { data: new Uint8Array(64 * KIB).fill(byte) });
    for (let i = 0; i < 12; i++) t.equal(fill(1), 0);
    const locals = new LocalDevices(host);
    locals.attach();
    t.equal(locals.snapshot('v', 'kept')!.notice, null);
    t.equal(locals.change('v~kept', 64 * KIB, BLOCK, new Uint8Array(BLOCK).fill(9), true).errno, -1);
    rig.run(() => locals.inFlight === 0);
    rig.flushTo('checkpoint');
    for (let i = 0; i < 12; i++) t.equal(fill(2), 0);
    // Made is made: it waits for a checkpoint.
    t.equal(locals.snapshot('v', 'late')!.notice, null);
    for (let i = 0; i < 12; i++) t.equal(fill(4), 0);
    const before = host.group.position.lsn;
    const early = locals.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'early', local: true, wait: 'durable', waitSeconds: 10 });
    rig.run(() => (host.group.local!.tree.find('v~early')?.followsLsn ?? 0) >= before && host.group.content.local.log.settledLsn > 0);
    t.notOk(early.ended);
    host.crash(how === 'power is lost' ? 'power' : 'kill');
    if (how !== 'power is lost') host.node.disk.unlink(segmentsOf(host).at(-1)!);
    const problem = rig.tryStart();
    t.match(problem, /Its data are unknown/);
    host.crash('kill');
    host.acceptedLsn = acceptableLsn(problem);
    host.model.cacheFloor = 0;
    t.equal(rig.tryStart(), undefined);
    const names = (): string[] => [...host.group.local!.tree.all()].map((device) => device.name).sort();
    t.same(names(), ['v~kept', 'v~late']);
    t.ok(host.acceptedLsn < before);
    if (how !== 'power is lost') t.match(host.group.local!.problems().join('; '), /v~early was dropped/);
    locals.attach();
    rig.run(() => host.path!.blocks.find(`${GROUP}/v~kept`) !== undefined);
    const bytes = locals.read('v~kept', 0, 68 * KIB)!;
    t.same([bytes[0], bytes[64 * KIB - 1], bytes[64 * KIB]], [1, 1, 9], 'with its content');
    t.equal(locals.read('v~late', 0, BLOCK)![0], 2);
    host.acceptedLsn = undefined;
    t.equal(fill(3), 0);
    t.equal(locals.snapshot('v', 'early')!.notice, null, 'its name is free');
    host.crash('kill');
    t.equal(rig.tryStart(), undefined);
    t.same(names(), ['v~early', 'v~kept', 'v~late']);
    locals.attach();
    rig.run(() => host.path!.blocks.find(`${GROUP}/v~early`) !== undefined);
    t.equal(locals.read('v~early', 0, BLOCK)![0], 3);
    rig.stop();
    host.crash('power');
    t.equal(rig.tryStart(), undefined);
    t.same(names(), ['v~early', 'v~kept', 'v~late']);
  });
}
