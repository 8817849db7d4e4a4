/** Temporary directories of tests, the bench and the demo; removed at the latest when the process ends. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const alive = new Set<string>();
let guarded = false;

/** Makes `lockstep-NAME-XXXXXX` below LOCKSTEP_TMPDIR or the system's temporary directory; short, for Unix socket paths. */
export function makeTempDirectory(name: string): string {
  const path = mkdtempSync(join(process.env.LOCKSTEP_TMPDIR ?? tmpdir(), `lockstep-${name}-`));
  alive.add(path);
  if (!guarded) {
    guarded = true;
    process.on('exit', () => {
      for (const left of alive) rmSync(left, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
    });
  }
  return path;
}

export function removeTempDirectory(path: string): void {
  rmSync(path, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
  alive.delete(path);
}
