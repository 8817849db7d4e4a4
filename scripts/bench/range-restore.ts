/** A range restore of 256 MiB in which every block differs: how soon it is answered, what is read then, and what crosses the wire. */
import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import { NbdClient, streamOf } from '../../src/vendor/nbd-protocol-ts/index.js';
import { GROUP, RANGE_BYTES, RANGE_OFFSET, type OperationsRig } from './operations-rig.js';
import { median, short } from './statistics.js';

const TIMES = 7;
const LIMIT_MS = 100;
/** Of all that crosses meanwhile: reading takes a while, and the link has its heartbeats. */
const WIRE_LIMIT_BYTES = 4096;

export interface RangeRestore {
  readonly milliseconds: number;
  readonly wireBytes: number;
  /** Read on the primary at once after the answer, and on the secondary when it had applied it: as the source. */
  readonly right: boolean;
  readonly rightThere: boolean;
}

async function rangeSha256(socket: string, device: string): Promise<string> {
  const client = await NbdClient.connect(streamOf(connect(socket)), { name: `${GROUP}/${device}` });
  try {
    return createHash('sha256').update(await client.read(RANGE_OFFSET, RANGE_BYTES)).digest('hex');
  } finally {
    await client.disconnect();
  }
}

export async function measureRange(rig: OperationsRig): Promise<{ rows: RangeRestore[]; text: string; missed: string[] }> {
  const { primary, secondary } = rig.pair;
  const rows: RangeRestore[] = [];
  const wanted = [await rangeSha256(primary.nbdSocket, 'part@base'), await rangeSha256(primary.nbdSocket, 'part@changed')];
  if (wanted[0] === wanted[1]) throw new Error('the range does not differ');
  for (let i = 0; i < TIMES; i++) {
    const wire = await rig.wireBytes();
    const begun = performance.now();
    await rig.control.restore(GROUP, { target: 'part', source: i % 2 === 0 ? 'part@base' : 'part@changed', ranges: [[RANGE_OFFSET, RANGE_BYTES]] });
    const milliseconds = performance.now() - begun;
    const here = await rangeSha256(primary.nbdSocket, 'part');
    const wireBytes = (await rig.wireBytes()) - wire;
    const there = await rangeSha256(secondary.nbdSocket, 'part');
    rows.push({ milliseconds, wireBytes, right: here === wanted[i % 2], rightThere: there === wanted[i % 2] });
  }
  await rig.control.restore(GROUP, { target: 'part', source: 'part@changed' });
  const slowest = Math.max(...rows.map((row) => row.milliseconds));
  const wire = Math.max(...rows.map((row) => row.wireBytes));
  const missed: string[] = [];
  if (!(slowest < LIMIT_MS)) missed.push(`range restore of 256 MiB: answered after ${short(slowest)} ms, limit ${LIMIT_MS}`);
  if (!(wire < WIRE_LIMIT_BYTES)) missed.push(`range restore of 256 MiB: ${wire} bytes on the wire, limit ${WIRE_LIMIT_BYTES}`);
  if (!rows.every((row) => row.right)) missed.push('range restore of 256 MiB: what was read on the primary at once was not the source\'s');
  if (!rows.every((row) => row.rightThere)) missed.push('range restore of 256 MiB: what was read on the secondary was not the source\'s');
  const text = `range restore of 256 MiB, every block of it different, ${TIMES} times: answered after ${short(median(rows.map((row) => row.milliseconds)))} ms (worst ${short(slowest)}, limit ${LIMIT_MS}); ` +
    `read at once: ${rows.every((row) => row.right) ? 'right' : 'WRONG'}; on the secondary: ${rows.every((row) => row.rightThere) ? 'right' : 'WRONG'}; at most ${wire} bytes on the wire`;
  return { rows, text, missed };
}
