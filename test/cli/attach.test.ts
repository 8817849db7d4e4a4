/** attach and detach: a real handshake over a real socket, and a kernel that remembers what it was handed. */
import { spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readSync, rmSync, symlinkSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { OperatorError } from '../../src/base/errors.js';
import type { AttachSystem } from '../../src/cli/nbd/attach-system.js';
import { REAL_SYSTEM } from '../../src/cli/nbd/attach-system.js';
import { identifierOf } from '../../src/cli/nbd/backends.js';
import { deviceIndex } from '../../src/cli/nbd/devices.js';
import { HANDSHAKE_ARENA_BYTES, shakeHands } from '../../src/cli/nbd/handshake.js';
import type { NbdConnectOptions, NbdDeviceSettings } from '../../src/io/netlink.js';
import { RealIo } from '../../src/io/real.js';
import { device, nodeStatus, operation } from '../control/fake-port.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import type { Cli, Result } from './harness.js';
import { openCli, runCli } from './harness.js';

const directory = makeTempDirectory('att');
const worker = new Worker(new URL('./nbd-servers.js', import.meta.url), { workerData: directory });
await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
t.teardown(async () => {
  await worker.terminate();
  removeTempDirectory(directory);
});

class FakeKernel {
  readonly connected = new Map<number, NbdConnectOptions>();
  readonly reconfigured: [number, NbdDeviceSettings][] = [];
  readonly disconnected: number[] = [];
  /** Called with the sockets while they are the kernel's. */
  whileConnected: (sockets: readonly number[]) => void = () => {};
  closed = 0;

  connect(options: NbdConnectOptions): number {
    const index = options.index ?? 0;
    this.connected.set(index, options);
    this.whileConnected(options.sockets);
    return index;
  }

  reconfigure(index: number, settings: NbdDeviceSettings): void {
    this.reconfigured.push([index, settings]);
    this.whileConnected(settings.sockets ?? []);
  }

  disconnect(index: number): void {
    this.disconnected.push(index);
    this.connected.delete(index);
  }

  status(index?: number): { index: number; connected: boolean }[] {
    const all = [0, 1, 2].map((one) => ({ index: one, connected: this.connected.has(one) }));
    return index === undefined ? all : all.filter((one) => one.index === index);
  }

  close(): void {
    this.closed++;
  }
}

interface Bench {
  readonly kernel: FakeKernel;
  readonly system: AttachSystem;
  /** What the kernel shows as /sys/block/nbdN/backend. */
  backend(index: number, text: string): void;
  /** Likewise its size. */
  size(index: number, bytes: number): void;
  run(...argv: string[]): Promise<Result>;
}

let benches = 0;

function bench(): Bench {
  const root = join(directory, `m${benches++}`);
  const paths = { dev: join(root, 'dev'), sysBlock: join(root, 'sys') };
  for (const path of Object.values(paths)) mkdirSync(path, { recursive: true });
  for (const index of [0, 1, 2]) {
    mkdirSync(join(paths.sysBlock, `nbd${index}`));
    writeFileSync(join(paths.dev, `nbd${index}`), '');
  }
  const kernel = new FakeKernel();
  const system: AttachSystem = { ...REAL_SYSTEM, openKernel: () => kernel, paths };
  return {
    kernel, system,
    backend: (index, text) => writeFileSync(join(paths.sysBlock, `nbd${index}`, 'backend'), `${text}\n`),
    size: (index, bytes) => writeFileSync(join(paths.sysBlock, `nbd${index}`, 'size'), `${bytes / 512}\n`),
    run: (...argv) => runCli(argv, { attachSystem: system }),
  };
}

/** A kernel that takes new sizes, with g/vol of 512 KiB on nbd1. */
function sized(): Bench {
  const one = bench();
  one.backend(1, ID);
  one.size(1, 2 ** 19);
  const { reconfigure } = one.kernel;
  one.kernel.reconfigure = (index, settings) => {
    reconfigure.call(one.kernel, index, settings);
    if (settings.sizeBytes !== undefined) one.size(index, settings.sizeBytes);
  };
  return one;
}

const at = (name: string): string => `unix:${join(directory, name)}`;
const ID = 'lockstep:g/vol 5f:1 ab:4096';

/** Sends an NBD FLUSH and waits for its reply, as the kernel would. */
function flushOn(fd: number): number {
  const request = Buffer.alloc(28);
  request.writeUInt32BE(0x25609513, 0);
  request.writeUInt16BE(3, 6);
  request.write('cookie!!', 8, 'latin1');
  writeSync(fd, request);
  const reply = Buffer.alloc(16);
  let got = 0;
  while (got < 16) got += readSync(fd, reply, got, 16 - got, null);
  return reply.toString('latin1', 8) === 'cookie!!' ? reply.readUInt32BE(4) : -1;
}

t.test('the kernel is handed a blocking socket on which requests are answered', async (t) => {
  const { kernel, run } = bench();
  const errors: number[] = [];
  kernel.whileConnected = (sockets) => void errors.push(...sockets.map(flushOn));
  const result = await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good'));
  t.strictSame(result, { code: 0, out: 'attached g/vol as /dev/nbd1: 1 MiB, blocks of 4096 bytes\n', err: '' });
  t.strictSame(errors, [0]);
  t.match(kernel.connected.get(1), { index: 1, sizeBytes: 2 ** 20, blockBytes: 4096, timeoutSeconds: 30, deadTimeoutSeconds: 300, identifier: ID });
  t.equal(kernel.closed, 1);
});

t.test('options reach the kernel, and the reply says what was made', async (t) => {
  const { kernel, run } = bench();
  let count = 0;
  kernel.whileConnected = (sockets) => void (count = sockets.filter((fd) => flushOn(fd) === 0).length);
  const result = await run('--json', 'attach', 'g/vol@s', '--server', at('good'), '--block-size', '512', '--timeout', '7', '--dead-timeout', '9', '--connections', '3');
  t.strictSame(JSON.parse(result.out), {
    device: '/dev/nbd0', export: 'g/vol@s', server: at('good'), sizeBytes: 2 ** 20, blockBytes: 512, connections: 3, readOnly: true, reconnected: false,
  });
  t.equal(count, 3);
  t.match(kernel.connected.get(0), { blockBytes: 512, timeoutSeconds: 7, deadTimeoutSeconds: 9 });
  t.notOk('index' in (kernel.connected.get(0) ?? {}), 'the kernel picks the device');
});

t.test('without --server the daemon says where it serves, a Unix socket first', async (t) => {
  const { kernel, system } = bench();
  const cli: Cli = await openCli(t, { attachSystem: system });
  cli.port.answers.status = () => nodeStatus({ listen: { nbd: ['tcp:127.0.0.1:1', at('good')], link: null } });
  t.equal((await cli.run('attach', 'g/vol')).code, 0);
  t.equal(kernel.connected.size, 1);
  cli.port.answers.status = () => nodeStatus({ listen: { nbd: [], link: null } });
  t.match(await cli.run('attach', 'g/vol'), { code: 2, err: /node alpha serves no NBD/ });
});

/** Attachments that fail before the kernel is handed anything. */
const FAILING: readonly [string, readonly string[], RegExp][] = [
  ['an unknown export', ['g/none', '--server', at('good')], /has no export "g\/none"; lockstep list shows what there is/],
  ['a refused export', ['g/stopped', '--server', at('good')], /export "g\/stopped": the server refuses \(forbidden by policy\): the group is stopped/],
  ['no socket', ['g/vol', '--server', at('nobody')], /there is no such socket; is lockstepd running/],
  ['nobody there', ['g/vol', '--server', 'tcp:127.0.0.1:1'], /tcp:127\.0\.0\.1:1: nobody listens there/],
  ['no NBD server', ['g/vol', '--server', at('garbage')], /this is not an NBD server/],
  ['a server that hangs up', ['g/vol', '--server', at('closing')], /closed the connection during the handshake/],
  ['a server that says too much', ['g/vol', '--server', at('eager')], /sent something before it was asked/],
  ['a bad address', ['g/vol', '--server', 'ftp:x'], /--server "ftp:x" must be an address/],
  ['many connections to a server for one', ['g/vol', '--server', at('single'), '--connections', '2'], /does not allow more than one connection to g\/vol/],
  ['blocks finer than served', ['g/coarse', '--server', at('good'), '--block-size', '512'], /in blocks of at least 4096 bytes, not 512/],
  ['blocks that do not fit', ['g/odd', '--server', at('good')], /not a multiple of 4096 bytes; choose a smaller --block-size/],
];

t.test('what cannot be attached is a sentence with exit code 2, and leaves nothing behind', async (t) => {
  for (const [what, argv, words] of FAILING) {
    const { kernel, run } = bench();
    const result = await run('attach', ...argv);
    t.equal(result.code, 2, what);
    t.match(result.err, words, what);
    t.strictSame([kernel.connected.size, kernel.closed], [0, 1], what);
  }
});

t.test('a server that says nothing is given up after the time limit', async (t) => {
  const io = RealIo.create({ arenaBytes: HANDSHAKE_ARENA_BYTES });
  t.throws(() => shakeHands(io, { kind: 'unix', path: join(directory, 'silent') }, 'g/vol', 100), { code: 'server/unreachable', message: /did not answer in time; is it an NBD server/ });
  io.dispose();
});

t.test('a kernel without nbd, or without permission, is told as such', async (t) => {
  const { system, kernel } = bench();
  const missing = await runCli(['attach', 'g/vol', '--server', at('good')], {
    attachSystem: { ...system, openKernel: () => { throw new OperatorError('nbd/no-module', "the kernel's nbd module is not loaded: run modprobe nbd"); } },
  });
  t.match(missing, { code: 2, err: /modprobe nbd/ });
  kernel.connect = () => { throw new OperatorError('nbd/not-root', 'to attach /dev/nbd0 needs root (CAP_SYS_ADMIN)'); };
  t.match(await runCli(['--json', 'attach', 'g/vol', '--server', at('good')], { attachSystem: system }), { code: 2, err: /"nbd\/not-root"/ });
});

t.test('a device that is attached is not attached again', async (t) => {
  const { kernel, run, backend } = bench();
  await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good'));
  t.match(await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good')), { code: 2, err: /\/dev\/nbd1 is attached already\. If it was detached, somebody still has it open, and it is free when that ends \(findmnt \/dev\/nbd1; fuser -v \/dev\/nbd1\)\n/ });
  backend(1, ID);
  t.match(await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good')), { code: 2, err: /attached already to g\/vol; if its connection died: lockstep attach --reconnect g\/vol \/dev\/nbd1/ });
  t.equal(kernel.connected.size, 1);
});

t.test('a device is given new connections only for the same content', async (t) => {
  const { kernel, run, backend } = bench();
  t.match(await run('attach', '--reconnect', 'g/vol', '/dev/nbd1', '--server', at('good')), { code: 2, err: /nbd1 is not attached; attach it without --reconnect/ });
  await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good'));
  backend(1, ID);
  let answered = -1;
  kernel.whileConnected = ([fd]) => void (answered = flushOn(fd));
  t.match(await run('attach', '--reconnect', 'g/vol', '/dev/nbd1', '--server', at('good')), { code: 0, out: /^reconnected g\/vol as \/dev\/nbd1/ });
  t.equal(answered, 0);
  t.match(kernel.reconfigured, [[1, { identifier: ID, sizeBytes: 2 ** 20, timeoutSeconds: 30, deadTimeoutSeconds: 300 }]]);
  backend(1, 'lockstep:g/changed 5f:1 ab:4096');
  t.match(await run('attach', '--reconnect', 'g/changed', '/dev/nbd1', '--server', at('good')), { code: 2, err: /is not what \/dev\/nbd1 was attached to any more: it was restored, replaced or rewound/ });
  backend(1, 'lockstep:g/changed 5f:9 ab:4096');
  t.match(await run('attach', '--reconnect', 'g/vol', '/dev/nbd1', '--server', at('good')), { code: 2, err: /attached to g\/changed, not to g\/vol/ });
  t.equal(kernel.reconfigured.length, 1);
});

t.test('the kernel is told the present size of what is attached, by the server or by the daemon', async (t) => {
  for (const words of [[], ['g/vol'], ['/dev/nbd1']]) {
    const { kernel, run } = sized();
    const result = await run('attach', '--resize', ...words, '--server', at('good'));
    t.match(result, { code: 0, out: /^\/dev\/nbd1 \(g\/vol\) has 1 MiB now; before: 512 KiB; now grow what is on it/, err: '' });
    t.strictSame(kernel.reconfigured, [[1, { sizeBytes: 2 ** 20, identifier: ID }]], 'nothing else is changed');
    t.match(await run('--json', 'attach', '--resize', ...words, '--server', at('good')), { code: 0, out: '{"devices":[{"device":"/dev/nbd1","export":"g/vol","beforeBytes":1048576,"sizeBytes":1048576}]}\n' });
    t.equal(kernel.reconfigured.length, 1, 'a size that it knows is not told again');
    t.equal(kernel.closed, 2);
  }
  const { system, kernel } = sized();
  const cli = await openCli(t, { attachSystem: system });
  cli.port.answers.devices = () => ({ group: 'g', lsn: 1, devices: [device({ id: 1, name: 'vol', sizeBytes: 2 ** 21, continuity: 'ab:4096' })] });
  t.match(await cli.run('attach', '--resize'), { code: 0, out: /has 2 MiB now/ });
  t.strictSame(kernel.reconfigured, [[1, { sizeBytes: 2 ** 21, identifier: ID }]]);
  cli.port.answers.devices = () => ({ group: 'g', lsn: 1, devices: [device({ id: 1, name: 'vol', continuity: 'ab:8192' })] });
  t.match(await cli.run('attach', '--resize'), { code: 2, err: /g\/vol is not what \/dev\/nbd1 was attached to any more: it was restored, shrunk/ });
});

t.test('a size is not told to the wrong device, and what goes wrong is said', async (t) => {
  const { kernel, run, backend, size } = sized();
  t.match(await run('attach', '--resize', 'g/other'), { code: 2, err: /g\/other is attached to no device that the kernel names/ });
  t.match(await run('attach', '--resize', '/dev/nbd2'), { code: 2, err: /nothing of Lockstep is attached to \/dev\/nbd2 that the kernel names/ });
  t.match(await run('attach', '--resize', 'g/vol', '/dev/nbd1'), { code: 2, err: /name GROUP\/DEVICE or \/dev\/nbdN, not both/ });
  t.match(await run('attach'), { code: 2, err: /name what to attach/ });
  t.match(await bench().run('attach', '--resize'), { code: 2, err: /no Lockstep device is attached here/ });
  backend(1, 'lockstep:g/changed 5f:1 ab:4096');
  t.match(await run('attach', '--resize', '--server', at('good')), { code: 2, err: /g\/changed is not what \/dev\/nbd1 was attached to any more/ });
  t.strictSame(kernel.reconfigured, []);
  // One of several that cannot be told does not keep the other from it.
  backend(2, ID);
  size(2, 2 ** 19);
  t.match(await run('attach', '--resize', '--server', at('good')), { code: 1, out: /^\/dev\/nbd2 \(g\/vol\) has 1 MiB now/, err: /g\/changed is not what/ });
  kernel.reconfigure = () => {};
  size(2, 2 ** 19);
  t.match(await run('attach', '--resize', '/dev/nbd2', '--server', at('good')), { code: 2, err: /the kernel keeps \/dev\/nbd2 at 512 KiB; detach it and attach it anew/ });
});

t.test('resize tells the devices of this machine that are the resized one, and says who does not know yet', async (t) => {
  const { system, kernel, backend, size } = sized();
  backend(0, 'lockstep:g/vol 77:1 cd:4096'); // another cluster's, of the same name and id, but not of the same history
  backend(2, 'lockstep:g/vol@s 5f:2 ab:4096');
  size(2, 2 ** 19);
  const cli = await openCli(t, { attachSystem: system });
  const entry = device({ id: 1, name: 'vol', sizeBytes: 2 ** 21, continuity: 'ab:4096' });
  cli.port.answers.resize = () => operation({ device: entry, devices: [entry] });
  t.match(await cli.run('resize', 'g/vol', '2M'), { code: 0, out: /^g\/vol has 2 MiB now at LSN .*\n\/dev\/nbd1 \(g\/vol\) has 2 MiB now; before: 512 KiB/, err: '' });
  t.strictSame(kernel.reconfigured, [[1, { sizeBytes: 2 ** 21, identifier: ID }]]);
  t.match(JSON.parse((await cli.run('--json', 'resize', 'g/vol', '2M')).out), { lsn: 12_288, attached: [{ device: '/dev/nbd1', sizeBytes: 2 ** 21 }] });
  size(1, 2 ** 19);
  kernel.reconfigure = () => { throw new OperatorError('nbd/not-root', 'to change /dev/nbd1 needs root (CAP_SYS_ADMIN)'); };
  t.match(await cli.run('resize', 'g/vol', '2M'), { code: 0, err: /\/dev\/nbd1 does not know the new size yet: to change \/dev\/nbd1 needs root \(CAP_SYS_ADMIN\); then run: lockstep attach --resize g\/vol/ });
});

t.test('a volume that was renamed meanwhile is reconnected and resized under the name that the kernel knows', async (t) => {
  const { kernel, run, backend, size, system } = sized();
  const old = 'lockstep:g/before 5f:1 ab:4096';
  await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good'));
  backend(1, old);
  t.match(await run('attach', '--reconnect', 'g/vol', '/dev/nbd1', '--server', at('good')), { code: 0 });
  const cli = await openCli(t, { attachSystem: system });
  const entry = device({ id: 1, name: 'vol', sizeBytes: 2 ** 21, continuity: 'ab:4096' });
  cli.port.answers.devices = () => ({ group: 'g', lsn: 1, devices: [device({ id: 2, name: 'before' }), entry] });
  cli.port.answers.resize = () => operation({ device: entry, devices: [entry] });
  t.match(await cli.run('attach', '--resize'), { code: 0, out: /has 2 MiB now/ });
  size(1, 2 ** 19);
  t.match(await cli.run('resize', 'g/vol', '2M'), { code: 0, out: /\/dev\/nbd1 .*has 2 MiB now/ });
  t.strictSame(kernel.reconfigured.map(([, settings]) => settings.identifier), [old, old, old]);
});

t.test('an operation with --force names the devices of this machine that it takes the content from', async (t) => {
  const { system, backend } = sized();
  const other = 'lockstep:g/web 5f:4 ab:4096';
  backend(0, 'lockstep:g/vol 77:1 cd:4096'); // another cluster's, of the same name and id
  backend(2, other);
  const cli = await openCli(t, { attachSystem: system });
  const vol = device({ id: 1, name: 'vol', continuity: 'ab:4096' });
  const web = device({ id: 4, name: 'web', continuity: 'ab:4096' });
  let devices = [vol, web];
  cli.port.answers.devices = () => ({ group: 'g', lsn: 1, devices });
  const becomes = (after: typeof devices) => () => {
    devices = after;
    return operation();
  };
  const broken = device({ ...vol, continuity: 'ab:12288' });
  cli.port.answers.restore = becomes([broken, web]);
  t.match(await cli.run('restore', 'g/vol', '@mon'), { code: 0, err: '' }, 'without it nobody was attached');
  devices = [vol, web];
  const words = '/dev/nbd1 is attached to what g/vol was before: it answers from its cache, or not at all. Unmount what is on it, then: lockstep detach --force /dev/nbd1; lockstep attach g/vol /dev/nbd1';
  t.match(await cli.run('restore', 'g/vol', '@mon', '--force'), { code: 0, out: /^restored g\/vol/, err: `lockstep: ${words}\n` });
  t.match(await cli.run('restore', 'g/vol', '@mon', '--force'), { code: 0, err: '' }, 'it was so before');
  devices = [vol, web];
  t.match(JSON.parse((await cli.run('--json', 'restore', 'g/vol', '@mon', '--force')).out), { lsn: 12_288, notice: words });
  for (const [verb, ...argv] of [['refresh', 'g/vol@mon'], ['sync', 'g/vol@tue', '@mon'], ['resize', 'g/vol', '1M']] as const) {
    devices = [vol, web];
    cli.port.answers[verb] = becomes([broken, web]);
    t.match(await cli.run(verb, ...argv, '--force'), { code: 0, err: `lockstep: ${words}\n` }, verb);
  }
  devices = [vol, web];
  cli.port.answers.remove = () => {
    devices = [vol];
    return operation({ device: null, devices: [], notice: 'beta is late' });
  };
  t.equal((await cli.run('remove', 'g/web', '--force')).err,
    'lockstep: beta is late\n/dev/nbd2 is attached to g/web, which is removed: it answers from its cache, or not at all. Unmount what is on it, then: lockstep detach --force /dev/nbd2\n');
  devices = [vol, web];
  cli.port.answers.restore = () => {
    cli.port.answers.devices = () => { throw new Error('gone'); };
    return operation();
  };
  t.match(await cli.run('restore', 'g/vol', '@mon', '--force'), { code: 0, err: /the operation is done; whether it broke what \/dev\/nbd0, \/dev\/nbd1, \/dev\/nbd2 had attached is not known: / });
});

t.test('seal and adopt with --force name the devices of this machine, and the connections, that they cut off', async (t) => {
  const { system, backend } = sized();
  backend(1, 'lockstep:g/vol~try 5f:2147483648 local:700');
  backend(2, 'lockstep:g/web 5f:4 ab:4096');
  const cli = await openCli(t, { attachSystem: system });
  const local = device({ id: 2_147_483_648, name: 'vol~try', kind: 'local', continuity: 'local:700', clients: 2 });
  let devices = [local, device({ id: 4, name: 'web', continuity: 'ab:4096' })];
  cli.port.answers.devices = () => ({ group: 'g', lsn: 1, devices });
  const words = '2 NBD connections were closed: what their clients had not written yet is not in g/vol~try\n'
    + '/dev/nbd1 was attached to g/vol~try: what its kernel has not written back never will be. Unmount what is on it, then: lockstep detach --force /dev/nbd1; lockstep attach g/vol~try /dev/nbd1';
  t.match(await cli.run('seal', 'g/vol~try', '--force'), { code: 0, out: /^sealed g\/vol~try/, err: `lockstep: ${words}\n` });
  t.strictSame(JSON.parse((await cli.run('--json', 'seal', 'g/vol~try', '--force')).err), { remark: words });
  t.match(await cli.run('seal', 'g/vol~try'), { code: 0, err: '' }, 'without it nobody was connected');
  devices = [{ ...local, seal: { digest: 'ab'.repeat(16) } }, devices[1]];
  t.match(await cli.run('seal', 'g/vol~try', '--force'), { code: 0, err: '' }, 'it was sealed before');
  const adopted = device({ id: 9, name: 'vol@try', kind: 'snapshot', parent: 1, continuity: 'ab:12288' });
  cli.port.answers.adopt = () => {
    devices = [adopted, devices[1]];
    return operation({ device: adopted, devices: [adopted] });
  };
  t.equal((await cli.run('adopt', 'g/vol~try', '--force')).err,
    'lockstep: /dev/nbd1 is attached to g/vol~try, which is g/vol@try now: it answers from its cache, or not at all. Unmount what is on it, then: lockstep detach --force /dev/nbd1; lockstep attach g/vol@try /dev/nbd1\n');
});

t.test('detach finds the device by its path or by what is attached to it', async (t) => {
  const { kernel, run, backend } = bench();
  t.match(await run('detach', '/dev/nbd1'), { code: 2, err: /nbd1 is not attached/ });
  t.match(await run('detach', 'g/vol'), { code: 2, err: /g\/vol is attached to no device that the kernel names/ });
  t.match(await run('detach', '/dev/sda'), { code: 2, err: /is no device/ });
  for (const index of [1, 2]) await run('attach', 'g/vol', `/dev/nbd${index}`, '--server', at('good'));
  t.match(await run('detach', '/dev/nbd1'), { code: 0, out: 'detached /dev/nbd1\n' });
  backend(2, ID);
  t.strictSame(JSON.parse((await run('--json', 'detach', 'g/vol')).out), { device: '/dev/nbd2' });
  t.strictSame(kernel.disconnected, [1, 2]);
  backend(1, ID);
  t.match(await run('detach', 'g/vol'), { code: 2, err: /attached more than once \(\/dev\/nbd[12], \/dev\/nbd[12]\); name the device/ });
});

t.test('detach leaves a device alone that it cannot write back, unless forced', async (t) => {
  const { kernel, run, system } = bench();
  await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good'));
  await run('attach', 'g/vol', '/dev/nbd0', '--server', at('good'));
  const paths = { ...system.paths, dev: join(directory, 'loopdev') };
  mkdirSync(paths.dev);
  symlinkSync('nbd1', join(paths.dev, 'nbd1')); // opening it fails
  const broken = (...argv: string[]): Promise<Result> => runCli(argv, { attachSystem: { ...system, paths } });
  t.match(await broken('detach', '/dev/nbd1'), { code: 2, err: /cannot open \/dev\/nbd1 to write back what is cached .*--force/ });
  t.match(await broken('detach', '/dev/nbd0'), { code: 2, err: /there is no \/dev\/nbd0/ });
  t.strictSame(kernel.disconnected, []);
  t.match(await broken('detach', '/dev/nbd1', '--force'), { code: 0 });
  t.strictSame(kernel.disconnected, [1]);
});

t.test('detach says what it waits for, and what to do, while the device does not answer', async (t) => {
  const { kernel, system, run, backend } = bench();
  await run('attach', 'g/vol', '/dev/nbd1', '--server', at('good'));
  backend(1, ID);
  for (const json of [false, true]) {
    // Opening it waits until somebody opens its other end, as a device waits for a new connection.
    const fifo = join(system.paths.dev, 'nbd1');
    rmSync(fifo);
    t.equal(spawnSync('mkfifo', [fifo]).status, 0);
    let err = '';
    const detached = runCli(['detach', '/dev/nbd1', ...(json ? ['--json'] : [])], { attachSystem: system, err: (text) => void (err += text) });
    await waitFor('the words', () => err !== '');
    const words = json ? (JSON.parse(err) as { remark: string }).remark : err;
    t.match(words, /waiting for the kernel to write back what it still holds for \/dev\/nbd1\. .*for the --dead-timeout that it was attached with/);
    t.match(words, /lockstep attach --reconnect g\/vol \/dev\/nbd1 .*lockstep detach --force \/dev\/nbd1/);
    t.strictSame(kernel.disconnected, []);
    closeSync(openSync(fifo, 'w'));
    t.match(await detached, { code: 2 });
    t.match(err, /cannot write back what is cached for \/dev\/nbd1/, 'a pipe cannot be written back');
  }
});

t.test('device names and identifiers', async (t) => {
  t.strictSame(['/dev/nbd0', 'nbd12', '/dev/nbd', 'nbd-1', '/dev/sda', '/dev/nbd0p1', 'nbd99999999', '/tmp/nbd0'].map(deviceIndex), [0, 12, undefined, undefined, undefined, undefined, undefined, undefined]);
  t.equal(identifierOf('g/vol', 'device 5f:1, continuity ab:4096'), ID);
  t.equal(identifierOf('g/vol', 'volume of 1 GiB (device 5f:1, continuity ab:4096)'), ID);
  t.equal(identifierOf('g/vol', 'a file'), 'lockstep:g/vol');
  t.equal(identifierOf('g/vol', undefined), 'lockstep:g/vol');
});
