/**
 * Seeded pseudo-random numbers for the simulator: sfc32, 128 bits of state.
 *
 * Owns: the one source of chance of a simulation. Each part (disk, network,
 * order of steps) draws from its own fork, so that a draw more in one part does
 * not change what the others see.
 * Must not know: what the numbers are used for.
 */

export class Random {
  private a = 0;
  private b = 0;
  private c = 0;
  private d = 1;

  /** `seed`: any number; its integer part modulo 2^53 counts. */
  constructor(seed: number, stream = 0) {
    const whole = Math.abs(Math.floor(seed));
    this.a = whole >>> 0;
    this.b = Math.floor(whole / 4294967296) >>> 0;
    this.c = stream >>> 0;
    for (let i = 0; i < 15; i++) this.u32();
  }

  /** Uniform over 0 .. 2^32−1. */
  u32(): number {
    const sum = (this.a + this.b) | 0;
    const result = (sum + this.d) | 0;
    this.d = (this.d + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + result) | 0;
    return result >>> 0;
  }

  /** Uniform over [0, 1). */
  unit(): number {
    return this.u32() / 4294967296;
  }

  /** An integer, uniform over [0, bound); 0 for a bound of 0 or 1. */
  below(bound: number): number {
    if (bound <= 1) return 0;
    if (bound <= 4294967296) return Math.floor(this.unit() * bound);
    return Math.floor((this.u32() * 1048576 + (this.u32() >>> 12)) / 4503599627370496 * bound);
  }

  /** An integer, uniform over [low, high]. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  /** True with probability `p`; draws nothing for p <= 0, so that a fault that is off costs no draw. */
  chance(p: number): boolean {
    return p > 0 && this.unit() < p;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)];
  }

  /** Skewed towards `low`: each doubling is equally likely. Bounds are positive. */
  logUniform(low: number, high: number): number {
    return low * Math.pow(high / low, this.unit());
  }

  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const kept = items[i];
      items[i] = items[j];
      items[j] = kept;
    }
    return items;
  }

  fill(bytes: Uint8Array): Uint8Array {
    for (let i = 0; i < bytes.length; i++) bytes[i] = this.u32() >>> 24;
    return bytes;
  }

  /** An independent generator; `stream` tells forks of one parent apart. */
  fork(stream: number): Random {
    return new Random(this.u32() * 2097152 + (this.u32() >>> 11), stream);
  }
}
