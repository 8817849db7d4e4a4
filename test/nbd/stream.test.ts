/** Requests in every disguise that a byte stream can give them, and bytes that are no requests. */
import { KIB, MIB } from '../../src/base/units.js';
import {
  NBD_CMD_BLOCK_STATUS as BLOCK_STATUS, NBD_CMD_DISC as DISC, NBD_CMD_FLUSH as FLUSH, NBD_CMD_READ as READ, NBD_CMD_TRIM as TRIM,
  NBD_CMD_WRITE as WRITE, NBD_EINVAL, NBD_ENOSPC,
} from '../../src/vendor/nbd-protocol-ts/index.js';
import { Stall } from '../../src/nbd/host.js';
import { pattern, seeded, withRig } from './rig.js';
import type { Rig } from './rig.js';
import type { RawClient } from './raw-client.js';

const SEED = Number(process.env.LOCKSTEP_SEED ?? Date.now() % 1_000_000);

/** A little of everything: bytes, and what their replies have to be. */
function medley(client: RawClient, size: number, round: number): { bytes: Buffer; check: (rig: Rig) => string } {
  const data = pattern(40, round);
  const first = client.replies.length;
  const bytes = Buffer.concat([
    client.encode(WRITE, 0, 5, 40, data),
    client.encode(READ, 0, 5, 40),
    client.encode(FLUSH, 0, 0, 0),
    client.encode(WRITE, 0, size - 1, 11, pattern(11, 1)), // refused, its payload is thrown away
    client.encode(BLOCK_STATUS, 0, 0, 65536),
    client.encode(READ, 0, size, 1), // refused
    client.encode(WRITE, 0, 7, 1, pattern(1, 1)),
    client.encode(TRIM, 0, 100, 10),
    client.encode(READ, 0, 8, 30),
  ]);
  return {
    bytes,
    check(): string {
      const found = client.replies.slice(first).sort((a, b) => a.cookie - b.cookie);
      const errnos = found.map((reply) => reply.errno).join();
      if (errnos !== [0, 0, 0, NBD_ENOSPC, 0, NBD_EINVAL, 0, 0, 0].join()) return `errors ${errnos}`;
      if (!found[1].data.equals(data)) return 'another first READ';
      if (!found[8].data.equals(data.subarray(3, 33))) return 'another second READ';
      return 'right';
    },
  };
}

void withRig('a stream of requests may be cut at any byte', {}, (rig, t) => {
  const device = rig.service.add('g/v', MIB);
  const client = rig.attach(device.exportName, { structuredReplies: true, contexts: ['base:allocation'] });
  // Reads are answered at once: as a group does, the order among reads and writes is that of arrival here.
  rig.service.answering = { kind: 'at once' };
  const wrong: string[] = [];
  const { length } = medley(client, MIB, 0).bytes;
  // The requests of that one were never sent.
  client.forget();
  for (let cut = 1; cut < length; cut++) {
    const { bytes, check } = medley(client, MIB, cut);
    client.send(bytes.subarray(0, cut));
    rig.step();
    rig.step();
    client.send(bytes.subarray(cut));
    rig.until(() => client.outstanding === 0, `the replies of a stream cut at ${cut}`);
    if (check(rig) !== 'right') wrong.push(`cut at ${cut}: ${check(rig)}`);
  }
  const { bytes, check } = medley(client, MIB, 999);
  for (const byte of bytes) {
    client.send(Buffer.from([byte]));
    rig.step();
  }
  rig.until(() => client.outstanding === 0, 'the replies of a stream of single bytes');
  if (check(rig) !== 'right') wrong.push(`byte by byte: ${check(rig)}`);
  t.strictSame(wrong, []);
});

void withRig('a handshake may be cut at any byte', {}, (rig, t) => {
  rig.service.add('g/v', MIB);
  const whole = handshakeBytes('g/v');
  for (let cut = 1; cut < whole.length; cut++) {
    const client = rig.connect();
    client.send(whole.subarray(0, cut));
    rig.step();
    rig.step();
    client.send(whole.subarray(cut));
    client.send(client.encode(READ, 0, 0, 16));
    rig.until(() => client.inbox.length >= 18 + 10 + 16 + 16, `a reply behind a handshake cut at ${cut}`);
    client.close();
    rig.step();
  }
  t.pass();
});

/** Client flags and EXPORT_NAME. */
function handshakeBytes(exportName: string): Buffer {
  const name = Buffer.from(exportName);
  const bytes = Buffer.alloc(20 + name.length);
  bytes.writeUInt32BE(3, 0);
  bytes.write('IHAVEOPT', 4, 'latin1');
  bytes.writeUInt32BE(1, 12);
  bytes.writeUInt32BE(name.length, 16);
  name.copy(bytes, 20);
  return bytes;
}

const CELL = 64 * KIB;
const CELLS = 32;

/** One client that works on its own part of the device, never twice on one cell at a time, and knows what it wrote. */
class Worker {
  readonly model: Uint8Array;
  private readonly busy = new Set<number>();
  private readonly expected = new Map<number, { cells: number[]; data: Uint8Array | undefined }>();
  issued = 0;

  constructor(
    readonly client: RawClient,
    readonly base: number,
    private readonly random: () => number,
  ) {
    this.model = new Uint8Array(CELL * CELLS);
  }

  issue(): void {
    const { random } = this;
    const cells = random() < 0.05 ? Math.floor(random() * CELLS) : 1;
    const from = Math.floor(random() * (CELLS - cells));
    const range = Array.from({ length: cells }, (_, i) => from + i);
    if (cells === 0 || range.some((cell) => this.busy.has(cell))) return;
    const start = from * CELL + Math.floor(random() * 5000);
    const small = random() < 0.7;
    const end = small && cells === 1 ? start + 1 + Math.floor(random() * 9000) : (from + cells) * CELL - Math.floor(random() * 100);
    const length = end - start;
    const kind = random();
    let data: Uint8Array | undefined;
    let cookie: number;
    if (kind < 0.45) {
      const bytes = pattern(length, Math.floor(random() * 1e9));
      this.model.set(bytes, start);
      cookie = this.client.request(WRITE, random() < 0.1 ? 1 : 0, this.base + start, length, bytes);
    } else if (kind < 0.55) {
      this.model.fill(0, start, end);
      cookie = this.client.request(TRIM, 0, this.base + start, length);
    } else if (kind < 0.95) {
      data = this.model.slice(start, end);
      cookie = this.client.request(READ, 0, this.base + start, length);
    } else {
      cookie = this.client.request(FLUSH, 0, 0, 0);
      this.expected.set(cookie, { cells: [], data });
      return;
    }
    this.issued++;
    for (const cell of range) this.busy.add(cell);
    this.expected.set(cookie, { cells: range, data });
  }

  /** Takes replies; gives what was wrong with them. */
  check(): string[] {
    const wrong: string[] = [];
    for (const reply of this.client.replies.splice(0)) {
      const { cells, data } = this.expected.get(reply.cookie)!;
      this.expected.delete(reply.cookie);
      for (const cell of cells) this.busy.delete(cell);
      if (reply.errno !== 0) wrong.push(`request ${reply.cookie}: errno ${reply.errno}`);
      else if (data !== undefined && !reply.data.equals(data)) wrong.push(`request ${reply.cookie}: other data`);
    }
    return wrong;
  }
}

for (const [what, structuredReplies, limits] of [
  ['ample limits', false, {}],
  ['narrow limits', true, { maxInFlight: 7, maxReplyBytes: 100 * KIB, maxPayloadBytes: 100 * KIB, chunkBytes: 128 * KIB, reserveBytes: 2 * MIB, headroomBytes: 0, flushBytes: 16 * KIB, largeReadBytes: 20_000, largeWriteBytes: 8192, tickBytes: 50_000 }],
] as const) {
  const narrow = structuredReplies;
  void withRig(`random requests of five clients, answered in any order: ${what} (seed ${SEED})`, {
    limits, ...(narrow && { arenaBytes: 4 * MIB, slots: 11 }),
  }, (rig, t) => {
    const random = seeded(SEED);
    rig.service.add('g/v', 5 * CELL * CELLS);
    rig.service.answering = { kind: 'delayed', maxUs: 300, random };
    const workers = [0, 1, 2, 3, 4].map((i) => new Worker(rig.attach('g/v', { structuredReplies }), i * CELL * CELLS, random));
    const wrong: string[] = [];
    let stalls = 0;
    rig.until(() => {
      for (const { stall } of rig.server.status()) stalls |= stall;
      for (const worker of workers) {
        for (let burst = Math.floor(random() * 12); burst > 0 && worker.client.outstanding < 24; burst--) worker.issue();
        // Now and then a client reads nothing for a while.
        if (random() < 0.02) worker.client.reading = !worker.client.reading;
        wrong.push(...worker.check());
      }
      return workers.every((worker) => worker.issued >= 400) || wrong.length > 0;
    }, 'enough requests');
    for (const worker of workers) worker.client.reading = true;
    rig.until(() => {
      for (const worker of workers) wrong.push(...worker.check());
      return workers.every((worker) => worker.client.outstanding === 0);
    }, 'the last replies');
    t.strictSame(wrong, []);
    if (narrow) t.equal(stalls, Stall.blocked | Stall.full | Stall.starved, 'every kind of back-pressure was met');
    const device = rig.service.devices.get('g/v')!;
    for (const worker of workers) {
      const found = new Uint8Array(worker.model.length);
      device.read(worker.base, found);
      t.ok(Buffer.from(found).equals(worker.model), 'the device holds what was written');
    }
  });
}

void withRig(`damaged streams end their own connection at most (seed ${SEED})`, {
  limits: { reserveBytes: 4 * MIB, headroomBytes: 0 }, arenaBytes: 32 * MIB,
}, (rig, t) => {
  const random = seeded(SEED + 1);
  const device = rig.service.add('g/v', MIB);
  rig.service.add('g/witness', MIB);
  const witness = rig.attach('g/witness');
  let closed = 0;
  for (let round = 0; round < 300; round++) {
    const client = rig.connect();
    const stream = Buffer.concat([
      handshakeBytes('g/v'), medley(client, MIB, round).bytes, client.encode(WRITE, 0, 0, 5000, pattern(5000, round)), client.encode(DISC, 0, 0, 0),
    ]);
    const kind = round % 4;
    let bytes: Buffer;
    if (kind === 0) {
      bytes = Buffer.from(Uint8Array.from({ length: Math.floor(random() * 3000) }, () => Math.floor(random() * 256)));
    } else {
      bytes = Buffer.from(stream);
      // Somewhere in the stream, often in its first bytes, where the headers are.
      const damages = 1 + Math.floor(random() * 3);
      for (let i = 0; i < damages; i++) bytes[Math.floor(random() ** 2 * bytes.length)] ^= 1 << Math.floor(random() * 8);
      if (kind === 2) bytes = bytes.subarray(0, Math.floor(random() * bytes.length));
      if (kind === 3) bytes = Buffer.concat([bytes.subarray(0, 24 + Math.floor(random() * 300)), Buffer.from([round]), bytes.subarray(30)]);
    }
    for (let at = 0; at < bytes.length; ) {
      const n = 1 + Math.floor(random() * 2000);
      client.send(bytes.subarray(at, at + n));
      rig.step();
      at += n;
    }
    rig.step();
    if (client.ended) closed++;
    client.close();
    if (round % 20 === 0) {
      const data = pattern(3000, round);
      const written = witness.request(WRITE, 0, round, 3000, data);
      rig.until(() => witness.reply(written)?.errno === 0, 'the other client is served');
      const read = witness.request(READ, 0, round, 3000);
      rig.until(() => witness.reply(read) !== undefined, 'the other client is served');
      t.ok(witness.reply(read)!.data.equals(data));
    }
  }
  t.ok(closed > 50, `the server closed ${closed} of 300`);
  t.ok(device.sizeBytes === MIB);
  t.notOk(witness.ended);
});

void withRig('what is no request closes the connection, with the reason in the log', {}, (rig, t) => {
  rig.service.add('g/v', MIB);
  const magic = rig.attach('g/v');
  magic.send(Buffer.alloc(28, 0x55));
  rig.until(() => magic.ended, 'the end after a wrong magic');
  t.equal(rig.logged(/wrong magic/).length, 1);
  const huge = rig.attach('g/v');
  huge.send(huge.encode(WRITE, 0, 0, 0xffffffff));
  rig.until(() => huge.ended, 'the end after a WRITE of 4 GiB');
  t.equal(rig.logged(/more payload than/).length, 1);
  const half = rig.attach('g/v');
  half.send(half.encode(WRITE, 0, 0, 100).subarray(0, 20));
  rig.step();
  half.close();
  rig.until(() => rig.logged(/middle of a request/).length === 1, 'a line about half a header');
  const payload = rig.attach('g/v');
  payload.send(payload.encode(WRITE, 0, 0, 100_000, pattern(50_000, 1)));
  rig.until(() => payload.unsent === 0, 'half a payload is sent');
  rig.settle();
  t.equal(rig.service.requests.used, 1, 'the request waits for the rest');
  payload.close();
  rig.until(() => rig.logged(/middle of a request/).length === 2, 'a line about half a payload');
  t.equal(rig.service.requests.used, 0);
  t.equal(rig.service.counts.write, 0);
  const hello = rig.connect();
  hello.send(Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'));
  rig.until(() => hello.ended, 'the end after HTTP');
  t.equal(rig.logged(/flags that were not offered/).length, 1);
});
