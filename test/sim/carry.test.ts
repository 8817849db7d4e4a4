/**
 * Two simulated nodes without a link, whose journal others carry: both crash and
 * lose power, the pipe dies, its bytes are damaged. Afterwards both hold the
 * same; and a promoted importer holds what it had.
 *
 * LOCKSTEP_SIM_RUNS=N runs N seeds, TEST_SEED=N that one.
 */
import t from 'tap';
import { PairRun } from './pair.js';

const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 25);
const FIRST = process.env.TEST_SEED === undefined ? undefined : Number(process.env.TEST_SEED);

t.test('two nodes that are joined by a pipe stay equal over crashes of all that takes part', async (t) => {
  const sums = { parts: 0, deaths: 0, refused: 0, acks: 0, crashes: 0, compared: 0, promoted: 0 };
  for (let seed = FIRST ?? 1; seed < (FIRST ?? 1) + (FIRST === undefined ? RUNS : 1); seed++) {
    // A failure names its seed.
    const run = new PairRun(seed, 0, false, true);
    const { crashes, compared, promoted } = run.run();
    const { parts, deaths, refused, acks } = run.carrier!;
    for (const [name, count] of Object.entries({ parts, deaths, refused, acks, crashes, compared, promoted: promoted ? 1 : 0 })) sums[name as keyof typeof sums] += count;
  }
  t.comment(JSON.stringify(sums));
  t.ok(sums.compared > 0);
  if (FIRST !== undefined || RUNS < 20) return;
  for (const [name, count] of Object.entries(sums)) t.ok(count > 0, `${name}: ${count}`);
});
