/**
 * A group that may have one layer file open: where the process has run out of descriptors, opening one layer closes
 * another, and its descriptor becomes that of the next. Nothing may be read from or written to the wrong file.
 */
import t from 'tap';
import { KIB } from '../../src/base/units.js';
import { BLOCK } from './model.js';
import { Rig } from './rig.js';

const SEED = Number(process.env.TEST_SEED ?? 4);
const LAYERS = 8;

function oneFile(rig: Rig): void {
  (rig.host.group.content.store.layers as unknown as { maxOpen: number }).maxOpen = 1;
}

/** Each block of the first LAYERS was last written in another layer. */
function inLayers(rig: Rig): void {
  for (let i = 0; i < LAYERS; i++) {
    rig.ask('v', 'write', i * BLOCK, (LAYERS - i) * BLOCK);
    rig.snapshot('v', `s${i}`);
  }
}

t.test('one read of many layers gets each from its own file', async (t) => {
  const rig = Rig.started(SEED);
  t.teardown(() => rig.dispose());
  rig.create('v', 256 * KIB);
  inLayers(rig);
  rig.flushTo('checkpoint');
  t.equal(rig.host.group.content.store.pending.blocks, 0, 'all is in the files');
  rig.host.group.content.store.layers.close();
  oneFile(rig);
  // Compared with the model.
  t.equal(rig.ask('v', 'read', 0, LAYERS * BLOCK), 0);
  rig.host.node.disk.faults.rates.coldRead = 1;
  t.equal(rig.ask('v', 'read', 0, LAYERS * BLOCK), 0, 'also with a helper');
  rig.host.node.disk.faults.rates.coldRead = 0;
  t.equal(rig.ask('v', 'write', 3 * BLOCK + 512, 4 * BLOCK), 0, 'edges of a write are completed from two layers');
  rig.verify();
});

t.test('one destage round of many layers writes each to its own file', async (t) => {
  const rig = Rig.started(SEED, { destageUs: 3600e6, destageFraction: 0.9 });
  t.teardown(() => rig.dispose());
  rig.create('v', 256 * KIB);
  oneFile(rig);
  inLayers(rig);
  rig.flushTo('checkpoint');
  t.equal(rig.host.group.content.store.pending.blocks, 0, 'all is in the files');
  rig.verify();
  rig.host.crash('power');
  t.equal(rig.tryStart(), undefined);
  rig.verify();
});
