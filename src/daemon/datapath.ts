/**
 * Everything that lives on the data thread, put together over an `Io`: groups,
 * NBD server, links. The same graph runs in the worker over the real system and
 * in the simulator over a fake one.
 *
 * Owns: construction and the order of the end. Must not know: threads, HTTP.
 */

import { resolve } from 'node:path';
import type { Address } from '../base/address.js';
import { formatAddress } from '../base/address.js';
import { CorruptionError, IoError, OperatorError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { KIB, MIB } from '../base/units.js';
import type { Config, GroupConfig } from '../config/schema.js';
import { NodeBlocks } from '../group/blocks.js';
import { isRefusal } from '../group/content/place.js';
import { Group } from '../group/group.js';
import type { GroupOptions } from '../group/group.js';
import { warmUpMarkers } from '../group/tree/record.js';
import { RequestTable } from '../group/requests/requests.js';
import { rehearsal } from '../group/tree/tree.js';
import { mkdirs } from '../io/file.js';
import { SCRATCH_BYTES } from '../io/arena.js';
import type { SpaceStat } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { MAX_BATCH_PAYLOAD } from '../journal/format.js';
import { NbdServer } from '../nbd/server.js';
import type { Listener } from '../nbd/listener.js';
import { BlockCache } from '../store/blockcache.js';
import { warmUpGraft } from '../store/map/graft.js';
import type { WalkerOptions } from '../store/walk/walker.js';
import { listening, tryAddresses } from './addresses.js';
import { drainVolatile } from './followers.js';
import { Links } from './links.js';
import { openLayers, takeFixedMemory } from './memory.js';

/** What the simulator makes smaller. */
export interface Scale {
  readonly requestSlots: number;
  readonly destageBufferBytes: number;
  readonly checkpointBufferBytes: number;
  readonly maxBatchPayload: number;
  readonly compactSlackBytes: number;
  /** The journal is made durable at the latest when this part of it is not: nothing can be destaged before. */
  readonly syncFraction: number;
  /** A destage round starts when this part of the journal was written since the last one ... */
  readonly destageFraction: number;
  /** ... or this long after the first pending block, microseconds. */
  readonly destageUs: number;
  readonly retryUs: number;
  readonly walker?: Partial<WalkerOptions>;
}

export const DEFAULT_SCALE: Scale = {
  requestSlots: 16384,
  destageBufferBytes: MIB,
  checkpointBufferBytes: 64 * KIB,
  maxBatchPayload: MAX_BATCH_PAYLOAD,
  compactSlackBytes: 64 * MIB,
  syncFraction: 0.125,
  destageFraction: 0.375,
  destageUs: 5_000_000,
  retryUs: 1_000_000,
};

/** What the data path is given beside its configuration. */
export interface Surroundings {
  readonly bootId: string;
  readonly space: (path: string) => SpaceStat;
  readonly scale?: Scale;
  /** Groups whose data an operator accepts as they are, and from which LSN on (group/content/place.ts). */
  readonly accepted?: ReadonlyMap<string, number>;
  /** Descriptors that this process may have; undefined = as few as any system allows. */
  readonly descriptors?: number;
  /** False: no NBD listeners (simulations that submit requests themselves). */
  readonly serveNbd?: boolean;
}

/** A group whose directory could not be opened; the others are served. */
export interface BrokenGroup {
  readonly name: string;
  readonly problem: string;
  /** The problem says what to do. */
  readonly refused: boolean;
}

export class DataPath {
  readonly blocks: NodeBlocks;
  /** Undefined when no NBD is served (simulations). */
  readonly nbd: NbdServer | undefined;
  readonly links: Links;
  readonly blockCache: BlockCache;
  readonly broken: BrokenGroup[] = [];
  private readonly nbdListeners: { address: Address; listener: Listener }[] = [];
  private closing = false;

  private constructor(readonly reactor: Reactor, readonly config: Config, readonly log: Log, private readonly surroundings: Surroundings) {
    const scale = surroundings.scale ?? DEFAULT_SCALE;
    const windows = takeFixedMemory(reactor.arena, config, scale, surroundings.serveNbd !== false);
    this.blockCache = new BlockCache(reactor.arena.u8, SCRATCH_BYTES + reactor.arena.capacityBytes);
    this.blocks = new NodeBlocks(new RequestTable(scale.requestSlots));
    warmUpMarkers(rehearsal());
    warmUpGraft();
    for (const group of config.groups) this.openGroup(group, scale);
    // After the groups: a tick appends and applies before it sends replies.
    this.links = new Links(reactor, config, [...this.blocks.all()], log, windows === undefined ? {} : { windows, readBytes: windows.bytes, receiveBytes: windows.bytes });
    if (surroundings.serveNbd === false) return;
    this.nbd = new NbdServer({
      reactor, service: this.blocks, log: log.child({ part: 'nbd' }),
      limits: { maxConnections: config.nbd.maxConnections, handshakeTimeoutMs: config.nbd.handshakeSeconds * 1000 },
    });
  }

  /** Opens everything; blocking. A group that cannot be opened is reported in `broken`. Throws OperatorError for listeners, and when the arena is too small. */
  static open(reactor: Reactor, config: Config, log: Log, surroundings: Surroundings): DataPath {
    for (const name of surroundings.accepted?.keys() ?? []) {
      if (!config.groups.some((group) => group.name === name)) throw new OperatorError('usage', `--accept-inconsistent names ${name}, and the configuration has no such group`);
    }
    // Each by itself: a directory that exists may not have a durable name yet.
    mkdirs(reactor.io, config.dataDirectory);
    mkdirs(reactor.io, `${config.dataDirectory}/groups`);
    tryAddresses(reactor, config, surroundings.serveNbd !== false);
    const path = new DataPath(reactor, config, log, surroundings);
    listening('link.listen', config.link.listen, () => path.links.start());
    const { nbd } = path;
    if (nbd !== undefined) {
      for (const address of config.nbd.listen) path.nbdListeners.push({ address, listener: listening('nbd.listen', address, () => nbd.listen(address)) });
    }
    return path;
  }

  private openGroup(group: GroupConfig, scale: Scale): void {
    const log = this.log.child({ group: group.name });
    const directory = `${this.config.dataDirectory}/groups/${group.name}`;
    try {
      mkdirs(this.reactor.io, directory);
      this.blocks.add(Group.open(this.reactor, this.groupOptions(group, directory, scale), this.blocks.requests, log));
    } catch (error) {
      const refused = isRefusal(error);
      if (!refused && !(error instanceof CorruptionError) && !(error instanceof IoError)) throw error;
      this.broken.push({ name: group.name, problem: error.message, refused });
      log.error(`cannot be opened and is not served: ${error.message}`);
    }
  }

  private groupOptions(group: GroupConfig, directory: string, scale: Scale): GroupOptions {
    const maxSegments = Math.floor(group.journal.size / group.journal.segmentSize);
    const acceptedLsn = this.surroundings.accepted?.get(group.name);
    return {
      ...(group.journal.directory === undefined ? {} : { journalDirectory: resolve(group.journal.directory) }),
      ...(acceptedLsn === undefined ? {} : { acceptedLsn }),
      name: group.name,
      node: this.config.node,
      directory,
      initialRole: group.role,
      peers: group.peers.filter((peer) => peer.address !== undefined).map((peer) => peer.node),
      recoverWaitUs: group.recoverWait * 1e6,
      bootId: this.surroundings.bootId,
      watermarkBytes: group.store.freeSpaceWatermark,
      space: this.surroundings.space,
      journal: {
        segmentBytes: group.journal.segmentSize, maxSegments, syncBytes: Math.min(group.journal.syncBytes, group.journal.size * scale.syncFraction), syncUs: group.journal.syncMilliseconds * 1000,
        maxBatchPayload: scale.maxBatchPayload, volatile: group.journal.volatile,
      },
      destager: {
        startBytes: group.journal.size * scale.destageFraction, startUs: scale.destageUs,
        bufferBytes: scale.destageBufferBytes, retryUs: scale.retryUs,
      },
      checkpointer: { bufferBytes: scale.checkpointBufferBytes, compactSlackBytes: scale.compactSlackBytes, retryUs: scale.retryUs },
      ...(scale.walker === undefined ? {} : { walker: scale.walker }),
      checkpointBytes: group.store.checkpointBytes,
      checkpointUs: group.store.checkpointSeconds * 1e6,
      mapMemoryBytes: group.store.mapMemory,
      blockCache: this.blockCache,
      ...(this.surroundings.descriptors === undefined ? {} : { maxOpenLayers: openLayers(this.surroundings.descriptors, this.config.groups.length) }),
    };
  }

  /** Addresses as bound. */
  listening(): { nbd: string[]; link: string | null } {
    const nbd = this.nbdListeners.map(({ address, listener }) => (address.kind === 'tcp' ? formatAddress({ ...address, port: listener.port }) : formatAddress(address)));
    return { nbd, link: this.links.listening() };
  }

  /** Clients are answered and disconnected, links closed, groups stopped cleanly; then `done`. */
  close(done: () => void): void {
    if (this.closing) return;
    this.closing = true;
    // Writers that wait for a peer to make room would be waited for as long as the peer is away.
    for (const group of this.blocks.all()) group.beginClosing();
    const closeNbd = (then: () => void): void => (this.nbd === undefined ? then() : this.nbd.closeThen(then));
    const drain = (then: () => void): void => drainVolatile(this.reactor, this.blocks.all(), this.links, this.log, then);
    closeNbd(() => drain(() => {
      this.links.close();
      const groups = [...this.blocks.all()];
      let open = groups.length;
      if (open === 0) done();
      for (const group of groups) {
        group.close(() => {
          if (--open === 0) done();
        });
      }
    }));
  }
}
