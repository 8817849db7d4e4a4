/**
 * Where the NBD server is that a command is to talk to. Owns the choice; must
 * not know what is done there.
 */

import type { Address } from '../../base/address.js';
import { parseAddress } from '../../base/address.js';
import { OperatorError } from '../../base/errors.js';
import type { Context } from '../context.js';

/** The address in `words` (of --server), else what the daemon says. Throws OperatorError. */
export async function serverAddress(context: Context, words: string | undefined): Promise<Address> {
  if (words !== undefined) return addressArgument(words, '--server');
  const { listen, node } = await context.client.status();
  // A Unix socket is faster than loopback TCP, and the daemon that answered is on this machine.
  const chosen = listen.nbd.find((one) => one.startsWith('unix:')) ?? listen.nbd[0];
  if (chosen === undefined) throw new OperatorError('server/unreachable', `node ${node} serves no NBD: its configuration has an empty nbd.listen`);
  return addressArgument(chosen, 'the NBD address of the daemon');
}

function addressArgument(words: string, what: string): Address {
  const address = parseAddress(words);
  if (typeof address === 'string') throw new OperatorError('usage', `${what} ${JSON.stringify(words)} ${address}`);
  return address;
}
