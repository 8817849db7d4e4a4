/**
 * `make test-kernel`: every scenario in a guest of its own; a line for each and
 * the closing line `N passed, N failed`.
 *
 *   run.js [--server lockstep|nbdkit] [SCENARIO ...]
 */
import { join, resolve, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { run } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { SCENARIOS } from './scenarios.js';

const HERE = dirname(fileURLToPath(import.meta.url));
/** The script is no TypeScript, so it is in the source tree only. */
const GUEST = join(resolve(HERE, '..', '..', '..'), 'test', 'kernel', 'guest');
const LIMIT_SECONDS = 420;

for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) process.once(signal, () => process.exit(code));

const words = process.argv.slice(2);
const at = words.indexOf('--server');
const server = at < 0 ? 'lockstep' : words.splice(at, 2)[1];
const unknown = words.filter((word) => !(word in SCENARIOS));
if (unknown.length > 0 || (server !== 'lockstep' && server !== 'nbdkit')) {
  console.error(`usage: run.js [--server lockstep|nbdkit] [${Object.keys(SCENARIOS).join('|')} ...]`);
  process.exit(2);
}
const names = words.length > 0 ? words : Object.keys(SCENARIOS);
let passed = 0;
for (const name of names) {
  const begun = performance.now();
  // made out here, because what runs in the namespaces may be killed with them
  const directory = makeTempDirectory('kernel');
  const result = await run(GUEST, ['-t', String(LIMIT_SECONDS), process.execPath, join(HERE, 'scenario.js'), name, server, directory], { timeoutMs: (LIMIT_SECONDS + 30) * 1000 });
  removeTempDirectory(directory);
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  if (result.code === 0) passed++;
  console.log(`${result.code === 0 ? 'ok  ' : 'FAIL'} ${name}  ${seconds} s`);
  if (result.code !== 0) console.log(`${result.stdout}${result.stderr}exit status ${result.code}`.replace(/^/gm, '    '));
}
console.log(`${passed} passed, ${names.length - passed} failed`);
process.exitCode = passed === names.length ? 0 : 1;
