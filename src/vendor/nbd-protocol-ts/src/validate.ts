/**
 * Whether a request may be served, and which error answers it if not. Owns the
 * specification's rules and their error values; knows nothing of I/O, of replies
 * or of what the server does with the request. Numbers in, number out: nothing is
 * allocated.
 *
 * Two kinds of trouble are kept apart. `requestFatal` finds what leaves no way to
 * go on with the connection. Everything else is `validateRequest`: one error reply,
 * and the connection continues (a refused WRITE's payload must still be received
 * and thrown away: `carriesPayload`).
 */
import {
  MAX_DRAINED_PAYLOAD, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EINVAL,
  NBD_ENOSPC, NBD_EOVERFLOW, NBD_EPERM, NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA, NBD_FLAG_SEND_TRIM, NBD_FLAG_SEND_WRITE_ZEROES,
} from './constants.js';
import { requestLength, requestMagicOk, requestType } from './request.js';

/** What validation needs to know of an export. Keep one long-lived object per export or connection. */
export interface ExportFacts {
  /** Bytes, 0..2^53 - 1. */
  readonly sizeBytes: number;
  /** NBD_FLAG_... as advertised to the client. */
  readonly transmissionFlags: number;
  /** Bytes; a power of two in 1..65536. */
  readonly minimumBlock: number;
  /** Longest READ or WRITE, bytes; 0xffffffff for no limit. */
  readonly maximumBlock: number;
}

/** What was negotiated on one connection. */
export interface SessionFacts {
  readonly structuredReplies: boolean;
  /** How many metadata contexts the client selected for this export. */
  readonly contextCount: number;
}

/** Only a WRITE is followed by payload, `length` bytes of it, also when it is refused or its command flags are wrong. */
export function carriesPayload(type: number): boolean {
  return type === NBD_CMD_WRITE;
}

/** Nothing fatal: go on with `validateRequest`. */
export const REQUEST_FATAL_NONE = 0;
/** Not a request: where the next one begins can no longer be known. */
export const REQUEST_FATAL_MAGIC = 1;
/** A WRITE announces more payload than the server is willing to throw away. */
export const REQUEST_FATAL_PAYLOAD = 2;

/**
 * What forces the server to close the connection, as one of REQUEST_FATAL_.... `maxDrainedBytes` is the longest
 * WRITE payload that the server would receive only to refuse it; the specification wants it to be at least 32 MiB.
 */
export function requestFatal(view: DataView, at: number, maxDrainedBytes: number = MAX_DRAINED_PAYLOAD): number {
  if (!requestMagicOk(view, at)) return REQUEST_FATAL_MAGIC;
  if (carriesPayload(requestType(view, at)) && requestLength(view, at) > maxDrainedBytes) return REQUEST_FATAL_PAYLOAD;
  return REQUEST_FATAL_NONE;
}

/** A sentence for the log. */
export function requestFatalText(fatal: number): string {
  switch (fatal) {
    case REQUEST_FATAL_MAGIC:
      return 'the client sent something that is not a request (wrong magic)';
    case REQUEST_FATAL_PAYLOAD:
      return 'the client announced a WRITE with more payload than this server would throw away';
    default:
      return 'nothing';
  }
}

/**
 * The error that answers a request, or 0 if it may be served. `offset` may be Infinity (see `requestOffset`).
 * A DISC is always 0: it has no reply, and the connection ends either way.
 *
 * The order is that of the lines below; where a request breaks several rules, the first one answers.
 *
 * | rule                                                                        | error |
 * |-----------------------------------------------------------------------------|-------|
 * | command not known                                                           | EINVAL |
 * | WRITE, TRIM or WRITE_ZEROES on a read-only export                           | EPERM |
 * | FLUSH, TRIM, CACHE or WRITE_ZEROES that the export does not advertise       | EINVAL |
 * | BLOCK_STATUS without structured replies or without a selected context       | EINVAL |
 * | FUA (allowed on every command) although the export does not advertise it    | EINVAL |
 * | NO_HOLE elsewhere than on WRITE_ZEROES; REQ_ONE elsewhere than on BLOCK_STATUS | EINVAL |
 * | DF elsewhere than on READ, not advertised, or without structured replies    | EINVAL |
 * | FAST_ZERO elsewhere than on WRITE_ZEROES, or not advertised                 | EINVAL |
 * | any other command flag                                                      | EINVAL |
 * | FLUSH with an offset or a length                                            | EINVAL |
 * | length 0 (the specification leaves the answer open)                         | EINVAL |
 * | READ with DF longer than the maximum block size                             | EOVERFLOW |
 * | READ or WRITE longer than the maximum block size                            | EINVAL |
 * | READ, TRIM, CACHE or BLOCK_STATUS that ends beyond the export               | EINVAL |
 * | WRITE or WRITE_ZEROES that ends beyond the export                           | ENOSPC |
 * | offset or length not a multiple of the minimum block size                   | EINVAL |
 *
 * FAST_ZERO that is advertised but cannot be fast is the export's own answer (ENOTSUP), not decided here. The
 * maximum block size is not enforced on CACHE and WRITE_ZEROES, where the specification would have it: they carry
 * no data, and the kernel's client, which is never told of a maximum, sends WRITE_ZEROES of up to 4 GiB.
 */
export function validateRequest(
  facts: ExportFacts, session: SessionFacts, type: number, flags: number, offset: number, length: number,
): number {
  const errno = validateCommand(facts, session, type, flags, length);
  if (errno !== 0 || type === NBD_CMD_DISC) return errno;
  if (type === NBD_CMD_FLUSH) return offset === 0 ? 0 : NBD_EINVAL;
  // Not `offset + length > size`: that sum may exceed what a number holds exactly.
  if (offset > facts.sizeBytes || length > facts.sizeBytes - offset) {
    return type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
  }
  // The minimum is a power of two and at most 2^16, so the low bits (offset modulo 2^32) decide.
  return ((offset | length) & (facts.minimumBlock - 1)) === 0 ? 0 : NBD_EINVAL;
}

/**
 * The rules that do not look at the offset. Apart from `validateRequest` so that V8 inlines that one where it is
 * called: an offset above 2^31 that crosses a real call becomes a heap number, one for every request.
 */
function validateCommand(facts: ExportFacts, session: SessionFacts, type: number, flags: number, length: number): number {
  const advertised = facts.transmissionFlags;
  let allowed = (advertised & NBD_FLAG_SEND_FUA) !== 0 ? NBD_CMD_FLAG_FUA : 0;
  switch (type) {
    case NBD_CMD_READ:
      if ((advertised & NBD_FLAG_SEND_DF) !== 0 && session.structuredReplies) allowed |= NBD_CMD_FLAG_DF;
      break;
    case NBD_CMD_WRITE:
      if ((advertised & NBD_FLAG_READ_ONLY) !== 0) return NBD_EPERM;
      break;
    case NBD_CMD_DISC:
      return 0;
    case NBD_CMD_FLUSH:
      return (advertised & NBD_FLAG_SEND_FLUSH) === 0 || (flags & ~allowed) !== 0 || length !== 0 ? NBD_EINVAL : 0;
    case NBD_CMD_TRIM:
      if ((advertised & NBD_FLAG_READ_ONLY) !== 0) return NBD_EPERM;
      if ((advertised & NBD_FLAG_SEND_TRIM) === 0) return NBD_EINVAL;
      break;
    case NBD_CMD_CACHE:
      if ((advertised & NBD_FLAG_SEND_CACHE) === 0) return NBD_EINVAL;
      break;
    case NBD_CMD_WRITE_ZEROES:
      if ((advertised & NBD_FLAG_READ_ONLY) !== 0) return NBD_EPERM;
      if ((advertised & NBD_FLAG_SEND_WRITE_ZEROES) === 0) return NBD_EINVAL;
      allowed |= NBD_CMD_FLAG_NO_HOLE;
      if ((advertised & NBD_FLAG_SEND_FAST_ZERO) !== 0) allowed |= NBD_CMD_FLAG_FAST_ZERO;
      break;
    case NBD_CMD_BLOCK_STATUS:
      if (!session.structuredReplies || session.contextCount === 0) return NBD_EINVAL;
      allowed |= NBD_CMD_FLAG_REQ_ONE;
      break;
    default:
      return NBD_EINVAL;
  }
  if ((flags & ~allowed) !== 0 || length === 0) return NBD_EINVAL;
  if (length > facts.maximumBlock && (type === NBD_CMD_READ || type === NBD_CMD_WRITE)) {
    return (flags & NBD_CMD_FLAG_DF) !== 0 ? NBD_EOVERFLOW : NBD_EINVAL;
  }
  return 0;
}
