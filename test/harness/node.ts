/**
 * A Lockstep node in a process of its own: writes its config, starts the real
 * daemon, waits until its control socket answers, runs the real CLI against it,
 * kills and restarts it. Used by tests, the bench and the demo; knows the
 * config's and the CLI's surface and nothing inside the daemon.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ControlClient } from '../../src/control/client.js';
import type { GroupStatus } from '../../src/control/schema/status.js';
import { freePort, run, startProcess, waitFor, type Finished, type RunningProcess } from './process.js';

const DIST = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
export const DAEMON = join(DIST, 'src', 'main.js');
export const CLI = join(DIST, 'src', 'cli', 'main.js');

/** The config's JSON, as src/config/schema.ts defines it; tests may add any key to it. */
export type NodeConfig = Record<string, unknown>;

export class CommandFailed extends Error {
  constructor(readonly args: readonly string[], readonly result: Finished) {
    super(`lockstep ${args.join(' ')}: exit code ${result.code}\n${result.stdout}${result.stderr}`);
  }
}

/** Whether an HTTP server answers on a Unix socket, with whatever status. */
function answers(socketPath: string): Promise<boolean> {
  return new Promise((done) => {
    const call = request({ socketPath, path: '/', timeout: 2000 }, (response) => {
      response.resume();
      done(true);
    });
    call.once('timeout', () => call.destroy());
    call.once('error', () => done(false));
    call.end();
  });
}

export class TestNode {
  private process: RunningProcess | undefined;

  private constructor(readonly name: string, readonly directory: string, readonly config: NodeConfig) {}

  /** `directory` must exist and is the caller's; `config` needs `node`, and gets data directory, control and NBD sockets where it has none. */
  static prepare(directory: string, config: NodeConfig & { node: string }): TestNode {
    const full: NodeConfig = {
      dataDirectory: join(directory, config.node),
      control: { socket: join(directory, `${config.node}.sock`) },
      nbd: { listen: [`unix:${join(directory, `${config.node}.nbd`)}`] },
      ...config,
    };
    return new TestNode(config.node, directory, full);
  }

  get controlSocket(): string {
    return (this.config.control as { socket: string }).socket;
  }

  /** The control API, without a process per call. */
  get control(): ControlClient {
    return new ControlClient(this.controlSocket);
  }

  get nbdSocket(): string {
    return join(this.directory, `${this.name}.nbd`);
  }

  get logFile(): string {
    return join(this.directory, `${this.name}.log`);
  }

  get log(): string {
    return existsSync(this.logFile) ? readFileSync(this.logFile, 'utf8') : '';
  }

  get pid(): number {
    if (this.process === undefined) throw new Error(`node ${this.name} is not started`);
    return this.process.pid;
  }

  get running(): boolean {
    return this.process !== undefined && !this.process.hasEnded();
  }

  /** An address for libnbd's and qemu's tools; `device` is `group/volume` or `group/volume@snapshot`. */
  uri(device: string): string {
    return `nbd+unix:///${encodeURIComponent(device)}?socket=${this.nbdSocket}`;
  }

  /** Starts the daemon, with more arguments than its configuration if there are any, and waits until it answers; throws with its log when it ends before that. */
  async start(timeoutMs = 30_000, more: readonly string[] = []): Promise<void> {
    const file = join(this.directory, `${this.name}.json`);
    mkdirSync(this.config.dataDirectory as string, { recursive: true });
    writeFileSync(file, JSON.stringify(this.config, undefined, 2));
    const process_ = startProcess(process.execPath, [DAEMON, '--config', file, ...more], { log: this.logFile });
    this.process = process_;
    await waitFor(`node ${this.name} answers on ${this.controlSocket}`, async () => {
      if (process_.hasEnded()) {
        const { code, signal } = await process_.ended;
        throw new Error(`node ${this.name} ended with ${String(code ?? signal)}:\n${this.log.slice(-4000)}`);
      }
      return answers(this.controlSocket);
    }, timeoutMs);
  }

  /** Waits for the end of a daemon that is to end by itself, and returns its exit code (null: by a signal). */
  async exitCode(): Promise<number | null> {
    if (this.process === undefined) throw new Error(`node ${this.name} is not started`);
    return (await this.process.ended).code;
  }

  /** A clean stop. */
  async stop(): Promise<void> {
    await this.process?.stop('SIGTERM');
  }

  /** kill -9. */
  async kill(): Promise<void> {
    await this.process?.stop('SIGKILL');
  }

  /** Runs the CLI; the exit code is part of the result. */
  lockstep(...args: string[]): Promise<Finished> {
    return run(process.execPath, [CLI, '--socket', this.controlSocket, ...args]);
  }

  /** Runs the CLI with --json and returns its reply; throws CommandFailed for any other exit code than 0. */
  async command<T = Record<string, unknown>>(...args: string[]): Promise<T> {
    const result = await this.lockstep('--json', ...args);
    if (result.code !== 0) throw new CommandFailed(args, result);
    return JSON.parse(result.stdout) as T;
  }

  /** The status of one group, over the control API. */
  async group(name: string): Promise<GroupStatus> {
    const status = await this.control.status();
    const group = status.groups.find((one) => one.name === name);
    if (group === undefined) throw new Error(`node ${this.name} has no group ${name}`);
    return group;
  }
}

export interface PairOptions {
  readonly group?: string;
  readonly journalSize?: string;
  readonly segmentSize?: string;
  /** Also listen for NBD on TCP at these ports of the loopback (primary, secondary). */
  readonly nbdAddresses?: readonly [string, string];
  /** Merged into the group of both nodes. */
  readonly groupExtra?: Record<string, unknown>;
}

export interface Pair {
  readonly primary: TestNode;
  readonly secondary: TestNode;
}

/** Prepares (does not start) `alpha`, primary, and `beta`, secondary, of one group, linked over TCP with a shared secret. */
export async function preparePair(directory: string, options: PairOptions = {}): Promise<Pair> {
  const group = options.group ?? 'g';
  const secretFile = join(directory, 'secret');
  writeFileSync(secretFile, `${Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('hex')}\n`, { mode: 0o600 });
  const [alphaPort, betaPort] = [await freePort(), await freePort()];
  const journal = { size: options.journalSize ?? '256M', segmentSize: options.segmentSize ?? '16M' };
  const node = (name: string, role: string, port: number, peer: Record<string, unknown>, nbd?: string): TestNode =>
    TestNode.prepare(directory, {
      node: name,
      link: { listen: `tcp:127.0.0.1:${port}` },
      nbd: { listen: [`unix:${join(directory, `${name}.nbd`)}`, ...(nbd === undefined ? [] : [nbd])] },
      groups: [{ name: group, role, journal, peers: [{ ...peer, secretFile }], ...options.groupExtra }],
    });
  return {
    primary: node('alpha', 'primary', alphaPort, { node: 'beta', address: `tcp:127.0.0.1:${betaPort}` }, options.nbdAddresses?.[0]),
    secondary: node('beta', 'secondary', betaPort, { node: 'alpha' }, options.nbdAddresses?.[1]),
  };
}

/** Prepares one node with one group without peers. */
export function prepareSingle(directory: string, options: PairOptions & { name?: string } = {}): TestNode {
  const journal = { size: options.journalSize ?? '256M', segmentSize: options.segmentSize ?? '16M' };
  const name = options.name ?? 'solo';
  return TestNode.prepare(directory, {
    node: name,
    nbd: { listen: [`unix:${join(directory, `${name}.nbd`)}`, ...(options.nbdAddresses?.slice(0, 1) ?? [])] },
    groups: [{ name: options.group ?? 'g', role: 'primary', journal, peers: [], ...options.groupExtra }],
  });
}

/** Waits until the secondary has applied all that the primary has appended by now. */
export async function waitCaughtUp(pair: Pair, group = 'g', timeoutMs = 60_000): Promise<void> {
  const { lsn } = await pair.primary.group(group);
  await waitFor(`${pair.secondary.name} has applied LSN ${lsn.appended}`, async () => {
    return (await pair.secondary.group(group)).lsn.applied >= lsn.appended;
  }, timeoutMs);
}
