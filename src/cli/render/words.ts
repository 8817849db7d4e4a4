/** Numbers, times and tables in words. Pure. */

/** A table with a header; columns are as wide as their widest cell, the last is not padded. `right` lists right-aligned columns. */
export function table(header: readonly string[], rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths = header.map((title, i) => rows.reduce((width, row) => Math.max(width, row[i].length), title.length));
  const line = (cells: readonly string[]): string =>
    cells.map((cell, i) => (right.includes(i) ? cell.padStart(widths[i]) : i === cells.length - 1 ? cell : cell.padEnd(widths[i]))).join('  ').trimEnd();
  return [line(header), ...rows.map(line)].join('\n');
}

/** `850 ms`, `3.2 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`. */
export function formatDuration(seconds: number): string {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.floor(seconds)} s`;
  const whole = Math.floor(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

export function formatMilliseconds(ms: number): string {
  return `${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`;
}

/** `2026-11-23 05:12:00Z`. */
export function formatTime(ms: number): string {
  return new Date(ms).toISOString().replace('T', ' ').replace(/\.\d+Z$/, 'Z');
}

/** `1 snapshot`, `2 snapshots`. */
export function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

/** `[####------] 40%`. */
export function bar(used: number, total: number, width = 20): string {
  const share = total <= 0 ? 0 : Math.min(1, Math.max(0, used / total));
  const filled = Math.round(share * width);
  return `[${'#'.repeat(filled)}${'-'.repeat(width - filled)}] ${Math.floor(share * 100)}%`;
}

/** Emphasis on terminals that show it. */
export interface Style {
  bold(text: string): string;
  alarm(text: string): string;
  dim(text: string): string;
}

export const PLAIN: Style = { bold: (text) => text, alarm: (text) => text, dim: (text) => text };

const sgr = (code: number) => (text: string): string => `\x1b[${code}m${text}\x1b[0m`;
export const COLOURED: Style = { bold: sgr(1), alarm: (text) => `\x1b[1;31m${text}\x1b[0m`, dim: sgr(2) };
