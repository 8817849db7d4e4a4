/**
 * Generic netlink messages, encoded and decoded (linux/netlink.h,
 * linux/genetlink.h). Pure; nothing in it knows the family "nbd".
 *
 * One message, all integers in the byte order of the machine (little-endian
 * on everything that Lockstep runs on; `assertLittleEndian` says so if not):
 *
 *   offset  bytes
 *        0      4  length of the message, header included
 *        4      2  type: the family's id, or 2 for NLMSG_ERROR, 3 for NLMSG_DONE
 *        6      2  flags: 1 request, 2 more parts follow, 4 acknowledge
 *        8      4  sequence number, repeated in the reply
 *       12      4  port (0: the kernel)
 *       16      1  command of the family
 *       17      1  version of the family
 *       18      2  zero
 *       20         attributes, each padded to 4 bytes:
 *                  length 2 (header included, padding not) · number 2 (bit 15: nested) · value
 *
 * In an NLMSG_ERROR the 4 bytes at 16 are a negated errno (0: acknowledged).
 */
import { endianness } from 'node:os';
import { assert } from '../base/assert.js';
import { OperatorError } from '../base/errors.js';

const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const Flag = { REQUEST: 1, MULTI: 2, ACK: 4 } as const;

const HEADER_BYTES = 16;
const FAMILY_HEADER_BYTES = 4;
const ATTRIBUTE_HEADER_BYTES = 4;
const NESTED = 0x8000;
const NUMBER_MASK = 0x3fff;

/** Throws where the machine has another byte order than this codec. */
export function assertLittleEndian(): void {
  assert(endianness() === 'LE', 'the netlink codec was written for little-endian machines');
}

function padded(length: number): number {
  return (length + 3) & ~3;
}

// ---- encoding -----------------------------------------------------------------------------------

/** One attribute, with its padding. */
export function attribute(number: number, value: Uint8Array): Uint8Array {
  const length = ATTRIBUTE_HEADER_BYTES + value.length;
  assert(length <= 0xffff, `a netlink attribute of ${length} bytes`);
  const out = new Uint8Array(padded(length));
  const view = new DataView(out.buffer);
  view.setUint16(0, length, true);
  view.setUint16(2, number, true);
  out.set(value, ATTRIBUTE_HEADER_BYTES);
  return out;
}

/** In the machine's byte order. */
export function u32Attribute(number: number, value: number): Uint8Array {
  assert(Number.isInteger(value) && value >= 0 && value <= 0xffffffff, `${value} is no u32`);
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return attribute(number, bytes);
}

/** In the machine's byte order. */
export function u64Attribute(number: number, value: number): Uint8Array {
  assert(Number.isSafeInteger(value) && value >= 0, `${value} is no u64`);
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return attribute(number, bytes);
}

/** A string with the NUL that the kernel's NLA_NUL_STRING wants and NLA_STRING tolerates. */
export function textAttribute(number: number, text: string): Uint8Array {
  assert(!text.includes('\0'), 'a netlink string contains a NUL');
  return attribute(number, new TextEncoder().encode(`${text}\0`));
}

/** Attributes within an attribute. */
export function nestedAttribute(number: number, inner: readonly Uint8Array[]): Uint8Array {
  return attribute(number | NESTED, concat(inner));
}

/** A request that asks for an acknowledgement. */
export function encodeRequest(family: number, command: number, version: number, sequence: number, attributes: readonly Uint8Array[]): Uint8Array {
  const body = concat(attributes);
  const out = new Uint8Array(HEADER_BYTES + FAMILY_HEADER_BYTES + body.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, out.length, true);
  view.setUint16(4, family, true);
  view.setUint16(6, Flag.REQUEST | Flag.ACK, true);
  view.setUint32(8, sequence, true);
  view.setUint8(16, command);
  view.setUint8(17, version);
  out.set(body, HEADER_BYTES + FAMILY_HEADER_BYTES);
  return out;
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

// ---- decoding -----------------------------------------------------------------------------------

/** What the kernel sent does not hold together: an error of the operation that asked, never a crash. */
export function malformed(why: string): OperatorError {
  return new OperatorError('netlink/malformed', `the kernel's netlink answer is not understood: ${why}`);
}

export interface Attribute {
  /** Without the flag bits. */
  readonly number: number;
  readonly value: Uint8Array;
}

export type Message =
  /** Answer to a request: errno 0 acknowledges it. */
  | { readonly kind: 'result'; readonly sequence: number; readonly errno: number }
  /** End of an answer of several parts. */
  | { readonly kind: 'done'; readonly sequence: number }
  /** A message of a family. */
  | { readonly kind: 'message'; readonly sequence: number; readonly family: number; readonly command: number; readonly attributes: readonly Attribute[] };

/** All messages of one datagram. Values are slices of `datagram`. Throws OperatorError. */
export function decodeMessages(datagram: Uint8Array): Message[] {
  const view = viewOf(datagram);
  const messages: Message[] = [];
  for (let at = 0; at < datagram.length; ) {
    if (datagram.length - at < HEADER_BYTES) throw malformed('a netlink message is cut off in its header');
    const length = view.getUint32(at, true);
    if (length < HEADER_BYTES || length > datagram.length - at) {
      throw malformed(`a netlink message claims ${length} of ${datagram.length - at} bytes`);
    }
    messages.push(decodeOne(datagram.subarray(at, at + length)));
    at += padded(length);
  }
  return messages;
}

function decodeOne(bytes: Uint8Array): Message {
  const view = viewOf(bytes);
  const type = view.getUint16(4, true);
  const sequence = view.getUint32(8, true);
  if (type === NLMSG_DONE) return { kind: 'done', sequence };
  if (bytes.length < HEADER_BYTES + FAMILY_HEADER_BYTES) throw malformed('a netlink message has no content');
  if (type === NLMSG_ERROR) return { kind: 'result', sequence, errno: -view.getInt32(HEADER_BYTES, true) };
  const attributes = decodeAttributes(bytes.subarray(HEADER_BYTES + FAMILY_HEADER_BYTES));
  return { kind: 'message', sequence, family: type, command: view.getUint8(HEADER_BYTES), attributes };
}

/** The attributes of a message or of a nested attribute. Throws OperatorError. */
export function decodeAttributes(bytes: Uint8Array): Attribute[] {
  const view = viewOf(bytes);
  const found: Attribute[] = [];
  for (let at = 0; bytes.length - at >= ATTRIBUTE_HEADER_BYTES; ) {
    const length = view.getUint16(at, true);
    if (length < ATTRIBUTE_HEADER_BYTES || length > bytes.length - at) {
      throw malformed(`a netlink attribute claims ${length} of ${bytes.length - at} bytes`);
    }
    found.push({ number: view.getUint16(at + 2, true) & NUMBER_MASK, value: bytes.subarray(at + ATTRIBUTE_HEADER_BYTES, at + length) });
    at += padded(length);
  }
  return found;
}

/** The value of the first attribute with this number. Throws OperatorError when there is none. */
export function valueOf(attributes: readonly Attribute[], number: number, what: string): Uint8Array {
  const found = attributes.find((one) => one.number === number);
  if (found === undefined) throw malformed(`it lacks ${what}`);
  return found.value;
}

/** An unsigned integer of 1, 2, 4 or 8 bytes. Throws OperatorError. */
export function unsigned(value: Uint8Array): number {
  const view = viewOf(value);
  switch (value.length) {
    case 1:
      return view.getUint8(0);
    case 2:
      return view.getUint16(0, true);
    case 4:
      return view.getUint32(0, true);
    case 8:
      return Number(view.getBigUint64(0, true));
    default:
      throw malformed(`a number of ${value.length} bytes`);
  }
}

/** Text up to the first NUL. */
export function text(value: Uint8Array): string {
  const end = value.indexOf(0);
  return new TextDecoder().decode(end < 0 ? value : value.subarray(0, end));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
