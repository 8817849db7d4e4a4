/** This library against other people's: its client with nbdkit and qemu-nbd, its server with nbdinfo and nbdcopy. */
import { execFile, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import type { Test } from 'tap';
import * as nbd from '../index.js';
import { directoryOf, memoryExport, MemoryServer, seededRandom } from './memory-server.js';
import type { MemoryExport } from './memory-server.js';

const run = promisify(execFile);
// tap's NODE_OPTIONS are not for others.
const environment = { ...process.env };
delete environment.NODE_OPTIONS;

function installed(tool: string): boolean {
  return (process.env['PATH'] ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, tool), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

const without = (...tools: string[]): { skip?: string } => {
  const missing = tools.filter((tool) => !installed(tool));
  return missing.length > 0 ? { skip: `${missing.join(' and ')} not installed` } : {};
};

function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'nbd-protocol-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Starts a server process and connects once its socket answers; ends it after the test. */
async function start(t: Test, command: string, args: readonly string[], socketPath: string): Promise<void> {
  const child: ChildProcess = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], env: environment });
  let stderr = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const exited = once(child, 'exit');
  t.teardown(async () => {
    child.kill();
    await exited;
  });
  for (;;) {
    const socket = connect(socketPath);
    const up = await new Promise<boolean>((resolve) => socket.once('connect', () => resolve(true)).once('error', () => resolve(false)));
    if (up) {
      // nbdkit --exit-with-parent and qemu-nbd -t go on after this one.
      socket.end();
      socket.resume();
      await once(socket, 'close');
      return;
    }
    if (child.exitCode !== null) throw new Error(`${command} ended: ${stderr}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function exercise(t: Test, socketPath: string, name: string, structuredReplies: boolean): Promise<void> {
  const client = await nbd.NbdClient.connect(nbd.streamOf(connect(socketPath)), { name, structuredReplies, contexts: [nbd.NBD_CONTEXT_BASE_ALLOCATION] });
  t.equal(client.export.sizeBytes, 8 << 20);
  t.equal(client.export.structuredReplies, structuredReplies);
  const random = seededRandom(3);
  const data = Uint8Array.from({ length: 1 << 20 }, () => Math.floor(random() * 256));
  await client.write(1 << 20, data, { fua: true });
  await client.flush();
  await client.writeZeroes((1 << 20) + 65536, 65536);
  data.fill(0, 65536, 131072);
  t.ok(Buffer.from(await client.read(1 << 20, 1 << 20)).equals(Buffer.from(data)), 'reads what was written');
  const reads = await Promise.all(Array.from({ length: 200 }, (_, i) => client.read((1 << 20) + i * 4096, 4096)));
  t.ok(reads.every((read, i) => Buffer.from(read).equals(Buffer.from(data.subarray(i * 4096, (i + 1) * 4096)))), 'pipelined reads find their requests');
  if (structuredReplies) {
    t.ok(Buffer.from(await client.read(1 << 20, 65536, { dontFragment: (client.export.transmissionFlags & nbd.NBD_FLAG_SEND_DF) !== 0 }))
      .equals(Buffer.from(data.subarray(0, 65536))));
    const [allocation] = await client.blockStatus(0, 8 << 20);
    t.equal(allocation?.context, nbd.NBD_CONTEXT_BASE_ALLOCATION);
    t.equal(allocation?.extents[0]?.status, nbd.NBD_STATE_HOLE | nbd.NBD_STATE_ZERO, 'the first MiB is a hole');
  }
  if ((client.export.transmissionFlags & nbd.NBD_FLAG_SEND_TRIM) !== 0) await client.trim(1 << 20, 1 << 20);
  await client.writeZeroes(1 << 20, 1 << 20);
  t.ok((await client.read(1 << 20, 1 << 20)).every((byte) => byte === 0));
  await t.rejects(client.request(nbd.NBD_CMD_READ, 0, 8 << 20, 4096), { code: 'EINVAL' });
  await client.disconnect();
}

void t.test('the client works with nbdkit', without('nbdkit'), async (t) => {
  const path = join(folder(t), 'socket');
  await start(t, 'nbdkit', ['--foreground', '--exit-with-parent', '--unix', path, 'memory', '8M'], path);
  await exercise(t, path, '', true);
  await exercise(t, path, '', false);
  const listed = await nbd.negotiate(nbd.streamOf(connect(path)), { kind: 'list' });
  t.match(listed, { kind: 'listed', exports: [{ name: '' }] });
  t.match(await nbd.negotiate(nbd.streamOf(connect(path)), { kind: 'listContexts', name: '', queries: ['base:'] }), { kind: 'contexts', names: ['base:allocation'] });
});

void t.test('the client works with an nbdkit that knows neither GO nor structured replies', without('nbdkit'), async (t) => {
  const path = join(folder(t), 'socket');
  await start(t, 'nbdkit', ['--foreground', '--exit-with-parent', '--no-sr', '--mask-handshake=0', '--unix', path, 'memory', '8M'], path);
  await exercise(t, path, '', false);
});

void t.test('the client works with qemu-nbd', without('qemu-nbd'), async (t) => {
  const path = join(folder(t), 'socket');
  const image = join(folder(t), 'image');
  writeFileSync(image, '');
  await run('truncate', ['-s', '8M', image]);
  await start(t, 'qemu-nbd', ['-t', '-e', '4', '-f', 'raw', '-k', path, '-x', 'disk', '-D', 'a disk', '--discard=unmap', '--detect-zeroes=off', image], path);
  await exercise(t, path, 'disk', true);
  t.match(await nbd.negotiate(nbd.streamOf(connect(path)), { kind: 'info', name: 'disk' }), { kind: 'described', export: { description: 'a disk', blockSizesAdvertised: true } });
  t.match(await nbd.negotiate(nbd.streamOf(connect(path)), { kind: 'info', name: 'no' }), { kind: 'failed', replyType: nbd.NBD_REP_ERR_UNKNOWN });
});

/** Serves memory exports on a Unix socket until the test ends. */
async function serve(t: Test, exports: readonly MemoryExport[]): Promise<string> {
  const path = join(folder(t), 'socket');
  const sockets = new Set<Socket>();
  const listener = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    // A client that goes away in the middle is its own affair.
    socket.on('error', () => socket.destroy());
    const server = new MemoryServer(directoryOf(exports), exports);
    const respond = (received: Uint8Array): void => {
      socket.write(server.exchange(received));
      if (server.closed !== undefined) socket.end();
    };
    socket.on('data', respond);
    respond(new Uint8Array(0));
  });
  listener.listen(path);
  await once(listener, 'listening');
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    listener.close();
    await once(listener, 'close');
  });
  return path;
}

const uri = (path: string, name: string): string => `nbd+unix:///${encodeURIComponent(name)}?socket=${path}`;

void t.test('nbdinfo understands the server', without('nbdinfo'), async (t) => {
  const volume = memoryExport('group/vol@snap', 1 << 20);
  volume.bytes.fill(1, 65536, 131072);
  const path = await serve(t, [volume, memoryExport('other', 512, { transmissionFlags: nbd.NBD_FLAG_READ_ONLY, minimumBlock: 512 })]);
  const { stdout } = await run('nbdinfo', ['--json', uri(path, volume.name)], { env: environment });
  const [described] = (JSON.parse(stdout) as { exports: Record<string, unknown>[] }).exports;
  t.match(described, {
    'export-name': 'group/vol@snap', description: 'the export group/vol@snap', 'export-size': 1 << 20, contexts: ['base:allocation', 'x-test:identity/7'],
    is_read_only: false, can_flush: true, can_fua: true, can_trim: true, can_zero: true, can_fast_zero: true, can_df: true, can_cache: true,
    can_multi_conn: true, block_size_minimum: 1, block_size_preferred: 4096, block_size_maximum: nbd.MAX_REQUEST_PAYLOAD,
  });
  const list = await run('nbdinfo', ['--list', '--json', `nbd+unix://?socket=${path}`], { env: environment });
  t.same((JSON.parse(list.stdout) as { exports: Record<string, unknown>[] }).exports.map((entry) => entry['export-name']), ['group/vol@snap', 'other']);
  const map = await run('nbdinfo', ['--map', '--json', uri(path, volume.name)], { env: environment });
  t.same((JSON.parse(map.stdout) as { offset: number; length: number; type: number }[]).map(({ offset, length, type }) => [offset, length, type]),
    [[0, 65536, 3], [65536, 65536, 0], [131072, (1 << 20) - 131072, 3]]);
  const refused = await run('nbdinfo', [uri(path, 'nothing')], { env: environment }).then(() => 'accepted', (error: { stderr: string }) => error.stderr);
  t.match(refused, /nothing/);
});

void t.test('nbdcopy copies to and from the server, sparse', without('nbdcopy'), async (t) => {
  const random = seededRandom(9);
  const source = memoryExport('source', 4 << 20);
  for (let at = 0; at < 4 << 20; at += 1 << 18) source.bytes.fill(1 + Math.floor(random() * 200), at, at + 65536);
  const target = memoryExport('target', 4 << 20);
  target.bytes.fill(0xaa);
  const path = await serve(t, [source, target]);
  await run('nbdcopy', [uri(path, 'source'), uri(path, 'target')], { env: environment });
  t.ok(Buffer.from(source.bytes).equals(Buffer.from(target.bytes)));
});

void t.test('qemu-io works with the server', without('qemu-io'), async (t) => {
  const volume = memoryExport('vol', 1 << 20, { minimumBlock: 512 });
  const path = await serve(t, [volume]);
  const commands = ['write -P 7 4096 8192', 'write -z -u 4096 4096', 'read -P 0 4096 4096', 'read -P 7 8192 4096', 'discard 0 1M', 'flush'];
  const { stdout } = await run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri(path, 'vol')], { env: environment });
  t.notMatch(stdout, /failed|error/i);
  t.ok(volume.bytes.every((byte) => byte === 0), 'the discard reached the server');
});
