/**
 * Graft: a range of one device becomes what another device has there (DESIGN §4, §8).
 *
 * Owns: sharing subtrees between two trees, and the stamp rule of a partial
 * assign: whole regions keep the source's stamps, a region of which only part is
 * assigned gets the marker's.
 * Must not know: markers, layers, the disk.
 */
import { assert } from '../../base/assert.js';
import { LeafContent } from './leaf.js';
import { BlockMap, spanBlocks } from './map.js';
import type { MapRoot } from './map.js';
import { FAN_OUT, LEAF_BLOCKS, LEAF_REGIONS } from './nodes.js';

const leading = new LeafContent();
const trailing = new LeafContent();

/**
 * Blocks [first, first + count), inside both devices, become `source`'s, by the
 * marker `stamp`. Costs O(height). Returns 0; or, before anything was changed,
 * the handle of a leaf that must be loaded first (BlockMap.load), then ask again.
 *
 * A region that the end of a device cuts counts as whole when the range and both
 * devices end there: else its bytes would not be the source's.
 */
export function graft(map: BlockMap, target: MapRoot, source: MapRoot, first: number, count: number, stamp: number): number {
  assert(target !== source, 'a device is not grafted onto itself');
  assert(first >= 0 && count >= 0 && first + count <= target.sizeBlocks && first + count <= source.sizeBlocks, 'a graft lies inside both devices');
  if (count === 0) return 0;
  const end = first + count;
  const endOfBoth = end === target.sizeBlocks && end === source.sizeBlocks;
  const stop = endOfBoth ? spanBlocks(target.height) : end;
  const firstWhole = Math.ceil(first / LEAF_BLOCKS);
  const endWhole = Math.floor(stop / LEAF_BLOCKS);
  const firstLeaf = Math.floor(first / LEAF_BLOCKS);
  const lead = firstLeaf < firstWhole;
  const trail = stop > endWhole * LEAF_BLOCKS && !(lead && endWhole === firstLeaf);

  if (lead) {
    const miss = map.leaves.expand(map.descendLoading(source, firstLeaf), leading);
    if (miss !== 0) return miss;
  }
  if (trail) {
    const miss = map.leaves.expand(map.descendLoading(source, endWhole), trailing);
    if (miss !== 0) return miss;
  }

  if (lead) graftPart(map, target, firstLeaf, first - firstLeaf * LEAF_BLOCKS, Math.min(LEAF_BLOCKS, stop - firstLeaf * LEAF_BLOCKS), leading, stamp);
  if (firstWhole < endWhole) graftWhole(map, target, source, firstWhole, endWhole);
  if (trail) graftPart(map, target, endWhole, 0, stop - endWhole * LEAF_BLOCKS, trailing, stamp);
  return 0;
}

/**
 * A node that must be loaded before `graft` of blocks [first, first + count) of
 * `source` needs no reading, or 0: a leaf that the range cuts, or one above it.
 */
export function graftMiss(map: BlockMap, source: MapRoot, first: number, count: number): number {
  for (const block of [first, first + count]) {
    if (block % LEAF_BLOCKS === 0 || block >= source.sizeBlocks) continue;
    const h = map.descend(source, Math.floor(block / LEAF_BLOCKS));
    const miss = map.level > 0 ? h : map.leaves.missing(h);
    if (miss !== 0) return miss;
  }
  return 0;
}

function graftPart(map: BlockMap, target: MapRoot, leaf: number, from: number, to: number, content: LeafContent, stamp: number): void {
  let top = 0;
  for (let region = from >>> 4; region << 4 < to; region++) {
    if (from > region << 4 || to < (region + 1) << 4) content.stamps[region] = stamp;
    if (content.stamps[region] > top) top = content.stamps[region];
  }
  assert(to <= LEAF_BLOCKS && (to - 1) >>> 4 < LEAF_REGIONS, 'part of one leaf');
  const parent = map.ownParent(target, leaf, top);
  if (parent === 0) {
    target.handle = map.leaves.changeTo(target.handle, from, to, content, top);
  } else {
    const old = map.inners.child(parent, leaf & (FAN_OUT - 1));
    map.inners.setChild(parent, leaf & (FAN_OUT - 1), map.leaves.changeTo(old, from, to, content, top));
  }
}

/** Whole leaves [from, to). */
function graftWhole(map: BlockMap, target: MapRoot, source: MapRoot, from: number, to: number): void {
  const { nodes, inners } = map;
  let s = source.handle;
  let level = source.height;
  for (; level > target.height && s !== 0; level--) {
    inners.ensure(s);
    s = inners.child(s, 0);
  }
  level = Math.min(level, target.height);
  if (level === target.height && from === 0 && to === FAN_OUT ** level) {
    nodes.retain(s);
    nodes.release(target.handle);
    target.handle = s;
    return;
  }
  if (target.handle === 0 && s === 0) return;
  target.handle = inners.own(target.handle);
  graftBelow(map, target.handle, target.height, s, level, from, to);
}

/** Below `t`, which the caller owns, at `level`; `s` is the source's node at the same place, or (sLevel < level) what would be its first descendant at sLevel. */
function graftBelow(map: BlockMap, t: number, level: number, s: number, sLevel: number, from: number, to: number): void {
  const { nodes, inners } = map;
  if (s !== 0 && sLevel === level) inners.ensure(s);
  const below = FAN_OUT ** (level - 1);
  for (let slot = Math.floor(from / below); slot * below < to && slot < FAN_OUT; slot++) {
    const start = slot * below;
    let child: number;
    if (sLevel === level) child = s === 0 ? 0 : inners.child(s, slot);
    else child = slot === 0 ? s : 0;
    const childLevel = Math.min(sLevel, level - 1);
    const old = inners.child(t, slot);
    if (old === child && (old === 0 || childLevel === level - 1)) continue;
    if (from <= start && to >= start + below && (child === 0 || childLevel === level - 1)) {
      nodes.retain(child);
      inners.setChild(t, slot, child);
      nodes.release(old);
      nodes.raiseTop(t, nodes.topOf(child));
      continue;
    }
    const owned = inners.own(old);
    inners.setChild(t, slot, owned);
    graftBelow(map, owned, level - 1, child, childLevel, Math.max(0, from - start), Math.min(below, to - start));
    nodes.raiseTop(t, nodes.topOf(owned));
    if (inners.isEmpty(owned)) {
      inners.setChild(t, slot, 0);
      nodes.release(owned);
    }
  }
}

let warm = false;

/** Grafts on a map of its own, once in a process: the first ranges of a process would otherwise spend milliseconds of the data thread in cold code. */
export function warmUpGraft(): void {
  if (warm) return;
  warm = true;
  const map = new BlockMap(() => {
    throw new Error('nothing of this map is on a disk');
  });
  const size = 8 * LEAF_BLOCKS * FAN_OUT;
  for (let i = 1; i <= 60; i++) {
    const [target, source] = [map.create(size), map.create(size)];
    for (let leaf = 0; leaf < 4; leaf++) {
      map.set(source, (leaf * 67 + i % 5) * LEAF_BLOCKS + i, 40, 1, 2 * i);
      map.set(target, (leaf * 67 + i % 7) * LEAF_BLOCKS + 2 * i, 20, 2, 2 * i + 1);
    }
    graft(map, target, source, i, size - 2 * i, 2 * i + 2);
    graft(map, target, source, i * 3, 5, 2 * i + 3);
    map.drop(target);
    map.drop(source);
    while (map.reclaim(1024));
  }
}
