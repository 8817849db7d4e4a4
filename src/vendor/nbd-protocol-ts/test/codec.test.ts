/** Request and reply codecs: the layouts of the specification byte by byte, and round trips. */
import { deepStrictEqual } from 'node:assert';
import fc from 'fast-check';
import t from 'tap';
import type { Test } from 'tap';
import * as nbd from '../index.js';
import { viewOf } from '../src/bytes.js';
import { hex, unhex } from './memory-server.js';

function written(t: Test, put: (view: DataView, at: number) => number): string {
  // At an odd place of a dirty buffer: nothing may depend on alignment or on zeroes.
  const buffer = new Uint8Array(256).fill(0xee);
  const n = put(new DataView(buffer.buffer), 3);
  t.equal(hex(buffer.subarray(0, 3)), 'eeeeee', 'nothing is written before');
  t.ok(buffer.subarray(3 + n).every((byte) => byte === 0xee), 'nothing is written behind the returned length');
  return hex(buffer.subarray(3, 3 + n));
}

void t.test('a request has the layout of the specification', (t) => {
  const bytes = written(t, (view, at) => nbd.putRequest(view, at, nbd.NBD_CMD_FLAG_FUA, nbd.NBD_CMD_WRITE, 0x01020304, 0xa0b0c0d0, 0x1f_1234_5678_9abc, 0xfffffffe));
  t.equal(bytes, '25609513' + '0001' + '0001' + '01020304a0b0c0d0' + '001f123456789abc' + 'fffffffe');
  const view = viewOf(unhex(bytes));
  t.ok(nbd.requestMagicOk(view, 0));
  t.equal(nbd.requestFlags(view, 0), 1);
  t.equal(nbd.requestType(view, 0), nbd.NBD_CMD_WRITE);
  t.equal(nbd.requestCookieHi(view, 0), 0x01020304);
  t.equal(nbd.requestCookieLo(view, 0), 0xa0b0c0d0);
  t.equal(nbd.requestOffset(view, 0), 0x1f_1234_5678_9abc);
  t.equal(nbd.requestLength(view, 0), 0xfffffffe);
  view.setUint8(0, 0x26);
  t.notOk(nbd.requestMagicOk(view, 0));
  t.end();
});

void t.test('an offset above 2^53 - 1 reads as Infinity', (t) => {
  for (const [digits, value] of [
    ['001fffffffffffff', Number.MAX_SAFE_INTEGER], ['0020000000000000', Infinity], ['8000000000000000', Infinity], ['ffffffffffffffff', Infinity],
    ['0000000100000000', 2 ** 32], ['00000000ffffffff', 2 ** 32 - 1], ['0000000000000000', 0],
  ] as const) {
    t.equal(nbd.requestOffset(viewOf(unhex(`25609513 0000 0000 0000000000000000 ${digits} 00000001`)), 0), value, digits);
  }
  t.end();
});

void t.test('replies have the layouts of the specification', (t) => {
  const hi = 0x11223344;
  const lo = 0x55667788;
  const cookie = '1122334455667788';
  const done = nbd.NBD_REPLY_FLAG_DONE;
  const text = new TextEncoder().encode('no');
  const offset = 0x01_0000_0002;
  t.equal(written(t, (view, at) => nbd.putSimpleReply(view, at, nbd.NBD_ENOSPC, hi, lo)), `67446698 0000001c ${cookie}`.replaceAll(' ', ''));
  for (const [name, put, digits] of [
    ['none', (view, at) => nbd.putStructuredHeader(view, at, done, nbd.NBD_REPLY_TYPE_NONE, hi, lo, 0), `668e33ef 0001 0000 ${cookie} 00000000`],
    ['data', (view, at) => nbd.putOffsetDataHeader(view, at, 0, hi, lo, offset, 512), `668e33ef 0000 0001 ${cookie} 00000208 0000000100000002`],
    ['hole', (view, at) => nbd.putOffsetHole(view, at, done, hi, lo, offset, 4096), `668e33ef 0001 0002 ${cookie} 0000000c 0000000100000002 00001000`],
    ['error', (view, at) => nbd.putErrorChunk(view, at, done, hi, lo, nbd.NBD_EIO, text), `668e33ef 0001 8001 ${cookie} 00000008 00000005 0002 6e6f`],
    ['error without a message', (view, at) => nbd.putErrorChunk(view, at, done, hi, lo, nbd.NBD_EIO), `668e33ef 0001 8001 ${cookie} 00000006 00000005 0000`],
    ['error at an offset', (view, at) => nbd.putErrorOffsetChunk(view, at, 0, hi, lo, nbd.NBD_EIO, offset, text),
      `668e33ef 0000 8002 ${cookie} 00000010 00000005 0002 6e6f 0000000100000002`],
    ['block status', (view, at) => {
      const n = nbd.putBlockStatusHeader(view, at, done, hi, lo, 9, 2);
      return n + nbd.putExtent(view, at + n, 4096, 3) + nbd.putExtent(view, at + n + 8, 512, 0);
    }, `668e33ef 0001 0005 ${cookie} 00000014 00000009 00001000 00000003 00000200 00000000`],
  ] as [string, (view: DataView, at: number) => number, string][]) {
    t.equal(written(t, put), digits.replaceAll(' ', ''), name);
  }
  t.end();
});

void t.test('the message of an error chunk is cut at the longest string', (t) => {
  const buffer = new Uint8Array(8192);
  const n = nbd.putErrorChunk(viewOf(buffer), 0, 1, 0, 1, nbd.NBD_EIO, new Uint8Array(5000).fill(0x61));
  t.equal(n, nbd.ERROR_CHUNK_BYTES + nbd.MAX_STRING_BYTES);
  t.equal(nbd.errorChunkMessageLength(viewOf(buffer), 0), nbd.MAX_STRING_BYTES);
  t.equal(nbd.chunkLength(viewOf(buffer), 0), 6 + nbd.MAX_STRING_BYTES);
  t.end();
});

void t.test('what is written is read back, for any field values', (t) => {
  const seed = Number(process.env['SEED'] ?? 1);
  t.comment(`SEED=${seed}`);
  const u16 = fc.nat(0xffff);
  const u32 = fc.nat(0xffffffff);
  const u53 = fc.maxSafeNat();
  const buffer = new Uint8Array(128);
  const view = viewOf(buffer);
  fc.assert(fc.property(u16, u16, u32, u32, u53, u32, fc.nat(40), (flags, type, hi, lo, offset, length, at) => {
    nbd.putRequest(view, at, flags, type, hi, lo, offset, length);
    deepStrictEqual([nbd.requestFlags(view, at), nbd.requestType(view, at), nbd.requestCookieHi(view, at), nbd.requestCookieLo(view, at),
      nbd.requestOffset(view, at), nbd.requestLength(view, at)], [flags, type, hi, lo, offset, length]);
    nbd.putErrorOffsetChunk(view, at, flags, hi, lo, length, offset, buffer.subarray(0, 5));
    deepStrictEqual([nbd.replyMagic(view, at), nbd.chunkFlags(view, at), nbd.replyCookieHi(view, at), nbd.replyCookieLo(view, at), nbd.errorChunkErrno(view, at),
      nbd.errorChunkOffset(view, at, 5)], [nbd.NBD_STRUCTURED_REPLY_MAGIC, flags, hi, lo, length, offset]);
    nbd.putOffsetHole(view, at, flags, hi, lo, offset, length);
    deepStrictEqual([nbd.chunkType(view, at), nbd.chunkOffset(view, at), nbd.holeLength(view, at)], [nbd.NBD_REPLY_TYPE_OFFSET_HOLE, offset, length]);
    nbd.putSimpleReply(view, at, length, hi, lo);
    deepStrictEqual([nbd.replyMagic(view, at), nbd.simpleReplyErrno(view, at), nbd.replyCookieHi(view, at), nbd.replyCookieLo(view, at)],
      [nbd.NBD_SIMPLE_REPLY_MAGIC, length, hi, lo]);
  }), { numRuns: 200, seed });
  t.end();
});

void t.test('a block status chunk has 4 bytes and whole extents', (t) => {
  for (const [length, count] of [[0, -1], [4, -1], [11, -1], [12, 1], [13, -1], [20, 2], [4 + 8 * 1000, 1000]] as const) {
    t.equal(nbd.extentCount(length), count, `length ${length}`);
  }
  t.end();
});
