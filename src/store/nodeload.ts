/**
 * Bringing one map node into memory, for work that can be told to stop in
 * between and that reports what fails instead of throwing it.
 *
 * Owns: the one or two reads of a node. Must not know: who needs it.
 */
import { CorruptionError, IoError } from '../base/errors.js';
import type { BlockMap } from './map/map.js';
import { fileOfRef, positionOfRef } from './map/map.js';
import type { MapFile } from './mapfile.js';

/**
 * Loads node `h` of `map`. `still` is asked after each read: false = the handle
 * may name another node by now, nothing is installed. `done` is called in a
 * later tick, with what failed if something did.
 */
export function loadNode(map: BlockMap, mapFile: (bit: number) => MapFile, h: number, still: () => boolean, done: (error: IoError | CorruptionError | undefined) => void): void {
  const ref = map.diskRefOf(h);
  const file = mapFile(fileOfRef(ref));
  const read = (position: number, then: (bytes: Uint8Array) => void): void => {
    file.read(position, (bytes, errno) => {
      if (errno !== 0) {
        done(new IoError(errno, `read map node at byte ${position} of`, file.path));
        return;
      }
      if (!still()) {
        done(undefined);
        return;
      }
      try {
        then(bytes);
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
        done(error);
      }
    });
  };
  read(positionOfRef(ref), (bytes) => {
    const needed = map.load(h, ref, bytes);
    if (needed === 0) {
      done(undefined);
      return;
    }
    const first = bytes.slice();
    read(needed, (second) => {
      map.load(h, ref, first, second);
      done(undefined);
    });
  });
}
