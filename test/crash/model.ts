/**
 * What devices may hold, as far as a client can know it: for every block the
 * contents that are permitted.
 *
 * Owns: candidates per block; what an acknowledgement, a lost reply, a
 * snapshot or a restore does to them. Must not know: sockets, processes.
 *
 * A write is *flying* from submit to reply. When its reply is lost (the daemon
 * was killed) it has happened or not, block by block. Writes of whole blocks may
 * fly over each other: NBD does not order them. A write of a part of a block
 * flies alone over that block. Times are ticks of a counter.
 *
 * An operation that flies sees its source at an unknown moment: its image has
 * every content that a block may have had meanwhile. Checks after a kill narrow
 * candidates to what was found; from then on nothing else is right.
 */
import { BLOCK, Content, Patterns, SECTOR } from './content.js';

interface Value {
  readonly content: Content;
  /** When the write was acknowledged, or its reply given up. */
  readonly at: number;
}

class Cell {
  values: readonly Value[];
  flying: Flight[] = [];
  changes = 0;
  constructor(values: readonly Value[]) {
    this.values = values;
  }
}

const ZEROS: readonly Value[] = [{ content: Content.zero, at: 0 }];
type Cells = Map<number, Cell>;

export class ModelDevice {
  cells: Cells = new Map();
  /** Images under construction, to which every change of this device is a candidate. */
  readonly shadows = new Set<Image>();
  /** Zeroing of large ranges that fly: nothing else may fly there. */
  readonly wide = new Set<Flight>();
  /** What it also may be as a whole: a restore whose reply was lost. */
  alternative: Cells | undefined;
  /** Counts whole changes. */
  version = 0;
  /** Being removed: requests may fail. */
  doomed = false;
  constructor(readonly serial: number, readonly name: string, readonly volume: string, readonly sizeBytes: number) {}

  get isVolume(): boolean {
    return this.name === this.volume;
  }
}

export interface Flight {
  readonly device: ModelDevice;
  readonly kind: 'write' | 'zero';
  readonly offset: number;
  readonly length: number;
  readonly generation: number;
  readonly submitted: number;
  readonly blocks: readonly number[];
  state: 'flying' | 'acknowledged' | 'reply lost' | 'refused';
}

/** Content of a device to be, while the operation that makes it flies. */
export class Image {
  readonly cells: Cells = new Map();
  constructor(readonly of: readonly ModelDevice[]) {}
}

export interface ReadWatch {
  readonly device: ModelDevice;
  readonly offset: number;
  readonly length: number;
  readonly version: number;
  readonly cells: readonly { readonly changes: number; readonly candidates: readonly Content[]; readonly quiet: boolean }[];
}

export interface Mismatch {
  readonly block: number;
  readonly expected: readonly Content[];
  readonly actual: Uint8Array;
}

/** Zeroing of more blocks than this is not noted in each of them. */
const WIDE_BLOCKS = 4096;
const HISTORY = 200_000;

export class CrashModel {
  readonly devices = new Map<string, ModelDevice>();
  readonly patterns: Patterns;
  private now = 1;
  private nextSerial = 1;
  private nextGeneration = 1;
  private readonly history = new Map<number, Flight>();

  constructor(seed: number) {
    this.patterns = new Patterns(seed);
  }

  /** A device that is not (yet) known to exist; `add` makes it so. */
  make(name: string, volume: string, sizeBytes: number, image?: Image): ModelDevice {
    const device = new ModelDevice(this.nextSerial++, name, volume, sizeBytes);
    if (image !== undefined) device.cells = image.cells;
    return device;
  }

  add(device: ModelDevice): void {
    this.devices.set(device.name, device);
  }

  // ---- writes -------------------------------------------------------------------------------------

  /** Undefined when it may not fly now. */
  begin(device: ModelDevice, kind: 'write' | 'zero', offset: number, length: number): Flight | undefined {
    const first = Math.floor(offset / BLOCK);
    const last = Math.floor((offset + length - 1) / BLOCK);
    for (const other of device.wide) if (other.offset < (last + 1) * BLOCK && other.offset + other.length > first * BLOCK) return undefined;
    const wide = last - first >= WIDE_BLOCKS;
    const blocks: number[] = [];
    if (wide) for (const block of device.cells.keys()) if (block >= first && block <= last) blocks.push(block);
    if (!wide) for (let block = first; block <= last; block++) blocks.push(block);
    if (wide && (offset % BLOCK !== 0 || length % BLOCK !== 0)) return undefined;
    for (const block of blocks) {
      const flying = device.cells.get(block)?.flying ?? [];
      if (flying.length > 0 && (!covers(offset, length, block) || flying.some((other) => !covers(other.offset, other.length, block)))) return undefined;
    }
    const flight: Flight = { device, kind, offset, length, generation: this.nextGeneration++, submitted: this.now++, blocks, state: 'flying' };
    if (wide) device.wide.add(flight);
    for (const block of blocks) {
      const cell = cellOf(device.cells, block);
      cell.flying.push(flight);
      cell.changes++;
      for (const image of device.shadows) this.widen(image.cells, block, flight);
    }
    this.history.set(flight.generation, flight);
    if (this.history.size > HISTORY) this.history.delete(this.history.keys().next().value!);
    return flight;
  }

  payload(flight: Flight): Uint8Array {
    const bytes = new Uint8Array(flight.length);
    for (const block of flight.blocks) {
      const [from, to] = part(flight, block);
      const whole = this.patterns.bytesOf(Content.whole(flight.device.serial, block, flight.generation));
      bytes.set(whole.subarray(from, to), block * BLOCK + from - flight.offset);
    }
    return bytes;
  }

  acknowledged(flight: Flight): void {
    const at = this.now++;
    this.end(flight, 'acknowledged', (cell, block, flew) => {
      if (!flew) return this.withCandidate(cell.values, block, flight, at);
      if (!covers(flight.offset, flight.length, block)) return unique(cell.values.map(({ content }) => ({ content: this.effect(flight, block, content), at })));
      // What was acknowledged while this one flew may have been executed after it.
      return unique([...cell.values.filter((value) => value.at > flight.submitted), { content: this.effect(flight, block, Content.zero), at }]);
    });
  }

  /** The reply will never come. */
  lost(flight: Flight): void {
    const at = this.now++;
    this.end(flight, 'reply lost', (cell, block) => this.withCandidate(cell.values, block, flight, at));
  }

  /** It was answered with an error that says that nothing was done. */
  refused(flight: Flight): void {
    this.end(flight, 'refused', (cell) => cell.values);
  }

  private end(flight: Flight, state: Flight['state'], change: (cell: Cell, block: number, flew: boolean) => readonly Value[]): void {
    flight.state = state;
    flight.device.wide.delete(flight);
    for (const block of flight.blocks) {
      // Looked up anew: a restore may have replaced all cells meanwhile.
      const cell = cellOf(flight.device.cells, block);
      const index = cell.flying.indexOf(flight);
      cell.values = change(cell, block, index >= 0);
      if (index >= 0) cell.flying.splice(index, 1);
    }
  }

  /** What `flight` makes of a block that holds `content`. */
  private effect(flight: Flight, block: number, content: Content): Content {
    const over = flight.kind === 'zero' ? Content.zero : Content.whole(flight.device.serial, block, flight.generation);
    if (covers(flight.offset, flight.length, block)) return over;
    const [from, to] = part(flight, block);
    return this.patterns.mix(content, over, from, to);
  }

  private withCandidate(values: readonly Value[], block: number, flight: Flight, at: number): readonly Value[] {
    return unique([...values, ...values.map(({ content }) => ({ content: this.effect(flight, block, content), at }))]);
  }

  private widen(cells: Cells, block: number, flight: Flight): void {
    const cell = cellOf(cells, block);
    cell.values = this.withCandidate(cell.values, block, flight, this.now);
  }

  // ---- operations -----------------------------------------------------------------------------------

  /** An image of `source`, as a snapshot or restore that is about to be asked for may find it. */
  beginImage(source: ModelDevice, target?: ModelDevice): Image {
    const image = new Image(target === undefined ? [source] : [source, target]);
    for (const [block, cell] of source.cells) {
      image.cells.set(block, new Cell(cell.values));
      for (const flight of cell.flying) this.widen(image.cells, block, flight);
    }
    // What flies to the target may be executed before or after.
    for (const [block, cell] of target?.cells ?? []) for (const flight of cell.flying) this.widen(image.cells, block, flight);
    for (const device of image.of) device.shadows.add(image);
    return image;
  }

  endImage(image: Image): void {
    for (const device of image.of) device.shadows.delete(image);
    const at = this.now++;
    for (const cell of image.cells.values()) cell.values = cell.values.map(({ content }) => ({ content, at }));
  }

  restored(target: ModelDevice, image: Image): void {
    this.endImage(image);
    target.cells = image.cells;
    target.version++;
  }

  // ---- checks ---------------------------------------------------------------------------------------

  beginRead(device: ModelDevice, offset: number, length: number): ReadWatch {
    const cells: { changes: number; candidates: readonly Content[]; quiet: boolean }[] = [];
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + length; block++) {
      const cell = device.cells.get(block);
      cells.push({ changes: cell?.changes ?? 0, candidates: this.candidates(cell, block), quiet: (cell?.flying.length ?? 0) === 0 });
    }
    return { device, offset, length, version: device.version, cells };
  }

  /** Offset and length of the read are whole blocks. */
  endRead(watch: ReadWatch, bytes: Uint8Array): Mismatch | undefined {
    const { device } = watch;
    if (device.version !== watch.version || device.shadows.size > 0) return undefined;
    for (const [i, before] of watch.cells.entries()) {
      const block = watch.offset / BLOCK + i;
      const cell = device.cells.get(block);
      const changed = (cell?.changes ?? 0) - before.changes;
      if (changed > 1) continue; // a content may have come and gone
      const expected = changed === 0 && before.quiet ? before.candidates : [...before.candidates, ...this.candidates(cell, block)];
      const actual = bytes.subarray(i * BLOCK, (i + 1) * BLOCK);
      // A read and a write that fly together are ordered sector by sector.
      const right = changed === 0 && before.quiet ? expected.some((one) => this.patterns.equal(one, actual)) : this.sectorsMatch(expected, actual);
      if (!right) return { block, expected, actual: Uint8Array.from(actual) };
    }
    return undefined;
  }

  private sectorsMatch(expected: readonly Content[], actual: Uint8Array): boolean {
    for (let sector = 0; sector < BLOCK / SECTOR; sector++) {
      if (!expected.some((one) => this.patterns.equalSector(one, sector, actual))) return false;
    }
    return true;
  }

  private candidates(cell: Cell | undefined, block: number): Content[] {
    if (cell === undefined) return [Content.zero];
    let values = cell.values;
    for (const flight of cell.flying) values = this.withCandidate(values, block, flight, 0);
    return values.map(({ content }) => content);
  }

  /** The blocks that were ever written. */
  written(device: ModelDevice): number[] {
    return [...new Set([...device.cells.keys(), ...(device.alternative?.keys() ?? [])])].sort((a, b) => a - b);
  }

  /** Only while nothing flies to the device. */
  check(cells: Cells, block: number, actual: Uint8Array): { found: Content } | Mismatch {
    const values = cells.get(block)?.values ?? ZEROS;
    const found = values.find((value) => this.patterns.equal(value.content, actual));
    if (found !== undefined) return { found: found.content };
    return { block, expected: values.map(({ content }) => content), actual: Uint8Array.from(actual) };
  }

  /** From now on the block holds this, and nothing else. */
  narrow(cells: Cells, block: number, content: Content): void {
    const cell = cells.get(block);
    if (cell !== undefined && cell.values.length > 1) cell.values = [{ content, at: this.now++ }];
  }

  /** How many blocks have more than one permitted content. */
  get undecided(): number {
    let count = 0;
    for (const device of this.devices.values()) for (const cell of device.cells.values()) if (cell.values.length > 1) count++;
    return count;
  }

  explain(device: ModelDevice, mismatch: Mismatch): string {
    const { patterns } = this;
    const lines = [`${device.name} (device ${device.serial}) offset ${mismatch.block * BLOCK}, block ${mismatch.block}:`];
    for (const one of mismatch.expected) lines.push(`  permitted: ${patterns.describe(new Uint8Array(patterns.bytesOf(one)))} <${one.key}>`);
    lines.push(`  found:     ${patterns.describe(mismatch.actual)}`);
    const generations = new Set<number>();
    for (const match of lines.join('\n').matchAll(/generation (\d+)|\d+:\d+:(\d+)/g)) generations.add(Number(match[1] ?? match[2]));
    for (const generation of [...generations].sort((a, b) => a - b)) {
      const flight = this.history.get(generation);
      if (flight === undefined) continue;
      lines.push(`  generation ${generation}: ${flight.kind} of ${flight.device.name}, offset ${flight.offset}, length ${flight.length}, submitted at ${flight.submitted}, ${flight.state}`);
    }
    return lines.join('\n');
  }
}

function cellOf(cells: Cells, block: number): Cell {
  let cell = cells.get(block);
  if (cell === undefined) cells.set(block, (cell = new Cell(ZEROS)));
  return cell;
}

function covers(offset: number, length: number, block: number): boolean {
  return offset <= block * BLOCK && offset + length >= (block + 1) * BLOCK;
}

/** The part of a block that a write changes. */
function part(flight: Flight, block: number): [number, number] {
  return [Math.max(0, flight.offset - block * BLOCK), Math.min(BLOCK, flight.offset + flight.length - block * BLOCK)];
}

/** One of each content; the latest time counts. */
function unique(values: readonly Value[]): readonly Value[] {
  if (values.length < 2) return values;
  const byKey = new Map<string, Value>();
  for (const value of values) {
    const known = byKey.get(value.content.key);
    if (known === undefined || known.at < value.at) byKey.set(value.content.key, value);
  }
  return [...byKey.values()];
}
