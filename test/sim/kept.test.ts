/**
 * A secondary that cannot execute a record goes on receiving: through new epochs
 * of its primary, over new connections and its own restarts.
 */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import { Tree } from '../../src/group/tree/tree.js';
import { GROUP, SimHost, SMALL } from './cluster.js';
import { World } from './world.js';

const ADDRESS = '10.0.0.2:7002';
const LIMIT = { us: 60e6 };

/** Primary `a`, secondary `b`, and a record that only `a` can execute. */
class Two {
  readonly world = new World({ seed: 21 });
  readonly a = new SimHost(this.world, 'a', SMALL, { role: 'primary', peers: [{ node: 'b', address: ADDRESS }] }, 0);
  readonly b = new SimHost(this.world, 'b', SMALL, { role: 'secondary', listen: ADDRESS, peers: [{ node: 'a' }] }, 1);

  constructor() {
    this.start(this.b);
    this.start(this.a);
    this.create('v');
    this.run(() => this.level && this.b.group.appliedLsn === this.a.group.position.lsn);
  }

  start(host: SimHost): void {
    if (!host.start() || host.problem !== undefined) throw new Error(`${host.name}: ${host.problem ?? 'crashed'}`);
  }

  run(until: () => boolean): void {
    this.world.run(until, LIMIT);
  }

  create(name: string, by: (act: () => void) => void = (act) => act()): void {
    let outcome: ReturnType<SimHost['command']> = { ended: false };
    by(() => void (outcome = this.a.command({ op: 'create', group: GROUP, name, sizeBytes: MIB, wait: 'durable', waitSeconds: 10 })));
    this.run(() => outcome.ended);
    if (outcome.error !== undefined) throw outcome.error as Error;
  }

  /** `act` on the primary; its markers carry a digest that no other node gets. */
  odd(act: () => void): void {
    const digest = Object.getOwnPropertyDescriptor(Tree.prototype, 'digest')!;
    Object.defineProperty(Tree.prototype, 'digest', { ...digest, value: () => 'e'.repeat(32) });
    try {
      act();
    } finally {
      Object.defineProperty(Tree.prototype, 'digest', digest);
    }
  }

  /** As a start of the primary does. */
  beginEpoch(): void {
    this.a.node.attempt(() => this.a.group.operations.beginEpoch(true, 'a test'));
    this.a.node.poke();
  }

  /** The links end and are made again. */
  reconnect(): void {
    const before = this.link.reconnects;
    this.world.network.cut('a', 'b');
    this.run(() => this.link.reconnects > before && (this.link.state === 'streaming' || this.link.state === 'refused'));
  }

  get link() {
    return this.a.path!.links.status(GROUP)[0];
  }

  /** `b` has received all that `a` has. */
  get level(): boolean {
    return this.b.group.hasContent && this.b.group.position.lsn === this.a.group.position.lsn;
  }

  restartB(): void {
    this.b.crash('kill');
    // It has not executed what its journal holds, and the model has.
    this.b.compareTree = () => undefined;
    this.start(this.b);
  }
}

for (const which of ['an operation', 'the epoch record itself'] as const) {
  t.test(`a stopped applier goes on receiving after a new epoch and a reconnect: ${which} cannot be executed`, async (t) => {
    const two = new Two();
    t.teardown(() => two.world.dispose());
    const { a, b } = two;
    const applied = b.group.epochs;
    if (which === 'an operation') {
      two.create('odd', (act) => two.odd(act));
      two.run(() => two.level);
      const stopped = b.group.appliedLsn;
      t.ok(stopped < b.group.position.lsn, 'it keeps the record');
      two.beginEpoch();
    } else {
      two.odd(() => two.beginEpoch());
    }
    two.run(() => two.level);
    const stopped = b.group.appliedLsn;
    const durable = b.group.position.lsn;
    // Then nothing of it can be undone.
    two.run(() => b.group.stableLsn >= durable);
    const { applyProblem } = b.group;
    t.match(applyProblem, /^the marker "(create|epoch)" at LSN \d+ left the primary with tree digest e{32}, this node would get [0-9a-f]{32}: all fields of all devices agree/);
    const reason = `b receives but does not apply: ${applyProblem ?? ''}`;
    t.equal(two.link.reason, reason);
    two.reconnect();
    t.equal(two.link.state, 'streaming', two.link.reason);
    two.run(() => two.link.reason === reason);
    two.create('w');
    two.run(() => two.level);
    t.same(b.group.epochs, a.group.epochs);

    two.restartB();
    t.same(b.group.epochs, a.group.epochs, 'recovery finds them, too');
    two.run(() => two.link.state === 'streaming' || two.link.state === 'refused');
    t.equal(two.link.state, 'streaming', two.link.reason);
    two.run(() => two.link.reason === reason);
    two.create('x');
    two.run(() => two.level);
    t.equal(b.group.appliedLsn, stopped, 'nothing behind the record was executed');
    t.same(b.group.content.core.epochs, applied, 'what was executed stands in its own epoch');
    t.throws(() => b.group.promote('a test'), { code: 'group/busy' });
  });
}

