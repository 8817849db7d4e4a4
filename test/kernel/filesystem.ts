/**
 * One filesystem on /dev/nbd0 in the guest, through a kill -9 of the server:
 * once between two mounts, and once while it is mounted and being written.
 */
import { expectEqual } from './expect.js';
import { fsckCommand, mkfsCommand, type Filesystem } from './filesystems.js';
import type { GuestShell } from './guest-shell.js';
import { detach, waitSize, type ServerUnderTest } from './server.js';

const DEVICE = '/dev/nbd0';

/** fio on files of the mounted filesystem; `phase` writes with checksums in every block, or reads them back. */
function fio(name: string, phase: 'write' | 'verify', size = '40m'): string {
  const common = `fio --name=${name} --directory=/media --size=${size} --bs=4k --rw=randwrite --ioengine=libaio --direct=1 --iodepth=16 ` +
    '--fsync=256 --randseed=7 --verify=crc32c --verify_fatal=1 --eta=never --verify_state_save=0 --output=/dev/null';
  return phase === 'write' ? `${common} --do_verify=0` : `${common} --verify_only`;
}

/** Files with content that a checksum can find again. */
const COPY_TREE = 'mkdir -p /media/tree && cp -r /usr/lib/python3/dist-packages /etc /media/tree/ 2>/dev/null; sync -f /media';
const CHECKSUMS = 'cd /media/tree && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum';

async function unmountAndCheck(guest: GuestShell, filesystem: Filesystem): Promise<void> {
  await guest.succeed('umount /media');
  await guest.succeed(fsckCommand(filesystem, DEVICE));
}

export async function filesystemSurvivesKills(guest: GuestShell, server: ServerUnderTest, filesystem: Filesystem): Promise<void> {
  await server.start();
  await server.attach(guest, DEVICE);
  await guest.succeed(mkfsCommand(filesystem, DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  await guest.succeed(fio('first', 'write'));
  await guest.succeed(fio('first', 'verify'));
  await guest.succeed(COPY_TREE);
  const before = await guest.succeed(CHECKSUMS);
  await guest.succeed('fstrim /media');
  await unmountAndCheck(guest, filesystem);

  // 1: killed between two mounts, the device still attached
  await server.kill();
  await detach(server, guest, DEVICE, 'dead');
  await server.start();
  await server.attach(guest, DEVICE);
  await guest.succeed(fsckCommand(filesystem, DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  await guest.succeed(fio('first', 'verify'));
  expectEqual('checksums of the files after kill -9', await guest.succeed(CHECKSUMS), before);

  // 2: killed under load; what was synced before must be there, and the filesystem must recover by itself
  await guest.succeed(`${fio('second', 'write')} && sync -f /media`);
  const load = guest.run(`${fio('third', 'write', '200m')} --time_based --runtime=60`);
  await guest.succeed('until [ -s /media/third.0.0 ]; do sleep 0.1; done; sleep 1');
  await server.kill();
  await server.disconnect(guest, DEVICE, 'dead');
  await load; // its I/O fails; how it ends does not matter
  await guest.run('umount /media');
  await waitSize(guest, DEVICE, 0);
  await server.start();
  await server.attach(guest, DEVICE);
  await guest.succeed(`mount ${DEVICE} /media`);
  await guest.succeed(fio('first', 'verify'));
  await guest.succeed(fio('second', 'verify'));
  expectEqual('checksums of the files after kill -9 under load', await guest.succeed(CHECKSUMS), before);
  await unmountAndCheck(guest, filesystem);

  // and again from the beginning: a device that was recovered takes a new filesystem
  await guest.succeed(mkfsCommand(filesystem, DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  await guest.succeed(fio('fresh', 'write', '16m'));
  await guest.succeed(fio('fresh', 'verify', '16m'));
  await unmountAndCheck(guest, filesystem);
  await detach(server, guest, DEVICE);
  await server.stop();
}
