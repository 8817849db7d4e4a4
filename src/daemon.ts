/**
 * PLACEHOLDER until the data path lands: holds the signature that main.ts is
 * written against, and refuses to run.
 */

import { OperatorError } from './base/errors.js';
import type { Log } from './base/log.js';
import type { Config } from './config/schema.js';
import type { ControlPort } from './control/port.js';

export interface Daemon {
  readonly port: ControlPort;
  /** Clean shutdown; idempotent. */
  close(): Promise<void>;
  /** Rejects when the daemon cannot go on; never resolves. */
  readonly failed: Promise<never>;
}

export async function runDaemon(_config: Config, _log: Log): Promise<Daemon> {
  throw new OperatorError('daemon/missing', 'this build has no data path yet');
}
