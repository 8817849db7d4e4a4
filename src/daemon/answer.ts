/** How a request of the control port is answered, whoever carries it out. */

import type { ControlReplies } from '../control/port.js';

type Reply = ControlReplies[keyof ControlReplies];

/** Exactly one of the two is called, now or in a later tick. */
export interface Answer {
  done(reply: Reply): void;
  failed(error: unknown): void;
}
