/**
 * Every operation in one table: what it changed, what it put on the wire, how
 * long the data thread was in it, what it did to the latency of writers, and
 * that both nodes have the same content after it.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { formatSize } from '../../src/base/units.js';
import { NOTHING, differingBytes, type DeviceContent } from './device-content.js';
import { load, type LoadResult } from './measure.js';
import { KINDS, type Kind } from './operations-kinds.js';
import { GROUP, LOADED_BYTES, OperationsRig } from './operations-rig.js';
import { measureRange, type RangeRestore } from './range-restore.js';
import { median, short, table } from './statistics.js';
import type { BenchOptions } from './options.js';

const WIRE_LIMIT_BYTES = 1024;
const MARKER_LIMIT_US = 5000;
const DIFFERENCE_LIMIT_US = 20_000;
const CHANGED_BYTES = 2 ** 30;
/** Of one operation while one interval of load runs. */
const TIMES = 6;

interface Measured {
  readonly kind: string;
  changedBytes: number;
  /** The same as the daemon's meter says, once it has counted. */
  meteredBytes: number;
  /** Its marker on the link, as the meter says. */
  markerBytes: number;
  /** All that crossed the link while it was done. */
  wireBytes: number;
  readonly dataThreadUs: number[];
  readonly roundTripUs: number[];
  readonly p999With: number[];
  readonly p999Without: number[];
  maxWithUs: number;
  /** Read and compared on each node after the operation. */
  comparedBytes: number;
  devices: number;
  readonly problems: string[];
}

/** Content of what the operation changes, as far as it exists. */
async function contents(rig: OperationsRig, devices: readonly string[]): Promise<DeviceContent[]> {
  const existing = new Set((await rig.control.devices(GROUP)).devices.map((one) => one.name));
  return Promise.all(devices.map((name) => (existing.has(name) ? rig.content(name) : Promise.resolve(NOTHING))));
}

async function timed(rig: OperationsRig, kind: Kind, i: number, into: Measured): Promise<number> {
  const begun = performance.now();
  const reply = await kind.once(rig, i);
  into.roundTripUs.push((performance.now() - begun) * 1000);
  into.dataThreadUs.push(reply.dataThreadUs);
  return reply.lsn;
}

/** Once, without any load: its bytes, and both nodes afterwards. */
async function atRest(rig: OperationsRig, kind: Kind, into: Measured): Promise<void> {
  await kind.before?.(rig, 1);
  const before = await contents(rig, kind.changes);
  const wire = await rig.wireBytes();
  const lsn = await timed(rig, kind, 0, into);
  into.wireBytes = (await rig.wireBytes()) - wire;
  const metered = await rig.metered(lsn);
  into.meteredBytes = metered.changedBytes;
  into.markerBytes = Object.values(metered.wireBytes).reduce((sum, bytes) => sum + bytes, 0);
  const compared = await rig.compare();
  into.comparedBytes = compared.bytes;
  into.devices = compared.devices;
  into.problems.push(...compared.problems);
  const after = await contents(rig, kind.changes);
  into.changedBytes = after.reduce((sum, content, i) => sum + differingBytes(before[i], content), 0);
  if (kind.assigns === true && (metered.changed !== 'exact' || into.meteredBytes !== into.changedBytes)) {
    into.problems.push(`the meter says that ${into.meteredBytes} bytes changed (${metered.changed}), by content it was ${into.changedBytes}`);
  }
  await kind.after?.(rig, 1);
}

function underLoad(rig: OperationsRig, seed: number, seconds: number): Promise<LoadResult> {
  return load(rig.target('loaded'), ['--op', 'write', '--depth', '32', '--range', String(LOADED_BYTES), '--seconds', String(seconds), '--seed', String(seed)]);
}

/** One interval of load with the operation and one without, in either order. */
async function round(rig: OperationsRig, kind: Kind, number: number, seconds: number, into: Measured): Promise<void> {
  for (const operating of number % 2 === 0 ? [false, true] : [true, false]) {
    await rig.settle();
    if (!operating) {
      into.p999Without.push((await underLoad(rig, number + 1, seconds)).latencyUs.p999);
      continue;
    }
    await kind.before?.(rig, TIMES);
    const running = underLoad(rig, number + 1, seconds);
    const pauseMs = (seconds * 1000) / (TIMES + 1);
    const begun = performance.now();
    for (let i = 0; i < TIMES; i++) {
      await new Promise((done) => setTimeout(done, Math.max(0, begun + (i + 1) * pauseMs - performance.now())));
      await timed(rig, kind, i, into);
    }
    const result = await running;
    into.p999With.push(result.latencyUs.p999);
    into.maxWithUs = Math.max(into.maxWithUs, result.latencyUs.max);
    await kind.after?.(rig, TIMES);
  }
}

function difference(one: Measured): number {
  return median(one.p999With) - median(one.p999Without);
}

function render(measured: readonly Measured[]): string {
  return table([
    ['', 'changed', 'metered', 'marker bytes', 'wire bytes', 'data thread us', 'worst', 'round trip ms', 'p99.9 ms', 'without', 'difference', 'max ms', 'both nodes'],
    ...measured.map((one) => [
      one.kind, formatSize(one.changedBytes), formatSize(one.meteredBytes), String(one.markerBytes), String(one.wireBytes),
 short(median(one.dataThreadUs)), short(Math.max(...one.dataThreadUs)), short(median(one.roundTripUs) / 1000),
      short(median(one.p999With) / 1000), short(median(one.p999Without) / 1000), short(difference(one) / 1000), short(one.maxWithUs / 1000),
      one.problems.length > 0 ? 'PROBLEM' : `equal: ${one.devices} devices, ${formatSize(one.comparedBytes)}`,
    ]),
  ]);
}

function judge(measured: readonly Measured[]): string[] {
  const missed: string[] = [];
  for (const one of measured) {
    const worst = Math.max(...one.dataThreadUs);
    if (!(one.wireBytes < WIRE_LIMIT_BYTES)) missed.push(`${one.kind}: ${one.wireBytes} bytes on the wire, limit ${WIRE_LIMIT_BYTES}`);
    if (!(worst < MARKER_LIMIT_US)) missed.push(`${one.kind}: the data thread spent ${short(worst)} us in one, limit ${MARKER_LIMIT_US}`);
    if (!(difference(one) < DIFFERENCE_LIMIT_US)) missed.push(`${one.kind}: raises p99.9 of writes by ${short(difference(one))} us, limit ${DIFFERENCE_LIMIT_US}`);
    missed.push(...one.problems.map((problem) => `${one.kind}: ${problem}`));
  }
  return missed;
}

export async function runOperations(options: BenchOptions): Promise<{ missed: string[]; measured: readonly Measured[]; range: RangeRestore[] }> {
  if (!KINDS.some((kind) => kind.name.includes(options.only))) throw new Error(`no operation has ${options.only} in its name; there are ${KINDS.map((kind) => kind.name).join('; ')}`);
  const directory = join(options.directory, 'operations');
  mkdirSync(directory);
  const rig = await OperationsRig.open(directory);
  const kinds = KINDS.filter((kind) => kind.name.includes(options.only));
  const measured: Measured[] = kinds.map(({ name }) => ({
    kind: name, changedBytes: NaN, meteredBytes: NaN, markerBytes: NaN, wireBytes: NaN, dataThreadUs: [], roundTripUs: [], p999With: [], p999Without: [], maxWithUs: 0, comparedBytes: 0, devices: 0, problems: [],
  }));
  let ranges: { rows: RangeRestore[]; text: string; missed: string[] };
  const missed: string[] = [];
  try {
    await rig.fill(CHANGED_BYTES * options.scale);
    options.say('a volume of 64 GiB with snapshots, on two nodes');
    for (const [i, kind] of kinds.entries()) {
      await atRest(rig, kind, measured[i]);
      options.say(`${kind.name}: done at rest`);
    }
    ranges = await measureRange(rig);
    for (let number = 0; number < options.rounds; number++) {
      for (const [i, kind] of kinds.entries()) await round(rig, kind, number, options.seconds, measured[i]);
      options.say(`round ${number + 1} of ${options.rounds} done`);
    }
    await rig.settle();
    const last = await rig.compare();
    missed.push(...last.problems.map((problem) => `after all rounds: ${problem}`));
    options.say(`compared once more: ${last.devices} devices, ${formatSize(last.bytes)} on each node`);
  } finally {
    await rig.close();
  }
  const scaled = options.scale === 1 ? '' : ` (A TRIAL: scale ${options.scale})`;
  console.log(`\nevery operation: a volume of 64 GiB, ${formatSize(CHANGED_BYTES * options.scale)} of random 4 KiB blocks differ from its snapshot; primary and secondary here${scaled}\n`);
  console.log(render(measured));
  console.log('\nchanged: bytes that a device had not before, by content read over NBD; a new device counts as having had nothing.');
  console.log('metered, marker: what lockstepd itself says of the operation: tree edits change nothing, a resize its difference.');
  console.log('wire: both directions of the link while nothing else crossed it, acknowledgements and heartbeats included.');
  console.log(`data thread: of ${measured[0].dataThreadUs.length} operations each, of which ${options.rounds * TIMES} under load. p99.9: of 4 KiB writes, depth 32, to another volume of the group,`);
  console.log(`${TIMES} operations in ${options.seconds} s; medians of ${options.rounds} interleaved rounds. both nodes: sha256 of all non-zero blocks of every device, read whole over NBD`);
  console.log('after the operation at the same LSN.');
  console.log(`\n${ranges.text}`);
  console.log(`\nlimits: ${WIRE_LIMIT_BYTES} bytes, ${MARKER_LIMIT_US} us, ${DIFFERENCE_LIMIT_US / 1000} ms`);
  missed.push(...judge(measured), ...ranges.missed);
  return { missed, measured, range: ranges.rows };
}
