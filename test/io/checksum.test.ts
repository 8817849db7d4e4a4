import t from 'tap';
import { crc32c } from '../../src/base/crc32c.js';
import { hash64 } from '../../src/base/hash64.js';
import { loadNative } from '../../src/io/native.js';
import { RealIo } from '../../src/io/real.js';
import { randomFrom, seedOfRun } from './fixture.js';

const seed = seedOfRun();
t.comment(`TEST_SEED=${seed}`);
const ARENA = 256 * 1024;

/** The addon's functions on an arena of random bytes; `crc32cByTable` is the road of other processors. */
function setUp() {
  const memory = new ArrayBuffer(ARENA);
  const random = randomFrom(seed);
  const bytes = new Uint8Array(memory);
  for (let i = 0; i < bytes.length; i++) bytes[i] = random() * 256;
  const control = new ArrayBuffer(64 + 1024 * 8);
  const native = loadNative().create(memory, control);
  if (typeof native === 'number') throw new Error(`create: ${native}`);
  t.teardown(() => native.dispose());
  return { native, bytes, random, results: new Float64Array(control, 0, 8) };
}

const { native, bytes, random, results } = setUp();

function hashOf(offset: number, length: number, seed: bigint): bigint {
  native.hash64(offset, length, Number(seed >> 32n), Number(seed & 0xffffffffn));
  return (BigInt(results[0]) << 32n) | BigInt(results[1]);
}

/** All short lengths, those around the interleaved loop's 4080 and multiples, some long ones. */
function lengths(): number[] {
  const out: number[] = [];
  for (let n = 0; n <= 300; n++) out.push(n);
  for (const around of [1360, 2720, 4080, 4096, 8160, 8192, 12240]) for (let d = -9; d <= 9; d++) out.push(around + d);
  out.push(65536, 131072 + 5);
  return out;
}

t.test('crc32c gives the check values of RFC 3720', (t) => {
  const io = RealIo.create({ arenaBytes: 4096 });
  const u8 = new Uint8Array(io.memory);
  t.equal(io.crc32c(0, 32, 0), 0x8a9136aa, '32 zeros');
  u8.fill(0xff, 0, 32);
  t.equal(io.crc32c(0, 32, 0), 0x62a8ab43, '32 ones');
  for (let i = 0; i < 32; i++) u8[i] = i;
  t.equal(io.crc32c(0, 32, 0), 0x46dd794e, 'ascending');
  io.dispose();
  t.end();
});

t.test('crc32c equals the reference at every length and alignment, by instruction and by table', (t) => {
  let wrong = 0;
  for (const length of lengths()) {
    for (const offset of length < 5000 ? [0, 1, 2, 3, 4, 5, 6, 7, 8] : [0, 3]) {
      const start = random() < 0.5 ? 0 : Math.floor(random() * 2 ** 32);
      const want = crc32c(bytes, offset, offset + length, start);
      if (native.crc32c(offset, length, start) !== want) wrong++;
      if (native.crc32cByTable(offset, length, start) !== want) wrong++;
    }
  }
  t.equal(wrong, 0);
  t.end();
});

t.test('crc32c may be computed in pieces', (t) => {
  for (let run = 0; run < 50; run++) {
    const length = Math.floor(random() * 20_000);
    const cut = Math.floor(random() * (length + 1));
    t.equal(native.crc32c(cut, length - cut, native.crc32c(0, cut, 0)), native.crc32c(0, length, 0));
  }
  t.end();
});

t.test('hash64 equals the reference at every length and alignment', (t) => {
  let wrong = 0;
  for (const length of lengths()) {
    for (const offset of length < 300 ? [0, 1, 5, 8] : [3]) {
      const start = (BigInt(Math.floor(random() * 2 ** 32)) << 32n) | BigInt(Math.floor(random() * 2 ** 32));
      if (hashOf(offset, length, start) !== hash64(bytes.subarray(offset, offset + length), start)) wrong++;
    }
  }
  t.equal(wrong, 0);
  t.end();
});

t.test('Io.hash64 puts the halves in order', (t) => {
  const io = RealIo.create({ arenaBytes: 4096 });
  new Uint8Array(io.memory).set(bytes.subarray(0, 100));
  const out = new Uint32Array(2);
  io.hash64(0, 100, 0xdeadbeef, 0x12345678, out);
  const want = hash64(bytes.subarray(0, 100), 0xdeadbeef12345678n);
  t.equal((BigInt(out[0]) << 32n) | BigInt(out[1]), want);
  io.dispose();
  t.end();
});
