/**
 * Local devices as a group serves them: their requests, and the operations that
 * make, replace and remove them on this node (DESIGN §1).
 *
 * Owns: the order of the steps of an operation, and when a device may be used.
 * Must not know: HTTP, NBD, what is refused (operations/localjudge.ts).
 *
 * Steps of `snapshot` of a group's device; a restore is the same with a target:
 *   1. the local journal is made, if there is none
 *   2. record appended and executed: it names the group position that it follows
 *   3. settled: the record survives power loss
 *   4. `stable` reaches that position: it can not be undone
 *   5. `ready` record settled: THE COMMIT POINT of the operation; the device is exported, and stays it whatever happens
 * Before 5 recovery finds the device, not ready, if the position is in its
 * history, and goes on at 4; or it drops it.
 */

import { Errno, OperatorError } from '../base/errors.js';
import type { CorruptionError, IoError } from '../base/errors.js';
import type { Caller } from '../base/caller.js';
import { callerGone } from '../base/caller.js';
import { isLocalDevice } from '../base/units.js';
import type { Log } from '../base/log.js';
import type { Reactor } from '../io/reactor.js';
import type { Content } from './content/content.js';
import type { Exports, LocalDevices } from './requests/exports.js';
import type { Follows, LocalRecord } from './local/record.js';
import type { LocalDevice, LocalTree } from './local/tree.js';
import { LocalJudge } from './operations/localjudge.js';
import { LocalWrites } from './requests/localwrites.js';
import { readRequest } from './requests/reads.js';
import { RequestKind } from './requests/requests.js';
import type { RequestTable } from './requests/requests.js';

export interface LocalServiceHost {
  readonly name: string;
  readonly content: Content;
  readonly exports: Exports;
  /** Clients are served. */
  readonly serving: boolean;
  readonly stableLsn: number;
  /** Appends what the tick has collected so far, so that a position names it. */
  flushBatch(): void;
  admit(bytes: number): number;
  /** The group has to stop. */
  failed(error: IoError | CorruptionError): void;
  /** The local journal, or a layer's fdatasync, failed: what was appended may be gone, and the next start has to know. */
  journalFailed(error: IoError): void;
}

export interface LocalDone {
  /** Group position that the operation follows, and the device as it is then; undefined after a removal. */
  readonly lsn: number;
  readonly device: LocalDevice | undefined;
  readonly dataThreadUs: number;
  /** A sentence when the device cannot be used yet. */
  readonly notice: string | null;
}

/** As daemon/answer.ts has it. */
export interface LocalAnswer {
  done(result: LocalDone): void;
  failed(error: unknown): void;
  readonly caller: Caller;
}

interface ReadyWait {
  readonly device: number;
  readonly answer: LocalAnswer;
  readonly deadlineUs: number;
  ended(notice: string | null): void;
}

const POLL_US = 50_000;

function unwritable(error: IoError): string {
  return `local snapshots cannot be written: ${error.message}; the client of that write was told, the volumes are not concerned`;
}

export class LocalService implements LocalDevices {
  readonly writes: LocalWrites;
  /** That of the host when this was made: a host that has another one makes another service. */
  private readonly content: Content;
  private readonly judge: LocalJudge;
  private waits: ReadyWait[] = [];
  /** Waiting for the local journal to settle up to an LSN. */
  private settling: { readonly lsn: number; done(): void }[] = [];
  /** Operations that wait for something else, and whether they were performed: they fail when the group stops. */
  private readonly pending = new Map<LocalAnswer, boolean>();
  /** Their content is being replaced, or they are being removed. */
  private readonly blocked = new Set<number>();
  private stopped: OperatorError | undefined;
  private polling = false;

  constructor(private readonly reactor: Reactor, private readonly host: LocalServiceHost, private readonly requests: RequestTable, private readonly log: Log) {
    const { content } = host;
    this.writes = new LocalWrites(reactor, host, requests);
    const { local } = content;
    const settled = local.log.onSettled;
    local.log.onSettled = () => {
      settled();
      this.settled();
    };
    local.log.onFailure = (error) => host.journalFailed(error);
    this.writes.onProblem = (error) => log.error(unwritable(error));
    this.content = content;
    this.judge = new LocalJudge(host, content, this.blocked);
    for (const sentence of local.dropped) log.error(sentence);
    if (local.tree.count > 0) log.info('has local devices', { devices: local.tree.count, localLsn: local.log.position.lsn });
  }

  // ---- views -------------------------------------------------------------------------------------

  get tree(): LocalTree {
    return this.content.local.tree;
  }

  /** Clients may have it open. */
  usable(device: LocalDevice): boolean {
    return device.ready && !this.blocked.has(device.id);
  }

  /** What is wrong, in sentences. */
  problems(): string[] {
    const { local, checkpointer } = this.content;
    const problems = [...local.dropped];
    if (this.writes.problem !== undefined) problems.push(unwritable(this.writes.problem));
    if (this.writes.stalled) {
      const why = local.log.growProblem ?? checkpointer.lastError ?? 'the next checkpoint has not been committed yet; on a secondary it waits until the primary has made durable what is applied here: bring the primary back, or promote this node';
      problems.push(`writers of local snapshots wait, for the local journal is full: ${why}`);
    }
    return problems;
  }

  // ---- requests ----------------------------------------------------------------------------------

  submit(slot: number): void {
    const { requests, host } = this;
    const id = requests.device[slot];
    if (this.stopped !== undefined || !host.serving || this.blocked.has(id) || this.tree.get(id)?.ready !== true) {
      requests.complete(slot, Errno.ESHUTDOWN);
    } else if (requests.kind[slot] === RequestKind.read || requests.kind[slot] === RequestKind.cache) {
      readRequest(this.content, requests, slot);
    } else {
      this.writes.submit(slot);
    }
  }

  /** Tick end. */
  tick(): void {
    if (this.stopped !== undefined) return;
    this.writes.tick();
    this.makeReady();
  }

  // ---- operations --------------------------------------------------------------------------------

  /** The local snapshot VOLUME~name of `source`, a device of the group or a local one. */
  snapshot(sourceName: string, name: string, waitUs: number, answer: LocalAnswer): void {
    this.judged(answer, () => this.judge.namedSource(sourceName, name));
    if (!this.pending.has(answer)) return;
    this.content.local.log.create((error) => this.guarded(answer, () => {
      if (error !== undefined) throw error;
      // Again: this may be another tick.
      const { source, volume, spelled } = this.judge.namedSource(sourceName, name);
      this.standingStill([source].filter(isLocalDevice), answer, () => {
        this.judge.free(spelled);
        this.perform(waitUs, answer, (follows, wallMs) => ({ op: 'snapshot', id: this.tree.nextId, source, name: spelled, volume, follows: isLocalDevice(source) ? null : follows, wallMs }));
      });
    }));
  }

  /** A local device becomes what another device of the same volume is; `sourceName` null: what it was taken of. */
  restore(targetName: string, sourceName: string | null, force: boolean, waitUs: number, answer: LocalAnswer): void {
    this.judged(answer, () => {
      const target = this.judge.existing(targetName);
      this.judge.replaceable(target);
      const source = this.judge.sourceOf(target, sourceName);
      this.takeFrom(target, force, 'is being restored');
      this.standingStill([target.id, source].filter(isLocalDevice), answer, () => {
        this.judge.stillThere(source, target);
        this.perform(waitUs, answer, (follows, wallMs) => ({ op: 'assign', target: target.id, source, follows: isLocalDevice(source) ? null : follows, wallMs }));
      }, () => this.blocked.delete(target.id));
    });
  }

  remove(name: string, force: boolean, answer: LocalAnswer): void {
    this.judged(answer, () => {
      const device = this.judge.existing(name);
      this.takeFrom(device, force, 'is being removed');
      this.standingStill([device.id], answer, () => this.perform(0, answer, () => ({ op: 'remove', device: device.id })), () => this.blocked.delete(device.id));
    });
  }

  /**
   * Nobody writes to a local device from here on. `known`: its content digest, computed since the seal at this local LSN.
   * What is sealed already stays as it is.
   */
  seal(name: string, known: { readonly digest: string; readonly sealedLsn: number } | undefined, force: boolean, answer: LocalAnswer): void {
    this.judged(answer, () => {
      const device = this.judge.existing(name);
      this.judge.ready(device);
      if (known !== undefined) {
        if (device.digest === known.digest) return this.confirm(device, answer);
        this.judge.sealedAt(device, known.sealedLsn);
        return this.perform(0, answer, () => ({ op: 'seal', device: device.id, digest: known.digest }));
      }
      if (device.sealedLsn !== 0) return this.confirm(device, answer);
      this.takeFrom(device, force, 'is being sealed');
      this.standingStill([device.id], answer, () => this.perform(0, answer, () => ({ op: 'seal', device: device.id, digest: '' })), () => this.blocked.delete(device.id));
    });
  }

  /** A sealed device may be written to again. */
  unseal(name: string, answer: LocalAnswer): void {
    this.judged(answer, () => {
      const device = this.judge.existing(name);
      this.judge.sealed(device);
      this.perform(0, answer, () => ({ op: 'unseal', device: device.id }));
      this.host.exports.update();
    });
  }

  /** Answers with the device as it is, once that survives power loss. */
  private confirm(device: LocalDevice, answer: LocalAnswer): void {
    this.whenSettled(this.content.local.log.changedLsn, () => {
      if (this.pending.delete(answer)) answer.done({ lsn: this.content.appliedLsn, device: this.tree.get(device.id), dataThreadUs: 0, notice: null });
    });
  }

  /** Refuses when clients have the device open, or disconnects them; from here on nobody may use it. */
  private takeFrom(device: LocalDevice, force: boolean, what: string): void {
    const { exports } = this.host;
    if (!force) this.judge.unused(device);
    this.blocked.add(device.id);
    exports.update();
    exports.disconnectDevice(device.id, `${this.judge.spell(device.name)} ${what}`);
    this.writes.cancel(device.id);
  }

  // ---- steps -------------------------------------------------------------------------------------

  /** Runs the checks of an operation; it is pending when they pass. */
  private judged(answer: LocalAnswer, checks: () => void): void {
    if (this.stopped !== undefined) {
      answer.failed(this.stopped);
      return;
    }
    this.pending.set(answer, false);
    answer.caller.onGone(() => this.abandoned(answer));
    this.guarded(answer, checks);
  }

  /** Whoever asked has gone: what was not performed is not performed any more. */
  private abandoned(answer: LocalAnswer): void {
    const performed = this.pending.get(answer);
    if (performed === undefined) return;
    this.pending.delete(answer);
    this.waits = this.waits.filter((one) => one.answer !== answer);
    this.log.warn(`the caller of an operation on a local snapshot has gone: it was ${performed ? 'done, and stays' : 'not done'}`);
    answer.failed(callerGone());
  }

  private guarded(answer: LocalAnswer, step: () => void): void {
    if (!this.pending.has(answer)) return;
    try {
      step();
    } catch (error) {
      this.fail(answer, error);
    }
  }

  /** Once: whatever failed may have stopped the group, which has answered then. */
  private fail(answer: LocalAnswer, error: unknown): void {
    if (this.pending.delete(answer)) answer.failed(error);
  }

  /** Calls `step` when no request to these devices is under way, and lets them go on after it. */
  private standingStill(devices: readonly number[], answer: LocalAnswer, step: () => void, always: () => void = () => undefined): void {
    let left = devices.length;
    const run = (): void => {
      this.guarded(answer, step);
      for (const id of devices) this.writes.release(id);
      always();
      this.host.exports.update();
    };
    if (left === 0) run();
    for (const id of devices) {
      this.writes.hold(id, () => {
        if (--left === 0) run();
      });
    }
  }

  /** Appends and executes a record; then settles it, and waits until the device may be used. */
  private perform(waitUs: number, answer: LocalAnswer, make: (follows: Follows, wallMs: number) => LocalRecord): void {
    const { content } = this.host;
    const { io } = this.reactor;
    const begun = io.nowUs();
    this.host.flushBatch();
    const { epoch } = content.core;
    if (!this.host.serving || epoch === undefined) throw new OperatorError('group/busy', `group ${this.host.name} has no content on this node yet`);
    if (!content.local.log.hasRoom) {
      content.requestCheckpoint();
      throw new OperatorError('journal/stalled', 'the local journal is full; try again in a moment');
    }
    const lsn = content.appliedLsn;
    const record = make({ epochId: epoch.id, lsn }, io.wallMs());
    content.local.perform(record);
    if (this.pending.has(answer)) this.pending.set(answer, true);
    const dataThreadUs = io.nowUs() - begun;
    const id = record.op === 'snapshot' ? record.id : record.op === 'assign' ? record.target : record.op === 'seal' || record.op === 'unseal' ? record.device : 0;
    const finish = (notice: string | null): void => {
      if (!this.pending.delete(answer)) return;
      answer.done({ lsn, device: this.tree.get(id), dataThreadUs, notice });
    };
    this.whenSettled(content.local.log.changedLsn, () => {
      if (id === 0 || this.tree.get(id)?.ready !== false) finish(null);
      else if (this.pending.has(answer)) this.waits.push({ device: id, answer, deadlineUs: this.reactor.nowUs + waitUs, ended: finish });
      this.reactor.again();
    });
  }

  private whenSettled(lsn: number, done: () => void): void {
    const { log } = this.content.local;
    if (log.settledLsn >= lsn) {
      done();
      return;
    }
    this.settling.push({ lsn, done });
    log.settle(lsn);
  }

  private settled(): void {
    const { settledLsn } = this.content.local.log;
    const ready = this.settling.filter((one) => one.lsn <= settledLsn);
    this.settling = this.settling.filter((one) => one.lsn > settledLsn);
    for (const one of ready) one.done();
  }

  /** Devices whose position cannot be undone any more may be used. */
  private makeReady(): void {
    const { content } = this;
    const { stableLsn, exports } = this.host;
    const { local } = content;
    let changed = false;
    let unready = false;
    for (const device of local.tree.all()) {
      if (device.ready) continue;
      unready = true;
      // Of a volatile journal `stable` is what was appended, and power loss takes it.
      if (device.followsLsn > Math.min(stableLsn, content.journal.durableLsn)) {
        content.journal.sync(device.followsLsn);
        continue;
      }
      if (local.log.settledLsn <= device.changedLsn || !local.log.hasRoom) continue;
      local.perform({ op: 'ready', device: device.id });
      changed = true;
    }
    if (changed) exports.update();
    const { nowUs } = this.reactor;
    for (const wait of [...this.waits]) {
      const device = local.tree.get(wait.device);
      if (device !== undefined && !device.ready) {
        if (nowUs < wait.deadlineUs) continue;
        wait.ended(`${this.judge.spell(device.name)} is made, but cannot be used yet: the primary has not confirmed that LSN ${device.followsLsn}, which it follows, is durable there (it has confirmed LSN ${stableLsn}); it is exported as soon as that is so`);
      } else {
        this.whenSettled(local.log.changedLsn, () => wait.ended(null));
      }
      this.waits.splice(this.waits.indexOf(wait), 1);
    }
    if (unready) this.pollLater();
  }

  /** What is waited for may come without a tick of its own. */
  private pollLater(): void {
    if (this.polling) return;
    this.polling = true;
    this.reactor.after(POLL_US, () => {
      this.polling = false;
    });
  }

  /** In order: what was written through so far is recorded and answered. */
  close(): void {
    if (this.stopped === undefined) this.writes.tick();
    this.stop(Errno.ESHUTDOWN, 'the daemon is shutting down');
  }

  /** Answers everything, now and from now on. */
  stop(errno: number, words: string): void {
    if (this.stopped !== undefined) return;
    const reason = new OperatorError('group/stopped', words);
    this.stopped = reason;
    this.writes.stop(errno);
    this.settling = [];
    this.waits = [];
    const answers = [...this.pending.keys()];
    this.pending.clear();
    for (const answer of answers) answer.failed(reason);
  }
}
