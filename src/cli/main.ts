#!/usr/bin/env node
/** `lockstep`: the process around the command line. Exit codes: 0 done, 1 failed, 2 something a person has to change. */

import { runCommandLine } from './program.js';

const interrupt = new AbortController();
/** Commands that have something to undo before the process may end. */
let holding = 0;
/** What the process ends with after a signal, as shells have it. */
let interruptedWith = 0;
const END_CODES = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

function stopBy(signal: keyof typeof END_CODES): void {
  const again = interrupt.signal.aborted;
  const code = END_CODES[signal];
  interruptedWith = code;
  interrupt.abort();
  if (again && signal === 'SIGINT') process.exit(code);
  if (holding > 0) return;
  // Only a following dump ends by itself; everything else ends here, as shells expect.
  setTimeout(() => process.exit(code), 1000).unref();
}

process.on('SIGINT', stopBy);

/** See Streams.hold. These two end the process at once unless something has to be undone first. */
function hold(): () => void {
  holding++;
  for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.on(signal, stopBy);
  let held = true;
  return () => {
    if (!held) return;
    held = false;
    holding--;
    for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.off(signal, stopBy);
  };
}

// Without listeners these throw, and a full disk is no bug.
process.stdout.on('error', outputFailed);
process.stderr.on('error', () => process.exit(1));

/** Set when a command speaks with another program over standard output, and judges by itself what its end means. */
let piped = false;

function outputFailed(error: NodeJS.ErrnoException): void {
  if (piped) return;
  // `lockstep journal dump g | head`: the reader has what it wanted.
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`lockstep: cannot write the output: ${error.message}\n`, () => process.exit(1));
}

/** Resolves when the pipe takes more; a pipe that has gone ends the process (outputFailed). */
function writeBytes(bytes: Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    if (process.stdout.write(bytes)) resolve();
    else process.stdout.once('drain', resolve);
  });
}

const code = await runCommandLine(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  terminal: process.stdout.isTTY === true,
  now: () => Date.now(),
  env: process.env,
  interrupted: interrupt.signal,
  hold,
  takePipe: () => {
    piped = true;
    return { input: process.stdin, output: process.stdout };
  },
  binary: {
    write: writeBytes,
    read: () => process.stdin as AsyncIterable<Buffer>,
    terminal: process.stdin.isTTY === true,
  },
});
// A write to a pipe is only queued; exit would cut it off. The callbacks run when all before them is out. A stream
// that failed calls back too, and says so through `outputFailed`.
const exitCode = code === 0 || interruptedWith === 0 ? code : interruptedWith;
process.exitCode = exitCode;
process.stdout.write('', (failed) => {
  if (failed === undefined || failed === null || piped) process.stderr.write('', () => process.exit(exitCode));
});
