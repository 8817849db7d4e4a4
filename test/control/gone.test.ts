/** Clients of the admin API that go away before they are answered: what waits for them hears of it. */
import { spawnSync } from 'node:child_process';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import type { LogEntry } from '../../src/base/log.js';
import { SinkLog } from '../../src/base/log.js';
import { ControlClient } from '../../src/control/client.js';
import { ControlServer } from '../../src/control/server.js';
import type { DrainReply } from '../../src/control/schema/replies.js';
import { cleanEnvironment, waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { FakePort } from './fake-port.js';

async function setup(t: { teardown(action: () => Promise<void>): void }): Promise<{ port: FakePort; socket: string; log: LogEntry[] }> {
  const directory = makeTempDirectory('gone');
  const socket = join(directory, 's');
  const port = new FakePort();
  // It never answers by itself.
  port.answers.drain = () => new Promise<DrainReply>(() => undefined);
  const log: LogEntry[] = [];
  const server = await ControlServer.open({ socket, port, log: new SinkLog((entry) => log.push(entry)) });
  t.teardown(async () => {
    await server.close();
    removeTempDirectory(directory);
  });
  return { port, socket, log };
}

const DRAIN = 'POST /v1/groups/g/drain HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{"waitSeconds":60}';

t.test('a connection that ends before the answer aborts the call, also when its answer would be the second one', async (t) => {
  for (const count of [1, 2, 12]) {
    for (const end of ['destroy', 'end'] as const) {
      const { port, socket } = await setup(t);
      const connection = createConnection(socket);
      connection.on('error', () => {});
      connection.write(DRAIN.repeat(count));
      await waitFor(`${count} calls`, () => port.calls.length === count);
      t.ok(port.gone.every((gone) => gone?.aborted === false));
      connection[end]();
      await waitFor('all of them are aborted', () => port.gone.every((gone) => gone?.aborted === true));
      connection.destroy();
    }
  }
});

t.test('a client that was answered goes without a word', async (t) => {
  const { port, socket, log } = await setup(t);
  const connection = createConnection(socket);
  let text = '';
  connection.on('data', (part) => (text += String(part)));
  connection.write('GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n'.repeat(3));
  await waitFor('three answers', () => text.split('HTTP/1.1 200').length === 4);
  connection.destroy();
  t.equal(port.calls.length, 3);
  t.strictSame(log, []);
});

t.test('a call is not made for a client that went while its request was arriving', async (t) => {
  const { port, socket, log } = await setup(t);
  const connection = createConnection(socket);
  connection.on('error', () => {});
  connection.write(DRAIN.slice(0, -4));
  await new ControlClient(socket).version();
  connection.destroy();
  await new ControlClient(socket).status();
  t.strictSame(port.calls.map((call) => call.op), ['status']);
  t.strictSame(log, []);
});

/** Sends a whole request, and is killed as soon as the kernel has it. */
const SEND_AND_DIE = `
  const connection = require('node:net').createConnection(process.argv[1], () => connection.write(process.argv[2], () => process.kill(process.pid, 'SIGKILL')));
`;

t.test('a call is not made for a client that was killed while this process stood still', async (t) => {
  const { port, socket, log } = await setup(t);
  for (let i = 0; i < 3; i++) {
    // This process stands still until the client is dead.
    const { signal } = spawnSync(process.execPath, ['-e', SEND_AND_DIE, socket, DRAIN], { env: cleanEnvironment() });
    t.equal(signal, 'SIGKILL');
    await new ControlClient(socket).status();
  }
  t.strictSame(port.calls.map((call) => call.op), ['status', 'status', 'status']);
  t.strictSame(log.map(({ message }) => message), Array<string>(3).fill('POST /v1/groups/:group/drain was not begun: its client has gone'));
});

t.test('an interruption ends calls of the client at once, those under way and those to come', async (t) => {
  const { port, socket } = await setup(t);
  const interrupt = new AbortController();
  const client = new ControlClient(socket, interrupt.signal);
  await client.status();
  const under = client.drain('g', { waitSeconds: 600 });
  await waitFor('the call', () => port.calls.some((call) => call.op === 'drain'));
  interrupt.abort();
  await t.rejects(under, { code: 'interrupted', message: /not appended yet is not done any more/ });
  await waitFor('the server hears of it', () => port.gone.at(-1)?.aborted === true);
  await t.rejects(client.status(), { code: 'interrupted' });
  t.equal(port.calls.length, 2);
});
