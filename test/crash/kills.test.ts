/**
 * SIGKILLs of real daemons under load: nothing acknowledged is lost, both nodes
 * equal. `make test` runs a few kills; `make test-crash CRASH_KILLS=200` many.
 * LOCKSTEP_CRASH_SEED repeats a run (its draws; the timing is the machine's).
 */
import t from 'tap';
import { KillRun } from './kills.js';

const kills = Number(process.env.LOCKSTEP_CRASH_KILLS ?? 8);
const seed = Number(process.env.LOCKSTEP_CRASH_SEED ?? Math.floor(Math.random() * 2 ** 32));

// Directly run, tap ends a file after 30 s; the runner's --timeout is the limit.
t.setTimeout(7_200_000);

t.test(`nothing acknowledged is lost over ${kills} SIGKILLs, and both nodes are equal (seed ${seed})`, { timeout: 7_200_000 }, async (t) => {
  const say = (words: string): void => {
    // A long run is watched: the runner passes standard error on, and shows comments only of what failed.
    if (process.env.LOCKSTEP_CRASH_KILLS === undefined) t.comment(words);
    else console.error(words);
  };
  const summary = await new KillRun(seed, kills, say).run();
  const { primary, secondary, whileStarting } = summary.kills;
  t.ok(primary + secondary >= kills);
  say(
    `seed ${seed}: ${primary + secondary} kills (${primary} of the primary, ${secondary} of the secondary, ${whileStarting} of them while it started) in ${summary.seconds} s: ` +
      `${summary.writes} writes (${Math.round(summary.bytesWritten / 2 ** 20)} MiB), ${summary.zeroes} trims and zeroes, ${summary.reads} reads checked, ${summary.flushes} flushes, ` +
      `${summary.operations} operations, ${summary.lostReplies} replies lost; ${summary.checksOfPrimary} checks of the primary after its kill, ${summary.checksOfBoth} of both nodes, ` +
      `${summary.hashes} devices compared by sha256 at the end; ${summary.epochs} epochs, LSN ${summary.lsn}`,
  );
});
