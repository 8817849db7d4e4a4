/**
 * Prints the configuration's keys, limits and defaults from the schema, so
 * that no second text can go stale. `lockstepd --config-help`.
 */

import type { z } from 'zod';
import { formatSize } from '../base/units.js';
import { ConfigSchema } from './schema.js';
import { arrayElement, metaOf, objectShape, unwrap } from './walk.js';

export interface HelpRow {
  /** `groups[].journal.size` */
  readonly key: string;
  /** `required`, `optional`, or the default in words. */
  readonly fallback: string;
  readonly must: string;
  readonly description: string;
}

export function configRows(): HelpRow[] {
  const rows: HelpRow[] = [];
  collect(rows, '', ConfigSchema, 'required');
  return rows;
}

/** A Markdown table for README. */
export function configTable(): string {
  const cell = (text: string): string => text.replaceAll('|', '\\|');
  const lines = configRows().map((row) => `| \`${row.key}\` | ${cell(row.fallback)} | ${cell(row.description)}; ${cell(row.must)} |`);
  return ['| key | default | meaning |', '|---|---|---|', ...lines].join('\n');
}

/** Text for a terminal. */
export function configHelp(): string {
  const rows = configRows().map((row) => `${row.key}  (${row.fallback})\n    ${row.description}\n    must be ${row.must}`);
  return `${rows.join('\n')}\n\nThe smallest configuration:\n\n${JSON.stringify(EXAMPLE, null, 2)}\n`;
}

/** A configuration that is valid as it stands. */
export const EXAMPLE = {
  node: 'alpha',
  dataDirectory: '/var/lib/lockstep',
  groups: [{ name: 'main', role: 'primary' }],
};

/** `missing` words a key without default: one in an optional section is required only with it. */
function collect(rows: HelpRow[], prefix: string, schema: z.ZodType, missing: string): void {
  for (const [key, field] of Object.entries(objectShape(schema) ?? {})) {
    const path = prefix === '' ? key : `${prefix}.${key}`;
    const element = arrayElement(field);
    const { optional, fallback } = unwrap(field);
    if (objectShape(field) !== undefined) {
      collect(rows, path, field, optional && fallback === undefined ? `required with ${path}` : missing);
      continue;
    }
    const meta = metaOf(field);
    rows.push({ key: path, fallback: fallbackText(meta?.must, optional, fallback, missing), must: meta?.must ?? '', description: meta?.description ?? '' });
    if (element !== undefined && objectShape(element) !== undefined) collect(rows, `${path}[]`, element, 'required');
  }
}

function fallbackText(must: string | undefined, optional: boolean, fallback: unknown, missing: string): string {
  if (fallback === undefined) return optional ? 'optional' : missing;
  if (typeof fallback === 'number' && must?.startsWith('a size')) return formatSize(fallback);
  return Array.isArray(fallback) && fallback.length === 0 ? 'none' : JSON.stringify(fallback).replace(/^"(.*)"$/, '$1');
}
