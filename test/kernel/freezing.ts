/** `snapshot --freeze` on real filesystems: what the snapshot holds, and that no freeze stays behind, whoever dies. */
import { expectEnd, expectEqual } from './expect.js';
import { fsckCommand, mkfsCommand, type Filesystem } from './filesystems.js';
import { ControlRelay } from './control-relay.js';
import type { GuestShell } from './guest-shell.js';
import { PORT, detach, guestAddress, lockstepInGuest, lockstepServer, waitSize, type LockstepServer } from './server.js';
import type { Finished } from '../harness/process.js';
import type { Context } from './context.js';

const VOLUME_BYTES = 384 * 2 ** 20;
const DEVICE = '/dev/nbd0';
const COPY = '/dev/nbd1';

interface Bench {
  readonly guest: GuestShell;
  readonly server: LockstepServer;
  readonly relay: ControlRelay;
  /** The CLI in the guest, with the daemon's control socket. */
  lockstep(words: string): Promise<Finished>;
}

/** The filesystem on g/vol, mounted at /media. */
async function prepare(context: Context, filesystem: Filesystem): Promise<Bench> {
  const { guest } = context;
  const server = lockstepServer(context.directory, VOLUME_BYTES);
  await server.start();
  await server.attach(guest, DEVICE);
  await guest.succeed(mkfsCommand(filesystem, DEVICE));
  await guest.succeed(`mount ${DEVICE} /media`);
  const relay = await ControlRelay.open(guest, server.controlSocket);
  return { guest, server, relay, lockstep: (words) => guest.run(`${relay.environment} ${lockstepInGuest(words)}`) };
}

async function end(bench: Bench): Promise<void> {
  await bench.guest.succeed('umount /media');
  await bench.guest.succeed(fsckCommand('ext4', DEVICE));
  await detach(bench.server, bench.guest, DEVICE);
  bench.relay.close();
  await bench.server.stop();
}

async function attachCopy(guest: GuestShell, name: string): Promise<void> {
  await guest.succeed(lockstepInGuest(`attach g/${name} ${COPY} --server tcp:${guestAddress()}:${PORT}`));
  await waitSize(guest, COPY, VOLUME_BYTES);
}

/** A writer of files and of their directory, which never syncs, until /run/stop is there. */
const LOAD = 'mkdir -p /media/load; n=0; while [ ! -e /run/stop ]; do n=$((n + 1)); cp /etc/services /media/load/$((n % 300)); rm -f /media/load/$((n * 7 % 300)); done; echo $n';

/** Of a mounted filesystem under load: all that was written before is in the snapshot, and it needs no repair. */
export function freezeMakesWholeSnapshots(filesystem: Filesystem): (context: Context) => Promise<void> {
  return async (context) => {
    if (context.serverKind === 'nbdkit') return;
    const bench = await prepare(context, filesystem);
    const { guest } = bench;
    const load = guest.run(LOAD);
    await guest.succeed('until [ -e /media/load/20 ]; do sleep 0.1; done');
    await guest.succeed('head -c 3000000 /dev/urandom >/run/data; sha256sum </run/data >/run/sum');
    for (const [name, options] of [['plain', ''], ['first', '--freeze /media'], ['second', '--freeze /media']]) {
      await guest.succeed(`cp /run/data /media/${name}`); // in the page cache alone
      expectEnd(await bench.lockstep(`snapshot g/vol@${name} ${options}`), 0, /created g\/vol@/, name);
    }
    await guest.succeed('echo >/run/stop');
    const loops = Number((await load).stdout);
    if (!(loops > 20)) throw new Error(`the writer made only ${loops} files`);

    for (const name of ['plain', 'first', 'second']) {
      await attachCopy(guest, `vol@${name}`);
      if (filesystem === 'ext4') {
        // What the filesystem itself says: whether its journal has to be replayed. Without a freeze it has to be.
        const replay = (await guest.run(`dumpe2fs -h ${COPY} 2>/dev/null | grep needs_recovery`)).code === 0;
        expectEqual(`${name}: the journal has to be replayed`, replay, name === 'plain');
        if (name !== 'plain') await guest.succeed(`e2fsck -fn ${COPY}`);
      }
      if (name !== 'plain') {
        await guest.succeed(`mount ${filesystem === 'xfs' ? '-o nouuid' : ''} ${COPY} /mnt`);
        expectEqual(`${name}: checksum of what was written before`, await guest.succeed(`sha256sum </mnt/${name}`), await guest.succeed('cat /run/sum'));
        await guest.succeed(`umount /mnt && ${fsckCommand(filesystem, COPY)}`);
      }
      await detach(bench.server, guest, COPY);
    }
    await guest.succeed('umount /media');
    await guest.succeed(fsckCommand(filesystem, DEVICE));
    await detach(bench.server, guest, DEVICE);
    bench.relay.close();
    await bench.server.stop();
  };
}

/** FIFREEZE of another refuses when it is frozen; when not, it is taken back. */
export async function isFrozen(guest: GuestShell, point = '/media'): Promise<boolean> {
  return (await guest.run(`fsfreeze --freeze ${point} && fsfreeze --unfreeze ${point}`)).code !== 0;
}

/** Blocks for as long as it is frozen. */
export function write(guest: GuestShell, point = '/media'): Promise<string> {
  return guest.succeed(`date +%N >${point}/after && sync -f ${point}`, 30_000);
}

/** Runs the CLI until its snapshot request is under way, with everything frozen. Its process id is in /run/pid. */
export async function underWay(bench: Pick<Bench, 'guest' | 'relay'>, words: string): Promise<{ done: Promise<Finished> }> {
  const arrived = bench.relay.hold(/^POST \S*\/snapshots/);
  const done = bench.guest.run(`${bench.relay.environment} ${lockstepInGuest(words)} & echo $! >/run/pid; wait $!`);
  await Promise.race([arrived, done.then((result) => Promise.reject(new Error(`${words}: ended with ${result.code}: ${result.stdout}${result.stderr}`)))]);
  return { done };
}

async function frozen(bench: Bench, words: string): Promise<{ done: Promise<Finished> }> {
  const run = await underWay(bench, `${words} --freeze-timeout 300`);
  expectEqual('frozen while the snapshot is made', await isFrozen(bench.guest), true);
  return run;
}

async function watchdogs(guest: GuestShell): Promise<string> {
  return (await guest.succeed("pgrep -f '[f]reeze-watchdog' || true")).trim();
}

async function expectOver(bench: Bench, what: string): Promise<void> {
  await write(bench.guest);
  expectEqual(`${what}: frozen in the end`, await isFrozen(bench.guest), false);
  await bench.guest.succeed("while pgrep -f '[f]reeze-watchdog' >/dev/null; do sleep 0.1; done", 20_000);
}

/** Whoever dies, and whatever takes too long: in the end nothing is frozen. */
export async function freezeNeverStays(context: Context): Promise<void> {
  if (context.serverKind === 'nbdkit') return;
  const bench = await prepare(context, 'ext4');
  const { guest, relay } = bench;

  const killed = await frozen(bench, 'snapshot g/vol@killed --freeze /media');
  await guest.succeed('kill -KILL $(cat /run/pid)');
  await expectOver(bench, 'the CLI was killed with SIGKILL');
  relay.release();
  await killed.done;

  const told = await frozen(bench, "snapshot g/vol@told --freeze /media --exec-after 'echo $LOCKSTEP_RESULT >/run/result'");
  await guest.succeed('kill -TERM $(cat /run/pid)');
  expectEnd(await told.done, 143, /interrupted/, 'SIGTERM');
  await expectOver(bench, 'the CLI was sent SIGTERM');
  expectEqual('what --exec-after was told', (await guest.succeed('cat /run/result')).trim(), 'failed');
  relay.release();

  const late = await underWay(bench, 'snapshot g/vol@late --freeze /media --freeze-timeout 5');
  await expectOver(bench, 'the time was over');
  relay.release();
  expectEnd(await late.done, 1, /thawed after 5 s.*was made at LSN \d+, but perhaps not while everything was frozen: remove it/, '--freeze-timeout');

  for (const [signal, words] of [['KILL', /the watchdog of \/media was ended by SIGKILL, and \/media was thawed/], ['TERM', /was thawed because its watchdog was sent a signal/]] as const) {
    const orphaned = await frozen(bench, `snapshot g/vol@orphaned-${signal} --freeze /media`);
    await guest.succeed(`kill -${signal} ${await watchdogs(guest)}`);
    await expectOver(bench, `the watchdog was sent SIG${signal}`);
    relay.release();
    expectEnd(await orphaned.done, 1, words, `SIG${signal} to the watchdog`);
  }
  await bench.lockstep('list g');
  await end(bench);
}

/** What is refused, and what is left alone. */
export async function freezeRefuses(context: Context): Promise<void> {
  if (context.serverKind === 'nbdkit') return;
  const bench = await prepare(context, 'ext4');
  const { guest } = bench;
  const snapshot = (words: string): Promise<Finished> => bench.lockstep(`snapshot g/vol@s ${words}`);

  expectEnd(await snapshot("--freeze /media --exec-before 'exit 3' --exec-after 'echo $LOCKSTEP_RESULT >/run/result'"), 1, /--exec-before ended with status 3: no snapshot was made/, 'a failing --exec-before');
  expectEqual('what --exec-after was told', (await guest.succeed('cat /run/result')).trim(), 'failed');
  expectEqual('frozen after a failing --exec-before', await isFrozen(guest), false);

  await guest.succeed('fsfreeze --freeze /media');
  expectEnd(await snapshot('--freeze /media'), 2, /\/media is frozen already, by somebody else, and stays so/, 'a frozen filesystem');
  await guest.succeed('fsfreeze --unfreeze /media');
  await write(guest);

  expectEnd(await snapshot('--freeze /run'), 2, /\/run cannot be frozen: tmpfs does not support it/, 'tmpfs');
  expectEnd(await snapshot('--freeze /media/nothing'), 2, /no such file or directory/, 'no directory');
  expectEnd(await snapshot('--freeze /usr'), 2, /nothing is mounted at \/usr/, 'no mount point');
  expectEnd(await guest.run(`setpriv --reuid 1000 --clear-groups env ${bench.relay.environment} ${lockstepInGuest('snapshot g/vol@s --freeze /media')}`), 2, /needs root \(CAP_SYS_ADMIN\)/, 'without root');

  // The daemon runs on the other side; to the CLI here it looks as if its data directory were on the volume.
  const { dataDirectory } = bench.server;
  await guest.succeed(`umount /media && mount ${DEVICE} ${dataDirectory}`);
  expectEnd(await snapshot(`--freeze ${dataDirectory}`), 2, /holds what node solo writes/, 'the data directory');
  await guest.succeed(`umount ${dataDirectory} && mount ${DEVICE} /media`);

  expectEnd(await snapshot("--freeze /media --exec-before 'echo before >>/media/steps' --exec-after 'echo after $LOCKSTEP_RESULT $LOCKSTEP_GROUP/$LOCKSTEP_DEVICE >>/media/steps'"), 0, /created g\/vol@s of g\/vol/, 'all steps');
  expectEqual('the steps', (await guest.succeed('cat /media/steps')).trim(), 'before\nafter done g/vol@s');
  await attachCopy(guest, 'vol@s');
  await guest.succeed(`mount -o ro ${COPY} /mnt`);
  expectEqual('the steps in the snapshot', (await guest.succeed('cat /mnt/steps')).trim(), 'before');
  await guest.succeed('umount /mnt');
  await detach(bench.server, guest, COPY);
  await end(bench);
}
