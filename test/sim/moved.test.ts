/** What a journal leaves where it lay before it was moved: removed in the end, whatever happens meanwhile, and never what is not surely that. */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { O } from '../../src/io/io.js';
import type { CrashKind } from './world.js';
import { Rig } from './rig.js';

const BEFORE = '/other/journal';
const NOW = '/third/journal';
const SCRATCH = 4096;

/** A group that was stopped in order, whose journal lies in `directory` (absent: in the group's own) and holds nothing any more. */
function stopped(seed: number, directory?: string): Rig {
  const rig = new Rig(seed);
  if (directory !== undefined) rig.host.journalPlace = { volatile: false, directory };
  rig.start();
  rig.create('v', 4 * MIB);
  rig.ask('v', 'write', 0, 96 * KIB);
  rig.flushTo('checkpoint');
  rig.stop();
  return rig;
}

function move(rig: Rig, directory: string): void {
  rig.host.journalPlace = { volatile: false, directory };
}

function stateOf(rig: Rig): { journal?: { directory: string }; formerJournals?: string[] } {
  const path = Rig.path('state.json');
  const { disk } = rig.host.node;
  return JSON.parse(new TextDecoder().decode(disk.peek(path, 0, disk.file(path).size))) as { formerJournals?: string[] };
}

function write(rig: Rig, path: string, words: string): void {
  const io = rig.host.node.start();
  const fd = io.open(path, O.RDWR | O.CREAT | O.TRUNC, 0o600);
  const bytes = new TextEncoder().encode(words);
  new Uint8Array(io.memory).set(bytes, SCRATCH);
  io.pwrite(fd, SCRATCH, bytes.length, 0);
  io.close(fd);
  rig.host.node.crash('kill');
}

for (const from of [BEFORE, undefined]) {
  for (const kind of ['kill', 'power'] as CrashKind[]) {
    t.test(`a journal that is moved out of ${from ?? "the group's directory"}: a ${kind} at any step of the first start leaves nothing behind after the next`, async (t) => {
      const before = from ?? Rig.path('journal');
      let left = 0;
      for (let fuse = 1, whole = false; !whole; fuse++) {
        const rig = stopped(300 + fuse, from);
        const { disk } = rig.host.node;
        t.ok(disk.paths(before).length > 0);
        move(rig, NOW);
        rig.host.node.fuseKind = kind;
        disk.faults.fuse = fuse;
        whole = rig.host.start();
        disk.faults.fuse = 0;
        if (!whole) {
          if (disk.paths(before).length > 0 && stateOf(rig).journal?.directory === NOW) left++;
          t.equal(rig.tryStart(), undefined, `step ${fuse}`);
        }
        t.same(disk.paths(before), [], `step ${fuse}: nothing is left`);
        t.equal(stateOf(rig).formerJournals, undefined);
        rig.verify();
        rig.ask('v', 'write', 0, 96 * KIB);
        rig.host.crash('power');
        t.equal(rig.tryStart(), undefined, 'and it goes on');
        t.same(disk.paths(before), [], 'also with power lost');
        rig.verify();
        rig.dispose();
      }
      t.ok(left > 1, `${left} times the first start had left something`);
    });
  }
}

t.test('what two moves have left is removed', async (t) => {
  const rig = stopped(20, BEFORE);
  t.teardown(() => rig.dispose());
  const { disk } = rig.host.node;
  move(rig, NOW);
  disk.faults.hook = ({ op, path }) => (op === 'unlink' && path.startsWith(BEFORE) ? 5 : 0);
  t.equal(rig.tryStart(), undefined, 'that it cannot be removed keeps nobody from starting');
  t.ok(disk.paths(BEFORE).length > 0);
  t.same(stateOf(rig).formerJournals, [BEFORE]);
  rig.flushTo('checkpoint');
  rig.stop();
  move(rig, '/fourth/journal');
  t.equal(rig.tryStart(), undefined);
  t.same(stateOf(rig).formerJournals, [BEFORE]);
  t.same(disk.paths(NOW), []);
  disk.faults.hook = undefined;
  rig.host.crash('kill');
  t.equal(rig.tryStart(), undefined);
  t.same(disk.paths(BEFORE), []);
  t.equal(stateOf(rig).formerJournals, undefined);
  rig.verify();
});

const OWN_PATH = 'the journal of the group in /data/groups/g';

for (const settled of [true, false]) {
  t.test(`a journal that is moved back to where it could not be removed${settled ? ', with everything in the layers,' : ''} is not taken for damaged`, async (t) => {
    const rig = stopped(50, BEFORE);
    t.teardown(() => rig.dispose());
    const { disk } = rig.host.node;
    move(rig, NOW);
    disk.faults.hook = ({ op, path }) => (op === 'unlink' && path.startsWith(BEFORE) ? 30 : 0);
    t.equal(rig.tryStart(), undefined);
    // More than one segment holds.
    for (let i = 0; i < 20; i++) rig.ask('v', 'write', i * 64 * KIB, 64 * KIB);
    if (settled) rig.flushTo('checkpoint');
    rig.stop();
    disk.faults.hook = undefined;
    t.same(stateOf(rig).formerJournals, [BEFORE]);
    move(rig, BEFORE);
    if (settled) {
      t.equal(rig.tryStart(), undefined, 'it begins anew there, as in any other directory');
      t.same(disk.paths(NOW), []);
    } else {
      const there = disk.paths(NOW);
      t.match(rig.tryStart(), /^group g: the journal lay in \/third\/journal last, and what lies in \/other\/journal does not go as far .*: configure \/third\/journal, and start; or, if files .* into \/other\/journal in place of what it holds$/);
      t.same(disk.paths(NOW), there);
      rig.host.crash('kill');
      for (const path of disk.paths(BEFORE)) disk.unlink(path);
      for (const path of disk.paths(NOW)) disk.rename(path, path.replace(NOW, BEFORE));
      t.equal(rig.tryStart(), undefined, 'what the refusal says helps');
    }
    rig.verify();
    rig.ask('v', 'write', 0, 96 * KIB);
    rig.ask('v', 'flush');
    rig.host.crash('power');
    t.equal(rig.tryStart(), undefined);
    rig.verify();
  });
}

t.test('a journal of which a part was not moved along, and nothing is known to lie there, is refused with what to do', async (t) => {
  const rig = stopped(51, BEFORE);
  t.teardown(() => rig.dispose());
  const { disk } = rig.host.node;
  t.equal(rig.tryStart(), undefined);
  rig.stop();
  move(rig, NOW);
  disk.makeDirectories(NOW);
  for (const path of disk.paths(BEFORE)) disk.rename(path, path.replace(BEFORE, NOW));
  const used = disk.paths(NOW).find((path) => path.includes('segment'))!;
  disk.corrupt(used, 4096, 8192);
  t.match(rig.tryStart(), /the journal lay in \/other\/journal last, .*segment-.*; or, since the layers' files have everything: remove the files of \/third\/journal, and start$/);
  rig.host.crash('kill');
  for (const path of disk.paths(NOW)) disk.unlink(path);
  t.equal(rig.tryStart(), undefined, 'what the refusal says helps');
  rig.verify();
});

t.test("what another node's journal may be is left alone, though state.json names it, and the path and the group are the same there", async (t) => {
  for (const from of [BEFORE, undefined]) {
    for (const note of [`${OWN_PATH} on node other\n`, `${OWN_PATH}\n`, undefined]) {
      // A copy of the other node's data, on a machine where its journal's directory is reached under the same path.
      const rig = stopped(60, from);
      const { disk } = rig.host.node;
      const before = from ?? Rig.path('journal');
      if (note === undefined) disk.unlink(`${before}/owner`);
      else write(rig, `${before}/owner`, note);
      const there = disk.paths(before);
      t.ok(there.length > 1);
      move(rig, NOW);
      t.equal(rig.tryStart(), undefined);
      t.same(disk.paths(before), there, `${from ?? "the group's own directory"}: ${note ?? 'no note'}`);
      t.ok(rig.host.log.some((line) => line.includes(`the journal lay in ${before} before, and nothing is removed there`)));
      t.equal(stateOf(rig).formerJournals, undefined);
      rig.verify();
      rig.dispose();
    }
  }
});

t.test("another node's directory is refused, and one with a note of the older form taken, and noted anew", async (t) => {
  const rig = stopped(61, BEFORE);
  t.teardown(() => rig.dispose());
  const { disk } = rig.host.node;
  const owner = `${BEFORE}/owner`;
  const noteThere = (): string => new TextDecoder().decode(disk.peek(owner, 0, disk.file(owner).size));
  t.equal(noteThere(), `${OWN_PATH} on node node\n`);
  write(rig, owner, `${OWN_PATH} on node other\n`);
  const there = disk.paths(BEFORE);
  t.match(rig.tryStart(), /\/other\/journal holds the journal of the group in \/data\/groups\/g on node other, and this is node node; .* remove \/other\/journal\/owner$/);
  t.same(disk.paths(BEFORE), there);
  rig.host.crash('kill');
  write(rig, owner, `${OWN_PATH}\n`);
  t.equal(rig.tryStart(), undefined);
  t.equal(noteThere(), `${OWN_PATH} on node node\n`);
  rig.verify();
  rig.host.crash('kill');
  disk.unlink(owner);
  t.equal(rig.tryStart(), undefined, 'what the refusal says helps');
  rig.verify();
});

t.test('a note that cannot be written on a full disk keeps nobody from starting', async (t) => {
  const rig = stopped(62);
  t.teardown(() => rig.dispose());
  const { disk } = rig.host.node;
  const owner = Rig.path('journal/owner');
  disk.unlink(owner);
  disk.faults.hook = ({ op, path }) => (op === 'open' && path === `${owner}.tmp` ? 28 : 0);
  t.equal(rig.tryStart(), undefined);
  t.ok(rig.host.log.some((line) => line.includes('cannot note whose journal it is')));
  t.notOk(disk.paths(Rig.path('journal')).includes(owner));
  disk.faults.hook = undefined;
  rig.host.crash('kill');
  t.equal(rig.tryStart(), undefined);
  t.ok(disk.paths(Rig.path('journal')).includes(owner));
  rig.verify();
});

t.test("what is another group's by now is left alone", async (t) => {
  for (const how of ['its note', 'no note', 'its segment'] as const) {
    const rig = stopped(22, BEFORE);
    const { disk } = rig.host.node;
    move(rig, NOW);
    disk.faults.hook = ({ op, path }) => (op === 'unlink' && path.startsWith(BEFORE) ? 5 : 0);
    t.equal(rig.tryStart(), undefined);
    disk.faults.hook = undefined;
    rig.host.crash('kill');
    if (how === 'its note') write(rig, `${BEFORE}/owner`, 'the journal of the group in /data/groups/x\n');
    else if (how === 'no note') disk.unlink(`${BEFORE}/owner`);
    else {
      const { encodeSegmentHeader } = await import('../../src/journal/format.js');
      const header = new Uint8Array(512);
      encodeSegmentHeader(header, 0, { groupId: 'cd'.repeat(16), serial: 9, baseLsn: 0, chainHi: 0, chainLo: 0, epochId: 'e1'.repeat(16), epochNumber: 1, bytes: 0 });
      const io = rig.host.node.start();
      new Uint8Array(io.memory).set(header, SCRATCH);
      io.pwrite(io.open(disk.paths(BEFORE).find((path) => path.includes('segment'))!, O.RDWR, 0), SCRATCH, 512, 0);
      rig.host.node.crash('kill');
    }
    const there = disk.paths(BEFORE);
    t.ok(there.length > 1);
    t.equal(rig.tryStart(), undefined, how);
    t.same(disk.paths(BEFORE), there);
    t.equal(stateOf(rig).formerJournals, undefined, 'and not asked again');
    rig.verify();
    rig.dispose();
  }
});
