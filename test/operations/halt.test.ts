/** Operations with --halt: writers stand still while every node executes them, and always go on afterwards. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import type { ControlError } from '../../src/control/client.js';
import { preparePair } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { differences, fill, open } from './devices.js';

const directory = makeTempDirectory('halt');
const pair = await preparePair(directory);
const { primary, secondary } = pair;
t.teardown(async () => {
  await Promise.all([primary.stop(), secondary.stop()]);
  removeTempDirectory(directory);
});

/** Writes until told to end; counts what was acknowledged. */
class Writer {
  acknowledged = 0;
  ended = false;
  failed: unknown;
  readonly work: Promise<void>;

  constructor(client: Awaited<ReturnType<typeof open>>) {
    this.work = (async () => {
      while (!this.ended) {
        await fill(client, this.acknowledged % 256, 1, 'abcdefg'[this.acknowledged % 7]);
        this.acknowledged++;
      }
    })().catch((error: unknown) => void (this.failed = error));
  }

  async goesOn(): Promise<void> {
    const goal = this.acknowledged + 50;
    await waitFor('writers go on', () => Promise.resolve(this.acknowledged >= goal || this.failed !== undefined));
  }
}

t.test('a halted operation is the next record behind what every node had applied, and is applied when it is answered', async (t) => {
  await Promise.all([primary.start(), secondary.start()]);
  for (const name of ['a', 'b']) await primary.control.createVolume('g', { name, size: 4 * MIB });
  const writer = new Writer(await open(primary, 'a'));
  await writer.goesOn();
  const reply = await primary.control.snapshot('g', { source: null, name: 's', halt: true });
  t.equal(reply.waited, 'applied');
  t.ok((await secondary.group('g')).lsn.applied > reply.lsn, 'the secondary has executed it');
  await writer.goesOn();
  const result = await primary.lockstep('snapshot', 'g/@t', '--halt');
  t.match(result.stdout, /created g\/@t of 2 volumes .* applied on beta/);
  await writer.goesOn();
  writer.ended = true;
  await writer.work;
  t.equal(writer.failed, undefined);
  t.equal(await differences(pair), '');
});

t.test('without the secondary nothing is done, the reason is named, and the writers go on', async (t) => {
  const writer = new Writer(await open(primary, 'b'));
  await secondary.stop();
  try {
    const asked = primary.control.snapshot('g', { source: 'a', name: 'never', halt: true, waitSeconds: 5 });
    await waitFor('the status says that writers wait', async () => (await primary.group('g')).journal.stalled === 'writers wait for an operation with --halt');
    const told = await primary.lockstep('status');
    t.match(told.stdout, /! writers wait for an operation with --halt\n +=> it waits until every node .*, now for beta; the writers go on by themselves when it ends, in [1-9]\d* s at the latest/);
    await t.rejects(primary.control.snapshot('g', { source: 'a', name: 'second', halt: true }), { code: 'halt/busy' });
    await t.rejects(primary.control.snapshot('g', { source: 'a', name: 'between' }), { code: 'halt/busy' });
    await asked;
    t.fail('it was done');
  } catch (error) {
    t.match(error, { code: 'halt/not-drained' });
    t.match((error as ControlError).message, /nothing was done, and the writers go on: .*beta/);
  }
  await writer.goesOn();
  t.notOk((await primary.control.devices('g')).devices.some((device) => device.name === 'a@never'));
  await secondary.start();
  await waitFor('connected again', async () => (await primary.group('g')).links[0].state === 'streaming');
  const reply = await primary.control.snapshot('g', { source: 'a', name: 'now', halt: true });
  t.equal(reply.waited, 'applied');
  writer.ended = true;
  await writer.work;
  t.equal(writer.failed, undefined);
  t.equal(await differences(pair), '');
});
