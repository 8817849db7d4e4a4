/** Every command: what it asks of the daemon, what it prints, and its exit code. */
import { statSync } from 'node:fs';
import { join, resolve, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Test } from 'tap';
import { ControlError } from '../../src/control/port.js';
import type { ControlRequest } from '../../src/control/port.js';
import { device, group, link, nodeStatus, operation, POSITION, record } from '../control/fake-port.js';
import { run } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { openCli, runCli } from './harness.js';

const directory = (t: Test): string => {
  const path = makeTempDirectory('cli-out');
  t.teardown(() => removeTempDirectory(path));
  return path;
};
const MAIN = join(resolve(dirname(fileURLToPath(import.meta.url)), '..', '..'), 'src', 'cli', 'main.js');
const waits = { wait: 'durable', waitSeconds: 60 } as const;

/** Command line, what reaches the data path, what a person reads. */
const COMMANDS: readonly [readonly string[], ControlRequest, RegExp][] = [
  [['create', 'g/vol', '10G'], { op: 'create', group: 'g', name: 'vol', sizeBytes: 10 * 2 ** 30, ...waits }, /^created g\/vol, 10 GiB, at LSN 12288; durable \(data thread 0\.04 ms\)$/],
  [['create', 'g/vol', '1G', '--wait', 'applied', '--wait-timeout', '9'], { op: 'create', group: 'g', name: 'vol', sizeBytes: 2 ** 30, wait: 'applied', waitSeconds: 9 }, /; durable here, applied on beta \(/],
  [['snapshot', 'g/vol@mon'], { op: 'snapshot', group: 'g', source: 'vol', name: 'mon', ...waits }, /^created g\/vol@mon of g\/vol at LSN 12288/],
  [['snapshot', 'g/vol@tue', '--of', 'mon'], { op: 'snapshot', group: 'g', source: 'vol@mon', name: 'tue', ...waits }, /^created g\/vol@tue of g\/vol@mon at/],
  [['snapshot', 'g/vol@tue', '--of', '@mon'], { op: 'snapshot', group: 'g', source: 'vol@mon', name: 'tue', ...waits }, /of g\/vol@mon/],
  [['snapshot', 'g/vol@tue', '--of', 'vol@mon'], { op: 'snapshot', group: 'g', source: 'vol@mon', name: 'tue', ...waits }, /of g\/vol@mon/],
  [['snapshot', 'g/vol@tue', '--of', 'g/vol@mon'], { op: 'snapshot', group: 'g', source: 'vol@mon', name: 'tue', ...waits }, /of g\/vol@mon/],
  [['restore', 'g/vol', 'g/vol@mon'], { op: 'restore', group: 'g', target: 'vol', source: 'vol@mon', ranges: [], force: false, ...waits }, /^restored g\/vol from g\/vol@mon at LSN 12288/],
  [['restore', 'g/vol', '@mon', '--force'], { op: 'restore', group: 'g', target: 'vol', source: 'vol@mon', ranges: [], force: true, ...waits }, /^restored g\/vol from g\/vol@mon/],
  [['restore', 'g/vol@tue', 'vol@mon'], { op: 'restore', group: 'g', target: 'vol@tue', source: 'vol@mon', ranges: [], force: false, ...waits }, /^restored g\/vol@tue from g\/vol@mon/],
  [['remove', 'g/vol@mon'], { op: 'remove', group: 'g', device: 'vol@mon', withSnapshots: false, force: false, ...waits }, /^removed g\/vol@mon at LSN/],
  [['remove', 'g/vol', '--with-snapshots', '--force'], { op: 'remove', group: 'g', device: 'vol', withSnapshots: true, force: true, ...waits }, /^removed g\/vol at LSN/],
  [['snapshot', 'g/@mon'], { op: 'snapshot', group: 'g', source: null, name: 'mon', ...waits }, /^created g\/@mon of 1 volume at LSN 12288/],
  [['restore', 'g/@mon'], { op: 'restore', group: 'g', target: null, source: '@mon', ranges: [], force: false, ...waits }, /^restored vol from g\/@mon at LSN/],
  [['restore', 'g/vol', '@mon', '--range', '1G:256M', '--range', '0:4k'], { op: 'restore', group: 'g', target: 'vol', source: 'vol@mon', ranges: [[0, 4096], [2 ** 30, 2 ** 28]], force: false, ...waits }, /^restored .* in 2 ranges of g\/vol from g\/vol@mon/],
  [['refresh', 'g/vol@mon'], { op: 'refresh', group: 'g', target: 'vol@mon', force: false, ...waits }, /^refreshed g\/vol@mon at LSN/],
  [['refresh', 'g/@mon', '--force'], { op: 'refresh', group: 'g', target: '@mon', force: true, ...waits }, /^refreshed g\/@mon at LSN/],
  [['sync', 'g/vol@tue', '@mon'], { op: 'sync', group: 'g', target: 'vol@tue', source: 'vol@mon', ranges: [], force: false, ...waits }, /^made g\/vol@tue what g\/vol@mon is at LSN/],
  [['clone', 'g/vol@mon', 'other'], { op: 'clone', group: 'g', source: 'vol@mon', name: 'other', ...waits }, /^created g\/other as a clone of g\/vol@mon at LSN/],
  [['resize', 'g/vol', '20G'], { op: 'resize', group: 'g', device: 'vol', sizeBytes: 20 * 2 ** 30, force: false, ...waits }, /^g\/vol has 20 GiB now at LSN/],
  [['rename', 'g/vol', 'data'], { op: 'rename', group: 'g', device: 'vol', name: 'data', force: false, ...waits }, /^renamed g\/vol to /],
  [['rename', 'g/@mon', 'tue'], { op: 'rename', group: 'g', device: '@mon', name: 'tue', force: false, ...waits }, /^renamed g\/@mon to /],
  [['protect', 'g/vol@mon'], { op: 'protect', group: 'g', device: 'vol@mon', on: true, force: false, ...waits }, /^g\/vol@mon is protected at LSN/],
  [['unprotect', 'g/@mon'], { op: 'protect', group: 'g', device: '@mon', on: false, force: false, ...waits }, /^g\/@mon is no longer protected/],
  [['remove', 'g/@mon'], { op: 'remove', group: 'g', device: '@mon', withSnapshots: false, force: false, ...waits }, /^removed g\/@mon at LSN/],
  [['adopt', 'g/vol~try'], { op: 'adopt', group: 'g', local: 'vol~try', name: 'try', force: false, ...waits }, /^adopted g\/vol~try as g\/.* at LSN 12288/],
  [['adopt', 'g/vol~try', '--as', 'mon', '--force'], { op: 'adopt', group: 'g', local: 'vol~try', name: 'mon', force: true, ...waits }, /^adopted g\/vol~try as/],
  [['seal', 'g/vol~try'], { op: 'seal', group: 'g', device: 'vol~try', known: null, undo: false, force: false }, /^sealed g\/vol~try: .*, content digest (ab){16}$/],
  [['seal', 'g/vol~try', '--undo'], { op: 'seal', group: 'g', device: 'vol~try', known: null, undo: true, force: false }, /^unsealed g\/vol~try/],
  [['promote', 'g'], { op: 'promote', group: 'g', force: false }, /^promoted g: primary in epoch 4 \(nothing acknowledged was lost\), from LSN 5000$/],
  [['promote', 'g', '--force'], { op: 'promote', group: 'g', force: true }, /^promoted g/],
  [['flush', 'g'], { op: 'flush', group: 'g', upTo: 'durable' }, /^g: durable up to LSN 900000$/],
  [['flush', 'g', '--up-to', 'checkpoint'], { op: 'flush', group: 'g', upTo: 'checkpoint' }, /^g: in a checkpoint up to LSN 900000$/],
  [['link', 'drop', 'g', 'beta'], { op: 'linkDrop', group: 'g', peer: 'beta' }, /^dropped the link to beta in g: 1 MiB of journal are no longer kept/],
  [['link', 'status', 'g'], { op: 'links', group: 'g' }, /^group g\n {2}link -> {3}beta {2}async, streaming; up to date\n/],
  [['link', 'status'], { op: 'status' }, /^group g\n {2}link -> {3}beta/],
  [['list', 'g'], { op: 'devices', group: 'g' }, /^NAME .*\ng\/vol /],
  [['list', 'g', '--tree'], { op: 'sizes', group: 'g' }, /^NAME .* OWN .*\ng\/vol .* 1 MiB +3 MiB [^]*\ng: 5 MiB in all at LSN 900000/],
  [['list', 'g', '--tree', '--no-sizes'], { op: 'devices', group: 'g' }, /^NAME +ID +SIZE +CREATED .*\ng\/vol /],
  [['operations', 'g'], { op: 'operations', group: 'g' }, /^ +LSN +TIME +VERB +CHANGED +WIRE +THREAD +DEVICES\n *12288 .* restore +280 MiB +beta 245 B +0\.52 ms +vol from vol@monday\n *20480 .* <= 280 MiB, counting +- /],
  [['list'], { op: 'status' }, /^NAME .*\ng\/vol /],
  [['status'], { op: 'status' }, /^alpha {2}lockstepd 0\.1\.0/],
  [['status', 'g'], { op: 'status' }, /^group g {2}PRIMARY {2}all is well\n/],
  [['journal', 'position', 'g'], { op: 'position', group: 'g' }, /^(ab){16}:900000:0123456789abcdef$/],
  [['journal', 'ack', 'g', 'tape', POSITION], { op: 'cursorAck', group: 'g', cursor: 'tape', position: { epochId: 'ab'.repeat(16), lsn: 900_000, chainHi: 0x01234567, chainLo: 0x89abcdef } }, /^cursor tape of g stands at LSN 900000, 0 B behind$/],
  [['journal', 'release', 'g', 'tape'], { op: 'cursorRelease', group: 'g', cursor: 'tape' }, /^released cursor tape of g: 1 MiB of journal are no longer kept for it \(from LSN 880000\)$/],
  [['drain', 'g', '--timeout', '9'], { op: 'drain', group: 'g', waitSeconds: 9 }, /^g: everything up to LSN 900000 is confirmed by link beta, cursor tape$/],
  [['journal', 'dump', 'g', '--from', '5', '--to', '250'], { op: 'journal', group: 'g', from: 5, to: 250, limit: 512 }, /LSN .*\n +100 +3 +write +1 +400 +4096/],
];

t.test('every command asks the daemon for what it says, and answers a person in words', async (t) => {
  const { port, run } = await openCli(t);
  for (const [argv, want, words] of COMMANDS) {
    const result = await run(...argv);
    t.equal(result.err, '', argv.join(' '));
    t.equal(result.code, 0, argv.join(' '));
    t.strictSame(port.last, want, argv.join(' '));
    t.match(result.out.trimEnd(), words, argv.join(' '));
  }
});

t.test('with --json every command prints one JSON value per line, before or after the command', async (t) => {
  const { run } = await openCli(t);
  for (const [argv] of COMMANDS) {
    for (const line of [['--json', ...argv], [...argv, '--json']]) {
      const result = await run(...line);
      t.equal(result.code, 0);
      const values = result.out.trim().split('\n').map((text) => JSON.parse(text) as unknown);
      t.equal(values.length, argv[1] === 'dump' ? 2 : 1, line.join(' '));
    }
  }
  t.strictSame(JSON.parse((await run('--json', 'create', 'g/v', '4096')).out), operation());
  t.strictSame(JSON.parse((await run('--json', 'status')).out), nodeStatus());
  t.strictSame(JSON.parse((await run('--json', 'version')).out), { lockstep: '0.1.0', lockstepd: '0.1.0' });
});

/** Command lines that never reach the daemon, and words of their sentences. */
const USAGE: readonly [readonly string[], RegExp][] = [
  [[], /^Usage: lockstep/],
  [['crate', 'g/v', '1G'], /^lockstep: unknown command 'crate' \(Did you mean create\?\)/],
  [['help', 'nope'], /^lockstep: unknown command 'nope' \(lockstep --help/],
  [['help', 'crate'], /^lockstep: unknown command 'crate' \(Did you mean create\?\)/],
  [['help', 'link', 'dorp'], /^lockstep: unknown command 'dorp' \(Did you mean drop\?\)/],
  [['link', 'help', 'dorp'], /^lockstep: unknown command 'dorp' \(Did you mean drop\?\)/],
  [['clone', 'g/@s', 'x'], /^lockstep: "g\/@s" is a group snapshot, which this command does not take: name one of its members, g\/VOLUME@s/],
  [['create', 'g/v'], /missing required argument 'size'/],
  [['create', 'g/v', '1G', 'x'], /too many arguments/],
  [['create', 'g/v', '1G', '--sise', '3'], /unknown option '--sise'/],
  [['create', 'v', '1G'], /^lockstep: "v" is no device: name it as GROUP\/VOLUME/],
  [['create', 'g/v@s', '1G'], /a volume's name has no "@"; to make a snapshot: lockstep snapshot g\/v@s/],
  [['create', 'g/v~l', '1G'], /a volume's name has no "~"; to make a snapshot on this node only: lockstep snapshot g\/v~l \(a name is 1 to 64 letters, digits, /],
  [['create', 'g/-v', '1G'], /"g\/-v" is no device: .*, each name 1 to 64 letters, digits, .* beginning with a letter or digit/],
  [['rename', 'g/v', 'v~l'], /"v~l" is no name: it must be 1 to 64 letters/],
  [['clone', 'g/v@s', 'a b'], /"a b" is no name for a volume of group g: it must be 1 to 64 letters/],
  [['create', 'g/v', 'big'], /"big" is not a size; write for example 10G/],
  [['create', 'g/v', '1G', '--wait', 'ever'], /--wait must be "durable" or "applied", not "ever"/],
  [['create', 'g/v', '1G', '--wait-timeout', '0'], /--wait-timeout must be a whole number from 1 to 86400/],
  [['snapshot', 'g/v'], /name the new snapshot too: lockstep snapshot g\/v@NAME/],
  [['snapshot', 'g/v@s', '--of', 'g/w@t'], /--of must name a snapshot of g\/v/],
  [['snapshot', 'g/v@s', '--of', 'h/v@t'], /--of must name a snapshot of g\/v/],
  [['restore', 'g/v', 'h/v@s'], /both devices must be in one group: g\/v is in g, h\/v@s in h/],
  [['restore', 'g/v', '@'], /"g\/v@" is no device/],
  [['promote', 'g/v'], /"g\/v" is not the name of a group/],
  [['flush', 'g', '--up-to', 'x'], /--up-to must be/],
  [['journal', 'dump', 'g', '--from', 'abc'], /--from must be a whole number/],
  [['journal', 'dump', 'g', '--from', '-5'], /--from/],
  [['link'], /Usage: lockstep link/],
  [['attach', 'g/v', '/dev/sda'], /"\/dev\/sda" is no nbd device/],
  [['attach', 'g/v', '--connections', '0'], /--connections must be a whole number from 1 to 16/],
  [['attach', 'g/v', '--block-size', '3000'], /--block-size must be 512, 1024, 2048 or 4096/],
  [['attach', 'g/v', '--block-size', '8192'], /--block-size must be a whole number from 512 to 4096/],
  [['attach', 'g/v', '--reconnect'], /to reconnect, name the device too/],
];

t.test('usage errors are sentences with exit code 2, in JSON too, and reach nobody', async (t) => {
  const { port, run } = await openCli(t);
  for (const [argv, words] of USAGE) {
    const plain = await run(...argv);
    t.equal(plain.code, 2, argv.join(' '));
    t.match(plain.err, words, argv.join(' '));
    t.equal(plain.out, '');
    t.notMatch(plain.err, /^ {4}at /m, 'no stack');
    if (plain.err.startsWith('Usage')) continue;
    const json = await run(...argv, '--json');
    t.equal(json.code, 2);
    t.match(JSON.parse(json.err), { error: { code: 'usage', kind: 'operator' } }, argv.join(' '));
  }
  t.strictSame(port.calls, []);
});

t.test('help and version are no errors', async (t) => {
  t.match(await runCli(['--help']), { code: 0, out: /Usage: lockstep/ });
  t.match(await runCli(['help', 'attach']), { code: 0, out: /--dead-timeout/ });
  t.match(await runCli(['help']), { code: 0, out: /Usage: lockstep/ });
  t.match(await runCli(['help', 'link', 'drop']), { code: 0, out: /Usage: lockstep link drop/ });
  t.match(await runCli(['create', '--help']), { code: 0, out: /--wait <what>/ });
  t.match(await runCli(['--version']), { code: 0, out: /^0\.1\.0\n$/ });
});

t.test("the daemon's refusals end with 2, its failures with 1", async (t) => {
  const { port, run } = await openCli(t);
  const cases = [['operator', 'device/busy', 2], ['corruption', 'corruption', 1], ['io', 'io/EIO', 1], ['peer', 'peer/gone', 1], ['bug', 'bug', 1]] as const;
  for (const [kind, code, exit] of cases) {
    port.answers.restore = () => { throw new ControlError({ kind, code, message: `because of ${code}` }); };
    t.strictSame(await run('restore', 'g/v', '@s'), { code: exit, out: '', err: `lockstep: because of ${code}\n` });
    const json = await run('--json', 'restore', 'g/v', '@s');
    t.equal(json.code, exit);
    t.strictSame(JSON.parse(json.err), { error: { code, message: `because of ${code}`, kind } });
  }
  t.match(await run('status', 'h'), { code: 2, err: /node alpha has no group "h"; it has g/ });
});

t.test('a daemon that is not there is a failure that says where it was looked for', async (t) => {
  const { directory } = await openCli(t);
  const socket = join(directory, 'none');
  t.match(await runCli(['status'], { env: { LOCKSTEP_SOCKET: socket } }), { code: 1, err: /none: there is no such socket; is lockstepd running/ });
  t.match(await runCli(['--socket', socket, 'status']), { code: 1, err: /none: there is no such socket/ });
  t.match(await runCli(['version'], { env: { LOCKSTEP_SOCKET: socket } }), { code: 0, out: /^lockstep 0\.1\.0\nlockstepd not reached: / });
  t.strictSame(JSON.parse((await runCli(['--json', 'version'], { env: { LOCKSTEP_SOCKET: socket } })).out), { lockstep: '0.1.0', lockstepd: null });
});

t.test('an operation that did not get as far as asked says who is behind and ends with 1', async (t) => {
  const { port, run } = await openCli(t);
  port.answers.snapshot = () => operation({ waited: 'durable', notice: 'beta is not connected' });
  const late = await run('snapshot', 'g/vol@s', '--wait', 'applied');
  t.equal(late.code, 1);
  t.match(late.out, /created g\/vol@s of g\/vol at LSN 12288; durable \(/);
  t.equal(late.err, 'lockstep: beta is not connected\n');
  t.equal((await run('snapshot', 'g/vol@s')).code, 0, 'one that asked for durable got it');
  t.equal((await run('--json', 'snapshot', 'g/vol@s', '--wait', 'applied')).code, 1);
});

t.test('a lossy promotion says so, and its notice is shown', async (t) => {
  const { port, run } = await openCli(t);
  port.answers.promote = () => ({ lsn: 1, epoch: { number: 2, id: 'x', lossless: false }, notice: '3 records could not be applied' });
  t.match(await run('promote', 'g', '--force'), { code: 0, out: /lossy: what the old primary had not shipped is not here/, err: 'lockstep: 3 records could not be applied\n' });
});

t.test('an operation that was waited for says where it is applied, and who was not waited for', async (t) => {
  const { port, run } = await openCli(t);
  port.answers.snapshot = () => operation({ waited: 'applied', passedOver: ['beta (its link was dropped)', 'cursor tape'] });
  t.match(await run('snapshot', 'g/vol@s', '--wait', 'applied'), { code: 0, out: /; durable here, no secondary was waited for; not waited for: beta \(its link was dropped\), cursor tape \(data/ });
});

t.test('status --check ends with 1 when there is a problem', async (t) => {
  const { port, run } = await openCli(t);
  t.equal((await run('status', '--check')).code, 0);
  port.answers.status = () => nodeStatus({ groups: [group(), group({ name: 'h', links: [link({ state: 'refused', reason: 'the secret differs' })] })] });
  t.equal((await run('status', '--check')).code, 1);
  t.equal((await run('status')).code, 0);
  t.equal((await run('status', 'g', '--check')).code, 0, 'of the group that was asked for');
  t.equal((await run('status', 'h', '--check', '--json')).code, 1);
});

t.test('journal dump prints markers with their contents and stops at an interrupt', async (t) => {
  const interrupt = new AbortController();
  let lines = 0;
  let out = '';
  const { port, socket } = await openCli(t);
  let at = 0;
  port.answers.journal = () => {
    at++;
    const body = at === 2 ? { verb: 'snapshot', name: 's' } : null;
    return { records: [record(at, at === 2 ? { kind: 'snapshot', device: null, offset: null, length: null, body } : {})], next: at + 1, appended: at + 1, end: true };
  };
  const result = await runCli(['journal', 'dump', 'g', '-f'], {
    env: { LOCKSTEP_SOCKET: socket }, interrupted: interrupt.signal,
    out: (text) => {
      out += text;
      if (++lines === 5) interrupt.abort();
    },
  });
  t.equal(result.code, 0);
  t.match(out, /\n +2 +3 {2}snapshot +- +- +- {2}\{"verb":"snapshot","name":"s"\}\n/);
  t.ok(out.split('\n').length < 12);
});

t.test('the program itself: exit codes reach the shell, and a closed pipe is no error', async (t) => {
  const { port, socket } = await openCli(t);
  const environment = { LOCKSTEP_SOCKET: socket };
  t.match(await run(process.execPath, [MAIN, 'status'], { environment }), { code: 0, stdout: /^alpha/ });
  t.match(await run(process.execPath, [MAIN, 'nonsense'], { environment }), { code: 2, stderr: /unknown command/ });
  t.match(await run(process.execPath, [MAIN, '--socket', '/nonexistent/s', 'status'], { environment }), { code: 1, stderr: /no such socket/ });
  port.answers.journal = ({ from }) => {
    const at = from ?? 0;
    return { records: Array.from({ length: 500 }, (_, i) => record(at + i)), next: at + 500, appended: 1_000_000, end: false };
  };
  const piped = await run('bash', ['-c', `set -o pipefail; "$0" "$1" journal dump g | head -n 3`, process.execPath, MAIN], { environment });
  t.equal(piped.code, 0);
  t.equal(piped.stdout.split('\n').length, 4);
  t.equal(piped.stderr, '');
});

t.test('output that a reader takes late is whole, and output that cannot be written is a failure', async (t) => {
  const { port, socket } = await openCli(t);
  const environment = { LOCKSTEP_SOCKET: socket };
  // Several times what a pipe holds.
  port.answers.devices = () => ({ group: 'g', lsn: 5, devices: Array.from({ length: 4000 }, () => device({})) });
  for (const words of [['list', 'g'], ['--json', 'list', 'g']]) {
    const file = join(directory(t), 'out');
    t.match(await run('bash', ['-c', '"$@" >"$0"', file, process.execPath, MAIN, ...words], { environment }), { code: 0, stderr: '' });
    t.ok(statSync(file).size > 2 * 65536);
    // The wait only gives a process that ends too early the time to do so.
    const late = await run('bash', ['-c', 'set -o pipefail; "$@" | (sleep 1; cat) | cmp - "$0"', file, process.execPath, MAIN, ...words], { environment });
    t.match(late, { code: 0, stdout: '', stderr: '' }, words.join(' '));
  }
  const full = await run('bash', ['-c', '"$@" >/dev/full', 'bash', process.execPath, MAIN, 'list', 'g'], { environment });
  t.match(full, { code: 1, stderr: /^lockstep: cannot write the output: ENOSPC[^\n]*\n$/ });
});

t.test('reconcile --serve says that it is not for people when there is no pipe', async (t) => {
  const { run: cli, port } = await openCli(t, { terminal: true });
  t.match(await cli('reconcile', 'g/vol', '--serve'), { code: 2, err: /it is started by: lockstep reconcile GROUP\/DEVICE --with COMMAND/ });
  t.strictSame(port.calls, []);
});

t.test('a halt whose time ran out ends as every wait that ran out, another halt under way as something to wait for', async (t) => {
  const { port, run } = await openCli(t);
  const cases = [['halt/not-drained', 1], ['halt/busy', 2]] as const;
  for (const [why, code] of cases) {
    port.answers.snapshot = () => { throw new ControlError({ kind: 'operator', code: why, message: 'not now' }); };
    t.match(await run('snapshot', 'g/vol@s', '--halt'), { code, out: '', err: 'lockstep: not now\n' }, why);
  }
});

t.test('a device list shows protection and clients', async (t) => {
  const { port, run } = await openCli(t);
  port.answers.devices = () => ({ group: 'g', lsn: 5, devices: [device({ protected: true, clients: 3 })] });
  t.match((await run('list', 'g')).out, /g\/vol .* 3 {2}protected$/m);
  port.answers.devices = () => ({ group: 'g', lsn: 5, devices: [] });
  t.match((await run('list', 'g')).out, /no devices; make one with: lockstep create/);
});
