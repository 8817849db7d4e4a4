/**
 * The side that has the content: reads its device once, tells digests, answers
 * what the sink asks for. Writes nothing.
 *
 * Owns: subtrees under way. Must not know: what the sink does with them.
 */

import { DigestSum, putRegionDigest, DIGEST_BYTES } from '../../base/content-digest.js';
import { BLOCK_BYTES, REGION_BYTES } from '../../base/units.js';
import type { Channel } from './channel.js';
import type { RegionDevice } from './device.js';
import { DeviceError } from './device.js';
import {
  MAX_REGIONS, MAX_SUBTREES, Result, Type, broken, decodeJson, decodeNode, decodeRegionWanted, decodeSubtree, encodeNode, encodeRegion, encodeSubtree,
} from './messages.js';
import { DEFAULT_PATIENCE } from './patience.js';
import type { Patience } from './patience.js';
import { Side } from './side.js';
import type { ScanCounts, Subtree } from './tree.js';
import { BLOCK_DIGEST_BYTES, FAN_OUT, blockDigests, partBytes, scanSubtree, subtreeCount } from './tree.js';

/** More than all answers that the sink may wait for. */
const MAX_PENDING_BYTES = 2 * MAX_REGIONS * REGION_BYTES;

export interface SourceReport {
  /** What the sink calls its device. */
  readonly peerDevice: string;
  /** Of both devices, now. */
  readonly digest: string;
  /** Content sent, without what frames it. */
  readonly contentBytes: number;
  readonly here: ScanCounts;
  readonly there: Result;
}

export interface Progress {
  /** Compared and equal by now. */
  readonly doneBytes: number;
  readonly sizeBytes: number;
  readonly contentBytes: number;
}

export class Source extends Side<SourceReport> {
  private readonly counts: ScanCounts = { readBytes: 0, hashedBytes: 0 };
  private readonly sum = new DigestSum();
  /** Told, and no DONE for them yet. */
  private readonly subtrees = new Map<number, Subtree>();
  private regionsUnderWay = 0;
  private contentBytes = 0;
  private doneBytes = 0;
  private ended = false;
  private result: Result | undefined;

  constructor(device: RegionDevice, channel: Channel, private readonly onProgress: (progress: Progress) => void, patience: Patience = DEFAULT_PATIENCE) {
    super('source', device, channel, patience);
  }

  protected answerDue(): boolean {
    return this.subtrees.size > 0 || (this.ended && this.result === undefined);
  }

  protected async work(): Promise<SourceReport> {
    for (let index = 0; index < subtreeCount(this.device.sizeBytes); index++) {
      await this.until(() => this.subtrees.size < MAX_SUBTREES);
      const subtree = await scanSubtree(this.device, index, this.counts);
      subtree.addTo(this.sum);
      this.subtrees.set(index, subtree);
      await this.channel.send(Type.SUBTREE, encodeSubtree(index, subtree.nodeDigests()));
    }
    await this.until(() => this.subtrees.size === 0);
    const digest = this.sum.contentDigest(this.device.sizeBytes);
    this.ended = true;
    await this.channel.send(Type.END, Buffer.from(digest, 'hex'));
    await this.until(() => this.result !== undefined);
    const there = this.result!;
    if (there.digest !== digest) throw broken(`it says that its digest is ${there.digest}, and was told ${digest}`);
    return { peerDevice: this.peerDevice, digest, contentBytes: this.contentBytes, here: this.counts, there };
  }

  protected message(type: number, payload: Buffer): void {
    switch (type) {
      case Type.NODE_WANTED: return this.nodeWanted(payload);
      case Type.REGION_WANTED: return this.regionWanted(payload);
      case Type.DONE: return this.done(payload);
      case Type.RESULT:
        if (!this.ended || this.result !== undefined) throw broken('it reports a result too early');
        this.result = decodeJson(Result, payload, 'result');
        return this.changed();
      default: throw broken(`it sent a message of type ${type}`);
    }
  }

  private nodeWanted(payload: Buffer): void {
    const { subtree: index, node } = decodeNode(payload);
    const subtree = this.subtrees.get(index);
    if (subtree === undefined || node >= subtree.nodeCount) throw broken(`it asks for node ${node} of subtree ${index}, which is not under way`);
    if (this.channel.pendingBytes > MAX_PENDING_BYTES) throw broken('it asks, and does not read the answers');
    this.spawn(this.channel.send(Type.NODE, encodeNode(index, node, subtree.regionDigests(node))));
  }

  private regionWanted(payload: Buffer): void {
    const { region, blocks } = decodeRegionWanted(payload);
    const subtree = this.subtrees.get(Math.floor(region / (FAN_OUT * FAN_OUT)));
    if (subtree === undefined || region >= subtree.firstRegion + subtree.regionCount) throw broken(`it asks for region ${region}, which is not under way`);
    const length = partBytes(this.device.sizeBytes, region * REGION_BYTES, REGION_BYTES);
    const expected = Math.ceil(length / BLOCK_BYTES) * BLOCK_DIGEST_BYTES;
    if (blocks.length !== 0 && blocks.length !== expected) throw broken(`it asks for region ${region} with ${blocks.length} bytes of digests`);
    if (this.regionsUnderWay >= MAX_REGIONS) throw broken(`it asks for more than ${MAX_REGIONS} regions at a time`);
    this.regionsUnderWay++;
    this.spawn(this.sendRegion(subtree, region, length, blocks));
  }

  /** Sends the blocks of a region that the sink has not. */
  private async sendRegion(subtree: Subtree, region: number, length: number, theirs: Buffer): Promise<void> {
    const bytes = await this.device.read(region * REGION_BYTES, length);
    this.counts.readBytes += bytes.length;
    const digest = Buffer.alloc(DIGEST_BYTES);
    putRegionDigest(digest, 0, region, bytes);
    if (!digest.equals(subtree.regionDigest(region))) {
      throw new DeviceError(`${this.device.name} changed at byte ${region * REGION_BYTES} while it was being compared: it has a writer. Compare a snapshot, or something that nobody writes to`);
    }
    const ours = blockDigests(bytes);
    let zeroMask = 0;
    let dataMask = 0;
    const blocks: Uint8Array[] = [];
    for (let block = 0; block * BLOCK_DIGEST_BYTES < ours.length; block++) {
      const at = block * BLOCK_DIGEST_BYTES;
      const our = ours.subarray(at, at + BLOCK_DIGEST_BYTES);
      if (theirs.length === 0 ? isZeroDigest(our) : our.equals(theirs.subarray(at, at + BLOCK_DIGEST_BYTES))) continue;
      if (isZeroDigest(our)) {
        zeroMask |= 1 << block;
      } else {
        dataMask |= 1 << block;
        blocks.push(bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES));
      }
    }
    this.contentBytes += blocks.reduce((total, one) => total + one.length, 0);
    const sent = this.channel.send(Type.REGION, encodeRegion(region, zeroMask, dataMask, blocks));
    // Not after it was sent: the sink may have it, and ask for another, before this process hears that the pipe has room.
    this.regionsUnderWay--;
    await sent;
  }

  private done(payload: Buffer): void {
    const { subtree: index } = decodeSubtree(payload);
    const subtree = this.subtrees.get(index);
    if (subtree === undefined) throw broken(`it is done with subtree ${index}, which is not under way`);
    this.subtrees.delete(index);
    this.doneBytes += subtree.bytes;
    this.onProgress({ doneBytes: this.doneBytes, sizeBytes: this.device.sizeBytes, contentBytes: this.contentBytes });
    this.changed();
  }
}

function isZeroDigest(digest: Buffer): boolean {
  return digest.every((byte) => byte === 0);
}
