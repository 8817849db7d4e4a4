/** Stand-in while replication/ is being finished: no links. */
import type { Log } from '../base/log.js';
import { OperatorError } from '../base/errors.js';
import type { Config } from '../config/schema.js';
import type { LinkDropReply, LinkEntry } from '../control/schema.js';
import type { Group } from '../group/group.js';
import type { Reactor } from '../io/reactor.js';

export class Links {
  constructor(_reactor: Reactor, _config: Config, _groups: Group[], _log: Log) {}
  start(): void {}
  listening(): string | null { return null; }
  status(_group: string): LinkEntry[] { return []; }
  drop(group: Group, peer: string): LinkDropReply { throw new OperatorError('link/not-found', `group ${group.name} has no link to ${peer}`); }
  whenApplied(_group: string, _lsn: number, _limitUs: number, done: (notice: string | null) => void): void { done(null); }
  connectedPrimary(_group: string): string | undefined { return undefined; }
  close(): void {}
}
