/**
 * Checks a parsed JSON value against the configuration schema and words every
 * problem as a sentence that names the key and what it should be, all at once.
 *
 * Owns: the sentences and the checks across keys. Must not know: files.
 */

import { showValue, valueAt } from '../base/values.js';
import { normalize } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { z } from 'zod';
import { formatAddress } from '../base/address.js';
import { nearest } from '../base/nearest.js';
import { formatSize } from '../base/units.js';
import { ConfigSchema, MIN_SEGMENTS } from './schema.js';
import type { ConfigFile } from './schema.js';
import { innerSchema, metaOf, objectShape } from './walk.js';

export type Checked = { readonly config: ConfigFile } | { readonly problems: readonly string[] };

/** `value` is what JSON.parse gave. Never throws. */
export function checkConfig(value: unknown): Checked {
  const result = ConfigSchema.safeParse(value);
  if (!result.success) return { problems: result.error.issues.flatMap((issue) => sentences(issue, value)) };
  const problems = crossChecks(result.data);
  return problems.length > 0 ? { problems } : { config: result.data };
}

/** `groups[0].journal.size`. */
function pathText(path: readonly PropertyKey[]): string {
  let text = '';
  for (const key of path) text += typeof key === 'number' ? `[${key}]` : text === '' ? String(key) : `.${String(key)}`;
  return text === '' ? 'the configuration' : text;
}

function sentences(issue: z.core.$ZodIssue, root: unknown): string[] {
  if (issue.code === 'unrecognized_keys') {
    const known = Object.keys(objectShape(schemaAt(issue.path)) ?? {});
    return issue.keys.map((key) => {
      const meant = nearest(key, known);
      const hint = meant === undefined ? `known keys here are ${known.join(', ')}` : `did you mean ${JSON.stringify(meant)}?`;
      return `${pathText([...issue.path, key])} is not a known key; ${hint}`;
    });
  }
  const found = valueAt(root, issue.path);
  const must = mustBe(issue.path);
  if (found === undefined) return [`${pathText(issue.path)} is missing; it must be ${must}`];
  const shown = showValue(found);
  if (issue.code === 'custom' && issue.message.startsWith('must ')) return [`${pathText(issue.path)} ${issue.message}, not ${shown}`];
  if (issue.code === 'custom' && issue.message.startsWith('has ')) return [`${pathText(issue.path)} ${issue.message}: ${shown}`];
  return [`${pathText(issue.path)} must be ${must}, not ${shown}`];
}

function mustBe(path: readonly PropertyKey[]): string {
  const schema = schemaAt(path);
  const must = schema === undefined ? undefined : metaOf(schema)?.must;
  if (must !== undefined) return must;
  const shape = objectShape(schema);
  return shape === undefined ? 'another kind of value' : `an object with the keys ${Object.keys(shape).join(', ')}`;
}

/** The schema that a path of the value leads to. */
function schemaAt(path: readonly PropertyKey[]): z.ZodType | undefined {
  let schema: z.ZodType | undefined = ConfigSchema;
  for (const key of path) {
    const inner: z.ZodType | undefined = schema === undefined ? undefined : innerSchema(schema, key);
    schema = inner;
  }
  return schema;
}

// ---- checks across keys -----------------------------------------------------------------------------

function crossChecks(config: ConfigFile): string[] {
  const problems: string[] = [];
  duplicates(problems, config.groups.map((group) => group.name), (i) => `groups[${i}].name`);
  const directories = config.groups.map((group) => normalize(group.journal.directory ?? `${config.dataDirectory}/groups/${group.name}/journal`).replace(/\/$/, ''));
  config.groups.forEach((group, g) => {
    const other = directories.findIndex((one, i) => i !== g && one === directories[g]);
    if (group.journal.directory !== undefined && other >= 0) problems.push(`groups[${g}].journal.directory is that of the journal of groups[${other}]; give each group its own`);
  });
  duplicates(problems, config.nbd.listen.filter((a) => a.kind === 'unix' || a.port !== 0).map(formatAddress), (i) => `nbd.listen[${i}]`);
  config.nbd.listen.forEach((listen, i) => {
    if (listen.kind === 'unix' && listen.path === config.control.socket) problems.push(`nbd.listen[${i}] is the same socket as control.socket; give each its own path`);
    if (config.link.listen !== undefined && config.link.listen.port !== 0 && isDeepStrictEqual(listen, config.link.listen)) {
      problems.push(`nbd.listen[${i}] is the same address as link.listen; give each its own port`);
    }
  });
  config.groups.forEach((group, g) => {
    const at = `groups[${g}]`;
    const { size, segmentSize } = group.journal;
    if (size % segmentSize !== 0) {
      problems.push(`${at}.journal.size must be a multiple of journal.segmentSize (${formatSize(segmentSize)}), not ${formatSize(size)}`);
    } else if (size / segmentSize < MIN_SEGMENTS) {
      problems.push(
        `${at}.journal.size must hold at least ${MIN_SEGMENTS} segments of journal.segmentSize: at least ${formatSize(MIN_SEGMENTS * segmentSize)}, ` +
          `not ${formatSize(size)}; or make journal.segmentSize smaller`,
      );
    }
    if (group.journal.volatile && group.journal.directory === undefined) {
      problems.push(`${at}.journal.directory is missing; a volatile journal needs a directory of its own on a tmpfs, such as "/dev/shm/lockstep-${config.node}-${group.name}"`);
    }
    duplicates(problems, group.peers.map((peer) => peer.node), (i) => `${at}.peers[${i}].node`);
    group.peers.forEach((peer, p) => {
      if (peer.node === config.node) problems.push(`${at}.peers[${p}].node is this node itself, ${JSON.stringify(config.node)}; name the other node`);
      if (group.role === 'primary' && peer.address === undefined) {
        problems.push(`${at}.peers[${p}].address is missing; a primary connects to its peers and needs an address such as "tcp:10.0.0.2:10900"`);
      }
      if (peer.address?.port === 0) problems.push(`${at}.peers[${p}].address must name a port other than 0`);
    });
    if (group.role === 'secondary' && group.peers.length > 0 && config.link.listen === undefined) {
      problems.push(`link.listen is missing; the secondary group ${JSON.stringify(group.name)} needs an address such as "tcp:127.0.0.1:10900" where its primary connects`);
    }
  });
  return [...new Set(problems)];
}

function duplicates(problems: string[], values: readonly string[], where: (index: number) => string): void {
  values.forEach((value, i) => {
    const first = values.indexOf(value);
    if (first < i) problems.push(`${where(i)} is ${JSON.stringify(value)}, which ${where(first)} has already`);
  });
}
