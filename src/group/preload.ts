/**
 * Has what an operation will read in memory before it is appended, so that its
 * marker costs the data thread no wait for a disk. Secondaries and recovery
 * read the same at once instead (Store.assignRanges).
 *
 * Must not know: what the operation is.
 */

import { IoError } from '../base/errors.js';
import type { Content } from './content.js';
import type { Range } from './record.js';

/** Loads in a row for one range: two leaves, each with its base and the way down to it. More means that they are paged out as fast as they come. */
const MAX_LOADS_PER_RANGE = 32;

/** `done` in this tick or a later one: with undefined when nothing misses any more (or it is not worth waiting for), or with what failed. */
export function preloadRanges(content: Content, source: number, ranges: readonly Range[], done: (error: IoError | undefined) => void): void {
  let loads = ranges.length * MAX_LOADS_PER_RANGE;
  const step = (): void => {
    const { store, reader } = content;
    // The device may be gone by now; the caller judges the operation afresh when this ends.
    if (content.stopped || store.find(source) === undefined || loads-- === 0) {
      done(undefined);
      return;
    }
    for (const [offset, length] of ranges) {
      const size = store.device(source).sizeBytes;
      if (offset + length > size) continue;
      const miss = store.missing(source, offset, length);
      if (miss === 0) continue;
      reader.loadNode(miss, (result) => {
        if (result < 0) done(new IoError(-result, 'read the map of', content.options.directory));
        else step();
      });
      return;
    }
    done(undefined);
  };
  step();
}
