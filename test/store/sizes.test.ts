/** Own and shared bytes: exact for the moment of the question, whatever happens while they are counted. */
import t from 'tap';
import { OperatorError } from '../../src/base/errors.js';
import { KIB, MIB } from '../../src/base/units.js';
import type { GroupSizes } from '../../src/group/content/sizes.js';
import { Random } from '../sim/random.js';
import type { Model, Rig } from './walkrig.js';
import { BLOCK, Machine, machine } from './walkmachine.js';

t.setTimeout(300_000);

/** What should be counted for a model: tags are unique, so equal tags at one block are one stored block. */
function expected(rig: Rig, model: Model): { stored: number; devices: Map<number, { used: number; own: number }> } {
  const holders = new Map<string, number>();
  for (const { tags } of model.values()) for (const [block, tag] of tags) holders.set(`${block}:${tag}`, (holders.get(`${block}:${tag}`) ?? 0) + 1);
  const devices = new Map<number, { used: number; own: number }>();
  for (const [name, { tags }] of model) {
    const own = [...tags].filter(([block, tag]) => holders.get(`${block}:${tag}`) === 1).length;
    devices.set(rig.group.tree.find(name)!.id, { used: tags.size * BLOCK, own: own * BLOCK });
  }
  return { stored: holders.size * BLOCK, devices };
}

/** The first difference, or undefined. */
function wrong(sizes: GroupSizes, want: ReturnType<typeof expected>): string | undefined {
  if (sizes.devices.length !== want.devices.size) return `${sizes.devices.length} devices, should be ${want.devices.size}`;
  for (const { id, usedBytes, ownBytes, sharedBytes } of sizes.devices) {
    const { used, own } = want.devices.get(id)!;
    if (usedBytes !== used || ownBytes !== own || sharedBytes !== used - own) return `device ${id} uses ${usedBytes}, own ${ownBytes}, shared ${sharedBytes}; should be ${used}, ${own}, ${used - own}`;
  }
  return sizes.storedBytes === want.stored ? undefined : `${sizes.storedBytes} stored, should be ${want.stored}`;
}

function ask(rig: Rig, then: (sizes: GroupSizes) => void): void {
  rig.group.content.sizes.ask((result) => {
    if (result instanceof OperatorError) throw result;
    then(result);
  });
}

function count(rig: Rig): GroupSizes {
  let sizes: GroupSizes | undefined;
  ask(rig, (result) => {
    sizes = result;
  });
  rig.until(() => sizes !== undefined);
  return sizes!;
}

t.test('own bytes are what one device alone refers to', async (t) => {
  const at = machine(1);
  const { rig } = at;
  rig.create('v', 8 * MIB);
  rig.create('w', 4 * MIB);
  rig.write('v', 0, 600);
  rig.snapshot('v', 'a');
  rig.write('v', 100, 50);
  rig.snapshot('v', 'b');
  rig.write('w', 3, 7);
  rig.trim('v', 0, 10);
  const sizes = count(rig);
  const of = (name: string): number[] => {
    const { usedBytes, ownBytes, sharedBytes } = sizes.devices.find((device) => device.id === rig.group.tree.find(name)!.id)!;
    return [usedBytes / BLOCK, ownBytes / BLOCK, sharedBytes / BLOCK];
  };
  t.same(of('v'), [590, 0, 590]);
  t.same(of('v@a'), [600, 50, 550], 'the 50 blocks that were overwritten after it');
  t.same(of('v@b'), [600, 0, 600]);
  t.same(of('w'), [7, 7, 0]);
  t.equal(sizes.storedBytes, 657 * BLOCK);
  t.equal(sizes.lsn, rig.group.appliedLsn);
  at.world.dispose();
});

t.test('a question joins the count under way, and the same state is not counted twice', async (t) => {
  const at = machine(2);
  const { rig } = at;
  rig.create('v', 64 * MIB);
  for (let i = 0; i < 32; i++) rig.write('v', i * 512, 2);
  const answers: GroupSizes[] = [];
  for (let i = 0; i < 3; i++) ask(rig, (sizes) => answers.push(sizes));
  rig.until(() => answers.length === 3);
  t.equal(answers[0], answers[2]);
  const { steps } = rig.group.content.mapTasks;
  t.equal(count(rig), answers[0]);
  t.equal(rig.group.content.mapTasks.steps, steps, 'nothing changed: nothing is counted');
  rig.write('v', 0, 1);
  t.not(count(rig), answers[0]);
  t.equal(rig.group.content.store.held.size, 0, 'no root is held when the count has ended');
  at.world.dispose();
});

t.test('a group that is closed meanwhile says that nothing was counted', async (t) => {
  const at = machine(3);
  const { rig } = at;
  rig.create('v', 64 * MIB);
  rig.write('v', 0, 2);
  let said: unknown;
  rig.group.content.sizes.ask((result) => {
    said = result;
  });
  rig.close();
  t.match(said, { code: 'group/stopped', message: /the sizes could not be counted: the group was stopped/ });
  at.world.dispose();
});

/** Random work with random questions between; returns how many answers were checked and how often the map file was compacted meanwhile. */
function randomRun(seed: number): { answers: number; compactions: number } {
  const random = new Random(seed);
  const at = new Machine(seed, {
    walker: { pauseUs: 50, restUs: 200, restFactor: 0, retryUs: 1000, overwrittenBlocks: 64 },
    destageUs: random.pick([500, 20_000]), checkpointUs: random.pick([2000, 20_000]), mapMemoryBytes: random.pick([8 * KIB, 16 * MIB]),
    compactSlackBytes: random.pick([0, 8 * KIB]), mapTasks: { pauseUs: random.pick([50, 2000]), stepUs: 300, stepUnits: random.pick([1, 10, 2000]) },
  });
  at.start();
  const { rig } = at;
  // Heights 0 to 2, and more than one leaf per inner node.
  const sizes = [MIB, 24 * MIB, 300 * MIB];
  rig.create('v', random.pick(sizes) + 3 * BLOCK);
  rig.create('w', random.pick(sizes));
  let name = 1;
  let asked = 0;
  let answered = 0;
  let mapFile = rig.group.content.checkpointer.file(rig.group.content.store.map.currentFile).number;
  let compactions = 0;
  let problem: string | undefined;
  for (let step = 0; step < 120 && problem === undefined; step++) {
    const devices = [...rig.model.keys()];
    const device = random.pick(devices);
    const blocks = rig.model.get(device)!.sizeBytes / BLOCK;
    // A few places, so that leaves are shared and changed again.
    const block = Math.min(blocks - 1, random.pick([0, 500, 1024, 5000, 40_000, 70_000]) + random.below(40));
    const count = Math.min(blocks - block, random.between(1, random.pick([2, 40, 700])));
    const roll = random.unit();
    if (roll < 0.45) rig.write(device, block, Math.min(count, 100));
    else if (roll < 0.55) rig.trim(device, block, count);
    else if (roll < 0.7 && devices.length < 12) rig.snapshot(device, `s${name++}`);
    else if (roll < 0.8 && devices.some((one) => one.includes('@'))) rig.remove(random.pick(devices.filter((one) => one.includes('@'))));
    else if (roll < 0.9) {
      const related = devices.filter((one) => one !== device && one.split('@')[0] === device.split('@')[0]);
      if (related.length > 0) rig.restore(device, random.pick(related));
    }
    if (random.chance(0.3)) rig.settle();
    if (random.chance(0.2) && asked === answered) {
      asked++;
      const want = expected(rig, rig.model);
      const lsn = rig.group.appliedLsn;
      ask(rig, (sizes) => {
        answered++;
        problem = sizes.lsn === lsn ? wrong(sizes, want) : `counted at LSN ${sizes.lsn}, asked at ${lsn}`;
      });
    }
    const { number } = rig.group.content.checkpointer.file(rig.group.content.store.map.currentFile);
    if (number !== mapFile && answered < asked) compactions++;
    mapFile = number;
  }
  rig.until(() => answered === asked && rig.group.content.mapTasks.count === 0);
  if (problem !== undefined) throw new Error(problem);
  if (rig.group.content.store.held.size > 0) throw new Error('a root is held for nothing');
  at.world.dispose();
  return { answers: answered, compactions };
}

t.test('sizes are those of a brute-force count, while writes, operations, paging and compactions go on', async (t) => {
  const first = Number(process.env['TEST_SEED'] ?? 1);
  let answers = 0;
  let compactions = 0;
  for (let seed = first; seed < first + 25; seed++) {
    try {
      const run = randomRun(seed);
      answers += run.answers;
      compactions += run.compactions;
    } catch (error) {
      t.fail(`TEST_SEED=${seed}: ${error instanceof Error ? error.stack : String(error)}`);
      return;
    }
  }
  t.comment(`25 seeds from ${first}: ${answers} counts, ${compactions} compactions of the map file while they ran`);
  t.ok(answers > 100);
  t.ok(compactions > 0 || process.env['TEST_SEED'] !== undefined, 'compactions happen during counts');
});
