/** The options of `make bench`. */
import { parseArgs } from 'node:util';

export const SUITES = ['rows', 'snapshots', 'marker', 'metadata', 'tools', 'operations', 'churn', 'many'] as const;
export type Suite = (typeof SUITES)[number];

export interface BenchOptions {
  readonly suites: readonly Suite[];
  readonly rounds: number;
  readonly seconds: number;
  readonly rows: readonly string[] | undefined;
  readonly servers: readonly string[] | undefined;
  readonly transport: 'unix' | 'tcp';
  readonly volumeBytes: number;
  /** Of the operations, those whose names have this in them. */
  readonly only: string;
  /** Below 1: a trial of operations, churn or many, whose figures do not count. */
  readonly scale: number;
  /** Temporary, on the disk that is measured. */
  readonly directory: string;
  readonly jsonFile: string | undefined;
  /** Tells a waiting person what goes on; on stderr. */
  readonly say: (text: string) => void;
}

export const HELP = `usage: make bench ARGS="..."
  --suite NAMES     of ${SUITES.join(', ')} or all (default rows)
  --rounds N        interleaved rounds (default 7)
  --seconds S       per row, server and round (default 2)
  --rows NAMES      of the suite rows, e.g. W1,R1 (default all)
  --servers NAMES   e.g. lockstep,nbdkit,null (default all)
  --transport T     unix or tcp (default unix)
  --mebibytes N     size of the volume (default 512)
  --only TEXT       of the suite operations: those with TEXT in their names
  --scale F         below 1: a small trial of operations, churn (rounds of --seconds) or many; the figures do not count
  --directory DIR   where servers keep their data (default the system's temporary directory)
  --json FILE       all figures
  --strict          exit code 1 when a floor is missed; operations, churn and many always end so

A round of churn has at least 30 s, and writes some GiB.`;

function positive(name: string, text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${name} wants a positive number, not ${text}`);
  return value;
}

function list(text: string | undefined): string[] | undefined {
  return text === undefined ? undefined : text.split(',').map((one) => one.trim()).filter((one) => one !== '');
}

export interface Parsed {
  readonly options: Omit<BenchOptions, 'directory'>;
  readonly parentDirectory: string | undefined;
  readonly help: boolean;
  readonly strict: boolean;
}

export function parseOptions(argv: readonly string[]): Parsed {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      suite: { type: 'string', default: 'rows' }, rounds: { type: 'string', default: '7' }, seconds: { type: 'string', default: '2' },
      rows: { type: 'string' }, servers: { type: 'string' }, transport: { type: 'string', default: 'unix' }, mebibytes: { type: 'string', default: '512' },
      directory: { type: 'string' }, json: { type: 'string' }, scale: { type: 'string', default: '1' }, only: { type: 'string', default: '' }, strict: { type: 'boolean', default: false }, help: { type: 'boolean', default: false },
    },
  });
  const wanted = values.suite === 'all' ? [...SUITES] : (list(values.suite) ?? []);
  const suites = SUITES.filter((suite) => wanted.includes(suite));
  if (suites.length !== wanted.length) throw new Error(`--suite must be some of ${SUITES.join(', ')}, not ${values.suite}`);
  if (values.transport !== 'unix' && values.transport !== 'tcp') throw new Error(`--transport must be unix or tcp, not ${values.transport}`);
  const started = performance.now();
  return {
    help: values.help,
    strict: values.strict,
    parentDirectory: values.directory,
    options: {
      suites, rounds: Math.round(positive('rounds', values.rounds)), seconds: positive('seconds', values.seconds),
      rows: list(values.rows), servers: list(values.servers), transport: values.transport,
      volumeBytes: Math.round(positive('mebibytes', values.mebibytes)) * 2 ** 20, scale: Math.min(1, positive('scale', values.scale)), only: values.only, jsonFile: values.json,
      say: (text) => void process.stderr.write(`[${((performance.now() - started) / 1000).toFixed(0).padStart(4)} s] ${text}\n`),
    },
  };
}
