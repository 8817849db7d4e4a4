/**
 * Local snapshots on a secondary whose primary loses what it had shipped: those that could be undone were never
 * used and go, the others stay.
 */
import t from 'tap';
import { GROUP } from './cluster.js';
import { Pair } from './failing.js';
import { BLOCK } from './model.js';

const SEED = Number(process.env.TEST_SEED ?? 2);
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };

for (const crash of ['none', 'power', 'kill'] as const) {
  t.test(`a rewind drops what was not used yet, and nothing else; then ${crash === 'none' ? 'no crash' : crash}`, async (t) => {
    const pair = new Pair(SEED);
    t.teardown(() => pair.world.dispose());
    const { a, b, locals } = pair;
    const used = locals.snapshot('v', 'used')!;
    t.equal(used.notice, null, 'what the primary has made durable can be used at once');
    locals.change('v~used', BLOCK, BLOCK, new Uint8Array(BLOCK).fill(9));
    const flushed = locals.flush('v~used');
    pair.run(() => flushed.errno >= 0);
    const common = b.group.position.lsn;

    pair.write(2, 2);
    pair.run(() => pair.caughtUp);
    t.ok(a.group.journal.durableLsn <= common, 'the primary can still lose it');
    const late = locals.snapshot('v', 'late')!;
    t.match(late.notice, /cannot be used yet: the primary has not confirmed/);
    t.match(b.path!.blocks.find(`${GROUP}/v~late`), { unavailable: /cannot be used yet/ });
    const early = locals.command({ op: 'restore', group: GROUP, target: 'v~used', source: 'v', ranges: [], force: true, ...WAIT });
    pair.run(() => early.ended);
    t.match(early.reply!.notice, /cannot be used yet/, 'neither can one whose content is replaced');

    pair.loseTail();
    pair.run(() => pair.caughtUp && !b.group.changing);
    const judge = (): void => {
      t.same([...b.group.local!.tree.all()].map((device) => device.name), ['v~used'], 'it is gone, the other is there');
      pair.run(() => b.path!.blocks.find(`${GROUP}/v~used`) !== undefined);
      const bytes = locals.read('v~used', 0, 3 * BLOCK)!;
      t.same([bytes[0], bytes[BLOCK], bytes[2 * BLOCK]], [1, 9, 0], 'with its former content');
    };
    t.match(b.group.local!.problems().join('; '), /v~late was dropped.*v~used keeps its former content/);
    locals.attach();
    locals.watch();
    judge();
    // The next one follows the very position that the rewind went back to, or one behind it.
    const again = locals.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'late', local: true, ...WAIT });
    pair.run(() => again.ended);
    const found = b.group.local!.tree.find('v~late')!;
    t.not(found.id, late.device!.id, 'an id is never used again');
    if (crash !== 'none') {
      b.crash(crash);
      b.start();
      t.equal(b.problem, undefined);
      locals.attach();
      pair.run(() => pair.caughtUp);
      t.same(b.group.local!.problems(), [], 'what was dropped once is not reported again');
      t.equal(b.group.local!.tree.find('v~late')?.id, found.id);
    }
    t.match([...locals.read('v~late', 0, 3 * BLOCK)!.filter((_byte, i) => i % BLOCK === 0)], [1, 0, 0]);
  });
}
