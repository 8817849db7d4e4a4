/**
 * The control socket of a daemon on this side, for the CLI in the guest: a
 * Unix socket there, TCP between, the daemon's socket here. Can hold back
 * requests, so that a test may look at what is true while one is under way.
 *
 *   control-relay.js SOCKET HOST PORT     the guest's end
 */
import { rmSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { GuestShell } from './guest-shell.js';
import { guestAddress } from './server.js';

const RELAY_PORT = 10810;
const GUEST_SOCKET = '/run/lockstep.sock';

function join(one: Socket, other: Socket): void {
  one.pipe(other);
  other.pipe(one);
  for (const [socket, peer] of [[one, other], [other, one]]) {
    socket.on('error', () => undefined); // 'close' follows
    socket.on('close', () => peer.destroy());
  }
}

export class ControlRelay {
  private held: (() => void)[] = [];
  private pattern: RegExp | undefined;
  private arrived: (() => void) | undefined;

  private constructor(private readonly server: Server, private readonly daemonSocket: string) {}

  /** `daemonSocket` may begin to exist later. Starts the guest's end too. */
  static async open(guest: GuestShell, daemonSocket: string): Promise<ControlRelay> {
    const server = createServer();
    const relay = new ControlRelay(server, daemonSocket);
    server.on('connection', (socket) => relay.accept(socket));
    await new Promise<void>((done, fail) => {
      server.once('error', fail);
      server.listen(RELAY_PORT, guestAddress(), done);
    });
    await guest.succeed(`setsid ${process.execPath} ${fileURLToPath(import.meta.url)} ${GUEST_SOCKET} ${guestAddress()} ${RELAY_PORT} </dev/null >/dev/null 2>&1 & until [ -S ${GUEST_SOCKET} ]; do sleep 0.1; done`);
    return relay;
  }

  /** For the environment of the CLI in the guest. */
  readonly environment = `LOCKSTEP_SOCKET=${GUEST_SOCKET}`;

  /** From now on requests that begin like this wait for `release`. Resolves when the first one has come. */
  hold(pattern: RegExp): Promise<void> {
    this.pattern = pattern;
    return new Promise((resolve) => (this.arrived = resolve));
  }

  release(): void {
    this.pattern = undefined;
    for (const go of this.held) go();
    this.held = [];
  }

  close(): void {
    this.server.close();
  }

  private accept(socket: Socket): void {
    // The client speaks first, and its first line comes in one piece.
    socket.once('data', (first: Buffer) => {
      socket.pause();
      const go = (): void => {
        const daemon = createConnection(this.daemonSocket);
        daemon.write(first);
        join(socket, daemon);
      };
      if (this.pattern?.test(first.toString()) !== true) return go();
      this.held.push(go);
      this.arrived?.();
    });
    socket.on('error', () => undefined);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [path, host, port] = process.argv.slice(2);
  rmSync(path, { force: true });
  createServer((socket) => join(socket, createConnection(Number(port), host))).listen(path);
}
