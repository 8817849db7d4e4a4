/**
 * The export cursors of a group: named readers outside of Lockstep, for which
 * the journal is kept over restarts.
 *
 * Owns: the cursors, making each change durable on a helper, telling who waits
 * for that. Must not know: what is exported, HTTP.
 *
 * A change counts when its slot is durable; until then the journal is kept for
 * the cursor as it was and as it will be. When a write fails nothing has
 * changed, as far as anybody was told; a restart may find it done all the same.
 */

import { assert } from '../base/assert.js';
import { IoError } from '../base/errors.js';
import type { EpochPosition } from '../base/position.js';
import { JobOp, JobTable, O, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { CURSOR_FILE, CURSOR_SLOT_BYTES, encodeCursorSlot, readCursors } from './content/cursorfile.js';
import type { Cursor } from './content/cursorfile.js';

/** Called once: undefined when the change is durable, or why it was not made. */
export type Saved = (error: IoError | undefined) => void;

const RETRY_US = 10_000;

export class Cursors {
  /** As on disk. */
  private durable: ReadonlyMap<string, Cursor> = new Map();
  /** As it will be. */
  private current: ReadonlyMap<string, Cursor> = new Map();
  private sequence = 0;
  private groupId = '';
  private writing = false;
  private named = false;
  private waiting: Saved[] = [];

  constructor(private readonly reactor: Reactor, private readonly directory: string) {}

  /** Reads what is on disk. Blocking; throws CorruptionError, IoError. */
  load(groupId: string): void {
    this.groupId = groupId;
    const found = readCursors(this.reactor.io, this.directory, groupId);
    if (found === undefined) return;
    this.sequence = found.sequence;
    this.durable = this.current = new Map(found.cursors.map((cursor) => [cursor.name, cursor]));
  }

  /** By name, in the order of their creation. */
  all(): Cursor[] {
    return [...this.current.values()];
  }

  get(name: string): Cursor | undefined {
    return this.current.get(name);
  }

  get count(): number {
    return this.current.size;
  }

  /** LSN from which the journal is kept for cursor `name`. */
  keptFrom(name: string): number {
    return Math.min(this.durable.get(name)?.position.lsn ?? Infinity, this.current.get(name)?.position.lsn ?? Infinity);
  }

  /** Oldest LSN that a cursor needs; Infinity when none does. */
  get lowest(): number {
    let lowest = Infinity;
    for (const cursor of this.durable.values()) lowest = Math.min(lowest, cursor.position.lsn);
    if (this.current !== this.durable) for (const cursor of this.current.values()) lowest = Math.min(lowest, cursor.position.lsn);
    return lowest;
  }

  /** Makes a cursor at `position`; the journal is kept for it at once. */
  create(groupId: string, name: string, position: EpochPosition, done: Saved): void {
    assert(!this.current.has(name), `cursor ${name} exists`);
    this.groupId = groupId;
    this.change({ name, position, createdMs: this.reactor.io.wallMs(), movedMs: null }, done);
  }

  /** Moves a cursor forward: nothing below `position` is needed for it any more. */
  move(name: string, position: EpochPosition, done: Saved): void {
    const cursor = this.current.get(name);
    assert(cursor !== undefined && position.lsn >= cursor.position.lsn, `cursor ${name} moves forward`);
    this.change({ ...cursor, position, movedMs: this.reactor.io.wallMs() }, done);
  }

  remove(name: string, done: Saved): void {
    const next = new Map(this.current);
    assert(next.delete(name), `cursor ${name} exists`);
    this.save(next, done);
  }

  private change(cursor: Cursor, done: Saved): void {
    this.save(new Map(this.current).set(cursor.name, cursor), done);
  }

  private save(next: ReadonlyMap<string, Cursor>, done: Saved): void {
    this.current = next;
    this.waiting.push(done);
    if (!this.writing) this.write();
  }

  /** Writes the newest state; whoever waits for an older one is served too. */
  private write(): void {
    const { reactor, directory } = this;
    const { io, arena } = reactor;
    this.writing = true;
    const buffer = arena.alloc(CURSOR_SLOT_BYTES);
    if (buffer < 0) {
      reactor.after(RETRY_US, () => this.write());
      return;
    }
    const path = `${directory}/${CURSOR_FILE}`;
    const fd = io.open(path, O.RDWR | O.CREAT | O.CLOEXEC, 0o600);
    const folder = fd < 0 ? fd : io.open(directory, O.RDONLY | O.DIRECTORY | O.CLOEXEC, 0);
    const written = this.current;
    const waiting = this.waiting;
    this.waiting = [];
    const finish = (result: number): void => {
      arena.release(buffer);
      if (folder >= 0) io.close(folder);
      if (fd >= 0) io.close(fd);
      this.writing = false;
      if (result < 0) {
        this.failed(new IoError(-result, 'write', path), waiting);
        return;
      }
      this.named = true;
      this.sequence++;
      this.durable = written;
      if (this.waiting.length > 0) this.write();
      for (const done of waiting) done(undefined);
    };
    if (folder < 0) {
      reactor.after(0, () => finish(folder));
      return;
    }
    // A slot whose write has failed is written again whole: the sequence has not moved on.
    const sequence = this.sequence + 1;
    arena.u8.set(encodeCursorSlot({ sequence, groupId: this.groupId, cursors: [...written.values()] }), buffer);
    const table = new JobTable(5).add(JobOp.pwrite, fd, buffer, CURSOR_SLOT_BYTES, (sequence % 2) * CURSOR_SLOT_BYTES).add(JobOp.fdatasync, fd, 0, 0, 0);
    // The first change is in both: else damage to its slot could not be told from a first write that was cut off.
    if (this.sequence === 0) table.add(JobOp.pwrite, fd, buffer, CURSOR_SLOT_BYTES, ((sequence + 1) % 2) * CURSOR_SLOT_BYTES).add(JobOp.fdatasync, fd, 0, 0, 0);
    if (!this.named) table.add(JobOp.fsync, folder, 0, 0, 0);
    reactor.submit(Queue.checkpoint, table, finish);
  }

  private failed(error: IoError, first: readonly Saved[]): void {
    const waiting = [...first, ...this.waiting];
    this.waiting = [];
    this.current = this.durable;
    for (const done of waiting) done(error);
  }

  /** No write is under way. */
  get quiet(): boolean {
    return !this.writing;
  }
}
