/**
 * Requests of the port about the exported journal: pages out, bytes in, cursors
 * (DESIGN §9 has links; this is for software outside of Lockstep that carries
 * the journal itself). Owns their shapes; part of port.ts.
 *
 * The bytes are opaque here: src/replication/carry/format.ts has their layout.
 */

import type { EpochPosition } from '../base/position.js';
import type { CursorEntry, CursorReleaseReply, DrainReply, ImportState, PositionReply } from './schema/replies.js';

/** Where a page continues; the data path's own business. */
export interface ExportPlace {
  readonly lsn: number;
  readonly chainHi: number;
  readonly chainLo: number;
  /** Number of the next frame. */
  readonly frame: number;
}

/** Begins a stream at the cursor's position; a cursor that does not exist is made. */
export interface ExportOpenRequest {
  readonly op: 'exportOpen';
  readonly group: string;
  readonly cursor: string;
  /** Where a new cursor begins: a position, an LSN that is a batch boundary, or null = the oldest that is retained. */
  readonly from: EpochPosition | number | null;
}

/** Next part of a stream; at its end it waits for more, or says that the stream has ended. */
export interface ExportPageRequest {
  readonly op: 'exportPage';
  readonly group: string;
  readonly cursor: string;
  readonly place: ExportPlace;
  /** The stream ends at this LSN; null = never. */
  readonly to: number | null;
  /** Longest wait for more; then the part is a sign of life. */
  readonly waitSeconds: number;
}

export interface ExportPart {
  /** Whole frames; handed over, not copied. */
  readonly bytes: Uint8Array;
  readonly place: ExportPlace;
  /** LSN up to which the stream could go when the part was made. */
  readonly durable: number;
  /** The stream is complete with this part. */
  readonly end: boolean;
}

/** Gets ready to import into a group; an import of the same group that is under way ends. */
export interface ImportOpenRequest {
  readonly op: 'importOpen';
  readonly group: string;
}

export interface ImportOpened {
  readonly session: number;
  readonly state: ImportState;
}

/** Takes the next bytes of a stream in, at most MAX_IMPORT_BYTES; answered when all of them are taken. One at a time. */
export interface ImportPushRequest {
  readonly op: 'importPush';
  readonly session: number;
  readonly bytes: Uint8Array;
}

/** How far an import has come: answered as soon as its position is another one than was told, or when the time is over. */
export interface ImportStateRequest {
  readonly op: 'importState';
  readonly session: number;
  /** `ImportState.position` as known. */
  readonly told: string;
  readonly waitSeconds: number;
}

/** The input has ended: answered when what was taken is durable. The session is gone then. */
export interface ImportEndRequest {
  readonly op: 'importEnd';
  readonly session: number;
}

/** This node's position in a group, once it is durable. */
export interface PositionRequest {
  readonly op: 'position';
  readonly group: string;
}

/** Moves a cursor forward: everything below `position` has arrived where it is carried to. */
export interface CursorAckRequest {
  readonly op: 'cursorAck';
  readonly group: string;
  readonly cursor: string;
  readonly position: EpochPosition;
}

/** Removes a cursor: the journal is no longer kept for it. */
export interface CursorReleaseRequest {
  readonly op: 'cursorRelease';
  readonly group: string;
  readonly cursor: string;
}

/** Answers when every link and cursor has confirmed what is appended now, or when the time is over. */
export interface DrainRequest {
  readonly op: 'drain';
  readonly group: string;
  readonly waitSeconds: number;
}

export type CarryRequest =
  | ExportOpenRequest | ExportPageRequest | ImportOpenRequest | ImportPushRequest | ImportStateRequest | ImportEndRequest
  | PositionRequest | CursorAckRequest | CursorReleaseRequest | DrainRequest;

export interface CarryReplies {
  exportOpen: ExportPart;
  exportPage: ExportPart;
  importOpen: ImportOpened;
  importPush: ImportState;
  importState: ImportState;
  importEnd: ImportState;
  position: PositionReply;
  cursorAck: CursorEntry;
  cursorRelease: CursorReleaseReply;
  drain: DrainReply;
}

/** Most bytes of one `importPush`. */
export const MAX_IMPORT_BYTES = 1024 * 1024;

/** The memory of a message that is handed over to the other thread instead of copied. */
export function handedOver(message: object): ArrayBuffer[] {
  const { bytes } = message as { bytes?: unknown };
  return bytes instanceof Uint8Array && bytes.buffer instanceof ArrayBuffer ? [bytes.buffer] : [];
}
