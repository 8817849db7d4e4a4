/** `lockstep reconcile` between the devices of two real daemons, over the pipe of a shell command. */
import { createHash, randomBytes } from 'node:crypto';
import t from 'tap';
import type { Test } from 'tap';
import { GIB, MIB, REGION_BYTES } from '../../src/base/units.js';
import type { ReconcileReply } from '../../src/cli/commands/reconcile.js';
import { NbdDevice } from '../../src/cli/reconcile/device.js';
import { CLI, prepareSingle } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

t.setTimeout(300_000);

/** More than one subtree, and a last region that is short. */
const BIG = GIB + 20 * 4096;
const SMALL = 40 * MIB;

interface Nodes {
  readonly here: TestNode;
  readonly there: TestNode;
  /** Runs the other side. */
  readonly command: string;
}

async function openNodes(t: Test, sizeBytes: number): Promise<Nodes> {
  const directory = makeTempDirectory('reconcile');
  const here = prepareSingle(directory, { name: 'here' });
  const there = prepareSingle(directory, { name: 'there' });
  t.teardown(async () => {
    await Promise.all([here.stop(), there.stop()]);
    removeTempDirectory(directory);
  });
  await Promise.all([here.start(), there.start()]);
  await here.command('create', 'g/v', String(sizeBytes));
  await there.command('create', 'g/w', String(sizeBytes));
  return { here, there, command: serve(there, 'g/w') };
}

function serve(node: TestNode, device: string): string {
  return `'${process.execPath}' '${CLI}' --socket '${node.controlSocket}' reconcile --serve '${device}'`;
}

function open(node: TestNode, device: string): Promise<NbdDevice> {
  return NbdDevice.open({ kind: 'unix', path: node.nbdSocket }, device);
}

async function sha256(node: TestNode, device: string): Promise<string> {
  const opened = await open(node, device);
  const hash = createHash('sha256');
  for (let at = 0; at < opened.sizeBytes; at += 32 * MIB) hash.update(await opened.read(at, Math.min(32 * MIB, opened.sizeBytes - at)));
  await opened.close();
  return hash.digest('hex');
}

t.test('two devices that differ in places become equal, and only these places are sent', async (t) => {
  const { here, there, command } = await openNodes(t, BIG);
  const common = randomBytes(MIB);
  const [v, w] = [await open(here, 'g/v'), await open(there, 'g/w')];
  for (const device of [v, w]) {
    for (let i = 0; i < 15; i++) await device.write(i * 70 * MIB, common);
  }
  await v.write(700 * MIB + 3000, Buffer.from('a few bytes'));
  await v.write(BIG - 100, Buffer.alloc(100, 7)); // the last, short region
  await v.writeZeroes(630 * MIB, REGION_BYTES);
  await w.write(GIB - 8192, Buffer.alloc(4096, 9));
  const busy = await here.lockstep('reconcile', 'g/v', '--with', command);
  t.equal(busy.code, 2);
  t.match(busy.stderr, /g\/v has 1 connection that may write to it; disconnect them/);
  await Promise.all([v.close(), w.close()]);

  const reply = await here.command<ReconcileReply>('reconcile', 'g/v', '--with', command);
  t.match(reply, { device: 'g/v', peerDevice: 'g/w', sizeBytes: BIG, differingRegions: 4, contentBytes: 2 * 4096, there: { writtenBytes: 2 * 4096, zeroedBytes: 2 * REGION_BYTES } });
  t.ok(reply.pipe.sentBytes < 40_000, `${reply.pipe.sentBytes} bytes sent`);
  t.ok(reply.here.readBytes < 16 * MIB, 'holes are not read');
  t.equal(await sha256(there, 'g/w'), await sha256(here, 'g/v'));

  const again = await here.lockstep('reconcile', 'g/v', '--with', command);
  t.equal(again.code, 0);
  t.match(again.stdout, new RegExp(`^g/w on the other side is equal to g/v: content digest ${reply.digest}\n0 regions of 64 KiB differed; sent 0 B of content`));
});

t.test('what goes wrong on the other side ends with a sentence and an exit code, and the next run goes on', async (t) => {
  const { here, there, command } = await openNodes(t, SMALL);
  const v = await open(here, 'g/v');
  for (let i = 0; i < 16; i++) await v.write(i * 2.5 * MIB, randomBytes(MIB));
  await v.close();
  const run = (command_: string) => here.lockstep('reconcile', 'g/v', '--with', command_);

  t.match(await run('echo Welcome to there'), { code: 1, stderr: /does not speak as lockstep reconcile does: it began with "Welcome to there"/ });
  t.match(await run('exit 7'), { code: 1, stderr: /ended before the work was done; it said nothing \(the command ended with exit code 7\)/ });
  t.match(await run('exec sleep 0'), { code: 1, stderr: /ended before the work was done/ });
  const silent = await here.lockstep('reconcile', 'g/v', '--greeting-timeout', '1', '--with', 'exec sleep 600');
  t.match(silent, { code: 1, stdout: '', stderr: /the other side has said nothing for 1 s\. The command must run "lockstep reconcile --serve/ });
  t.match(await run('cat'), { code: 2, stderr: /the command started another sender/ });
  t.match(await run(serve(there, 'g/x')), { code: 2, stderr: /the other side gave up: .* does not serve g\/x/ });
  await there.command('create', 'g/small', '1M');
  t.match(await run(serve(there, 'g/small')), { code: 2, stderr: /g\/v has 41943040 bytes here and g\/small has 1048576 bytes on the other side/ });
  for (const bytes of [100, 5000, 400_000]) {
    const cut = await run(`dd bs=1 count=${bytes} status=none | ${command}`);
    t.match(cut, { code: 1, stderr: /the other side/ }, `what it is sent is cut after ${bytes} bytes`);
    t.equal(cut.stdout, '');
  }
  t.match(await run(`${command} | dd bs=1 count=300 status=none`), { code: 1, stderr: /writing to the other side failed[^]*the other side ended/ }, 'what it says is cut');
  const whole = await here.command<ReconcileReply>('reconcile', 'g/v', '--with', command);
  t.ok(whole.contentBytes < 16 * MIB, `the runs that were cut had brought some of it; ${whole.contentBytes} bytes were left`);
  t.equal(await sha256(there, 'g/w'), await sha256(here, 'g/v'));
});

t.test('the command line of reconcile is checked', async (t) => {
  const directory = makeTempDirectory('reconcile');
  t.teardown(() => removeTempDirectory(directory));
  const node = prepareSingle(directory);
  for (const words of [['g/v'], ['g/v', '--with', 'true', '--serve']]) {
    t.match(await node.lockstep('reconcile', ...words), { code: 2, stderr: /say either --with COMMAND/ });
  }
  t.match(await node.lockstep('reconcile', 'g', '--with', 'true'), { code: 2, stderr: /is no device/ });
  t.match(await node.lockstep('reconcile', 'g/v', '--with', 'true'), { code: 1, stderr: /no such socket/ });
  t.match(await node.lockstep('reconcile', 'g/v', '--with', 'true', '--server', `unix:${directory}/none`), { code: 2, stderr: /no NBD server can be reached/ });
});
