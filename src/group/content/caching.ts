/**
 * CACHE requests: bringing ranges of devices into the page cache.
 *
 * Owns: how many ranges are read at once, and which wait, first come first
 * served. Must not know: slots, NBD, roles.
 *
 * A range may be as long as a device and nobody looks at the bytes, so this must
 * take neither memory nor the helpers from requests that somebody waits for: a
 * few ranges at a time, piece by piece, all into one buffer that is set aside.
 */

import { Errno } from '../../base/errors.js';
import type { BlockReader } from '../../store/read.js';
import type { Store } from '../../store/store.js';

/** Ranges that are read at the same time. */
const AT_ONCE = 4;

interface Range {
  readonly device: number;
  readonly offset: number;
  readonly length: number;
  /** Gets an errno. */
  readonly done: (errno: number) => void;
  next: Range | undefined;
}

export class CacheReads {
  private running = 0;
  private pumping = false;
  private first: Range | undefined;
  private last: Range | undefined;
  private stopped = false;

  /** `sink`: `sinkBytes` of arena that anybody may read into and nobody reads from. */
  constructor(private readonly store: Store, private readonly reader: BlockReader, private readonly sink: number, private readonly sinkBytes: number) {}

  /** Reads [offset, offset + length) of the device; `done` gets an errno. Ranges wait as long as there are request slots. */
  add(device: number, offset: number, length: number, done: (errno: number) => void): void {
    if (this.stopped) {
      done(Errno.ESHUTDOWN);
      return;
    }
    const range: Range = { device, offset, length, done, next: undefined };
    if (this.last === undefined) this.first = range;
    else this.last.next = range;
    this.last = range;
    this.pump();
  }

  private pump(): void {
    // A range that ends at once calls this again: the loop goes on then, however many they are.
    if (this.pumping) return;
    this.pumping = true;
    while (this.running < AT_ONCE && this.first !== undefined) {
      const range = this.first;
      this.first = range.next;
      if (this.first === undefined) this.last = undefined;
      this.running++;
      this.read(range, 0);
    }
    this.pumping = false;
  }

  /** Reads on from `done` bytes; the device is looked up anew each time, for it may shrink or go away meanwhile. */
  private read(range: Range, done: number): void {
    const device = this.store.find(range.device);
    if (this.stopped || device === undefined) {
      this.ended(range, Errno.ESHUTDOWN);
    } else if (range.offset + range.length > device.sizeBytes) {
      this.ended(range, Errno.EINVAL);
    } else if (done >= range.length) {
      this.ended(range, 0);
    } else {
      const bytes = Math.min(this.sinkBytes, range.length - done);
      this.reader.read(device, range.offset + done, bytes, this.sink, (result) => {
        if (result < 0) this.ended(range, -result);
        else this.read(range, done + bytes);
      });
    }
  }

  private ended(range: Range, errno: number): void {
    this.running--;
    range.done(errno);
    this.pump();
  }

  /** Ends what waits; what is being read ends after its piece. */
  stop(): void {
    this.stopped = true;
    const { first } = this;
    this.first = this.last = undefined;
    for (let range = first; range !== undefined; range = range.next) range.done(Errno.ESHUTDOWN);
  }
}
