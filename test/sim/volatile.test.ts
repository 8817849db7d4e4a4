/**
 * Volatile journals: what a kill, a stop in order and a power loss leave, when
 * the group is served afterwards and when it is not.
 *
 * TEST_SEED=N runs that seed of the random ones.
 */
import t from 'tap';
import type { Test } from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import type { NodeBlocks } from '../../src/group/blocks.js';
import { RequestKind } from '../../src/group/requests/requests.js';
import { SMALL } from './cluster.js';
import type { SimHost } from './cluster.js';
import { TMPFS } from './disk.js';
import { BLOCK, ZERO_BLOCK } from './model.js';
import type { ModelEntry } from './model.js';
import { Rig } from './rig.js';
import { acceptableLsn, JOURNAL, REFUSED, segmentsOf } from './volatile-journal.js';
import { MIXED, Workload } from './workload.js';

const SEEDS = process.env.TEST_SEED === undefined ? [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] : [Number(process.env.TEST_SEED)];
const STATE = Rig.path('state.json');
const SECTOR = 512;

function volatileRig(t: Test, seed: number): Rig {
  const rig = new Rig(seed);
  rig.host.volatile();
  t.teardown(() => rig.dispose());
  return rig;
}

function emptyJournal(host: SimHost): void {
  for (const path of host.node.disk.paths(JOURNAL)) if (path.includes('segment')) host.node.disk.unlink(path);
}

/** Reads one block past the model's client, which would hold it to what the journal said. */
class RawReads {
  private readonly owner: number;
  private ended = -1;
  constructor(private readonly rig: Rig, private readonly blocks: NodeBlocks) {
    this.owner = blocks.requests.addOwner({
      completed: (slot) => {
        this.ended = blocks.requests.errno[slot];
        blocks.requests.free(slot);
      },
    });
  }

  read(device: number, index: number): Uint8Array {
    const { requests } = this.blocks;
    const { host } = this.rig;
    const { arena } = host.reactor!;
    const buffer = arena.alloc(BLOCK);
    const slot = requests.alloc(this.owner);
    requests.kind[slot] = RequestKind.read;
    requests.flags[slot] = 0;
    requests.device[slot] = device;
    requests.offset[slot] = index * BLOCK;
    requests.length[slot] = BLOCK;
    requests.buffer[slot] = buffer;
    this.ended = -1;
    this.blocks.submit(host.view(host.model.state.devices.get(device)!)!, slot);
    host.node.poke();
    this.rig.run(() => this.ended >= 0);
    if (this.ended !== 0) throw new Error(`a read failed with ${this.ended}`);
    const bytes = arena.u8.slice(buffer, buffer + BLOCK);
    arena.release(buffer);
    return bytes;
  }
}

/** Versions that blocks were given by `entries`: `device:block`. */
function versionsIn(entries: readonly ModelEntry[]): Map<string, Uint8Array[]> {
  const found = new Map<string, Uint8Array[]>();
  for (const { records } of entries) {
    for (const record of records) {
      if (record.kind !== 'data') continue;
      record.blocks.forEach((content, i) => {
        const key = `${record.device}:${record.first + i}`;
        found.set(key, [...(found.get(key) ?? []), content]);
      });
    }
  }
  return found;
}

function isOneOf(block: Uint8Array, versions: readonly Uint8Array[]): boolean {
  for (let at = 0; at < BLOCK; at += SECTOR) {
    const sector = block.subarray(at, at + SECTOR);
    if (!versions.some((version) => Buffer.compare(sector, version.subarray(at, at + SECTOR)) === 0)) return false;
  }
  return true;
}

t.test('FLUSH, FUA and operations wait until a committed checkpoint has it, and one round serves all', async (t) => {
  const rig = volatileRig(t, 1);
  rig.start();
  rig.create('v', 4 * MIB);
  const { group } = rig.host;
  const { checkpointer, journal } = group.content;
  t.equal(checkpointer.committedAt.lsn, group.position.lsn, 'the operation was answered behind its checkpoint');
  t.equal(rig.ask('v', 'write', 0, 64 * KIB), 0);
  t.ok(journal.durableLsn < journal.appendedLsn, 'a plain write is answered when it is appended');
  t.equal(group.stableLsn, journal.appendedLsn);
  const [commits, end] = [checkpointer.commits, group.position.lsn];
  const waiting = [rig.submit('v', 'flush'), rig.submit('v', 'flush'), rig.submit('v', 'write', BLOCK, BLOCK, { fua: true })];
  rig.run(() => waiting.every((one) => one.errno === 0));
  t.ok(checkpointer.committedAt.lsn >= end && checkpointer.lowWater.lsn === checkpointer.committedAt.lsn);
  t.ok(checkpointer.commits - commits <= 2, `${checkpointer.commits - commits} checkpoints`);
  t.equal(journal.durableLsn, checkpointer.committedAt.lsn);
  t.equal(journal.commit.count, 0, 'the journal itself was never synced');
  rig.verify();
});

t.test('a killed daemon goes on with everything that it had acknowledged', async (t) => {
  const rig = volatileRig(t, 2);
  rig.start();
  rig.create('v', 4 * MIB);
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  const end = rig.host.group.position.lsn;
  rig.host.crash('kill');
  t.equal(rig.tryStart(), undefined);
  t.match(rig.host.group.epochs.at(-1), { lossless: true, start: { lsn: end } });
  rig.verify();
});

/** What takes nothing away that is needed after a clean stop. */
const LOSSES: readonly [string, (host: SimHost) => void][] = [
  ['power is lost', (host) => host.crash('power')],
  ['the directory is emptied', emptyJournal],
  ['the newest file is removed', (host) => host.node.disk.unlink(segmentsOf(host).at(-1)!)],
  ['the note of its end is removed', (host) => host.node.disk.unlink(`${JOURNAL}/end`)],
];

for (const [how, lose] of LOSSES) {
  t.test(`after a clean stop nothing is missing when ${how}, and no epoch follows`, async (t) => {
    const rig = volatileRig(t, 3);
    rig.start();
    rig.create('v', 4 * MIB);
    for (let i = 0; i < 10; i++) t.equal(rig.ask('v', 'write', i * 40_000, 50_000), 0);
    rig.snapshot('v', 's');
    t.equal(rig.ask('v', 'zero', 8 * KIB, 30_000), 0);
    const { epochs, position } = rig.host.group;
    rig.stop();
    lose(rig.host);
    t.equal(rig.tryStart(), undefined, how);
    t.same([rig.host.group.epochs, rig.host.group.position], [epochs, position]);
    rig.verify();
    t.equal(rig.ask('v', 'write', 0, 5000), 0);
    rig.host.crash('kill');
    t.equal(rig.tryStart(), undefined);
    rig.verify();
  });
}

t.test('without a clean stop a lost journal means that the group is not served, and the sentence says what to do', async (t) => {
  const rig = volatileRig(t, 4);
  rig.start();
  rig.create('v', 4 * MIB);
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  rig.host.crash('power');
  const problem = rig.tryStart();
  t.match(problem, REFUSED);
  t.match(problem, /promote it, and build this node anew/);
  const state = rig.host.node.disk.peek(STATE, 0, 4096);
  rig.host.crash('kill');
  t.equal(rig.tryStart(), problem, 'nor by the next start');
  t.same(rig.host.node.disk.peek(STATE, 0, 4096), state, 'nothing was changed');
  rig.host.crash('kill');
  rig.host.acceptedLsn = acceptableLsn(problem) + BLOCK;
  t.match(rig.tryStart(), /this start was given LSN/, 'another LSN is not accepted');
});

t.test('a journal that is not there any more, under the same boot, is lost as well', async (t) => {
  const rig = volatileRig(t, 5);
  rig.start();
  rig.create('v', 4 * MIB);
  rig.host.crash('kill');
  emptyJournal(rig.host);
  t.match(rig.tryStart(), /its volatile journal is not there any more/);
});

for (const seed of SEEDS) {
  t.test(`seed ${seed}: accepted after power losses, every flushed block that was not overwritten since is there, and the epoch says lossy`, async (t) => {
    const rig = volatileRig(t, seed);
    const { host, world } = rig;
    const random = world.random.fork(60);
    Object.assign(host, { sizes: { ...SMALL, destageUs: random.pick([1_000, 20_000, 200_000]), destageFraction: random.pick([0.05, 0.3]), mapMemory: random.pick([32 * KIB, MIB]) } });
    const workload = new Workload(host, random.fork(1), { ...MIXED, operations: random.pick([0.03, 0.2]) });
    const crashed = host.node.onCrash!;
    host.node.onCrash = (kind) => {
      crashed(kind);
      workload.forget();
    };
    rig.start();
    let [overwritten, checked] = [0, 0];
    for (let cycle = 0; cycle < 4; cycle++) {
      const steps = random.between(10, 120);
      const pace = random.pick([20, 500, 4000]);
      for (let i = 0; i < steps; i++) {
        host.node.attempt(() => workload.step());
        rig.pass(random.unit() * pace);
        if (workload.full) rig.run(() => !workload.full);
      }
      if (random.chance(0.3)) {
        host.crash('kill');
        t.equal(rig.tryStart(), undefined);
        rig.verify();
      }
      const continuity = new Map([...host.group.tree.all()].map((device) => [device.id, device.continuity]));
      const written = [...host.model.entries];
      const chain = host.group.content.checkpointer.committedAt;
      host.crash('power');
      const problem = rig.tryStart();
      t.match(problem, REFUSED);
      const lsn = acceptableLsn(problem);
      host.crash('kill');
      host.acceptedLsn = lsn;
      // The model throws when this is below anything that was flushed.
      if (random.chance(0.3)) {
        host.node.fuseKind = random.pick(['kill', 'power']);
        host.node.disk.faults.fuse = random.between(1, 40);
      }
      if (!host.start()) {
        t.match(rig.tryStart() ?? 'served', /unknown|served/, 'cut off in the middle');
        if (host.problem !== undefined) {
          t.equal(acceptableLsn(host.problem), lsn);
          host.crash('kill');
          rig.start();
        }
      }
      host.node.disk.faults.fuse = 0;
      host.acceptedLsn = undefined;
      t.equal(host.problem, undefined);
      const { group } = host;
      t.ok(group.epochs.some((epoch) => !epoch.lossless && epoch.start.lsn === lsn), 'a lossy epoch begins where the checkpoint ends');
      t.not(group.epochs.at(-1)!.start.chainHi, chain.chainHi, 'at a position that no other node has');
      for (const device of group.tree.all()) t.not(device.continuity, continuity.get(device.id));
      const later = versionsIn(written.filter((entry) => entry.lsn >= lsn));
      const raw = new RawReads(rig, host.path!.blocks);
      for (const device of host.model.state.devices.values()) {
        for (const [key, versions] of later) {
          const [id, index] = key.split(':').map(Number);
          if (id !== device.id || (index + 1) * BLOCK > device.sizeBytes) continue;
          const expected = device.blocks.get(index) ?? ZERO_BLOCK;
          const found = raw.read(id, index);
          checked++;
          if (Buffer.compare(found, expected) !== 0) {
            overwritten++;
            if (!isOneOf(found, [expected, ...versions])) throw new Error(`block ${index} of device ${id} holds what was never written there`);
            device.blocks.set(index, found);
          }
        }
      }
      // Everything else is as it was at the checkpoint.
      rig.verify();
      rig.flushTo('durable');
      host.model.raiseFloor(host.model.endLsn);
      host.model.rebase();
    }
    t.comment(`${overwritten} of ${checked} blocks that were written after the checkpoint had been overwritten in place`);
    host.crash('kill');
    t.equal(rig.tryStart(), undefined);
    rig.verify();
    rig.stop();
    host.crash('power');
    t.equal(rig.tryStart(), undefined);
    rig.verify();
  });
}

t.test('a journal changes its kind or its place only when nothing is in it any more', async (t) => {
  const rig = new Rig(6);
  t.teardown(() => rig.dispose());
  const { host } = rig;
  rig.start();
  rig.create('v', 4 * MIB);
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  const durable = { ...host.journalPlace };
  host.crash('kill');
  host.volatile();
  const inMemory = { ...host.journalPlace };
  t.match(rig.tryStart(), /is configured as volatile in \/tmpfs\/g\/journal and was durable in \/data\/groups\/g\/journal; that may be changed only after a clean stop/);
  host.crash('kill');
  host.journalPlace = durable;
  t.equal(rig.tryStart(), undefined);
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  rig.stop();
  host.journalPlace = inMemory;
  t.match(rig.tryStart(), /holds what is not in the layers' files yet: configure it as it was .* lockstep flush g --up-to checkpoint, then stop/);
  host.crash('kill');
  host.journalPlace = durable;
  t.equal(rig.tryStart(), undefined);
  rig.flushTo('checkpoint');
  rig.stop();
  host.journalPlace = inMemory;
  t.equal(rig.tryStart(), undefined);
  rig.verify();
  t.same(rig.paths('journal'), [], 'the former journal is removed');
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  host.crash('kill');
  host.journalPlace = durable;
  t.match(rig.tryStart(), /that may be changed only after a clean stop/);
  host.crash('kill');
  host.journalPlace = inMemory;
  t.equal(rig.tryStart(), undefined);
  rig.stop();
  host.journalPlace = durable;
  t.equal(rig.tryStart(), undefined, 'a volatile one is empty after a clean stop');
  t.same(host.node.disk.paths(TMPFS), []);
  rig.verify();
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  t.equal(rig.ask('v', 'flush'), 0);
  host.crash('power');
  t.equal(rig.tryStart(), undefined, 'and it is durable now');
  rig.verify();
});

t.test('a durable journal lies in a directory of its own, and may be moved after a clean stop', async (t) => {
  const rig = new Rig(7);
  t.teardown(() => rig.dispose());
  const { host } = rig;
  const { disk } = host.node;
  host.journalPlace = { volatile: false, directory: '/other/journal/' };
  rig.start();
  rig.create('v', 4 * MIB);
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  t.equal(rig.ask('v', 'flush'), 0);
  t.same(rig.paths('journal'), []);
  host.crash('power');
  t.equal(rig.tryStart(), undefined);
  rig.verify();
  rig.stop();
  host.journalPlace = { volatile: false, directory: '/third/journal/' };
  t.match(rig.tryStart(), /move the files of \/other\/journal there, or configure it as it was/);
  host.crash('kill');
  disk.makeDirectories('/third/journal');
  for (const path of disk.paths('/other/journal')) if (path.includes('segment')) disk.rename(path, path.replace('other', 'third'));
  disk.syncDirectory('/third/journal');
  t.equal(rig.tryStart(), undefined);
  rig.verify();
  host.crash('power');
  t.equal(rig.tryStart(), undefined);
  rig.verify();
});

t.test("another group's directory is refused for a journal, and nothing in it is touched", async (t) => {
  const rig = volatileRig(t, 8);
  const { disk } = rig.host.node;
  disk.makeDirectories(JOURNAL);
  disk.makeDirectories('/elsewhere/groups/x');
  const io = rig.host.node.start();
  const fd = io.open(`${JOURNAL}/owner`, 0o102, 0o600);
  new Uint8Array(io.memory).set(new TextEncoder().encode('the journal of the group in /elsewhere/groups/x\n'), 4096);
  io.pwrite(fd, 4096, 48, 0);
  rig.host.node.crash('kill');
  const paths = disk.paths(TMPFS);
  t.match(rig.tryStart(), /\/tmpfs\/g\/journal holds the journal of the group in \/elsewhere\/groups\/x; give each group a journal\.directory of its own/);
  t.same(disk.paths(TMPFS), paths);
});

t.test('a group that was moved itself keeps its journal, and another one cannot take it', async (t) => {
  const rig = new Rig(9);
  t.teardown(() => rig.dispose());
  const { host } = rig;
  const { disk } = host.node;
  host.journalPlace = { volatile: false, directory: '/other/journal' };
  rig.start();
  rig.create('v', 4 * MIB);
  t.equal(rig.ask('v', 'write', 0, 96 * KIB), 0);
  rig.stop();
  const owner = '/other/journal/owner';
  const say = (words: string): void => {
    const io = host.node.start();
    const fd = io.open(owner, 0o1002, 0o600);
    const bytes = new TextEncoder().encode(words);
    new Uint8Array(io.memory).set(bytes, 4096);
    io.pwrite(fd, 4096, bytes.length, 0);
    host.node.crash('kill');
  };
  say('the journal of the group in /before/groups/g\n');
  t.equal(rig.tryStart(), undefined, 'there is no group any more where the note says');
  rig.verify();
  rig.stop();
  disk.makeDirectories('/before/groups/g');
  const io = host.node.start();
  io.open('/before/groups/g/state.json', 0o102, 0o600);
  host.node.crash('kill');
  say('the journal of the group in /before/groups/g\n');
  t.match(rig.tryStart(), /holds the journal of the group in \/before\/groups\/g; give each group a journal\.directory of its own/);
});
