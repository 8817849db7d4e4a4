/**
 * Puts an operation into the stream: marker with digest, append, execution, in
 * one step on the data thread (DESIGN §4). Must not know: roles, clients, who
 * waits (performer.ts), preconditions; the caller has checked them in the same step.
 */

import { assert } from '../../base/assert.js';
import { CorruptionError, IoError, OperatorError } from '../../base/errors.js';
import type { Io } from '../../io/io.js';
import { MAX_MARKER_BYTES } from '../../journal/format.js';
import type { Content } from '../content/content.js';
import type { Operation } from '../tree/record.js';
import { decodeMarker, encodeMarker } from '../tree/record.js';
import type { Tree } from '../tree/tree.js';
import type { At } from '../tree/change.js';

/**
 * Appends and executes; the batch under construction is empty. Throws IoError
 * when the journal fails, and nothing is executed then. `halfDone` is told when
 * what was appended cannot be executed to its end (a map node is unreadable):
 * the group must stop, and recovery executes it afresh; throws then, too.
 */
export function appendOperation(io: Io, content: Content, operation: Operation, node: string, halfDone: (error: IoError | CorruptionError) => void): At {
  const { journal, core } = content;
  const wallMs = io.wallMs();
  if (operation.op === 'epoch') journal.setEpoch({ number: operation.number, id: operation.id });
  const epochId = operation.op === 'epoch' ? operation.id : core.epoch!.id;
  const start = journal.position;
  const at: At = { lsn: journal.recordLsn(0), epochId, wallMs };
  const edit = core.tree.edit(operation, at);
  assert(typeof edit !== 'string', `operation ${operation.op} contradicts the tree: ${String(edit)}`);
  const body = encodeMarker({ operation, wallMs, ...edit.tree.proof(epochId) });
  // What no node could read back must never get into the stream.
  const problem = body.length > MAX_MARKER_BYTES ? `its marker would have ${body.length} bytes` : decodeMarker(body);
  if (typeof problem === 'string') throw new OperatorError('operation/too-large', `the operation is too large for one marker (${problem}); do it in parts`);
  journal.addMarker(body);
  const result = journal.flush();
  if (result < 0) throw new IoError(-result, 'append to the journal of', content.options.directory);
  if (operation.op === 'epoch') core.pushEpoch({ number: operation.number, id: operation.id, start, node, lossless: operation.lossless, wallMs });
  try {
    core.commit(operation, edit, at);
  } catch (error) {
    if (error instanceof IoError || error instanceof CorruptionError) halfDone(error);
    throw error;
  }
  return at;
}

/**
 * Devices whose waiting requests must not come out behind the operation: their
 * clients were disconnected, and were told nothing yet.
 */
export function overtaken(operation: Operation, tree: Tree): readonly number[] {
  switch (operation.op) {
    case 'assign':
      return operation.pairs.map((pair) => pair.target);
    case 'remove':
      return operation.devices;
    case 'resize':
      return operation.sizeBytes < (tree.get(operation.device)?.sizeBytes ?? 0) ? [operation.device] : [];
    case 'protect':
      return operation.on ? operation.devices.filter((id) => tree.get(id)?.kind === 'snapshot') : [];
    default:
      return [];
  }
}
