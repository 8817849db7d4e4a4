/**
 * What the meter of a group knows, as the control API, the journal dump and the
 * metrics show it.
 */

import type { MetricSample } from '../control/port.js';
import type { MeteredEntry, MeteredSums, OperationsReply } from '../control/schema/replies.js';
import type { Group } from '../group/group.js';
import type { MeteredOperation, Meter } from '../group/operations/meter.js';

export function operationsReply(group: Group): OperationsReply {
  const { meter } = group;
  return {
    group: group.name, operations: meter.operations.map(entryOf),
    totals: [...meter.totals].map(([verb, totals]) => ({
      verb, operations: totals.operations, changedBytes: totals.changedBytes, wireBytes: Object.fromEntries(totals.wireBytes), dataThreadUs: totals.dataThreadUs,
    })),
  };
}

/** For the status. */
export function meteredSums(meter: Meter): MeteredSums {
  const sums = { performed: 0, changedBytes: 0, wireBytes: 0, dataThreadUs: 0 };
  for (const totals of meter.totals.values()) {
    sums.performed += totals.operations;
    sums.changedBytes += totals.changedBytes;
    sums.dataThreadUs += totals.dataThreadUs;
    for (const bytes of totals.wireBytes.values()) sums.wireBytes += bytes;
  }
  const last = meter.operations[meter.operations.length - 1];
  return { ...sums, longestUs: meter.longestUs, last: last === undefined ? null : entryOf(last) };
}

/** What the journal dump adds to the body of the marker at `lsn`. */
export function meteredFields(meter: Meter, lsn: number): { meter?: Record<string, unknown> } {
  const operation = meter.find(lsn);
  if (operation === undefined) return {};
  const { changedBytes, changed, wireBytes, dataThreadUs } = entryOf(operation);
  return { meter: { changedBytes, changed, wireBytes, dataThreadUs } };
}

export function operationMetrics(group: Group): MetricSample[] {
  const samples: MetricSample[] = [];
  for (const [verb, totals] of group.meter.totals) {
    const labels = { group: group.name, verb };
    const counter = (name: string, help: string, value: number, more: Record<string, string> = {}): void => {
      samples.push({ name, help, type: 'counter', labels: { ...labels, ...more }, value });
    };
    counter('operations_total', 'Operations executed on this node since start', totals.operations);
    counter('operation_changed_bytes_total', 'Bytes that operations changed, exact or an upper bound, counted when no better figure is to come', totals.changedBytes);
    counter('operation_thread_seconds_total', 'Time that the data thread spent in operations', totals.dataThreadUs / 1e6);
    for (const [link, bytes] of totals.wireBytes) counter('operation_wire_bytes_total', 'Bytes that the markers of operations put on a link, sent or received', bytes, { link });
  }
  return samples;
}

function entryOf(operation: MeteredOperation): MeteredEntry {
  const { lsn, wallMs, verb, what, devices, changedBytes, state, wireBytes, dataThreadUs } = operation;
  return { lsn, timeMs: wallMs, verb, what, devices: [...devices], changedBytes, changed: state, wireBytes: Object.fromEntries(wireBytes), dataThreadUs };
}
