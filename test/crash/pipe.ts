/**
 * A shell pipe that carries the journal between two real daemons, as README has
 * it: `journal export | journal import | journal ack`, begun anew whenever it ends.
 *
 * Owns: the shell, finding and killing each of its processes by pid.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CLI, type TestNode } from '../harness/node.js';
import { adoptProcess, startProcess, waitFor, type RunningProcess } from '../harness/process.js';

export const STAGES = ['export', 'import', 'ack'] as const;
export type Stage = (typeof STAGES)[number];

export class CarryPipe {
  private shell: RunningProcess | undefined;

  constructor(private readonly directory: string, private readonly from: TestNode, private readonly to: TestNode, private readonly group: string, private readonly cursor: string) {}

  get log(): string {
    const file = this.file('log');
    return existsSync(file) ? readFileSync(file, 'utf8') : '';
  }

  private file(name: string): string {
    return join(this.directory, `pipe-${name}`);
  }

  /** The pid of a stage of the pipe that runs now, or of the last one; undefined before the first. */
  pid(stage: Stage): number | undefined {
    const file = this.file(stage);
    const text = existsSync(file) ? readFileSync(file, 'utf8').trim() : '';
    return text === '' ? undefined : Number(text);
  }

  start(): void {
    const stage = (name: Stage, node: TestNode, ...args: string[]): string =>
      `( echo $BASHPID >'${this.file(name)}'; exec '${process.execPath}' '${CLI}' --socket '${node.controlSocket}' journal ${name} ${this.group} ${args.join(' ')} )`;
    const pipe = [
      stage('export', this.from, '--cursor', this.cursor, '--follow'), stage('import', this.to), stage('ack', this.from, this.cursor, '-'),
    ].join(' | ');
    const script = `while [ ! -e '${this.file('stop')}' ]; do ${pipe}; echo "codes \${PIPESTATUS[@]}"; sleep 0.1; done`;
    this.shell = startProcess('bash', ['-c', script], { log: this.file('log') });
  }

  /** SIGKILL of one stage; waits until the shell has begun the next pipe. */
  async kill(stage: Stage): Promise<void> {
    const pid = this.pid(stage);
    if (pid === undefined) return;
    await adoptProcess(pid).stop('SIGKILL');
    await waitFor(`the pipe begins anew without ${stage} ${pid}`, () => STAGES.every((one) => this.pid(one) !== undefined) && this.pid(stage) !== pid);
  }

  /** Ends the shell and the pipe that runs. */
  async stop(): Promise<void> {
    if (this.shell === undefined) return;
    writeFileSync(this.file('stop'), '');
    while (!this.shell.hasEnded()) {
      for (const stage of STAGES) {
        const pid = this.pid(stage);
        if (pid !== undefined) await adoptProcess(pid).stop('SIGKILL');
      }
      await Promise.race([this.shell.ended, new Promise((done) => setTimeout(done, 50))]);
    }
  }
}
