/** What scenarios expect; each throws with what was found instead. */
import type { Finished } from '../harness/process.js';
import type { GuestShell } from './guest-shell.js';

export function expectEqual(what: string, found: unknown, wanted: unknown): void {
  if (found !== wanted) throw new Error(`${what}: found ${String(found).trim()}, wanted ${String(wanted).trim()}`);
}

/** As expectEqual for texts of many lines: says the first line that differs. */
export function expectSameLines(what: string, found: string, wanted: string): void {
  if (found === wanted) return;
  const [left, right] = [found.split('\n'), wanted.split('\n')];
  const at = left.findIndex((line, i) => line !== right[i]);
  throw new Error(`${what}: line ${at + 1} of ${left.length} (wanted ${right.length}) is\n${left[at] ?? '(none)'}\nwanted\n${right[at] ?? '(none)'}`);
}

export function expectEnd(result: Finished, code: number, words: RegExp, what: string): void {
  if (result.code !== code || !words.test(result.stdout + result.stderr)) throw new Error(`${what}: wanted exit code ${code} and ${String(words)}, got ${result.code}:\n${result.stdout}${result.stderr}`);
}

/** What the guest's kernel said since the previous call. Throws when it is about a fault of the kernel itself. */
export async function kernelWords(guest: GuestShell): Promise<string> {
  const words = await guest.succeed('dmesg --read-clear');
  if (/\b(BUG|Oops|WARNING|Call Trace|blocked for more than)\b/.test(words)) throw new Error(`the guest's kernel complains:\n${words}`);
  return words;
}
