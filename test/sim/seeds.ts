/**
 * Runs many seeds of the power-loss simulation and says what happened.
 *
 *   node dist/test/sim/seeds.js [--from SEED] [--seeds N] [--keep-going]
 *
 * A seed that fails is printed with all that is known; run it alone with
 * `--from SEED --seeds 1`.
 */
import { PowerLossRun } from './powerloss.js';
import type { RunResult } from './powerloss.js';

let from = 1;
let count = 100;
let keepGoing = false;
for (let i = 2; i < process.argv.length; i++) {
  const word = process.argv[i];
  if (word === '--from') from = Number(process.argv[++i]);
  else if (word === '--seeds') count = Number(process.argv[++i]);
  else if (word === '--keep-going') keepGoing = true;
  else throw new Error(`unknown option ${word}`);
}

const started = process.hrtime.bigint();
const results: RunResult[] = [];
const failed: number[] = [];
for (let seed = from; seed < from + count; seed++) {
  try {
    results.push(new PowerLossRun(seed).run());
  } catch (error) {
    failed.push(seed);
    const words = error instanceof Error ? error.message : String(error);
    console.log(keepGoing ? words.split('\n').slice(0, 3).join('\n') : words);
    if (!keepGoing) break;
  }
}
const ms = Number((process.hrtime.bigint() - started) / 1_000_000n);
const sum = (of: (result: RunResult) => number): number => results.reduce((total, one) => total + of(one), 0);
const answers = new Map<number, number>();
for (const result of results) for (const [errno, times] of result.answers) answers.set(errno, (answers.get(errno) ?? 0) + times);
console.log(
  `${results.length + failed.length} seeds in ${(ms / 1000).toFixed(1)} s (${(ms / (results.length + failed.length)).toFixed(1)} ms each): ${sum((r) => r.starts)} starts, ` +
    `${sum((r) => r.powerLosses)} power losses, ${sum((r) => r.kills)} kills, ${sum((r) => r.operations)} operations, ${sum((r) => r.checkpoints)} checkpoints, ` +
    `${sum((r) => r.layerBlocks)} blocks destaged; answers ${[...answers].map(([errno, times]) => `${errno === 0 ? 'ok' : `errno ${errno}`}: ${times}`).join(', ')}`,
);
if (failed.length > 0) console.log(`FAILED: ${failed.length} seeds: ${failed.join(' ')}`);
process.exitCode = failed.length > 0 ? 1 : 0;
