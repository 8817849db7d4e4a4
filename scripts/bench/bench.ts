/**
 * `make bench`: figures of Lockstep and, in the same run on the same disk, of
 * the NBD servers that Debian ships. Leaves nothing behind, also on Ctrl-C.
 */
import { writeFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import { makeTempDirectory, removeTempDirectory } from '../../test/harness/temp.js';
import { HELP, parseOptions, type BenchOptions, type Suite } from './options.js';
import { runChurn } from './suite-churn.js';
import { runMany } from './suite-many.js';
import { runMarker } from './suite-marker.js';
import { runMetadata } from './suite-metadata.js';
import { runOperations } from './suite-operations.js';
import { runRows } from './suite-rows.js';
import { runSnapshots } from './suite-snapshots.js';
import { runTools } from './suite-tools.js';

interface SuiteResult {
  /** Floors that were missed, a sentence each. */
  readonly missed: readonly string[];
}

const RUNNERS: Record<Suite, (options: BenchOptions) => Promise<SuiteResult>> = {
  rows: runRows, snapshots: runSnapshots, marker: runMarker, metadata: runMetadata, tools: runTools,
  operations: runOperations, churn: runChurn, many: runMany,
};

/** Whose limits are promises about this program alone, so that other work on the machine is no excuse. */
const ALWAYS_STRICT: readonly Suite[] = ['operations', 'churn', 'many'];

async function main(): Promise<number> {
  const parsed = parseOptions(process.argv.slice(2));
  if (parsed.help) {
    console.log(HELP);
    return 0;
  }
  if (parsed.parentDirectory !== undefined) process.env.LOCKSTEP_TMPDIR = parsed.parentDirectory;
  const directory = makeTempDirectory('bench');
  const options: BenchOptions = { ...parsed.options, directory };
  const missed: string[] = [];
  let { strict } = parsed;
  const results: Record<string, unknown> = { node: process.version, processor: cpus()[0]?.model, cores: cpus().length, load: loadavg(), options: parsed.options };
  for (const suite of options.suites) {
    const result = await RUNNERS[suite](options);
    results[suite] = result;
    missed.push(...result.missed);
    strict ||= result.missed.length > 0 && ALWAYS_STRICT.includes(suite);
  }
  if (options.jsonFile !== undefined) writeFileSync(options.jsonFile, `${JSON.stringify(results)}\n`);
  removeTempDirectory(directory);
  console.log(missed.length === 0 ? '\nno floor missed' : `\nfloors missed:\n${missed.map((one) => `  ${one}`).join('\n')}`);
  return missed.length > 0 && strict ? 1 : 0;
}

// children and the temporary directory go when the process exits, so a signal must become an exit
for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) process.once(signal, () => process.exit(code));

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? `bench: ${error.message}` : error);
  return 1;
});
if (process.exitCode !== 0) process.exit();
