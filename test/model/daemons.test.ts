/**
 * The model test against real daemons: pairs of nodes that do what the
 * simulation does (draw.ts), through NBD and the control socket, with SIGKILLs.
 * `make test` does a few runs; `make test-model MODEL_RUNS=300` many.
 * TEST_SEED=N does run N alone.
 */
import t from 'tap';
import { RealRun } from './real.js';
import type { RealResult } from './real.js';

const RUNS = Number(process.env.LOCKSTEP_MODEL_RUNS ?? 4);
const STEPS = Number(process.env.LOCKSTEP_MODEL_STEPS ?? 200);
const FROM = Number(process.env.TEST_SEED ?? process.env.LOCKSTEP_MODEL_FROM ?? Math.floor(Math.random() * 2 ** 31));
/** Runs at a time. */
const LANES = Number(process.env.LOCKSTEP_MODEL_LANES ?? 2);

// The limit is that of the runner (test/run.ts --timeout), also when this file is run by itself.
t.setTimeout(7_200_000);

const count = process.env.TEST_SEED === undefined ? RUNS : 1;
t.test(`${count} runs of ${STEPS} steps from seed ${FROM}: real daemons hold what the model permits, on both nodes`, { timeout: 7_200_000 }, async (t) => {
  const results: RealResult[] = [];
  const failed: number[] = [];
  const started = performance.now();
  let next = FROM;
  const lane = async (): Promise<void> => {
    while (next < FROM + count) {
      const seed = next++;
      try {
        results.push(await new RealRun(seed, STEPS).run());
      } catch (error) {
        failed.push(seed);
        t.fail(error instanceof Error ? error.message : String(error));
      }
      // A long run is watched: the runner passes standard error on.
      if (count > 20 && (results.length + failed.length) % 20 === 0) console.error(`${results.length + failed.length} runs, ${failed.length} failed, ${Math.round((performance.now() - started) / 1000)} s`);
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  const sum = (of: (result: RealResult) => number): number => results.reduce((total, result) => total + of(result), 0);
  const ms = performance.now() - started;
  const words = `${results.length} runs right, ${failed.length} not, ${(ms / count / 1000).toFixed(1)} s each: ${sum((r) => r.steps)} steps, ${sum((r) => r.requests)} requests, ` +
    `${sum((r) => r.operations)} operations (${sum((r) => r.refusals)} refused), ${sum((r) => r.kills)} kills, ${sum((r) => r.comparisons)} comparisons of a node, ${sum((r) => r.promotions)} promotions`;
  if (count > 20) console.error(words);
  t.comment(words);
  t.equal(failed.length, 0, `seeds that failed: ${failed.join(' ')}`);
});
