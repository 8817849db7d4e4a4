/** The admin API over its Unix socket: every route, every kind of error, and clients that misbehave. */
import { spawnSync } from 'node:child_process';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { createConnection, createServer } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { CorruptionError, IoError, OperatorError, PeerError } from '../../src/base/errors.js';
import type { LogEntry } from '../../src/base/log.js';
import { SinkLog, silentLog } from '../../src/base/log.js';
import { HTTP_LIMITS } from '../../src/control/http.js';
import type { ControlRequest } from '../../src/control/port.js';
import { ControlError } from '../../src/control/port.js';
import { ErrorReply } from '../../src/control/schema/replies.js';
import type { ControlServerOptions } from '../../src/control/server.js';
import { ControlServer } from '../../src/control/server.js';
import { cleanEnvironment, waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { FakePort, operation, record } from './fake-port.js';

interface Answer {
  readonly status: number;
  readonly headers: Record<string, unknown>;
  readonly text: string;
  readonly json: Record<string, unknown>;
}

function ask(socket: string, method: string, path: string, body?: string, headers: Record<string, string> = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const call = httpRequest({ socketPath: socket, method, path, agent: false, headers }, (response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('end', () => {
        const text = Buffer.concat(parts).toString();
        let json: Record<string, unknown> = {};
        if (String(response.headers['content-type']).startsWith('application/json')) json = JSON.parse(text) as Record<string, unknown>;
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text, json });
      });
      response.on('error', reject);
    });
    call.on('error', reject);
    call.end(body);
  });
}

/** Sends raw bytes and returns all that comes back until the server closes. */
function raw(socket: string, bytes: string | Buffer, end = true): Promise<string> {
  return new Promise((resolve, reject) => {
    const connection = createConnection(socket);
    const parts: Buffer[] = [];
    connection.on('data', (part) => parts.push(part));
    connection.on('close', () => resolve(Buffer.concat(parts).toString()));
    connection.on('error', (error: NodeJS.ErrnoException) => (error.code === 'ECONNRESET' || error.code === 'EPIPE' ? undefined : reject(error)));
    connection.write(bytes);
    if (end) connection.end();
  });
}

interface Setup {
  readonly port: FakePort;
  readonly socket: string;
  readonly server: ControlServer;
  readonly log: LogEntry[];
}

async function setup(t: { teardown(action: () => Promise<void>): void }, over: Partial<ControlServerOptions> = {}): Promise<Setup> {
  const directory = makeTempDirectory('ctl');
  const port = new FakePort();
  const log: LogEntry[] = [];
  const socket = join(directory, 's');
  const server = await ControlServer.open({ socket, port, log: new SinkLog((entry) => log.push(entry)), followMs: 5, ...over });
  t.teardown(async () => {
    await server.close();
    removeTempDirectory(directory);
  });
  return { port, socket, server, log };
}

const waits = { wait: 'durable', waitSeconds: 60 } as const;

/** Every route: what arrives at the port, and with which status it is answered. */
const ROUTES: readonly { call: [string, string, unknown?]; status?: number; want: ControlRequest }[] = [
  { call: ['GET', '/v1/status'], want: { op: 'status' } },
  { call: ['GET', '/v1/groups/g/devices'], want: { op: 'devices', group: 'g' } },
  { call: ['GET', '/v1/groups/g/links'], want: { op: 'links', group: 'g' } },
  { call: ['POST', '/v1/groups/g/volumes', { name: 'vol', size: '10G' }], status: 201, want: { op: 'create', group: 'g', name: 'vol', sizeBytes: 10 * 2 ** 30, ...waits } },
  { call: ['POST', '/v1/groups/g/volumes', { name: 'vol', size: 4096, wait: 'applied', waitSeconds: 5 }], status: 201, want: { op: 'create', group: 'g', name: 'vol', sizeBytes: 4096, wait: 'applied', waitSeconds: 5 } },
  { call: ['POST', '/v1/groups/g/snapshots', { source: 'vol', name: 's1' }], status: 201, want: { op: 'snapshot', group: 'g', source: 'vol', name: 's1', ...waits } },
  { call: ['POST', '/v1/groups/g/snapshots', { source: 'vol@s1', name: 's2' }], status: 201, want: { op: 'snapshot', group: 'g', source: 'vol@s1', name: 's2', ...waits } },
  { call: ['POST', '/v1/groups/g/restore', { target: 'vol', source: 'vol@s1' }], want: { op: 'restore', group: 'g', target: 'vol', source: 'vol@s1', ranges: [], force: false, ...waits } },
  { call: ['POST', '/v1/groups/g/restore', { target: 'vol', source: 'vol@s1', force: true }], want: { op: 'restore', group: 'g', target: 'vol', source: 'vol@s1', ranges: [], force: true, ...waits } },
  { call: ['DELETE', '/v1/groups/g/devices/vol@s1'], want: { op: 'remove', group: 'g', device: 'vol@s1', withSnapshots: false, force: false, ...waits } },
  { call: ['DELETE', '/v1/groups/g/devices/vol%40s1?withSnapshots=true&force=true&wait=applied&waitSeconds=7'], want: { op: 'remove', group: 'g', device: 'vol@s1', withSnapshots: true, force: true, wait: 'applied', waitSeconds: 7 } },
  { call: ['POST', '/v1/groups/g/promote'], want: { op: 'promote', group: 'g', force: false } },
  { call: ['POST', '/v1/groups/g/promote', { force: true }], want: { op: 'promote', group: 'g', force: true } },
  { call: ['POST', '/v1/groups/g/flush', { upTo: 'checkpoint' }], want: { op: 'flush', group: 'g', upTo: 'checkpoint' } },
  { call: ['POST', '/v1/groups/g/flush'], want: { op: 'flush', group: 'g', upTo: 'durable' } },
  { call: ['POST', '/v1/groups/g/links/beta/drop'], want: { op: 'linkDrop', group: 'g', peer: 'beta' } },
  { call: ['GET', '/v1/groups/g/journal?from=5&to=900'], want: { op: 'journal', group: 'g', from: 5, to: 900, limit: 512 } },
  { call: ['GET', '/v1/groups/g/journal'], want: { op: 'journal', group: 'g', from: null, to: null, limit: 512 } },
];

t.test('every route hands a validated request to the data path', async (t) => {
  const { port, socket } = await setup(t);
  for (const { call: [method, path, body], status, want } of ROUTES) {
    const answer = await ask(socket, method, path, body === undefined ? undefined : JSON.stringify(body));
    t.equal(answer.status, status ?? 200, `${method} ${path}`);
    t.strictSame(port.last, want, `${method} ${path}`);
  }
});

t.test('version is answered without the data path', async (t) => {
  const { port, socket } = await setup(t);
  const answer = await ask(socket, 'GET', '/v1/version');
  t.strictSame(answer.json, { name: 'lockstep', version: '0.1.0', api: 'v1' });
  t.equal(port.calls.length, 0);
});

t.test('metrics are Prometheus text of status, samples and process', async (t) => {
  const { socket } = await setup(t);
  const { status, text, headers } = await ask(socket, 'GET', '/metrics');
  t.equal(status, 200);
  t.match(String(headers['content-type']), /text\/plain/);
  t.match(text, 'lockstep_group_lsn_bytes{group="g",point="durable"} 900000');
  t.match(text, 'lockstep_group_role{group="g",role="primary"} 1');
  t.match(text, 'lockstep_nbd_requests_total{command="read"} 7');
  t.match(text, 'lockstep_link_lag_bytes{group="g",peer="beta",direction="to"} 0');
  t.match(text, /lockstep_process_resident_memory_bytes \d+/);
  const again = await ask(socket, 'GET', '/metrics');
  t.match(again.text, 'lockstep_control_requests_total{route="GET /metrics",status="200"} 1');
  t.match(again.text, 'lockstep_nbd_requests_total{command="read"} 7', 'a counter is not added up from scrape to scrape');
});

/** Requests that never reach the data path: [method, path, body, status, code, words of the message]. */
const REFUSED: readonly [string, string, string | undefined, number, string, RegExp][] = [
  ['POST', '/v1/groups/g/volumes', '{"name":"vol"}', 400, 'usage', /size is missing, it must be a size such as "10G"/],
  ['POST', '/v1/groups/g/volumes', '{"name":"vol","size":"4097"}', 400, 'usage', /size must be .* a multiple of 4096.*, not "4097"/],
  ['POST', '/v1/groups/g/volumes', '{"name":"vol","size":-4096}', 400, 'usage', /size must be/],
  ['POST', '/v1/groups/g/volumes', '{"name":"vol","size":"9999P"}', 400, 'usage', /to 1 PiB/],
  ['POST', '/v1/groups/g/volumes', '{"name":"a/b","size":4096}', 400, 'usage', /name must be 1 to 64 letters.*, not "a\/b"/],
  ['POST', '/v1/groups/g/volumes', '{"name":"vol","siz":4096}', 400, 'usage', /size is missing.*unknown key "siz", did you mean "size"\?/],
  ['POST', '/v1/groups/g/volumes', '[]', 400, 'usage', /must be a JSON object with the keys name, size/],
  ['POST', '/v1/groups/g/volumes', '7', 400, 'usage', /must be a JSON object/],
  ['POST', '/v1/groups/g/volumes', '{"name"', 400, 'usage', /not JSON/],
  ['POST', '/v1/groups/g/volumes', '{"__proto__":{"name":"vol","size":4096}}', 400, 'usage', /name is missing/],
  ['POST', '/v1/groups/g/volumes', '{"name":"vol","size":4096,"wait":"long"}', 400, 'usage', /wait must be "durable" or "applied", not "long"/],
  ['POST', '/v1/groups/g/volumes', '{"name":"vol","size":4096,"waitSeconds":1e9}', 400, 'usage', /waitSeconds/],
  ['POST', '/v1/groups/g/snapshots', '{"source":"vol@","name":"s"}', 400, 'usage', /source must be VOLUME, VOLUME@SNAPSHOT or VOLUME~LOCAL/],
  ['POST', '/v1/groups/g/snapshots', '{"source":"vol@a@b","name":"s"}', 400, 'usage', /source must be/],
  ['POST', '/v1/groups/g/restore', '{"target":"vol","source":"vol"}', 400, 'usage', /same device/],
  ['POST', '/v1/groups/g/restore', '{"target":"vol","source":"vol@s","force":"yes"}', 400, 'usage', /force/],
  ['POST', '/v1/groups/g/restore', `{"target":"vol","source":"vol@s","ranges":${JSON.stringify(Array(1025).fill([0, 4096]))}}`, 400, 'usage', /^ranges must be at most 64 at a time \(do it in parts\), not /],
  ['POST', '/v1/groups/g/flush', '{"upTo":"heaven"}', 400, 'usage', /upTo must be "durable", "destaged" or "checkpoint"/],
  ['POST', '/v1/groups/-g/promote', undefined, 400, 'usage', /group's name must be/],
  ['POST', '/v1/groups/g/links/%2e%2e/drop', undefined, 400, 'usage', /peer's name must be/],
  ['POST', '/v1/groups/g/links/beta/drop', '{"x":1}', 400, 'usage', /unknown key "x"/],
  ['DELETE', '/v1/groups/g/devices/vol@s?forse=1', undefined, 400, 'usage', /unknown key "forse", did you mean "force"/],
  ['DELETE', '/v1/groups/g/devices/vol@s?force=1&force=0', undefined, 400, 'usage', /names "force" twice/],
  ['DELETE', '/v1/groups/g/devices/a%2Fb', undefined, 400, 'usage', /device's name must be/],
  ['GET', '/v1/groups/g/journal?from=-1', undefined, 400, 'usage', /from/],
  ['GET', '/v1/groups/g/journal?from=9&to=8', undefined, 400, 'usage', /lies before/],
  ['GET', '/v1/groups/g/journal?from=', undefined, 400, 'usage', /^from must be an LSN, a whole number from 0 to \d+, not ""$/],
  ['GET', '/v1/groups/g/journal?from=0x10', undefined, 400, 'usage', /^from must be an LSN/],
  ['GET', '/v1/groups/g/journal?follow=perhaps', undefined, 400, 'usage', /^follow must be "true" or "false", not "perhaps"$/],
  ['DELETE', '/v1/groups/g/devices/vol@s?waitSeconds=0', undefined, 400, 'usage', /^waitSeconds must be seconds, more than 0 and at most 86400, not "0"$/],
  ['DELETE', '/v1/groups/g/devices/vol@s?waitSeconds=', undefined, 400, 'usage', /^waitSeconds must be seconds/],
  ['POST', '/v1/groups/g/drain', '{"waitSeconds":-1}', 400, 'usage', /^waitSeconds must be seconds, more than 0 and at most 86400, not -1$/],
  ['POST', '/v1/groups/g/restore', '{"target":"vol","source":"vol@s","force":null}', 400, 'usage', /^force must be true or false, not null$/],
  ['POST', '/v1/groups/g/restore', '{"target":"vol","source":"vol@s","ranges":{}}', 400, 'usage', /^ranges must be a list of \[offset, length\] in bytes, not /],
  ['POST', '/v1/groups/g/restore', '{"target":"vol","source":"vol@s","ranges":[[0]]}', 400, 'usage', /^ranges\[0\] must be \[offset, length\] in bytes, not |^ranges\[0\]\[1\] is missing, it must be a length/],
  ['POST', '/v1/groups/g/restore', '{"target":"vol","source":"vol@s","ranges":[[0,5]]}', 400, 'usage', /^ranges\[0\]\[1\] must be a length in bytes, a multiple of 4096 from 0 to \d+, not 5$/],
  ['POST', '/v1/groups/g/seal', '{"device":"vol~l","known":3}', 400, 'usage', /^known must be an object of digest and sealedLsn, not 3$/],
  ['POST', '/v1/groups/g/seal', '{"device":"vol~l","known":{"digest":5,"sealedLsn":-1}}', 400, 'usage', /^known\.digest must be 32 hexadecimal digits, not 5; known\.sealedLsn must be an LSN, .*, not -1$/],
  ['GET', '/v1/groups/g/journal?from=1e300', undefined, 400, 'usage', /from/],
  ['GET', '/v1/status?verbose=1', undefined, 400, 'usage', /unknown key "verbose"/],
  ['GET', '/v1/%zz', undefined, 400, 'usage', /percent-encoded/],
  ['GET', '/v1/nothing', undefined, 404, 'request/route', /there is no \/v1\/nothing/],
  ['GET', '/', undefined, 404, 'request/route', /begins at \/v1\/status/],
  ['POST', '/v1/status', undefined, 405, 'request/method', /answers GET, not POST/],
  ['PUT', '/v1/groups/g/volumes', undefined, 405, 'request/method', /answers POST, not PUT/],
  ['GET', `/v1/${'x'.repeat(4000)}`, undefined, 404, 'request/route', /there is no/],
];

t.test('what is wrong with a request is a sentence, and the data path is not troubled', async (t) => {
  const { port, socket } = await setup(t);
  for (const [method, path, body, status, code, words] of REFUSED) {
    const answer = await ask(socket, method, path, body);
    const what = `${method} ${path.slice(0, 60)} ${(body ?? '').slice(0, 100)}`;
    t.equal(answer.status, status, what);
    const { error } = ErrorReply.parse(answer.json);
    t.equal(error.code, code, what);
    t.match(error.message, words, what);
    t.equal(error.kind, 'operator', what);
    if (status === 405) t.type(answer.headers['allow'], 'string');
  }
  t.strictSame(port.calls, []);
});

t.test('errors of the data path keep their code and get the HTTP status of their kind', async (t) => {
  const { port, socket } = await setup(t);
  const cases: readonly [Error, number, string, string][] = [
    [new ControlError({ kind: 'operator', code: 'device/not-found', message: 'no such' }), 404, 'device/not-found', 'operator'],
    [new ControlError({ kind: 'operator', code: 'device/busy', message: 'busy' }), 409, 'device/busy', 'operator'],
    [new ControlError({ kind: 'operator', code: 'usage', message: 'odd' }), 400, 'usage', 'operator'],
    [new ControlError({ kind: 'operator', code: 'daemon/closing', message: 'closing' }), 503, 'daemon/closing', 'operator'],
    [new ControlError({ kind: 'bug', code: 'bug', message: 'oh' }), 500, 'bug', 'bug'],
    [new OperatorError('role/not-primary', 'beta is'), 409, 'role/not-primary', 'operator'],
    [new CorruptionError('/j', 5, 'bad'), 500, 'corruption', 'corruption'],
    [new PeerError('peer/gone', 'gone'), 502, 'peer/gone', 'peer'],
    [new IoError(28, 'write', '/j'), 500, 'io/ENOSPC', 'io'],
  ];
  for (const [error, status, code, kind] of cases) {
    port.answers.restore = () => { throw error; };
    const answer = await ask(socket, 'POST', '/v1/groups/g/restore', '{"target":"a","source":"b"}');
    t.equal(answer.status, status, code);
    t.strictSame(answer.json, { error: { code, message: error.message, kind } });
  }
});

t.test('a bug is answered 500 without its text, logged with its stack, and the server goes on', async (t) => {
  const { port, socket, log } = await setup(t);
  port.answers.status = () => { throw new TypeError('secret insides'); };
  const answer = await ask(socket, 'GET', '/v1/status');
  t.equal(answer.status, 500);
  t.notMatch(answer.text, /secret insides/);
  t.match(String(log.find((entry) => entry.level === 'error')?.fields['stack']), /secret insides/);
  port.answers = {};
  t.equal((await ask(socket, 'GET', '/v1/status')).status, 200);
});

t.test('bodies over the limit are refused, announced or not', async (t) => {
  const { port, socket } = await setup(t);
  const big = JSON.stringify({ name: 'x'.repeat(HTTP_LIMITS.bodyBytes) });
  const announced = await raw(socket, `POST /v1/groups/g/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n`, false);
  t.match(announced, /^HTTP\/1.1 413 .*"request\/too-large"/s);
  const chunked = await raw(socket, `POST /v1/groups/g/volumes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n${big.length.toString(16)}\r\n${big}\r\n`, false);
  t.match(chunked, /^HTTP\/1.1 413 /);
  t.strictSame(port.calls, []);
  t.equal((await ask(socket, 'GET', '/v1/status')).status, 200, 'others are served');
});

t.test('garbage is answered 400 and closed', async (t) => {
  const { socket, log } = await setup(t);
  const garbage: readonly (string | Buffer)[] = [
    'hello\r\n\r\n', '\0\0\0\0\0', Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]), 'GET / HTTP/9.9\r\n\r\n', 'GET /v1/status HTTP/1.1\r\nbad header\r\n\r\n',
    'POST /v1/groups/g/promote HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n', 'POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n',
  ];
  for (const bytes of garbage) {
    const answer = await raw(socket, bytes);
    t.match(answer, /^HTTP\/1.1 4\d\d /, JSON.stringify(bytes.toString('latin1').slice(0, 40)));
  }
  t.match(await raw(socket, `GET / HTTP/1.1\r\nx: ${'y'.repeat(40_000)}\r\n\r\n`), /^HTTP\/1.1 431 .*request\/too-large/s);
  t.match(await raw(socket, 'GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n', false), /^HTTP\/1.1 400 .*upgrades/s);
  t.match(await raw(socket, 'CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n', false), /^HTTP\/1.1 405 /);
  t.equal(await raw(socket, ''), '');
  t.equal((await ask(socket, 'GET', '/v1/status')).status, 200);
  t.strictSame(log.filter((entry) => entry.level === 'error'), []);
});

t.test('half a request is ended by the time limit, and the number of connections is bounded', async (t) => {
  const { socket } = await setup(t, { limits: { ...HTTP_LIMITS, requestMs: 150, headersMs: 100, connections: 3 } });
  t.match(await raw(socket, 'GET /v1/sta', false), /^HTTP\/1.1 408 .*request\/timeout/s, 'half a header');
  t.match(await raw(socket, 'POST /v1/groups/g/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"na', false), /^HTTP\/1.1 408 |^$/, 'half a body');
  const idle = await Promise.all(Array.from({ length: 8 }, () => raw(socket, 'GET ', false)));
  t.equal(idle.length, 8, 'all of a flood were closed');
  t.equal((await ask(socket, 'GET', '/v1/status')).status, 200, 'and afterwards others are served');
});

t.test('the journal arrives page by page and ends where it ended when asked', async (t) => {
  const { port, socket } = await setup(t);
  let appended = 300;
  port.answers.journal = ({ from }) => {
    const at = from ?? 100;
    appended += 100; // writers go on
    return { records: [record(at)], next: at + 100, appended, end: false };
  };
  const { status, text, headers } = await ask(socket, 'GET', '/v1/groups/g/journal');
  t.equal(status, 200);
  t.equal(headers['content-type'], 'application/x-ndjson');
  t.strictSame(text.trim().split('\n').map((line) => (JSON.parse(line) as { lsn: number }).lsn), [100, 200, 300]);
});

t.test('following goes on after the end until the reader leaves', async (t) => {
  const { port, socket } = await setup(t);
  let at = 0;
  port.answers.journal = () => ({ records: at++ % 2 === 0 ? [record(at)] : [], next: at, appended: at, end: true });
  const lines = await new Promise<string>((resolve, reject) => {
    let text = '';
    const call = httpRequest({ socketPath: socket, path: '/v1/groups/g/journal?follow=true', agent: false }, (response) => {
      response.on('data', (part: Buffer) => {
        text += part.toString();
        if (text.split('\n').length < 4) return;
        response.destroy();
        resolve(text);
      });
    });
    call.on('error', reject);
    call.end();
  });
  t.ok(lines.split('\n').length >= 4);
  await waitFor('nothing is asked any more for a reader that left', async () => {
    const calls = port.calls.length;
    await new Promise((resolve) => setTimeout(resolve, 50)); // ten polls of a stream that goes on
    return port.calls.length === calls;
  }, 5000);
});

t.test('an error of the first page is an HTTP error, a later one the last line', async (t) => {
  const { port, socket } = await setup(t);
  const lost = new ControlError({ kind: 'operator', code: 'journal/not-retained', message: 'LSN 5 is no longer retained' });
  port.answers.journal = () => { throw lost; };
  t.equal((await ask(socket, 'GET', '/v1/groups/g/journal')).status, 409);
  port.answers.journal = ({ from }) => {
    if (from !== null) throw lost;
    return { records: [record(1)], next: 2, appended: 9, end: false };
  };
  const { status, text } = await ask(socket, 'GET', '/v1/groups/g/journal');
  t.equal(status, 200);
  t.strictSame(JSON.parse(text.trim().split('\n')[1]), { error: { code: 'journal/not-retained', message: 'LSN 5 is no longer retained', kind: 'operator' } });
});

t.test('closing takes back what is under way, says so to those who wait, and removes the socket', async (t) => {
  const { port, socket, server } = await setup(t);
  port.answers.restore = () => new Promise(() => {});
  // Pages without end; time for others between them.
  port.answers.journal = async ({ from }) => {
    await new Promise((resolve) => setImmediate(resolve));
    return { records: [record(from ?? 100)], next: (from ?? 100) + 100, appended: 2 ** 50, end: false };
  };
  const hanging = ask(socket, 'POST', '/v1/groups/g/restore', '{"target":"a","source":"b"}');
  await waitFor('the request is under way', () => port.calls.length === 1);
  const dump = ask(socket, 'GET', '/v1/groups/g/journal');
  await waitFor('a dump is under way', () => port.calls.length > 3);
  const follow = ask(socket, 'GET', '/v1/groups/g/journal?follow=true');
  await waitFor('both are under way', () => port.calls.filter((call) => call.op === 'journal' && call.to === null).length > 3);
  await server.close();
  await server.close();
  const answer = await hanging;
  t.equal(answer.status, 503);
  t.match(answer.json, { error: { code: 'daemon/closing', kind: 'io', message: /shutting down .*appended by now stays, one that was not is not done any more .*lockstep operations/ } });
  t.ok(port.gone[0]?.aborted, 'the call is taken back');
  for (const stream of [dump, follow]) {
    const last = (await stream).text.trim().split('\n').at(-1) ?? '';
    t.match(JSON.parse(last), { error: { code: 'daemon/closing', message: /told up to LSN \d+; ask from there/ } });
  }
  t.notOk(existsSync(socket));
});

t.test('closing does not wait for ever for a client that takes no answer, or sends no whole request', async (t) => {
  const { port, socket, server } = await setup(t);
  port.answers.journal = ({ from }) => ({ records: Array.from({ length: 500 }, (_, i) => record((from ?? 0) + i)), next: (from ?? 0) + 500, appended: 10_000_000, end: false });
  const deaf = createConnection(socket).on('error', () => undefined).pause();
  deaf.write('GET /v1/groups/g/journal HTTP/1.1\r\nhost: x\r\n\r\n');
  const half = createConnection(socket).on('error', () => undefined).resume();
  half.write('POST /v1/groups/g/flush HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"up');
  const silent = createConnection(socket).on('error', () => undefined).resume();
  await ask(socket, 'GET', '/v1/version');
  let calls = -1;
  await waitFor('the stream waits for its reader', async () => {
    const before = calls;
    for (let i = 0; i < 20; i++) await ask(socket, 'GET', '/v1/version');
    calls = port.calls.length;
    return calls > 0 && before === calls;
  });
  await server.close();
  t.notOk(existsSync(socket));
  for (const connection of [deaf, half, silent]) connection.destroy();
});

t.test('the socket is for its owner only, and a stale one is replaced', async (t) => {
  const { socket, server } = await setup(t);
  t.equal(statSync(socket).mode & 0o777, 0o600);
  await t.rejects(ControlServer.open({ socket, port: new FakePort(), log: silentLog }), { code: 'control/in-use', message: /another daemon answers/ });
  t.equal((await ask(socket, 'GET', '/v1/status')).status, 200, 'the first one is unharmed');
  await server.close();
  stale(socket);
  t.ok(existsSync(socket), 'a stale socket lies there');
  const second = await ControlServer.open({ socket, port: new FakePort(), log: silentLog });
  t.equal((await ask(socket, 'GET', '/v1/status')).status, 200);
  await second.close();
});

/** A socket file whose listener is gone, as kill -9 leaves it. */
function stale(path: string): void {
  const script = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', script], { env: cleanEnvironment() });
}

t.test('a socket that cannot be made is a sentence', async (t) => {
  const directory = makeTempDirectory('ctl');
  t.teardown(() => removeTempDirectory(directory));
  writeFileSync(join(directory, 'file'), 'x');
  const open = (socket: string): Promise<ControlServer> => ControlServer.open({ socket, port: new FakePort(), log: silentLog });
  await t.rejects(open(join(directory, 'file')), { code: 'control/listen', message: /not a socket is in the way/ });
  t.ok(existsSync(join(directory, 'file')), 'what is in the way is not removed');
  await t.rejects(open(join(directory, 'file', 's')), { code: 'control/listen', message: /not a directory/ });
  await t.rejects(open(join(directory, 'a', 'b', 's')), { code: 'control/listen', message: /its parent does not exist/ });
  const made = await open(join(directory, 'fresh', 's'));
  t.ok(existsSync(join(directory, 'fresh', 's')), 'one missing directory is made');
  await made.close();
  await t.rejects(open(join(directory, 'x'.repeat(100))), { code: 'control/listen', message: /may have 107/ });
});

t.test('the metrics listener serves /metrics and nothing else', async (t) => {
  const { server } = await setup(t, { metricsListen: { kind: 'tcp', host: '127.0.0.1', port: 0 } });
  const port = server.metricsAddress?.port;
  const get = async (path: string, method = 'GET'): Promise<Response> => fetch(`http://127.0.0.1:${port}${path}`, { method });
  t.match(await (await get('/metrics')).text(), /lockstep_info\{node="alpha"/);
  t.equal((await get('/v1/status')).status, 404);
  t.equal((await get('/metrics', 'POST')).status, 405);
  const busy = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => busy.once('listening', resolve));
  const taken = (busy.address() as { port: number }).port;
  const directory = makeTempDirectory('ctl');
  t.teardown(() => removeTempDirectory(directory));
  await t.rejects(
    ControlServer.open({ socket: join(directory, 's'), port: new FakePort(), log: silentLog, metricsListen: { kind: 'tcp', host: '127.0.0.1', port: taken } }),
    { code: 'control/listen', message: /in use/ },
  );
  t.notOk(existsSync(join(directory, 's')), 'nothing is left behind');
  busy.close();
});

t.test('answers to many clients at once do not get mixed up', async (t) => {
  const { port, socket } = await setup(t);
  port.answers.create = async ({ name }) => {
    await new Promise((resolve) => setImmediate(resolve));
    return operation({ lsn: Number(name.slice(1)) });
  };
  const answers = await Promise.all(Array.from({ length: 40 }, (_, i) => ask(socket, 'POST', '/v1/groups/g/volumes', JSON.stringify({ name: `v${i}`, size: 4096 }))));
  t.strictSame(answers.map(({ json }) => json['lsn']), Array.from({ length: 40 }, (_, i) => i));
});

