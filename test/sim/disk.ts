/**
 * The files of one simulated node: what outlives its crashes.
 *
 * Owns: names, directories, capacity, and what a SIGKILL or a power loss leaves.
 * Must not know: descriptors, jobs, time (io.ts, jobs.ts). What lies below TMPFS
 * is memory: it never fails to sync, and a power loss takes all of it.
 *
 * Names after power loss. Directory operations (create, rename, unlink, mkdir)
 * wait in one list, in order, until syncDirectory of a directory that they
 * touch. A power loss lets a subset of the waiting ones happen: none, all, a
 * prefix, or each by chance, but an operation only if every earlier waiting one
 * on a name that it touches (in the same directory) happened too. So one name goes through its states in
 * order, a rename happens at both of its names or at neither, and operations on
 * different names are independent. syncDirectory(D) makes durable what touches
 * D and, of earlier ones, what those depend on. A file whose name is not
 * durable vanishes, fdatasynced or not; so does all below a directory.
 */
import { Errno } from '../../src/base/errors.js';
import { Faults } from './faults.js';
import { SimFile, type Usage } from './file.js';
import { PAGE_BYTES } from './page.js';
import type { Random } from './random.js';

export const EISDIR = 21;
/** Mount point of a file system in memory. Its directories need no fsync, and are there only as long as the power. */
export const TMPFS = '/tmpfs';

export class SimDirectory {
  readonly cached = new Map<string, SimFile | SimDirectory>();
  durable = new Map<string, SimFile | SimDirectory>();
}

/** A directory operation not yet durable. `create` covers mkdir; a rename has a second place. */
interface PendingName {
  readonly kind: 'create' | 'unlink' | 'rename';
  readonly directory: SimDirectory;
  readonly name: string;
  readonly toDirectory: SimDirectory;
  readonly toName: string;
  readonly node: SimFile | SimDirectory;
}

export interface DiskOptions {
  /** Bytes; writes beyond fail with ENOSPC. */
  readonly capacity?: number;
}

export class SimDisk {
  private readonly root = new SimDirectory();
  private pending: PendingName[] = [];
  private readonly files = new Set<SimFile>();
  private nextId = 1;
  private call = 1;
  readonly usage: Usage = { pages: 0 };
  readonly faults: Faults;
  capacity: number;

  constructor(readonly random: Random, options: DiskOptions = {}) {
    this.capacity = options.capacity ?? 2 ** 50;
    this.faults = new Faults(random.fork(7));
  }

  /** A number for one write call (page.ts groups its chunks by it). */
  nextCall(): number {
    return ++this.call;
  }

  get freeBytes(): number {
    return Math.max(0, this.capacity - this.usage.pages * PAGE_BYTES);
  }

  // ---- names: each returns 0 or −errno, as the system call does ------------------------------------

  lookup(path: string): SimFile | SimDirectory | undefined {
    let at: SimFile | SimDirectory | undefined = this.root;
    for (const name of split(path)) {
      if (!(at instanceof SimDirectory)) return undefined;
      at = at.cached.get(name);
    }
    return at;
  }

  private parent(path: string): { directory: SimDirectory; name: string } | undefined {
    const names = split(path);
    const name = names.pop();
    if (name === undefined) return undefined;
    const directory = this.lookup(names.join('/'));
    return directory instanceof SimDirectory ? { directory, name } : undefined;
  }

  /** The new file, or −errno. */
  create(path: string): SimFile | number {
    const place = this.parent(path);
    if (place === undefined) return -Errno.ENOENT;
    const file = new SimFile(this.nextId++, this.usage);
    this.files.add(file);
    this.change({ kind: 'create', ...twice(place), node: file });
    return file;
  }

  mkdir(path: string): number {
    const place = this.parent(path);
    if (place === undefined) return -Errno.ENOENT;
    if (place.directory.cached.has(place.name)) return -Errno.EEXIST;
    this.change({ kind: 'create', ...twice(place), node: new SimDirectory() });
    return 0;
  }

  unlink(path: string): number {
    const place = this.parent(path);
    const node = place?.directory.cached.get(place.name);
    if (place === undefined || node === undefined) return -Errno.ENOENT;
    if (node instanceof SimDirectory) return -EISDIR;
    this.change({ kind: 'unlink', ...twice(place), node });
    return 0;
  }

  rename(from: string, to: string): number {
    const place = this.parent(from);
    const target = this.parent(to);
    const node = place?.directory.cached.get(place.name);
    if (place === undefined || target === undefined || node === undefined) return -Errno.ENOENT;
    const replaced = target.directory.cached.get(target.name);
    if (replaced === node) return 0;
    if (replaced instanceof SimDirectory) return -EISDIR;
    this.change({ kind: 'rename', ...place, toDirectory: target.directory, toName: target.name, node });
    return 0;
  }

  private change(op: PendingName): void {
    this.pending.push(op);
    this.hold(op.node);
    this.apply(op, false);
  }

  /** Performs `op` on the cached or the durable names, and counts references. */
  private apply(op: PendingName, durable: boolean): void {
    const map = (directory: SimDirectory): Map<string, SimFile | SimDirectory> => (durable ? directory.durable : directory.cached);
    const remove = (directory: SimDirectory, name: string): void => {
      const old = map(directory).get(name);
      if (old === undefined) return;
      map(directory).delete(name);
      this.drop(old);
    };
    if (op.kind !== 'create') {
      this.hold(op.node); // while it has no name
      remove(op.directory, op.name);
    }
    if (op.kind !== 'unlink') {
      remove(op.toDirectory, op.toName);
      map(op.toDirectory).set(op.toName, op.node);
      this.hold(op.node);
    }
    if (op.kind !== 'create') this.drop(op.node);
  }

  hold(node: SimFile | SimDirectory): void {
    if (node instanceof SimFile) node.references++;
  }

  /** One reference less; the last one frees the file. */
  drop(node: SimFile | SimDirectory): void {
    if (node instanceof SimFile && --node.references === 0) {
      node.release();
      this.files.delete(node);
    }
  }

  syncDirectory(path: string): number {
    const directory = this.lookup(path);
    if (directory === undefined) return -Errno.ENOENT;
    if (!(directory instanceof SimDirectory)) return -Errno.ENOTDIR;
    const wanted = new Set<PendingName>();
    for (let i = this.pending.length - 1; i >= 0; i--) {
      const op = this.pending[i];
      let needed = op.directory === directory || op.toDirectory === directory;
      if (!needed) for (const later of wanted) needed ||= sharesName(op, later);
      if (needed) wanted.add(op);
    }
    this.settle((op) => wanted.has(op));
    return 0;
  }

  /** Makes the chosen pending operations durable, in order, and leaves the others waiting. */
  private settle(chosen: (op: PendingName) => boolean): void {
    const happened = this.pending.filter(chosen);
    this.pending = this.pending.filter((op) => !happened.includes(op));
    for (const op of happened) {
      this.apply(op, true);
      this.drop(op.node);
    }
  }

  // ---- crashes ---------------------------------------------------------------------------------------

  /** The machine loses power: all files and names become what survived. Descriptors must be closed already. */
  powerLoss(): void {
    const random = this.random;
    const roll = random.unit();
    const prefix = random.below(this.pending.length + 1);
    const failed: PendingName[] = [];
    let position = 0;
    this.settle((op) => {
      const at = position++;
      let happens: boolean;
      if (roll < 0.2) happens = false;
      else if (roll < 0.4) happens = true;
      else if (roll < 0.6) happens = at < prefix;
      else happens = random.chance(0.5) && !failed.some((earlier) => sharesName(earlier, op));
      if (!happens) failed.push(op);
      return happens;
    });
    for (const op of this.pending) this.drop(op.node);
    this.pending = [];
    const memory = this.root.durable.get(TMPFS.slice(1));
    if (memory instanceof SimDirectory) memory.durable.clear();
    this.revertNames(this.root, new Set());
    this.sweep();
    // By id, not in the set's order of insertion alone: ids are the order of creation, which is the same.
    for (const file of this.files) file.powerLoss(random);
  }

  /** The cached names become the durable ones, from the root down. */
  private revertNames(directory: SimDirectory, seen: Set<SimDirectory>): void {
    if (seen.has(directory)) return;
    seen.add(directory);
    directory.cached.clear();
    for (const [name, node] of directory.durable) {
      directory.cached.set(name, node);
      if (node instanceof SimDirectory) this.revertNames(node, seen);
    }
  }

  /** Recounts references from the names and frees files that have none. */
  private sweep(): void {
    for (const file of this.files) file.references = 0;
    const count = (directory: SimDirectory): void => {
      for (const map of [directory.cached, directory.durable]) for (const node of map.values()) this.hold(node);
      for (const node of directory.cached.values()) if (node instanceof SimDirectory) count(node);
    };
    count(this.root);
    for (const file of [...this.files]) {
      if (file.references > 0) continue;
      file.release();
      this.files.delete(file);
    }
  }

  // ---- for tests ---------------------------------------------------------------------------------------

  /** Makes a directory and its parents, durable at once. */
  makeDirectories(path: string): void {
    let at = '';
    for (const name of split(path)) {
      const above = at === '' ? '/' : at;
      at += `/${name}`;
      if (this.lookup(at) === undefined && this.mkdir(at) !== 0) throw new Error(`mkdir ${at}`);
      this.syncDirectory(above);
    }
  }

  /** Paths of all files, in order. */
  paths(under = '/'): string[] {
    const found: string[] = [];
    const walk = (directory: SimDirectory, at: string): void => {
      for (const [name, node] of directory.cached) {
        if (node instanceof SimDirectory) walk(node, `${at}/${name}`);
        else found.push(`${at}/${name}`);
      }
    };
    const top = this.lookup(under);
    if (top instanceof SimDirectory) walk(top, under === '/' ? '' : under.replace(/\/+$/, ''));
    return found.sort();
  }

  file(path: string): SimFile {
    const node = this.lookup(path);
    if (!(node instanceof SimFile)) throw new Error(`no file ${path} on the simulated disk`);
    return node;
  }

  /** Content as readers see it. */
  peek(path: string, pos: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.file(path).read(bytes, pos);
    return bytes;
  }

  /** Content that a power loss would leave if it took everything not fdatasynced. */
  peekDurable(path: string, pos: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.file(path).readDurable(bytes, pos);
    return bytes;
  }

  /** Damages the medium: XORs `length` bytes at `pos` with nonzero random bytes. */
  corrupt(path: string, pos: number, length: number): void {
    const noise = new Uint8Array(length);
    for (let i = 0; i < length; i++) noise[i] = this.random.between(1, 255);
    this.file(path).corrupt(pos, noise);
  }

  /** Gives all memory back to the pool that runs share; the disk is used no more. */
  dispose(): void {
    for (const file of this.files) file.release();
    this.files.clear();
    this.pending = [];
  }
}

function split(path: string): string[] {
  return path.split('/').filter((name) => name !== '' && name !== '.');
}

function twice(place: { directory: SimDirectory; name: string }): {
  directory: SimDirectory; name: string; toDirectory: SimDirectory; toName: string;
} {
  return { ...place, toDirectory: place.directory, toName: place.name };
}

function sharesName(a: PendingName, b: PendingName): boolean {
  return (
    (a.directory === b.directory && a.name === b.name) ||
    (a.directory === b.toDirectory && a.name === b.toName) ||
    (a.toDirectory === b.directory && a.toName === b.name) ||
    (a.toDirectory === b.toDirectory && a.toName === b.toName)
  );
}
