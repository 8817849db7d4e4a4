/**
 * Compares what a real node holds with what is permitted: every device's facts
 * through the control socket, every device's content through NBD.
 *
 * Owns: what is read. Must not know: the load, kills.
 */
import { KIB } from '../../src/base/units.js';
import type { DeviceEntry } from '../../src/control/schema/replies.js';
import { GROUP, openDevice } from '../crash/clients.js';
import type { TestNode } from '../harness/node.js';
import type { Random } from '../sim/random.js';
import { permitted } from './belief.js';
import type { Belief, BelievedDevice, BelievedState } from './belief.js';
import { BLOCK, factsLine } from './devices.js';

const PIECE = 64 * KIB;
const PIECE_BLOCKS = PIECE / BLOCK;
/** Places per device that are read although nothing was ever written there, or only to others. */
const OTHER_PLACES = 6;

function lineOf(entry: DeviceEntry): string {
  if (entry.kind === 'local') throw new Error(`${entry.name} is local, which nobody asked for`);
  return factsLine({ ...entry, kind: entry.kind, parent: entry.parent ?? 0, volume: 0, set: entry.set ?? '' }, entry.name);
}

/** Throws when `entries` are not as the model has them: all devices, or just some of them. */
export function compareFacts(entries: readonly DeviceEntry[], state: BelievedState, where: string, all: boolean): void {
  const known = new Set(state.facts);
  const have = entries.map(lineOf).sort();
  if (have.every((line) => known.has(line)) && (!all || have.length === known.size)) return;
  throw new Error(`${where} has\n${have.join('\n')}\nshould ${all ? 'be' : 'be among'}\n${[...known].join('\n')}`);
}

function sameFacts(entries: readonly DeviceEntry[], state: BelievedState): boolean {
  return entries.map(lineOf).sort().join('\n') === state.facts.join('\n');
}

/**
 * `states`: what is possible, one of them has to be it as a whole. Returns that
 * one, narrowed to what was found. Nothing may be under way.
 */
export async function compareNode(node: TestNode, belief: Belief, states: readonly BelievedState[], touched: ReadonlySet<number>, random: Random): Promise<BelievedState> {
  const { devices } = await node.control.devices(GROUP);
  let possible = states.filter((state) => sameFacts(devices, state));
  if (possible.length === 0) compareFacts(devices, states[0], node.name, true);
  const wrong: string[] = [];
  for (const { id } of devices) {
    const versions = possible.map((state) => state.devices.get(id)!);
    const problems = await compareDevice(node, belief, possible[0].nameOf(versions[0]), versions, touched, random);
    wrong.push(...problems.filter((one) => one !== undefined));
    possible = possible.filter((_state, i) => problems[i] === undefined);
    if (possible.length === 0) throw new Error(`${node.name} holds what it may not: ${wrong.join('\nor ')}`);
  }
  return possible[0];
}

/** For each version undefined, or what is wrong as far as it is that version. */
async function compareDevice(
  node: TestNode, belief: Belief, name: string, versions: readonly BelievedDevice[], touched: ReadonlySet<number>, random: Random,
): Promise<(string | undefined)[]> {
  const { sizeBytes } = versions[0];
  const client = await openDevice(node, name);
  try {
    if (client.export.sizeBytes !== sizeBytes) return versions.map(() => `${name} is served with ${client.export.sizeBytes} bytes instead of ${sizeBytes}`);
    const problems: (string | undefined)[] = versions.map(() => undefined);
    const pieces = [...piecesToRead(versions, sizeBytes, touched, random)];
    const lane = async (): Promise<void> => {
      for (let piece = pieces.pop(); piece !== undefined; piece = pieces.pop()) {
        const offset = piece * PIECE;
        const bytes = await client.read(offset, Math.min(PIECE, sizeBytes - offset));
        for (let at = 0; at < bytes.length; at += BLOCK) {
          const block = (offset + at) / BLOCK;
          const actual = bytes.subarray(at, at + BLOCK);
          versions.forEach((device, i) => {
            const found = permitted(device, block).find((one) => belief.patterns.equal(one, actual));
            if (found === undefined) problems[i] ??= `${name}: ${belief.explain(device, block, actual)}`;
            else if (permitted(device, block).length > 1) device.blocks.set(block, [found]);
          });
        }
      }
    };
    await Promise.all([lane(), lane(), lane(), lane()]);
    return problems;
  } finally {
    await client.disconnect();
  }
}

function piecesToRead(versions: readonly BelievedDevice[], sizeBytes: number, touched: ReadonlySet<number>, random: Random): Set<number> {
  const pieces = Math.ceil(sizeBytes / PIECE);
  const wanted = new Set<number>();
  for (const device of versions) for (const block of device.blocks.keys()) wanted.add(Math.floor(block / PIECE_BLOCKS));
  const elsewhere = [...touched].map((block) => Math.floor(block / PIECE_BLOCKS)).filter((piece) => piece < pieces && !wanted.has(piece));
  for (let i = 0; i < OTHER_PLACES; i++) {
    wanted.add(random.below(pieces));
    if (elsewhere.length > 0) wanted.add(random.pick(elsewhere));
  }
  return wanted;
}
