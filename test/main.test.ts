/** lockstepd's arguments, exit codes and first errors, as a process. */
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { OperatorError } from '../src/base/errors.js';
import { configHelp } from '../src/config/help.js';
import { DirectoryLock } from '../src/io/directory-lock.js';
import { TestNode } from './harness/node.js';
import type { Finished } from './harness/process.js';
import { run } from './harness/process.js';
import { makeTempDirectory, removeTempDirectory } from './harness/temp.js';

const MAIN = join(resolve(dirname(fileURLToPath(import.meta.url)), '..'), 'src', 'main.js');
const directory = makeTempDirectory('main');
t.teardown(() => removeTempDirectory(directory));

const lockstepd = (...argv: string[]): Promise<Finished> => run(process.execPath, [MAIN, ...argv]);

function config(name: string, over: Record<string, unknown> = {}): string {
  const file = join(directory, `${name}.json`);
  const all = { node: name, dataDirectory: join(directory, name), control: { socket: join(directory, `${name}.sock`) }, nbd: { listen: [] }, log: { format: 'json' }, ...over };
  writeFileSync(file, JSON.stringify(all));
  return file;
}

t.test('help, version and the configuration keys are printed', async (t) => {
  t.match(await lockstepd('--help'), { code: 0, stdout: /--config-help/ });
  t.match(await lockstepd('--version'), { code: 0, stdout: /^\d+\.\d+\.\d+\n$/ });
  t.strictSame(await lockstepd('--config-help'), { code: 0, stdout: configHelp(), stderr: '' });
});

t.test('usage errors and wrong configurations end with 2 and a sentence', async (t) => {
  t.match(await lockstepd(), { code: 2, stderr: /^lockstepd: name the configuration: lockstepd --config FILE/ });
  t.match(await lockstepd('--konfig', 'x'), { code: 2, stderr: /unknown option '--konfig'/ });
  t.match(await lockstepd('x'), { code: 2, stderr: /too many arguments/ });
  t.match(await lockstepd('--config', join(directory, 'none')), { code: 2, stderr: /none: there is no such file/ });
  const wrong = await lockstepd('--config', config('wrong', { nod: 1, log: { level: 'loud' } }));
  t.match(wrong, { code: 2, stdout: '', stderr: /wrong\.json has 2 problems:\n.*log\.level must be "debug", "info", "warn" or "error", not "loud"/ });
  t.notMatch(wrong.stderr, / at .*\.js/, 'no stack');
  t.notOk(existsSync(join(directory, 'wrong')), 'nothing is made for a wrong configuration');
});

t.test('--check-config says whether a configuration is valid, and touches nothing', async (t) => {
  const secret = join(directory, 'secret');
  writeFileSync(secret, Buffer.alloc(32, 1));
  chmodSync(secret, 0o644);
  const peers = [{ node: 'beta', address: 'tcp:127.0.0.1:1', secretFile: secret }];
  const good = await lockstepd('--check-config', '--config', config('good', { groups: [{ name: 'g', role: 'primary', peers }] }));
  t.match(good, { code: 0, stdout: /good\.json is a valid configuration of node good with 1 group\n/, stderr: /warning: .*secret is a secret but others may read it/ });
  t.notOk(existsSync(join(directory, 'good')));
});

t.test('a second daemon on a data directory is told which directory and which process', async (t) => {
  const file = config('twice');
  const lock = DirectoryLock.acquire(join(directory, 'twice'));
  t.equal(lock.warning, undefined);
  t.equal(readFileSync(join(directory, 'twice', 'lock'), 'utf8'), `${process.pid}\n`);
  const second = await lockstepd('--config', file);
  t.equal(second.code, 2);
  t.match(second.stderr, `another lockstepd (process ${process.pid}) uses the data directory ${join(directory, 'twice')}`);
  t.notOk(existsSync(join(directory, 'twice.sock')));
  t.throws(() => DirectoryLock.acquire(join(directory, 'twice')), { code: 'data/locked' }, 'within one process too');
  lock.release();
  lock.release();
  DirectoryLock.acquire(join(directory, 'twice')).release();
});

t.test('a data directory that cannot be used is a sentence', async (t) => {
  const cases: readonly [string, RegExp][] = [
    [join(directory, 'no', 'such', 'parent'), /no\/such does not exist; make it, or mount what belongs there/],
    [join(directory, 'wrong.json'), /wrong\.json is not a directory/],
    [join(directory, 'wrong.json', 'x'), /a part of the path is not a directory/],
    ['/proc/lockstep', /cannot make the data directory \/proc\/lockstep: /],
  ];
  for (const [dataDirectory, words] of cases) {
    t.match(await lockstepd('--config', config('unusable', { dataDirectory })), { code: 2, stderr: words });
  }
  mkdirSync(join(directory, 'odd', 'lock'), { recursive: true });
  t.throws(() => DirectoryLock.acquire(join(directory, 'odd')), OperatorError);
});

t.test('an address that cannot be listened on is a sentence, and no group is opened for it', async (t) => {
  const taken = createServer();
  t.teardown(() => taken.close());
  await new Promise<void>((done) => taken.listen(0, '127.0.0.1', done));
  const used = `tcp:127.0.0.1:${(taken.address() as AddressInfo).port}`;
  const plain = join(directory, 'plain');
  writeFileSync(plain, 'x');
  const cases: readonly [Record<string, unknown>, RegExp][] = [
    [{ nbd: { listen: [used] } }, /^lockstepd: cannot listen on tcp:127\.0\.0\.1:\d+: the address is in use \(nbd\.listen in the configuration\)$/m],
    [{ link: { listen: used } }, /the address is in use \(link\.listen in/],
    [{ nbd: { listen: ['tcp:192.0.2.1:1'] } }, /this machine has no such address/],
    [{ nbd: { listen: [`unix:${plain}`] } }, /plain: a process listens there, or a file that is not a socket is in the way/],
    [{ nbd: { listen: [`unix:${plain}/s`] } }, /a part of the path is not a directory/],
  ];
  for (const [over, words] of cases) {
    const file = config('deaf', { ...over, groups: [{ name: 'g', role: 'primary' }] });
    const result = await lockstepd('--config', file);
    t.match(result, { code: 2, stderr: words });
    t.notMatch(result.stderr, /a bug/);
    t.notOk(existsSync(join(directory, 'deaf', 'groups', 'g')), 'its group was not touched');
  }
  t.equal(readFileSync(plain, 'utf8'), 'x');
});

t.test('a daemon serves until a signal, ends with 0, and keeps a second one off', async (t) => {
  const node = TestNode.prepare(directory, { node: 'served', nbd: { listen: [] }, metrics: { listen: 'tcp:127.0.0.1:0' } });
  t.teardown(() => node.kill());
  await node.start();
  t.match(await node.command('version'), { lockstepd: /^\d/ });
  t.equal(statSync(node.controlSocket).mode & 0o777, 0o600);
  const second = await lockstepd('--config', join(directory, 'served.json'));
  t.equal(second.code, 2);
  t.match(second.stderr, `another lockstepd (process ${node.pid}) uses the data directory`);
  t.equal((await node.lockstep('status')).code, 0, 'the first one is unharmed');
  const port = /"metrics":"127\.0\.0\.1:(\d+)"/.exec(node.log)?.[1];
  t.match(await (await fetch(`http://127.0.0.1:${port}/metrics`)).text(), /lockstep_info\{node="served"/);
  await node.stop();
  t.equal(await node.exitCode(), 0);
  t.notOk(existsSync(node.controlSocket));
  t.match(node.log, /"message":"stopped"/);
});

t.test('after kill -9 the lock and the socket are no obstacle', async (t) => {
  const node = TestNode.prepare(directory, { node: 'killed', nbd: { listen: [] } });
  t.teardown(() => node.kill());
  await node.start();
  await node.kill();
  t.ok(existsSync(node.controlSocket), 'a stale socket lies there');
  await node.start();
  t.equal((await node.lockstep('status')).code, 0);
  await node.stop();
  t.equal(await node.exitCode(), 0);
});
