/** What a person sees of the demo: numbered steps with the time, facts below them, checks with their outcome. */

const started = performance.now();
let step = 0;
let failures = 0;

function seconds(): string {
  return `${((performance.now() - started) / 1000).toFixed(1).padStart(5)} s`;
}

export function announce(text: string): void {
  step++;
  console.log(`\n${seconds()}  ${step}. ${text}`);
}

export function fact(text: string): void {
  console.log(`${' '.repeat(9)}${text}`);
}

/** A command that a person could type. */
export function command(text: string): void {
  fact(`$ ${text}`);
}

/** One claim of the demo. A wrong one makes the demo fail at its end. */
export function check(claim: string, holds: boolean, details = ''): void {
  if (!holds) failures++;
  fact(`${holds ? 'ok  ' : 'FAIL'} ${claim}${details === '' ? '' : `: ${details}`}`);
}

export function failed(): boolean {
  return failures > 0;
}

export function finish(): void {
  console.log(`\n${seconds()}  ${failures === 0 ? 'all of it holds' : `${failures} claims do NOT hold`}`);
}

export function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(bytes < 100 * 2 ** 20 ? 1 : 0)} MiB`;
}
