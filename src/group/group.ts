/**
 * A group: volumes that share one journal, on this node (DESIGN §2).
 *
 * Owns: the role and its changes, the group's tick, its exports, and the bridge
 * between requests, operations, links and the content. Must not know: NBD,
 * sockets, HTTP.
 */

import { assert } from '../base/assert.js';
import { CorruptionError, Errno, IoError, OperatorError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { isLocalDevice } from '../base/units.js';
import { toHex } from '../base/words.js';
import type { SpaceStat } from '../io/io.js';
import type { Reactor } from '../io/reactor.js';
import type { Journal } from '../journal/journal.js';
import { ORIGIN, type Position } from '../journal/position.js';
import type { Content, ContentOptions } from './content/content.js';
import { createContent, openContent } from './content/opening.js';
import { endContent } from './ending.js';
import { Exports } from './requests/exports.js';
import { Follower } from './follower.js';
import { Hooks } from './hooks.js';
import { Ingest } from './requests/ingest.js';
import { stateToStartFrom } from './content/leftovers.js';
import { LocalService } from './localservice.js';
import { Performer } from './operations/performer.js';
import { Meter } from './operations/meter.js';
import { journalDirectoryOf, openAsFound, placeOf, type PlaceOptions } from './content/place.js';
import { readRequest } from './requests/reads.js';
import { RequestKind, type RequestTable } from './requests/requests.js';
import type { GroupRole, ReceiveResult, ReplicatedGroup } from './replica.js';
import { NO_EPOCH, type EpochEntry } from './tree/epochs.js';
import { Retention } from './retention.js';
import { Roles, type RolesOptions } from './roles.js';
import { SpaceAdmission } from './space.js';
import { stallSentence } from './stall.js';
import type { StateFile } from './content/statefile.js';
import { Tree } from './tree/tree.js';

export interface GroupOptions extends Omit<ContentOptions, 'groupId'>, Omit<RolesOptions, keyof PlaceOptions> {
  /** Role when the group is opened for the first time. */
  readonly initialRole: 'primary' | 'secondary';
  readonly watermarkBytes: number;
  /** Looks at the free space; throws IoError. */
  readonly space: (path: string) => SpaceStat;
}

const POLL_INTERVAL_US = 50_000;

export class Group implements ReplicatedGroup {
  readonly exports: Exports;
  readonly space: SpaceAdmission;
  readonly follower: Follower;
  private readonly roles: Roles;
  private opened: Content | undefined;
  /** Undefined while there is no content. */
  ingest: Ingest | undefined;
  /** For whom the journal is kept. */
  readonly retention: Retention;
  /** Devices that exist on this node only; undefined while there is no content. */
  local: LocalService | undefined;
  private readonly appendedHooks = new Hooks();
  private readonly durableHooks = new Hooks();
  private readonly roleHooks = new Hooks();
  /** Appends, executes and waits. */
  readonly operations: Performer;
  private readonly removeHook: () => void;
  closed = false;
  readonly meter = new Meter();

  private constructor(
    private readonly reactor: Reactor,
    readonly options: GroupOptions,
    private readonly requests: RequestTable,
    readonly log: Log,
    state: StateFile,
  ) {
    this.roles = new Roles(reactor, options, {
      content: () => this.opened,
      changing: () => this.changing,
      beginEpoch: (lossless, reason) => this.operations.beginEpoch(lossless, reason),
      roleChanged: () => this.roleChanged(),
    }, log, state);
    this.operations = new Performer(reactor, this, log);
    this.follower = new Follower(reactor, this, log);
    this.retention = new Retention(reactor, options.directory);
    this.exports = new Exports(this);
    this.space = new SpaceAdmission(reactor, options.directory, options.watermarkBytes, options.space);
    this.space.onChange = (refusal) => (refusal === undefined ? log.info('space is sufficient again, writes are taken') : log.error(refusal));
    this.removeHook = reactor.onTickEnd(() => this.tick());
    this.schedulePoll();
  }

  /** Opens or creates the group's directory. Blocking; throws CorruptionError, IoError. */
  static open(reactor: Reactor, options: GroupOptions, requests: RequestTable, log: Log): Group {
    const { io } = reactor;
    const found = stateToStartFrom(reactor, options.directory, journalDirectoryOf(options));
    if (found !== undefined) {
      const group = new Group(reactor, options, requests, log, found);
      group.opening(true, () => {
        const { groupId } = found;
        if (groupId === null) return;
        group.retention.cursors.load(groupId);
        const opening = openAsFound(reactor, options, { ...found, groupId }, (how) => {
          group.take(openContent(reactor, { ...options, groupId }, group.roles.opening(how)));
        });
        group.roles.started(group.content, group.position, opening);
        group.roles.clearFormers();
        group.contentChanged();
      });
      return group;
    }
    const groupId = options.initialRole === 'primary' ? toHex(io.randomBytes(16)) : null;
    const state: StateFile = {
      format: 1, groupId, role: options.initialRole, roleReason: 'configured when the group was first started', bootId: options.bootId, cleanStop: null, journal: placeOf(options),
    };
    const group = new Group(reactor, options, requests, log, state);
    group.opening(false, () => {
      if (groupId !== null) {
        group.take(createContent(reactor, { ...options, groupId }, NO_EPOCH));
        group.operations.beginEpoch(true, 'the group was created');
      }
      // Last: without it a start after a crash creates the group anew, and nothing in it was ever served.
      group.roles.save({});
    });
    return group;
  }

  /** Runs what opens the group; when that throws, nothing of the group goes on living. */
  private opening(existed: boolean, steps: () => void): void {
    try {
      steps();
    } catch (error) {
      // A failed fsync of the journal may have dropped pages that a later start would take for safe.
      if (error instanceof IoError && existed) this.roles.journalFailed();
      this.closed = true;
      this.removeHook();
      this.roles.end();
      this.opened?.stop();
      if (this.opened?.quiet === true) this.opened.close();
      throw error;
    }
  }

  private take(content: Content): void {
    this.opened = content;
    this.meter.watch(content);
    this.ingest = new Ingest(this.reactor, this, this.requests);
    content.journal.onDurable = () => this.afterDurable();
    content.journal.onFailure = (error) => this.journalFailed(error);
    content.reader.onProblem = (error) => this.failed(error);
    content.checkpointer.onCorruption = content.destager.onCorruption = (error) => this.failed(error);
    // The own durable LSN, which a primary goes by, is found again by recovery.
    content.destager.beforeWriting = (lsn, done) => (this.role === 'primary' ? done(0) : content.final.note(lsn, done));
    content.journal.pool.onCreated = (failure) => {
      if (failure !== undefined) this.log.error(`the journal cannot grow: ${failure}`);
    };
    this.local = new LocalService(this.reactor, this, this.requests, this.log);
    content.report(this.log);
    this.exports.update();
  }

  // ---- identity and positions -------------------------------------------------------------------

  get name(): string {
    return this.options.name;
  }

  get role(): GroupRole {
    return this.roles.role;
  }

  get roleReason(): string {
    return this.roles.reason;
  }

  get groupId(): string | undefined {
    return this.roles.groupId;
  }

  get content(): Content {
    assert(this.opened !== undefined, `group ${this.name} has no content yet`);
    return this.opened;
  }

  get hasContent(): boolean {
    return this.opened !== undefined;
  }

  get changing(): boolean {
    return this.follower.changing;
  }

  get journal(): Journal {
    return this.content.journal;
  }

  get tree(): Tree {
    return this.opened?.core.tree ?? Tree.empty;
  }

  get epochs(): readonly EpochEntry[] {
    return this.opened?.epochs ?? [];
  }

  get position(): Position {
    return this.opened?.journal.position ?? ORIGIN;
  }

  get appliedPosition(): Position {
    return this.opened?.appliedPosition ?? ORIGIN;
  }

  get appliedLsn(): number { return this.opened?.appliedLsn ?? 0; }

  get applyProblem(): string | undefined { return this.opened?.applyProblem; }

  adoptLack(adopt: Parameters<ReplicatedGroup['adoptLack']>[0]): string | undefined {
    return this.opened === undefined ? 'there is nothing yet' : this.opened.local.adoption.lack(adopt);
  }

  get stableLsn(): number {
    const own = this.opened?.journal.stableLsn ?? 0;
    return this.role === 'secondary' ? Math.min(own, Math.max(this.follower.primaryDurableLsn, this.opened?.floorLsn ?? 0)) : own;
  }

  /** Writers that wait for room in the journal. */
  get stalledCount(): number {
    return this.ingest?.stalledCount ?? 0;
  }

  // ---- tick ---------------------------------------------------------------------------------------

  private tick(): void {
    if (this.opened === undefined || this.closed || this.changing || this.role === 'stopped') return;
    try {
      this.work(this.content);
    } catch (error) {
      this.caught(error);
    }
  }

  /** Damage on this group's disk, or a failing disk, stops this group and no other; anything else is a bug and goes on. */
  private caught(error: unknown): void {
    if (!(error instanceof CorruptionError) && !(error instanceof IoError)) throw error;
    this.failed(error);
  }

  failed(error: CorruptionError | IoError): void {
    this.roles.stop(`${error.message}. Nothing more is acknowledged; the files were left as they are`);
  }

  private work(content: Content): void {
    if (this.role === 'primary') this.ingest!.tick();
    this.local!.tick();
    content.poll(this.stableLsn, this.retainedLsn());
    this.follower.poll();
    content.journal.pool.ensureSpare(3);
  }

  /** Ticks happen only when something does; time-bound work needs a clock of its own. */
  private schedulePoll(): void {
    this.reactor.after(POLL_INTERVAL_US, () => {
      if (this.closed) return;
      this.roles.retryNote();
      if (this.opened !== undefined) this.space.refresh(this.spaceNeeds());
      this.schedulePoll();
    });
  }

  /** Oldest LSN that a link or an export cursor needs; Infinity when none does. */
  retainedLsn(): number {
    return this.retention.lowest;
  }

  spaceNeeds(): { undestagedBytes: number; journalBytesToCome: number } {
    const { store, journal, local } = this.content;
    return { undestagedBytes: store.undestagedBytes, journalBytesToCome: (this.options.journalDirectory === undefined ? journal.pool.bytesToCome : 0) + local.log.bytesToCome };
  }

  admit(bytes: number): number { return this.space.admit(bytes, this.spaceNeeds()); }

  /** After something was appended here and applied. */
  appended(): void { this.appendedHooks.run(); }

  /** Appends what the tick has collected so far. */
  flushBatch(): void { if (this.role === 'primary') this.ingest!.flushBatch(); }

  private afterDurable(): void {
    const lsn = this.content.journal.durableLsn;
    this.ingest?.durable();
    this.operations.durable(lsn);
    this.durableHooks.run();
  }

  // ---- requests -----------------------------------------------------------------------------------

  submit(slot: number): void {
    try {
      this.dispatch(slot);
    } catch (error) {
      this.caught(error);
    }
  }

  private dispatch(slot: number): void {
    const { requests } = this;
    const kind = requests.kind[slot];
    if (isLocalDevice(requests.device[slot])) {
      this.local!.submit(slot);
    } else if (kind === RequestKind.read || kind === RequestKind.cache) {
      if (this.opened === undefined || !this.serving) requests.complete(slot, Errno.ESHUTDOWN);
      else readRequest(this.content, requests, slot);
    } else if (this.role !== 'primary') {
      // A FLUSH on a read-only node has nothing to wait for: none of its clients' writes are acknowledged here.
      requests.complete(slot, kind === RequestKind.flush && this.role === 'secondary' ? 0 : this.role === 'secondary' ? Errno.EPERM : Errno.ESHUTDOWN);
    } else {
      this.ingest!.submit(slot);
    }
  }

  get writable(): boolean {
    return this.role === 'primary';
  }

  /** Whether clients may read. */
  get serving(): boolean {
    return this.roles.serve && this.opened !== undefined && !this.changing;
  }

  // ---- operations ---------------------------------------------------------------------------------

  get stoppedFor(): string | undefined {
    return this.role === 'stopped' ? this.roleReason : undefined;
  }

  /** Why writers wait for the journal, or null when they do not. */
  stallReason(): string | null {
    if (this.ingest?.holding === true) return 'writers wait for an operation with --halt';
    const full = this.opened !== undefined && this.role !== 'stopped' && (this.stalledCount > 0 || !this.opened.journal.hasRoomForData);
    return full ? stallSentence(this.name, this.content, this.retention.slowest) : null;
  }

  // ---- roles ----------------------------------------------------------------------------------------

  peerAsked(peer: string, outcome: 'fetched' | 'unreachable' | 'refused'): void {
    this.roles.peerAsked(peer, outcome);
  }

  /** A secondary becomes primary in a new epoch. Throws OperatorError. */
  promote(reason: string): EpochEntry {
    return this.roles.promote(reason);
  }

  fence(newer: EpochEntry, peer: string): void {
    this.roles.fence(newer, peer);
  }

  /** `hook` runs after every change of role. Returns what removes it. */
  onRole(hook: () => void): () => void {
    return this.roleHooks.add(hook);
  }

  private roleChanged(): void {
    if (this.role === 'stopped' || this.role === 'fenced') {
      const stopped = this.role === 'stopped';
      this.ingest?.stop(stopped ? Errno.EIO : Errno.ESHUTDOWN);
      this.local?.stop(stopped ? Errno.EIO : Errno.ESHUTDOWN, this.roleReason);
      if (stopped) this.opened?.stop();
      this.operations.stop(new OperatorError(stopped ? 'group/stopped' : 'role/not-primary', this.roleReason));
    }
    this.exports.update();
    if (!this.serving) this.exports.disconnectAll(this.roleReason);
    this.roleHooks.run();
  }

  journalFailed(error: IoError): void {
    this.roles.journalFailed();
    this.roles.stop(`the journal failed: ${error.message}. Nothing more is acknowledged; restart the daemon once the disk is in order, it recovers by itself`);
  }

  localFailed(): void { this.roles.localFailed(); }

  // ---- receiving side -------------------------------------------------------------------------------

  get notFollowing(): string | undefined {
    return this.role === 'secondary' || this.role === 'recovering' ? undefined : `group ${this.name} is ${this.role} on this node`;
  }

  adoptGroupId(groupId: string): void {
    assert(this.opened === undefined && this.role === 'secondary', 'only a secondary that has nothing takes an identity');
    this.take(createContent(this.reactor, { ...this.options, groupId }, NO_EPOCH));
    this.roles.adopted(groupId);
    this.log.info('follows a primary for the first time', { groupId });
  }

  receive(at: number, payloadAt: number): ReceiveResult {
    try {
      return this.follower.receive(at, payloadAt);
    } catch (error) {
      this.caught(error);
      return { kind: 'failed', reason: 'the group stopped' };
    }
  }

  setPrimaryDurable(lsn: number): void { this.follower.setPrimaryDurable(lsn); }

  onRoom(hook: () => void): () => void {
    return this.follower.onRoom(hook);
  }

  rewind(to: Position, done: (refusal: string | undefined) => void): void {
    this.follower.rewind(to, done);
  }

  /** Closes the content and opens it again, cut at `to`; for the follower. */
  reopen(to: Position): void {
    this.local?.stop(Errno.ESHUTDOWN, 'the devices are being taken back to an earlier state, that of their primary; try again in a moment');
    // When the other one cannot be opened, this one stays, closed, for what is asked of a stopped group.
    this.content.close();
    this.take(openContent(this.reactor, { ...this.options, groupId: this.groupId! }, { until: to }));
    this.exports.disconnectAll('the device was taken back to an earlier state, that of its primary');
  }

  contentChanged(): void { this.exports.update(); }

  // ---- sending side ---------------------------------------------------------------------------------

  setCursor(peer: string, lsn: number | undefined): void { this.retention.setLink(peer, lsn); }

  onAppended(hook: () => void): () => void { return this.appendedHooks.add(hook); }

  onDurable(hook: () => void): () => void { return this.durableHooks.add(hook); }

  // ---- end ------------------------------------------------------------------------------------------

  /** Before clients are waited for: nothing waits for room any more. */
  beginClosing(): void {
    this.ingest?.refuseWaiting(Errno.ESHUTDOWN);
    this.local?.writes.refuseWaiting(Errno.ESHUTDOWN);
  }

  /** Lets requests and jobs end, then calls `done`. The stop counts as clean if nothing failed. */
  close(done: () => void): void {
    this.exports.disconnectAll('the daemon is shutting down');
    if (this.role === 'primary') this.ingest?.flushBatch();
    this.ingest?.stop(Errno.ESHUTDOWN);
    this.local?.close();
    this.roles.end();
    const { opened } = this;
    const end = (at: Position | undefined): void => {
      this.closed = true;
      this.removeHook();
      if (at !== undefined) this.roles.stoppedCleanly(at);
      opened?.close();
      done();
    };
    if (opened === undefined) end(undefined);
    else endContent(this.reactor, this, opened, this.log, end);
  }
}
