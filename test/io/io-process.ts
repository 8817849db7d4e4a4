/**
 * Process of threads.test.ts. `node io-process.js MODE PATH`: 'natural' runs a
 * job on the main thread and falls off the end; 'exit' calls process.exit()
 * while jobs are in flight here and a Worker blocks in its reactor.
 */
import { Worker } from 'node:worker_threads';
import { JobOp, JobTable, O, Queue } from '../../src/io/io.js';
import { RealIo } from '../../src/io/real.js';

const [, , mode, path] = process.argv;
const io = RealIo.create({ arenaBytes: 1024 * 1024 });
const fd = io.open(`${path}.main`, O.RDWR | O.CREAT, 0o600);
const table = new JobTable().add(JobOp.zero, fd, 0, 1 << 20, 0);
for (let i = 0; i < 20; i++) io.submit(Queue.destage, table.rows, table.count, i);

if (mode === 'exit') {
  const worker = new Worker(new URL('./io-worker.js', import.meta.url), { workerData: { mode: 'busy', path } });
  worker.once('message', () => process.exit(7));
} else {
  process.exitCode = 7;
}
