/**
 * Local devices on disks that fail (local-faults.ts): a few seeds in `make test`, a seventh of LOCKSTEP_SIM_RUNS in `make
 * test-sim`; LOCAL_FAULT_SEEDS of them from TEST_SEED on, or with `seeds.js --local-faults`.
 */
import t from 'tap';
import { allFired } from './faulty-side.js';
import { LocalFaultRun } from './local-faults.js';
import type { LocalFaultResult } from './local-faults.js';

const SEED = Number(process.env.TEST_SEED ?? 1);
const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 420);
const SEEDS = Number(process.env.LOCAL_FAULT_SEEDS ?? Math.ceil(RUNS / 7));

t.setTimeout(3_600_000);

t.test('whatever fails below local devices, a start finds what was flushed, and both nodes the same volumes', async (t) => {
  const results: LocalFaultResult[] = [];
  const counts = { crashes: 0, stops: 0, failedStarts: 0, changes: 0, errors: 0, promoted: 0 };
  for (let seed = SEED; seed < SEED + SEEDS; seed++) {
    try {
      const result = new LocalFaultRun(seed).run();
      results.push(result);
      for (const key of ['crashes', 'stops', 'failedStarts', 'changes', 'errors'] as const) counts[key] += result[key];
      if (result.promoted) counts.promoted++;
    } catch (error) {
      t.fail(`TEST_SEED=${seed}: ${(error as Error).message}`);
      return;
    }
  }
  t.comment(`seeds ${SEED} to ${SEED + SEEDS - 1}: ${JSON.stringify(counts)}; failed: ${[...allFired(results)].map(([name, times]) => `${name} ${times}`).join(', ')}`);
  t.ok(counts.stops > SEEDS / 4 && counts.errors > SEEDS / 4, 'there was something to judge');
});
