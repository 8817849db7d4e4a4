/**
 * The content of a sparse export as one sha256: every 4 KiB block that is not
 * zero, read over NBD. Holes are skipped as BLOCK_STATUS tells them, and blocks
 * of zeros that are stored do not count either, so two exports have the same
 * digest exactly if every byte of them is the same.
 *
 * Owns: the connections and the encoding. Must not know: which devices there are.
 */
import { createHash } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import { ClientHandshake, NbdClient, streamOf } from '../../src/vendor/nbd-protocol-ts/index.js';

const BLOCK_BYTES = 4096;
/** Of one READ. */
const PIECE_BYTES = 2 ** 20;
/** What is asked for at a time; twice this is held. */
const BATCH_BYTES = 4 * 2 ** 20;
const BATCH_REQUESTS = 512;
const STATUS_BYTES = 2 ** 30;
const HOLE = 1;

const REQUEST_BYTES = 28;
const REPLY_BYTES = 16;

export interface DeviceContent {
  readonly sizeBytes: number;
  /** Bytes that are not zero, in whole blocks. */
  readonly nonZeroBytes: number;
  /** Of the size, the numbers of the blocks that are not zero, and their bytes, in order. */
  readonly sha256: string;
  /** Numbers of the blocks that are not zero, ascending, and a CRC of each; empty unless asked for. */
  readonly blocks: Float64Array;
  readonly sums: Uint32Array;
}

export interface Wanted {
  /** Unix socket of the NBD server. */
  readonly socket: string;
  readonly exportName: string;
  readonly sums: boolean;
}

interface Extent {
  readonly offset: number;
  readonly length: number;
}

/** READs without a promise each: replies are put where they belong as they come, in any order. */
class PlainReader {
  private pieces: readonly Extent[] = [];
  private places: number[] = [];
  private into: Buffer = Buffer.alloc(0);
  private left = 0;
  private readonly header = Buffer.alloc(REPLY_BYTES);
  private headerHas = 0;
  private at = 0;
  private dataLeft = 0;
  private done: () => void = () => undefined;
  private failed: (error: Error) => void = () => undefined;

  private constructor(private readonly socket: Socket) {}

  static async open(path: string, exportName: string): Promise<PlainReader> {
    const socket = connect(path);
    const handshake = new ClientHandshake({ kind: 'go', name: exportName, structuredReplies: false });
    await new Promise<void>((done, fail) => {
      socket.on('error', fail);
      const onData = (bytes: Uint8Array): void => {
        handshake.push(bytes);
        const { outcome } = handshake;
        const output = handshake.takeOutput();
        if (output.length > 0) socket.write(output);
        if (outcome.kind === 'more') return;
        socket.off('data', onData);
        if (outcome.kind === 'transmission') done();
        else fail(new Error(`${exportName}: the handshake ended with ${outcome.kind}`));
      };
      socket.on('data', onData);
    });
    const reader = new PlainReader(socket);
    socket.on('data', (bytes: Buffer) => reader.take(bytes));
    socket.on('close', () => reader.failed(new Error(`${exportName}: the server closed the connection`)));
    socket.on('error', (error) => reader.failed(error));
    return reader;
  }

  /** Reads the pieces one behind the other into `into`, which must not be touched until then. One call at a time. */
  read(pieces: readonly Extent[], into: Buffer): Promise<void> {
    this.pieces = pieces;
    this.into = into;
    this.left = pieces.length;
    this.places = [];
    const requests = Buffer.alloc(pieces.length * REQUEST_BYTES);
    let place = 0;
    for (const [i, piece] of pieces.entries()) {
      const at = i * REQUEST_BYTES;
      requests.writeUInt32BE(0x25609513, at);
      requests.writeUInt32BE(i, at + 12);
      requests.writeBigUInt64BE(BigInt(piece.offset), at + 16);
      requests.writeUInt32BE(piece.length, at + 24);
      this.places.push(place);
      place += piece.length;
    }
    return new Promise((done, failed) => {
      this.done = done;
      this.failed = failed;
      this.socket.write(requests);
    });
  }

  /** Resolves when the server has let go: an operation right after it must not find a client. */
  async close(): Promise<void> {
    this.failed = () => undefined;
    if (this.socket.closed) return;
    const closed = new Promise((done) => this.socket.once('close', done));
    const goodbye = Buffer.alloc(REQUEST_BYTES);
    goodbye.writeUInt32BE(0x25609513, 0);
    goodbye.writeUInt16BE(2, 6);
    this.socket.write(goodbye);
    await closed;
  }

  private take(bytes: Buffer): void {
    let from = 0;
    while (from < bytes.length) {
      if (this.dataLeft > 0) {
        const n = Math.min(this.dataLeft, bytes.length - from);
        bytes.copy(this.into, this.at, from, from + n);
        from += n;
        this.at += n;
        this.dataLeft -= n;
      } else {
        const n = Math.min(REPLY_BYTES - this.headerHas, bytes.length - from);
        bytes.copy(this.header, this.headerHas, from, from + n);
        from += n;
        this.headerHas += n;
        if (this.headerHas < REPLY_BYTES) return;
        this.headerHas = 0;
        const piece = this.header.readUInt32BE(12);
        if (this.header.readUInt32BE(0) !== 0x67446698 || piece >= this.pieces.length) return this.failed(new Error('the server sent something that is no reply'));
        if (this.header.readUInt32BE(4) !== 0) return this.failed(new Error(`reading ${this.pieces[piece].length} bytes at ${this.pieces[piece].offset}: error ${this.header.readUInt32BE(4)}`));
        this.at = this.places[piece];
        this.dataLeft = this.pieces[piece].length;
      }
      if (this.dataLeft === 0 && --this.left === 0) this.done();
    }
  }
}

/** What is not a hole, in order. */
async function* stored(client: NbdClient): AsyncGenerator<Extent> {
  const { sizeBytes } = client.export;
  for (let at = 0; at < sizeBytes;) {
    const [answer] = await client.blockStatus(at, Math.min(STATUS_BYTES, sizeBytes - at));
    for (const { length, status } of answer.extents) {
      if ((status & HOLE) === 0) yield { offset: at, length };
      at += length;
    }
  }
}

async function* batches(client: NbdClient): AsyncGenerator<Extent[]> {
  let batch: Extent[] = [];
  let bytes = 0;
  for await (const extent of stored(client)) {
    for (let at = extent.offset; at < extent.offset + extent.length;) {
      const length = Math.min(PIECE_BYTES, BATCH_BYTES - bytes, extent.offset + extent.length - at);
      batch.push({ offset: at, length });
      bytes += length;
      at += length;
      if (bytes < BATCH_BYTES && batch.length < BATCH_REQUESTS) continue;
      yield batch;
      batch = [];
      bytes = 0;
    }
  }
  if (batch.length > 0) yield batch;
}

const ZEROS = Buffer.alloc(BLOCK_BYTES);

/** Collects the blocks of batches as they come. */
class Sum {
  private readonly hash = createHash('sha256');
  private blocks = new Float64Array(1 << 16);
  private sums = new Uint32Array(1 << 16);
  private count = 0;

  constructor(private readonly sizeBytes: number, private readonly wantsSums: boolean) {}

  add(batch: readonly Extent[], bytes: Buffer): void {
    let place = 0;
    let run = 0;
    for (const { offset, length } of batch) {
      for (let at = 0; at < length; at += BLOCK_BYTES, place += BLOCK_BYTES) {
        if (bytes.readInt32LE(place) === 0 && bytes.compare(ZEROS, 0, BLOCK_BYTES, place, place + BLOCK_BYTES) === 0) {
          this.hash.update(bytes.subarray(run, place));
          run = place + BLOCK_BYTES;
        } else {
          this.put((offset + at) / BLOCK_BYTES, bytes, place);
        }
      }
    }
    this.hash.update(bytes.subarray(run, place));
  }

  private put(block: number, bytes: Buffer, place: number): void {
    if (this.count === this.blocks.length) {
      this.blocks = doubled(this.blocks, Float64Array);
      this.sums = doubled(this.sums, Uint32Array);
    }
    this.blocks[this.count] = block;
    if (this.wantsSums) this.sums[this.count] = crc32(bytes.subarray(place, place + BLOCK_BYTES));
    this.count++;
  }

  done(): DeviceContent {
    const blocks = this.blocks.slice(0, this.count);
    const whole = createHash('sha256').update(`${this.sizeBytes} `).update(new Uint8Array(blocks.buffer)).update(this.hash.digest());
    return {
      sizeBytes: this.sizeBytes, nonZeroBytes: this.count * BLOCK_BYTES, sha256: whole.digest('hex'),
      blocks: this.wantsSums ? blocks : new Float64Array(0), sums: this.wantsSums ? this.sums.slice(0, this.count) : new Uint32Array(0),
    };
  }
}

function doubled<T extends Float64Array | Uint32Array>(from: T, type: new (length: number) => T): T {
  const larger = new type(from.length * 2);
  larger.set(from);
  return larger;
}

/** Reads all that the export has. Throws when the server gives an error. */
export async function deviceContent(wanted: Wanted): Promise<DeviceContent> {
  const client = await NbdClient.connect(streamOf(connect(wanted.socket)), { name: wanted.exportName, contexts: ['base:allocation'] });
  const reader = await PlainReader.open(wanted.socket, wanted.exportName);
  try {
    const sum = new Sum(client.export.sizeBytes, wanted.sums);
    // one batch is on its way while the one before it is summed
    const buffers = [Buffer.alloc(BATCH_BYTES), Buffer.alloc(BATCH_BYTES)];
    let turn = 0;
    let before: { batch: Extent[]; bytes: Buffer } | undefined;
    for await (const batch of batches(client)) {
      const bytes = buffers[turn];
      turn = 1 - turn;
      const arriving = reader.read(batch, bytes);
      if (before !== undefined) sum.add(before.batch, before.bytes);
      await arriving;
      before = { batch, bytes };
    }
    if (before !== undefined) sum.add(before.batch, before.bytes);
    return sum.done();
  } finally {
    await Promise.all([reader.close(), client.disconnect()]);
  }
}

/** Bytes of 4 KiB blocks in which two contents differ; what only one of them has counts where it is not zero. Both have their sums. */
export function differingBytes(a: DeviceContent, b: DeviceContent): number {
  let differing = 0;
  let i = 0;
  let j = 0;
  while (i < a.blocks.length || j < b.blocks.length) {
    const left = i < a.blocks.length ? a.blocks[i] : Infinity;
    const right = j < b.blocks.length ? b.blocks[j] : Infinity;
    if (left !== right || a.sums[i] !== b.sums[j]) differing++;
    if (left <= right) i++;
    if (right <= left) j++;
  }
  return differing * BLOCK_BYTES;
}

/** What a device that does not exist differs from. */
export const NOTHING: DeviceContent = { sizeBytes: 0, nonZeroBytes: 0, sha256: '', blocks: new Float64Array(0), sums: new Uint32Array(0) };
