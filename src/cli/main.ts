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

// `lockstep journal dump g | head`: the reader has what it wanted.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(0);
});

const code = await runCommandLine(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  terminal: process.stdout.isTTY === true,
  now: () => Date.now(),
  env: process.env,
  interrupted: interrupt.signal,
});
process.exit(code);
