/** A mounted filesystem grows under fio on a replicated volume, and the promoted secondary has all of it. */
import { waitCaughtUp } from '../harness/node.js';
import { expectEqual } from './expect.js';
import { fsckCommand, mkfsCommand, type Filesystem } from './filesystems.js';
import type { Context } from './context.js';
import { Replicated } from './replicated.js';
import { lockstepInGuest, waitSize } from './server.js';

const DEVICE = '/dev/nbd0';
const BEFORE_BYTES = 320 * 2 ** 20;
const AFTER_BYTES = 576 * 2 ** 20;

/** Rounds of fio, each writing a file with checksums in every block and reading it back, until /run/stop is there. */
const LOAD = 'n=0; while [ ! -e /run/stop ]; do n=$((n + 1)); fio --name=load --directory=/media --size=24m --bs=4k --rw=randwrite --ioengine=libaio --direct=1 --iodepth=16 ' +
  '--fsync=256 --randseed=$n --verify=crc32c --verify_fatal=1 --eta=never --verify_state_save=0 --output=/run/fio.out || { cat /run/fio.out; exit 1; }; echo $n >/run/rounds; done; cat /run/rounds';

function growCommand(filesystem: Filesystem): string {
  return filesystem === 'xfs' ? 'xfs_growfs /media' : `resize2fs ${DEVICE}`;
}

export function growsWhileMounted(filesystem: Filesystem): (context: Context) => Promise<void> {
  return async (context) => {
    if (context.serverKind === 'nbdkit') return;
    const { guest, directory } = context;
    const bench = await Replicated.open(guest, directory, { vol: BEFORE_BYTES });
    const lockstep = (words: string): Promise<string> => guest.succeed(`${bench.relay.environment} ${lockstepInGuest(words)}`);
    const filesystemBytes = async (): Promise<number> => Number(await guest.succeed('echo $(( $(stat -f -c "%b * %S" /media) ))'));

    await bench.attach('primary', 'vol', DEVICE, BEFORE_BYTES);
    await guest.succeed(mkfsCommand(filesystem, DEVICE));
    await guest.succeed(`mount ${DEVICE} /media`);
    if (await filesystemBytes() > BEFORE_BYTES) throw new Error('the filesystem is larger than its device');

    const load = guest.run(LOAD, 400_000);
    await guest.succeed('until [ -s /run/rounds ]; do sleep 0.1; done');
    // The CLI finds the device by itself; so it does when it is asked to once more.
    const said = await lockstep(`resize g/vol ${AFTER_BYTES}`);
    if (!/\/dev\/nbd0 \(g\/vol\) has 576 MiB now; before: 320 MiB/.test(said)) throw new Error(`resize said: ${said}`);
    await waitSize(guest, DEVICE, AFTER_BYTES);
    expectEqual('attach --resize', (await lockstep('attach --resize g/vol')).trim(), '/dev/nbd0 (g/vol) has 576 MiB, as before');
    expectEqual('attach --resize by the server', (await guest.succeed(lockstepInGuest(`attach --resize ${bench.serverOption('primary')}`))).trim(), '/dev/nbd0 (g/vol) has 576 MiB, as before');
    await guest.succeed(growCommand(filesystem));
    const grown = await filesystemBytes();
    if (grown <= BEFORE_BYTES) throw new Error(`the filesystem has ${grown} bytes after it was grown`);
    // More than there was room for before.
    await guest.succeed(`yes 'a line of a file that needs the new room' | head -c ${BEFORE_BYTES} >/media/big && sync -f /media`, 300_000);
    await guest.succeed('echo >/run/stop');
    const result = await load;
    if (result.code !== 0 || !(Number(result.stdout) >= 1)) throw new Error(`fio ended with ${result.code}:\n${result.stdout}${result.stderr}`);
    const sum = await guest.succeed('sha256sum </media/big && sha256sum </media/load.0.0');
    await guest.succeed('umount /media');
    await guest.succeed(fsckCommand(filesystem, DEVICE));
    await bench.detach(DEVICE);
    await waitCaughtUp(bench.pair);

    await bench.pair.primary.kill();
    await bench.pair.secondary.control.promote('g');
    await bench.attach('secondary', 'vol', DEVICE, AFTER_BYTES);
    await guest.succeed(fsckCommand(filesystem, DEVICE));
    await guest.succeed(`mount ${DEVICE} /media`);
    expectEqual('size of the filesystem on the promoted secondary', await filesystemBytes(), grown);
    expectEqual('checksums of the files on the promoted secondary', await guest.succeed('sha256sum </media/big && sha256sum </media/load.0.0'), sum);
    await guest.succeed('cp /bin/bash /media/ && sync -f /media && umount /media');
    await bench.detach(DEVICE);
    await bench.close();
  };
}
