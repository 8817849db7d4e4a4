/**
 * Simple replies and structured reply chunks, for the server (put...) and the
 * client (accessors). Works on a long-lived buffer and allocates nothing. Every
 * writer returns the number of bytes that it wrote; `at` is always the index of
 * the message's magic.
 *
 *     simple reply                     structured reply chunk
 *      0   4  magic 0x67446698          0   4  magic 0x668e33ef
 *      4   4  error                     4   2  flags (NBD_REPLY_FLAG_DONE)
 *      8   8  cookie                    6   2  type
 *     16      data of a READ            8   8  cookie
 *                                      16   4  length of the payload
 *                                      20      payload, by type:
 *
 *     OFFSET_DATA   0 8 offset, 8 .. data              OFFSET_HOLE   0 8 offset, 8 4 size
 *     ERROR         0 4 error, 4 2 message length, 6 .. message
 *     ERROR_OFFSET  the same, then 8 bytes of offset
 *     BLOCK_STATUS  0 4 context id, then n times: 4 length, 4 status flags
 *
 * Errors are the specification's values (constants NBD_E...). Offsets are absolute
 * in the export. (Specification: "Simple reply message", "Structured reply chunk
 * message", "Structured reply types".)
 */
import {
  MAX_STRING_BYTES, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_ERROR_OFFSET, NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC,
} from './constants.js';
import { getUint53, putUint53 } from './wire.js';

/** Chunk header and offset, in front of the data. */
export const OFFSET_DATA_HEADER_BYTES = 28;
export const OFFSET_HOLE_BYTES = 32;
/** Chunk header, error and message length, in front of the message. */
export const ERROR_CHUNK_BYTES = 26;
/** The same and the offset, with an empty message. */
export const ERROR_OFFSET_CHUNK_BYTES = 34;
/** Chunk header and context id, in front of the extents. */
export const BLOCK_STATUS_HEADER_BYTES = 24;
export const EXTENT_BYTES = 8;

const NO_MESSAGE = new Uint8Array(0);

// ---- Server

/** A simple reply. After one with error 0 to a READ, its data follows. With structured replies never use it for a READ. */
export function putSimpleReply(view: DataView, at: number, errno: number, cookieHi: number, cookieLo: number): number {
  view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, errno);
  view.setUint32(at + 8, cookieHi);
  view.setUint32(at + 12, cookieLo);
  return 16;
}

/** The header of a chunk with `length` bytes of payload. */
export function putStructuredHeader(
  view: DataView, at: number, flags: number, type: number, cookieHi: number, cookieLo: number, length: number,
): number {
  view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHi);
  view.setUint32(at + 12, cookieLo);
  view.setUint32(at + 16, length);
  return 20;
}

/** Header of an OFFSET_DATA chunk; `dataLength` (at least 1) bytes of data follow. */
export function putOffsetDataHeader(
  view: DataView, at: number, flags: number, cookieHi: number, cookieLo: number, offset: number, dataLength: number,
): number {
  putStructuredHeader(view, at, flags, NBD_REPLY_TYPE_OFFSET_DATA, cookieHi, cookieLo, dataLength + 8);
  putUint53(view, at + 20, offset);
  return OFFSET_DATA_HEADER_BYTES;
}

/** A whole OFFSET_HOLE chunk: `holeLength` (at least 1) bytes read as zeroes. Not for a READ with NBD_CMD_FLAG_DF. */
export function putOffsetHole(
  view: DataView, at: number, flags: number, cookieHi: number, cookieLo: number, offset: number, holeLength: number,
): number {
  putStructuredHeader(view, at, flags, NBD_REPLY_TYPE_OFFSET_HOLE, cookieHi, cookieLo, 12);
  putUint53(view, at + 20, offset);
  view.setUint32(at + 28, holeLength);
  return OFFSET_HOLE_BYTES;
}

/**
 * A whole ERROR chunk. `errno` is not 0. `message` is UTF-8, cut at MAX_STRING_BYTES;
 * encode it once and keep it, so that refusing a request allocates nothing.
 */
export function putErrorChunk(
  view: DataView, at: number, flags: number, cookieHi: number, cookieLo: number, errno: number, message: Uint8Array = NO_MESSAGE,
): number {
  const n = putError(view, at, message, errno);
  putStructuredHeader(view, at, flags, NBD_REPLY_TYPE_ERROR, cookieHi, cookieLo, 6 + n);
  return ERROR_CHUNK_BYTES + n;
}

/** A whole ERROR_OFFSET chunk: the error was met at `offset`, which lies in the request. */
export function putErrorOffsetChunk(
  view: DataView, at: number, flags: number, cookieHi: number, cookieLo: number, errno: number, offset: number,
  message: Uint8Array = NO_MESSAGE,
): number {
  const n = putError(view, at, message, errno);
  putStructuredHeader(view, at, flags, NBD_REPLY_TYPE_ERROR_OFFSET, cookieHi, cookieLo, 14 + n);
  putUint53(view, at + ERROR_CHUNK_BYTES + n, offset);
  return ERROR_OFFSET_CHUNK_BYTES + n;
}

function putError(view: DataView, at: number, message: Uint8Array, errno: number): number {
  const n = Math.min(message.length, MAX_STRING_BYTES);
  view.setUint32(at + 20, errno);
  view.setUint16(at + 24, n);
  for (let i = 0; i < n; i++) view.setUint8(at + 26 + i, message[i]);
  return n;
}

/** Header of a BLOCK_STATUS chunk; `extentCount` (at least 1) extents follow, each by `putExtent`. */
export function putBlockStatusHeader(
  view: DataView, at: number, flags: number, cookieHi: number, cookieLo: number, contextId: number, extentCount: number,
): number {
  putStructuredHeader(view, at, flags, NBD_REPLY_TYPE_BLOCK_STATUS, cookieHi, cookieLo, 4 + extentCount * EXTENT_BYTES);
  view.setUint32(at + 20, contextId);
  return BLOCK_STATUS_HEADER_BYTES;
}

/** One extent: `length` (at least 1) bytes have `status`. `at` is the index of the extent itself. */
export function putExtent(view: DataView, at: number, length: number, status: number): number {
  view.setUint32(at, length);
  view.setUint32(at + 4, status);
  return EXTENT_BYTES;
}

// ---- Client

/** NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, or something that ends the connection. */
export function replyMagic(view: DataView, at: number): number {
  return view.getUint32(at);
}

/** The cookie lies at the same place in both kinds of reply. */
export function replyCookieHi(view: DataView, at: number): number {
  return view.getUint32(at + 8);
}

export function replyCookieLo(view: DataView, at: number): number {
  return view.getUint32(at + 12);
}

export function simpleReplyErrno(view: DataView, at: number): number {
  return view.getUint32(at + 4);
}

export function chunkFlags(view: DataView, at: number): number {
  return view.getUint16(at + 4);
}

export function chunkType(view: DataView, at: number): number {
  return view.getUint16(at + 6);
}

/** Bytes of payload behind the chunk's header. */
export function chunkLength(view: DataView, at: number): number {
  return view.getUint32(at + 16);
}

/** Offset of an OFFSET_DATA or OFFSET_HOLE chunk; `Infinity` above 2^53 - 1. */
export function chunkOffset(view: DataView, at: number): number {
  return getUint53(view, at + 20);
}

export function holeLength(view: DataView, at: number): number {
  return view.getUint32(at + 28);
}

export function errorChunkErrno(view: DataView, at: number): number {
  return view.getUint32(at + 20);
}

/** As the server says; compare it with `chunkLength` before use. */
export function errorChunkMessageLength(view: DataView, at: number): number {
  return view.getUint16(at + 24);
}

/** Offset of an ERROR_OFFSET chunk whose message has `messageLength` bytes. */
export function errorChunkOffset(view: DataView, at: number, messageLength: number): number {
  return getUint53(view, at + ERROR_CHUNK_BYTES + messageLength);
}

export function blockStatusContextId(view: DataView, at: number): number {
  return view.getUint32(at + 20);
}

/** Number of extents of a BLOCK_STATUS chunk whose header says `length`; -1 when no such chunk has that length. */
export function extentCount(length: number): number {
  return length >= 4 + EXTENT_BYTES && (length - 4) % EXTENT_BYTES === 0 ? (length - 4) / EXTENT_BYTES : -1;
}
