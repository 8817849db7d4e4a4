/**
 * GET /metrics: Prometheus text from the status, the data path's samples and
 * this process.
 *
 * Owns: names and help of the metrics derived from the status. Must not know:
 * HTTP.
 */

import { Counter, Gauge, Registry, collectDefaultMetrics } from 'prom-client';
import { VERSION } from '../base/version.js';
import type { ControlPort, MetricSample } from './port.js';
import type { GroupStatus, NodeStatus } from './schema/status.js';

const PREFIX = 'lockstep_';

export class Metrics {
  /** What outlives a scrape: the process and the control server. */
  private readonly lasting = new Registry();
  private readonly requests: Counter<'route' | 'status'>;

  constructor(private readonly port: ControlPort) {
    collectDefaultMetrics({ register: this.lasting, prefix: PREFIX });
    this.requests = new Counter({ name: `${PREFIX}control_requests_total`, help: 'Requests of the admin API', labelNames: ['route', 'status'], registers: [this.lasting] });
  }

  /** `route` is the pattern, not the path: the number of series is bounded. */
  countRequest(route: string, status: number): void {
    this.requests.inc({ route, status: String(status) });
  }

  get contentType(): string {
    return this.lasting.contentType;
  }

  /** Asks the data path; rejects with ControlError when it cannot answer. */
  async text(): Promise<string> {
    const [status, { samples }] = await Promise.all([this.port.call({ op: 'status' }), this.port.call({ op: 'metrics' })]);
    const scrape = new Registry();
    for (const sample of [...statusSamples(status), ...samples]) put(scrape, sample);
    return (await scrape.metrics()) + (await this.lasting.metrics());
  }
}

function put(registry: Registry, sample: MetricSample): void {
  const name = PREFIX + sample.name;
  const labelNames = Object.keys(sample.labels);
  const known = registry.getSingleMetric(name);
  if (sample.type === 'counter') {
    const counter = (known as Counter | undefined) ?? new Counter({ name, help: sample.help, labelNames, registers: [registry] });
    counter.inc(sample.labels, sample.value);
  } else {
    const gauge = (known as Gauge | undefined) ?? new Gauge({ name, help: sample.help, labelNames, registers: [registry] });
    gauge.set(sample.labels, sample.value);
  }
}

/** The status as samples. */
function statusSamples(status: NodeStatus): MetricSample[] {
  const samples: MetricSample[] = [
    { name: 'info', help: 'Always 1; the labels say what runs', type: 'gauge', labels: { node: status.node, version: VERSION }, value: 1 },
    { name: 'start_time_seconds', help: 'When the daemon started, seconds since 1970', type: 'gauge', labels: {}, value: status.startedMs / 1000 },
  ];
  for (const group of status.groups) groupSamples(samples, group);
  return samples;
}

function groupSamples(samples: MetricSample[], group: GroupStatus): void {
  const labels = { group: group.name };
  const gauge = (name: string, help: string, value: number, more: Record<string, string> = {}): void => {
    samples.push({ name, help, type: 'gauge', labels: { ...labels, ...more }, value });
  };
  const counter = (name: string, help: string, value: number, more: Record<string, string> = {}): void => {
    samples.push({ name, help, type: 'counter', labels: { ...labels, ...more }, value });
  };
  for (const role of ['starting', 'primary', 'secondary', 'fenced', 'stopped']) {
    gauge('group_role', '1 for the role that the group is in', group.role === role ? 1 : 0, { role });
  }
  gauge('group_epoch', 'Number of the epoch', group.epoch.number);
  for (const [point, value] of Object.entries(group.lsn)) gauge('group_lsn_bytes', 'How far records have come, by point', value, { point });
  gauge('journal_size_bytes', 'Size of the journal', group.journal.sizeBytes);
  gauge('journal_used_bytes', 'Part of the journal that is still needed', group.journal.usedBytes);
  gauge('journal_stalled', '1 while writers wait for journal space, or for an operation with --halt', group.journal.stalled === null ? 0 : 1);
  gauge('destage_pending_bytes', 'Written and not yet in the layers', group.destage.pendingBytes);
  gauge('destage_behind_bytes', 'Journal between the oldest pending block and the end', group.destage.behindBytes);
  counter('destage_rounds_total', 'Destage rounds done', group.destage.roundsDone);
  gauge('store_map_bytes', 'Memory of maps and pending tables', group.store.mapBytes);
  gauge('store_map_limit_bytes', 'Limit of it', group.store.mapLimitBytes);
  gauge('store_layers', 'Layers', group.store.layers);
  gauge('store_free_bytes', 'Free space of the data directory', group.store.freeBytes);
  gauge('store_admits_writes', '0 while new writes are answered ENOSPC', group.store.admission === 'open' ? 1 : 0);
  gauge('store_replay_estimate_seconds', 'Estimated replay after a crash', group.store.replaySecondsEstimate);
  counter('store_metadata_written_bytes_total', 'Metadata written by checkpoints', group.store.metadataBytesWritten);
  gauge('group_devices', 'Devices', group.devices.filter((device) => device.kind === 'volume').length, { kind: 'volume' });
  gauge('group_devices', 'Devices', group.devices.filter((device) => device.kind === 'snapshot').length, { kind: 'snapshot' });
  gauge('group_clients', 'NBD connections', group.devices.reduce((sum, device) => sum + device.clients, 0));
  gauge('group_errors', 'What is wrong now', group.errors.length);
  for (const link of group.links) {
    const peer = { peer: link.peer, direction: link.role };
    gauge('link_up', '1 while the link streams or catches up', link.state === 'streaming' || link.state === 'catching-up' ? 1 : 0, peer);
    gauge('link_lag_bytes', 'Appended on the primary, not applied on the secondary', link.lagBytes, peer);
    gauge('link_lag_seconds', 'Age of the oldest record not applied there', link.lagSeconds, peer);
    gauge('link_applied_lsn_bytes', 'Applied LSN of the secondary', link.applied, peer);
    counter('link_wire_bytes_total', 'Bytes sent and received', link.wireBytes, peer);
    counter('link_reconnects_total', 'Reconnects', link.reconnects, peer);
  }
  for (const { name: cursor, behindBytes, retainedBytes } of group.cursors) {
    gauge('cursor_behind_bytes', 'Appended and not acknowledged by this reader of the journal', behindBytes, { cursor });
    gauge('cursor_retained_bytes', 'Journal that is otherwise free and kept from this cursor on', retainedBytes, { cursor });
  }
}
