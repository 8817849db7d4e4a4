/** The exported journal over the admin API: bytes out and in, at whoever's pace is slower, and how errors half-way are told. */
import { createConnection } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { silentLog } from '../../src/base/log.js';
import type { ExportPageRequest, ImportPushRequest } from '../../src/control/carry.js';
import { ControlClient } from '../../src/control/client.js';
import { HTTP_LIMITS } from '../../src/control/http.js';
import { ControlError } from '../../src/control/port.js';
import type { ImportState } from '../../src/control/schema/replies.js';
import { ControlServer } from '../../src/control/server.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { FakePort, importState, POSITION } from './fake-port.js';

interface Setup {
  readonly port: FakePort;
  readonly client: ControlClient;
  readonly server: ControlServer;
  readonly socket: string;
}

async function setup(t: { teardown(action: () => unknown): void }, requestMs = HTTP_LIMITS.requestMs): Promise<Setup> {
  const directory = makeTempDirectory('carry-http');
  const socket = join(directory, 's');
  const port = new FakePort();
  const server = await ControlServer.open({ socket, port, log: silentLog, limits: { ...HTTP_LIMITS, requestMs } });
  t.teardown(async () => {
    await server.close();
    removeTempDirectory(directory);
  });
  return { port, client: new ControlClient(socket), server, socket };
}

/** Answers pages of `bytes` each, `count` of them, then the end. */
function pages(port: FakePort, count: number, bytes: number): () => number {
  let made = 0;
  port.answers.exportPage = (request: ExportPageRequest) => {
    made++;
    return { bytes: new Uint8Array(bytes).fill(made), place: { ...request.place, lsn: request.place.lsn + bytes, frame: made }, durable: 5_000_000, end: made === count };
  };
  return () => made;
}

async function collect<T>(values: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const value of values) all.push(value);
  return all;
}

const failure = (code: string, message: string): ControlError => new ControlError({ kind: 'operator', code, message });

t.test('an export is the preface and every page, in order, up to what was durable when it began', async (t) => {
  const { port, client } = await setup(t);
  pages(port, 4, 10_000);
  const bytes = Buffer.concat(await collect(client.exportJournal('g', { cursor: 'tape', from: POSITION })));
  t.equal(bytes.length, 3 + 40_000);
  t.strictSame([...bytes.subarray(0, 3)], [1, 2, 3]);
  t.strictSame([0, 1, 2, 3].map((i) => bytes[3 + i * 10_000]), [1, 2, 3, 4]);
  t.match(port.calls[0], { op: 'exportOpen', group: 'g', cursor: 'tape', from: { epochId: 'ab'.repeat(16), lsn: 900_000, chainHi: 0x01234567, chainLo: 0x89abcdef } });
  t.ok(port.calls.slice(1).every((call) => call.op === 'exportPage' && call.to === 900_000), 'it ends where the durable end was');
});

t.test('a reader that takes nothing stops the pages, and one that goes away ends the stream', async (t) => {
  const { port, client } = await setup(t);
  const made = pages(port, 1000, 1024 * 1024);
  const reader = client.exportJournal('g', { cursor: 'tape', follow: true });
  await reader.next();
  // Two sockets' and two streams' buffers; then the server waits.
  let last = -1;
  await waitFor('no more pages are asked for', async () => {
    const before = made();
    // The server answers others meanwhile.
    for (let i = 0; i < 20; i++) await client.status();
    last = made();
    return before === last && last > 0;
  });
  t.ok(last < 20, `${last} MiB were made for a reader that took one chunk`);
  await reader.return(undefined);
  const after = made();
  t.ok(after < 30);
});

t.test('an export that fails half-way ends with its reason, one that fails at once with a status', async (t) => {
  const { port, client } = await setup(t);
  let count = 0;
  port.answers.exportPage = (request) => {
    if (++count === 3) throw failure('cursor/moved', 'cursor tape has moved to LSN 7, ümläut included');
    return { bytes: new Uint8Array(100), place: request.place, durable: 1, end: false };
  };
  const got: Uint8Array[] = [];
  await t.rejects((async () => {
    for await (const bytes of client.exportJournal('g', { cursor: 'tape' })) got.push(bytes);
  })(), { code: 'cursor/moved', message: /tape has moved to LSN 7, ümläut included/ });
  t.equal(Buffer.concat(got).length, 203, 'what came before is there');
  port.answers.exportOpen = () => { throw failure('journal/not-retained', 'it begins at LSN 9 now'); };
  await t.rejects(collect(client.exportJournal('g', { cursor: 'tape' })), { code: 'journal/not-retained', message: /begins at LSN 9/ });
  for (const body of [{ cursor: 'a/b' }, { cursor: 'a', from: 'x:1:2' }, { cursor: 'a', from: -1 }, {} as { cursor: string }]) {
    await t.rejects(collect(client.exportJournal('g', body)), { code: 'usage' }, JSON.stringify(body));
  }
});

/** An input of `count` chunks of `bytes`. */
async function* input(count: number, bytes: number): AsyncGenerator<Uint8Array> {
  for (let i = 0; i < count; i++) yield await Promise.resolve(new Uint8Array(bytes).fill(i));
}

t.test('an import hands over every byte in order, and tells the position at the beginning and at the end', async (t) => {
  const { port, client } = await setup(t);
  const got: Uint8Array[] = [];
  port.answers.importPush = (request: ImportPushRequest) => {
    got.push(Uint8Array.from(request.bytes));
    return importState({ whole: false });
  };
  port.answers.importEnd = () => importState({ position: POSITION.replace(':900000:', ':910000:'), whole: true });
  const states = await collect(client.importJournal('g', input(40, 70_000)));
  t.equal(states[0].position, POSITION);
  t.match(states.at(-1), { position: POSITION.replace(':900000:', ':910000:'), whole: true });
  t.strictSame(Buffer.concat(got), Buffer.concat(await collect(input(40, 70_000))));
  t.ok(got.every((part) => part.length <= 1024 * 1024));
});

t.test('an import tells its position as soon as the data path does, and asks once at a time', async (t) => {
  const { port, client } = await setup(t);
  const at = (lsn: number): ImportState => importState({ position: POSITION.replace(':900000:', `:${lsn}:`), whole: false });
  const asked: { told: string; answer: (state: ImportState) => void }[] = [];
  port.answers.importState = ({ told }) => new Promise((answer) => asked.push({ told, answer }));
  let finish: () => void = () => undefined;
  const endless = async function* (): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(10);
    await new Promise<void>((resolve) => (finish = resolve));
  };
  const states = client.importJournal('g', endless());
  const next = async (): Promise<string> => ((await states.next()).value as ImportState).position;
  t.equal(await next(), POSITION);
  for (let lsn = 910_000; lsn < 913_000; lsn += 1000) {
    await waitFor('it asks again', () => asked.length > 0);
    const { told, answer } = asked.shift()!;
    t.equal(told, lsn === 910_000 ? POSITION : at(lsn - 1000).position, 'what is known already');
    answer(at(lsn));
    t.equal(await next(), at(lsn).position);
  }
  await waitFor('it asks again', () => asked.length > 0);
  finish();
  t.match((await collect(states)).at(-1), { whole: true });
  t.equal(asked.length, 1);
  t.ok(port.gone.at(port.calls.findLastIndex((call) => call.op === 'importState'))?.aborted, 'the last question is taken back');
});

t.test('an import that is refused says why, at once or half-way, however much is on its way', async (t) => {
  const { port, client } = await setup(t);
  let pushes = 0;
  port.answers.importPush = () => {
    if (++pushes === 3) throw failure('import/gap', 'the stream begins at LSN 5');
    return importState({ whole: false });
  };
  const states: ImportState[] = [];
  await t.rejects((async () => {
    for await (const state of client.importJournal('g', input(200, 60_000))) states.push(state);
  })(), { code: 'import/gap', message: /begins at LSN 5/ });
  t.ok(states.length >= 2, 'the position was told at the beginning and at the end');
  t.equal(port.calls.filter((call) => call.op === 'importEnd').length, 1);
  t.equal(pushes, 3, 'nothing is pushed after a refusal');
  port.answers.importOpen = () => { throw failure('role/not-secondary', 'g is primary here'); };
  await t.rejects(collect(client.importJournal('g', input(200, 60_000))), { code: 'role/not-secondary' });
});

t.test('an import that is refused leaves the connection to its client, which still writes to it', async (t) => {
  const { port, socket } = await setup(t);
  for (const when of ['at once', 'half-way'] as const) {
    port.answers[when === 'at once' ? 'importOpen' : 'importPush'] = () => { throw failure('import/gap', 'the stream begins at LSN 5'); };
    if (when === 'half-way') port.answers.importOpen = () => ({ session: 1, state: importState() });
    const raw = createConnection(socket);
    let text = '';
    raw.setEncoding('utf8').on('data', (part: string) => (text += part));
    const ended = new Promise<string>((resolve) => raw.once('close', () => resolve('closed')).on('error', () => undefined));
    const chunk = '5\r\nhello\r\n';
    raw.write(`POST /v1/groups/g/journal/import HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n${chunk}`);
    await waitFor('the refusal', () => text.includes('import/gap'));
    // Nobody would answer this if the connection had been closed.
    raw.write(`${chunk.repeat(1000)}0\r\n\r\nGET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n`);
    t.equal(await Promise.race([ended, waitFor('the next answer', () => text.includes('"api":"v1"')).then(() => 'answered')]), 'answered', when);
    raw.destroy();
  }
});

t.test('an import whose client is gone ends, also while the data path has no room', async (t) => {
  const { port, client } = await setup(t);
  let refuse: (error: Error) => void = () => undefined;
  port.answers.importPush = () => new Promise<never>((_resolve, reject) => (refuse = reject));
  port.answers.importEnd = () => {
    refuse(failure('import/ended', 'over'));
    return importState();
  };
  const abort = new AbortController();
  const running = collect(client.importJournal('g', input(100, 60_000), abort.signal));
  await waitFor('a push waits', () => port.calls.some((call) => call.op === 'importPush'));
  abort.abort();
  await running;
  await waitFor('the session is ended', () => port.calls.some((call) => call.op === 'importEnd'));
  t.equal(port.calls.filter((call) => call.op === 'importPush').length, 1);
});

t.test('the time limit of requests does not hold for the body of an import', async (t) => {
  const { port, client, socket } = await setup(t, 50);
  const slow = async function* (): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(10);
    await waitFor('the first part has arrived', () => port.calls.some((call) => call.op === 'importPush'));
    // Another request is given up meanwhile, so the limit has passed.
    const answer = await new Promise<string>((resolve) => {
      const connection = createConnection(socket);
      let text = '';
      connection.on('data', (part) => (text += part.toString()));
      connection.on('close', () => resolve(text));
      connection.write('POST /v1/groups/g/flush HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"up');
    });
    t.match(answer, /^HTTP\/1.1 408 .*request\/timeout/s);
    yield new Uint8Array(10);
  };
  t.match((await collect(client.importJournal('g', slow()))).at(-1), { whole: true });
  t.equal(port.calls.filter((call) => call.op === 'importPush').length, 2);
});

t.test('streams end when the server closes, and say so', async (t) => {
  const { port, client, server } = await setup(t);
  port.answers.exportPage = async (request) => {
    await new Promise((done) => setImmediate(done));
    return { bytes: new Uint8Array(32), place: request.place, durable: 1, end: false };
  };
  const reader = collect(client.exportJournal('g', { cursor: 'tape', follow: true }));
  let stuck: () => void = () => undefined;
  const endless = async function* (): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(10);
    await new Promise<void>((resolve) => (stuck = resolve));
  };
  const writer = client.importJournal('g', endless());
  const first = await writer.next();
  t.match(first.value, { position: POSITION });
  await waitFor('both are under way', () => ['exportPage', 'importPush'].every((op) => port.calls.some((call) => call.op === op)));
  const told: ImportState[] = [];
  port.answers.importEnd = () => importState({ position: POSITION.replace(':900000:', ':910000:'), whole: true });
  await Promise.all([
    t.rejects(reader, { code: 'daemon/closing', message: /cursor tape keeps what is not acknowledged/ }),
    t.rejects((async () => {
      for await (const state of writer) told.push(state);
    })(), { code: 'daemon/closing', message: /up to the position told last is durable/ }),
    server.close(),
  ]);
  t.equal(told.at(-1)?.position, POSITION.replace(':900000:', ':910000:'), 'what was taken is durable, and told');
  stuck();
});

t.test('an import whose push waits for room ends when the server closes', async (t) => {
  const { port, client, server } = await setup(t);
  let refuse: (error: Error) => void = () => undefined;
  port.answers.importPush = () => new Promise<never>((_resolve, reject) => (refuse = reject));
  port.answers.importEnd = () => {
    refuse(failure('import/ended', 'over'));
    return importState();
  };
  const running = collect(client.importJournal('g', input(100, 60_000)));
  await waitFor('a push waits', () => port.calls.some((call) => call.op === 'importPush'));
  await Promise.all([t.rejects(running, { code: 'daemon/closing' }), server.close()]);
});
