/**
 * Holds the layout, the import table and the file limit of DESIGN §10, that no two
 * files import each other, that nothing is exported for nobody, and that documents and
 * comments name files that are there.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

/** The checkout: the nearest directory above this file that has the package.json of the project. */
function findRoot(): string {
  let at = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(at, 'Makefile'))) {
    const up = dirname(at);
    if (up === at) throw new Error('no Makefile above this test');
    at = up;
  }
  return at;
}

const ROOT = findRoot();
const LINE_LIMIT = 500;

function filesBelow(directory: string, endings: RegExp): string[] {
  if (!existsSync(join(ROOT, directory))) return [];
  return readdirSync(join(ROOT, directory), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)))
    .filter((file) => !file.split(sep).some((part) => ['node_modules', 'build', 'dist', '.tap'].includes(part)))
    .filter((file) => endings.test(file))
    .sort();
}

const ALL_SOURCES = ['src', 'test', 'scripts'].flatMap((part) => filesBelow(part, /\.ts$/));

/**
 * What each part may import besides itself. base ← io ← journal, store ← group
 * ← replication, nbd, control ← daemon ← main. The vendored library may be used
 * by those who speak NBD. `config` is schemas and may be read by cli. A row may name
 * a directory, which means all below it, or one file.
 */
const MAY_IMPORT: Record<string, readonly string[]> = {
  'base': [],
  'vendor/nbd-protocol-ts': [],
  'io': ['base'],
  'journal': ['base', 'io'],
  'store/map': ['base'],
  'store': ['base', 'io', 'journal', 'store/map'],
  'store/walk': ['base', 'io', 'journal', 'store'],
  'group/tree': ['base', 'journal'],
  'group/local': ['base', 'io', 'journal', 'store', 'group/tree'],
  'group/content': ['base', 'io', 'journal', 'store', 'group/tree', 'group/local'],
  'group/requests': ['base', 'io', 'journal', 'store', 'group/tree', 'group/local', 'group/content'],
  'group/operations': ['base', 'io', 'journal', 'store', 'group/tree', 'group/local', 'group/content', 'group/requests'],
  'group': ['base', 'io', 'journal', 'store', 'group'],
  'replication': ['base', 'io', 'journal', 'group/replica', 'group/tree/epochs'],
  'replication/carry': ['base', 'io', 'journal', 'group/replica', 'group/tree/epochs', 'replication'],
  'nbd': ['base', 'io', 'group/requests/service', 'group/requests/requests', 'vendor/nbd-protocol-ts'],
  'control': ['base'],
  'config': ['base'],
  'cli': ['base', 'io', 'config', 'control/schema', 'control/client', 'vendor/nbd-protocol-ts'],
  'daemon': ['base', 'io', 'journal', 'store', 'group', 'replication', 'nbd', 'control', 'config', 'vendor/nbd-protocol-ts'],
  'main': ['base', 'io', 'config', 'control', 'daemon'],
};

/** The part that a file below src/ belongs to: its directory, or its own name at the top. */
function partOf(file: string): string {
  const path = relative('src', file).split(sep);
  if (path[0] === 'vendor' || (['store', 'group', 'replication'].includes(path[0]) && path.length > 2)) return path.slice(0, 2).join('/');
  return path.length === 1 ? path[0].replace(/\.(ts|js)$/, '') : path[0];
}

const IMPORT = /(?:^|[\s;])(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]|\bimport\s*\(?\s*['"]([^'"]+)['"]/g;

interface Import {
  readonly from: string;
  /** As written. */
  readonly specifier: string;
  /** The source file it names, relative to the root; undefined for packages. */
  readonly file: string | undefined;
}

/** The source file, relative to the root, that a relative specifier in `file` names. */
function targetOf(file: string, specifier: string): string {
  return relative(ROOT, resolve(ROOT, dirname(file), specifier)).replace(/\.js$/, '.ts');
}

function importsOf(file: string): Import[] {
  const text = readFileSync(join(ROOT, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '');
  return [...text.matchAll(IMPORT)].map((match) => {
    const specifier = match[1] ?? match[2];
    return { from: file, specifier, file: specifier.startsWith('.') ? targetOf(file, specifier) : undefined };
  });
}

function violation(one: Import): string | undefined {
  const part = partOf(one.from);
  const allowed = MAY_IMPORT[part];
  if (allowed === undefined) return `${one.from}: "${part}" has no row in the import table`;
  if (one.file === undefined) {
    if (part === 'vendor/nbd-protocol-ts' && !one.specifier.startsWith('node:') && !/\/test\//.test(one.from)) {
      return `${one.from} imports the package ${one.specifier}; the vendored library has no dependencies`;
    }
    return undefined;
  }
  if (!one.file.startsWith(`src${sep}`)) return `${one.from} imports ${one.specifier}, which is outside of src`;
  const target = partOf(one.file);
  const module = relative('src', one.file).replace(/\.ts$/, '').split(sep).join('/');
  if (target === part || allowed.some((name) => module === name || module.startsWith(`${name}/`))) return undefined;
  return `${one.from} imports ${one.specifier}: ${part} may not know ${target}`;
}

t.test('src follows the import table of DESIGN §10', async (t) => {
  const files = filesBelow('src', /\.ts$/);
  t.ok(files.length > 0, 'there are sources');
  const imports = files.flatMap(importsOf);
  t.ok(imports.length > 0, 'imports are found');
  t.strictSame(imports.map(violation).filter((found) => found !== undefined), []);
});

t.test('the import check sees forbidden imports', async (t) => {
  const check = (from: string, file: string): string | undefined => violation({ from, specifier: './x.js', file });
  t.match(check('src/base/a.ts', 'src/io/b.ts'), /may not know io/);
  t.match(check('src/nbd/a.ts', 'src/replication/b.ts'), /may not know replication/);
  t.match(check('src/cli/a.ts', 'src/control/server.ts'), /may not know control/);
  t.match(check('src/vendor/nbd-protocol-ts/a.ts', 'src/base/b.ts'), /may not know base/);
  t.match(check('src/io/a.ts', 'test/b.ts'), /outside of src/);
  t.match(check('src/fresh/a.ts', 'src/base/b.ts'), /no row/);
  t.match(check('src/store/map/a.ts', 'src/io/b.ts'), /may not know io/);
  t.match(check('src/store/a.ts', 'src/store/walk/b.ts'), /may not know store\/walk/);
  t.match(check('src/group/tree/a.ts', 'src/group/b.ts'), /may not know group/);
  t.match(check('src/group/content/a.ts', 'src/group/requests/b.ts'), /may not know group\/requests/);
  t.match(check('src/replication/a.ts', 'src/group/group.ts'), /may not know group/);
  t.equal(check('src/group/a.ts', 'src/group/requests/b.ts'), undefined);
  t.equal(check('src/replication/a.ts', 'src/group/replica.ts'), undefined);
  t.equal(check('src/cli/a.ts', 'src/control/client.ts'), undefined);
  t.equal(check('src/daemon.ts', 'src/nbd/listener.ts'), undefined);
});

/** One cycle of imports among these, as the files along it; undefined when there is none. */
function cycleOf(imports: readonly Import[]): string[] | undefined {
  const targets = new Map<string, string[]>();
  for (const { from, file } of imports) if (file !== undefined) targets.set(from, [...(targets.get(from) ?? []), file]);
  const done = new Set<string>();
  const path: string[] = [];
  const visit = (file: string): string[] | undefined => {
    if (done.has(file)) return undefined;
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file];
    path.push(file);
    for (const target of targets.get(file) ?? []) {
      const found = visit(target);
      if (found !== undefined) return found;
    }
    path.pop();
    done.add(file);
    return undefined;
  };
  for (const file of targets.keys()) {
    const found = visit(file);
    if (found !== undefined) return found;
  }
  return undefined;
}

t.test('no file imports, of types too, what imports it', async (t) => {
  t.equal(cycleOf(ALL_SOURCES.flatMap(importsOf)), undefined);
  const graph = (...edges: string[]): Import[] => edges.map((edge) => ({ from: edge[0], file: edge[1], specifier: '' }));
  t.equal(cycleOf(graph('ab', 'ac', 'bc')), undefined);
  t.strictSame(cycleOf(graph('ab', 'bc', 'cb')), ['b', 'c', 'b']);
});

const NAMED = /(?:import|export)\s+(?:type\s+)?\{([^}]*)\}\s+from\s+['"](\.[^'"]+)['"]/g;
const WHOLE = /(?:import|export)\s*\*[^'"]*from\s+['"](\.[^'"]+)['"]|\bimport\(\s*['"](\.[^'"]+)['"]/g;
const EXPORTED = /^export (?:abstract )?(?:async )?(?:const|let|function\*?|class|enum) (\w+)/gm;

/** What is exported from `exporters` as a value and named by no other file. (A type may stand in the signature of what is exported.) */
function unusedExports(exporters: readonly string[], users: readonly string[], textOf: (file: string) => string): string[] {
  const used = new Set<string>();
  for (const file of users) {
    const text = textOf(file);
    for (const [, names, specifier] of text.matchAll(NAMED)) {
      for (const name of names.split(',')) used.add(`${targetOf(file, specifier)} ${name.trim().replace(/^type /, '').replace(/ as .*/, '')}`);
    }
    for (const [, all, late] of text.matchAll(WHOLE)) used.add(`${targetOf(file, all ?? late)} *`);
  }
  return exporters.flatMap((file) => [...textOf(file).matchAll(EXPORTED)]
    .map(([, name]) => `${file} ${name}`)
    .filter((one) => !used.has(one) && !used.has(`${file} *`)));
}

t.test('what src exports is used by another file', async (t) => {
  const sources = filesBelow('src', /\.ts$/).filter((file) => !file.startsWith(join('src', 'vendor')));
  t.strictSame(unusedExports(sources, ALL_SOURCES, (file) => readFileSync(join(ROOT, file), 'utf8')), []);
  const texts: Record<string, string> = {
    'a.ts': 'export const one = 1;\nexport function two() {}\nexport class Three {}\n',
    'b.ts': "import { one, type Three } from './a.js';\nexport const four = one;\n",
    'c.ts': "import * as b from './b.js';\n",
  };
  t.strictSame(unusedExports(['a.ts', 'b.ts'], ['b.ts', 'c.ts'], (file) => texts[file]), ['a.ts two']);
});

t.test('the files that documents and comments name are there', async (t) => {
  const files = ALL_SOURCES.map((file) => file.split(sep).join('/'));
  const there = (name: string): boolean => files.some((file) => file === name || file.endsWith(`/${name}`));
  const missing = (file: string): string[] => {
    const text = readFileSync(join(ROOT, file), 'utf8');
    const words = file.endsWith('.md') ? text : [...text.matchAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm)].join('\n');
    return [...words.matchAll(/(?<![\w.*/-])[a-z][\w/-]*\.(?:test\.)?ts\b/g)].map(([name]) => name).filter((name) => !there(name)).map((name) => `${file}: ${name}`);
  };
  const documents = ['ARCHITECTURE.md', 'README.md', ...files.filter((file) => !file.startsWith('src/vendor/'))];
  t.strictSame(documents.flatMap(missing), []);
  t.ok(there('group/group.ts') && !there('roup.ts') && !there('group/tree.ts'), 'a name is the end of a path');
});

t.test(`no file is over ${LINE_LIMIT} lines`, async (t) => {
  const files = ['src', 'native', 'scripts', 'test'].flatMap((part) => filesBelow(part, /\.(ts|mts|js|mjs|cc|c|h|sh|py)$|\/[a-z-]+$/));
  t.ok(files.length > 10, 'files are found');
  const long = files
    .map((file) => ({ file, lines: readFileSync(join(ROOT, file), 'utf8').split('\n').length - 1 }))
    .filter(({ lines }) => lines > LINE_LIMIT);
  t.strictSame(long, []);
});

t.test('the top level holds what DESIGN §10 lists', async (t) => {
  const expected = new Set([
    'package.json', 'package-lock.json', 'tsconfig.json', 'Makefile', 'LICENSE', 'README.md', 'ARCHITECTURE.md', 'CHANGELOG.md',
    'src', 'native', 'scripts', 'test',
  ]);
  const built = /^(node_modules|dist|dist-.*)$/;
  const surprising = readdirSync(ROOT).filter((name) => !name.startsWith('.') && !built.test(name) && !expected.has(name));
  t.strictSame(surprising, []);
});
