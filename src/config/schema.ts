/**
 * The configuration file of `lockstepd`: its keys, limits and defaults, and
 * the types that the rest of the daemon is built from. This is the one place
 * that states a default; `lockstepd --config-help` prints it.
 *
 * Owns: what a configuration may say. Must not know: files, how errors are
 * worded (explain.ts), what is built from it (daemon.ts).
 *
 * Each leaf carries `meta({ must, description })`: `must` completes the
 * sentence "group.journal.size must be …", `description` is the help.
 */

import { z } from 'zod';
import { ADDRESS_RULE, MAX_SOCKET_PATH_BYTES, parseAddress } from '../base/address.js';
import { NAME_PATTERN, NAME_RULE } from '../base/names.js';
import { GIB, KIB, MIB, TIB, formatSize, parseSize } from '../base/units.js';

// ---- kinds of values --------------------------------------------------------------------------------

function name(description: string) {
  return z.string().regex(NAME_PATTERN).meta({ must: `a name: ${NAME_RULE}`, description });
}

/** Bytes, as a number or in words such as "64M". */
function size(limits: { min: number; max: number; multiple?: number }, description: string) {
  const multiple = limits.multiple ?? 1;
  const must =
    `a size such as "64M" or a number of bytes, from ${formatSize(limits.min)} to ${formatSize(limits.max)}` +
    (multiple === 1 ? '' : `, a multiple of ${formatSize(multiple)}`);
  return z
    .union([z.number(), z.string()])
    .transform((value, context) => {
      const bytes = typeof value === 'number' ? value : parseSize(value);
      if (bytes !== undefined && Number.isSafeInteger(bytes) && bytes >= limits.min && bytes <= limits.max && bytes % multiple === 0) return bytes;
      context.addIssue({ code: 'invalid_value', values: [] });
      return z.NEVER;
    })
    .meta({ must, description });
}

function integer(min: number, max: number, unit: string, description: string) {
  return z.number().int().min(min).max(max).meta({ must: `a whole number of ${unit}, from ${min} to ${max}`, description });
}

function seconds(min: number, max: number, description: string) {
  return z.number().min(min).max(max).meta({ must: `a number of seconds, from ${min} to ${max}`, description });
}

function flag(description: string) {
  return z.boolean().meta({ must: 'true or false', description });
}

function absolutePath(description: string) {
  return z
    .string()
    .refine((path) => path.startsWith('/') && !path.includes('\0'))
    .meta({ must: 'an absolute path', description });
}

function address(description: string) {
  return z
    .string()
    .transform((words, context) => {
      const parsed = parseAddress(words);
      if (typeof parsed !== 'string') return parsed;
      context.addIssue({ code: 'custom', message: parsed });
      return z.NEVER;
    })
    .meta({ must: ADDRESS_RULE, description });
}

function tcpAddress(description: string) {
  return z
    .string()
    .transform((words, context) => {
      const parsed = parseAddress(words);
      if (typeof parsed !== 'string' && parsed.kind === 'tcp') return parsed;
      context.addIssue({ code: 'custom', message: typeof parsed === 'string' && words.startsWith('tcp:') ? parsed : 'must be "tcp:HOST:PORT"' });
      return z.NEVER;
    })
    .meta({ must: 'an address such as "tcp:127.0.0.1:10900"', description });
}

// ---- sections ---------------------------------------------------------------------------------------

const DEFAULT_CONTROL_SOCKET = '/run/lockstep/control.sock';
const DEFAULT_NBD_LISTEN = 'unix:/run/lockstep/nbd.sock';
/** A journal needs one segment being written, one being filled next, and some to hold what is not destaged. */
export const MIN_SEGMENTS = 4;

const Control = z.strictObject({
  socket: z
    .string()
    .refine((path) => path.startsWith('/') && Buffer.byteLength(path) <= MAX_SOCKET_PATH_BYTES && !path.includes('\0'))
    .meta({ must: `an absolute path of at most ${MAX_SOCKET_PATH_BYTES} bytes`, description: 'Unix socket of the control API (HTTP + JSON); made with mode 0600' })
    .default(DEFAULT_CONTROL_SOCKET),
});

const Nbd = z.strictObject({
  listen: z
    .array(address('where NBD clients connect'))
    .max(16)
    .meta({ must: `a list of at most 16 addresses`, description: 'where NBD clients connect; an empty list serves none' })
    .prefault([DEFAULT_NBD_LISTEN]),
  maxConnections: integer(1, 4096, 'connections', 'more are closed as soon as they are accepted').default(256),
  handshakeSeconds: seconds(1, 600, 'a client that has not chosen an export by then is disconnected').default(10),
});

const Link = z.strictObject({
  listen: tcpAddress('where primaries connect to this node; needed by every secondary group that has peers').optional(),
  maxConnections: integer(1, 1024, 'connections', 'more are closed as soon as they are accepted').default(64),
  handshakeSeconds: seconds(1, 600, 'a peer that has not authenticated by then is disconnected').default(10),
});

const LogSection = z.strictObject({
  level: z
    .enum(['debug', 'info', 'warn', 'error'])
    .meta({ must: '"debug", "info", "warn" or "error"', description: 'least severe entries that are written' })
    .default('info'),
  format: z
    .enum(['auto', 'json', 'text'])
    .meta({ must: '"auto", "json" or "text"', description: 'to standard error; auto writes text to a terminal and JSON lines elsewhere' })
    .default('auto'),
});

const Metrics = z.strictObject({
  listen: tcpAddress('serves GET /metrics, and nothing else, to Prometheus; the control socket serves it in any case'),
});

const Journal = z.strictObject({
  size: size({ min: 32 * MIB, max: 16 * TIB, multiple: MIB }, 'disk space of the journal; what a secondary may lag, and what may wait to be destaged; segments are made as they are needed').default(4 * GIB),
  segmentSize: size({ min: 8 * MIB, max: 4 * GIB, multiple: MIB }, `size of one segment file; the journal has at least ${MIN_SEGMENTS}`).default(64 * MIB),
  syncBytes: size({ min: 64 * KIB, max: 16 * GIB }, 'the journal is made durable at the latest after this many appended bytes').default(512 * MIB),
  syncMilliseconds: integer(1, 60_000, 'milliseconds', 'and at the latest after this time').default(1000),
  directory: absolutePath('where the journal lies, for this group alone; without it in the data directory; made if it is missing').optional(),
  volatile: flag('the journal is in memory (journal.directory on a tmpfs): it survives the daemon, not the power; FLUSH waits for the data to be in place; read "Volatile journal" below first').default(false),
});

const Store = z.strictObject({
  mapMemory: size({ min: 16 * MIB, max: TIB }, 'limit of the memory of maps and pending tables; cold map nodes are paged').default(256 * MIB),
  checkpointBytes: size({ min: MIB, max: 16 * TIB }, 'a checkpoint at the latest after this much journal').default(GIB),
  checkpointSeconds: seconds(1, 86_400, 'and at the latest after this time of activity').default(30),
  freeSpaceWatermark: size({ min: 0, max: 1024 * TIB }, 'new writes answer ENOSPC rather than leave less free space than this').default(GIB),
});

const Peer = z.strictObject({
  node: name('name of the peer, as its own configuration has it'),
  address: tcpAddress('where the peer listens for links; a primary needs it').optional(),
  secretFile: absolutePath('file of at least 32 bytes, the same on both nodes and readable by nobody else: authenticates the link'),
});

const Group = z.strictObject({
  name: name('name of the group, equal on all nodes'),
  role: z
    .enum(['primary', 'secondary'])
    .meta({ must: '"primary" or "secondary"', description: 'role when the group is first started; afterwards `lockstep promote` changes it' }),
  journal: Journal.prefault({}),
  store: Store.prefault({}),
  recoverWait: seconds(0, 86_400, 'how long a primary that was not stopped cleanly waits for its peers before it serves in a new epoch').default(5),
  peers: z.array(Peer).max(16).meta({ must: 'a list of at most 16 peers', description: 'the other nodes of the group' }).default([]),
});

const DataPath = z.strictObject({
  spinUs: integer(0, 10_000, 'microseconds', 'how long the data thread polls after the last request before it sleeps').default(100),
  arena: size({ min: 64 * MIB, max: 4 * GIB - MIB, multiple: MIB }, 'memory of requests and replies under way').default(256 * MIB),
  blockCache: size({ min: 0, max: 3 * GIB, multiple: MIB }, 'memory for copies of blocks that lie thinly in the files of many snapshots; taken as they are read; less where the arena leaves less of 4 GiB; 0 for none').default(512 * MIB),
});

export const ConfigSchema = z.strictObject({
  node: name('name of this node'),
  dataDirectory: absolutePath('directory of all journals and data, one node each; made if its parent exists'),
  control: Control.prefault({}),
  nbd: Nbd.prefault({}),
  link: Link.prefault({}),
  log: LogSection.prefault({}),
  metrics: Metrics.optional(),
  groups: z.array(Group).max(64).meta({ must: 'a list of at most 64 groups', description: 'the groups that this node holds' }).default([]),
  dataPath: DataPath.prefault({}),
});

// ---- types ------------------------------------------------------------------------------------------

/** What the file says, checked, sizes in bytes, defaults filled in. */
export type ConfigFile = z.output<typeof ConfigSchema>;
export type GroupFile = ConfigFile['groups'][number];
export type PeerFile = GroupFile['peers'][number];

/** A peer with its secret. Keep it out of logs: log `node` and `address` by name. */
export interface PeerConfig extends PeerFile {
  /** At least 32 bytes. */
  readonly secret: Uint8Array;
}

export interface GroupConfig extends Omit<GroupFile, 'peers'> {
  readonly peers: readonly PeerConfig[];
}

/** The configuration as the daemon uses it; plain data, structured-cloneable. */
export interface Config extends Omit<ConfigFile, 'groups'> {
  readonly groups: readonly GroupConfig[];
}
