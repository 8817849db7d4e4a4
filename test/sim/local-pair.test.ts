/**
 * Local snapshots on a secondary whose primary loses what it had shipped: those that could be undone were never
 * used and go, the others stay.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { GROUP, SimHost, SMALL, caughtUp } from './cluster.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';
import { World } from './world.js';

const SEED = Number(process.env.TEST_SEED ?? 3);
const LIMIT = { us: 120e6 };
/** Nothing becomes durable but by FLUSH or by what an operation waits for. */
const LAZY = {
  ...SMALL, segments: 12, syncMs: 60_000, syncBytes: 64 * MIB, checkpointSeconds: 1000, checkpointBytes: 64 * MIB, destageUs: 3600e6, destageFraction: 0.9,
};
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };

for (const crash of ['none', 'power', 'kill'] as const) {
  t.test(`a rewind drops what was not used yet, and nothing else; then ${crash === 'none' ? 'no crash' : crash}`, async (t) => {
    const world = new World({ seed: SEED });
    Object.assign(world.network.rates, { latencyLowUs: 50, latencyHighUs: 200, bufferLow: 64 * KIB, bufferHigh: 64 * KIB });
    const a = new SimHost(world, 'a', LAZY, { role: 'primary', peers: [{ node: 'b', address: '10.0.0.2:7002' }] }, 0);
    const b = new SimHost(world, 'b', LAZY, { role: 'secondary', listen: '10.0.0.2:7002', peers: [{ node: 'a' }] }, 1);
    const run = (until: () => boolean): void => world.run(() => {
      if (b.alive && b.path?.blocks.group(GROUP)?.hasContent === true) b.adopted();
      return until();
    }, LIMIT);
    const write = (block: number, letter: number): void => {
      let errno = -1;
      const device = [...a.model.state.devices.values()][0];
      a.client!.write(a.view(device)!, block * BLOCK, new Uint8Array(BLOCK).fill(letter), false, (result) => (errno = result));
      a.node.poke();
      run(() => errno >= 0);
      t.equal(errno, 0);
    };
    b.start();
    a.start();
    const create = a.command({ op: 'create', group: GROUP, name: 'v', sizeBytes: MIB, ...WAIT });
    run(() => create.ended);
    write(0, 1);
    const flush = a.command({ op: 'flush', group: GROUP, upTo: 'durable' });
    run(() => flush.ended && caughtUp(a, b) && b.group.stableLsn === a.group.journal.durableLsn);
    const locals = new LocalDevices(b);
    locals.attach();
    const used = locals.snapshot('v', 'used')!;
    t.equal(used.notice, null, 'what the primary has made durable can be used at once');
    locals.change('v~used', BLOCK, BLOCK, new Uint8Array(BLOCK).fill(9));
    const flushed = locals.flush('v~used');
    run(() => flushed.errno >= 0);
    const common = b.group.position.lsn;

    write(2, 2);
    run(() => caughtUp(a, b));
    t.ok(a.group.journal.durableLsn <= common, 'the primary can still lose it');
    const late = locals.snapshot('v', 'late')!;
    t.match(late.notice, /cannot be used yet: the primary has not confirmed/);
    t.match(b.path!.blocks.find(`${GROUP}/v~late`), { unavailable: /cannot be used yet/ });
    const early = locals.command({ op: 'restore', group: GROUP, target: 'v~used', source: 'v', ranges: [], force: true, ...WAIT });
    run(() => early.ended);
    t.match(early.reply!.notice, /cannot be used yet/, 'neither can one whose content is replaced');

    a.crash('power');
    world.network.partition('a', 'b');
    a.start();
    run(() => a.group.role === 'primary');
    t.ok(a.group.epochs.at(-1)!.start.lsn < b.group.position.lsn, 'the primary goes on from below');
    world.network.heal('a', 'b');
    run(() => caughtUp(a, b) && !b.group.changing);
    const judge = (): void => {
      t.same([...b.group.local!.tree.all()].map((device) => device.name), ['v~used'], 'it is gone, the other is there');
      run(() => b.path!.blocks.find(`${GROUP}/v~used`) !== undefined);
      const bytes = locals.read('v~used', 0, 3 * BLOCK)!;
      t.same([bytes[0], bytes[BLOCK], bytes[2 * BLOCK]], [1, 9, 0], 'with its former content');
    };
    t.match(b.group.local!.problems().join('; '), /v~late was dropped.*v~used keeps its former content/);
    locals.attach();
    locals.watch();
    judge();
    // The next one follows the very position that the rewind went back to, or one behind it.
    const again = locals.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'late', local: true, ...WAIT });
    run(() => again.ended);
    const found = b.group.local!.tree.find('v~late')!;
    t.not(found.id, late.device!.id, 'an id is never used again');
    if (crash !== 'none') {
      b.crash(crash);
      b.start();
      t.equal(b.problem, undefined);
      locals.attach();
      run(() => caughtUp(a, b));
      t.same(b.group.local!.problems(), [], 'what was dropped once is not reported again');
      t.equal(b.group.local!.tree.find('v~late')?.id, found.id);
    }
    t.match([...locals.read('v~late', 0, 3 * BLOCK)!.filter((_byte, i) => i % BLOCK === 0)], [1, 0, 0]);
    world.dispose();
  });
}
