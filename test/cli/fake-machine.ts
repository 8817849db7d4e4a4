/** A machine for tests of snapshot --freeze: it remembers what is frozen, and its watchdogs have the real logic. */
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { Errno } from '../../src/base/errors.js';
import type { CommandEnd, FreezeSystem, WatchdogEvents, WatchdogProcess, Word } from '../../src/cli/freeze/system.js';
import type { Mount, MountPaths } from '../../src/cli/freeze/mounts.js';
import { mountOf } from '../../src/cli/freeze/mounts.js';
import { FreezeWatchdog } from '../../src/cli/freeze/watchdog.js';

/** Mounts, watchdogs and commands of a machine that does not exist; `steps` is what happened, in order. */
export class FakeMachine implements FreezeSystem {
  readonly steps: string[] = [];
  readonly frozen = new Set<string>();
  readonly table: Mount[] = [{ id: 20, parent: 1, point: '/', fileSystem: '254:0', type: 'ext4', source: '/dev/vda' }];
  private lastId = 20;
  readonly dogs: FakeDog[] = [];
  readonly paths: MountPaths;
  /** errno of a call on a mount point: "sync /a", "freeze /a", "thaw /a". */
  readonly errors = new Map<string, number>();
  /** How commands end, by their text. */
  readonly ends = new Map<string, CommandEnd>();
  readonly environments: Record<string, string>[] = [];
  /** What a freeze takes on the clock. */
  freezeMs = 0;
  allowed = true;
  graceMs = 30_000;
  private readonly points = new Map<number, string>();

  constructor(readonly root: string) {
    this.paths = { mountinfo: '/nothing', proc: join(root, 'proc'), sysDevBlock: join(root, 'sys') };
  }

  /** A mount point that exists; `as` is how steps and errors name it. */
  mount(name: string, fileSystem: string, type = 'ext4'): string {
    const point = join(this.root, name);
    mkdirSync(point, { recursive: true });
    this.table.push({ id: ++this.lastId, parent: mountOf(this.table, point)?.id ?? 1, point, fileSystem, type, source: `/dev/${name}` });
    return point;
  }

  mounts(): Mount[] {
    return this.table;
  }
  mayFreeze(): boolean {
    return this.allowed;
  }
  open(point: string): number {
    const fd = openSync(point, 'r');
    this.points.set(fd, point);
    return fd;
  }
  /** As the kernel: of the mount that the path leads to at the moment of the opening. */
  mountId(fd: number): number | undefined {
    return mountOf(this.table, this.points.get(fd) ?? '')?.id;
  }
  close(fd: number): void {
    this.points.delete(fd);
    closeSync(fd);
  }
  get openDescriptors(): number {
    return this.points.size;
  }

  call(what: 'sync' | 'freeze' | 'thaw', point: string): number {
    const name = `${what} ${point.slice(this.root.length)}`;
    this.steps.push(name);
    const errno = this.errors.get(name) ?? 0;
    if (errno !== 0) return -errno;
    if (what === 'freeze' && this.frozen.has(point)) return -Errno.EBUSY;
    if (what === 'thaw' && !this.frozen.delete(point)) return -Errno.EINVAL;
    if (what === 'freeze') this.frozen.add(point);
    return 0;
  }
  thaw(fd: number): number {
    return this.call('thaw', this.points.get(fd) ?? '');
  }

  watch(_fd: number, point: string, timeoutSeconds: number, events: WatchdogEvents): WatchdogProcess {
    const dog = new FakeDog(this, point, timeoutSeconds * 1000, events);
    this.dogs.push(dog);
    return dog;
  }

  run(command: string, environment: Readonly<Record<string, string>>): Promise<CommandEnd> {
    this.steps.push(command);
    this.environments.push({ ...environment });
    return Promise.resolve(this.ends.get(command) ?? { kind: 'exit', code: 0 });
  }
}

/** A watchdog in this process. Its time is over when the test says so. */
export class FakeDog implements WatchdogProcess {
  readonly pid = 4242;
  /** Does not hear any more, like a stopped process. */
  deaf = false;
  timeOver: () => void = () => {};
  private nowMs = 0;
  private dead = false;
  readonly logic: FreezeWatchdog;

  constructor(machine: FakeMachine, point: string, timeoutMs: number, private readonly events: WatchdogEvents) {
    this.logic = new FreezeWatchdog({
      sync: () => machine.call('sync', point),
      freeze: () => {
        this.nowMs += machine.freezeMs;
        return machine.call('freeze', point);
      },
      thaw: () => machine.call('thaw', point),
      say: (line) => this.later(() => this.events.line(line)),
      nowMs: () => this.nowMs,
      after: (_, action) => {
        this.timeOver = action;
        return () => void (this.timeOver = () => {});
      },
    }, timeoutMs, () => this.die('ended with status 0'));
  }

  send(word: Word): void {
    this.later(() => {
      if (!this.deaf && !this.dead) this.logic.hear(word);
    });
  }
  kill(): void {
    this.die('was ended by SIGKILL');
  }
  die(how: string): void {
    this.later(() => {
      if (this.dead) return;
      this.dead = true;
      this.events.ended(how);
    });
  }
  private later(action: () => void): void {
    setImmediate(action);
  }
}
