/**
 * The two nodes that the suite `operations` works on: a sparse volume and its
 * snapshots, and what is measured of them at rest.
 *
 * Owns: the group's content at the beginning, the comparison of both nodes, the
 * bytes on the wire. Must not know: which operations there are.
 */
import { preparePair, waitCaughtUp, type Pair } from '../../test/harness/node.js';
import { waitFor } from '../../test/harness/process.js';
import type { ControlClient } from '../../src/control/client.js';
import type { OperationsReply } from '../../src/control/schema/replies.js';
import type { DeviceContent } from './device-content.js';
import { DigestWorker } from './digest-worker.js';
import { load, type Target } from './measure.js';

export const GROUP = 'g';
const BLOCK_BYTES = 4096;
export const VOLUME_BYTES = 64 * 2 ** 30;
/** Volumes beside the large one and the one under load: eight in all. */
const OTHERS = 6;
export const RANGE_BYTES = 256 * 2 ** 20;
/** Of the volume that a whole range is restored of; begins inside of a map leaf. */
export const RANGE_OFFSET = 128 * 2 ** 20 + 5 * BLOCK_BYTES;
/** Small, so that what the load leaves is soon destaged. */
export const LOADED_BYTES = 256 * 2 ** 20;

type MeteredEntry = OperationsReply['operations'][number];

/** One comparison of both nodes. */
export interface Comparison {
  readonly lsn: number;
  readonly devices: number;
  /** Read on each node. */
  readonly bytes: number;
  /** Sentences about what is not equal. */
  readonly problems: readonly string[];
}

export class OperationsRig {
  private readonly readers = { primary: new DigestWorker(), secondary: new DigestWorker() };

  private constructor(readonly pair: Pair) {}

  static async open(directory: string): Promise<OperationsRig> {
    const pair = await preparePair(directory, { journalSize: '2G', segmentSize: '64M' });
    const rig = new OperationsRig(pair);
    await pair.secondary.start();
    await pair.primary.start();
    return rig;
  }

  async close(): Promise<void> {
    await Promise.all([this.readers.primary.close(), this.readers.secondary.close()]);
    await this.pair.primary.stop();
    await this.pair.secondary.stop();
  }

  get control(): ControlClient {
    return this.pair.primary.control;
  }

  target(device: string): Target {
    return { address: `unix:${this.pair.primary.nbdSocket}`, exportName: `${GROUP}/${device}` };
  }

  /**
   * `vol` with `differingBytes` of random blocks beyond its snapshot `base`, and
   * the snapshot `changed` of that; `part` with a range that is different in
   * every block from its snapshot `base`; other volumes; the set `early` of all
   * these; and `loaded`, which is in no set.
   */
  async fill(differingBytes: number): Promise<void> {
    const { control } = this;
    const names = ['vol', 'part', ...Array.from({ length: OTHERS }, (_, i) => `other${i}`)];
    for (const name of names) await control.createVolume(GROUP, { name, size: VOLUME_BYTES });
    const random = (device: string, bytes: number, seed: number): Promise<unknown> =>
      load(this.target(device), ['--op', 'write', '--depth', '32', '--count', String(Math.ceil(bytes / BLOCK_BYTES)), '--seed', String(seed)]);
    const range = (seed: number): Promise<unknown> => load(this.target('part'), [
      '--op', 'write', '--sequential', '--block', '64K', '--depth', '8', '--offset', String(RANGE_OFFSET), '--range', String(RANGE_BYTES),
      '--count', String(RANGE_BYTES / 65536), '--seed', String(seed),
    ]);
    await random('vol', differingBytes / 4, 1);
    await range(1);
    for (const [i, name] of names.slice(2).entries()) await random(name, 4 * 2 ** 20, 10 + i);
    for (const name of ['vol', 'part']) await control.snapshot(GROUP, { source: name, name: 'base' });
    // a little more, for random blocks meet
    await random('vol', differingBytes * 1.012, 2);
    await range(2);
    for (const name of ['vol', 'part']) await control.snapshot(GROUP, { source: name, name: 'changed' });
    await control.snapshot(GROUP, { source: null, name: 'early' });
    await control.createVolume(GROUP, { name: 'loaded', size: VOLUME_BYTES });
    await this.settle();
  }

  /** Both nodes have applied and destaged everything. */
  async settle(): Promise<void> {
    await waitCaughtUp(this.pair, GROUP, 300_000);
    await Promise.all([this.pair.primary, this.pair.secondary].map((node) => node.control.flush(GROUP, { upTo: 'destaged' })));
  }

  /** The link's bytes in both directions, once it is at rest: everything is acknowledged as durable and applied. */
  async wireBytes(): Promise<number> {
    let bytes = NaN;
    await waitFor('the link is at rest', async () => {
      const group = await this.pair.primary.group(GROUP);
      const [link] = group.links;
      const quiet = link.applied === group.lsn.appended && link.durable === group.lsn.appended && link.wireBytes === bytes;
      bytes = link.wireBytes;
      return quiet;
    });
    return bytes;
  }

  /** What the primary's meter says of the operation at `lsn`, once it counts no more. */
  async metered(lsn: number): Promise<MeteredEntry> {
    let found: MeteredEntry | undefined;
    await waitFor(`the operation at LSN ${lsn} is counted`, async () => {
      found = (await this.control.operations(GROUP)).operations.find((one) => one.lsn === lsn);
      return found !== undefined && found.changed !== 'counting';
    }, 120_000);
    return found!;
  }

  /** Everything on the primary; with the sums that `differingBytes` needs. NOTHING has to be used for what does not exist. */
  content(device: string): Promise<DeviceContent> {
    return this.readers.primary.content({ socket: this.pair.primary.nbdSocket, exportName: `${GROUP}/${device}`, sums: true });
  }

  /** Reads every device whole on both nodes, and compares names, sizes and sha256 at one LSN. */
  async compare(): Promise<Comparison> {
    const { primary, secondary } = this.pair;
    await waitCaughtUp(this.pair, GROUP);
    const problems: string[] = [];
    const [here, there] = [await primary.control.devices(GROUP), await secondary.control.devices(GROUP)];
    const list = (reply: typeof here): string => reply.devices.map((one) => `${one.id} ${one.name} ${one.sizeBytes}`).sort().join(', ');
    if (list(here) !== list(there)) problems.push(`the nodes have other devices: ${list(here)} and ${list(there)}`);
    if (here.lsn !== there.lsn) problems.push(`the primary is at LSN ${here.lsn}, the secondary at ${there.lsn}`);
    let bytes = 0;
    await Promise.all(here.devices.map(async ({ name }) => {
      const exportName = `${GROUP}/${name}`;
      const [mine, theirs] = await Promise.all([
        this.readers.primary.content({ socket: primary.nbdSocket, exportName, sums: false }),
        this.readers.secondary.content({ socket: secondary.nbdSocket, exportName, sums: false }),
      ]);
      bytes += mine.nonZeroBytes;
      if (mine.sha256 !== theirs.sha256) problems.push(`${name}: sha256 ${mine.sha256} on the primary, ${theirs.sha256} on the secondary`);
    }));
    const [after, afterThere] = [await primary.group(GROUP), await secondary.group(GROUP)];
    if (after.lsn.appended !== here.lsn || afterThere.lsn.applied !== here.lsn) problems.push('the nodes moved while they were read');
    return { lsn: here.lsn, devices: here.devices.length, bytes, problems };
  }
}
