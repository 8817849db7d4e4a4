/**
 * What devices of real daemons may hold, as far as clients can know it: the
 * model of devices.ts with, for each block, the contents that are permitted.
 *
 * Owns: what submitting, an acknowledgement, a lost reply and an operation do to
 * them. Must not know: sockets, processes, what is asked for.
 *
 * A write widens its blocks when it is submitted and narrows them when it is
 * acknowledged. Writes never fly over each other here (the simulation has that).
 * One that flies while an operation does has happened before or after it, and
 * narrows nothing; reads do, later.
 */
import type { Operation } from '../../src/group/tree/record.js';
import { Content, Patterns } from '../crash/content.js';
import { BLOCK, Devices } from './devices.js';
import type { Device } from './devices.js';

export type Permitted = readonly Content[];
export type BelievedDevice = Device<Permitted>;
export class BelievedState extends Devices<Permitted> {}

const ZERO: Permitted = [Content.zero];
/** Zeroing of more blocks than this is noted in those only that may hold something. */
const WIDE_BLOCKS = 4096;

export interface Flight {
  readonly device: number;
  readonly kind: 'write' | 'zero';
  readonly offset: number;
  readonly length: number;
  readonly generation: number;
  /** What was permitted before. */
  readonly before: ReadonlyMap<number, Permitted>;
  /** An operation was under way at some time of it. */
  overlapped: boolean;
}

export interface Watch {
  readonly device: number;
  readonly offset: number;
  readonly length: number;
  readonly permitted: readonly Permitted[];
  readonly operations: number;
}

export class Belief {
  state = new BelievedState();
  readonly patterns: Patterns;
  private readonly flights = new Set<Flight>();
  private nextGeneration = 1;
  /** Flights that began while an operation was under way; undefined when none is. */
  private beside: Set<Flight> | undefined;
  /** Operations begun and ended so far. */
  private operations = 0;

  constructor(seed: number) {
    this.patterns = new Patterns(seed);
  }

  get inFlight(): number {
    return this.flights.size;
  }

  /** Undefined when it would fly over another one. */
  begin(device: BelievedDevice, kind: 'write' | 'zero', offset: number, length: number): Flight | undefined {
    const [first, last] = [Math.floor(offset / BLOCK), Math.floor((offset + length - 1) / BLOCK)];
    for (const other of this.flights) {
      if (other.device === device.id && other.offset < (last + 1) * BLOCK && other.offset + other.length > first * BLOCK) return undefined;
    }
    const blocks: number[] = [];
    if (last - first < WIDE_BLOCKS) for (let block = first; block <= last; block++) blocks.push(block);
    else if (kind === 'write' || offset % BLOCK !== 0 || length % BLOCK !== 0) return undefined;
    else for (const block of device.blocks.keys()) if (block >= first && block <= last) blocks.push(block);
    const before = new Map(blocks.map((block) => [block, permitted(device, block)]));
    const flight: Flight = { device: device.id, kind, offset, length, generation: this.nextGeneration++, before, overlapped: this.beside !== undefined };
    for (const [block, old] of before) device.blocks.set(block, this.either(flight, block, old));
    this.flights.add(flight);
    this.beside?.add(flight);
    return flight;
  }

  payload(flight: Flight): Uint8Array {
    const bytes = new Uint8Array(flight.length);
    for (const block of flight.before.keys()) {
      const [from, to] = part(flight, block);
      const whole = this.patterns.bytesOf(Content.whole(flight.device, block, flight.generation));
      bytes.set(whole.subarray(from, to), block * BLOCK + from - flight.offset);
    }
    return bytes;
  }

  acknowledged(flight: Flight): void {
    this.flights.delete(flight);
    const device = this.state.devices.get(flight.device);
    if (flight.overlapped || device === undefined) return;
    for (const [block, old] of flight.before) device.blocks.set(block, unique(old.map((one) => this.effect(flight, block, one))));
  }

  /** Its reply will never come. */
  lost(flight: Flight): void {
    this.flights.delete(flight);
  }

  /** It was answered with an error that says that nothing was done. */
  refused(flight: Flight): void {
    this.flights.delete(flight);
    const device = this.state.devices.get(flight.device);
    if (flight.overlapped || device === undefined) return;
    for (const [block, old] of flight.before) device.blocks.set(block, old);
  }

  private effect(flight: Flight, block: number, content: Content): Content {
    const over = flight.kind === 'zero' ? Content.zero : Content.whole(flight.device, block, flight.generation);
    const [from, to] = part(flight, block);
    return to - from === BLOCK ? over : this.patterns.mix(content, over, from, to);
  }

  private either(flight: Flight, block: number, old: Permitted): Permitted {
    return unique([...old, ...old.map((one) => this.effect(flight, block, one))]);
  }

  // ---- operations -----------------------------------------------------------------------------------

  /** An operation is about to be asked for. One at a time. */
  beginOperation(): void {
    this.beside = new Set();
    for (const flight of this.flights) flight.overlapped = true;
    this.operations++;
  }

  /**
   * What it makes of everything. What flew to a device before it was replaced was
   * executed before or never; what began later may come on top.
   */
  after(operation: Operation): BelievedState {
    const next = this.state.clone();
    next.operate(operation);
    const changed = new Set(operation.op === 'assign' ? operation.pairs.map((pair) => pair.target) : operation.op === 'resize' ? [operation.device] : []);
    for (const flight of this.beside!) {
      const device = next.devices.get(flight.device);
      if (device === undefined || !changed.has(device.id)) continue;
      for (const block of flight.before.keys()) {
        if (block * BLOCK < device.sizeBytes) device.blocks.set(block, this.either(flight, block, permitted(device, block)));
      }
    }
    return next;
  }

  endOperation(state: BelievedState): void {
    this.state = state;
    this.beside = undefined;
    this.operations++;
  }

  // ---- reads ------------------------------------------------------------------------------------------

  beginRead(device: BelievedDevice, offset: number, length: number): Watch {
    const blocks: Permitted[] = [];
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + length; block++) blocks.push(permitted(device, block));
    return { device: device.id, offset, length, permitted: blocks, operations: this.beside === undefined ? this.operations : -1 };
  }

  /** A sentence about the first block that holds what it may not; whole blocks that nothing changed meanwhile are looked at. */
  endRead(watch: Watch, bytes: Uint8Array): string | undefined {
    const device = this.state.devices.get(watch.device);
    if (device === undefined || watch.operations !== this.operations) return undefined;
    const first = Math.floor(watch.offset / BLOCK);
    for (const [i, before] of watch.permitted.entries()) {
      const block = first + i;
      const at = block * BLOCK - watch.offset;
      if (at < 0 || at + BLOCK > bytes.length || permitted(device, block) !== before || this.flies(watch.device, block)) continue;
      const actual = bytes.subarray(at, at + BLOCK);
      const found = before.find((one) => this.patterns.equal(one, actual));
      if (found === undefined) return this.explain(device, block, actual);
      if (before.length > 1) device.blocks.set(block, [found]);
    }
    return undefined;
  }

  private flies(device: number, block: number): boolean {
    for (const flight of this.flights) if (flight.device === device && flight.offset < (block + 1) * BLOCK && flight.offset + flight.length > block * BLOCK) return true;
    return false;
  }

  explain(device: BelievedDevice, block: number, actual: Uint8Array): string {
    const { patterns } = this;
    const allowed = permitted(device, block).map((one) => `${patterns.describe(new Uint8Array(patterns.bytesOf(one)))} <${one.key}>`);
    return `block ${block} of device ${device.id} holds ${patterns.describe(actual)}; permitted: ${allowed.join(' or ')}`;
  }
}

export function permitted(device: BelievedDevice, block: number): Permitted {
  return device.blocks.get(block) ?? ZERO;
}

function unique(contents: readonly Content[]): Permitted {
  return contents.length < 2 ? contents : [...new Map(contents.map((one) => [one.key, one])).values()];
}

/** The part of a block that a flight changes. */
function part(flight: { readonly offset: number; readonly length: number }, block: number): [number, number] {
  return [Math.max(0, flight.offset - block * BLOCK), Math.min(BLOCK, flight.offset + flight.length - block * BLOCK)];
}
