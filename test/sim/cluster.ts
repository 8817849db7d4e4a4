/**
 * Whole data paths over simulated machines: what the worker thread runs in
 * production (daemon/datapath.ts), minus threads, HTTP and NBD.
 *
 * Owns: configuration at the scale of a simulation, start and crash of a node,
 * the comparison with the model after each start. Must not know: workloads.
 */
import type { Caller } from '../../src/base/caller.js';
import type { Config } from '../../src/config/schema.js';
import { SinkLog } from '../../src/base/log.js';
import { IoError } from '../../src/base/errors.js';
import { BLOCK_BYTES, isLocalDevice, KIB, MIB } from '../../src/base/units.js';
import type { ControlRequest, OperationRequest } from '../../src/control/port.js';
import type { OperationReply } from '../../src/control/schema/replies.js';
import { Commands } from '../../src/daemon/commands.js';
import { DataPath } from '../../src/daemon/datapath.js';
import type { Scale } from '../../src/daemon/datapath.js';
import type { Group } from '../../src/group/group.js';
import type { DeviceView } from '../../src/group/requests/service.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { Asked } from './asked.js';
import { capture } from './capture.js';
import { SimClient } from './client.js';
import { TMPFS } from './disk.js';
import { factsLine } from '../model/devices.js';
import { GroupModel } from './model.js';
import type { ModelDevice } from './model.js';
import type { CrashKind, SimNode, World } from './world.js';

export const GROUP = 'g';
const ARENA_BYTES = 16 * MIB;
/** Few, so that blocks are replaced. */
const CACHE_BYTES = 64 * BLOCK_BYTES;
/** The reserve that space admission keeps (group/space.ts); simulated disks are smaller than it. */
export const SPACE_RESERVE = 128 * MIB;

export interface Sizes {
  readonly segmentBytes: number;
  readonly segments: number;
  readonly syncBytes: number;
  readonly syncMs: number;
  readonly checkpointBytes: number;
  readonly checkpointSeconds: number;
  readonly mapMemory: number;
  readonly maxBatchPayload: number;
  readonly destageFraction: number;
  readonly destageUs: number;
  readonly compactSlackBytes: number;
}

export const SMALL: Sizes = {
  segmentBytes: 256 * KIB, segments: 6, syncBytes: 64 * KIB, syncMs: 5, checkpointBytes: 512 * KIB, checkpointSeconds: 0.2, mapMemory: 64 * KIB,
  maxBatchPayload: 64 * KIB, destageFraction: 0.1, destageUs: 20_000, compactSlackBytes: 64 * KIB,
};

/** Nothing becomes durable but by FLUSH or by what an operation waits for. */
export const LAZY: Sizes = {
  ...SMALL, segments: 12, syncMs: 60_000, syncBytes: 64 * MIB, checkpointSeconds: 1000, checkpointBytes: 64 * MIB, destageUs: 3600e6, destageFraction: 0.9,
};

export interface Peering {
  readonly role: 'primary' | 'secondary';
  /** Where this node listens for links. */
  readonly listen?: string;
  readonly peers: { readonly node: string; readonly address?: string }[];
}

export const ALONE: Peering = { role: 'primary', peers: [] };
/** Gets its journal by other ways than a link. */
export const UNLINKED: Peering = { role: 'secondary', peers: [] };

const ADDRESS = { a: '10.0.0.1:10901', b: '10.0.0.2:10902' };

/** A primary `a` and its secondary `b`, each of which knows where the other listens. */
export const LINKED: Readonly<Record<'a' | 'b', Peering>> = {
  a: { role: 'primary', listen: ADDRESS.a, peers: [{ node: 'b', address: ADDRESS.b }] },
  b: { role: 'secondary', listen: ADDRESS.b, peers: [{ node: 'a', address: ADDRESS.a }] },
};

const memories: ArrayBuffer[] = [];

/** One simulated machine with its disk, the process that runs on it, and what its group must hold. */
export class SimHost {
  readonly node: SimNode;
  readonly model = new GroupModel();
  readonly log: string[] = [];
  readonly asked = new Asked(() => this.model.state);
  path: DataPath | undefined;
  commands: Commands | undefined;
  client: SimClient | undefined;
  reactor: Reactor | undefined;
  /** What a kill -9 may lose now: everything not durable, because the journal's pages were dropped by a failed fsync. */
  private pagesLost = false;
  private unnoticed = false;
  /** What was durable when the last process ended. */
  private lastDurable = 0;
  private failedToStart: string | undefined;
  private boots = 1;
  /** Where the journal lies; a volatile one belongs below TMPFS. */
  journalPlace: { volatile: boolean; directory?: string } = { volatile: false };
  /** What an operator gives the next start. */
  acceptedLsn: number | undefined;
  /** The primary's durable LSN as this secondary has been told; Infinity on a primary. */
  stableLimit: () => number = () => Infinity;
  checkpointsSeen = 0;
  layerBlocksSeen = 0;

  constructor(readonly world: World, readonly name: string, public sizes: Sizes = SMALL, readonly peering: Peering = ALONE, memoryIndex = 0) {
    memories[memoryIndex] ??= new ArrayBuffer(ARENA_BYTES + CACHE_BYTES);
    this.node = world.node(name, { memory: memories[memoryIndex] });
    this.node.onCrash = (kind) => this.crashed(kind);
    this.model.durableTruth = () => {
      const group = this.path?.blocks.group(GROUP);
      return Math.max(this.lastDurable, this.model.floor, group?.hasContent === true ? group.journal.durableLsn : 0);
    };
  }

  get group(): Group {
    const group = this.path?.blocks.group(GROUP);
    if (group === undefined) throw new Error(`${this.name} has no open group: ${this.path?.broken.map((one) => one.problem).join('; ') ?? 'no process'}`);
    return group;
  }

  get alive(): boolean {
    return this.node.alive;
  }

  /** Why the group is not open, if it is not. */
  get problem(): string | undefined {
    return this.failedToStart ?? this.path?.broken[0]?.problem;
  }

  /** Starts a process and opens the group. False when the process crashed while it did. */
  start(): boolean {
    const io = this.node.start();
    this.say(`start, boot ${this.boots}`);
    capture(io, {
      begin: (entry) => this.model.begin(entry),
      appended: () => this.model.appended(),
      layerWrite: (device, block, content) => this.layerWrite(device, block, content),
      slotWrite: (at, lowWater) => this.slotWrite(at, lowWater),
      journalSyncFailed: () => {
        this.pagesLost = true;
        this.model.cacheFloor = 0;
      },
    });
    const scale: Scale = {
      requestSlots: 256, destageBufferBytes: 64 * KIB, checkpointBufferBytes: 16 * KIB, maxBatchPayload: this.sizes.maxBatchPayload,
      compactSlackBytes: this.sizes.compactSlackBytes, syncFraction: 1, destageFraction: this.sizes.destageFraction, destageUs: this.sizes.destageUs, retryUs: 5_000,
    };
    this.failedToStart = undefined;
    return this.node.attempt(() => {
      const reactor = new Reactor(io, new Arena(io, ARENA_BYTES));
      this.reactor = reactor;
      let path: DataPath;
      const log = new SinkLog((entry) => this.say(`${entry.level} ${entry.message} ${Object.keys(entry.fields).length > 1 ? JSON.stringify(entry.fields) : ''}`));
      try {
        path = DataPath.open(reactor, this.config(), log, {
          bootId: `boot-${this.name}-${this.boots}`,
          space: (where) => {
            const { totalBytes, freeBytes } = io.space(where);
            return { totalBytes, freeBytes: freeBytes + SPACE_RESERVE };
          },
          scale, serveNbd: false, accepted: new Map(this.acceptedLsn === undefined ? [] : [[GROUP, this.acceptedLsn]]),
        });
      } catch (error) {
        if (!(error instanceof IoError)) throw error;
        this.failedToStart = error.message;
        return;
      }
      this.path = path;
      this.commands = new Commands(path, 0);
      if (path.broken.length === 0 && this.group.hasContent) this.opened();
      this.node.step = () => {
        reactor.step(-1);
        if (!io.dead) this.adopted();
      };
    });
  }

  /** The group is open: its state has to be one that the model allows. */
  private opened(): void {
    const { journal } = this.group;
    this.model.endIs(journal.appendedLsn);
    if (this.model.lost > 0 && !this.unnoticed && this.peering.role === 'primary' && this.peering.peers.length === 0 && !this.group.epochs.some((epoch) => !epoch.lossless && epoch.start.lsn === this.model.lostAt)) {
      throw new Error(`${this.model.lost} batches from LSN ${this.model.lostAt} on were lost, and no epoch says so: ${JSON.stringify(this.group.epochs)}`);
    }
    this.model.lost = 0;
    this.unnoticed = false;
    if (journal.failure === undefined) this.pagesLost = false;
    // What a start has found or made is durable before anything is served.
    if (this.group.role === 'primary' && !journal.volatile) this.model.raiseFloor(journal.appendedLsn);
    this.model.raiseFloor(Math.min(this.group.stableLsn, journal.durableLsn));
    this.client = new SimClient(this.path!.blocks, this.reactor!.arena, this.model, () => this.group.journal.durableLsn, () => this.group.role === 'primary');
    const { beforeRecord } = this.model;
    this.model.beforeRecord = (record, entry, before) => {
      if (record.kind === 'marker' && this.group.role === 'primary') this.asked.marker(record.operation, before);
      beforeRecord(record, entry, before);
    };
    this.compareTree();
    this.model.rebase();
  }

  /** A secondary that had nothing may have taken its first content. */
  private adopted(): void {
    if (this.client === undefined && this.path?.blocks.group(GROUP)?.hasContent === true) this.opened();
  }

  /** Its history goes on from here: nobody makes it go back. */
  private get leads(): boolean {
    return this.group.role === 'primary' || this.group.epochs.at(-1)?.node === this.name;
  }

  private crashed(kind: CrashKind): void {
    const open = this.path?.blocks.group(GROUP);
    if (open?.hasContent === true) this.lastDurable = open.journal.durableLsn;
    if (kind === 'power') {
      this.boots++;
      this.model.cacheFloor = 0;
      const group = this.path?.blocks.group(GROUP);
      // The node's own claim is held to: what it calls durable, and can not be undone, may not be lost.
      if (group?.hasContent === true && (group.role !== 'stopped' || this.leads)) this.model.raiseFloor(Math.min(group.stableLsn, group.journal.durableLsn));
    } else if (this.pagesLost) {
      // The failure was reported to nobody who could note it.
      const noticed = this.path?.blocks.group(GROUP)?.role === 'stopped' || this.failedToStart !== undefined;
      if (!noticed || this.noteFailed) this.unnoticed = true;
    } else if (this.client !== undefined && this.leads) {
      this.model.cacheFloor = this.model.endLsn;
    }
    this.say(`${kind}: floor ${Math.max(this.model.floor, this.model.cacheFloor)}, end ${this.model.endLsn}`);
    this.forget();
  }

  /** The last thing that happened is that a failure of the journal could not be noted. */
  private get noteFailed(): boolean {
    return this.log.slice(-2).some((line) => line.includes('cannot note'));
  }

  /** The data path has been closed: ends the process. */
  stoppedCleanly(): void {
    const { journal, content } = this.group;
    if (journal.volatile) {
      this.model.raiseFloor(content.checkpointer.committedAt.lsn);
      this.model.cacheFloor = this.model.endLsn;
    } else if (this.group.role !== 'stopped') this.model.raiseFloor(this.model.endLsn);
    else if (!this.pagesLost) this.model.cacheFloor = this.leads ? this.model.endLsn : 0;
    else if (this.noteFailed) this.unnoticed = true;
    this.say(`stopped: floor ${Math.max(this.model.floor, this.model.cacheFloor)}, end ${this.model.endLsn}`);
    this.node.stop();
    this.forget();
  }

  private forget(): void {
    this.path = undefined;
    this.commands = undefined;
    this.client = undefined;
    this.reactor = undefined;
    this.model.beforeRecord = () => undefined;
    this.model.afterRecord = () => undefined;
    this.asked.forget();
  }

  crash(kind: CrashKind): void {
    // Of a machine whose daemon was stopped before, nobody hears.
    if (!this.node.alive && kind === 'power') {
      this.boots++;
      this.model.cacheFloor = 0;
    }
    this.node.crash(kind);
  }

  /** From the next start on the journal lies in memory. */
  volatile(): this {
    this.node.disk.makeDirectories(TMPFS);
    this.journalPlace = { volatile: true, directory: `${TMPFS}/${GROUP}/journal` };
    return this;
  }

  /** Carries a control request out; the result shows up later. `caller` may go. */
  command(request: ControlRequest, caller?: Caller): { reply?: unknown; error?: unknown; ended: boolean } {
    const outcome: { reply?: unknown; error?: unknown; ended: boolean } = { ended: false };
    const asked = isOperation(request) && this.asked.judging ? this.asked.ask(request) : undefined;
    this.node.attempt(() => this.commands!.handle(request, {
      done: (reply) => {
        outcome.reply = reply;
        outcome.ended = true;
        if (asked === undefined) return;
        this.asked.done(asked);
        this.operationDone(request.op, reply as OperationReply);
      },
      failed: (error) => {
        outcome.error = error;
        outcome.ended = true;
        if (asked !== undefined) this.asked.failed(asked, error);
      },
    }, caller));
    this.node.poke();
    return outcome;
  }

  /** Carries a control request out to its end, with `run` letting the simulation go on. Throws what it failed with. */
  order<R = OperationReply>(request: ControlRequest, run: (until: () => boolean) => void): R {
    const outcome = this.command(request);
    run(() => outcome.ended);
    if (outcome.error !== undefined) throw outcome.error as Error;
    return outcome.reply as R;
  }

  private operationDone(op: string, { lsn }: OperationReply): void {
    const { model } = this;
    const entry = model.entries.find((one) => one.lsn < lsn && lsn < one.endLsn);
    if (entry === undefined) throw new Error(`${op} was answered with LSN ${lsn}, where no marker is`);
    if (this.group.journal.durableLsn < entry.endLsn) throw new Error(`${op} was answered while it was not durable`);
    model.raiseFloor(entry.endLsn);
    this.compareTree();
  }

  view(device: ModelDevice): DeviceView | undefined {
    const found = this.path?.blocks.find(`${GROUP}/${this.model.state.nameOf(device)}`);
    return found === undefined || 'unavailable' in found ? undefined : found;
  }

  /** The last stop was noted as a clean one, for certain. */
  get stopNoted(): boolean {
    if (this.log.slice(-2).some((line) => line.includes('cannot note the clean stop'))) return false;
    return !new TextDecoder().decode(this.node.disk.peek(`/data/groups/${GROUP}/state.json`, 0, 4096)).includes('"cleanStop": null');
  }

  /** Names, sizes, descent, sets and protection of all devices are as the journal says. */
  compareTree(): void {
    const { tree } = this.group;
    const have = [...tree.all()].map((device) => factsLine(device, tree.nameOf(device))).sort().join('\n');
    const want = this.model.state.facts.join('\n');
    if (have !== want) throw new Error(`the tree is\n${have}\nshould be\n${want}`);
    this.asked.checkConnections();
  }

  // ---- the write-ahead rule ------------------------------------------------------------------------------

  /** Nothing above it may be written where it cannot be undone. */
  private get stable(): number {
    const group = this.path?.blocks.group(GROUP);
    return Math.min(group?.hasContent === true ? group.journal.stableLsn : this.model.floor, this.stableLimit());
  }

  private layerWrite(device: number, block: number, content: Uint8Array): void {
    // Local devices are written through: local.ts of this directory judges them.
    if (isLocalDevice(device)) return;
    this.layerBlocksSeen++;
    const endLsn = this.model.writtenAt(device, block, content);
    if (endLsn === undefined) throw new Error(`WRITE-AHEAD: block ${block} of a layer of device ${device} is written with content that was never journaled there`);
    if (endLsn > this.stable) throw new Error(`WRITE-AHEAD: block ${block} of a layer of device ${device} is destaged with content of LSN ${endLsn}, stable is ${this.stable}`);
  }

  private slotWrite(at: number, lowWater: number): void {
    this.checkpointsSeen++;
    if (at > this.stable) throw new Error(`WRITE-AHEAD: a checkpoint of LSN ${at} is committed, stable is ${this.stable}`);
    if (lowWater > at) throw new Error(`a checkpoint of LSN ${at} has its low-water mark at ${lowWater}`);
  }

  // ---- configuration and words -------------------------------------------------------------------------------

  private config(): Config {
    const { sizes, peering } = this;
    const listen = peering.listen === undefined ? {} : { listen: address(peering.listen) };
    return {
      node: this.name, dataDirectory: '/data', control: { socket: '/none' }, nbd: { listen: [], maxConnections: 4, handshakeSeconds: 10 },
      link: { maxConnections: 4, handshakeSeconds: 10, ...listen }, log: { level: 'debug', format: 'json' }, dataPath: { spinUs: 0, arena: ARENA_BYTES, blockCache: CACHE_BYTES },
      groups: [{
        name: GROUP, role: peering.role, recoverWait: 0.5,
        journal: { size: sizes.segmentBytes * sizes.segments, segmentSize: sizes.segmentBytes, syncBytes: sizes.syncBytes, syncMilliseconds: sizes.syncMs, ...this.journalPlace },
        store: { mapMemory: sizes.mapMemory, checkpointBytes: sizes.checkpointBytes, checkpointSeconds: sizes.checkpointSeconds, freeSpaceWatermark: 0 },
        peers: peering.peers.map((peer) => ({
          node: peer.node, secretFile: '/none', secret: new Uint8Array(32).fill(7), ...(peer.address === undefined ? {} : { address: address(peer.address) }),
        })),
      }],
    };
  }

  /** Where everything stands, for messages. */
  get standing(): string {
    const group = this.path?.blocks.group(GROUP);
    if (group?.hasContent !== true) return `${this.name}: no content`;
    const { journal, destager, checkpointer, store } = group.content;
    const { pool } = journal;
    return `${this.name}: ${group.role}, appended ${journal.appendedLsn}, durable ${journal.durableLsn}, destaged ${group.content.destagedLsn}, ` +
      `checkpoint ${checkpointer.committedAt.lsn}, low water ${checkpointer.lowWater.lsn}, pending ${store.pending.openBlocks}+${store.pending.sealedBlocks}, ` +
      `segments ${pool.live.map((one) => `${one.baseLsn}..${one.endLsn}${one.dirty ? 'd' : ''}${one.holds > 0 ? 'h' : ''}`).join(' ')} free ${pool.freeCount} of ${pool.maxSegments}, ` +
      `stalled ${group.stalledCount} (${group.stallReason() ?? 'no'}), destager ${destager.busy ? 'busy' : 'idle'} ${destager.lastError ?? ''}, ` +
      `checkpointer ${checkpointer.busy ? 'busy' : 'idle'} ${checkpointer.lastError ?? ''}, in flight ${this.client?.inFlight ?? 0}`;
  }

  say(words: string): void {
    this.log.push(`${this.world.clock.now.toFixed(0)}us ${this.name} ${words.trim()}`);
    if (this.log.length > 400) this.log.shift();
  }
}

function address(words: string): { kind: 'tcp'; host: string; port: number } {
  const [host, port] = words.split(':');
  return { kind: 'tcp', host, port: Number(port) };
}

/** What becomes a marker. */
function isOperation(request: ControlRequest): request is OperationRequest {
  switch (request.op) {
    case 'create':
    case 'snapshot':
    case 'restore':
    case 'refresh':
    case 'sync':
    case 'resize':
    case 'remove':
    case 'rename':
    case 'protect':
    case 'clone':
      return true;
    default:
      return false;
  }
}

/**
 * Whether `secondary` has applied all that `primary` has appended, of the same
 * history: equal LSNs alone may be those of two histories that have not met yet.
 * And whether its first content, which a command may have opened, has its client.
 */
export function caughtUp(primary: SimHost, secondary: SimHost): boolean {
  const [one, other] = [primary.group, secondary.group];
  return secondary.client !== undefined && other.hasContent && other.appliedLsn === one.position.lsn && other.position.lsn === one.position.lsn && other.epochs.at(-1)!.id === one.epochs.at(-1)!.id;
}

/** What these nodes said last, in the order of time. */
export function lastWords(hosts: readonly SimHost[], lines: number): string {
  return hosts.flatMap(({ log }) => log).sort((x, y) => Number.parseFloat(x) - Number.parseFloat(y)).slice(-lines).join('\n');
}
