/**
 * Nodes with groups and links for the tests of replication/: over real sockets
 * and files in one process, whose reactors are stepped in turn, or in the
 * simulator.
 */
import type { Test } from 'tap';
import type { Address } from '../../src/base/address.js';
import { silentLog, SinkLog } from '../../src/base/log.js';
import type { Log, LogEntry } from '../../src/base/log.js';
import { Arena } from '../../src/io/arena.js';
import type { Io } from '../../src/io/io.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import type { PeerConfig } from '../../src/replication/link.js';
import { GroupLinks } from '../../src/replication/links.js';
import { LinkListener } from '../../src/replication/listener.js';
import { DEFAULT_LINK_OPTIONS } from '../../src/replication/options.js';
import type { LinkOptions } from '../../src/replication/options.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { MemoryGroup } from './memory-group.js';
import type { MemoryGroupOptions } from './memory-group.js';

export const SECRET = new Uint8Array(32).fill(7);
export const FAST: LinkOptions = {
  ...DEFAULT_LINK_OPTIONS, heartbeatUs: 50_000, backoffLowUs: 2_000, backoffHighUs: 50_000, idleUs: 20_000, holdUs: 2_000, lingerUs: 100_000,
};

/** A group on a node with its links, and optionally a listener. */
export class TestNode {
  readonly arena: Arena;
  readonly reactor: Reactor;
  group!: MemoryGroup;
  links!: GroupLinks;
  listener: LinkListener | undefined;
  readonly entries: LogEntry[] = [];
  readonly log: Log;
  private removeHook: (() => void) | undefined;

  constructor(readonly name: string, readonly io: Io, readonly directory: string, logs = true) {
    this.arena = new Arena(io);
    this.reactor = new Reactor(io, this.arena);
    this.log = logs ? new SinkLog((entry) => void this.entries.push(entry)) : silentLog;
  }

  openGroup(options: Partial<MemoryGroupOptions> = {}): MemoryGroup {
    this.group = new MemoryGroup(this.reactor, { directory: `${this.directory}/${options.name ?? 'g'}`, node: this.name, ...options });
    return this.group;
  }

  connect(peers: PeerConfig[], options: LinkOptions = FAST): GroupLinks {
    this.links = new GroupLinks(this.reactor, this.group, this.name, peers, options, this.log);
    return this.links;
  }

  listen(address: Address, options: Partial<{ maxConnections: number; maxStrangers: number; link: LinkOptions }> = {}): LinkListener {
    this.listener = new LinkListener(
      this.reactor, this.name, { address, maxConnections: 64, maxStrangers: 16, link: FAST, ...options }, [this.links], this.log,
    );
    this.listener.open();
    return this.listener;
  }

  get codes(): string[] {
    return this.entries.map((entry) => String(entry.fields.code ?? ''));
  }

  closeLinks(): void {
    this.links.close();
    this.listener?.close();
    this.removeHook?.();
  }
}

export interface RealRig {
  readonly directory: string;
  node(name: string, arenaBytes?: number): TestNode;
  /** Steps all nodes in turn until the condition holds; fails after 30 s. */
  until(condition: () => boolean, what?: string): void;
  /** Steps all nodes for about this long: for things that must not happen. */
  spend(milliseconds: number): void;
  /** An address that only this rig uses. */
  address(name: string): Address;
}

export function realRig(test: Pick<Test, 'teardown'>): RealRig {
  const directory = makeTempDirectory('link');
  const nodes: TestNode[] = [];
  const step = (): void => {
    let happened = false;
    for (const node of nodes) happened = node.reactor.step(0) || happened;
    if (!happened) nodes[0].reactor.step(300);
  };
  test.teardown(() => {
    for (const node of nodes) {
      node.closeLinks();
      node.group.close();
      while (node.reactor.jobsInFlight > 0) node.reactor.step(1000);
      node.io.dispose();
    }
    removeTempDirectory(directory);
  });
  return {
    directory,
    node(name, arenaBytes = 64 * 1024 * 1024) {
      const node = new TestNode(name, RealIo.create({ arenaBytes }), `${directory}/${name}`);
      nodes.push(node);
      return node;
    },
    until(condition, what = 'the condition') {
      const deadline = Date.now() + 30_000;
      while (!condition()) {
        if (Date.now() > deadline) {
          const states = nodes.map((node) => `${node.name}: ${node.group.role} at ${node.group.position.lsn}, ${JSON.stringify(node.links.status())}, log ${node.entries.map((one) => one.message).join(' | ')}`);
          throw new Error(`waited 30 s for ${what} in vain\n${states.join('\n')}`);
        }
        step();
      }
    },
    spend(milliseconds) {
      const end = Date.now() + milliseconds;
      while (Date.now() < end) step();
    },
    address: (name) => ({ kind: 'unix', path: `${directory}/${name}.sock` }),
  };
}

/** A primary `a` that dials a secondary `b`; nothing is started yet. */
export function pair(rig: RealRig, options: LinkOptions = FAST, group: Partial<MemoryGroupOptions> = {}): { a: TestNode; b: TestNode } {
  const [a, b] = [rig.node('a'), rig.node('b')];
  a.openGroup(group).found();
  b.openGroup(group);
  a.connect([{ node: 'b', address: rig.address('b'), secret: SECRET }], options);
  b.connect([{ node: 'a', secret: SECRET }], options);
  b.listen(rig.address('b'), { link: options });
  return { a, b };
}
