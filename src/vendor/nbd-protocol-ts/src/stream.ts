/** The byte stream that the client speaks over, and how node's sockets become one. */

export interface ByteStream {
  /** Sends in order. The bytes must not change until they have been sent; the client keeps to that. */
  write(bytes: Uint8Array): void;
  /** Registers the one receiver; nothing may be delivered before. The bytes are borrowed during the call. */
  onData(listener: (bytes: Uint8Array) => void): void;
  /** Registers the one listener for the end: the other side closed, or an error. May be called more than once. */
  onEnd(listener: (error?: Error) => void): void;
  /** Sends what was written, then closes. */
  close(): void;
  /** Closes at once. */
  destroy(): void;
}

/** What is needed of a net.Socket or tls.TLSSocket. */
export interface SocketLike {
  write(bytes: Uint8Array): unknown;
  on(event: 'data', listener: (bytes: Uint8Array) => void): unknown;
  on(event: 'error', listener: (error: Error) => void): unknown;
  on(event: 'close', listener: () => void): unknown;
  end(): unknown;
  destroy(): unknown;
}

/** Adapts a connected (or connecting) node socket, and takes it over. */
export function streamOf(socket: SocketLike): ByteStream {
  return {
    write: (bytes) => void socket.write(bytes),
    onData: (listener) => void socket.on('data', listener),
    onEnd: (listener) => {
      let failure: Error | undefined;
      socket.on('error', (error) => (failure = error));
      // An error is always followed by 'close'.
      socket.on('close', () => listener(failure));
    },
    close: () => void socket.end(),
    destroy: () => void socket.destroy(),
  };
}
