/** Every rule of validateRequest, one line each, with the error that the specification gives it. */
import t from 'tap';
import type { Test } from 'tap';
import * as nbd from '../index.js';
import { viewOf } from '../src/bytes.js';
import { ALL_FLAGS } from './memory-server.js';

const SIZE = 1024 * 1024;
const MIB = 1024 * 1024;

interface Case {
  readonly rule: string;
  readonly type: number;
  readonly flags?: number;
  readonly offset?: number;
  readonly length?: number;
  readonly facts?: Partial<nbd.ExportFacts>;
  readonly session?: Partial<nbd.SessionFacts>;
  readonly want: number;
}

function check(test: Test, cases: readonly Case[]): void {
  for (const { rule, type, flags = 0, offset = 0, length = 4096, facts, session, want } of cases) {
    const got = nbd.validateRequest(
      { sizeBytes: SIZE, transmissionFlags: ALL_FLAGS, minimumBlock: 1, maximumBlock: 32 * MIB, ...facts },
      { structuredReplies: true, contextCount: 1, ...session },
      type, flags, offset, length,
    );
    test.equal(nbd.errnoName(got), nbd.errnoName(want), `${nbd.commandName(type)}: ${rule}`);
  }
  test.end();
}

const { NBD_CMD_READ: READ, NBD_CMD_WRITE: WRITE, NBD_CMD_DISC: DISC, NBD_CMD_FLUSH: FLUSH, NBD_CMD_TRIM: TRIM, NBD_CMD_CACHE: CACHE,
  NBD_CMD_WRITE_ZEROES: ZEROES, NBD_CMD_BLOCK_STATUS: STATUS } = nbd;
const { NBD_CMD_FLAG_FUA: FUA, NBD_CMD_FLAG_NO_HOLE: NO_HOLE, NBD_CMD_FLAG_DF: DF, NBD_CMD_FLAG_REQ_ONE: REQ_ONE,
  NBD_CMD_FLAG_FAST_ZERO: FAST_ZERO, NBD_CMD_FLAG_PAYLOAD_LEN: PAYLOAD_LEN } = nbd;
const { NBD_EINVAL: EINVAL, NBD_EPERM: EPERM, NBD_ENOSPC: ENOSPC, NBD_EOVERFLOW: EOVERFLOW } = nbd;
const without = (flag: number): Partial<nbd.ExportFacts> => ({ transmissionFlags: ALL_FLAGS & ~flag });
const readOnly = { transmissionFlags: ALL_FLAGS | nbd.NBD_FLAG_READ_ONLY };
const RANGED = [READ, WRITE, TRIM, CACHE, ZEROES, STATUS];

void t.test('requests that keep all rules are served', (t) => check(t, [
  ...RANGED.map((type) => ({ rule: 'plain', type, want: 0 })),
  ...RANGED.map((type) => ({ rule: 'the last byte', type, offset: SIZE - 1, length: 1, want: 0 })),
  ...RANGED.map((type) => ({ rule: 'all of it', type, length: SIZE, want: 0 })),
  { rule: 'plain', type: FLUSH, length: 0, want: 0 },
  { rule: 'has no reply, so nothing to refuse', type: DISC, flags: 0xffff, offset: Infinity, want: 0 },
  { rule: 'on a read-only export', type: READ, facts: readOnly, want: 0 },
  { rule: 'on a read-only export', type: FLUSH, length: 0, facts: readOnly, want: 0 },
  { rule: 'on a read-only export', type: STATUS, facts: readOnly, want: 0 },
]));

void t.test('an unknown command is EINVAL', (t) => check(t, [8, 9, 100, 0xffff].map((type) => ({ rule: 'unknown', type, want: EINVAL }))));

void t.test('writing to a read-only export is EPERM, whatever else is wrong', (t) => check(t, [
  ...[WRITE, TRIM, ZEROES].map((type) => ({ rule: 'read-only', type, facts: readOnly, want: EPERM })),
  ...[WRITE, TRIM, ZEROES].map((type) => ({ rule: 'read-only and beyond the end', type, offset: SIZE, facts: readOnly, want: EPERM })),
  ...[TRIM, ZEROES].map((type) => ({ rule: 'read-only and not advertised', type, facts: { transmissionFlags: 1 | nbd.NBD_FLAG_READ_ONLY }, want: EPERM })),
]));

void t.test('a command that is not advertised is EINVAL', (t) => check(t, [
  { rule: 'not advertised', type: FLUSH, length: 0, facts: without(nbd.NBD_FLAG_SEND_FLUSH), want: EINVAL },
  { rule: 'not advertised', type: TRIM, facts: without(nbd.NBD_FLAG_SEND_TRIM), want: EINVAL },
  { rule: 'not advertised', type: CACHE, facts: without(nbd.NBD_FLAG_SEND_CACHE), want: EINVAL },
  { rule: 'not advertised', type: ZEROES, facts: without(nbd.NBD_FLAG_SEND_WRITE_ZEROES), want: EINVAL },
  { rule: 'READ needs no flag', type: READ, facts: { transmissionFlags: 1 }, want: 0 },
  { rule: 'WRITE needs no flag', type: WRITE, facts: { transmissionFlags: 1 }, want: 0 },
]));

void t.test('BLOCK_STATUS needs structured replies and a selected context', (t) => check(t, [
  { rule: 'no structured replies', type: STATUS, session: { structuredReplies: false }, want: EINVAL },
  { rule: 'no context', type: STATUS, session: { contextCount: 0 }, want: EINVAL },
  { rule: 'several contexts', type: STATUS, session: { contextCount: 3 }, want: 0 },
]));

void t.test('FUA is allowed on every command if it is advertised, else on none', (t) => check(t, [
  ...RANGED.map((type) => ({ rule: 'FUA', type, flags: FUA, want: 0 })),
  ...RANGED.map((type) => ({ rule: 'FUA not advertised', type, flags: FUA, facts: without(nbd.NBD_FLAG_SEND_FUA), want: EINVAL })),
  { rule: 'FUA', type: FLUSH, flags: FUA, length: 0, want: 0 },
  { rule: 'FUA not advertised', type: FLUSH, flags: FUA, length: 0, facts: without(nbd.NBD_FLAG_SEND_FUA), want: EINVAL },
]));

void t.test('a flag is EINVAL on a command that does not define it', (t) => check(t, [
  ...([[NO_HOLE, ZEROES], [DF, READ], [REQ_ONE, STATUS], [FAST_ZERO, ZEROES]] as const).flatMap(([flag, home]) =>
    [...RANGED, FLUSH].map((type) => ({ rule: `flag ${flag}`, type, flags: flag, length: type === FLUSH ? 0 : 4096, want: type === home ? 0 : EINVAL }))),
  ...[...RANGED, FLUSH].flatMap((type) => [PAYLOAD_LEN, 1 << 6, 1 << 15].map((flag) => (
    { rule: `unknown flag ${flag}`, type, flags: flag, length: type === FLUSH ? 0 : 4096, want: EINVAL }))),
  { rule: 'a good and a bad flag', type: WRITE, flags: FUA | DF, want: EINVAL },
  { rule: 'all its flags', type: ZEROES, flags: FUA | NO_HOLE | FAST_ZERO, want: 0 },
]));

void t.test('DF and FAST_ZERO need their transmission flags', (t) => check(t, [
  { rule: 'DF not advertised', type: READ, flags: DF, facts: without(nbd.NBD_FLAG_SEND_DF), want: EINVAL },
  { rule: 'DF without structured replies', type: READ, flags: DF, session: { structuredReplies: false }, want: EINVAL },
  { rule: 'FAST_ZERO not advertised', type: ZEROES, flags: FAST_ZERO, facts: without(nbd.NBD_FLAG_SEND_FAST_ZERO), want: EINVAL },
  { rule: 'NO_HOLE without SEND_TRIM', type: ZEROES, flags: NO_HOLE, facts: without(nbd.NBD_FLAG_SEND_TRIM), want: 0 },
]));

void t.test('FLUSH has neither offset nor length', (t) => check(t, [
  { rule: 'a length', type: FLUSH, length: 1, want: EINVAL },
  { rule: 'an offset', type: FLUSH, offset: 512, length: 0, want: EINVAL },
  { rule: 'an offset out of range', type: FLUSH, offset: Infinity, length: 0, want: EINVAL },
]));

void t.test('a length of 0 is EINVAL', (t) => check(t, RANGED.map((type) => ({ rule: 'no length', type, length: 0, want: EINVAL }))));

void t.test('beyond the end: ENOSPC for WRITE and WRITE_ZEROES, EINVAL for the others', (t) => check(t, RANGED.flatMap((type) => {
  const want = type === WRITE || type === ZEROES ? ENOSPC : EINVAL;
  return [
    { rule: 'one byte too long', type, offset: SIZE - 4096, length: 4097, want },
    { rule: 'begins at the end', type, offset: SIZE, length: 1, want },
    { rule: 'begins behind the end', type, offset: SIZE + 4096, want },
    { rule: 'offset 2^53 - 1', type, offset: Number.MAX_SAFE_INTEGER, length: 32 * MIB, want },
    { rule: 'offset above 2^53 - 1', type, offset: Infinity, want },
    { rule: 'an empty export', type, length: 1, facts: { sizeBytes: 0 }, want },
    { rule: 'the end of the largest export', type, offset: Number.MAX_SAFE_INTEGER - 4096, facts: { sizeBytes: Number.MAX_SAFE_INTEGER }, want: 0 },
    { rule: 'one byte behind the end of the largest export', type, offset: Number.MAX_SAFE_INTEGER - 4096, length: 4097,
      facts: { sizeBytes: Number.MAX_SAFE_INTEGER }, want },
  ];
})));

void t.test('what is not aligned to the minimum block size is EINVAL', (t) => check(t, RANGED.flatMap((type) => [
  { rule: 'offset', type, offset: 256, length: 512, facts: { minimumBlock: 512 }, want: EINVAL },
  { rule: 'length', type, offset: 512, length: 513, facts: { minimumBlock: 512 }, want: EINVAL },
  { rule: 'aligned', type, offset: 512, length: 1024, facts: { minimumBlock: 512 }, want: 0 },
  { rule: 'offset above 2^32', type, offset: 2 ** 40 + 2048, facts: { minimumBlock: 4096, sizeBytes: 2 ** 41 }, want: EINVAL },
  { rule: 'aligned offset above 2^32', type, offset: 2 ** 40 + 4096, facts: { minimumBlock: 4096, sizeBytes: 2 ** 41 }, want: 0 },
  { rule: 'aligned to the largest minimum', type, offset: 2 ** 40 + 65536, length: 65536, facts: { minimumBlock: 65536, sizeBytes: 2 ** 41 }, want: 0 },
  { rule: 'length of 2^31 and more', type, offset: 4096, length: 2 ** 31 + 1, facts: { minimumBlock: 4096, sizeBytes: 2 ** 41 }, want: EINVAL },
])));

void t.test('a READ or WRITE above the maximum block size is refused, commands without data are not', (t) => {
  const large = { sizeBytes: 2 ** 41 };
  check(t, [
    { rule: 'exactly the maximum', type: READ, length: 32 * MIB, facts: large, want: 0 },
    { rule: 'exactly the maximum', type: WRITE, length: 32 * MIB, facts: large, want: 0 },
    { rule: 'above', type: READ, length: 32 * MIB + 1, facts: large, want: EINVAL },
    { rule: 'above', type: WRITE, length: 32 * MIB + 1, facts: large, want: EINVAL },
    { rule: 'above, not to be fragmented', type: READ, flags: DF, length: 32 * MIB + 1, facts: large, want: EOVERFLOW },
    { rule: 'no limit', type: READ, length: 0xffffffff, facts: { ...large, maximumBlock: 0xffffffff }, want: 0 },
    ...[TRIM, CACHE, ZEROES, STATUS].map((type) => ({ rule: '4 GiB', type, length: 0xffffffff, facts: large, want: 0 })),
  ]);
});

void t.test('what ends the connection is told apart from what is refused', (t) => {
  const buffer = new Uint8Array(nbd.REQUEST_BYTES);
  const view = viewOf(buffer);
  const fatal = (type: number, length: number, limit?: number): number => {
    nbd.putRequest(view, 0, 0xffff, type, 0, 0, 0, length);
    return nbd.requestFatal(view, 0, limit);
  };
  t.equal(fatal(WRITE, nbd.MAX_DRAINED_PAYLOAD), nbd.REQUEST_FATAL_NONE);
  t.equal(fatal(WRITE, nbd.MAX_DRAINED_PAYLOAD + 1), nbd.REQUEST_FATAL_PAYLOAD);
  t.equal(fatal(WRITE, 1001, 1000), nbd.REQUEST_FATAL_PAYLOAD);
  for (const type of [READ, TRIM, ZEROES, STATUS, CACHE, 99]) t.equal(fatal(type, 0xffffffff), nbd.REQUEST_FATAL_NONE, 'only a WRITE carries payload');
  view.setUint32(0, nbd.NBD_EXTENDED_REQUEST_MAGIC);
  t.equal(nbd.requestFatal(view, 0), nbd.REQUEST_FATAL_MAGIC);
  for (const code of [nbd.REQUEST_FATAL_MAGIC, nbd.REQUEST_FATAL_PAYLOAD]) t.match(nbd.requestFatalText(code), /the client/);
  t.same(Array.from({ length: 10 }, (_, type) => nbd.carriesPayload(type)).map(Number), [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
  t.end();
});

void t.test('once compiled, reading, validating and answering a request allocates nothing', (t) => {
  const count = 1000;
  const requests = viewOf(new Uint8Array(count * nbd.REQUEST_BYTES));
  const replies = viewOf(new Uint8Array(count * nbd.SIMPLE_REPLY_BYTES));
  for (let i = 0; i < count; i++) {
    // Cookies and offsets beyond 31 bits: what V8 would have to put on the heap.
    nbd.putRequest(requests, i * nbd.REQUEST_BYTES, i & 1, [READ, WRITE, TRIM, ZEROES][i & 3], 0xf0000000 + i, 0xe0000000 + i, 2 ** 41 + i * 4096, 4096);
  }
  const facts = { sizeBytes: 2 ** 42, transmissionFlags: ALL_FLAGS, minimumBlock: 512, maximumBlock: 32 * MIB };
  const session = { structuredReplies: false, contextCount: 0 };
  const serve = (): number => {
    let refused = 0;
    for (let i = 0; i < count; i++) {
      const at = i * nbd.REQUEST_BYTES;
      if (nbd.requestFatal(requests, at) !== nbd.REQUEST_FATAL_NONE) return -1;
      const errno = nbd.validateRequest(facts, session, nbd.requestType(requests, at), nbd.requestFlags(requests, at), nbd.requestOffset(requests, at),
        nbd.requestLength(requests, at));
      if (errno !== 0) refused++;
      nbd.putSimpleReply(replies, i * nbd.SIMPLE_REPLY_BYTES, errno, nbd.requestCookieHi(requests, at), nbd.requestCookieLo(requests, at));
    }
    return refused;
  };
  // The compiler works in the background: take turns until one of them allocates nothing, at most so often.
  let perRequest = Infinity;
  let refused = 0;
  for (let turn = 0; turn < 200 && !(perRequest >= 0 && perRequest < 0.5); turn++) {
    const before = process.memoryUsage().heapUsed;
    for (let i = 0; i < 100; i++) refused += serve();
    perRequest = (process.memoryUsage().heapUsed - before) / (100 * count);
  }
  t.equal(refused, 0);
  t.ok(perRequest < 0.5, `${perRequest.toFixed(2)} bytes for each request`);
  t.end();
});
