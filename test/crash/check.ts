/**
 * Compares what nodes hold with what the model permits, through NBD.
 *
 * Owns: which ranges are read, and the report of what differs. Must not know:
 * the load, kills.
 */
import { createHash } from 'node:crypto';
import { KIB, MIB } from '../../src/base/units.js';
import type { NbdClient } from '../../src/vendor/nbd-protocol-ts/index.js';
import type { Pair, TestNode } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import type { Random } from '../sim/random.js';
import { GROUP, openDevice } from './clients.js';
import { BLOCK } from './content.js';
import type { CrashModel, Mismatch, ModelDevice } from './model.js';

/** Devices up to this size are read completely. */
const SMALL_BYTES = 32 * MIB;
const PIECE = 512 * KIB;
const RANDOM_PLACES = 8;
const MAX_REPORTED = 4;

interface Range {
  readonly offset: number;
  readonly length: number;
}

function rangesOf(model: CrashModel, device: ModelDevice, random: Random): Range[] {
  const ranges: Range[] = [];
  if (device.sizeBytes <= SMALL_BYTES) {
    for (let offset = 0; offset < device.sizeBytes; offset += PIECE) ranges.push({ offset, length: Math.min(PIECE, device.sizeBytes - offset) });
    return ranges;
  }
  const step = 64 * KIB;
  const places = new Set(model.written(device).map((block) => Math.floor((block * BLOCK) / step)));
  for (let i = 0; i < RANDOM_PLACES; i++) places.add(random.below(Math.floor(device.sizeBytes / step)));
  for (const place of places) ranges.push({ offset: place * step, length: Math.min(step, device.sizeBytes - place * step) });
  return ranges;
}

/** Reads all ranges, four at a time. */
async function readRanges(client: NbdClient, ranges: readonly Range[], each: (range: Range, bytes: Uint8Array) => void): Promise<void> {
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < ranges.length) {
      const range = ranges[next++];
      each(range, await client.read(range.offset, range.length));
    }
  };
  await Promise.all([lane(), lane(), lane(), lane()]);
}

async function checkDevice(node: TestNode, model: CrashModel, device: ModelDevice, random: Random): Promise<string | undefined> {
  const client = await openDevice(node, device.name);
  try {
    if (client.export.sizeBytes !== device.sizeBytes) return `${device.name} has ${client.export.sizeBytes} bytes instead of ${device.sizeBytes}`;
    const versions = [device.cells, ...(device.alternative === undefined ? [] : [device.alternative])];
    const mismatches: Mismatch[][] = versions.map(() => []);
    const narrowed: { block: number; content: Parameters<CrashModel['narrow']>[2] }[][] = versions.map(() => []);
    await readRanges(client, rangesOf(model, device, random), ({ offset, length }, bytes) => {
      for (let at = 0; at < length; at += BLOCK) {
        const block = (offset + at) / BLOCK;
        for (const [i, cells] of versions.entries()) {
          const result = model.check(cells, block, bytes.subarray(at, at + BLOCK));
          if (!('found' in result)) mismatches[i].push(result);
          else if ((cells.get(block)?.values.length ?? 0) > 1) narrowed[i].push({ block, content: result.found });
        }
      }
    });
    const right = mismatches.findIndex((list) => list.length === 0);
    if (right < 0) {
      const list = mismatches[0];
      const more = list.length > MAX_REPORTED ? `\n... and ${list.length - MAX_REPORTED} more blocks: ${list.slice(MAX_REPORTED, 40).map((one) => one.block).join(' ')}` : '';
      const restore = versions.length > 1 ? ` (as if the restore that was under way had not happened; as if it had, ${mismatches[1].length} blocks differ)` : '';
      return `${list.length} blocks differ${restore}\n${list.slice(0, MAX_REPORTED).map((one) => model.explain(device, one)).join('\n')}${more}`;
    }
    device.cells = versions[right];
    device.alternative = undefined;
    for (const { block, content } of narrowed[right]) model.narrow(device.cells, block, content);
    return undefined;
  } finally {
    await client.disconnect();
  }
}

/** Every device of `node` holds what the model permits; afterwards nothing else is permitted. Throws with what differs. */
export async function checkNode(node: TestNode, model: CrashModel, random: Random): Promise<void> {
  for (const device of [...model.devices.values()]) {
    const wrong = await checkDevice(node, model, device, random);
    if (wrong !== undefined) throw new Error(`node ${node.name} lost or changed something that it had acknowledged: ${wrong}`);
  }
}

export async function deviceNames(node: TestNode): Promise<Set<string>> {
  const { devices } = await node.control.devices(GROUP);
  return new Set(devices.map((one) => one.name));
}

/** Waits until both are at one LSN, and compares tree and contents. Nothing may be written meanwhile. */
export async function checkPair(pair: Pair, model: CrashModel, random: Random, timeoutMs = 60_000): Promise<void> {
  const at = await catchUp(pair, timeoutMs);
  const facts = async (node: TestNode): Promise<string> => {
    const { lsn, devices } = await node.control.devices(GROUP);
    const rows = devices.map((one) => JSON.stringify({ ...one, clients: 0 })).sort();
    return [`lsn ${lsn}`, ...rows].join('\n');
  };
  await checkNode(pair.primary, model, random);
  const [here, there] = [await facts(pair.primary), await facts(pair.secondary)];
  if (here !== there) throw new Error(`the nodes have different trees at LSN ${at}\n--- ${pair.primary.name}\n${here}\n--- ${pair.secondary.name}\n${there}`);
  await checkNode(pair.secondary, model, random);
}

/** The LSN at which both stand. */
export async function catchUp(pair: Pair, timeoutMs = 60_000): Promise<number> {
  const { lsn } = await pair.primary.group(GROUP);
  let last = '';
  try {
    await waitFor('', async () => {
      const group = await pair.secondary.group(GROUP);
      last = `${group.role} at LSN ${group.lsn.applied}; ${group.links.map((link) => `${link.state}: ${link.reason}`).join('; ')}; ${group.errors.join('; ')}`;
      return group.lsn.applied >= lsn.appended;
    }, timeoutMs);
  } catch {
    const links = (await pair.primary.group(GROUP)).links.map((link) => `${link.state}: ${link.reason}`).join('; ');
    throw new Error(`${pair.secondary.name} does not catch up with LSN ${lsn.appended} of ${pair.primary.name} within ${timeoutMs} ms: it is ${last}\nlink of ${pair.primary.name}: ${links}`);
  }
  const applied = (await pair.secondary.group(GROUP)).lsn.applied;
  if (applied !== lsn.appended) throw new Error(`${pair.secondary.name} has applied LSN ${applied}, ${pair.primary.name} has appended only LSN ${lsn.appended}`);
  return applied;
}

/** sha256 of the whole device, or of `bytes` of it. */
export async function hashDevice(node: TestNode, device: string, bytes?: number): Promise<string> {
  const client = await openDevice(node, device);
  try {
    const hash = createHash('sha256');
    const end = bytes ?? client.export.sizeBytes;
    for (let offset = 0; offset < end; offset += MIB) hash.update(await client.read(offset, Math.min(MIB, end - offset)));
    return hash.digest('hex');
  } finally {
    await client.disconnect();
  }
}

/** sha256 of every device that is small enough, equal on both nodes at one LSN. Returns how many were compared. */
export async function checkHashes(pair: Pair, model: CrashModel): Promise<number> {
  await catchUp(pair);
  let compared = 0;
  for (const device of model.devices.values()) {
    if (device.sizeBytes > SMALL_BYTES) continue;
    const [here, there] = [await hashDevice(pair.primary, device.name), await hashDevice(pair.secondary, device.name)];
    if (here !== there) throw new Error(`sha256 of ${device.name} is ${here} on ${pair.primary.name} and ${there} on ${pair.secondary.name}`);
    compared++;
  }
  return compared;
}
