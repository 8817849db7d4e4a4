/**
 * Adopting, judged: which local snapshot may become a replicated one, and the
 * operation that makes it so (local/adoption.ts executes it). Preconditions and
 * their sentences only, as judge.ts.
 */

import { OperatorError } from '../../base/errors.js';
import { sealedDigest } from '../local/adoption.js';
import type { AdoptionHost } from '../local/adoption.js';
import { noLocalSnapshot } from './localjudge.js';
import type { Judged, Plan } from './judge.js';

/** `VOLUME~NAME` becomes `VOLUME@snapshot`. Throws OperatorError; then nothing has happened. */
export function planAdopt(judged: Judged, local: AdoptionHost, name: string, snapshot: string, force: boolean): Plan {
  const { group, tree, exports } = judged;
  const device = local.tree.find(name);
  if (device === undefined) throw noLocalSnapshot(group, name);
  const digest = sealedDigest(device, local.log.settledLsn);
  if (digest === undefined) throw new OperatorError('local/not-sealed', `${group}/${name} is not sealed: make it equal on every node (lockstep reconcile), then run on every node: lockstep seal ${group}/${name}`);
  const volume = tree.get(device.volume);
  if (volume === undefined) throw new OperatorError('device/not-found', `the volume that ${group}/${name} was taken of was removed, so it can be a snapshot of nothing`);
  const spelled = `${tree.nameOf(volume)}@${snapshot}`;
  if (tree.find(spelled) !== undefined) throw new OperatorError('device/exists', `${group}/${spelled} exists already; choose another name with --as or remove it first`);
  const clients = exports.clientsOf(device.id);
  if (clients > 0 && !force) throw new OperatorError('device/busy', `${group}/${name} has ${clients} NBD client${clients === 1 ? '' : 's'}, and will be no more; disconnect ${clients === 1 ? 'it' : 'them'}, or use --force`);
  const source = tree.get(device.source) ?? volume;
  return {
    operation: { op: 'adopt', id: tree.nextId, source: source.id, name: snapshot, local: name, digest, sizeBytes: device.sizeBytes },
    disconnect: clients > 0 ? [device.id] : [],
  };
}
