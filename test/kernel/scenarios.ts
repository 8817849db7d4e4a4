/** The scenarios of `make test-kernel`, by name. Each gets a guest that has just booted, and a temporary directory. */
import { run, waitFor } from '../harness/process.js';
import type { Context } from './context.js';
import { expectEqual } from './expect.js';
import { filesystemSurvivesKills } from './filesystem.js';
import { fsckCommand, mkfsCommand, type Filesystem } from './filesystems.js';
import { freezeMakesWholeSnapshots, freezeNeverStays, freezeRefuses } from './freezing.js';
import { freezeSets } from './freezing-sets.js';
import { growsWhileMounted } from './growing.js';
import { restoreUnmounted } from './restoring.js';
import { PORT, REQUEST_SECONDS, detach, guestAddress, lockstepInGuest, lockstepServer, nbdkitServer, waitSize, type ServerUnderTest } from './server.js';
import { shrinksBelowAClient } from './shrinking.js';

const VOLUME_BYTES = 768 * 2 ** 20;
const DEVICE = '/dev/nbd0';

function makeServer(context: Context, bytes = VOLUME_BYTES): ServerUnderTest {
  return context.serverKind === 'lockstep' ? lockstepServer(context.directory, bytes) : nbdkitServer(context.directory, bytes);
}

function filesystemScenario(filesystem: Filesystem): (context: Context) => Promise<void> {
  return (context) => filesystemSurvivesKills(context.guest, makeServer(context), filesystem);
}

/** Plain nbd-client, several connections, over netlink and over the older ioctl. */
async function nbdClientWorks(context: Context): Promise<void> {
  const { guest } = context;
  const server = makeServer(context);
  await server.start();
  for (const options of ['', '-C 4', '-nonetlink']) {
    const name = server.exportName === '' ? '' : `-name ${server.exportName}`;
    await guest.succeed(`nbd-client ${guestAddress()} ${PORT} ${DEVICE} ${name} ${options} -timeout ${REQUEST_SECONDS}`);
    await waitSize(guest, DEVICE, VOLUME_BYTES);
    await guest.succeed(mkfsCommand('ext4', DEVICE));
    await guest.succeed(`mount ${DEVICE} /media`);
    const fio = 'fio --name=data --directory=/media --size=24m --bs=4k --rw=randwrite --ioengine=libaio --direct=1 --iodepth=16 --numjobs=2 ' +
      '--verify=crc32c --verify_fatal=1 --eta=never --verify_state_save=0 --output=/dev/null';
    await guest.succeed(`${fio} --do_verify=0`);
    await guest.succeed(`${fio} --verify_only`);
    await guest.succeed('umount /media');
    await guest.succeed(fsckCommand('ext4', DEVICE));
    await guest.succeed(`nbd-client -d ${DEVICE}`);
    await waitSize(guest, DEVICE, 0);
  }
  await server.stop();
}

interface MapTotals {
  readonly size: number;
  readonly description: string;
}

/** Bytes of the export that are not holes, as base:allocation has it. */
async function allocatedBytes(uri: string): Promise<number> {
  const result = await run('nbdinfo', ['--json', '--map', '--totals', uri]);
  if (result.code !== 0) throw new Error(`nbdinfo: ${result.stderr}`);
  return (JSON.parse(result.stdout) as MapTotals[]).filter((part) => part.description === 'data').reduce((sum, part) => sum + part.size, 0);
}

/** Deleted files are holes after fstrim, and what was not deleted is still right. */
async function fstrimMakesHoles(context: Context): Promise<void> {
  const { guest } = context;
  const server = makeServer(context);
  await server.start();
  await server.attach(guest, DEVICE);
  await guest.succeed(mkfsCommand('ext4', DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  await guest.succeed('dd if=/dev/urandom of=/media/keep bs=1M count=32 status=none; dd if=/dev/urandom of=/media/drop bs=1M count=200 status=none; sync -f /media');
  const kept = await guest.succeed('sha256sum </media/keep');
  const full = await allocatedBytes(server.uri);
  await guest.succeed('rm /media/drop; sync -f /media; fstrim /media');
  const trimmed = await allocatedBytes(server.uri);
  if (full - trimmed < 190 * 2 ** 20) throw new Error(`fstrim after the removal of 200 MiB: ${full} bytes allocated before, ${trimmed} after`);
  await guest.succeed('umount /media');
  await guest.succeed(fsckCommand('ext4', DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  expectEqual('checksum of the file that stayed', await guest.succeed('sha256sum </media/keep'), kept);
  // discard of the whole device: one request may be almost 4 GiB
  await guest.succeed('umount /media');
  await guest.succeed(`blkdiscard ${DEVICE}`);
  expectEqual('bytes allocated after blkdiscard', await allocatedBytes(server.uri), 0);
  await detach(server, guest, DEVICE);
  await server.stop();
}

/** The device outlives the CLI's process, has the right geometry, and fails instead of hanging when the server is gone. */
async function attachOutlivesTheCli(context: Context): Promise<void> {
  const { guest } = context;
  const server = makeServer(context);
  await server.start();
  await server.attach(guest, DEVICE);
  expectEqual('processes of lockstep or nbd-client that are left', await guest.succeed("ps -eo args | grep -E '[c]li/main.js|[n]bd-client' || true"), '');
  const block = Number(await guest.succeed('cat /sys/block/nbd0/queue/logical_block_size'));
  if (block < 512 || block > 4096) throw new Error(`the logical block size is ${block}`);
  await guest.succeed(`dd if=/dev/urandom of=/tmp/data bs=1M count=8 status=none; dd if=/tmp/data of=${DEVICE} bs=1M oflag=direct status=none`);
  await guest.succeed(`dd if=${DEVICE} bs=1M count=8 iflag=direct status=none | cmp - /tmp/data`);
  await guest.succeed(`sleep ${REQUEST_SECONDS + 2}`); // idle for longer than a request may take
  await guest.succeed(`dd if=${DEVICE} bs=1M count=8 iflag=direct status=none | cmp - /tmp/data`);
  await server.kill();
  const failed = await guest.run(`dd if=${DEVICE} of=/dev/null bs=4k count=1 iflag=direct`, 120_000);
  if (failed.code === 0) throw new Error('a read succeeded although the server was killed');
  await detach(server, guest, DEVICE, 'dead');
  await server.start();
  await server.attach(guest, DEVICE);
  await guest.succeed(`dd if=${DEVICE} bs=1M count=8 iflag=direct status=none | cmp - /tmp/data`);
  await detach(server, guest, DEVICE);
  await server.stop();
}

/** A mounted filesystem under load gets new connections from `attach --reconnect` after a kill -9 and notices nothing. */
async function reconnectHidesAKill(context: Context): Promise<void> {
  if (context.serverKind === 'nbdkit') return; // nbd-client has no such thing
  const { guest } = context;
  const server = lockstepServer(context.directory, VOLUME_BYTES);
  const attach = `attach g/vol ${DEVICE} --server tcp:${guestAddress()}:${PORT} --timeout 5 --dead-timeout 120`;
  await server.start();
  await guest.succeed(lockstepInGuest(attach));
  await waitSize(guest, DEVICE, VOLUME_BYTES);
  await guest.succeed(mkfsCommand('ext4', DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  const load = guest.run(
    'fio --name=data --directory=/media --size=96m --bs=4k --rw=randwrite --ioengine=libaio --direct=1 --iodepth=16 --fsync=128 ' +
    '--verify=crc32c --verify_fatal=1 --eta=never --verify_state_save=0', 240_000,
  );
  for (let kills = 0; kills < 2; kills++) {
    await guest.succeed('until [ -s /media/data.0.0 ]; do sleep 0.1; done; sleep 1');
    await server.kill();
    await server.start();
    await guest.succeed(lockstepInGuest(`${attach} --reconnect`));
  }
  const result = await load;
  if (result.code !== 0) throw new Error(`fio ended with ${result.code}:\n${result.stdout}${result.stderr}`);
  await guest.succeed('umount /media');
  await guest.succeed(fsckCommand('ext4', DEVICE));
  await detach(server, guest, DEVICE);
  await server.stop();
}

/** A server that stops cleanly lets the kernel's client go, and a second volume of 2 TiB has its full size. */
async function largeVolumeHasItsSize(context: Context): Promise<void> {
  const { guest } = context;
  const bytes = 2 * 2 ** 40;
  const server = makeServer(context, bytes);
  await server.start();
  await server.attach(guest, DEVICE);
  expectEqual('size', Number(await guest.succeed(`blockdev --getsize64 ${DEVICE}`)), bytes);
  await guest.succeed(mkfsCommand('xfs', DEVICE));
  await guest.succeed(`mount ${DEVICE} /media && cp /bin/bash /media/ && umount /media && mount ${DEVICE} /media && cmp /bin/bash /media/bash && umount /media`);
  await guest.succeed(`dd if=/bin/bash of=${DEVICE} bs=4k count=16 seek=$(( ${bytes} / 4096 - 16 )) oflag=direct status=none`);
  await guest.succeed(`dd if=${DEVICE} bs=4k count=16 skip=$(( ${bytes} / 4096 - 16 )) iflag=direct status=none | cmp -n 65536 - /bin/bash`);
  await detach(server, guest, DEVICE);
  await server.stop();
  await waitFor('the device stays detached', async () => (await guest.succeed('cat /sys/block/nbd0/size')).trim() === '0');
}

export const SCENARIOS: Readonly<Record<string, (context: Context) => Promise<void>>> = {
  'ext4': filesystemScenario('ext4'),
  'xfs': filesystemScenario('xfs'),
  'btrfs': filesystemScenario('btrfs'),
  'nbd-client': nbdClientWorks,
  'fstrim': fstrimMakesHoles,
  'attach': attachOutlivesTheCli,
  'reconnect': reconnectHidesAKill,
  'large': largeVolumeHasItsSize,
  'grow-ext4': growsWhileMounted('ext4'),
  'grow-xfs': growsWhileMounted('xfs'),
  'freeze-ext4': freezeMakesWholeSnapshots('ext4'),
  'freeze-xfs': freezeMakesWholeSnapshots('xfs'),
  'freeze-ends': freezeNeverStays,
  'freeze-refusals': freezeRefuses,
  'freeze-sets': freezeSets,
  'restore': restoreUnmounted,
  'shrink': shrinksBelowAClient,
};
