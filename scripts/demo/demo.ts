/**
 * `make demo`: runs the story of steps.ts where there is a kernel with an NBD
 * driver, and leaves nothing behind, whatever happens: the processes are
 * children by pid (in the guest's case in namespaces of their own), all files
 * are in one temporary directory.
 */
import { spawn } from 'node:child_process';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cleanEnvironment } from '../../test/harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../../test/harness/temp.js';
import { hostHasNbd } from './shell.js';

const HERE = dirname(fileURLToPath(import.meta.url));
const GUEST = join(resolve(HERE, '..', '..', '..'), 'test', 'kernel', 'guest');
const LIMIT_SECONDS = 600;

const directory = makeTempDirectory('demo');
const steps = [process.execPath, join(HERE, 'steps.js'), directory];
const [program, ...args] = hostHasNbd() ? steps : [GUEST, '-t', String(LIMIT_SECONDS), ...steps];
const child = spawn(program, args, { env: cleanEnvironment(), stdio: 'inherit' });
let interrupted = 0;
for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) {
  process.on(signal, () => {
    interrupted = code;
    child.kill('SIGTERM');
  });
}
const code = await new Promise<number>((done) => {
  child.once('error', (error) => {
    console.error(`demo: cannot start ${program}: ${error.message}`);
    done(1);
  });
  child.once('exit', (status) => done(status ?? 1));
});
removeTempDirectory(directory);
process.exitCode = interrupted !== 0 ? interrupted : code;
if (interrupted !== 0) console.error('\ninterrupted; nothing is left behind');
