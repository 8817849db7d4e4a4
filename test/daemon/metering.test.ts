/** The meter and the sizes of a real pair: API, command line, journal dump, metrics. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import type { JournalRecord, MeteredEntry } from '../../src/control/schema/replies.js';
import { BATCH_HEADER_BYTES, usedHeaderBytes } from '../../src/journal/format.js';
import { FRAME_HEADER_BYTES } from '../../src/replication/message.js';
import { openDevice } from '../crash/clients.js';
import { preparePair, waitCaughtUp } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

t.setTimeout(120_000);

/** The operation at `lsn` as the node meters it, when its bytes are exact. */
async function metered(node: TestNode, lsn: number): Promise<MeteredEntry> {
  let found: MeteredEntry | undefined;
  await waitFor(`${node.name} has counted what the operation at LSN ${lsn} changed`, async () => {
    found = (await node.control.operations('g')).operations.find((one) => one.lsn === lsn);
    return found !== undefined && found.changed === 'exact';
  });
  return found!;
}

async function markerAt(node: TestNode, lsn: number): Promise<JournalRecord> {
  // From its own batch on: what lies before may be recycled while it is read.
  for await (const record of node.control.journal('g', { from: lsn - BATCH_HEADER_BYTES })) if (record.lsn === lsn) return record;
  throw new Error(`no record at LSN ${lsn}`);
}

t.test('both nodes meter an operation, and what it put on the wire is its frame', async (t) => {
  const directory = makeTempDirectory('metering');
  const pair = await preparePair(directory, { journalSize: '256M', segmentSize: '64M' });
  const { primary, secondary } = pair;
  t.teardown(async () => {
    await Promise.all([primary.kill(), secondary.kill()]);
    removeTempDirectory(directory);
  });
  await Promise.all([primary.start(), secondary.start()]);
  await primary.control.createVolume('g', { name: 'v', size: 256 * MIB });
  const client = await openDevice(primary, 'v');
  const write = async (from: number, to: number): Promise<void> => {
    for (let i = from; i < to; i++) await client.write(i * 3 * MIB, new Uint8Array(MIB).fill(i + 1));
  };
  await write(0, 8);
  await primary.control.snapshot('g', { source: 'v', name: 'a' });
  await write(6, 12);
  const { lsn } = await primary.control.restore('g', { target: 'v', source: 'v@a', force: true, wait: 'applied' });
  await client.disconnect().catch(() => undefined);

  const here = await metered(primary, lsn);
  const there = await metered(secondary, lsn);
  const marker = await markerAt(primary, lsn);
  const frame = FRAME_HEADER_BYTES + usedHeaderBytes(1) + marker.length!;
  t.match(here, { verb: 'restore', what: 'v from v@a', devices: [1], changedBytes: 6 * MIB, wireBytes: { beta: frame } });
  t.match(there, { verb: 'restore', what: 'v from v@a', changedBytes: 6 * MIB, wireBytes: { alpha: frame } });
  t.equal(here.timeMs, there.timeMs);
  t.ok(frame < 1024, `${frame} bytes`);
  t.ok(here.dataThreadUs > 0 && there.dataThreadUs > 0);
  t.match(marker.body, { op: 'assign', meter: { changedBytes: 6 * MIB, changed: 'exact', wireBytes: { beta: frame } } });
  t.match((await primary.group('g')).operations, { performed: 3, changedBytes: 6 * MIB, last: { lsn } });

  // An operation that the peer gets by catch-up.
  await secondary.kill();
  const late = await primary.control.snapshot('g', { source: 'v', name: 'b' });
  t.match((await metered(primary, late.lsn)).wireBytes, {});
  await secondary.start();
  await waitCaughtUp(pair);
  const caughtUp = FRAME_HEADER_BYTES + usedHeaderBytes(1) + (await markerAt(primary, late.lsn)).length!;
  t.match((await metered(primary, late.lsn)).wireBytes, { beta: caughtUp });
  t.match((await metered(secondary, late.lsn)).wireBytes, { alpha: caughtUp });
  t.equal((await secondary.control.operations('g')).operations.length, 1, 'markers that recovery replays are not metered');

  const text = await primary.control.metrics();
  const { totals } = await primary.control.operations('g');
  for (const line of [
    'lockstep_operations_total{group="g",verb="snapshot"} 2',
    'lockstep_operation_changed_bytes_total{group="g",verb="restore"} 6291456',
    `lockstep_operation_wire_bytes_total{group="g",verb="restore",link="beta"} ${frame}`,
    `lockstep_operation_thread_seconds_total{group="g",verb="restore"} ${totals.find((one) => one.verb === 'restore')!.dataThreadUs / 1e6}`,
  ]) t.ok(text.split('\n').includes(line), line);

  t.match((await primary.lockstep('operations', 'g')).stdout, /restore +6 MiB +beta \d+ B +[\d.]+ ms {2}v from v@a\n/);
  t.match((await primary.lockstep('status', 'g')).stdout, /ops +4 since the daemon started, 6 MiB changed by \d+(\.\d+)? K?i?B on the wire, .* last: snapshot v@b at LSN/);
  const sizes = await secondary.control.sizes('g');
  t.match(sizes.devices, [1, 2, 3].map((id) => ({ id, usedBytes: 8 * MIB, ownBytes: 0, sharedBytes: 8 * MIB })));
  t.equal(sizes.storedBytes, 8 * MIB);
  t.match((await secondary.lockstep('list', 'g', '--tree')).stdout, /g\/v +1 +256 MiB +0 B +8 MiB .*\n├─ v@a +2 +256 MiB +0 B +8 MiB .*\n└─ v@b +3 .*\ng: 8 MiB in all at LSN \d+/);
});
