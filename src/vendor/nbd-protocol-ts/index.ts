/** The public surface of nbd-protocol-ts: everything below is exported from here. */
export * from './src/constants.js';
export * from './src/wire.js';
export * from './src/request.js';
export * from './src/reply.js';
export * from './src/validate.js';
export * from './src/exports.js';
export * from './src/handshake-table.js';
export * from './src/option-data.js';
export * from './src/handshake-server.js';
export * from './src/handshake-client.js';
export * from './src/errors.js';
export * from './src/stream.js';
export * from './src/reply-reader.js';
export * from './src/client.js';
