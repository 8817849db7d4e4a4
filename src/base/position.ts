/**
 * A position of a history as text: `EPOCHID:LSN:CHAIN`, 32 hexadecimal digits,
 * a decimal number, 16 hexadecimal digits. Owns the text form; must not know
 * whose history it is.
 *
 * The epoch is the one that the last record below the LSN belongs to; at LSN 0
 * there is none, and the id is all zeros.
 */

/** Equal positions, equal logs (DESIGN §2). */
export interface EpochPosition {
  /** 32 hexadecimal digits. */
  readonly epochId: string;
  readonly lsn: number;
  readonly chainHi: number;
  readonly chainLo: number;
}

export const NO_EPOCH_ID = '0'.repeat(32);
export const POSITION_RULE = 'a position EPOCHID:LSN:CHAIN, as `lockstep journal position` and `lockstep journal import` print it';

const TEXT = /^([0-9a-f]{32}):(0|[1-9]\d{0,15}):([0-9a-f]{8})([0-9a-f]{8})$/;

export function formatPosition({ epochId, lsn, chainHi, chainLo }: EpochPosition): string {
  return `${epochId}:${lsn}:${word(chainHi)}${word(chainLo)}`;
}

/** Undefined when `text` is none. */
export function parsePosition(text: string): EpochPosition | undefined {
  const match = TEXT.exec(text);
  if (match === null) return undefined;
  const lsn = Number(match[2]);
  if (!Number.isSafeInteger(lsn)) return undefined;
  return { epochId: match[1], lsn, chainHi: parseInt(match[3], 16), chainLo: parseInt(match[4], 16) };
}

function word(value: number): string {
  return value.toString(16).padStart(8, '0');
}
