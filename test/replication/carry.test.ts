/**
 * Exported streams: what goes in one way comes out the other, whatever the
 * pieces; what is damaged, cut, foreign or out of place is refused with a
 * sentence, and nothing of it is appended.
 */
import t from 'tap';
import type { Test } from 'tap';
import { OperatorError, PeerError } from '../../src/base/errors.js';
import { formatPosition, parsePosition } from '../../src/base/position.js';
import { epochPosition } from '../../src/group/tree/epochs.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import type { Position } from '../../src/journal/position.js';
import { emptyFrame, StreamReader, StreamType } from '../../src/replication/carry/format.js';
import { exportableLsn, exportPage, exportPreface } from '../../src/replication/carry/exporter.js';
import type { ExportedPage } from '../../src/replication/carry/exporter.js';
import { Importer } from '../../src/replication/carry/importer.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { difference, MemoryGroup, ZERO } from './memory-group.js';
import type { MemoryGroupOptions } from './memory-group.js';

const seed = Number(process.env.TEST_SEED ?? Math.floor(Math.random() * 2 ** 32));
t.comment(`seed ${seed}`);

/** Groups of several nodes in one process, on one reactor. */
class Bench {
  readonly io = RealIo.create({ arenaBytes: 64 * 1024 * 1024 });
  readonly reactor = new Reactor(this.io, new Arena(this.io));
  private readonly directory = makeTempDirectory('carry');
  private readonly groups: MemoryGroup[] = [];
  private readonly importers: Importer[] = [];
  private count = 0;
  blocked: OperatorError | undefined;

  constructor(test: Pick<Test, 'teardown'>) {
    test.teardown(() => {
      for (const importer of this.importers) importer.close(new Error('over'));
      while (this.reactor.jobsInFlight > 0) this.reactor.step(1000);
      for (const group of this.groups) group.close();
      this.io.dispose();
      removeTempDirectory(this.directory);
    });
  }

  group(node: string, options: Partial<MemoryGroupOptions> = {}): MemoryGroup {
    const group = new MemoryGroup(this.reactor, { directory: `${this.directory}/${node}-${this.count++}`, node, segmentBytes: 512 * 1024, payloadBytes: 128 * 1024, ...options });
    this.groups.push(group);
    return group;
  }

  until(condition: () => boolean): void {
    const deadline = Date.now() + 30_000;
    while (!condition()) {
      if (Date.now() > deadline) throw new Error('waited 30 s in vain');
      this.reactor.step(300);
    }
  }

  /** Everything exportable from `start` on, with or without an end. */
  stream(group: MemoryGroup, start = epochPosition(group.epochs, ZERO), end = true): Uint8Array {
    const parts = [exportPreface(group, 'a', start)];
    let place = { lsn: start.lsn, chainHi: start.chainHi, chainLo: start.chainLo };
    let frame = 1;
    const upTo = exportableLsn(group);
    while (place.lsn < upTo) {
      let page: ExportedPage | undefined;
      exportPage(this.reactor, group, place, upTo, frame, { done: (made) => (page = made), failed: (error) => { throw error; } });
      this.until(() => page !== undefined);
      parts.push(page!.bytes);
      frame += page!.frames;
      place = page!.next;
    }
    if (end) parts.push(emptyFrame(StreamType.end, upTo, frame));
    return Buffer.concat(parts);
  }

  importer(group: MemoryGroup, committed?: () => Position): Importer {
    const importer = new Importer(this.reactor, group, {
      syncUs: 1000, blocked: () => this.blocked, gone: () => false, ...(committed === undefined ? {} : { committed }),
    });
    this.importers.push(importer);
    return importer;
  }

  /** Pushes `bytes`; the error that ended it, if any. */
  push(importer: Importer, bytes: Uint8Array): Error | undefined {
    let outcome: Error | undefined | null = null;
    importer.push(bytes, (error) => (outcome = error));
    this.until(() => outcome !== null);
    return outcome as unknown as Error | undefined;
  }

  /** A whole import in pieces of random size. */
  take(group: MemoryGroup, bytes: Uint8Array, random?: Random): { error: Error | undefined; importer: Importer } {
    const importer = this.importer(group);
    let error: Error | undefined;
    for (let at = 0; at < bytes.length && error === undefined;) {
      const length = random === undefined ? bytes.length : Math.ceil(random.logUniform(1, 300_000));
      error = this.push(importer, bytes.subarray(at, at + length));
      at += length;
    }
    let finished = false;
    importer.finish(() => (finished = true));
    this.until(() => finished);
    return { error, importer };
  }
}

/** A primary with writes, markers, several epochs. */
function filled(bench: Bench, random: Random, batches = 60): MemoryGroup {
  const a = bench.group('a').found();
  const unit = (): number => random.unit();
  for (let i = 0; i < batches; i++) {
    a.append(1 + random.below(6), unit);
    if (random.chance(0.2)) a.appendMarker(1 + random.below(20_000));
    if (random.chance(0.05)) a.beginEpoch();
  }
  a.journal.syncNow();
  return a;
}

function refusal(error: Error | undefined, code: string, words: RegExp): string | undefined {
  const found = error as { code?: string } | undefined;
  if (found?.code === code && words.test(error!.message)) return undefined;
  return `${found?.code ?? 'nothing'}: ${error?.message ?? ''}`;
}

t.test('a stream in any pieces makes an empty node and one that is behind equal, and is whole', async (t) => {
  const bench = new Bench(t);
  for (let round = 0; round < 6; round++) {
    const random = new Random(seed, round);
    const a = filled(bench, random);
    const b = bench.group('b');
    const first = bench.take(b, bench.stream(a), random);
    t.equal(first.error, undefined);
    t.equal(difference(a, b), undefined);
    t.match(first.importer.report, { whole: true, from: 'a', receivedLsn: a.position.lsn, durable: epochPosition(a.epochs, a.position) });
    t.equal(b.primaryDurable, a.position.lsn);
    const middle = epochPosition(b.epochs, b.position);
    for (let i = 0; i < 20; i++) a.append(3, () => random.unit());
    a.journal.syncNow();
    // From where it stands, and once more from the beginning, two streams in a row.
    t.equal(bench.take(b, Buffer.concat([bench.stream(a, middle), bench.stream(a)]), random).error, undefined);
    t.equal(difference(a, b), undefined);
  }
});

t.test('only what is durable is in a stream', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 50);
  const a = filled(bench, random, 10);
  const durable = a.position.lsn;
  a.append(5, () => random.unit());
  const b = bench.group('b');
  t.equal(bench.take(b, bench.stream(a)).error, undefined);
  t.equal(b.position.lsn, durable);
  const late = bench.stream(a);
  // A sender that claims less than it sends.
  const reader = new StreamReader();
  reader.push(late);
  reader.take(reader.peek()!);
  const frame = reader.peek()!;
  t.equal(frame.durableLsn, durable);
});

t.test('who waits for the position of a volatile journal is told as soon as a checkpoint has moved it', (t) => {
  const bench = new Bench(t);
  const b = bench.group('b');
  t.equal(bench.take(b, bench.stream(filled(bench, new Random(seed, 51), 10))).error, undefined);
  let committed = ZERO;
  const importer = bench.importer(b, () => committed);
  const told: number[] = [];
  importer.onMoved(() => told.push(importer.report.durable.lsn));
  b.journal.onDurable();
  t.same(told, [], 'nothing has moved');
  committed = b.position;
  b.journal.onDurable();
  t.same(told, [b.position.lsn]);
  t.end();
});

t.test('a stream that is cut anywhere leaves what was whole, says so, and can be gone on with', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 60);
  const a = filled(bench, random);
  const stream = bench.stream(a);
  const b = bench.group('b');
  for (let i = 0; i < 60; i++) {
    const { error, importer } = bench.take(b, stream.subarray(0, random.below(stream.length)), random);
    t.equal(error, undefined);
    t.equal(importer.report.whole, false);
    const { durable } = importer.report;
    t.strictSame(parsePosition(formatPosition(durable)), durable);
    t.equal(durable.lsn, b.position.lsn, 'what it printed is all that it has');
  }
  // On from the position that it has.
  const rest = bench.stream(a, epochPosition(b.epochs, b.position));
  t.ok(rest.length < stream.length || b.position.lsn === 0);
  t.match(bench.take(b, rest, random).importer.report, { whole: true });
  t.equal(difference(a, b), undefined);
});

t.test('damage in any part of a stream is refused with a sentence, and nothing from there on is appended', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 70);
  const a = filled(bench, random, 12);
  const stream = bench.stream(a);
  // Where frames begin, and which LSN each ends at.
  const reader = new StreamReader();
  const frames: { at: number; length: number; type: number }[] = [];
  reader.push(stream);
  for (let frame = reader.peek(), at = 0; frame !== undefined; frame = reader.peek()) {
    frames.push({ at, length: 32 + frame.body.length, type: frame.type });
    at += 32 + frame.body.length;
    reader.take(frame);
  }
  t.equal(frames.length, a.batches.length + 2);
  let tried = 0;
  for (const [index, { at, length, type }] of frames.entries()) {
    // Every byte of the headers of frame and batch, some of the rest.
    const places = [...Array(Math.min(length, type === StreamType.batch ? 32 + 96 + 32 : 32)).keys(), ...Array.from({ length: 20 }, () => random.below(length))];
    for (const place of places) {
      if (index > 4 && index < frames.length - 2 && random.chance(0.92)) continue;
      tried++;
      const damaged = Uint8Array.from(stream);
      damaged[at + place] ^= 1 << random.below(8);
      const b = bench.group('b');
      const { error, importer } = bench.take(b, damaged);
      const appended = b.batches.length;
      // A frame whose length was made larger may never be whole: then it is a stream that was cut.
      if (error === undefined ? importer.report.whole : !(error instanceof PeerError) || error.message.length < 20) t.fail(`byte ${place} of frame ${index}: ${error?.message ?? 'taken as whole'}`);
      if (appended > Math.max(0, index - 1)) t.fail(`byte ${place} of frame ${index}: ${appended} batches were appended`);
      b.close();
    }
  }
  t.ok(tried > 200, `${tried} places`);
});

t.test('frames that are left out, doubled or exchanged are refused', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 80);
  const a = filled(bench, random, 8);
  const stream = bench.stream(a);
  const reader = new StreamReader();
  const parts: Uint8Array[] = [];
  reader.push(stream);
  for (let frame = reader.peek(), at = 0; frame !== undefined; frame = reader.peek()) {
    parts.push(stream.subarray(at, at + 32 + frame.body.length));
    at += 32 + frame.body.length;
    reader.take(frame);
  }
  for (const [what, order] of [
    ['without a frame', [0, 1, 2, 4]], ['a frame twice', [0, 1, 2, 2]], ['two exchanged', [0, 2, 1]], ['without its preface', [1, 2]], ['two prefaces', [0, 0]],
  ] as const) {
    const b = bench.group('b');
    const { error } = bench.take(b, Buffer.concat(order.map((i) => parts[i])));
    t.ok(error instanceof PeerError && error.code.startsWith('stream/'), `${what}: ${error?.message ?? 'taken'}`);
    t.ok(b.batches.length < order.length, what);
  }
  t.equal(refusal(bench.take(bench.group('b'), Buffer.from('GET / HTTP/1.1\r\nHost: example\r\nAccept: */*\r\n\r\n')).error, 'stream/garbage', /no exported journal/), undefined);
});

t.test('what does not belong here is refused in words, and changes nothing', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 90);
  const a = filled(bench, random, 20);
  const stream = bench.stream(a);
  const half = a.batches[Math.floor(a.batches.length / 2)];
  const chain = new DataView(half.bytes.buffer, half.bytes.byteOffset);
  const middle = epochPosition(a.epochs, { lsn: half.lsn, chainHi: chain.getUint32(16, true), chainLo: chain.getUint32(20, true) });
  const tail = bench.stream(a, middle);

  const other = filled(bench, random, 5);
  other.role = 'secondary';
  t.equal(refusal(bench.take(other, stream).error, 'import/other-group', /another group \(g, id [0-9a-f]{32}\).*this node \(id [0-9a-f]{32}\)/), undefined);

  const empty = bench.group('b');
  t.equal(refusal(bench.take(empty, tail).error, 'import/gap', /has nothing of group g.*can only begin at LSN 0/), undefined);
  t.equal(empty.groupId, undefined, 'and has no identity still');
  t.equal(refusal(bench.take(bench.group('b', { name: 'h' }), stream).error, 'import/other-group', /of group g, not of h/), undefined);

  const behind = bench.group('b');
  bench.take(behind, bench.stream(a).subarray(0, stream.length >> 3));
  t.ok(behind.position.lsn > 0 && behind.position.lsn < half.lsn);
  t.equal(refusal(bench.take(behind, tail).error, 'import/gap', /begins at LSN \d+, and this node ends at LSN \d+.*journal position g/), undefined);

  const primary = bench.group('b');
  bench.take(primary, stream);
  primary.promote();
  t.equal(refusal(bench.take(primary, stream).error, 'role/not-secondary', /is primary on this node, and only a secondary imports.*Rebuild/), undefined);

  // It was primary for a while: the histories part in the middle of what the stream holds, or below its start.
  const parted = bench.group('b');
  bench.take(parted, stream);
  parted.promote();
  parted.append(2, () => random.unit());
  parted.role = 'secondary';
  const had = parted.position.lsn;
  for (let i = 0; i < 12; i++) a.append(3, () => random.unit());
  a.beginEpoch();
  t.equal(refusal(bench.take(parted, bench.stream(a)).error, 'import/other-history', /histories have parted.*Rebuild/), undefined);
  t.equal(refusal(bench.take(parted, bench.stream(a, middle)).error, 'import/other-history', /histories have parted/), undefined);
  t.equal(parted.position.lsn, had);

  const ahead = bench.group('b');
  bench.take(ahead, bench.stream(a));
  t.equal(refusal(bench.take(ahead, stream).error, 'import/behind', /stream ends at LSN \d+, and this node has group g up to LSN \d+/), undefined);

  bench.blocked = new OperatorError('import/linked', 'node x sends already');
  t.equal(refusal(bench.take(bench.group('b'), stream).error, 'import/linked', /x sends/), undefined);
});

t.test('a full journal holds the push until there is room; a stopped applier ends it', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 100);
  const a = filled(bench, random, 20);
  const stream = bench.stream(a);
  const b = bench.group('b');
  const fullAt = a.batches[7].lsn;
  b.answer = (lsn) => (lsn === fullAt ? { kind: 'full' } : undefined);
  const importer = bench.importer(b);
  let outcome: Error | undefined | null = null;
  importer.push(stream, (error) => (outcome = error));
  bench.until(() => importer.report.full);
  t.equal(b.position.lsn, fullAt);
  t.equal(b.primaryDurable, fullAt, 'it knows that it may destage what it has, and nothing of the batch that waits');
  t.equal(outcome, null, 'and the carrier waits');
  b.makeRoom();
  bench.until(() => outcome !== null);
  t.equal(outcome, undefined);
  t.equal(difference(a, b), undefined);

  const c = bench.group('c');
  const keptAt = a.batches[9].lsn;
  c.answer = (lsn) => (lsn === keptAt ? { kind: 'kept', reason: 'it does not know the operation "fold"' } : undefined);
  const kept = bench.take(c, stream);
  t.equal(refusal(kept.error, 'import/kept', /cannot execute the record at LSN \d+, so it has stopped applying.*"fold"/), undefined);
  t.equal(c.batches.length, 10, 'that record was received, and no other');
  c.journal.syncNow();
  t.ok(c.journal.durableLsn > keptAt, 'and it is durable');
  const again = bench.importer(c);
  let told = false;
  again.finish(() => (told = true));
  bench.until(() => told && again.report.durable.lsn !== 0);
  for (const importer of [kept.importer, again]) {
    const { durable } = importer.report;
    t.equal(durable.lsn, keptAt, 'but it is not told as taken');
    t.strictSame(durable, epochPosition(c.epochs, c.appliedPosition));
    t.match(importer.report, { appliedLsn: keptAt, receivedLsn: c.batches[9].end });
  }
  c.answer = undefined;
  t.equal(refusal(bench.importer(c).refusal(), 'import/kept', /has stopped applying at LSN \d+ and imports nothing more/), undefined);
});

t.test('a secondary is exported from like a primary, as far as its primary is durable', async (t) => {
  const bench = new Bench(t);
  const random = new Random(seed, 110);
  const a = filled(bench, random, 30);
  const b = bench.group('b');
  t.equal(bench.take(b, bench.stream(a)).error, undefined);
  b.journal.syncNow();
  const c = bench.group('c');
  t.equal(bench.take(c, bench.stream(b), random).error, undefined);
  t.equal(difference(a, c), undefined);
  const d = bench.group('d');
  b.primaryDurable = a.batches[5].end;
  t.equal(bench.take(d, bench.stream(b)).error, undefined);
  t.equal(d.position.lsn, a.batches[5].end);
});

t.test('batches too large for the segments of the importing node are refused with what to change', async (t) => {
  const bench = new Bench(t);
  const a = bench.group('a', { segmentBytes: 1024 * 1024, payloadBytes: 600 * 1024 }).found();
  const random = new Random(seed, 120);
  a.append(2, () => 0.99, 70);
  a.append(4, () => random.unit(), 60);
  a.journal.syncNow();
  const b = bench.group('b', { segmentBytes: 256 * 1024 });
  t.equal(refusal(bench.take(b, bench.stream(a)).error, 'link/segment-too-small', /set segmentSize as on node a/), undefined);
});
