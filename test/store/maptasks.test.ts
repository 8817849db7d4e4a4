/** Work beside everything else over maps that do not fit into memory. */
import t from 'tap';
import { MIB } from '../../src/base/units.js';
import type { MapRoot } from '../../src/store/map/map.js';
import { DEFAULT_MAP_TASKS, MapTasks, Step } from '../../src/store/maptasks.js';
import type { MapTask, StepResult } from '../../src/store/maptasks.js';
import { Rig } from '../sim/rig.js';

t.test('room that is made for a task does not take away the node that it is about to load', async (t) => {
  const rig = Rig.started(17, { mapMemory: 16 * MIB });
  t.teardown(() => rig.dispose());
  rig.create('v', 9 * 1024 * MIB);
  for (const leaf of [0, 70, 4096]) rig.ask('v', 'write', leaf * 2 * MIB, 4096);
  rig.flushTo('checkpoint');
  const { content } = rig.host.group;
  const { map } = content.store;
  map.evict(0);
  const root = map.share(content.store.device(1).root);
  map.loadNow(root.handle);
  let found = 0;
  let problem: string | undefined = 'not ended';
  const layers = new Uint32Array(1);
  const task: MapTask = {
    roots: [root] as readonly MapRoot[], optional: false, neededNode: 0, progress: 0,
    step(): StepResult {
      this.neededNode = map.resolve(root, 4096 * 512, 1, layers, 0);
      if (this.neededNode !== 0) return Step.needed;
      found = layers[0];
      return Step.end;
    },
    ended(words): void {
      problem = words;
    },
  };
  // No memory at all: whatever is not looked at goes out again.
  const tasks = new MapTasks(rig.host.reactor!, { map, held: content.store.held }, (bit) => content.checkpointer.file(bit), 0, DEFAULT_MAP_TASKS);
  tasks.add(task);
  rig.run(() => tasks.count === 0);
  t.ok(problem === undefined ? found > 0 : /memory for maps is too small/.test(problem), `it ends: ${problem ?? 'done'}`);
  tasks.close();
});
