/**
 * Memory that map nodes are read through, set aside when a group is opened.
 *
 * Owns: a fixed number of buffers, the reads that wait for one, and one buffer
 * more for what reads or writes at once. Must not know: what nodes mean, files
 * beyond their descriptors.
 *
 * Maps are paged by the requests of clients, so these reads must never depend on
 * arena that requests may have used up: without a node no request ends, and
 * nothing would become free again.
 */
import { assert } from '../base/assert.js';
import { BLOCK_BYTES } from '../base/units.js';
import { JobOp, JobTable, Queue } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import { NODE_BYTES_MAX } from './map/codec.js';

/** What one read of a node fetches: no encoded node is longer. */
export const NODE_READ_BYTES = NODE_BYTES_MAX;
/** More would only wait in the helpers' queue. */
const BUFFERS = 32;
/** Arena bytes that one NodeReads holds. */
export const NODE_READS_ARENA_BYTES = (BUFFERS + 1) * NODE_READ_BYTES;

type NodeRead = (bytes: Uint8Array, errno: number) => void;

interface Waiting {
  readonly fd: number;
  readonly position: number;
  readonly done: NodeRead;
  next: Waiting | undefined;
}

export class NodeReads {
  /** A block for one blocking call at a time; its content is nobody's after that. */
  readonly block: number;
  private readonly free: number[] = [];
  /** Requests bound how many wait, for every one waits for one node at a time. */
  private first: Waiting | undefined;
  private last: Waiting | undefined;
  private closed = false;

  constructor(readonly reactor: Reactor) {
    assert(NODE_READ_BYTES >= BLOCK_BYTES, 'a map file header fits into the buffer of a node');
    this.block = this.take();
    for (let i = 0; i < BUFFERS; i++) this.free.push(this.take());
  }

  private take(): number {
    const at = this.reactor.arena.alloc(NODE_READ_BYTES);
    assert(at >= 0, 'no arena room for map nodes');
    return at;
  }

  /** Reads on a helper, in turn. `bytes` is valid during the call, which comes in a later tick; `errno` is 0 or what failed. */
  read(fd: number, position: number, done: NodeRead): void {
    assert(!this.closed, 'a map node is read for a group that is closed');
    const buffer = this.free.pop();
    if (buffer !== undefined) {
      this.start(buffer, fd, position, done);
      return;
    }
    const waiting: Waiting = { fd, position, done, next: undefined };
    if (this.last === undefined) this.first = waiting;
    else this.last.next = waiting;
    this.last = waiting;
  }

  private start(buffer: number, fd: number, position: number, done: NodeRead): void {
    const { arena } = this.reactor;
    this.reactor.submit(Queue.read, new JobTable(1).add(JobOp.pread, fd, buffer, NODE_READ_BYTES, position), (result) => {
      try {
        done(arena.u8.subarray(buffer, buffer + NODE_READ_BYTES), result < 0 ? -result : 0);
      } finally {
        this.ended(buffer);
      }
    });
  }

  private ended(buffer: number): void {
    const { first } = this;
    if (first !== undefined) {
      this.first = first.next;
      if (this.first === undefined) this.last = undefined;
      this.start(buffer, first.fd, first.position, first.done);
    } else if (this.closed) {
      this.reactor.arena.release(buffer);
    } else {
      this.free.push(buffer);
    }
  }

  /** Gives the memory back; that of a read in flight when it has ended. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const buffer of this.free) this.reactor.arena.release(buffer);
    this.free.length = 0;
    this.reactor.arena.release(this.block);
  }
}
