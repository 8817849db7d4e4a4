/**
 * One group over any Io with a flat model beside it, for tests of the walker:
 * blocks are tagged with a number, a device is a map of tags. Not a test itself.
 */
import { SinkLog } from '../../src/base/log.js';
import { BLOCK_BYTES, KIB, MIB } from '../../src/base/units.js';
import { Group } from '../../src/group/group.js';
import { planRemove, planRestore, planSnapshot } from '../../src/group/operations/judge.js';
import type { Operation } from '../../src/group/tree/record.js';
import { RequestKind, RequestTable } from '../../src/group/requests/requests.js';
import { SCRATCH_BYTES } from '../../src/io/arena.js';
import { mkdirs } from '../../src/io/file.js';
import type { Reactor } from '../../src/io/reactor.js';
import { BlockCache } from '../../src/store/blockcache.js';
import type { MapTaskOptions } from '../../src/store/maptasks.js';
import type { Walker, WalkerOptions } from '../../src/store/walk/walker.js';

/** Tags of a device's blocks; a block that is not there is zero. */
export type Model = Map<string, { sizeBytes: number; tags: Map<number, number> }>;

export interface RigOptions {
  readonly walker: Partial<WalkerOptions>;
  readonly destageUs: number;
  readonly checkpointUs: number;
  readonly bootId: string;
  readonly segmentBytes: number;
  readonly segments: number;
  readonly mapMemoryBytes: number;
  readonly compactSlackBytes: number;
  readonly mapTasks?: MapTaskOptions;
}

export const QUICK: RigOptions = {
  walker: { pauseUs: 50, retryUs: 20_000, restUs: 1000, restFactor: 1 }, destageUs: 5000, checkpointUs: 50_000, bootId: 'boot-1', segmentBytes: MIB, segments: 16,
  mapMemoryBytes: 16 * MIB, compactSlackBytes: 256 * KIB,
};

const PIECE = 64 * KIB;

export function copyModel(model: Model): Model {
  return new Map([...model].map(([name, { sizeBytes, tags }]) => [name, { sizeBytes, tags: new Map(tags) }]));
}

export class Rig {
  readonly group: Group;
  /** In what lies behind the reactor's arena. */
  readonly blockCache: BlockCache;
  readonly requests = new RequestTable(64);
  private readonly owner: number;
  private readonly answers = new Map<number, (errno: number) => void>();

  private constructor(readonly reactor: Reactor, readonly directory: string, readonly until: (condition: () => boolean) => void, options: RigOptions, readonly model: Model, private nextTag: number) {
    mkdirs(reactor.io, directory);
    this.owner = this.requests.addOwner({
      completed: (slot) => {
        const answer = this.answers.get(slot)!;
        this.answers.delete(slot);
        const errno = this.requests.errno[slot];
        this.requests.free(slot);
        answer(errno);
      },
    });
    this.blockCache = new BlockCache(reactor.arena.u8, SCRATCH_BYTES + reactor.arena.capacityBytes);
    this.group = Group.open(reactor, {
      name: 'g', node: 'n', directory, initialRole: 'primary', peers: [], recoverWaitUs: 0, bootId: options.bootId, watermarkBytes: 0,
      space: () => ({ totalBytes: 2 ** 50, freeBytes: 2 ** 50 }),
      journal: { segmentBytes: options.segmentBytes, maxSegments: options.segments, syncBytes: 4 * MIB, syncUs: 10_000, maxBatchPayload: 128 * KIB },
      destager: { startBytes: 2 * options.segmentBytes, startUs: options.destageUs, bufferBytes: 128 * KIB, retryUs: 5000 },
      checkpointer: { bufferBytes: 64 * KIB, compactSlackBytes: options.compactSlackBytes, retryUs: 5000 },
      walker: options.walker, checkpointBytes: 64 * MIB, checkpointUs: options.checkpointUs, mapMemoryBytes: options.mapMemoryBytes,
      blockCache: this.blockCache,
      ...(options.mapTasks === undefined ? {} : { mapTasks: options.mapTasks }),
    }, this.requests, new SinkLog(() => undefined));
  }

  /** `until` runs the reactor until a condition holds. `model`: what an earlier rig over the same directory held. */
  static open(reactor: Reactor, directory: string, until: (condition: () => boolean) => void, options: Partial<RigOptions> = {}, model: Model = new Map(), nextTag = 1): Rig {
    return new Rig(reactor, directory, until, { ...QUICK, ...options }, model, nextTag);
  }

  get walker(): Walker {
    return this.group.content.walker;
  }

  get lastTag(): number {
    return this.nextTag;
  }

  // ---- operations, on group and model ---------------------------------------------------------------

  private get judged(): { group: string; tree: Group['tree']; exports: Group['exports'] } {
    return { group: 'g', tree: this.group.tree, exports: this.group.exports };
  }

  private perform(operation: Operation): void {
    this.group.operations.perform(operation);
  }

  create(name: string, sizeBytes: number): void {
    this.perform({ op: 'create', id: this.group.tree.nextId, name, sizeBytes });
    this.model.set(name, { sizeBytes, tags: new Map() });
  }

  /** Makes `volume@name`. */
  snapshot(source: string, name: string): void {
    this.perform(planSnapshot(this.judged, source, name));
    const { sizeBytes, tags } = this.model.get(source)!;
    this.model.set(`${source.split('@')[0]}@${name}`, { sizeBytes, tags: new Map(tags) });
  }

  restore(target: string, source: string): void {
    this.perform(planRestore(this.judged, target, source, [], true).operation);
    this.model.get(target)!.tags = new Map(this.model.get(source)!.tags);
  }

  remove(name: string): void {
    this.perform(planRemove(this.judged, name, false, true).operation);
    this.model.delete(name);
  }

  // ---- requests -------------------------------------------------------------------------------------

  /** Submits; `done` gets the errno. */
  submit(kind: number, name: string, offset: number, length: number, buffer: number, done: (errno: number) => void): void {
    const slot = this.requests.alloc(this.owner);
    if (slot < 0) throw new Error('no request slot');
    const { requests } = this;
    requests.kind[slot] = kind;
    requests.device[slot] = this.group.tree.find(name)!.id;
    requests.offset[slot] = offset;
    requests.length[slot] = length;
    requests.buffer[slot] = Math.max(0, buffer);
    this.answers.set(slot, done);
    this.group.submit(slot);
  }

  private ask(kind: number, name: string, offset: number, length: number, buffer: number): void {
    let result = -1;
    this.submit(kind, name, offset, length, buffer, (errno) => {
      result = errno;
    });
    this.reactor.again();
    this.until(() => result >= 0);
    if (result !== 0) throw new Error(`request ${kind} of ${name} ${offset}+${length}: errno ${result}`);
  }

  /** Writes `count` blocks, each with a tag of its own. */
  write(name: string, block: number, count: number): void {
    const { arena } = this.reactor;
    for (let done = 0; done < count; ) {
      const blocks = Math.min(PIECE / BLOCK_BYTES, count - done);
      const at = arena.alloc(PIECE);
      const words = new Uint32Array(arena.u8.buffer, arena.u8.byteOffset + at, (blocks * BLOCK_BYTES) / 4);
      for (let i = 0; i < blocks; i++) {
        const tag = this.nextTag++;
        words.fill(tag, i * 1024, (i + 1) * 1024);
        this.model.get(name)!.tags.set(block + done + i, tag);
      }
      this.ask(RequestKind.write, name, (block + done) * BLOCK_BYTES, blocks * BLOCK_BYTES, at);
      arena.release(at);
      done += blocks;
    }
  }

  trim(name: string, block: number, count: number): void {
    this.ask(RequestKind.zero, name, block * BLOCK_BYTES, count * BLOCK_BYTES, -1);
    const { tags } = this.model.get(name)!;
    for (let i = 0; i < count; i++) tags.delete(block + i);
  }

  /** Everything so far is durable. */
  flush(): void {
    let done = false;
    this.group.operations.whenDurable(this.group.journal.appendedLsn, () => {
      done = true;
    });
    this.until(() => done);
  }

  /** Everything so far is in the layers' files, and a checkpoint of it is committed. */
  settle(): void {
    const { content } = this.group;
    const lsn = content.appliedLsn;
    this.until(() => {
      if (content.store.pending.blocks > 0) content.destager.request();
      else if (content.checkpointer.committedAt.lsn < lsn && !content.checkpointer.busy) content.requestCheckpoint();
      return content.store.pending.blocks === 0 && content.checkpointer.committedAt.lsn >= lsn && !content.checkpointer.busy;
    });
  }

  /** One more walk than now has begun and ended, and none is under way. */
  walk(): void {
    const { walksDone } = this.walker;
    this.settle();
    this.until(() => this.walker.walksDone > walksDone && !this.walker.walking);
  }

  /** Nothing is left that a walk could find. */
  walkAll(): void {
    this.settle();
    this.until(() => !this.walker.owes && !this.walker.walking);
  }

  // ---- what there is ----------------------------------------------------------------------------------

  /** Tags of a device as it reads; throws for a block that is torn. */
  read(name: string): Map<number, number> {
    const { arena } = this.reactor;
    const { sizeBytes } = this.group.tree.find(name)!;
    const at = arena.alloc(PIECE);
    const words = new Uint32Array(arena.u8.buffer, arena.u8.byteOffset + at, PIECE / 4);
    const tags = new Map<number, number>();
    for (let offset = 0; offset < sizeBytes; offset += PIECE) {
      const length = Math.min(PIECE, sizeBytes - offset);
      words.fill(0xdeadbeef);
      this.ask(RequestKind.read, name, offset, length, at);
      for (let i = 0; i * BLOCK_BYTES < length; i++) {
        const tag = words[i * 1024];
        if (words.subarray(i * 1024, (i + 1) * 1024).some((word) => word !== tag)) throw new Error(`${name}: block ${offset / BLOCK_BYTES + i} is torn`);
        if (tag !== 0) tags.set(offset / BLOCK_BYTES + i, tag);
      }
    }
    arena.release(at);
    return tags;
  }

  /** The first difference from `model`, or undefined. */
  difference(model: Model = this.model): string | undefined {
    const names = [...this.group.tree.all()].map((device) => this.group.tree.nameOf(device)).sort();
    const wanted = [...model.keys()].sort();
    if (names.join() !== wanted.join()) return `devices ${names.join()}, should be ${wanted.join()}`;
    for (const name of names) {
      const have = this.read(name);
      const want = model.get(name)!.tags;
      for (const block of new Set([...have.keys(), ...want.keys()])) {
        if (have.get(block) !== want.get(block)) return `${name} block ${block} is ${have.get(block) ?? 'zero'}, should be ${want.get(block) ?? 'zero'}`;
      }
    }
    return undefined;
  }

  /** Different (layer, block) pairs that all devices together refer to: what their files need to hold. */
  get neededBlocks(): number {
    return new Set([...this.model.values()].flatMap(({ tags }) => [...tags.values()])).size;
  }

  close(): void {
    let closed = false;
    this.group.close(() => {
      closed = true;
    });
    this.until(() => closed);
  }
}
