/**
 * What the crash tests write: every 512-byte sector says which device, block
 * and generation it belongs to, so that wrong bytes tell where they come from.
 *
 * Owns: the pattern, contents of blocks as values, and their description. Must
 * not know: what is expected where (model.ts).
 */

export const BLOCK = 4096;
export const SECTOR = 512;
const MAGIC = 0x4c4f434b;
const HEADER_WORDS = 6;

/** One content of one block; immutable. */
export class Content {
  static readonly zero = new Content('zero', -1, -1, 0, undefined);

  private constructor(
    /** Equal keys, equal bytes. */
    readonly key: string,
    readonly device: number,
    readonly block: number,
    readonly generation: number,
    /** Of a block that several writes have parts in. */
    readonly bytes: Uint8Array | undefined,
  ) {}

  static whole(device: number, block: number, generation: number): Content {
    return new Content(`${device}:${block}:${generation}`, device, block, generation, undefined);
  }

  static mixed(base: Content, words: string, bytes: Uint8Array): Content {
    return new Content(`${base.key}+${words}`, base.device, base.block, base.generation, bytes);
  }
}

export class Patterns {
  private readonly words = new Uint32Array(BLOCK / 4);
  private readonly scratch = Buffer.from(this.words.buffer);

  constructor(readonly seed: number) {}

  /** The bytes of a content, in a buffer that the next call overwrites. */
  bytesOf(content: Content): Buffer {
    const { words, scratch } = this;
    if (content.bytes !== undefined) {
      scratch.set(content.bytes);
    } else if (content === Content.zero) {
      scratch.fill(0);
    } else {
      for (let sector = 0; sector < BLOCK / SECTOR; sector++) {
        const at = (sector * SECTOR) / 4;
        words[at] = MAGIC;
        words[at + 1] = this.seed;
        words[at + 2] = content.device;
        words[at + 3] = content.block;
        words[at + 4] = content.generation;
        words[at + 5] = sector;
        let mix = Math.imul(content.generation, 0x9e3779b1) ^ Math.imul(content.block + 1, 0x85ebca6b) ^ sector;
        for (let i = HEADER_WORDS; i < SECTOR / 4; i++) {
          mix = (Math.imul(mix, 1664525) + 1013904223) | 0;
          words[at + i] = mix;
        }
      }
    }
    return scratch;
  }

  equal(content: Content, actual: Uint8Array): boolean {
    return this.bytesOf(content).equals(actual);
  }

  equalSector(content: Content, sector: number, actual: Uint8Array): boolean {
    const from = sector * SECTOR;
    return this.bytesOf(content).subarray(from, from + SECTOR).equals(actual.subarray(from, from + SECTOR));
  }

  /** `base` with the bytes [from, to) of `over`. */
  mix(base: Content, over: Content, from: number, to: number): Content {
    const bytes = new Uint8Array(this.bytesOf(base));
    bytes.set(this.bytesOf(over).subarray(from, to), from);
    return Content.mixed(base, `${over.key}[${from},${to})`, bytes);
  }

  /** Says what a block's bytes are, sectors of the same kind together. */
  describe(actual: Uint8Array): string {
    const view = new DataView(actual.buffer, actual.byteOffset, actual.byteLength);
    const parts: { from: number; to: number; what: string }[] = [];
    for (let sector = 0; sector < BLOCK / SECTOR; sector++) {
      const what = this.sectorWords(view, sector, actual);
      const last = parts.at(-1);
      if (last?.what === what) last.to = sector;
      else parts.push({ from: sector, to: sector, what });
    }
    return parts.map(({ from, to, what }) => (parts.length === 1 ? what : `sectors ${from}-${to}: ${what}`)).join('; ');
  }

  private sectorWords(view: DataView, sector: number, actual: Uint8Array): string {
    const at = sector * SECTOR;
    if (actual.subarray(at, at + SECTOR).every((byte) => byte === 0)) return 'zeros';
    if (view.getUint32(at, true) !== MAGIC) return 'no header (a part of a write, or not ours)';
    const [seed, device, block, generation, place] = [4, 8, 12, 16, 20].map((offset) => view.getUint32(at + offset, true));
    const odd = [seed === this.seed ? '' : ` of seed ${seed}`, place === sector ? '' : ` sector ${place}`].join('');
    const whole = this.equalSector(Content.whole(device, block, generation), sector, actual) ? '' : ', other bytes mixed in';
    return `device ${device} block ${block} generation ${generation}${odd}${whole}`;
  }
}
