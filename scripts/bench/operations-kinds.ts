/**
 * Every storage management operation, as the suite `operations` does it.
 *
 * Owns: what each kind needs before and leaves behind. Must not know: what is
 * measured of it. Device `vol` is what it was again after `after`.
 */
import type { OperationReply } from '../../src/control/schema/replies.js';
import { GROUP, VOLUME_BYTES, type OperationsRig } from './operations-rig.js';

export interface Kind {
  readonly name: string;
  /** Makes it possible to do it `count` times. */
  before?(rig: OperationsRig, count: number): Promise<unknown>;
  /** Number `i` of them. */
  once(rig: OperationsRig, i: number): Promise<OperationReply>;
  after?(rig: OperationsRig, count: number): Promise<unknown>;
  /** Devices that number 0 gives other content, the new ones too. */
  readonly changes: readonly string[];
  /** Content of devices that were there: the meter has to count the same. */
  readonly assigns?: true;
}

const GIB = 2 ** 30;

/** One after the other: the API takes them in any order, the names tell which. */
async function repeat(count: number, one: (i: number) => Promise<unknown>): Promise<void> {
  for (let i = 0; i < count; i++) await one(i);
}

const source = (i: number): string => (i % 2 === 0 ? 'base' : 'changed');
const snapshotsOf = (volume: string, name: string) => (rig: OperationsRig, count: number): Promise<void> =>
  repeat(count, (i) => rig.control.snapshot(GROUP, { source: volume, name: `${name}${i}` }));
const removal = (device: (i: number) => string) => (rig: OperationsRig, count: number): Promise<void> =>
  repeat(count, (i) => rig.control.remove(GROUP, device(i), { withSnapshots: true }));
const backToChanged = (rig: OperationsRig): Promise<unknown> => rig.control.restore(GROUP, { target: 'vol', source: 'vol@changed' });
const protection = (on: boolean) => (rig: OperationsRig, i: number): Promise<OperationReply> => rig.control.protect(GROUP, on, { device: `vol@t${i}` });

/** Eight ranges of 1 GiB, each beginning and ending inside of a map leaf. */
const RANGES: [number, number][] = Array.from({ length: 8 }, (_, i) => [i * 7 * GIB + (i + 1) * 4096, GIB + i * 8192]);

const volume = (name: string, i: number): { name: string; size: number } => ({ name: `${name}${i}`, size: VOLUME_BYTES });

export const KINDS: readonly Kind[] = [
  {
    name: 'create a volume', changes: ['new0'],
    once: (rig, i) => rig.control.createVolume(GROUP, volume('new', i)),
    after: removal((i) => `new${i}`),
  },
  {
    name: 'snapshot of the volume', changes: ['vol@t0'],
    once: (rig, i) => rig.control.snapshot(GROUP, { source: 'vol', name: `t${i}` }),
    after: removal((i) => `vol@t${i}`),
  },
  {
    name: 'snapshot of a snapshot', changes: ['vol@t0'],
    once: (rig, i) => rig.control.snapshot(GROUP, { source: 'vol@changed', name: `t${i}` }),
    after: removal((i) => `vol@t${i}`),
  },
  {
    name: 'snapshot of the group, 9 volumes', changes: ['vol@t0', 'part@t0'],
    once: (rig, i) => rig.control.snapshot(GROUP, { source: null, name: `t${i}` }),
    after: removal((i) => `@t${i}`),
  },
  {
    name: 'restore, whole', assigns: true, changes: ['vol'],
    once: (rig, i) => rig.control.restore(GROUP, { target: 'vol', source: `vol@${source(i)}` }),
    after: backToChanged,
  },
  {
    name: 'restore of 8 ranges of 1 GiB', assigns: true, changes: ['vol'],
    once: (rig, i) => rig.control.restore(GROUP, { target: 'vol', source: `vol@${source(i)}`, ranges: RANGES }),
    after: backToChanged,
  },
  {
    name: 'restore of a set, 8 volumes', assigns: true, changes: ['vol', 'part'],
    before: async (rig) => {
      for (const name of ['vol', 'part']) await rig.control.restore(GROUP, { target: name, source: `${name}@base` });
    },
    once: (rig) => rig.control.restore(GROUP, { source: '@early' }),
  },
  {
    name: 'refresh of a snapshot', assigns: true, changes: ['vol@t0'],
    before: async (rig, count) => {
      await rig.control.restore(GROUP, { target: 'vol', source: 'vol@base' });
      await snapshotsOf('vol', 't')(rig, count);
      await backToChanged(rig);
    },
    once: (rig, i) => rig.control.refresh(GROUP, { target: `vol@t${i}` }),
    after: removal((i) => `vol@t${i}`),
  },
  {
    name: 'refresh of a set, 8 volumes', assigns: true, changes: ['vol@early', 'part@early'],
    before: async (rig) => {
      for (const name of ['vol', 'part']) await rig.control.restore(GROUP, { target: name, source: `${name}@base` });
    },
    once: (rig) => rig.control.refresh(GROUP, { target: '@early' }),
    after: async (rig) => {
      for (const name of ['vol', 'part']) await rig.control.restore(GROUP, { target: name, source: `${name}@changed` });
      await rig.control.refresh(GROUP, { target: '@early' });
    },
  },
  {
    name: 'sync, whole', assigns: true, changes: ['vol@t0'],
    before: (rig) => rig.control.snapshot(GROUP, { source: 'vol@changed', name: 't0' }),
    once: (rig, i) => rig.control.sync(GROUP, { target: 'vol@t0', source: `vol@${source(i)}` }),
    after: (rig) => rig.control.remove(GROUP, 'vol@t0'),
  },
  {
    name: 'sync of 8 ranges of 1 GiB', assigns: true, changes: ['vol@t0'],
    before: (rig) => rig.control.snapshot(GROUP, { source: 'vol@changed', name: 't0' }),
    once: (rig, i) => rig.control.sync(GROUP, { target: 'vol@t0', source: `vol@${source(i)}`, ranges: RANGES }),
    after: (rig) => rig.control.remove(GROUP, 'vol@t0'),
  },
  {
    name: 'resize, grow', changes: ['vol'],
    once: (rig, i) => rig.control.resize(GROUP, { device: 'vol', size: VOLUME_BYTES + (i + 1) * GIB }),
    after: backToChanged,
  },
  {
    name: 'resize, shrink', changes: ['vol'],
    once: (rig, i) => rig.control.resize(GROUP, { device: 'vol', size: VOLUME_BYTES / 2 - i * GIB, force: true }),
    after: backToChanged,
  },
  {
    name: 'rename a volume with snapshots', changes: [],
    once: (rig, i) => rig.control.rename(GROUP, { device: i % 2 === 0 ? 'vol' : 'other', name: i % 2 === 0 ? 'other' : 'vol' }),
    after: async (rig, count) => {
      if (count % 2 === 1) await rig.control.rename(GROUP, { device: 'other', name: 'vol' });
    },
  },
  {
    name: 'protect', changes: [],
    before: snapshotsOf('vol', 't'), once: protection(true),
    after: async (rig, count) => {
      await repeat(count, (i) => protection(false)(rig, i));
      await removal((i) => `vol@t${i}`)(rig, count);
    },
  },
  {
    name: 'unprotect', changes: [],
    before: async (rig, count) => {
      await snapshotsOf('vol', 't')(rig, count);
      await repeat(count, (i) => protection(true)(rig, i));
    },
    once: protection(false), after: removal((i) => `vol@t${i}`),
  },
  {
    name: 'clone', changes: ['new0'],
    once: (rig, i) => rig.control.clone(GROUP, { source: 'vol@base', name: `new${i}` }),
    after: removal((i) => `new${i}`),
  },
  { name: 'remove a snapshot', changes: [], before: snapshotsOf('vol', 't'), once: (rig, i) => rig.control.remove(GROUP, `vol@t${i}`) },
  {
    name: 'remove a set, 9 volumes', changes: [],
    before: (rig, count) => repeat(count, (i) => rig.control.snapshot(GROUP, { source: null, name: `t${i}` })),
    once: (rig, i) => rig.control.remove(GROUP, `@t${i}`),
  },
  {
    name: 'remove a volume with 8 snapshots', changes: [],
    before: (rig, count) => repeat(count, async (i) => {
      await rig.control.clone(GROUP, { source: 'vol@changed', name: `new${i}` });
      await snapshotsOf(`new${i}`, 's')(rig, 8);
    }),
    once: (rig, i) => rig.control.remove(GROUP, `new${i}`, { withSnapshots: true }),
  },
];
