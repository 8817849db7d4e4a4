/** What people read: whole texts, so that a change of them is seen. */
import t from 'tap';
import { adviseGroup } from '../../src/cli/render/advice.js';
import { renderList, renderTree } from '../../src/cli/render/devices.js';
import { renderGroup, renderStatus } from '../../src/cli/render/status.js';
import { COLOURED, PLAIN, bar, formatDuration, table } from '../../src/cli/render/words.js';
import { CREATED_MS, cursor, device, group, importState, link, nodeStatus } from '../control/fake-port.js';

t.test('a healthy primary', async (t) => {
  t.equal(`\n${renderStatus(nodeStatus(), CREATED_MS + 90 * 60_000, PLAIN)}\n`, `
alpha  lockstepd 0.1.0, process 4711, up 1 h 30 min, data in /var/lib/lockstep/alpha
  nbd unix:/run/lockstep/nbd.sock tcp:127.0.0.1:10809; link tcp:127.0.0.1:10900

group g  PRIMARY  all is well
  role      primary, epoch 3
  lsn       appended 900000  durable 900000  applied 900000  stable 890000  checkpoint 700000
  journal   [#####---------------] 25%  256 MiB of 1 GiB, needed from LSN 650000 on, 16 segments
  destage   nothing pending, 12 rounds done
  store     maps 12 MiB of 256 MiB, 3 layers, 100 GiB free, replay after a crash about 1.5 s
  devices   1 volume (10 GiB), 1 snapshot, 0 client connections
  ops       3 since the daemon started, 280 MiB changed by 735 B on the wire, the longest 0.52 ms; last: restore vol from vol@monday at LSN 12288
  link ->   beta  async, streaming; up to date
            shipped 900000  received 900000  durable 890000  applied 880000; 5 MiB on the wire, 0 reconnects
`);
});

t.test('a bad night: what is wrong comes first, each with what to do', async (t) => {
  const bad = group({
    roleReason: 'promoted by an operator', epoch: { number: 4, id: 'x', lossless: false },
    journal: { sizeBytes: 2 ** 30, usedBytes: 2 ** 30, segments: 16, stalled: 'the journal is full because link beta still needs it from LSN 650000; writers wait', heldSeconds: null, volatile: false, atRiskBytes: 0 },
    destage: { pendingBlocks: 1000, pendingBytes: 4_096_000, roundsDone: 1, behindBytes: 5 * 2 ** 20 },
    store: { ...group().store, admission: 'new writes are answered ENOSPC: 900 MiB free', freeBytes: 900 * 2 ** 20, replaySecondsEstimate: 125 },
    links: [link({ state: 'connecting', reason: 'connect: no route to host (EHOSTUNREACH)', lagBytes: 3 * 2 ** 20, lagSeconds: 250, reconnects: 7 })],
    errors: [
      'the journal is full because link beta still needs it from LSN 650000; writers wait', 'new writes are answered ENOSPC: 900 MiB free',
      'layer file 7 could not be written: input/output error (EIO)',
    ],
  });
  t.equal(`\n${renderGroup(bad, PLAIN)}\n`, `
group g  PRIMARY  4 PROBLEMS
  ! the journal is full because link beta still needs it from LSN 650000; writers wait
    => mend the link, or give it up: lockstep link drop g beta
  ! new writes are answered ENOSPC: 900 MiB free
    => free space on the data directory's file system (now 900 MiB free), or remove snapshots
  ! layer file 7 could not be written: input/output error (EIO)
  ! link to beta is down: connect: no route to host (EHOSTUNREACH)
    => check that lockstepd runs on beta and that its link address can be reached from here; it reconnects by itself
  - a restart after a crash would replay for about 2 min 5 s
    => lower store.checkpointBytes if that is too long
  role      primary, epoch 4 (lossy: it began without all that was acknowledged before); promoted by an operator
  lsn       appended 900000  durable 900000  applied 900000  stable 890000  checkpoint 700000
  journal   [####################] 100%  1 GiB of 1 GiB, needed from LSN 650000 on, 16 segments
  destage   3.91 MiB in 1000 blocks pending, 5 MiB behind, 1 round done
  store     maps 12 MiB of 256 MiB, 3 layers, 900 MiB free, replay after a crash about 2 min 5 s
  devices   1 volume (10 GiB), 1 snapshot, 0 client connections
  ops       3 since the daemon started, 280 MiB changed by 735 B on the wire, the longest 0.52 ms; last: restore vol from vol@monday at LSN 12288
  link ->   beta  async, connecting; 3 MiB, 4 min 10 s behind
            shipped 900000  received 900000  durable 890000  applied 880000; 5 MiB on the wire, 7 reconnects
`);
});

t.test('a sentence is said once: why a group is fenced is in its errors and in its role too', async (t) => {
  const why = 'beta was promoted';
  const text = renderGroup(group({ role: 'fenced', roleReason: why, errors: [why], links: [link({ state: 'refused', reason: `node beta says: ${why}` })] }), PLAIN);
  t.equal(text.split(why).length - 1, 2, 'the group and the link, once each');
  t.match(text, 'FENCED  2 PROBLEMS');
  t.match(text, '=> the other node was promoted: use that one. To make this node its secondary: README, "Rebuild a secondary"');
});

t.test('a node without groups, and a group without links', async (t) => {
  t.match(renderStatus(nodeStatus({ groups: [], listen: { nbd: [], link: null } }), CREATED_MS, PLAIN), 'nbd not served; link not served\n\n  no groups are configured');
  t.match(renderGroup(group({ links: [] }), PLAIN), '  links     none: this group is not replicated');
});

t.test('every state that needs somebody is a problem with a remedy, every passing one a note', async (t) => {
  const find = (over: Parameters<typeof group>[0]): string[] => adviseGroup(group(over)).map((one) => `${one.severity}: ${one.what}`);
  t.strictSame(find({}), []);
  t.match(find({ role: 'stopped', roleReason: 'journal segment 5 is damaged' }), [/^problem: the group is stopped: journal segment 5/]);
  t.match(find({ role: 'fenced' }), [/^problem: the group is fenced: another node was promoted/]);
  t.match(find({ role: 'starting', roleReason: 'waits for beta' }), [/^note: the group is starting: waits for beta/]);
  t.match(find({ role: 'secondary', links: [link({ role: 'from', state: 'waiting' })] }), [/^problem: link from beta is down/]);
  t.match(find({ links: [link({ state: 'refused', reason: 'the secret differs' })] }), [/^problem: link to beta is refused: the secret differs/]);
  t.match(find({ links: [link({ state: 'dropped' })] }), [/^problem: link to beta was dropped/]);
  t.match(find({ links: [link({ state: 'hello' })] }), [/^note: link to beta is being made/]);
  t.match(find({ links: [link({ state: 'catching-up', lagBytes: 2 ** 30 })] }), [/^note: link to beta is catching up, 1 GiB behind/]);
  t.match(find({ links: [link({ lagSeconds: 31 })] }), [/^problem: link to beta is 31 s behind/]);
  t.strictSame(find({ links: [link({ lagSeconds: 29, lagBytes: 5 })] }), []);
  t.match(find({ journal: { sizeBytes: 100, usedBytes: 86, segments: 4, stalled: null, heldSeconds: null, volatile: false, atRiskBytes: 0 } }), [/^problem: the journal is 86% full/]);
  t.strictSame(find({ journal: { sizeBytes: 100, usedBytes: 85, segments: 4, stalled: null, heldSeconds: null, volatile: false, atRiskBytes: 0 } }), []);
  t.match(adviseGroup(group({ journal: { sizeBytes: 1, usedBytes: 1, segments: 4, stalled: 'the destager is behind', heldSeconds: null, volatile: false, atRiskBytes: 0 } })), [{ remedy: 'wait for the destager' }]);
});

t.test('writers that an operation with --halt holds need nothing to be given up, whoever is behind', async (t) => {
  const held = { ...group().journal, usedBytes: 2 ** 30, stalled: 'writers wait for an operation with --halt', heldSeconds: 42 };
  const remedy = (over: Parameters<typeof group>[0]): string => {
    const advice = adviseGroup(group({ journal: held, errors: [held.stalled], ...over })).filter((one) => one.what === held.stalled);
    t.equal(advice.length, 1, 'said once');
    t.notMatch(advice[0].remedy, /link drop|journal release|destager/);
    return advice[0].remedy;
  };
  const end = 'the writers go on by themselves when it ends, in 42 s at the latest. To end it at once, interrupt the command that asked for it (Ctrl-C)';
  t.equal(remedy({ links: [link({ applied: 900_000 })] }), `it waits until every node has come to the same point and executed it; ${end}`);
  t.equal(remedy({ links: [link({ state: 'connecting', lagBytes: 5 })], cursors: [cursor({ retainedBytes: 4096 })] }), `it waits until every node has come to the same point and executed it, now for beta; ${end}`);
});

t.test('a list and a tree of devices', async (t) => {
  const devices = [
    device({ id: 3, name: 'vol@a', kind: 'snapshot', parent: 1, creationLsn: 30 }),
    device(),
    device({ id: 4, name: 'vol@b', kind: 'snapshot', parent: 3, creationLsn: 40, clients: 2 }),
    device({ id: 5, name: 'vol@c', kind: 'snapshot', parent: 1, creationLsn: 50, protected: true }),
    device({ id: 6, name: 'vol@d', kind: 'snapshot', parent: 5, creationLsn: 60 }),
    device({ id: 7, name: 'other', sizeBytes: 4096, creationLsn: 70 }),
    device({ id: 9, name: 'vol@orphan', kind: 'snapshot', parent: 8, creationLsn: 90 }),
  ];
  t.equal(`\n${renderTree([{ group: 'g', devices }])}\n`, `
NAME          ID    SIZE  CREATED                LSN  CLIENTS
g/other        7   4 KiB  2026-01-02 03:04:05Z    70        0
g/vol@orphan   9  10 GiB  2026-01-02 03:04:05Z    90        0
g/vol          1  10 GiB  2026-01-02 03:04:05Z  4096        0
├─ vol@a       3  10 GiB  2026-01-02 03:04:05Z    30        0
│  └─ vol@b    4  10 GiB  2026-01-02 03:04:05Z    40        2
└─ vol@c       5  10 GiB  2026-01-02 03:04:05Z    50        0  protected
   └─ vol@d    6  10 GiB  2026-01-02 03:04:05Z    60        0
`);
  const sizes = { group: 'g', lsn: 95, storedBytes: 5 * 2 ** 20, tookUs: 7, devices: [{ id: 1, usedBytes: 4 * 2 ** 20, ownBytes: 4096, sharedBytes: 4 * 2 ** 20 - 4096 }] };
  t.equal(`\n${renderTree([{ group: 'g', devices: [device({ set: 'monday' }), device({ id: 3, name: 'vol@a', parent: 1, protected: true, set: 'monday' })], sizes }])}\n`, `
NAME      ID    SIZE    OWN    SHARED  CREATED                LSN  CLIENTS
g/vol      1  10 GiB  4 KiB  4.00 MiB  2026-01-02 03:04:05Z  4096        0  set @monday
└─ vol@a   3  10 GiB      -         -  2026-01-02 03:04:05Z  4096        0  protected, set @monday
g: 5 MiB in all at LSN 95, shared blocks counted once
`, 'with sizes; a device that is younger than the count has none');
  t.match(renderList([{ group: 'g', devices }]).split('\n').map((line) => line.split(' ')[0]), ['NAME', 'g/other', 'g/vol', 'g/vol@a', 'g/vol@b', 'g/vol@c', 'g/vol@d', 'g/vol@orphan']);
});

t.test('a chain of ten thousand snapshots is no matter', async (t) => {
  const devices = Array.from({ length: 10_000 }, (_, i) => device({ id: i + 1, name: `v@s${i}`, parent: i === 0 ? null : i, creationLsn: i }));
  t.equal(renderTree([{ group: 'g', devices: devices.slice(0, 500) }]).split('\n').length, 501);
  t.equal(renderList([{ group: 'g', devices }]).split('\n').length, 10_001);
});

t.test('durations, bars and tables', async (t) => {
  const durations: readonly [number, string][] = [[0, '0 ms'], [0.0123, '12 ms'], [0.9996, '1.0 s'], [1, '1.0 s'], [59.9, '59 s'], [60, '1 min 0 s'], [3725, '1 h 2 min'], [90_061, '1 d 1 h']];
  for (const [seconds, words] of durations) t.equal(formatDuration(seconds), words);
  t.equal(bar(0, 0, 4), '[----] 0%');
  t.equal(bar(99, 100, 4), '[####] 99%');
  t.equal(bar(500, 100, 4), '[####] 100%');
  t.equal(table(['A', 'LONG'], [['xxx', '1'], ['y', '22']], [1]), 'A    LONG\nxxx     1\ny      22');
  t.match(renderGroup(group({ errors: ['x'] }), COLOURED), '\x1b[1;31m1 PROBLEM\x1b[0m');
});

t.test('cursors and an import are shown with what they keep, and a journal that one of them fills with how to give it up', async (t) => {
  const one = group({
    links: [], cursors: [cursor({ lsn: 700_000, behindBytes: 200_000, retainedBytes: 3 * 2 ** 20 })], import: importState({ full: true }),
    journal: { ...group().journal, stalled: 'the journal is full because cursor tape still needs it from LSN 700000; writers wait' },
  });
  const text = renderGroup(one, PLAIN);
  t.match(text, /cursor {4}tape {2}acknowledged up to LSN 700000, 195\.3 KiB behind; keeps 3 MiB of journal that is otherwise free/);
  t.match(text, /import {4}from alpha, received up to LSN 900000; takes nothing now: the journal of this node is full/);
  t.match(text, /=> let the export of cursor tape go on, or give it up: lockstep journal release g tape/);
  t.notMatch(text, /not replicated/);
});
