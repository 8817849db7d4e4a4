/** Real clients: libnbd's tools, qemu-io, fio. A program that is missing fails the test: none is skipped. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GIB, MIB } from '../../src/base/units.js';
import { pattern, withRig } from './rig.js';

void withRig('nbdinfo shows size, flags, block sizes and identity', {}, async (rig, t) => {
  const device = rig.service.add('g/v', 10 * MIB);
  device.description = 'a volume';
  rig.service.add('g/v@s', 10 * MIB).writable = false;
  const info = await rig.tool('nbdinfo', '--json', rig.uri('g/v'));
  t.equal(info.code, 0, info.stderr);
  t.match(JSON.parse(info.stdout), {
    exports: [{
      'export-name': 'g/v', 'export-size': 10 * MIB, 'description': 'a volume (device dev-1, continuity c0ffee.0)', 'is_read_only': false,
      'can_multi_conn': true, 'can_fua': true, 'can_flush': true, 'can_trim': true, 'can_zero': true, 'can_fast_zero': true, 'can_cache': true,
      'can_df': true, 'block_size_minimum': 1, 'block_size_preferred': 4096, 'block_size_maximum': 32 * MIB,
      'contexts': ['base:allocation', 'lockstep:device-id/dev-1', 'lockstep:continuity-id/c0ffee.0'],
    }],
  });
  const list = await rig.tool('nbdinfo', '--list', '--json', rig.uri(''));
  const { exports } = JSON.parse(list.stdout) as { exports: { 'export-name': string }[] };
  t.strictSame(exports.map((one) => one['export-name']), ['g/v', 'g/v@s']);
  const missing = await rig.tool('nbdinfo', rig.uri('g/none'));
  t.not(missing.code, 0);
  t.match(missing.stderr, /No such file or directory/, 'NBD_REP_ERR_UNKNOWN');
});

void withRig('nbdinfo --map shows holes', {}, async (rig, t) => {
  const device = rig.service.add('g/v', MIB);
  device.write(65536, pattern(65536, 1));
  const map = await rig.tool('nbdinfo', '--map', '--json', rig.uri('g/v'));
  t.equal(map.code, 0, map.stderr);
  t.match(JSON.parse(map.stdout), [
    { offset: 0, length: 65536, type: 3 }, { offset: 65536, length: 65536, type: 0 }, { offset: 131072, length: MIB - 131072, type: 3 },
  ]);
});

void withRig('nbdcopy copies in and out, over several connections', {}, async (rig, t) => {
  const device = rig.service.add('g/v', 24 * MIB + 512);
  const file = join(rig.directory, 'in');
  const back = join(rig.directory, 'out');
  const bytes = Buffer.alloc(24 * MIB + 512);
  bytes.set(pattern(5 * MIB, 1), 3 * MIB);
  bytes.set(pattern(MIB + 512, 2), 23 * MIB);
  writeFileSync(file, bytes);
  const copyIn = await rig.tool('nbdcopy', '--connections=4', '--flush', file, rig.uri('g/v'));
  t.equal(copyIn.code, 0, copyIn.stderr);
  const found = new Uint8Array(bytes.length);
  device.read(0, found);
  t.ok(bytes.equals(found), 'the device holds the file');
  t.ok(device.regions.size < 120, 'holes stayed holes');
  const copyOut = await rig.tool('nbdcopy', '--connections=4', '--requests=64', rig.uri('g/v'), back);
  t.equal(copyOut.code, 0, copyOut.stderr);
  t.ok(readFileSync(back).equals(bytes), 'the copy is the file');
  t.ok(rig.service.counts.flush >= 1);
});

void withRig('TCP serves as well: nbdcopy there and back', {}, async (rig, t) => {
  const device = rig.service.add('v', 9 * MIB);
  const listener = rig.server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  const uri = `nbd://127.0.0.1:${listener.port}/v`;
  const file = join(rig.directory, 'in');
  const back = join(rig.directory, 'out');
  const bytes = Buffer.from(pattern(9 * MIB, 6));
  writeFileSync(file, bytes);
  t.match(await rig.tool('nbdcopy', '--request-size=4194304', file, uri), { code: 0, stderr: '' });
  const found = new Uint8Array(bytes.length);
  device.read(0, found);
  t.ok(bytes.equals(found));
  t.match(await rig.tool('nbdcopy', '--request-size=4194304', uri, back), { code: 0, stderr: '' });
  t.ok(readFileSync(back).equals(bytes));
});

void withRig('nbdsh: every command, structured replies, errors by name', {}, async (rig, t) => {
  rig.service.add('g/v', 6 * GIB);
  const script = `
import errno
h.add_meta_context("base:allocation")
h.add_meta_context("lockstep:device-id/dev-1")
h.connect_uri(${JSON.stringify(rig.uri('g/v'))})
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("lockstep:device-id/dev-1")
h.set_strict_mode(0)
data = bytes(range(256)) * 300
h.pwrite(data, 1000, nbd.CMD_FLAG_FUA)
assert h.pread(len(data), 1000, nbd.CMD_FLAG_DF) == data
h.flush()
h.cache(65536, 0)
h.trim(2**32 - 1, 4096)
assert h.pread(len(data), 1000) == data[:3096] + bytes(len(data) - 3096)
h.pwrite(data, 5 * 2**30)
h.zero(2**30, 5 * 2**30, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 5 * 2**30) == bytes(4096)
found = {}
h.block_status(2**20, 0, lambda name, offset, extents, error: found.__setitem__(name, list(extents)))
assert found["lockstep:device-id/dev-1"] == [2**20, 0], found
assert found["base:allocation"][1] == 0, found
big = bytes([7]) * (32 * 2**20)
h.pwrite(big, 12345)
assert h.pread(len(big), 12345) == big
def fails(want, f):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == want, (e.errnum, want)
    else:
        assert False, "no error"
fails(errno.EINVAL, lambda: h.pread(512, 6 * 2**30))
fails(errno.ENOSPC, lambda: h.pwrite(bytes(512), 6 * 2**30))
# Many at once, answered as they come.
left = []
for i in range(500):
    buf = nbd.Buffer(4096)
    left.append(h.aio_pread(buf, i * 4096))
while left:
    h.poll(-1)
    left = [c for c in left if not h.aio_command_completed(c)]
h.shutdown()
print("all right")`;
  const result = await rig.tool('nbdsh', '-c', script);
  t.match(result, { code: 0, stdout: 'all right\n' }, result.stderr);
});

void withRig('nbdsh on a read-only export: EPERM', {}, async (rig, t) => {
  rig.service.add('g/v@s', MIB).writable = false;
  const result = await rig.tool('nbdsh', '-c', `
import errno
h.connect_uri(${JSON.stringify(rig.uri('g/v@s'))})
assert h.is_read_only()
h.set_strict_mode(0)
for f in (lambda: h.pwrite(bytes(512), 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
    try:
        f()
        assert False
    except nbd.Error as e:
        assert e.errnum == errno.EPERM
assert h.pread(512, 0) == bytes(512)
print("all right")`);
  t.match(result, { code: 0, stdout: 'all right\n' }, result.stderr);
});

void withRig('qemu-io writes, verifies, zeroes, discards and maps', {}, async (rig, t) => {
  rig.service.add('v', 64 * MIB);
  const uri = `nbd+unix:///v?socket=${rig.path}`;
  const result = await rig.tool(
    'qemu-io', '-f', 'raw', '-d', 'unmap',
    '-c', 'write -P 0x5a 0 4M', '-c', 'read -P 0x5a 0 4M', '-c', 'write -f -P 0x33 4608 512', '-c', 'read -P 0x33 4608 512',
    '-c', 'write -z 1M 1M', '-c', 'read -P 0 1M 1M', '-c', 'discard 2M 1M', '-c', 'read -P 0 2M 1M', '-c', 'read -P 0x5a 3M 1M',
    '-c', 'flush', '-c', 'map', '-c', 'aio_write -P 0x11 8M 16M', '-c', 'aio_flush', '-c', 'read -P 0x11 8M 16M', uri,
  );
  t.equal(result.code, 0, result.stderr + result.stdout);
  t.notMatch(result.stdout, /fail|error|Pattern verification/i);
  t.ok(rig.service.counts.extents > 0);
});

void withRig('fio verifies random writes of mixed sizes, two jobs at once', {}, async (rig, t) => {
  rig.service.add('v', 32 * MIB);
  const result = await rig.tool(
    'fio', '--name=w', '--ioengine=nbd', `--uri=nbd+unix:///v?socket=${rig.path}`, '--rw=randwrite', '--bssplit=512/20:4k/50:64k/20:256k/10',
    '--iodepth=32', '--size=16m', '--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--randseed=7', '--output-format=json',
    '--name=x', '--ioengine=nbd', `--uri=nbd+unix:///v?socket=${rig.path}`, '--offset=16m', '--rw=randwrite', '--bs=4k', '--fsync=16',
    '--iodepth=16', '--size=16m', '--verify=sha1', '--verify_fatal=1', '--verify_state_save=0', '--randseed=8',
  );
  t.equal(result.code, 0, result.stderr);
  const { jobs } = JSON.parse(result.stdout.slice(result.stdout.indexOf('{'))) as { jobs: { error: number; read: { io_bytes: number } }[] };
  t.equal(jobs.length, 2);
  for (const job of jobs) {
    t.equal(job.error, 0);
    t.ok(job.read.io_bytes >= 15 * MIB, 'it read back what it wrote');
  }
});
