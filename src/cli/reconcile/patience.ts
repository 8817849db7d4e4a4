/**
 * How long a run waits for the other side while that owes it something.
 *
 * Owns: counting silence. Must not know: what is owed, what is said then.
 *
 * Silence is counted in beats of this process, not by a clock: when it was
 * stopped itself (a terminal, a laptop that slept), the other side was not silent.
 */

export interface Patience {
  /** For the first word of the other side, milliseconds. */
  readonly greetingMs: number;
  /** Between two words later, while an answer is due; the other side may have a gigabyte to read meanwhile. */
  readonly silenceMs: number;
}

export const DEFAULT_PATIENCE: Patience = { greetingMs: 60_000, silenceMs: 600_000 };

const BEATS = 8;
const LONGEST_BEAT_MS = 1000;

export class Silence {
  private timer: NodeJS.Timeout | undefined;
  private silentMs = 0;

  /** `due`: whether the other side owes something now. */
  constructor(private readonly due: () => boolean) {}

  /** From now on; ends an earlier count. `over` is called once, when something was due for `limitMs` and nothing was heard. */
  count(limitMs: number, over: () => void): void {
    this.end();
    const beatMs = Math.min(LONGEST_BEAT_MS, limitMs / BEATS);
    this.silentMs = 0;
    this.timer = setInterval(() => {
      this.silentMs = this.due() ? this.silentMs + beatMs : 0;
      if (this.silentMs < limitMs) return;
      this.end();
      over();
    }, beatMs);
  }

  /** The other side said something. */
  heard(): void {
    this.silentMs = 0;
  }

  /** Idempotent. */
  end(): void {
    clearInterval(this.timer);
  }
}
