/**
 * The servers that the bench compares. Each serves one volume of the same size
 * from the same disk, is told to be done with what it owes before the next one
 * is measured (`settle`), and is stopped by its pid.
 */
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { prepareSingle, preparePair, waitCaughtUp, type Pair, type TestNode } from '../../test/harness/node.js';
import { accepts, adoptProcess, freePort, run, startProcess, waitFor } from '../../test/harness/process.js';
import { LOADGEN, type Target } from './measure.js';

export interface BenchServer extends Target {
  readonly name: string;
  /** The process whose CPU and memory count. */
  readonly pid: number;
  /** Ends all work that earlier requests left behind, as far as the server can be told to. */
  settle(): Promise<void>;
  stop(): Promise<void>;
}

export interface ServerOptions {
  /** A directory of the disk that all servers use. */
  readonly directory: string;
  readonly volumeBytes: number;
  readonly transport: 'unix' | 'tcp';
}

export const SERVER_NAMES = ['lockstep', 'lockstep+async', 'nbdkit', 'nbd-server', 'qemu-nbd', 'null'] as const;
export type ServerName = (typeof SERVER_NAMES)[number];

export async function startServer(name: ServerName, options: ServerOptions): Promise<BenchServer> {
  const directory = join(options.directory, name);
  await mkdir(directory, { recursive: true });
  switch (name) {
    case 'lockstep': return startLockstep(directory, options);
    case 'lockstep+async': return startReplicated(directory, options);
    case 'nbdkit': case 'nbd-server': case 'qemu-nbd': case 'null': return startOther(name, directory, options);
  }
}

// ---- Lockstep ---------------------------------------------------------------

const JOURNAL = { journalSize: '4G', segmentSize: '64M' };

async function tcpAddress(transport: 'unix' | 'tcp'): Promise<string | undefined> {
  return transport === 'tcp' ? `tcp:127.0.0.1:${await freePort()}` : undefined;
}

async function createVolume(node: TestNode, bytes: number): Promise<void> {
  await node.control.createVolume('g', { name: 'vol', size: bytes });
}

/** All that is appended is in the layers' files. */
async function settleNode(node: TestNode): Promise<void> {
  await node.control.flush('g', { upTo: 'destaged' });
}

async function startLockstep(directory: string, options: ServerOptions): Promise<BenchServer> {
  const tcp = await tcpAddress(options.transport);
  const node = prepareSingle(directory, { ...JOURNAL, ...(tcp === undefined ? {} : { nbdAddresses: [tcp, tcp] }) });
  await node.start();
  await createVolume(node, options.volumeBytes);
  return {
    name: 'lockstep', address: tcp ?? `unix:${node.nbdSocket}`, exportName: 'g/vol', pid: node.pid,
    settle: () => settleNode(node),
    stop: () => node.stop(),
  };
}

async function startReplicated(directory: string, options: ServerOptions): Promise<BenchServer> {
  const tcp = await tcpAddress(options.transport);
  const spare = await tcpAddress(options.transport);
  const pair: Pair = await preparePair(directory, { ...JOURNAL, ...(tcp === undefined || spare === undefined ? {} : { nbdAddresses: [tcp, spare] }) });
  await pair.secondary.start();
  await pair.primary.start();
  await createVolume(pair.primary, options.volumeBytes);
  await waitCaughtUp(pair);
  return {
    name: 'lockstep+async', address: tcp ?? `unix:${pair.primary.nbdSocket}`, exportName: 'g/vol', pid: pair.primary.pid,
    async settle() {
      await waitCaughtUp(pair);
      await settleNode(pair.primary);
      await settleNode(pair.secondary);
    },
    async stop() {
      await pair.primary.stop();
      await pair.secondary.stop();
    },
  };
}

// ---- the others -------------------------------------------------------------

interface Started {
  readonly command: string;
  readonly args: readonly string[];
  readonly exportName: string;
}

function commandOf(name: 'nbdkit' | 'nbd-server' | 'qemu-nbd' | 'null', at: { directory: string; file: string; socket: string; port: number | undefined; bytes: number }): Started {
  const { file, socket, port } = at;
  switch (name) {
    case 'nbdkit':
      return { command: 'nbdkit', exportName: '', args: ['-f', ...(port === undefined ? ['-U', socket] : ['-i', '127.0.0.1', '-p', String(port)]), 'file', file] };
    case 'qemu-nbd':
      return {
        command: 'qemu-nbd', exportName: '',
        args: [
          ...(port === undefined ? ['-k', socket] : ['-b', '127.0.0.1', '-p', String(port)]),
          '-f', 'raw', '--persistent', '--shared=16', '--aio=threads', '--cache=writeback', file,
        ],
      };
    case 'nbd-server': {
      const config = join(at.directory, 'config');
      // with a Unix socket it listens nowhere else
      const where = port === undefined ? `unixsock = ${socket}` : `listenaddr = 127.0.0.1\nport = ${port}`;
      writeFileSync(config, `[generic]\n${where}\n[vol]\nexportname = ${file}\nflush = true\nfua = true\ntrim = true\n`);
      return { command: 'nbd-server', exportName: 'vol', args: ['-C', config, '-p', join(at.directory, 'pid')] };
    }
    case 'null':
      return { command: LOADGEN, exportName: '', args: ['--address', port === undefined ? `unix:${socket}` : `tcp:127.0.0.1:${port}`, '--null', String(at.bytes)] };
  }
}

/** Runs a command that goes into the background, and takes over the process whose pid it writes. */
async function startDaemon(command: string, args: readonly string[], pidFile: string): Promise<ReturnType<typeof adoptProcess>> {
  const result = await run(command, args);
  if (result.code !== 0) throw new Error(`${command}: exit code ${result.code}: ${result.stderr}`);
  await waitFor(`${command} writes its pid`, () => existsSync(pidFile) && Number(readFileSync(pidFile, 'utf8')) > 0);
  return adoptProcess(Number(readFileSync(pidFile, 'utf8')));
}

async function startOther(name: 'nbdkit' | 'nbd-server' | 'qemu-nbd' | 'null', directory: string, options: ServerOptions): Promise<BenchServer> {
  const file = join(directory, 'disk.img');
  writeFileSync(file, '');
  truncateSync(file, options.volumeBytes);
  const socket = join(directory, 'nbd');
  const port = options.transport === 'tcp' ? await freePort() : undefined;
  const { command, args, exportName } = commandOf(name, { directory, file, socket, port, bytes: options.volumeBytes });
  const log = join(directory, 'log');
  // nbd-server stays in the foreground for one connection only
  const started = name === 'nbd-server' ? await startDaemon(command, args, join(directory, 'pid')) : startProcess(command, args, { log });
  await waitFor(`${name} accepts connections`, () => {
    if (started.hasEnded()) throw new Error(`${command} ended at once; see ${log}`);
    return accepts(port ?? socket);
  });
  return {
    name, exportName, pid: started.pid,
    address: port === undefined ? `unix:${socket}` : `tcp:127.0.0.1:${port}`,
    async settle() {
      const result = await run('sync', ['-f', file]);
      if (result.code !== 0) throw new Error(`sync: ${result.stderr}`);
    },
    stop: () => started.stop('SIGTERM', 5000),
  };
}
