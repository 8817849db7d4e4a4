/** What each request is answered with. */
import { GIB, MIB } from '../../src/base/units.js';
import {
  NBD_CMD_BLOCK_STATUS as BLOCK_STATUS, NBD_CMD_CACHE as CACHE, NBD_CMD_DISC as DISC, NBD_CMD_FLAG_DF as DF, NBD_CMD_FLAG_FAST_ZERO as FAST_ZERO,
  NBD_CMD_FLAG_FUA as FUA, NBD_CMD_FLAG_NO_HOLE as NO_HOLE, NBD_CMD_FLAG_REQ_ONE as REQ_ONE, NBD_CMD_FLUSH as FLUSH, NBD_CMD_READ as READ,
  NBD_CMD_TRIM as TRIM, NBD_CMD_WRITE as WRITE, NBD_CMD_WRITE_ZEROES as WRITE_ZEROES, NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_EOVERFLOW, NBD_EPERM,
  NBD_ESHUTDOWN, NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_READ_ONLY,
} from '../../src/vendor/nbd-protocol-ts/index.js';
import { pattern, withRig } from './rig.js';
import type { Rig } from './rig.js';
import type { RawClient, Reply } from './raw-client.js';

/** Sends one request and waits for its reply. */
function ask(rig: Rig, client: RawClient, type: number, flags: number, offset: number, length: number, payload?: Uint8Array): Reply {
  const cookie = client.request(type, flags, offset, length, payload);
  rig.until(() => client.reply(cookie) !== undefined, `a reply to command ${type}`);
  return client.reply(cookie)!;
}

for (const structuredReplies of [false, true]) {
  const kind = structuredReplies ? 'structured' : 'simple';

  void withRig(`${kind} replies: what was written is read, at odd offsets and lengths`, {}, (rig, t) => {
    rig.service.add('g/v', MIB);
    const client = rig.attach('g/v', { structuredReplies });
    for (const [offset, length] of [[0, 1], [1, 511], [4096, 4096], [4095, 4098], [MIB - 1, 1], [100, 300_000], [0, MIB]]) {
      const bytes = pattern(length, offset + length);
      t.equal(ask(rig, client, WRITE, 0, offset, length, bytes).errno, 0);
      const back = ask(rig, client, READ, structuredReplies ? DF : 0, offset, length);
      t.equal(back.errno, 0);
      t.equal(back.structured, structuredReplies);
      t.ok(back.data.equals(bytes), `${length} bytes at ${offset}`);
    }
  });

  void withRig(`${kind} replies: errors are those of the specification, and the connection goes on`, {}, (rig, t) => {
    const device = rig.service.add('g/v', MIB);
    const client = rig.attach('g/v', { structuredReplies, ...(structuredReplies && { contexts: ['base:allocation'] }) });
    const errno = (type: number, flags: number, offset: number, length: number, payload?: Uint8Array): number => {
      const reply = ask(rig, client, type, flags, offset, length, payload);
      t.equal(reply.structured, structuredReplies && (type === READ || type === BLOCK_STATUS) && reply.errno !== 0 ? true : reply.structured);
      return reply.errno;
    };
    t.equal(errno(READ, 0, MIB, 1), NBD_EINVAL, 'a READ behind the end');
    t.equal(errno(READ, 0, MIB - 1, 2), NBD_EINVAL, 'a READ over the end');
    t.equal(errno(READ, 0, 2 ** 53 - 4096, 4096), NBD_EINVAL, 'a READ far behind the end');
    t.equal(errno(READ, FAST_ZERO, 0, 512), NBD_EINVAL, 'a flag of another command');
    t.equal(errno(READ, 1 << 9, 0, 512), NBD_EINVAL, 'an unknown flag');
    t.equal(errno(WRITE, 0, MIB - 1, 2, pattern(2, 1)), NBD_ENOSPC, 'a WRITE over the end');
    t.equal(errno(WRITE, 1 << 9, 0, 2, pattern(2, 1)), NBD_EINVAL, 'a WRITE with an unknown flag');
    t.equal(errno(WRITE, 0, 0, 33 * MIB, new Uint8Array(33 * MIB)), NBD_EINVAL, 'a WRITE above the maximum, larger than the device');
    t.equal(errno(17, 0, 0, 0), NBD_EINVAL, 'an unknown command');
    t.equal(errno(FLUSH, 0, 1, 0), NBD_EINVAL, 'a FLUSH with an offset');
    t.equal(errno(READ, 0, 0, 0), NBD_EINVAL, 'a READ of nothing');
    device.writable = false;
    t.equal(errno(WRITE, 0, 0, 2, pattern(2, 1)), NBD_EPERM, 'a WRITE on what has become read-only');
    t.equal(errno(TRIM, 0, 0, 2), NBD_EPERM);
    t.equal(errno(WRITE_ZEROES, 0, 0, 2), NBD_EPERM);
    t.equal(errno(READ, 0, 0, 2), 0);
    device.writable = true;
    rig.service.failWith = () => NBD_EIO;
    t.equal(errno(READ, 0, 0, 4096), NBD_EIO, 'a READ that the service cannot serve');
    t.equal(errno(READ, 0, 0, 512 * 1024), NBD_EIO, 'a large one');
    t.equal(errno(WRITE, 0, 0, 2, pattern(2, 1)), NBD_EIO);
    rig.service.failWith = () => 30; // EROFS is not an error of the protocol
    t.equal(errno(WRITE, 0, 0, 2, pattern(2, 1)), NBD_EPERM);
    rig.service.failWith = () => 122;
    t.equal(errno(WRITE, 0, 0, 2, pattern(2, 1)), NBD_ENOSPC);
    rig.service.failWith = () => 71;
    t.equal(errno(WRITE, 0, 0, 2, pattern(2, 1)), NBD_EIO, 'an errno without a counterpart is EIO');
    if (structuredReplies) t.equal(errno(BLOCK_STATUS, 0, 0, MIB), NBD_EIO);
    rig.service.failWith = undefined;
    device.gone = true;
    for (const type of [READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE]) {
      t.equal(errno(type, 0, 0, type === FLUSH ? 0 : 2, type === WRITE ? pattern(2, 1) : undefined), NBD_ESHUTDOWN, `command ${type} on what is gone`);
    }
    device.gone = false;
    t.equal(errno(READ, 0, 0, MIB), 0, 'the connection still serves');
  });
}

void withRig('TRIM and WRITE_ZEROES of up to 4 GiB - 1 are one request each', {}, (rig, t) => {
  const device = rig.service.add('g/v', 8 * GIB);
  const client = rig.attach('g/v');
  ask(rig, client, WRITE, 0, 3 * GIB, 5000, pattern(5000, 3));
  ask(rig, client, WRITE, 0, 5 * GIB, 5000, pattern(5000, 3));
  t.equal(ask(rig, client, TRIM, FUA, GIB, 2 ** 32 - 1).errno, 0);
  t.ok(ask(rig, client, READ, 0, 3 * GIB, 5000).data.equals(Buffer.alloc(5000)));
  t.equal(device.regions.size, 1, 'what lies behind the range stays');
  t.equal(ask(rig, client, WRITE_ZEROES, FAST_ZERO | NO_HOLE | FUA, 4 * GIB, 2 ** 32 - 1).errno, 0);
  t.equal(device.regions.size, 0);
  t.equal(rig.service.counts.zero, 2);
  t.equal(rig.service.counts.fua, 2);
});

void withRig('FLUSH, CACHE and FUA reach the service', {}, (rig, t) => {
  rig.service.add('g/v', MIB);
  const client = rig.attach('g/v');
  t.equal(ask(rig, client, FLUSH, 0, 0, 0).errno, 0);
  t.equal(ask(rig, client, CACHE, 0, 0, MIB).errno, 0);
  t.equal(ask(rig, client, WRITE, FUA, 0, 512, pattern(512, 1)).errno, 0);
  t.equal(ask(rig, client, READ, FUA, 0, 512).errno, 0, 'FUA is allowed and means nothing on READ');
  t.match(rig.service.counts, { flush: 1, cache: 1, fua: 1, write: 1, read: 1 });
});

void withRig('a READ with DF above the maximum is EOVERFLOW; 32 MiB is the maximum', {}, (rig, t) => {
  rig.service.add('g/v', GIB);
  const client = rig.attach('g/v', { structuredReplies: true });
  t.equal(ask(rig, client, READ, DF, 0, 32 * MIB + 1).errno, NBD_EOVERFLOW);
  t.equal(ask(rig, client, READ, 0, 0, 32 * MIB + 1).errno, NBD_EINVAL);
  const bytes = pattern(32 * MIB, 9);
  t.equal(ask(rig, client, WRITE, 0, 4096, 32 * MIB, bytes).errno, 0);
  t.ok(ask(rig, client, READ, DF, 4096, 32 * MIB).data.equals(bytes), '32 MiB come back');
  t.equal(ask(rig, client, WRITE, 0, 0, 33 * MIB, new Uint8Array(33 * MIB)).errno, NBD_EINVAL, 'more is refused behind its payload');
  t.ok(ask(rig, client, READ, 0, 4096, 512).data.equals(bytes.subarray(0, 512)));
});

void withRig('BLOCK_STATUS tells holes, one extent on demand, and the identity of the device by context name', {}, (rig, t) => {
  const device = rig.service.add('g/v', MIB);
  device.write(131072, pattern(65536, 1));
  const names = ['base:allocation', `lockstep:device-id/${device.deviceIdentity}`, `lockstep:continuity-id/${device.continuityIdentity}`];
  const client = rig.attach('g/v', { structuredReplies: true, contexts: [...names, 'lockstep:device-id/another'] });
  const { outcome } = client;
  t.ok(outcome.kind === 'transmission');
  if (outcome.kind !== 'transmission') return;
  t.strictSame(outcome.export.contexts.map((c) => c.name), names, 'a context with another identity is not given');
  const all = ask(rig, client, BLOCK_STATUS, 0, 0, MIB).extents;
  t.strictSame([...all.get(1)!], [131072, 3, 65536, 0, MIB - 196608, 3]);
  t.strictSame([...all.get(2)!], [MIB, 0]);
  t.strictSame([...all.get(3)!], [MIB, 0]);
  const one = ask(rig, client, BLOCK_STATUS, REQ_ONE, 100, 200_000).extents;
  t.strictSame([...one.get(1)!], [131072 - 100, 3]);
  const identityOnly = rig.attach('g/v', { structuredReplies: true, contexts: [names[1]] });
  t.strictSame([...ask(rig, identityOnly, BLOCK_STATUS, 0, 0, MIB).extents.keys()], [2]);
  const without = rig.attach('g/v', { structuredReplies: true });
  t.equal(ask(rig, without, BLOCK_STATUS, 0, 0, MIB).errno, NBD_EINVAL, 'without a context there is no BLOCK_STATUS');
});

void withRig('a client may list the contexts and read the identity there', {}, (rig, t) => {
  const device = rig.service.add('g/v', MIB);
  device.description = 'on the primary';
  const list = rig.connect();
  list.greet({ kind: 'listContexts', name: 'g/v', queries: ['lockstep:'] });
  rig.until(() => list.outcome.kind === 'contexts', 'the list of contexts');
  t.match(list.outcome, { names: ['lockstep:device-id/dev-1', 'lockstep:continuity-id/c0ffee.0'] });
  const info = rig.connect();
  info.greet({ kind: 'info', name: 'g/v' });
  rig.until(() => info.outcome.kind === 'described', 'the description');
  t.match(info.outcome, {
    export: { description: 'on the primary (device dev-1, continuity c0ffee.0)', canonicalName: 'g/v', minimumBlock: 1, preferredBlock: 4096, maximumBlock: 32 * MIB },
  });
});

void withRig('the flags tell the truth: read-only, multi-conn', {}, (rig, t) => {
  rig.service.add('g/v', MIB);
  rig.service.add('g/r', MIB).writable = false;
  const flagsOf = (name: string): number => {
    const { outcome } = rig.attach(name);
    return outcome.kind === 'transmission' ? outcome.export.transmissionFlags : -1;
  };
  t.equal(flagsOf('g/v') & NBD_FLAG_READ_ONLY, 0);
  t.equal(flagsOf('g/r') & NBD_FLAG_READ_ONLY, NBD_FLAG_READ_ONLY);
  t.equal(flagsOf('g/v') & NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_CAN_MULTI_CONN);
});

void withRig('an export that is not served now is refused with its sentence', {}, (rig, t) => {
  rig.service.add('g/v', MIB).unavailable = 'the group g is stopped: run lockstep start g';
  for (const [name, reason] of [['g/v', /the group g is stopped/], ['g/w', /no export "g\/w"/], ['', /no export/]] as const) {
    const client = rig.connect();
    client.greet({ kind: 'go', name });
    rig.until(() => client.outcome.kind !== 'more', 'an answer');
    t.match(client.outcome, { kind: 'failed', code: 'refused', reason });
  }
});

void withRig('DISC: what is under way is answered, then the connection is closed', {}, (rig, t) => {
  rig.service.add('g/v', MIB);
  rig.service.answering = { kind: 'by hand' };
  const client = rig.attach('g/v');
  const written = client.request(WRITE, 0, 0, 4096, pattern(4096, 7));
  const read = client.request(READ, 0, 0, 4096);
  client.send(client.encode(DISC, 0, 0, 0));
  client.send(client.encode(WRITE, 0, 0, 4096, pattern(4096, 8)));
  rig.until(() => rig.service.waitingCount === 2, 'both requests');
  rig.settle();
  t.notOk(client.ended, 'it is not closed before its replies');
  t.equal(rig.service.waitingCount, 2, 'what follows a DISC is not looked at');
  rig.service.answer(2);
  rig.until(() => client.ended, 'the end');
  t.equal(client.reply(written)?.errno, 0);
  t.ok(client.reply(read)?.data.equals(pattern(4096, 7)));
});

void withRig('a client that ends its side of the stream still gets its replies', {}, async (rig, t) => {
  rig.service.add('g/v', MIB);
  const script = `
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(${JSON.stringify(rig.path)})
def need(n):
    b = b""
    while len(b) < n:
        p = s.recv(n - len(b))
        assert p, "ended early"
        b += p
    return b
need(18); s.sendall((3).to_bytes(4, "big"))
name = b"g/v"
s.sendall(b"IHAVEOPT" + (1).to_bytes(4, "big") + len(name).to_bytes(4, "big") + name); need(10)
s.sendall(bytes.fromhex("25609513") + bytes(2) + bytes(2) + b"cookie!!" + bytes(8) + (4096).to_bytes(4, "big"))
s.shutdown(socket.SHUT_WR)
need(16 + 4096)
assert s.recv(1) == b""
print("served")`;
  const result = await rig.tool('/usr/bin/python3', '-c', script);
  t.match(result, { code: 0, stdout: 'served\n' });
});

void withRig('requests that are sent together with the last option are served', {}, (rig, t) => {
  const device = rig.service.add('g/v', MIB);
  const client = rig.connect();
  const name = Buffer.from('g/v');
  const option = Buffer.alloc(4 + 16 + name.length);
  option.writeUInt32BE(3, 0);
  option.write('IHAVEOPT', 4, 'latin1');
  option.writeUInt32BE(1, 12);
  option.writeUInt32BE(name.length, 16);
  name.copy(option, 20);
  const bytes = pattern(9000, 5);
  client.send(Buffer.concat([option, client.encode(WRITE, 0, 77, 9000, bytes), client.encode(READ, 0, 77, 9000), client.encode(DISC, 0, 0, 0)]));
  rig.until(() => client.ended, 'the end');
  client.inbox = client.inbox.subarray(18 + 10);
  client.parseReplies();
  rig.step();
  client.ended = true;
  const found = new Uint8Array(9000);
  device.read(77, found);
  t.ok(Buffer.from(found).equals(bytes));
});

void withRig('disconnect by the group closes the connection and names the reason', {}, (rig, t) => {
  const device = rig.service.add('g/v', MIB);
  rig.service.answering = { kind: 'by hand' };
  const client = rig.attach('g/v');
  client.request(WRITE, 0, 0, 4096, pattern(4096, 7));
  client.request(READ, 0, 0, 4096);
  rig.until(() => rig.service.waitingCount === 2, 'both requests');
  for (const one of device.clients) one.disconnect('the device is being restored');
  t.equal(device.clients.size, 0);
  rig.until(() => client.ended, 'the end');
  t.equal(rig.logged(/the device is being restored/).length, 1);
  t.equal(rig.service.requests.used, 2, 'the service still has the requests');
  rig.service.answer(2);
  t.equal(rig.service.requests.used, 0, 'their answers go nowhere');
  t.equal(client.replies.length, 0);
});

