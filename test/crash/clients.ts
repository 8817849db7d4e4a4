/**
 * NBD connections of the crash tests: the vendored client over Unix sockets.
 * Owns opening and forgetting them. Must not know: what is sent.
 */
import { connect } from 'node:net';
import { NbdClient, streamOf } from '../../src/vendor/nbd-protocol-ts/index.js';
import type { TestNode } from '../harness/node.js';

export const GROUP = 'g';

/** `checked` false: also what the export does not allow is sent. */
export function openDevice(node: TestNode, device: string, options: { group?: string; checked?: boolean; maxInFlight?: number } = {}): Promise<NbdClient> {
  const { group = GROUP, ...rest } = options;
  return NbdClient.connect(streamOf(connect(node.nbdSocket)), { name: `${group}/${device}`, maxWaiting: 1 << 16, ...rest });
}

/** The connections of one worker, one per device, opened when they are needed. */
export class Connections {
  private readonly open = new Map<string, Promise<NbdClient>>();

  constructor(private readonly node: TestNode, private readonly most: number) {}

  async to(device: string): Promise<NbdClient> {
    const known = this.open.get(device);
    if (known !== undefined) {
      const client = await known;
      if (client.usable) return client;
      this.open.delete(device);
    }
    if (this.open.size >= this.most) {
      const [oldest, promise] = this.open.entries().next().value!;
      this.open.delete(oldest);
      // Waits for what is under way there; nobody waits for this.
      promise.then((client) => client.disconnect()).catch(() => undefined);
    }
    const opening = openDevice(this.node, device);
    this.open.set(device, opening);
    opening.catch(() => this.open.delete(device));
    return opening;
  }

  closeAll(): void {
    for (const promise of this.open.values()) promise.then((client) => client.destroy()).catch(() => undefined);
    this.open.clear();
  }
}
