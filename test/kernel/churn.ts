/**
 * A writer for the guest, in the manner of fsstress: changes files and
 * directories in several directories at random, without syncing them, until
 * the stop file is there. Between rounds it writes a number, and syncs it, to
 * the file `witness` of each directory in turn: no directory may ever show a
 * larger number than the ones before it, nor one that is less by more than one.
 *
 *   churn.js SEED STOPFILE DIRECTORY...      prints the last number
 */
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, symlinkSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Random } from '../sim/random.js';

const NAMES = 60;
const LARGEST_BYTES = 128 * 1024;
const CHANGES_A_ROUND = 12;

const [seed, stopFile, ...directories] = process.argv.slice(2);
const random = new Random(Number(seed));
const witnesses = directories.map((directory) => openSync(join(directory, 'witness'), 'w'));

function change(directory: string): void {
  const name = (): string => join(directory, `d${random.below(4)}`, `f${random.below(NAMES)}`);
  const path = name();
  switch (random.below(6)) {
    case 0: case 1: rmSync(path, { recursive: true, force: true }); writeFileSync(path, Buffer.alloc(random.below(LARGEST_BYTES), random.u32())); return;
    case 2: if (existsSync(path)) writeFileSync(path, Buffer.alloc(random.below(8192), random.u32()), { flag: 'a' }); return;
    case 3: rmSync(path, { recursive: true, force: true }); return;
    case 4: if (existsSync(path)) truncateSync(path, random.below(LARGEST_BYTES)); return;
    default: {
      const other = name();
      if (existsSync(path)) return renameSync(path, other);
      rmSync(other, { force: true });
      symlinkSync('../nowhere', other);
    }
  }
}

for (const directory of directories) for (let i = 0; i < 4; i++) mkdirSync(join(directory, `d${i}`), { recursive: true });
let round = 0;
while (!existsSync(stopFile)) {
  for (const directory of directories) for (let i = 0; i < CHANGES_A_ROUND; i++) change(directory);
  round++;
  for (const fd of witnesses) {
    writeSync(fd, String(round).padStart(12), 0);
    fsyncSync(fd);
  }
}
for (const fd of witnesses) closeSync(fd);
console.log(round);
