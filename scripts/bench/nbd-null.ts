/**
 * The NBD server over a service that answers every request at once and moves no
 * data: what the NBD layer alone costs. For profiling and for comparison with
 * the load generator's own null responder.
 *
 *   node dist/scripts/bench/nbd-null.js [--socket PATH] [--size BYTES] [--spin US] [--late] [--until-idle]
 *
 * --late answers all but reads at the end of the tick, as a group does.
 * --until-idle ends when the last client has left, and says what a request cost.
 */
import { parseArgs } from 'node:util';
import { SinkLog } from '../../src/base/log.js';
import { deviceId, GIB, MIB } from '../../src/base/units.js';
import { RequestKind, RequestTable } from '../../src/group/requests/requests.js';
import type { BlockService, DeviceView } from '../../src/group/requests/service.js';
import { Arena } from '../../src/io/arena.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import { NbdServer } from '../../src/nbd/server.js';

const { values: options } = parseArgs({
  options: {
    socket: { type: 'string', default: '/tmp/nbd-null.sock' },
    size: { type: 'string', default: String(8 * GIB) },
    spin: { type: 'string', default: '0' },
    late: { type: 'boolean', default: false },
    'until-idle': { type: 'boolean', default: false },
  },
});

const view: DeviceView = {
  id: deviceId(1), exportName: 'null', sizeBytes: Number(options.size), writable: true, gone: false, deviceIdentity: 'null',
  continuityIdentity: 'null', description: 'answers at once',
};

class NullService implements BlockService {
  readonly requests = new RequestTable(8192);
  private readonly late = new Int32Array(8192);
  private lateCount = 0;
  served = 0;

  constructor(reactor: Reactor, private readonly answersLate: boolean) {
    reactor.onTickEnd(() => {
      for (let i = 0; i < this.lateCount; i++) this.requests.complete(this.late[i], 0);
      this.lateCount = 0;
    });
  }
  list(): DeviceView[] {
    return [view];
  }
  find(): DeviceView {
    return view;
  }
  addClient(): void {}
  removeClient(): void {}
  submit(_view: DeviceView, slot: number): void {
    this.served++;
    if (this.answersLate && this.requests.kind[slot] !== RequestKind.read) this.late[this.lateCount++] = slot;
    else this.requests.complete(slot, 0);
  }
  extents(_view: DeviceView, _offset: number, length: number, out: Float64Array, done: (count: number) => void): void {
    out[0] = length;
    out[1] = 0;
    done(1);
  }
}

const io = RealIo.create({ arenaBytes: 256 * MIB });
const reactor = new Reactor(io, new Arena(io), { spinUs: Number(options.spin) });
const service = new NullService(reactor, options.late);
const log = new SinkLog((entry) => console.error(entry.level, entry.message, entry.fields), 'info');
const server = new NbdServer({ reactor, service, log });
server.listen({ kind: 'unix', path: options.socket });
console.log(`listening on ${options.socket}`);

let ticks = 0;
let started: NodeJS.CpuUsage | undefined;
reactor.onTickEnd(() => {
  ticks++;
  if (started === undefined && service.served > 0) started = process.cpuUsage();
  if (options['until-idle'] && service.served > 0 && server.connectionCount === 0) reactor.stop();
});
reactor.run();
const { user, system } = process.cpuUsage(started);
const each = (us: number): string => (us / service.served).toFixed(3);
console.log(`${service.served} requests in ${ticks} ticks; CPU per request ${each(user + system)} µs (${each(user)} user, ${each(system)} system)`);
