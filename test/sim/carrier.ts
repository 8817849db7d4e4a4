/**
 * Software outside of Lockstep that carries the journal from one simulated node
 * to another: what `journal export | journal import | journal ack` do, with
 * deaths of any of them at any moment, and bytes that are damaged on the way.
 *
 * Owns: the pipe. Must not know: what is carried, when nodes crash.
 */
import type { ExportPart, ImportOpened } from '../../src/control/carry.js';
import { parsePosition } from '../../src/base/position.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { ImportState } from '../../src/control/schema/replies.js';
import type { SimHost } from './cluster.js';
import { GROUP } from './cluster.js';
import type { Random } from './random.js';

const CURSOR = 'pipe';
/** Refusals that an end of one of the processes causes. */
const PASSING = new Set(['import/replaced', 'import/ended', 'group/busy', 'daemon/busy', 'group/stopped', 'role/not-primary', 'cursor/moved', 'daemon/closing']);

type Outcome = ReturnType<SimHost['command']>;

export interface CarrierRates {
  /** Per part of the stream: the pipe dies, a byte is damaged. */
  readonly death: number;
  readonly damage: number;
}

export class Carrier {
  /** Parts that were carried; pipes that died; damage that was refused; positions acknowledged. */
  parts = 0;
  deaths = 0;
  refused = 0;
  acks = 0;
  /** Nothing is carried. */
  paused = false;
  private opening: { a: Outcome; b: Outcome } | undefined;
  private page: Outcome | undefined;
  private push: Outcome | undefined;
  private ack: Outcome | undefined;
  private session = 0;
  private part: ExportPart | undefined;
  private at = 0;
  private damaged = false;
  private restUntilUs = 0;

  constructor(private readonly a: SimHost, private readonly b: SimHost, private readonly random: Random, private readonly rates: CarrierRates) {}

  /** The pipe is gone: a node crashed, or it was killed. */
  reset(): void {
    this.opening = this.page = this.push = this.ack = this.asking = undefined;
    this.part = undefined;
    this.damaged = false;
    this.restUntilUs = this.a.world.clock.now + this.random.logUniform(10, 20_000);
  }

  /** Does what can be done now. */
  step(): void {
    const { a, b } = this;
    if (this.paused || a.world.clock.now < this.restUntilUs || a.path === undefined || b.path === undefined || !a.alive || !b.alive) return;
    this.acknowledge();
    if (this.asking?.ended === true) this.answered();
    if (this.lost !== undefined || this.asking !== undefined) return;
    if (this.opening === undefined) {
      this.opening = { a: this.ask(a, { op: 'exportOpen', group: GROUP, cursor: CURSOR, from: null }), b: this.ask(b, { op: 'importOpen', group: GROUP }) };
      return;
    }
    if (this.session === 0 || this.part === undefined) {
      this.next();
      return;
    }
    if (this.push === undefined) {
      this.send(this.part);
      return;
    }
    if (!this.push.ended) return;
    const { error, reply } = this.push;
    this.push = undefined;
    if (error !== undefined) {
      this.failed(error);
      return;
    }
    this.newest = reply as ImportState;
    if (this.at < this.part.bytes.length) return;
    this.parts++;
    if (this.random.chance(this.rates.death)) {
      this.die();
      return;
    }
    const { place } = this.part;
    this.part = undefined;
    this.page = this.ask(a, { op: 'exportPage', group: GROUP, cursor: CURSOR, place, to: null, waitSeconds: 0.02 });
  }

  private newest: ImportState | undefined;
  /** Why nothing can ever be carried any more. */
  lost: string | undefined;
  private asking: Outcome | undefined;

  /**
   * The journal began anew above the cursor: a volatile one, after a stop in order. Whoever has taken everything in
   * by then acknowledges it and goes on; nobody else can.
   */
  private gone(error: Error): void {
    const { a, b } = this;
    const begins = a.group.journal.pool.firstLsn;
    if (!a.journalPlace.volatile) throw new Error(`the journal is gone: ${error.message}`, { cause: error });
    if (b.group.position.lsn < begins) this.lost = error.message;
    else this.asking = this.ask(b, { op: 'position', group: GROUP });
  }

  private answered(): void {
    const { error, reply } = this.asking!;
    this.asking = undefined;
    if (error !== undefined) return;
    const position = parsePosition((reply as { position: string }).position);
    if (position === undefined) return;
    // A volatile one that was killed meanwhile has it all and cannot tell that the exporting node has it, too.
    const { group } = this.b;
    if (position.lsn < this.a.group.journal.pool.firstLsn && group.journal.volatile && group.stableLsn < group.appliedLsn) this.lost = 'a volatile importer that was killed cannot tell what is final';
    else this.ack ??= this.ask(this.a, { op: 'cursorAck', group: GROUP, cursor: CURSOR, position });
  }

  private ask(host: SimHost, request: ControlRequest): Outcome {
    return host.command(request);
  }

  /** Takes the answer of whichever is under way: the two openings, or a page. */
  private next(): void {
    if (this.page !== undefined) {
      if (!this.page.ended) return;
      const { error, reply } = this.page;
      this.page = undefined;
      if (error !== undefined) this.failed(error);
      else this.take(reply as ExportPart);
      return;
    }
    const { a, b } = this.opening!;
    if (!a.ended || !b.ended) return;
    const error = a.error ?? b.error;
    if (error !== undefined) {
      this.failed(error);
      return;
    }
    const opened = b.reply as ImportOpened;
    this.session = opened.session;
    this.newest = opened.state;
    this.take(a.reply as ExportPart);
  }

  private take(part: ExportPart): void {
    this.part = part;
    this.at = 0;
  }

  private send(part: ExportPart): void {
    const { random } = this;
    const bytes = part.bytes.slice(this.at, this.at + Math.ceil(random.logUniform(1, 64 * 1024)));
    this.at += bytes.length;
    if (random.chance(this.rates.damage)) {
      bytes[random.below(bytes.length)] ^= 1 << random.below(8);
      this.damaged = true;
    }
    this.push = this.ask(this.b, { op: 'importPush', session: this.session, bytes });
  }

  private failed(error: unknown): void {
    const { code } = error as { code?: string };
    if (code === undefined) throw error;
    const gone = code === 'journal/not-retained';
    if (code.startsWith('stream/') && this.damaged) this.refused++;
    else if (!gone && !PASSING.has(code)) throw new Error(`the pipe was refused: ${code}: ${(error as Error).message}`, { cause: error });
    this.die();
    if (gone) this.gone(error as Error);
  }

  /** As its processes die: the daemons may hear of it or not. */
  die(): void {
    this.deaths++;
    if (this.session !== 0 && this.b.path !== undefined && this.random.chance(0.5)) this.ask(this.b, { op: 'importEnd', session: this.session });
    this.session = 0;
    this.reset();
  }

  private acknowledge(): void {
    if (this.ack !== undefined) {
      if (!this.ack.ended) return;
      const { error } = this.ack;
      this.ack = undefined;
      if ((error as { code?: string } | undefined)?.code === 'journal/not-retained') this.gone(error as Error);
      else if (error !== undefined && !PASSING.has((error as { code?: string }).code ?? '')) throw new Error(`an acknowledgement was refused: ${String(error)}`, { cause: error });
      this.acks++;
    }
    const position = this.newest === undefined ? undefined : parsePosition(this.newest.position);
    if (this.newest === undefined || position === undefined || position.lsn === 0) return;
    this.newest = undefined;
    if (this.a.group.retention.cursors.get(CURSOR) === undefined) return;
    this.ack = this.ask(this.a, { op: 'cursorAck', group: GROUP, cursor: CURSOR, position });
  }
}
