/**
 * One seeded run of adoptions through kills and power losses of either node: a
 * local snapshot of both is sealed and adopted; whatever happens meanwhile, both
 * end with the same replicated snapshot, or both with their local ones. With
 * disks that fail below local devices, or without a link, by a carried journal.
 *
 * Owns: what a seed means. Must not know: what fails (faulty-side.ts), the pipe
 * (carrier.ts).
 */
import { DIGEST_BYTES, DigestSum, putRegionDigest } from '../../src/base/content-digest.js';
import { IoError, OperatorError } from '../../src/base/errors.js';
import { KIB, MIB, REGION_BYTES } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { OperationReply, SealReply } from '../../src/control/schema/replies.js';
import { adoptable } from '../model/devices.js';
import { Carrier } from './carrier.js';
import { ALONE, GROUP, LINKED, SimHost, SMALL, UNLINKED, caughtUp, lastWords } from './cluster.js';
import { FaultySide } from './faulty-side.js';
import type { LocalDevices } from './local.js';
import { BLOCK, ZERO_BLOCK } from './model.js';
import type { Random } from './random.js';
import { Workload } from './workload.js';
import { World } from './world.js';
import type { CrashKind } from './world.js';

const SIZE = 192 * KIB;
export const ROUNDS = 3;

export interface AdoptCounts {
  crashes: number;
  undone: number;
  adopted: number;
  /** Groups that stopped, and starts that failed, because of a fault. */
  stopped: number;
  /** Volatile journals that were lost after a stop in order. */
  lost: number;
}

/**
 * Beside crashes: nothing; disks that fail; no link, the journal is carried; one of the nodes, or both, have a volatile
 * journal, and are killed, or stopped before they lose power.
 */
export type AdoptKind = 'plain' | 'faults' | 'carried' | 'volatile';

export class AdoptRun {
  private readonly world: World;
  private readonly random: Random;
  private readonly a: FaultySide;
  private readonly b: FaultySide;
  private readonly carrier: Carrier | undefined;
  private fill = 0;

  constructor(private readonly seed: number, private readonly counts: AdoptCounts, private readonly kind: AdoptKind) {
    this.world = new World({ seed });
    this.random = this.world.random.fork(300);
    const checkpointSeconds = this.random.pick([0.02, 0.5, 5]);
    const sizes = { ...SMALL, checkpointSeconds, checkpointBytes: this.random.pick([64 * KIB, MIB]), syncMs: this.random.pick([1, 20]) };
    const carried = kind === 'carried';
    const a = new SimHost(this.world, 'a', sizes, carried ? ALONE : LINKED.a, 0);
    const b = new SimHost(this.world, 'b', sizes, carried ? UNLINKED : LINKED.b, 1);
    b.stableLimit = () => a.model.durableTruth();
    this.a = new FaultySide(a, this.random.fork(1));
    this.b = new FaultySide(b, this.random.fork(2));
    if (kind === 'volatile') for (const { host } of this.random.pick([[this.a], [this.b], [this.a, this.b]])) host.volatile();
    if (!carried) return;
    const carrier = new Carrier(a, b, this.random.fork(3), { death: this.random.pick([0, 0.02, 0.2]), damage: this.random.pick([0, 0.02]) });
    this.carrier = carrier;
    for (const { node } of [a, b]) {
      const crashed = node.onCrash!;
      node.onCrash = (how) => {
        crashed(how);
        carrier.reset();
      };
    }
  }

  run(): void {
    try {
      for (const side of this.both) this.start(side);
      this.advance(() => this.a.host.group.role === 'primary');
      this.must(this.a, { op: 'create', group: GROUP, name: 'v', sizeBytes: SIZE, wait: 'durable', waitSeconds: 10 });
      for (let round = 0; round < ROUNDS; round++) this.round(`s${round}`);
    } catch (error) {
      throw new Error(`TEST_SEED=${this.seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n--- log ---\n${lastWords([this.a.host, this.b.host], 60)}`, { cause: error });
    } finally {
      this.world.dispose();
      adoptable.clear();
    }
  }

  private get both(): readonly FaultySide[] {
    return [this.a, this.b];
  }

  private round(name: string): void {
    this.write();
    this.catchUp();
    for (const side of this.both) this.snapshot(side, 'v', 'x');
    for (const side of this.both) this.snapshot(side, this.random.pick(['v', 'v~x']), 'y');
    this.change();
    const digest = adoptableDigest(this.a.locals.find('v~x')!);
    for (const side of this.both) this.sealed(side, digest);
    if (this.random.chance(0.3)) this.crashSome();
    for (const side of this.both) this.sealed(side, digest);
    if (this.kind === 'faults') for (const side of this.random.pick([[this.a], [this.b], [this.a, this.b]])) side.arm(this.random.pick(['append', 'append', 'fdatasync of the journal', undefined]));
    const adoption = this.adopt(name);
    const { path } = this.a.host;
    this.pass(this.random.unit() * this.random.pick([50, 2_000, 30_000]));
    if (this.random.chance(this.kind === 'faults' ? 0.4 : 0.8)) this.crashSome();
    this.mend();
    this.catchUp();
    if (this.a.host.path === path) {
      // The secondary may still be asked.
      this.advance(() => adoption.ended);
      this.catchUp();
    }
    if (adoption.error !== undefined && !(adoption.error instanceof OperatorError) && !(this.kind === 'faults' && adoption.error instanceof IoError)) throw adoption.error as Error;
    if (!this.isAdopted(name)) {
      if (adoption.reply !== undefined) throw new Error('the adoption was answered and is gone');
      this.counts.undone++;
      for (const side of this.both) {
        if (side.host.group.local!.tree.find('v~x')?.digest !== digest) throw new Error(`${side.host.name} has neither the local snapshot nor the replicated one`);
      }
      const again = this.adopt(name);
      this.advance(() => again.ended);
      if (again.error !== undefined) throw again.error as Error;
      this.catchUp();
    }
    this.check(name);
    // The name is used again, also by what follows no position of the group; recovery must not take it for what was adopted.
    for (const side of this.both) this.snapshot(side, this.random.pick(['v', 'v~y']), 'x');
    if (this.random.chance(0.7)) this.crashSome();
    this.catchUp();
    this.check(name, true);
    for (const name of ['v~x', 'v~y']) for (const { locals } of this.both) locals.remove(name);
    if (this.random.chance(0.3)) this.crashSome();
    this.catchUp();
    this.counts.adopted++;
  }

  // ---- steps -----------------------------------------------------------------------------------------

  private write(): void {
    const { host } = this.a;
    let open = 0;
    const view = host.path!.blocks.find(`${GROUP}/v`);
    if (view === undefined || 'unavailable' in view) throw new Error('v is not served');
    for (let i = this.random.between(1, 8); i > 0; i--) {
      open++;
      const offset = this.random.below(SIZE / BLOCK - 4) * BLOCK;
      if (!host.client!.write(view, offset, this.data(this.random.between(1, 4) * BLOCK), true, () => open--)) open--;
    }
    this.advance(() => open === 0);
  }

  private snapshot({ host, locals }: FaultySide, source: string, name: string): void {
    locals.attach();
    for (let i = 0; i < 200; i++) {
      try {
        const reply = locals.snapshot(source, name);
        if (reply?.notice === null) return;
        // Nothing was carried while it waited.
        if (this.carrier !== undefined) {
          this.advance(() => host.group.local!.tree.find(`v~${name}`)?.ready === true);
          return;
        }
        throw new Error(`${host.name}: the local snapshot cannot be used: ${reply?.notice ?? 'no reply'}`);
      } catch (error) {
        // Its name is held until the last adoption cannot be undone.
        if (!(error instanceof OperatorError) || !error.message.includes('can still be undone')) throw error;
        this.pass(20_000);
      }
    }
    throw new Error(`${host.name}: the name of what was adopted never gets free`);
  }

  /** The same changes on both nodes. */
  private change(): void {
    const block = this.random.below(SIZE / BLOCK - 4);
    const data = this.data(3 * BLOCK);
    const zeroed = this.random.below(SIZE / BLOCK);
    for (const { locals } of this.both) {
      const taken = zeroed >= block && zeroed < block + 3;
      const outcomes = [locals.change('v~x', block * BLOCK, data.length, data), ...(taken ? [] : [locals.change('v~x', zeroed * BLOCK, BLOCK, undefined)])];
      this.advance(() => outcomes.every((one) => one.errno >= 0));
    }
  }

  private sealed(side: FaultySide, digest: string): void {
    const request = { op: 'seal' as const, group: GROUP, device: 'v~x', undo: false, force: true };
    const reply = this.must<SealReply>(side, { ...request, known: null });
    const noted = reply.digest !== null ? reply : this.must<SealReply>(side, { ...request, known: { digest, sealedLsn: reply.sealedLsn } });
    if (noted.digest !== digest) throw new Error(`${side.host.name} is sealed with ${noted.digest}`);
  }

  private adopt(name: string): { reply?: unknown; error?: unknown; ended: boolean } {
    for (const { locals } of this.both) locals.find('v~x')!.removing = true;
    return this.a.host.command({ op: 'adopt', group: GROUP, local: 'v~x', name, force: true, wait: this.carrier === undefined ? this.random.pick(['durable', 'applied']) : 'durable', waitSeconds: 10 });
  }

  private isAdopted(name: string): boolean {
    return this.a.host.group.tree.find(`v@${name}`) !== undefined;
  }

  /** Both nodes hold the replicated snapshot and everything else as the stream says. */
  private check(name: string, again = false): void {
    for (const { host } of this.both) {
      if (host.group.tree.find(`v@${name}`) === undefined) throw new Error(`${host.name} has no v@${name}`);
      if ((host.group.local!.tree.find('v~x') !== undefined) !== again) throw new Error(`${host.name} ${again ? 'has lost the new' : 'has still the adopted'} local snapshot`);
      host.compareTree();
      new Workload(host, this.random.fork(7)).verifyAll();
    }
    // What was adopted is no local device any more, wherever a crash came in between.
    for (const { host, locals } of this.both) for (const { id } of [...locals.devices.values()]) if (host.group.local!.tree.get(id) === undefined) locals.devices.delete(id);
  }

  private must<R = OperationReply>(side: FaultySide, request: ControlRequest): R {
    return side.host.order(request, (until) => this.advance(until));
  }

  // ---- the world --------------------------------------------------------------------------------------

  private crashSome(): void {
    const { random } = this;
    const kind = random.pick(['power', 'kill'] as const);
    const sides = random.pick([[this.a], [this.b], [this.a, this.b], [this.b, this.a]]);
    for (const side of sides) this.crash(side, kind);
    this.counts.crashes += sides.length;
    if (random.chance(0.5)) this.pass(random.unit() * 20_000);
    for (const side of sides) this.start(side);
    this.mend();
  }

  private crash(side: FaultySide, how: CrashKind): void {
    const { stopped } = side;
    if (side.stoppedByFault) this.counts.stopped++;
    const kind = side.host.journalPlace.volatile ? this.end(side.host, how) : side.crashKind(how);
    if (side.host.alive) side.host.crash(kind);
    side.judgeAs(stopped ? 'power' : kind);
  }

  /** Power is taken from a node with a volatile journal only after a stop in order. Returns what it is in the end. */
  private end(host: SimHost, kind: CrashKind): CrashKind {
    // A stopped primary can serve nobody who was not connected then; that the other one has lost power it may not have noticed yet.
    const followed = host === this.b.host || (this.b.host.alive && caughtUp(host, this.b.host));
    if (kind === 'kill' || !followed) return 'kill';
    let closed = false;
    host.node.attempt(() => host.path!.close(() => void (closed = true)));
    host.node.poke();
    this.advance(() => closed);
    host.stoppedCleanly();
    if (!host.stopNoted) return 'kill';
    host.crash('power');
    this.counts.lost++;
    return 'power';
  }

  private start(side: FaultySide): void {
    this.counts.stopped += side.start(this.random, 0.3);
  }

  /** Nothing fails any more, both nodes run, and hold what they must. */
  private mend(): void {
    const down = (): boolean => this.both.some((side) => side.stopped);
    do {
      for (const side of this.both) {
        side.disarm();
        if (!side.stopped) continue;
        this.crash(side, this.random.pick(['power', 'kill']));
        this.start(side);
        side.disarm();
      }
      this.advance(() => down() || (this.a.host.group.role === 'primary' && this.both.every(({ host }) => !host.group.hasContent || !host.group.content.local.jobsInFlight)));
    } while (down());
    for (const side of this.both) side.judge();
  }

  private advance(until: () => boolean): void {
    this.world.run(() => {
      this.carrier?.step();
      return until();
    }, { us: 120e6 });
  }

  private pass(us: number): void {
    this.advance(this.world.elapsed(us));
  }

  private catchUp(): void {
    const [one, other] = [this.a.host, this.b.host];
    this.advance(() => {
      const problem = other.group.hasContent ? other.group.content.applyProblem : undefined;
      if (problem !== undefined) throw new Error(problem);
      return one.group.role === 'primary' && caughtUp(one, other);
    });
  }

  private data(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    new Uint32Array(bytes.buffer).fill(Math.imul(this.seed * 1000 + ++this.fill, 0x9e3779b1) >>> 0);
    return bytes;
  }
}

/** Content digest of a local device, whose content the model may take over from here on. Its size is a whole number of regions. */
export function adoptableDigest(device: NonNullable<ReturnType<LocalDevices['find']>>): string {
  const sum = new DigestSum();
  const content = new Map<number, Uint8Array>();
  const region = Buffer.alloc(REGION_BYTES);
  const bytes = Buffer.alloc(DIGEST_BYTES);
  for (let block = 0; block < device.blocks; block++) {
    const now = device.current(block);
    if (Buffer.compare(now, ZERO_BLOCK) !== 0) content.set(block, now);
    region.set(now, (block * BLOCK) % REGION_BYTES);
    if (((block + 1) * BLOCK) % REGION_BYTES !== 0) continue;
    putRegionDigest(bytes, 0, Math.floor((block * BLOCK) / REGION_BYTES), region);
    sum.add(bytes);
  }
  const digest = sum.contentDigest(device.blocks * BLOCK);
  adoptable.set(digest, content);
  return digest;
}
