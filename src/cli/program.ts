/**
 * The command line: which words are which command. Owns parsing and usage
 * errors (commander); must not know what a command does.
 */

import { Command, CommanderError } from 'commander';
import { nearest } from '../base/nearest.js';
import { VERSION } from '../base/version.js';
import { registerAdoption } from './commands/adopt.js';
import { registerAttachment } from './commands/attach.js';
import { registerInspection } from './commands/inspect.js';
import { registerAssigns } from './commands/assign.js';
import { registerOperations } from './commands/operations.js';
import { registerReconciliation } from './commands/reconcile.js';
import { Context, DEFAULT_SOCKET, EXIT_OK, EXIT_OPERATOR } from './context.js';
import type { GlobalOptions, Streams } from './context.js';
import type { Register } from './register.js';
import { runWatchdog } from './freeze/watchdog.js';

/** Runs one command line (without node and script) and returns the exit code. Never throws. */
export async function runCommandLine(argv: readonly string[], streams: Streams): Promise<number> {
  const program = new Command('lockstep');
  const json = argv.includes('--json');
  let context: Context | undefined;
  const register: Register = (work) => async (...args) => {
    // commander appends the options and the command to the arguments.
    const options = args.at(-2);
    context = new Context(streams, program.opts<GlobalOptions>());
    await work(context, options, ...args.slice(0, -2));
  };
  program
    .description('Controls a lockstepd: volumes, snapshots, replication.')
    .option('--socket <path>', `control socket of the daemon (default: $LOCKSTEP_SOCKET, else ${DEFAULT_SOCKET})`)
    .option('--json', 'print replies and errors as JSON')
    .version(VERSION, '-V, --version')
    .configureOutput({
      writeOut: (text) => streams.out(text), writeErr: (text) => streams.err(text), getOutHasColors: () => false, getErrHasColors: () => false,
      outputError: (text, write) => write(usageText(text, json)),
    })
    .exitOverride();
  registerInspection(program, register);
  registerOperations(program, register);
  registerAssigns(program, register);
  registerAttachment(program, register);
  registerReconciliation(program, register);
  registerAdoption(program, register);
  // Started by `snapshot --freeze`; nobody's to type. The mount point is there for ps.
  program.command('freeze-watchdog <mountpoint>', { hidden: true })
    .requiredOption('--timeout <seconds>', 'thaw after this time')
    .action(register(runWatchdog));
  for (const parent of [program, ...program.commands.filter((one) => one.commands.length > 0)]) helpFor(parent);
  try {
    await program.parseAsync(argv, { from: 'user' });
    return context?.exitCode ?? EXIT_OK;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_OPERATOR;
    return (context ?? new Context(streams, { json })).fail(error);
  }
}

/** In place of commander's, which shows the whole help for a command that there is not, without saying so. */
function helpFor(parent: Command): void {
  parent.helpCommand(false);
  parent.command('help [command...]').description('display help for command').action((words: string[]) => {
    let shown = parent;
    for (const word of words) {
      const found = shown.commands.find((one) => one.name() === word);
      if (found === undefined) {
        const meant = nearest(word, shown.commands.map((one) => one.name()));
        parent.error(`error: unknown command '${word}'${meant === undefined ? '' : ` (Did you mean ${meant}?)`}`, { exitCode: EXIT_OPERATOR });
      }
      shown = found;
    }
    shown.outputHelp();
  });
}

/** commander's words for a usage error in the shape of ours. */
function usageText(text: string, json: boolean): string {
  const message = text.replace(/^error: /, '').trim().replaceAll('\n', ' ');
  if (json) return `${JSON.stringify({ error: { code: 'usage', message, kind: 'operator' } })}\n`;
  return `lockstep: ${message} (lockstep --help lists the commands)\n`;
}
