/**
 * RefTable: disk reference → disk reference, for a compaction of the map file.
 *
 * Owns: a hash table over numbers. Cut into many small tables, so that no
 * insertion pays for moving more than a few thousand entries.
 * Must not know: what the numbers mean. 0 is no key.
 */

const PARTS = 1024;
const SMALL = 16;

export class RefTable {
  private readonly keys: Float64Array[] = [];
  private readonly values: Float64Array[] = [];
  private readonly counts = new Uint32Array(PARTS);
  size = 0;

  constructor() {
    for (let part = 0; part < PARTS; part++) {
      this.keys.push(EMPTY);
      this.values.push(EMPTY);
    }
  }

  /** 0 when the key is not there. */
  get(key: number): number {
    const hash = hashOf(key);
    const part = hash >>> 22;
    const keys = this.keys[part];
    const mask = keys.length - 1;
    if (mask < 0) return 0;
    for (let i = hash & mask; keys[i] !== 0; i = (i + 1) & mask) if (keys[i] === key) return this.values[part][i];
    return 0;
  }

  /** `key` and `value` are not 0. */
  set(key: number, value: number): void {
    const hash = hashOf(key);
    const part = hash >>> 22;
    if (this.counts[part] * 2 >= this.keys[part].length) this.grow(part);
    this.size += this.put(part, hash, key, value);
  }

  private put(part: number, hash: number, key: number, value: number): number {
    const keys = this.keys[part];
    const mask = keys.length - 1;
    let i = hash & mask;
    while (keys[i] !== 0 && keys[i] !== key) i = (i + 1) & mask;
    const added = keys[i] === 0 ? 1 : 0;
    keys[i] = key;
    this.values[part][i] = value;
    this.counts[part] += added;
    return added;
  }

  private grow(part: number): void {
    const keys = this.keys[part];
    const values = this.values[part];
    const length = Math.max(SMALL, keys.length * 2);
    this.keys[part] = new Float64Array(length);
    this.values[part] = new Float64Array(length);
    this.counts[part] = 0;
    for (let i = 0; i < keys.length; i++) if (keys[i] !== 0) this.put(part, hashOf(keys[i]), keys[i], values[i]);
  }
}

const EMPTY = new Float64Array(0);

/** The top bits choose the part, the low bits the place in it. */
function hashOf(key: number): number {
  let h = Math.imul(key % 2 ** 32, 0x9e3779b1) ^ Math.imul(Math.floor(key / 2 ** 32) + 1, 0x85ebca6b);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  h ^= h >>> 13;
  return h >>> 0;
}
