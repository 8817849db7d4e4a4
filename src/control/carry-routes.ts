/** Routes of the exported journal: see carry.ts. Part of routes.ts. */

import { usage } from './http.js';
import { call, groupOf, Nothing, parse } from './route.js';
import type { Params, Route } from './route.js';
import { CursorAckBody, DrainBody, ExportBody } from './schema/requests.js';
import { Name } from './schema/words.js';

function cursorOf(params: Params): string {
  const result = Name.safeParse(params['cursor']);
  if (!result.success) throw usage(`the cursor's name ${result.error.issues[0].message}, not ${JSON.stringify(params['cursor'])}`);
  return result.data;
}

export const CARRY_ROUTES: readonly Route[] = [
  {
    method: 'POST', path: '/v1/groups/:group/journal/export', body: true,
    action: (params, input) => {
      const { cursor, from, follow } = parse(ExportBody, input);
      return { kind: 'export', follow, request: { op: 'exportOpen', group: groupOf(params), cursor, from: from ?? null } };
    },
  },
  {
    // The body is the stream; the query has to be empty.
    method: 'POST', path: '/v1/groups/:group/journal/import', body: false,
    action: (params, input) => (parse(Nothing, input), { kind: 'import', group: groupOf(params) }),
  },
  {
    method: 'GET', path: '/v1/groups/:group/position', body: false,
    action: (params, input) => (parse(Nothing, input), call({ op: 'position', group: groupOf(params) })),
  },
  {
    method: 'POST', path: '/v1/groups/:group/cursors/:cursor/ack', body: true,
    action: (params, input) => call({ op: 'cursorAck', group: groupOf(params), cursor: cursorOf(params), ...parse(CursorAckBody, input) }),
  },
  {
    method: 'DELETE', path: '/v1/groups/:group/cursors/:cursor', body: false,
    action: (params, input) => (parse(Nothing, input), call({ op: 'cursorRelease', group: groupOf(params), cursor: cursorOf(params) })),
  },
  {
    method: 'POST', path: '/v1/groups/:group/drain', body: true,
    action: (params, input) => call({ op: 'drain', group: groupOf(params), ...parse(DrainBody, input) }),
  },
];
