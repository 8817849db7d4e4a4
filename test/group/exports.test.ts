/** What clients are told of the devices of a group: names, identities and descriptions follow the tree. */
import t from 'tap';
import { LOCAL_DEVICES } from '../../src/base/units.js';
import { LocalTree } from '../../src/group/local/tree.js';
import { Exports } from '../../src/group/requests/exports.js';
import type { ExportView, LocalDevices } from '../../src/group/requests/exports.js';
import type { Operation } from '../../src/group/tree/record.js';
import { Tree } from '../../src/group/tree/tree.js';

const EPOCH = 'ab'.repeat(16);
const GROUP_ID = 'cd'.repeat(16);

/** A group g on node alpha, of a volume 1 = one, its snapshot 2 = one@a, and one of that, 3 = one@b. */
class Rig {
  readonly name = 'g';
  readonly groupId = GROUP_ID;
  readonly options = { node: 'alpha' };
  readonly serving = true;
  readonly writable = true;
  tree = Tree.empty;
  local: LocalDevices | undefined;
  private lsn = 0;
  readonly exports = new Exports(this);

  constructor() {
    this.mark({ op: 'create', id: 1, name: 'one', sizeBytes: 1 << 20 });
    this.mark({ op: 'snapshot', set: '', snapshots: [{ id: 2, source: 1, name: 'a' }] });
    this.mark({ op: 'snapshot', set: '', snapshots: [{ id: 3, source: 2, name: 'b' }] });
  }

  mark(operation: Operation): void {
    const edit = this.tree.edit(operation, { lsn: ++this.lsn, epochId: EPOCH, wallMs: 0 });
    if (typeof edit === 'string') throw new Error(edit);
    this.tree = edit.tree;
    this.exports.update();
  }

  view(id: number): ExportView {
    const view = this.exports.get(id);
    if (view === undefined) throw new Error(`no view of device ${id}`);
    return view;
  }
}

function words({ exportName, description, deviceIdentity, continuityIdentity }: ExportView): string[] {
  return [exportName, description, deviceIdentity, continuityIdentity];
}

t.test('a view says what its device is, and of what it was taken', async (t) => {
  const rig = new Rig();
  t.same(words(rig.view(1)), ['g/one', 'volume', `${GROUP_ID}:1`, `${EPOCH}:1`]);
  t.same(words(rig.view(3)), ['g/one@b', 'snapshot of one@a', `${GROUP_ID}:3`, `${EPOCH}:3`]);
});

t.test('a view follows a device that its own marker did not name', async (t) => {
  const rig = new Rig();
  const view = rig.view(3);
  rig.mark({ op: 'rename', set: '', devices: [2], name: 'x' });
  t.equal(view.description, 'snapshot of one@x', 'the one it was taken of was renamed');
  rig.mark({ op: 'rename', set: '', devices: [1], name: 'two' });
  t.equal(view.exportName, 'g/two@b', 'its volume was renamed');
  t.equal(view.description, 'snapshot of two@x');
  rig.mark({ op: 'remove', devices: [2] });
  t.equal(view.description, 'snapshot of two', 'the one it was taken of was removed');
  rig.mark({ op: 'assign', verb: 'refresh', pairs: [{ target: 3, source: 1 }], ranges: [] });
  t.equal(view.continuityIdentity, `${EPOCH}:7`);
  t.equal(rig.view(3), view, 'it is the same view all the time');
});

t.test('clients of a removed device are disconnected by the name that it had', async (t) => {
  const rig = new Rig();
  const view = rig.view(3);
  const reasons: string[] = [];
  view.clients.add({ peer: 'p', disconnect: (reason) => void reasons.push(reason) });
  rig.mark({ op: 'remove', devices: [3, 2, 1] });
  t.same(reasons, ['g/one@b was removed']);
  t.equal(view.gone, true);
  t.equal(rig.exports.get(3), undefined);
});

t.test('a local device is found by name, and says of what it was taken', async (t) => {
  const rig = new Rig();
  const tree = new LocalTree();
  let usable = false;
  rig.local = { tree, usable: () => usable };
  const id = LOCAL_DEVICES;
  const device = {
    id, name: 'one~l', volume: 1, source: 2, sizeBytes: 1 << 20, createdLsn: 5, changedLsn: 7, createdMs: 0, followsLsn: 3, ready: true, sealedLsn: 0, digest: '',
  };
  tree.put(device);
  rig.exports.update();
  const view = rig.view(id);
  t.same(words(view), ['g/one~l', 'local snapshot of one@a, on node alpha only', `${GROUP_ID}:alpha:${id}`, 'local:7']);
  t.equal(rig.exports.find('one~l'), view);
  t.match([view.gone, view.notYet], [true, /cannot be used yet/]);
  usable = true;
  tree.put({ ...device, changedLsn: 9, sealedLsn: 9 });
  rig.mark({ op: 'remove', devices: [3, 2] });
  t.same([view.gone, view.notYet, view.writable], [false, undefined, false], 'it can be used, and is sealed');
  t.equal(view.description, 'local snapshot of a removed device, on node alpha only');
  t.equal(view.continuityIdentity, 'local:9');
  tree.drop(id);
  rig.exports.update();
  t.equal(rig.exports.find('one~l'), undefined);
  t.equal(view.gone, true);
});
