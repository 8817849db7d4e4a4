/**
 * The data thread's half of the control port: carries requests out and answers
 * each exactly once.
 *
 * Owns: the mapping from requests to groups, waiting for durable and applied.
 * Must not know: HTTP, message ports.
 */

import { unreachable } from '../base/assert.js';
import { Caller, callerGone } from '../base/caller.js';
import { OperatorError } from '../base/errors.js';
import type { ControlRequest, MetricSample } from '../control/port.js';
import type { Group } from '../group/group.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';
import { Carry } from './carry.js';
import type { DataPath } from './datapath.js';
import { flush } from './flush.js';
import { journalPage } from './journal-page.js';
import { operationMetrics, operationsReply } from './metering.js';
import { operate } from './operate.js';
import { isLocal, operateLocally, sealLocally } from './operate-local.js';
import { deviceEntries, nodeStatus } from './status.js';

export class Commands {
  private readonly carry: Carry;
  /** Requests that are not answered yet. */
  private underWay = 0;

  constructor(private readonly path: DataPath, private readonly startedMs: number) {
    this.carry = new Carry(path.reactor, path.config.node, (name) => this.group(name), path.links);
  }

  /** Carries `request` out. Throws nothing: errors go to `answer.failed`. `caller` says when nobody waits for the answer any more. */
  handle(request: ControlRequest, answer: Omit<Answer, 'caller'>, caller = new Caller()): void {
    this.underWay++;
    const counted: Answer = {
      caller,
      done: (reply) => {
        this.underWay--;
        answer.done(reply);
      },
      failed: (error) => {
        this.underWay--;
        answer.failed(error);
      },
    };
    try {
      if (caller.gone) throw callerGone();
      this.dispatch(request, counted);
    } catch (error) {
      counted.failed(error);
    }
  }

  private dispatch(request: ControlRequest, answer: Answer): void {
    switch (request.op) {
      case 'status':
        answer.done(nodeStatus(this.path, this.startedMs, this.carry.imports));
        return;
      case 'devices': {
        const group = this.group(request.group);
        answer.done({ group: group.name, lsn: group.appliedLsn, devices: deviceEntries(group) });
        return;
      }
      case 'sizes':
        this.sizes(this.group(request.group), answer);
        return;
      case 'operations':
        answer.done(operationsReply(this.group(request.group)));
        return;
      case 'links':
        answer.done({ group: request.group, links: this.path.links.status(this.group(request.group).name) });
        return;
      case 'linkDrop':
        answer.done(this.path.links.drop(this.group(request.group), request.peer));
        return;
      case 'create':
      case 'snapshot':
      case 'restore':
      case 'refresh':
      case 'sync':
      case 'resize':
      case 'remove':
      case 'rename':
      case 'protect':
      case 'clone':
      case 'adopt':
        if (isLocal(request)) operateLocally(this.group(request.group), request, answer);
        else operate(this.path.reactor, this.primary(request.group), this.path.links, request, answer);
        return;
      case 'seal':
        sealLocally(this.group(request.group), request, answer);
        return;
      case 'promote':
        this.promote(this.group(request.group), request.force, answer);
        return;
      case 'flush':
        flush(this.path.reactor, this.group(request.group), request.upTo, answer);
        return;
      case 'journal':
        journalPage(this.path.reactor, this.group(request.group), request, answer);
        return;
      case 'metrics':
        answer.done({ samples: this.metrics() });
        return;
      case 'exportOpen':
      case 'exportPage':
      case 'importOpen':
      case 'importPush':
      case 'importState':
      case 'importEnd':
      case 'position':
      case 'cursorAck':
      case 'cursorRelease':
      case 'drain':
        this.carry.handle(request, answer);
        return;
      default:
        unreachable(request);
    }
  }

  private sizes(group: Group, answer: Answer): void {
    if (!group.hasContent) throw new OperatorError('group/stopped', `group ${group.name} has no devices on this node yet`);
    const once = endingOnce(answer);
    once.alsoEnd(group.content.sizes.ask((result) => (result instanceof OperatorError ? once.failed(result) : once.done({ group: group.name, ...result, devices: [...result.devices] }))));
  }

  private group(name: string): Group {
    const group = this.path.blocks.group(name);
    if (group !== undefined) return group;
    const broken = this.path.broken.find((one) => one.name === name);
    if (broken !== undefined) throw new OperatorError('group/stopped', `group ${name} could not be opened: ${broken.problem}`);
    throw new OperatorError('group/not-found', `this node has no group ${name}; lockstep status names those it has`);
  }

  private primary(name: string): Group {
    const group = this.group(name);
    if (group.role === 'primary') return group;
    if (group.role === 'secondary') {
      throw new OperatorError('role/not-primary', `group ${name} is secondary on this node: ask its primary, or promote this node with: lockstep promote ${name}`);
    }
    throw new OperatorError(group.role === 'stopped' ? 'group/stopped' : 'role/not-primary', `group ${name} is ${group.role} on this node: ${group.roleReason}`);
  }

  private promote(group: Group, force: boolean, answer: Answer): void {
    const connected = this.path.links.connectedPrimary(group.name);
    if (connected !== undefined && !force && group.role === 'secondary') {
      throw new OperatorError('role/not-secondary',
        `${connected} is primary of group ${group.name} and connected; stop it first, or use --force: then both would take writes until it meets this node's new epoch`);
    }
    const epoch = group.promote('promoted by an operator');
    answer.done({ lsn: epoch.start.lsn, epoch: { number: epoch.number, id: epoch.id, lossless: epoch.lossless }, notice: null });
  }

  private metrics(): MetricSample[] {
    const samples: MetricSample[] = [];
    for (const group of this.path.blocks.all()) {
      const labels = { group: group.name };
      const add = (name: string, help: string, type: MetricSample['type'], value: number): void => void samples.push({ name, help, type, labels, value });
      if (!group.hasContent) continue;
      const { journal, destager, checkpointer, reader, walker, local } = group.content;
      add('journal_records_total', 'Records appended since start', 'counter', journal.appendedRecords);
      add('journal_batches_total', 'Batches appended since start', 'counter', journal.appendedBatches);
      add('journal_syncs_total', 'fdatasyncs of the journal since start', 'counter', journal.commit.count);
      add('destage_blocks_total', 'Blocks written to layer files since start', 'counter', destager.blocksWritten);
      add('destage_rounds_total', 'Destage rounds since start', 'counter', destager.roundsDone);
      add('checkpoints_total', 'Checkpoints committed since start', 'counter', checkpointer.commits);
      add('punched_bytes_total', 'Bytes of layer files given back because no device refers to them any more', 'counter', walker.bytesPunched);
      add('layers_deleted_total', 'Layers deleted because no device refers to them any more', 'counter', walker.layersDeleted);
      add('walks_total', 'Walks over all maps in search of space, since start', 'counter', walker.walksDone);
      add('walking', '1 while such a walk is under way', 'gauge', walker.walking ? 1 : 0);
      add('walk_longest_step_seconds', 'Longest time the data thread spent in one step of a walk since start', 'gauge', walker.longestStepUs / 1e6);
      add('local_devices', 'Local snapshots, which exist on this node only', 'gauge', local.tree.count);
      add('read_misses_total', 'Reads that had to wait for a disk', 'counter', reader.missed);
      add('marker_longest_seconds', 'Longest time the data thread spent in one operation since start', 'gauge', group.meter.longestUs / 1e6);
      samples.push(...operationMetrics(group));
    }
    const { blockCache, reactor: { arena } } = this.path;
    samples.push({ name: 'block_cache_hits_total', help: 'Blocks that were read from the block cache', type: 'counter', labels: {}, value: blockCache.hits });
    samples.push({ name: 'block_cache_bytes', help: 'Memory of the block cache in use', type: 'gauge', labels: {}, value: blockCache.usedBytes });
    samples.push({ name: 'arena_used_bytes', help: 'Memory of requests and replies under way', type: 'gauge', labels: {}, value: arena.usedBytes });
    samples.push({ name: 'control_requests', help: 'Control requests that are not answered yet, this one included', type: 'gauge', labels: {}, value: this.underWay });
    samples.push({ name: 'timers', help: 'Timers of the data thread', type: 'gauge', labels: {}, value: this.path.reactor.timerCount });
    return samples;
  }
}
