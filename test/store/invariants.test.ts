/**
 * The invariant of DESIGN §5 on the store of a working group: a block of a
 * current layer is referenced by no map but its device's; what a frozen layer
 * holds logically never changes.
 */
import t from 'tap';
import { KIB, MIB } from '../../src/base/units.js';
import type { Layer } from '../../src/store/layers.js';
import { blockOf } from '../../src/store/store.js';
import { BLOCK } from '../sim/model.js';
import { Rig } from '../sim/rig.js';

/** Layer of every block of every device. All nodes are in memory here. */
function references(rig: Rig): Map<number, Uint32Array> {
  const { store, reader } = rig.host.group.content;
  const found = new Map<number, Uint32Array>();
  for (const device of store.all()) {
    const layers = new Uint32Array(blockOf(device.sizeBytes));
    if (reader.resolve(device, 0, layers.length, layers) !== 0) throw new Error('a node is not in memory');
    found.set(device.id, layers);
  }
  return found;
}

/** What a layer holds for the blocks that are referred to: from the journal or its file. */
function contentOf(rig: Rig, layer: Layer, block: number): string {
  const { store, journal } = rig.host.group.content;
  const lsn = store.pending.get(layer.number, block);
  const { disk } = rig.host.node;
  if (lsn !== 0) {
    const segment = journal.pool.find(lsn)!;
    return Buffer.from(disk.peek(segment.path, journal.pool.filePosition(segment, lsn), BLOCK)).toString('latin1');
  }
  return Buffer.from(disk.peek(store.layers.path(layer), block * BLOCK, BLOCK)).toString('latin1');
}

for (let seed = 1; seed <= 6; seed++) {
  t.test(`seed ${seed}: current layers are their device's alone, frozen ones never change`, async (t) => {
    const rig = Rig.started(seed, { mapMemory: 64 * MIB, segmentBytes: 256 * KIB, segments: 8, destageUs: 3_000 });
    t.teardown(() => rig.dispose());
    const frozen = new Map<string, string>();
    let looked = 0;
    rig.create('v', 2 * MIB);
    for (let round = 0; round < 40; round++) {
      for (let i = 0; i < 6; i++) {
        rig.workload.step();
        rig.pass(200);
      }
      rig.run(() => rig.workload.idle);
      const { store } = rig.host.group.content;
      for (const [id, layers] of references(rig)) {
        for (let block = 0; block < layers.length; block++) {
          if (layers[block] === 0) continue;
          const layer = store.layers.find(layers[block]);
          if (layer === undefined) throw new Error(`device ${id} refers to layer ${layers[block]}, which is gone`);
          const current = layer.frozenLsn === 0;
          if (current && (layer.device !== id || store.device(id).layer !== layer.number)) t.fail(`device ${id} refers to the current layer ${layer.number} of device ${layer.device}`);
          if (current || round % 8 !== 0) continue;
          const key = `${layer.number}:${block}`;
          const content = contentOf(rig, layer, block);
          if (frozen.has(key) && frozen.get(key) !== content) t.fail(`block ${block} of frozen layer ${layer.number} changed`);
          frozen.set(key, content);
          looked++;
        }
      }
    }
    t.ok(looked > 50, `${looked} blocks of frozen layers were looked at`);
  });
}
