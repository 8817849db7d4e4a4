/**
 * An NBD server over a memory service on a real Unix socket, stepped by the
 * test itself, and what has to be true when it has ended: no slot, no arena
 * byte, no client left.
 */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { SinkLog } from '../../src/base/log.js';
import type { LogEntry } from '../../src/base/log.js';
import { MIB } from '../../src/base/units.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import type { NbdLimits } from '../../src/nbd/limits.js';
import { NbdServer } from '../../src/nbd/server.js';
import { cleanEnvironment } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { MemoryService } from './memory-service.js';
import { RawClient } from './raw-client.js';

// With the first stream of a process libuv opens a descriptor that it keeps in reserve, which belongs to no test. A
// stdout that is a pipe is a stream already; one that is a file is none.
await new Promise((resolve) => createConnection('/dev/null/none').on('error', () => undefined).once('close', resolve));

/** Long enough for a machine that does other things as well; reached only when a test fails. */
const PATIENCE_MS = 20_000;

export interface RigOptions {
  readonly limits?: Partial<NbdLimits>;
  readonly arenaBytes?: number;
  readonly slots?: number;
}

export interface ToolResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export class Rig {
  readonly directory = makeTempDirectory('nbd');
  readonly path = join(this.directory, 'nbd.sock');
  readonly io: RealIo;
  readonly arena: Arena;
  readonly reactor: Reactor;
  readonly service: MemoryService;
  readonly server: NbdServer;
  readonly entries: LogEntry[] = [];
  private readonly clients = new Set<RawClient>();
  private readonly descriptors = countDescriptors();

  constructor(options: RigOptions = {}) {
    this.io = RealIo.create({ arenaBytes: options.arenaBytes ?? 256 * MIB });
    this.arena = new Arena(this.io);
    this.reactor = new Reactor(this.io, this.arena);
    this.service = new MemoryService(this.reactor, options.slots);
    const log = new SinkLog((entry) => this.entries.push(entry));
    this.server = new NbdServer({ reactor: this.reactor, service: this.service, log, ...(options.limits && { limits: options.limits }) });
    this.server.listen({ kind: 'unix', path: this.path });
  }

  /** A client that has connected, but said nothing. */
  connect(): RawClient {
    const client = new RawClient(this.path);
    this.clients.add(client);
    return client;
  }

  /** A client in the transmission phase. */
  attach(exportName: string, options: { structuredReplies?: boolean; contexts?: string[] } = {}): RawClient {
    const client = this.connect();
    client.greet({ kind: 'go', name: exportName, ...options });
    this.until(() => client.outcome.kind !== 'more', 'the handshake ends');
    if (client.outcome.kind !== 'transmission') throw new Error(`no transmission: ${JSON.stringify(client.outcome)}`);
    return client;
  }

  /** One tick of the server, and one look of each client at its socket. */
  step(): void {
    this.reactor.step(0);
    for (const client of this.clients) client.pump();
  }

  /** Steps until `condition` holds; throws when it never does. */
  until(condition: () => boolean, what: string): void {
    const end = Date.now() + PATIENCE_MS;
    while (!condition()) {
      if (Date.now() > end) throw new Error(`did not happen in ${PATIENCE_MS} ms: ${what}`);
      this.step();
    }
  }

  /** Steps until nothing moves any more: neither in the server nor on a socket. */
  settle(): void {
    const end = Date.now() + PATIENCE_MS;
    for (let quiet = 0; quiet < 20; ) {
      if (Date.now() > end) throw new Error('the server never comes to rest');
      const before = [...this.clients].map((client) => client.moved).join();
      const happened = this.reactor.step(0);
      for (const client of this.clients) client.pump();
      quiet = !happened && before === [...this.clients].map((client) => client.moved).join() ? quiet + 1 : 0;
    }
  }

  /** Runs a program against the server meanwhile. */
  tool(command: string, ...args: string[]): Promise<ToolResult> {
    return new Promise((resolve, reject) => {
      let running = true;
      // nbdsh is a script for `python3`: that has to be the one for which Debian's python3-libnbd is installed.
      const env = cleanEnvironment({ PATH: `/usr/bin:${process.env.PATH ?? ''}` });
      execFile(command, args, { env, timeout: PATIENCE_MS, maxBuffer: 64 * MIB }, (error, stdout, stderr) => {
        running = false;
        if (error === null) resolve({ code: 0, stdout, stderr });
        else if (typeof error.code === 'number') resolve({ code: error.code, stdout, stderr });
        else reject(new Error(`${command}: ${error.message}`));
      });
      const turn = (): void => {
        if (!running) return;
        for (let i = 0; i < 50; i++) this.reactor.step(0);
        setImmediate(turn);
      };
      turn();
    });
  }

  uri(exportName: string): string {
    return `nbd+unix:///${exportName}?socket=${this.path}`;
  }

  logged(pattern: RegExp): LogEntry[] {
    return this.entries.filter((entry) => pattern.test(`${entry.message} ${JSON.stringify(entry.fields)}`));
  }

  /** Ends everything and checks that nothing is left. */
  close(test: typeof t): void {
    for (const client of this.clients) client.close();
    this.until(() => this.server.connectionCount === 0, 'the server notices that its clients have gone');
    let closed = false;
    void this.server.close().then(() => (closed = true));
    // A promise settles only when this function has returned; what it waits for can be seen before.
    this.until(() => this.arena.usedBytes === 0, 'the server gives its memory back');
    test.equal(this.service.requests.used, 0, 'no slot is left in use');
    test.equal(this.arena.usedBytes, 0, 'no arena byte is left in use');
    for (const device of this.service.devices.values()) test.equal(device.clients.size, 0, `${device.exportName} has no client left`);
    this.io.dispose();
    for (const client of this.clients) client.dispose();
    test.equal(countDescriptors(), this.descriptors, 'no descriptor is left open');
    removeTempDirectory(this.directory);
    test.equal(closed, false);
  }
}

function countDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

/** A test case with a rig of its own, which is closed and checked at the end. */
export function withRig(name: string, options: RigOptions, body: (rig: Rig, test: typeof t) => Promise<void> | void): Promise<unknown> {
  return t.test(name, async (test) => {
    const rig = new Rig(options);
    await body(rig, test as unknown as typeof t);
    rig.close(test as unknown as typeof t);
  });
}

/** A small seeded generator (mulberry32): numbers in [0, 1). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes that differ everywhere. */
export function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}
