/** The configuration: what is accepted with which defaults, and what a wrong one is told. */
import { chmodSync, existsSync, mkdirSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { OperatorError } from '../../src/base/errors.js';
import { checkConfig } from '../../src/config/explain.js';
import { EXAMPLE, configHelp, configRows, configTable } from '../../src/config/help.js';
import { loadConfig, parseConfigText } from '../../src/config/load.js';
import type { ConfigFile } from '../../src/config/schema.js';

function accepted(value: unknown): ConfigFile {
  const checked = checkConfig(value);
  if ('problems' in checked) throw new Error(checked.problems.join('\n'));
  return checked.config;
}

function problems(value: unknown): readonly string[] {
  const checked = checkConfig(value);
  return 'problems' in checked ? checked.problems : [];
}

const PEER = { node: 'beta', address: 'tcp:10.0.0.2:10900', secretFile: '/etc/lockstep/secret' };
const BASE = { node: 'alpha', dataDirectory: '/var/lib/lockstep' };
const withGroup = (group: Record<string, unknown>, more: Record<string, unknown> = {}): unknown => ({ ...BASE, groups: [{ name: 'g', role: 'primary', ...group }], ...more });

t.test('the smallest configuration gets every default', async (t) => {
  const config = accepted(EXAMPLE);
  t.strictSame(config.control, { socket: '/run/lockstep/control.sock' });
  t.strictSame(config.nbd.listen, [{ kind: 'unix', path: '/run/lockstep/nbd.sock' }]);
  t.strictSame(config.groups[0].journal, { size: 2 ** 32, segmentSize: 2 ** 26, syncBytes: 2 ** 29, syncMilliseconds: 1000, volatile: false });
  t.strictSame(config.groups[0].store, { mapMemory: 2 ** 28, checkpointBytes: 2 ** 30, checkpointSeconds: 30, freeSpaceWatermark: 2 ** 30 });
  t.equal(config.groups[0].recoverWait, 5);
  t.strictSame(config.dataPath, { spinUs: 100, arena: 2 ** 28, blockCache: 2 ** 29 });
  t.strictSame(config.log, { level: 'info', format: 'auto' });
  t.strictSame(accepted(BASE).groups, []);
  t.strictSame(structuredClone(config), config, 'plain data: it goes to the worker');
});

t.test('a full configuration is taken as it is', async (t) => {
  const config = accepted(withGroup(
    { journal: { size: '1 GiB', segmentSize: 16 * 2 ** 20 }, store: { mapMemory: '128M' }, recoverWait: 0, peers: [PEER] },
    {
      control: { socket: '/tmp/c' }, nbd: { listen: ['unix:/tmp/n', 'tcp:[::1]:10809'] }, link: { listen: 'tcp:host.example:10900' },
      log: { level: 'debug', format: 'json' }, metrics: { listen: 'tcp:127.0.0.1:0' }, dataPath: { spinUs: 0, arena: '64M' },
    },
  ));
  t.strictSame(config.nbd.listen[1], { kind: 'tcp', host: '::1', port: 10809 });
  t.strictSame(config.link.listen, { kind: 'tcp', host: 'host.example', port: 10900 });
  t.strictSame(config.groups[0].peers, [{ ...PEER, address: { kind: 'tcp', host: '10.0.0.2', port: 10900 } }]);
  t.equal(config.groups[0].journal.size, 2 ** 30);
});

/** What is wrong, and every sentence that must come back for it. */
const WRONG: readonly [string, unknown, readonly RegExp[]][] = [
  ['not an object', 7, [/^the configuration must be an object with the keys node, dataDirectory.*, not 7$/]],
  ['a list', [], [/^the configuration must be an object/]],
  ['empty', {}, [/^node is missing; it must be a name/, /^dataDirectory is missing; it must be an absolute path$/]],
  ['several at once', { nod: 'a', dataDirectory: 'x', dataPath: { spinUs: 1.5 } }, [
    /^nod is not a known key; did you mean "node"\?$/, /^node is missing/, /^dataDirectory must be an absolute path, not "x"$/,
    /^dataPath\.spinUs must be a whole number of microseconds, from 0 to 10000, not 1\.5$/,
  ]],
  ['unlike any key', { ...BASE, zzzzzzzz: 1 }, [/^zzzzzzzz is not a known key; known keys here are node, dataDirectory/]],
  ['a deep key', withGroup({ journal: { segmentsize: '1M' } }), [/^groups\[0\]\.journal\.segmentsize is not a known key; did you mean "segmentSize"\?$/]],
  ['a prototype', JSON.parse('{"__proto__":{},"node":"a","dataDirectory":"/d"}'), [/__proto__ is not a known key/]],
  ['a bad name', { ...BASE, node: 'a b' }, [/^node must be a name: 1 to 64 letters.*, not "a b"$/]],
  ['a size in words', withGroup({ journal: { size: 'lots' } }), [/^groups\[0\]\.journal\.size must be a size such as "64M".*, not "lots"$/]],
  ['a size below', withGroup({ journal: { size: '1M' } }), [/from 32 MiB to 16 TiB.*not "1M"/]],
  ['a negative size', withGroup({ store: { mapMemory: -1 } }), [/^groups\[0\]\.store\.mapMemory must be a size/]],
  ['a size of another type', withGroup({ store: { mapMemory: null } }), [/^groups\[0\]\.store\.mapMemory must be a size.*, not null$/]],
  ['an odd size', withGroup({ journal: { segmentSize: 1048577 } }), [/a multiple of 1 MiB, not 1048577/]],
  ['a role', withGroup({ role: 'prim' }), [/^groups\[0\]\.role must be "primary" or "secondary", not "prim"$/]],
  ['a section of another type', { ...BASE, nbd: 'unix:/x' }, [/^nbd must be an object with the keys listen, maxConnections, handshakeSeconds, not "unix:\/x"$/]],
  ['groups of another type', { ...BASE, groups: {} }, [/^groups must be a list of at most 64 groups, not \{\}$/]],
  ['addresses', { ...BASE, nbd: { listen: ['udp:1', 5, 'unix:rel', 'tcp:h', 'tcp:h:99999', `unix:/${'x'.repeat(120)}`] } }, [
    /^nbd\.listen\[0\] must be an address such as/, /^nbd\.listen\[1\] must be an address/, /^nbd\.listen\[2\] must name an absolute path/,
    /^nbd\.listen\[3\] must be "tcp:HOST:PORT"/, /^nbd\.listen\[4\] has port 99999/, /^nbd\.listen\[5\] has a path of 121 bytes/,
  ]],
  ['a Unix link', { ...BASE, link: { listen: 'unix:/x' } }, [/^link\.listen must be "tcp:HOST:PORT", not "unix:\/x"$/]],
  ['a long control path', { ...BASE, control: { socket: `/${'x'.repeat(107)}` } }, [/^control\.socket must be an absolute path of at most 107 bytes/]],
  ['metrics without listen', { ...BASE, metrics: {} }, [/^metrics\.listen is missing/]],
  // across keys
  ['a volatile journal nowhere', withGroup({ journal: { volatile: true } }), [/^groups\[0\]\.journal\.directory is missing; a volatile journal needs a directory of its own on a tmpfs, such as "\/dev\/shm\/lockstep-alpha-g"$/]],
  ['a volatile journal in words', withGroup({ journal: { volatile: 'yes' } }), [/^groups\[0\]\.journal\.volatile must be true or false, not "yes"$/]],
  ['one journal for two', { ...BASE, groups: [{ name: 'g', role: 'primary', journal: { directory: '/j/' } }, { name: 'h', role: 'primary', journal: { directory: '/j' } }] }, [
    /^groups\[0\]\.journal\.directory is that of the journal of groups\[1\]; give each group its own$/, /^groups\[1\]\.journal\.directory is that/,
  ]],
  ["another group's place", { ...BASE, groups: [{ name: 'g', role: 'primary', journal: { directory: '/var/lib/lockstep/groups/h/journal' } }, { name: 'h', role: 'primary' }] }, [
    /^groups\[0\]\.journal\.directory is that of the journal of groups\[1\]/,
  ]],
  ['few segments', withGroup({ journal: { size: '128M', segmentSize: '64M' } }), [/^groups\[0\]\.journal\.size must hold at least 4 segments.*at least 256 MiB, not 128 MiB/]],
  ['a broken segment', withGroup({ journal: { size: '100M', segmentSize: '16M' } }), [/^groups\[0\]\.journal\.size must be a multiple of journal\.segmentSize \(16 MiB\), not 100 MiB$/]],
  ['a group twice', { ...BASE, groups: [{ name: 'g', role: 'primary' }, { name: 'g', role: 'primary' }] }, [/^groups\[1\]\.name is "g", which groups\[0\]\.name has already$/]],
  ['a peer twice', withGroup({ peers: [PEER, PEER] }), [/^groups\[0\]\.peers\[1\]\.node is "beta", which groups\[0\]\.peers\[0\]\.node has already$/]],
  ['itself as a peer', withGroup({ peers: [{ ...PEER, node: 'alpha' }] }), [/^groups\[0\]\.peers\[0\]\.node is this node itself/]],
  ['no address to connect to', withGroup({ peers: [{ node: 'beta', secretFile: '/s' }] }), [/^groups\[0\]\.peers\[0\]\.address is missing; a primary connects/]],
  ['port 0 to connect to', withGroup({ peers: [{ ...PEER, address: 'tcp:h:0' }] }), [/address must name a port other than 0/]],
  ['a secondary that cannot be reached', withGroup({ role: 'secondary', peers: [PEER] }), [/^link\.listen is missing; the secondary group "g"/]],
  ['one socket for two', { ...BASE, control: { socket: '/s' }, nbd: { listen: ['unix:/s'] } }, [/^nbd\.listen\[0\] is the same socket as control\.socket/]],
  ['one port for two', { ...BASE, nbd: { listen: ['tcp:h:5'] }, link: { listen: 'tcp:h:5' } }, [/^nbd\.listen\[0\] is the same address as link\.listen/]],
  ['one address twice', { ...BASE, nbd: { listen: ['tcp:h:5', 'tcp:h:5'] } }, [/^nbd\.listen\[1\] is "tcp:h:5", which nbd\.listen\[0\] has already$/]],
];

t.test('a wrong configuration is told every key and what it must be, all at once', async (t) => {
  for (const [what, value, sentences] of WRONG) {
    const found = problems(value);
    for (const sentence of sentences) t.ok(found.some((one) => sentence.test(one)), `${what}: ${String(sentence)}`, { found });
    t.equal(found.length, sentences.length, `${what}: nothing else`, { found });
  }
});

t.test('a secondary needs its primary as a peer, not its address', async (t) => {
  const config = accepted(withGroup({ role: 'secondary', peers: [{ node: 'beta', secretFile: '/s' }] }, { link: { listen: 'tcp:127.0.0.1:0' } }));
  t.equal(config.groups[0].peers[0].address, undefined);
});

t.test('no JSON value makes the check throw', async (t) => {
  const values = [null, true, 0, '', 'x', [], [[]], {}, { a: {} }, [null], { groups: [{ peers: [{}] }] }];
  const keys = ['node', 'dataDirectory', 'control', 'nbd', 'link', 'log', 'metrics', 'groups', 'dataPath'];
  for (const key of keys) for (const value of values) t.doesNotThrow(() => checkConfig({ ...BASE, [key]: value }), `${key} = ${JSON.stringify(value)}`);
});

t.test('a file that cannot be read, or is not JSON, is a sentence with its place', async (t) => {
  const directory = t.testdir({ 'bad.json': '{\n  "node": "a",\n  oops\n}', dir: {} });
  t.throws(() => loadConfig(join(directory, 'none')), { code: 'config/unreadable', message: /none: there is no such file$/ });
  t.throws(() => loadConfig(join(directory, 'dir')), { code: 'config/unreadable', message: /not a regular file/ });
  t.throws(() => loadConfig(join(directory, 'bad.json', 'x')), { code: 'config/unreadable', message: /not a directory/ });
  t.throws(() => loadConfig(join(directory, 'bad.json')), { code: 'config/syntax', message: /bad\.json is not JSON: .* at line 3, column 3/ });
  t.throws(() => parseConfigText('', 'f'), { code: 'config/syntax' });
  t.throws(() => parseConfigText('{}', 'f'), { code: 'config/invalid', message: /^f has 2 problems:\n {2}- node is missing.*\n {2}- dataDirectory/ });
});

t.test('secrets are read, checked for length, and warned about when others may read them', async (t) => {
  const directory = t.testdir({ good: Buffer.alloc(32, 7), short: 'abc', open: Buffer.alloc(40, 1) });
  mkdirSync(join(directory, 'adir'));
  chmodSync(join(directory, 'good'), 0o600);
  chmodSync(join(directory, 'short'), 0o600);
  chmodSync(join(directory, 'open'), 0o644);
  const file = join(directory, 'c.json');
  const write = (...secrets: string[]): void =>
    writeFileSync(file, JSON.stringify(withGroup({ peers: secrets.map((secret, i) => ({ ...PEER, node: `n${i}`, secretFile: join(directory, secret) })) })));
  write('good');
  const { config, warnings } = loadConfig(file);
  t.strictSame(config.groups[0].peers[0].secret, new Uint8Array(32).fill(7));
  t.strictSame(warnings, []);
  t.strictSame(structuredClone(config.groups[0].peers[0].secret), new Uint8Array(32).fill(7), 'it crosses to the worker');
  write('open');
  t.match(loadConfig(file).warnings, [/open is a secret but others may read it \(mode 0644\); run: chmod 600/]);
  writeFileSync(file, JSON.stringify(withGroup({ role: 'secondary' })));
  t.match(loadConfig(file).warnings, [/group g has no peers: .*lockstep journal import g/], 'a secondary that is fed by others');
  write('short', 'none', 'adir');
  try {
    loadConfig(file);
    t.fail('accepted');
  } catch (error) {
    t.type(error, OperatorError);
    const { message } = error as OperatorError;
    t.match(message, /has 3 problems/);
    t.match(message, /peers\[0\]\.secretFile: .*short has 3 bytes; a secret needs at least 32/);
    t.match(message, /peers\[1\]\.secretFile: cannot read .*none: there is no such file/);
    t.match(message, /peers\[2\]\.secretFile: cannot read .*adir: it is not a regular file/);
  }
});

t.test('a journal directory is looked at: what it lies on, and who else may change it', async (t) => {
  const directory = t.testdir({});
  const file = join(directory, 'c.json');
  const load = (journal: Record<string, unknown>): string => {
    writeFileSync(file, JSON.stringify(withGroup({ journal })));
    try {
      return loadConfig(file).warnings.join('\n');
    } catch (error) {
      t.type(error, OperatorError);
      return (error as OperatorError).message;
    }
  };
  const shm = existsSync('/dev/shm') && statfsSync('/dev/shm').type === 0x01021994;
  if (statfsSync(directory).type !== 0x01021994) {
    t.match(load({ volatile: true, directory: join(directory, 'a', 'b') }), /groups\[0\]\.journal\.directory: .*a\/b is not on a tmpfs .*; or set journal\.volatile to false/);
    t.match(load({ directory: join(directory, 'a') }), '');
  }
  if (shm) {
    t.equal(load({ volatile: true, directory: '/dev/shm/lockstep-test-none/g', size: '32M', segmentSize: '8M' }), '');
    t.match(load({ directory: '/dev/shm/lockstep-test-none/g', size: '32M', segmentSize: '8M' }), /is in memory \(tmpfs\), and nothing in it survives a power loss/);
    t.match(load({ volatile: true, directory: '/dev/shm/lockstep-test-none/g', size: '16T' }), /the file system of .* has .*, less than journal\.size \(16 TiB\)/);
  }
  mkdirSync(join(directory, 'open'));
  chmodSync(join(directory, 'open'), 0o777);
  t.match(load({ directory: join(directory, 'open', 'g') }), /others than this user and root can change .*open/);
  t.match(load({ directory: join(file, 'g') }), /cannot look at/);
});

t.test('a journal is not put among the other files of a group', async (t) => {
  const directory = t.testdir({ data: { groups: { g: { local: {} } } }, elsewhere: {}, 'link-to-local': t.fixture('symlink', 'data/groups/g/local'), linked: { groups: { g: t.fixture('symlink', '../../elsewhere') } } });
  const file = join(directory, 'c.json');
  const load = (where: string, data = 'data'): string => {
    writeFileSync(file, JSON.stringify(withGroup({ journal: { directory: join(directory, where), size: '32M', segmentSize: '8M' } }, { dataDirectory: join(directory, data) })));
    try {
      loadConfig(file);
      return '';
    } catch (error) {
      t.type(error, OperatorError);
      return (error as OperatorError).message;
    }
  };
  const amid = /groups\[0\]\.journal\.directory: .* is inside of .*\/groups.*, where groups keep other files, .*: leave it out, and the journal lies in .*\/groups\/g\/journal, or use a directory outside of .*/;
  for (const where of ['data/groups/g/local', 'data/groups/g/local/', 'data/groups/g/layers', 'data/groups/g/none/yet', 'data/groups/g', 'data/groups', 'data/groups/h/local', 'data/groups/g/journal/below', 'link-to-local', 'link-to-local/below']) {
    t.match(load(where), amid, where);
  }
  t.match(load('elsewhere/local', 'linked'), amid, "the group's directory is a link");
  for (const where of ['data/groups/g/journal', 'data/groups/h/journal', 'data/groups-of-journals/g', 'elsewhere', 'none/yet']) t.notMatch(load(where), /is inside of/, where);
  t.notMatch(load('elsewhere/journal', 'linked'), /is inside of/);
});

t.test('the help names every key with its default, and its example is valid', async (t) => {
  const rows = configRows();
  const keys = rows.map((row) => row.key);
  for (const key of ['node', 'control.socket', 'nbd.listen', 'groups[].journal.segmentSize', 'groups[].peers[].secretFile', 'dataPath.arena']) t.ok(keys.includes(key), key);
  for (const row of rows) t.ok(row.must !== '' && row.description !== '', `${row.key} has its words`);
  const fallback = (key: string): string | undefined => rows.find((row) => row.key === key)?.fallback;
  t.equal(fallback('node'), 'required');
  t.equal(fallback('metrics.listen'), 'required with metrics');
  t.equal(fallback('link.listen'), 'optional');
  t.equal(fallback('groups[].journal.size'), '4 GiB');
  t.match(configHelp(), JSON.stringify(EXAMPLE, null, 2));
  t.equal(configTable().split('\n').length, rows.length + 2);
});
