/**
 * A journal over a simulated disk, without group or store. Not a test itself.
 *
 * Owns: building a journal of known batches, opening it again, and where each
 * byte of it lies on the disk.
 */
import { KIB } from '../../src/base/units.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { batch, BATCH_HEADER_BYTES, ENTRY_BYTES, SEGMENT_HEADER_BYTES } from '../../src/journal/format.js';
import { Journal } from '../../src/journal/journal.js';
import type { Position } from '../../src/journal/position.js';
import { recoverJournal } from '../../src/journal/recover.js';
import type { RecoverResult } from '../../src/journal/recover.js';
import type { CrashKind, SimNode } from '../sim/world.js';
import { World } from '../sim/world.js';

const MEMORY = new ArrayBuffer(16 * 1024 * KIB);
export const DIRECTORY = '/journal';
export const GROUP_ID = 'ab'.repeat(16);
export const EPOCH = { number: 1, id: 'e1'.repeat(16) };
export const SEGMENT = 64 * KIB;

export interface Known {
  readonly before: Position;
  readonly after: Position;
  readonly path: string;
  /** Position of its header in the file. */
  readonly pos: number;
  readonly records: number;
  readonly headerBytes: number;
}

export class JournalRig {
  readonly world: World;
  readonly node: SimNode;
  reactor!: Reactor;
  journal!: Journal;
  readonly known: Known[] = [];
  /** From the next start on. */
  inMemory = false;
  private fill = 1;

  /** `maxSegments` and `segmentBytes` may be changed between two starts, as by a configuration. */
  constructor(seed: number, public maxSegments = 6, public segmentBytes = SEGMENT) {
    this.world = new World({ seed });
    this.node = this.world.node('n', { memory: MEMORY });
    this.node.disk.makeDirectories(DIRECTORY);
  }

  static created(seed: number, maxSegments?: number, inMemory = false): JournalRig {
    const rig = new JournalRig(seed, maxSegments);
    rig.inMemory = inMemory;
    rig.create();
    return rig;
  }

  create(): void {
    this.boot();
    this.journal.create({ lsn: 0, chainHi: 0, chainLo: 0 }, EPOCH);
    this.reactor.io.fdatasync(this.journal.pool.current.fd);
  }

  private boot(): void {
    const io = this.node.start();
    this.reactor = new Reactor(io, new Arena(io));
    this.journal = new Journal(this.reactor, {
      directory: DIRECTORY, groupId: GROUP_ID, segmentBytes: this.segmentBytes, maxSegments: this.maxSegments, syncBytes: 1 << 30, syncUs: 1e9, maxBatchPayload: 32 * KIB, volatile: this.inMemory,
    });
    this.node.step = () => this.reactor.step(-1);
  }

  crash(kind: CrashKind): void {
    this.node.crash(kind);
  }

  /** Starts a process and recovers. Throws what recovery throws. `seen` gets the LSN of each visited batch. */
  recover(from: Position = { lsn: 0, chainHi: 0, chainLo: 0 }, options: { durableLsn?: number; until?: Position; own?: boolean; seen?: number[] } = {}): RecoverResult {
    if (this.node.alive) this.node.stop();
    this.boot();
    const result = recoverJournal(this.reactor, this.journal, {
      from, durableLsn: options.durableLsn ?? 0, ...(options.until === undefined ? {} : { until: options.until }),
      ownEpoch: (id) => options.own !== false && id === EPOCH.id, visit: (_at, _payload, lsn) => options.seen?.push(lsn),
    });
    this.journal.setEpoch(EPOCH);
    return result;
  }

  /** Adds segments so that `count` more batches of this kind fit. */
  grow(segments: number): void {
    for (let i = 0; i < segments; i++) this.journal.pool.createNow();
  }

  /** Appends a batch of `records` data records of one block each, and one zero record; returns what is known of it. */
  append(records = 2): Known {
    const { journal, reactor } = this;
    const at = reactor.arena.alloc(records * 4096);
    for (let i = 0; i < records; i++) {
      reactor.arena.u8.fill(this.fill++ % 251 + 1, at + i * 4096, at + (i + 1) * 4096);
      journal.addData(1, i * 4096, 4096, at + i * 4096);
    }
    journal.addZero(1, 1 << 20, 8192);
    return this.flush(() => reactor.arena.release(at));
  }

  /** Appends a marker with a body of `bytes`. */
  marker(bytes = 100): Known {
    this.journal.addMarker(new Uint8Array(bytes).fill(7));
    return this.flush(() => undefined);
  }

  private flush(then: () => void): Known {
    const { journal, reactor } = this;
    const before = journal.position;
    const result = journal.flush();
    then();
    if (result !== 0) throw new Error(`append: ${result}`);
    const segment = journal.pool.current;
    const known: Known = {
      before, after: journal.position, path: segment.path, pos: SEGMENT_HEADER_BYTES + before.lsn - segment.baseLsn,
      records: batch.count(reactor.arena.view, journal.batchAt), headerBytes: batch.headerBytes(reactor.arena.view, journal.batchAt),
    };
    this.known.push(known);
    return known;
  }

  sync(): void {
    const result = this.journal.syncNow();
    if (result !== 0) throw new Error(`sync: ${result}`);
  }

  dispose(): void {
    this.world.dispose();
  }
}

/** Bytes of a batch by name: [from, to) relative to its header. */
export function regionsOf(known: Known): Record<string, [number, number]> {
  const used = BATCH_HEADER_BYTES + known.records * ENTRY_BYTES;
  const end = known.after.lsn - known.before.lsn;
  return {
    magic: [0, 4], checksum: [4, 8], LSN: [8, 16], chain: [16, 24], 'durable LSN': [24, 32], count: [32, 36], 'header bytes': [36, 40], 'payload bytes': [40, 44],
    'epoch number': [44, 48], 'epoch id': [48, 64], 'wall clock': [64, 72], 'kind of the first record': [96, 97], 'device of the first record': [100, 104],
    'offset of the first record': [104, 112], 'length of the first record': [112, 120], 'payload offset of the second record': [152, 156], 'payload checksum': [124, 128],
    'last record': [used - ENTRY_BYTES, used - ENTRY_BYTES + 4], 'first payload byte': [known.headerBytes, known.headerBytes + 1], 'last payload byte': [end - 1, end],
  };
}
