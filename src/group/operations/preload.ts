/**
 * Has what an operation needs of the maps in memory before it is judged and
 * appended, so that its marker costs the data thread no wait for a disk.
 * Secondaries and recovery read the same at once instead (Store.assignRanges).
 *
 * Must not know: what the operation is.
 */

import { IoError } from '../../base/errors.js';
import type { Content } from '../content/content.js';

/** `needed` names the next map node to load, 0 = none. After `most` loads nothing more is loaded: nodes are paged out as fast as they come, then. */
export function preload(content: Content, needed: () => number, most: number, done: (error: IoError | undefined) => void): void {
  let loads = most;
  const step = (): void => {
    const miss = content.stopped || loads-- === 0 ? 0 : needed();
    if (miss === 0) {
      done(undefined);
      return;
    }
    content.reader.loadNode(miss, (result) => {
      if (result < 0) done(new IoError(-result, 'read the map of', content.options.directory));
      else step();
    });
  };
  step();
}
