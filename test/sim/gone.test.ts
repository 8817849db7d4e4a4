/**
 * Callers that go away before they are answered: what waits for them on the data
 * thread ends at once and leaves nothing behind; an operation that was not
 * appended is not performed, one that was stays. LOCKSTEP_SIM_RUNS=N runs N random
 * seeds, TEST_SEED=N that one.
 */
import t from 'tap';
import type { Test } from 'tap';
import { Caller } from '../../src/base/caller.js';
import { KIB, MIB } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { ExportPart } from '../../src/control/carry.js';
import { GROUP, LINKED, SimHost, SMALL } from './cluster.js';
import { BLOCK } from './model.js';
import { PairRun } from './pair.js';
import { World } from './world.js';

const RUNS = Number(process.env.LOCKSTEP_SIM_RUNS ?? 15);
const FIRST = process.env.TEST_SEED === undefined ? undefined : Number(process.env.TEST_SEED);
const LIMIT = { us: 60e6 };
const WAIT = { wait: 'durable' as const, waitSeconds: 600 };

type Outcome = ReturnType<SimHost['command']>;

class Pair {
  readonly world = new World({ seed: 1 });
  readonly a: SimHost;
  readonly b: SimHost;
  /** Hooks that the links have. */
  private readonly hooks: number;

  constructor(t: { teardown(action: () => void): void }, sizes: Partial<typeof SMALL> = {}) {
    t.teardown(() => this.world.dispose());
    Object.assign(this.world.network.rates, { latencyLowUs: 50, latencyHighUs: 200, bufferLow: 64 * KIB, bufferHigh: 64 * KIB });
    this.a = new SimHost(this.world, 'a', { ...SMALL, ...sizes }, LINKED.a, 0);
    this.b = new SimHost(this.world, 'b', { ...SMALL, ...sizes }, LINKED.b, 1);
    for (const host of [this.a, this.b]) {
      host.stableLimit = () => Infinity;
      // What comes of a caller that goes is said here.
      host.asked.judging = false;
    }
    this.a.start();
    this.b.start();
    this.ask(this.a, { op: 'create', group: GROUP, name: 'v', sizeBytes: MIB, wait: 'applied', waitSeconds: 10 });
    this.hooks = durableHooks(this.a);
  }

  run(until: () => boolean): void {
    this.world.run(until, LIMIT);
  }

  ask(host: SimHost, request: ControlRequest): unknown {
    return host.order<unknown>(request, (until) => this.run(until));
  }

  /** The caller of `outcome` goes: it is answered in the same step, by nobody's hearing. */
  leave(t: Test, host: SimHost, caller: Caller, outcome: Outcome): void {
    t.ok(!outcome.ended, 'it waits');
    const timers = host.reactor!.timerCount;
    host.node.attempt(() => caller.leave());
    host.node.poke();
    t.ok(outcome.ended, 'it has ended');
    t.match(outcome.error, { code: 'control/gone' });
    t.ok(host.reactor!.timerCount <= timers, `${timers} timers have become ${host.reactor!.timerCount}`);
    t.ok(this.waiting(host) === '', `nothing waits any more: ${this.waiting(host)}`);
  }

  /** What waits on behalf of callers. */
  waiting(host: SimHost): string {
    const { group, path, commands } = host;
    const links = (path!.links as unknown as { byGroup: Map<string, { waits: unknown[] }> }).byGroup.get(GROUP)!;
    const found = {
      durable: (group.operations as unknown as { waits: { waits: unknown[] } }).waits.waits.length,
      applied: links.waits.length,
      held: group.ingest?.holding === true ? 1 : 0,
      requests: (commands as unknown as { underWay: number }).underWay,
      durableHooks: durableHooks(host) - this.hooks,
      sizes: group.hasContent ? (group.content.sizes as unknown as { waiting: unknown[] }).waiting.length : 0,
      local: (group.local as unknown as { waits: unknown[]; pending: Map<unknown, unknown> }).waits.length + (group.local as unknown as { pending: Map<unknown, unknown> }).pending.size,
    };
    return Object.entries(found).filter(([, count]) => count !== 0).map(([name, count]) => `${name} ${count}`).join(', ');
  }

  get devices(): string[] {
    const { tree } = this.a.group;
    return [...tree.all()].map((device) => tree.nameOf(device)).sort();
  }

  /** One block written on the primary; answered or not. */
  write(): { errno: number } {
    const outcome = { errno: -1 };
    const device = [...this.a.model.state.devices.values()][0];
    this.a.client!.write(this.a.view(device)!, 0, new Uint8Array(BLOCK).fill(7), false, (errno) => (outcome.errno = errno));
    this.a.node.poke();
    return outcome;
  }
}

function durableHooks({ group }: SimHost): number {
  return (group as unknown as { durableHooks: { hooks: Set<unknown> } }).durableHooks.hooks.size;
}

const SNAPSHOT = { op: 'snapshot', group: GROUP, source: 'v', name: 's', ...WAIT } as const;

t.test('a halt whose caller goes is lifted at once, and its operation is not performed any more', async (t) => {
  const pair = new Pair(t);
  const { a, world } = pair;
  world.network.partition('a', 'b');
  const { lsn } = a.group.position;
  // Something that the secondary lacks.
  pair.ask(a, { op: 'create', group: GROUP, name: 'w', sizeBytes: MIB, ...WAIT });
  const caller = new Caller();
  const halted = a.command({ ...SNAPSHOT, halt: true }, caller);
  pair.run(() => a.group.ingest!.holding);
  const write = pair.write();
  world.run(() => a.group.stalledCount === 1, LIMIT);
  pair.leave(t, a, caller, halted);
  pair.run(() => write.errno === 0);
  t.ok(a.log.some((line) => /warn the caller of an operation with --halt has gone: the writers go on/.test(line)));
  world.network.heal('a', 'b');
  pair.run(() => pair.b.group.position.lsn === a.group.position.lsn);
  t.ok(a.group.position.lsn > lsn);
  t.strictSame(pair.devices, ['v', 'w'], 'no snapshot');
  t.match(pair.ask(a, { ...SNAPSHOT, halt: true }), { waited: 'applied' }, 'the next halt finds nothing in its way');
});

t.test('an operation of a halt that was appended stays when the caller goes, and the writers go on', async (t) => {
  const pair = new Pair(t);
  const { a, world } = pair;
  const caller = new Caller();
  const before = a.group.position.lsn;
  const halted = a.command({ ...SNAPSHOT, halt: true }, caller);
  pair.run(() => a.group.position.lsn > before);
  world.network.partition('a', 'b');
  pair.run(() => a.group.journal.durableLsn === a.group.position.lsn);
  const write = pair.write();
  world.run(() => a.group.stalledCount === 1, LIMIT);
  pair.leave(t, a, caller, halted);
  pair.run(() => write.errno === 0);
  t.strictSame(pair.devices, ['v', 'v@s']);
  t.ok(a.log.some((line) => line.includes(`the caller of snapshot has gone: it was appended at LSN ${a.group.tree.find('v@s')!.createdLsn}, and stays`)), a.log.slice(-5).join('\n'));
});

t.test('a halt that is to be answered when it is durable is, whatever the secondary does, and the writers go on', async (t) => {
  const pair = new Pair(t);
  const { a, b, world } = pair;
  const before = a.group.position.lsn;
  const halted = a.command({ ...SNAPSHOT, halt: true, answerDurable: true });
  pair.run(() => a.group.position.lsn > before);
  t.equal(b.group.position.lsn, before, 'nothing came between');
  world.network.partition('a', 'b');
  pair.run(() => halted.ended);
  t.match(halted.reply, { waited: 'durable', notice: null });
  t.notOk(a.group.ingest!.holding);
  world.network.heal('a', 'b');
  pair.run(() => b.group.tree.find('v@s') !== undefined);
});

t.test('writers are held for the time of a halt once, however far it has come', async (t) => {
  const pair = new Pair(t);
  const { a, world } = pair;
  const heldFor = (waitSeconds: number, until: () => void): { seconds: number; outcome: Outcome } => {
    world.network.partition('a', 'b');
    pair.ask(a, { op: 'create', group: GROUP, name: `w${waitSeconds}`, sizeBytes: MIB, ...WAIT });
    const outcome = a.command({ ...SNAPSHOT, name: `s${waitSeconds}`, halt: true, waitSeconds });
    pair.run(() => a.group.ingest!.holding);
    const since = world.clock.now;
    until();
    world.run(() => !a.group.ingest!.holding, { us: 3 * waitSeconds * 1e6 });
    return { seconds: (world.clock.now - since) / 1e6, outcome };
  };
  const passed = (us: number): void => {
    let over = false;
    world.clock.schedule(world.clock.now + us, () => (over = true));
    world.run(() => over, { us: 2 * us });
  };

  t.comment('the secondary comes along late, and is lost again when the operation has been appended');
  const late = heldFor(20, () => {
    passed(8e6);
    world.network.heal('a', 'b');
    pair.run(() => a.group.tree.find('v@s20') !== undefined);
    world.network.partition('a', 'b');
  });
  t.ok(late.seconds >= 20 && late.seconds < 20.1, `held for ${late.seconds} s`);
  pair.run(() => late.outcome.ended);
  t.match(late.outcome.reply, { waited: 'durable', notice: /b has applied up to LSN/ });

  t.comment('the secondary does not come along at all');
  world.network.heal('a', 'b');
  pair.run(() => pair.b.group.position.lsn === a.group.position.lsn);
  const never = heldFor(10, () => undefined);
  t.ok(never.seconds >= 10 && never.seconds < 10.1, `held for ${never.seconds} s`);
  t.match(never.outcome.error, { code: 'halt/not-drained', message: /nothing was done, and the writers go on: .*b has applied up to LSN/ });
  t.notOk(a.group.tree.find('v@s10'));
});

t.test('an operation that waits for the secondaries stays, and nobody waits for them any more', async (t) => {
  const pair = new Pair(t);
  const { a, world } = pair;
  world.network.partition('a', 'b');
  const caller = new Caller();
  const asked = a.command({ ...SNAPSHOT, wait: 'applied' }, caller);
  pair.run(() => a.group.journal.durableLsn === a.group.position.lsn && a.group.tree.find('v@s') !== undefined);
  pair.leave(t, a, caller, asked);
  t.strictSame(pair.devices, ['v', 'v@s']);
  t.ok(a.log.some((line) => /snapshot has gone: it was appended at LSN \d+, and stays/.test(line)));
});

t.test('an operation whose maps are being read when the caller goes is not performed', async (t) => {
  const pair = new Pair(t);
  const { a } = pair;
  for (const name of ['s', 'u']) {
    const write = pair.write();
    pair.run(() => write.errno === 0);
    pair.ask(a, { ...SNAPSHOT, name });
  }
  pair.ask(a, { op: 'flush', group: GROUP, upTo: 'checkpoint' });
  // Read from the disk again.
  a.group.content.store.map.evict(0, 1 << 20);
  const { lsn } = a.group.position;
  const caller = new Caller();
  const asked = a.command({ op: 'restore', group: GROUP, target: 'v', source: 'v@s', ranges: [[0, BLOCK]], force: true, ...WAIT }, caller);
  t.ok(!asked.ended && a.group.position.lsn === lsn, 'a map node is being read');
  a.node.attempt(() => caller.leave());
  pair.run(() => asked.ended);
  t.match(asked.error, { code: 'control/gone' });
  t.equal(a.group.position.lsn, lsn);
  t.ok(a.log.some((line) => line.includes('restore was not done: its caller has gone')));
});

t.test('drain, flush, sizes, position and pages of an export end with their caller', async (t) => {
  const pair = new Pair(t, { syncMs: 60_000, syncBytes: 64 * MIB, destageUs: 3600e6, destageFraction: 0.9, checkpointSeconds: 1000, checkpointBytes: 64 * MIB });
  const { a, b, world } = pair;
  const open = pair.ask(a, { op: 'exportOpen', group: GROUP, cursor: 'x', from: null }) as ExportPart;
  const goes = (host: SimHost, request: ControlRequest, until: () => boolean = () => true): void => {
    const caller = new Caller();
    const outcome = host.command(request, caller);
    pair.run(until);
    pair.leave(t, host, caller, outcome);
  };
  let ticks = 0;
  const some = (): boolean => ++ticks % 200 === 0;
  goes(a, { op: 'drain', group: GROUP, waitSeconds: 86_400 }, some);
  goes(a, { op: 'exportPage', group: GROUP, cursor: 'x', place: { ...open.place, lsn: a.group.position.lsn }, to: null, waitSeconds: 86_400 });
  goes(a, { op: 'sizes', group: GROUP });
  t.match(pair.ask(a, { op: 'sizes', group: GROUP }), { group: GROUP }, 'the next question is answered');

  // A secondary destages nothing that its primary can lose, and this primary makes nothing durable by itself.
  pair.run(() => b.group.stableLsn === a.group.position.lsn);
  const write = pair.write();
  pair.run(() => write.errno === 0 && b.group.position.lsn === a.group.position.lsn);
  goes(b, { op: 'flush', group: GROUP, upTo: 'checkpoint' }, some);
  const caller = new Caller();
  const local = b.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'l', local: true, ...WAIT }, caller);
  pair.run(() => b.group.local!.tree.find('v~l') !== undefined && b.group.content.local.log.settledLsn >= b.group.content.local.log.changedLsn);
  pair.leave(t, b, caller, local);
  t.ok(b.log.some((line) => /operation on a local snapshot has gone: it was done, and stays/.test(line)));

  // Both wait for one and the same fdatasync.
  const later = pair.write();
  pair.run(() => later.errno === 0);
  for (const request of [{ op: 'position', group: GROUP }, { op: 'flush', group: GROUP, upTo: 'durable' }] as const) goes(a, request);
  world.run(() => a.group.journal.durableLsn === a.group.position.lsn, LIMIT);
});

t.test('an export whose caller goes before its cursor is made leaves none behind', async (t) => {
  const pair = new Pair(t);
  const { a } = pair;
  const caller = new Caller();
  const asked = a.command({ op: 'exportOpen', group: GROUP, cursor: 'x', from: null }, caller);
  t.ok(!asked.ended, 'a batch boundary is being looked for');
  a.node.attempt(() => caller.leave());
  pair.run(() => asked.ended);
  t.match(asked.error, { code: 'control/gone' });
  t.equal(a.group.retention.cursors.count, 0);
});

t.test('a request whose caller is gone before it is begun is not begun', async (t) => {
  const pair = new Pair(t);
  const caller = new Caller();
  caller.leave();
  const { lsn } = pair.a.group.position;
  t.match(pair.a.command(SNAPSHOT, caller), { ended: true, error: { code: 'control/gone' } });
  t.equal(pair.a.group.position.lsn, lsn);
});

t.test('random work of callers that go, with halts, crashes and cuts: nothing is journaled for one that has gone, and the writers go on', async (t) => {
  let [left, operations] = [0, 0];
  for (let seed = FIRST ?? 1; seed < (FIRST ?? 1) + (FIRST === undefined ? RUNS : 1); seed++) {
    // A failure names its seed.
    const run = new PairRun(seed, 200, false, false, true);
    operations += run.run().operations;
    left += run.workload.left;
  }
  t.comment(`${left} of ${operations} operations were left before they were answered`);
  t.ok(left > 0 || FIRST !== undefined);
});
