/**
 * Runs many seeds of the power-loss simulation and says what happened.
 *
 *   node dist/test/sim/seeds.js [--pairs | --carried | --local-faults] [--volatile] [--from SEED] [--seeds N] [--steps N] [--keep-going]
 *
 * A seed that fails is printed with all that is known; run it alone with
 * `--from SEED --seeds 1`.
 */
import { allFired } from './faulty-side.js';
import { LocalFaultRun } from './local-faults.js';
import type { LocalFaultResult } from './local-faults.js';
import { PairRun } from './pair.js';
import type { PairResult } from './pair.js';
import { PowerLossRun } from './powerloss.js';
import type { RunResult } from './powerloss.js';

let from = 1;
let count = 100;
/** Least number of things that a run asks for. */
let steps = 200;
let keepGoing = false;
let pairs = false;
let inMemory = false;
/** Pairs without links. */
let carried = false;
/** Local devices on two nodes whose disks fail below them. */
let localFaults = false;
for (let i = 2; i < process.argv.length; i++) {
  const word = process.argv[i];
  if (word === '--from') from = Number(process.argv[++i]);
  else if (word === '--seeds') count = Number(process.argv[++i]);
  else if (word === '--steps') steps = Number(process.argv[++i]);
  else if (word === '--keep-going') keepGoing = true;
  else if (word === '--pairs') pairs = true;
  else if (word === '--volatile') inMemory = true;
  else if (word === '--carried') pairs = carried = true;
  else if (word === '--local-faults') localFaults = true;
  else throw new Error(`unknown option ${word}`);
}

/** Runs the seeds one by one; returns what the good ones said, and which were not. */
function runAll<Result>(one: (seed: number) => Result): { results: Result[]; failed: number[] } {
  const results: Result[] = [];
  const failed: number[] = [];
  for (let seed = from; seed < from + count; seed++) {
    try {
      results.push(one(seed));
    } catch (error) {
      failed.push(seed);
      const words = error instanceof Error ? error.message : String(error);
      console.log(keepGoing ? words.split('\n').slice(0, 3).join('\n') : words);
      if (!keepGoing) break;
    }
  }
  return { results, failed };
}

function sum<Result>(results: readonly Result[], of: (result: Result) => number): number {
  return results.reduce((total, result) => total + of(result), 0);
}

function ofPowerLoss(results: readonly RunResult[]): string {
  const answers = new Map<number, number>();
  for (const result of results) for (const [errno, times] of result.answers) answers.set(errno, (answers.get(errno) ?? 0) + times);
  return `${sum(results, (r) => r.starts)} starts, ${sum(results, (r) => r.powerLosses)} power losses, ${sum(results, (r) => r.kills)} kills, ` +
    `${sum(results, (r) => r.steps)} steps, ${sum(results, (r) => r.operations)} operations (${sum(results, (r) => r.refusals)} refused), ${sum(results, (r) => r.checkpoints)} checkpoints, ${sum(results, (r) => r.layerBlocks)} blocks destaged; ` +
    `answers ${[...answers].map(([errno, times]) => `${errno === 0 ? 'ok' : `errno ${errno}`}: ${times}`).join(', ')}`;
}

function ofLocalFaults(results: readonly LocalFaultResult[]): string {
  return `${sum(results, (r) => r.crashes)} crashes, ${sum(results, (r) => r.stops)} groups stopped and ${sum(results, (r) => r.failedStarts)} starts failed by faults, ` +
    `${sum(results, (r) => r.changes)} changes, ${sum(results, (r) => r.errors)} answered with errors, ${results.filter((r) => r.promoted).length} take-overs; ` +
    [...allFired(results)].map(([name, times]) => `${name}: ${times}`).join(', ');
}

function ofPairs(results: readonly PairResult[]): string {
  return `${sum(results, (r) => r.starts)} starts, ${sum(results, (r) => r.crashes)} crashes, ${sum(results, (r) => r.steps)} steps, ${sum(results, (r) => r.operations)} operations (${sum(results, (r) => r.refusals)} refused), ` +
    `${sum(results, (r) => r.compared)} comparisons of both nodes, ${sum(results, (r) => r.cuts)} cuts on the way, ` +
    `${results.filter((r) => r.promoted).length} take-overs, ${results.filter((r) => r.refused !== undefined).length} refused` +
    ` (${[...new Set(results.map((r) => r.refused?.replace(/\d+/g, 'N')).filter((words) => words !== undefined))].join('; ')})`;
}

const started = process.cpuUsage();
let failed: number[];
let words: string;
if (localFaults) {
  const ran = runAll((seed) => new LocalFaultRun(seed).run());
  failed = ran.failed;
  words = ofLocalFaults(ran.results);
} else if (pairs) {
  const ran = runAll((seed) => new PairRun(seed, steps, inMemory, carried).run());
  failed = ran.failed;
  words = ofPairs(ran.results);
} else {
  const ran = runAll((seed) => new PowerLossRun(seed, steps, inMemory).run());
  failed = ran.failed;
  words = ofPowerLoss(ran.results);
}
const { user, system } = process.cpuUsage(started);
const ms = (user + system) / 1000;
console.log(`${count} ${pairs ? 'pairs' : 'seeds'} in ${(ms / 1000).toFixed(1)} s of processor time (${(ms / count).toFixed(0)} ms each): ${words}`);
if (failed.length > 0) console.log(`FAILED: ${failed.length} seeds: ${failed.join(' ')}`);
process.exitCode = failed.length > 0 ? 1 : 0;
