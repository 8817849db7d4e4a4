/**
 * Bytes of a link are flipped, cut, dropped, repeated and reordered between two
 * nodes, on real sockets: nothing crashes, nothing wrong is ever appended, and
 * afterwards both are equal.
 */
import t from 'tap';
import { Arena } from '../../src/io/arena.js';
import { RealIo } from '../../src/io/real.js';
import { checkFrameHeader, FRAME_HEADER_BYTES, FrameType, decodeMessage, encodeMessage, messages, putFrameHeader, sealFrame } from '../../src/replication/message.js';
import type { MessageName } from '../../src/replication/message.js';
import { PeerError } from '../../src/base/errors.js';
import { randomFrom, seedOfRun } from '../io/fixture.js';
import { difference } from './memory-group.js';
import type { MemoryGroup } from './memory-group.js';
import { Proxy } from './proxy.js';
import type { Meddle } from './proxy.js';
import { FAST, pair, realRig, SECRET } from './rig.js';

const seed = seedOfRun();
t.comment(`TEST_SEED=${seed}`);

/** Fails when the follower holds anything that the primary did not append. */
function isPrefix(of: MemoryGroup, prefix: MemoryGroup): boolean {
  if (prefix.batches.length > of.batches.length) return false;
  const i = prefix.batches.length - 1;
  return i < 0 || Buffer.compare(prefix.batches[i].bytes, of.batches[i].bytes) === 0;
}

type Kind = 'flip' | 'cut' | 'drop' | 'repeat' | 'insert' | 'skip' | 'swap';
const KINDS: Kind[] = ['flip', 'cut', 'drop', 'repeat', 'insert', 'skip', 'swap'];

function spoil(kind: Kind, bytes: Uint8Array, at: number, random: () => number): Uint8Array | undefined {
  const copy = Uint8Array.from(bytes);
  const length = Math.min(bytes.length - at, 1 + Math.floor(random() * 300));
  switch (kind) {
    case 'flip':
      copy[at] ^= 1 << Math.floor(random() * 8);
      return copy;
    case 'cut':
      return undefined;
    case 'drop':
      return copy.subarray(0, at);
    case 'skip':
      return Buffer.concat([copy.subarray(0, at), copy.subarray(at + length)]);
    case 'repeat':
      return Buffer.concat([copy, copy.subarray(at)]);
    case 'insert':
      return Buffer.concat([copy.subarray(0, at), copy.subarray(0, length), copy.subarray(at)]);
    case 'swap':
      return Buffer.concat([copy.subarray(at), copy.subarray(0, at)]);
  }
}

t.test('a spoilt stream never crashes a node and never appends wrong data', async (t) => {
  const rig = realRig(t);
  const random = randomFrom(seed);
  const { a, b } = pair(rig);
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const proxy = new Proxy(io, rig.address('b'));
  proxy.listen(rig.address('p'));
  t.teardown(() => {
    proxy.close();
    io.dispose();
  });
  const options = { ...FAST, heartbeatUs: 20_000, deadUs: 200_000, handshakeUs: 200_000, readBytes: 64 * 1024, receiveBytes: 16 * 1024 };
  a.connect([{ node: 'b', address: rig.address('p'), secret: SECRET }], options);
  b.listener!.close();
  b.connect([{ node: 'a', secret: SECRET }], options);
  b.listen(rig.address('b'), { link: options });
  let spoilt = 0;
  let next = { connection: 0, fromDialer: true, offset: 0, kind: 'flip' as Kind };
  const plan = (): void => {
    // Boundaries of the hello are as likely as places far in the stream.
    const far = Math.floor(10 ** (random() * 5.3));
    next = { connection: proxy.connections, fromDialer: random() < 0.6, offset: far, kind: KINDS[Math.floor(random() * KINDS.length)] };
  };
  const meddle: Meddle = (bytes, connection, fromDialer, offset) => {
    if (connection < next.connection || fromDialer !== next.fromDialer || offset + bytes.length <= next.offset) return bytes;
    spoilt++;
    const at = Math.max(0, next.offset - offset);
    const { kind } = next;
    next = { ...next, connection: Infinity };
    return spoil(kind, bytes, at, random);
  };
  proxy.meddle = meddle;
  a.links.start();
  b.links.start();
  for (let round = 0; round < 150; round++) {
    plan();
    proxy.cut();
    const before = spoilt;
    for (let i = 0; i < 6; i++) a.group.append(1 + Math.floor(random() * 5), random);
    const deadline = Date.now() + 60;
    rig.until(() => {
      proxy.reactor.step(0);
      if (!isPrefix(a.group, b.group)) throw new Error(`wrong data after ${next.kind} in round ${round}, seed ${seed}`);
      return spoilt > before || (Date.now() > deadline && b.group.position.lsn === a.group.position.lsn);
    }, `round ${round}`);
  }
  proxy.meddle = (bytes) => bytes;
  rig.until(() => (proxy.reactor.step(0), b.group.position.lsn === a.group.position.lsn), 'the end');
  t.equal(difference(a.group, b.group), undefined);
  t.ok(spoilt > 60, `${spoilt} connections were spoilt`);
  const codes = new Set([...a.codes, ...b.codes]);
  for (const never of ['link/diverged', 'link/needs-resync', 'link/not-retained']) t.notOk(codes.has(never), never);
  t.comment([...codes].sort().join(' '));
});

t.test('batches that are wrong in one thing only are refused, and nothing of them is appended', async (t) => {
  const rig = realRig(t);
  const random = randomFrom(seed + 1);
  // The proxy understands the stream here: it edits a batch and repairs the checksums that lie outside of what it edits.
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const arena = new Arena(io);
  const scratch = arena.alloc(65536);
  const memory = { io, arena };
  const { a, b } = pair(rig);
  const edits: [string, string | RegExp, (view: DataView) => void][] = [
    ['a payload bit', /payload checksum/, (v) => v.setUint8(v.byteLength - 1, v.getUint8(v.byteLength - 1) ^ 1)],
    ['a header bit', /header checksum/, (v) => v.setUint8(32 + 65, v.getUint8(32 + 65) ^ 1)],
    ['a later LSN', /a batch with LSN/, (v) => v.setUint32(32 + 8, v.getUint32(32 + 8, true) + 8192, true)],
    ['an earlier LSN', /a batch with LSN/, (v) => v.setUint32(32 + 8, v.getUint32(32 + 8, true) - 8192, true)],
    ['another chain', /chain differs/, (v) => v.setUint32(32 + 16, v.getUint32(32 + 16, true) ^ 1, true)],
    ['another epoch id', /epoch 1 .*does not belong there/, (v) => v.setUint8(32 + 48, v.getUint8(32 + 48) ^ 1)],
    ['another epoch number', /epoch 9 .*does not belong there/, (v) => v.setUint32(32 + 44, 9, true)],
    ['no magic', /no batch/, (v) => v.setUint32(32, 0, true)],
    ['no records', /0 records/, (v) => v.setUint32(32 + 32, 0, true)],
    ['more records than there are', /records in/, (v) => v.setUint32(32 + 32, 999, true)],
    ['an unknown kind', /unknown kind/, (v) => v.setUint8(32 + 96, 77)],
    ['a length of no blocks', /not whole blocks/, (v) => v.setUint32(32 + 96 + 16, 100, true)],
  ];
  const proxy = new Proxy(RealIo.create({ arenaBytes: 1024 * 1024 }), rig.address('b'));
  proxy.listen(rig.address('p'));
  t.teardown(() => {
    proxy.close();
    proxy.io.dispose();
    io.dispose();
  });
  let edit: ((view: DataView) => void) | undefined;
  proxy.meddle = (bytes, _connection, fromDialer) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (edit === undefined || !fromDialer || bytes.length < 200 || view.getUint8(8) !== FrameType.batch) return bytes;
    if (FRAME_HEADER_BYTES + view.getUint32(12, true) !== bytes.length) return bytes;
    edit(view);
    const repaired = !/bit/.test(now);
    arena.u8.set(bytes, scratch);
    if (repaired) {
      const used = 96 + 32 * Math.min(1000, view.getUint32(32 + 32, true));
      arena.view.setUint32(scratch + 32 + 4, io.crc32c(scratch + 32 + 8, used - 8, 0), true);
    }
    edit = undefined;
    return Uint8Array.from(arena.u8.subarray(scratch, scratch + bytes.length));
  };
  a.connect([{ node: 'b', address: rig.address('p'), secret: SECRET }]).start();
  b.links.start();
  const streaming = (): boolean => (proxy.reactor.step(0), b.group.position.lsn === a.group.position.lsn && a.links.status()[0].state === 'streaming');
  let now = '';
  for (const [what, expected, change] of edits) {
    rig.until(streaming, what);
    now = what;
    b.entries.length = 0;
    const before = b.group.batches.length;
    edit = change;
    let appended: number | undefined;
    b.group.answer = () => void (appended = b.group.batches.length);
    a.group.append(1, () => 0.5 + random() / 4, 1); // data, never zeroes
    rig.until(() => (proxy.reactor.step(0), b.entries.length > 0), what);
    t.match(b.entries[0].message, expected, what);
    t.match(b.codes[0], /link\/(bad-batch|foreign-epoch)/);
    t.ok(appended === undefined || b.group.batches.length >= before, 'nothing was appended before the refusal');
    b.group.answer = undefined;
  }
  rig.until(streaming);
  t.equal(difference(a.group, b.group), undefined);
  void memory;
});

t.test('a message that was altered, its checksums repaired, is recognised by its signature', async (t) => {
  const rig = realRig(t);
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const arena = new Arena(io);
  const scratch = arena.alloc(65536);
  const proxy = new Proxy(RealIo.create({ arenaBytes: 1024 * 1024 }), rig.address('b'));
  proxy.listen(rig.address('p'));
  t.teardown(() => {
    proxy.close();
    proxy.io.dispose();
    io.dispose();
  });
  const { a, b } = pair(rig);
  let forged = 0;
  for (const [type, fromDialer, where] of [
    [FrameType.position, true, 60], [FrameType.position, false, 60], [FrameType.plan, true, 5], [FrameType.position, true, -1], [FrameType.plan, true, -1],
  ] as const) {
    let armed = true;
    proxy.meddle = (bytes, _connection, direction) => {
      arena.u8.set(bytes, scratch);
      for (let at = 0; at + FRAME_HEADER_BYTES <= bytes.length; ) {
        const length = arena.view.getUint32(scratch + at + 12, true);
        if (armed && direction === fromDialer && arena.u8[scratch + at + 8] === type && at + FRAME_HEADER_BYTES + length <= bytes.length) {
          armed = false;
          arena.u8[scratch + at + FRAME_HEADER_BYTES + (where < 0 ? length + where : where)] ^= 1;
          sealFrame({ io, arena }, scratch + at, scratch + at + FRAME_HEADER_BYTES);
        }
        at += FRAME_HEADER_BYTES + length;
      }
      return Uint8Array.from(arena.u8.subarray(scratch, scratch + bytes.length));
    };
    a.entries.length = b.entries.length = 0;
    const before = b.group.position.lsn;
    a.connect([{ node: 'b', address: rig.address('p'), secret: SECRET }]).start();
    b.links.start();
    rig.until(() => (proxy.reactor.step(0), [...a.codes, ...b.codes].includes('link/forged')), `type ${type}`);
    forged++;
    t.equal(fromDialer ? b.codes[0] : a.codes.find((code) => code !== ''), 'link/forged');
    if (forged === 1) t.equal(b.group.position.lsn, before);
    rig.until(() => (proxy.reactor.step(0), b.group.position.lsn === a.group.position.lsn && a.links.status()[0].state === 'streaming'), 'the next attempt');
    a.links.close();
    rig.until(() => (proxy.reactor.step(0), b.links.link('a')!.incoming === undefined));
    a.group.append(1, () => 0.5);
  }
});

t.test('an ack of what was never sent ends the link, and releases nothing', async (t) => {
  const rig = realRig(t);
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const arena = new Arena(io);
  const scratch = arena.alloc(65536);
  const proxy = new Proxy(RealIo.create({ arenaBytes: 1024 * 1024 }), rig.address('b'));
  proxy.listen(rig.address('p'));
  t.teardown(() => {
    proxy.close();
    proxy.io.dispose();
    io.dispose();
  });
  const { a, b } = pair(rig);
  a.connect([{ node: 'b', address: rig.address('p'), secret: SECRET }]).start();
  b.links.start();
  for (const field of [0, 8, 16]) {
    rig.until(() => (proxy.reactor.step(0), b.group.position.lsn === a.group.position.lsn && a.links.status()[0].state === 'streaming'));
    a.entries.length = 0;
    const cursor = a.group.cursors.get('b')!;
    proxy.meddle = (bytes, _connection, fromDialer) => {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      if (fromDialer || bytes.length !== FRAME_HEADER_BYTES + 32 || view.getUint8(8) !== FrameType.ack) return bytes;
      proxy.meddle = (rest) => rest;
      arena.u8.set(bytes, scratch);
      arena.view.setUint32(scratch + FRAME_HEADER_BYTES + field, 0x7fffffff, true);
      sealFrame({ io, arena }, scratch, scratch + FRAME_HEADER_BYTES);
      return Uint8Array.from(arena.u8.subarray(scratch, scratch + bytes.length));
    };
    rig.until(() => (proxy.reactor.step(0), a.codes.includes('link/bad-ack')), `field ${field}`);
    t.ok(a.group.cursors.get('b')! <= Math.max(cursor, b.group.position.lsn));
  }
});

t.test('a peer that has fallen silent is noticed on both sides', async (t) => {
  const rig = realRig(t);
  const proxy = new Proxy(RealIo.create({ arenaBytes: 1024 * 1024 }), rig.address('b'));
  proxy.listen(rig.address('p'));
  t.teardown(() => {
    proxy.close();
    proxy.io.dispose();
  });
  const options = { ...FAST, heartbeatUs: 20_000, deadUs: 150_000, handshakeUs: 300_000 };
  const { a, b } = pair(rig, options);
  b.listener!.close();
  b.listen(rig.address('b'), { link: options });
  a.connect([{ node: 'b', address: rig.address('p'), secret: SECRET }], options).start();
  b.links.start();
  const streaming = (): boolean => (proxy.reactor.step(0), b.group.position.lsn === a.group.position.lsn && a.links.status()[0].state === 'streaming');
  rig.until(streaming);
  // Nothing passes, nothing is closed; a new connection must not take the old one's place before both have noticed.
  const first = proxy.connections;
  let silent = true;
  proxy.meddle = (bytes, connection) => (silent || connection < first ? new Uint8Array(0) : bytes);
  rig.until(() => (proxy.reactor.step(0), a.codes.includes('link/silent') && b.codes.includes('link/silent')), 'both sides to notice');
  silent = false;
  a.group.append(2, () => 0.5);
  rig.until(streaming, 'the next connection');
  t.equal(difference(a.group, b.group), undefined);
});

t.test('headers and messages of random bytes are refused with PeerError and nothing else', async (t) => {
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const arena = new Arena(io);
  const at = arena.alloc(4096);
  t.teardown(() => io.dispose());
  const random = randomFrom(seed + 2);
  let refused = 0;
  for (let i = 0; i < 20_000; i++) {
    putFrameHeader(arena.view, at, FrameType.ack, 32, i, i);
    sealFrame({ io, arena }, at, at + FRAME_HEADER_BYTES);
    arena.u8[at + Math.floor(random() * FRAME_HEADER_BYTES)] ^= 1 + Math.floor(random() * 255);
    try {
      checkFrameHeader({ io, arena }, at, i);
      t.fail('a flipped header passed');
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
      refused++;
    }
  }
  t.equal(refused, 20_000);
  const good = encodeMessage('hello', { group: 'g', from: 'a', to: 'b', nonce: new Uint8Array(32) });
  for (let i = 0; i < 20_000; i++) {
    const name = Object.keys(messages)[Math.floor(random() * Object.keys(messages).length)] as MessageName;
    const bytes = Uint8Array.from(good.subarray(0, Math.floor(random() * (good.length + 1))));
    for (let k = 0; k < 3 && bytes.length > 0; k++) bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
    try {
      decodeMessage(name, bytes);
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
    }
  }
});
