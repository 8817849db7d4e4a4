/**
 * Seeded power-loss runs (powerloss.ts): a few in `make test`, LOCKSTEP_SIM_RUNS
 * of them in `make test-sim`. Two processes share the seeds.
 */
import { spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 80);
const FROM = Number(process.env.LOCKSTEP_SIM_FROM ?? 1);
const PROCESSES = 2;

function runSeeds(from: number, count: number): Promise<{ code: number | null; output: string }> {
  const script = join(dirname(fileURLToPath(import.meta.url)), 'seeds.js');
  const environment = { ...process.env };
  delete environment.NODE_OPTIONS;
  const child = spawn(process.execPath, [script, '--from', String(from), '--seeds', String(count)], { env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (part: Buffer) => (output += part.toString()));
  return new Promise((done, failed) => {
    child.once('error', failed);
    child.once('close', (code) => done({ code, output }));
  });
}

t.test(`${RUNS} seeds from ${FROM}: nothing that was flushed is lost, nothing is torn, whatever power loss, kill and fault do`, { timeout: 7_200_000 }, async (t) => {
  const share = Math.ceil(RUNS / PROCESSES);
  const runs: Promise<{ code: number | null; output: string }>[] = [];
  for (let i = 0; i < PROCESSES; i++) {
    const count = Math.min(share, RUNS - i * share);
    if (count > 0) runs.push(runSeeds(FROM + i * share, count));
  }
  for (const { code, output } of await Promise.all(runs)) {
    t.equal(code, 0, output);
    t.comment(output.trim().split('\n').at(-1));
  }
});
