/** The pending table against a Map, through seals, rounds and growth. */
import fc from 'fast-check';
import t from 'tap';
import { PendingColumns, PendingTable } from '../../src/store/pending.js';

type Step =
  | { readonly kind: 'set'; readonly layer: number; readonly block: number; readonly lsn: number }
  | { readonly kind: 'run'; readonly layer: number; readonly block: number; readonly count: number; readonly lsn: number }
  | { readonly kind: 'seal' }
  | { readonly kind: 'drop' };

const layer = fc.oneof(fc.integer({ min: 1, max: 4 }), fc.constantFrom(0xffffffff, 0x80000000, 70000));
const block = fc.oneof(fc.integer({ min: 0, max: 1500 }), fc.constantFrom(2 ** 32 - 1, 2 ** 32, 2 ** 38 - 1, 2 ** 31), fc.integer({ min: 0, max: 2 ** 38 - 1 }));
const lsn = fc.oneof(fc.integer({ min: 1, max: 1 << 20 }), fc.constantFrom(2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, 2 ** 52 + 1), fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }));
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('set' as const), layer, block, lsn }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('run' as const), layer, block: fc.integer({ min: 0, max: 5000 }), count: fc.integer({ min: 1, max: 700 }), lsn: fc.integer({ min: 1, max: 1 << 30 }) }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'seal' as const }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'drop' as const }) },
);

const key = (l: number, b: number): string => `${l}:${b}`;

/** All sealed entries, as the destager sees them; checks their order. */
function sealedOf(table: PendingTable): Map<string, number> {
  const columns = new PendingColumns();
  const all = new Map<string, number>();
  for (let p = 0; p < table.partCount; p++) {
    const count = table.sealedPart(p, columns);
    for (let i = 0; i < count; i++) {
      if (i > 0) {
        const before = [columns.layer[i - 1], columns.block[i - 1]];
        if (before[0] > columns.layer[i] || (before[0] === columns.layer[i] && before[1] >= columns.block[i])) throw new Error('a part is not sorted');
      }
      const k = key(columns.layer[i], columns.block[i]);
      if (all.has(k)) throw new Error(`${k} comes twice`);
      all.set(k, columns.lsn[i]);
    }
  }
  return all;
}

t.test('it holds what a Map holds, whatever is set, sealed and dropped', async (t) => {
  fc.assert(fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
    const table = new PendingTable();
    let open = new Map<string, number>();
    let sealed: Map<string, number> | undefined;
    for (const one of steps) {
      if (one.kind === 'seal') {
        if (sealed !== undefined) continue;
        table.seal();
        sealed = open;
        open = new Map();
      } else if (one.kind === 'drop') {
        if (sealed === undefined) continue;
        table.dropSealed();
        sealed = undefined;
      } else {
        for (let i = 0; i < (one.kind === 'run' ? one.count : 1); i++) {
          table.set(one.layer, one.block + i, one.lsn + i);
          open.set(key(one.layer, one.block + i), one.lsn + i);
        }
      }
    }
    for (const generation of [sealed ?? new Map<string, number>(), open]) {
      for (const k of generation.keys()) {
        const [l, b] = k.split(':').map(Number);
        if (table.get(l, b) !== (open.get(k) ?? sealed?.get(k))) throw new Error(`${k}: ${table.get(l, b)}`);
        if (table.get(l, b + 2 ** 20 + 1) !== (open.get(key(l, b + 2 ** 20 + 1)) ?? sealed?.get(key(l, b + 2 ** 20 + 1)) ?? 0)) throw new Error('a block that was never set is pending');
      }
    }
    const wanted = new Map([...(sealed ?? [])].filter(([k]) => !open.has(k)));
    const found = sealedOf(table);
    if (found.size !== wanted.size) throw new Error(`${found.size} sealed entries to write, should be ${wanted.size}`);
    for (const [k, at] of wanted) if (found.get(k) !== at) throw new Error(`${k} sealed at ${found.get(k)}, should be ${at}`);
    return table.openBlocks === open.size && table.sealedBlocks === (sealed?.size ?? 0) && table.blocks === open.size + (sealed?.size ?? 0);
  }), { numRuns: 300 });
  t.pass();
});

t.test('a round of many blocks, and none of them is left after it', async (t) => {
  const table = new PendingTable();
  for (let i = 0; i < 50_000; i++) table.set(1 + (i % 3), i * 7, i + 1);
  table.seal();
  for (let i = 0; i < 50_000; i += 5) table.set(1 + (i % 3), i * 7, 1_000_000 + i);
  t.equal(sealedOf(table).size, 40_000);
  t.equal(table.get(1 + (5 % 3), 35), 1_000_005);
  table.dropSealed();
  t.equal(table.blocks, 10_000);
  t.equal(table.get(2, 7), 0);
  table.clear();
  t.equal(table.blocks, 0);
  t.equal(table.get(1 + (5 % 3), 35), 0);
});

t.test('a seal while one is under way, and a drop without one, are bugs', async (t) => {
  const table = new PendingTable();
  t.throws(() => table.dropSealed());
  table.seal();
  t.throws(() => table.seal());
});
