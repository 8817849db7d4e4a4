#!/usr/bin/env node
/** `lockstep`: the process around the command line. Exit codes: 0 done, 1 failed, 2 something a person has to change. */

import { runCommandLine } from './program.js';

const interrupt = new AbortController();
process.once('SIGINT', () => {
  interrupt.abort();
  // Only a following dump ends by itself; everything else ends here, as shells expect.
  process.once('SIGINT', () => process.exit(130));
  setTimeout(() => process.exit(130), 1000).unref();
});

// Without listeners these throw, and a full disk is no bug.
process.stdout.on('error', outputFailed);
process.stderr.on('error', () => process.exit(1));

function outputFailed(error: NodeJS.ErrnoException): void {
  // `lockstep journal dump g | head`: the reader has what it wanted.
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`lockstep: cannot write the output: ${error.message}\n`, () => process.exit(1));
}

const code = await runCommandLine(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  terminal: process.stdout.isTTY === true,
  now: () => Date.now(),
  env: process.env,
  interrupted: interrupt.signal,
});
// A write to a pipe is only queued; exit would cut it off. The callbacks run when all before them is out. A stream
// that failed calls back too, and says so through `outputFailed`.
process.exitCode = code;
process.stdout.write('', (failed) => {
  if (failed === undefined || failed === null) process.stderr.write('', () => process.exit(code));
});
