/**
 * The server that the interop tests talk to: a Lockstep node with a volume per
 * test, or (LOCKSTEP_STANDIN=nbdkit) nbdkit's memory plugin, which tells a
 * fault of a test from one of Lockstep.
 */
import { join } from 'node:path';
import type { TAP, Test } from 'tap';
import { prepareSingle, type TestNode } from '../harness/node.js';
import { accepts, run, startProcess, waitFor, type Finished } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

export const STANDIN = process.env.LOCKSTEP_STANDIN === 'nbdkit';
/** The reason to skip a test that only Lockstep can pass; false otherwise. */
export const LOCKSTEP_ONLY: string | false = STANDIN ? 'not with the stand-in' : false;

export interface Volume {
  /** For libnbd, qemu and fio. */
  readonly uri: string;
  readonly name: string;
}

export interface InteropServer {
  readonly directory: string;
  /** The node; throws with the stand-in. */
  readonly node: TestNode;
  volume(name: string, bytes: number): Promise<Volume>;
}

/** Starts the server; it ends with the test file. */
export async function startInteropServer(t: TAP): Promise<InteropServer> {
  const directory = makeTempDirectory('interop');
  const node = prepareSingle(directory);
  const standins: ReturnType<typeof startProcess>[] = [];
  t.teardown(async () => {
    await node.stop();
    await Promise.all(standins.map((one) => one.stop()));
    removeTempDirectory(directory);
  });
  if (!STANDIN) await node.start();
  return {
    directory,
    get node(): TestNode {
      if (STANDIN) throw new Error('the stand-in is no node');
      return node;
    },
    async volume(name, bytes) {
      if (!STANDIN) {
        await node.control.createVolume('g', { name, size: bytes });
        return { name: `g/${name}`, uri: node.uri(`g/${name}`) };
      }
      const socket = join(directory, `${name}.standin`);
      standins.push(startProcess('nbdkit', ['-f', '-U', socket, 'memory', String(bytes)]));
      await waitFor('nbdkit accepts', () => accepts(socket));
      return { name: '', uri: `nbd+unix:///?socket=${socket}` };
    },
  };
}

/** Runs a command that must end with 0; the test fails with what it printed otherwise. */
export async function succeed(t: Test, command: string, ...args: string[]): Promise<string> {
  const result: Finished = await run(command, args);
  if (result.code !== 0) t.fail(`${command} ${args.join(' ')}: exit status ${result.code}`, { stdout: result.stdout, stderr: result.stderr });
  return result.stdout;
}
