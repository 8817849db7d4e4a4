/**
 * Bringing map nodes from the disk into memory (DESIGN §5).
 *
 * Owns: turning a decoded record into the body of a handle, with handles for
 * the nodes that it refers to.
 * Must not know: how the bytes were read, roots, devices.
 */
import { CorruptionError } from '../../base/errors.js';
import type { Inners } from './inner.js';
import { onlyLayer } from './leafchange.js';
import type { LeafChanges } from './leafchange.js';
import { RecordType, decodeNode, newDecoded } from './codec.js';
import type { InnerContent } from './codec.js';
import { FAN_OUT, Kind, REF_DELTA, REF_FILE, REF_FLAGS, REF_INNER } from './nodes.js';
import type { Nodes } from './nodes.js';

/** What a node is brought into: the map that its handle belongs to. */
export interface LoadTarget {
  readonly nodes: Nodes;
  readonly leaves: LeafChanges;
  readonly inners: Inners;
  /** For error messages. */
  readonly fileName: string;
  /** Where the record of `h` lies; see nodes.ts. */
  diskRefOf(h: number): number;
  /** A handle for the node whose record is at `ref`, without a body; `top` is its newest stamp. */
  stub(ref: number, top: number): number;
}

const decoded = newDecoded();

/** See BlockMap.load; `h` has no body. */
export function installNode(map: LoadTarget, h: number, bytes: Uint8Array, second: Uint8Array | undefined): number {
  const { nodes, leaves } = map;
  const ref = map.diskRefOf(h);
  const flags = ref % REF_FLAGS;
  const position = ref - flags;
  const file = flags & REF_FILE;
  decodeNode(bytes, position, map.fileName, decoded, second);
  const isInner = decoded.type === RecordType.inner || decoded.type === RecordType.innerDelta;
  const isDelta = decoded.type === RecordType.leafDelta;
  if (isInner !== ((flags & REF_INNER) !== 0) || isDelta !== ((flags & REF_DELTA) !== 0)) {
    throw new CorruptionError(map.fileName, position, `a map node of type ${decoded.type} is not what its parent refers to`);
  }
  switch (decoded.type) {
    case RecordType.leaf: {
      leaves.fillFlat(h, decoded.leaf, onlyLayer(decoded.leaf));
      let top = 0;
      for (const stamp of decoded.leaf.stamps) if (stamp > top) top = stamp;
      nodes.setTop(h, top);
      break;
    }
    case RecordType.leafDelta: {
      const base = decoded.basePosition === 0 ? 0 : map.stub(decoded.basePosition + file, nodes.topOf(h));
      leaves.fillDelta(h, base, decoded.leaf);
      break;
    }
    case RecordType.innerDelta:
      if (second === undefined) return decoded.basePosition;
      installInner(map, h, decoded.inner, file, decoded.basePosition + file);
      break;
    default:
      installInner(map, h, decoded.inner, file, position + file);
  }
  nodes.touch(h, nodes.wordOf(h));
  return 0;
}

function installInner(map: LoadTarget, h: number, content: InnerContent, file: number, recordBase: number): void {
  const { nodes, inners } = map;
  const word = nodes.addBody(h, Kind.inner);
  const u32 = nodes.slabs.u32[(word >>> 16) & 0xfff];
  const children = ((word & 0xffff) << 2) + 4;
  for (let slot = 0; slot < FAN_OUT; slot++) {
    const ref = content.refs[slot];
    u32[children + slot] = ref === 0 ? 0 : map.stub(ref + file, content.tops[slot]);
  }
  inners.setRecordBase(h, recordBase, content.changedLow, content.changedHigh);
  nodes.setTop(h, content.top);
}
