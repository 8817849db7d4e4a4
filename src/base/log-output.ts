/**
 * Where the main thread's log goes: JSON lines through pino, or text for a
 * terminal, both to standard error and synchronously, so that the last entry
 * before a crash is not lost. Only the main thread writes.
 */

import { writeSync } from 'node:fs';
import { destination, pino } from 'pino';
import type { Logger } from 'pino';
import type { Log, LogEntry, LogFields, LogLevel } from './log.js';
import { SinkLog } from './log.js';

const STDERR = 2;

export interface LogOutput {
  readonly level: LogLevel;
  readonly format: 'auto' | 'json' | 'text';
  /** The node's name, in every entry. */
  readonly node: string;
}

/** A log of the main thread; nothing is buffered. */
export function openLog(output: LogOutput): Log {
  const text = output.format === 'text' || (output.format === 'auto' && process.stderr.isTTY === true);
  if (text) return new SinkLog((entry) => writeAll(formatEntry(entry, new Date())), output.level);
  const logger = pino(
    {
      level: output.level, base: { node: output.node, pid: process.pid }, messageKey: 'message',
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination({ dest: STDERR, sync: true }),
  );
  return new PinoLog(logger);
}

class PinoLog implements Log {
  constructor(private readonly logger: Logger) {}

  debug(message: string, fields?: LogFields): void {
    this.logger.debug(fields ?? {}, message);
  }

  info(message: string, fields?: LogFields): void {
    this.logger.info(fields ?? {}, message);
  }

  warn(message: string, fields?: LogFields): void {
    this.logger.warn(fields ?? {}, message);
  }

  error(message: string, fields?: LogFields): void {
    this.logger.error(fields ?? {}, message);
  }

  child(fields: LogFields): Log {
    return new PinoLog(this.logger.child(fields));
  }
}

/** `12:30:05.123 warn  the link is down  peer=beta` and a newline. */
export function formatEntry(entry: LogEntry, now: Date): string {
  const fields = Object.entries(entry.fields).map(([key, value]) => `${key}=${fieldText(value)}`);
  return [`${now.toISOString().slice(11, 23)} ${entry.level.padEnd(5)} ${entry.message}`, ...fields].join('  ') + '\n';
}

function fieldText(value: unknown): string {
  if (typeof value !== 'string') return JSON.stringify(value) ?? String(value);
  return /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
}

function writeAll(text: string): void {
  try {
    writeSync(STDERR, text);
  } catch (error) {
    // A terminal that is gone or slow (EAGAIN, EIO, EPIPE) must not end the daemon; there is nowhere else to say so.
    if ((error as NodeJS.ErrnoException).code === undefined) throw error;
  }
}
