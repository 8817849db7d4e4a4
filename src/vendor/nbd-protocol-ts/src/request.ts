/**
 * The request message, for the server (accessors) and the client (`putRequest`).
 * Works on a long-lived buffer and allocates nothing.
 *
 *      0   4  magic 0x25609513
 *      4   2  command flags
 *      6   2  command
 *      8   8  cookie, opaque: two halves that are copied into the reply
 *     16   8  offset, bytes
 *     24   4  length, bytes
 *     28      the payload of a WRITE, `length` bytes
 *
 * `at` is always the index of the magic. The caller has made sure that
 * REQUEST_BYTES bytes are there. (Specification: "Request message".)
 */
import { NBD_REQUEST_MAGIC } from './constants.js';
import { getUint53, putUint53 } from './wire.js';

export function requestMagicOk(view: DataView, at: number): boolean {
  return view.getUint32(at) === NBD_REQUEST_MAGIC;
}

export function requestFlags(view: DataView, at: number): number {
  return view.getUint16(at + 4);
}

export function requestType(view: DataView, at: number): number {
  return view.getUint16(at + 6);
}

export function requestCookieHi(view: DataView, at: number): number {
  return view.getUint32(at + 8);
}

export function requestCookieLo(view: DataView, at: number): number {
  return view.getUint32(at + 12);
}

/** Bytes; `Infinity` when it exceeds 2^53 - 1 (validateRequest answers that as out of range). */
export function requestOffset(view: DataView, at: number): number {
  return getUint53(view, at + 16);
}

/** Bytes, 0..2^32 - 1. */
export function requestLength(view: DataView, at: number): number {
  return view.getUint32(at + 24);
}

/** Writes REQUEST_BYTES bytes and returns that number. `offset` is in 0..2^53 - 1, `length` in 0..2^32 - 1. */
export function putRequest(
  view: DataView, at: number, flags: number, type: number, cookieHi: number, cookieLo: number, offset: number, length: number,
): number {
  view.setUint32(at, NBD_REQUEST_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHi);
  view.setUint32(at + 12, cookieLo);
  putUint53(view, at + 16, offset);
  view.setUint32(at + 24, length);
  return 28;
}
