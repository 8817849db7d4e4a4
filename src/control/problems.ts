/**
 * Words what zod found wrong in a request. Owns the sentences of `usage`
 * errors; must not know which request it was.
 */

import { showValue, valueAt } from '../base/values.js';
import type { z } from 'zod';
import { nearest } from '../base/nearest.js';

/** One sentence per problem, joined; `known` are the keys that the object may have. */
export function problemText(error: z.ZodError, input: unknown, known: readonly string[]): string {
  return error.issues.flatMap((issue) => sentences(issue, input, known)).join('; ');
}

function sentences(issue: z.core.$ZodIssue, input: unknown, known: readonly string[]): string[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const meant = nearest(key, known);
      const hint = meant !== undefined ? `did you mean ${JSON.stringify(meant)}?` : known.length > 0 ? `known keys are ${known.join(', ')}` : 'no keys are known here';
      return `unknown key ${JSON.stringify(key.slice(0, 64))}, ${hint}`;
    });
  }
  const path = issue.path.map((part, i) => (typeof part === 'number' ? `[${part}]` : `${i === 0 ? '' : '.'}${String(part)}`)).join('');
  if (path === '') return [`the request must be a JSON object with the keys ${known.join(', ')}`];
  const value = valueAt(input, issue.path);
  // Every part of the schema has a sentence of its own; zod's words are no help to anybody.
  const rule = issue.message.startsWith('must ') ? issue.message : undefined;
  if (value === undefined) return [`${path} is missing${rule === undefined ? '' : `, it ${rule}`}`];
  return [rule === undefined ? `${path} cannot be ${showValue(value)}` : `${path} ${rule}, not ${showValue(value)}`];
}
