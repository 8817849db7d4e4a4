/** Runs one scenario inside of test/kernel/guest: `scenario.js NAME lockstep|nbdkit DIRECTORY`. */
import { GuestShell } from './guest-shell.js';
import { SCENARIOS } from './scenarios.js';

const [name, kind, directory] = process.argv.slice(2);
const scenario = SCENARIOS[name];
if (scenario === undefined || (kind !== 'lockstep' && kind !== 'nbdkit') || directory === undefined) {
  console.error(`usage: scenario.js ${Object.keys(SCENARIOS).join('|')} lockstep|nbdkit DIRECTORY`);
  process.exit(2);
}
const guest = await GuestShell.open();
try {
  await scenario({ guest, directory, serverKind: kind });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  const words = await guest.run('dmesg | tail -n 15', 10_000).catch(() => undefined);
  if (words !== undefined) console.error(`the guest's kernel said:\n${words.stdout}`);
  process.exitCode = 1;
}
await guest.close();
process.exit();
