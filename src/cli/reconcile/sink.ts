/**
 * The side that becomes equal: reads its device once, finds top down what
 * differs from the source's digests, asks for these blocks, writes them, and
 * reads back what it wrote.
 *
 * Owns: the comparison, and the digest of what the device holds now. Must not
 * know: how the source answers.
 *
 * A run that is cut off leaves a device that is partly the source's; the next run
 * finds by itself what is missing. Only RESULT says that it is equal.
 */

import { DIGEST_BYTES, DigestSum, putRegionDigest } from '../../base/content-digest.js';
import { OperatorError } from '../../base/errors.js';
import { BLOCK_BYTES, REGION_BYTES } from '../../base/units.js';
import type { Channel } from './channel.js';
import type { RegionDevice } from './device.js';
import { DeviceError } from './device.js';
import type { RegionData, Result } from './messages.js';
import {
  MAX_NODES, MAX_REGIONS, MAX_SUBTREES, Type, broken, decodeEnd, decodeNode, decodeRegion, decodeSubtree, encodeJson, encodeNode, encodeRegionWanted, encodeSubtree,
} from './messages.js';
import { DEFAULT_PATIENCE } from './patience.js';
import type { Patience } from './patience.js';
import { Side } from './side.js';
import type { Subtree } from './tree.js';
import { FAN_OUT, blockDigests, partBytes, scanSubtree, subtreeCount } from './tree.js';

export class Sink extends Side<Result> {
  private readonly counts = { readBytes: 0, hashedBytes: 0, differingRegions: 0, writtenBytes: 0, zeroedBytes: 0 };
  private readonly sum = new DigestSum();
  /** Read here, and not done. */
  private readonly scanned = new Map<number, Subtree>();
  /** Subtrees that the source has told of; they come in order. */
  private told = 0;
  private done = 0;
  private nodesUnderWay = 0;
  private regionsUnderWay = 0;
  /** Answers that are waited for, by node (counted through the device) and by region. */
  private readonly nodeAnswers = new Map<number, (regions: Buffer) => void>();
  private readonly regionAnswers = new Map<number, (data: RegionData) => void>();
  private endDigest: string | undefined;

  constructor(device: RegionDevice, channel: Channel, patience: Patience = DEFAULT_PATIENCE) {
    super('sink', device, channel, patience);
  }

  /** Not while the source waits for this side to be done with as many subtrees as it may tell of. */
  protected answerDue(): boolean {
    if (this.nodeAnswers.size > 0 || this.regionAnswers.size > 0) return true;
    const total = subtreeCount(this.device.sizeBytes);
    return this.told < total ? this.told - this.done < MAX_SUBTREES : this.done === total && this.endDigest === undefined;
  }

  protected async work(): Promise<Result> {
    if (this.device.readOnly) throw new OperatorError('reconcile/read-only', `${this.device.name} is read-only there; reconcile writes to a local snapshot (VOLUME~NAME; if it is sealed: lockstep seal --undo), or to a device of a primary`);
    const total = subtreeCount(this.device.sizeBytes);
    for (let index = 0; index < total; index++) {
      await this.until(() => index < this.done + MAX_SUBTREES);
      this.scanned.set(index, await scanSubtree(this.device, index, this.counts));
      this.changed();
    }
    await this.until(() => this.endDigest !== undefined);
    await this.device.flush();
    const digest = this.sum.contentDigest(this.device.sizeBytes);
    if (digest !== this.endDigest) throw new DeviceError(`${this.device.name} has the content digest ${digest} and the source ${this.endDigest}, although every region was made equal; run the command again`);
    const result: Result = { digest, ...this.counts };
    await this.channel.send(Type.RESULT, encodeJson(result));
    return result;
  }

  protected message(type: number, payload: Buffer): void {
    switch (type) {
      case Type.SUBTREE: return this.subtreeTold(payload);
      case Type.NODE: {
        const { subtree, node, regions } = decodeNode(payload);
        return this.answered(this.nodeAnswers, subtree * FAN_OUT + node, regions, 'node');
      }
      case Type.REGION: {
        const data = decodeRegion(payload);
        return this.answered(this.regionAnswers, data.region, data, 'region');
      }
      case Type.END:
        if (this.done < subtreeCount(this.device.sizeBytes) || this.endDigest !== undefined) throw broken('it ends too early');
        this.endDigest = decodeEnd(payload);
        return this.changed();
      default: throw broken(`it sent a message of type ${type}`);
    }
  }

  private answered<T>(answers: Map<number, (answer: T) => void>, key: number, answer: T, what: string): void {
    const resolve = answers.get(key);
    if (resolve === undefined) throw broken(`it sent a ${what} that was not asked for`);
    answers.delete(key);
    resolve(answer);
  }

  private subtreeTold(payload: Buffer): void {
    const { subtree: index, nodes } = decodeSubtree(payload);
    if (index !== this.told || index >= subtreeCount(this.device.sizeBytes) || this.told - this.done >= MAX_SUBTREES) throw broken(`it tells of subtree ${index} out of turn`);
    this.told++;
    this.spawn(this.compare(index, nodes));
  }

  private async compare(index: number, theirs: Buffer): Promise<void> {
    await this.until(() => this.scanned.has(index));
    const own = this.scanned.get(index)!;
    const size = own.nodeCount * DIGEST_BYTES;
    if (theirs.length !== 0 && theirs.length !== size) throw broken(`it tells ${theirs.length} bytes of digests for subtree ${index}`);
    own.addTo(this.sum);
    const ours = own.nodeDigests() ?? Buffer.alloc(size);
    const wanted = theirs.length === 0 ? Buffer.alloc(size) : theirs;
    const work: Promise<void>[] = [];
    for (let node = 0; node < own.nodeCount; node++) {
      const [from, to] = [node * DIGEST_BYTES, (node + 1) * DIGEST_BYTES];
      if (ours.compare(wanted, from, to, from, to) === 0) continue;
      await this.until(() => this.nodesUnderWay < MAX_NODES && ++this.nodesUnderWay > 0);
      work.push(this.compareNode(own, node, theirs.length === 0));
      this.spawn(work.at(-1)!);
    }
    await Promise.all(work);
    this.scanned.delete(index);
    this.done++;
    await this.channel.send(Type.DONE, encodeSubtree(index, undefined));
    this.changed();
  }

  /** Makes the regions of one node equal. `zero`: the source has none but zeros, and need not be asked. */
  private async compareNode(own: Subtree, node: number, zero: boolean): Promise<void> {
    const ours = own.regionDigests(node);
    const theirs = zero ? Buffer.alloc(ours.length) : await this.askNode(own.index, node);
    if (theirs.length !== ours.length) throw broken(`it tells ${theirs.length} bytes of digests for node ${node} of subtree ${own.index}`);
    const work: Promise<void>[] = [];
    for (let i = 0; i < own.regionsOf(node); i++) {
      const [from, to] = [i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES];
      if (ours.compare(theirs, from, to, from, to) === 0) continue;
      await this.until(() => this.regionsUnderWay < MAX_REGIONS && ++this.regionsUnderWay > 0);
      work.push(this.makeEqual(own.firstRegion + node * FAN_OUT + i, ours.subarray(from, to), theirs.subarray(from, to)));
      this.spawn(work.at(-1)!);
    }
    await Promise.all(work);
    this.nodesUnderWay--;
    this.changed();
  }

  private async askNode(subtree: number, node: number): Promise<Buffer> {
    const answer = new Promise<Buffer>((resolve) => this.nodeAnswers.set(subtree * FAN_OUT + node, resolve));
    await this.channel.send(Type.NODE_WANTED, encodeNode(subtree, node));
    return await answer;
  }

  private async makeEqual(region: number, ours: Buffer, theirs: Buffer): Promise<void> {
    const offset = region * REGION_BYTES;
    const length = partBytes(this.device.sizeBytes, offset, REGION_BYTES);
    this.counts.differingRegions++;
    if (isZeroDigest(theirs)) {
      await this.device.writeZeroes(offset, length);
      this.counts.zeroedBytes += length;
    } else {
      await this.apply(await this.askRegion(region, offset, length, isZeroDigest(ours)), offset, length);
    }
    // Nothing is taken for equal that was not read back.
    const found = Buffer.alloc(DIGEST_BYTES);
    putRegionDigest(found, 0, region, await this.read(offset, length));
    if (!found.equals(theirs)) throw new DeviceError(`${this.device.name} is not equal to ${this.peerDevice} at byte ${offset} after it was written: one of them has another writer. Disconnect it, and run the command again`);
    this.sum.subtract(ours).add(theirs);
    this.regionsUnderWay--;
    this.changed();
  }

  private async askRegion(region: number, offset: number, length: number, zero: boolean): Promise<RegionData> {
    const blocks = zero ? undefined : blockDigests(await this.read(offset, length));
    const answer = new Promise<RegionData>((resolve) => this.regionAnswers.set(region, resolve));
    await this.channel.send(Type.REGION_WANTED, encodeRegionWanted(region, blocks));
    return await answer;
  }

  private async apply(answer: RegionData, offset: number, length: number): Promise<void> {
    const { zeroMask, dataMask, data } = answer;
    const blocks = Math.ceil(length / BLOCK_BYTES);
    if ((zeroMask & dataMask) !== 0 || (zeroMask | dataMask) >>> blocks !== 0) throw broken(`it sent region ${answer.region} with wrong masks`);
    let used = 0;
    const writes: Promise<void>[] = [];
    for (const [from, to, zero] of runs(zeroMask, dataMask, blocks)) {
      const at = from * BLOCK_BYTES;
      const bytes = Math.min(to * BLOCK_BYTES, length) - at;
      if (zero) {
        this.counts.zeroedBytes += bytes;
        writes.push(this.device.writeZeroes(offset + at, bytes));
      } else {
        if (used + bytes > data.length) break;
        this.counts.writtenBytes += bytes;
        writes.push(this.device.write(offset + at, data.subarray(used, used + bytes)));
        used += bytes;
      }
    }
    await Promise.all(writes);
    if (used !== data.length || countBits(dataMask) !== Math.ceil(used / BLOCK_BYTES)) throw broken(`it sent region ${answer.region} with ${data.length} bytes`);
  }

  private async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = await this.device.read(offset, length);
    this.counts.readBytes += bytes.length;
    this.counts.hashedBytes += bytes.length;
    return bytes;
  }
}

function isZeroDigest(digest: Buffer): boolean {
  return digest.every((byte) => byte === 0);
}

/** Neighbouring blocks of one mask: [first, behind the last, whether to zero]. */
function* runs(zeroMask: number, dataMask: number, blocks: number): Generator<[number, number, boolean]> {
  let block = 0;
  while (block < blocks) {
    const bit = 1 << block;
    if (((zeroMask | dataMask) & bit) === 0) {
      block++;
      continue;
    }
    const zero = (zeroMask & bit) !== 0;
    const mask = zero ? zeroMask : dataMask;
    const from = block;
    while (block < blocks && (mask & (1 << block)) !== 0) block++;
    yield [from, block, zero];
  }
}

function countBits(mask: number): number {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++;
  return count;
}
