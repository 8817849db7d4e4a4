/**
 * READ and CACHE requests: from a slot to bytes in its buffer.
 *
 * Owns: judging them by the device as it is now, and the two ways of reading,
 * at once from memory or later from a disk. Must not know: NBD, roles.
 */

import { Errno } from '../../base/errors.js';
import { WOULD_WAIT } from '../../store/read.js';
import type { Content } from '../content/content.js';
import { RequestKind } from './requests.js';
import type { RequestTable } from './requests.js';

/** Answers the slot, now if everything is in memory. */
export function readRequest(content: Content, requests: RequestTable, slot: number): void {
  const device = content.store.find(requests.device[slot]);
  const offset = requests.offset[slot];
  const length = requests.length[slot];
  if (device === undefined) {
    requests.complete(slot, Errno.ESHUTDOWN);
    return;
  }
  const beyond = requests.beyondEnd(slot, device.sizeBytes);
  if (beyond !== 0) {
    requests.complete(slot, beyond);
    return;
  }
  const { reader } = content;
  if (requests.kind[slot] === RequestKind.cache) {
    content.caching.add(device.id, offset, length, (errno) => requests.complete(slot, errno));
    return;
  }
  let result: number;
  try {
    result = reader.tryRead(device, offset, length, requests.buffer[slot]);
  } catch (error) {
    // A layer's file is missing or the like: this client hears of it as EIO, the group stops.
    requests.complete(slot, Errno.EIO);
    throw error;
  }
  if (result === WOULD_WAIT) reader.read(device, offset, length, requests.buffer[slot], (late) => requests.complete(slot, -late));
  else requests.complete(slot, -result);
}
