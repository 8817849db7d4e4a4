/**
 * For whom a group's journal is kept: links (as long as they want it, not over
 * a restart) and export cursors (cursors.ts, until they are released).
 *
 * Owns: the oldest LSN that somebody needs. Must not know: what is done with
 * the journal, what the store itself still needs of it.
 */

import type { Reactor } from '../io/reactor.js';
import { Cursors } from './cursors.js';

/** Who needs the journal from which LSN on. */
export interface Holder {
  readonly kind: 'link' | 'cursor';
  readonly name: string;
  readonly lsn: number;
}

export class Retention {
  readonly cursors: Cursors;
  private readonly links = new Map<string, number>();

  constructor(reactor: Reactor, directory: string) {
    this.cursors = new Cursors(reactor, directory);
  }

  /** Keeps the journal from `lsn` on for a peer; undefined releases it. */
  setLink(peer: string, lsn: number | undefined): void {
    if (lsn === undefined) this.links.delete(peer);
    else this.links.set(peer, lsn);
  }

  /** Oldest LSN that anybody needs; Infinity when nobody does. */
  get lowest(): number {
    let { lowest } = this.cursors;
    for (const lsn of this.links.values()) lowest = Math.min(lowest, lsn);
    return lowest;
  }

  /** Who needs the oldest journal; undefined when nobody needs any. */
  get slowest(): Holder | undefined {
    let slowest: Holder | undefined;
    for (const [name, lsn] of this.links) if (slowest === undefined || lsn < slowest.lsn) slowest = { kind: 'link', name, lsn };
    for (const { name } of this.cursors.all()) {
      const lsn = this.cursors.keptFrom(name);
      if (slowest === undefined || lsn < slowest.lsn) slowest = { kind: 'cursor', name, lsn };
    }
    return slowest;
  }
}
