/**
 * One seeded run of two nodes whose disks fail where local devices and their
 * journals lie: snapshots, writes, flushes, seals, restores and removals on
 * both, kills, power losses, stops and a promotion, with faults armed at any
 * moment.
 *
 * What must hold: a failed append or fdatasync stops the group, with a sentence;
 * no client is told more than is true; after a start everything is there that
 * was flushed or reported, and what a reader has seen stays; what is replicated
 * is the same on both nodes.
 *
 * Owns: what a seed means. Must not know: the places that fail (faulty-side.ts),
 * what local devices have to hold (local.ts).
 */
import { Errno, OperatorError } from '../../src/base/errors.js';
import { KIB, MIB } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import { GROUP, LINKED, SimHost, SMALL, lastWords } from './cluster.js';
import { FaultySide, allFired } from './faulty-side.js';
import type { Outcome } from './local.js';
import { BLOCK } from './model.js';
import type { Random } from './random.js';
import { Workload } from './workload.js';
import { World } from './world.js';
import type { CrashKind } from './world.js';

const SIZE = 512 * KIB;
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };

/** Answers that a failing disk, or a group that stopped, gives to a client. */
const ANSWERS = new Set([0, Errno.EIO, Errno.ENOSPC, Errno.ESHUTDOWN]);

export interface LocalFaultResult {
  readonly crashes: number;
  readonly stops: number;
  readonly failedStarts: number;
  readonly changes: number;
  /** Changes and operations that were answered with an error. */
  readonly errors: number;
  readonly promoted: boolean;
  readonly fired: ReadonlyMap<string, number>;
}

export class LocalFaultRun {
  private readonly world: World;
  private readonly random: Random;
  private readonly a: FaultySide;
  private readonly b: FaultySide;
  /** The nodes that take part now. */
  private sides: FaultySide[];
  private primary: FaultySide;
  private names = 0;
  private fill = 0;
  private crashes = 0;
  private stops = 0;
  private failedStarts = 0;
  private changed = 0;
  private errors = 0;
  /** What was reported as sealed (true) or unsealed. */
  private readonly seals = new Map<string, boolean>();

  constructor(private readonly seed: number, private readonly steps = 40) {
    this.world = new World({ seed });
    const random = this.world.random.fork(400);
    this.random = random;
    const sizes = {
      ...SMALL, checkpointSeconds: random.pick([0.02, 0.5, 5]), checkpointBytes: random.pick([64 * KIB, MIB]), syncMs: random.pick([1, 20, 500]), compactSlackBytes: 16 * KIB,
    };
    this.a = new FaultySide(new SimHost(this.world, 'a', sizes, LINKED.a, 0), random.fork(1));
    this.b = new FaultySide(new SimHost(this.world, 'b', sizes, LINKED.b, 1), random.fork(2));
    this.b.host.stableLimit = () => (this.b.host.path?.blocks.group(GROUP)?.role === 'secondary' ? this.a.host.model.durableTruth() : Infinity);
    this.sides = [this.a, this.b];
    this.primary = this.a;
  }

  run(): LocalFaultResult {
    let promoted = false;
    try {
      for (const { host } of this.sides) if (!host.start() || host.problem !== undefined) throw new Error(`${host.name} does not start: ${host.problem ?? ''}`);
      this.heal();
      this.a.host.order({ op: 'create', group: GROUP, name: 'v', sizeBytes: SIZE, ...WAIT }, (until) => this.advance(until));
      for (let i = 0; i < 10; i++) this.writeGroup();
      this.heal();
      for (let step = 0; step < this.steps; step++) this.step();
      this.finish();
      if (this.random.chance(0.4)) {
        this.takeOver();
        promoted = true;
      }
    } catch (error) {
      throw new Error(`seed ${this.seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n--- log ---\n${lastWords([this.a.host, this.b.host], 60)}`, { cause: error });
    } finally {
      this.world.dispose();
    }
    return { crashes: this.crashes, stops: this.stops, failedStarts: this.failedStarts, changes: this.changed, errors: this.errors, promoted, fired: allFired([this.a, this.b]) };
  }

  // ---- steps -----------------------------------------------------------------------------------------

  private step(): void {
    const { random } = this;
    const side = random.pick(this.sides);
    if (random.chance(0.25)) random.pick(this.sides).arm();
    this.act(side);
    if (random.chance(0.08)) this.restart(random.pick(this.sides), random.pick(['kill', 'power', 'stop']));
    if (this.sides.some((one) => one.stopped || one.isToBeJudged)) this.heal();
  }

  private act(side: FaultySide): void {
    const { random } = this;
    if (side.stopped) return;
    const names = side.ready;
    const what = random.below(12);
    if (what < 2) {
      for (let i = random.between(1, 6); i > 0; i--) this.writeGroup();
      this.pass(random.unit() * 5_000);
      return;
    }
    if (names.length === 0 || (what === 2 && names.length < 6)) {
      const source = names.length > 0 && random.chance(0.5) ? random.pick(names) : 'v';
      if (random.chance(0.5)) this.writeGroup();
      // A write that is not answered yet may be in the snapshot or not.
      if (source !== 'v') this.quiet(side);
      this.attempt(side, () => side.locals.snapshot(source, `n${this.names++}`));
      return;
    }
    const name = random.pick(names);
    if (what === 3 || what === 4) {
      this.quiet(side);
      const source = names.length > 1 && random.chance(0.5) ? random.pick(names.filter((one) => one !== name)) : 'v';
      if (!side.isSealed(name)) this.attempt(side, () => side.locals.restore(name, source));
    } else if (what === 5 && random.chance(0.5)) {
      this.quiet(side);
      this.attempt(side, () => side.locals.remove(name));
    } else if (what === 6) {
      this.seal(side, name);
    } else if (what === 7) {
      const flush = side.locals.flush(name);
      this.answered(side, [flush]);
    } else {
      this.change(side, names);
    }
  }

  /** Runs an operation; only a failing disk may be why it is not carried out. */
  private attempt(side: FaultySide, operation: () => unknown): void {
    if (side.stopped) return;
    try {
      operation();
    } catch (error) {
      this.errors++;
      if (!(error instanceof OperatorError) && !side.failed) throw error;
      // A failed creation of the journal is told as what it is.
      if (!side.failed && !/try again|exists|can still be undone/.test((error as Error).message)) throw error;
    }
  }

  private seal(side: FaultySide, device: string): void {
    this.quiet(side);
    if (side.stopped) return;
    const undo = side.isSealed(device);
    this.seals.delete(`${side.host.name} ${device}`);
    const reply = this.ask(side, { op: 'seal', group: GROUP, device, undo, force: true, known: null });
    if (reply !== undefined) this.seals.set(`${side.host.name} ${device}`, !undo);
  }

  private ask(side: FaultySide, request: ControlRequest): unknown {
    let reply: unknown;
    this.attempt(side, () => {
      const outcome = side.host.command(request);
      this.advance(() => outcome.ended || !side.host.alive);
      if (outcome.error !== undefined) throw outcome.error as Error;
      reply = outcome.reply;
    });
    return reply;
  }

  /** Several changes at once, of different blocks. */
  private change(side: FaultySide, names: readonly string[]): void {
    const { random } = this;
    this.quiet(side);
    if (side.stopped) return;
    const taken: [string, number, number][] = [];
    const asked: Outcome[] = [];
    for (let i = random.between(1, 8); i > 0; i--) {
      const name = random.pick(names);
      if (side.stopped || side.isSealed(name)) continue;
      const length = random.chance(0.5) ? random.between(1, 12) * BLOCK : random.between(1, 40) * 512;
      const offset = random.chance(0.5) ? random.below((SIZE - length) / BLOCK) * BLOCK : random.below((SIZE - length) / 512) * 512;
      const [first, end] = [Math.floor(offset / BLOCK), Math.ceil((offset + length) / BLOCK)];
      if (taken.some(([other, from, to]) => other === name && from < end && first < to)) continue;
      taken.push([name, first, end]);
      this.changed++;
      asked.push(side.locals.change(name, offset, length, random.chance(0.25) ? undefined : this.data(length), random.chance(0.2)));
    }
    if (random.chance(0.7)) this.answered(side, asked);
  }

  /** Waits for answers, which are one of those that a failing disk causes, and of which an operator hears. */
  private answered(side: FaultySide, outcomes: readonly Outcome[]): void {
    this.advance(() => !side.host.alive || outcomes.every((one) => one.errno >= 0));
    for (const { errno } of outcomes) {
      if (!ANSWERS.has(errno)) throw new Error(`a client was answered with errno ${errno}`);
      if (errno === 0) continue;
      this.errors++;
      if (!side.failed) throw new Error(`a client was answered with errno ${errno}, and nothing failed`);
      if (side.stopped || side.host.log.some((line) => line.includes('local snapshots cannot be written'))) continue;
      throw new Error(`a client was answered with errno ${errno}, and no operator hears why`);
    }
  }

  /** No request of a client is under way; those that nobody waited for are judged when they are read. */
  private quiet(side: FaultySide): void {
    const { locals } = side;
    this.advance(() => !side.host.alive || locals.inFlight === 0);
    if (side.stopped || !locals.isUncertain) return;
    side.disarm();
    try {
      locals.takeUncertain();
    } catch (error) {
      // A failed fdatasync may come to light right now.
      if (!side.stopped) throw error;
    }
  }

  private writeGroup(): void {
    const { host } = this.primary;
    const view = host.alive && host.path !== undefined && !this.primary.stopped ? host.path.blocks.find(`${GROUP}/v`) : undefined;
    if (view === undefined || 'unavailable' in view) return;
    const length = this.random.between(1, 16) * BLOCK;
    const offset = this.random.below((SIZE - length) / BLOCK) * BLOCK;
    host.client!.write(view, offset, this.data(length), this.random.chance(0.2), () => undefined);
    host.node.poke();
  }

  // ---- crashes and starts ------------------------------------------------------------------------------

  private restart(side: FaultySide, how: CrashKind | 'stop'): void {
    const { host } = side;
    const { stopped } = side;
    if (side.stoppedByFault) this.stops++;
    if (how === 'stop') {
      this.stopInOrder(side);
    } else {
      const kind = side.crashKind(how);
      host.crash(kind);
      this.crashes++;
      side.judgeAs(stopped ? 'power' : kind);
    }
    this.failedStarts += side.start(this.random, 0.5);
  }

  private stopInOrder(side: FaultySide): void {
    const { host } = side;
    let closed = false;
    host.node.attempt(() => host.path!.close(() => (closed = true)));
    host.node.poke();
    this.advance(() => closed);
    const failed = side.stopped || side.syncFailed;
    host.stoppedCleanly();
    this.crashes++;
    if (failed) {
      side.judgeAs('power');
      return;
    }
    side.locals.allSettled();
    side.judgeAs('kill');
    if (this.random.chance(0.5)) host.crash('power');
  }

  /** Everything runs again, and holds what it must. */
  private heal(): void {
    for (const side of this.sides) side.disarm();
    const down = (): boolean => this.sides.some((one) => one.stopped);
    do {
      for (const side of this.sides) if (side.stopped) this.restart(side, this.random.pick(['kill', 'power', 'stop']));
      for (const side of this.sides) side.disarm();
      // What failed may still be on its way to be told.
      this.advance(() => down() || (this.caughtUp && this.sides.every(({ host }) => !host.group.content.local.jobsInFlight)));
    } while (down());
    // What is gone for good must not keep the journal.
    if (this.primary === this.b) this.ask(this.b, { op: 'linkDrop', group: GROUP, peer: 'a' });
    for (const side of this.sides) {
      if (!side.judge()) continue;
      for (const device of side.host.group.local!.tree.all()) {
        const known = this.seals.get(`${side.host.name} ${device.name}`);
        if (known !== undefined && known !== (device.sealedLsn !== 0)) throw new Error(`${device.name} on ${side.host.name} was reported as ${known ? '' : 'not '}sealed, and that is lost`);
      }
    }
    for (const { locals, host } of this.sides) if (host.group.hasContent) locals.attach();
  }

  private get caughtUp(): boolean {
    const { group } = this.primary.host;
    for (const { host } of this.sides) if (host.group.hasContent && host.group.content.applyProblem !== undefined) throw new Error(host.group.content.applyProblem);
    return group.role === 'primary' && this.sides.every(({ host }) => host.group.hasContent && host.group.appliedLsn === group.position.lsn);
  }

  /** All is quiet, and right. */
  private finish(): void {
    this.heal();
    for (const side of this.sides) this.quiet(side);
    this.advance(() => this.caughtUp);
    for (const { host, locals } of this.sides) {
      host.compareTree();
      new Workload(host, this.random.fork(7)).verifyAll();
      locals.verify();
      if (host.group.role === 'stopped') throw new Error(`${host.name} is stopped: ${host.group.roleReason}`);
    }
    // What was read a moment ago is there for good once a FLUSH has succeeded.
    for (const side of this.sides) {
      const [name] = side.ready;
      if (name === undefined) continue;
      const flush = side.locals.flush(name);
      this.answered(side, [flush]);
    }
    for (const side of this.sides) this.restart(side, 'power');
    this.heal();
  }

  /** The primary is gone; the secondary takes over while its disk fails. */
  private takeOver(): void {
    const { a, b, random } = this;
    for (let i = random.below(6); i > 0; i--) {
      this.writeGroup();
      this.act(b);
    }
    this.pass(random.unit() * 5_000);
    a.disarm();
    a.host.crash('power');
    this.sides = [b];
    if (random.chance(0.7)) b.arm();
    if (random.chance(0.3)) this.restart(b, random.pick(['kill', 'power', 'stop']));
    for (;;) {
      if (b.stopped) this.restart(b, random.pick(['kill', 'power', 'stop']));
      if (b.stopped) continue;
      if (b.host.group.role === 'secondary') {
        const outcome = b.host.command({ op: 'promote', group: GROUP, force: true });
        this.advance(() => outcome.ended);
        if (outcome.error !== undefined && !b.failed) throw outcome.error as Error;
        b.disarm();
      } else if (b.host.group.role === 'primary') {
        break;
      } else {
        this.advance(() => b.stopped || b.host.group.role === 'primary');
      }
    }
    b.host.model.raiseFloor(b.host.model.endLsn);
    this.primary = b;
    this.heal();
    for (let i = 0; i < 10; i++) this.step();
    this.finish();
  }

  // ---- the world ----------------------------------------------------------------------------------------

  private data(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    new Uint32Array(bytes.buffer, 0, length >> 2).fill(Math.imul(this.seed * 1000 + ++this.fill, 0x9e3779b1) >>> 0);
    return bytes;
  }

  private advance(until: () => boolean): void {
    this.world.run(until, { us: 120e6 });
  }

  private pass(us: number): void {
    this.advance(this.world.elapsed(us));
  }
}
