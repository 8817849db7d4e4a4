/**
 * Two simulated nodes without a link, whose journal others carry: both crash and
 * lose power, the pipe dies, its bytes are damaged. Afterwards both hold the
 * same; and a promoted importer holds what it had.
 *
 * LOCKSTEP_SIM_RUNS=N runs N seeds, TEST_SEED=N that one.
 */
import t from 'tap';
import type { ExportPart, ImportOpened } from '../../src/control/carry.js';
import type { ControlRequest } from '../../src/control/port.js';
import { KIB, MIB } from '../../src/base/units.js';
import type { DrainReply, ImportState } from '../../src/control/schema/replies.js';
import { ALONE, GROUP, LINKED, SimHost, SMALL, UNLINKED } from './cluster.js';
import { PairRun } from './pair.js';
import { World } from './world.js';

const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 25);
const FIRST = process.env.TEST_SEED === undefined ? undefined : Number(process.env.TEST_SEED);

t.test('two nodes that are joined by a pipe stay equal over crashes of all that takes part', async (t) => {
  const sums = { parts: 0, deaths: 0, refused: 0, acks: 0, crashes: 0, compared: 0, promoted: 0 };
  for (let seed = FIRST ?? 1; seed < (FIRST ?? 1) + (FIRST === undefined ? RUNS : 1); seed++) {
    // A failure names its seed.
    const run = new PairRun(seed, 0, false, true);
    const { crashes, compared, promoted } = run.run();
    const { parts, deaths, refused, acks } = run.carrier!;
    for (const [name, count] of Object.entries({ parts, deaths, refused, acks, crashes, compared, promoted: promoted ? 1 : 0 })) sums[name as keyof typeof sums] += count;
  }
  t.comment(JSON.stringify(sums));
  t.ok(sums.compared > 0);
  if (FIRST !== undefined || RUNS < 20) return;
  for (const [name, count] of Object.entries(sums)) t.ok(count > 0, `${name}: ${count}`);
});

t.test('the same with volatile journals: whoever has taken in what a stop in order leaves goes on, nobody is given anything else', async (t) => {
  const sums = { parts: 0, deaths: 0, acks: 0, crashes: 0, compared: 0, lost: 0 };
  const runs = Math.ceil(RUNS / 2);
  for (let seed = FIRST ?? 1; seed < (FIRST ?? 1) + (FIRST === undefined ? runs : 1); seed++) {
    const run = new PairRun(seed, 0, true, true);
    const { crashes, compared } = run.run();
    const { parts, deaths, acks, lost } = run.carrier!;
    for (const [name, count] of Object.entries({ parts, deaths, acks, crashes, compared, lost: lost === undefined ? 0 : 1 })) sums[name as keyof typeof sums] += count;
  }
  t.comment(JSON.stringify(sums));
  t.ok(sums.compared > 0);
});

/** A primary that links to a secondary, and its third node without a link. */
function three(t: { teardown(action: () => void): void }): { world: World; a: SimHost; b: SimHost; c: SimHost; ask: (host: SimHost, request: ControlRequest) => unknown } {
  const world = new World({ seed: 1 });
  t.teardown(() => world.dispose());
  const a = new SimHost(world, 'a', SMALL, LINKED.a, 0);
  const b = new SimHost(world, 'b', SMALL, LINKED.b, 1);
  const c = new SimHost(world, 'c', SMALL, UNLINKED, 2);
  for (const host of [a, b, c]) host.stableLimit = () => Infinity;
  const ask = (host: SimHost, request: ControlRequest): unknown => host.order<unknown>(request, (until) => world.run(until, { us: 60e6 }));
  return { world, a, b, c, ask };
}

const CREATE = { op: 'create', group: GROUP, name: 'v', sizeBytes: 1024 * 1024, wait: 'applied', waitSeconds: 10 } as const;

t.test('nothing is imported beside a connected primary, and a link that connects ends an import', async (t) => {
  const { world, a, b, ask } = three(t);
  a.start();
  b.start();
  ask(a, CREATE);
  t.throws(() => ask(b, { op: 'importOpen', group: GROUP }), { code: 'import/linked', message: /node a sends group g over a link already/ });
  world.network.partition('a', 'b');
  world.run(() => b.path!.links.connectedPrimary(GROUP) === undefined, { us: 60e6 });
  const { session } = ask(b, { op: 'importOpen', group: GROUP }) as ImportOpened;
  const { bytes } = ask(a, { op: 'exportOpen', group: GROUP, cursor: 'x', from: null }) as ExportPart;
  ask(b, { op: 'importPush', session, bytes });
  world.network.heal('a', 'b');
  world.run(() => b.path!.links.connectedPrimary(GROUP) !== undefined, { us: 60e6 });
  const { bytes: more } = ask(a, { op: 'exportPage', group: GROUP, cursor: 'x', place: (ask(a, { op: 'exportOpen', group: GROUP, cursor: 'x', from: null }) as ExportPart).place, to: null, waitSeconds: 1 }) as ExportPart;
  t.throws(() => ask(b, { op: 'importPush', session, bytes: more }), { code: 'import/linked' });
});

t.test('a secondary of a link is exported from, and drain waits for links and cursors, and says who is behind', async (t) => {
  const { world, a, b, c, ask } = three(t);
  a.start();
  b.start();
  c.start();
  ask(a, CREATE);
  // A secondary learns by and by what its primary has made durable.
  world.run(() => b.group.stableLsn === a.group.position.lsn, { us: 60e6 });
  const open = ask(b, { op: 'exportOpen', group: GROUP, cursor: 'chain', from: null }) as ExportPart;
  const { session } = ask(c, { op: 'importOpen', group: GROUP }) as ImportOpened;
  ask(c, { op: 'importPush', session, bytes: open.bytes });
  let { place } = open;
  for (let end = false; !end;) {
    const part = ask(b, { op: 'exportPage', group: GROUP, cursor: 'chain', place, to: open.durable, waitSeconds: 1 }) as ExportPart;
    ask(c, { op: 'importPush', session, bytes: part.bytes });
    ({ place, end } = part);
  }
  t.match(ask(c, { op: 'importEnd', session }), { whole: true, from: 'b', receivedLsn: open.durable });
  c.compareTree();
  t.equal(c.group.tree.count, 1);

  const late = ask(b, { op: 'drain', group: GROUP, waitSeconds: 0.1 }) as DrainReply;
  t.match(late, { drained: false, behind: [/^cursor chain has been acknowledged up to LSN 0$/], waitedFor: ['cursor chain'], notice: /this node is secondary.*drain its primary, a$/ });
  b.crash('kill');
  const alone = ask(a, { op: 'drain', group: GROUP, waitSeconds: 0.1 }) as DrainReply;
  // What it confirmed before it went counts.
  t.match(alone, { drained: true, waitedFor: ['link b'], passedOver: [], notice: null });
  ask(a, { ...CREATE, name: 'w', wait: 'durable' });
  t.match(ask(a, { op: 'drain', group: GROUP, waitSeconds: 0.1 }), { drained: false, behind: [/^link b has made durable up to LSN \d+ and applied up to LSN \d+ \(/] });
  b.start();
  t.match(ask(a, { op: 'drain', group: GROUP, waitSeconds: 60 }), { drained: true, behind: [] });

  // What was given up, and readers elsewhere, are waited for by nobody: then the replies say so.
  ask(a, { op: 'exportOpen', group: GROUP, cursor: 'tape', from: null });
  t.match(ask(a, { ...CREATE, name: 'x' }), { waited: 'applied', waitedFor: ['b'], passedOver: ['cursor tape'] });
  t.match(ask(a, { ...CREATE, name: 'y', halt: true }), { waited: 'applied', waitedFor: ['b'], passedOver: ['cursor tape'] });
  ask(a, { op: 'linkDrop', group: GROUP, peer: 'b' });
  t.match(ask(a, { ...CREATE, name: 'z' }), { waited: 'applied', waitedFor: [], passedOver: ['b (its link was dropped)', 'cursor tape'] });
  ask(a, { op: 'cursorRelease', group: GROUP, cursor: 'tape' });
  t.strictSame({ ...ask(a, { op: 'drain', group: GROUP, waitSeconds: 1 }) as DrainReply, lsn: 0 }, { lsn: 0, drained: true, behind: [], waitedFor: [], passedOver: ['b (its link was dropped)'], notice: null });
});

t.test('a group that is fenced cannot be drained: that is said at once, also to who waits already', async (t) => {
  const { world, a, b, ask } = three(t);
  a.start();
  b.start();
  ask(a, CREATE);
  ask(a, { op: 'exportOpen', group: GROUP, cursor: 'tape', from: null });
  const waiting = a.command({ op: 'drain', group: GROUP, waitSeconds: 3600 });
  ask(b, { op: 'promote', group: GROUP, force: true });
  world.run(() => a.group.role === 'fenced', { us: 60e6 });
  t.throws(() => ask(a, { op: 'drain', group: GROUP, waitSeconds: 3600 }), { code: 'role/not-primary', message: /is fenced on this node, and nobody takes its journal/ });
  world.run(() => waiting.ended, { us: 1e6 });
  t.match(waiting.error, { code: 'role/not-primary' });
});

t.test('a cursor does not begin at what can still be lost, and begins there once it cannot', async (t) => {
  const { world, a, ask } = three(t);
  a.start();
  ask(a, CREATE);
  const before = a.group.position.lsn;
  a.command({ ...CREATE, name: 'w' });
  world.run(() => a.group.position.lsn > before, { us: 60e6 });
  const { lsn, chainHi, chainLo } = a.group.position;
  t.ok(a.group.journal.durableLsn < lsn);
  const position = { epochId: a.group.epochs.at(-1)!.id, lsn, chainHi, chainLo };
  for (const from of [lsn, position]) {
    t.throws(() => ask(a, { op: 'exportOpen', group: GROUP, cursor: 'early', from }), { code: 'cursor/not-exported', message: /LSN \d+ of group \S+ can still be lost.*durable up to LSN \d+ only/ });
  }
  t.equal(a.group.retention.cursors.count, 0);
  a.group.journal.sync(lsn);
  world.run(() => a.group.journal.durableLsn >= lsn, { us: 60e6 });
  for (const [cursor, from] of [['one', lsn], ['two', position]] as const) t.match(ask(a, { op: 'exportOpen', group: GROUP, cursor, from }), { durable: lsn });
});

/** One node whose journal is full because nobody acknowledges what a cursor holds; `written`: how far its writers got. */
function full(t: { teardown(action: () => void): void }, sizes: Partial<typeof SMALL>): { world: World; a: SimHost; ask: (request: ControlRequest) => unknown; waiting: { errno: number } } {
  const world = new World({ seed: 1 });
  t.teardown(() => world.dispose());
  const a = new SimHost(world, 'a', { ...SMALL, ...sizes }, ALONE, 0);
  a.start();
  const ask = (request: ControlRequest): unknown => a.order<unknown>(request, (until) => world.run(until, { us: 60e6 }));
  ask({ op: 'exportOpen', group: GROUP, cursor: 'x', from: null });
  ask({ op: 'create', group: GROUP, name: 'v', sizeBytes: MIB, wait: 'durable', waitSeconds: 10 });
  const device = [...a.model.state.devices.values()][0];
  for (;;) {
    const waiting = { errno: -1 };
    a.client!.write(a.view(device)!, 0, new Uint8Array(16 * KIB).fill(1), false, (errno) => (waiting.errno = errno));
    a.node.poke();
    world.run(() => waiting.errno >= 0 || a.group.stalledCount > 0, { us: 60e6 });
    if (waiting.errno < 0) {
      // Nothing happens any more that would come in handy.
      world.run(world.elapsed(1e6), { us: 60e6 });
      return { world, a, ask, waiting };
    }
  }
}

/** Nothing is destaged, made durable or checkpointed for any other reason than that somebody waits for room. */
const LAZY = { syncMs: 60_000, syncBytes: 64 * MIB, destageUs: 3600e6, destageFraction: 0.9, checkpointSeconds: 1000, checkpointBytes: 64 * MIB };

for (const [name, sizes] of [['small', {}], ['lazy', LAZY]] as const) {
  t.test(`an acknowledgement lets writers of a full journal go on at once (${name})`, async (t) => {
    const { world, a, ask, waiting } = full(t, sizes);
    t.match(a.group.stallReason(), /cursor x still needs it from LSN 0/);
    ask({ op: 'flush', group: GROUP, upTo: 'durable' });
    const { lsn, chainHi, chainLo } = a.group.position;
    const position = { epochId: a.group.epochs.at(-1)!.id, lsn, chainHi, chainLo };
    t.ok(waiting.errno < 0);
    ask({ op: 'cursorAck', group: GROUP, cursor: 'x', position });
    const from = world.clock.now;
    world.run(() => waiting.errno >= 0, { us: 60e6 });
    t.equal(waiting.errno, 0);
    // By the simulation's clock, in which steps of the program take none: no beat was waited for.
    t.ok(world.clock.now - from < 2_000, `${world.clock.now - from} us after the acknowledgement was answered`);
  });
}

t.test('acknowledgements that come at once are written together', async (t) => {
  const { world, a, ask } = full(t, {});
  ask({ op: 'flush', group: GROUP, upTo: 'durable' });
  const { lsn, chainHi, chainLo } = a.group.position;
  const position = { epochId: a.group.epochs.at(-1)!.id, lsn, chainHi, chainLo };
  const { cursors } = a.group.retention;
  const written = (): number => (cursors as unknown as { sequence: number }).sequence;
  const before = written();
  const acks = Array.from({ length: 40 }, () => a.command({ op: 'cursorAck', group: GROUP, cursor: 'x', position }));
  world.run(() => acks.every((ack) => ack.ended), { us: 60e6 });
  t.ok(acks.every((ack) => ack.error === undefined));
  t.equal(cursors.get('x')!.position.lsn, lsn);
  t.ok(written() - before <= 3, `${written() - before} writes for 40 acknowledgements`);
});

t.test('the position of an import is told when it moves, and not before', async (t) => {
  const { world, a, c, ask } = three(t);
  a.start();
  c.start();
  ask(a, { ...CREATE, wait: 'durable' });
  const open = ask(a, { op: 'exportOpen', group: GROUP, cursor: 'x', from: null }) as ExportPart;
  const page = ask(a, { op: 'exportPage', group: GROUP, cursor: 'x', place: open.place, to: open.durable, waitSeconds: 1 }) as ExportPart;
  const { session, state } = ask(c, { op: 'importOpen', group: GROUP }) as ImportOpened;
  const told = c.command({ op: 'importState', session, told: state.position, waitSeconds: 600 });
  ask(c, { op: 'importPush', session, bytes: open.bytes });
  world.run(world.elapsed(2e6), { us: 60e6 });
  t.notOk(told.ended, 'nothing has moved');
  ask(c, { op: 'importPush', session, bytes: page.bytes });
  world.run(() => c.group.journal.durableLsn === c.group.position.lsn, { us: 60e6 });
  t.ok(told.ended, 'in the very step in which the journal was durable');
  const moved = told.reply as ImportState;
  t.not(moved.position, state.position);
  t.match(ask(c, { op: 'importState', session, told: state.position, waitSeconds: 600 }), { position: moved.position }, 'at once where it has moved already');
  t.match(ask(c, { op: 'importState', session, told: moved.position, waitSeconds: 0.1 }), { position: moved.position }, 'and when the time is over');
  const last = c.command({ op: 'importState', session, told: moved.position, waitSeconds: 600 });
  ask(c, { op: 'importEnd', session });
  t.match(last, { ended: true, error: { code: 'import/replaced' } }, 'an import that ends leaves nobody waiting');
});
