/**
 * A place in one history (DESIGN §2). Its text form, with the epoch that it
 * belongs to, is base/position.ts.
 */

/** Equal positions, equal logs. */
export interface Position {
  /** A batch boundary. */
  readonly lsn: number;
  /** The running 64-bit hash over all batches below. */
  readonly chainHi: number;
  readonly chainLo: number;
}

/** Before the first batch. */
export const ORIGIN: Position = { lsn: 0, chainHi: 0, chainLo: 0 };

export function samePosition(a: Position, b: Position): boolean {
  return a.lsn === b.lsn && a.chainHi === b.chainHi && a.chainLo === b.chainLo;
}
