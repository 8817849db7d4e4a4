/**
 * Starts of a group whose own files contradict each other: state.json is gone
 * although the group has data, or the journal ends below what this node noted.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { stateToStartFrom } from '../../src/group/content/leftovers.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { batch, checkBatchShape, SEGMENT_HEADER_BYTES } from '../../src/journal/format.js';
import { O } from '../../src/io/io.js';
import { Rig } from '../sim/rig.js';

/** Name, size and content of every file of the group. */
function contents(rig: Rig): Record<string, string> {
  const all: Record<string, string> = {};
  const io = rig.host.node.start();
  const bytes = Buffer.from(io.memory);
  for (const path of rig.paths('').sort()) {
    const fd = io.open(path, O.RDONLY | O.CLOEXEC, 0);
    const { size } = io.stat(fd);
    let crc = 0;
    for (let pos = 0; pos < size; pos += 64 * KIB) {
      const length = Math.min(64 * KIB, size - pos);
      bytes.fill(0, 0, length);
      io.pread(fd, 0, length, pos);
      crc = io.crc32c(0, length, crc);
    }
    io.close(fd);
    all[path] = `${size} ${crc}`;
  }
  rig.host.node.stop();
  return all;
}

function remove(rig: Rig, ...paths: string[]): void {
  const io = rig.host.node.start();
  for (const path of paths) if (io.unlink(path) !== 0) throw new Error(`${path} is not there`);
  for (const path of ['', 'journal', 'layers']) io.syncDirectory(Rig.path(path));
  rig.host.node.stop();
}

function filled(seed: number, upTo: 'durable' | 'checkpoint'): Rig {
  const rig = Rig.started(seed);
  rig.create('v', 8 * MIB);
  for (let i = 0; i < 8; i++) rig.ask('v', 'write', i * 64 * KIB, 64 * KIB, { fua: true });
  rig.flushTo(upTo);
  return rig;
}

const STATE = Rig.path('state.json');
const slots = (rig: Rig): string[] => rig.paths('').filter((path) => path.includes('/checkpoint-'));
const layers = (rig: Rig): string[] => rig.paths('layers');
const segments = (rig: Rig): string[] => rig.paths('journal');

const cases: [string, (rig: Rig) => string[]][] = [
  ['all the rest is there', () => []],
  ['only the checkpoints are left', (rig) => [...layers(rig), ...segments(rig)]],
  ['only layers are left', (rig) => [...slots(rig), ...segments(rig)]],
  ['only the journal is left', (rig) => [...slots(rig), ...layers(rig)]],
];
for (const [name, gone] of cases) {
  t.test(`a group with data is not created anew when its state.json is gone: ${name}`, async (t) => {
    const rig = filled(1, 'checkpoint');
    t.teardown(() => rig.dispose());
    rig.stop();
    remove(rig, STATE, ...gone(rig));
    const before = contents(rig);
    const problem = rig.tryStart() ?? '';
    t.match(problem, /state\.json is missing although the group has data \(.+\); restore it from a backup, or move the directory away to start anew/);
    t.ok(problem.includes(STATE), problem);
    rig.host.node.stop();
    t.same(contents(rig), before, 'nothing was touched');
  });
}

t.test('with its state.json put back the group is what it was', async (t) => {
  const rig = filled(2, 'checkpoint');
  t.teardown(() => rig.dispose());
  rig.stop();
  const io = rig.host.node.start();
  io.rename(STATE, `${STATE}.away`);
  io.syncDirectory(Rig.path(''));
  rig.host.node.stop();
  t.match(rig.tryStart(), /state\.json is missing/);
  rig.host.node.stop();
  const again = rig.host.node.start();
  again.rename(`${STATE}.away`, STATE);
  again.syncDirectory(Rig.path(''));
  rig.host.node.stop();
  t.equal(rig.tryStart(), undefined);
  rig.verify();
});

t.test('what a creation that was cut off leaves may be created anew', async (t) => {
  const rig = Rig.started(3);
  t.teardown(() => rig.dispose());
  rig.host.crash('kill');
  remove(rig, STATE);
  const mayCreate = (): boolean => {
    const io = rig.host.node.start();
    try {
      return stateToStartFrom(new Reactor(io, new Arena(io)), Rig.path('').replace(/\/$/, '')) === undefined;
    } finally {
      rig.host.node.stop();
    }
  };
  t.ok(mayCreate(), 'checkpoint, segments and the first epoch record');
  for (const path of slots(rig).filter((one) => rig.host.node.disk.file(one).size > 0)) rig.host.node.disk.corrupt(path, 0, 1);
  t.ok(mayCreate(), 'a first checkpoint that was torn');
  remove(rig, ...slots(rig));
  t.ok(mayCreate(), 'no checkpoint yet');
  const io = rig.host.node.start();
  for (const path of segments(rig)) io.unlink(path);
  rig.host.node.stop();
  t.ok(mayCreate(), 'no segment yet');
});

/** The journal's batches on the disk, in LSN order. */
function batches(rig: Rig): { lsn: number; path: string; pos: number }[] {
  const found: { lsn: number; path: string; pos: number }[] = [];
  const io = rig.host.node.start();
  const view = new DataView(io.memory);
  for (const path of segments(rig)) {
    const fd = io.open(path, O.RDONLY | O.CLOEXEC, 0);
    const { size } = io.stat(fd);
    for (let pos = SEGMENT_HEADER_BYTES; pos < size;) {
      io.pread(fd, 0, 4096, pos);
      if (checkBatchShape(view, 0) !== undefined) break;
      found.push({ lsn: batch.lsn(view, 0), path, pos });
      pos += batch.totalBytes(view, 0);
    }
    io.close(fd);
  }
  rig.host.node.stop();
  return found.sort((a, b) => a.lsn - b.lsn);
}

/** Written, not made durable by anything that a batch could tell of: only state.json or the page cache speak for it. */
function appended(seed: number): Rig {
  const rig = Rig.started(seed);
  rig.create('v', 8 * MIB);
  for (let i = 0; i < 6; i++) rig.ask('v', 'write', i * 4 * KIB, 4 * KIB);
  return rig;
}

for (const reboot of [false, true]) {
  t.test(`damage below a clean stop is corruption, ${reboot ? 'after a reboot' : 'under the same boot'}`, async (t) => {
    for (const fromEnd of [1, 2, 4]) {
      const rig = appended(4);
      t.teardown(() => rig.dispose());
      rig.stop();
      if (reboot) {
        rig.host.node.start();
        rig.host.crash('power');
      }
      const { lsn, path, pos } = batches(rig).at(-fromEnd)!;
      rig.host.node.disk.corrupt(path, pos + 4096, 1);
      const before = contents(rig);
      for (let i = 0; i < 2; i++) {
        t.match(rig.tryStart(), new RegExp(`${path}, byte ${pos}: .* at LSN ${lsn}, although this node had made the journal durable up to`), `batch ${fromEnd} from the end`);
        rig.host.node.stop();
      }
      t.same(contents(rig), before, 'nothing was erased');
    }
  });
}
