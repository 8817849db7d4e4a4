/**
 * The phases of a session, and the role of the own group that each of them
 * needs. Must not know: frames, what is done in a phase.
 *
 *   dialer     connecting → hello → asking → shipping
 *                                     ↑ ├──→ rewinding → asking
 *                                     │ ├──→ fetching ─┐
 *                                     └─┴──← holding ←─┘   holding: until the own group is primary
 *   listener   hello → waiting → applying
 *                         ├────→ undoing → waiting
 *                         └────→ serving → waiting
 *
 * Nothing about a group is said or changed before `asking`/`waiting`.
 */

import { unreachable } from '../base/assert.js';
import type { GroupRole } from '../group/replica.js';

export type Phase =
  | 'connecting' | 'hello'
  | 'asking' | 'rewinding' | 'fetching' | 'holding' | 'shipping'
  | 'waiting' | 'undoing' | 'serving' | 'applying'
  | 'ended';

/** Whether a session may be in this phase while its group has this role. */
export function fitsRole(phase: Phase, role: GroupRole): boolean {
  switch (phase) {
    case 'shipping': case 'rewinding': return role === 'primary';
    case 'fetching': return role === 'recovering';
    case 'asking': case 'holding': return role === 'primary' || role === 'recovering';
    case 'applying': case 'serving': case 'undoing': return role === 'secondary';
    case 'connecting': case 'hello': case 'waiting': case 'ended': return true;
    default: return unreachable(phase);
  }
}
