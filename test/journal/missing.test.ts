/**
 * Files of a journal that somebody removed, cut or exchanged while the daemon
 * was down: noticed, and never taken for the end. And kills and power losses at
 * every step of beginning a segment, of which nothing is noticed.
 */
import t from 'tap';
import { crc32c } from '../../src/base/crc32c.js';
import { CorruptionError } from '../../src/base/errors.js';
import { KIB } from '../../src/base/units.js';
import { O } from '../../src/io/io.js';
import { decodeSegmentHeader, encodeSegmentHeader, NEXT_OFFSET, SECTOR_BYTES } from '../../src/journal/format.js';
import type { Position } from '../../src/journal/position.js';
import { SHORT_WRITE } from '../sim/faults.js';
import type { CrashKind } from '../sim/world.js';
import { DIRECTORY, JournalRig } from './rig.js';

const END = `${DIRECTORY}/end`;
const BUFFER = 16 * KIB;

/** Three segments: batches 0 to 2, 3 to 5, 6 to 9; nothing was made durable. */
function build(inMemory: boolean): JournalRig {
  const rig = JournalRig.created(60, undefined, inMemory);
  rig.grow(2);
  for (let i = 0; i < 10; i++) rig.append(i === 3 ? 4 : 3 - (i % 2));
  return rig;
}

/** What recovery says, or where it ends. */
function outcome(rig: JournalRig): string | number {
  try {
    return rig.recover().end.lsn;
  } catch (error) {
    if (error instanceof CorruptionError) return error.message;
    throw error;
  } finally {
    rig.node.stop();
  }
}

function write(rig: JournalRig, path: string, bytes: Uint8Array): void {
  const io = rig.node.start();
  const fd = io.open(path, O.RDWR | O.CREAT | O.TRUNC, 0o600);
  for (let pos = 0; pos < bytes.length; pos += BUFFER) {
    const piece = bytes.subarray(pos, pos + BUFFER);
    new Uint8Array(io.memory).set(piece, BUFFER);
    io.pwrite(fd, BUFFER, piece.length, pos);
  }
  io.close(fd);
  rig.node.stop();
}

function whole(rig: JournalRig, path: string): Uint8Array {
  return rig.node.disk.peek(path, 0, rig.node.disk.file(path).size);
}

for (const inMemory of [false, true]) {
  const kind = inMemory ? 'a volatile' : 'a durable';

  t.test(`${kind} journal whose segment files were removed or renamed is not recovered, whichever they are`, async (t) => {
    for (const gone of [[8], [4], [0], [4, 8], [0, 4]]) {
      const rig = build(inMemory);
      rig.crash('kill');
      for (const i of gone) rig.node.disk.rename(rig.known[i].path, `${DIRECTORY}/away-${i}`);
      const found = outcome(rig);
      t.type(found, 'string', `the files of batches ${gone.join(', ')}`);
      if (gone[0] === 8) t.match(found, /segment-000003, which continues it, is not there any more/);
      for (const i of gone) rig.node.disk.rename(`${DIRECTORY}/away-${i}`, rig.known[i].path);
      t.equal(outcome(rig), rig.known[9].after.lsn, 'nothing was changed meanwhile');
      rig.dispose();
    }
  });

  t.test(`${kind} journal follows a segment file under another number`, async (t) => {
    const rig = build(inMemory);
    t.teardown(() => rig.dispose());
    rig.crash('kill');
    rig.node.disk.rename(rig.known[8].path, `${DIRECTORY}/segment-000077`);
    t.equal(outcome(rig), rig.known[9].after.lsn);
  });

  t.test(`${kind} journal whose files were cut is not recovered, unless nothing was in what is missing`, async (t) => {
    for (const i of [1, 5, 9]) {
      for (const blocks of [0, 1, 2]) {
        const rig = build(inMemory);
        rig.crash('kill');
        const { path, pos } = rig.known[i];
        const bytes = whole(rig, path);
        write(rig, path, bytes.subarray(0, blocks === 0 ? 100 : blocks === 1 ? pos : pos + 5000));
        const found = outcome(rig);
        t.type(found, 'string', `at batch ${i}, ${blocks}`);
        if (blocks > 0) t.match(found, /the file has been cut from 65536 to \d+ bytes/);
        write(rig, path, bytes);
        t.equal(outcome(rig), rig.known[9].after.lsn);
        rig.dispose();
      }
    }
  });

  t.test(`${kind} journal: a segment that is begun while the process is killed or loses power at any step`, async (t) => {
    for (const crash of inMemory ? ['kill'] as const : ['kill', 'power'] as CrashKind[]) {
      let begun = 0;
      for (let fuse = 1; fuse < 14; fuse++) {
        for (let seed = 0; seed < (crash === 'kill' ? 1 : 10); seed++) {
          const rig = JournalRig.created(700 + seed, undefined, inMemory);
          rig.grow(2);
          rig.append(4);
          rig.append(4);
          rig.sync();
          const durable = rig.journal.durableLsn;
          rig.append(4);
          rig.node.disk.faults.fuse = fuse;
          rig.node.fuseKind = crash;
          rig.node.attempt(() => {
            rig.append(4);
            rig.sync();
            rig.append(1);
          });
          if (rig.node.alive) rig.crash(crash);
          const least = crash === 'power' ? durable : rig.known.at(-1)!.after.lsn;
          const found = outcome(rig);
          if (typeof found === 'string' || found < least) t.fail(`${crash} at step ${fuse}: ${found}, at least ${least}`);
          else t.equal(outcome(rig), found, 'and again');
          if (typeof found === 'number' && found > rig.known[2].after.lsn) begun++;
          rig.dispose();
        }
      }
      t.ok(begun > 0, 'some got so far');
    }
  });

  t.test(`${kind} journal that is taken back, killed at any step of it: the next start finds a prefix`, async (t) => {
    let steps = 0;
    for (const to of [2, 4, 7]) {
      for (let fuse = 1; fuse < 40; fuse++) {
        const rig = build(inMemory);
        rig.crash('kill');
        rig.node.disk.faults.fuse = fuse;
        rig.node.fuseKind = 'kill';
        let done = false;
        rig.node.attempt(() => {
          rig.recover(undefined, { until: rig.known[to].before });
          done = true;
        });
        if (rig.node.alive) rig.crash('kill');
        rig.node.disk.faults.fuse = 0;
        const found = outcome(rig);
        const boundary = rig.known.some((one) => one.before.lsn === found || one.after.lsn === found);
        if (!boundary || (found as number) < rig.known[to].before.lsn) t.fail(`taken back to batch ${to}, killed at step ${fuse}: ${found}`);
        if (done) t.equal(found, rig.known[to].before.lsn);
        else steps++;
        rig.dispose();
        if (done) break;
      }
    }
    t.ok(steps > 20, `killed at ${steps} steps`);
  });
}

t.test('a volatile journal misses what an older copy of a file lacks, and what was overwritten with zeros', async (t) => {
  for (const how of ['older', 'zeros'] as const) {
    const rig = JournalRig.created(61, undefined, true);
    t.teardown(() => rig.dispose());
    rig.append(2);
    const { path } = rig.append(2);
    const copy = whole(rig, path);
    rig.append(3);
    rig.crash('kill');
    const bytes = whole(rig, path);
    if (how === 'older') write(rig, path, copy);
    else write(rig, path, bytes.map((byte, at) => (at < rig.known[2].pos ? byte : 0)));
    t.match(outcome(rig), /no batch \(wrong magic\) at LSN \d+, although it went on to LSN \d+/, how);
    write(rig, path, bytes);
    t.equal(outcome(rig), rig.known[2].after.lsn);
  }
});

t.test('a volatile journal without a note of its end, or with a damaged one, is not recovered', async (t) => {
  const rig = build(true);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  rig.node.disk.corrupt(END, 33, 1);
  t.match(outcome(rig), /end cannot be read/);
  rig.node.disk.unlink(END);
  t.match(outcome(rig), /\/journal\/end, which says how far the journal goes, is not there/);
});

t.test('a batch that was cut off by a kill in a volatile journal is no loss', async (t) => {
  const rig = build(true);
  t.teardown(() => rig.dispose());
  const { before, path, pos } = rig.known[9];
  const end = whole(rig, END);
  rig.crash('kill');
  // As a kill in the middle of the write leaves it: half of the batch, and the note of the one before.
  rig.node.disk.corrupt(path, pos + 4096 + 10, 100);
  new DataView(end.buffer, end.byteOffset).setUint32(32, before.lsn, true);
  new DataView(end.buffer, end.byteOffset).setUint32(4, crc32c(end, 8, 40), true);
  write(rig, END, end);
  t.equal(outcome(rig), before.lsn);
});

t.test('a segment whose header or follower cannot be written, or only in part, fails the append and leaves no descriptor open', (t) => {
  for (const errno of [5, SHORT_WRITE]) {
    for (const place of [0, NEXT_OFFSET]) {
      const rig = JournalRig.created(62);
      for (let i = 0; i < 3; i++) rig.append(4);
      const others = rig.node.io.openCount - rig.journal.pool.fileCount;
      let written = 0;
      rig.node.disk.faults.hook = ({ op, pos }) => (op === 'pwrite' && pos === place && ++written === 1 ? errno : 0);
      t.throws(() => rig.append(4), /append: -5/, `${errno} at byte ${place}`);
      t.equal(written, 1);
      t.equal(rig.journal.failure?.errno, 5);
      rig.journal.close();
      t.equal(rig.node.io.openCount, others);
      rig.dispose();
    }
  }
  t.end();
});

t.test('a file that a recovery has no use for is removed, and nobody misses it', async (t) => {
  const rig = build(false);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  // Files of another size are removed as they become free.
  rig.segmentBytes *= 2;
  rig.recover(undefined, { until: rig.known[6].before });
  t.notOk(rig.node.disk.paths(DIRECTORY).includes(rig.known[8].path));
  rig.crash('kill');
  t.equal(outcome(rig), rig.known[6].before.lsn);
});

t.test('a durable segment is missed after a power loss, too', async (t) => {
  for (let seed = 800; seed < 820; seed++) {
    const rig = JournalRig.created(seed);
    for (let i = 0; i < 3; i++) rig.append(3);
    rig.sync();
    rig.append(3);
    const { path } = rig.known[3];
    if (path === rig.known[2].path) throw new Error('no segment was begun');
    rig.sync();
    rig.crash('power');
    rig.node.disk.unlink(path);
    t.match(outcome(rig), /which continues it, is not there any more/, `seed ${seed}`);
    rig.dispose();
  }
});

t.test('a recovery names followers that nobody named: an older version, or one whose name was lost with power', async (t) => {
  const rig = build(false);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  for (const i of [0, 3]) {
    const { path } = rig.known[i];
    write(rig, path, whole(rig, path).fill(0, NEXT_OFFSET, NEXT_OFFSET + SECTOR_BYTES));
  }
  t.equal(outcome(rig), rig.known[9].after.lsn);
  rig.crash('power');
  for (const i of [9, 4]) {
    const { path } = rig.known[i];
    rig.node.disk.rename(path, `${DIRECTORY}/away`);
    t.match(outcome(rig), /which continues it, is not there any more/, `the file of batch ${i}`);
    rig.node.disk.rename(`${DIRECTORY}/away`, path);
  }
  t.equal(outcome(rig), rig.known[9].after.lsn);
});

t.test('a volatile journal of a version that noted no end is recovered, and has a note from then on', async (t) => {
  const rig = build(true);
  t.teardown(() => rig.dispose());
  rig.crash('kill');
  for (const i of [0, 4, 8]) {
    const { path } = rig.known[i];
    const bytes = whole(rig, path).fill(0, NEXT_OFFSET, NEXT_OFFSET + SECTOR_BYTES);
    const header = decodeSegmentHeader(bytes, 0);
    if (typeof header === 'string') throw new Error(header);
    // Nor did it say how long the file is.
    encodeSegmentHeader(bytes, 0, { ...header, bytes: 0 });
    write(rig, path, bytes);
  }
  rig.node.disk.unlink(END);
  t.equal(outcome(rig), rig.known[9].after.lsn);
  rig.node.disk.corrupt(END, 33, 1);
  t.match(outcome(rig), /end cannot be read/);
});

/** Three segments, all of it durable, and what their files held before batch `copyAfter`. */
function withCopies(copyAfter: number): { rig: JournalRig; copies: Map<string, Uint8Array> } {
  const rig = JournalRig.created(63);
  rig.grow(2);
  const copies = new Map<string, Uint8Array>();
  for (let i = 0; i < 10; i++) {
    if (i === copyAfter) for (const path of rig.node.disk.paths(DIRECTORY)) copies.set(path, whole(rig, path));
    rig.append(i === 3 ? 4 : 3 - (i % 2));
  }
  rig.sync();
  rig.crash('kill');
  return { rig, copies };
}

/** What a recovery says that begins at `from`, where the checkpoint needs the journal from. */
function outcomeFrom(rig: JournalRig, from: Position): CorruptionError | number {
  try {
    return rig.recover(from, { durableLsn: from.lsn }).end.lsn;
  } catch (error) {
    if (error instanceof CorruptionError) return error;
    throw error;
  } finally {
    rig.node.stop();
  }
}

t.test('an older copy of the file in which recovery begins to read is noticed, wherever the checkpoint stands', async (t) => {
  // The newest file has batches 6 to 9; the copy, those below `copyAfter`.
  for (const copyAfter of [7, 8, 9]) {
    for (let at = copyAfter + 1; at <= 10; at++) {
      const { rig, copies } = withCopies(copyAfter);
      const { after: from, path } = rig.known[at - 1];
      const bytes = whole(rig, path);
      write(rig, path, copies.get(path)!);
      const found = outcomeFrom(rig, from);
      const { before, pos } = rig.known[copyAfter];
      t.match(found, { file: path, position: pos }, `copied before batch ${copyAfter}, the checkpoint behind batch ${at - 1}`);
      t.match((found as CorruptionError).message, new RegExp(`at LSN ${before.lsn}, although the journal went on to LSN ${from.lsn} at least.* the file is damaged, or an older copy`));
      write(rig, path, bytes);
      t.equal(outcomeFrom(rig, from), rig.known[9].after.lsn, 'nothing was changed meanwhile');
      rig.dispose();
    }
  }
});

t.test('a file that was something else when it was copied, or is damaged below the place where recovery begins, is noticed', async (t) => {
  for (const how of ['before it was begun', 'removed', 'damaged'] as const) {
    const { rig, copies } = withCopies(5);
    const { path } = rig.known[7];
    const from = rig.known[8].before;
    const bytes = whole(rig, path);
    if (how === 'removed') rig.node.disk.unlink(path);
    else if (how === 'damaged') rig.node.disk.corrupt(path, rig.known[7].pos + 20, 1);
    else write(rig, path, copies.get(path)!);
    const found = outcomeFrom(rig, from);
    t.type(found, CorruptionError, how);
    const { message } = found as CorruptionError;
    if (how === 'damaged') t.match(message, /batch header checksum differs at LSN \d+, although the journal went on/);
    else t.match(message, new RegExp(`although the journal went on .*: ${path.split('/').at(-1)!}, which continues it, ${how === 'removed' ? 'is not there any more' : 'cannot be read'}`));
    write(rig, path, bytes);
    t.equal(outcomeFrom(rig, from), rig.known[9].after.lsn);
    rig.dispose();
  }
});

t.test('an older copy of a file from its former use is noticed', async (t) => {
  const rig = JournalRig.created(64, 3);
  t.teardown(() => rig.dispose());
  rig.grow(1);
  const { pool } = rig.journal;
  const first = rig.append(4);
  while (pool.current.path === first.path) rig.append(4);
  const copy = whole(rig, first.path);
  while (rig.known.at(-1)!.path !== first.path) {
    pool.releaseBelow(rig.journal.durableLsn);
    rig.append(4);
    rig.sync();
  }
  rig.append(4);
  rig.sync();
  const from = rig.known.at(-1)!.before;
  const end = rig.journal.durableLsn;
  rig.crash('kill');
  const bytes = whole(rig, first.path);
  write(rig, first.path, copy);
  const found = outcomeFrom(rig, from);
  t.type(found, CorruptionError);
  t.match((found as CorruptionError).message, new RegExp(`although the journal went on .*: ${first.path.split('/').at(-1)!}, which continues it, holds something else: it is an older copy`));
  write(rig, first.path, bytes);
  t.equal(outcomeFrom(rig, from), end);
});
