/** `journal export`, `import` and `ack -`: bytes through the program's own streams. */
import t from 'tap';
import type { BinaryStreams } from '../../src/cli/context.js';
import { ControlError } from '../../src/control/port.js';
import { importState, POSITION } from '../control/fake-port.js';
import { openCli } from './harness.js';

/** Streams that give `parts` and collect what is written. */
function streams(parts: readonly (Uint8Array | string)[] = [], terminal = false): { binary: BinaryStreams; written: () => Buffer } {
  const out: Uint8Array[] = [];
  return {
    binary: {
      write: async (bytes) => void out.push(Uint8Array.from(bytes)),
      async *read() {
        for (const part of parts) yield await Promise.resolve(typeof part === 'string' ? new TextEncoder().encode(part) : part);
      },
      terminal,
    },
    written: () => Buffer.concat(out),
  };
}

t.test('export writes bytes and nothing else, and not to a terminal', async (t) => {
  const { binary, written } = streams();
  const cli = await openCli(t, { binary });
  const result = await cli.run('journal', 'export', 'g', '--cursor', 'tape');
  t.strictSame(result, { code: 0, out: '', err: '' });
  t.strictSame([...written()], [1, 2, 3, 4, 5]);
  t.match(cli.port.calls[0], { op: 'exportOpen', group: 'g', cursor: 'tape', from: null });
  t.match(await cli.run('journal', 'export', 'g'), { code: 2, err: /required option '--cursor <name>'/ });
  t.match(await cli.run('journal', 'export', 'g', '--cursor', 'tape', '--from', 'here'), { code: 2, err: /must be an LSN, or a position EPOCHID:LSN:CHAIN/ });
  const terminal = await openCli(t, { binary, terminal: true });
  t.match(await terminal.run('journal', 'export', 'g', '--cursor', 'tape'), { code: 2, err: /not text for a terminal/ });
  t.equal(terminal.port.calls.length, 0);
});

t.test('import prints each position once, and ends with 1 when the stream was cut off', async (t) => {
  const cli = await openCli(t, { binary: streams([new Uint8Array(100)]).binary });
  t.strictSame(await cli.run('journal', 'import', 'g'), { code: 0, out: `${POSITION}\n`, err: '' });
  cli.port.answers.importEnd = () => importState({ whole: false, position: POSITION.replace(':900000:', ':910000:') });
  const cut = await cli.run('journal', 'import', 'g');
  t.equal(cut.code, 1);
  t.equal(cut.out, `${POSITION}\n${POSITION.replace(':900000:', ':910000:')}\n`);
  t.match(cut.err, /the stream was cut off at LSN 900000; what came before is in/);
  cli.port.answers.importPush = () => { throw new ControlError({ kind: 'operator', code: 'import/kept', message: 'group g has stopped applying' }); };
  t.match(await cli.run('journal', 'import', 'g'), { code: 2, err: 'lockstep: group g has stopped applying\n' });
  const typed = await openCli(t, { binary: streams([], true).binary });
  t.match(await typed.run('journal', 'import', 'g'), { code: 2, err: /standard input is a terminal/ });
});

t.test('ack reads positions from standard input, skips those that newer ones have overtaken, and ends at a refusal', async (t) => {
  const at = (lsn: number): string => POSITION.replace(':900000:', `:${lsn}:`);
  // The third one comes in two pieces.
  const third = at(3);
  const cli = await openCli(t, { binary: streams([`${at(1)}\n${at(2)}\n${third.slice(0, 40)}`, `${third.slice(40)}\n${at(4)}\n\n`]).binary });
  t.match(await cli.run('journal', 'ack', 'g', 'tape', '-'), { code: 0, err: '' });
  const told = cli.port.calls.map((call) => (call.op === 'cursorAck' ? call.position.lsn : -1));
  t.equal(told[0], 1);
  t.equal(told.at(-1), 4, 'the last one is always told');
  t.ok(told.every((lsn, i) => [1, 2, 3, 4].includes(lsn) && (i === 0 || lsn > told[i - 1])), told.join(' '));
  cli.port.answers.cursorAck = () => { throw new ControlError({ kind: 'operator', code: 'cursor/behind', message: 'cursor tape moves forward only' }); };
  t.match(await cli.run('journal', 'ack', 'g', 'tape', '-'), { code: 2, err: /moves forward only/ });
  const garbage = await openCli(t, { binary: streams(['nonsense\n']).binary });
  t.match(await garbage.run('journal', 'ack', 'g', 'tape', '-'), { code: 2, err: /position must be a position EPOCHID:LSN:CHAIN/ });
});

t.test('a drain that ran out of time says who is behind and ends with 1', async (t) => {
  const cli = await openCli(t);
  cli.port.answers.drain = () => ({ lsn: 7, drained: false, behind: ['cursor tape has been acknowledged up to LSN 3', 'link beta is slow'], waitedFor: ['link beta', 'cursor tape'], passedOver: [], notice: null });
  const result = await cli.run('drain', 'g');
  t.equal(result.code, 1);
  t.match(result.err, 'lockstep: not confirmed: cursor tape has been acknowledged up to LSN 3; link beta is slow\n');
});

t.test('a drain says whom it waited for, whom it did not, and where there is nothing to drain', async (t) => {
  const cli = await openCli(t);
  const drained = { lsn: 7, drained: true, behind: [], waitedFor: [], passedOver: [], notice: null };
  cli.port.answers.drain = () => ({ ...drained, waitedFor: ['cursor tape'], passedOver: ['beta (its link was dropped)'] });
  t.equal((await cli.run('drain', 'g')).out, 'g: everything up to LSN 7 is confirmed by cursor tape; not waited for: beta (its link was dropped)\n');
  cli.port.answers.drain = () => ({ ...drained, notice: 'nothing to drain here' });
  t.strictSame(await cli.run('drain', 'g'), { code: 0, out: 'g: everything up to LSN 7 is durable here; there was no link and no cursor to wait for\n', err: 'lockstep: nothing to drain here\n' });
});
