/**
 * Seeded runs of one node (powerloss.ts) and of two (pair.ts): a few in `make
 * test`, LOCKSTEP_SIM_RUNS and a seventh as many of each other kind in `make
 * test-sim`: 10,000 in all with SIM_RUNS=7000. Two processes share the seeds.
 */
import { spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Test } from 'tap';

const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 80);
const FROM = Number(process.env.LOCKSTEP_SIM_FROM ?? 1);
const PAIRS = Math.max(10, Math.ceil(RUNS / 7));
const PROCESSES = 2;
// The limit is that of the runner (test/run.ts --timeout), also when this file is run by itself.
t.setTimeout(7_200_000);

function runSeeds(from: number, count: number, options: string[]): Promise<{ code: number | null; output: string }> {
  const script = join(dirname(fileURLToPath(import.meta.url)), 'seeds.js');
  const environment = { ...process.env };
  delete environment.NODE_OPTIONS;
  const child = spawn(process.execPath, [script, '--from', String(from), '--seeds', String(count), ...options], { env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (part: Buffer) => (output += part.toString()));
  return new Promise((done, failed) => {
    child.once('error', failed);
    child.once('close', (code) => done({ code, output }));
  });
}

async function share(t: Test, runs: number, options: string[]): Promise<void> {
  const each = Math.ceil(runs / PROCESSES);
  const started: ReturnType<typeof runSeeds>[] = [];
  for (let i = 0; i < PROCESSES; i++) {
    const count = Math.min(each, runs - i * each);
    if (count > 0) started.push(runSeeds(FROM + i * each, count, options));
  }
  for (const { code, output } of await Promise.all(started)) {
    t.equal(code, 0, output);
    t.comment(output.trim().split('\n').at(-1));
  }
}

t.test(`${RUNS} seeds from ${FROM}: nothing that was flushed is lost, nothing is torn, whatever power loss, kill and fault do`, { timeout: 7_200_000 }, (t) => share(t, RUNS, []));

t.test(`${PAIRS} seeds from ${FROM} with a volatile journal: nothing acknowledged is lost by a kill, nothing at all by a power loss after a stop`, { timeout: 7_200_000 }, (t) => share(t, PAIRS, ['--volatile']));

t.test(`${PAIRS} pairs from ${FROM} of which one or both are volatile: both nodes hold the same`, { timeout: 7_200_000 }, (t) => share(t, PAIRS, ['--pairs', '--volatile']));

t.test(`${PAIRS} pairs from ${FROM}: both nodes hold the same after every crash and cut, and a promoted one what it had`, { timeout: 7_200_000 }, (t) => share(t, PAIRS, ['--pairs']));
