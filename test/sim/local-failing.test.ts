/**
 * Local devices on a disk that fails at a chosen place: what the client hears,
 * what the operator hears, and what the next start finds.
 */
import t from 'tap';
import type { Test } from 'tap';
import { OperatorError } from '../../src/base/errors.js';
import { KIB } from '../../src/base/units.js';
import { GROUP, LAZY } from './cluster.js';
import { fail, Pair, SIZE } from './failing.js';
import { SHORT_WRITE } from './faults.js';
import type { FaultSite } from './faults.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';
import { Rig } from './rig.js';

const SEED = Number(process.env.TEST_SEED ?? 2);
const LAYER = '/layers/device-2147';
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };

interface Both {
  readonly rig: Rig;
  readonly locals: LocalDevices;
}

/** A node with the volume `v`; `named`: and the local snapshot `v~n`, with content, flushed. */
function node(t: Test, named = true, inMemory = false): Both {
  const rig = new Rig(SEED, { syncMs: 60_000 });
  if (inMemory) rig.host.volatile();
  t.teardown(() => rig.dispose());
  rig.start();
  const locals = new LocalDevices(rig.host);
  locals.attach();
  rig.create('v', SIZE);
  rig.ask('v', 'write', 0, 16 * BLOCK);
  if (named) {
    locals.snapshot('v', 'n');
    for (let i = 0; i < 4; i++) locals.change('v~n', i * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(10 + i));
    rig.run(() => locals.inFlight === 0);
    flush({ rig, locals });
  }
  return { rig, locals };
}

function flush({ rig, locals }: Both): number {
  const outcome = locals.flush('v~n');
  rig.run(() => outcome.errno >= 0);
  return outcome.errno;
}

function write({ rig, locals }: Both, block: number, letter: number): number {
  const outcome = locals.change('v~n', block * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(letter));
  rig.run(() => outcome.errno >= 0);
  return outcome.errno;
}

/** All pages that a failing fdatasync covers are lost, and read back as written. */
function loseAll({ rig }: Both): void {
  rig.host.node.disk.faults.rates.lossPerPage = 1;
}

function restart({ rig, locals }: Both, how: 'kill' | 'power', judge: 'kill' | 'power' = how): void {
  rig.host.crash(how);
  rig.host.node.disk.faults.hook = undefined;
  const problem = rig.tryStart();
  if (problem !== undefined) throw new Error(problem);
  locals.judge(judge);
}

t.test('a local journal whose creation fails is refused with the cause, as often as it fails, and made afterwards', async (t) => {
  for (const [op, place] of [['fdatasync', '/local/segment-'], ['syncDirectory', '/local'], ['pwrite', '/local/segment-'], ['zero', '/local/segment-'], ['open', '/local/segment-']] as const) {
    const both = node(t, false);
    const { rig, locals } = both;
    const state = fail(rig, 12, (site) => site.op === op && site.path.includes(place) && (op !== 'fdatasync' || !site.inJob));
    let refused = 0;
    while (state.left > 0 && refused < 20) {
      try {
        locals.snapshot('v', 'n');
      } catch (error) {
        refused++;
        t.match((error as Error).message, /(local journal|\/local).*(EIO)/, `${op}: refused`);
      }
      if (rig.host.group.role !== 'primary') break;
    }
    if (rig.host.group.role === 'primary') {
      t.ok(refused > 5, `${op}: refused ${refused} times`);
      t.equal(rig.ask('v', 'write', 0, BLOCK, { fua: true }), 0, 'the volumes are not concerned');
      locals.snapshot('v', 'n');
    } else {
      // Its first record: from there on it is a journal as any other.
      t.match(rig.host.group.roleReason, /the journal failed/);
      restart(both, 'kill', 'power');
      locals.snapshot('v', 'n');
    }
    t.equal(write(both, 1, 99), 0);
    t.equal(flush(both), 0);
    restart(both, 'power');
    t.equal(locals.read('v~n', BLOCK, BLOCK)?.[0], 99);
  }
});

t.test('a layer file that cannot be made or written fails that write alone, and an operator hears why', async (t) => {
  for (const [op, errno] of [['open', 28], ['open', 24], ['pwrite', 28], ['pwrite', 5]] as const) {
    const both = node(t, false);
    const { rig, locals } = both;
    locals.snapshot('v', 'n');
    fail(rig, 1, (site) => site.op === op && site.path.includes(LAYER), errno);
    t.equal(write(both, 1, 50), errno === 28 ? 28 : 5, `${op}, errno ${errno}: the client hears it`);
    t.match(rig.host.group.local!.problems().join(), /local snapshots cannot be written: .*layers\/device-.*; the client of that write was told, the volumes are not concerned/);
    t.match(rig.host.log.join('\n'), /error local snapshots cannot be written/);
    t.equal(rig.host.group.role, 'primary');
    locals.takeUncertain();
    t.equal(write(both, 1, 51), 0);
    t.same(rig.host.group.local!.problems(), [], 'until a write succeeds');
    t.equal(flush(both), 0);
    restart(both, 'power');
    rig.verify();
  }
});

for (const inMemory of [false, true]) {
  const kind = inMemory ? ', beside a volatile journal' : '';
  t.test(`after a failed fdatasync of a layer no later one that succeeds takes it back${kind}`, async (t) => {
    const both = node(t, true, inMemory);
    const { rig, locals } = both;
    loseAll(both);
    t.equal(write(both, 1, 60), 0);
    fail(rig, 1, (site) => site.op === 'fdatasync' && site.path.includes(LAYER));
    t.equal(flush(both), 5, 'the FLUSH fails');
    t.match(rig.host.group.roleReason, /the journal failed: fdatasync the layers of local devices .*\(EIO\).*restart the daemon/);
    t.match(rig.host.path!.blocks.find(`${GROUP}/v~n`), { unavailable: /group g is stopped/ }, 'nothing more is acknowledged');
    // The page cache of this boot shows what the disk has not.
    restart(both, 'kill', 'power');
    const seen = locals.read('v~n', BLOCK, BLOCK)![0];
    t.equal(seen, 11, 'what the disk has');
    t.equal(flush(both), 0);
    if (inMemory) return;
    restart(both, 'power');
    t.equal(locals.read('v~n', BLOCK, BLOCK)![0], seen, 'what was read and flushed is there');
  });

  t.test(`a stop in order whose fdatasync of a layer fails is told, and the next start does not rely on it${kind}`, async (t) => {
    const both = node(t, true, inMemory);
    const { rig, locals } = both;
    loseAll(both);
    t.equal(write(both, 1, 60), 0);
    const { log } = rig.host;
    const state = fail(rig, 1, (site) => site.op === 'fdatasync' && site.path.includes(LAYER));
    rig.stop();
    t.equal(state.left, 0, 'it failed');
    t.match(log.join('\n'), /error local snapshots may have lost what was written since their last FLUSH: fdatasync .*\(EIO\)/);
    rig.host.node.disk.faults.hook = undefined;
    t.equal(rig.tryStart(), undefined);
    t.equal(rig.host.group.epochs.length, 1, 'the group itself was stopped in order');
    locals.judge('power');
    const seen = locals.read('v~n', BLOCK, BLOCK)![0];
    t.equal(seen, 11);
    t.equal(write(both, 3, 62), 0);
    t.equal(flush(both), 0);
    restart(both, 'kill');
    t.equal(locals.read('v~n', BLOCK, BLOCK)![0], seen);
    t.equal(locals.read('v~n', 3 * BLOCK, BLOCK)![0], 62, 'a later kill loses nothing again');
  });
}

t.test('a failed append of the local journal stops the group; acknowledged and flushed is there afterwards', async (t) => {
  for (const errno of [5, 28, SHORT_WRITE]) {
    for (const how of ['kill', 'power'] as const) {
      const both = node(t);
      const { rig } = both;
      const state = fail(rig, 1, (site) => site.op === 'pwrite' && !site.inJob && site.path.includes('/local/segment-'), errno);
      t.equal(write(both, 1, 70), 5);
      t.equal(state.left, 0);
      t.match(rig.host.group.roleReason, /the journal failed: append to the journal .*\/local: .*\((EIO|ENOSPC)\)/);
      restart(both, how, 'power');
      rig.verify();
    }
  }
});

t.test('a failing directory or layer at a start is the reason why the group is not opened, and not forgotten', async (t) => {
  for (const [op, place] of [['syncDirectory', '/layers'], ['syncDirectory', '/local'], ['fdatasync', '/local/segment-'], ['open', LAYER], ['pwrite', '/local/segment-']] as const) {
    for (const times of [1, 3]) {
      const both = node(t);
      const { rig, locals } = both;
      t.equal(write(both, 1, 80), 0);
      rig.host.crash('kill');
      const state = fail(rig, times, (site) => site.op === op && site.path.includes(place));
      let starts = 0;
      for (;;) {
        const problem = rig.tryStart();
        if (problem === undefined) break;
        t.match(problem, /\(EIO\)/, `${op} of ${place}`);
        rig.host.crash('kill');
        if (++starts > 5) throw new Error(`does not start: ${problem}`);
      }
      // A fault that nobody met has no effect; a group that was opened in spite of one says so when it is used.
      locals.judge('power');
      if (state.left > 0) t.comment(`${op} of ${place}: ${state.left} not met`);
      state.left = 0;
      t.equal(write(both, 2, 81), 0);
      t.equal(flush(both), 0, 'a FLUSH is answered');
      restart(both, 'power');
      rig.verify();
    }
  }
});

// ---- two nodes -------------------------------------------------------------------------------------------

function paired(t: Test, sizes = LAZY): Pair {
  const pair = new Pair(SEED, sizes);
  t.teardown(() => pair.world.dispose());
  return pair;
}

t.test('a disk that fails while a secondary is taken back stops its group, not its daemon, and a start goes on', async (t) => {
  const places: [string, (site: FaultSite) => boolean][] = [
    ['the durable mark', (site) => site.op === 'pwrite' && site.length === 512 && site.path.includes('/journal/segment-')],
    ['an fdatasync of the journal', (site) => site.op === 'fdatasync' && site.path.includes('/journal/segment-')],
    ['a read of the journal', (site) => site.op === 'pread' && site.path.includes('/journal/segment-') && site.length > 64 * KIB],
    ['an fdatasync of the local journal', (site) => site.op === 'fdatasync' && site.path.includes('/local/segment-')],
    ['an append to the local journal', (site) => site.op === 'pwrite' && site.path.includes('/local/segment-')],
    ['the directory of the layers', (site) => site.op === 'syncDirectory' && site.path.endsWith('/layers')],
  ];
  for (const [name, matches] of places) {
    const pair = paired(t);
    const { a, b, locals } = pair;
    locals.snapshot('v', 'used');
    locals.change('v~used', BLOCK, BLOCK, new Uint8Array(BLOCK).fill(9));
    pair.run(() => locals.inFlight === 0);
    const flushed = locals.flush('v~used');
    pair.run(() => flushed.errno >= 0);
    pair.write(4, 4);
    pair.run(() => pair.caughtUp);
    // Not ready yet: it goes with what it was taken of, by a record of the local journal.
    const late = locals.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'late', local: true, ...WAIT });
    pair.run(() => late.ended);
    pair.ahead();
    const state = fail(b, 1, (site) => b.group.changing && matches(site));
    pair.run(() => b.group.role === 'stopped');
    t.equal(state.left, 0, name);
    t.match(b.group.roleReason, /\(EIO\)/);
    const status = b.command({ op: 'status' });
    t.equal((status.error as Error | undefined)?.stack, undefined, 'the daemon tells its status');
    let closed = false;
    pair.run(() => a.path!.links.status(GROUP)[0].state !== 'streaming');
    if (name.includes('local')) {
      b.node.attempt(() => b.path!.close(() => (closed = true)));
      b.node.poke();
      pair.run(() => closed);
      b.stoppedCleanly();
    } else b.crash('kill');
    b.start();
    t.equal(b.problem, undefined);
    pair.run(() => b.group.role === 'secondary' && pair.caughtUp && !b.group.changing);
    locals.attach();
    t.same([...b.group.local!.tree.all()].map((device) => device.name), ['v~used']);
    t.same([...locals.read('v~used', 0, 3 * BLOCK)!.filter((_byte, i) => i % BLOCK === 0)], [1, 9, 0]);
    t.equal(b.group.content.applyProblem, undefined);
  }
});

t.test('what fails while a rewind waits for jobs is noted, and not forgotten by opening the content anew', async (t) => {
  const pair = paired(t);
  const { b, locals } = pair;
  locals.snapshot('v', 'used');
  b.node.disk.faults.rates.lossPerPage = 1;
  locals.change('v~used', BLOCK, BLOCK, new Uint8Array(BLOCK).fill(8));
  pair.run(() => locals.inFlight === 0);
  const first = locals.flush('v~used');
  pair.run(() => first.errno >= 0);
  // Where the layer's file has nothing yet.
  locals.change('v~used', 0, BLOCK, new Uint8Array(BLOCK).fill(9));
  pair.run(() => locals.inFlight === 0);
  // The layer's fdatasync begins right before the rewind, which has to wait for it.
  const rewind = b.group.rewind.bind(b.group);
  let rewinds = 0;
  b.group.rewind = (to, done) => {
    rewinds++;
    const { log } = b.group.content.local;
    log.settle(log.changedLsn);
    rewind(to, done);
  };
  const state = fail(b, 1, (site) => site.op === 'fdatasync' && site.path.includes(LAYER));
  pair.ahead();
  pair.run(() => b.group.role === 'stopped');
  t.equal(rewinds, 1);
  t.equal(state.left, 0);
  t.match(b.group.roleReason, /fdatasync the layers of local devices/);
  pair.run(() => pair.a.path!.links.status(GROUP)[0].state !== 'streaming');
  pair.run(pair.world.elapsed(200_000));
  b.crash('kill');
  b.start();
  t.equal(b.problem, undefined);
  pair.run(() => pair.caughtUp && !b.group.changing);
  locals.attach();
  t.same([...locals.read('v~used', 0, 2 * BLOCK)!.filter((_byte, k) => k % BLOCK === 0)], [1, 8], 'what the disk has');
});

t.test('a promotion frees the writers of a full local journal whose primary is dead, and status says what they wait for', async (t) => {
  const pair = paired(t, { ...LAZY, checkpointSeconds: 0.2, segments: 6 });
  const { a, b, locals } = pair;
  locals.snapshot('v', 'n');
  // Applied here, and never confirmed as durable there: no checkpoint can be committed.
  pair.write(3, 3);
  pair.run(() => pair.caughtUp);
  a.crash('power');
  let outcome = { errno: 0 };
  for (let i = 0; outcome.errno === 0; i++) {
    if (i > 4000) throw new Error('it never became full');
    outcome = locals.change('v~n', (i % 128) * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(1 + (i % 200)));
    const over = pair.world.elapsed(20_000);
    pair.run(() => outcome.errno >= 0 || over());
  }
  t.equal(outcome.errno, -1, 'the write waits');
  const status = b.command({ op: 'status' });
  t.match(JSON.stringify(status.reply), /writers of local snapshots wait, for the local journal is full: .*bring the primary back, or promote this node/);
  const flushed = locals.flush('v~n');
  pair.run(() => flushed.errno >= 0);
  t.equal(flushed.errno, 0, 'what was acknowledged is flushed all the same');
  const promoted = b.command({ op: 'promote', group: GROUP, force: true });
  pair.run(() => promoted.ended);
  t.equal(promoted.error, undefined);
  pair.run(() => outcome.errno >= 0);
  t.equal(outcome.errno, 0, 'and goes on once this node is the primary');
  locals.verify();
  b.model.raiseFloor(b.model.endLsn);
  b.crash('power');
  b.start();
  pair.run(() => b.group.role === 'primary');
  locals.judge('power');
});

t.test('a promotion that cannot be noted has not happened, whatever else is noted later', async (t) => {
  for (const [op, place] of [['fdatasync', 'state.json'], ['syncDirectory', `/groups/${GROUP}`], ['rename', 'state.json']] as const) {
    const pair = paired(t);
    const { a, b } = pair;
    a.crash('power');
    const state = fail(b, 1, (site) => site.op === op && (op === 'syncDirectory' ? site.path.endsWith(place) : site.path.includes(place)));
    const refused = b.command({ op: 'promote', group: GROUP, force: true });
    pair.run(() => refused.ended);
    t.equal(state.left, 0, `${op} of ${place}`);
    t.match((refused.error as Error).message, /\(EIO\)/);
    t.equal(b.group.role, 'secondary');
    b.crash('kill');
    b.start();
    t.equal(b.group.role, 'secondary', 'not after a restart either');
    const again = b.command({ op: 'promote', group: GROUP, force: true });
    pair.run(() => again.ended);
    t.equal(again.error, undefined);
  }
});

for (const how of ['none', 'kill', 'power'] as const) {
  t.test(`a promoted secondary drops local snapshots of what it has lost itself, and keeps the others; then ${how}`, async (t) => {
    const pair = paired(t);
    const { a, b, locals } = pair;
    locals.snapshot('v', 'used');
    pair.write(2, 2);
    pair.run(() => pair.caughtUp);
    // The local journal makes its record durable, and the group's journal not what that follows.
    if (how === 'power') b.group.content.journal.sync = () => undefined;
    const late = locals.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'late', local: true, ...WAIT });
    pair.run(() => late.ended);
    t.match((late.reply as { notice: string | null }).notice, /cannot be used yet/);
    const { followsLsn } = b.group.local!.tree.find('v~late')!;
    a.crash('power');
    if (how !== 'none') {
      b.crash(how);
      b.start();
      t.equal(b.problem, undefined);
      locals.attach();
    }
    const promoted = b.command({ op: 'promote', group: GROUP, force: true });
    pair.run(() => promoted.ended);
    t.equal(promoted.error, undefined);
    const start = b.group.epochs.at(-1)!.start.lsn;
    const names = (): string[] => [...b.group.local!.tree.all()].map((device) => device.name);
    t.equal(start < followsLsn, how === 'power', 'whether the new epoch begins below it');
    if (start < followsLsn) {
      t.same(names(), ['v~used']);
      t.match(b.group.local!.problems().join(), /v~late was dropped: the state of the group that it was taken of/);
    } else {
      t.same(names(), ['v~used', 'v~late'], 'what is in the history stays');
      pair.run(() => b.group.local!.tree.find('v~late')?.ready === true);
      t.same([...locals.read('v~late', 0, 3 * BLOCK)!.filter((_byte, i) => i % BLOCK === 0)], [1, 0, 2]);
    }
    // The new epoch passes the position; that must not bring it back.
    b.model.raiseFloor(b.model.endLsn);
    const kept = names();
    const again = locals.command({ op: 'snapshot', group: GROUP, source: 'v', name: 'again', local: true, ...WAIT });
    pair.run(() => again.ended);
    t.equal(again.error, undefined);
    b.crash('power');
    b.start();
    pair.run(() => b.group.role === 'primary');
    t.same(names(), [...kept, 'v~again']);
  });
}

t.test('a local operation that a group refuses because it stopped says why', async (t) => {
  const both = node(t);
  const { rig, locals } = both;
  fail(rig, 1, (site) => site.op === 'fdatasync' && site.path.includes('/local/segment-'));
  try {
    locals.snapshot('v~n', 'm');
    t.fail('it was reported');
  } catch (error) {
    t.ok(error instanceof OperatorError);
    t.match((error as Error).message, /the journal failed: fdatasync the journal .*\/local: .*\(EIO\)/);
  }
  restart(both, 'kill', 'power');
});
