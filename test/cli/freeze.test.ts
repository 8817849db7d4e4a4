/** snapshot --freeze, --exec-before, --exec-after: a real daemon socket and real watchdog logic, over a kernel that remembers what is frozen. */
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Test } from 'tap';
import { Errno, OperatorError } from '../../src/base/errors.js';
import type { CommandEnd } from '../../src/cli/freeze/system.js';
import { REAL_FREEZE_SYSTEM } from '../../src/cli/freeze/system.js';
import { mountOf, openedBy, parseMounts, writtenFileSystems } from '../../src/cli/freeze/mounts.js';
import type { Mount } from '../../src/cli/freeze/mounts.js';
import { FreezeWatchdog } from '../../src/cli/freeze/watchdog.js';
import type { FakePort } from '../control/fake-port.js';
import { cursor, group, link, nodeStatus, operation } from '../control/fake-port.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import type { FakeDog } from './fake-machine.js';
import { FakeMachine } from './fake-machine.js';
import type { Result } from './harness.js';
import { openCli } from './harness.js';

interface Bench {
  readonly machine: FakeMachine;
  readonly port: FakePort;
  readonly a: string;
  readonly b: string;
  readonly interrupt: AbortController;
  snapshot(...argv: string[]): Promise<Result>;
}

async function bench(t: Test): Promise<Bench> {
  const interrupt = new AbortController();
  const root = makeTempDirectory('freeze');
  t.teardown(() => removeTempDirectory(root));
  const machine = new FakeMachine(root);
  const { port, run } = await openCli(t, { freezeSystem: machine, interrupted: interrupt.signal });
  port.answers.snapshot = () => {
    machine.steps.push('snapshot');
    return operation();
  };
  return { machine, port, a: machine.mount('a', '8:1'), b: machine.mount('b', '8:2', 'xfs'), interrupt, snapshot: (...argv) => run('snapshot', 'g/vol@s', ...argv) };
}

const BOTH = ['--exec-before', 'BEFORE', '--exec-after', 'AFTER'] as const;
/** The results that --exec-after was told. */
const told = (machine: FakeMachine): unknown => machine.environments.map((one) => one['LOCKSTEP_RESULT']).filter((one) => one !== undefined);

t.test('the steps come in their order, and nothing is frozen when the command after runs', async (t) => {
  const { machine, a, b, port, snapshot } = await bench(t);
  const result = await snapshot('--freeze', a, '--freeze', b, ...BOTH);
  t.match(result, { code: 0, out: /^created g\/vol@s of g\/vol at LSN 12288; durable/, err: '' });
  t.strictSame(machine.steps, ['BEFORE', 'sync /a', 'sync /b', 'freeze /a', 'freeze /b', 'snapshot', 'thaw /a', 'thaw /b', 'AFTER']);
  const common = { LOCKSTEP_GROUP: 'g', LOCKSTEP_DEVICE: 'vol@s' };
  t.strictSame(machine.environments, [common, { ...common, LOCKSTEP_RESULT: 'done', LOCKSTEP_LSN: '12288' }]);
  t.match(port.calls.find((one) => one.op === 'snapshot'), { source: 'vol', name: 's', wait: 'durable' });
  t.equal(machine.openDescriptors, 0);
});

t.test('a group snapshot is made between the same steps', async (t) => {
  const { machine, a } = await bench(t);
  const { run, port } = await openCli(t, { freezeSystem: machine });
  t.match(await run('snapshot', 'g/@nightly', '--freeze', a, ...BOTH), { code: 0 });
  t.strictSame(machine.steps, ['BEFORE', 'sync /a', 'freeze /a', 'thaw /a', 'AFTER']);
  t.equal(machine.environments[1]['LOCKSTEP_DEVICE'], '@nightly');
  t.match(port.last, { op: 'snapshot', source: null, name: 'nightly' });
});

t.test('commands alone need no root and no mounts', async (t) => {
  const { machine, snapshot } = await bench(t);
  machine.allowed = false;
  t.match(await snapshot(...BOTH), { code: 0 });
  t.strictSame(machine.steps, ['BEFORE', 'snapshot', 'AFTER']);
  machine.steps.length = 0;
  t.match(await snapshot(), { code: 0 });
  t.strictSame(machine.steps, ['snapshot']);
});

t.test('nothing stays frozen while the secondaries are waited for', async (t) => {
  const { machine, a, port, snapshot } = await bench(t);
  let asked = 0;
  port.answers.links = () => {
    t.equal(machine.frozen.size, 0);
    return { group: 'g', links: [link({ applied: asked++ === 0 ? 12_288 : 12_400 }), link({ peer: 'other', role: 'from', applied: 0 }), link({ peer: 'old', state: 'dropped', applied: 0 })] };
  };
  port.answers.status = () => nodeStatus({ groups: [group({ cursors: [cursor({ lsn: 12_000 }), cursor({ name: 'far', lsn: 12_400 })] })] });
  t.match(await snapshot('--freeze', a, '--wait', 'applied'), { code: 0, out: /durable here, applied on beta; not waited for: old \(its link was dropped\), cursor tape \(/ });
  t.equal(asked, 2, 'a marker that only begins at the applied LSN is not applied');
  t.match(port.calls.find((one) => one.op === 'snapshot'), { wait: 'durable' });
  port.answers.links = () => ({ group: 'g', links: [link({ applied: 0, state: 'connecting', reason: 'nobody listens' })] });
  t.match(await snapshot('--freeze', a, '--wait', 'applied', '--wait-timeout', '1'), { code: 1, out: /durable/, err: /not applied yet after 1 s by beta \(nobody listens\)/ });
});

t.test('nor with --halt, where the daemon would answer only when they have executed it', async (t) => {
  const { machine, a, port, snapshot } = await bench(t);
  const applied = link({ applied: 12_400 });
  port.answers.snapshot = (request) => operation(request.halt === true && request.answerDurable !== true ? { waited: 'applied' } : {});
  port.answers.links = () => {
    t.equal(machine.frozen.size, 0);
    machine.steps.push('links');
    return { group: 'g', links: [applied] };
  };
  t.match(await snapshot('--freeze', a, '--halt', '--wait-timeout', '9'), { code: 0, out: /durable here, applied on beta/ });
  t.strictSame(machine.steps, ['sync /a', 'freeze /a', 'thaw /a', 'links']);
  t.match(port.calls.find((one) => one.op === 'snapshot'), { halt: true, answerDurable: true, waitSeconds: 9 });
  t.match(await snapshot('--halt'), { code: 0, out: /durable here, no secondary was waited for/ });
  t.equal((port.last as { answerDurable?: boolean }).answerDurable, undefined, 'without a freeze the daemon is asked for all of it');
});

t.test('what cannot be done is refused before anything is', async (t) => {
  const { machine, a, port, snapshot } = await bench(t);
  const bind = machine.mount('bind', '8:1');
  mkdirSync(join(machine.root, 'plain'));
  machine.mount('outer', '8:10');
  const inner = machine.mount('outer/inner', '8:11');
  machine.mount('outer', '0:50', 'tmpfs');
  machine.mount('stacked', '8:12');
  const stacked = machine.mount('stacked', '8:13', 'xfs');
  const own = machine.mount('own', '8:3');
  mkdirSync(join(own, 'data'));
  mkdirSync(join(machine.root, 'proc', '4711', 'fd'), { recursive: true });
  const logs = machine.mount('logs', '8:4');
  writeFileSync(join(logs, 'log'), '');
  symlinkSync(join(logs, 'log'), join(machine.root, 'proc', '4711', 'fd', '2'));
  symlinkSync(join(own, 'data', 'lock'), join(machine.root, 'proc', '4711', 'fd', '17'));
  port.answers.status = () => nodeStatus({ dataDirectory: join(own, 'data') });
  const cases: [string, readonly string[], RegExp][] = [
    ['no time', ['--freeze', a, '--freeze-timeout', '0'], /--freeze-timeout must be a whole number from 1/],
    ['no time for commands', ['--exec-before', 'x', '--exec-timeout', 'ten'], /--exec-timeout must be a whole number/],
    ['no mount point', ['--freeze', join(machine.root, 'plain')], /nothing is mounted at .*plain: name the mount point/],
    ['nothing there', ['--freeze', join(machine.root, 'none')], /none: no such file or directory/],
    ['a mount that a later one hides', ['--freeze', inner], /ext4 on \/dev\/outer\/inner is mounted at .*\/outer\/inner, but hidden: tmpfs on \/dev\/outer was mounted over .*\/outer later/],
    ['two at one point', ['--freeze', stacked], /two file systems are mounted at .*\/stacked: xfs on .* on top, .* and ext4 on \/dev\/stacked hidden below it.*mount --bind .*\/stacked \/SOMEWHERE/],
    ['twice', ['--freeze', a, '--freeze', bind], /\/a and .*\/bind are the same file system: name it once/],
    ['the data directory', ['--freeze', a, '--freeze', own], /\/own holds what node alpha writes \(.*\/own\/data: .*Leave --freeze .*\/own out/],
    ['the log', ['--freeze', logs], /\/logs holds what node alpha writes \(.*\/logs: .*frozen, the daemon would have to wait/],
  ];
  for (const [what, argv, words] of cases) t.match(await snapshot(...argv, ...BOTH.slice(what === 'no time for commands' ? 2 : 0)), { code: 2, err: words }, what);
  machine.allowed = false;
  t.match(await snapshot('--freeze', a, ...BOTH), { code: 2, err: /needs root \(CAP_SYS_ADMIN\): run it with sudo, or leave --freeze out/ });
  t.strictSame(machine.steps, []);
  t.equal(machine.openDescriptors, 0);
});

t.test('a mount on its automount point, on another mount of itself, or with hidden ones beside it is what it seems', async (t) => {
  const { machine, snapshot } = await bench(t);
  machine.mount('auto', '0:60', 'autofs');
  const auto = machine.mount('auto', '8:20');
  machine.mount('again', '8:21');
  const again = machine.mount('again', '8:21');
  machine.mount('outer', '8:10');
  machine.mount('outer/inner', '8:11');
  machine.mount('outer', '8:10');
  const inner = machine.mount('outer/inner', '8:12', 'xfs');
  t.match(await snapshot('--freeze', auto, '--freeze', again, '--freeze', inner), { code: 0 });
  t.strictSame(machine.steps.filter((step) => step.startsWith('freeze')), ['freeze /auto', 'freeze /again', 'freeze /outer/inner']);
  t.equal(machine.openDescriptors, 0);
});

t.test('what the daemon has open is on the mount that it was opened on, also when another one hides it', async (t) => {
  const { machine, port, snapshot } = await bench(t);
  machine.mount('data', '8:30');
  const lower = machine.table.at(-1)!;
  const elsewhere = machine.mount('elsewhere', '8:30');
  const upper = machine.mount('data', '0:70', 'tmpfs');
  const process_ = join(machine.root, 'proc', '4711');
  for (const name of ['fd', 'fdinfo']) mkdirSync(join(process_, name), { recursive: true });
  symlinkSync(join(upper, 'lock'), join(process_, 'fd', '17'));
  writeFileSync(join(process_, 'fdinfo', '17'), `pos:\t0\nflags:\t02100002\nmnt_id:\t${lower.id}\nino:\t12\n`);
  port.answers.status = () => nodeStatus({ dataDirectory: upper });
  t.match(await snapshot('--freeze', elsewhere), { code: 2, err: /\/elsewhere holds what node alpha writes \(.*\/data: its data/ });
  t.strictSame(machine.steps, []);
});

t.test('without a daemon nothing is frozen and no command is run', async (t) => {
  const { machine, a, port, snapshot } = await bench(t);
  port.answers.status = () => { throw new OperatorError('role/x', 'no status'); };
  t.not((await snapshot('--freeze', a, ...BOTH)).code, 0);
  t.strictSame(machine.steps, []);
});

t.test('a command before that fails leaves no snapshot, and the one after is told', async (t) => {
  const ends: [CommandEnd, RegExp][] = [
    [{ kind: 'exit', code: 3 }, /--exec-before ended with status 3: no snapshot was made/],
    [{ kind: 'signal', signal: 'SIGSEGV' }, /was ended by SIGSEGV/],
    [{ kind: 'timeout', seconds: 60 }, /was not done after 60 s and was stopped/],
    [{ kind: 'interrupted' }, /was interrupted/],
    [{ kind: 'unstartable', message: 'ENOMEM' }, /could not be started \(ENOMEM\)/],
  ];
  for (const [end, words] of ends) {
    const { machine, a, snapshot } = await bench(t);
    machine.ends.set('BEFORE', end);
    t.match(await snapshot('--freeze', a, ...BOTH), { code: 1, out: '', err: words }, end.kind);
    t.strictSame(machine.steps, ['BEFORE', 'AFTER'], end.kind);
    t.match(machine.environments[1], { LOCKSTEP_RESULT: 'failed', LOCKSTEP_LSN: '' });
    t.equal(machine.openDescriptors, 0);
  }
});

t.test('a command after that fails does not hide that the snapshot was made', async (t) => {
  const { machine, snapshot } = await bench(t);
  machine.ends.set('AFTER', { kind: 'exit', code: 1 });
  t.match(await snapshot(...BOTH), { code: 1, out: /^created g\/vol@s/, err: /--exec-after ended with status 1; the snapshot was made/ });
});

t.test('when one of several cannot be frozen, the others are thawed and no snapshot is made', async (t) => {
  const cases: [string, number, number, RegExp][] = [
    ['freeze /b', Errno.EBUSY, 2, /\/b is frozen already, by somebody else, and stays so: .*fsfreeze --unfreeze/],
    ['freeze /b', Errno.ENOTSUP, 2, /\/b cannot be frozen: xfs does not support it. .*sync -f .*\/b in --exec-before/],
    ['freeze /b', Errno.EPERM, 2, /needs root \(CAP_SYS_ADMIN\) over its file system/],
    ['freeze /b', Errno.EIO, 1, /cannot freeze .*\/b: input\/output error \(EIO\)\. Look at the device below it \(\/dev\/b\)/],
    ['sync /b', Errno.ENOSPC, 1, /cannot write back what is cached of .*\/b: no space left/],
  ];
  for (const [call, errno, code, words] of cases) {
    const { machine, a, b, snapshot } = await bench(t);
    machine.errors.set(call, errno);
    t.match(await snapshot('--freeze', a, '--freeze', b, ...BOTH), { code, out: '', err: words }, `${call} ${errno}`);
    t.equal(machine.frozen.size, 0, call);
    t.notOk(machine.steps.includes('snapshot'), call);
    t.notOk(machine.steps.includes('thaw /b'), 'what somebody else froze stays frozen');
    t.strictSame(told(machine), ['failed']);
    t.equal(machine.openDescriptors, 0);
  }
});

t.test('a freeze that takes longer than it may last is thawed at once', async (t) => {
  const { machine, a, snapshot } = await bench(t);
  machine.freezeMs = 7001;
  t.match(await snapshot('--freeze', a, '--freeze-timeout', '7', ...BOTH), { code: 1, err: /freezing .*\/a took longer than 7 s, and it was thawed at once\. Raise --freeze-timeout/ });
  t.strictSame(machine.steps, ['BEFORE', 'sync /a', 'freeze /a', 'thaw /a', 'AFTER']);
});

t.test('a refused snapshot lifts the freeze, and its own reason is what is said', async (t) => {
  const { machine, a, port, snapshot } = await bench(t);
  port.answers.snapshot = () => {
    throw new OperatorError('device/exists', 'there is a snapshot s');
  };
  t.match(await snapshot('--freeze', a, ...BOTH), { code: 2, out: '', err: 'lockstep: there is a snapshot s\n' });
  t.equal(machine.frozen.size, 0);
  t.strictSame(told(machine), ['failed']);
});

t.test('a snapshot that was not made within the freeze counts as failed, and says what is there', async (t) => {
  const cases: [string, (machine: FakeMachine, dog: FakeDog) => void, RegExp][] = [
    ['time', (_, dog) => dog.timeOver(), /\/a was thawed after 30 s \(--freeze-timeout\), before the snapshot was done/],
    ['signal', (_, dog) => dog.logic.release('signal'), /\/a was thawed because its watchdog was sent a signal/],
    ['death', (_, dog) => dog.die('was ended by SIGKILL'), /the watchdog of .*\/a was ended by SIGKILL, and .*\/a was thawed/],
    ['somebody', (machine) => machine.frozen.clear(), /\/a was thawed by somebody else/],
  ];
  for (const [what, happens, words] of cases) {
    const { machine, a, port, snapshot } = await bench(t);
    port.answers.snapshot = async () => {
      happens(machine, machine.dogs[0]);
      if (what !== 'somebody') await waitFor('thawed', () => machine.frozen.size === 0);
      return operation();
    };
    const result = await snapshot('--freeze', a, ...BOTH);
    t.match(result, { code: 1, out: '', err: words }, what);
    t.match(result.err, /g\/vol@s was made at LSN 12288, but perhaps not while everything was frozen: remove it \(lockstep remove g\/vol@s\)/, what);
    t.match(machine.environments[1], { LOCKSTEP_RESULT: 'failed', LOCKSTEP_LSN: '12288' });
    t.equal(machine.openDescriptors, 0);
  }
});

t.test('a watchdog that does not answer is ended, and the command thaws in its place', async (t) => {
  const { machine, a, port, snapshot } = await bench(t);
  machine.graceMs = 20;
  port.answers.snapshot = () => {
    machine.dogs[0].deaf = true;
    return operation();
  };
  t.match(await snapshot('--freeze', a), { code: 1, err: /the watchdog of .*\/a was ended by SIGKILL, and .*\/a was thawed/ });
  t.equal(machine.frozen.size, 0);
});

t.test('a watchdog that is still freezing is left alive: it has to thaw', async (t) => {
  const { machine, a, snapshot } = await bench(t);
  machine.graceMs = 20;
  const { watch } = machine;
  machine.watch = (...args) => {
    const dog = watch.apply(machine, args);
    const { send } = dog;
    // The kernel does not come back from FIFREEZE.
    dog.send = (word) => (word === 'sync' ? send.call(dog, word) : undefined);
    dog.kill = () => t.fail('killed');
    return dog;
  };
  t.match(await snapshot('--freeze', a, '--freeze-timeout', '1'), {
    code: 1, err: /the kernel is still freezing .*\/a: .*\/dev\/a\. Process 4242 thaws it as soon as that ends\n.*freezing .*\/a is not done after 1 s/,
  });
  t.equal(machine.openDescriptors, 0);
});

t.test('a watchdog that dies before anything is frozen ends it', async (t) => {
  const { machine, a, b, snapshot } = await bench(t);
  machine.run = () => {
    machine.dogs[1].die('was ended by SIGKILL');
    return new Promise((done) => setImmediate(() => setImmediate(() => done({ kind: 'exit', code: 0 }))));
  };
  t.match(await snapshot('--freeze', a, '--freeze', b, '--exec-before', 'x'), { code: 1, err: /the watchdog of .*\/b was ended by SIGKILL, and nothing is frozen without one/ });
  t.notOk(machine.steps.includes('freeze /b') || machine.steps.includes('snapshot'));
  t.equal(machine.frozen.size, 0);
});

t.test('a thaw that fails is said with what to do', async (t) => {
  const { machine, a, snapshot } = await bench(t);
  machine.errors.set('thaw /a', Errno.EIO);
  t.match(await snapshot('--freeze', a), { code: 1, err: /cannot thaw .*\/a: input\/output error \(EIO\)\. It may still be frozen: run fsfreeze --unfreeze/ });
});

t.test('an interruption while the snapshot is under way lifts the freeze and runs the command after', async (t) => {
  const { machine, a, port, interrupt, snapshot } = await bench(t);
  let answer: () => void = () => {};
  port.answers.snapshot = () => {
    interrupt.abort();
    return new Promise((done) => (answer = () => done(operation())));
  };
  t.match(await snapshot('--freeze', a, ...BOTH), { code: 1, err: /interrupted: lockstep list g shows whether vol@s was made/ });
  answer();
  t.equal(machine.frozen.size, 0);
  t.strictSame(told(machine), ['failed']);
});

t.test('with --json, errors are values and nothing else is on standard output', async (t) => {
  const { machine, a, snapshot } = await bench(t);
  machine.ends.set('AFTER', { kind: 'exit', code: 9 });
  const result = await snapshot('--json', '--freeze', a, ...BOTH);
  t.equal((JSON.parse(result.out) as { lsn: number }).lsn, 12_288);
  t.match(JSON.parse(result.err), { error: { code: 'exec/after', kind: 'io' } });
});

// ---- the watchdog's own rules -------------------------------------------------------------------------

t.test('a watchdog thaws once, for whatever reason comes first, and never what it did not freeze', async (t) => {
  const cases: [string, (dog: FreezeWatchdog, timeOver: () => void) => void, string[]][] = [
    ['told', (dog) => dog.hear('thaw'), ['freeze', 'frozen 0', 'thaw', 'thawed command 0', 'over']],
    ['pipe end', (dog) => dog.release('end'), ['freeze', 'frozen 0', 'thaw', 'thawed end 0', 'over']],
    ['a word of nobody', (dog) => dog.hear('melt'), ['freeze', 'frozen 0', 'thaw', 'thawed end 0', 'over']],
    ['time', (_, timeOver) => timeOver(), ['freeze', 'frozen 0', 'thaw', 'thawed timeout 0', 'over']],
  ];
  for (const [what, happens, want] of cases) {
    const log: string[] = [];
    let timer: (() => void) | undefined;
    const dog = new FreezeWatchdog({
      sync: () => 0, freeze: () => (log.push('freeze'), 0), thaw: () => (log.push('thaw'), 0), say: (line) => void log.push(line), nowMs: () => 0,
      after: (ms, action) => {
        t.equal(ms, 30_000);
        timer = action;
        return () => void (timer = undefined);
      },
    }, 30_000, () => void log.push('over'));
    dog.hear('freeze');
    happens(dog, () => timer?.());
    dog.release('signal');
    dog.hear('freeze');
    dog.hear('thaw');
    t.strictSame(log, want, what);
  }
});

t.test('a real watchdog ends with its pipe, and with a word', async (t) => {
  const directory = makeTempDirectory('dog');
  t.teardown(() => removeTempDirectory(directory));
  const fd = REAL_FREEZE_SYSTEM.open(directory);
  const lines: string[] = [];
  const how = await new Promise<string>((resolve) => {
    // Never told to freeze: this would be the machine's own file system.
    const dog = REAL_FREEZE_SYSTEM.watch(fd, directory, 5, { line: (line) => void lines.push(line), ended: resolve });
    t.not(readFileSync(`/proc/${dog.pid}/stat`, 'utf8').split(') ')[1].split(' ')[3], readFileSync('/proc/self/stat', 'utf8').split(') ')[1].split(' ')[3], 'a session of its own');
    dog.send('thaw');
  });
  t.equal(how, 'ended with status 0');
  t.strictSame(lines, []);
  REAL_FREEZE_SYSTEM.close(fd);
  t.throws(() => REAL_FREEZE_SYSTEM.open(join(directory, 'none')), { code: 'freeze/no-mount' });
});

t.test('commands are run by sh with what they are told, and are stopped with all that they started', async (t) => {
  const directory = makeTempDirectory('exec');
  t.teardown(() => removeTempDirectory(directory));
  const { run } = REAL_FREEZE_SYSTEM;
  t.strictSame(await run(`echo "$LOCKSTEP_GROUP" >${directory}/out`, { LOCKSTEP_GROUP: 'g' }, 10_000), { kind: 'exit', code: 0 });
  t.equal(readFileSync(join(directory, 'out'), 'utf8'), 'g\n');
  t.strictSame(await run('exit 7', {}, 10_000), { kind: 'exit', code: 7 });
  t.strictSame(await run('kill -SEGV $$', {}, 10_000), { kind: 'signal', signal: 'SIGSEGV' });
  const gone = async (): Promise<void> => {
    const pid = Number(readFileSync(join(directory, 'pid'), 'utf8'));
    await waitFor('the child of the command is gone', () => {
      try {
        return process.kill(pid, 0) && readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ');
      } catch {
        return true;
      }
    });
  };
  t.strictSame(await run(`sleep 300 & echo $! >${directory}/pid; wait`, {}, 200), { kind: 'timeout', seconds: 0.2 });
  await gone();
  const stop = new AbortController();
  const stopped = run(`sleep 300 & echo $! >${directory}/pid; : >${directory}/up; wait`, {}, 60_000, stop.signal);
  await waitFor('the command runs', () => { try { readFileSync(join(directory, 'up')); return true; } catch { return false; } });
  stop.abort();
  t.strictSame(await stopped, { kind: 'interrupted' });
  await gone();
  t.strictSame(await run('exit 0', {}, 1000, stop.signal), { kind: 'interrupted' });
  // The first SIGTERM ends sh alone: what ignores it is killed before anybody is told.
  t.strictSame(await run(`(trap "" TERM; echo >${directory}/deaf; exec sleep 44) & echo $! >${directory}/pid; wait`, {}, 1000), { kind: 'timeout', seconds: 1 });
  t.ok(existsSync(join(directory, 'deaf')));
  await gone();
  // A command that ends by itself may leave something running.
  t.strictSame(await run(`sleep 44 & echo $! >${directory}/pid`, {}, 10_000), { kind: 'exit', code: 0 });
  const left = Number(readFileSync(join(directory, 'pid'), 'utf8'));
  t.ok(process.kill(left, 0));
  process.kill(left, 'SIGKILL');
});

// ---- mounts -------------------------------------------------------------------------------------------

t.test('the table of mounts is read with its escapes, and what a path leads to follows from what lies on what', async (t) => {
  const mounts = parseMounts([
    '22 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw',
    '23 22 8:1 /sub /a\\040b\\011c rw - xfs /dev/my\\040disk rw',
    '24 22 0:5 / /\\303\\244 rw - tmpfs tmpfs rw',
    '25 22 8:2 / /a rw - ext4 /dev/sdb rw',
    '26 25 8:3 / /a rw - ext4 /dev/sdc rw',
    // below the hidden one; moved onto the upper one (mount --move), hence older than what it lies on; inside of that
    '27 25 8:4 / /a/x rw - ext4 /dev/sdd rw',
    '21 22 8:5 / /m rw - ext4 /dev/sde rw',
    '20 21 8:6 / /m/y rw - ext4 /dev/sdf rw',
    '19 21 8:7 / /m rw - ext4 /dev/sdg rw',
    '18 19 8:8 / /m/z rw - ext4 /dev/sdh rw',
    'garbage', '',
  ].join('\n'));
  t.strictSame(mounts.map((one) => one.point), ['/', '/a b\tc', '/ä', '/a', '/a', '/a/x', '/m', '/m/y', '/m', '/m/z']);
  t.strictSame(['/a/x', '/m', '/m/y/file', '/m/z/file'].map((path) => mountOf(mounts, path)?.fileSystem), ['8:3', '8:7', '8:7', '8:8']);
  t.match(mountOf([{ ...mounts[3], id: 1, parent: 2 }, { ...mounts[3], id: 2, parent: 1 }], '/a'), undefined, 'a table that makes no sense is no endless loop');
  t.match(mounts[1], { fileSystem: '8:1', type: 'xfs', source: '/dev/my disk' });
  t.strictSame(['/a/x/y', '/ab', '/a b\tc/d', '/'].map((path) => mountOf(mounts, path)?.fileSystem), ['8:3', '254:0', '8:1', '254:0']);
});

t.test('a loop file makes the file system below it one that is written', async (t) => {
  const root = makeTempDirectory('stack');
  t.teardown(() => removeTempDirectory(root));
  const paths = { mountinfo: '', proc: join(root, 'proc'), sysDevBlock: join(root, 'sys', 'dev') };
  for (const name of ['data', 'below', 'sys/dev', 'sys/block/dm-0/slaves', 'sys/block/loop0/loop0p1', 'sys/block/loop0/loop', 'proc/7/fd']) mkdirSync(join(root, name), { recursive: true });
  writeFileSync(join(root, 'below', 'image'), '');
  // data on dm-0 on the first partition of loop0, whose file is on `below`
  symlinkSync('../block/dm-0', join(root, 'sys', 'dev', '253:0'));
  symlinkSync('../../loop0/loop0p1', join(root, 'sys', 'block', 'dm-0', 'slaves', 'loop0p1'));
  writeFileSync(join(root, 'sys', 'block', 'loop0', 'loop0p1', 'partition'), '1\n');
  writeFileSync(join(root, 'sys', 'block', 'loop0', 'loop', 'backing_file'), `${join(root, 'below', 'image')}\n`);
  const mounts: Mount[] = [['', '1:1'], ['data', '253:0'], ['below', '8:7']].map(([name, fileSystem], i) => ({ id: 30 + i, parent: i === 0 ? 1 : 30, point: name === '' ? '/' : join(root, name), fileSystem, type: 'ext4', source: '' }));
  const data = join(root, 'data');
  t.strictSame([...writtenFileSystems(mounts, [{ path: data }, { path: join(root, 'gone') }], paths)], [['253:0', data], ['8:7', data]]);
  symlinkSync('pipe:[1]', join(root, 'proc', '7', 'fd', '1'));
  symlinkSync(join(root, 'below', 'rotated (deleted)'), join(root, 'proc', '7', 'fd', '2'));
  symlinkSync('/dev/null', join(root, 'proc', '7', 'fd', '0'));
  t.strictSame(openedBy(paths, 7, join(data, 'lock')), [], 'another process with that number');
  symlinkSync(join(data, 'lock'), join(root, 'proc', '7', 'fd', '17'));
  t.strictSame(openedBy(paths, 7, join(data, 'lock')).map((one) => one.path).sort(), [join(root, 'below'), data].sort());
  t.strictSame(openedBy(paths, 8, join(data, 'lock')), []);
});
