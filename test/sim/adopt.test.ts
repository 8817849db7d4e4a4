/**
 * Adoption through kills and power losses of either node: a local snapshot of
 * both is sealed and adopted; whatever happens meanwhile, both end with the same
 * replicated snapshot, or both with their local ones.
 */
import t from 'tap';
import { DIGEST_BYTES, DigestSum, putRegionDigest } from '../../src/base/content-digest.js';
import { OperatorError } from '../../src/base/errors.js';
import { KIB, MIB, REGION_BYTES } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { OperationReply, SealReply } from '../../src/control/schema/replies.js';
import { adoptable } from '../model/devices.js';
import { GROUP, SimHost, SMALL, caughtUp } from './cluster.js';
import { LocalDevices } from './local.js';
import { BLOCK, ZERO_BLOCK } from './model.js';
import type { Random } from './random.js';
import { Workload } from './workload.js';
import { World } from './world.js';
import type { CrashKind } from './world.js';

const SEED = Number(process.env.TEST_SEED ?? 1);
const SEEDS = Number(process.env.ADOPT_SEEDS ?? 40);
const SIZE = 192 * KIB;
const ROUNDS = 3;
const ADDRESS = { a: '10.0.0.1:10901', b: '10.0.0.2:10902' };

interface Side {
  readonly host: SimHost;
  readonly locals: LocalDevices;
}

interface Counts {
  crashes: number;
  undone: number;
  adopted: number;
  /** Volatile journals that were lost after a stop in order. */
  stops: number;
}

class AdoptRun {
  private readonly world: World;
  private readonly random: Random;
  private readonly a: Side;
  private readonly b: Side;
  private fill = 0;

  /** `inMemory`: one of the nodes, or both, have a volatile journal; those are killed, or stopped before they lose power. */
  constructor(private readonly seed: number, private readonly counts: Counts, inMemory: boolean) {
    this.world = new World({ seed });
    this.random = this.world.random.fork(300);
    const checkpointSeconds = this.random.pick([0.02, 0.5, 5]);
    const sizes = { ...SMALL, checkpointSeconds, checkpointBytes: this.random.pick([64 * KIB, MIB]), syncMs: this.random.pick([1, 20]) };
    const side = (host: SimHost): Side => ({ host, locals: new LocalDevices(host) });
    this.a = side(new SimHost(this.world, 'a', sizes, { role: 'primary', listen: ADDRESS.a, peers: [{ node: 'b', address: ADDRESS.b }] }, 0));
    this.b = side(new SimHost(this.world, 'b', sizes, { role: 'secondary', listen: ADDRESS.b, peers: [{ node: 'a', address: ADDRESS.a }] }, 1));
    this.b.host.stableLimit = () => this.a.host.model.durableTruth();
    if (inMemory) for (const one of this.random.pick([[this.a], [this.b], [this.a, this.b]])) one.host.volatile();
  }

  run(): void {
    try {
      for (const { host } of this.both) this.start(host);
      this.advance(() => this.a.host.group.role === 'primary');
      this.must(this.a, { op: 'create', group: GROUP, name: 'v', sizeBytes: SIZE, wait: 'durable', waitSeconds: 10 });
      for (let round = 0; round < ROUNDS; round++) this.round(`s${round}`);
    } catch (error) {
      const tail = [...this.a.host.log, ...this.b.host.log].sort((x, y) => Number.parseFloat(x) - Number.parseFloat(y)).slice(-60).join('\n');
      throw new Error(`TEST_SEED=${this.seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n--- log ---\n${tail}`, { cause: error });
    } finally {
      this.world.dispose();
      adoptable.clear();
    }
  }

  private get both(): readonly Side[] {
    return [this.a, this.b];
  }

  private round(name: string): void {
    this.write();
    this.catchUp();
    for (const side of this.both) this.snapshot(side, 'v', 'x');
    for (const side of this.both) this.snapshot(side, this.random.pick(['v', 'v~x']), 'y');
    this.change();
    const digest = this.contentDigest();
    for (const side of this.both) this.sealed(side, digest);
    if (this.random.chance(0.3)) this.crashSome();
    for (const side of this.both) this.sealed(side, digest);
    const adoption = this.adopt(name);
    this.pass(this.random.unit() * this.random.pick([50, 2_000, 30_000]));
    if (this.random.chance(0.8)) this.crashSome();
    this.catchUp();
    if (adoption.error !== undefined && !(adoption.error instanceof OperatorError)) throw adoption.error as Error;
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

  private snapshot({ host, locals }: Side, source: string, name: string): void {
    locals.attach();
    for (let i = 0; i < 200; i++) {
      try {
        const reply = locals.snapshot(source, name);
        if (reply?.notice === null) return;
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

  private contentDigest(): string {
    const device = this.a.locals.find('v~x')!;
    const sum = new DigestSum();
    const content = new Map<number, Uint8Array>();
    const region = Buffer.alloc(REGION_BYTES);
    const digest = Buffer.alloc(DIGEST_BYTES);
    for (let block = 0; block < SIZE / BLOCK; block++) {
      const bytes = device.current(block);
      if (Buffer.compare(bytes, ZERO_BLOCK) !== 0) content.set(block, bytes);
      region.set(bytes, (block * BLOCK) % REGION_BYTES);
      if (((block + 1) * BLOCK) % REGION_BYTES !== 0) continue;
      putRegionDigest(digest, 0, Math.floor((block * BLOCK) / REGION_BYTES), region);
      sum.add(digest);
    }
    const words = sum.contentDigest(SIZE);
    adoptable.set(words, content);
    return words;
  }

  private sealed(side: Side, digest: string): void {
    const request = { op: 'seal' as const, group: GROUP, device: 'v~x', undo: false, force: true };
    const reply = this.must<SealReply>(side, { ...request, known: null });
    const noted = reply.digest !== null ? reply : this.must<SealReply>(side, { ...request, known: { digest, sealedLsn: reply.sealedLsn } });
    if (noted.digest !== digest) throw new Error(`${side.host.name} is sealed with ${noted.digest}`);
  }

  private adopt(name: string): { reply?: unknown; error?: unknown; ended: boolean } {
    for (const { locals } of this.both) locals.find('v~x')!.removing = true;
    return this.a.host.command({ op: 'adopt', group: GROUP, local: 'v~x', name, force: true, wait: this.random.pick(['durable', 'applied']), waitSeconds: 10 });
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

  private must<R = OperationReply>(side: Side, request: ControlRequest): R {
    const outcome = side.host.command(request);
    this.advance(() => outcome.ended);
    if (outcome.error !== undefined) throw outcome.error as Error;
    return outcome.reply as R;
  }

  // ---- the world --------------------------------------------------------------------------------------

  private crashSome(): void {
    const { random } = this;
    const kind = random.pick(['power', 'kill'] as const);
    const sides = random.pick([[this.a], [this.b], [this.a, this.b], [this.b, this.a]]);
    const kinds = sides.map(({ host }) => this.crash(host, kind));
    this.counts.crashes += sides.length;
    if (random.chance(0.5)) this.pass(random.unit() * 20_000);
    for (const { host } of sides) this.start(host);
    this.advance(() => this.a.host.group.role === 'primary');
    sides.forEach(({ locals }, i) => locals.judge(kinds[i]));
  }

  /** Returns what it was in the end: power is taken from a node with a volatile journal only after a stop in order. */
  private crash(host: SimHost, kind: CrashKind): CrashKind {
    if (!host.journalPlace.volatile) {
      host.crash(kind);
      return kind;
    }
    // A stopped primary can serve nobody who was not connected then.
    const followed = host === this.b.host || (this.b.host.alive && ['streaming', 'catching-up'].includes(host.path!.links.status(GROUP)[0].state));
    if (kind === 'kill' || !followed) {
      host.crash('kill');
      return 'kill';
    }
    let closed = false;
    host.node.attempt(() => host.path!.close(() => void (closed = true)));
    host.node.poke();
    this.advance(() => closed);
    host.stoppedCleanly();
    if (!host.stopNoted) return 'kill';
    host.crash('power');
    this.counts.stops++;
    // A stop does not flush what was written to local devices.
    return 'power';
  }

  private start(host: SimHost): void {
    if (!host.start() || host.problem !== undefined) throw new Error(`${host.name} cannot open the group: ${host.problem ?? 'it crashed'}`);
  }

  private advance(until: () => boolean): void {
    const { host } = this.b;
    this.world.run(() => {
      if (host.alive && host.path?.blocks.group(GROUP)?.hasContent === true) host.adopted();
      return until();
    }, { us: 120e6 });
  }

  private pass(us: number): void {
    let over = false;
    this.world.after(us, () => void (over = true));
    this.advance(() => over);
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

t.setTimeout(300_000);

for (const inMemory of [false, true]) {
  t.test(`whatever crashes during an adoption, both nodes end with the same snapshot${inMemory ? ', also with volatile journals' : ''}`, async (t) => {
    const counts: Counts = { crashes: 0, undone: 0, adopted: 0, stops: 0 };
    const seeds = inMemory ? Math.ceil(SEEDS / 2) : SEEDS;
    for (let seed = SEED; seed < SEED + seeds; seed++) {
      try {
        new AdoptRun(seed, counts, inMemory).run();
      } catch (error) {
        t.fail((error as Error).message);
        return;
      }
    }
    t.comment(`seeds ${SEED} to ${SEED + seeds - 1}: ${counts.adopted} adoptions, ${counts.crashes} crashes, ${counts.undone} times a crash undid it, ${counts.stops} journals lost after a stop`);
    t.equal(counts.adopted, seeds * ROUNDS);
    if (inMemory && seeds >= 20) t.ok(counts.stops > 0);
  });
}
