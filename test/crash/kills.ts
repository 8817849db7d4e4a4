/**
 * A run of the crash test: a pair of real daemons under load, SIGKILLs at
 * random moments of one, the other or both, also while they start, and checks.
 *
 * Owns: the schedule, from the seed. Must not know: what is written (load.ts),
 * what is right (model.ts, check.ts).
 */
import { renameSync, rmSync } from 'node:fs';
import type { Pair, TestNode } from '../harness/node.js';
import { preparePair } from '../harness/node.js';
import { waitFor } from '../harness/process.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';
import { Random } from '../sim/random.js';
import { checkHashes, checkNode, checkPair, deviceNames } from './check.js';
import { GROUP } from './clients.js';
import type { LoadCounts } from './load.js';
import { Load } from './load.js';
import { CrashModel } from './model.js';

export interface KillSummary extends LoadCounts {
  readonly seed: number;
  kills: { primary: number; secondary: number; whileStarting: number };
  checksOfPrimary: number;
  checksOfBoth: number;
  hashes: number;
  seconds: number;
  /** What the primary had done at its end, since its last start. */
  lsn: number;
  epochs: number;
}

export const SMALL_GROUP = {
  journalSize: '64M', segmentSize: '8M',
  groupExtra: { store: { checkpointSeconds: 1, checkpointBytes: '16M', mapMemory: '16M', freeSpaceWatermark: 0 } },
} as const;

export class KillRun {
  readonly kills = { primary: 0, secondary: 0, whileStarting: 0 };
  private readonly random: Random;
  private readonly model: CrashModel;
  private checksOfPrimary = 0;
  private checksOfBoth = 0;
  private over = false;

  constructor(readonly seed: number, private readonly wanted: number, private readonly progress: (words: string) => void) {
    this.random = new Random(seed);
    this.model = new CrashModel(seed);
  }

  private get done(): number {
    return this.kills.primary + this.kills.secondary;
  }

  /** Throws with seed, kill and everything that is known about what differs. */
  async run(): Promise<KillSummary> {
    const directory = makeTempDirectory('crash');
    const pair = await preparePair(directory, SMALL_GROUP);
    const load = new Load(() => pair.primary, this.model, this.random.fork(7));
    const started = performance.now();
    let round: Promise<void> = Promise.resolve();
    let reported = 0;
    try {
      await Promise.all([pair.primary.start(), pair.secondary.start()]);
      await load.createVolumes();
      load.start();
      while (this.done < this.wanted) {
        round = this.round(pair, load);
        await Promise.race([load.failed, round]);
        if (this.done < reported + 10) continue;
        reported = this.done;
        this.progress(`${this.done} kills, ${load.counts.writes} writes, ${load.counts.operations} operations, ${Math.round((performance.now() - started) / 1000)} s`);
      }
      await load.pause();
      this.checksOfBoth++;
      await checkPair(pair, this.model, this.random);
      const hashes = await checkHashes(pair, this.model);
      const group = await pair.primary.group(GROUP);
      await load.end();
      return {
        ...load.counts, seed: this.seed, kills: this.kills, checksOfPrimary: this.checksOfPrimary, checksOfBoth: this.checksOfBoth, hashes,
        seconds: Math.round((performance.now() - started) / 100) / 10, lsn: group.lsn.appended, epochs: group.epoch.number,
      };
    } catch (error) {
      const logs = [pair.primary, pair.secondary].map((node) => `--- log of ${node.name}\n${logTail(node)}`).join('\n');
      throw new Error(
        `seed ${this.seed}, after ${this.done} kills (repeat with LOCKSTEP_CRASH_SEED=${this.seed} LOCKSTEP_CRASH_KILLS=${this.wanted}): ${error instanceof Error ? error.message : String(error)}\n${logs}`,
        { cause: error },
      );
    } finally {
      load.down = true;
      this.over = true;
      await Promise.all([pair.primary.kill(), pair.secondary.kill()]);
      await load.end();
      // A round that was left behind starts nothing any more; what it started in that moment ends here.
      await round.catch(() => undefined);
      await Promise.all([pair.primary.kill(), pair.secondary.kill()]);
      if (process.env.LOCKSTEP_CRASH_KEEP !== undefined) renameSync(directory, process.env.LOCKSTEP_CRASH_KEEP);
      removeTempDirectory(directory);
    }
  }

  private async round(pair: Pair, load: Load): Promise<void> {
    const { random } = this;
    await delay(random.between(20, 700));
    const roll = random.unit();
    if (roll < 0.5) await this.killPrimary(pair, load, false);
    else if (roll < 0.65) await this.killPrimary(pair, load, true);
    else await this.killSecondary(pair);
    for (const node of [pair.primary, pair.secondary]) {
      const { role, roleReason } = await node.group(GROUP);
      const expected = node === pair.primary ? 'primary' : 'secondary';
      if (role !== expected) throw new Error(`${node.name} is ${role} instead of ${expected}: ${roleReason}`);
    }
    if (!random.chance(0.35)) return;
    await load.pause();
    this.checksOfBoth++;
    await checkPair(pair, this.model, random);
    load.resume();
  }

  private async killPrimary(pair: Pair, load: Load, both: boolean): Promise<void> {
    const { random, kills } = this;
    load.down = true;
    const first = random.chance(0.5);
    if (both && first) await pair.secondary.kill();
    await pair.primary.kill();
    if (both && !first) await pair.secondary.kill();
    kills.primary++;
    if (both) kills.secondary++;
    await load.pause();
    // Drawn before anything runs side by side, so that the draws do not depend on timing.
    const [mine, theirs] = [this.deaths('primary'), both ? this.deaths('secondary') : []];
    await Promise.all([this.restart(pair.primary, mine), ...(both ? [this.restart(pair.secondary, theirs)] : [])]);
    await waitFor('the primary serves', async () => (await pair.primary.group(GROUP)).role === 'primary');
    load.settle(await deviceNames(pair.primary));
    this.checksOfPrimary++;
    await checkNode(pair.primary, this.model, random);
    load.down = false;
    load.resume();
  }

  private async killSecondary(pair: Pair): Promise<void> {
    const { random } = this;
    await pair.secondary.kill();
    this.kills.secondary++;
    await delay(random.chance(0.3) ? random.below(800) : 0);
    await this.restart(pair.secondary, this.deaths('secondary'));
  }

  /** How long the next starts live before they are killed, milliseconds. */
  private deaths(which: 'primary' | 'secondary'): number[] {
    const list: number[] = [];
    while (list.length < 3 && this.done < this.wanted && this.random.chance(0.3)) {
      list.push(this.random.between(50, 900));
      this.kills[which]++;
      this.kills.whileStarting++;
    }
    return list;
  }

  private async restart(node: TestNode, deaths: readonly number[]): Promise<void> {
    for (const ms of deaths) {
      let problem: Error | undefined;
      const starting = node.start().catch((error: unknown) => void (problem = error as Error));
      await delay(ms);
      if (!node.running) {
        await starting;
        throw problem ?? new Error(`${node.name} ended by itself while it started`);
      }
      await node.kill();
      // That it did not come to answer is as it should be.
      await starting;
    }
    rmSync(node.controlSocket, { force: true });
    if (this.over) throw new Error('the run is over');
    await node.start();
  }
}

/** The end of a node's log without the coming and going of clients. */
function logTail(node: TestNode): string {
  return node.log.split('\n').filter((line) => !line.includes('"part":"nbd"')).slice(-14).join('\n');
}

export function delay(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
