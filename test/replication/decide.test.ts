/** The table of what two histories lead to. */
import t from 'tap';
import type { GroupRole } from '../../src/group/replica.js';
import type { EpochEntry } from '../../src/group/tree/epochs.js';
import type { Position } from '../../src/journal/position.js';
import { decide, newerEpoch } from '../../src/replication/decide.js';
import type { NodeView, Plan } from '../../src/replication/decide.js';

const GROUP = 'a'.repeat(32);

/** The chain at an LSN of the line of history `line`. */
function at(lsn: number, line = 0): Position {
  return { lsn, chainHi: lsn === 0 ? 0 : lsn + 1000 * line, chainLo: line };
}

/** "1p@0 2s@100": epoch 1 of node p from LSN 0 on, epoch 2 of node s from 100 on. A letter behind tells ids apart: "2sX@100". */
function history(words: string): EpochEntry[] {
  return words.split(' ').filter((word) => word !== '').map((word) => {
    const [, number, node, id, start] = /^(\d+)([a-z])([A-Z]?)@(\d+)$/.exec(word)!;
    return { number: Number(number), id: Buffer.from(`${number}${node}${id}`).toString('hex').padEnd(32, '0'), start: at(Number(start)), node, lossless: false, wallMs: 1 };
  });
}

interface Side {
  readonly epochs: string;
  readonly at: number;
  readonly line?: number;
  readonly role?: GroupRole;
  readonly first?: number;
  readonly stable?: number;
  readonly group?: string | null;
}

function view(node: string, side: Side, role: GroupRole): NodeView {
  return {
    node, groupId: side.group === null ? undefined : side.group ?? GROUP, role: side.role ?? role, reason: `because of ${node}`,
    epochs: history(side.epochs), position: at(side.at, side.line), firstLsn: side.first ?? 0, stableLsn: side.stable ?? 0,
  };
}

interface Row {
  readonly name: string;
  readonly p: Side;
  readonly s: Side;
  /** Where the dialer has batch boundaries besides its end; every multiple of 10 if not given. */
  readonly line?: number;
  readonly want: Partial<Plan> & { readonly kind: Plan['kind'] };
  readonly sentence?: RegExp;
}

const rows: Row[] = [
  // ---- stream
  { name: 'equal positions', p: { epochs: '1p@0', at: 500 }, s: { epochs: '1p@0', at: 500 }, want: { kind: 'stream', from: at(500) } },
  { name: 'secondary behind', p: { epochs: '1p@0', at: 500 }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'stream', from: at(300) } },
  { name: 'secondary behind by epochs', p: { epochs: '1p@0 2p@200 3p@400', at: 500 }, s: { epochs: '1p@0', at: 100 }, want: { kind: 'stream', from: at(100) } },
  { name: 'secondary ends where an epoch begins', p: { epochs: '1p@0 2p@200', at: 500 }, s: { epochs: '1p@0', at: 200 }, want: { kind: 'stream', from: at(200) } },
  { name: 'fresh secondary', p: { epochs: '1p@0', at: 500 }, s: { epochs: '', at: 0, group: null }, want: { kind: 'stream', from: at(0) } },
  { name: 'secondary that was promoted follows nobody, another one follows it', p: { epochs: '1p@0 2s@200', at: 300 }, s: { epochs: '1p@0', at: 150 }, want: { kind: 'stream', from: at(150) } },
  { name: 'only the newest epochs are known of the secondary', p: { epochs: '1p@0 2p@200', at: 300 }, s: { epochs: '2p@200', at: 300 }, want: { kind: 'stream', from: at(300) } },
  // ---- refused for what was recycled
  { name: 'needs what is recycled', p: { epochs: '1p@0', at: 500, first: 400 }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'refuse', code: 'link/not-retained' }, sentence: /from LSN 300 on.*only from LSN 400 on.*needs a resync, which this version does not have.*link drop/ },
  { name: 'fresh secondary of an old group', p: { epochs: '1p@0', at: 500, first: 400 }, s: { epochs: '', at: 0, group: null }, want: { kind: 'refuse', code: 'link/not-retained' }, sentence: /from LSN 0 on/ },
  { name: 'rewind to what is recycled', p: { epochs: '1p@0 2p@200', at: 500, first: 400 }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'refuse', code: 'link/not-retained' } },
  // ---- divergence
  { name: 'same LSN, other records', p: { epochs: '1p@0', at: 500 }, s: { epochs: '1p@0', at: 500, line: 1 }, want: { kind: 'refuse', code: 'link/diverged' }, sentence: /different records below LSN 500/ },
  { name: 'behind, other records', p: { epochs: '1p@0', at: 500 }, s: { epochs: '1p@0', at: 300, line: 1 }, want: { kind: 'refuse', code: 'link/diverged' } },
  { name: 'behind, at no boundary', p: { epochs: '1p@0', at: 500 }, s: { epochs: '1p@0', at: 305 }, want: { kind: 'refuse', code: 'link/diverged' } },
  { name: 'nothing in common', p: { epochs: '1p@0', at: 500 }, s: { epochs: '1x@0', at: 500 }, want: { kind: 'refuse', code: 'link/diverged' }, sentence: /no epoch in common/ },
  { name: 'the same epoch id begins elsewhere', p: { epochs: '1p@0 2p@200', at: 500 }, s: { epochs: '1p@0 2p@210', at: 300 }, want: { kind: 'refuse', code: 'link/diverged' }, sentence: /began at different positions/ },
  { name: 'no epoch, but records', p: { epochs: '1p@0', at: 500 }, s: { epochs: '', at: 100 }, want: { kind: 'refuse', code: 'link/diverged' } },
  // ---- rewind
  { name: 'the primary lost its tail and began a new epoch', p: { epochs: '1p@0 2p@200', at: 250 }, s: { epochs: '1p@0', at: 300, stable: 150 }, want: { kind: 'rewind', to: at(200) } },
  { name: 'rewind to exactly the stable LSN', p: { epochs: '1p@0 2p@200', at: 250 }, s: { epochs: '1p@0', at: 300, stable: 200 }, want: { kind: 'rewind', to: at(200) } },
  { name: 'below the stable LSN', p: { epochs: '1p@0 2p@200', at: 250 }, s: { epochs: '1p@0', at: 300, stable: 210 }, want: { kind: 'refuse', code: 'link/needs-resync' }, sentence: /LSN 200.*LSN 210 cannot be undone.*needs a resync, which this version does not have/ },
  { name: 'an epoch of the primary that it lost itself', p: { epochs: '1p@0 2pB@200', at: 250 }, s: { epochs: '1p@0 2pA@200', at: 300 }, want: { kind: 'rewind', to: at(200) } },
  { name: 'two lost epochs, with a higher number than its own', p: { epochs: '1p@0 2pB@200', at: 250 }, s: { epochs: '1p@0 2pA@200 3p@260', at: 300 }, want: { kind: 'rewind', to: at(200) } },
  { name: 'lost epoch that began before the common end', p: { epochs: '1p@0 2pB@200', at: 250 }, s: { epochs: '1p@0 2pA@180', at: 300 }, want: { kind: 'rewind', to: at(180) } },
  { name: 'a takeover: what the old primary had sent to another secondary only', p: { epochs: '1p@0 2s@200', at: 250 }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'rewind', to: at(200) } },
  { name: 'never undoes an epoch of another node', p: { epochs: '1q@0 2p@200 3p@220', at: 250 }, s: { epochs: '1q@0 2s@200', at: 300 }, want: { kind: 'refuse', code: 'link/diverged' }, sentence: /epoch 2 of node s/ },
  // ---- fetch
  { name: 'recovering: the peer has more', p: { epochs: '1p@0', at: 200, role: 'recovering' }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'fetch', from: at(200), upTo: 300 } },
  { name: 'recovering: the peer has a later epoch of ours', p: { epochs: '1p@0', at: 200, role: 'recovering' }, s: { epochs: '1p@0 2p@250', at: 300 }, want: { kind: 'fetch', from: at(200), upTo: 300 } },
  { name: 'recovering: exactly at the start of the lost epoch', p: { epochs: '1p@0', at: 250, role: 'recovering' }, s: { epochs: '1p@0 2p@250', at: 300 }, want: { kind: 'fetch', from: at(250), upTo: 300 } },
  { name: 'recovering: the peer has less', p: { epochs: '1p@0', at: 200, role: 'recovering' }, s: { epochs: '1p@0', at: 100 }, want: { kind: 'stream', from: at(100) } },
  { name: 'recovering: the peer went on elsewhere before', p: { epochs: '1p@0 2pB@150', at: 200, role: 'recovering' }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'rewind', to: at(150) } },
  { name: 'serving: what a peer has more of our epoch is undone, not fetched', p: { epochs: '1p@0', at: 200 }, s: { epochs: '1p@0', at: 300 }, want: { kind: 'rewind', to: at(200) } },
  // ---- epochs and roles
  { name: 'the listener was promoted', p: { epochs: '1p@0', at: 300 }, s: { epochs: '1p@0 2s@200', at: 250, role: 'primary' }, want: { kind: 'fenced' } },
  { name: 'the listener follows one that was promoted', p: { epochs: '1p@0', at: 300 }, s: { epochs: '1p@0 2x@200', at: 250 }, want: { kind: 'fenced' } },
  { name: 'recovering, and somebody took over', p: { epochs: '1p@0', at: 200, role: 'recovering' }, s: { epochs: '1p@0 2s@200', at: 250, role: 'primary' }, want: { kind: 'fenced' } },
  { name: 'a takeover outranks restarts, however many', p: { epochs: '1p@0 2p@200 3p@220 4p@230', at: 300 }, s: { epochs: '1p@0 2s@200', at: 250 }, want: { kind: 'fenced' } },
  { name: 'restarts of the listener do not outrank the takeover of the dialer', p: { epochs: '1s@0 2p@200', at: 300 }, s: { epochs: '1s@0 2s@200 3s@220', at: 250, role: 'primary' }, want: { kind: 'refuse', code: 'link/both-primary' } },
  { name: 'both primary, as many takeovers, same number', p: { epochs: '1q@0 2p@200', at: 300 }, s: { epochs: '1q@0 2s@200', at: 250, role: 'primary' }, want: { kind: 'refuse', code: 'link/both-primary' }, sentence: /both primary/ },
  { name: 'the listener is a primary of an older epoch', p: { epochs: '1p@0 2p@200', at: 300 }, s: { epochs: '1p@0', at: 250, role: 'primary' }, want: { kind: 'refuse', code: 'link/both-primary' } },
  { name: 'both recover', p: { epochs: '1p@0', at: 300, role: 'recovering' }, s: { epochs: '1p@0', at: 250, role: 'recovering' }, want: { kind: 'refuse', code: 'link/both-primary' } },
  { name: 'the listener is fenced', p: { epochs: '1p@0', at: 300 }, s: { epochs: '1p@0', at: 250, role: 'fenced' }, want: { kind: 'refuse', code: 'link/peer-fenced' }, sentence: /because of s/ },
  { name: 'the listener has failed', p: { epochs: '1p@0', at: 300 }, s: { epochs: '1p@0', at: 250, role: 'stopped' }, want: { kind: 'refuse', code: 'link/peer-stopped' }, sentence: /because of s/ },
  { name: 'a secondary dials', p: { epochs: '1p@0', at: 300, role: 'secondary' }, s: { epochs: '1p@0', at: 250 }, want: { kind: 'refuse', code: 'link/role' } },
  { name: 'another group of the same name', p: { epochs: '1p@0', at: 300 }, s: { epochs: '1p@0', at: 250, group: 'b'.repeat(32) }, want: { kind: 'refuse', code: 'link/other-group' } },
  { name: 'a dialer without a group', p: { epochs: '', at: 0, group: null }, s: { epochs: '1p@0', at: 250 }, want: { kind: 'refuse', code: 'link/no-group' } },
];

for (const row of rows) {
  t.test(`${row.want.kind}: ${row.name}`, async (t) => {
    const dialer = view('p', row.p, 'primary');
    const plan = decide(dialer, view('s', row.s, 'secondary'), (lsn) => (lsn % 10 === 0 && lsn >= dialer.firstLsn ? at(lsn) : undefined));
    t.match(plan, row.want);
    if (row.sentence !== undefined) t.match(plan.kind === 'refuse' ? plan.sentence : '', row.sentence);
  });
}

t.test('newerEpoch counts only what another node began and we do not know', async (t) => {
  const mine = { node: 'p', epochs: history('1p@0 2p@100') };
  t.equal(newerEpoch(mine, { epochs: history('1p@0 2p@100') }), undefined);
  t.equal(newerEpoch(mine, { epochs: history('1p@0 2p@100 3p@200') }), undefined);
  t.equal(newerEpoch(mine, { epochs: history('1p@0 2s@100') })?.node, 's');
  t.equal(newerEpoch({ node: 's', epochs: history('1p@0 2s@100') }, mine), undefined);
  t.equal(newerEpoch({ node: 'p', epochs: history('1q@0 2p@100') }, { epochs: history('1q@0 2s@100') }), undefined);
  t.equal(newerEpoch({ node: 'p', epochs: history('1q@0 2p@100') }, { epochs: history('1q@0 2s@100 3s@120') })?.number, 3);
  t.equal(newerEpoch({ node: 'p', epochs: history('1p@0 2p@100') }, { epochs: history('2p@100 3s@200') })?.node, 's', 'a message without the beginning');
  t.equal(newerEpoch(mine, { epochs: history('1p@0 2p@100 3s@200 4p@300') })?.node, 's');
  t.equal(newerEpoch({ node: 'p', epochs: [] }, { epochs: history('1s@0') }), undefined);
});
