/**
 * 64-bit unsigned numbers on the wire as JavaScript numbers. Knows nothing of
 * messages.
 */

const TWO_32 = 0x1_0000_0000;
/** The high half of the largest number that a JavaScript number holds exactly (2^53 - 1). */
const MAX_SAFE_HI = 0x1f_ffff;
/*
 * A constant of the module, not the global `Infinity`: with that, V8 (Node 20) makes
 * a heap number of every result, even if the function is inlined (measured).
 */
const OUT_OF_RANGE = Number.POSITIVE_INFINITY;

/**
 * Reads 64 bits, big endian. What exceeds 2^53 - 1 is returned as `Infinity`, which
 * every comparison with a size treats as out of range.
 */
export function getUint53(view: DataView, at: number): number {
  const hi = view.getUint32(at);
  return hi > MAX_SAFE_HI ? OUT_OF_RANGE : hi * TWO_32 + view.getUint32(at + 4);
}

/** Writes a number in 0..2^53 - 1 as 64 bits, big endian. The caller has checked its range. */
export function putUint53(view: DataView, at: number, value: number): void {
  // `>>> 0` takes a safe integer modulo 2^32, so the low half is exact.
  const lo = value >>> 0;
  view.setUint32(at, (value - lo) / TWO_32);
  view.setUint32(at + 4, lo);
}
