/**
 * Worker of threads.test.ts: uses the addon from its own thread.
 * workerData: `mode`: 'work' writes, syncs and checks a file, then ends by
 * itself; 'block' waits in its reactor for ever; 'busy' also keeps jobs in flight.
 */
import { readlinkSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { crc32c } from '../../src/base/crc32c.js';
import { Arena } from '../../src/io/arena.js';
import { JobOp, JobTable, O, Queue } from '../../src/io/io.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';

const { mode, path } = workerData as { mode: 'work' | 'block' | 'busy'; path: string };
const io = RealIo.create({ arenaBytes: 4 * 1024 * 1024 });
const arena = new Arena(io);
const reactor = new Reactor(io, arena);
const fd = io.open(path, O.RDWR | O.CREAT, 0o600);
const table = new JobTable();

if (mode === 'work') {
  let rounds = 0;
  const buffer = arena.alloc(65536);
  const mine = io.randomBytes(65536);
  arena.u8.set(mine, buffer);
  const want = crc32c(mine);
  const next = (): void => {
    if (rounds++ === 50) {
      reactor.stop();
      return;
    }
    arena.u8.set(mine, buffer);
    table.clear().add(JobOp.pwrite, fd, buffer, 65536, 0).add(JobOp.fdatasync, fd, 0, 0, 0).add(JobOp.pread, fd, buffer, 65536, 0);
    reactor.submit(Queue.destage, table, (result) => {
      if (result !== 0 || io.crc32c(buffer, 65536, 0) !== want) throw new Error(`round ${rounds}: ${result}`);
      next();
    });
  };
  next();
  reactor.run();
  parentPort?.postMessage('done');
  // No dispose: ending with helper threads alive is what the clean-up hook is for.
} else {
  if (mode === 'busy') {
    const again = (): void => reactor.submit(Queue.destage, table.clear().add(JobOp.zero, fd, 0, 1 << 20, 0), again);
    again();
  }
  reactor.after(0, () => parentPort?.postMessage(`ready ${io.wakeFd} ${readlinkSync('/proc/thread-self')}`));
  reactor.onWake(() => reactor.stop());
  reactor.run();
}
