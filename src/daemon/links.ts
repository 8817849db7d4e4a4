/**
 * The links of all groups of this node, and the listener for those that others
 * dial. Owns: construction and look-up by group. Must not know: how links work.
 */

import { formatAddress } from '../base/address.js';
import { OperatorError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { Config } from '../config/schema.js';
import type { LinkDropReply, LinkEntry } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';
import type { Objection, Question } from '../replication/asking.js';
import { CONNECTION_ARENA_BYTES } from '../replication/connection.js';
import { GroupLinks } from '../replication/links.js';
import { LinkListener } from '../replication/listener.js';
import { DEFAULT_LINK_OPTIONS } from '../replication/options.js';
import type { LinkOptions } from '../replication/options.js';
import { SHIPPER_ARENA_BYTES } from '../replication/shipper.js';

/** Half of the allowed connections may be strangers: a flood of them keeps no peer out. */
const STRANGER_SHARE = 0.5;

function strangersOf(config: Config): number {
  return Math.max(1, Math.floor(config.link.maxConnections * STRANGER_SHARE));
}

/** Peers of all groups. */
export function peerCount(config: Config): number {
  return config.groups.reduce((sum, group) => sum + group.peers.length, 0);
}

/** Arena bytes of all links of a node with one window of `windowBytes` each: a peer may be connected in both directions, and ships or receives in one. */
export function linkArenaBytes(config: Config, windowBytes: number): number {
  return peerCount(config) * (windowBytes + 2 * (CONNECTION_ARENA_BYTES + SHIPPER_ARENA_BYTES)) + (config.link.listen === undefined ? 0 : strangersOf(config) * CONNECTION_ARENA_BYTES);
}

export class Links {
  private readonly byGroup = new Map<string, GroupLinks>();
  private readonly listener: LinkListener | undefined;

  constructor(reactor: Reactor, config: Config, groups: readonly Group[], log: Log, changes: Partial<LinkOptions> = {}) {
    const options: LinkOptions = { ...DEFAULT_LINK_OPTIONS, handshakeUs: config.link.handshakeSeconds * 1e6, ...changes };
    for (const group of groups) {
      const peers = config.groups.find((one) => one.name === group.name)?.peers ?? [];
      const links = new GroupLinks(reactor, group, config.node, peers, options, log.child({ group: group.name, part: 'link' }));
      group.onRole(() => links.rolesChanged());
      this.byGroup.set(group.name, links);
    }
    if (config.link.listen !== undefined) {
      const { maxConnections } = config.link;
      this.listener = new LinkListener(reactor, config.node, {
        address: config.link.listen, maxConnections, maxStrangers: strangersOf(config), link: options,
      }, [...this.byGroup.values()], log.child({ part: 'link' }));
    }
  }

  /** Listens and dials. Throws IoError. */
  start(): void {
    this.listener?.open();
    for (const links of this.byGroup.values()) links.start();
  }

  /** The address of the listener as bound, or null. */
  listening(): string | null {
    return this.listener === undefined ? null : formatAddress(this.listener.address);
  }

  status(group: string): LinkEntry[] {
    return this.byGroup.get(group)?.status() ?? [];
  }

  /** Gives a peer up: nothing is retained for it. Throws OperatorError. */
  drop(group: Group, peer: string): LinkDropReply {
    const links = this.byGroup.get(group.name);
    if (links === undefined || !group.hasContent) throw new OperatorError('link/not-found', `group ${group.name} has no link to ${peer}`);
    const retainedBefore = group.retainedLsn();
    const lsn = links.drop(peer);
    const needed = Math.min(group.retainedLsn(), group.content.checkpointer.lowWater.lsn);
    return { peer, lsn, freedBytes: Math.max(0, needed - Math.min(retainedBefore, needed)) };
  }

  /** `done(null)` when every secondary has applied everything below `lsn`, or a sentence when the time is over. Returns what takes that back. */
  whenApplied(group: string, lsn: number, limitUs: number, done: (notice: string | null) => void): () => void {
    const links = this.byGroup.get(group);
    if (links !== undefined) return links.whenApplied(lsn, limitUs, done);
    done(null);
    return () => undefined;
  }

  /** GroupLinks.ask. */
  ask(group: string, question: Question, limitUs: number, done: (objections: Objection[] | undefined) => void): () => void {
    const links = this.byGroup.get(group);
    if (links !== undefined) return links.ask(question, limitUs, done);
    done([]);
    return () => undefined;
  }

  /** The peer that this node follows now. */
  connectedPrimary(group: string): string | undefined {
    return this.byGroup.get(group)?.connectedPrimary;
  }

  close(): void {
    this.listener?.close();
    for (const links of this.byGroup.values()) links.close();
  }
}
