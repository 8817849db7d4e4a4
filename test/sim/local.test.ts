/** Local devices through kills and power losses: one node, both journals, random work. */
import t from 'tap';
import { KIB } from '../../src/base/units.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';
import { Random } from './random.js';
import { Rig } from './rig.js';

const SEED = Number(process.env.TEST_SEED ?? 1);
const SEEDS = Number(process.env.LOCAL_SEEDS ?? 12);
const STEPS = 60;
const SIZE = 1024 * KIB;

/** Small enough that the local journal is recycled many times. */
const SIZES = { segmentBytes: 256 * KIB, segments: 8 };

interface Counts {
  crashes: number;
  lost: number;
  changes: number;
}

class LocalRun {
  readonly rig: Rig;
  readonly locals: LocalDevices;
  private readonly random: Random;
  private names = 0;
  private fill = 0;

  /** `inMemory`: the group's journal is volatile; then power is lost only after a stop in order. */
  constructor(private readonly seed: number, private readonly counts: Counts, private readonly inMemory: boolean) {
    this.rig = new Rig(seed, SIZES);
    if (inMemory) this.rig.host.volatile();
    this.random = new Random(seed).fork(77);
    this.locals = new LocalDevices(this.rig.host);
  }

  private data(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.fill++;
    new Uint32Array(bytes.buffer, 0, length >> 2).fill(Math.imul(this.seed * 1000 + this.fill, 0x9e3779b1) >>> 0);
    return bytes;
  }

  private place(length: number): number {
    return this.random.below((SIZE - length) / 512) * 512;
  }

  private get alive(): boolean {
    return this.rig.host.alive;
  }

  run(): void {
    const { rig, locals, random } = this;
    rig.start();
    locals.attach();
    rig.create('v', SIZE);
    for (let i = 0; i < 10; i++) this.writeGroup();
    rig.ask('v', 'flush');
    for (let step = 0; step < STEPS; step++) {
      rig.host.node.attempt(() => this.step());
      if (!this.alive) this.restart(rig.host.node.fuseKind);
      else if (random.chance(0.08)) {
        const kind = random.chance(0.5) ? 'power' : 'kill';
        if (this.inMemory && kind === 'power') {
          rig.host.node.disk.faults.fuse = 0;
          rig.stop();
          if (!rig.host.stopNoted) throw new Error(`seed ${this.seed}: the stop was not clean`);
        }
        rig.host.crash(kind);
        this.restart(kind);
      }
    }
    rig.host.node.disk.faults.fuse = 0;
    this.quiet();
    locals.verify();
    rig.verify();
    rig.dispose();
  }

  private restart(kind: 'power' | 'kill'): void {
    const before = this.locals.devices.size;
    this.counts.crashes++;
    this.rig.start();
    if (this.rig.host.problem !== undefined) throw new Error(`seed ${this.seed}: ${this.rig.host.problem}`);
    this.locals.judge(kind);
    this.counts.lost += before - this.locals.devices.size;
    this.rig.verify();
  }

  private quiet(): void {
    this.rig.run(() => this.locals.inFlight === 0 || !this.alive);
  }

  private writeGroup(): void {
    const length = this.random.between(1, 16) * BLOCK;
    const offset = this.random.below((SIZE - length) / BLOCK) * BLOCK;
    this.rig.submit('v', 'write', offset, length, { data: this.data(length) });
  }

  private step(): void {
    const { random, locals, rig } = this;
    const names = [...locals.devices.values()].filter((one) => !one.removed && one.reported).map((one) => one.name);
    // Some crashes come in the midst of a step.
    if (random.chance(0.1)) {
      rig.host.node.disk.faults.fuse = random.between(1, 60);
      rig.host.node.fuseKind = this.inMemory ? 'kill' : 'power';
    }
    const what = random.below(10);
    if (what < 2) {
      for (let i = random.between(1, 6); i > 0; i--) this.writeGroup();
    } else if (names.length === 0 || (what === 2 && names.length < 6)) {
      const source = names.length > 0 && random.chance(0.4) ? random.pick(names) : 'v';
      if (random.chance(0.5)) this.writeGroup();
      // A write that is not answered yet may be in the snapshot or not.
      if (source !== 'v') this.quiet();
      if (this.alive) locals.snapshot(source, `n${this.names++}`);
    } else if (what === 3 && random.chance(0.5)) {
      this.quiet();
      if (this.alive) locals.restore(random.pick(names), 'v');
    } else if (what === 3 && names.length > 1) {
      this.quiet();
      const [a, b] = random.shuffle([...names]);
      if (this.alive) locals.restore(a, b);
    } else if (what === 4 && random.chance(0.4)) {
      this.quiet();
      if (this.alive) locals.remove(random.pick(names));
    } else if (what === 5) {
      locals.flush(random.pick(names));
      if (random.chance(0.5)) this.quiet();
    } else {
      this.changes(names);
    }
    if (this.alive && random.chance(0.3)) this.quiet();
  }

  /** Several changes at once, of different blocks. */
  private changes(names: readonly string[]): void {
    const { random, locals } = this;
    this.quiet();
    const taken: [string, number, number][] = [];
    for (let i = random.between(1, 12); i > 0 && this.alive; i--) {
      const name = random.pick(names);
      const length = random.chance(0.5) ? random.between(1, 12) * BLOCK : random.between(1, 40) * 512;
      const offset = random.chance(0.5) ? Math.floor(this.place(length) / BLOCK) * BLOCK : this.place(length);
      const [first, end] = [Math.floor(offset / BLOCK), Math.ceil((offset + length) / BLOCK)];
      if (taken.some(([other, from, to]) => other === name && from < end && first < to)) continue;
      taken.push([name, first, end]);
      this.counts.changes++;
      locals.change(name, offset, length, random.chance(0.25) ? undefined : this.data(length), random.chance(0.15));
    }
  }
}

for (const inMemory of [false, true]) {
  t.test(`local devices hold what was flushed through power losses, and what was acknowledged through kills${inMemory ? ', beside a volatile journal' : ''}`, async (t) => {
    const counts: Counts = { crashes: 0, lost: 0, changes: 0 };
    for (let seed = SEED; seed < SEED + SEEDS; seed++) {
      try {
        new LocalRun(seed, counts, inMemory).run();
      } catch (error) {
        t.fail(`TEST_SEED=${seed}: ${(error as Error).stack ?? ''}`);
        return;
      }
    }
    t.comment(`seeds ${SEED} to ${SEED + SEEDS - 1}: ${counts.crashes} crashes, ${counts.changes} changes, ${counts.lost} devices gone that had not been reported or were removed`);
    t.ok(counts.crashes > SEEDS && counts.changes > SEEDS * 10, 'there was something to judge');
  });
}

t.test('the local journal is used again and again, and a full one makes writers wait and not fail', async (t) => {
  const rig = Rig.started(SEED, SIZES);
  const locals = new LocalDevices(rig.host);
  locals.attach();
  rig.create('v', SIZE);
  locals.snapshot('v', 'n');
  const { log } = rig.host.group.content.local;
  for (let i = 0; i < 2000; i++) {
    const outcome = locals.change('v~n', (i % 256) * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(1 + (i % 200)));
    // One at a time: each has a record of its own.
    rig.run(() => outcome.errno >= 0);
    if (outcome.errno !== 0) throw new Error(`write ${i} failed with errno ${outcome.errno}`);
  }
  const segments = rig.paths('local').filter((path) => path.includes('/segment-'));
  t.ok(log.position.lsn > 3 * SIZES.segments * SIZES.segmentBytes, 'it was filled several times');
  t.ok(segments.length <= SIZES.segments, `${segments.length} segments`);
  locals.verify();

  const { faults } = rig.host.node.disk;
  faults.hook = ({ op, path }) => (op === 'fdatasync' && path.includes('/checkpoint-') ? 5 : 0);
  let outcome = { errno: 0 };
  for (let i = 0; outcome.errno === 0; i++) {
    if (i > 2000) throw new Error('it never became full');
    outcome = locals.change('v~n', (i % 256) * BLOCK, BLOCK, new Uint8Array(BLOCK).fill(201));
    const over = rig.world.elapsed(20_000);
    rig.run(() => outcome.errno >= 0 || over());
  }
  t.equal(outcome.errno, -1, 'the write waits');
  t.match(rig.host.group.local!.problems().join(), /the local journal is full: .*checkpoint/);
  const flushed = locals.flush('v~n');
  rig.run(() => flushed.errno >= 0);
  t.equal(flushed.errno, 0, 'what was acknowledged is flushed all the same');
  faults.hook = undefined;
  rig.run(() => outcome.errno >= 0);
  t.equal(outcome.errno, 0, 'and succeeds once a checkpoint has');
  locals.verify();
  rig.host.crash('power');
  rig.start();
  t.equal(rig.host.problem, undefined);
  locals.judge('power');
  rig.dispose();
});

t.test('space of local devices comes back: of trimmed blocks, and of removed devices', async (t) => {
  const rig = Rig.started(SEED, SIZES);
  const locals = new LocalDevices(rig.host);
  locals.attach();
  rig.create('v', SIZE);
  locals.snapshot('v', 'n');
  const quiet = (): void => rig.run(() => locals.inFlight === 0);
  const layers = (): string[] => rig.paths('layers').filter((path) => /device-214748364\d-/.test(path));
  for (let i = 0; i < 8; i++) locals.change('v~n', i * 128 * KIB, 128 * KIB, new Uint8Array(128 * KIB).fill(7));
  quiet();
  rig.flushTo('checkpoint');
  const { walker } = rig.host.group.content;
  locals.change('v~n', 128 * KIB, 512 * KIB, undefined);
  quiet();
  rig.run(() => walker.bytesPunched >= 512 * KIB);
  // What is written where it was just punched.
  locals.change('v~n', 256 * KIB, 64 * KIB, new Uint8Array(64 * KIB).fill(8));
  quiet();
  locals.verify();
  locals.snapshot('v~n', 'm');
  t.ok(layers().length > 0, 'there is a layer');
  locals.remove('v~n');
  rig.run(() => !walker.walking && !walker.owes);
  locals.verify();
  locals.remove('v~m');
  rig.run(() => layers().length === 0);
  rig.verify();
  rig.dispose();
});

t.test('what a kill cut off and a reader has seen since is there after a FLUSH, whatever becomes of the power', async (t) => {
  // A page that nobody synced is lost in about half of them.
  for (let seed = SEED; seed < SEED + 10; seed++) {
    const rig = Rig.started(seed, SIZES);
    const locals = new LocalDevices(rig.host);
    locals.attach();
    rig.create('v', SIZE);
    locals.snapshot('v', 'n');
    const flushed = (): void => {
      const outcome = locals.flush('v~n');
      rig.run(() => outcome.errno >= 0);
      t.equal(outcome.errno, 0);
    };
    const first = locals.change('v~n', 0, BLOCK, new Uint8Array(BLOCK).fill(1));
    rig.run(() => first.errno >= 0);
    flushed();
    // Nothing of the local journal is replayed, which would make the next FLUSH sync the layers that it names.
    rig.flushTo('checkpoint');
    // The process dies between the write of the layer and its record.
    rig.host.node.fuseKind = 'kill';
    const { faults } = rig.host.node.disk;
    faults.hook = ({ op, path }) => {
      if (op === 'pwrite' && /device-214748364\d-/.test(path)) faults.fuse = 1;
      return 0;
    };
    const second = locals.change('v~n', 0, BLOCK, new Uint8Array(BLOCK).fill(2));
    rig.run(() => !rig.host.alive);
    faults.hook = undefined;
    t.equal(second.errno, -1, 'it was not acknowledged');
    rig.start();
    locals.attach();
    const seen = locals.read('v~n', 0, BLOCK)!;
    t.equal(seen[0], 2, 'the kernel has it still');
    flushed();
    rig.host.crash('power');
    rig.start();
    locals.attach();
    t.strictSame(locals.read('v~n', 0, BLOCK), seen);
    rig.dispose();
  }
});
