#!/usr/bin/env node
/**
 * `lockstepd`: arguments, signals and exit codes. 0: done, or stopped by a
 * signal; 1: the daemon failed; 2: something a person has to change (usage,
 * configuration, a directory in use).
 *
 * Owns: the life of the process. Must not know: what a daemon is made of.
 */

import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command, CommanderError } from 'commander';
import { CorruptionError, IoError, OperatorError } from './base/errors.js';
import { openLog } from './base/log-output.js';
import type { Log } from './base/log.js';
import { errorFields } from './base/log.js';
import { VERSION } from './base/version.js';
import { configHelp } from './config/help.js';
import { loadConfig } from './config/load.js';
import type { Config } from './config/schema.js';
import { ControlError } from './control/port.js';
import { ControlServer } from './control/server.js';
import { runDaemon } from './daemon.js';
import { DirectoryLock } from './io/directory-lock.js';

const EXIT_OK = 0;
const EXIT_FAILED = 1;
const EXIT_OPERATOR = 2;

interface Options {
  readonly config?: string;
  readonly configHelp?: boolean;
  readonly checkConfig?: boolean;
  readonly acceptInconsistent: readonly string[];
}

/** Runs to the end and returns the exit code. */
async function main(argv: readonly string[]): Promise<number> {
  const program = new Command('lockstepd')
    .description('Serves replicated block devices over NBD.')
    .option('-c, --config <file>', 'the configuration, JSON')
    .option('--check-config', 'check the configuration and the secrets that it names, and end')
    .option('--config-help', 'print every key of the configuration with its default, and end')
    .option('--accept-inconsistent <group@lsn>', 'serve a group whose volatile journal was lost, at the LSN that its refusal names (may be repeated)', (word: string, before: string[]) => [...before, word], [])
    .version(VERSION, '-V, --version')
    .exitOverride();
  try {
    program.parse(argv, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_OPERATOR;
    throw error;
  }
  const options = program.opts<Options>();
  if (options.configHelp === true) {
    process.stdout.write(configHelp());
    return EXIT_OK;
  }
  try {
    if (options.config === undefined) throw new OperatorError('usage', 'name the configuration: lockstepd --config FILE (--config-help says what it may contain)');
    const { config, warnings } = loadConfig(options.config);
    if (options.checkConfig === true) {
      for (const warning of warnings) process.stderr.write(`lockstepd: warning: ${warning}\n`);
      process.stdout.write(`${options.config} is a valid configuration of node ${config.node} with ${config.groups.length} group${config.groups.length === 1 ? '' : 's'}\n`);
      return EXIT_OK;
    }
    return await serve(config, warnings, acceptedGroups(options.acceptInconsistent));
  } catch (error) {
    return explain(error);
  }
}

/** `GROUP@LSN` words. Throws OperatorError. */
function acceptedGroups(words: readonly string[]): ReadonlyMap<string, number> {
  return new Map(words.map((word) => {
    const match = /^([^@]+)@(\d{1,15})$/.exec(word);
    if (match === null) throw new OperatorError('usage', `--accept-inconsistent wants GROUP@LSN as the group's refusal names it (lockstep status), not ${JSON.stringify(word)}`);
    return [match[1], Number(match[2])];
  }));
}

async function serve(config: Config, warnings: readonly string[], accepted: ReadonlyMap<string, number>): Promise<number> {
  const log = openLog({ ...config.log, node: config.node });
  for (const warning of warnings) log.warn(warning);
  // Registered first: a signal during recovery is a clean stop too.
  const signal = stopSignal(log);
  using lock = DirectoryLock.acquire(config.dataDirectory);
  if (lock.warning !== undefined) log.warn(lock.warning);
  log.info('starting', { version: VERSION, dataDirectory: config.dataDirectory });
  const daemon = await Promise.race([runDaemon(config, log, accepted), signal]);
  if (typeof daemon === 'string') {
    // Nothing is served yet, and recovery survives being cut off anywhere, as by a crash.
    log.info('stopped while starting', { signal: daemon });
    return EXIT_OK;
  }
  // Observed here at once: it may fail before the race below looks at it.
  daemon.failed.catch(() => {});
  try {
    await using control = await ControlServer.open({ socket: config.control.socket, port: daemon.port, log, metricsListen: config.metrics?.listen });
    const metrics = control.metricsAddress;
    log.info('serving', { control: config.control.socket, ...(metrics === undefined ? {} : { metrics: `${metrics.host}:${metrics.port}` }) });
    log.info('stopping', { signal: await Promise.race([signal, daemon.failed]) });
  } catch (error) {
    await daemon.close();
    throw error;
  }
  await daemon.close();
  log.info('stopped');
  return EXIT_OK;
}

/** Resolves at the first SIGTERM or SIGINT; a second one ends the process as a crash would, which is safe. */
function stopSignal(log: Log): Promise<string> {
  return new Promise((resolve) => {
    let asked = false;
    const handle = (name: NodeJS.Signals): void => {
      if (asked) {
        log.warn('a second signal: stopping without a clean end', { signal: name });
        process.exit(EXIT_FAILED);
      }
      asked = true;
      resolve(name);
    };
    process.on('SIGTERM', handle);
    process.on('SIGINT', handle);
    // A terminal that is closed is no reason to stop.
    process.on('SIGHUP', () => {});
  });
}

/** One sentence for what is expected; a bug keeps its stack. */
function explain(error: unknown): number {
  if (error instanceof OperatorError) {
    process.stderr.write(`lockstepd: ${error.message}\n`);
    return EXIT_OPERATOR;
  }
  const expected = error instanceof CorruptionError || error instanceof IoError || (error instanceof ControlError && error.kind !== 'bug');
  const fields = errorFields(error);
  process.stderr.write(`lockstepd: ${expected ? error.message : `a bug, please report it: ${String(fields['stack'] ?? fields['error'])}`}\n`);
  return EXIT_FAILED;
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(process.argv.slice(2));
  // Whatever a library still holds open (timers, handles) does not keep a stopped daemon alive.
  process.exit();
}
