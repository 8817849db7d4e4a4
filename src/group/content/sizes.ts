/**
 * What each device of a group uses, alone and shared with others.
 *
 * Owns: one count at a time, who waits for it, its result until something
 * changes. Must not know: how blocks are counted (store/sizes.ts), who asks.
 */
import { OperatorError } from '../../base/errors.js';
import { BLOCK_BYTES } from '../../base/units.js';
import type { Reactor } from '../../io/reactor.js';
import { SizeTask } from '../../store/sizes.js';
import type { MapTasks } from '../../store/maptasks.js';
import type { Store } from '../../store/store.js';

export interface DeviceSizes {
  readonly id: number;
  /** Bytes that are not zero: written and not trimmed. */
  readonly usedBytes: number;
  /** Of these, what no other device refers to: what its removal alone would give back. */
  readonly ownBytes: number;
  readonly sharedBytes: number;
}

export interface GroupSizes {
  /** The sizes are exact for the state at this LSN. */
  readonly lsn: number;
  /** What all devices together use, shared bytes counted once. */
  readonly storedBytes: number;
  readonly devices: readonly DeviceSizes[];
  /** How long counting took, microseconds. */
  readonly tookUs: number;
}

/** A count, or why there is none. */
export type SizesDone = (result: GroupSizes | OperatorError) => void;

/** What counting needs of the group's content. */
export interface SizesHost {
  readonly store: Store;
  readonly mapTasks: MapTasks;
  /** The state that is counted is the one at this LSN. */
  readonly appliedLsn: number;
}

/** Who waits for one count; more are refused. */
const MAX_WAITING = 64;

export class Sizes {
  private last: { readonly state: string; readonly sizes: GroupSizes } | undefined;
  private waiting: SizesDone[] = [];
  /** Nobody may be waiting for it any more. */
  private counting = false;

  constructor(private readonly reactor: Reactor, private readonly content: SizesHost) {}

  /**
   * Calls `done` now or in a later tick, exactly once. A count under way is
   * joined: its LSN is then older than the question. Returns what takes the
   * question back: `done` is not called then, and the count goes on for the next one.
   */
  ask(done: SizesDone): () => void {
    const { mapTasks } = this.content;
    const state = stateOf(this.content);
    if (!this.counting && this.last?.state === state) {
      done(this.last.sizes);
      return () => undefined;
    }
    if (this.waiting.length >= MAX_WAITING || (!this.counting && mapTasks.full)) {
      done(new OperatorError('daemon/busy', 'too much is being counted in this group just now; try again in a moment'));
      return () => undefined;
    }
    this.waiting.push(done);
    if (!this.counting) this.start(state);
    return () => void (this.waiting = this.waiting.filter((one) => one !== done));
  }

  private start(state: string): void {
    this.counting = true;
    const { content } = this;
    const { store } = content;
    const lsn = content.appliedLsn;
    const begun = this.reactor.nowUs;
    const devices = [...store.all()];
    const ids = devices.map((device) => device.id);
    const task = new SizeTask(store.map, devices.map((device) => store.map.share(device.root)), (result) => {
      const asked = this.waiting;
      this.waiting = [];
      this.counting = false;
      if (typeof result === 'string') {
        for (const done of asked) done(new OperatorError('group/stopped', `the sizes could not be counted: ${result}`));
        return;
      }
      const sizes: GroupSizes = {
        lsn, storedBytes: result.stored * BLOCK_BYTES, tookUs: this.reactor.io.nowUs() - begun,
        devices: ids.map((id, i) => ({ id, usedBytes: result.used[i] * BLOCK_BYTES, ownBytes: result.own[i] * BLOCK_BYTES, sharedBytes: (result.used[i] - result.own[i]) * BLOCK_BYTES })),
      };
      this.last = { state, sizes };
      for (const done of asked) done(sizes);
    });
    content.mapTasks.add(task);
  }
}

/** Differs whenever a size may: local devices change without a new LSN, and an assign only exchanges a root. */
function stateOf(content: SizesHost): string {
  const { store } = content;
  let roots = 0;
  for (const { id, root } of store.all()) roots = (Math.imul(roots, 31) + Math.imul(id, 0x9e3779b1) + root.handle) | 0;
  return [content.appliedLsn, store.deviceCount, store.drops, store.overwrittenBlocks, roots].join();
}
