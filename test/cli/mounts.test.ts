/**
 * snapshot --freeze with the kernel's own mounts, in a mount namespace of its
 * own: what a path leads to, what hides what, and that the freeze is on that one.
 *
 * Needs root, unshare and loop devices; without them there is nothing to see.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { CLI, prepareSingle } from '../harness/node.js';
import { run } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

const directory = makeTempDirectory('mounts');
const node = prepareSingle(directory);
const at = (name: string): string => join(directory, name);
t.teardown(async () => {
  await node.stop();
  removeTempDirectory(directory);
});

/** Runs a script in a new mount namespace: its mounts are seen by nobody else, and go with it. */
function inNamespace(script: string): ReturnType<typeof run> {
  const file = at('script');
  writeFileSync(file, `set -eu
cd ${directory}
# A file system is frozen once: the next one who tries is told.
writable() { if fsfreeze --freeze $1 2>/dev/null; then fsfreeze --unfreeze $1; echo "$1 is writable"; else echo "$1 is frozen"; fi; }
image() { truncate -s 16M $1.img; mkfs.ext4 -q $1.img; }
lockstep() { '${process.execPath}' '${CLI}' --socket '${node.controlSocket}' "$@" || echo "code $?"; }
${script}
`);
  return run('unshare', ['--mount', '--propagation', 'private', 'bash', file]);
}

const probe = await inNamespace('image p; mkdir p; mount -o loop p.img p; umount p; echo mounted').catch((error: unknown) => ({ code: 1, stdout: '', stderr: String(error) }));
if (probe.stdout.trim() !== 'mounted') {
  t.pass(`not here: ${probe.stderr.trim().split('\n')[0]}`);
} else {
  await node.start();
  await node.control.createVolume('g', { name: 'v', size: '1M' });

  await t.test('what the path leads to is frozen, wherever it stands in the table', async (t) => {
    // Moved onto a younger mount of itself: newest in the stack, oldest by its number.
    const { stdout, stderr } = await inNamespace(`
      image a; image b; mkdir from to auto other
      mount -o loop a.img from
      mount -o loop b.img other
      mount --bind from to
      mount --move from to
      mkdir top; mount -o loop b.img top 2>/dev/null || mount --bind other top
      lockstep snapshot g/v@moved --freeze to
      fsfreeze --freeze other
      lockstep snapshot g/v@other --freeze to
      lockstep snapshot g/v@none --freeze top
      fsfreeze --unfreeze other
      writable to; writable other
      mkdir young old; mount -o loop a.img old; mount -t tmpfs tmpfs young; mount --move old young
      lockstep snapshot g/v@young --freeze young
    `);
    t.match(stderr, /two file systems are mounted at .*\/young: ext4 on \/dev\/loop\d+ on top, which the path leads to, and tmpfs hidden below it/);
    t.match(stdout, /created g\/v@moved[^]*created g\/v@other/, stderr);
    t.match(stderr, /\/top is frozen already/);
    t.notMatch(stdout, /created g\/v@none/);
    t.match(stdout, /to is writable\nother is writable/);
  });

  await t.test('the freeze is on the device below the path, and on no other', async (t) => {
    const { stdout, stderr } = await inNamespace(`
      image c; image d; mkdir c d
      mount -o loop c.img c
      mount -o loop d.img d
      ln -s c link
      fsfreeze --freeze c
      lockstep snapshot g/v@busy --freeze link
      lockstep snapshot g/v@free --freeze d
      fsfreeze --unfreeze c
      lockstep snapshot g/v@thawed --freeze link
      writable c; writable d
    `);
    t.match(stderr, /\/c is frozen already, by somebody else/, 'the link leads to c, which is frozen');
    t.match(stdout, /created g\/v@free[^]*created g\/v@thawed/);
    t.match(stdout, /c is writable\nd is writable/);
  });

  await t.test('a mount below another one at the same point, and one in a directory that is hidden, are refused', async (t) => {
    const { stdout, stderr } = await inNamespace(`
      image e; image f; mkdir e g
      mount -o loop e.img e
      mount -o loop f.img e
      lockstep snapshot g/v@two --freeze e
      mkdir elsewhere
      mount --bind e elsewhere
      lockstep snapshot g/v@upper --freeze elsewhere
      writable elsewhere
      umount e
      lockstep snapshot g/v@lower --freeze e
      writable e
      mount -t tmpfs tmpfs g; mkdir g/inner
      mount --move e g/inner
      mount -t tmpfs tmpfs g; mkdir g/inner
      lockstep snapshot g/v@hidden --freeze g/inner
    `);
    t.match(stderr, /two file systems are mounted at .*\/e: ext4 on \/dev\/loop\d+ on top, .* and ext4 on \/dev\/loop\d+ hidden below it/);
    t.match(stderr, /ext4 on \/dev\/loop\d+ is mounted at .*\/g\/inner, but hidden: tmpfs was mounted over .*\/g later/);
    t.equal(stdout.match(/code 2/g)?.length, 2, stdout);
    t.match(stdout, /created g\/v@upper[^]*elsewhere is writable[^]*created g\/v@lower[^]*e is writable/);
    t.notMatch(stdout, /created g\/v@(two|hidden)/);
  });

  await t.test('what the daemon writes to is never frozen, also when its directory is hidden now', async (t) => {
    const { stdout, stderr } = await inNamespace(`
      mount --bind ${String(node.config.dataDirectory)} ${String(node.config.dataDirectory)}
      mkdir h; mount --bind ${directory} h
      mount -t tmpfs tmpfs ${String(node.config.dataDirectory)}
      lockstep snapshot g/v@own --freeze h
    `);
    t.match(stderr, /\/h holds what node solo writes/);
    t.match(stdout, /code 2/);
  });
}
