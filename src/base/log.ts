/**
 * What every module logs to. Owns the interface and the entry that crosses
 * threads; must not know where entries end up: main writes them with pino
 * (log-output.ts), the data-path worker posts them to main.
 */

export type LogLevel = 'debug' | 'info' | 'warn' | 'error';
const LOG_LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error'];

/** Plain data only (structured clone): an Error is turned into its text by `errorFields`. Never secrets or user data. */
export type LogFields = Readonly<Record<string, unknown>>;

export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A log that adds `fields` to each of its entries. */
  child(fields: LogFields): Log;
}

/** One entry, structured-cloneable. */
export interface LogEntry {
  readonly level: LogLevel;
  readonly message: string;
  readonly fields: LogFields;
}

/** Hands every entry at or above `level` to `sink`: the worker's log, and the one tests look at. */
export class SinkLog implements Log {
  private readonly threshold: number;

  constructor(
    private readonly sink: (entry: LogEntry) => void,
    private readonly level: LogLevel = 'debug',
    private readonly bound: LogFields = {},
  ) {
    this.threshold = LOG_LEVELS.indexOf(level);
  }

  debug(message: string, fields?: LogFields): void {
    this.put('debug', message, fields);
  }

  info(message: string, fields?: LogFields): void {
    this.put('info', message, fields);
  }

  warn(message: string, fields?: LogFields): void {
    this.put('warn', message, fields);
  }

  error(message: string, fields?: LogFields): void {
    this.put('error', message, fields);
  }

  child(fields: LogFields): Log {
    return new SinkLog(this.sink, this.level, { ...this.bound, ...fields });
  }

  private put(level: LogLevel, message: string, fields: LogFields | undefined): void {
    if (LOG_LEVELS.indexOf(level) < this.threshold) return;
    this.sink({ level, message, fields: fields === undefined ? this.bound : { ...this.bound, ...fields } });
  }
}

/** Writes an entry of another thread to a log of this one. */
export function forward(entry: LogEntry, log: Log): void {
  log[entry.level](entry.message, entry.fields);
}

/** Says nothing. */
export const silentLog: Log = { debug() {}, info() {}, warn() {}, error() {}, child: () => silentLog };

/** An error as fields: its code where it has one, and its stack only when it is a bug (no `code`). */
export function errorFields(error: unknown): LogFields {
  if (!(error instanceof Error)) return { error: String(error) };
  const code = (error as { code?: unknown }).code;
  return code === undefined ? { error: error.message, stack: error.stack } : { error: error.message, code };
}
