/** Reconcile: what it finds, what it sends, and what it says when the stream or a device is not as it should be. */
import { createHash } from 'node:crypto';
import { PassThrough, Transform } from 'node:stream';
import fc from 'fast-check';
import t from 'tap';
import { DIGEST_BYTES, DigestSum, putRegionDigest } from '../../src/base/content-digest.js';
import { BLOCK_BYTES, GIB, MIB, REGION_BYTES } from '../../src/base/units.js';
import { Channel } from '../../src/cli/reconcile/channel.js';
import type { RegionDevice } from '../../src/cli/reconcile/device.js';
import { PROTOCOL_VERSION, Type, encodeJson, encodeSubtree } from '../../src/cli/reconcile/messages.js';
import type { Result } from '../../src/cli/reconcile/messages.js';
import type { Patience } from '../../src/cli/reconcile/patience.js';
import { refuse } from '../../src/cli/reconcile/side.js';
import { Sink } from '../../src/cli/reconcile/sink.js';
import { Source } from '../../src/cli/reconcile/source.js';
import type { SourceReport } from '../../src/cli/reconcile/source.js';
import { digestDevice } from '../../src/cli/reconcile/tree.js';

const SEED = Number(process.env['TEST_SEED'] ?? Date.now() % 1_000_000);
t.comment(`TEST_SEED=${SEED}`);

/** A sparse device in memory. */
class MemoryDevice implements RegionDevice {
  readonly regions = new Map<number, Buffer>();
  readBytes = 0;
  flushes = 0;
  /** Called before each read with its offset. */
  onRead: (offset: number) => void = () => undefined;

  constructor(readonly name: string, readonly sizeBytes: number, readonly readOnly = false) {}

  put(offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const index = Math.floor((offset + at) / REGION_BYTES);
      const inside = (offset + at) % REGION_BYTES;
      const count = Math.min(REGION_BYTES - inside, bytes.length - at);
      let region = this.regions.get(index);
      if (region === undefined) this.regions.set(index, (region = Buffer.alloc(REGION_BYTES)));
      region.set(bytes.subarray(at, at + count), inside);
      at += count;
    }
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    await turn();
    this.onRead(offset);
    if (offset + length > this.sizeBytes) throw new Error(`read beyond the end of ${this.name}`);
    this.readBytes += length;
    const out = Buffer.alloc(length);
    for (let at = 0; at < length;) {
      const inside = (offset + at) % REGION_BYTES;
      const count = Math.min(REGION_BYTES - inside, length - at);
      this.regions.get(Math.floor((offset + at) / REGION_BYTES))?.copy(out, at, inside, inside + count);
      at += count;
    }
    return out;
  }

  async allocated(offset: number, length: number, mark: (from: number, to: number) => void): Promise<void> {
    await turn();
    for (const index of this.regions.keys()) {
      const from = Math.max(offset, index * REGION_BYTES);
      const to = Math.min(offset + length, (index + 1) * REGION_BYTES);
      if (from < to) mark(from, to);
    }
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await turn();
    if (offset + bytes.length > this.sizeBytes) throw new Error(`write beyond the end of ${this.name}`);
    this.put(offset, bytes);
  }

  writeZeroes(offset: number, length: number): Promise<void> {
    return this.write(offset, Buffer.alloc(length));
  }

  flush(): Promise<void> {
    this.flushes++;
    return turn();
  }

  /** Of what it holds, zeros or not there being the same. */
  fingerprint(): string {
    const hash = createHash('sha256').update(String(this.sizeBytes));
    for (const index of [...this.regions.keys()].sort((a, b) => a - b)) {
      const bytes = this.regions.get(index)!;
      if (!bytes.every((byte) => byte === 0)) hash.update(String(index)).update(bytes);
    }
    return hash.digest('hex');
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** What happens to the bytes of one direction: the stream ends at `place`, or one bit of the byte there is changed. */
interface Harm {
  readonly kind: 'cut' | 'flip';
  readonly place: number;
  readonly bit: number;
}

function pipeWith(harm: Harm | undefined): { into: PassThrough; out: Transform; bytes: () => number } {
  let at = 0;
  let over = false;
  const into = new PassThrough();
  const out = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      const inside = harm === undefined ? -1 : harm.place - at;
      at += chunk.length;
      if (over || inside < 0 || inside >= chunk.length) return over ? done() : done(null, chunk);
      if (harm!.kind === 'flip') {
        const bytes = Buffer.from(chunk);
        bytes[inside] ^= 1 << harm!.bit;
        return done(null, bytes);
      }
      over = true;
      this.push(chunk.subarray(0, inside));
      this.push(null);
      done();
    },
  });
  into.pipe(out);
  return { into, out, bytes: () => at };
}

interface Run {
  readonly report: SourceReport | Error;
  readonly result: Result | Error;
  readonly toSink: number;
  readonly toSource: number;
}

async function reconcile(from: RegionDevice, to: RegionDevice, harm: { toSink?: Harm; toSource?: Harm } = {}): Promise<Run> {
  const down = pipeWith(harm.toSink);
  const up = pipeWith(harm.toSource);
  const failed = (error: unknown): Error => error as Error;
  // A process that ends closes its ends of the pipes.
  const source = new Source(from, new Channel(up.out, down.into), () => undefined).run().catch(failed).finally(() => down.into.end());
  const sink = new Sink(to, new Channel(down.out, up.into)).run().catch(failed).finally(() => up.into.end());
  const [report, result] = await Promise.all([source, sink]);
  return { report, result, toSink: down.bytes(), toSource: up.bytes() };
}

function numbers(seed: number): (limit: number) => number {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  return (limit) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x6d2b79f5) >>> 0;
    return state % limit;
  };
}

/** A pair that is equal but for what the seed chose. */
function pair(sizeBytes: number, seed: number): { from: MemoryDevice; to: MemoryDevice } {
  const next = numbers(seed);
  const from = new MemoryDevice('from', sizeBytes);
  const to = new MemoryDevice('to', sizeBytes);
  const place = (length: number): number => Math.min(next(Math.ceil(sizeBytes / BLOCK_BYTES)) * BLOCK_BYTES + next(3) * 100, sizeBytes - length);
  const fill = (length: number): Buffer => Buffer.alloc(length, 1 + next(255));
  for (let i = next(6); i > 0; i--) {
    const bytes = fill(Math.min(sizeBytes, 1 + next(5 * REGION_BYTES)));
    const at = place(bytes.length);
    from.put(at, bytes);
    to.put(at, bytes);
  }
  for (let i = next(6); i > 0; i--) {
    const bytes = next(4) === 0 ? Buffer.alloc(Math.min(sizeBytes, REGION_BYTES * 2)) : fill(Math.min(sizeBytes, 1 + next(20_000)));
    (next(2) === 0 ? from : to).put(place(bytes.length), bytes);
  }
  return { from, to };
}

t.test('after a run both devices hold the same, whatever differed, and both say the digest that it has', async (t) => {
  const sizes = fc.constantFrom(BLOCK_BYTES, 3 * BLOCK_BYTES, REGION_BYTES, REGION_BYTES + BLOCK_BYTES, 9 * MIB + 5 * BLOCK_BYTES, GIB, GIB + MIB, 3 * GIB + 7 * BLOCK_BYTES);
  await fc.assert(fc.asyncProperty(sizes, fc.integer(), async (sizeBytes, seed) => {
    const { from, to } = pair(sizeBytes, seed);
    const before = from.fingerprint();
    const { report, result } = await reconcile(from, to);
    if (report instanceof Error) throw report;
    if (result instanceof Error) throw result;
    const digest = await digestDevice(to, { readBytes: 0, hashedBytes: 0 }, () => undefined);
    if (from.fingerprint() !== before) throw new Error('the source was written to');
    if (to.fingerprint() !== before) throw new Error('the devices differ');
    if (report.digest !== digest || result.digest !== digest) throw new Error(`digests ${report.digest}, ${result.digest}, in truth ${digest}`);
    if (to.flushes === 0) throw new Error('nothing was flushed');
  }), { seed: SEED, numRuns: 150 });
  t.pass('150 runs');
});

t.test('only the blocks that differ are sent, and holes are not read', async (t) => {
  const size = 40 * GIB;
  const from = new MemoryDevice('from', size);
  const to = new MemoryDevice('to', size);
  for (let i = 0; i < 100; i++) {
    const bytes = Buffer.alloc(MIB, i + 1);
    from.put(i * 300 * MIB, bytes);
    to.put(i * 300 * MIB, bytes);
  }
  from.put(600 * MIB + 5 * REGION_BYTES + 100, Buffer.from('three blocks, and no more').subarray(0, 10)); // inside one block
  from.put(900 * MIB + BLOCK_BYTES - 5, Buffer.alloc(10, 99)); // across two
  to.put(1200 * MIB, Buffer.alloc(BLOCK_BYTES)); // a block of zeros where the source has data
  from.put(1500 * MIB + 2 * REGION_BYTES, Buffer.alloc(REGION_BYTES)); // zeros here
  to.put(39 * GIB, Buffer.alloc(BLOCK_BYTES, 7)); // nothing here
  const { report, result, toSink, toSource } = await reconcile(from, to);
  if (report instanceof Error) throw report;
  if (result instanceof Error) throw result;
  t.equal(to.fingerprint(), from.fingerprint());
  t.equal(report.contentBytes, 4 * BLOCK_BYTES, 'blocks sent');
  t.equal(result.writtenBytes, 4 * BLOCK_BYTES);
  t.equal(result.zeroedBytes, 2 * REGION_BYTES, 'zeros are not sent');
  t.equal(result.differingRegions, 5);
  t.ok(toSink < 4 * BLOCK_BYTES + 40 * 2100 + 5 * 2200 + 2000, `${toSink} bytes to the sink`);
  t.ok(toSource < 10_000, `${toSource} bytes to the source`);
  t.equal(from.readBytes, 100 * MIB + 3 * REGION_BYTES, 'everything once, and what is sent again');

  const again = await reconcile(from, to);
  if (again.report instanceof Error) throw again.report;
  t.equal(again.report.contentBytes, 0, 'a second run sends nothing');
});

t.test('a stream that is cut or damaged anywhere is never taken for success, and another run finishes', async (t) => {
  const size = 9 * MIB + BLOCK_BYTES;
  const make = (): { from: MemoryDevice; to: MemoryDevice } => {
    const from = new MemoryDevice('from', size);
    const to = new MemoryDevice('to', size);
    for (let i = 0; i < 6; i++) from.put(i * 24 * REGION_BYTES + i * BLOCK_BYTES, Buffer.alloc(9000, i + 1));
    to.put(100 * REGION_BYTES, Buffer.alloc(REGION_BYTES, 5));
    return { from, to };
  };
  const whole = make();
  const { toSink, toSource } = await reconcile(whole.from, whole.to);
  const next = numbers(SEED);
  let cases = 0;
  for (const [direction, length] of [['toSink', toSink], ['toSource', toSource]] as const) {
    const places = new Set([0, 1, 5, 8, 15, 16, length - 1]);
    while (places.size < 60) places.add(next(length));
    for (const place of places) {
      for (const kind of ['cut', 'flip'] as const) {
        const { from, to } = make();
        const { report } = await reconcile(from, to, { [direction]: { kind, place, bit: next(8) } });
        if (!(report instanceof Error)) t.equal(to.fingerprint(), from.fingerprint(), `${direction} ${kind} at ${place}: it says that they are equal`);
        else if (!/other side/.test(report.message)) t.fail(`${direction} ${kind} at ${place}: ${report.stack}`);
        if (direction === 'toSink' && !(report instanceof Error)) t.fail(`${kind} at ${place} of what the sink gets, and the source reports success`);
        const second = await reconcile(from, to);
        if (second.report instanceof Error) throw second.report;
        if (to.fingerprint() !== from.fingerprint()) t.fail(`${direction} ${kind} at ${place}: not equal after the second run`);
        cases++;
      }
    }
  }
  t.equal(cases, 240);
});

t.test('devices of two sizes, and a read-only one to write to, are refused on both sides with a sentence', async (t) => {
  const sizes = await reconcile(new MemoryDevice('a', MIB), new MemoryDevice('b', 2 * MIB));
  t.match(sizes.report, { code: 'reconcile/size', message: 'a has 1048576 bytes here and b has 2097152 bytes on the other side' });
  t.match(sizes.result, { code: 'reconcile/size' });
  const readOnly = await reconcile(new MemoryDevice('a', MIB), new MemoryDevice('b', MIB, true));
  t.match(readOnly.report, { code: 'reconcile/other-side', message: /the other side gave up: b is read-only there/ });
  t.match(readOnly.result, { code: 'reconcile/read-only' });
});

t.test('a writer on either side is noticed, and nothing is claimed', async (t) => {
  for (const who of ['from', 'to'] as const) {
    const devices = { from: new MemoryDevice('from', MIB), to: new MemoryDevice('to', MIB) };
    devices.from.put(0, Buffer.alloc(MIB, 1));
    let reads = 0;
    // The second read of a region is that of a region that differs.
    devices[who].onRead = (offset) => {
      if (offset === 5 * REGION_BYTES && ++reads === 1) devices[who].put(offset + 17, Buffer.from([200]));
    };
    const { report } = await reconcile(devices.from, devices.to);
    t.match(report, { message: who === 'from' ? /^from changed at byte 327680 .* has a writer/ : /gave up: to is not equal to from at byte 327680/ }, who);
  }
});

t.test('a device that fails ends both sides with what it said', async (t) => {
  for (const who of ['from', 'to'] as const) {
    const devices = { from: new MemoryDevice('from', MIB), to: new MemoryDevice('to', MIB) };
    devices.from.put(0, Buffer.alloc(MIB, 1));
    devices[who].onRead = () => {
      throw Object.assign(new Error('the disk is broken'), { code: 'device/failed' });
    };
    const { report, result } = await reconcile(devices.from, devices.to);
    t.match(report, { message: /the disk is broken/ }, who);
    t.match(result, { message: /the disk is broken/ }, who);
  }
});

/** A source (or sink) whose other side is the test: it has to end with an error. */
function alone(side: 'source' | 'sink', device: RegionDevice, patience?: Patience): { ended: Promise<Error>; say: (type: number, payload: Buffer) => void; raw: PassThrough; other: Channel; heard: number[] } {
  const [down, up] = [pipeWith(undefined), pipeWith(undefined)];
  const heard: number[] = [];
  const other = new Channel(down.out, up.into);
  other.start({ heard: () => undefined, message: (type) => void heard.push(type), ended: () => undefined });
  const channel = new Channel(up.out, down.into);
  const run = side === 'source' ? new Source(device, channel, () => undefined, patience).run() : new Sink(device, channel, patience).run();
  const ended = (run as Promise<unknown>).then(() => new Error('it succeeded'), (error: unknown) => error as Error);
  return { ended, say: (type, payload) => void other.send(type, payload), raw: up.into, other, heard };
}

/** What a source ends with to which the other side says this. */
function against(device: RegionDevice, say: (channel: Channel) => void): Promise<Error> {
  const { other, ended } = alone('source', device);
  say(other);
  return ended;
}

function filled(sizeBytes: number): MemoryDevice {
  const device = new MemoryDevice('from', sizeBytes);
  device.put(0, Buffer.alloc(sizeBytes, 7));
  return device;
}

const hello = (role: 'source' | 'sink', sizeBytes: number): Buffer => encodeJson({ protocol: PROTOCOL_VERSION, program: 'test', role, device: 'there', sizeBytes, regionBytes: REGION_BYTES, fanOut: 128, blockBytes: BLOCK_BYTES });

t.test('another side that never greets ends the run with what to do, on both sides, and is told', async (t) => {
  const patience = { greetingMs: 200, silenceMs: 3_600_000 };
  for (const [side, words] of [['source', /has said nothing for 0\.2 s\. The command must run "lockstep reconcile --serve GROUP\/DEVICE" there: try it by hand.*--greeting-timeout/], ['sink', /has said nothing for 0\.2 s\. --serve is started by .* run it again/]] as const) {
    const run = alone(side, filled(MIB), patience);
    const error = await run.ended;
    t.match(error, { code: 'reconcile/silent' }, side);
    t.match(error.message, words);
    await turn();
    t.strictSame(run.heard, [Type.HELLO, Type.FAILED]);
  }
  const prompt = alone('source', filled(MIB), patience);
  prompt.raw.write('pass: ');
  t.match((await prompt.ended).message, /has not greeted, and said only "pass:", for 0\.2 s/);
});

t.test('silence while an answer is due ends the run; silence while none is due, and words in time, do not', async (t) => {
  const patience = { greetingMs: 3_600_000, silenceMs: 200 };
  const silent = { code: 'reconcile/silent', message: /has said nothing for 0\.2 s although an answer is due: .* --timeout/ };
  // The source has told of its only subtree, and waits to hear that it is equal.
  const source = alone('source', filled(MIB), patience);
  source.say(Type.HELLO, hello('sink', MIB));
  t.match(await source.ended, silent);
  t.strictSame(source.heard.slice(0, 2), [Type.HELLO, Type.SUBTREE]);
  // The sink waits for the first subtree; and, told of it, for what it has asked for.
  for (const told of [false, true]) {
    const sink = alone('sink', filled(MIB), patience);
    sink.say(Type.HELLO, hello('source', MIB));
    if (told) sink.say(Type.SUBTREE, encodeSubtree(0, Buffer.alloc(DIGEST_BYTES, 1)));
    t.match(await sink.ended, silent);
    t.equal(sink.heard.includes(Type.NODE_WANTED), told);
  }
  // A disk of this side that takes its time: nobody owes it anything then.
  const patient = { ...patience, silenceMs: 1000 };
  const slow = pair(MIB, SEED);
  let beats = 0;
  const reading = new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      if (++beats < 16) return;
      clearInterval(timer);
      resolve();
    }, patient.silenceMs / 8);
  });
  const { read } = slow.from;
  slow.from.put(0, Buffer.alloc(REGION_BYTES, 3));
  slow.from.read = async (offset, length) => {
    await reading;
    return read.call(slow.from, offset, length);
  };
  const [down, up] = [pipeWith(undefined), pipeWith(undefined)];
  const work = [
    new Source(slow.from, new Channel(up.out, down.into), () => undefined, patient).run(),
    // What the source reads is what this one waits for: it has to have more patience.
    new Sink(slow.to, new Channel(down.out, up.into), { ...patient, silenceMs: 3_600_000 }).run(),
  ];
  await Promise.all(work);
  t.equal(beats, 16);
  t.equal(slow.to.fingerprint(), slow.from.fingerprint());
});

t.test('another version, another role and messages that make no sense are told', async (t) => {
  const device = new MemoryDevice('from', MIB);
  const hello = { protocol: 1, program: '0.1.0', role: 'sink' as const, device: 'to', sizeBytes: MIB, regionBytes: REGION_BYTES, fanOut: 128, blockBytes: 4096 };
  const after = (type: number, payload: Buffer) => (channel: Channel): void => {
    void channel.send(Type.HELLO, encodeJson(hello));
    void channel.send(type, payload);
  };
  t.match(await against(device, (channel) => void channel.send(Type.HELLO, encodeJson({ ...hello, protocol: 2, program: '9.0' }))), { code: 'reconcile/version', message: /is lockstep 9\.0 and speaks version 2/ });
  t.match(await against(device, (channel) => void channel.send(Type.HELLO, encodeJson({ ...hello, role: 'source' }))), { code: 'usage', message: /another sender/ });
  t.match(await against(device, (channel) => void channel.send(Type.HELLO, encodeJson({ ...hello, fanOut: 64 }))), { code: 'reconcile/protocol' });
  t.match(await against(device, (channel) => void channel.send(Type.HELLO, Buffer.from('{'))), { code: 'reconcile/protocol', message: /greeting is not JSON/ });
  t.match(await against(device, (channel) => void channel.send(Type.DONE, encodeSubtree(0, undefined))), { message: /does not greet/ });
  t.match(await against(device, (channel) => void refuse(channel, new Error('no such export'))), { code: 'reconcile/other-side', message: /gave up: no such export/ });
  t.match(await against(device, after(77, Buffer.alloc(0))), { message: /a message of type 77/ });
  t.match(await against(device, after(Type.DONE, encodeSubtree(9, undefined))), { message: /subtree 9, which is not under way/ });
  t.match(await against(device, after(Type.DONE, Buffer.alloc(2))), { message: /too short/ });
  t.match(await against(device, after(Type.NODE_WANTED, Buffer.alloc(8, 1))), { message: /asks for node/ });
  t.match(await against(device, after(Type.REGION_WANTED, Buffer.alloc(8, 255))), { message: /there is no region/ });
  t.match(await against(device, after(Type.REGION_WANTED, Buffer.from([0, 0, 0, 0, 0, 0, 0, 16]))), { message: /asks for region 16, which/ });
  t.match(await against(device, after(Type.RESULT, Buffer.from('{}'))), { message: /result too early/ });
});

t.test('the content digest is as defined', async (t) => {
  const device = new MemoryDevice('d', 2 * REGION_BYTES + BLOCK_BYTES);
  device.put(0, Buffer.alloc(REGION_BYTES, 1));
  device.put(2 * REGION_BYTES, Buffer.alloc(BLOCK_BYTES, 2));
  const number = (value: number): Buffer => {
    const out = Buffer.alloc(8);
    out.writeBigUInt64BE(BigInt(value));
    return out;
  };
  const hash = (...parts: (string | Buffer)[]): bigint => {
    const sha = createHash('sha256');
    for (const part of parts) sha.update(part);
    return BigInt(`0x${sha.digest('hex').slice(0, 32)}`);
  };
  const expected = (hash('lockstep region\n', number(0), Buffer.alloc(REGION_BYTES, 1)) + hash('lockstep region\n', number(2), Buffer.alloc(BLOCK_BYTES, 2)) + hash('lockstep size\n', number(device.sizeBytes))) % (1n << 128n);
  t.equal(await digestDevice(device, { readBytes: 0, hashedBytes: 0 }, () => undefined), expected.toString(16).padStart(32, '0'));
  const digests = Buffer.alloc(3 * DIGEST_BYTES);
  putRegionDigest(digests, 0, 0, Buffer.alloc(REGION_BYTES, 1));
  putRegionDigest(digests, DIGEST_BYTES, 1, Buffer.alloc(REGION_BYTES));
  t.ok(digests.subarray(DIGEST_BYTES).every((byte) => byte === 0), 'zeros have a digest of zeros');
  const sum = new DigestSum().add(digests, 0, 3).subtract(digests);
  t.ok(sum.isZero);
});
