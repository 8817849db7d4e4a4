/** Adoptions through crashes, failing disks and a carried journal (adoption.ts). */
import t from 'tap';
import { AdoptRun, ROUNDS } from './adoption.js';
import type { AdoptCounts, AdoptKind } from './adoption.js';

const SEED = Number(process.env.TEST_SEED ?? 1);
const SEEDS = Number(process.env.ADOPT_SEEDS ?? 30);

t.setTimeout(300_000);

const KINDS: readonly [AdoptKind, string][] = [
  ['plain', 'whatever crashes during an adoption, both nodes end with the same snapshot'],
  ['volatile', 'the same with volatile journals'],
  ['faults', 'an adoption whose local journal fails is wholly executed or undone, on both nodes'],
  ['carried', 'a node that gets its journal by export and import adopts its own copy'],
];

for (const [kind, name] of KINDS) {
  t.test(name, async (t) => {
    const counts: AdoptCounts = { crashes: 0, undone: 0, adopted: 0, stopped: 0, lost: 0 };
    for (let seed = SEED; seed < SEED + SEEDS; seed++) {
      try {
        new AdoptRun(seed, counts, kind).run();
      } catch (error) {
        t.fail((error as Error).message);
        return;
      }
    }
    t.comment(`seeds ${SEED} to ${SEED + SEEDS - 1}: ${counts.adopted} adoptions, ${counts.crashes} crashes, ${counts.stopped} stops by faults, ${counts.lost} journals lost after a stop, ${counts.undone} times it was undone`);
    t.equal(counts.adopted, SEEDS * ROUNDS);
    if (kind === 'volatile' && SEEDS >= 20) t.ok(counts.lost > 0);
    if (kind === 'faults') t.ok(counts.stopped > SEEDS / 2, 'faults stopped groups');
  });
}
