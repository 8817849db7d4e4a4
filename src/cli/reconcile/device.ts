/**
 * What reconcile needs of a device, and a device of an NBD server as such.
 *
 * Owns: the interface that tests implement in memory, the connection, and which
 * errors of it are a person's business. Must not know: digests, the other side.
 */

import { connect } from 'node:net';
import type { Address } from '../../base/address.js';
import { formatAddress } from '../../base/address.js';
import { OperatorError } from '../../base/errors.js';
import {
  NBD_CONTEXT_BASE_ALLOCATION, NBD_FLAG_READ_ONLY, NBD_STATE_ZERO, NbdClient, NbdConnectionError, NbdRequestError, streamOf,
} from '../../vendor/nbd-protocol-ts/index.js';

/** Offsets and lengths in bytes, inside the device. Every promise may reject with an error that says what failed. */
export interface RegionDevice {
  /** For messages: "main/web@monday". */
  readonly name: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** The result is the caller's. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** Calls `mark` for parts of the range that may hold something else than zeros; may mark more than that. */
  allocated(offset: number, length: number, mark: (from: number, to: number) => void): Promise<void>;
  /** Borrows `bytes` until the promise settles. */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  writeZeroes(offset: number, length: number): Promise<void>;
  /** All that was written is durable. */
  flush(): Promise<void>;
}

/** Longest range that one BLOCK_STATUS asks about: a whole number of any block size. */
const MAX_STATUS_BYTES = 2 ** 31;
const CONNECT_MS = 10_000;

export class NbdDevice implements RegionDevice {
  private constructor(readonly name: string, private readonly client: NbdClient, private readonly server: string) {}

  /** Enters transmission on `name` at `server`. Throws OperatorError `server/unreachable`, `export/refused`. */
  static async open(server: Address, name: string): Promise<NbdDevice> {
    const socket = server.kind === 'unix' ? connect(server.path) : connect(server.port, server.host);
    // A server that accepts and then says nothing.
    const timer = setTimeout(() => socket.destroy(new Error(`no answer within ${CONNECT_MS / 1000} seconds`)), CONNECT_MS);
    try {
      const client = await NbdClient.connect(streamOf(socket), { name, contexts: [NBD_CONTEXT_BASE_ALLOCATION] });
      return new NbdDevice(name, client, formatAddress(server));
    } catch (error) {
      if (!(error instanceof NbdConnectionError)) throw error;
      if (error.cause !== undefined) throw new OperatorError('server/unreachable', `no NBD server can be reached at ${formatAddress(server)}: ${error.message}`);
      throw new OperatorError('export/refused', `the NBD server at ${formatAddress(server)} does not serve ${name}: ${error.message}`);
    } finally {
      clearTimeout(timer);
    }
  }

  get sizeBytes(): number {
    return this.client.export.sizeBytes;
  }

  get readOnly(): boolean {
    return (this.client.export.transmissionFlags & NBD_FLAG_READ_ONLY) !== 0;
  }

  read(offset: number, length: number): Promise<Uint8Array> {
    return this.named(this.client.read(offset, length));
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.named(this.client.write(offset, bytes));
  }

  writeZeroes(offset: number, length: number): Promise<void> {
    return this.named(this.client.writeZeroes(offset, length));
  }

  flush(): Promise<void> {
    return this.named(this.client.flush());
  }

  async allocated(offset: number, length: number, mark: (from: number, to: number) => void): Promise<void> {
    if (this.client.export.contexts.length === 0) {
      mark(offset, offset + length);
      return;
    }
    const end = offset + length;
    let at = offset;
    while (at < end) {
      const answer = await this.named(this.client.blockStatus(at, Math.min(end - at, MAX_STATUS_BYTES)));
      const before = at;
      for (const extent of answer[0]?.extents ?? []) {
        const to = Math.min(at + extent.length, end);
        if ((extent.status & NBD_STATE_ZERO) === 0 && to > at) mark(at, to);
        at = to;
      }
      if (at === before) throw new DeviceError(`${this.name} at ${this.server}: BLOCK_STATUS was answered with nothing`);
    }
  }

  /** Says goodbye; never rejects. */
  async close(): Promise<void> {
    await this.client.disconnect();
  }

  /** Ends the connection at once. */
  destroy(): void {
    this.client.destroy();
  }

  private async named<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      if (error instanceof NbdRequestError || error instanceof NbdConnectionError) throw new DeviceError(`${this.name} at ${this.server}: ${error.message}`);
      throw error;
    }
  }
}

/** A device that was being read or written failed; with what it says, run the command again. */
export class DeviceError extends Error {
  override readonly name = 'DeviceError';
  readonly code = 'device/failed';
}
