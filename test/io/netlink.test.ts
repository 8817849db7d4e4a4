import { existsSync } from 'node:fs';
import t from 'tap';
import { Errno } from '../../src/base/errors.js';
import type { NetlinkTransport } from '../../src/io/netlink.js';
import { NbdNetlink } from '../../src/io/netlink.js';
import {
  decodeAttributes, decodeMessages, encodeRequest, nestedAttribute, text, textAttribute, u32Attribute, u64Attribute, unsigned, attribute,
} from '../../src/io/netlink-codec.js';

const FAMILY = 0x1c;
const GROUP = 6;

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function join(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

function result(sequence: number, errno: number): Uint8Array {
  const out = Buffer.alloc(36);
  out.writeUInt32LE(36, 0);
  out.writeUInt16LE(2, 4);
  out.writeUInt32LE(sequence, 8);
  out.writeInt32LE(-errno, 16);
  return out;
}

/** A kernel that follows a script: one errno or answer per request, in order. It decodes what it is sent. */
class FakeKernel implements NetlinkTransport {
  readonly requests: { command: number; attributes: Map<number, Uint8Array>; raw: Uint8Array }[] = [];
  readonly queue: (Uint8Array | number)[] = [];
  readonly answers: (number | Uint8Array[])[] = [];
  joined = 0;
  closed = false;
  maxAttribute = 10;

  send(bytes: Uint8Array): number {
    const [message] = decodeMessages(bytes);
    if (message.kind !== 'message') throw new Error('not a request');
    const attributes = new Map(message.attributes.map((one) => [one.number, one.value]));
    this.requests.push({ command: message.command, attributes, raw: bytes });
    if (message.family === 16) {
      this.queue.push(encodeRequest(16, 1, 2, message.sequence, this.aboutFamily()), result(message.sequence, 0));
      return bytes.length;
    }
    const answer = this.answers.shift() ?? 0;
    if (typeof answer === 'number') {
      this.queue.push(result(message.sequence, answer));
    } else {
      // A late answer to something else first, then reply and acknowledgement in one datagram.
      this.queue.push(result(message.sequence - 1, 5));
      this.queue.push(join(encodeRequest(FAMILY, message.command, 1, message.sequence, answer), result(message.sequence, 0)));
    }
    return bytes.length;
  }
  private aboutFamily(): Uint8Array[] {
    const id = new Uint8Array(2);
    new DataView(id.buffer).setUint16(0, FAMILY, true);
    return [
      attribute(1, id), textAttribute(2, 'nbd'), u32Attribute(5, this.maxAttribute),
      nestedAttribute(7, [nestedAttribute(1, [u32Attribute(2, GROUP), textAttribute(1, 'nbd_mc_group')])]),
    ];
  }
  receive(into: Uint8Array): number {
    const next = this.queue.shift() ?? -Errno.EAGAIN;
    if (typeof next === 'number') return next;
    into.set(next);
    return next.length;
  }
  join(group: number): number {
    this.joined = group;
    return 0;
  }
  close(): void {
    this.closed = true;
  }
}

t.test('requests have the layout of linux/genetlink.h', (t) => {
  const bytes = encodeRequest(0x1c, 1, 1, 7, [u32Attribute(1, 3), textAttribute(10, 'ab'), u64Attribute(2, 2 ** 40)]);
  t.equal(
    hex(bytes),
    '30000000' + '1c00' + '0500' + '07000000' + '00000000' + '01010000' +
      '08000100' + '03000000' + '07000a00' + '61620000' + '0c000200' + '0000000000010000',
  );
  t.equal(hex(nestedAttribute(7, [nestedAttribute(1, [u32Attribute(1, 9)])])), '10000780' + '0c000180' + '08000100' + '09000000');
  t.end();
});

t.test('what was encoded is decoded', (t) => {
  const bytes = encodeRequest(0x1c, 5, 1, 99, [textAttribute(10, 'abc'), u64Attribute(2, 2 ** 52), nestedAttribute(9, [u32Attribute(1, 4)])]);
  const [message] = decodeMessages(join(bytes, result(99, 17)));
  t.match(message, { kind: 'message', family: 0x1c, command: 5, sequence: 99 });
  if (message.kind !== 'message') throw new Error();
  t.equal(text(message.attributes[0].value), 'abc');
  t.equal(unsigned(message.attributes[1].value), 2 ** 52);
  t.equal(message.attributes[2].number, 9, 'without the nested bit');
  t.equal(unsigned(decodeAttributes(message.attributes[2].value)[0].value), 4);
  t.match(decodeMessages(join(bytes, result(99, 17)))[1], { kind: 'result', errno: 17, sequence: 99 });
  t.end();
});

t.test('every cut of a datagram is refused or understood, never worse', (t) => {
  const whole = encodeRequest(0x1c, 5, 1, 99, [textAttribute(10, 'abc'), nestedAttribute(9, [u32Attribute(1, 4)])]);
  for (let length = 1; length < whole.length; length++) {
    t.throws(() => decodeMessages(whole.subarray(0, length)), { code: 'netlink/malformed' });
    const lying = whole.slice(0, length);
    if (length >= 4) new DataView(lying.buffer).setUint32(0, length, true);
    try {
      decodeMessages(lying);
    } catch (error) {
      t.match(error, { code: 'netlink/malformed' });
    }
  }
  t.end();
});

t.test('connect sends what was asked for and returns the index that the kernel picked', (t) => {
  const kernel = new FakeKernel();
  const link = NbdNetlink.open(kernel);
  t.equal(link.knowsIdentifier, true);
  kernel.answers.push([u32Attribute(1, 5)]);
  const index = link.connect({
    sockets: [33, 34], sizeBytes: 2 ** 40, blockBytes: 4096, timeoutSeconds: 3, deadTimeoutSeconds: 60, serverFlags: 0x16d, clientFlags: 1,
    identifier: 'vol',
  });
  t.equal(index, 5);
  const { command, attributes } = kernel.requests[1];
  t.equal(command, 1);
  t.same([...attributes.keys()].sort((a, b) => a - b), [2, 3, 4, 5, 6, 7, 8, 10], 'no index');
  const number = (attr: number): number => unsigned(attributes.get(attr)!);
  t.same([2, 3, 4, 5, 6, 8].map(number), [2 ** 40, 4096, 3, 0x16d, 1, 60]);
  t.equal(text(attributes.get(10)!), 'vol');
  const fds = decodeAttributes(attributes.get(7)!).map((item) => unsigned(decodeAttributes(item.value)[0].value));
  t.same(fds, [33, 34]);
  link.close();
  t.equal(kernel.closed, true);
  t.end();
});

t.test('an old kernel is not sent the identifier', (t) => {
  const kernel = new FakeKernel();
  kernel.maxAttribute = 9;
  const link = NbdNetlink.open(kernel);
  t.equal(link.knowsIdentifier, false);
  link.reconfigure(2, { identifier: 'vol', sizeBytes: 4096 });
  t.same([...kernel.requests[1].attributes.keys()], [1, 2]);
  t.equal(unsigned(kernel.requests[1].attributes.get(1)!), 2);
  t.end();
});

t.test('status lists devices, also none', (t) => {
  const kernel = new FakeKernel();
  const link = NbdNetlink.open(kernel);
  const device = (index: number, connected: number): Uint8Array =>
    nestedAttribute(1, [u32Attribute(1, index), attribute(2, new Uint8Array([connected]))]);
  kernel.answers.push([nestedAttribute(9, [device(0, 1), device(7, 0)])], [nestedAttribute(9, [])], [u32Attribute(1, 1)]);
  t.same(link.status(), [{ index: 0, connected: true }, { index: 7, connected: false }]);
  t.same(link.status(3), []);
  t.throws(() => link.status(), { code: 'netlink/malformed' }, 'an answer without the list');
  t.end();
});

t.test('refusals are sentences', (t) => {
  const kernel = new FakeKernel();
  const link = NbdNetlink.open(kernel);
  kernel.answers.push(Errno.EPERM, Errno.EBUSY, Errno.EINVAL, Errno.ENOMEM);
  const options = { index: 4, sockets: [3], sizeBytes: 4096, serverFlags: 1 };
  t.throws(() => link.connect(options), { name: 'OperatorError', code: 'nbd/not-root', message: /\/dev\/nbd4 needs root/ });
  t.throws(() => link.connect(options), { name: 'OperatorError', code: 'nbd/busy' });
  t.throws(() => link.disconnect(4), { name: 'OperatorError', code: 'nbd/refused', message: /detach \/dev\/nbd4/ });
  t.throws(() => link.connect(options), { name: 'IoError', code: 'io/ENOMEM' });
  kernel.queue.length = 0;
  kernel.send = (bytes) => bytes.length;
  t.throws(() => link.disconnect(4), { name: 'IoError', code: 'io/ETIMEDOUT' }, 'no answer');
  t.end();
});

t.test('dead links are reported one by one', (t) => {
  const kernel = new FakeKernel();
  const link = NbdNetlink.open(kernel);
  const events = new FakeKernel();
  const deaths = link.linkDeaths(100, events);
  t.equal(events.joined, GROUP);
  const death = (index: number): Uint8Array => encodeRequest(FAMILY, 4, 1, 0, [u32Attribute(1, index)]);
  events.queue.push(join(death(1), death(2)), -105, encodeRequest(0x99, 4, 1, 0, [u32Attribute(1, 3)]), death(4));
  t.same(
    [1, 2, 3, 4, 5, 6].map(() => deaths.next()),
    [{ kind: 'dead', index: 1 }, { kind: 'dead', index: 2 }, { kind: 'missed' }, { kind: 'none' }, { kind: 'dead', index: 4 }, { kind: 'none' }],
  );
  deaths.close();
  t.equal(events.closed, true);
  t.end();
});

t.test('without the module the answer says what to do', { skip: existsSync('/sys/module/nbd') ? 'this kernel has nbd' : false }, (t) => {
  t.throws(() => NbdNetlink.open(), { name: 'OperatorError', code: 'nbd/no-module', message: /run modprobe nbd/ });
  t.end();
});
