/** The command line in this process, against a real control server with a canned data path. */
import { join } from 'node:path';
import { silentLog } from '../../src/base/log.js';
import type { Streams } from '../../src/cli/context.js';
import { runCommandLine } from '../../src/cli/program.js';
import { ControlServer } from '../../src/control/server.js';
import { CREATED_MS, FakePort } from '../control/fake-port.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

export interface Result {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface Cli {
  readonly port: FakePort;
  readonly directory: string;
  readonly socket: string;
  run(...argv: string[]): Promise<Result>;
}

/** `over` replaces members of the streams. The clock stands 90 minutes after the fake daemon's start. */
export async function openCli(t: { teardown(action: () => unknown): void }, over: Partial<Streams> = {}): Promise<Cli> {
  const directory = makeTempDirectory('cli');
  const socket = join(directory, 's');
  const port = new FakePort();
  const server = await ControlServer.open({ socket, port, log: silentLog, followMs: 5 });
  t.teardown(async () => {
    await server.close();
    removeTempDirectory(directory);
  });
  return { port, directory, socket, run: (...argv) => runCli(argv, { env: { LOCKSTEP_SOCKET: socket }, ...over }) };
}

export async function runCli(argv: readonly string[], over: Partial<Streams> = {}): Promise<Result> {
  let out = '';
  let err = '';
  const code = await runCommandLine(argv, {
    out: (text) => void (out += text), err: (text) => void (err += text), terminal: false, now: () => CREATED_MS + 90 * 60_000,
    env: {}, interrupted: new AbortController().signal, ...over,
  });
  return { code, out, err };
}
