/**
 * Order checker: many writers on several volumes, every write on a fresh block
 * with a number of its own, so that an image of the volumes tells which writes
 * it holds.
 *
 * An image keeps the order of writes if it never holds a write while an earlier
 * one, acknowledged before this one was sent, is missing, on whatever volume.
 *
 * Owns: the load's book and the judgement. Must not know: how images come about.
 */
import { Random } from '../sim/random.js';
import type { NbdClient } from '../../src/vendor/nbd-protocol-ts/index.js';
import { BLOCK } from './devices.js';

const MAGIC = 0x6f726472;

interface Write {
  readonly volume: number;
  readonly block: number;
  /** Moments on one clock of sends and acknowledgements; 0 = not acknowledged. */
  readonly sent: number;
  acknowledged: number;
}

/** Which writes an image holds. */
export type Image = ReadonlySet<number>;

export class OrderBook {
  private readonly writes: Write[] = [];
  private readonly nextBlock: number[];
  /** One more at every send and every acknowledgement. */
  clock = 0;

  constructor(readonly volumes: number, private readonly blocksPerVolume: number) {
    this.nextBlock = new Array<number>(volumes).fill(0);
  }

  get count(): number {
    return this.writes.length;
  }

  get acknowledged(): number {
    return this.writes.filter((write) => write.acknowledged > 0).length;
  }

  /** Blocks of a volume that were written, or may have been. */
  blocksOf(volume: number): number {
    return this.nextBlock[volume];
  }

  /** One writer: writes until `until` says so, or the connection ends. Waits for each acknowledgement. */
  async write(clients: readonly NbdClient[], seed: number, until: () => boolean): Promise<void> {
    const random = new Random(seed, 1);
    while (!until()) {
      const volume = random.below(this.volumes);
      const block = this.nextBlock[volume];
      if (block >= this.blocksPerVolume) return;
      this.nextBlock[volume]++;
      const id = this.writes.length;
      const bytes = Buffer.alloc(BLOCK, id & 0xff);
      bytes.writeUInt32LE(MAGIC, 0);
      bytes.writeUInt32LE(id, 4);
      const write: Write = { volume, block, sent: ++this.clock, acknowledged: 0 };
      this.writes.push(write);
      try {
        await clients[volume].write(block * BLOCK, bytes);
      } catch {
        return;
      }
      write.acknowledged = ++this.clock;
    }
  }

  /** `read` gives the first bytes of a volume's image. Throws when a block holds what nobody wrote there. */
  async image(read: (volume: number, bytes: number) => Promise<Uint8Array>): Promise<Image> {
    const found = new Set<number>();
    for (let volume = 0; volume < this.volumes; volume++) {
      const blocks = this.nextBlock[volume];
      if (blocks === 0) continue;
      const bytes = Buffer.from(await read(volume, blocks * BLOCK));
      for (let block = 0; block < blocks; block++) {
        const at = block * BLOCK;
        if (bytes.readUInt32LE(at) === 0) continue;
        const id = bytes.readUInt32LE(at + 4);
        const write = this.writes[id];
        if (bytes.readUInt32LE(at) !== MAGIC || write?.volume !== volume || write.block !== block) throw new Error(`block ${block} of volume ${volume} holds what was not written there (${id})`);
        found.add(id);
      }
    }
    return found;
  }

  /** What is wrong with an image; '' = it keeps the order. */
  problem(image: Image): string {
    let newest = -1;
    for (const id of image) if (newest < 0 || this.writes[id].sent > this.writes[newest].sent) newest = id;
    if (newest < 0) return '';
    const missing = this.writes.findIndex((write, id) => write.acknowledged > 0 && write.acknowledged < this.writes[newest].sent && !image.has(id));
    if (missing < 0) return '';
    const [lost, kept] = [this.writes[missing], this.writes[newest]];
    return `write ${newest} (volume ${kept.volume}, block ${kept.block}, sent at ${kept.sent}) is there, write ${missing} (volume ${lost.volume}, block ${lost.block}, acknowledged at ${lost.acknowledged}) is not`;
  }

  /** Of an image taken between two moments: what was acknowledged before must be there, what was sent later must not. */
  problemAt(image: Image, before: number, after: number): string {
    for (const [id, write] of this.writes.entries()) {
      if (write.acknowledged > 0 && write.acknowledged <= before && !image.has(id)) return `write ${id}, acknowledged at ${write.acknowledged}, is not in an image of ${before}..${after}`;
      if (write.sent > after && image.has(id)) return `write ${id}, sent at ${write.sent}, is in an image of ${before}..${after}`;
    }
    return this.problem(image);
  }
}
