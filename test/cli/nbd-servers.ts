/**
 * NBD servers in a thread of their own (the command line blocks while it
 * shakes hands): one per socket file `good`, `single`, `silent`, `garbage`,
 * `closing`, `eager`. The good ones answer every request with success.
 */
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import {
  NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_HAS_FLAGS, NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_FLUSH, NBD_REP_ERR_POLICY, ServerHandshake,
} from '../../src/vendor/nbd-protocol-ts/index.js';
import type { ExportDirectory, ExportInfo } from '../../src/vendor/nbd-protocol-ts/index.js';

const MULTI = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN;

function exported(name: string, flags: number, over: Partial<ExportInfo> = {}): ExportInfo {
  return {
    name, description: 'device 5f:1, continuity ab:4096', sizeBytes: 2 ** 20, transmissionFlags: flags, minimumBlock: 1, preferredBlock: 4096,
    maximumBlock: 2 ** 25, metaContexts: [], ...over,
  };
}

function directory(flags: number): ExportDirectory {
  return {
    list: () => [],
    find: (name) => {
      switch (name) {
        case 'g/vol': return exported(name, flags);
        case 'g/vol@s': return exported(name, flags | NBD_FLAG_READ_ONLY);
        case 'g/changed': return exported(name, flags, { description: 'device 5f:1, continuity ab:8192' });
        case 'g/coarse': return exported(name, flags, { minimumBlock: 4096 });
        case 'g/odd': return exported(name, flags, { sizeBytes: 2 ** 20 + 512 });
        case 'g/foreign': return exported(name, flags, { description: 'a file' });
        case 'g/stopped': return { refused: NBD_REP_ERR_POLICY, message: 'the group is stopped' };
        default: return undefined;
      }
    },
  };
}

function serve(socket: Socket, flags: number, eager: boolean): void {
  const handshake = new ServerHandshake(directory(flags));
  let shaken = false;
  socket.write(handshake.takeOutput());
  socket.on('error', () => {});
  socket.on('data', (bytes) => {
    if (!shaken) {
      handshake.push(bytes);
      const output = handshake.takeOutput();
      const { kind } = handshake.outcome;
      shaken = kind === 'transmission';
      socket.write(eager && shaken ? Buffer.concat([output, Buffer.from('x')]) : output);
      if (kind === 'closed') socket.end();
      return;
    }
    const reply = Buffer.alloc(16);
    reply.writeUInt32BE(0x67446698, 0);
    bytes.copy(reply, 8, 8, 16); // the cookie
    socket.write(reply);
  });
}

const BEHAVIOURS: Record<string, (socket: Socket) => void> = {
  good: (socket) => serve(socket, MULTI, false),
  single: (socket) => serve(socket, NBD_FLAG_HAS_FLAGS, false),
  eager: (socket) => serve(socket, MULTI, true),
  silent: (socket) => void socket.on('error', () => {}),
  garbage: (socket) => void socket.on('error', () => {}).end('HTTP/1.1 400 Bad Request\r\n\r\n0123456789'),
  closing: (socket) => void socket.on('error', () => {}).end(),
};

if (!isMainThread) {
  const names = Object.keys(BEHAVIOURS);
  let listening = 0;
  for (const name of names) {
    createServer(BEHAVIOURS[name]).listen(join(workerData as string, name), () => {
      if (++listening === names.length) parentPort?.postMessage('listening');
    });
  }
}
