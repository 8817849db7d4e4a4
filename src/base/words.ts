/**
 * 64-bit integers in byte buffers, as JavaScript numbers: two 32-bit words,
 * little-endian, because bigint would allocate. All our own formats use these.
 */

const TWO_32 = 4294967296;

/** Writes a non-negative safe integer as u64 little-endian. */
export function putU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / TWO_32), true);
}

/** Reads a u64 little-endian; values above 2^53 − 1 lose precision, so callers check the range of what they get. */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * TWO_32 + view.getUint32(at, true);
}

const HEX: string[] = [];
for (let i = 0; i < 256; i++) HEX.push(i.toString(16).padStart(2, '0'));

/** Bytes [start, end) as lower-case hexadecimal digits. */
export function toHex(bytes: Uint8Array, start = 0, end = bytes.length): string {
  let text = '';
  for (let i = start; i < end; i++) text += HEX[bytes[i]];
  return text;
}

/** Bytes of an even-length hexadecimal string, written to `target` at `at`. */
export function putHex(target: Uint8Array, at: number, hex: string): void {
  for (let i = 0; i < hex.length; i += 2) target[at + i / 2] = parseInt(hex.slice(i, i + 2), 16);
}
