/** Holds the layout, the import table and the file limit of DESIGN §10. */
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

/**
 * What each part may import besides itself. base ← io ← journal, store ← group
 * ← replication, nbd, control ← daemon ← main. The vendored library may be used
 * by those who speak NBD. `config` is schemas and may be read by control and cli.
 */
const MAY_IMPORT: Record<string, readonly string[]> = {
  'base': [],
  'vendor/nbd-protocol-ts': [],
  'io': ['base'],
  'journal': ['base', 'io'],
  'store': ['base', 'io', 'journal'],
  'group': ['base', 'io', 'journal', 'store'],
  'replication': ['base', 'io', 'journal', 'store', 'group'],
  'nbd': ['base', 'io', 'journal', 'store', 'group', 'vendor/nbd-protocol-ts'],
  'control': ['base', 'io', 'journal', 'store', 'group', 'config'],
  'config': ['base'],
  'cli': ['base', 'io', 'config', 'control/schema', 'control/client', 'vendor/nbd-protocol-ts'],
  'daemon': ['base', 'io', 'journal', 'store', 'group', 'replication', 'nbd', 'control', 'config', 'vendor/nbd-protocol-ts'],
  'main': ['base', 'io', 'config', 'control', 'daemon'],
};

/** The part that a file below src/ belongs to: its directory, or its own name at the top. */
function partOf(file: string): string {
  const path = relative('src', file).split(sep);
  if (path[0] === 'vendor') return path.slice(0, 2).join('/');
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

function importsOf(file: string): Import[] {
  const text = readFileSync(join(ROOT, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '');
  return [...text.matchAll(IMPORT)].map((match) => {
    const specifier = match[1] ?? match[2];
    const target = specifier.startsWith('.') ? relative(ROOT, resolve(ROOT, dirname(file), specifier)).replace(/\.js$/, '.ts') : undefined;
    return { from: file, specifier, file: target };
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
  if (target === part || allowed.includes(target)) return undefined;
  const module = relative('src', one.file).replace(/\.ts$/, '').split(sep).join('/');
  if (allowed.includes(module)) return undefined;
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
  t.equal(check('src/cli/a.ts', 'src/control/client.ts'), undefined);
  t.equal(check('src/daemon.ts', 'src/nbd/listener.ts'), undefined);
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
