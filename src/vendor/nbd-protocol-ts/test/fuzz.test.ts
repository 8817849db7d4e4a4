/** Broken input to both handshakes and to the client's reader: no throw, bounded memory, and the same result however the bytes are split. */
import t from 'tap';
import * as nbd from '../index.js';
import { ByteWriter } from '../src/bytes.js';
import { concat, directoryOf, hex, memoryExport, MemoryServer, seededRandom } from './memory-server.js';

const SEED = Number(process.env['SEED'] ?? Math.floor(Math.random() * 2 ** 31));
t.comment(`SEED=${SEED}`);

type Random = () => number;
const pick = <T>(random: Random, from: readonly T[]): T => from[Math.floor(random() * from.length)];
const below = (random: Random, limit: number): number => Math.floor(random() * limit);

const directory = directoryOf([memoryExport('vol', 1 << 16), memoryExport('other', 512)]);

function randomBytes(random: Random, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => below(random, 256));
}

/** Option data that is right, nearly right, or garbage. */
function randomData(random: Random): Uint8Array {
  const name = pick(random, ['vol', 'other', '', 'nothing', 'x'.repeat(5000)]);
  const queries = pick(random, [[], ['base:'], ['base:allocation'], ['x'], ['base:allocation', 'x-test:identity/7']]);
  const data = pick(random, [
    () => new Uint8Array(0), () => nbd.encodeInfoRequest(name, [0, 3, 1]), () => nbd.encodeContextRequest(name, queries),
    () => new TextEncoder().encode(name), () => randomBytes(random, below(random, 300)),
  ])();
  if (random() < 0.3) return data.slice(0, below(random, data.length + 1));
  if (random() < 0.3 && data.length > 0) data[below(random, data.length)] = below(random, 256);
  return data;
}

/** A client's side of a handshake, broken somewhere. */
function clientBytes(random: Random): Uint8Array {
  const out = new ByteWriter().u32(random() < 0.9 ? pick(random, [1, 3]) : pick(random, [0, 2, 7, 0xffffffff]));
  for (let i = below(random, 12); i >= 0; i--) {
    const data = randomData(random);
    out.u32(nbd.NBD_OPTS_MAGIC_HI).u32(random() < 0.97 ? nbd.NBD_OPTS_MAGIC_LO : below(random, 2 ** 32));
    out.u32(random() < 0.9 ? 1 + below(random, 12) : below(random, 2 ** 32));
    out.u32(random() < 0.93 ? data.length : pick(random, [0, data.length + 1, 70_000, 2_000_000, 0xffffffff])).raw(data);
  }
  if (random() < 0.2) out.raw(randomBytes(random, 40));
  return out.take();
}

/** Feeds `bytes` in pieces and returns all that can be observed. */
function serverRun(bytes: Uint8Array, nextPiece: () => number): string {
  const server = new nbd.ServerHandshake(directory);
  const output = [server.takeOutput()];
  let at = 0;
  while (at < bytes.length && server.outcome.kind === 'more') {
    const to = Math.min(bytes.length, at + nextPiece());
    while (at < to && server.outcome.kind === 'more') {
      at += server.push(bytes, at, to);
      output.push(server.takeOutput());
    }
  }
  return `${JSON.stringify(server.outcome, (key, value: unknown) => (key === 'bytes' ? undefined : value))} ${at} ${hex(concat(output))}`;
}

void t.test('the server handshake ends the same way however the bytes are split', (t) => {
  const random = seededRandom(SEED);
  const ends = new Set<string>();
  for (let run = 0; run < 1500; run++) {
    const bytes = clientBytes(random);
    const whole = serverRun(bytes, () => bytes.length);
    ends.add(whole.slice(0, whole.indexOf(',') + 30));
    const oneByOne = serverRun(bytes, () => 1);
    const pieces = serverRun(bytes, () => 1 + below(random, 40));
    for (const split of [oneByOne, pieces]) if (split !== whole) t.equal(split, whole, `run ${run} of SEED=${SEED}: ${hex(bytes)}`);
  }
  t.ok(ends.size >= 6, `reached ${ends.size} different ends`);
  t.end();
});

void t.test('garbage neither makes a server throw nor hold memory', (t) => {
  const random = seededRandom(SEED + 1);
  for (let run = 0; run < 300; run++) {
    const server = new nbd.ServerHandshake(directory);
    const bytes = concat([randomBytes(random, 3), random() < 0.5 ? clientBytes(random) : randomBytes(random, 200)]);
    server.push(bytes);
    t.ok(server.takeOutput().length < 4 * nbd.MAX_PENDING_OUTPUT_BYTES);
  }
  // The largest options there are, announced but hardly sent: memory follows what was sent.
  const before = process.memoryUsage().arrayBuffers;
  const held: nbd.ServerHandshake[] = [];
  for (let i = 0; i < 1000; i++) {
    const server = new nbd.ServerHandshake(directory);
    server.push(new ByteWriter().u32(3).u32(nbd.NBD_OPTS_MAGIC_HI).u32(nbd.NBD_OPTS_MAGIC_LO).u32(nbd.NBD_OPT_GO).u32(nbd.MAX_OPTION_BYTES).zeroes(100).take());
    held.push(server);
  }
  const each = (process.memoryUsage().arrayBuffers - before) / held.length;
  t.ok(each < 8192, `${Math.round(each)} bytes for each of ${held.length} clients that announced ${nbd.MAX_OPTION_BYTES}`);
  t.end();
});

const GOALS: readonly nbd.ClientGoal[] = [
  { kind: 'go', name: 'vol', contexts: ['base:allocation'] }, { kind: 'go', name: 'vol', structuredReplies: false },
  { kind: 'info', name: 'other' }, { kind: 'list' }, { kind: 'listContexts', name: 'vol' }, { kind: 'go', name: 'nothing' },
];

/** A handshake against the real server whose answers pass through `damage`, in pieces. */
function clientRun(goal: nbd.ClientGoal, damage: (answer: Uint8Array) => Uint8Array, nextPiece: () => number): string {
  const client = new nbd.ClientHandshake(goal);
  const server = new nbd.ServerHandshake(directory);
  const sent: Uint8Array[] = [];
  for (let turn = 0; turn < 20 && client.outcome.kind === 'more'; turn++) {
    const answer = damage(server.takeOutput());
    for (let at = 0; at < answer.length && client.outcome.kind === 'more';) at += client.push(answer, at, Math.min(answer.length, at + nextPiece()));
    const output = client.takeOutput();
    sent.push(output);
    server.push(output);
  }
  return `${JSON.stringify(client.outcome)} ${hex(concat(sent))}`;
}

void t.test('the client handshake survives damaged answers and any split of them', (t) => {
  const random = seededRandom(SEED + 2);
  const ends = new Set<string>();
  for (let run = 0; run < 1500; run++) {
    const goal = pick(random, GOALS);
    const at = below(random, 220);
    const value = below(random, 256);
    const damaging = random() < 0.8;
    const damage = (): ((answer: Uint8Array) => Uint8Array) => {
      let seen = 0;
      return (answer) => {
        const damaged = answer.slice();
        if (damaging && at >= seen && at < seen + answer.length) damaged[at - seen] = value;
        seen += answer.length;
        return damaged;
      };
    };
    const whole = clientRun(goal, damage(), () => Infinity);
    ends.add(whole.slice(0, 40));
    const oneByOne = clientRun(goal, damage(), () => 1);
    if (whole !== oneByOne) t.equal(oneByOne, whole, `run ${run} of SEED=${SEED}: ${JSON.stringify(goal)}, byte ${at} = ${value}`);
  }
  t.ok(ends.size >= 6, `reached ${ends.size} different ends`);
  t.end();
});

void t.test('a whole session over a stream of single bytes equals one in whole messages', (t) => {
  const volume = memoryExport('vol', 1 << 16);
  const random = seededRandom(SEED + 3);
  const bytes = new ByteWriter().u32(3).u32(nbd.NBD_OPTS_MAGIC_HI).u32(nbd.NBD_OPTS_MAGIC_LO).u32(nbd.NBD_OPT_STRUCTURED_REPLY).u32(0);
  const go = nbd.encodeInfoRequest('vol', []);
  bytes.u32(nbd.NBD_OPTS_MAGIC_HI).u32(nbd.NBD_OPTS_MAGIC_LO).u32(nbd.NBD_OPT_GO).u32(go.length).raw(go);
  for (let i = 0; i < 40; i++) {
    const type = below(random, 10) === 2 ? 3 : below(random, 10);
    if (type === nbd.NBD_CMD_DISC) continue;
    const length = below(random, 600);
    const header = new Uint8Array(nbd.REQUEST_BYTES);
    nbd.putRequest(new DataView(header.buffer), 0, below(random, 5) === 0 ? below(random, 70) : 0, type, 0, i, below(random, 70_000), length);
    bytes.raw(header);
    if (nbd.carriesPayload(type)) bytes.raw(randomBytes(random, length));
  }
  const input = bytes.take();
  const run = (piece: number): string => {
    volume.bytes.fill(0);
    const server = new MemoryServer(directoryOf([volume]), [volume]);
    const output = [server.exchange(new Uint8Array(0))];
    for (let at = 0; at < input.length; at += piece) output.push(server.exchange(input.subarray(at, Math.min(input.length, at + piece))));
    return `${server.closed} ${hex(concat(output))} ${hex(volume.bytes)}`;
  };
  const whole = run(input.length);
  t.ok(run(1) === whole, 'byte by byte');
  t.ok(run(29) === whole, 'in pieces of 29');
  t.end();
});
