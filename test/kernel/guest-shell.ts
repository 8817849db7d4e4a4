/**
 * The host's end of test/kernel/guest: sends shell commands to the guest and
 * gets their output and exit status back. Knows nothing of NBD or Lockstep.
 */
import { createServer, type Server, type Socket } from 'node:net';
import type { Finished } from '../harness/process.js';

interface Waiting {
  readonly resolve: (socket: Socket) => void;
}

/** What the guest sends back for one command; see the loop at the end of test/kernel/guest. */
function parseReply(bytes: Buffer): Finished | undefined {
  const end = bytes.indexOf(10);
  if (end < 0) return undefined;
  const [code, out, err] = bytes.subarray(0, end).toString().split(' ').map(Number);
  if (bytes.length < end + 1 + out + err) return undefined;
  const body = bytes.subarray(end + 1);
  return { code, stdout: body.subarray(0, out).toString(), stderr: body.subarray(out, out + err).toString() };
}

export class GuestShell {
  /** Connections of the guest that have no command yet. */
  private readonly idle: Socket[] = [];
  private readonly waiting: Waiting[] = [];
  private readonly all = new Set<Socket>();

  private constructor(private readonly server: Server) {
    server.on('connection', (socket) => {
      this.all.add(socket);
      socket.once('close', () => {
        this.all.delete(socket);
        const at = this.idle.indexOf(socket);
        if (at >= 0) this.idle.splice(at, 1);
      });
      socket.on('error', () => undefined); // 'close' follows
      const next = this.waiting.shift();
      if (next === undefined) this.idle.push(socket);
      else next.resolve(socket);
    });
  }

  /** Call it inside of test/kernel/guest; commands wait until the guest has booted. */
  static async open(): Promise<GuestShell> {
    const host = process.env.HOST_A;
    const port = Number(process.env.GUEST_AGENT_PORT);
    if (host === undefined || !(port > 0)) throw new Error('this program has to be run by test/kernel/guest');
    const server = createServer();
    await new Promise<void>((done, fail) => {
      server.once('error', fail);
      server.listen(port, host, done);
    });
    return new GuestShell(server);
  }

  private connection(): Promise<Socket> {
    const socket = this.idle.shift();
    if (socket !== undefined) return Promise.resolve(socket);
    return new Promise((resolve) => this.waiting.push({ resolve }));
  }

  /** Runs a command with bash in the guest; its exit status is part of the result. Throws after `timeoutMs` or when the guest is gone. */
  async run(command: string, timeoutMs = 180_000): Promise<Finished> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, fail) => {
      timer = setTimeout(() => fail(new Error(`in the guest, not done after ${timeoutMs} ms: ${command}`)), timeoutMs);
    });
    try {
      return await Promise.race([this.exchange(command), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  private async exchange(command: string): Promise<Finished> {
    const socket = await this.connection();
    const bytes = Buffer.from(command);
    socket.write(`${bytes.length}\n`);
    socket.write(bytes);
    const parts: Buffer[] = [];
    return new Promise((done, fail) => {
      socket.on('data', (part: Buffer) => {
        parts.push(part);
        const reply = parseReply(Buffer.concat(parts));
        if (reply !== undefined) done(reply);
      });
      socket.once('close', () => fail(new Error(`the guest is gone; it was to run: ${command}`)));
    });
  }

  /** As `run`, but any other exit status than 0 throws with what the command printed. Returns stdout. */
  async succeed(command: string, timeoutMs?: number): Promise<string> {
    const result = await this.run(command, timeoutMs);
    if (result.code !== 0) throw new Error(`in the guest, exit status ${result.code}: ${command}\n${result.stdout}${result.stderr}`);
    return result.stdout;
  }

  /** Lets the guest switch itself off. */
  async close(): Promise<void> {
    for (const socket of this.all) socket.destroy();
    await new Promise((done) => this.server.close(done));
  }
}
