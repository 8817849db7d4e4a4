/** Authentication: every wrong ingredient, strangers, floods; who cannot prove the secret learns nothing. */
import t from 'tap';
import type { Address } from '../../src/base/address.js';
import { Errno, PeerError } from '../../src/base/errors.js';
import { Arena } from '../../src/io/arena.js';
import { RealIo } from '../../src/io/real.js';
import { DialerHello, ListenerHello } from '../../src/replication/hello.js';
import type { LinkIdentity } from '../../src/replication/hello.js';
import { decodeMessage, encodeMessage, frame, FRAME_HEADER_BYTES, FrameType, putFrameHeader, sealFrame } from '../../src/replication/message.js';
import type { Message } from '../../src/replication/message.js';
import { Proxy } from './proxy.js';
import { FAST, pair, realRig, SECRET } from './rig.js';
import type { RealRig, TestNode } from './rig.js';

const OTHER_SECRET = new Uint8Array(32).fill(8);
let filler = 0;
const nonce = (): Uint8Array => new Uint8Array(32).fill(++filler);

function identity(change: Partial<LinkIdentity> = {}): LinkIdentity {
  return { group: 'g', self: 'a', peer: 'b', secret: SECRET, ...change };
}

function listenerFor(link: LinkIdentity): ListenerHello {
  return new ListenerHello(
    (group, from, to) => (group === link.group && from === link.peer && to === link.self ? link : new PeerError('link/unknown-node', 'unknown')), nonce,
  );
}

t.test('two nodes with the same secret get keys that fit each other and nobody else', async (t) => {
  const dialer = new DialerHello(identity(), nonce());
  const listener = listenerFor(identity({ self: 'b', peer: 'a' }));
  const proven = listener.proven(dialer.challenged(listener.greeted(dialer.hello())));
  const keys = dialer.proven(proven.reply);
  const [header, body] = [new Uint8Array(20), new Uint8Array([1, 2, 3])];
  t.ok(proven.keys.verify(header, body, keys.sign(header, body)));
  t.ok(keys.verify(header, body, proven.keys.sign(header, body)));
  t.notOk(keys.verify(header, body, keys.sign(header, body)), 'not mirrored');
  t.notOk(proven.keys.verify(header, new Uint8Array([1, 2, 4]), keys.sign(header, body)));
  t.notOk(proven.keys.verify(header, body, keys.sign(header, body).subarray(1)));
});

const wrongs: [string, Partial<LinkIdentity>][] = [
  ['secret', { secret: OTHER_SECRET }], ['group', { group: 'h' }], ['own name', { self: 'x' }], ['name of the peer', { peer: 'y' }],
];
for (const [what, change] of wrongs) {
  t.test(`a wrong ${what} fails at the proof, never before`, async (t) => {
    const dialer = new DialerHello(identity(change), nonce());
    const listener = listenerFor(identity({ self: 'b', peer: 'a' }));
    const challenge = listener.greeted(dialer.hello());
    t.equal(challenge.nonce.length, 32);
    t.throws(() => listener.proven(dialer.challenged(challenge)), { name: 'PeerError' });
  });
}

t.test('an old proof, a mirrored proof, and a proof for other names do not count', async (t) => {
  const link = identity({ self: 'b', peer: 'a' });
  const dialer = new DialerHello(identity(), nonce());
  const first = listenerFor(link);
  const proof = dialer.challenged(first.greeted(dialer.hello()));
  t.ok(first.proven(proof));
  const second = listenerFor(link);
  second.greeted(dialer.hello());
  t.throws(() => second.proven(proof), { code: 'link/wrong-secret' }, 'replayed');
  // A false listener hands the dialer's own proof back.
  t.throws(() => dialer.proven(proof), { code: 'link/wrong-secret' }, 'mirrored');
  // The same secret on another link of the same node.
  const other = new DialerHello(identity({ group: 'h' }), nonce());
  const third = listenerFor(link);
  third.greeted({ ...other.hello(), group: 'g' });
  t.throws(() => third.proven(other.challenged({ nonce: nonce() })), { code: 'link/wrong-secret' });
});

/** Speaks frames by hand, over a socket of its own. */
class Raw {
  readonly io = RealIo.create({ arenaBytes: 1024 * 1024 });
  readonly arena = new Arena(this.io);
  private readonly buffer = this.arena.alloc(65536);
  private fd = -1;
  got = Buffer.alloc(0);
  ended = false;
  private sent = 0;

  connect(address: Address): this {
    this.fd = this.io.connect(address);
    return this;
  }

  bytes(bytes: Uint8Array): number {
    this.arena.u8.set(bytes, this.buffer);
    return this.io.send(this.fd, this.buffer, bytes.length);
  }

  /** A frame, right but for what `spoil` does to its header. */
  frame(type: FrameType, body: Uint8Array, spoil: (view: DataView, at: number) => void = () => undefined): void {
    const at = this.buffer;
    this.arena.u8.set(body, at + FRAME_HEADER_BYTES);
    putFrameHeader(this.arena.view, at, type, body.length, 0, this.sent++);
    const memory = { io: this.io, arena: this.arena };
    sealFrame(memory, at, at + FRAME_HEADER_BYTES);
    spoil(this.arena.view, at);
    sealFrame(memory, at, -1);
    this.io.send(this.fd, at, FRAME_HEADER_BYTES + body.length);
  }

  hello(change: Partial<Message<'hello'>> = {}, spoil?: (view: DataView, at: number) => void): void {
    this.frame(FrameType.hello, encodeMessage('hello', { group: 'g', from: 'a', to: 'b', nonce: nonce(), ...change }), spoil);
  }

  poll(): void {
    const count = this.io.recv(this.fd, this.buffer, 65536);
    if (count > 0) this.got = Buffer.concat([this.got, this.arena.u8.subarray(this.buffer, this.buffer + count)]);
    else if (count !== -Errno.EAGAIN) this.ended = true;
  }

  /** What arrived: [type, body]. */
  get frames(): [number, Uint8Array][] {
    const found: [number, Uint8Array][] = [];
    const view = new DataView(this.got.buffer, this.got.byteOffset);
    for (let at = 0; at + FRAME_HEADER_BYTES <= this.got.length; ) {
      const bytes = frame.bodyBytes(view, at);
      found.push([frame.type(view, at), Uint8Array.from(this.got.subarray(at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + bytes))]);
      at += FRAME_HEADER_BYTES + bytes;
    }
    return found;
  }

  close(): void {
    if (this.fd >= 0) this.io.close(this.fd);
    this.io.dispose();
  }
}

function listening(t: Parameters<typeof realRig>[0]): { rig: RealRig; a: TestNode; b: TestNode; raw: () => Raw } {
  const rig = realRig(t);
  const raws: Raw[] = [];
  t.teardown(() => raws.forEach((raw) => raw.close()));
  return {
    rig, ...pair(rig), raw: () => {
      const raw = new Raw().connect(rig.address('b'));
      raws.push(raw);
      return raw;
    },
  };
}

t.test('whatever is wrong, a stranger sees the same frames and the same words', async (t) => {
  const { rig, b, raw } = listening(t);
  const seen: string[] = [];
  const expected = ['link/unknown-group', 'link/unknown-node', 'link/wrong-node', 'link/wrong-secret'];
  for (const [i, change] of [{ group: 'h' }, { from: 'z' }, { to: 'z' }, {}].entries()) {
    b.listener!.close();
    b.listen(rig.address('b')); // a fresh one logs at once
    b.entries.length = 0;
    const one = raw();
    one.hello(change);
    rig.until(() => (one.poll(), one.frames.length === 1));
    one.frame(FrameType.proof, encodeMessage('proof', { mac: new Uint8Array(32) }));
    rig.until(() => (one.poll(), one.frames.length === 2));
    const [[first], [second, reject]] = one.frames;
    t.strictSame([first, second], [FrameType.challenge, FrameType.reject]);
    seen.push(JSON.stringify(decodeMessage('reject', reject)));
    t.equal(b.codes[0], expected[i]);
    t.notMatch(JSON.stringify(b.entries), /07070707/, 'no secret in the log');
  }
  t.equal(new Set(seen).size, 1, seen[0]);
  t.match(seen[0], /link\/not-accepted/);
});

t.test('both sides say what is wrong with a link: configuration errors', async (t) => {
  for (const [change, code] of [
    [{ secret: OTHER_SECRET }, 'link/wrong-secret'], [{ node: 'x' }, 'link/wrong-node'],
  ] as const) {
    const rig = realRig(t);
    const { a, b } = pair(rig);
    a.connect([{ ...{ node: 'b', address: rig.address('b'), secret: SECRET }, ...change }]).start();
    b.links.start();
    rig.until(() => a.links.status()[0].state === 'refused');
    t.match(a.links.status()[0].reason, /does not accept this link: group, node names or secret do not match/);
    t.equal(b.codes[0], code);
    t.equal(b.group.groupId, undefined);
  }
});

t.test('a false listener is told nothing but a hello and a proof', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  b.listener!.close();
  const c = rig.node('c'); // listens at b's address with another secret
  c.openGroup();
  Object.defineProperty(c, 'name', { value: 'b' });
  c.connect([{ node: 'a', secret: OTHER_SECRET }]);
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const proxy = new Proxy(io, rig.address('c'));
  t.teardown(() => {
    proxy.close();
    io.dispose();
  });
  proxy.record = true;
  c.listen(rig.address('c'));
  proxy.listen(rig.address('b'));
  a.links.start();
  rig.until(() => (proxy.reactor.step(0), a.links.status()[0].state === 'refused'));
  const said = Buffer.concat(proxy.recorded[0].dialer);
  t.ok(said.length < 500, `${said.length} bytes`);
  t.notOk(said.includes(a.group.groupId!), 'no group id');
});

t.test('another protocol version is told on both sides', async (t) => {
  const { rig, b, raw } = listening(t);
  const one = raw();
  one.hello({}, (view, at) => view.setUint16(at + 10, 9, true));
  rig.until(() => (one.poll(), one.frames.length === 1));
  t.match(decodeMessage('reject', one.frames[0][1]), { code: 'link/version', message: /version 9 .* version 1/ });
  t.equal(b.codes[0], 'link/version');
});

t.test('garbage, frames out of turn, oversize and half frames end the connection and change nothing', async (t) => {
  const { rig, a, b, raw } = listening(t);
  const cases: [string, string, (one: Raw) => void][] = [
    ['text', 'link/garbage', (one) => one.bytes(Buffer.from('GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n'))],
    ['an NBD client', 'link/garbage', (one) => one.bytes(Buffer.alloc(64, 'NBDMAGICIHAVEOPT'))],
    ['zeros', 'link/garbage', (one) => one.bytes(new Uint8Array(4096))],
    ['unknown type', 'link/garbage', (one) => one.hello({}, (view, at) => view.setUint8(at + 8, 200))],
    ['oversize hello', 'link/oversize', (one) => one.hello({}, (view, at) => view.setUint32(at + 12, 5000, true))],
    ['4 GiB', 'link/oversize', (one) => one.hello({}, (view, at) => view.setUint32(at + 12, 0xffffffff, true))],
    ['wrong frame number', 'link/skipped-frame', (one) => one.hello({}, (view, at) => view.setUint32(at + 24, 7, true))],
    ['an LSN beyond 2^53', 'link/garbage', (one) => one.hello({}, (view, at) => view.setUint32(at + 20, 0xffffffff, true))],
    ['a position before authentication', 'link/unexpected', (one) => one.frame(FrameType.position, new Uint8Array(100))],
    ['a batch before authentication', 'link/unexpected', (one) => one.frame(FrameType.batch, new Uint8Array(5000))],
    ['an ack before authentication', 'link/unexpected', (one) => one.frame(FrameType.ack, new Uint8Array(32))],
    ['a second hello', 'link/unexpected', (one) => (one.hello(), one.hello())],
    ['no msgpack', 'link/garbage', (one) => one.frame(FrameType.hello, new Uint8Array(300).fill(0xc1))],
    ['a huge array', 'link/garbage', (one) => one.frame(FrameType.hello, new Uint8Array([0xdd, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]))],
    ['deep nesting', 'link/garbage', (one) => one.frame(FrameType.hello, new Uint8Array(1024).fill(0x91))],
    ['a key too many', 'link/garbage', (one) => one.hello({ extra: 1 } as object)],
    ['a short nonce', 'link/garbage', (one) => one.hello({ nonce: new Uint8Array(31) })],
    ['a bad name', 'link/garbage', (one) => one.hello({ group: '../../etc' })],
    ['half a header', 'link/timeout', (one) => one.bytes(new Uint8Array(10))],
    ['silence', 'link/timeout', () => undefined],
  ];
  for (const [what, code, act] of cases) {
    b.listener!.close();
    b.listen(rig.address('b'), { link: { ...FAST, handshakeUs: 100_000 } });
    b.entries.length = 0;
    const one = raw();
    act(one);
    rig.until(() => (one.poll(), one.ended && b.codes.length > 0), what);
    t.equal(b.codes[0], code, what);
  }
  t.equal(b.group.groupId, undefined);
  a.links.start();
  b.links.start();
  rig.until(() => b.group.position.lsn === a.group.position.lsn, 'a real peer to be served all the same');
});

t.test('a flood of strangers is turned away; when it ends the peer gets through', async (t) => {
  const { rig, a, b, raw } = listening(t);
  b.listener!.close();
  b.listen(rig.address('b'), { maxStrangers: 4, link: { ...FAST, handshakeUs: 300_000 } });
  const base = b.arena.usedBytes;
  const crowd = Array.from({ length: 30 }, () => raw());
  rig.until(() => b.listener!.turnedAway >= 26, 'the crowd');
  t.equal(b.listener!.connectionCount, 4);
  t.ok(b.arena.usedBytes - base <= 4 * 8192, `${b.arena.usedBytes - base} bytes`);
  t.ok(b.entries.length <= 3, 'the log is not flooded');
  a.links.start();
  b.links.start();
  rig.until(() => b.group.position.lsn === a.group.position.lsn && b.listener!.connectionCount === 1, 'the peer');
  crowd.forEach((one) => one.poll());
  t.ok(crowd.every((one) => one.ended || (one.poll(), one.ended)));
});

t.test('what was recorded of a session opens no other', async (t) => {
  const rig = realRig(t);
  const { a, b } = pair(rig);
  const io = RealIo.create({ arenaBytes: 1024 * 1024 });
  const proxy = new Proxy(io, rig.address('b'));
  proxy.record = true;
  proxy.listen(rig.address('p'));
  t.teardown(() => {
    proxy.close();
    io.dispose();
  });
  a.connect([{ node: 'b', address: rig.address('p'), secret: SECRET }]).start();
  b.links.start();
  rig.until(() => (proxy.reactor.step(0), b.group.position.lsn === a.group.position.lsn && a.links.status()[0].state === 'streaming'));
  a.links.close();
  rig.until(() => (proxy.reactor.step(0), b.links.link('a')!.incoming === undefined));
  const before = b.group.position.lsn;
  const said = Buffer.concat(proxy.recorded[0].dialer);
  b.listener!.close();
  b.listen(rig.address('b'));
  b.entries.length = 0;
  const thief = new Raw().connect(rig.address('b'));
  t.teardown(() => thief.close());
  thief.bytes(said.subarray(0, 60000));
  rig.until(() => (thief.poll(), thief.ended));
  t.equal(b.codes[0], 'link/wrong-secret');
  t.equal(b.group.position.lsn, before);
});
