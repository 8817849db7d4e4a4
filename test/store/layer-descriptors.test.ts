/** How many layer files are open at a time, and which one goes for another. */
import t from 'tap';
import { Errno, IoError } from '../../src/base/errors.js';
import { O } from '../../src/io/io.js';
import type { Io } from '../../src/io/io.js';
import { LayerTable, type Layer } from '../../src/store/layers.js';

/** Descriptors alone; `limit` is what the process may have. */
class Descriptors {
  readonly open = new Set<number>();
  opens = 0;

  /** `foreign`: the files are somebody else's, so that the kernel refuses to leave their times alone. */
  constructor(public limit: number, private readonly foreign = false) {}

  get io(): Io {
    return {
      open: (_path: string, flags: number): number => {
        if (this.foreign && (flags & O.NOATIME) !== 0) return -Errno.EPERM;
        if (this.open.size >= this.limit) return -Errno.EMFILE;
        let fd = 3;
        while (this.open.has(fd)) fd++;
        this.open.add(fd);
        this.opens++;
        return fd;
      },
      close: (fd: number) => t.ok(this.open.delete(fd), 'what is closed was open'),
      adviseRandom: () => 0,
    } as unknown as Io;
  }
}

function tableOf(count: number, descriptors: Descriptors, maxOpen: number): { table: LayerTable; layers: Layer[] } {
  const table = new LayerTable(descriptors.io, '/nowhere', maxOpen);
  const layers = Array.from({ length: count }, (_, i) => table.get(table.create(1, i + 1, 'e'.repeat(32))));
  for (const layer of layers) table.descriptorForWrite(layer);
  return { table, layers };
}

t.test('as many layers are open as may be, and every one can be read', async (t) => {
  const descriptors = new Descriptors(1000);
  const { table, layers } = tableOf(100, descriptors, 40);
  t.equal(descriptors.open.size, 40);
  for (const layer of layers) t.ok(table.descriptor(layer) >= 3);
  t.equal(descriptors.open.size, 40);
  table.close();
  t.equal(descriptors.open.size, 0);
});

t.test('files of another owner are opened all the same', async (t) => {
  const { table, layers } = tableOf(10, new Descriptors(1000, true), 4);
  for (const layer of layers) t.ok(table.descriptor(layer) >= 3);
  table.close();
});

t.test('a layer that is read all the time stays open while others come and go', async (t) => {
  const descriptors = new Descriptors(1000);
  const { table, layers } = tableOf(100, descriptors, 40);
  const [hot] = layers;
  table.descriptor(hot);
  const { fd } = hot;
  const before = descriptors.opens;
  for (let round = 0; round < 3; round++) {
    for (const layer of layers.slice(1)) {
      table.descriptor(layer);
      t.equal(table.descriptor(hot), fd);
    }
  }
  t.ok(descriptors.opens - before > 100, 'others were opened again and again');
});

t.test('a layer in use is not closed, and without another the limit gives way', async (t) => {
  const descriptors = new Descriptors(1000);
  const { table, layers } = tableOf(3, descriptors, 2);
  const held = layers.slice(0, 2);
  for (const layer of held) {
    table.descriptor(layer);
    layer.holds++;
  }
  t.ok(table.descriptor(layers[2]) >= 3);
  t.ok(held.every((layer) => layer.fd >= 0));
});

t.test('where the process has no more descriptors, layers close others and want less from then on', async (t) => {
  const descriptors = new Descriptors(10);
  const { table, layers } = tableOf(50, descriptors, 40);
  t.ok(layers.filter((layer) => layer.fd >= 0).length <= 10);
  descriptors.limit = 20;
  for (const layer of layers) t.ok(table.descriptor(layer) >= 3);
  t.ok(descriptors.open.size <= 10, 'what comes free is left to others');
});

t.test('without a descriptor to close, the error says what was being done', async (t) => {
  const descriptors = new Descriptors(0);
  const table = new LayerTable(descriptors.io, '/nowhere', 40);
  const layer = table.get(table.create(1, 1, 'e'.repeat(32)));
  t.throws(() => table.descriptorForWrite(layer), IoError);
});
