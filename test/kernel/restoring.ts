/**
 * A restore of filesystems that were unmounted for it, and what the kernel's
 * cache of a block device does when nobody was asked before.
 */
import { waitCaughtUp } from '../harness/node.js';
import type { Context } from './context.js';
import { expectEnd, expectEqual, expectSameLines, kernelWords } from './expect.js';
import { fsckCommand, mkfsCommand, type Filesystem } from './filesystems.js';
import { DEAD_SECONDS, Replicated } from './replicated.js';
import { waitSize } from './server.js';

const VOLUMES: readonly { readonly name: string; readonly filesystem: Filesystem; readonly device: string; readonly point: string }[] = [
  { name: 'web', filesystem: 'ext4', device: '/dev/nbd0', point: '/media/web' },
  { name: 'db', filesystem: 'xfs', device: '/dev/nbd1', point: '/media/db' },
];
const VOLUME_BYTES = 320 * 2 ** 20;

/** Files whose content a checksum finds again. */
function fill(point: string): string {
  return `mkdir -p ${point}/tree ${point}/gone && for n in $(seq 40); do head -c $((n * 20000)) /dev/urandom >${point}/tree/$n; done && cp -r /etc/init.d ${point}/gone/`;
}

/** None of it stays as it was: overwritten in place, removed, new ones in their room. */
function changeAll(point: string): string {
  return `cd ${point} && for file in tree/*; do dd if=/dev/urandom of=$file bs=20000 count=\${file#tree/} conv=notrunc status=none; done && rm -r gone && ` +
    `mv tree elsewhere && head -c 60000000 /dev/urandom >other && rm -f elsewhere/1?`;
}

function checksums(point: string): string {
  return `cd ${point} && find . -type f -print0 | sort -z | xargs -0r sha256sum && find . -printf '%p %y %m %T@\\n' | sort`;
}

export async function restoreUnmounted(context: Context): Promise<void> {
  if (context.serverKind === 'nbdkit') return;
  const { guest } = context;
  const bench = await Replicated.open(guest, context.directory, Object.fromEntries(VOLUMES.map(({ name }) => [name, VOLUME_BYTES])));
  const attachAll = async (node: 'primary' | 'secondary'): Promise<void> => {
    for (const { name, device } of VOLUMES) await bench.attach(node, name, device, VOLUME_BYTES);
  };
  const eachMounted = async (command: (point: string) => string): Promise<string[]> => {
    const said: string[] = [];
    for (const { device, point } of VOLUMES) said.push(await guest.succeed(`mkdir -p ${point} && mount ${device} ${point} && { ${command(point)}; } && cd / && umount ${point}`, 300_000));
    return said;
  };
  await attachAll('primary');
  for (const { filesystem, device } of VOLUMES) await guest.succeed(mkfsCommand(filesystem, device));
  await eachMounted(fill);
  const before = await eachMounted(checksums);
  expectEnd(await bench.lockstep('snapshot g/@before'), 0, /created g\/@before of 2 volumes/, 'the set');
  await eachMounted(changeAll);

  // Attached, though not mounted: the kernel would not notice.
  expectEnd(await bench.lockstep('restore g/@before'), 2, /has 1 NBD client that would not notice that its content changes: unmount and disconnect it \(lockstep detach, on that machine\)/, 'a restore while attached');
  for (const { device } of VOLUMES) await bench.detach(device);
  expectEnd(await bench.lockstep('restore g/@before --wait=applied'), 0, /restored web, db from g\/@before at LSN \d+; durable here, applied on \w+/, 'the restore');
  await bench.expectSameOnBoth(VOLUMES.map(({ name }) => name));
  await attachAll('primary');
  for (const { filesystem, device } of VOLUMES) await guest.succeed(fsckCommand(filesystem, device));
  for (const [i, found] of (await eachMounted(checksums)).entries()) expectSameLines(`${VOLUMES[i].name} after the restore`, found, before[i]);

  await forcedBelowAnOpenDevice(bench, before[0]);

  for (const { device } of VOLUMES) await bench.detach(device);
  await waitCaughtUp(bench.pair);
  await bench.pair.primary.kill();
  await bench.pair.secondary.control.promote('g');
  await attachAll('secondary');
  for (const { filesystem, device } of VOLUMES) await guest.succeed(fsckCommand(filesystem, device));
  for (const [i, found] of (await eachMounted(checksums)).entries()) expectSameLines(`${VOLUMES[i].name} on the promoted secondary`, found, before[i]);
  for (const { device } of VOLUMES) await bench.detach(device);
  await kernelWords(guest);
  await bench.close();
}

/** `--force` while the device is open: what was cached stays what it was, everything else fails, and nothing of it outlives the device's users. */
async function forcedBelowAnOpenDevice(bench: Replicated, before: string): Promise<void> {
  const { guest } = bench;
  const [{ name, filesystem, device, point }] = VOLUMES;
  const cachedBytes = 16 * 2 ** 20;
  const head = `dd if=${device} bs=1M count=16 status=none | sha256sum`;
  await guest.succeed(`mount ${device} ${point} && cd ${point} && ${changeAll('.')} && cd / && umount ${point}`, 300_000);
  // Somebody has it open, and 16 MiB of it are in the cache.
  const holder = guest.run(`exec 9<${device}; ${head} >/run/cached; echo $$ >/run/holder; until [ -e /run/let-go ]; do sleep 0.1; done`, 400_000);
  await guest.succeed('until [ -s /run/holder ]; do sleep 0.1; done');
  expectEnd(await bench.lockstep(`restore g/${name} @before --force --wait=applied`), 0,
    /lockstep: \/dev\/nbd0 is attached to what g\/web was before: it answers from its cache, or not at all\. Unmount what is on it, then: lockstep detach --force \/dev\/nbd0; lockstep attach g\/web \/dev\/nbd0/, 'the forced restore');
  expectEqual('what is cached is answered as it was', await guest.succeed(head), await guest.succeed('cat /run/cached'));
  const begun = performance.now();
  const beyond = await guest.run(`dd if=${device} of=/dev/null bs=1M count=1 skip=${cachedBytes / 2 ** 20 + 100} status=none`, 120_000);
  if (beyond.code === 0 || !/Input\/output error/.test(beyond.stderr)) throw new Error(`a read of what is not cached: ${beyond.code} ${beyond.stderr}`);
  console.log(`a read of what is not cached failed after ${Math.round(performance.now() - begun)} ms (dead timeout ${DEAD_SECONDS} s)`);
  expectEnd(await bench.lockstep(`attach --reconnect g/${name} ${device} ${bench.serverOption('primary')}`), 2, /is not what \/dev\/nbd0 was attached to any more/, 'a reconnect after the restore');
  expectEnd(await bench.lockstep(`detach ${device}`), 2, /cannot write back what is cached for \/dev\/nbd0 .*detach it all the same with --force/, 'detach of what was cut off');
  expectEnd(await bench.lockstep(`detach --force ${device}`), 0, /detached \/dev\/nbd0/, 'detach --force');
  const again = `attach g/${name} ${device} ${bench.serverOption('primary')}`;
  expectEnd(await bench.lockstep(again), 2, /If it was detached, somebody still has it open/, 'attach while somebody has the old one open');
  await guest.succeed('echo >/run/let-go');
  await holder;
  await waitSize(guest, device, 0);
  await bench.attach('primary', name, device, VOLUME_BYTES);
  expectEqual('the device attached anew, through the cache', await guest.succeed(`sha256sum <${device}`), await bench.contentOf('primary', name));
  await guest.succeed(fsckCommand(filesystem, device));
  expectSameLines(`${name} after the forced restore`, await guest.succeed(`mount ${device} ${point} && { ${checksums(point)}; } && cd / && umount ${point}`), before);
}
