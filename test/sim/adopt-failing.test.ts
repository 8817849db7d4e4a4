/**
 * Adoptions whose local journal fails at the marker, and adoptions of local
 * snapshots that are in use: a node executes the marker wholly, or says why not
 * and executes it after its next start.
 */
import t from 'tap';
import type { Test } from 'tap';
import { Caller } from '../../src/base/caller.js';
import type { GroupLinks } from '../../src/replication/links.js';
import { adoptable } from '../model/devices.js';
import { adoptableDigest } from './adoption.js';
import { GROUP } from './cluster.js';
import type { SimHost } from './cluster.js';
import { fail, Pair } from './failing.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';

const SEED = Number(process.env.TEST_SEED ?? 5);
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };
const ADOPT = { op: 'adopt' as const, group: GROUP, local: 'v~x', name: 's', force: true };

interface Both {
  readonly pair: Pair;
  /** Local devices of the primary. */
  readonly here: LocalDevices;
  readonly digest: string;
}

/** Its answer to whoever asks whether it could adopt is yes, and what the marker meets is another matter. */
function changesItsMind(host: SimHost): void {
  host.group.adoptLack = () => undefined;
}

function seal(pair: Pair, host: SimHost, digest: string): void {
  const request = { op: 'seal' as const, group: GROUP, device: 'v~x', undo: false, force: true };
  const { sealedLsn } = pair.order<{ sealedLsn: number }>(host, { ...request, known: null });
  pair.order(host, { ...request, known: { digest, sealedLsn } });
}

/** Both nodes have `v~x`, equal; sealed on the primary, and on the secondary if `sealed`. */
function both(t: Test, sealed = true): Both {
  const pair = new Pair(SEED);
  t.teardown(() => {
    pair.world.dispose();
    adoptable.clear();
  });
  const here = new LocalDevices(pair.a);
  here.attach();
  for (const locals of [here, pair.locals]) {
    locals.snapshot('v', 'x');
    locals.change('v~x', BLOCK, BLOCK, new Uint8Array(BLOCK).fill(9));
    pair.run(() => locals.inFlight === 0);
  }
  const digest = adoptableDigest(here.find('v~x')!);
  seal(pair, pair.a, digest);
  if (sealed) seal(pair, pair.b, digest);
  return { pair, here, digest };
}

const markerAppend = (pathPart: string) => ({ op, path, inJob }: { op: string; path: string; inJob: boolean }): boolean => op === 'pwrite' && !inJob && path.includes(pathPart);

function restart({ pair }: Both, host: SimHost, how: 'kill' | 'power'): void {
  host.crash(how);
  host.node.disk.faults.hook = undefined;
  host.start();
  if (host.problem !== undefined) throw new Error(host.problem);
  pair.run(() => pair.a.group.role === 'primary' && pair.caughtUp);
}

function adopted(t: Test, host: SimHost): void {
  t.ok(host.group.tree.find('v@s'), `${host.name} has the replicated snapshot`);
  t.equal(host.group.local!.tree.find('v~x'), undefined, 'and not the local one');
  host.compareTree();
}

for (const how of ['kill', 'power'] as const) {
  t.test(`the local journal fails at the marker on the primary; ${how}`, async (t) => {
    const run = both(t);
    const { pair } = run;
    const { a, b } = pair;
    const state = fail(a, 1, markerAppend('/local/segment-'));
    const outcome = a.command({ ...ADOPT, ...WAIT });
    pair.run(() => outcome.ended);
    t.equal(state.left, 0);
    t.match((outcome.error as Error).message, /local.*\(EIO\)/, 'the operator hears it');
    t.equal(a.group.role, 'stopped');
    t.match(a.group.roleReason, /the journal failed: append to the journal .*\/local: .*\(EIO\).*restart the daemon/);
    t.equal((a.group.meter as unknown as { before: unknown[] }).before.length, 0);
    t.equal(b.group.tree.find('v@s'), undefined, 'nothing of it is shipped');
    restart(run, a, how);
    if (a.group.tree.find('v@s') !== undefined) {
      adopted(t, a);
      adopted(t, b);
    } else {
      t.equal(how, 'power', 'what was appended survives a kill');
      pair.order(a, { ...ADOPT, wait: 'applied', waitSeconds: 10 });
      adopted(t, a);
      adopted(t, b);
    }
  });

  t.test(`the local journal fails at the marker on the secondary; ${how}`, async (t) => {
    const run = both(t);
    const { pair } = run;
    const { a, b } = pair;
    const state = fail(b, 1, markerAppend('/local/segment-'));
    const outcome = a.command({ ...ADOPT, wait: 'applied', waitSeconds: 5 });
    pair.run(() => b.group.role === 'stopped');
    t.equal(state.left, 0);
    t.match(b.group.roleReason, /the journal failed: append to the journal .*\/local: .*\(EIO\)/);
    t.ok(b.group.appliedLsn < b.group.position.lsn, 'the marker does not count as executed');
    pair.run(() => outcome.ended);
    t.equal(outcome.error, undefined);
    t.match((outcome.reply as { waited: string; notice: string }).notice, /./, 'the primary does not say that it was applied there');
    t.equal((outcome.reply as { waited: string }).waited, 'durable');
    adopted(t, a);
    restart(run, b, how);
    adopted(t, b);
  });

  t.test(`the local journal fails when recovery notes the adoption; ${how}`, async (t) => {
    for (const who of ['a', 'b'] as const) {
      const run = both(t);
      const { pair } = run;
      const host = pair[who];
      // The record of the adoption is lost with the power, the marker is not.
      const { log } = host.group.content.local;
      log.settle = () => undefined;
      pair.order(pair.a, { ...ADOPT, wait: 'applied', waitSeconds: 10 });
      const flushed = host.command({ op: 'flush', group: GROUP, upTo: 'durable' });
      pair.run(() => flushed.ended);
      host.crash('power');
      let met = 0;
      for (let failing = 1; ; failing++) {
        let count = 0;
        host.node.disk.faults.hook = ({ op, path, inJob }) => (op === 'pwrite' && !inJob && path.includes('/local/segment-') && ++count === failing ? 5 : 0);
        host.start();
        if (host.problem === undefined && count < failing) break;
        if (host.problem === undefined) t.equal(host.group.role === 'stopped' || host.group.hasContent, true);
        else t.match(host.problem, /\(EIO\)/, `append ${failing} of the start fails`);
        met++;
        host.crash(how);
        if (failing > 12) throw new Error('it never starts');
      }
      t.ok(met > 0, 'starts failed');
      host.node.disk.faults.hook = undefined;
      pair.run(() => pair.a.group.role === 'primary' && pair.caughtUp);
      adopted(t, pair.a);
      adopted(t, pair.b);
    }
  });
}

t.test('a secondary whose copy is being written when the marker comes stops applying, keeps its writers, and adopts once it is sealed', async (t) => {
  const run = both(t, false);
  const { pair, digest } = run;
  const { a, b, locals } = pair;
  const writes = [3, 4, 5].map((block) => locals.change('v~x', block * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(7)));
  changesItsMind(b);
  const outcome = a.command({ ...ADOPT, ...WAIT });
  pair.run(() => outcome.ended && b.group.position.lsn === a.group.position.lsn);
  t.equal(outcome.error, undefined);
  t.match(b.group.content.applyProblem, /adopts local snapshot v~x .*on this node it is not sealed; make it equal .*seal it and restart/);
  pair.run(() => writes.every((one) => one.errno >= 0));
  t.same(writes.map((one) => one.errno), [0, 0, 0], 'its writers are not concerned');
  // Made equal again, as reconcile does.
  for (const block of [3, 4, 5]) locals.change('v~x', block * BLOCK, BLOCK, run.here.devices.size > 0 ? [...run.here.devices.values()][0].current(block).slice() : undefined);
  pair.run(() => locals.inFlight === 0);
  seal(pair, b, digest);
  t.not(b.group.content.applyProblem, undefined, 'it goes on at its next start');
  restart(run, b, 'kill');
  t.equal(b.group.content.applyProblem, undefined);
  adopted(t, b);
});

t.test('a seal that is not settled when the marker comes does not count; it is executed at the next start', async (t) => {
  const run = both(t, false);
  const { pair, digest } = run;
  const { a, b } = pair;
  const request = { op: 'seal' as const, group: GROUP, device: 'v~x', undo: false, force: true };
  const { sealedLsn } = pair.order<{ sealedLsn: number }>(b, { ...request, known: null });
  const { log } = b.group.content.local;
  const { settle } = log;
  log.settle = () => undefined;
  const sealing = b.command({ ...request, known: { digest, sealedLsn } });
  changesItsMind(b);
  const outcome = a.command({ ...ADOPT, ...WAIT });
  pair.run(() => outcome.ended && b.group.position.lsn === a.group.position.lsn);
  t.match(b.group.content.applyProblem, /on this node it is not sealed/);
  t.notOk(sealing.ended, 'nor was it reported');
  log.settle = settle;
  log.settle(log.changedLsn);
  pair.run(() => sealing.ended);
  t.equal(sealing.error, undefined);
  restart(run, b, 'kill');
  adopted(t, b);
});

t.test('an adoption that the secondary could not execute is refused before it is appended, and what to do is said', async (t) => {
  const run = both(t, false);
  const { pair, digest } = run;
  const { a, b, locals } = pair;
  const refused = (words: RegExp): void => {
    const { lsn } = a.group.position;
    const outcome = a.command({ ...ADOPT, ...WAIT });
    pair.run(() => outcome.ended);
    t.match(outcome.error, { code: 'adopt/not-ready', message: /^nothing was done, for a secondary would stop applying: / });
    t.match((outcome.error as Error).message, words);
    t.equal(a.group.position.lsn, lsn, 'nothing was appended');
    t.ok(a.group.local!.tree.find('v~x'), 'it is still there');
  };
  refused(new RegExp(`g/v~x has content digest ${digest} here, and on node b it is not sealed; make it equal there \\(lockstep reconcile\\), run on node b: lockstep seal g/v~x, and adopt it again`));
  seal(pair, b, '0'.repeat(32));
  refused(new RegExp(`on node b it has content digest ${'0'.repeat(32)};`));
  locals.remove('v~x');
  pair.run(() => b.group.local!.tree.find('v~x') === undefined);
  refused(/on node b there is no local snapshot of that name;/);
  t.equal(b.group.content.applyProblem, undefined);
  pair.order(a, { op: 'snapshot', group: GROUP, source: 'v', name: 'after', wait: 'applied', waitSeconds: 10 });
});

t.test('an adoption waits for the answer of a secondary that is connected, and for none of one that is away', async (t) => {
  const run = both(t);
  const { pair } = run;
  const { a, b } = pair;
  const { lsn } = a.group.position;
  const { questions } = (a.path!.links as unknown as { byGroup: Map<string, GroupLinks> }).byGroup.get(GROUP)!.links[0].outgoing!;
  const { answered } = questions;
  questions.answered = () => undefined;
  const unanswered = a.command({ ...ADOPT, ...WAIT });
  pair.run(() => unanswered.ended);
  t.match(unanswered.error, { code: 'adopt/not-ready', message: /node b has not said within 15 s whether it can adopt g\/v~x; try again, or see what its link says/ });
  questions.answered = answered;
  const caller = new Caller();
  const left = a.command({ ...ADOPT, ...WAIT }, caller);
  const timers = a.reactor!.timerCount;
  a.node.attempt(() => caller.leave());
  t.match(left.error, { code: 'control/gone' });
  t.ok(a.reactor!.timerCount < timers, 'nobody waits for the answer any more');
  pair.run(() => (questions as unknown as { open: Map<number, unknown> }).open.size === 0);
  t.equal(a.group.position.lsn, lsn, 'nothing was appended');
  const asked = a.command({ ...ADOPT, ...WAIT });
  b.crash('kill');
  pair.run(() => asked.ended);
  t.equal(asked.error, undefined, 'it went while it was asked');
  b.start();
  pair.run(() => pair.caughtUp);
  adopted(t, a);
  adopted(t, b);
});

t.test('an adoption of what has changed while the secondaries were asked is refused, and what changed is said', async (t) => {
  const run = both(t);
  const { pair, here, digest } = run;
  const { a, b } = pair;
  const { questions } = (a.path!.links as unknown as { byGroup: Map<string, GroupLinks> }).byGroup.get(GROUP)!.links[0].outgoing!;
  const { answered } = questions;
  const { lsn } = a.group.position;
  /** `meanwhile` happens between the secondary's answer and what the primary makes of it. */
  const adoptWhile = (meanwhile: () => void): unknown => {
    const answers: Parameters<typeof answered>[0][] = [];
    questions.answered = (answer) => void answers.push(answer);
    const outcome = a.command({ ...ADOPT, ...WAIT });
    pair.run(() => answers.length === 1);
    meanwhile();
    questions.answered = answered;
    a.node.attempt(() => questions.answered(answers[0]));
    pair.run(() => outcome.ended);
    return outcome.error;
  };
  const other = '7'.repeat(32);
  const refused = adoptWhile(() => {
    pair.order(a, { op: 'seal', group: GROUP, device: 'v~x', undo: true, force: true, known: null });
    here.change('v~x', 5 * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(3));
    pair.run(() => here.inFlight === 0);
    seal(pair, a, other);
  });
  t.match(refused, { code: 'adopt/changed', message: `nothing was done: g/v~x has changed while the secondaries were asked whether they could adopt it: it has content digest ${other} now, and had ${digest}; adopt it again` });
  t.match(adoptWhile(() => undefined), { code: 'adopt/not-ready', message: `g/v~x has content digest ${other} here, and on node b it has content digest ${digest}` }, 'again is asked about what it is now');
  t.equal(a.group.position.lsn, lsn, 'nothing was appended');
  t.equal(b.group.content.applyProblem, undefined);
});

t.test('who reads the local snapshot of a secondary is disconnected when it is adopted, and its flushes are answered', async (t) => {
  const run = both(t);
  const { pair } = run;
  const { a, b, locals } = pair;
  const view = b.path!.blocks.find(`${GROUP}/v~x`);
  if (view === undefined || 'unavailable' in view) throw new Error('v~x is not served');
  const reasons: string[] = [];
  b.path!.blocks.addClient(view, { peer: 'reader', disconnect: (reason: string) => void reasons.push(reason) });
  const flush = locals.flush('v~x');
  pair.order(a, { ...ADOPT, wait: 'applied', waitSeconds: 10 });
  pair.run(() => flush.errno >= 0);
  t.equal(flush.errno, 0);
  t.match(reasons.join(), /g\/v~x was removed/);
  adopted(t, b);
});

t.test('a local snapshot with writers is not adopted on the primary', async (t) => {
  const run = both(t);
  const { pair, here } = run;
  pair.order(pair.a, { op: 'seal', group: GROUP, device: 'v~x', undo: true, force: true, known: null });
  const write = here.change('v~x', 0, BLOCK, new Uint8Array(BLOCK).fill(3));
  const outcome = pair.a.command({ ...ADOPT, ...WAIT });
  pair.run(() => outcome.ended && write.errno >= 0);
  t.match((outcome.error as Error).message, /is not sealed: make it equal on every node/);
  t.equal(write.errno, 0);
  t.equal(pair.a.group.position.lsn, pair.b.group.position.lsn, 'nothing was appended');
});
