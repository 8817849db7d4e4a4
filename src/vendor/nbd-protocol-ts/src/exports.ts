/**
 * What a server offers, as the handshake sees it. Knows nothing of how an export
 * is stored or served.
 */
import { MAX_STRING_BYTES, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO, NBD_FLAG_SEND_WRITE_ZEROES, NBD_FLAG_HAS_FLAGS } from './constants.js';
import { encodeText } from './bytes.js';
import type { ExportFacts } from './validate.js';

/** One export. Also serves as the facts of `validateRequest`. */
export interface ExportInfo extends ExportFacts {
  /** Canonical name, as LIST shows it; at most 4096 bytes of UTF-8 without NUL. */
  readonly name: string;
  /** One line for people; may be empty; cut at 4096 bytes. */
  readonly description: string;
  /** Bytes, 0..2^53 - 1. */
  readonly sizeBytes: number;
  /** NBD_FLAG_... that the export supports. HAS_FLAGS is added; SEND_DF is left out unless structured replies were negotiated. */
  readonly transmissionFlags: number;
  /** Bytes; a power of two in 1..65536. Above 512, clients that do not ask for block sizes are refused. */
  readonly minimumBlock: number;
  /** Bytes; a power of two, at least 512 and at least `minimumBlock`. */
  readonly preferredBlock: number;
  /** Bytes; a multiple of `minimumBlock`, or 0xffffffff for no limit. */
  readonly maximumBlock: number;
  /** Names of metadata contexts a client can select, each `namespace:leaf`. Their ids are 1, 2, ... in this order. */
  readonly metaContexts: readonly string[];
}

/** An export that exists, or may exist, but is not given to this client now. */
export interface ExportRefusal {
  /** NBD_REP_ERR_... */
  readonly refused: number;
  /** A sentence for the client's user. */
  readonly message: string;
}

/** The exports of a server. Asked anew for every option. */
export interface ExportDirectory {
  /** What LIST shows. */
  list(): readonly { readonly name: string; readonly description: string }[];
  /** The export that a client calls `name`; '' is the default export. The result may have another, canonical name. */
  find(name: string): ExportInfo | ExportRefusal | undefined;
}

export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

/** Transmission flags as they are sent: the specification ties some to others. */
export function advertisedFlags(flags: number, structuredReplies: boolean): number {
  let sent = flags | NBD_FLAG_HAS_FLAGS;
  if (!structuredReplies) sent &= ~NBD_FLAG_SEND_DF;
  if ((sent & NBD_FLAG_SEND_WRITE_ZEROES) === 0) sent &= ~NBD_FLAG_SEND_FAST_ZERO;
  return sent;
}

/** Why an ExportInfo breaks the specification, as a sentence; undefined if it does not. For servers to check their own. */
export function exportInfoProblem(info: ExportInfo): string | undefined {
  const { minimumBlock: min, preferredBlock: preferred, maximumBlock: max } = info;
  if (info.name.includes('\0') || encodeText(info.name).length > MAX_STRING_BYTES) return 'an export name has at most 4096 bytes and no NUL';
  if (!Number.isSafeInteger(info.sizeBytes) || info.sizeBytes < 0) return 'the size is a number of bytes in 0..2^53-1';
  if (!powerOfTwo(min) || min > 65536) return 'the minimum block size is a power of two in 1..65536';
  if (!powerOfTwo(preferred) || preferred < Math.max(min, 512)) {
    return 'the preferred block size is a power of two, at least 512 and at least the minimum';
  }
  if (max !== 0xffffffff && (!Number.isInteger(max) || max % min !== 0 || max > 0xffffffff || max < Math.min(preferred, info.sizeBytes))) {
    return 'the maximum block size is a multiple of the minimum and at least the preferred size or the export size';
  }
  for (const name of info.metaContexts) {
    if (!/^[^\s:]+:[^\0]+$/u.test(name) || encodeText(name).length > MAX_STRING_BYTES) {
      return `the metadata context ${JSON.stringify(name)} is not of the form namespace:leaf`;
    }
  }
  return undefined;
}

export function powerOfTwo(value: number): boolean {
  return Number.isInteger(value) && value > 0 && value <= 0x4000_0000 && (value & (value - 1)) === 0;
}
