/**
 * The fdatasync of a checkpoint's slot is reported failed although its bytes
 * are on the disk: the slot is what recovery finds, so everything that it names
 * has to be there, whatever is done meanwhile.
 */
import t from 'tap';
import type { Test } from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import type { Sizes } from './cluster.js';
import { Rig } from './rig.js';
import { SimCrash } from './faults.js';

const SEED = Number(process.env.TEST_SEED ?? 11);
/** Checkpoints are made when the test asks for one. */
const SIZES: Partial<Sizes> = { compactSlackBytes: 0, checkpointSeconds: 1000, checkpointBytes: 64 * MIB, destageUs: 3600e6, mapMemory: 16 * MIB, segmentBytes: 2 * MIB, segments: 8 };

function maps(rig: Rig): string[] {
  return rig.paths('').filter((path) => path.includes('/map-')).map((path) => path.split('/').at(-1)!).sort();
}

let round = 0;
function write(rig: Rig): void {
  for (let k = 0; k < 12; k++) rig.submit('v', 'write', (((round * 12 + k) * 97) % 16_000) * 4 * KIB, 4 * KIB);
  round++;
  rig.ask('v', 'flush');
}

/** A rig whose next commit failed, with its bytes on the disk: that of a compaction, or another one. */
function failed(seed: number, kind: 'compaction' | 'append'): Rig {
  const rig = Rig.started(seed, SIZES);
  round = 0;
  rig.create('v', 64 * MIB);
  const { faults } = rig.host.node.disk;
  faults.rates = { ...faults.rates, lossPerPage: 0 };
  if (kind === 'append') {
    write(rig);
    rig.flushTo('checkpoint');
  }
  let over = false;
  let compacting = false;
  faults.hook = ({ op, path }) => {
    if (over) return 0;
    if (path.includes('/map-000002')) compacting = true;
    if (op !== 'fdatasync' || !path.includes('/checkpoint-') || compacting !== (kind === 'compaction')) return 0;
    over = true;
    return 5;
  };
  const { checkpointer } = rig.host.group.content;
  for (let i = 0; i < 400 && !over; i++) {
    write(rig);
    const flush = rig.host.command({ op: 'flush', group: 'g', upTo: 'checkpoint' });
    rig.run(() => flush.ended || checkpointer.lastError !== undefined);
  }
  if (!over || checkpointer.lastError === undefined) throw new Error('no commit failed');
  return rig;
}

function opens(t: Test, rig: Rig, what: string): void {
  t.equal(rig.tryStart(), undefined, `${what}: the group opens`);
  t.doesNotThrow(() => rig.verify(), `${what}: and holds what was written`);
}

for (const kind of ['compaction', 'append'] as const) {
  for (const crash of ['power', 'kill'] as const) {
    t.test(`${kind}: ${crash} right after the failure`, async (t) => {
      let younger = 0;
      for (let seed = SEED; seed < SEED + 6; seed++) {
        const rig = failed(seed, kind);
        const { committedAt } = rig.host.group.content.checkpointer;
        rig.host.crash(crash);
        opens(t, rig, `seed ${seed}, first start`);
        if (rig.host.group.content.checkpointer.committedAt.lsn > committedAt.lsn) younger++;
        write(rig);
        rig.flushTo('checkpoint');
        t.equal(maps(rig).length, 1, 'no map file is left over');
        rig.host.crash('power');
        opens(t, rig, `seed ${seed}, second start`);
        rig.dispose();
      }
      t.ok(younger > 0, 'starts began with the slot whose writing had failed');
    });
  }

  t.test(`${kind}: power loss or a kill at any step of the next attempts`, async (t) => {
    for (let nth = 1; nth < 200; nth++) {
      const rig = failed(SEED + nth, kind);
      const { faults } = rig.host.node.disk;
      let count = 0;
      // In a third of the runs no attempt before succeeds either.
      faults.hook = ({ op, path }) => {
        if (!path.includes('/map-') && !path.includes('/checkpoint-')) return 0;
        if (++count === nth) throw new SimCrash('at a step of the next attempt');
        return nth % 3 === 0 && op === 'fdatasync' && path.includes('/checkpoint-') && count < nth ? 5 : 0;
      };
      rig.host.node.fuseKind = nth % 4 === 1 ? 'kill' : 'power';
      write(rig);
      rig.host.command({ op: 'flush', group: 'g', upTo: 'checkpoint' });
      const { starts } = rig.host.node;
      const { checkpointer } = rig.host.group.content;
      const { commits } = checkpointer;
      rig.world.run(() => !rig.host.alive || rig.host.node.starts !== starts || checkpointer.commits > commits, { us: 10e6 });
      const reached = count >= nth;
      faults.hook = undefined;
      if (rig.host.alive) rig.host.crash('power');
      const problem = rig.tryStart();
      if (problem !== undefined) t.fail(`step ${nth}: ${problem}`);
      else {
        rig.verify();
        write(rig);
        rig.flushTo('checkpoint');
        rig.host.crash('power');
        t.equal(rig.tryStart(), undefined, `step ${nth}`);
        rig.verify();
      }
      rig.dispose();
      if (!reached) break;
    }
  });
}

t.test('the file of a compaction whose commit failed stays until another commit succeeds, and its number is not used again', async (t) => {
  const rig = failed(SEED, 'compaction');
  t.teardown(() => rig.dispose());
  t.same(maps(rig), ['map-000001', 'map-000002']);
  const { faults } = rig.host.node.disk;
  let attempts = 0;
  let written = false;
  faults.hook = ({ op, path }) => {
    if (path.includes('/map-000002') && op !== 'unlink') written = true;
    if (op !== 'fdatasync' || !path.includes('/checkpoint-') || attempts >= 4) return 0;
    attempts++;
    return 5;
  };
  write(rig);
  const flush = rig.host.command({ op: 'flush', group: 'g', upTo: 'checkpoint' });
  rig.run(() => attempts === 4);
  t.same(maps(rig), ['map-000001', 'map-000002'], 'however often it fails, there is one more file');
  rig.run(() => flush.ended);
  t.same(maps(rig), ['map-000001'], 'gone with the next commit');
  for (let i = 0; i < 400 && maps(rig).includes('map-000001'); i++) {
    write(rig);
    rig.flushTo('checkpoint');
  }
  t.ok(maps(rig)[0] >= 'map-000003', 'the next compaction has a number of its own');
  t.notOk(written, 'nothing was done to the file that was in doubt');
  rig.host.crash('power');
  opens(t, rig, 'after that');
  // A removed name may come back with the power, and is kept for the older slot until the next commit.
  write(rig);
  rig.flushTo('checkpoint');
  t.equal(maps(rig).length, 1);
});
