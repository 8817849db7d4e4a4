/** A data path made of canned answers, for tests of the control server and the command line. */
import type { ControlPort, ControlReplies, ControlRequest, ReplyOf } from '../../src/control/port.js';
import { ControlError } from '../../src/control/port.js';
import type { GroupStatus, NodeStatus } from '../../src/control/schema/status.js';
import type { CursorEntry, DeviceEntry, ImportState, JournalRecord, LinkEntry, MeteredEntry, OperationReply } from '../../src/control/schema/replies.js';

export const CREATED_MS = Date.UTC(2026, 0, 2, 3, 4, 5);

export function device(over: Partial<DeviceEntry> = {}): DeviceEntry {
  return {
    id: 1, name: 'vol', kind: 'volume', parent: null, sizeBytes: 10 * 2 ** 30, protected: false, set: null, creationLsn: 4096,
    creationTimeMs: CREATED_MS, continuity: 'e1:0', clients: 0, ...over,
  };
}

export function link(over: Partial<LinkEntry> = {}): LinkEntry {
  return {
    peer: 'beta', role: 'to', mode: 'async', state: 'streaming', reason: '', shipped: 900_000, received: 900_000, durable: 890_000,
    applied: 880_000, lagBytes: 0, lagSeconds: 0, wireBytes: 5 * 2 ** 20, reconnects: 0, ...over,
  };
}

export function metered(over: Partial<MeteredEntry> = {}): MeteredEntry {
  return {
    lsn: 12_288, timeMs: CREATED_MS, verb: 'restore', what: 'vol from vol@monday', devices: [1], changedBytes: 280 * 2 ** 20, changed: 'exact', wireBytes: { beta: 245 }, dataThreadUs: 520, ...over,
  };
}

export function group(over: Partial<GroupStatus> = {}): GroupStatus {
  return {
    name: 'g', role: 'primary', roleReason: '', epoch: { number: 3, id: 'ab'.repeat(16), lossless: true },
    lsn: { appended: 900_000, durable: 900_000, applied: 900_000, stable: 890_000, checkpoint: 700_000, lowWater: 650_000 },
    journal: { sizeBytes: 2 ** 30, usedBytes: 2 ** 28, segments: 16, stalled: null, heldSeconds: null, volatile: false, atRiskBytes: 0 },
    destage: { pendingBlocks: 0, pendingBytes: 0, roundsDone: 12, behindBytes: 0 },
    store: { mapBytes: 12 * 2 ** 20, mapLimitBytes: 2 ** 28, metadataBytesWritten: 1234, layers: 3, replaySecondsEstimate: 1.5, freeBytes: 100 * 2 ** 30, admission: 'open' },
    operations: { performed: 3, changedBytes: 280 * 2 ** 20, wireBytes: 735, dataThreadUs: 900, longestUs: 520, last: metered() },
    links: [link()], cursors: [], import: null, devices: [device(), device({ id: 2, name: 'vol@monday', kind: 'snapshot', parent: 1, creationLsn: 8192 })], errors: [], ...over,
  };
}

export function nodeStatus(over: Partial<NodeStatus> = {}): NodeStatus {
  return {
    node: 'alpha', version: '0.1.0', pid: 4711, startedMs: CREATED_MS, dataDirectory: '/var/lib/lockstep/alpha',
    listen: { nbd: ['unix:/run/lockstep/nbd.sock', 'tcp:127.0.0.1:10809'], link: 'tcp:127.0.0.1:10900' }, groups: [group()], ...over,
  };
}

export function operation(over: Partial<OperationReply> = {}): OperationReply {
  return { lsn: 12_288, device: device(), devices: [device()], dataThreadUs: 42, waited: 'durable', waitedFor: [], passedOver: [], notice: null, ...over };
}

export function record(lsn: number, over: Partial<JournalRecord> = {}): JournalRecord {
  return { lsn, kind: 'write', device: 1, offset: lsn * 4, length: 4096, epoch: 3, body: null, ...over };
}

export const POSITION = `${'ab'.repeat(16)}:900000:0123456789abcdef`;
const PLACE = { lsn: 900_000, chainHi: 1, chainLo: 2, frame: 1 };

export function cursor(over: Partial<CursorEntry> = {}): CursorEntry {
  return { name: 'tape', position: POSITION, lsn: 900_000, behindBytes: 0, retainedBytes: 0, createdMs: CREATED_MS, movedMs: null, ...over };
}

export function importState(over: Partial<ImportState> = {}): ImportState {
  return { position: POSITION, receivedLsn: 900_000, appliedLsn: 900_000, from: 'alpha', whole: true, full: false, ...over };
}

type Answers = { [K in keyof ControlReplies]?: (request: Extract<ControlRequest, { op: K }>) => ControlReplies[K] | Promise<ControlReplies[K]> };

export class FakePort implements ControlPort {
  readonly calls: ControlRequest[] = [];
  /** Of each call: aborts when its caller has gone. */
  readonly gone: (AbortSignal | undefined)[] = [];
  /** What to answer instead of the defaults; may throw. */
  answers: Answers = {};

  async call<R extends ControlRequest>(request: R, gone?: AbortSignal): Promise<ReplyOf<R>> {
    this.calls.push(structuredClone(request));
    this.gone.push(gone);
    const answer = (this.answers as Record<string, ((request: ControlRequest) => unknown) | undefined>)[request.op];
    const left = new Promise<never>((_resolve, reject) => {
      const leave = (): void => reject(new ControlError({ kind: 'operator', code: 'control/gone', message: 'whoever asked has gone' }));
      gone?.addEventListener('abort', leave, { once: true });
      if (gone?.aborted === true) leave();
    });
    left.catch(() => undefined);
    if (gone?.aborted === true) return left;
    return (await Promise.race([(answer ?? this.fallback)(request), left])) as ReplyOf<R>;
  }

  /** The last request. */
  get last(): ControlRequest | undefined {
    return this.calls.at(-1);
  }

  private readonly fallback = (request: ControlRequest): unknown => {
    switch (request.op) {
      case 'create': case 'snapshot': case 'restore': case 'refresh': case 'sync': case 'resize': case 'rename': case 'protect': case 'clone': case 'adopt': return operation(request.wait === 'applied' ? { waited: 'applied', waitedFor: ['beta'] } : {});
      case 'remove': return operation({ device: null, devices: [] });
      case 'seal': return { device: device({ kind: 'local' }), sealedLsn: request.undo ? 0 : 700, digest: request.undo ? null : 'ab'.repeat(16) };
      case 'promote': return { lsn: 5000, epoch: { number: 4, id: 'cd'.repeat(16), lossless: true }, notice: null };
      case 'flush': return { lsn: 900_000, upTo: request.upTo };
      case 'status': return nodeStatus();
      case 'devices': return { group: request.group, lsn: 900_000, devices: group().devices };
      case 'sizes': return {
        group: request.group, lsn: 900_000, storedBytes: 5 * 2 ** 20, tookUs: 1234,
        devices: [{ id: 1, usedBytes: 4 * 2 ** 20, ownBytes: 2 ** 20, sharedBytes: 3 * 2 ** 20 }, { id: 2, usedBytes: 4 * 2 ** 20, ownBytes: 2 ** 20, sharedBytes: 3 * 2 ** 20 }],
      };
      case 'operations': return { group: request.group, operations: [metered(), metered({ lsn: 20_480, changed: 'counting', wireBytes: {} })], totals: [{ verb: 'restore', operations: 2, changedBytes: 280 * 2 ** 20, wireBytes: { beta: 245 }, dataThreadUs: 520 }] };
      case 'links': return { group: request.group, links: [link()] };
      case 'linkDrop': return { peer: request.peer, freedBytes: 2 ** 20, lsn: 880_000 };
      case 'journal': return { records: [record(100), record(200)], next: 300, appended: 300, end: true };
      case 'position': return { group: request.group, position: POSITION, lsn: 900_000 };
      case 'cursorAck': return cursor({ name: request.cursor });
      case 'cursorRelease': return { cursor: request.cursor, freedBytes: 2 ** 20, lsn: 880_000 };
      case 'drain': return { lsn: 900_000, drained: true, behind: [], waitedFor: ['link beta', 'cursor tape'], passedOver: [], notice: null };
      case 'exportOpen': return { bytes: new Uint8Array([1, 2, 3]), place: PLACE, durable: 900_000, end: false };
      case 'exportPage': return { bytes: new Uint8Array([4, 5]), place: PLACE, durable: 900_000, end: true };
      case 'importOpen': return { session: 1, state: importState() };
      case 'importPush': case 'importState': case 'importEnd': return importState();
      case 'metrics': return { samples: [{ name: 'nbd_requests_total', help: 'Requests', type: 'counter', labels: { command: 'read' }, value: 7 }] };
    }
  };
}
