/** What a scenario gets. */
import type { GuestShell } from './guest-shell.js';

export interface Context {
  readonly guest: GuestShell;
  readonly directory: string;
  /** `nbdkit` tests the rig itself. */
  readonly serverKind: 'lockstep' | 'nbdkit';
}
