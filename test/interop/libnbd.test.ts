/** The protocol's finer points through libnbd's Python binding (what nbdsh runs): see the *.py beside this test. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { run } from '../harness/process.js';
import { LOCKSTEP_ONLY, startInteropServer } from './server.js';

const MIB = 2 ** 20;
const SEED = Number(process.env.LOCKSTEP_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** The scripts are not compiled, so they are in the source tree only. */
function scriptPath(): string {
  let at = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(at, 'Makefile'))) at = dirname(at);
  return join(at, 'test', 'interop', 'libnbd_cases.py');
}

const server = await startInteropServer(t);

/** Runs one function of libnbd_cases.py; Debian's own Python has the binding. */
async function python(name: string, ...args: (string | number)[]): Promise<{ code: number; output: string }> {
  const result = await run('/usr/bin/python3', [scriptPath(), name, ...args.map(String)]);
  return { code: result.code, output: `${result.stdout}${result.stderr}` };
}

const CASES: readonly [title: string, name: string, bytes: number, lockstepOnly?: boolean][] = [
  ['structured replies are negotiated, and simple ones serve too', 'structured_and_simple', 16 * MIB],
  ['block status tells data from holes after WRITE, WRITE_ZEROES and TRIM', 'block_status', 64 * MIB],
  ['a READ with DF comes in one chunk', 'read_df', 16 * MIB],
  ['TRIM and WRITE_ZEROES read back as zeros and leave their neighbours', 'trim_and_zero', 16 * MIB, true],
  ['unaligned writes, zeroes and trims match a model', 'unaligned_model', 4 * MIB],
  ['a FLUSH on one connection covers writes acknowledged on another', 'multi_conn', 16 * MIB],
  ['requests beyond the end are refused with the errno of the specification', 'out_of_bounds', 16 * MIB],
  ['many requests under way at once all come back right', 'many_at_once', 64 * MIB],
  ['a request of 32 MiB is served', 'large_request', 128 * MIB],
  ['a TRIM of almost 4 GiB is served', 'huge_trim', 8 * 1024 * MIB],
];

for (const [title, name, bytes, lockstepOnly] of CASES) {
  t.test(title, { skip: lockstepOnly === true ? LOCKSTEP_ONLY : false }, async (t) => {
    const { uri } = await server.volume(name.replaceAll('_', '-'), bytes);
    const { code, output } = await python(name, uri, SEED);
    t.equal(code, 0, `${name}, seed ${SEED}`, { output });
  });
}

t.test('a snapshot keeps what the volume was, and is writable itself', { skip: LOCKSTEP_ONLY }, async (t) => {
  const { uri } = await server.volume('parent', 16 * MIB);
  const steps = async (phase: string): Promise<void> => {
    const { code, output } = await python('snapshot_phase', uri, SEED, phase, server.node.uri('g/parent@s'));
    t.equal(code, 0, phase, { output });
  };
  await steps('before');
  await server.node.control.snapshot('g', { source: 'parent', name: 's' });
  await steps('after');
  await steps('write-snapshot');
});

t.test('what was acknowledged with FUA or flushed is there after kill -9', { skip: LOCKSTEP_ONLY }, async (t) => {
  const { uri } = await server.volume('killed', 16 * MIB);
  const written = await python('durable_write', uri, SEED);
  t.equal(written.code, 0, 'written', { output: written.output });
  await server.node.kill();
  await server.node.start();
  const read = await python('durable_check', uri, SEED);
  t.equal(read.code, 0, 'read back', { output: read.output });
});
