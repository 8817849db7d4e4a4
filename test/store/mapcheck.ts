/**
 * A full check of a map's structure, for tests and debugging.
 *
 * Owns: recounting references and verifying the rules of nodes.ts, leaf by leaf.
 * Cost: everything in memory; never call it on a serving node.
 */
import { assert } from '../../src/base/assert.js';
import type { BlockMap, MapRoot } from '../../src/store/map/map.js';
import { heightFor } from '../../src/store/map/map.js';
import { DELTA_CAPACITY, FAN_OUT, Kind, LEAF_BLOCKS, LEAF_REGIONS, REF_DELTA, REF_FLAGS, REF_INNER, SEE_BASE, STAMP_SEE_BASE } from '../../src/store/map/nodes.js';
import { LeafContent } from '../../src/store/map/leaf.js';

/**
 * Verifies that the nodes reachable from `roots` and from dropped trees are all
 * there are, that their reference counts are exact, and that every node obeys
 * the rules. Throws AssertionError.
 */
export function checkMap(map: BlockMap, roots: readonly MapRoot[]): void {
  const { nodes } = map;
  const counted = new Map<number, number>();
  const visit = (h: number, level: number, parentClean: boolean): void => {
    if (h === 0) return;
    const seen = counted.get(h) ?? 0;
    counted.set(h, seen + 1);
    const ref = nodes.diskRefOf(h);
    assert(!parentClean || ref !== 0, 'a clean node has only clean nodes below it');
    if (ref !== 0) {
      assert(((ref % REF_FLAGS & REF_INNER) !== 0) === level > 0, 'a disk reference knows inner nodes from leaves');
    }
    if (seen > 0) return;
    checkNode(map, h, level, (child, childLevel) => visit(child, childLevel, ref !== 0));
  };
  for (const root of roots) {
    assert(root.height === heightFor(root.sizeBlocks), 'the height follows from the size');
    visit(root.handle, root.height, false);
  }
  let pending = 0;
  for (let h = 1; h < nodes.handleLimit; h++) {
    // Dropped inner nodes that wait for reclaim still hold references to their children.
    if (nodes.refsOf(h) === 0 && nodes.wordOf(h) !== 0) {
      pending++;
      for (let slot = 0; slot < FAN_OUT; slot++) {
        const child = map.inners.child(h, slot);
        if (child !== 0) visitPending(map, child, counted);
      }
    }
  }
  assert(pending === nodes.pendingCount, `${nodes.pendingCount} dropped nodes are known, ${pending} exist`);
  let live = 0;
  for (let h = 1; h < nodes.handleLimit; h++) {
    const refs = nodes.refsOf(h);
    assert(refs === (counted.get(h) ?? 0), `node ${h} has ${refs} references, ${counted.get(h) ?? 0} were counted`);
    if (refs > 0) live++;
  }
  assert(live + pending === nodes.liveCount, 'every live handle is counted');
}

/** Below a dropped node levels are not known: counts references only. */
function visitPending(map: BlockMap, h: number, counted: Map<number, number>): void {
  const seen = counted.get(h) ?? 0;
  counted.set(h, seen + 1);
  if (seen > 0) return;
  const kind = map.nodes.kindOf(h);
  if (kind === Kind.inner) {
    for (let slot = 0; slot < FAN_OUT; slot++) {
      const child = map.inners.child(h, slot);
      if (child !== 0) visitPending(map, child, counted);
    }
  } else if (kind >= Kind.delta4) {
    const base = map.leaves.baseOf(h);
    if (base !== 0) visitPending(map, base, counted);
  }
}

const content = new LeafContent();

function checkNode(map: BlockMap, h: number, level: number, below: (h: number, level: number) => void): void {
  const { nodes, leaves, inners } = map;
  const kind = nodes.kindOf(h);
  if (kind === Kind.none) {
    assert(nodes.diskRefOf(h) !== 0, 'a node without body is on disk');
    return;
  }
  assert((kind === Kind.inner) === level > 0, 'inner nodes above, leaves at the bottom');
  if (kind === Kind.inner) {
    for (let slot = 0; slot < FAN_OUT; slot++) {
      const child = inners.child(h, slot);
      assert(nodes.topOf(child) <= nodes.topOf(h), 'no stamp below a node is larger than its bound');
      below(child, level - 1);
    }
    return;
  }
  if (kind === Kind.mono || kind === Kind.full) {
    leaves.expand(h, content);
    checkStamps(content, nodes.topOf(h));
    return;
  }
  const base = leaves.baseOf(h);
  assert(!leaves.isDelta(base) || !leaves.isDelta(leaves.baseOf(base)), 'no delta chain is longer than two');
  if (nodes.diskRefOf(h) !== 0) {
    assert((nodes.diskRefOf(h) % 2 & REF_DELTA) !== 0, 'the reference of a delta says so');
    assert(base === 0 || nodes.diskRefOf(base) % 2 === 0, 'a delta on disk has a flat base');
  }
  content.seeBase();
  leaves.overlayDelta(h, content);
  checkStamps(content, nodes.topOf(h));
  let entries = 0;
  for (let region = 0; region < LEAF_REGIONS; region++) {
    let inRegion = 0;
    for (let block = region * 16; block < region * 16 + 16; block++) if (content.layers[block] !== SEE_BASE) inRegion++;
    assert(inRegion > 0 === (content.stamps[region] !== STAMP_SEE_BASE), 'a region of a delta has a stamp exactly when a block changed');
    assert(content.stamps[region] !== 0 || inRegion === 16, 'a region that is cleared has all its blocks in the delta');
    entries += inRegion;
  }
  assert(kind === Kind.dense ? entries <= LEAF_BLOCKS : entries === leaves.countOf(h) && entries <= DELTA_CAPACITY[kind], 'a delta fits its class');
  below(base, 0);
}

function checkStamps(leaf: LeafContent, top: number): void {
  for (let region = 0; region < LEAF_REGIONS; region++) {
    const stamp = leaf.stamps[region];
    assert(stamp <= top, 'no stamp of a leaf is larger than its bound');
    if (stamp !== 0) continue;
    for (let block = region * 16; block < region * 16 + 16; block++) assert(leaf.layers[block] === 0, 'a region without stamp is zero');
  }
}
