/**
 * Looks at what a simulated process hands to its disk: the batches on their way
 * to the journal, and the write-ahead rule (DESIGN §5) at every write of a layer
 * file or a checkpoint slot.
 *
 * Owns: decoding of the bytes that pass by, independently of the code that wrote
 * them as far as the format allows. Must not know: requests, what is right.
 */
import { BATCH_HEADER_BYTES, BATCH_MAGIC, batch, entry, RecordKind } from '../../src/journal/format.js';
import { JobOp } from '../../src/io/io.js';
import { decodeSlot, SLOT_HEADER_BYTES } from '../../src/store/slot.js';
import type { OpenFile } from './files.js';
import type { SimIo } from './io.js';
import { BLOCK, markerRecord } from './model.js';
import type { ModelEntry, ModelRecord } from './model.js';

export interface CaptureHooks {
  /** A batch is about to be appended. */
  begin(entry: ModelEntry): void;
  /** It was. */
  appended(): void;
  /** A block of a device is being written to a layer's file. */
  layerWrite(device: number, block: number, content: Uint8Array): void;
  /** A checkpoint slot is being written. */
  slotWrite(at: number, lowWater: number): void;
  /** An fdatasync or fsync of a journal file failed: what was not durable may be gone, whatever crash follows. */
  journalSyncFailed(): void;
}

interface Insides {
  runRow(op: number, fd: number, buffer: number, length: number, pos: number, part: number): number;
  fileOf(fd: number): OpenFile | undefined;
  bytes: Uint8Array;
}

/** Attaches `hooks` to a process that was just started. */
export function capture(io: SimIo, hooks: CaptureHooks): void {
  const insides = io as unknown as Insides;
  const isJournal = (fd: number): boolean => insides.fileOf(fd)?.path.includes('/journal/') === true;

  const pwritev = io.pwritev.bind(io);
  io.pwritev = (fd, count, pos) => {
    // A process that has died between the batch and the note of its end may try again while it unwinds.
    const found = isJournal(fd) && !io.dead ? decodeBatch(gather(io, insides.bytes, count)) : undefined;
    if (found !== undefined) hooks.begin(found);
    const result = pwritev(fd, count, pos);
    if (found !== undefined && result >= 0) hooks.appended();
    return result;
  };

  const fdatasync = io.fdatasync.bind(io);
  io.fdatasync = (fd) => {
    const result = fdatasync(fd);
    if (result < 0 && isJournal(fd)) hooks.journalSyncFailed();
    return result;
  };

  /** What was written so far of each slot. */
  const slots = new Map<string, Uint8Array>();
  const runRow = insides.runRow.bind(io);
  insides.runRow = (op, fd, buffer, length, pos, part) => {
    if (op === JobOp.pwrite) look(insides, hooks, slots, fd, buffer, length, pos);
    const journal = (op === JobOp.fdatasync || op === JobOp.fsync) && isJournal(fd);
    const result = runRow(op, fd, buffer, length, pos, part);
    if (journal && result < 0) hooks.journalSyncFailed();
    return result;
  };
}

function look(insides: Insides, hooks: CaptureHooks, slots: Map<string, Uint8Array>, fd: number, buffer: number, length: number, pos: number): void {
  const path = insides.fileOf(fd)?.path ?? '';
  const layer = /\/layers\/device-(\d+)-/.exec(path);
  if (layer !== null) {
    for (let done = 0; done < length; done += BLOCK) {
      hooks.layerWrite(Number(layer[1]), (pos + done) / BLOCK, insides.bytes.subarray(buffer + done, buffer + done + BLOCK));
    }
  } else if (/\/checkpoint-[01]$/.test(path)) {
    // A slot is written in pieces, in order.
    const piece = insides.bytes.slice(buffer, buffer + length);
    const bytes = pos === 0 ? piece : Buffer.concat([slots.get(path)!.subarray(0, pos), piece]);
    slots.set(path, bytes);
    if (SLOT_HEADER_BYTES + new DataView(bytes.buffer, bytes.byteOffset).getUint32(16, true) > bytes.length) return;
    const slot = decodeSlot(bytes);
    if (typeof slot === 'string') throw new Error(`a checkpoint slot is being written that cannot be read: ${slot}`);
    hooks.slotWrite(slot.body.at.lsn, slot.body.lowWater.lsn);
  }
}

function gather(io: SimIo, bytes: Uint8Array, count: number): Uint8Array {
  let total = 0;
  for (let i = 0; i < count; i++) total += io.iov[2 * i + 1];
  const whole = new Uint8Array(total);
  let at = 0;
  for (let i = 0; i < count; i++) {
    whole.set(bytes.subarray(io.iov[2 * i], io.iov[2 * i] + io.iov[2 * i + 1]), at);
    at += io.iov[2 * i + 1];
  }
  return whole;
}

/** The batch in `bytes` (on-disk layout), or undefined when it is none. */
export function decodeBatch(bytes: Uint8Array): ModelEntry | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < BATCH_HEADER_BYTES || batch.magic(view, 0) !== BATCH_MAGIC) return undefined;
  const lsn = batch.lsn(view, 0);
  const records: ModelRecord[] = [];
  const payload = batch.headerBytes(view, 0);
  for (let i = 0; i < batch.count(view, 0); i++) {
    const e = entry.at(0, i);
    const length = entry.length(view, e);
    const from = payload + entry.payloadOffset(view, e);
    const kind = entry.kind(view, e);
    const device = entry.device(view, e);
    const first = entry.offset(view, e) / BLOCK;
    if (kind === RecordKind.marker) {
      records.push(markerRecord(bytes.subarray(from, from + length)));
    } else if (kind === RecordKind.zero) {
      records.push({ kind: 'zero', device, first, count: length / BLOCK });
    } else {
      const blocks: Uint8Array[] = [];
      for (let done = 0; done < length; done += BLOCK) blocks.push(bytes.slice(from + done, from + done + BLOCK));
      records.push({ kind: 'data', device, first, blocks });
    }
  }
  return { lsn, endLsn: lsn + batch.totalBytes(view, 0), epochId: batch.epochId(bytes, 0), records, certain: false };
}
