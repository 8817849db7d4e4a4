/** Names, addresses, suggestions, log entries: what people write and read. */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { formatAddress, parseAddress } from '../../src/base/address.js';
import { OperatorError } from '../../src/base/errors.js';
import { formatEntry } from '../../src/base/log-output.js';
import type { LogEntry } from '../../src/base/log.js';
import { SinkLog, errorFields, forward, silentLog } from '../../src/base/log.js';
import { isName, parseDeviceName, parseExportName } from '../../src/base/names.js';
import { nearest } from '../../src/base/nearest.js';
import { VERSION } from '../../src/base/version.js';

t.test('the version is that of package.json', async (t) => {
  let at = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    try {
      const found = JSON.parse(readFileSync(join(at, 'package.json'), 'utf8')) as { name: string; version: string };
      if (found.name === 'lockstep') {
        t.equal(VERSION, found.version);
        return;
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
    at = dirname(at);
  }
});

t.test('names follow one rule', async (t) => {
  for (const good of ['a', 'A9', 'vol-1.img_2', 'x'.repeat(64), '0']) t.ok(isName(good), good);
  for (const bad of ['', '-a', '.a', '_a', 'a b', 'a/b', 'a@b', 'ä', 'x'.repeat(65), 'a\n', 'a\0']) t.notOk(isName(bad), JSON.stringify(bad));
  t.strictSame(parseDeviceName('v'), { volume: 'v', snapshot: undefined, local: undefined });
  t.strictSame(parseDeviceName('v@s'), { volume: 'v', snapshot: 's', local: undefined });
  t.strictSame(parseDeviceName('v~n'), { volume: 'v', snapshot: undefined, local: 'n' });
  for (const bad of ['', '@', 'v@', '@s', 'v@s@t', 'v/w', '~', 'v~', '~n', 'v~n@s', 'v@s~n']) t.equal(parseDeviceName(bad), undefined, bad);
  t.strictSame(parseExportName('g'), { group: 'g', device: undefined });
  t.strictSame(parseExportName('g/v@s'), { group: 'g', device: 'v@s' });
  for (const bad of ['', '/', 'g/', '/v', 'g/v/w', 'g@s']) t.equal(parseExportName(bad), undefined, bad);
});

t.test('addresses round-trip, and bad ones say what is wrong', async (t) => {
  for (const words of ['unix:/a/b', 'tcp:h:1', 'tcp:127.0.0.1:65535', 'tcp:[::1]:0', 'tcp:host-1.example:10809']) {
    const parsed = parseAddress(words);
    t.not(typeof parsed, 'string', words);
    if (typeof parsed !== 'string') t.equal(formatAddress(parsed), words);
  }
  const wrong: readonly [string, RegExp][] = [
    ['', /such as/], ['/a', /such as/], ['unix:', /absolute/], ['unix:a', /absolute/], [`unix:/${'é'.repeat(60)}`, /121 bytes/], ['unix:/a\0b', /zero byte/],
    ['tcp:', /HOST:PORT/], ['tcp:h', /HOST:PORT/], ['tcp:h:', /HOST:PORT/], ['tcp::1', /HOST:PORT/], ['tcp:h:-1', /HOST:PORT/], ['tcp:h:65536', /up to 65535/],
    ['tcp:::1:5', /HOST:PORT/], ['tcp:a b:5', /HOST:PORT/],
  ];
  for (const [words, sentence] of wrong) t.match(parseAddress(words), sentence, words);
});

t.test('the nearest word is suggested, but not a far one', async (t) => {
  const words = ['journal', 'segmentSize', 'size', 'peers'];
  t.equal(nearest('segmentsize', words), 'segmentSize');
  t.equal(nearest('sise', words), 'size');
  t.equal(nearest('jurnal', words), 'journal');
  t.equal(nearest('completely', words), undefined);
  t.equal(nearest('x'.repeat(10_000), words), undefined);
});

t.test('a log hands entries at or above its level to the sink, with bound fields', async (t) => {
  const seen: LogEntry[] = [];
  const log = new SinkLog((entry) => seen.push(entry), 'info').child({ group: 'g' });
  log.debug('no');
  log.info('one');
  log.child({ peer: 'beta' }).warn('two', { lsn: 5 });
  log.error('three', { group: 'h' });
  t.strictSame(seen, [
    { level: 'info', message: 'one', fields: { group: 'g' } },
    { level: 'warn', message: 'two', fields: { group: 'g', peer: 'beta', lsn: 5 } },
    { level: 'error', message: 'three', fields: { group: 'h' } },
  ]);
  const second: LogEntry[] = [];
  for (const entry of seen) forward(structuredClone(entry), new SinkLog((one) => second.push(one)));
  t.strictSame(second, seen, 'an entry crosses threads and is the same');
  t.equal(silentLog.child({}), silentLog);
});

t.test('text entries are one line, and an error keeps its stack only when it is a bug', async (t) => {
  const at = new Date(Date.UTC(2026, 0, 2, 3, 4, 5, 678));
  t.equal(formatEntry({ level: 'warn', message: 'link down', fields: { peer: 'beta', why: 'no route', n: 5 } }, at), '03:04:05.678 warn  link down  peer=beta  why="no route"  n=5\n');
  t.strictSame(errorFields(new OperatorError('a/b', 'm')), { error: 'm', code: 'a/b' });
  t.match(errorFields(new TypeError('m')), { error: 'm', stack: /TypeError: m/ });
  t.strictSame(errorFields('odd'), { error: 'odd' });
});
