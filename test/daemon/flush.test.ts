/** `flush` of a group whose content is exchanged while it waits. */
import t from 'tap';
import { Caller } from '../../src/base/caller.js';
import { flush } from '../../src/daemon/flush.js';

/** What `flush` reads of a content on which nothing moves any more. */
const still = () => ({
  appliedLsn: 100, destagedLsn: 0, journal: { appendedLsn: 100 }, store: { pending: { blocks: 1 } }, destager: { request: () => undefined },
  checkpointer: { committedAt: { lsn: 0 }, lowWater: { lsn: 0 } }, requestCheckpoint: () => undefined,
});

t.test('a flush that waits for a content that was taken back ends, and says so', async (t) => {
  const timers: (() => void)[] = [];
  const reactor = { after: (_us: number, hook: () => void) => timers.push(hook), cancel: () => undefined, again: () => undefined };
  const group = {
    name: 'g', role: 'secondary', closed: false, content: still(),
    operations: { whenDurable: (_lsn: number, done: (error: undefined) => void) => { done(undefined); return () => undefined; } },
  };
  const ends: string[] = [];
  flush(reactor as never, group as never, 'checkpoint', { done: () => ends.push('done'), failed: (error) => ends.push(String(error)), caller: new Caller() });
  timers.shift()!();
  t.same(ends, [], 'it waits');
  // Its secondary was rewound: the group has another content, and the old one is closed.
  group.content = still();
  timers.shift()!();
  t.match(ends, ['OperatorError: group g was taken back to an earlier position meanwhile; try again']);
  t.equal(timers.length, 0, 'nothing waits any more');
});

t.test('a checkpoint that began before all was destaged does not end a flush up to a checkpoint', async (t) => {
  const timers: (() => void)[] = [];
  const reactor = { after: (_us: number, hook: () => void) => timers.push(hook), cancel: () => undefined, again: () => undefined };
  let wanted = 0;
  const content = { ...still(), destagedLsn: 100, store: { pending: { blocks: 0 } }, checkpointer: { committedAt: { lsn: 100 }, lowWater: { lsn: 60 } }, requestCheckpoint: () => wanted++ };
  const group = {
    name: 'g', role: 'primary', closed: false, content,
    operations: { whenDurable: (_lsn: number, done: (error: undefined) => void) => { done(undefined); return () => undefined; } },
  };
  const ends: string[] = [];
  flush(reactor as never, group as never, 'checkpoint', { done: () => ends.push('done'), failed: (error) => ends.push(String(error)), caller: new Caller() });
  timers.shift()!();
  t.same(ends, [], 'the journal is needed from LSN 60 on');
  t.ok(wanted > 0, 'and another one is begun');
  content.checkpointer.lowWater.lsn = 100;
  timers.shift()!();
  t.same(ends, ['done']);
});
