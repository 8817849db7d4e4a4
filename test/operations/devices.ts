/**
 * Devices of a real pair of nodes over NBD, for the tests of operations:
 * connections, content as short strings, and comparison of both nodes.
 */
import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import type { TAP } from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { NbdClient, streamOf } from '../../src/vendor/nbd-protocol-ts/index.js';
import { ControlError } from '../../src/control/client.js';
import { preparePair, waitCaughtUp } from '../harness/node.js';
import type { Pair, PairOptions, TestNode } from '../harness/node.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

export const BLOCK = 4 * KIB;

/** A started pair in a directory of its own; it ends with the test file. */
export async function startPair(t: TAP, options: PairOptions = {}): Promise<Pair> {
  const directory = makeTempDirectory('operations');
  const pair = await preparePair(directory, options);
  t.teardown(async () => {
    await Promise.all([pair.primary.stop(), pair.secondary.stop()]);
    removeTempDirectory(directory);
  });
  await Promise.all([pair.primary.start(), pair.secondary.start()]);
  return pair;
}

/** The code and the sentence of a refusal; says so when nothing is refused. */
export async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    if (error instanceof ControlError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return 'it was not refused';
}

/** `checked` false: also what the export did not allow when it was opened is sent. */
export function open(node: TestNode, device: string, checked = true): Promise<NbdClient> {
  return NbdClient.connect(streamOf(connect(node.nbdSocket)), { name: `g/${device}`, maxWaiting: 1 << 16, checked });
}

/** Opens, works, disconnects. */
export async function withDevice<T>(node: TestNode, device: string, work: (client: NbdClient) => Promise<T>): Promise<T> {
  const client = await open(node, device);
  try {
    return await work(client);
  } finally {
    await client.disconnect();
  }
}

/** Fills blocks [first, first + count) with a letter. */
export function fill(client: NbdClient, first: number, count: number, letter: string): Promise<void> {
  return client.write(first * BLOCK, Buffer.alloc(count * BLOCK, letter));
}

/** One character per block of the first `count` blocks: the letter that fills it, '.' = zeros, '?' = mixed. */
export async function letters(node: TestNode, device: string, count: number): Promise<string> {
  const bytes = await withDevice(node, device, (client) => client.read(0, count * BLOCK));
  let words = '';
  for (let block = 0; block < count; block++) {
    const part = bytes.subarray(block * BLOCK, (block + 1) * BLOCK);
    words += !part.every((byte) => byte === part[0]) ? '?' : part[0] === 0 ? '.' : String.fromCharCode(part[0]);
  }
  return words;
}

export async function sha256(node: TestNode, device: string): Promise<string> {
  return withDevice(node, device, async (client) => {
    const hash = createHash('sha256');
    const size = client.export.sizeBytes;
    for (let at = 0; at < size; at += MIB) hash.update(await client.read(at, Math.min(MIB, size - at)));
    return `${size} bytes, sha256 ${hash.digest('hex')}`;
  });
}

/** What differs between the nodes once the secondary has applied everything: facts or content of devices, local ones left out; '' = nothing. */
export async function differences(pair: Pair): Promise<string> {
  await waitCaughtUp(pair);
  const [ours, theirs] = await Promise.all([pair.primary.control.devices('g'), pair.secondary.control.devices('g')]);
  const facts = (list: typeof ours): string => JSON.stringify(list.devices.filter((device) => device.kind !== 'local').map((device) => ({ ...device, clients: 0 })));
  if (facts(ours) !== facts(theirs)) return `the trees differ: ${facts(ours)} and ${facts(theirs)}`;
  for (const device of ours.devices) {
    if (device.kind === 'local') continue;
    const [here, there] = await Promise.all([sha256(pair.primary, device.name), sha256(pair.secondary, device.name)]);
    if (here !== there) return `${device.name} differs: ${here} and ${there}`;
  }
  return '';
}
