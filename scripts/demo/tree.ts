/** Which real files the demo copies: directories that any machine that can build Lockstep has. */
import { existsSync } from 'node:fs';
import { run } from '../../test/harness/process.js';

const CANDIDATES = ['/usr/bin', '/usr/lib/gcc', '/usr/lib/python3', '/usr/local/bin', '/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/share'];

export interface Tree {
  readonly directories: readonly string[];
  readonly bytes: number;
}

/** Directories of together at least `bytes`. */
export async function chooseTree(bytes: number): Promise<Tree> {
  const directories: string[] = [];
  let sum = 0;
  for (const directory of CANDIDATES) {
    if (sum >= bytes) break;
    if (!existsSync(directory)) continue;
    // an unreadable part makes du fail and still print the sum
    const size = Number((await run('du', ['-sB1', directory])).stdout.split('\t')[0]);
    if (!(size > 0)) continue;
    directories.push(directory);
    sum += size;
  }
  if (sum < bytes) throw new Error(`found only ${sum} bytes of files below ${CANDIDATES.join(', ')}`);
  return { directories, bytes: sum };
}
