/** The background walker and power loss: random work, random crashes, nothing that was flushed is lost. */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import { Random } from '../sim/random.js';
import { copyModel } from './walkrig.js';
import type { Model , Rig} from './walkrig.js';
import { BLOCK, Machine } from './walkmachine.js';

t.setTimeout(300_000);

/** Random work, then power failing at a random moment of what goes on in the background. */
function crashRun(seed: number): { punched: number; deleted: number } {
  const random = new Random(seed);
  const at = new Machine(seed, {
    walker: {
      pauseUs: random.pick([5, 50, 500]), stepUnits: random.pick([20, 200, 2000]), jobBytes: random.pick([8, 64, 1024]) * KIB,
      unlinkBytes: random.pick([0, 64 * KIB]), restUs: 200, restFactor: 0, retryUs: 1000, overwrittenBlocks: 64,
    },
    destageUs: random.pick([500, 20_000]), checkpointUs: random.pick([2000, 20_000]), mapMemoryBytes: random.pick([16 * KIB, 16 * MIB]),
  });
  let punched = 0;
  let deleted = 0;
  let model: Model = new Map();
  let tag = 1;
  let name = 1;
  /** `most` blocks of one request: a write of more may be cut off in the middle. */
  const change = (rig: Rig, most: number): void => {
    const devices = [...rig.model.keys()];
    const device = random.pick(devices);
    const blocks = rig.model.get(device)!.sizeBytes / BLOCK;
    const block = random.below(blocks);
    const count = Math.min(blocks - block, random.between(1, random.pick([2, 40, 400])));
    const roll = random.unit();
    if (roll < 0.45) rig.write(device, block, Math.min(count, most));
    else if (roll < 0.65) rig.trim(device, block, count);
    else if (roll < 0.8 && devices.length < 8) rig.snapshot(device, `s${name++}`);
    else if (roll < 0.9 && devices.length > 1) {
      const snapshots = devices.filter((one) => one !== 'v');
      rig.remove(random.pick(snapshots));
    } else if (devices.length > 1) {
      const source = random.pick(devices.filter((one) => one !== device));
      rig.restore(device, source);
    }
  };
  /** What may be there after a crash: the flushed state, and each state since. */
  let allowed: Model[] = [];
  try {
    for (let cycle = 0; cycle < 4; cycle++) {
      at.node.disk.faults.rates = { ...at.node.disk.faults.rates, coldRead: random.pick([0, 0.3]) };
      if (!at.start(model, tag)) throw new Error('crashed without a cause');
      const { rig } = at;
      if (cycle === 0) rig.create('v', random.pick([2, 6]) * MIB + 5 * BLOCK);
      else if (allowed.length > 0) {
        const found = allowed.find((one) => rig.difference(one) === undefined);
        if (found === undefined) throw new Error(`none of ${allowed.length} states: ${rig.difference(allowed[0])}`);
        rig.model.clear();
        for (const [device, state] of copyModel(found)) rig.model.set(device, state);
      }
      for (let i = random.between(2, 12); i > 0; i--) change(rig, 100);
      rig.flush();
      allowed = [copyModel(rig.model)];
      for (let i = random.below(4); i > 0; i--) {
        change(rig, 16);
        allowed.push(copyModel(rig.model));
      }
      // Requests are done; what follows is the destager's, the checkpointer's and the walker's alone.
      let over = false;
      at.world.after(random.logUniform(500, 200_000), () => {
        over = true;
      });
      if (random.chance(0.5)) at.node.disk.faults.fuse = random.between(1, 60);
      const { walker } = rig;
      rig.until(() => over);
      punched += walker.bytesPunched;
      deleted += walker.layersDeleted;
      model = rig.model;
      tag = rig.lastTag;
      if (at.node.alive) at.node.crash(random.chance(0.8) ? 'power' : 'kill');
    }
    at.node.disk.faults.fuse = 0;
    if (!at.start(model, tag)) throw new Error('crashed without a cause');
    const { rig } = at;
    const found = allowed.find((one) => rig.difference(one) === undefined);
    if (found === undefined) throw new Error(`none of ${allowed.length} states: ${rig.difference(allowed[0])}`);
    rig.model.clear();
    for (const [device, state] of copyModel(found)) rig.model.set(device, state);
    // After one more walk every file holds what is needed, and hardly more.
    rig.walkAll();
    const extra = rig.difference();
    if (extra !== undefined) throw new Error(`after the last walk: ${extra}`);
    // A file of which less than 1/256 is garbage is not worth it (a file system's own blocks count as allocated).
    const blocks = at.layerBytes / BLOCK;
    if (blocks < rig.neededBlocks || blocks > rig.neededBlocks * (1 + 1 / 255)) throw new Error(`${blocks} blocks are in use, ${rig.neededBlocks} needed`);
    rig.close();
  } finally {
    at.world.dispose();
  }
  return { punched, deleted };
}

t.test('power fails around punches and deletions: what was flushed is there, and no space is lost for good', async (t) => {
  const runs = Number(process.env.LOCKSTEP_SIM_RUNS ?? 40);
  const from = Number(process.env.TEST_SEED ?? 1);
  let punched = 0;
  let deleted = 0;
  for (let seed = from; seed < from + runs; seed++) {
    try {
      const result = crashRun(seed);
      punched += result.punched;
      deleted += result.deleted;
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
  t.comment(`${runs} seeds from ${from}: ${punched / BLOCK} blocks punched and ${deleted} layers deleted before the crashes`);
  t.ok(punched > 0 && deleted > 0);
});
