/**
 * The routes of the admin API: which method and path is which request of the
 * port, and what its body or query may be.
 *
 * Owns: paths, and the step from a validated body to a ControlRequest. Must
 * not know: sockets, how a request is carried out.
 */

import { CARRY_ROUTES } from './carry-routes.js';
import { HttpError, usage } from './http.js';
import { call, groupOf, Nothing, parse } from './route.js';
import type { Params, Route } from './route.js';
import {
  AdoptBody, CloneBody, CreateVolumeBody, FlushBody, JournalQuery, PromoteBody, ProtectBody, RefreshBody, RemoveQuery, RenameBody, ResizeBody, RestoreBody, SealBody, SnapshotBody, SyncBody,
} from './schema/requests.js';
import { DeviceOrSet, Name } from './schema/words.js';

const ROUTES: readonly Route[] = [
  { method: 'GET', path: '/v1/version', body: false, action: (_params, input) => (parse(Nothing, input), { kind: 'version' }) },
  { method: 'GET', path: '/metrics', body: false, action: () => ({ kind: 'metrics' }) },
  { method: 'GET', path: '/v1/status', body: false, action: (_params, input) => (parse(Nothing, input), call({ op: 'status' })) },
  { method: 'GET', path: '/v1/groups/:group/devices', body: false, action: (params, input) => (parse(Nothing, input), call({ op: 'devices', group: groupOf(params) })) },
  { method: 'GET', path: '/v1/groups/:group/sizes', body: false, action: (params, input) => (parse(Nothing, input), call({ op: 'sizes', group: groupOf(params) })) },
  { method: 'GET', path: '/v1/groups/:group/operations', body: false, action: (params, input) => (parse(Nothing, input), call({ op: 'operations', group: groupOf(params) })) },
  { method: 'GET', path: '/v1/groups/:group/links', body: false, action: (params, input) => (parse(Nothing, input), call({ op: 'links', group: groupOf(params) })) },
  {
    method: 'POST', path: '/v1/groups/:group/volumes', body: true,
    action: (params, input) => {
      const { size, ...rest } = parse(CreateVolumeBody, input);
      return call({ op: 'create', group: groupOf(params), sizeBytes: size, ...rest }, 201);
    },
  },
  {
    method: 'POST', path: '/v1/groups/:group/snapshots', body: true,
    action: (params, input) => call({ op: 'snapshot', group: groupOf(params), ...parse(SnapshotBody, input) }, 201),
  },
  {
    method: 'POST', path: '/v1/groups/:group/restore', body: true,
    action: (params, input) => {
      const body = parse(RestoreBody, input);
      if (body.target === body.source) throw usage('target and source are the same device');
      return call({ op: 'restore', group: groupOf(params), ...body });
    },
  },
  {
    method: 'POST', path: '/v1/groups/:group/refresh', body: true,
    action: (params, input) => call({ op: 'refresh', group: groupOf(params), ...parse(RefreshBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/sync', body: true,
    action: (params, input) => call({ op: 'sync', group: groupOf(params), ...parse(SyncBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/resize', body: true,
    action: (params, input) => {
      const { size, ...rest } = parse(ResizeBody, input);
      return call({ op: 'resize', group: groupOf(params), sizeBytes: size, ...rest });
    },
  },
  {
    method: 'POST', path: '/v1/groups/:group/rename', body: true,
    action: (params, input) => call({ op: 'rename', group: groupOf(params), ...parse(RenameBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/protect', body: true,
    action: (params, input) => call({ op: 'protect', on: true, group: groupOf(params), ...parse(ProtectBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/unprotect', body: true,
    action: (params, input) => call({ op: 'protect', on: false, group: groupOf(params), ...parse(ProtectBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/clone', body: true,
    action: (params, input) => call({ op: 'clone', group: groupOf(params), ...parse(CloneBody, input) }, 201),
  },
  {
    method: 'POST', path: '/v1/groups/:group/adopt', body: true,
    action: (params, input) => call({ op: 'adopt', group: groupOf(params), ...parse(AdoptBody, input) }, 201),
  },
  {
    method: 'POST', path: '/v1/groups/:group/seal', body: true,
    action: (params, input) => call({ op: 'seal', group: groupOf(params), ...parse(SealBody, input) }),
  },
  {
    method: 'DELETE', path: '/v1/groups/:group/devices/:device', body: false,
    action: (params, input) => {
      const device = DeviceOrSet.safeParse(params['device']);
      if (!device.success) throw usage(`the device's name ${device.error.issues[0].message}`);
      return call({ op: 'remove', group: groupOf(params), device: device.data, ...parse(RemoveQuery, input) });
    },
  },
  {
    method: 'POST', path: '/v1/groups/:group/promote', body: true,
    action: (params, input) => call({ op: 'promote', group: groupOf(params), ...parse(PromoteBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/flush', body: true,
    action: (params, input) => call({ op: 'flush', group: groupOf(params), ...parse(FlushBody, input) }),
  },
  {
    method: 'POST', path: '/v1/groups/:group/links/:peer/drop', body: true,
    action: (params, input) => {
      parse(Nothing, input);
      const peer = Name.safeParse(params['peer']);
      if (!peer.success) throw usage(`the peer's name ${peer.error.issues[0].message}`);
      return call({ op: 'linkDrop', group: groupOf(params), peer: peer.data });
    },
  },
  {
    method: 'GET', path: '/v1/groups/:group/journal', body: false,
    action: (params, input) => {
      const query = parse(JournalQuery, input);
      const from = query.from ?? null;
      const to = query.to ?? null;
      if (from !== null && to !== null && to < from) throw usage(`to (${to}) lies before from (${from})`);
      return { kind: 'journal', follow: query.follow, request: { op: 'journal', group: groupOf(params), from, to, limit: JOURNAL_PAGE_RECORDS } };
    },
  },
  ...CARRY_ROUTES,
];

/** Records per page: some tens of KiB of JSON. */
const JOURNAL_PAGE_RECORDS = 512;

export interface Match {
  readonly route: Route;
  readonly params: Params;
  readonly query: Readonly<Record<string, string>>;
}

/** The route of a request line. Throws HttpError 400, 404, 405. */
export function matchRoute(method: string, target: string): Match {
  const cut = target.indexOf('?');
  const path = cut < 0 ? target : target.slice(0, cut);
  const segments = decodeSegments(path);
  const allowed: string[] = [];
  for (const route of ROUTES) {
    const params = matchPath(route.path, segments);
    if (params === undefined) continue;
    if (route.method === method) return { route, params, query: parseQuery(cut < 0 ? '' : target.slice(cut + 1)) };
    allowed.push(route.method);
  }
  if (allowed.length > 0) {
    const message = `${path.slice(0, 200)} answers ${allowed.join(', ')}, not ${method}`;
    throw new HttpError(405, { kind: 'operator', code: 'request/method', message }, { allow: allowed.join(', ') });
  }
  throw usage(`there is no ${path.slice(0, 200)}; the API begins at /v1/status`, 404, 'request/route');
}

function decodeSegments(path: string): string[] {
  try {
    return path.split('/').map(decodeURIComponent);
  } catch {
    throw usage('the path is not properly percent-encoded');
  }
}

function matchPath(pattern: string, segments: readonly string[]): Params | undefined {
  const parts = pattern.split('/');
  if (parts.length !== segments.length) return undefined;
  const params: Record<string, string> = {};
  for (let i = 0; i < parts.length; i++) {
    if (parts[i].startsWith(':')) params[parts[i].slice(1)] = segments[i];
    else if (parts[i] !== segments[i]) return undefined;
  }
  return params;
}

function parseQuery(text: string): Record<string, string> {
  const query: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const [key, value] of new URLSearchParams(text)) {
    if (key in query) throw usage(`the query names ${JSON.stringify(key.slice(0, 64))} twice`);
    query[key] = value;
  }
  return query;
}
