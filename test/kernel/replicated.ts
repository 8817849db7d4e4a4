/** Two linked nodes on this side; the guest's CLI talks to the primary, and its kernel attaches devices of both. */
import { preparePair, type Pair } from '../harness/node.js';
import { run, type Finished } from '../harness/process.js';
import { ControlRelay } from './control-relay.js';
import { expectEqual } from './expect.js';
import type { GuestShell } from './guest-shell.js';
import { PORT, REQUEST_SECONDS, guestAddress, lockstepInGuest, waitSize } from './server.js';

const SECONDARY_PORT = PORT + 10;
/** Without a connection a device's requests wait this long before they fail. */
export const DEAD_SECONDS = 10;

export class Replicated {
  private constructor(readonly guest: GuestShell, readonly pair: Pair, readonly relay: ControlRelay) {}

  /** Both nodes running, the group `g` with these volumes (name → bytes), nothing attached. */
  static async open(guest: GuestShell, directory: string, volumes: Readonly<Record<string, number>>): Promise<Replicated> {
    const pair = await preparePair(directory, { nbdAddresses: [`tcp:${guestAddress()}:${PORT}`, `tcp:${guestAddress()}:${SECONDARY_PORT}`] });
    await pair.secondary.start();
    await pair.primary.start();
    for (const [name, size] of Object.entries(volumes)) await pair.primary.control.createVolume('g', { name, size });
    return new Replicated(guest, pair, await ControlRelay.open(guest, pair.primary.controlSocket));
  }

  /** The CLI in the guest, with the primary's control socket. */
  lockstep(words: string): Promise<Finished> {
    return this.guest.run(`${this.relay.environment} ${lockstepInGuest(words)}`);
  }

  /** For `attach`. */
  serverOption(node: keyof Pair): string {
    return `--server tcp:${guestAddress()}:${node === 'primary' ? PORT : SECONDARY_PORT}`;
  }

  /** Attaches g/NAME of a node, and returns when the guest's device has `bytes`. Its requests fail so long after its connection died. */
  async attach(node: keyof Pair, name: string, device: string, bytes: number, requestSeconds = REQUEST_SECONDS, deadSeconds = DEAD_SECONDS): Promise<void> {
    await this.guest.succeed(lockstepInGuest(`attach g/${name} ${device} ${this.serverOption(node)} --timeout ${requestSeconds} --dead-timeout ${deadSeconds}`));
    await waitSize(this.guest, device, bytes);
  }

  /** Returns when the kernel has let the device go. */
  async detach(device: string, force?: 'force'): Promise<void> {
    await this.guest.succeed(lockstepInGuest(`detach ${device}${force === undefined ? '' : ' --force'}`));
    await waitSize(this.guest, device, 0);
  }

  /** sha256 of a whole device as a node has it, past the guest. */
  async contentOf(node: keyof Pair, name: string): Promise<string> {
    const result = await run('bash', ['-o', 'pipefail', '-c', 'nbdcopy "$1" - | sha256sum', 'bash', this.pair[node].uri(`g/${name}`)]);
    if (result.code !== 0) throw new Error(`nbdcopy of g/${name} on the ${node}: ${result.stderr}`);
    return result.stdout;
  }

  /** Both nodes hold the same of these devices. The secondary has to have applied all. */
  async expectSameOnBoth(names: readonly string[]): Promise<void> {
    for (const name of names) expectEqual(`g/${name} on the secondary`, await this.contentOf('secondary', name), await this.contentOf('primary', name));
  }

  async close(): Promise<void> {
    this.relay.close();
    await this.pair.primary.stop();
    await this.pair.secondary.stop();
  }
}
