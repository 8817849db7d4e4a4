/**
 * Runs compiled test files with tap and says what happened in a few lines: one
 * per file, the details of what failed, and the closing line `N passed, N
 * failed`.
 *
 *   node dist/test/run.js [--jobs N] [--timeout SECONDS] [FILE|DIRECTORY ...]
 *
 * Without a name: every test of the project. A compiled test counts only while
 * its source exists, so what a removed test left in dist/ is not run. tap's own
 * reporters redraw the screen, which a log cannot show, and its exit code
 * depends on coverage settings; this reads its TAP stream instead.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const DIST = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const ROOT = resolve(DIST, '..');

interface Options {
  readonly jobs: number;
  readonly timeoutSeconds: number;
  readonly names: readonly string[];
}

function parseArguments(argv: readonly string[]): Options {
  let jobs = 2;
  let timeoutSeconds = 300;
  const names: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    if (argv[i] === '--jobs') jobs = Number(argv[++i]);
    else if (argv[i] === '--timeout') timeoutSeconds = Number(argv[++i]);
    else if (argv[i].startsWith('-')) throw new Error(`unknown option ${argv[i]}`);
    else names.push(argv[i]);
  }
  if (!(jobs >= 1) || !(timeoutSeconds >= 1)) throw new Error('--jobs and --timeout want a positive number');
  return { jobs, timeoutSeconds, names };
}

/** Compiled test files below `path` (or `path` itself) whose source still exists, sorted. */
function testFiles(path: string): string[] {
  if (!existsSync(path)) return [];
  const candidates = statSync(path).isDirectory()
    ? readdirSync(path, { recursive: true, encoding: 'utf8' }).map((name) => join(path, name))
    : [path];
  return candidates
    .filter((file) => file.endsWith('.test.js'))
    .filter((file) => existsSync(join(ROOT, relative(DIST, file)).replace(/\.js$/, '.ts')))
    .sort();
}

function selectFiles(names: readonly string[]): string[] {
  if (names.length === 0) return [...testFiles(join(DIST, 'test')), ...testFiles(join(DIST, 'src', 'vendor'))];
  const files = names.flatMap((name) => testFiles(resolve(name)));
  return [...new Set(files)];
}

interface Totals {
  passed: number;
  failed: number;
  skipped: number;
}

/**
 * Reads tap's stream. A test point indented by four is one test case (or an
 * assertion outside any case); one at the margin closes a file.
 */
class Report {
  readonly totals: Totals = { passed: 0, failed: 0, skipped: 0 };
  private file: Totals = { passed: 0, failed: 0, skipped: 0 };
  private lines: string[] = [];

  add(line: string): void {
    const point = /^( {4})?(not ok|ok) \d+(?: - (.*))?$/.exec(line);
    if (point === null) {
      this.lines.push(line);
      return;
    }
    const text = point[3] ?? '';
    if (point[1] !== undefined) {
      if (/# (SKIP|TODO)/i.test(text)) this.file.skipped++;
      else if (point[2] === 'ok') this.file.passed++;
      else this.file.failed++;
      this.lines.push(line);
      return;
    }
    this.closeFile(point[2] === 'ok', text);
  }

  /** A file that failed as a whole (it crashed, ran out of time, ran nothing) is one failed case more. */
  private closeFile(ok: boolean, text: string): void {
    const time = /# time=(.*)$/.exec(text)?.[1] ?? '';
    const name = text.replace(/ #.*$/, '');
    const { passed, skipped } = this.file;
    let { failed } = this.file;
    if (!ok && failed === 0) failed = 1;
    if (ok && passed + failed + skipped === 0) failed = 1;
    const counts = `${passed} passed${failed > 0 ? `, ${failed} failed` : ''}${skipped > 0 ? `, ${skipped} skipped` : ''}`;
    console.log(`${failed === 0 ? 'ok  ' : 'FAIL'} ${name}  ${counts}  ${time}`);
    if (failed > 0) console.log(this.lines.map((line) => `    ${line}`).join('\n'));
    this.totals.passed += passed;
    this.totals.failed += failed;
    this.totals.skipped += skipped;
    this.file = { passed: 0, failed: 0, skipped: 0 };
    this.lines = [];
  }
}

async function runTap(files: readonly string[], options: Options): Promise<Report> {
  const report = new Report();
  const environment = { ...process.env };
  delete environment.NODE_OPTIONS;
  const child = spawn(
    join(ROOT, 'node_modules', '.bin', 'tap'),
    [
      'run', '--disable-coverage', '--allow-empty-coverage', '--allow-incomplete-coverage', '--reporter=tap',
      `--jobs=${options.jobs}`, `--timeout=${options.timeoutSeconds}`, ...files.map((file) => relative(ROOT, file)),
    ],
    { cwd: ROOT, env: environment, stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const ended = new Promise<number | null>((done, fail) => {
    child.once('error', fail);
    child.once('close', (code) => done(code));
  });
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => child.kill(signal));
  for await (const line of createInterface({ input: child.stdout })) report.add(line);
  const code = await ended;
  if (code !== 0 && report.totals.failed === 0) {
    console.log(`FAIL tap itself ended with ${String(code ?? child.signalCode)}`);
    report.totals.failed++;
  }
  return report;
}

const options = parseArguments(process.argv.slice(2));
const files = selectFiles(options.names);
if (files.length === 0) {
  console.log(`no test files ${options.names.length > 0 ? `in ${options.names.join(' ')}` : 'are compiled'}`);
  process.exitCode = 1;
} else {
  const started = process.hrtime.bigint();
  const { totals } = await runTap(files, options);
  const seconds = Number((process.hrtime.bigint() - started) / 1_000_000n) / 1000;
  console.log(`${files.length} files in ${seconds.toFixed(0)} s`);
  console.log(`${totals.passed} passed, ${totals.failed} failed${totals.skipped > 0 ? `, ${totals.skipped} skipped` : ''}`);
  process.exitCode = totals.failed === 0 ? 0 : 1;
}
