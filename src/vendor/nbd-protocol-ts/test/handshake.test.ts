/** The server's handshake, option by option and state by state, on the bytes of the specification. */
import t from 'tap';
import type { Test } from 'tap';
import * as nbd from '../index.js';
import { ByteWriter, viewOf } from '../src/bytes.js';
import { ALL_FLAGS, concat, directoryOf, hex, memoryExport, unhex } from './memory-server.js';

const FIXED = nbd.NBD_FLAG_C_FIXED_NEWSTYLE;
const NO_ZEROES = nbd.NBD_FLAG_C_NO_ZEROES;
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

const volume: nbd.ExportInfo = { ...memoryExport('vol', 512), sizeBytes: 0x1_0000_0200 };
const coarse = memoryExport('coarse', 1 << 20, { minimumBlock: 4096 });
const directory = directoryOf([volume, coarse, memoryExport('', 512)], { away: { refused: nbd.NBD_REP_ERR_POLICY, message: 'the export is on the other node' } });

interface Reply { readonly option: number; readonly type: number; readonly data: Uint8Array }

/** The replies in a server's output, which holds nothing else. */
function replies(output: Uint8Array): Reply[] {
  const found: Reply[] = [];
  for (let at = 0; at < output.length;) {
    const view = viewOf(output.subarray(at));
    if (view.getUint32(0) !== nbd.NBD_REP_MAGIC_HI || view.getUint32(4) !== nbd.NBD_REP_MAGIC_LO) throw new Error(`not a reply: ${hex(output)}`);
    const length = view.getUint32(16);
    found.push({ option: view.getUint32(8), type: view.getUint32(12), data: output.subarray(at + 20, at + 20 + length) });
    at += 20 + length;
  }
  return found;
}

function option(number: number, data: Uint8Array = new Uint8Array(0), announced = data.length): Uint8Array {
  return new ByteWriter().u32(nbd.NBD_OPTS_MAGIC_HI).u32(nbd.NBD_OPTS_MAGIC_LO).u32(number).u32(announced).raw(data).take();
}

function started(flags = FIXED | NO_ZEROES, exports = directory): nbd.ServerHandshake {
  const server = new nbd.ServerHandshake(exports);
  server.takeOutput();
  server.push(new ByteWriter().u32(flags).take());
  return server;
}

function ask(server: nbd.ServerHandshake, ...options: Uint8Array[]): Reply[] {
  const bytes = concat(options);
  server.push(bytes);
  return replies(server.takeOutput());
}

const go = (name: string, infos: number[] = [nbd.NBD_INFO_BLOCK_SIZE]): Uint8Array => option(nbd.NBD_OPT_GO, nbd.encodeInfoRequest(name, infos));
const info = (name: string, infos: number[] = []): Uint8Array => option(nbd.NBD_OPT_INFO, nbd.encodeInfoRequest(name, infos));
const structured = option(nbd.NBD_OPT_STRUCTURED_REPLY);
const setContexts = (name: string, ...queries: string[]): Uint8Array => option(nbd.NBD_OPT_SET_META_CONTEXT, nbd.encodeContextRequest(name, queries));
const listContexts = (name: string, ...queries: string[]): Uint8Array => option(nbd.NBD_OPT_LIST_META_CONTEXT, nbd.encodeContextRequest(name, queries));
const types = (list: Reply[]): number[] => list.map((reply) => reply.type);
const texts = (list: Reply[]): string[] => list.slice(0, -1).map((reply) => new TextDecoder().decode(reply.data.subarray(4)));

function transmission(t: Test, server: nbd.ServerHandshake): nbd.ServerTransmission {
  const outcome = server.outcome;
  if (outcome.kind !== 'transmission') throw new Error(`not in transmission: ${JSON.stringify(outcome)}`);
  t.pass('in transmission');
  return outcome;
}

function closedWith(t: Test, server: nbd.ServerHandshake, code: nbd.ServerCloseCode): void {
  t.match(server.outcome, { kind: 'closed', code, reason: /^\S.+/ });
}

void t.test('the greeting and an answer to GO, byte by byte', (t) => {
  const server = new nbd.ServerHandshake(directory);
  t.equal(hex(server.takeOutput()), '4e42444d41474943' + '49484156454f5054' + '0003');
  server.push(unhex('00000003 49484156454f5054 00000007 0000000b 00000003 766f6c 0001 0003'));
  t.equal(hex(server.takeOutput()), [
    '0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000',
    '0003e889045565a9 00000007 00000003 0000000c 0000 0000000100000200 0d6d',
    '0003e889045565a9 00000007 00000001 00000000',
  ].join('').replaceAll(' ', ''));
  t.match(transmission(t, server), { requestedName: 'vol', structuredReplies: false, contexts: [], blockSizeAgreed: true, fixedNewstyle: true });
  t.end();
});

void t.test('EXPORT_NAME answers with size and flags, and zeroes unless both sides leave them out', (t) => {
  for (const [flags, zeroes] of [[FIXED, 124], [FIXED | NO_ZEROES, 0], [0, 124], [NO_ZEROES, 0]] as const) {
    const server = started(flags);
    server.push(option(nbd.NBD_OPT_EXPORT_NAME, utf8('vol')));
    t.equal(hex(server.takeOutput()), '0000000100000200' + '0d6d' + '00'.repeat(zeroes), `client flags ${flags}`);
    t.match(transmission(t, server), { blockSizeAgreed: false, noZeroes: zeroes === 0, fixedNewstyle: (flags & FIXED) !== 0 });
  }
  t.end();
});

void t.test('EXPORT_NAME closes when it cannot be satisfied, for it has no error reply', (t) => {
  for (const [data, code] of [
    [utf8('nothing'), 'exportRefused'], [utf8('away'), 'exportRefused'], [utf8('coarse'), 'blockSize'], [unhex('ff'), 'exportName'],
    [utf8('a\0b'), 'exportName'], [new Uint8Array(4097).fill(0x61), 'exportName'],
  ] as const) {
    const server = started();
    server.push(option(nbd.NBD_OPT_EXPORT_NAME, data));
    closedWith(t, server, code);
    t.equal(server.takeOutput().length, 0);
  }
  t.end();
});

void t.test('the empty name is the default export', (t) => {
  const server = started();
  t.same(types(ask(server, go(''))), [nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_ACK]);
  t.equal(transmission(t, server).export.sizeBytes, 512);
  t.end();
});

void t.test('client flags that were not offered close the connection', (t) => {
  for (const flags of [4, 0x80000000, 0xffffffff]) closedWith(t, started(flags), 'clientFlags');
  t.end();
});

void t.test('a client without fixed newstyle gets EXPORT_NAME and nothing else', (t) => {
  for (const number of [3, 5, 6, 7, 8, 9, 10, 11, 77]) {
    const server = started(0);
    server.push(option(number));
    closedWith(t, server, 'plainNewstyle');
  }
  t.end();
});

void t.test('ABORT is acknowledged, also with data, and closes', (t) => {
  for (const data of [new Uint8Array(0), new Uint8Array(10), new Uint8Array(nbd.MAX_OPTION_BYTES + 1)]) {
    const server = started();
    t.same(types(ask(server, option(nbd.NBD_OPT_ABORT, data))), [nbd.NBD_REP_ACK]);
    closedWith(t, server, 'abort');
  }
  t.end();
});

void t.test('LIST names the exports with their descriptions', (t) => {
  const list = ask(started(), option(nbd.NBD_OPT_LIST));
  t.same(types(list), [nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_ACK]);
  t.equal(hex(list[0].data), '00000003' + hex(utf8('vol' + 'the export vol')));
  t.end();
});

void t.test('a description longer than a string may be is cut between characters', (t) => {
  const long = directoryOf([memoryExport('a', 512, { description: `a${'é'.repeat(3000)}` })]);
  const [entry] = ask(started(FIXED, long), option(nbd.NBD_OPT_LIST));
  t.equal(new TextDecoder('utf-8', { fatal: true }).decode(entry.data.subarray(5)), `a${'é'.repeat(2047)}`);
  t.end();
});

void t.test('options without data refuse data as invalid', (t) => {
  for (const number of [nbd.NBD_OPT_LIST, nbd.NBD_OPT_STRUCTURED_REPLY]) {
    const server = started();
    t.same(types(ask(server, option(number, utf8('x')))), [nbd.NBD_REP_ERR_INVALID]);
    t.equal(server.outcome.kind, 'more', 'the negotiation goes on');
  }
  t.end();
});

void t.test('INFO answers what was asked for and stays in negotiation', (t) => {
  const server = started();
  const list = ask(server, info('vol', [nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, nbd.NBD_INFO_BLOCK_SIZE, 99]));
  t.same(list.map((reply) => (reply.data.length === 0 ? 'ack' : viewOf(reply.data).getUint16(0))),
    [nbd.NBD_INFO_BLOCK_SIZE, nbd.NBD_INFO_EXPORT, nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, 'ack']);
  t.equal(new TextDecoder().decode(list[2].data.subarray(2)), 'vol');
  t.equal(server.outcome.kind, 'more');
  t.same(types(ask(server, info('vol'))), [nbd.NBD_REP_INFO, nbd.NBD_REP_ACK], 'only the export when nothing is asked for');
  t.end();
});

void t.test('an unknown or refused export gets the error and its text', (t) => {
  for (const make of [info, go, listContexts] as ((name: string) => Uint8Array)[]) {
    t.same(types(ask(started(), make('nothing'))), [nbd.NBD_REP_ERR_UNKNOWN]);
    const [reply] = ask(started(), make('away'));
    t.equal(reply.type, nbd.NBD_REP_ERR_POLICY);
    t.equal(new TextDecoder().decode(reply.data), 'the export is on the other node');
  }
  t.end();
});

void t.test('an export with large minimum blocks wants a client that asks for block sizes', (t) => {
  for (const make of [info, go]) {
    const server = started();
    const list = ask(server, make('coarse', []));
    t.same(types(list), [nbd.NBD_REP_INFO, nbd.NBD_REP_ERR_BLOCK_SIZE_REQD]);
    t.equal(viewOf(list[0].data).getUint16(0), nbd.NBD_INFO_BLOCK_SIZE, 'and is told them');
    t.equal(server.outcome.kind, 'more');
    t.equal(types(ask(server, make('coarse', [nbd.NBD_INFO_BLOCK_SIZE]))).at(-1), nbd.NBD_REP_ACK);
  }
  t.end();
});

void t.test('DF is advertised only with structured replies, FAST_ZERO only with WRITE_ZEROES', (t) => {
  const flagsOf = (list: Reply[]): number => viewOf(list.at(-2)!.data).getUint16(10);
  t.equal(flagsOf(ask(started(), info('vol'))), ALL_FLAGS & ~nbd.NBD_FLAG_SEND_DF);
  t.equal(flagsOf(ask(started(), structured, info('vol'))), ALL_FLAGS);
  const plain = directoryOf([memoryExport('a', 512, { transmissionFlags: nbd.NBD_FLAG_SEND_FAST_ZERO })]);
  t.equal(flagsOf(ask(started(FIXED, plain), info('a'))), nbd.NBD_FLAG_HAS_FLAGS);
  t.end();
});

void t.test('malformed INFO and GO data is refused, and the next option is read', (t) => {
  for (const [data, error, name] of [
    ['', nbd.NBD_REP_ERR_INVALID, 'empty'],
    ['000000', nbd.NBD_REP_ERR_INVALID, 'half a name length'],
    ['00000003 766f', nbd.NBD_REP_ERR_INVALID, 'name longer than the data'],
    ['00000003 766f6c', nbd.NBD_REP_ERR_INVALID, 'no count'],
    ['00000003 766f6c 0001', nbd.NBD_REP_ERR_INVALID, 'fewer types than counted'],
    ['00000003 766f6c 0001 0003 00', nbd.NBD_REP_ERR_INVALID, 'a byte too much'],
    ['00000003 766f6c ffff 0003', nbd.NBD_REP_ERR_INVALID, 'far fewer types than counted'],
    ['ffffffff 766f6c 0000', nbd.NBD_REP_ERR_TOO_BIG, 'name length 2^32 - 1'],
    ['00001001 0000', nbd.NBD_REP_ERR_TOO_BIG, 'name length 4097'],
    ['00000001 ff 0000', nbd.NBD_REP_ERR_INVALID, 'name is not UTF-8'],
    ['00000001 00 0000', nbd.NBD_REP_ERR_INVALID, 'name is NUL'],
  ] as const) {
    for (const number of [nbd.NBD_OPT_INFO, nbd.NBD_OPT_GO]) {
      const server = started();
      const list = ask(server, option(number, unhex(data)), option(nbd.NBD_OPT_LIST));
      t.same(types(list), [error, nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_ACK], name);
      t.ok(list[0].data.length > 0, 'with a text');
    }
  }
  t.end();
});

void t.test('contexts are listed by no query, by name and by namespace', (t) => {
  const both = ['base:allocation', 'x-test:identity/7'];
  for (const [queries, want] of [
    [[], both], [['base:'], ['base:allocation']], [['base:allocation'], ['base:allocation']], [['x-test:', 'base:'], both],
    [['base:nothing'], []], [['other:thing'], []], [['x-test:identity/7', 'x-test:identity/7'], ['x-test:identity/7']], [['base:alloc'], []],
  ] as const) {
    const list = ask(started(), structured, listContexts('vol', ...queries)).slice(1);
    t.same(texts(list), want, JSON.stringify(queries));
    t.equal(list.at(-1)!.type, nbd.NBD_REP_ACK);
    for (const reply of list.slice(0, -1)) t.equal(viewOf(reply.data).getUint32(0), 0, 'the id is reserved');
  }
  t.same(texts(ask(started(), listContexts('vol'))), both, 'also without structured replies');
  t.end();
});

void t.test('SET_META_CONTEXT selects by full names and survives into transmission', (t) => {
  const server = started();
  const list = ask(server, structured, setContexts('vol', 'x-test:identity/7', 'base:', 'base:nothing', 'other:x')).slice(1);
  t.same(texts(list), ['x-test:identity/7'], 'a bare namespace selects nothing');
  t.equal(viewOf(list[0].data).getUint32(0), 2);
  ask(server, go('vol'));
  t.same(transmission(t, server).contexts, [{ id: 2, name: 'x-test:identity/7' }]);
  t.end();
});

void t.test('contexts are dropped by another name, another selection, and a failed selection', (t) => {
  const base = 'base:allocation';
  const [reply] = ask(started(), setContexts('vol', base));
  t.equal(reply.type, nbd.NBD_REP_ERR_INVALID, 'not before structured replies');
  for (const [name, options, contexts] of [
    ['kept', [setContexts('vol', base)], 1],
    ['kept by options that do not select', [setContexts('vol', base), listContexts('vol'), info('coarse', [3]), option(3), option(55)], 1],
    ['for another export', [setContexts('', base)], 0],
    ['replaced by none', [setContexts('vol', base), setContexts('vol')], 0],
    ['replaced for another export', [setContexts('vol', base), setContexts('', base)], 0],
    ['unknown export', [setContexts('vol', base), setContexts('nothing', base)], 0],
    ['malformed', [setContexts('vol', base), option(nbd.NBD_OPT_SET_META_CONTEXT, utf8('x'))], 0],
    ['too long', [setContexts('vol', base), option(nbd.NBD_OPT_SET_META_CONTEXT, new Uint8Array(nbd.MAX_OPTION_BYTES + 1))], 0],
  ] as const) {
    const server = started();
    ask(server, structured, ...options, go('vol'));
    t.equal(transmission(t, server).contexts.length, contexts, name);
  }
  const server = started();
  ask(server, structured, setContexts('vol', base));
  server.push(option(nbd.NBD_OPT_EXPORT_NAME, utf8('vol')));
  t.equal(transmission(t, server).contexts.length, 1, 'EXPORT_NAME keeps them too');
  t.end();
});

void t.test('a context that the export no longer offers is not selected', (t) => {
  let contexts = ['base:allocation', 'x-test:identity/7'];
  const changing: nbd.ExportDirectory = { list: () => [], find: () => memoryExport('vol', 512, { metaContexts: contexts }) };
  const server = started(FIXED, changing);
  ask(server, structured, setContexts('vol', ...contexts));
  contexts = ['base:allocation', 'x-test:identity/8'];
  ask(server, go('vol'));
  t.same(transmission(t, server).contexts, [{ id: 1, name: 'base:allocation' }]);
  t.end();
});

void t.test('malformed context data is refused', (t) => {
  for (const [data, error, name] of [
    ['00000003 766f6c', nbd.NBD_REP_ERR_INVALID, 'no count'],
    ['00000003 766f6c 00000001', nbd.NBD_REP_ERR_INVALID, 'no query'],
    ['00000003 766f6c ffffffff 00000002 613a', nbd.NBD_REP_ERR_INVALID, 'fewer queries than counted'],
    ['00000003 766f6c 00000001 00000003 613a', nbd.NBD_REP_ERR_INVALID, 'query longer than the data'],
    ['00000003 766f6c 00000001 00000002 613a 00', nbd.NBD_REP_ERR_INVALID, 'a byte too much'],
    ['00000003 766f6c 00000001 00000001 61', nbd.NBD_REP_ERR_INVALID, 'no colon'],
    ['00000003 766f6c 00000001 00000000', nbd.NBD_REP_ERR_INVALID, 'empty query'],
    ['00000003 766f6c 00000001 00000002 3a61', nbd.NBD_REP_ERR_INVALID, 'empty namespace'],
    ['00000003 766f6c 00000001 7fffffff', nbd.NBD_REP_ERR_TOO_BIG, 'query length 2^31 - 1'],
  ] as const) {
    for (const number of [nbd.NBD_OPT_LIST_META_CONTEXT, nbd.NBD_OPT_SET_META_CONTEXT]) {
      t.same(types(ask(started(), structured, option(number, unhex(data)))).slice(1), [error], name);
    }
  }
  t.end();
});

void t.test('unknown and unsupported options are answered and their data is skipped', (t) => {
  for (const number of [0, nbd.NBD_OPT_PEEK_EXPORT, nbd.NBD_OPT_STARTTLS, nbd.NBD_OPT_EXTENDED_HEADERS, 12, 0xffffffff]) {
    for (const length of [0, 5, nbd.MAX_OPTION_BYTES, nbd.MAX_SKIPPED_OPTION_BYTES]) {
      const server = started();
      t.same(types(ask(server, option(number, new Uint8Array(length)), structured)), [nbd.NBD_REP_ERR_UNSUP, nbd.NBD_REP_ACK], `option ${number}`);
    }
  }
  t.end();
});

void t.test('option data above the limits: too big, and far above it closed', (t) => {
  for (const number of [nbd.NBD_OPT_INFO, nbd.NBD_OPT_GO, nbd.NBD_OPT_LIST_META_CONTEXT]) {
    t.same(types(ask(started(), option(number, new Uint8Array(nbd.MAX_OPTION_BYTES + 1)), structured)), [nbd.NBD_REP_ERR_TOO_BIG, nbd.NBD_REP_ACK]);
  }
  for (const number of [nbd.NBD_OPT_GO, nbd.NBD_OPT_ABORT, 99]) {
    const server = started();
    server.push(option(number, new Uint8Array(0), nbd.MAX_SKIPPED_OPTION_BYTES + 1));
    closedWith(t, server, 'optionTooLong');
  }
  t.end();
});

void t.test('an option with a wrong magic closes', (t) => {
  const server = started();
  const bytes = option(nbd.NBD_OPT_LIST);
  bytes[7] ^= 1;
  server.push(bytes);
  closedWith(t, server, 'optionMagic');
  t.equal(server.push(bytes), 0, 'and nothing more is consumed');
  t.end();
});

void t.test('a flood of options closes', (t) => {
  const server = started();
  for (let i = 0; i < nbd.MAX_OPTIONS; i++) {
    server.push(structured);
    server.takeOutput();
  }
  t.equal(server.outcome.kind, 'more');
  server.push(structured);
  closedWith(t, server, 'optionFlood');
  t.end();
});

void t.test('a client that does not read its replies is not read from any further', (t) => {
  const many = Array.from({ length: 1000 }, (_, i) => memoryExport(`volume-${i}`, 512, { description: 'd'.repeat(100) }));
  const server = started(FIXED, directoryOf(many));
  const flood = concat(Array.from({ length: 500 }, () => option(nbd.NBD_OPT_LIST)));
  const consumed = server.push(flood);
  t.ok(consumed < 64, `consumed ${consumed} bytes`);
  t.equal(server.push(flood, consumed), 0);
  t.ok(server.takeOutput().length < 2 * nbd.MAX_PENDING_OUTPUT_BYTES);
  t.ok(server.push(flood, consumed) > 0, 'goes on when the output was taken');
  t.end();
});

void t.test('during shutdown every option is refused but ABORT', (t) => {
  for (let number = 2; number <= 12; number++) {
    const server = started();
    server.shutdown();
    t.same(types(ask(server, option(number))), [number === nbd.NBD_OPT_ABORT ? nbd.NBD_REP_ACK : nbd.NBD_REP_ERR_SHUTDOWN]);
  }
  const server = started();
  server.shutdown();
  server.push(option(nbd.NBD_OPT_EXPORT_NAME, utf8('vol')));
  closedWith(t, server, 'shutdown');
  t.end();
});

void t.test('what follows GO is left for the transmission phase', (t) => {
  const server = started();
  const bytes = concat([go('vol'), unhex('25609513')]);
  t.equal(server.push(bytes), bytes.length - 4);
  t.equal(server.push(unhex('25609513')), 0);
  t.end();
});

void t.test('exports that break the specification are found', (t) => {
  const good = memoryExport('vol', 1 << 20);
  t.equal(nbd.exportInfoProblem(good), undefined);
  for (const change of [
    { name: 'a\0' }, { name: 'é'.repeat(2049) }, { sizeBytes: -1 }, { sizeBytes: 2 ** 53 }, { minimumBlock: 3 }, { minimumBlock: 131072 },
    { minimumBlock: 0 }, { preferredBlock: 256 }, { minimumBlock: 8192, preferredBlock: 4096, maximumBlock: 8192 }, { maximumBlock: 512 },
    { minimumBlock: 512, maximumBlock: 33554433 }, { metaContexts: ['no colon'] }, { metaContexts: ['base:'] },
  ]) {
    t.type(nbd.exportInfoProblem({ ...good, ...change }), 'string', JSON.stringify(change).slice(0, 60));
  }
  t.end();
});
