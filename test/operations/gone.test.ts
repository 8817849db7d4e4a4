/**
 * Real daemons whose callers go: the CLI is killed or interrupted, a control
 * connection is dropped. A halt is lifted at once, what was not appended is not
 * done any more, what was stays, and nothing goes on waiting in the daemon.
 * And the other way round: a daemon that stops tells those who wait for it.
 */
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { CLI, preparePair } from '../harness/node.js';
import type { TestNode } from '../harness/node.js';
import { startProcess, waitFor } from '../harness/process.js';
import type { RunningProcess } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { differences, fill, open } from './devices.js';

const directory = makeTempDirectory('gone');
// Nothing becomes durable but by what waits for it.
const pair = await preparePair(directory, { groupExtra: { journal: { size: '256M', segmentSize: '16M', syncMilliseconds: 60_000 } } });
const { primary, secondary } = pair;
t.teardown(async () => {
  await Promise.all([primary.stop(), secondary.stop()]);
  removeTempDirectory(directory);
});

function lockstep(node: TestNode, ...args: string[]): RunningProcess {
  return startProcess(process.execPath, [CLI, '--socket', node.controlSocket, ...args], { log: `${directory}/cli.log` });
}

/** A figure of /metrics. */
async function gauge(node: TestNode, name: string): Promise<number> {
  const found = new RegExp(`^lockstep_${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(await node.control.metrics());
  if (found === null) throw new Error(`no metric ${name}`);
  return Number(found[1]);
}

/** Requests that the data thread has not answered, beside the one that asks. */
const underWay = async (node: TestNode): Promise<number> => (await gauge(node, 'control_requests')) - 1;

/** Asks for a snapshot with a halt, and returns how its caller goes. */
type Way = (name: string) => Promise<() => Promise<void>>;

function askHalted(name: string): RunningProcess {
  return lockstep(primary, 'snapshot', `g/a@${name}`, '--halt', '--wait-timeout', '600');
}

const killed: Way = async (name) => {
  const cli = askHalted(name);
  await waitFor('the request arrives', async () => (await underWay(primary)) > 0);
  return () => cli.stop('SIGKILL');
};

const interrupted: Way = async (name) => {
  const cli = askHalted(name);
  await waitFor('the request arrives', async () => (await underWay(primary)) > 0);
  return async () => {
    await cli.stop('SIGINT');
    t.match(await cli.ended, { code: 130 });
  };
};

const dropped: Way = async (name) => {
  const call = httpRequest({ socketPath: primary.controlSocket, method: 'POST', path: '/v1/groups/g/snapshots', headers: { 'content-type': 'application/json' } });
  call.on('error', () => {});
  call.end(JSON.stringify({ source: 'a', name, halt: true, waitSeconds: 600 }));
  await waitFor('the request arrives', async () => (await underWay(primary)) > 0);
  return () => Promise.resolve(void call.destroy());
};

t.test('a halt ends when whoever asked goes, and its operation is not done any more', async (t) => {
  await Promise.all([primary.start(), secondary.start()]);
  for (const name of ['a', 'b']) await primary.control.createVolume('g', { name, size: 4 * MIB, wait: 'applied' });
  const client = await open(primary, 'a');
  await secondary.stop();
  await waitFor('it has gone', async () => (await primary.group('g')).links[0].state === 'connecting');
  // The secondary lacks this.
  await fill(client, 0, 1, 'x');
  for (const [way, name] of [[killed, 'killed'], [interrupted, 'interrupted'], [dropped, 'dropped']] as const) {
    const go = await way(name);
    await waitFor('writers wait', async () => (await primary.group('g')).journal.stalled === 'writers wait for an operation with --halt');
    let written = false;
    const write = fill(client, 1, 1, 'y').then(() => (written = true));
    t.notOk(written);
    await go();
    // Far less than the 600 s of the halt.
    await waitFor(`writers go on when the caller is ${name}`, () => written, 10_000);
    await write;
    await waitFor('nothing waits', async () => (await underWay(primary)) === 0, 10_000);
  }
  t.equal(primary.log.split('the caller of an operation with --halt has gone: the writers go on').length, 4);
  await secondary.start();
  await waitFor('connected again', async () => (await primary.group('g')).links[0].state === 'streaming');
  t.equal(await differences(pair), '');
  t.strictSame((await primary.control.devices('g')).devices.map((device) => device.name), ['a', 'b'], 'no snapshot was made');
  t.match(await primary.control.snapshot('g', { source: 'a', name: 's', halt: true }), { waited: 'applied' }, 'a halt whose caller stays');
  await client.disconnect();
});

t.test('what was appended stays when the caller goes, the log says so, and nobody waits any more', async (t) => {
  await secondary.stop();
  await waitFor('it has gone', async () => (await primary.group('g')).links[0].state === 'connecting');
  const timers = await gauge(primary, 'timers');
  const snapshot = lockstep(primary, 'snapshot', 'g/b@kept', '--wait=applied', '--wait-timeout', '3600');
  await waitFor('it is made', async () => (await primary.control.devices('g')).devices.some((device) => device.name === 'b@kept'));
  await snapshot.stop('SIGKILL');
  await waitFor('the log says so', () => /the caller of snapshot has gone: it was appended at LSN \d+, and stays/.test(primary.log));
  for (const args of [['drain', 'g', '--timeout', '3600'], ['drain', 'g', '--timeout', '3600'], ['resize', 'g/b', '8M', '--wait=applied', '--wait-timeout', '3600']]) {
    const cli = lockstep(primary, ...args);
    await waitFor('the request arrives', async () => (await underWay(primary)) > 0);
    if (args[0] === 'resize') await waitFor('it is done', async () => (await primary.control.devices('g')).devices.some((device) => device.name === 'b' && device.sizeBytes === 8 * MIB));
    await cli.stop('SIGKILL');
    await waitFor('nothing waits', async () => (await underWay(primary)) === 0, 10_000);
  }
  // Those of the group and its link come and go.
  await waitFor('no timers are left behind', async () => (await gauge(primary, 'timers')) <= timers);
  t.ok((await primary.control.devices('g')).devices.some((device) => device.name === 'b@kept'));
});

t.test('a flush that cannot end yet ends with its caller', async (t) => {
  await secondary.start();
  await waitFor('connected again', async () => (await primary.group('g')).links[0].state === 'streaming');
  t.equal(await differences(pair), '');
  const client = await open(primary, 'a');
  await fill(client, 3, 1, 'z');
  const { lsn } = await primary.group('g');
  await waitFor('it has arrived', async () => (await secondary.group('g')).lsn.applied >= lsn.appended);
  // A secondary makes nothing final that its primary has not made durable, and nothing asks the primary to.
  const flush = lockstep(secondary, 'flush', 'g', '--up-to', 'checkpoint');
  await waitFor('the request arrives', async () => (await underWay(secondary)) > 0);
  await flush.stop('SIGKILL');
  await waitFor('nothing waits', async () => (await underWay(secondary)) === 0, 10_000);
  t.ok((await secondary.group('g')).lsn.stable < lsn.appended, 'it could not have ended by itself');
  await client.disconnect();
});

t.test('a daemon that is stopped says so to everybody who waits', async (t) => {
  await waitFor('connected', async () => (await primary.group('g')).links[0].state === 'streaming');
  const { pid } = secondary;
  process.kill(pid, 'SIGSTOP');
  const calls: { name: string; says: RegExp; output: string; cli: RunningProcess }[] = [];
  const call = (says: RegExp, ...args: string[]): void => {
    const output = `${directory}/closing-${calls.length}.log`;
    calls.push({ name: args.join(' '), says, output, cli: startProcess(process.execPath, [CLI, '--socket', primary.controlSocket, ...args], { log: output }) });
  };
  try {
    call(/appended by now stays.*lockstep operations/, 'snapshot', 'g/b@closing', '--wait=applied', '--wait-timeout', '600');
    await waitFor('one snapshot is made', async () => (await primary.control.devices('g')).devices.some((device) => device.name === 'b@closing'));
    call(/one that was not is not done any more/, 'snapshot', 'g/a@halted', '--halt', '--wait-timeout', '600');
    await waitFor('writers wait for the other', async () => (await primary.group('g')).journal.stalled === 'writers wait for an operation with --halt');
    call(/ends this request without an answer/, 'drain', 'g', '--timeout', '600');
    call(/cursor q keeps what is not acknowledged/, 'journal', 'export', 'g', '--cursor', 'q', '--follow');
    call(/told up to LSN \d+/, 'journal', 'dump', 'g', '--follow');
    // The dump has a head before its first record.
    await waitFor('both streams have begun', () => readFileSync(calls[3].output).length > 0 && readFileSync(calls[4].output, 'latin1').split('\n').length > 2);
    // Both snapshots, the drain, and the next page of the export.
    await waitFor('all wait', async () => (await underWay(primary)) >= 4);
    await primary.stop();
    t.equal(await primary.exitCode(), 0);
    for (const { name, says, output, cli } of calls) {
      t.match(await cli.ended, { code: 1 }, name);
      const last = readFileSync(output, 'latin1').trimEnd().split('\n').at(-1) ?? '';
      t.match(last, /the daemon is shutting down/, name);
      t.match(last, says, name);
    }
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  await primary.start();
  const { devices } = await primary.control.devices('g');
  t.ok(devices.some((device) => device.name === 'b@closing'), 'what was appended stays');
  t.notOk(devices.some((device) => device.name === 'a@halted'), 'what was not is not done');
});
