/**
 * Damage of checkpoint slots, map files and layer files: a clear error that
 * names the file, or nothing lost; never other data without a word.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { CorruptionError } from '../../src/base/errors.js';
import { Rig } from '../sim/rig.js';

/** Few map nodes stay in memory, so that reads go to the map file. */
const SIZES = { mapMemory: 4 * KIB, segmentBytes: 512 * KIB, checkpointSeconds: 3600, destageUs: 3600e6 };

/** A volume of many leaves, a snapshot, and changes since; all of it in the layers, the maps in their file. */
function build(seed: number): Rig {
  const rig = Rig.started(seed, SIZES);
  rig.create('v', 64 * MIB);
  for (let i = 0; i < 32; i++) rig.submit('v', 'write', i * 2 * MIB + 4096 * (i % 7), 8 * KIB);
  rig.run(() => rig.workload.idle);
  rig.snapshot('v', 's');
  for (let i = 0; i < 32; i += 3) rig.submit('v', 'write', i * 2 * MIB, 4 * KIB);
  rig.run(() => rig.workload.idle);
  // Until nothing is left that only the journal has.
  while (rig.host.group.content.checkpointer.lowWater.lsn < rig.host.group.position.lsn) {
    rig.flushTo('destaged');
    rig.host.group.content.requestCheckpoint();
    rig.pass(100_000);
  }
  return rig;
}

/** What came of a start and of reading everything. */
function outcome(rig: Rig): { problem: string } | 'intact' {
  const problem = rig.tryStart();
  if (problem !== undefined) return { problem };
  try {
    rig.verify();
    return 'intact';
  } catch (error) {
    const reason = rig.host.group.role === 'stopped' ? rig.host.group.roleReason : undefined;
    if (reason === undefined) throw error;
    return { problem: reason };
  }
}

t.test('an undamaged group opens and reads through a tiny map memory', async (t) => {
  const rig = build(1);
  t.teardown(() => rig.dispose());
  rig.host.crash('power');
  t.equal(outcome(rig), 'intact');
});

t.test('each region of a checkpoint slot', async (t) => {
  for (const [name, from, length] of [['magic', 0, 4], ['checksum', 4, 4], ['sequence', 8, 8], ['length', 16, 4], ['version', 20, 4], ['first byte of the body', 32, 1], ['middle of the body', 120, 1], ['many bytes', 0, 512]] as const) {
    for (const both of [false, true]) {
      const rig = build(2);
      rig.host.crash('kill');
      const { disk } = rig.host.node;
      // The newest of the two is the one with the higher sequence.
      const sequence = (path: string): number => new DataView(disk.peek(path, 8, 4).buffer).getUint32(0, true);
      const slots = [Rig.path('checkpoint-0'), Rig.path('checkpoint-1')].sort((a, b) => sequence(b) - sequence(a));
      for (const slot of both ? slots : slots.slice(0, 1)) disk.corrupt(slot, from, length);
      const found = outcome(rig);
      if (both) {
        t.match(found, { problem: /checkpoint-.*no checkpoint is readable/ }, `${name} of both`);
      } else if (found !== 'intact') {
        // The older slot may name a map file or journal that is gone by now; then it must say so.
        t.match(found.problem, /\/data\/groups\/g\//, `${name} of the newer: ${found.problem}`);
      } else {
        t.pass(`${name} of the newer: nothing lost`);
      }
      rig.dispose();
    }
  }
});

t.test('a damaged newest slot falls back to the one before', async (t) => {
  const rig = build(3);
  t.teardown(() => rig.dispose());
  rig.host.crash('kill');
  const { disk } = rig.host.node;
  const sequence = (path: string): number => new DataView(disk.peek(path, 8, 4).buffer).getUint32(0, true);
  const [newest] = [Rig.path('checkpoint-0'), Rig.path('checkpoint-1')].sort((a, b) => sequence(b) - sequence(a));
  disk.corrupt(newest, 4, 1);
  t.equal(outcome(rig), 'intact');
  t.ok(rig.host.log.some((line) => line.includes('checkpoint slot was not readable')), 'and the log says so');
});

t.test('each region of the map file', async (t) => {
  const probe = build(4);
  probe.host.crash('kill');
  const path = probe.paths('').find((one) => /\/map-\d+$/.test(one))!;
  const size = probe.host.node.disk.file(path).size;
  probe.dispose();
  let caught = 0;
  for (let at = 0; at < size; at += at < 64 ? 8 : Math.max(16, Math.floor(size / 80))) {
    const rig = build(4);
    rig.host.crash('kill');
    rig.host.node.disk.corrupt(path, at, 1);
    const found = outcome(rig);
    if (found !== 'intact') {
      caught++;
      t.match(found.problem, /map/, `byte ${at}`);
    }
    rig.dispose();
  }
  t.ok(caught > 20, `${caught} of the damaged bytes mattered`);
});

t.test('damage of the map file stops its group while it serves, and nothing else', async (t) => {
  const rig = build(5);
  t.teardown(() => rig.dispose());
  rig.host.crash('kill');
  rig.start();
  const path = rig.paths('').find((one) => /\/map-\d+$/.test(one))!;
  const size = rig.host.node.disk.file(path).size;
  rig.host.node.disk.corrupt(path, 4096, size - 4096);
  const view = rig.host.view(rig.device('v'))!;
  let errno = -1;
  rig.host.client!.read(view, 10 * MIB, 64 * KIB, (result) => {
    errno = result;
  });
  rig.host.node.poke();
  rig.run(() => errno >= 0);
  t.equal(errno, 5);
  t.equal(rig.host.group.role, 'stopped');
  t.match(rig.host.group.roleReason, path.split('/').at(-1)!.replace(/\d+$/, ''));
  t.match(rig.host.group.roleReason, /byte \d+/);
});

t.test('a write to a damaged map stops the group, and what was acknowledged comes back once the map does', async (t) => {
  const rig = build(6);
  t.teardown(() => rig.dispose());
  rig.host.crash('kill');
  rig.start();
  const { faults } = rig.host.node.disk;
  faults.hook = (site) => (site.op === 'pread' && /\/map-\d+$/.test(site.path) ? 5 : 0);
  const outcomes = [rig.submit('v', 'write', 20 * MIB, 4096), rig.submit('v', 'write', 20 * MIB + 512, 512)];
  rig.run(() => outcomes.every((one) => one.errno >= 0));
  faults.hook = undefined;
  rig.host.crash('kill');
  t.equal(outcome(rig), 'intact');
});

t.test('a layer file that is missing', async (t) => {
  for (const which of [0, 1, 2]) {
    const rig = build(7);
    const files = rig.paths('layers');
    rig.host.crash('kill');
    if (which >= files.length) break;
    const io = rig.host.node.start();
    io.unlink(files[which]);
    io.syncDirectory(Rig.path('layers'));
    rig.host.node.stop();
    const found = outcome(rig);
    t.not(found, 'intact');
    if (found !== 'intact') t.match(found.problem, files[which].split('/').at(-1)!, `${which}: the file is named`);
    rig.dispose();
  }
});

t.test('a map file that is missing, too short, or of another group', async (t) => {
  for (const damage of ['missing', 'short', 'foreign'] as const) {
    const rig = build(8);
    rig.host.crash('kill');
    const path = rig.paths('').find((one) => /\/map-\d+$/.test(one))!;
    const io = rig.host.node.start();
    if (damage === 'missing') io.unlink(path);
    else {
      const fd = io.open(path, 2, 0);
      if (damage === 'short') io.truncate(fd, 4096);
      else rig.host.node.disk.corrupt(path, 16, 16);
    }
    io.syncDirectory(Rig.path(''));
    rig.host.node.stop();
    const found = outcome(rig);
    t.not(found, 'intact', damage);
    if (found !== 'intact') t.match(found.problem, /map-\d+/, found.problem);
    rig.dispose();
  }
});

t.test('state.json that is no JSON, or says something else', async (t) => {
  for (const content of ['', '{', '{"format":1}', '{"format":2}', '[]']) {
    const rig = build(9);
    rig.host.crash('kill');
    const path = Rig.path('state.json');
    const io = rig.host.node.start();
    const fd = io.open(path, 2, 0);
    io.truncate(fd, 0);
    const bytes = new TextEncoder().encode(content);
    new Uint8Array(io.memory).set(bytes, 8192);
    if (bytes.length > 0) io.pwrite(fd, 8192, bytes.length, 0);
    rig.host.node.stop();
    t.match(outcome(rig), { problem: /state\.json/ }, JSON.stringify(content));
    rig.dispose();
  }
});

t.test('the error of damage is a CorruptionError with file and place', async (t) => {
  const error = new CorruptionError('/x', 12, 'words');
  t.equal(error.message, '/x, byte 12: words');
});
