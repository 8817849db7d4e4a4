/**
 * Says what differs when a node gets another tree than a marker says (DESIGN §4), and what to do then.
 *
 * Owns: the words. Must not know: where sums come from (fieldsums.ts), who reads the words.
 */

import { differences, EXISTENCE, fieldHash, KINDS } from './fieldsums.js';
import type { Difference, FieldSums } from './fieldsums.js';
import type { Device } from './device.js';
import type { Tree } from './tree.js';

/** What a person does about a record that this node cannot execute. */
export const REMEDY = 'Restart lockstepd here in the version that wrote this record, and it tries again; if that does not help, report this, and build this node anew (README, "Rebuild a secondary")';
/** Longest text about devices: the whole sentence has to fit a message to the peer. */
const MOST_CHARACTERS = 900;
/** A node that lacks devices has not seen the highest id. */
const IDS_BEYOND = 1000;

/**
 * A sentence without its end. `theirs`: the sums in the marker; undefined when it is older than they are. `was`, `tree`:
 * this node's tree before and after the marker.
 */
export function whatDiffers(theirs: FieldSums | undefined, was: Tree, tree: Tree): string {
  if (theirs === undefined) return 'the trees differ';
  const found = differences(theirs, tree.sums, tree.nextId + IDS_BEYOND);
  if (found.length === 0) return 'all fields of all devices agree, so only the epoch, or how the digest is computed, differs';
  const byDevice = new Map<number, Difference[]>();
  const elsewhere: Difference[] = [];
  for (const difference of found) {
    const at = located(difference, found, tree);
    if (at === undefined) elsewhere.push(difference);
    else byDevice.set(at, [...byDevice.get(at) ?? [], difference]);
  }
  const items = [...byDevice].map(([id, differing]) => ofDevice(id, differing, tree));
  if (elsewhere.length > 0) items.push(ofSeveral(elsewhere, theirs, tree));
  const touched = elsewhere.length === 0 ? [] : [...tree.all()].filter((device) => was.get(device.id) !== device);
  const here = touched.map((device) => `${called(device, tree)}: ${shown(device, elsewhere)}`);
  const after = here.length === 0 ? '' : `. Of the devices that the marker touches this node would have ${bounded(here, MOST_CHARACTERS / 2)}`;
  return `the trees differ in ${bounded(items, MOST_CHARACTERS - after.length)}${after}`;
}

/** The id of the one device that differs, if it makes sense. */
function located({ device, kind }: Difference, all: readonly Difference[], tree: Tree): number | undefined {
  if (device === undefined || tree.get(device) !== undefined) return device;
  // One that is not here can only differ by being there.
  const existence = all[0].kind === EXISTENCE ? all[0].device : undefined;
  return kind === EXISTENCE || existence === device ? device : undefined;
}

function ofDevice(id: number, differing: readonly Difference[], tree: Tree): string {
  const device = tree.get(id);
  if (device === undefined) return `device ${id}, which the primary has and this node would not`;
  const existence = differing[0].kind === EXISTENCE ? differing[0].hash : 0;
  if (existence !== 0 && (existence + fieldHash(EXISTENCE, device)) >>> 0 === 0) return `${called(device, tree)}, which this node would have and the primary has not`;
  return `${words(differing)} of ${called(device, tree)}: here ${shown(device, differing)}`;
}

function ofSeveral(differing: readonly Difference[], theirs: FieldSums, tree: Tree): string {
  if (differing.length < KINDS.length) return `${words(differing)} of several devices`;
  // Other devices make every kind differ.
  const counts = theirs[0] === tree.count ? '' : ` (the primary has ${theirs[0]}, this node would have ${tree.count})`;
  return `which devices there are${counts}, and perhaps in more`;
}

function words(differing: readonly Difference[]): string {
  const all = differing.map(({ kind }) => KINDS[kind].word);
  return all.length === 1 ? all[0] : `${all.slice(0, -1).join(', ')} and ${all[all.length - 1]}`;
}

function shown(device: Device, differing: readonly Difference[]): string {
  return differing.map(({ kind }) => KINDS[kind].shown(device)).join(', ');
}

function called(device: Device, tree: Tree): string {
  return `${tree.nameOf(device)} (device ${device.id})`;
}

/** As many of the items as fit, at least a part of the first. */
function bounded(items: readonly string[], limit: number): string {
  let text = '';
  for (const [i, item] of items.entries()) {
    const longer = i === 0 ? item : `${text}; ${item}`;
    if (longer.length > limit) return i === 0 ? `${item.slice(0, limit)} ...` : `${text}; and ${items.length - i} more`;
    text = longer;
  }
  return text;
}
