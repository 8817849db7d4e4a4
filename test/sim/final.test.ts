/**
 * What a secondary has made final stays final over its restart: it never goes back below what it has overwritten in
 * its layers, nor below what a local snapshot that was reported follows.
 *
 * Of three nodes b misses what c gets from the primary a. The primary is lost, b is promoted, and c would have to undo
 * what b has not.
 */

import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import type { ControlRequest } from '../../src/control/port.js';
import type { LinksReply } from '../../src/control/schema/replies.js';
import { FINAL_FILE } from '../../src/group/content/finalnote.js';
import { GROUP, LAZY, SimHost, caughtUp } from './cluster.js';
import { LocalDevices } from './local.js';
import { BLOCK } from './model.js';
import { World } from './world.js';

const SEED = Number(process.env.TEST_SEED ?? 3);
const LIMIT = { us: 120e6 };
const WAIT = { wait: 'durable' as const, waitSeconds: 10 };

class Three {
  readonly world = new World({ seed: SEED });
  readonly a: SimHost;
  readonly b: SimHost;
  readonly c: SimHost;
  readonly locals: LocalDevices;

  constructor() {
    const { world } = this;
    Object.assign(world.network.rates, { latencyLowUs: 50, latencyHighUs: 200, bufferLow: 64 * KIB, bufferHigh: 64 * KIB });
    this.a = new SimHost(world, 'a', LAZY, { role: 'primary', peers: [{ node: 'b', address: '10.0.0.2:7002' }, { node: 'c', address: '10.0.0.3:7003' }] }, 0);
    this.b = new SimHost(world, 'b', LAZY, { role: 'secondary', listen: '10.0.0.2:7002', peers: [{ node: 'a' }, { node: 'c', address: '10.0.0.3:7003' }] }, 1);
    this.c = new SimHost(world, 'c', LAZY, { role: 'secondary', listen: '10.0.0.3:7003', peers: [{ node: 'a' }, { node: 'b' }] }, 2);
    this.locals = new LocalDevices(this.c);
    this.c.start();
    this.b.start();
    this.a.start();
    this.must(this.a, { op: 'create', group: GROUP, name: 'v', sizeBytes: MIB, ...WAIT });
    this.write(0, 1);
    this.flush(this.a, 'durable');
    this.run(() => this.caughtUp(this.b) && this.caughtUp(this.c));
  }

  run(until: () => boolean): void {
    this.world.run(until, LIMIT);
  }

  must(host: SimHost, request: ControlRequest): void {
    host.order(request, (until) => this.run(until));
  }

  flush(host: SimHost, upTo: 'durable' | 'destaged' | 'checkpoint'): void {
    this.must(host, { op: 'flush', group: GROUP, upTo });
  }

  write(block: number, letter: number): void {
    const { a } = this;
    let errno = -1;
    const device = [...a.model.state.devices.values()][0];
    a.client!.write(a.view(device)!, block * BLOCK, new Uint8Array(BLOCK).fill(letter), false, (result) => (errno = result));
    a.node.poke();
    this.run(() => errno >= 0);
  }

  /** First byte of a block of `v`. */
  read({ group, node, reactor }: SimHost, block: number): number {
    const { arena } = reactor!;
    const at = arena.alloc(BLOCK);
    let result: number | undefined;
    group.content.reader.read(group.content.store.device(1), block * BLOCK, BLOCK, at, (errno) => (result = errno));
    node.poke();
    this.run(() => result !== undefined);
    const letter = arena.u8[at];
    arena.release(at);
    return letter;
  }

  caughtUp(host: SimHost): boolean {
    return caughtUp(this.a, host);
  }

  /** c has what b lacks, and a has told that it is durable there. */
  ahead(block: number, letter: number): void {
    this.world.network.partition('a', 'b');
    this.write(block, letter);
    this.flush(this.a, 'durable');
    this.run(() => this.caughtUp(this.c) && this.c.group.stableLsn === this.a.group.journal.durableLsn);
  }

  restart(crash: 'none' | 'power' | 'kill'): void {
    if (crash === 'none') return;
    this.c.crash(crash);
    this.c.start();
    this.locals.attach();
    this.run(() => this.c.group.hasContent);
  }

  promoteB(): void {
    this.must(this.b, { op: 'promote', group: GROUP, force: true });
  }

  /** Why b does not stream to c. */
  refused(): string {
    const follows = (): boolean => this.c.group.epochs.length === this.b.group.epochs.length && !this.c.group.changing;
    let asked: ReturnType<SimHost['command']> | undefined;
    let reason = '';
    this.run(() => {
      asked ??= this.b.command({ op: 'links', group: GROUP });
      if (asked.ended) {
        reason = (asked.reply as LinksReply).links.find((one) => one.peer === 'c')!.reason ?? '';
        asked = undefined;
      }
      return /resync/.test(reason) || follows();
    });
    return follows() ? 'follows' : reason;
  }
}

for (const crash of ['none', 'power', 'kill'] as const) {
  t.test(`a block that was overwritten in its layer is not taken back; ${crash}`, async (t) => {
    const three = new Three();
    const { a, c } = three;
    three.flush(c, 'checkpoint');
    const common = three.b.group.position.lsn;
    three.ahead(0, 5);
    const { lsn } = c.group.position;
    three.flush(c, 'destaged');
    t.ok(c.group.content.checkpointer.committedAt.lsn <= common, 'no checkpoint speaks of it');
    a.crash('power');
    three.restart(crash);
    t.ok(c.group.stableLsn > common, 'the node knows that it is final');
    three.promoteB();
    t.match(three.refused(), /needs a resync/);
    t.equal(c.group.position.lsn, lsn, 'nothing was undone');
    t.equal(three.read(c, 0), 5);
    t.equal(three.read(three.b, 0), 1);
    three.world.dispose();
  });

  t.test(`a local snapshot that was reported stays; ${crash}`, async (t) => {
    const three = new Three();
    const { a, c, locals } = three;
    three.ahead(2, 2);
    const { lsn } = c.group.position;
    locals.attach();
    t.equal(locals.snapshot('v', 'used')!.notice, null, 'it can be used');
    a.crash('power');
    three.restart(crash);
    t.equal(c.group.stableLsn, lsn, 'the node knows that what it follows is final');
    three.promoteB();
    t.match(three.refused(), /needs a resync/);
    t.same([...c.group.local!.tree.all()].map((device) => device.name), ['v~used']);
    t.same(c.group.local!.problems(), []);
    three.world.dispose();
  });
}

t.test('what lies above is undone all the same, and the node stays final as far as it was', async (t) => {
  const three = new Three();
  const { a, b, c } = three;
  three.flush(c, 'destaged');
  const { lsn } = c.group.position;
  three.world.network.partition('a', 'b');
  three.write(0, 5);
  three.run(() => three.caughtUp(c));
  const noted = c.group.content.final.lsn;
  t.ok(noted > 0 && noted <= lsn, `noted up to LSN ${noted}`);
  a.crash('power');
  three.restart('kill');
  t.ok(c.group.position.lsn > lsn);
  t.equal(c.group.stableLsn, noted, 'the new write is not final');
  three.promoteB();
  three.run(() => c.group.epochs.length === b.group.epochs.length && !c.group.changing && c.group.position.lsn === b.group.position.lsn);
  t.equal(three.read(c, 0), 1, 'the write is undone');
  t.equal(c.group.content.floorLsn, noted);
  three.restart('power');
  t.equal(c.group.content.floorLsn, noted, 'also after another start');
  three.world.dispose();
});

t.test('no layer is written before the note is durable', async (t) => {
  const three = new Three();
  const { c } = three;
  let layerWrites = 0;
  let failures = 0;
  c.node.disk.faults.hook = ({ op, path }) => {
    if (op === 'pwrite' && path.includes('/layers/')) layerWrites++;
    return op === 'fdatasync' && path.endsWith(`/${FINAL_FILE}`) && failures < 3 && ++failures > 0 ? 5 : 0;
  };
  const outcome = c.command({ op: 'flush', group: GROUP, upTo: 'destaged' });
  three.run(() => failures === 3);
  t.equal(layerWrites, 0);
  t.match(c.group.content.destager.lastError, /note how far a round goes/);
  three.run(() => outcome.ended);
  t.ok(layerWrites > 0, 'then the round goes on');
  t.ok(c.group.content.final.lsn > 0);
  three.world.dispose();
});

t.test('of a primary that was stopped cleanly all is final, also for a secondary made of its copy', async (t) => {
  const three = new Three();
  const { a } = three;
  const { lsn } = a.group.position;
  let closed = false;
  a.path!.close(() => (closed = true));
  three.run(() => closed);
  a.crash('kill');
  a.start();
  t.equal(a.group.content.floorLsn, lsn);
  three.world.dispose();
});
