/**
 * Removing layers that nothing refers to: emptying a large file piece by piece,
 * because a file system takes long to free much at once, then unlinking it.
 *
 * Owns: what one piece is. Must not know: which layers these are, or when.
 */
import { Errno, IoError } from '../base/errors.js';
import { JobOp } from '../io/io.js';
import type { Io, JobTable } from '../io/io.js';
import type { Layer, LayerTable } from './layers.js';

const PIECE_ROWS = 16;

/**
 * Fills `table` with punches of at most `jobBytes` of the layer's file. Returns
 * their bytes, or 0: the file has no more than `smallBytes`, or is gone already
 * (unlinked before a crash, or by a person), and can be removed. Throws IoError.
 */
export function drainRows(io: Io, layers: LayerTable, layer: Layer, table: JobTable, jobBytes: number, smallBytes: number): number {
  if (layer.missing) return 0;
  if (layer.missing) return 0;
  let fd: number;
  try {
    fd = layers.descriptor(layer);
  } catch (error) {
    if (error instanceof IoError && error.errno === Errno.ENOENT) return 0;
    throw error;
  }
  if (fd < 0 || io.stat(fd).allocated <= smallBytes) return 0;
  let bytes = 0;
  for (let at = 0; bytes < jobBytes && table.count < PIECE_ROWS; ) {
    const data = io.nextData(fd, at);
    if (data === undefined) break;
    const length = Math.min(data.end - data.start, jobBytes - bytes);
    table.add(JobOp.punch, fd, 0, length, data.start);
    bytes += length;
    at = data.start + length;
  }
  return bytes;
}
