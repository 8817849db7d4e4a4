import t from 'tap';
import { Arena, MAX_ALLOC_BYTES } from '../../src/io/arena.js';
import { randomFrom, seedOfRun } from './fixture.js';

const PAGE = 4096;
const MIB = 1024 * 1024;

function arenaOf(bytes: number): Arena {
  return new Arena({ memory: new ArrayBuffer(bytes) });
}

t.test('ranges never overlap, are aligned and large enough, and all comes back', (t) => {
  const seed = seedOfRun();
  t.comment(`TEST_SEED=${seed}`);
  const random = randomFrom(seed);
  for (const bytes of [2 * PAGE, 7 * PAGE, MIB, 3 * MIB + 5 * PAGE, 130 * MIB]) {
    const arena = arenaOf(bytes);
    const pages = bytes / PAGE;
    /** The model: owner of each page; page 0 belongs to nobody's allocation. */
    const owner = new Int32Array(pages).fill(-1);
    const live = new Map<number, { size: number; references: number }>();
    const before = arena.largestFree;
    let used = 0;
    const free = (offset: number, size: number): void => {
      owner.fill(-1, offset / PAGE, (offset + size) / PAGE);
      live.delete(offset);
      used -= size;
    };
    for (let step = 0; step < 3000; step++) {
      const dice = random();
      const offsets = [...live.keys()];
      if (dice < 0.5 || offsets.length === 0) {
        const want = Math.max(1, Math.floor(2 ** (random() * Math.log2(Math.min(bytes, MAX_ALLOC_BYTES)))));
        const room = arena.largestFree;
        const offset = arena.alloc(want);
        if (offset < 0) {
          if (want <= room) t.fail(`alloc(${want}) failed although ${room} bytes were free in one piece`);
          continue;
        }
        const size = arena.sizeOf(offset);
        if (size < want || size % PAGE !== 0 || offset % size !== 0 || offset === 0) t.fail(`alloc(${want}) gave ${size} at ${offset}`);
        for (let page = offset / PAGE; page < (offset + size) / PAGE; page++) {
          if (page >= pages || owner[page] !== -1) t.fail(`page ${page} was handed out twice or does not exist`);
          owner[page] = offset;
        }
        live.set(offset, { size, references: 1 });
        used += size;
      } else {
        const offset = offsets[Math.floor(random() * offsets.length)];
        const one = live.get(offset)!;
        if (dice < 0.65) {
          arena.retain(offset);
          one.references++;
        } else {
          arena.release(offset);
          if (--one.references === 0) free(offset, one.size);
          else if (arena.referencesOf(offset) !== one.references) t.fail('references differ');
        }
      }
      if (arena.usedBytes !== used) t.fail(`usedBytes is ${arena.usedBytes}, not ${used}`);
    }
    for (const [offset, one] of [...live]) for (let i = 0; i < one.references; i++) arena.release(offset);
    t.equal(arena.usedBytes, 0);
    t.equal(arena.largestFree, before, `${bytes} bytes: freed ranges were merged again`);
    let pieces = 0;
    while (arena.alloc(PAGE) > 0) pieces++;
    t.equal(pieces, pages - 1, 'every page but the reserved one can be handed out');
    t.equal(arena.largestFree, 0);
  }
  t.end();
});

t.test('misuse is caught', (t) => {
  const arena = arenaOf(MIB);
  const a = arena.alloc(10_000);
  t.equal(arena.sizeOf(a), 16384);
  arena.retain(a);
  arena.release(a);
  arena.release(a);
  t.throws(() => arena.release(a), { name: 'AssertionError' }, 'double free');
  t.throws(() => arena.retain(a), { name: 'AssertionError' });
  t.throws(() => arena.release(0), { name: 'AssertionError' }, 'the reserved page');
  const b = arena.alloc(16384);
  t.throws(() => arena.release(b + PAGE), { name: 'AssertionError' }, 'inside of a range');
  t.throws(() => arena.release(b + 1), { name: 'AssertionError' });
  t.throws(() => arena.release(MIB), { name: 'AssertionError' });
  t.throws(() => arena.release(-1), { name: 'AssertionError' });
  t.throws(() => arena.alloc(0), { name: 'AssertionError' });
  t.throws(() => arena.alloc(MAX_ALLOC_BYTES + 1), { name: 'AssertionError' });
  t.equal(arena.alloc(MIB), -1, 'the reserved page splits the arena');
  t.end();
});

t.test('the largest range is 64 MiB', (t) => {
  const arena = arenaOf(128 * MIB);
  const a = arena.alloc(MAX_ALLOC_BYTES);
  t.equal(a, 64 * MIB);
  t.equal(arena.alloc(MAX_ALLOC_BYTES), -1);
  t.equal(arena.largestFree, 32 * MIB);
  arena.release(a);
  t.equal(arena.largestFree, MAX_ALLOC_BYTES);
  t.end();
});
