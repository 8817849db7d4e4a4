/**
 * Frames over a pair of byte streams, such as the pipes of a command.
 *
 *     0   u32  length of the payload, at most MAX_PAYLOAD_BYTES
 *     4   u8   type (messages.ts)
 *     5   3    first bytes of SHA-256(bytes 0..5), so that a wrong length is not waited for
 *     8   8    first bytes of SHA-256(bytes 0..8 || payload)
 *     16       payload
 *
 * Integers are big-endian. The check is against accidents on the way (a login
 * message in the stream, a pipe that was cut or joined), not against an enemy:
 * the command that carries the stream answers for that, as ssh does.
 *
 * Owns: framing, back-pressure, and that everything that comes in is whole. Must
 * not know: what a message means.
 */

import { createHash } from 'node:crypto';
import type { Readable, Writable } from 'node:stream';
import { PeerError } from '../../base/errors.js';

const HEADER_BYTES = 16;
const PREFIX_BYTES = 8;
const CHECK_BYTES = 8;
/** A region, its masks and its number. */
const MAX_PAYLOAD_BYTES = 65536 + 64;
const FINISH_MS = 5000;
/** For what the other side said before it stopped to listen. */
const LAST_WORDS_MS = 2000;
const EMPTY = Buffer.alloc(0);

export interface ChannelHandler {
  /** Bytes came in, perhaps not a whole message yet. */
  heard(): void;
  /** One whole message; `payload` is the handler's to keep. What it throws ends the channel. */
  message(type: number, payload: Buffer): void;
  /** Nothing more will come. Called once. `error`: why, unless the other side just ended its stream. */
  ended(error: Error | undefined): void;
}

export class Channel {
  sentBytes = 0;
  receivedBytes = 0;
  private handler: ChannelHandler | undefined;
  private buffered: Buffer = EMPTY;
  private over = false;
  private drained: Promise<void> | undefined;
  /** The first bytes of all, for the message about a stream that is not ours. */
  private first: Buffer = EMPTY;
  private framesReceived = 0;

  /** Takes both streams over. */
  constructor(private readonly input: Readable, private readonly output: Writable) {}

  /** Begins to receive. */
  start(handler: ChannelHandler): void {
    this.handler = handler;
    this.input.on('data', (bytes: Buffer) => this.received(bytes));
    this.input.on('end', () => this.end(this.buffered.length === 0 ? undefined : this.cut()));
    this.input.on('error', (error) => this.end(new PeerError('reconcile/stream', `reading from the other side failed: ${error.message}`)));
    this.output.on('error', (error) => {
      this.output.destroy();
      // EPIPE says only that the other side is gone; what it said before that is still to be read, and says more.
      const timer = setTimeout(() => this.end(new PeerError('reconcile/stream', `writing to the other side failed: ${error.message}`)), LAST_WORDS_MS);
      this.input.once('end', () => clearTimeout(timer));
    });
  }

  /** Sends one message; `payload` is borrowed until the promise settles, which is when more may be sent. Never rejects. */
  async send(type: number, payload: Uint8Array): Promise<void> {
    if (this.output.destroyed || this.output.writableEnded) return;
    const frame = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
    frame.writeUInt32BE(payload.length, 0);
    frame.writeUInt8(type, 4);
    frame.set(payload, HEADER_BYTES);
    prefixCheck(frame).copy(frame, 5, 0, 3);
    frameCheck(frame).copy(frame, PREFIX_BYTES, 0, CHECK_BYTES);
    this.sentBytes += frame.length;
    if (this.output.write(frame)) return;
    this.drained ??= new Promise<void>((resolve) => {
      const done = (): void => {
        this.drained = undefined;
        resolve();
      };
      this.output.once('drain', done);
      this.output.once('close', done);
    });
    await this.drained;
  }

  /** Resolves when all that was sent has left this process, or cannot. What still comes in is dropped. Never rejects. */
  async finish(): Promise<void> {
    this.over = true;
    if (this.output.destroyed) return;
    await new Promise<void>((resolve) => {
      // Somebody who does not read any more does not hold us up.
      const timer = setTimeout(resolve, FINISH_MS);
      const done = (): void => {
        clearTimeout(timer);
        resolve();
      };
      this.output.once('close', done);
      this.output.write(EMPTY, done);
    });
  }

  /** What the other side began with, as far as it can be shown. */
  get began(): string {
    return readable(this.first);
  }

  /** Sent, and still in this process. */
  get pendingBytes(): number {
    return this.output.writableLength;
  }

  private received(bytes: Buffer): void {
    if (this.over) return;
    this.receivedBytes += bytes.length;
    this.handler?.heard();
    if (this.first.length < 64) this.first = Buffer.concat([this.first, bytes.subarray(0, 64)]);
    this.buffered = this.buffered.length === 0 ? bytes : Buffer.concat([this.buffered, bytes]);
    try {
      while (!this.over && this.takeFrame());
    } catch (error) {
      this.end(error as Error);
    }
  }

  private takeFrame(): boolean {
    const { buffered } = this;
    if (buffered.length < PREFIX_BYTES) return false;
    const length = buffered.readUInt32BE(0);
    const type = buffered.readUInt8(4);
    if (length > MAX_PAYLOAD_BYTES || prefixCheck(buffered).compare(buffered, 5, PREFIX_BYTES, 0, 3) !== 0) throw this.garbage();
    if (buffered.length < HEADER_BYTES + length) return false;
    const frame = buffered.subarray(0, HEADER_BYTES + length);
    if (frameCheck(frame).compare(frame, PREFIX_BYTES, PREFIX_BYTES + CHECK_BYTES, 0, CHECK_BYTES) !== 0) throw this.garbage();
    this.buffered = buffered.subarray(frame.length);
    this.framesReceived++;
    this.handler!.message(type, frame.subarray(HEADER_BYTES));
    return true;
  }

  private cut(): PeerError {
    if (this.framesReceived === 0) return this.garbage();
    return new PeerError('reconcile/cut', 'the stream of the other side ended in the middle of a message');
  }

  private garbage(): PeerError {
    if (this.framesReceived > 0) return new PeerError('reconcile/garbage', `the stream of the other side is damaged in message ${this.framesReceived + 1}; run the command again`);
    return new PeerError('reconcile/garbage', `the other side does not speak as lockstep reconcile does: it began with ${JSON.stringify(this.began)}. The command must run "lockstep reconcile --serve GROUP/DEVICE" there, and print nothing else`);
  }

  private end(error: Error | undefined): void {
    if (this.over) return;
    this.over = true;
    this.handler?.ended(error);
  }
}

function prefixCheck(frame: Buffer): Buffer {
  return createHash('sha256').update(frame.subarray(0, 5)).digest();
}

function frameCheck(frame: Buffer): Buffer {
  return createHash('sha256').update(frame.subarray(0, PREFIX_BYTES)).update(frame.subarray(HEADER_BYTES)).digest();
}

function readable(bytes: Buffer): string {
  return bytes.toString('latin1').replace(/[^\x20-\x7e]+/g, ' ').trim().slice(0, 64);
}
