/** README is true where a machine can tell: keys, commands, options, targets, links, and the files it names. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Streams } from '../src/cli/context.js';
import { runCommandLine } from '../src/cli/program.js';
import { configTable } from '../src/config/help.js';

function findRoot(): string {
  let at = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(at, 'Makefile'))) at = dirname(at);
  return at;
}

const ROOT = findRoot();
const read = (name: string): string => readFileSync(join(ROOT, name), 'utf8');
const README = read('README.md');
const DOCUMENTS = ['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md'];

async function help(...words: string[]): Promise<string> {
  let text = '';
  const streams: Streams = { out: (part) => void (text += part), err: (part) => void (text += part), terminal: false, now: () => 0, env: {}, interrupted: new AbortController().signal };
  const code = await runCommandLine([...words, '--help'], streams);
  if (code !== 0) throw new Error(`lockstep ${words.join(' ')} --help: ${code}: ${text}`);
  return text;
}

/** Names in the list of commands of a help text, without `help`. */
function commandsOf(text: string): string[] {
  const list = text.slice(text.indexOf('\nCommands:\n'));
  return text.includes('\nCommands:\n') ? [...list.matchAll(/^ {2}([a-z]+)(?= )/gm)].map((match) => match[1]).filter((name) => name !== 'help') : [];
}

/** Every command with work of its own: `link drop`, not `link`. */
async function allCommands(): Promise<string[][]> {
  const found: string[][] = [];
  for (const name of commandsOf(await help())) {
    const inner = commandsOf(await help(name));
    found.push(...(inner.length === 0 ? [[name]] : inner.map((one) => [name, one])));
  }
  return found;
}

t.test('the configuration table of README is that of the schema', async (t) => {
  const found = /<!-- configuration:[^\n]*-->\n([\s\S]*?)\n<!-- end of configuration -->/.exec(README);
  t.equal(found?.[1], configTable(), 'paste what configTable() of src/config/help.ts prints');
});

t.test('README names every command, and none that does not exist', async (t) => {
  const commands = (await allCommands()).map((words) => words.join(' '));
  t.ok(commands.includes('create') && commands.includes('link drop') && commands.includes('journal dump'), 'commands are found');
  const section = README.slice(README.indexOf('## The command line at a glance'), README.indexOf('## Configuration'));
  const rows = [...section.matchAll(/^\| `lockstep ([a-z]+(?: [a-z]+)?)/gm)].map((match) => match[1]).filter((name) => name !== 'help');
  t.strictSame([...rows].sort(), [...commands].sort());
});

t.test('every option that the documents use is one of the command', async (t) => {
  const known = new Map<string, string>();
  for (const words of await allCommands()) known.set(words.join(' '), await help(...words));
  const general = await help();
  let checked = 0;
  for (const document of DOCUMENTS) {
    for (const [, line] of read(document).matchAll(/\blockstep ((?:--?[a-z]|[a-z]+ )[^\n`|#]*)/g)) {
      const command = [...known.keys()].find((name) => new RegExp(`(^|\\s)${name}(\\s|$)`).test(line));
      if (command === undefined) continue;
      for (const [option] of line.split(' | ')[0].matchAll(/(?<=\s|^)--[a-z-]+/g)) {
        checked++;
        t.ok(known.get(command)?.includes(option) === true || general.includes(option), `${document}: lockstep ${command} ${option}`);
      }
    }
  }
  const section = README.slice(README.indexOf('## The command line at a glance'), README.indexOf('**Exit codes**'));
  const all = [general, ...known.values()].join('\n');
  for (const [, option] of section.matchAll(/`(--[a-z-]+)/g)) {
    checked++;
    t.ok(all.includes(`${option} `), `README: ${option}`);
  }
  t.ok(checked > 15, 'options are found');
});

t.test('every target of make that the documents name exists', async (t) => {
  const makefile = read('Makefile');
  let checked = 0;
  for (const document of DOCUMENTS) {
    for (const [, target] of read(document).matchAll(/(?:`|^ {4})make ([a-z][a-z-]*)/gm)) {
      checked++;
      t.match(makefile, new RegExp(`^${target}:`, 'm'), `${document}: make ${target}`);
    }
  }
  t.ok(checked > 5, 'targets are found');
});

t.test('every file of the project that the documents name exists', async (t) => {
  let checked = 0;
  for (const document of DOCUMENTS) {
    for (const [, path] of read(document).matchAll(/(?<![\w/.-])((?:src|test|scripts|native)\/[\w./-]*\w)/g)) {
      checked++;
      t.ok(existsSync(join(ROOT, path)), `${document}: ${path}`);
    }
  }
  t.ok(checked > 20, 'paths are found');
});

t.test('every link within the documents leads somewhere', async (t) => {
  const anchors = (text: string): string[] => [...text.matchAll(/^#+ (.*)$/gm)].map(([, title]) => title.toLowerCase().replace(/[^a-z0-9 -]/g, '').replaceAll(' ', '-'));
  for (const document of DOCUMENTS) {
    for (const [, file, anchor] of read(document).matchAll(/\]\((?!https?:)([^)#]*)#?([^)]*)\)/g)) {
      const target = file === '' ? document : file;
      t.ok(existsSync(join(ROOT, target)), `${document}: ${target}`);
      if (anchor !== '') t.ok(anchors(read(target)).includes(anchor), `${document}: ${target}#${anchor}`);
    }
  }
});
