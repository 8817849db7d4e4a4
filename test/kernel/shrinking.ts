/**
 * A volume shrinks below a kernel client: refused as long as that would lose
 * something unnoticed; forced, the client is cut off, nothing hangs, and what
 * a later growth adds reads as zeros.
 */
import { waitCaughtUp } from '../harness/node.js';
import type { Context } from './context.js';
import { expectEnd, expectEqual, kernelWords } from './expect.js';
import { mkfsCommand } from './filesystems.js';
import { Replicated } from './replicated.js';
import { waitSize } from './server.js';

const DEVICE = '/dev/nbd0';
const MIB = 2 ** 20;
const FULL_BYTES = 256 * MIB;
const SHORT_BYTES = 128 * MIB;

/** Succeeds when there are so many zeros from the shorter end on. */
function zeros(bytes: number): string {
  return `dd if=${DEVICE} bs=1M skip=${SHORT_BYTES / MIB} count=${bytes / MIB} status=none | cmp -n ${bytes} - /dev/zero`;
}

/** Until it fails, which it does when the device is cut off. */
const LOAD = 'fio --name=load --directory=/media --size=150m --bs=64k --rw=randrw --ioengine=libaio --direct=1 --iodepth=8 --time_based --runtime=3600 --eta=never --output=/run/fio.out';

export async function shrinksBelowAClient(context: Context): Promise<void> {
  if (context.serverKind === 'nbdkit') return;
  const { guest } = context;
  const bench = await Replicated.open(guest, context.directory, { vol: FULL_BYTES });
  const shrink = (more = ''): ReturnType<Replicated['lockstep']> => bench.lockstep(`resize g/vol ${SHORT_BYTES} --wait=applied ${more}`);
  await bench.attach('primary', 'vol', DEVICE, FULL_BYTES);

  // Nothing behind the new end: only the client is in the way.
  await guest.succeed(`dd if=/dev/urandom of=${DEVICE} bs=1M count=64 oflag=direct status=none`);
  expectEnd(await shrink(), 2, /g\/vol has 1 NBD client that would not notice that its end is cut off: unmount and disconnect it \(lockstep detach, on that machine\)/, 'attached');
  // Data behind it: refused, attached or not.
  await guest.succeed(`dd if=/dev/urandom of=${DEVICE} bs=1M count=4 seek=200 oflag=direct status=none`);
  expectEnd(await shrink(), 2, /g\/vol may hold data behind 128 MiB, which would be lost for good/, 'attached, with data');
  await bench.detach(DEVICE);
  expectEnd(await shrink(), 2, /may hold data behind 128 MiB/, 'with data');
  await bench.attach('primary', 'vol', DEVICE, FULL_BYTES);
  expectEqual('the size after refusals', Number(await guest.succeed(`blockdev --getsize64 ${DEVICE}`)), FULL_BYTES);
  await guest.succeed(`blkdiscard -o ${SHORT_BYTES} ${DEVICE}`);
  await bench.detach(DEVICE);
  expectEnd(await shrink(), 0, /g\/vol has 128 MiB now/, 'detached, without data');
  expectEnd(await bench.lockstep(`resize g/vol ${FULL_BYTES}`), 0, /g\/vol has 256 MiB now/, 'the growth back');

  // A filesystem all over it, mounted and written to; its requests would wait for an hour.
  await bench.attach('primary', 'vol', DEVICE, FULL_BYTES, 3600, 3600);
  await guest.succeed(`${mkfsCommand('ext4', DEVICE)} && mount ${DEVICE} /media`);
  const load = guest.run(LOAD, 120_000);
  await guest.succeed('until [ -s /media/load.0.0 ]; do sleep 0.1; done; sleep 1');
  await kernelWords(guest);
  expectEnd(await shrink('--force'), 0, /\/dev\/nbd0 is attached to what g\/vol was before: it answers from its cache, or not at all/, 'forced');
  expectEnd(await bench.lockstep(`attach --reconnect g/vol ${DEVICE} ${bench.serverOption('primary')}`), 2, /is not what \/dev\/nbd0 was attached to any more/, 'a reconnect after the shrink');
  expectEnd(await bench.lockstep('attach --resize g/vol'), 2, /is not what \/dev\/nbd0 was attached to any more/, 'attach --resize after the shrink');
  await guest.succeed('pgrep -x fio >/run/waiting'); // it waits
  expectEnd(await bench.lockstep(`detach --force ${DEVICE}`), 0, /detached/, 'detach --force');
  const ended = await load;
  if (ended.code === 0) throw new Error('fio ended well on a device that was cut off');
  const late = await guest.run(`dd if=${DEVICE} of=/dev/null bs=1M count=1 skip=200 iflag=direct status=none`, 60_000);
  if (late.code === 0 || !/Input\/output error/.test(late.stderr)) throw new Error(`a read behind the new end: ${late.code} ${late.stderr}`);
  await guest.succeed('umount /media', 120_000);
  await waitSize(guest, DEVICE, 0);
  await kernelWords(guest);

  // Attached anew it ends where it ends.
  await bench.attach('primary', 'vol', DEVICE, SHORT_BYTES);
  expectEqual('bytes behind the new end', Number(await guest.succeed(`dd if=${DEVICE} bs=1M skip=${SHORT_BYTES / MIB} status=none | wc -c`)), 0);
  expectEqual('a write behind the new end', (await guest.run(`dd if=/dev/zero of=${DEVICE} bs=1M count=1 seek=${SHORT_BYTES / MIB} oflag=direct status=none`)).code, 1);
  await guest.succeed(`dd if=${DEVICE} of=/dev/null bs=1M status=none`);

  // And grows under the client: what was cut off is gone.
  expectEnd(await bench.lockstep(`resize g/vol ${FULL_BYTES} --wait=applied`), 0, /\/dev\/nbd0 \(g\/vol\) has 256 MiB now; before: 128 MiB/, 'the growth under a client');
  await waitSize(guest, DEVICE, FULL_BYTES);
  await guest.succeed(zeros(FULL_BYTES - SHORT_BYTES));
  await guest.succeed(`dd if=/dev/urandom of=${DEVICE} bs=1M count=1 seek=255 oflag=direct status=none`);
  await bench.detach(DEVICE);
  await waitCaughtUp(bench.pair);
  await bench.expectSameOnBoth(['vol']);
  await bench.attach('secondary', 'vol', DEVICE, FULL_BYTES);
  await guest.succeed(zeros(FULL_BYTES - SHORT_BYTES - MIB));
  await bench.detach(DEVICE);
  await kernelWords(guest);
  await bench.close();
}
