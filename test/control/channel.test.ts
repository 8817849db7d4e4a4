/** ControlPort over a MessagePort: replies find their requests, in any order, until it closes. */
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import t from 'tap';
import { CorruptionError, IoError, OperatorError, PeerError } from '../../src/base/errors.js';
import type { ReplyEnvelope, RequestEnvelope } from '../../src/control/channel.js';
import { ControlChannel, MAX_CALLS, failureOf } from '../../src/control/channel.js';
import { ControlError } from '../../src/control/port.js';

function pair(): { channel: ControlChannel; receive: () => RequestEnvelope | undefined; post: (reply: ReplyEnvelope) => void; woken: () => number } {
  const { port1, port2 } = new MessageChannel();
  let woken = 0;
  const channel = new ControlChannel(port1, () => void woken++);
  return {
    channel, woken: () => woken,
    // As the worker does, which has no event loop of its own.
    receive: () => (receiveMessageOnPort(port2) as { message: RequestEnvelope } | undefined)?.message,
    post: (reply) => port2.postMessage(reply),
  };
}

t.test('replies find their requests in any order, and each post wakes the worker', async (t) => {
  const { channel, receive, post, woken } = pair();
  const first = channel.call({ op: 'flush', group: 'a', upTo: 'durable' });
  const second = channel.call({ op: 'flush', group: 'b', upTo: 'durable' });
  t.equal(woken(), 2);
  const [one, two] = [receive(), receive()];
  t.match(one, { request: { group: 'a' } });
  post({ id: two?.id ?? 0, ok: true, reply: { lsn: 2, upTo: 'durable' } });
  post({ id: one?.id ?? 0, ok: true, reply: { lsn: 1, upTo: 'durable' } });
  post({ id: 999, ok: true, reply: { lsn: 9, upTo: 'durable' } });
  t.strictSame([await first, await second], [{ lsn: 1, upTo: 'durable' }, { lsn: 2, upTo: 'durable' }]);
  channel.close();
});

t.test('a failure becomes a ControlError with its code and kind', async (t) => {
  const { channel, receive, post } = pair();
  const call = channel.call({ op: 'status' });
  post({ id: receive()?.id ?? 0, ok: false, failure: { kind: 'corruption', code: 'corruption', message: 'bad' } });
  await t.rejects(call, { name: 'ControlError', kind: 'corruption', code: 'corruption', message: 'bad' });
  channel.close();
});

t.test('closing rejects what is under way and everything after', async (t) => {
  const { channel } = pair();
  const call = channel.call({ op: 'status' });
  channel.close();
  channel.close();
  await t.rejects(call, { code: 'daemon/closing' });
  await t.rejects(channel.call({ op: 'status' }), { code: 'daemon/closing' });
});

t.test('a caller that goes is told at once, leaves nothing behind, and the worker hears of it', async (t) => {
  const { channel, receive, post, woken } = pair();
  const caller = new AbortController();
  const call = channel.call({ op: 'drain', group: 'a', waitSeconds: 600 }, caller.signal);
  const { id } = receive()!;
  caller.abort();
  await t.rejects(call, { name: 'ControlError', code: 'control/gone' });
  t.same(receive(), { id, gone: true });
  t.equal(woken(), 2);
  // The answer was on its way already.
  post({ id, ok: true, reply: { lsn: 1, drained: true, behind: [], waitedFor: [], passedOver: [], notice: null } });

  const answered = new AbortController();
  const second = channel.call({ op: 'flush', group: 'a', upTo: 'durable' }, answered.signal);
  post({ id: receive()!.id, ok: true, reply: { lsn: 2, upTo: 'durable' } });
  t.match(await second, { lsn: 2 });
  answered.abort();
  t.equal(receive(), undefined, 'of one that was answered nothing is told');

  await t.rejects(channel.call({ op: 'status' }, caller.signal), { code: 'control/gone' });
  t.equal(receive(), undefined, 'one whose caller is gone is not even asked');
  const callers = Array.from({ length: MAX_CALLS }, () => new AbortController());
  const calls = callers.map(({ signal }) => channel.call({ op: 'status' }, signal).catch((error: unknown) => (error as ControlError).code));
  for (const one of callers) one.abort();
  t.strictSame(new Set(await Promise.all(calls)), new Set(['control/gone']));
  const last = channel.call({ op: 'status' });
  last.catch(() => undefined);
  for (let envelope = receive(); envelope !== undefined; envelope = receive()) if ('request' in envelope) post({ id: envelope.id, ok: false, failure: { kind: 'operator', code: 'late', message: '' } });
  await t.rejects(last, { code: 'late' }, 'their places are free');
  channel.close();
});

t.test('the number of requests under way is bounded', async (t) => {
  const { channel } = pair();
  const calls = Array.from({ length: MAX_CALLS }, () => channel.call({ op: 'status' }).catch(() => 'cut'));
  await t.rejects(channel.call({ op: 'status' }), { code: 'daemon/busy' });
  channel.close();
  t.ok((await Promise.all(calls)).every((end) => end === 'cut'));
});

t.test('the four kinds of expected errors become data; anything else is a bug', async (t) => {
  t.strictSame(failureOf(new OperatorError('a/b', 'm')), { kind: 'operator', code: 'a/b', message: 'm' });
  t.match(failureOf(new CorruptionError('f', 1, 'm')), { kind: 'corruption', code: 'corruption' });
  t.match(failureOf(new PeerError('p', 'm')), { kind: 'peer', code: 'p' });
  t.match(failureOf(new IoError(5, 'read', 'f')), { kind: 'io', code: 'io/EIO' });
  t.match(failureOf(new ControlError({ kind: 'bug', code: 'bug', message: 'm' })), { kind: 'bug' });
  t.equal(failureOf(new TypeError('x')), undefined);
});
