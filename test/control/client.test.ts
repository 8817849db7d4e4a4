/** The client of the admin API: against the real server, and against servers that are not one. */
import { createServer } from 'node:http';
import type { RequestListener } from 'node:http';
import { createServer as createNetServer } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { silentLog } from '../../src/base/log.js';
import { ControlClient } from '../../src/control/client.js';
import { ControlError } from '../../src/control/port.js';
import { NodeStatus } from '../../src/control/schema/status.js';
import { ControlServer } from '../../src/control/server.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { FakePort, nodeStatus, record } from './fake-port.js';

type Teardown = { teardown(action: () => unknown): void };

function directory(t: Teardown): string {
  const path = makeTempDirectory('cli');
  t.teardown(() => removeTempDirectory(path));
  return path;
}

async function real(t: Teardown): Promise<{ port: FakePort; client: ControlClient }> {
  const socket = join(directory(t), 's');
  const port = new FakePort();
  const server = await ControlServer.open({ socket, port, log: silentLog, followMs: 5 });
  t.teardown(() => server.close());
  return { port, client: new ControlClient(socket) };
}

async function fake(t: Teardown, listener: RequestListener): Promise<ControlClient> {
  const socket = join(directory(t), 's');
  const server = createServer(listener).listen(socket);
  await new Promise((resolve) => server.once('listening', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return new ControlClient(socket);
}

t.test('every call round-trips through the server', async (t) => {
  const { port, client } = await real(t);
  t.strictSame(await client.status(), nodeStatus());
  t.match(await client.version(), { api: 'v1' });
  t.equal((await client.devices('g')).devices.length, 2);
  t.equal((await client.links('g')).links[0].peer, 'beta');
  t.equal((await client.createVolume('g', { name: 'v', size: '1G', wait: 'applied', waitSeconds: 3 })).waited, 'applied');
  t.match(port.last, { op: 'create', sizeBytes: 2 ** 30, wait: 'applied', waitSeconds: 3 });
  await client.snapshot('g', { source: 'v@a', name: 'b' });
  t.match(port.last, { op: 'snapshot', source: 'v@a', name: 'b' });
  await client.restore('g', { target: 'v', source: 'v@a', force: true });
  t.match(port.last, { op: 'restore', force: true });
  t.equal((await client.remove('g', 'v@a', { withSnapshots: true, force: true, wait: 'durable' })).device, null);
  t.match(port.last, { op: 'remove', device: 'v@a', withSnapshots: true, force: true, wait: 'durable' });
  t.match(await client.promote('g', { force: true }), { epoch: { number: 4 } });
  t.match(await client.flush('g', { upTo: 'destaged' }), { upTo: 'destaged' });
  t.match(await client.dropLink('g', 'beta'), { peer: 'beta' });
  t.match(await client.metrics(), /lockstep_info/);
});

t.test("the server's errors arrive whole", async (t) => {
  const { port, client } = await real(t);
  port.answers.devices = () => { throw new ControlError({ kind: 'operator', code: 'group/not-found', message: 'no group "g"' }); };
  await t.rejects(client.devices('g'), { name: 'ControlError', code: 'group/not-found', kind: 'operator', message: 'no group "g"' });
  await t.rejects(client.createVolume('g', { name: '/', size: 1 }), { code: 'usage' });
});

t.test('the journal is an async sequence that can be left, aborted, and can fail half-way', async (t) => {
  const { port, client } = await real(t);
  const collect = async (range = {}, signal?: AbortSignal): Promise<number[]> => {
    const seen: number[] = [];
    for await (const one of client.journal('g', range, signal)) seen.push(one.lsn);
    return seen;
  };
  t.strictSame(await collect({ from: 0, to: 300 }), [100, 200]);
  let at = 0;
  port.answers.journal = () => ({ records: [record(at++)], next: at, appended: at, end: true });
  const abort = new AbortController();
  const seen: number[] = [];
  for await (const one of client.journal('g', { follow: true }, abort.signal)) {
    seen.push(one.lsn);
    if (seen.length === 3) abort.abort();
    if (seen.length > 3) break;
  }
  t.strictSame(seen.slice(0, 3), [0, 1, 2]);
  for await (const one of client.journal('g', { follow: true })) if (one.lsn > 5) break;
  port.answers.journal = ({ from }) => {
    if (from !== null) throw new ControlError({ kind: 'operator', code: 'journal/not-retained', message: 'gone' });
    return { records: [record(1)], next: 2, appended: 3, end: false };
  };
  await t.rejects(collect(), { code: 'journal/not-retained' });
  port.answers.journal = () => { throw new ControlError({ kind: 'operator', code: 'group/not-found', message: 'none' }); };
  await t.rejects(collect(), { code: 'group/not-found' });
});

t.test('a daemon that cannot be reached is a sentence that says why', async (t) => {
  const at = directory(t);
  await t.rejects(new ControlClient(join(at, 'none')).status(), { code: 'daemon/unreachable', kind: 'io', message: /no such socket; is lockstepd running/ });
  await t.rejects(new ControlClient(join(at, 'x'.repeat(120))).status(), { code: 'usage', message: /may have 107 bytes/ });
  const dropper = createNetServer((socket) => socket.destroy()).listen(join(at, 'drop'));
  await new Promise((resolve) => dropper.once('listening', resolve));
  await t.rejects(new ControlClient(join(at, 'drop')).status(), { code: 'daemon/unreachable', message: /closed the connection/ });
  dropper.close();
});

t.test('answers of something that is not a lockstepd are told as such', async (t) => {
  const html = await fake(t, (_request, response) => response.end('<html>'));
  await t.rejects(html.status(), { code: 'reply/unexpected', message: /not JSON; is this the socket of a lockstepd/ });
  const other = await fake(t, (_request, response) => response.end('{"node":"x"}'));
  await t.rejects(other.status(), { code: 'reply/unexpected', message: /not as expected at .*may be another version/ });
  const bare = await fake(t, (_request, response) => response.writeHead(500).end('{}'));
  await t.rejects(bare.status(), { code: 'reply/unexpected', message: /HTTP 500.*no error body/ });
  const cut = await fake(t, (_request, response) => {
    response.writeHead(200, { 'content-length': 100 });
    response.write('{');
    setImmediate(() => response.destroy());
  });
  await t.rejects(cut.status(), { code: 'daemon/unreachable', message: /before it had answered/ });
  const half = await fake(t, (_request, response) => {
    response.writeHead(200);
    response.write(`${JSON.stringify(record(1))}\n`);
    setTimeout(() => response.destroy(), 20);
  });
  await t.rejects(async () => { for await (const one of half.journal('g')) t.equal(one.lsn, 1); }, { code: 'daemon/unreachable', message: /in the middle of the journal/ });
});

t.test('a newer daemon may say more than this client knows', async (t) => {
  const newer = { ...nodeStatus(), fresh: 1 };
  const client = await fake(t, (_request, response) => response.end(JSON.stringify(newer)));
  t.strictSame(await client.status(), NodeStatus.parse(newer));
});
