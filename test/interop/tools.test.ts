/** Lockstep's exports as the usual command line tools see them: nbdinfo, nbdcopy, qemu-img, qemu-io, fio. */
import { createHash, randomFillSync } from 'node:crypto';
import { closeSync, createReadStream, openSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { run } from '../harness/process.js';
import { LOCKSTEP_ONLY, STANDIN, startInteropServer, succeed } from './server.js';

const MIB = 2 ** 20;
const server = await startInteropServer(t);

/** A file of random data with a hole in its second quarter. */
function makeFile(name: string, bytes: number): string {
  const path = join(server.directory, name);
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(MIB);
  for (let at = 0; at < bytes; at += MIB) {
    if (at >= bytes / 4 && at < bytes / 2) continue;
    writeSync(fd, randomFillSync(block), 0, Math.min(MIB, bytes - at), at);
  }
  closeSync(fd);
  truncateSync(path, bytes);
  return path;
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const part of createReadStream(path)) hash.update(part as Buffer);
  return hash.digest('hex');
}

interface ExportInfo {
  readonly 'export-name': string;
  readonly 'export-size': number;
  readonly contexts?: readonly string[];
  readonly [flag: string]: unknown;
}

async function nbdinfo(uri: string, ...options: string[]): Promise<ExportInfo[]> {
  const result = await run('nbdinfo', ['--json', ...options, uri]);
  if (result.code !== 0) throw new Error(`nbdinfo: ${result.stderr}`);
  return (JSON.parse(result.stdout) as { exports: ExportInfo[] }).exports;
}

t.test('nbdinfo sees the size, the flags and base:allocation', async (t) => {
  const { uri } = await server.volume('info', 64 * MIB);
  const [info] = await nbdinfo(uri);
  t.equal(info['export-size'], 64 * MIB);
  t.equal(info.is_read_only, false);
  for (const flag of ['can_flush', 'can_fua', 'can_trim', 'can_zero', 'can_multi_conn', 'can_df', 'can_cache']) {
    if (STANDIN && flag === 'can_cache') continue;
    t.equal(info[flag], true, flag);
  }
  t.ok(info.contexts?.includes('base:allocation'));
});

t.test('nbdinfo --list names volumes and snapshots', { skip: LOCKSTEP_ONLY }, async (t) => {
  const { uri } = await server.volume('listed', 4 * MIB);
  await server.node.control.snapshot('g', { source: 'listed', name: 'kept' });
  const names = (await nbdinfo(uri.replace(/\/\/\/[^?]*/, '//'), '--list')).map((one) => one['export-name']);
  t.ok(names.includes('g/listed'));
  t.ok(names.includes('g/listed@kept'));
});

t.test('an export that does not exist is refused and the server stays', { skip: LOCKSTEP_ONLY }, async (t) => {
  const { uri } = await server.volume('there', 4 * MIB);
  t.not((await run('nbdinfo', ['--size', server.node.uri('g/not-there')])).code, 0);
  t.not((await run('nbdinfo', ['--size', server.node.uri('g/there@nothing')])).code, 0);
  t.equal((await succeed(t, 'nbdinfo', '--size', uri)).trim(), String(4 * MIB));
});

t.test('nbdcopy brings a file in and out unchanged, over one and over four connections', async (t) => {
  const file = makeFile('copy.img', 96 * MIB);
  const wanted = await sha256(file);
  for (const connections of [1, 4]) {
    const { uri } = await server.volume(`copy${connections}`, 96 * MIB);
    const back = join(server.directory, `back${connections}.img`);
    await succeed(t, 'nbdcopy', `--connections=${connections}`, '--flush', file, uri);
    await succeed(t, 'nbdcopy', `--connections=${connections}`, uri, back);
    t.equal(await sha256(back), wanted, `${connections} connections`);
  }
});

t.test('nbdcopy leaves holes as holes', async (t) => {
  const file = makeFile('holes.img', 64 * MIB);
  const { uri } = await server.volume('holes', 64 * MIB);
  await succeed(t, 'nbdcopy', '--destination-is-zero', file, uri);
  const map = JSON.parse(await succeed(t, 'nbdinfo', '--json', '--map', uri)) as { offset: number; length: number; type: number }[];
  const holes = map.filter((part) => (part.type & 1) !== 0).reduce((sum, part) => sum + part.length, 0);
  t.equal(holes, 16 * MIB);
  t.equal(map.reduce((sum, part) => sum + part.length, 0), 64 * MIB, 'the map covers the export');
});

t.test('nbdcopy reads a snapshot while the volume is written', { skip: LOCKSTEP_ONLY }, async (t) => {
  const before = makeFile('before.img', 48 * MIB);
  const after = makeFile('after.img', 48 * MIB);
  const { uri, name } = await server.volume('frozen', 48 * MIB);
  await succeed(t, 'nbdcopy', before, uri);
  await server.node.control.snapshot('g', { source: 'frozen', name: 's' });
  const back = join(server.directory, 'frozen-back.img');
  await Promise.all([succeed(t, 'nbdcopy', after, uri), succeed(t, 'nbdcopy', server.node.uri(`${name}@s`), back)]);
  t.equal(await sha256(back), await sha256(before), 'the snapshot is as it was');
  await succeed(t, 'nbdcopy', uri, back);
  t.equal(await sha256(back), await sha256(after), 'the volume is as it was written');
});

t.test('qemu-img converts to and from an export and finds them equal', async (t) => {
  const raw = makeFile('qemu.img', 64 * MIB);
  const qcow = join(server.directory, 'qemu.qcow2');
  const { uri } = await server.volume('qemu', 64 * MIB);
  await succeed(t, 'qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, qcow);
  await succeed(t, 'qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', qcow, uri);
  await succeed(t, 'qemu-img', 'compare', '-f', 'raw', '-F', 'raw', raw, uri);
  const back = join(server.directory, 'qemu-back.img');
  await succeed(t, 'qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, back);
  t.equal(await sha256(back), await sha256(raw));
});

t.test('qemu-io reads the patterns that it wrote, zeroed and discarded', async (t) => {
  const { uri } = await server.volume('patterns', 64 * MIB);
  const commands = [
    'write -P 0xaa 0 1M', 'write -P 0xbb 4k 4k', 'write -P 0xcc 1000 3000', 'write -P 0xdd 65535 2', 'write -f -P 0xee 32M 2M', 'writev -P 0x11 40M 4k 8k 512 1k',
    'write -z 128k 64k', 'write -z -u 256k 4k', 'discard 512k 128k', 'flush',
    'read -P 0xaa 0 1000', 'read -P 0xcc 1000 3000', 'read -P 0xaa 4000 96', 'read -P 0xbb 4k 4k', 'read -P 0xaa 8k 57343', 'read -P 0xdd 65535 2', 'read -P 0xaa 65537 65535',
    'read -P 0 128k 64k', 'read -P 0xaa 192k 64k', 'read -P 0 256k 4k', 'read -P 0xee 32M 2M', 'read -P 0x11 40M 13824', 'read -P 0xaa 640k 384k', 'read -P 0 50M 1M',
  ];
  if (!STANDIN) commands.push('read -P 0 512k 128k'); // Lockstep's TRIM reads back as zeros; others need not
  const output = await succeed(t, 'qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri);
  t.notMatch(output, /Pattern verification failed|error/i);
});

const FIO = ['--name=load', '--ioengine=nbd', '--size=64m', '--randseed=5', '--fsync=64', '--eta=never', '--verify_state_save=0'];
const VERIFIED = ['--verify=crc32c', '--verify_fatal=1', '--do_verify=1'];

for (const [title, name, options] of [
  ['verifies 4 KiB random writes, depth 32', 'fio-small', [...VERIFIED, '--rw=randwrite', '--bs=4k', '--iodepth=32']],
  ['verifies sizes from 512 bytes to 128 KiB at 512-byte boundaries', 'fio-mixed', [...VERIFIED, '--rw=randwrite', '--bsrange=512-128k', '--blockalign=512', '--iodepth=8']],
  ['mixes TRIMs and writes without an error', 'fio-trim', ['--rw=randtrimwrite', '--bs=16k', '--iodepth=8']],
] as const) {
  t.test(`fio ${title}`, async (t) => {
    const { uri } = await server.volume(name, 64 * MIB);
    await succeed(t, 'fio', ...FIO, `--uri=${uri}`, ...options);
  });
}
