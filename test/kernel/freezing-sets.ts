/**
 * `snapshot GROUP/@SET --freeze A --freeze B` under load, on a replicated
 * group: the set holds on both nodes what was frozen, nothing has to be
 * replayed, and when one of the mounts cannot be frozen, none stays frozen.
 */
import { fileURLToPath } from 'node:url';
import { waitCaughtUp } from '../harness/node.js';
import type { Context } from './context.js';
import { expectEnd, expectEqual, expectSameLines, kernelWords } from './expect.js';
import { fsckCommand, mkfsCommand, type Filesystem } from './filesystems.js';
import { isFrozen, underWay, write } from './freezing.js';
import { Replicated } from './replicated.js';

interface Volume {
  readonly name: string;
  readonly filesystem: Filesystem;
  readonly device: string;
  readonly point: string;
  /** For the snapshot of it. */
  readonly copy: string;
  /** Mounts the copy without replaying anything. */
  readonly asItIs: string;
}

const VOLUMES: readonly Volume[] = [
  { name: 'web', filesystem: 'ext4', device: '/dev/nbd0', point: '/media/web', copy: '/dev/nbd2', asItIs: 'ro,noload' },
  { name: 'db', filesystem: 'xfs', device: '/dev/nbd1', point: '/media/db', copy: '/dev/nbd3', asItIs: 'ro,norecovery,nouuid' },
];
const VOLUME_BYTES = 320 * 2 ** 20;
const CHURN = fileURLToPath(new URL('./churn.js', import.meta.url));
const FREEZE = VOLUMES.map(({ point }) => `--freeze ${point}`).join(' ');

/** Direct writes, always some under way. */
const FIO = 'mkdir -p /media/db/fio && exec fio --name=direct --directory=/media/db/fio --size=16m --bs=4k --rw=randwrite --ioengine=libaio --direct=1 --iodepth=8 --rate_iops=400 ' +
  '--time_based --runtime=3600 --eta=never --output=/dev/null';

/** All that the filesystem says of every file, and its content. */
function manifest(point: string): string {
  return `cd ${point} && find . -printf '%p %y %m %s %n %T@ %l\\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum`;
}

/** Number that a witness of churn.ts shows. */
async function witness(bench: Replicated, directory: string): Promise<number> {
  return Number(await bench.guest.succeed(`cat ${directory}/witness`));
}

export async function freezeSets(context: Context): Promise<void> {
  if (context.serverKind === 'nbdkit') return;
  const { guest } = context;
  const bench = await Replicated.open(guest, context.directory, Object.fromEntries(VOLUMES.map(({ name }) => [name, VOLUME_BYTES])));
  for (const { name, filesystem, device, point } of VOLUMES) {
    await bench.attach('primary', name, device, VOLUME_BYTES);
    await guest.succeed(`${mkfsCommand(filesystem, device)} && mkdir -p ${point} && mount ${device} ${point}`);
  }
  const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);
  console.log(`seed ${seed}`);
  const churn = guest.run(`${process.execPath} ${CHURN} ${seed} /run/stop ${VOLUMES.map(({ point }) => point).join(' ')}`, 400_000);
  const fio = guest.run(`echo $$ >/run/fio.pid; ${FIO}`, 400_000);
  await guest.succeed('until [ -s /media/db/witness ] && [ -s /media/db/fio/direct.0.0 ]; do sleep 0.1; done');

  // What is there while all is frozen is what the set has to hold.
  const frozen = new Map<string, string>();
  for (const set of ['first', 'second']) {
    const { done } = await underWay(bench, `snapshot g/@${set} ${FREEZE} --freeze-timeout 300 --wait=applied`);
    for (const { name, point } of VOLUMES) {
      expectEqual(`${point} is frozen while @${set} is made`, await isFrozen(guest, point), true);
      frozen.set(`${name}@${set}`, await guest.succeed(manifest(point)));
    }
    bench.relay.release();
    expectEnd(await done, 0, /created g\/@\w+ of 2 volumes at LSN \d+; durable here, applied on \w+/, `@${set}`);
    for (const { point } of VOLUMES) await write(guest, point);
  }
  await guest.succeed('echo >/run/stop; kill -INT $(cat /run/fio.pid)');
  const rounds = await churn;
  await fio;
  if (rounds.code !== 0 || !(Number(rounds.stdout) >= 3)) throw new Error(`churn ended with ${rounds.code}:\n${rounds.stdout}${rounds.stderr}`);

  await failsAsAWhole(bench);
  await readOnlyIsFrozenToo(bench);

  await waitCaughtUp(bench.pair);
  // Byte for byte the same on both nodes: so each is looked into on one of them.
  for (const [set, node] of [['first', 'primary'], ['second', 'secondary']] as const) {
    await bench.expectSameOnBoth(VOLUMES.map(({ name }) => `${name}@${set}`));
    await holdsWhatWasFrozen(bench, node, set, frozen);
  }
  for (const { filesystem, device, point } of VOLUMES) {
    await guest.succeed(`umount ${point} && ${fsckCommand(filesystem, device)}`);
    await bench.detach(device);
  }
  await bench.close();
}

/** The members of a set on one node, mounted without a replay, and on the primary once more with what a mount does by itself. */
async function holdsWhatWasFrozen(bench: Replicated, node: 'primary' | 'secondary', set: string, frozen: ReadonlyMap<string, string>): Promise<void> {
  const { guest } = bench;
  for (const [i, { name, filesystem, copy, asItIs }] of VOLUMES.entries()) {
    const what = `g/${name}@${set} on the ${node}`;
    await bench.attach(node, `${name}@${set}`, copy, VOLUME_BYTES);
    if (filesystem === 'ext4') await guest.succeed(`! dumpe2fs -h ${copy} 2>/dev/null | grep needs_recovery && ${fsckCommand(filesystem, copy)}`);
    else expectNothingToReplay(what, await guest.succeed(`xfs_logprint -t ${copy}`));
    await guest.succeed(`mkdir -p /mnt/${i} && mount -t ${filesystem} -o ${asItIs} ${copy} /mnt/${i}`);
    expectSameLines(what, await guest.succeed(manifest(`/mnt/${i}`)), frozen.get(`${name}@${set}`) ?? '');
  }
  const [web, db] = [await witness(bench, '/mnt/0'), await witness(bench, '/mnt/1')];
  if (!(web > 0 && (db === web || db === web - 1))) throw new Error(`g/@${set} on the ${node}: the witnesses say ${web} and ${db}`);
  for (const [i, { name, filesystem, copy }] of VOLUMES.entries()) {
    await guest.succeed(`umount /mnt/${i}`);
    if (node === 'primary') {
      await kernelWords(guest);
      await guest.succeed(`mount -t ${filesystem} ${filesystem === 'xfs' ? '-o nouuid' : ''} ${copy} /mnt/${i} && umount /mnt/${i} && ${fsckCommand(filesystem, copy)}`);
      const words = await kernelWords(guest);
      if (filesystem === 'ext4' && /recover/i.test(words)) throw new Error(`g/${name}@${set} was recovered when it was mounted:\n${words}`);
    }
    await bench.detach(copy);
  }
}

/**
 * A frozen xfs marks its log dirty on purpose, so that a crash meanwhile frees
 * what was unlinked and open; all that is in it is the superblock, twice.
 */
function expectNothingToReplay(what: string, log: string): void {
  const items = log.match(/^[A-Z]+:/gm) ?? [];
  const superblocks = log.match(/^\s*SUPER Block Buffer:/gm) ?? [];
  if (items.some((item) => item !== 'TRANS:' && item !== 'BUF:') || items.filter((item) => item === 'BUF:').length !== superblocks.length) throw new Error(`${what}: there is something to replay:\n${log}`);
}

/** The second mount cannot be frozen: the first is thawed, nothing is made, and a sentence says why. */
async function failsAsAWhole(bench: Replicated): Promise<void> {
  const { guest } = bench;
  const [first, second] = VOLUMES;
  const refused = async (point: string, code: number, words: RegExp, what: string): Promise<void> => {
    expectEnd(await bench.lockstep(`snapshot g/@bad --freeze ${first.point} --freeze ${point}`), code, words, what);
    await write(guest, first.point);
    expectEqual(`${what}: ${first.point} is frozen`, await isFrozen(guest, first.point), false);
    await guest.succeed("while pgrep -f '[f]reeze-watchdog' >/dev/null; do sleep 0.1; done", 20_000);
  };
  await refused('/usr', 2, /nothing is mounted at \/usr/, 'no mount point');
  await refused('/run', 2, /\/run cannot be frozen: tmpfs does not support it/, 'tmpfs');
  await refused(first.point, 2, /are the same file system: name it once/, 'the same one twice');
  await guest.succeed(`fsfreeze --freeze ${second.point}`);
  await refused(second.point, 2, /\/media\/db is frozen already, by somebody else, and stays so/, 'frozen by another');
  expectEqual('frozen by another: it stays frozen', await isFrozen(guest, second.point), true);
  await guest.succeed(`fsfreeze --unfreeze ${second.point}`);
  await write(guest, second.point);
  const { devices } = await bench.pair.primary.control.devices('g');
  expectEqual('snapshots of what failed', devices.filter(({ set }) => set === 'bad').length, 0);
}

/** A mount that is read-only has nothing to write back, and is in the set like the others. */
async function readOnlyIsFrozenToo(bench: Replicated): Promise<void> {
  const { guest } = bench;
  const [, { point }] = VOLUMES;
  await guest.succeed(`mount -o remount,ro ${point}`);
  expectEnd(await bench.lockstep(`snapshot g/@still ${FREEZE}`), 0, /created g\/@still of 2 volumes/, 'one is read-only');
  await guest.succeed(`mount -o remount,rw ${point}`);
  for (const volume of VOLUMES) {
    await write(guest, volume.point);
    expectEqual(`${volume.point} is frozen in the end`, await isFrozen(guest, volume.point), false);
  }
}
