/** Reads whole devices over NBD with nbdcopy: their sha256, and how much two of them differ. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cleanEnvironment } from '../../test/harness/process.js';

const BLOCK_BYTES = 4096;

/** The content of an export, in order. Throws when nbdcopy fails. */
async function* content(uri: string): AsyncGenerator<Buffer> {
  const child = spawn('nbdcopy', ['--connections=1', uri, '-'], { env: cleanEnvironment(), stdio: ['ignore', 'pipe', 'pipe'] });
  const errors: Buffer[] = [];
  child.stderr.on('data', (part: Buffer) => errors.push(part));
  const ended = new Promise<number | null>((done, fail) => {
    child.once('error', fail);
    child.once('close', done);
  });
  try {
    for await (const part of child.stdout) yield part as Buffer;
    const code = await ended;
    if (code !== 0) throw new Error(`nbdcopy ${uri}: exit status ${String(code)}: ${Buffer.concat(errors).toString()}`);
  } finally {
    child.kill('SIGKILL');
  }
}

export async function deviceSha256(uri: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const part of content(uri)) hash.update(part);
  return hash.digest('hex');
}

/** Regroups a stream into pieces of whole blocks. */
async function* inBlocks(parts: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let rest: Buffer = Buffer.alloc(0);
  for await (const part of parts) {
    const all = rest.length === 0 ? part : Buffer.concat([rest, part]);
    const whole = all.length - (all.length % BLOCK_BYTES);
    if (whole > 0) yield all.subarray(0, whole);
    rest = Buffer.from(all.subarray(whole));
  }
  if (rest.length > 0) yield rest;
}

function differingIn(a: Buffer, b: Buffer): number {
  if (a.equals(b)) return 0;
  let bytes = 0;
  for (let at = 0; at < a.length; at += BLOCK_BYTES) {
    const end = Math.min(at + BLOCK_BYTES, a.length);
    if (a.compare(b, at, end, at, end) !== 0) bytes += end - at;
  }
  return bytes;
}

/** Bytes in 4 KiB blocks that are not the same in two exports of the same size. */
export async function differingBytes(uriA: string, uriB: string): Promise<number> {
  const second = inBlocks(content(uriB));
  let held: Buffer = Buffer.alloc(0);
  let differing = 0;
  for await (const first of inBlocks(content(uriA))) {
    let at = 0;
    while (at < first.length) {
      if (held.length === 0) {
        const next = await second.next();
        if (next.done === true) throw new Error(`${uriB} is shorter than ${uriA}`);
        held = next.value;
      }
      const n = Math.min(held.length, first.length - at);
      differing += differingIn(first.subarray(at, at + n), held.subarray(0, n));
      held = held.subarray(n);
      at += n;
    }
  }
  if (held.length > 0 || (await second.next()).done !== true) throw new Error(`${uriB} is longer than ${uriA}`);
  return differing;
}
