/**
 * What each operation does to the tree, and which effects on content follow
 * from it (DESIGN §4). Pure.
 *
 * Owns: the meaning of every operation for names, descent, sizes, protection
 * and continuity. Must not know: how content is changed, which operations are
 * allowed now (operations/judge.ts).
 *
 * On the primary whatever contradicts the tree was refused before; a sentence
 * from here is a bug there, and makes a secondary stop applying.
 */

import { BLOCK_BYTES } from '../../base/units.js';
import { unreachable } from '../../base/assert.js';
import type { Device } from './device.js';
import type { Draft } from './draft.js';
import type { Operation, Range } from './record.js';

/** Where an operation stands in the stream. */
export interface At {
  readonly lsn: number;
  readonly epochId: string;
  readonly wallMs: number;
}

/** What an operation does to the devices' content; executed by the store. */
export type Effect =
  | { readonly kind: 'create'; readonly device: number; readonly sizeBytes: number }
  /** `target` becomes what `source` is (DESIGN §4: the one primitive), in these ranges or, when there are none, as a whole. A new snapshot is a target, too. */
  | { readonly kind: 'assign'; readonly target: number; readonly source: number; readonly ranges: readonly Range[] }
  | { readonly kind: 'resize'; readonly device: number; readonly sizeBytes: number }
  | { readonly kind: 'remove'; readonly device: number }
  /** The new device becomes what this node's local snapshot `local` is, and that is no more (adoption.ts). */
  | { readonly kind: 'adopt'; readonly device: number; readonly sizeBytes: number; readonly local: string; readonly digest: string };

type Of<Op extends Operation['op']> = Extract<Operation, { op: Op }>;

/** Carries an operation out on a draft. Returns why it cannot be, and then the draft is thrown away. */
export function changeTree(draft: Draft, operation: Operation, at: At, effects: Effect[]): string | undefined {
  switch (operation.op) {
    case 'epoch':
      // What was acknowledged before may be missing: clients that had seen it must not go on as if nothing happened.
      if (!operation.lossless) for (const device of draft.all()) draft.put({ ...device, continuity: continuityAt(at) });
      return undefined;
    case 'create':
      effects.push({ kind: 'create', device: operation.id, sizeBytes: operation.sizeBytes });
      return addVolume(draft, operation.id, operation.name, operation.sizeBytes, at);
    case 'snapshot':
      return snapshot(draft, operation, at, effects);
    case 'assign':
      return assign(draft, operation, at, effects);
    case 'resize':
      return resize(draft, operation, at, effects);
    case 'remove':
      return remove(draft, operation, at, effects);
    case 'rename':
      return rename(draft, operation, at);
    case 'protect':
      for (const id of operation.devices) {
        const device = draft.get(id);
        if (device === undefined) return `it protects device ${id}, which does not exist`;
        draft.put({ ...device, protected: operation.on, changedLsn: at.lsn });
      }
      return undefined;
    case 'clone': {
      const source = draft.get(operation.source);
      if (source === undefined) return `it clones device ${operation.source}, which does not exist`;
      effects.push(
        { kind: 'create', device: operation.id, sizeBytes: source.sizeBytes },
        { kind: 'assign', target: operation.id, source: source.id, ranges: [] },
      );
      return addVolume(draft, operation.id, operation.name, source.sizeBytes, at);
    }
    case 'adopt': {
      const { id, name, local, digest, sizeBytes } = operation;
      const source = draft.get(operation.source);
      if (source === undefined) return `it makes a snapshot of device ${operation.source}, which does not exist`;
      effects.push({ kind: 'adopt', device: id, sizeBytes, local, digest });
      return addSnapshot(draft, id, name, source, sizeBytes, '', at);
    }
    default:
      return unreachable(operation);
  }
}

/** The continuity id of a device whose content broke at this place. */
function continuityAt(at: At): string {
  return `${at.epochId}:${at.lsn}`;
}

function addVolume(draft: Draft, id: number, name: string, sizeBytes: number, at: At): string | undefined {
  if (id !== draft.next) return `it creates device ${id}, the next id is ${draft.next}`;
  if (draft.has(name)) return `there is a device named ${name} already`;
  draft.put({
    id, name, kind: 'volume', parent: 0, volume: id, sizeBytes, protected: false,
    createdLsn: at.lsn, createdMs: at.wallMs, changedLsn: at.lsn, set: '', continuity: continuityAt(at),
  });
  return undefined;
}

function snapshot(draft: Draft, operation: Of<'snapshot'>, at: At, effects: Effect[]): string | undefined {
  for (const one of operation.snapshots) {
    const source = draft.get(one.source);
    if (source === undefined) return `it snapshots device ${one.source}, which does not exist`;
    const problem = addSnapshot(draft, one.id, one.name, source, source.sizeBytes, operation.set, at);
    if (problem !== undefined) return problem;
    effects.push({ kind: 'create', device: one.id, sizeBytes: source.sizeBytes }, { kind: 'assign', target: one.id, source: source.id, ranges: [] });
  }
  return undefined;
}

function addSnapshot(draft: Draft, id: number, name: string, source: Device, sizeBytes: number, set: string, at: At): string | undefined {
  if (id !== draft.next) return `it creates device ${id}, the next id is ${draft.next}`;
  const device: Device = {
    id, name, kind: 'snapshot', parent: source.id, volume: source.volume, sizeBytes, protected: false,
    createdLsn: at.lsn, createdMs: at.wallMs, changedLsn: at.lsn, set, continuity: continuityAt(at),
  };
  if (draft.has(draft.nameOf(device))) return `there is a device named ${draft.nameOf(device)} already`;
  draft.put(device);
  return undefined;
}

function assign(draft: Draft, operation: Of<'assign'>, at: At, effects: Effect[]): string | undefined {
  const { pairs, ranges } = operation;
  const targets = new Set(pairs.map((pair) => pair.target));
  if (targets.size !== pairs.length) return 'it changes a device twice';
  if (ranges.length > 0 && pairs.length !== 1) return 'it has ranges of more than one device';
  for (const pair of pairs) {
    const target = draft.get(pair.target);
    const source = draft.get(pair.source);
    if (target === undefined) return `it changes device ${pair.target}, which does not exist`;
    if (source === undefined) return `it reads device ${pair.source}, which does not exist`;
    if (targets.has(source.id)) return `it reads device ${source.id}, which it changes`;
    const problem = rangesProblem(ranges, Math.min(target.sizeBytes, source.sizeBytes));
    if (problem !== undefined) return problem;
    const sizeBytes = ranges.length > 0 ? target.sizeBytes : source.sizeBytes;
    draft.put({ ...target, sizeBytes, changedLsn: at.lsn, continuity: continuityAt(at) });
    effects.push({ kind: 'assign', target: target.id, source: source.id, ranges });
  }
  return undefined;
}

/** What is wrong with ranges that must be whole blocks, not empty, ascending, apart, and below `endBytes`; undefined when nothing is. */
export function rangesProblem(ranges: readonly Range[], endBytes: number): string | undefined {
  let behind = 0;
  for (const [offset, length] of ranges) {
    if (offset % BLOCK_BYTES !== 0 || length % BLOCK_BYTES !== 0 || length === 0) return `its range ${offset}:${length} is not of whole blocks of ${BLOCK_BYTES} bytes`;
    if (offset < behind) return `its range ${offset}:${length} is not behind the one before it`;
    if (offset + length > endBytes) return `its range ${offset}:${length} ends behind byte ${endBytes}, the end of the smaller device`;
    behind = offset + length;
  }
  return undefined;
}

function resize(draft: Draft, operation: Of<'resize'>, at: At, effects: Effect[]): string | undefined {
  const device = draft.get(operation.device);
  if (device === undefined) return `it resizes device ${operation.device}, which does not exist`;
  const { sizeBytes } = operation;
  if (sizeBytes % BLOCK_BYTES !== 0) return `it makes device ${device.id} ${sizeBytes} bytes long, which is not a multiple of ${BLOCK_BYTES}`;
  // A client that goes on after a shrink may hold what was cut off; after a growth it lacks nothing.
  const continuity = sizeBytes < device.sizeBytes ? continuityAt(at) : device.continuity;
  draft.put({ ...device, sizeBytes, changedLsn: at.lsn, continuity });
  effects.push({ kind: 'resize', device: device.id, sizeBytes });
  return undefined;
}

function remove(draft: Draft, operation: Of<'remove'>, at: At, effects: Effect[]): string | undefined {
  for (const id of operation.devices) {
    const device = draft.get(id);
    if (device === undefined) return `it removes device ${id}, which does not exist`;
    const children = draft.children(id);
    if (device.kind === 'volume' && children.length > 0) return `it removes volume ${device.name}, which has snapshots`;
    for (const child of children) draft.put({ ...child, parent: device.parent, changedLsn: at.lsn });
    draft.drop(device);
    effects.push({ kind: 'remove', device: id });
  }
  return undefined;
}

function rename(draft: Draft, operation: Of<'rename'>, at: At): string | undefined {
  const { name } = operation;
  for (const id of operation.devices) {
    const device = draft.get(id);
    if (device === undefined) return `it renames device ${id}, which does not exist`;
    const renamed: Device = { ...device, name, set: operation.set === '' ? device.set : operation.set, changedLsn: at.lsn };
    if (draft.has(draft.nameOf(renamed))) return `there is a device named ${draft.nameOf(renamed)} already`;
    if (device.kind === 'volume') draft.renameVolume(device, renamed);
    else draft.put(renamed);
  }
  return undefined;
}
