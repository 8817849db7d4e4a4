/**
 * What a route of the admin API is, and the words that all of them need.
 * Owns: shapes, and how wrong input becomes HTTP 400. Must not know: which
 * routes there are (routes.ts, carry-routes.ts).
 */

import { z } from 'zod';
import type { ExportOpenRequest } from './carry.js';
import { usage } from './http.js';
import type { ControlRequest, JournalRequest } from './port.js';
import { problemText } from './problems.js';
import { Name } from './schema/words.js';

/** What a matched request leads to. */
export type Action =
  | { readonly kind: 'call'; readonly request: ControlRequest; readonly status: number }
  | { readonly kind: 'journal'; readonly request: JournalRequest; readonly follow: boolean }
  /** The exported journal, as bytes. */
  | { readonly kind: 'export'; readonly request: ExportOpenRequest; readonly follow: boolean }
  /** The request's body is an exported journal. */
  | { readonly kind: 'import'; readonly group: string }
  | { readonly kind: 'metrics' }
  | { readonly kind: 'version' };

export type Params = Readonly<Record<string, string>>;

export interface Route {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** `/v1/groups/:group/volumes`; a segment with ':' is a parameter. */
  readonly path: string;
  /** True when the request has a body; otherwise the query is the input. */
  readonly body: boolean;
  /** Throws HttpError 400. */
  readonly action: (params: Params, input: unknown) => Action;
}

export const Nothing = z.strictObject({});

export function parse<S extends z.ZodType>(schema: S, input: unknown): z.output<S> {
  const result = schema.safeParse(input);
  if (result.success) return result.data;
  throw usage(problemText(result.error, input, schema instanceof z.ZodObject ? Object.keys(schema.shape) : []));
}

export function groupOf(params: Params): string {
  const result = Name.safeParse(params['group']);
  if (!result.success) throw usage(`the group's name ${result.error.issues[0].message}, not ${JSON.stringify(params['group'])}`);
  return result.data;
}

export function call(request: ControlRequest, status = 200): Action {
  return { kind: 'call', request, status };
}
