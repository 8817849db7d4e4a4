import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { wakeThread } from '../../src/io/real.js';
import { makeTempDirectory } from '../harness/temp.js';

const directory = makeTempDirectory('threads');

function start(mode: string, name: string): Worker {
  return new Worker(new URL('./io-worker.js', import.meta.url), { workerData: { mode, path: `${directory}/${name}` } });
}

function threadCount(): number {
  return readdirSync('/proc/self/task').length;
}

/** Waits for a Worker's first message and until its thread sleeps, as it does in epoll; returns the words of the message. */
async function blocked(worker: Worker): Promise<string[]> {
  const [message] = (await once(worker, 'message')) as [string];
  const words = message.split(' ');
  for (let asleep = 0; asleep < 100; ) {
    const state = readFileSync(`/proc/${words[2]}/stat`, 'utf8').replace(/^.*\) /, '')[0];
    asleep = state === 'S' ? asleep + 1 : 0;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return words;
}

function descriptorCount(): number {
  return readdirSync('/proc/self/fd').length;
}

t.test('two Workers use the addon at the same time', async (t) => {
  const workers = [start('work', 'a'), start('work', 'b')];
  const exits = workers.map((worker) => once(worker, 'exit'));
  const messages = await Promise.all(workers.map((worker) => once(worker, 'message')));
  t.same(messages, [['done'], ['done']]);
  t.same(await Promise.all(exits), [[0], [0]]);
});

t.test('an ended Worker leaves no helper thread and no eventfd behind', async (t) => {
  // The first one makes what Node itself keeps.
  await once(start('work', 'c'), 'exit');
  const threads = threadCount();
  const descriptors = descriptorCount();
  for (let i = 0; i < 3; i++) await once(start('work', `d${i}`), 'exit');
  t.equal(threadCount(), threads);
  // The worker does not close its file; epoll and two eventfds would make it four more each.
  t.ok(descriptorCount() - descriptors <= 3, `${descriptorCount() - descriptors} descriptors more`);
});

t.test('a Worker that waits in its reactor ends when it is woken', async (t) => {
  const worker = start('block', 'e');
  const [, wakeFd] = await blocked(worker);
  const exit = once(worker, 'exit');
  wakeThread(Number(wakeFd));
  t.same(await exit, [0]);
});

t.test('a Worker that waits, or has jobs in flight, can be terminated', async (t) => {
  const waiting = start('block', 'f');
  await blocked(waiting);
  t.equal(await waiting.terminate(), 1);
  const busy = start('busy', 'f');
  await once(busy, 'message');
  t.equal(await busy.terminate(), 1);
});

t.test('a process with jobs in flight ends, by itself and by process.exit', async (t) => {
  for (const mode of ['natural', 'exit']) {
    const env = { ...process.env };
    delete env.NODE_OPTIONS; // tap's loaders
    const script = fileURLToPath(new URL('./io-process.js', import.meta.url));
    const child = spawn(process.execPath, [script, mode, `${directory}/g`], { stdio: ['ignore', 'inherit', 'inherit'], env });
    t.same(await once(child, 'exit'), [7, null], mode);
  }
});
