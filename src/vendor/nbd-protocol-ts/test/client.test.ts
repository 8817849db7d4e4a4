/** The client against the test server, and against servers that break the protocol. */
import t from 'tap';
import * as nbd from '../index.js';
import { ByteWriter, viewOf } from '../src/bytes.js';
import { ALL_FLAGS, concat, connectTo, directoryOf, memoryExport, MemoryServer, seededRandom, unhex } from './memory-server.js';

function setup(options: Partial<nbd.ConnectOptions> = {}, changes: Partial<nbd.ExportInfo> = {}, pieceBytes = Infinity) {
  const volume = memoryExport('vol', 1 << 20, changes);
  const exports = [volume, memoryExport('other', 512)];
  const server = new MemoryServer(directoryOf(exports, { away: { refused: nbd.NBD_REP_ERR_POLICY, message: 'it is away' } }), exports);
  const connected = nbd.NbdClient.connect(connectTo(server, pieceBytes), { name: 'vol', contexts: [nbd.NBD_CONTEXT_BASE_ALLOCATION], ...options });
  return { volume, server, connected };
}

void t.test('connect learns size, flags, block sizes, names and contexts', async (t) => {
  const { connected, server } = setup();
  const client = await connected;
  t.same(client.export, {
    name: 'vol', canonicalName: 'vol', description: 'the export vol', sizeBytes: 1 << 20, transmissionFlags: ALL_FLAGS, blockSizesAdvertised: true,
    minimumBlock: 1, preferredBlock: 4096, maximumBlock: nbd.MAX_REQUEST_PAYLOAD, structuredReplies: true,
    contexts: [{ id: 1, name: nbd.NBD_CONTEXT_BASE_ALLOCATION }],
  });
  await client.disconnect();
  t.equal(server.closed, 'the client disconnected');
  t.notOk(client.usable);
  await t.rejects(client.flush(), nbd.NbdConnectionError);
});

for (const structuredReplies of [true, false]) {
  for (const pieceBytes of [Infinity, 1, 1000]) {
    void t.test(`reads what was written, ${structuredReplies ? 'structured' : 'simple'} replies in pieces of ${pieceBytes}`, async (t) => {
      const random = seededRandom(5);
      const { connected, volume } = setup({ structuredReplies }, {}, pieceBytes);
      const client = await connected;
      t.equal(client.export.structuredReplies, structuredReplies);
      const data = Uint8Array.from({ length: 10_000 }, () => 1 + Math.floor(random() * 255));
      await Promise.all([client.write(70_000, data), client.write(4096, data.subarray(0, 1), { fua: true }), client.flush()]);
      t.ok(Buffer.from(await client.read(60_000, 30_000)).equals(Buffer.from(volume.bytes.subarray(60_000, 90_000))));
      t.ok(Buffer.from(await client.read(0, 1 << 18)).equals(Buffer.from(volume.bytes.subarray(0, 1 << 18))), 'holes and data in any order');
      if (structuredReplies) t.same(await client.read(4096, 2, { dontFragment: true }), Uint8Array.of(data[0], 0));
      await client.writeZeroes(70_000, 5000, { noHole: true, fua: true });
      await client.trim(75_000, 5000);
      await client.cache(0, 4096);
      t.ok(volume.bytes.subarray(70_000, 80_000).every((byte) => byte === 0));
      await client.disconnect();
    });
  }
}

void t.test('blockStatus names the contexts, one extent when asked', async (t) => {
  const { connected } = setup({ contexts: [nbd.NBD_CONTEXT_BASE_ALLOCATION, 'x-test:identity/7', 'base:nothing'] });
  const client = await connected;
  await client.write(8192, new Uint8Array(4096).fill(1));
  const hole = nbd.NBD_STATE_HOLE | nbd.NBD_STATE_ZERO;
  t.same(await client.blockStatus(0, 16384), [
    { context: nbd.NBD_CONTEXT_BASE_ALLOCATION, extents: [{ length: 8192, status: hole }, { length: 4096, status: 0 }, { length: 4096, status: hole }] },
    { context: 'x-test:identity/7', extents: [{ length: 16384, status: 7 }] },
  ]);
  t.equal((await client.blockStatus(0, 16384, { requestOne: true }))[0].extents.length, 1);
  await client.disconnect();
});

void t.test('requests that the export does not allow are not sent; unchecked, the server refuses them alike', async (t) => {
  for (const [checked, detail] of [[true, /not sent/], [false, /refused by the test server/]] as const) {
    const { connected, server } = setup({ checked }, { transmissionFlags: ALL_FLAGS | nbd.NBD_FLAG_READ_ONLY, minimumBlock: 512 });
    const client = await connected;
    await t.rejects(client.write(0, new Uint8Array(512)), { name: 'NbdRequestError', code: 'EPERM', errno: nbd.NBD_EPERM, detail });
    await t.rejects(client.read(1 << 20, 512), { code: 'EINVAL', detail });
    await t.rejects(client.read(100, 512), { code: 'EINVAL', detail });
    await t.rejects(client.request(77, 0, 0, 0), { code: 'EINVAL', detail, message: /^command 77: EINVAL/ });
    t.equal(server.log.length, checked ? 0 : 4);
    await t.resolves(client.read(0, 512), 'the connection goes on');
    await client.disconnect();
  }
});

void t.test('without structured replies errors come as simple replies', async (t) => {
  const { connected } = setup({ checked: false, structuredReplies: false });
  const client = await connected;
  await t.rejects(client.write(1 << 20, new Uint8Array(1)), { code: 'ENOSPC', message: 'WRITE: ENOSPC' });
  await t.rejects(client.read(1 << 20, 1), { code: 'EINVAL' });
  await t.rejects(client.blockStatus(0, 512), { code: 'EINVAL' });
  t.same(await client.read(0, 1), Uint8Array.of(0));
  await client.disconnect();
});

void t.test('long transfers go in several requests', async (t) => {
  const { connected, volume, server } = setup({}, { maximumBlock: 8192 });
  const client = await connected;
  const data = Uint8Array.from({ length: 20_000 }, (_, i) => i % 251);
  await client.write(100, data);
  t.ok(Buffer.from(volume.bytes.subarray(100, 20_100)).equals(Buffer.from(data)));
  t.ok(Buffer.from(await client.read(100, 20_000)).equals(Buffer.from(data)));
  await client.writeZeroes(0, 20_000);
  await client.trim(0, 20_000);
  t.same(server.log.map((line) => line.split(' ')[3]), [8192, 8192, 3616, 8192, 8192, 3616, 8192, 8192, 3616, 20_000].map(String));
  await client.disconnect();
});

void t.test('no more requests are under way than allowed, and no more wait than allowed', async (t) => {
  const { connected } = setup({ maxInFlight: 3, maxWaiting: 5 });
  const client = await connected;
  const results = Promise.allSettled(Array.from({ length: 12 }, () => client.read(0, 512)));
  // The test server answers in a microtask, so at this point nothing has come back.
  t.equal(client.inFlight, 3);
  t.same((await results).map((result) => result.status), [...Array<string>(8).fill('fulfilled'), ...Array<string>(4).fill('rejected')]);
  await client.disconnect();
});

void t.test('disconnect waits for what is under way', async (t) => {
  const { connected, volume } = setup();
  const client = await connected;
  const writing = client.write(0, Uint8Array.of(9));
  await Promise.all([client.disconnect(), writing]);
  t.equal(volume.bytes[0], 9);
  await client.disconnect();
});

void t.test('the other goals of a handshake: list, describe, contexts, refusals', async (t) => {
  const ask = (goal: nbd.ClientGoal): Promise<nbd.ClientOutcome> => {
    const exports = [memoryExport('vol', 4096), memoryExport('b', 512, { description: '' })];
    return nbd.negotiate(connectTo(new MemoryServer(directoryOf(exports, { away: { refused: nbd.NBD_REP_ERR_POLICY, message: 'it is away' } }), exports)), goal);
  };
  t.same(await ask({ kind: 'list' }), { kind: 'listed', exports: [{ name: 'vol', description: 'the export vol' }, { name: 'b', description: '' }] });
  t.match(await ask({ kind: 'info', name: 'vol', contexts: ['base:allocation'] }), { kind: 'described', export: { sizeBytes: 4096, contexts: [{ id: 1 }] } });
  t.same(await ask({ kind: 'listContexts', name: 'vol' }), { kind: 'contexts', names: ['base:allocation', 'x-test:identity/7'] });
  t.same(await ask({ kind: 'listContexts', name: 'vol', queries: ['x-test:'] }), { kind: 'contexts', names: ['x-test:identity/7'] });
  t.match(await ask({ kind: 'go', name: 'nothing' }), { kind: 'failed', code: 'refused', replyType: nbd.NBD_REP_ERR_UNKNOWN });
  t.match(await ask({ kind: 'info', name: 'away' }), { kind: 'failed', code: 'refused', reason: 'the server refuses (forbidden by policy): it is away' });
  await t.rejects(setup({ name: 'away' }).connected, { name: 'NbdConnectionError', message: /it is away/ });
  t.throws(() => new nbd.ClientHandshake({ kind: 'go', name: 'x'.repeat(4097) }), RangeError);
  t.throws(() => new nbd.ClientHandshake({ kind: 'go', name: 'v', contexts: Array<string>(100).fill('x'.repeat(4000)) }), RangeError);
});

/** A stream whose other end says what it is told to, whatever it is asked. */
function scripted(...answers: Uint8Array[]): nbd.ByteStream & { readonly sent: Uint8Array[]; readonly calls: string[] } {
  let deliver: (bytes: Uint8Array) => void = () => {};
  let end: () => void = () => {};
  const sent: Uint8Array[] = [];
  const calls: string[] = [];
  const answer = (): void => {
    const next = answers.shift();
    queueMicrotask(() => (next === undefined ? end() : deliver(next)));
  };
  return {
    sent, calls,
    write: (bytes) => {
      sent.push(bytes.slice());
      answer();
    },
    onData: (listener) => {
      deliver = listener;
      answer();
    },
    onEnd: (listener) => (end = listener),
    close: () => calls.push('close'),
    destroy: () => calls.push('destroy'),
  };
}

const greeting = unhex('4e42444d41474943 49484156454f5054 0003');
const reply = (option: number, type: number, data = ''): Uint8Array =>
  new ByteWriter().u32(nbd.NBD_REP_MAGIC_HI).u32(nbd.NBD_REP_MAGIC_LO).u32(option).u32(type).u32(unhex(data).length).raw(unhex(data)).take();
const UNSUP = nbd.NBD_REP_ERR_UNSUP;
const ack = (option: number): Uint8Array => reply(option, nbd.NBD_REP_ACK);
const infoExport = reply(7, nbd.NBD_REP_INFO, '0000 0000000000100000 0565');

void t.test('an old server: no structured replies, no GO, then EXPORT_NAME', async (t) => {
  for (const [flags, bytes] of [['0003', 10], ['0001', 134]] as const) {
    const stream = scripted(concat([greeting.subarray(0, 16), unhex(flags)]), reply(8, UNSUP), reply(7, UNSUP, '6e6f'), concat([unhex('0000000000001000 0003'), new Uint8Array(bytes - 10)]));
    const outcome = await nbd.negotiate(stream, { kind: 'go', name: 'v', contexts: ['base:allocation'] });
    t.match(outcome, { kind: 'transmission', export: { sizeBytes: 4096, transmissionFlags: 3, structuredReplies: false, blockSizesAdvertised: false, minimumBlock: 512, contexts: [] } });
  }
});

void t.test('a server without fixed newstyle gets EXPORT_NAME at once, and cannot be asked', async (t) => {
  const plain = concat([greeting.subarray(0, 16), unhex('0002')]);
  const stream = scripted(plain, unhex('0000000000001000 0001'));
  t.match(await nbd.negotiate(stream, { kind: 'go', name: 'v' }), { kind: 'transmission' });
  t.same(stream.sent, [unhex('00000002 49484156454f5054 00000001 00000001 76')]);
  t.match(await nbd.negotiate(scripted(plain), { kind: 'list' }), { kind: 'failed', code: 'notSupported' });
});

void t.test('a failed selection of contexts is not fatal', async (t) => {
  const stream = scripted(greeting, ack(8), concat([reply(10, nbd.NBD_REP_META_CONTEXT, '00000001 62'), reply(10, nbd.NBD_REP_ERR_INVALID)]), concat([infoExport, ack(7)]));
  t.match(await nbd.negotiate(stream, { kind: 'go', name: 'v', contexts: ['base:allocation'] }), { kind: 'transmission', export: { contexts: [] } });
});

void t.test('a server that is being shut down is left at once', async (t) => {
  t.match(await nbd.negotiate(scripted(greeting, reply(8, nbd.NBD_REP_ERR_SHUTDOWN)), { kind: 'go', name: 'v' }), { kind: 'failed', code: 'refused' });
});

void t.test('a server that breaks the handshake is refused with a reason', async (t) => {
  const go = (...answers: Uint8Array[]): Promise<nbd.ClientOutcome> => nbd.negotiate(scripted(greeting, ack(8), ...answers), { kind: 'go', name: 'v' });
  for (const [name, outcome] of [
    ['not NBD', nbd.negotiate(scripted(new TextEncoder().encode('SSH-2.0-OpenSSH_9.6p1 ...')), { kind: 'list' })],
    ['oldstyle', nbd.negotiate(scripted(unhex('4e42444d41474943 0000420281861253 0000')), { kind: 'list' })],
    ['unknown greeting', nbd.negotiate(scripted(unhex('4e42444d41474943 0000420281861254 0000')), { kind: 'list' })],
    ['wrong reply magic', go(unhex('0003e889045565aa 00000007 00000001 00000000'))],
    ['another option', go(ack(6))],
    ['an acknowledgement with data', go(reply(7, nbd.NBD_REP_ACK, '00'))],
    ['no export information', go(ack(7))],
    ['a reply of another kind', go(reply(7, nbd.NBD_REP_SERVER, '00000000'))],
    ['a short export information', go(reply(7, nbd.NBD_REP_INFO, '0000 00'))],
    ['an empty information', go(reply(7, nbd.NBD_REP_INFO))],
    ['block sizes that cannot be', go(reply(7, nbd.NBD_REP_INFO, '0003 00000003 00001000 02000000'))],
    ['a huge reply', go(unhex('0003e889045565a9 00000007 00000003 7fffffff'))],
    ['a size above 2^53', go(concat([reply(7, nbd.NBD_REP_INFO, '0000 0020000000000000 0565'), ack(7)]))],
    ['endless replies', nbd.negotiate(scripted(greeting, concat(Array<Uint8Array>(300).fill(reply(3, nbd.NBD_REP_SERVER, '00'.repeat(60_000))))), { kind: 'list' })],
    ['a malformed list entry', nbd.negotiate(scripted(greeting, reply(3, nbd.NBD_REP_SERVER, '00000005 61')), { kind: 'list' })],
    ['a malformed context', nbd.negotiate(scripted(greeting, ack(8), reply(9, nbd.NBD_REP_META_CONTEXT, '0000')), { kind: 'listContexts', name: 'v' })],
  ] as const) {
    t.match(await outcome, { kind: 'failed', reason: /^(the|an?|this) / }, name);
  }
  await t.rejects(nbd.negotiate(scripted(greeting), { kind: 'list' }), { name: 'NbdConnectionError', message: /closed the connection during the handshake/ });
  await t.rejects(go(concat([infoExport, ack(7), Uint8Array.of(0)])), { message: /before it was asked/ });
});

const COOKIE = '00000000 00000001';

async function answered(structured: boolean, send: (client: nbd.NbdClient) => Promise<unknown>, ...answers: string[]): Promise<{ result: unknown; calls: string[] }> {
  const stream = scripted(greeting, ...(structured ? [ack(8), concat([reply(10, nbd.NBD_REP_META_CONTEXT, '00000001 613a62'), ack(10)])] : []), concat([infoExport, ack(7)]), ...answers.map(unhex));
  const client = await nbd.NbdClient.connect(stream, { name: 'v', structuredReplies: structured, contexts: ['a:b'], checked: false });
  const result = await send(client).then((value) => value, (error: unknown) => error);
  return { result, calls: stream.calls };
}

void t.test('a server that breaks the transmission phase is disconnected, and what waits is rejected', async (t) => {
  const read = (client: nbd.NbdClient): Promise<unknown> => client.read(512, 16);
  const status = (client: nbd.NbdClient): Promise<unknown> => client.blockStatus(0, 512);
  const flush = (client: nbd.NbdClient): Promise<unknown> => client.flush();
  const chunk = (flags: string, type: string, payload: string): string =>
    `668e33ef ${flags} ${type} ${COOKIE} ${(unhex(payload).length).toString(16).padStart(8, '0')} ${payload}`;
  const bytes16 = '00'.repeat(16);
  for (const [structured, send, answer, reason] of [
    [true, flush, `67446699 00000000 ${COOKIE}`, /wrong magic/],
    [true, flush, '67446698 00000000 00000000 00000002', /was not sent/],
    [true, flush, '67446698 00000000 00000001 00000001', /was not sent/],
    [false, flush, chunk('0001', '0000', ''), /not negotiated/],
    [true, read, `67446698 00000000 ${COOKIE} ${bytes16}`, /simple reply although/],
    [true, status, `67446698 00000000 ${COOKIE}`, /BLOCK_STATUS with a simple reply/],
    [true, flush, chunk('0000', '0000', ''), /NONE/],
    [true, flush, chunk('0001', '0000', '00'), /NONE/],
    [true, flush, chunk('0001', '0003', ''), /unknown type 3/],
    [true, read, chunk('0001', '0001', '0000000000000200'), /no data/],
    [true, read, chunk('0001', '0001', `0000000000000201 ${bytes16}`), /outside/],
    [true, read, chunk('0001', '0001', `00000000000001ff ${bytes16}`), /outside/],
    [true, read, chunk('0001', '0001', `ffffffffffffffff ${bytes16}`), /outside/],
    [true, read, chunk('0001', '0002', '0000000000000200 00000011'), /outside/],
    [true, read, chunk('0001', '0002', '0000000000000200 00000000'), /no length/],
    [true, read, chunk('0001', '0002', '0000000000000200'), /wrong length/],
    [true, read, chunk('0001', '0001', '0000000000000200 00'), /did not send all/],
    [true, read, chunk('0001', '0000', ''), /did not send all/],
    [true, read, chunk('0000', '0002', '0000000000000204 00000004') + chunk('0001', '0002', '0000000000000200 00000005'), /twice/],
    [true, flush, chunk('0001', '0002', '0000000000000000 00000001'), /other than READ/],
    [true, status, chunk('0001', '0000', ''), /no block status/],
    [true, status, chunk('0001', '0005', '00000001'), /wrong length/],
    [true, status, chunk('0001', '0005', '00000001 00000000 00000000'), /length 0/],
    [true, status, chunk('0000', '0005', '00000001 00000200 00000000').repeat(2), /two block status/],
    [true, flush, chunk('0001', '0005', '00000001 00000200 00000000'), /another command/],
    [true, flush, chunk('0001', '8001', '00000005'), /too short/],
    [true, flush, chunk('0001', '8001', '00000005 0001'), /longer than the chunk/],
    [true, flush, `668e33ef 0001 8001 ${COOKIE} 7fffffff`, /announces/],
    [true, flush, `668e33ef 0001 0005 ${COOKIE} 7ffffffc`, /announces/],
  ] as const) {
    const { result, calls } = await answered(structured, send, answer);
    t.match(result, { name: 'NbdConnectionError', message: reason }, String(reason));
    t.same(calls, ['destroy']);
  }
  t.match((await answered(true, read)).result, { name: 'NbdConnectionError', message: 'the server closed the connection' });
});

void t.test('errors in chunks end their request only', async (t) => {
  const read = (client: nbd.NbdClient): Promise<unknown> => client.read(512, 16);
  for (const [answer, want] of [
    [`668e33ef 0001 8001 ${COOKIE} 00000008 00000005 0002 6e6f`, { errno: nbd.NBD_EIO, detail: 'no' }],
    [`668e33ef 0000 8002 ${COOKIE} 0000000e 0000001c 0000 0000000000000200 668e33ef 0001 0000 ${COOKIE} 00000000`, { errno: nbd.NBD_ENOSPC, detail: '' }],
    [`668e33ef 0001 ffff ${COOKIE} 00000006 00000001 0000`, { errno: nbd.NBD_EPERM }],
    [`668e33ef 0001 8001 ${COOKIE} 00000006 00000000 0000`, { errno: nbd.NBD_EINVAL }],
    [`668e33ef 0001 8001 ${COOKIE} 00000006 000000ff 0000`, { errno: 255, code: 'error 255' }],
  ] as const) {
    const { result, calls } = await answered(true, read, answer);
    t.match(result, { name: 'NbdRequestError', command: nbd.NBD_CMD_READ, ...want });
    t.same(calls, []);
  }
});

void t.test('after ESHUTDOWN the client says goodbye by itself', async (t) => {
  const stream = scripted(greeting, concat([infoExport, ack(7)]), unhex(`67446698 0000006c ${COOKIE}`));
  const client = await nbd.NbdClient.connect(stream, { name: 'v', structuredReplies: false });
  await t.rejects(client.flush(), { code: 'ESHUTDOWN' });
  t.equal(nbd.requestType(viewOf(stream.sent.at(-1)!), 0), nbd.NBD_CMD_DISC);
  t.same(stream.calls, ['close']);
  await t.rejects(client.flush(), nbd.NbdConnectionError);
});

void t.test('coverage finds any overlap', (t) => {
  const random = seededRandom(11);
  for (let run = 0; run < 200; run++) {
    const coverage = new nbd.Coverage();
    const model = new Uint8Array(64);
    for (let i = 0; i < 30; i++) {
      const from = Math.floor(random() * 60);
      const to = from + 1 + Math.floor(random() * 4);
      const free = model.subarray(from, to).every((byte) => byte === 0);
      if (coverage.add(from, to) !== free) t.fail(`run ${run}: [${from}, ${to}) of ${model.join('')}`);
      if (free) model.fill(1, from, to);
      if (coverage.bytes !== model.reduce((sum, byte) => sum + byte, 0)) t.fail(`run ${run}: wrong total`);
    }
  }
  t.pass('200 runs');
  t.end();
});
